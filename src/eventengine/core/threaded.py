"""Threads that are an engine's own: `LoopThread`, which runs any loop, `Gate`, for what must outlive its users, and
`ThreadHost`, a loop of the standard library alone, for the default engine.

`ThreadHost` waits in the engine's private poller itself, so that an event costs one system call less than on a
borrowed loop. Its rules:

1. Its thread alone touches `_timer` and the poller. The others reach it by `wake`: they append first and write to the
   pipe after; the thread empties the pipe first and looks at the queue after.
2. The pipe is not closed, so that its number cannot become another's, while anybody writes to it: see `Gate`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Final

from eventengine.core.host import READ, Host, TurnedPoller
from eventengine.status import ClosedResourceError

__all__ = ["Gate", "LoopThread", "ThreadHost"]

_log: Final = logging.getLogger("eventengine")


class LoopThread:
    """A daemon thread that runs a loop, from `start` until `stop`.

    Args:
        run: Runs the loop, and closes what belongs to it when it was stopped.
        stop: Called on the loop's thread; makes `run` return.
        name: The thread's name.
    """

    __slots__ = ("_stop", "_thread")

    def __init__(self, run: Callable[[], object], stop: Callable[[], object], name: str) -> None:
        self._stop = stop
        self._thread = threading.Thread(target=run, name=name, daemon=True)

    def start(self) -> None:
        """Starts it; does nothing when it was started before, as for a loop that can be set up only in its thread."""
        if self._thread.ident is None:
            self._thread.start()

    def stop(self) -> None:
        self._stop()

    def join(self) -> None:
        """Waits for the end; does nothing on the thread itself."""
        if self._thread is not threading.current_thread():
            self._thread.join()


class Gate:
    """Keeps something open for as long as anybody uses it, though it was closed meanwhile.

    There is no lock, for a garbage collection within a `wake` may call another one. Who enters puts a mark first and
    looks at `is_closed` after; who closes sets `is_closed` first and looks for marks after. If there are any, the last
    one out has `on_closed` called. Two may find themselves the last: who takes it out calls it.
    """

    __slots__ = ("_inside", "_on_closed", "is_closed")

    def __init__(self, on_closed: Callable[[], object]) -> None:
        self._inside: list[None] = []
        self._on_closed = [on_closed]
        self.is_closed = False

    def __enter__(self) -> None:
        """Raises ClosedResourceError after `close`."""
        self._inside.append(None)
        if self.is_closed:
            self._leave()
            raise ClosedResourceError("the engine's thread has ended")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        self._inside.pop()
        if self.is_closed:
            self._end()

    def close(self) -> None:
        self.is_closed = True
        self._end()

    def _end(self) -> None:
        if not self._inside:
            with contextlib.suppress(IndexError):
                self._on_closed.pop()()


class ThreadHost(Host):
    """The loop of the default engine; a `LoopThread` runs `run`."""

    __slots__ = (
        "_gate",
        "_mail",
        "_poller",
        "_reader",
        "_running",
        "_stopping",
        "_timer",
        "_writer",
    )

    def __init__(self) -> None:
        self._mail: deque[Callable[[], object]] = deque()
        self._reader, self._writer = os.pipe()
        self._gate = Gate(self._close_pipe)
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._poller: TurnedPoller | None = None
        self._timer: tuple[float, Callable[[], object]] | None = None
        self._running = self._stopping = False

    def adopt(self, poller: TurnedPoller) -> bool:
        self._poller = poller
        return True

    def run(self) -> None:
        """Turns the poller until `stop`."""
        poller = self._poller
        assert poller is not None
        poller.arm(self._reader, READ, self)
        self._running = True
        try:
            while not self._stopping:
                try:
                    self._turn(poller)
                except Exception as error:  # a fault of ours; what hangs on this thread must not hang for ever
                    self.log_exception("the event engine itself raised", error)
        finally:
            self._running = False
            self.close()

    def _turn(self, poller: TurnedPoller) -> None:
        timer = self._timer
        poller.turn(-1.0 if timer is None else max(timer[0] - time.monotonic(), 0.0))
        timer = self._timer
        if timer is not None and timer[0] <= time.monotonic() and not self._stopping:
            self._timer = None
            timer[1]()

    def close(self) -> None:
        """Closes the pipe, after `run` or instead of it."""
        self._gate.close()

    def _close_pipe(self) -> None:
        os.close(self._reader)
        os.close(self._writer)

    def stop(self) -> None:
        """On its own thread: `run` returns after this turn."""
        self._stopping = True

    def on_readable(self) -> None:
        """The pipe was written to."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._reader, 4096)
        for _ in range(len(self._mail)):
            try:
                self._mail.popleft()()
            except Exception as error:  # else the poller would forget the pipe, and nobody could wake us again
                self.log_exception("the event engine itself raised", error)

    def on_writable(self) -> None:
        """Nobody asked for this."""

    def on_unwatchable(self, error: OSError) -> None:
        raise error

    @property
    def time(self) -> Callable[[], float]:
        return time.monotonic

    def call_later(self, delay: float, function: Callable[[], object]) -> object:
        # The core has one host timer at a time.
        self._timer = (time.monotonic() + delay, function)
        return self._timer

    def cancel(self, handle: object) -> None:
        if self._timer is handle:
            self._timer = None

    def wake(self, function: Callable[[], object]) -> None:
        with self._gate:
            self._mail.append(function)
            with contextlib.suppress(BlockingIOError):  # the pipe is full: it is readable, then
                os.write(self._writer, b"\0")

    def watch(self, fd: int, events: int, on_ready: Callable[[int], object]) -> None:
        raise RuntimeError("the default engine's poller is not watched by its host")

    def unwatch(self, fd: int) -> None:
        raise RuntimeError("the default engine's poller is not watched by its host")

    def log_exception(self, message: str, error: BaseException) -> None:
        _log.error(message, exc_info=error)

    @property
    def is_running(self) -> bool:
        return self._running

    @property
    def is_closed(self) -> bool:
        return self._gate.is_closed
