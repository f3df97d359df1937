"""Engines whose connections are a framework's transports, borrowed: what the conformance suite runs on besides.

The connecting and accepting is an engine's own, for that is not what these are for; but each connection is then given
to the framework, which makes a transport of it as of any other (`IReactorSocket.adoptStreamConnection`,
`connect_accepted_socket`, `IOStream`), and the application gets an endpoint over that transport.
"""

from __future__ import annotations

import asyncio
import os
import socket
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, cast

from engines import new_uvloop, running, running_reactor
from eventengine import (
    ClosedResourceError,
    ConnectionHandle,
    Endpoint,
    EndpointConfig,
    EventEngine,
    Listener,
    MemoryAllocator,
    MemoryAllocatorFactory,
    ResolvedAddress,
    Status,
    StatusCode,
    SupportsFileDescriptor,
)
from eventengine.core.hosted import HostedEventEngine
from wrapped_engine import UnderWay, WrappedEngine

Adopted = Callable[[Endpoint | Status], None]
Adopt = Callable[[socket.socket, MemoryAllocator, Adopted], None]
"""Makes a transport of a socket, and an endpoint of that; on the loop's thread."""

ENGINE_CLOSED = Status(StatusCode.CANCELLED, "the engine was closed")


class BorrowingEngine(WrappedEngine):
    """`engine` for all but connections; `on_loop` calls a function on the loop's thread, and `adopt` there."""

    def __init__(
        self, engine: HostedEventEngine, on_loop: Callable[[Callable[[], object]], object], adopt: Adopt
    ) -> None:
        super().__init__(engine)
        self._post_callback = engine._loop.post_callback
        self._on_loop = on_loop
        self._adopt = adopt

    def connect(
        self,
        on_connect: Callable[[Endpoint | Status], object],
        address: ResolvedAddress,
        config: EndpointConfig,
        memory_allocator: MemoryAllocator,
        timeout: float,
    ) -> ConnectionHandle:
        def connected(result: Endpoint | Status) -> None:
            if isinstance(result, Status):
                on_connect(result)
            else:
                self._borrow(result, memory_allocator, on_connect)

        good = callable(on_connect) and not asyncio.iscoroutinefunction(on_connect)
        return super().connect(connected if good else on_connect, address, config, memory_allocator, timeout)

    def create_listener(
        self,
        on_accept: Callable[[Endpoint, MemoryAllocator], object],
        on_shutdown: Callable[[Status], object],
        config: EndpointConfig,
        memory_allocator_factory: MemoryAllocatorFactory,
    ) -> Listener:
        if not callable(on_accept) or not callable(on_shutdown):  # is refused
            return super().create_listener(on_accept, on_shutdown, config, memory_allocator_factory)
        under_way = UnderWay(on_accept, on_shutdown)

        def accepted(endpoint: Endpoint, allocator: MemoryAllocator) -> None:
            own = memory_allocator_factory.create_memory_allocator("connection")
            self._borrow(endpoint, own, under_way.begin(allocator))

        return super().create_listener(accepted, under_way.shut_down, config, memory_allocator_factory)

    def _borrow(
        self, endpoint: Endpoint, allocator: MemoryAllocator, on_done: Callable[[Endpoint | Status], object]
    ) -> None:
        descriptor = endpoint.query_extension(SupportsFileDescriptor)
        assert descriptor is not None
        try:
            sock = socket.socket(fileno=descriptor.release())
        except ClosedResourceError:
            on_done(ENGINE_CLOSED)
            return
        del endpoint, descriptor
        sock.setblocking(False)

        def adopted(result: Endpoint | Status) -> None:
            self._post_callback(on_done, result)

        def adopt() -> None:
            try:
                self._adopt(sock, allocator, adopted)
            except ClosedResourceError:
                sock.close()
                adopted(ENGINE_CLOSED)

        self._on_loop(adopt)


class BorrowedKind(NamedTuple):
    """Transports to test: `make` gives what makes engines of them, of a pool or None."""

    id: str
    framework: str
    needs: tuple[str, ...]
    make: Callable[[], Any]
    pool: bool


def asyncio_on(
    new_event_loop: Callable[[], asyncio.AbstractEventLoop], *, by_protocol: bool = False
) -> Callable[[], Any]:
    @contextmanager
    def engines() -> Iterator[Callable[[Executor | None], EventEngine]]:
        from eventengine.bridges.asyncio import AsyncioEventEngine, EndpointProtocol

        with running(new_event_loop()) as loop:

            def make(pool: Executor | None) -> EventEngine:
                engine = AsyncioEventEngine(loop, callback_executor=pool)

                def adopt(sock: socket.socket, allocator: MemoryAllocator, adopted: Adopted) -> None:
                    async def adopt_soon() -> None:
                        if by_protocol:
                            made: list[Endpoint] = []

                            def on_connect(endpoint: Endpoint) -> None:
                                made.append(endpoint)
                                adopted(endpoint)

                            await loop.connect_accepted_socket(
                                lambda: EndpointProtocol(engine, allocator, on_connect), sock
                            )
                            if not made:
                                adopted(ENGINE_CLOSED)
                            return
                        transport, _ = await loop.connect_accepted_socket(_Paused, sock)
                        try:
                            adopted(engine.endpoint_from_transport(transport, allocator))
                        except ClosedResourceError:
                            transport.close()
                            adopted(ENGINE_CLOSED)

                    task = loop.create_task(adopt_soon())
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)

                return BorrowingEngine(engine, loop.call_soon_threadsafe, adopt)

            tasks: set[asyncio.Task[None]] = set()
            yield make
            asyncio.run_coroutine_threadsafe(_settle(tasks), loop).result()

    return engines


