"""TLS with the peers that there are: the `openssl` command, stock Twisted and stock Tornado, servers and clients."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from certificates import HOST, certificates
from engines import KINDS, MAIN, Kind, factory, running, skip_unless_installed
from eventengine import Endpoint, EventEngine, HalfCloseable, ResolvedAddress, SliceBuffer, Status, StatusCode
from eventengine.testing.application import Application
from eventengine.testing.conformance.fixtures import *
from eventengine.testing.oracle import TIMEOUT, pattern
from handshakes import secured, try_accept, try_connect

SOME = [kind for kind in KINDS if kind.loop in MAIN and kind.private_poller and not kind.pool]
LOCALHOST = "127.0.0.1"
BULK = 1 << 20


@pytest.fixture(params=SOME, ids=lambda kind: kind.id)
def make_engine(request: pytest.FixtureRequest) -> Iterator[Callable[[], EventEngine]]:
    kind: Kind = request.param
    skip_unless_installed(kind)
    with factory(kind) as make:
        yield make


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind((LOCALHOST, 0))
        port: int = sock.getsockname()[1]
        return port


def connected(app: Application, port: int, context: ssl.SSLContext | None = None, **more: Any) -> Endpoint:
    below = app.connect(ResolvedAddress.tcp(LOCALHOST, port))
    endpoint = try_connect(app, below, context, **more)
    assert not isinstance(endpoint, Status), endpoint
    result: Endpoint = endpoint
    return result


def echoes(app: Application, endpoint: Endpoint, size: int = BULK) -> None:
    """What is written comes back."""
    data = pattern(size)
    on_writable = app.start_write(endpoint, data)
    assert app.receive(endpoint, size) == data
    assert on_writable.result().ok


@contextmanager
def command(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        ["openssl", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def s_server(*options: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """`openssl s_server`: what it receives it prints, what is typed it sends. Yields when it listens."""
    port = free_port()
    key = certificates().path("server")
    with command(
        "s_server", "-accept", f"{LOCALHOST}:{port}", "-cert", str(key), "-key", str(key), *options
    ) as process:
        assert process.stdout
        for line in process.stdout:
            if line.startswith(b"ACCEPT"):
                break
        yield process, port


def until(process: subprocess.Popen[bytes], wanted: bytes) -> bytes:
    """What the command prints, to the end of `wanted`."""
    assert process.stdout
    printed = b""
    while wanted not in printed:
        piece = process.stdout.read1(4096)
        assert piece, f"it has ended, and had printed {printed!r}"
        printed += piece
    return printed


def type_in(process: subprocess.Popen[bytes], text: bytes) -> None:
    assert process.stdin
    process.stdin.write(text)
    process.stdin.flush()


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_a_client_of_openssl_s_server(app: Application, version: str) -> None:
    with (
        s_server(version) as (process, port),
        closing(connected(app, port)) as endpoint,
    ):
        assert secured(endpoint).protocol_version == {"-tls1_2": "TLSv1.2", "-tls1_3": "TLSv1.3"}[version]
        assert app.write(endpoint, b"to the server\n").ok
        until(process, b"to the server\n")
        type_in(process, b"to the client\n")
        assert app.receive(endpoint, 14) == b"to the client\n"


def test_a_server_that_knows_none_of_our_protocols_is_told_apart(app: Application) -> None:
    """Python's own server goes on without one; this one sends an alert, for which `ssl` has no name."""
    context = certificates().client_context()
    context.set_alpn_protocols(["h2"])
    with s_server("-alpn", "http/1.1") as (_, port):
        status = try_connect(app, app.connect(ResolvedAddress.tcp(LOCALHOST, port)), context)
    assert isinstance(status, Status)
    assert str(status) == (
        "UNAVAILABLE: the TLS handshake: the two sides have no application protocol in common (ALPN)"
    )


