"""Each framework as its users have it: it serves and connects by its own means, and what it made is borrowed."""

from __future__ import annotations

import asyncio
import inspect
import ssl
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import engines
from engines import new_uvloop, running, running_reactor
from eventengine import Endpoint, MemoryAllocator, ResourceQuota
from eventengine.testing.oracle import TIMEOUT

if engines.is_installed("twisted"):
    from twisted.internet import tcp

    tcp._reservedFD.reserve()  # else the first port that listens opens it, for the rest of the process

T = TypeVar("T")
OnAccept = Callable[[Endpoint, MemoryAllocator], object]


class Certificate:
    """Of `localhost`, signed by itself."""

    def __init__(self, folder: Path) -> None:
        self.certificate, self.key = folder / "certificate.pem", folder / "key.pem"
        subprocess.run(
            [
                *(
                    "openssl",
                    "req",
                    "-x509",
                    "-newkey",
                    "ec",
                    "-pkeyopt",
                    "ec_paramgen_curve:prime256v1",
                    "-nodes",
                ),
                *("-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
                *("-keyout", str(self.key), "-out", str(self.certificate)),
            ],
            check=True,
            capture_output=True,
            timeout=TIMEOUT,
        )

    @property
    def server(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.certificate, self.key)
        return context

    @property
    def client(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.certificate))


class Stage:
    """A framework's loop, in a thread, and an engine on it."""

    engine: Any

    def call(self, function: Callable[[], T]) -> T:
        """Calls `function` on the loop's thread."""
        outcome: Future[T] = Future()

        def called() -> None:
            try:
                outcome.set_result(function())
            except BaseException as error:
                outcome.set_exception(error)

        self.post(called)
        return outcome.result(TIMEOUT)

    def post(self, function: Callable[[], object]) -> None:
        raise NotImplementedError

    def serve(self, on_accept: OnAccept, quota: ResourceQuota, tls: Certificate | None = None) -> int:
        """The port that the framework listens on."""
        raise NotImplementedError

    def connect(self, port: int, allocator: MemoryAllocator, tls: Certificate | None = None) -> Endpoint:
        """A connection that the framework has made."""
        raise NotImplementedError

    def close(self) -> None:
        """Stops listening."""


class AsyncioStage(Stage):
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        from eventengine.bridges.asyncio import AsyncioEventEngine

        self._loop = loop
        self._servers: list[asyncio.AbstractServer] = []
        self.engine = AsyncioEventEngine(loop)

    def post(self, function: Callable[[], object]) -> None:
        self._loop.call_soon_threadsafe(function)

    def run(self, awaitable: Awaitable[T]) -> T:
        async def wait() -> T:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(wait(), self._loop).result(TIMEOUT)

    def serve(self, on_accept: OnAccept, quota: ResourceQuota, tls: Certificate | None = None) -> int:
        from eventengine.bridges.asyncio import EndpointProtocol

        def protocol() -> EndpointProtocol:
            allocator = quota.create_memory_allocator("connection")
            return EndpointProtocol(self.engine, allocator, lambda endpoint: on_accept(endpoint, allocator))

        server = self.run(
            self._loop.create_server(protocol, "127.0.0.1", 0, ssl=None if tls is None else tls.server)
        )
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    def connect(self, port: int, allocator: MemoryAllocator, tls: Certificate | None = None) -> Endpoint:
        async def connect() -> Endpoint:
            transport, _ = await self._loop.create_connection(
                asyncio.Protocol,
                "127.0.0.1",
                port,
                ssl=None if tls is None else tls.client,
                server_hostname=None if tls is None else "localhost",
            )
            endpoint: Endpoint = self.engine.endpoint_from_transport(transport, allocator)
            return endpoint

        return self.run(connect())

    def close(self) -> None:
        for server in self._servers:
            self.call(server.close)
            self.run(server.wait_closed())

        async def settle() -> None:
            for _ in range(10):
                await asyncio.sleep(0)

        self.run(settle())


class TornadoStage(AsyncioStage):
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        from tornado.ioloop import IOLoop

        from eventengine.bridges.tornado import TornadoEventEngine

        self._loop = loop
        self._servers = []
        self._listening: list[Any] = []
        self.engine = TornadoEventEngine(IOLoop(make_current=False, asyncio_loop=loop))

    def serve(self, on_accept: OnAccept, quota: ResourceQuota, tls: Certificate | None = None) -> int:
        from tornado.iostream import IOStream, StreamClosedError
        from tornado.netutil import bind_sockets
        from tornado.tcpserver import TCPServer

        engine = self.engine

        class Server(TCPServer):
            async def handle_stream(self, stream: IOStream, address: Any) -> None:
                try:
                    if tls is not None:
                        await stream.wait_for_handshake()  # type: ignore[attr-defined]  # it is an SSLIOStream
                except StreamClosedError:
                    return
                allocator = quota.create_memory_allocator("connection")
                if not stream.closed() and not engine.is_closed:
                    on_accept(engine.endpoint_from_iostream(stream, allocator), allocator)

        sockets = bind_sockets(0, "127.0.0.1")

        def start() -> None:
            server = Server(ssl_options=None if tls is None else tls.server)
            server.add_sockets(sockets)
            self._listening.append(server)

        self.call(start)
        return int(sockets[0].getsockname()[1])

    def connect(self, port: int, allocator: MemoryAllocator, tls: Certificate | None = None) -> Endpoint:
        from tornado.iostream import IOStream, SSLIOStream

        async def connect() -> Endpoint:
            import socket

            if tls is None:
                stream: IOStream = IOStream(socket.socket())
            else:
                stream = SSLIOStream(socket.socket(), ssl_options=tls.client)
            await stream.connect(("127.0.0.1", port), server_hostname=None if tls is None else "localhost")
            endpoint: Endpoint = self.engine.endpoint_from_iostream(stream, allocator)
            return endpoint

        return self.run(connect())

    def close(self) -> None:
        for server in self._listening:
            self.call(server.stop)
        super().close()


