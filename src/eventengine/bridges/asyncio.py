"""The bridge to asyncio, and to uvloop: the smallest one. Read it to write your own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import cast

from eventengine.bridges.asyncio_borrowed import BorrowsTransports, EndpointProtocol
from eventengine.core.host import READ, WRITE, Host
from eventengine.core.threaded import LoopThread
from eventengine.resolvers import ResolverName, choose
from eventengine.status import ClosedResourceError

__all__ = ["AsyncioEventEngine", "AsyncioHost", "EndpointProtocol"]


class AsyncioHost(Host):
    """An asyncio event loop as a host."""

    __slots__ = ("_loop", "_watched", "clock_lag")

    knows_its_thread = True

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        if not isinstance(loop, asyncio.AbstractEventLoop):
            raise TypeError(f"loop must be an asyncio event loop, not {type(loop).__name__}")
        if type(loop).add_reader is asyncio.AbstractEventLoop.add_reader or _is_proactor(loop):
            raise TypeError(f"{type(loop).__name__} has no add_reader; a SelectorEventLoop or uvloop's Loop has")
        self._loop = loop
        self._watched: dict[int, int] = {}
        # uvloop's clock is cut to whole milliseconds.
        self.clock_lag = 0.001 if type(loop).__module__.partition(".")[0] == "uvloop" else 0.0

    @property
    def time(self) -> Callable[[], float]:
        return self._loop.time

    def call_later(self, delay: float, function: Callable[[], object]) -> object:
        return self._loop.call_later(delay, function)

    def cancel(self, handle: object) -> None:
        cast("asyncio.TimerHandle", handle).cancel()

    def wake(self, function: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:
            raise ClosedResourceError("the asyncio loop was closed") from None

    def watch(self, fd: int, events: int, on_ready: Callable[[int], object]) -> None:
        have = self._watched.get(fd, 0)
        if events & READ & ~have:
            self._loop.add_reader(fd, on_ready, READ)
        elif have & READ & ~events:
            self._loop.remove_reader(fd)
        if events & WRITE & ~have:
            self._loop.add_writer(fd, on_ready, WRITE)
        elif have & WRITE & ~events:
            self._loop.remove_writer(fd)
        self._watched[fd] = events

    def unwatch(self, fd: int) -> None:
        have = self._watched.pop(fd, 0)
        if have & READ:
            self._loop.remove_reader(fd)
        if have & WRITE:
            self._loop.remove_writer(fd)

    def log_exception(self, message: str, error: BaseException) -> None:
        context = {"message": message, "exception": error}
        if self.is_here() or not self._loop.is_running():
            self._loop.call_exception_handler(context)
        else:
            with contextlib.suppress(RuntimeError):  # closed: there is nobody left to handle it
                self._loop.call_soon_threadsafe(self._loop.call_exception_handler, context)

    @property
    def is_running(self) -> bool:
        return self._loop.is_running()

    def is_here(self) -> bool:
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:  # none runs here
            return False

    @property
    def is_closed(self) -> bool:
        return self._loop.is_closed()


class AsyncioEventEngine(BorrowsTransports):
    """An engine on an asyncio loop, uvloop's included, which may run already or later.

    Callbacks run on the loop's thread: one that blocks stops the loop and all I/O (`callbacks_block_polling` is
    True). With a `callback_executor` they run on its threads, concurrently, and do not.

    Closing the engine leaves the loop running, with nothing of the engine's on it.

    Args:
        loop: One with `add_reader`, which on Windows only the SelectorEventLoop has.
        callback_executor: A pool for the callbacks; the engine never shuts it down.
        private_poller: Whether sockets are watched by an epoll of the engine's own, which the loop watches as one
            descriptor; None: where that can be.
        resolver: What looks names up, `"c-ares"` or `"system"`, see docs/names.md; None: c-ares where pycares is
            installed, else the system's `getaddrinfo`.

    Raises TypeError for what is no such loop, ClosedResourceError for a closed one, ValueError for a resolver that
    there is not, ImportError for c-ares without pycares.
    """

    __slots__ = ()

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        callback_executor: Executor | None = None,
        private_poller: bool | None = None,
        resolver: ResolverName | None = None,
        _thread: LoopThread | None = None,
    ) -> None:
        source_factory = choose(resolver)
        super().__init__(
            AsyncioHost(loop),
            callback_executor=callback_executor,
            private_poller=private_poller,
            thread=_thread,
            source_factory=source_factory,
        )

    @classmethod
    def in_thread(
        cls,
        *,
        callback_executor: Executor | None = None,
        private_poller: bool | None = None,
        resolver: ResolverName | None = None,
        loop_factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
    ) -> AsyncioEventEngine:
        """An engine on a loop of its own, made by `loop_factory` and run in a thread, until the engine is closed."""
        loop = loop_factory()
        thread = LoopThread(partial(_run, loop), loop.stop, "eventengine-asyncio")
        try:
            return cls(
                loop,
                callback_executor=callback_executor,
                private_poller=private_poller,
                resolver=resolver,
                _thread=thread,
            )
        except BaseException:
            loop.close()
            raise


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def _is_proactor(loop: asyncio.AbstractEventLoop) -> bool:
    proactor = getattr(asyncio, "ProactorEventLoop", None)
    return proactor is not None and isinstance(loop, proactor)
