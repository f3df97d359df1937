"""The echo servers that are compared. `python -m benchmarks.servers NAME CORE` runs one, on that core alone.

It prints its port, and serves until its stdin ends. With `lateness` as a third argument it has a timer of the host's
own come every 5 ms meanwhile, and prints in the end, as JSON, by how many seconds each was late.

Each server is written as its framework's own documentation writes one, and has its options at their defaults, but for
TCP_NODELAY, which all have, and Tornado's read size.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import resource
import select
import socket
import sys
import threading
from collections.abc import Callable
from time import perf_counter
from typing import Any

from eventengine import (
    EndpointConfig,
    EventEngine,
    MemoryAllocator,
    ResolvedAddress,
    ResourceQuota,
    SliceBuffer,
    Status,
    create_event_engine,
)
from eventengine.engine import Endpoint

BACKLOG = 4096
BLOCK = 256 * 1024


class Echo:
    """One connection of an engine's echo server."""

    __slots__ = ("buffer", "endpoint", "on_read", "on_written")

    def __init__(self, endpoint: Endpoint, allocator: MemoryAllocator) -> None:
        self.endpoint = endpoint
        self.buffer = SliceBuffer()
        self.on_read = self.have_read
        self.on_written = self.have_written
        self.go_on()

    def go_on(self) -> None:
        endpoint, buffer = self.endpoint, self.buffer
        while endpoint.read(self.on_read, buffer) and endpoint.write(self.on_written, buffer):
            pass

    def have_read(self, status: Status) -> None:
        if not status.ok:
            self.end()
        elif self.endpoint.write(self.on_written, self.buffer):
            self.go_on()

    def have_written(self, status: Status) -> None:
        if status.ok:
            self.go_on()
        else:
            self.end()

    def end(self) -> None:
        self.endpoint.close()
        del self.on_read, self.on_written  # they and this object hold one another


def serve(engine: EventEngine, memory: str | None = "64MiB") -> int:
    """Starts the echo server and returns its port."""
    quota = ResourceQuota("echo", memory=memory)
    listener = engine.create_listener(Echo, lambda status: None, EndpointConfig(backlog=BACKLOG), quota)
    port = listener.bind(ResolvedAddress.tcp("127.0.0.1", 0))
    listener.start()
    _kept.append(listener)
    return port


_kept: list[object] = []


def ready(port: int, on_end: Callable[[], object]) -> None:
    """Prints the port, and has `on_end` called, in a thread, when stdin ends."""
    print(port, flush=True)
    threading.Thread(target=lambda: (sys.stdin.read(), on_end()), daemon=True).start()


def watch_lateness(call_later: Callable[[float, Callable[[], None]], object]) -> None:
    """Has the host call every 5 ms, by a call of its own, if that was asked for."""
    if "lateness" not in sys.argv:
        return

    def tick() -> None:
        nonlocal expected
        now = perf_counter()
        late.append(now - expected)
        expected = now + 0.005
        call_later(0.005, tick)

    late: list[float] = []
    expected = perf_counter() + 0.005
    call_later(0.005, tick)
    _kept.append(late)
    atexit.register(lambda: print(json.dumps(late)))


def default_engine(memory: str | None = "64MiB") -> None:
    ended = threading.Event()
    with create_event_engine() as engine:
        ready(serve(engine, memory), ended.set)
        ended.wait()


def _reactor(uv: bool) -> Any:
    if uv:
        import uvloop
        from twisted.internet.asyncioreactor import AsyncioSelectorReactor

        return AsyncioSelectorReactor(uvloop.new_event_loop())
    from twisted.internet.epollreactor import EPollReactor

    return EPollReactor()


def twisted_engine(uv: bool = False, memory: str | None = "64MiB") -> None:
    from eventengine.bridges.twisted import TwistedEventEngine

    reactor = _reactor(uv)
    engine = TwistedEventEngine(reactor)
    ready(serve(engine, memory), lambda: reactor.callFromThread(reactor.stop))
    watch_lateness(reactor.callLater)
    reactor.run()
    engine.close()


def raw_twisted(uv: bool = False, bounded: bool = False) -> None:
    from twisted.internet.protocol import Factory, Protocol

    class EchoProtocol(Protocol):
        def connectionMade(self) -> None:
            self.transport.setTcpNoDelay(True)

        def dataReceived(self, data: bytes) -> None:
            self.transport.write(data)

    if bounded:
        from eventengine.bridges.twisted.reactor import QuotaReactor

        reactor: Any = QuotaReactor("64MiB")
    else:
        reactor = _reactor(uv)
    port = reactor.listenTCP(0, Factory.forProtocol(EchoProtocol), backlog=BACKLOG, interface="127.0.0.1")
    ready(port.getHost().port, lambda: reactor.callFromThread(reactor.stop))
    watch_lateness(reactor.callLater)
    reactor.run()


def _run(main: Callable[[asyncio.Event], Any], uv: bool) -> None:
    factory = None
    if uv:
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:

        async def run() -> None:
            watch_lateness(asyncio.get_running_loop().call_later)
            await main(asyncio.Event())

        runner.run(run())


def _set(ended: asyncio.Event) -> Callable[[], object]:
    loop = asyncio.get_running_loop()
    return lambda: loop.call_soon_threadsafe(ended.set)