@pytest.mark.parametrize(("version", "key"), [("-tls1_2", b"R\n"), ("-tls1_3", b"K\n"), ("-tls1_3", b"k\n")])
def test_a_server_that_renegotiates_or_changes_its_keys_disturbs_nobody(
    app: Application, version: str, key: bytes
) -> None:
    """`R` asks for a new handshake, `K` for new keys of both sides, `k` announces new keys of the server's."""
    with s_server(version) as (process, port), closing(connected(app, port)) as endpoint:
        assert app.write(endpoint, b"before\n").ok
        until(process, b"before\n")
        on_read = app.start_read(endpoint, buffer := SliceBuffer())
        type_in(process, key)
        if version == "-tls1_2":
            until(process, b"Read BLOCK")
        assert app.write(endpoint, b"after\n").ok
        until(process, b"after\n")
        type_in(process, b"to the client\n")
        assert on_read.result().ok
        data = bytes(buffer)
        data += app.receive(endpoint, 14 - len(data)) if len(data) < 14 else b""
        assert data == b"to the client\n"


def test_a_server_of_openssl_s_client(app: Application) -> None:
    accepting = app.listen()
    options = ["-connect", str(accepting.address), "-servername", HOST, "-verify_hostname", HOST, "-quiet"]
    with (
        command("s_client", *options, "-verify_return_error", "-CAfile", str(certificates().authority)) as process,
        closing(try_accept(app, accepting.next())) as endpoint,
    ):
        type_in(process, b"to the server\n")
        assert app.receive(endpoint, 14) == b"to the server\n"
        assert app.write(endpoint, b"to the client\n").ok
        until(process, b"to the client\n")
        half = endpoint.query_extension(HalfCloseable)
        assert half is not None
        half.close_write()
        assert process.wait(TIMEOUT) == 0
        data, status = app.receive_all(endpoint)
        assert data == b""
        assert status.code in (StatusCode.OUT_OF_RANGE, StatusCode.UNAVAILABLE)
    accepting.close()


def test_openssl_s_client_refuses_a_certificate_and_the_server_hears_why(app: Application) -> None:
    accepting = app.listen()
    options = [
        "-connect",
        str(accepting.address),
        "-verify_return_error",
        "-CAfile",
        str(certificates().authority),
    ]
    with command("s_client", *options):
        status = try_accept(app, accepting.next(), certificates().server_context("of a stranger"))
        if not isinstance(status, Status):
            with closing(status):
                status = app.read(status, SliceBuffer())
        assert status.code is StatusCode.UNAUTHENTICATED
        assert "does not trust the authority" in status.message
    accepting.close()


# Twisted, in a process of its own: its TLS takes the global reactor for its clock.

TWISTED_ECHO = """
import sys
from twisted.internet import protocol, reactor, ssl

class Echo(protocol.Protocol):
    def dataReceived(self, data):
        self.transport.write(data)

options = ssl.DefaultOpenSSLContextFactory(sys.argv[1], sys.argv[1])
port = reactor.listenSSL(0, protocol.Factory.forProtocol(Echo), options, interface="127.0.0.1")
print(port.getHost().port, flush=True)
reactor.run()
"""

TWISTED_CLIENT = """
import sys
from twisted.internet import endpoints, protocol, reactor, ssl
from twisted.internet.error import ConnectionDone

class Client(protocol.Protocol):
    def connectionMade(self):
        self.transport.write(b"question")

    def dataReceived(self, data):
        print(data.decode(), flush=True)

    def connectionLost(self, reason):
        print("a clean end" if reason.check(ConnectionDone) else reason.value, flush=True)
        reactor.stop()

with open(sys.argv[2], "rb") as file:
    authority = ssl.Certificate.loadPEM(file.read())
options = ssl.optionsForClientTLS("HOST", trustRoot=authority)
where = endpoints.TCP4ClientEndpoint(reactor, "127.0.0.1", int(sys.argv[1]))
endpoints.wrapClientTLS(options, where).connect(protocol.Factory.forProtocol(Client))
reactor.run()
""".replace("HOST", HOST)