class TwistedStage(Stage):
    def __init__(self, reactor: Any) -> None:
        from eventengine.bridges.twisted import TwistedEventEngine

        self.reactor = reactor
        self._ports: list[Any] = []
        self.engine = TwistedEventEngine(reactor)

    def post(self, function: Callable[[], object]) -> None:
        self.reactor.callFromThread(function)

    def serve(self, on_accept: OnAccept, quota: ResourceQuota, tls: Certificate | None = None) -> int:
        from eventengine.bridges.twisted import EndpointFactory

        factory = EndpointFactory(self.engine, on_accept, quota)

        def listen() -> Any:
            if tls is None:
                return self.reactor.listenTCP(0, factory, interface="127.0.0.1")
            return self.reactor.listenTCP(0, _over_tls(tls, factory, self.reactor, False), interface="127.0.0.1")

        port = self.call(listen)
        self._ports.append(port)
        return int(port.getHost().port)

    def connect(self, port: int, allocator: MemoryAllocator, tls: Certificate | None = None) -> Endpoint:
        from twisted.internet.protocol import Factory

        from eventengine import Status
        from eventengine.bridges.twisted import EndpointProtocol

        outcome: Future[Endpoint | Status] = Future()
        factory: Any = Factory()
        factory.noisy = False
        factory.doStart = lambda: None
        factory.startedConnecting = lambda connector: None
        factory.clientConnectionLost = lambda connector, reason: None
        factory.clientConnectionFailed = lambda connector, reason: outcome.set_exception(reason.value)
        factory.buildProtocol = lambda address: EndpointProtocol(self.engine, allocator, outcome.set_result)

        def connect() -> None:
            if tls is None:
                self.reactor.connectTCP("127.0.0.1", port, factory)
            else:
                self.reactor.connectTCP("127.0.0.1", port, _over_tls(tls, factory, self.reactor, True))

        self.call(connect)
        endpoint = outcome.result(TIMEOUT)
        assert not isinstance(endpoint, Status), endpoint
        return endpoint

    def close(self) -> None:
        while self._ports:
            self.call(self._ports.pop().stopListening)
        self.call(lambda: None)


def _over_tls(tls: Certificate, factory: Any, reactor: Any, is_client: bool) -> Any:
    """What `listenSSL` and `connectSSL` do, but that they look for the global reactor."""
    from twisted.protocols.tls import TLSMemoryBIOFactory

    clock = {"clock": reactor} if "clock" in inspect.signature(TLSMemoryBIOFactory).parameters else {}
    return TLSMemoryBIOFactory(_connection_creator(tls), is_client, factory, **clock)


def _connection_creator(tls: Certificate) -> Any:
    """For both sides: Twisted's own takes what pyOpenSSL has deprecated."""
    from OpenSSL import SSL
    from twisted.internet.interfaces import IOpenSSLClientConnectionCreator, IOpenSSLServerConnectionCreator
    from zope.interface import implementer

    context = SSL.Context(SSL.TLS_METHOD)
    context.use_certificate_file(str(tls.certificate))
    context.use_privatekey_file(str(tls.key))
    context.load_verify_locations(str(tls.certificate))

    @implementer(IOpenSSLClientConnectionCreator, IOpenSSLServerConnectionCreator)
    class Creator:
        def serverConnectionForTLS(self, protocol: object) -> SSL.Connection:  # noqa: N802
            connection = SSL.Connection(context, None)
            connection.set_accept_state()
            return connection

        def clientConnectionForTLS(self, protocol: object) -> SSL.Connection:  # noqa: N802
            connection = SSL.Connection(context, None)
            connection.set_connect_state()
            return connection

    return Creator()


@contextmanager
def _on_asyncio(make: Callable[[asyncio.AbstractEventLoop], Stage], uvloop: bool) -> Iterator[Stage]:
    with running(new_uvloop() if uvloop else asyncio.new_event_loop()) as loop:
        stage = make(loop)
        try:
            yield stage
        finally:
            stage.engine.close()
            stage.close()


@contextmanager
def _on_twisted() -> Iterator[Stage]:
    from twisted.internet.epollreactor import EPollReactor

    with running_reactor(EPollReactor()) as reactor:
        stage = TwistedStage(reactor)
        try:
            yield stage
        finally:
            stage.engine.close()
            stage.close()


STAGES: dict[str, tuple[str, Callable[[], Any]]] = {
    "asyncio": ("asyncio", lambda: _on_asyncio(AsyncioStage, False)),
    "uvloop": ("uvloop", lambda: _on_asyncio(AsyncioStage, True)),
    "tornado": ("tornado", lambda: _on_asyncio(TornadoStage, False)),
    "twisted": ("twisted", _on_twisted),
}


def is_installed(name: str) -> bool:
    return engines.is_installed(STAGES[name][0])