def tornado_engine(uv: bool = False, memory: str | None = "64MiB") -> None:
    from tornado.ioloop import IOLoop

    from eventengine.bridges.tornado import TornadoEventEngine

    async def main(ended: asyncio.Event) -> None:
        with TornadoEventEngine(IOLoop.current()) as engine:
            ready(serve(engine, memory), _set(ended))
            await ended.wait()

    _run(main, uv)


def raw_tornado(uv: bool = False) -> None:
    from tornado.iostream import IOStream, StreamClosedError
    from tornado.netutil import bind_sockets
    from tornado.tcpserver import TCPServer

    class EchoServer(TCPServer):
        async def handle_stream(self, stream: IOStream, address: tuple[str, int]) -> None:
            stream.set_nodelay(True)
            try:
                while True:
                    await stream.write(await stream.read_bytes(BLOCK, partial=True))
            except StreamClosedError:
                pass

    async def main(ended: asyncio.Event) -> None:
        sockets = bind_sockets(0, "127.0.0.1", backlog=BACKLOG)
        EchoServer(read_chunk_size=BLOCK).add_sockets(sockets)
        ready(sockets[0].getsockname()[1], _set(ended))
        await ended.wait()

    _run(main, uv)


def asyncio_engine(uv: bool = False, memory: str | None = "64MiB") -> None:
    from eventengine.bridges.asyncio import AsyncioEventEngine

    async def main(ended: asyncio.Event) -> None:
        with AsyncioEventEngine(asyncio.get_running_loop()) as engine:
            ready(serve(engine, memory), _set(ended))
            await ended.wait()

    _run(main, uv)


def asyncio_protocol(uv: bool = False) -> None:
    class EchoProtocol(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport: Any = transport

        def data_received(self, data: bytes) -> None:
            self.transport.write(data)

    async def main(ended: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(EchoProtocol, "127.0.0.1", 0, backlog=BACKLOG)
        ready(server.sockets[0].getsockname()[1], _set(ended))
        await ended.wait()

    _run(main, uv)


def asyncio_streams(uv: bool = False) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(BLOCK):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        writer.close()

    async def main(ended: asyncio.Event) -> None:
        server = await asyncio.start_server(echo, "127.0.0.1", 0, backlog=BACKLOG)
        ready(server.sockets[0].getsockname()[1], _set(ended))
        await ended.wait()

    _run(main, uv)


def bare_epoll() -> None:
    """The least that an echo server in Python can do: one buffer for all, copied only for a peer that is slow."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    listener.setblocking(False)
    poller = select.epoll()
    poller.register(listener.fileno(), select.EPOLLIN)
    connections: dict[int, socket.socket] = {}
    rests: dict[int, bytes] = {}
    block = bytearray(BLOCK)
    view = memoryview(block)
    at_listener = listener.fileno()
    readable, writable = select.EPOLLIN, select.EPOLLOUT
    ready(listener.getsockname()[1], lambda: os._exit(0))
    while True:
        for fd, event in poller.poll(-1, 256):
            if fd == at_listener:
                try:
                    while True:
                        connection, _ = listener.accept()
                        connection.setblocking(False)
                        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                        connections[connection.fileno()] = connection
                        poller.register(connection.fileno(), readable)
                except BlockingIOError:
                    continue
            connection = connections[fd]
            if event & writable:
                try:
                    rests[fd] = rests[fd][connection.send(rests[fd]) :]
                except (BrokenPipeError, ConnectionResetError):
                    rests[fd] = b""
                if not rests[fd]:
                    del rests[fd]
                    poller.modify(fd, readable)
                continue
            try:
                n = connection.recv_into(block)
            except ConnectionResetError:
                n = 0
            if not n:
                del connections[fd]
                connection.close()
                continue
            try:
                sent = connection.send(view[:n])
            except BlockingIOError:
                sent = 0
            except (BrokenPipeError, ConnectionResetError):
                continue  # the next event will say so
            if sent < n:
                rests[fd] = bytes(view[sent:n])
                poller.modify(fd, writable)


SERVERS: dict[str, Callable[[], None]] = {
    "engine, default": default_engine,
    "engine on Twisted": twisted_engine,
    "engine on Tornado": tornado_engine,
    "engine on asyncio": asyncio_engine,
    "engine on Twisted, uvloop": lambda: twisted_engine(True),
    "engine on Tornado, uvloop": lambda: tornado_engine(True),
    "engine on asyncio, uvloop": lambda: asyncio_engine(True),
    "engine on Twisted, no quota": lambda: twisted_engine(memory=None),
    "engine on Tornado, no quota": lambda: tornado_engine(memory=None),
    "Twisted Protocol": raw_twisted,
    "Twisted Protocol, bounded": lambda: raw_twisted(bounded=True),
    "Twisted Protocol, uvloop": lambda: raw_twisted(True),
    "Tornado IOStream": raw_tornado,
    "Tornado IOStream, uvloop": lambda: raw_tornado(True),
    "asyncio Protocol": asyncio_protocol,
    "asyncio Protocol, uvloop": lambda: asyncio_protocol(True),
    "asyncio streams": asyncio_streams,
    "asyncio streams, uvloop": lambda: asyncio_streams(True),
    "bare epoll loop": bare_epoll,
}
"""What runs each server; "C epoll", which is `echo.c`, is besides."""


if __name__ == "__main__":
    name, core = sys.argv[1:3]
    os.sched_setaffinity(0, {int(core)})
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    SERVERS[name]()
