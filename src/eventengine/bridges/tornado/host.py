"""A Tornado IOLoop as a host, and the engine on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import Protocol, cast

from tornado.ioloop import IOLoop
from tornado.log import app_log
from tornado.platform.asyncio import BaseAsyncIOLoop

from eventengine.core.host import READ, WRITE, Host
from eventengine.core.hosted import HostedEventEngine
from eventengine.core.threaded import LoopThread
from eventengine.status import ClosedResourceError

__all__ = ["TornadoEventEngine", "TornadoHost"]


class _IOLoop(Protocol):
    """What is used of an IOLoop; Tornado's own annotations leave the callbacks' results open."""

    asyncio_loop: asyncio.AbstractEventLoop

    def call_later(self, delay: float, callback: Callable[[], object]) -> object: ...
    def remove_timeout(self, timeout: object) -> None: ...
    def add_callback(self, callback: Callable[[], object]) -> None: ...
    def add_handler(self, fd: int, handler: Callable[[int, int], object], events: int) -> None: ...
    def update_handler(self, fd: int, events: int) -> None: ...
    def remove_handler(self, fd: int) -> None: ...


class TornadoHost(Host):
    """An IOLoop as a host."""

    __slots__ = ("_io_loop", "_watched", "clock_lag")

    knows_its_thread = True

    def __init__(self, io_loop: IOLoop) -> None:
        if not isinstance(io_loop, BaseAsyncIOLoop):
            raise TypeError(f"io_loop must be a tornado.ioloop.IOLoop, not {type(io_loop).__name__}")
        self._io_loop = cast("_IOLoop", io_loop)
        loop = self._io_loop.asyncio_loop
        # uvloop's clock is cut to whole milliseconds.
        self.clock_lag = 0.001 if type(loop).__module__.partition(".")[0] == "uvloop" else 0.0
        self._watched: set[int] = set()

    @property
    def time(self) -> Callable[[], float]:
        # By this clock its timeouts fire. The IOLoop's own `time` is the wall clock's, which jumps.
        return self._io_loop.asyncio_loop.time

    def call_later(self, delay: float, function: Callable[[], object]) -> object:
        return self._io_loop.call_later(delay, function)

    def cancel(self, handle: object) -> None:
        self._io_loop.remove_timeout(handle)

    def wake(self, function: Callable[[], object]) -> None:
        # add_callback says nothing of a loop that is closed, and the function would be lost.
        if self.is_closed:
            raise ClosedResourceError("the IOLoop was closed")
        self._io_loop.add_callback(function)

    def watch(self, fd: int, events: int, on_ready: Callable[[int], object]) -> None:
        wanted = (IOLoop.READ if events & READ else 0) | (IOLoop.WRITE if events & WRITE else 0)
        if fd in self._watched:
            self._io_loop.update_handler(fd, wanted)
        else:
            self._io_loop.add_handler(fd, partial(_ready, on_ready), wanted)
            self._watched.add(fd)

    def unwatch(self, fd: int) -> None:
        if fd in self._watched:
            self._watched.remove(fd)
            self._io_loop.remove_handler(fd)

    def log_exception(self, message: str, error: BaseException) -> None:
        app_log.error("%s", message, exc_info=error)

    @property
    def is_running(self) -> bool:
        return self._io_loop.asyncio_loop.is_running()

    def is_here(self) -> bool:
        try:
            return asyncio.get_running_loop() is self._io_loop.asyncio_loop
        except RuntimeError:  # none runs here
            return False

    @property
    def is_closed(self) -> bool:
        return self._io_loop.asyncio_loop.is_closed()


def _ready(on_ready: Callable[[int], object], _fd: int, events: int) -> None:
    on_ready((READ if events & IOLoop.READ else 0) | (WRITE if events & IOLoop.WRITE else 0) or READ | WRITE)


class TornadoEventEngine(HostedEventEngine):
    """An engine on a Tornado IOLoop, which may run already or later.

    Callbacks run in the IOLoop's thread: one that blocks stops the loop and all I/O (`callbacks_block_polling` is
    True). With a `callback_executor` they run on its threads, concurrently, and do not.

    Closing the engine leaves the IOLoop running, with no handler or timeout of the engine's on it.

    Args:
        io_loop: As `IOLoop.current()` gives it inside a coroutine.
        callback_executor: A pool for the callbacks; the engine never shuts it down.
        private_poller: Whether sockets are watched by an epoll of the engine's own, which the IOLoop watches as one
            descriptor; None: where that can be.

    Raises TypeError for what is no IOLoop, ClosedResourceError for a closed one.
    """

    __slots__ = ()

    def __init__(
        self,
        io_loop: IOLoop,
        *,
        callback_executor: Executor | None = None,
        private_poller: bool | None = None,
        _thread: LoopThread | None = None,
    ) -> None:
        host = TornadoHost(io_loop)
        super().__init__(host, callback_executor=callback_executor, private_poller=private_poller, thread=_thread)

    @classmethod
    def in_thread(
        cls, *, callback_executor: Executor | None = None, private_poller: bool | None = None
    ) -> TornadoEventEngine:
        """An engine on an IOLoop of its own, which runs in a thread until the engine is closed."""
        io_loop = IOLoop(make_current=False)
        thread = LoopThread(partial(_run, io_loop), io_loop.stop, "eventengine-tornado")
        try:
            return cls(io_loop, callback_executor=callback_executor, private_poller=private_poller, _thread=thread)
        except BaseException:
            io_loop.close()
            raise


def _run(io_loop: IOLoop) -> None:
    try:
        io_loop.start()
    finally:
        io_loop.close()
