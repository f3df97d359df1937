"""The servers over TLS that are compared. `python -m benchmarks.tls_servers NAME CORE CERTIFICATE` runs one.

It prints its port, and serves until its stdin ends. A client says with its first byte what it wants: `d` that the
server sends pieces without end, `u` that it reads whatever comes, `h` one byte, after which the client closes.

Each is written as its framework's documentation writes one. Stock Twisted is told to resume sessions, which it does not
by default, and Tornado has the same read size as the others.
"""

from __future__ import annotations

import os
import ssl
import sys
import threading
from collections.abc import Callable
from typing import Any

from benchmarks.servers import BACKLOG, BLOCK, _kept, _run, _set, ready
from eventengine import (
    EndpointConfig,
    EventEngine,
    MemoryAllocator,
    ResolvedAddress,
    ResourceQuota,
    SliceBuffer,
    Status,
    StatusOr,
    create_event_engine,
    tls,
)
from eventengine.engine import Endpoint

PIECE = bytes(range(256)) * (BLOCK >> 8)
TIMEOUT = 30.0


def server_context() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(sys.argv[3])
    return context


class Connection:
    """One of an engine's server."""

    __slots__ = ("buffer", "endpoint", "on_read", "on_written", "wanted")

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.buffer = SliceBuffer()
        self.on_read = self.have_read
        self.on_written = self.have_written
        self.wanted = b""
        self.read_on()

    def read_on(self) -> None:
        while self.endpoint.read(self.on_read, self.buffer):
            self.take()

    def have_read(self, status: Status) -> None:
        if status.ok:
            self.take()
            self.read_on()
        else:
            self.end()

    def take(self) -> None:
        if not self.wanted:
            self.wanted = bytes(self.buffer)[:1]
            if self.wanted == b"d":
                self.write_on()
            elif self.wanted == b"h":
                self.endpoint.write(self.on_written, SliceBuffer([b"h"]))

    def write_on(self) -> None:
        while self.endpoint.write(self.on_written, SliceBuffer([PIECE])):
            pass

    def have_written(self, status: Status) -> None:
        if status.ok and self.wanted == b"d":
            self.write_on()

    def end(self) -> None:
        self.endpoint.close()
        del self.on_read, self.on_written  # they and this object hold one another


def serve(engine: EventEngine) -> int:
    context = server_context()

    def on_accept(endpoint: Endpoint, allocator: MemoryAllocator) -> None:
        tls.accept(engine, on_secured, endpoint, context, memory_allocator=allocator, timeout=TIMEOUT)

    def on_secured(result: StatusOr[Endpoint]) -> None:
        if not isinstance(result, Status):
            Connection(result)

    quota = ResourceQuota("tls", memory="64MiB")
    listener = engine.create_listener(on_accept, lambda status: None, EndpointConfig(backlog=BACKLOG), quota)
    port = listener.bind(ResolvedAddress.tcp("127.0.0.1", 0))
    listener.start()
    _kept.append(listener)
    return port


def default_engine() -> None:
    ended = threading.Event()
    with create_event_engine() as engine:
        ready(serve(engine), ended.set)
        ended.wait()


def twisted_engine() -> None:
    from twisted.internet.epollreactor import EPollReactor

    from eventengine.bridges.twisted import TwistedEventEngine

    reactor: Any = EPollReactor()
    engine = TwistedEventEngine(reactor)
    ready(serve(engine), lambda: reactor.callFromThread(reactor.stop))
    reactor.run()
    engine.close()


def raw_twisted() -> None:
    from importlib import import_module

    from twisted.internet.protocol import Factory, Protocol
    from twisted.internet.ssl import CertificateOptions, PrivateCertificate

    class Server(Protocol):
        wanted = b""

        def connectionMade(self) -> None:
            self.transport.setTcpNoDelay(True)

        def dataReceived(self, data: bytes) -> None:
            if not self.wanted:
                self.wanted = data[:1]
                if self.wanted == b"d":
                    self.transport.registerProducer(self, False)
                elif self.wanted == b"h":
                    self.transport.write(b"h")

        def resumeProducing(self) -> None:
            self.transport.write(PIECE)

        def stopProducing(self) -> None:
            pass

    reactor: Any = import_module("twisted.internet.reactor")  # its TLS takes the installed one for its clock
    with open(sys.argv[3], "rb") as file:
        certificate = PrivateCertificate.loadPEM(file.read())
    options = CertificateOptions(
        privateKey=certificate.privateKey.original,
        certificate=certificate.original,
        enableSessions=True,
        enableSessionTickets=True,
    )
    factory = Factory.forProtocol(Server)
    port = reactor.listenSSL(0, factory, options, backlog=BACKLOG, interface="127.0.0.1")
    ready(port.getHost().port, lambda: reactor.callFromThread(reactor.stop))
    reactor.run()


def tornado_engine() -> None:
    from tornado.ioloop import IOLoop

    from eventengine.bridges.tornado import TornadoEventEngine

    async def main(ended: Any) -> None:
        with TornadoEventEngine(IOLoop.current()) as engine:
            ready(serve(engine), _set(ended))
            await ended.wait()

    _run(main, False)


def raw_tornado() -> None:
    from tornado.iostream import IOStream, StreamClosedError
    from tornado.netutil import bind_sockets
    from tornado.tcpserver import TCPServer

    class Server(TCPServer):
        async def handle_stream(self, stream: IOStream, address: tuple[str, int]) -> None:
            stream.set_nodelay(True)
            try:
                wanted = await stream.read_bytes(1)
                if wanted == b"h":
                    await stream.write(b"h")
                while wanted == b"d":
                    await stream.write(PIECE)
                while True:
                    await stream.read_bytes(BLOCK, partial=True)
            except StreamClosedError:
                pass

    async def main(ended: Any) -> None:
        sockets = bind_sockets(0, "127.0.0.1", backlog=BACKLOG)
        Server(ssl_options=server_context(), read_chunk_size=BLOCK).add_sockets(sockets)
        ready(sockets[0].getsockname()[1], _set(ended))
        await ended.wait()

    _run(main, False)


SERVERS: dict[str, Callable[[], None]] = {
    "tls on Twisted": twisted_engine,
    "Twisted TLS": raw_twisted,
    "tls on Tornado": tornado_engine,
    "Tornado SSLIOStream": raw_tornado,
    "tls, default engine": default_engine,
}


if __name__ == "__main__":
    os.sched_setaffinity(0, {int(sys.argv[2])})
    SERVERS[sys.argv[1]]()