class _Paused(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).pause_reading()  # uvloop's are of no class of asyncio's


async def _settle(tasks: set[asyncio.Task[None]]) -> None:
    """Transports that were closed have their turns to close their sockets in."""
    for task in list(tasks):
        await task
    for _ in range(5):
        await asyncio.sleep(0)


@contextmanager
def tornado_streams() -> Iterator[Callable[[Executor | None], EventEngine]]:
    from tornado.ioloop import IOLoop
    from tornado.iostream import IOStream

    from eventengine.bridges.tornado import TornadoEventEngine

    with running(asyncio.new_event_loop()) as loop:
        io_loop = IOLoop(make_current=False, asyncio_loop=loop)

        def make(pool: Executor | None) -> EventEngine:
            engine = TornadoEventEngine(io_loop, callback_executor=pool)

            def adopt(sock: socket.socket, allocator: MemoryAllocator, adopted: Adopted) -> None:
                stream = IOStream(sock)
                try:
                    adopted(engine.endpoint_from_iostream(stream, allocator))
                except BaseException:
                    stream.close()
                    raise

            return BorrowingEngine(engine, loop.call_soon_threadsafe, adopt)

        yield make
        asyncio.run_coroutine_threadsafe(_settle(set()), loop).result()


def twisted_on(module: str, name: str) -> Callable[[], Any]:
    @contextmanager
    def engines() -> Iterator[Callable[[Executor | None], EventEngine]]:
        import importlib

        from twisted.internet.protocol import Factory, Protocol

        from eventengine.bridges.twisted import TwistedEventEngine

        with running_reactor(getattr(importlib.import_module(module), name)()) as reactor:

            def make(pool: Executor | None) -> EventEngine:
                engine = TwistedEventEngine(reactor, callback_executor=pool)

                def adopt(sock: socket.socket, allocator: MemoryAllocator, adopted: Adopted) -> None:
                    made: list[Any] = []

                    class Plain(Protocol):
                        def connectionMade(self) -> None:  # noqa: N802
                            made.append(self.transport)

                    family = sock.family
                    fd = sock.detach()
                    try:  # which takes a copy of it
                        reactor.adoptStreamConnection(fd, family, Factory.forProtocol(Plain))
                    except OSError as error:  # its peer has gone; Twisted leaves the copy open
                        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
                        for frame in frames:
                            if "skt" in frame.f_locals:
                                frame.f_locals["skt"].close()
                        adopted(Status.from_errno(error.errno or 0, "adopting the connection"))
                        return
                    finally:
                        os.close(fd)
                    try:
                        adopted(engine.endpoint_from_transport(made[0], allocator))
                    except ClosedResourceError:
                        made[0].loseConnection()
                        adopted(ENGINE_CLOSED)

                return BorrowingEngine(engine, reactor.callFromThread, adopt)

            yield make

    return engines


EPOLL = twisted_on("twisted.internet.epollreactor", "EPollReactor")

BORROWED = [
    BorrowedKind(f"{name}{', pool' if pool else ''}", framework, needs, make, pool)
    for name, framework, needs, make in (
        ("asyncio transports", "asyncio", (), asyncio_on(asyncio.new_event_loop)),
        ("uvloop transports", "uvloop", ("uvloop",), asyncio_on(new_uvloop, by_protocol=True)),
        ("Tornado streams", "tornado", ("tornado",), tornado_streams),
        ("Twisted transports, epoll", "twisted", ("twisted",), EPOLL),
        (
            "Twisted transports, select",
            "twisted",
            ("twisted",),
            twisted_on("twisted.internet.selectreactor", "SelectReactor"),
        ),
    )
    for pool in (False, True)
    if not pool or name in ("asyncio transports", "Tornado streams", "Twisted transports, epoll")
]


@contextmanager
def borrowing(kind: BorrowedKind) -> Iterator[Callable[[], EventEngine]]:
    """What makes an engine of this kind; in the end its loop and its pool are ended."""
    with ExitStack() as stack:
        make = stack.enter_context(kind.make())
        pool = stack.enter_context(ThreadPoolExecutor(4, "callbacks")) if kind.pool else None
        yield lambda: make(pool)
