"""Where the application's callbacks run: on the loop's thread, or on a pool that the user gave.

Rules:

1. What a callback raises is logged with the host's logging and counted, and ends nothing else. Only KeyboardInterrupt
   and SystemExit go on to the host when the loop is the user's: they are how a program is ended. On a thread of the
   engine's own, or of a pool, there is nobody to end, so they are logged too.
2. A pool that was shut down under us, or can start no thread, loses no callback: they then run on the loop's thread,
   and each is logged. Nor does one run twice: who takes it out of its `letter` runs it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from typing import TypeVarTuple

from eventengine.core.host import Host
from eventengine.status import ClosedResourceError

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
        trace = error.__traceback__
        if trace is not None and trace.tb_next is not None:
            # Without our own frame: logs may keep it, and with it whatever its variables come to hold.
            error = error.with_traceback(trace.tb_next)
        with self._lock:
            self._errors += 1
        try:
            name = repr(function)
        except Exception:
            name = object.__repr__(function)
        self._host.log_exception(f"a callback of an event engine raised: {name}", error)

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
        letter: list[Callable[[], object]] = [partial(function, *args)]  # who takes it out runs it
        try:
            self._executor.submit(self._run_here, letter).add_done_callback(partial(self._not_lost, letter))
        except RuntimeError as error:  # after shutdown; and, with the work queued already, for want of a thread
            self.failed(function, error)
            if letter:
                with contextlib.suppress(IndexError):
                    super().run(letter.pop())

    def _not_lost(self, letter: list[Callable[[], object]], future: Future[None]) -> None:
        """A pool that is shut down with `cancel_futures` drops what waits: rule 2."""
        if future.cancelled():
            lost = partial(self.run, letter.pop())  # to a pool that refuses it, and so on the loop
            try:
                self._host.wake(lost)
            except ClosedResourceError:
                # In a thread, for the pool cancels with its lock held, which `submit` takes.
                threading.Thread(target=lost, name="eventengine-cancelled").start()

    def _run_here(self, letter: list[Callable[[], object]]) -> None:
        try:
            function = letter.pop()
        except IndexError:
            return
        self._here.runs = True
        try:
            function()
        except BaseException as error:
            self.failed(function, error)
        finally:
            self._here.runs = False

    def runs_here(self, on_loop: bool) -> bool:
        return getattr(self._here, "runs", False)
