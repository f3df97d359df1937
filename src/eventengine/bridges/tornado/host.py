"""A Tornado IOLoop as a host, and the engine on it.

An IOLoop is an asyncio loop with Tornado's conveniences around each call, which take time and give the core nothing. So
the host is the asyncio loop itself; what is Tornado's is the logging.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from functools import partial
from typing import Literal, TypeAlias, cast

from tornado.ioloop import IOLoop
from tornado.iostream import IOStream
from tornado.log import app_log
from tornado.platform.asyncio import BaseAsyncIOLoop

from eventengine.bridges.asyncio import AsyncioHost
from eventengine.bridges.tornado.borrowed import endpoint_from_iostream
from eventengine.bridges.tornado.names import tornado_source
from eventengine.core.hosted import HostedEventEngine, check_allocator
from eventengine.core.threaded import LoopThread
from eventengine.engine import Endpoint
from eventengine.memory import MemoryAllocator
from eventengine.resolvers import ResolverName, choose

__all__ = ["TornadoEventEngine", "TornadoHost", "TornadoResolverName"]

TornadoResolverName: TypeAlias = ResolverName | Literal["tornado"]
"""Which resolver a `TornadoEventEngine` takes."""


class TornadoHost(AsyncioHost):
    """An IOLoop as a host."""

    __slots__ = ()

    def __init__(self, io_loop: IOLoop) -> None:
        if not isinstance(io_loop, BaseAsyncIOLoop):
            raise TypeError(f"io_loop must be a tornado.ioloop.IOLoop, not {type(io_loop).__name__}")
        super().__init__(io_loop.asyncio_loop)

    def log_exception(self, message: str, error: BaseException) -> None:
        app_log.error("%s", message, exc_info=error)


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
        resolver: What looks names up, see docs/names.md: `"c-ares"`, `"system"` or `"tornado"`,
            Tornado's own `Resolver`; None: c-ares where pycares is installed,
            else the system's `getaddrinfo`.

    Raises TypeError for what is no IOLoop, ClosedResourceError for a closed one, ValueError for a resolver that there
    is not, ImportError for c-ares without pycares.
    """

    __slots__ = ()

    def __init__(
        self,
        io_loop: IOLoop,
        *,
        callback_executor: Executor | None = None,
        private_poller: bool | None = None,
        resolver: TornadoResolverName | None = None,
        _thread: LoopThread | None = None,
    ) -> None:
        super().__init__(
            TornadoHost(io_loop),
            callback_executor=callback_executor,
            private_poller=private_poller,
            thread=_thread,
            source_factory=choose(resolver, {"tornado": lambda: tornado_source}),
        )

    @classmethod
    def in_thread(
        cls,
        *,
        callback_executor: Executor | None = None,
        private_poller: bool | None = None,
        resolver: TornadoResolverName | None = None,
    ) -> TornadoEventEngine:
        """An engine on an IOLoop of its own, which runs in a thread until the engine is closed."""
        io_loop = IOLoop(make_current=False)
        thread = LoopThread(partial(_run, io_loop), io_loop.stop, "eventengine-tornado")
        try:
            return cls(
                io_loop,
                callback_executor=callback_executor,
                private_poller=private_poller,
                resolver=resolver,
                _thread=thread,
            )
        except BaseException:
            io_loop.close()
            raise

    def endpoint_from_iostream(self, stream: IOStream, memory_allocator: MemoryAllocator) -> Endpoint:
        """A stream that Tornado connected or accepted, as an endpoint. The stream is then the endpoint's.

        What the stream has read ahead comes first. A write is done when the stream has handed everything to the system.
        When the peer ends its stream Tornado closes the whole of it: bytes that came are read, then OUT_OF_RANGE, and
        nothing can be written any more.

        Args:
            stream: An IOStream or SSLIOStream on this engine's IOLoop, connected, without a read or write outstanding.
            memory_allocator: What the endpoint draws its memory from.

        Raises TypeError for what is no such stream; BusyResourceError while a read or write is outstanding on it;
        StatusError, UNAVAILABLE, for one that is closed or not connected, FAILED_PRECONDITION for one that was borrowed
        already; ClosedResourceError after close; RuntimeError on another thread than the loop's, where alone this may
        be called.
        """
        check_allocator(memory_allocator)
        return endpoint_from_iostream(self._loop, stream, memory_allocator)


def _run(io_loop: IOLoop) -> None:
    try:
        io_loop.start()
        _end_tasks(cast("BaseAsyncIOLoop", io_loop).asyncio_loop)
    finally:
        io_loop.close()


def _end_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Those of Tornado's resolver that were cancelled by the close: asyncio would complain of tasks that are left."""
    tasks = asyncio.all_tasks(loop)
    if tasks:
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.wait(tasks))
