"""Where the application's callbacks run: on the loop's thread, or on a pool that the user gave.

Rules:

1. What a callback raises is logged with the host's logging and counted, and ends nothing else. Only KeyboardInterrupt
   and SystemExit go on to the host when the loop is the user's: they are how a program is ended. On a thread of the
   engine's own, or of a pool, there is nobody to end, so they are logged too.
2. A pool that was shut down under us does not lose callbacks: they then run on the loop's thread, and each is logged.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import TypeVarTuple

from eventengine.core.host import Host

__all__ = ["Callbacks", "PoolCallbacks"]

Ts = TypeVarTuple("Ts")


class Callbacks:
    """Runs callbacks on the loop's thread, at once."""

    __slots__ = ("_errors", "_host", "_lock", "_raised")

    block_polling = True

    def __init__(self, host: Host, *, own_thread: bool) -> None:
        self._host = host
        self._errors = 0
        self._lock = threading.Lock()
        self._raised: tuple[type[BaseException], ...] = () if own_thread else (KeyboardInterrupt, SystemExit)

    @property
    def errors(self) -> int:
        """How many callbacks have raised."""
        return self._errors

    def run(self, function: Callable[[*Ts], object], *args: *Ts) -> None:
        """Runs a callback of the application, on the loop's thread."""
        try:
            function(*args)
        except BaseException as error:
            self.failed(function, error)

    def failed(self, function: object, error: BaseException) -> None:
        """Deals with what `function` raised: rule 1."""
        if isinstance(error, self._raised):
            raise error
        with self._lock:
            self._errors += 1
        self._host.log_exception(f"a callback of an event engine raised: {function!r}", error)

    def runs_here(self, on_loop: bool) -> bool:
        """Whether the calling thread, which is the loop's or not, is one that callbacks run on."""
        return on_loop


class PoolCallbacks(Callbacks):
    """Runs callbacks on an executor."""

    __slots__ = ("_executor", "_here")

    block_polling = False

    def __init__(self, host: Host, executor: Executor) -> None:
        super().__init__(host, own_thread=True)
        self._executor = executor
        self._here = threading.local()

    def run(self, function: Callable[[*Ts], object], *args: *Ts) -> None:
        try:
            self._executor.submit(partial(self._run_here, function, *args))
        except RuntimeError as error:  # what submit raises after shutdown
            self.failed(function, error)
            super().run(function, *args)

    def _run_here(self, function: Callable[[*Ts], object], *args: *Ts) -> None:
        self._here.runs = True
        try:
            function(*args)
        except BaseException as error:
            self.failed(function, error)
        finally:
            self._here.runs = False

    def runs_here(self, on_loop: bool) -> bool:
        return getattr(self._here, "runs", False)