@contextmanager
def twisted(script: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    pytest.importorskip("twisted.internet", reason="the extra twisted is not installed")
    pytest.importorskip("OpenSSL", reason="Twisted's TLS needs pyOpenSSL")
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", script, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_client_of_a_twisted_server(app: Application) -> None:
    with twisted(TWISTED_ECHO, str(certificates().path("server"))) as process:
        assert process.stdout
        with closing(connected(app, int(process.stdout.readline()))) as endpoint:
            echoes(app, endpoint)
            half = endpoint.query_extension(HalfCloseable)
            assert half is not None
            half.close_write()
            assert app.read(endpoint, SliceBuffer()).code is StatusCode.OUT_OF_RANGE


def test_a_server_of_a_twisted_client(app: Application) -> None:
    accepting = app.listen()
    arguments = str(accepting.address.port), str(certificates().authority)
    with twisted(TWISTED_CLIENT, *arguments) as process:
        with closing(try_accept(app, accepting.next())) as endpoint:
            assert app.receive(endpoint, 8) == b"question"
            assert app.write(endpoint, b"answer").ok
        assert process.stdout
        assert process.stdout.read() == b"answer\na clean end\n"
    accepting.close()


# Tornado.


@contextmanager
def tornado() -> Iterator[asyncio.AbstractEventLoop]:
    pytest.importorskip("tornado", reason="the extra tornado is not installed")
    with running(asyncio.new_event_loop()) as loop:
        yield loop


def in_loop(loop: asyncio.AbstractEventLoop, coroutine: Any) -> Any:
    return asyncio.run_coroutine_threadsafe(coroutine, loop).result(TIMEOUT)


def test_a_client_of_a_tornado_server(app: Application) -> None:
    with tornado() as loop:
        from tornado.iostream import StreamClosedError
        from tornado.netutil import bind_sockets
        from tornado.tcpserver import TCPServer

        class Echo(TCPServer):
            async def handle_stream(self, stream: Any, address: Any) -> None:
                try:
                    while True:
                        await stream.write(await stream.read_bytes(1 << 18, partial=True))
                except StreamClosedError:
                    pass

        async def serve() -> Echo:
            server = Echo(ssl_options=certificates().server_context())
            server.add_sockets(sockets)
            return server

        async def stop(server: Echo) -> None:
            server.stop()
            await asyncio.sleep(0)

        sockets = bind_sockets(0, LOCALHOST)
        server = in_loop(loop, serve())
        with closing(connected(app, sockets[0].getsockname()[1])) as endpoint:
            echoes(app, endpoint)
            half = endpoint.query_extension(HalfCloseable)
            assert half is not None
            half.close_write()
            assert app.read(endpoint, SliceBuffer()).code in (StatusCode.OUT_OF_RANGE, StatusCode.UNAVAILABLE)
        in_loop(loop, stop(server))


def test_a_server_of_a_tornado_client(app: Application) -> None:
    with tornado() as loop:
        from tornado.iostream import StreamClosedError
        from tornado.tcpclient import TCPClient

        accepting = app.listen()

        async def ask() -> tuple[bytes, bool]:
            client = TCPClient()
            stream = await client.connect(
                LOCALHOST, accepting.address.port, ssl_options=certificates().client_context()
            )
            await stream.write(b"question")
            answer = await stream.read_bytes(6)
            try:
                await stream.read_bytes(1)
            except StreamClosedError as error:
                client.close()
                return answer, isinstance(error.real_error, ssl.SSLError)
            raise AssertionError("there was more")

        asked = asyncio.run_coroutine_threadsafe(ask(), loop)
        with closing(try_accept(app, accepting.next())) as endpoint:
            assert app.receive(endpoint, 8) == b"question"
            assert app.write(endpoint, b"answer").ok
            endpoint.close()
            assert asked.result(TIMEOUT) == (b"answer", False)
        accepting.close()
