"""The transports of `QuotaReactor` and of the quota's endpoints: what they charge, when they read, and whom they cut.

Real reactors in a thread; the peers are plain blocking sockets. A connection itself may cost something, so all is
compared with what was used when it was new.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import hashlib
import queue
import random
import select
import socket
import ssl
import struct
import sys
import termios
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("twisted.internet", reason="Twisted is not installed")

import twisted.internet
from twisted.internet import tcp
from twisted.internet.address import IPv4Address
from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.defer import maybeDeferred
from twisted.internet.endpoints import clientFromString, serverFromString, wrapClientTLS
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
    IPullProducer,
    IPushProducer,
)
from twisted.internet.protocol import ClientFactory, Factory, Protocol
from twisted.internet.selectreactor import SelectReactor
from twisted.logger import formatEvent, globalLogPublisher
from twisted.protocols.policies import WrappingFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from eventengine import ResolvedAddress, ResourceQuota, admission, tally
from eventengine.bridges.twisted import QuotaClientEndpoint, QuotaServerEndpoint, bound, charged
from eventengine.bridges.twisted.reactor import QuotaReactor
from eventengine.idle import _LOOKED
from loops import TIMEOUT, ReactorLoop, closing, nothing_left

KIB = 1 << 10
MIB = 1 << 20
SMALL = 16 * KIB  # of a kernel's buffer
PIECE = 64 * KIB
BODY = random.Random(1).randbytes(5 * MIB + 7)


def digest(data: bytes | bytearray) -> str:
    return hashlib.sha256(data).hexdigest()


def until(condition: Callable[[], object], timeout: float = TIMEOUT) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Recorder(Protocol):
    """What happened to a connection, and with what of its calls on the stack."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.losses: list[BaseException] = []
        self.is_writing = False
        self.was_told_while_writing = False

    def dataReceived(self, data: bytes) -> None:  # noqa: N802
        self.received += data

    def connectionLost(self, reason: Any = None) -> None:  # noqa: N802
        self.was_told_while_writing |= self.is_writing
        self.losses.append(reason.value)

    def write(self, data: bytes) -> None:
        self.is_writing = True
        self.transport.write(data)
        self.is_writing = False

    @property
    def is_open(self) -> bool:
        return not self.losses


class Home:
    """A reactor in its thread, and the plain sockets that are its peers."""

    def __init__(self, loop: ReactorLoop, quota: ResourceQuota, folder: Path) -> None:
        self.loop = loop
        self.reactor = loop.target
        self.quota = quota
        self.memory = quota.memory
        self.call = loop.call
        self.protocols: list[Recorder] = []
        self.errors: list[BaseException] = []
        self._made: queue.Queue[Recorder] = queue.Queue()
        self._folder = folder
        self._ports: list[Any] = []
        self._sockets: list[socket.socket] = []
        self._before = self.call(loop.contents)

    def keep(self, sock: socket.socket) -> socket.socket:
        """It is closed in the end."""
        sock.settimeout(TIMEOUT)
        self._sockets.append(sock)
        return sock

    def keep_port(self, port: Any) -> Any:
        self._ports.append(port)
        return port

    def path(self) -> str:
        return str(self._folder / f"{len(self._ports)}.{len(self._sockets)}")

    def factory(self, build: Callable[[], Recorder] = Recorder, kind: type[Factory] = Factory) -> Any:
        """Of protocols that `next` gives once they are connected."""

        def make(_: object) -> Recorder:
            protocol = build()
            connection_made = protocol.connectionMade

            def made() -> None:
                connection_made()
                self.protocols.append(protocol)
                self._made.put(protocol)

            protocol.connectionMade = made  # type: ignore[method-assign]
            return protocol

        made = kind()
        made.noisy = False
        made.buildProtocol = make  # type: ignore[method-assign]
        return made

    def next(self) -> Recorder:
        return self._made.get(timeout=TIMEOUT)

    def await_deferred(self, start: Callable[[], Any]) -> Any:
        """What the Deferred that `start` returns gives."""
        results: queue.Queue[Any] = queue.Queue()
        self.call(lambda: maybeDeferred(start).addBoth(results.put) and None)
        result = results.get(timeout=TIMEOUT)
        if hasattr(result, "value"):
            raise result.value
        return result

    def listen(self, family: int = socket.AF_INET, build: Callable[[], Recorder] = Recorder) -> Any:
        if family == socket.AF_UNIX:
            path = self.path()
            return self.keep_port(self.call(lambda: self.reactor.listenUNIX(path, self.factory(build))))
        return self.keep_port(
            self.call(lambda: self.reactor.listenTCP(0, self.factory(build), interface="127.0.0.1"))
        )

    def connect(self, port: Any, *, receive: int | None = None) -> socket.socket:
        host = port.getHost()
        family = {"UNIXAddress": socket.AF_UNIX, "IPv4Address": socket.AF_INET, "IPv6Address": socket.AF_INET6}[
            type(host).__name__
        ]
        sock = self.keep(socket.socket(family))
        if receive is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        sock.connect(host.name if family == socket.AF_UNIX else (host.host, host.port))
        return sock

    def pair(
        self, family: int = socket.AF_INET, build: Callable[[], Recorder] = Recorder, *, is_tight: bool = False
    ) -> tuple[socket.socket, Recorder]:
        """A client, and the server's protocol; the kernel holds little between them if `is_tight`."""
        return self.pair_at(self.listen(family, build), is_tight=is_tight)

    def pair_at(self, port: Any, *, is_tight: bool = False) -> tuple[socket.socket, Recorder]:
        client = self.connect(port, receive=SMALL if is_tight else None)
        protocol = self.next()
        if is_tight:
            self.make_tight(protocol)
        return client, protocol

    def make_tight(self, protocol: Recorder) -> None:
        self.call(lambda: protocol.transport.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL))

    def fill(self) -> Callable[[], None]:
        """Takes all of the quota; the result gives it back."""
        amount = self.memory.size - self.memory.used
        assert self.memory.take(amount, amount) == amount
        return lambda: self.memory.give(amount)

    def end(self) -> None:
        """Fails unless nothing is left of all connections."""
        for sock in self._sockets:
            sock.close()
        for port in self._ports:
            self.await_deferred(port.stopListening)
        until(lambda: all(protocol.losses for protocol in self.protocols))
        until(lambda: self.memory.used == 0)
        assert not self.memory.somebody_waits
        until(lambda: self.call(self.loop.contents) == self._before)
        self.loop.pass_turns(2)
        assert [len(protocol.losses) for protocol in self.protocols] == [1] * len(self.protocols)
        assert not any(protocol.was_told_while_writing for protocol in self.protocols)
        assert self.errors == []


MakeHome = Callable[..., Home]


def free(reactor: Any) -> None:
    """What a reactor keeps after its end."""
    for name in ("_poller", "_kq"):
        if hasattr(reactor, name):
            getattr(reactor, name).close()
    if hasattr(reactor, "_asyncioEventloop"):
        reactor._asyncioEventloop.close()


@contextlib.contextmanager
def at_home(reactor: Any, quota: ResourceQuota, folder: Path) -> Iterator[Home]:
    loop = ReactorLoop(reactor, lambda: free(reactor))
    with closing(loop), loop.errors() as errors:
        loop.start()
        home = Home(loop, quota, folder)
        home.errors = errors
        yield home
        home.end()


@pytest.fixture
def make_home(tmp_path: Path) -> Iterator[MakeHome]:
    """Makes homes on a QuotaReactor; in the end nothing is left of them."""
    tcp._reservedFD.reserve()  # else the first port that listens opens it, for the rest of the process

    def make(memory: ResourceQuota | str | None = None) -> Home:
        quota = memory if isinstance(memory, ResourceQuota) else ResourceQuota("transports", memory=memory)
        return stack.enter_context(at_home(QuotaReactor(quota), quota, tmp_path))

    with nothing_left(), contextlib.ExitStack() as stack:
        yield make


def install(home: Home, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Its reactor is the program's for a while: Twisted's TLS and its HostnameEndpoint import that one for themselves,
    and would make one."""
    monkeypatch.setitem(sys.modules, "twisted.internet.reactor", home.reactor)
    monkeypatch.setattr(twisted.internet, "reactor", home.reactor, raising=False)
    return home


@pytest.fixture
def make_installed_home(make_home: MakeHome, monkeypatch: pytest.MonkeyPatch) -> MakeHome:
    return lambda memory=None: install(make_home(memory), monkeypatch)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who stalls is cut soon."""
    monkeypatch.setattr(admission, "STALLED", 0.05)
    monkeypatch.setattr(admission, "_LOOKS", 0.01)


families = pytest.mark.parametrize(
    "family", [pytest.param(socket.AF_INET, id="tcp"), pytest.param(socket.AF_UNIX, id="unix")]
)


def receive_all(sock: socket.socket) -> bytes:
    """Until its end."""
    parts = []
    while part := sock.recv(PIECE):
        parts.append(part)
    return b"".join(parts)


def receive(sock: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        part = sock.recv(min(size, PIECE))
        assert part
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def count_readable(sock: socket.socket) -> int:
    [count] = struct.unpack("i", fcntl.ioctl(sock, termios.FIONREAD, bytes(4)))
    return int(count)


def is_readable(sock: socket.socket, timeout: float = TIMEOUT) -> bool:
    return bool(select.select([sock], [], [], timeout)[0])


def reset(sock: socket.socket) -> None:
    """The peer is told so: it is no end."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def test_it_is_shown_as_twisted_s_own_is(make_home: MakeHome) -> None:
    home = make_home("1MiB")
    port = home.listen()
    number = port.getHost().port
    _, protocol = home.pair_at(port)
    text = f"<Recorder #0 on {number}>"
    assert repr(protocol.transport) == str(protocol.transport) == text
    stock: Any = tcp.Port(0, home.factory(), 1, "127.0.0.1", home.reactor)
    home.call(stock.startListening)
    home.keep_port(stock)
    _, other = home.pair_at(stock)
    assert repr(other.transport) == f"<Recorder #0 on {stock.getHost().port}>"
    home.await_deferred(port.stopListening)
    assert repr(protocol.transport) == text


def test_each_connection_says_at_which_address_it_was_reached(make_home: MakeHome) -> None:
    home = make_home("1MiB")
    port = home.keep_port(home.call(lambda: home.reactor.listenTCP(0, home.factory(), interface="0.0.0.0")))
    for host in ("127.0.0.1", "127.0.0.2", "127.0.0.2", "127.0.0.1"):
        home.keep(socket.create_connection((host, port.getHost().port)))
    protocols = [home.next() for _ in range(4)]
    for _ in range(2):  # it is asked once
        said = [home.call(protocol.transport.getHost) for protocol in protocols]
        assert said == [IPv4Address("TCP", f"127.0.0.{n}", port.getHost().port) for n in (1, 2, 2, 1)]
    assert said[1] is said[2]  # and kept once for those that are alike, as a rule


# What is written


@families
def test_what_the_socket_takes_in_a_turn_is_sent_by_its_end_and_not_charged(
    make_home: MakeHome, family: int
) -> None:
    home = make_home("1MiB")
    client, protocol = home.pair(family)
    before = home.memory.used
    is_sent: list[bool] = []

    def write() -> None:
        protocol.write(b"at ")
        protocol.write(b"once")
        home.reactor.callLater(0, home.reactor.callLater, 0, look)  # the first may be made in this turn

    def look() -> None:
        is_sent.append(is_readable(client))

    home.call(write)
    until(lambda: is_sent)
    assert is_sent == [True]
    assert receive(client, 7) == b"at once"
    assert home.memory.used == before
    assert home.memory.peak == before


def test_what_was_written_in_a_turn_comes_in_one_piece(make_home: MakeHome) -> None:
    home = make_home("1MiB")
    client, protocol = home.pair(socket.AF_UNIX)

    def write() -> None:
        for _ in range(100):
            protocol.write(b"piece ")

    home.call(write)
    assert client.recv(10_000) == b"piece " * 100


def test_what_was_written_is_dropped_by_an_abort_in_the_same_turn(make_home: MakeHome) -> None:
    home = make_home("1MiB")
    client, protocol = home.pair()

    def write() -> None:
        protocol.write(b"dropped")
        protocol.transport.abortConnection()
        protocol.write(b"dropped")

    home.call(write)
    with pytest.raises(ConnectionResetError):
        client.recv(100)
    until(lambda: protocol.losses)
    assert [type(loss) for loss in protocol.losses] == [ConnectionAborted]


def test_what_one_turn_writes_to_many_is_bounded(make_home: MakeHome) -> None:
    home = make_home("1MiB")
    port = home.listen()
    protocols = [home.pair_at(port, is_tight=True)[1] for _ in range(100)]

    def write() -> int:
        tracemalloc.start()
        try:
            for protocol in protocols:
                protocol.write(bytes(60 * KIB))
            return tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()

    assert home.call(write) < 2 * MIB


@families
def test_what_is_left_is_charged_whole_until_it_was_sent(make_home: MakeHome, family: int) -> None:
    home = make_home("64MiB")
    client, protocol = home.pair(family, is_tight=True)
    before = home.memory.used
    home.call(lambda: protocol.write(BODY))
    assert before + len(BODY) <= home.memory.used <= before + len(BODY) + 64
    assert digest(receive(client, len(BODY))) == digest(BODY)
    until(lambda: home.memory.used == before)


def test_no_less_is_charged_than_the_peer_has_not_got(make_home: MakeHome) -> None:
    home = make_home("64MiB")
    client, protocol = home.pair(socket.AF_UNIX, is_tight=True)
    before, size = home.memory.used, 1000

    def write() -> None:
        for start in range(0, len(BODY), size):
            protocol.write(BODY[start : start + size])

    home.call(write)
    home.loop.pass_turns(2)
    unsent = len(BODY) - count_readable(client)  # a unix socket holds nothing in between
    most = len(BODY) + 64 * (len(BODY) // size + 1)  # a piece takes something, too
    assert 0 < unsent <= home.memory.used - before <= most
    for _ in range(20):
        receive(client, 200 * KIB)
        assert home.memory.used - before <= most
    rest = len(BODY) - 20 * 200 * KIB
    assert digest(receive(client, rest)) == digest(BODY[-rest:])
    until(lambda: home.memory.used == before)


def write_whole(transport: Any, body: bytes) -> None:
    transport.write(body)


def write_in_pieces(transport: Any, body: bytes) -> None:
    sizes = random.Random(2)
    start = 0
    while start < len(body):
        size = sizes.choice([1, 10, 1000, 5000, PIECE, 200 * KIB])
        transport.write(body[start : start + size])
        start += size


def write_a_sequence(transport: Any, body: bytes) -> None:
    transport.writeSequence([body[start : start + 999] for start in range(0, len(body), 999)])


def write_a_mixture(transport: Any, body: bytes) -> None:
    for start in range(0, len(body), PIECE):
        piece = body[start : start + PIECE]
        transport.write(piece[:10])
        transport.write(b"")
        transport.writeSequence([b"", piece[10:20], b"", piece[20 : 20 * KIB]])
        transport.writeSequence([])
        transport.write(piece[20 * KIB :])


WAYS = [write_whole, write_in_pieces, write_a_sequence, write_a_mixture]


@families
@pytest.mark.parametrize("way", WAYS)
def test_all_that_was_written_arrives_before_the_end(
    make_home: MakeHome, family: int, way: Callable[[Any, bytes], None]
) -> None:
    home = make_home("64MiB")
    client, protocol = home.pair(family)

    def write() -> None:
        way(protocol.transport, BODY)
        protocol.transport.loseConnection()

    home.call(write)
    assert digest(receive_all(client)) == digest(BODY)
    until(lambda: protocol.losses)
    assert [type(loss) for loss in protocol.losses] == [ConnectionDone]


@families
def test_what_is_written_in_many_turns_arrives_in_order(make_home: MakeHome, family: int) -> None:
    home = make_home("64MiB")
    client, protocol = home.pair(family, is_tight=True)
    pieces = [BODY[start : start + 7001] for start in range(0, len(BODY), 7001)]

    def write(number: int = 0) -> None:
        protocol.write(pieces[number])
        if number + 1 < len(pieces):
            home.reactor.callLater(0, write, number + 1)
        else:
            protocol.transport.loseConnection()

    home.call(write)
    assert digest(receive_all(client)) == digest(BODY)


@implementer(IHalfCloseableProtocol)
class HalfCloseable(Recorder):
    def __init__(self) -> None:
        super().__init__()
        self.ends: list[str] = []

    def readConnectionLost(self) -> None:  # noqa: N802
        self.ends.append("read")

    def writeConnectionLost(self) -> None:  # noqa: N802
        self.ends.append("write")


@families
def test_half_a_close_comes_after_all_that_was_written_and_the_other_half_goes_on(
    make_home: MakeHome, family: int
) -> None:
    home = make_home("64MiB")
    client, protocol = home.pair(family, HalfCloseable, is_tight=True)

    def write() -> None:
        write_in_pieces(protocol.transport, BODY)
        protocol.transport.loseWriteConnection()

    home.call(write)
    assert digest(receive_all(client)) == digest(BODY)
    client.sendall(b"more")
    until(lambda: protocol.received == b"more")
    assert protocol.ends == ["write"]
    home.call(lambda: protocol.write(b"too late"))
    client.shutdown(socket.SHUT_WR)
    until(lambda: protocol.ends == ["write", "read"])
    assert protocol.is_open
    home.call(lambda: protocol.transport.loseConnection())
    until(lambda: protocol.losses)


@implementer(IPushProducer)
class Stream:
    """Writes until it is paused."""

    size = 10 * KIB

    def __init__(self, transport: Any, body: bytes) -> None:
        self.transport = transport
        self.body = body
        self.start = 0
        self.is_paused = False
        self.pauses = 0
        self.depth = self.deepest = 0
        self.is_stopped = False

    def resumeProducing(self) -> None:  # noqa: N802
        self.is_paused = False
        self.depth += 1
        self.deepest = max(self.deepest, self.depth)
        while not self.is_paused and self.start < len(self.body):
            self.start += self.size
            self.transport.write(self.body[self.start - self.size : self.start])
        self.depth -= 1
        if self.start >= len(self.body):
            self.transport.unregisterProducer()
            self.transport.loseConnection()

    def pauseProducing(self) -> None:  # noqa: N802
        self.is_paused = True
        self.pauses += 1

    def stopProducing(self) -> None:  # noqa: N802
        self.is_stopped = self.is_paused = True


@families
def test_a_stream_is_paused_above_64_kib_and_resumed(make_home: MakeHome, family: int) -> None:
    home = make_home("64MiB")
    client, protocol = home.pair(family, is_tight=True)
    before = home.memory.used
    stream = Stream(protocol.transport, BODY)

    def write() -> None:
        protocol.transport.registerProducer(stream, True)
        stream.resumeProducing()

    home.call(write)
    assert stream.pauses == 1
    assert before + PIECE < home.memory.used <= before + PIECE + stream.size
    assert digest(receive_all(client)) == digest(BODY)
    assert stream.pauses > 1
    assert not stream.is_stopped
    assert home.memory.peak <= before + PIECE + stream.size


@implementer(IPullProducer)
class Pull(Stream):
    """Writes once each time that it is asked."""

    size = 30 * KIB

    def resumeProducing(self) -> None:  # noqa: N802
        self.depth += 1
        self.deepest = max(self.deepest, self.depth)
        self.start += self.size
        self.transport.write(self.body[self.start - self.size : self.start])
        self.depth -= 1
        if self.start >= len(self.body):
            self.transport.unregisterProducer()
            self.transport.loseConnection()


@families
def test_a_producer_that_is_pulled_is_never_resumed_within_its_write(make_home: MakeHome, family: int) -> None:
    home = make_home("64MiB")
    client, protocol = home.pair(family, is_tight=True)
    before = home.memory.used
    producer = Pull(protocol.transport, BODY)
    home.call(lambda: protocol.transport.registerProducer(producer, False))
    assert digest(receive_all(client)) == digest(BODY)
    assert producer.deepest == 1
    assert producer.pauses == 0
    assert home.memory.peak <= before + producer.size + 64


def test_a_stream_whose_peer_is_gone_is_stopped(make_home: MakeHome) -> None:
    home = make_home("64MiB")
    client, protocol = home.pair(is_tight=True)
    stream = Stream(protocol.transport, BODY)

    def write() -> None:
        protocol.transport.registerProducer(stream, True)
        stream.resumeProducing()

    home.call(write)
    reset(client)
    until(lambda: protocol.losses)
    assert stream.is_stopped


# TLS

TLS = tuple[Any, ssl.SSLContext]


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TLS:
    """For Twisted, with a certificate that signs itself, and for a plain client."""
    pytest.importorskip("OpenSSL", reason="needs pyOpenSSL")
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from OpenSSL import SSL

    @implementer(IOpenSSLClientConnectionCreator, IOpenSSLServerConnectionCreator)
    class Creator:
        """Twisted's own takes what pyOpenSSL has deprecated."""

        def serverConnectionForTLS(self, protocol: object) -> SSL.Connection:  # noqa: N802
            connection = SSL.Connection(context, None)
            connection.set_accept_state()
            return connection

        def clientConnectionForTLS(self, protocol: object) -> SSL.Connection:  # noqa: N802
            connection = SSL.Connection(context, None)
            connection.set_connect_state()
            return connection

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    pem = serialization.Encoding.PEM
    path.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(pem)
    )
    context = SSL.Context(SSL.TLS_METHOD)
    context.use_certificate_file(str(path))
    context.use_privatekey_file(str(path))
    client = ssl.create_default_context()
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    return Creator(), client


def over_tls(home: Home, sock: socket.socket, context: ssl.SSLContext) -> ssl.SSLSocket:
    wrapped = context.wrap_socket(sock, suppress_ragged_eofs=False)
    home.keep(wrapped)
    return wrapped


class StartsTLS(Recorder):
    options: Any

    def dataReceived(self, data: bytes) -> None:  # noqa: N802
        super().dataReceived(data)
        if data == b"please":
            self.transport.write(b"go")
            self.transport.startTLS(self.options)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("begins", ["at once", "later"])
def test_over_tls_all_arrives_before_the_end(
    make_installed_home: MakeHome, tls: TLS, begins: str, way: Callable[[Any, bytes], None]
) -> None:
    home = make_installed_home("64MiB")
    StartsTLS.options = tls[0]
    if begins == "at once":
        port = home.keep_port(
            home.call(lambda: home.reactor.listenSSL(0, home.factory(), tls[0], interface="127.0.0.1"))
        )
        client = over_tls(home, home.connect(port), tls[1])
        protocol = home.next()
    else:
        plain, protocol = home.pair(build=StartsTLS)
        plain.sendall(b"please")
        assert receive(plain, 2) == b"go"
        client = over_tls(home, plain, tls[1])
    client.sendall(BODY[: 100 * KIB])
    until(lambda: protocol.received.endswith(BODY[: 100 * KIB]))
    before = home.memory.used

    def write() -> int:
        way(protocol.transport, BODY)
        return home.memory.used

    assert before < home.call(write) <= before + len(BODY) * 1.05
    home.call(lambda: protocol.transport.loseConnection())
    assert digest(receive_all(client)) == digest(BODY)
    client.unwrap().close()
    until(lambda: protocol.losses)


@pytest.mark.parametrize("kind", [Stream, Pull])
def test_over_tls_producers_are_asked_as_the_peer_reads(
    make_installed_home: MakeHome, tls: TLS, kind: type[Stream]
) -> None:
    home = make_installed_home("64MiB")
    StartsTLS.options = tls[0]
    plain, protocol = home.pair(build=StartsTLS, is_tight=True)
    plain.sendall(b"please")
    assert receive(plain, 2) == b"go"
    client = over_tls(home, plain, tls[1])
    client.sendall(b"ready")
    until(lambda: protocol.received.endswith(b"ready"))
    before = home.memory.used
    producer = kind(protocol.transport, BODY)

    def write() -> None:
        protocol.transport.registerProducer(producer, kind is Stream)
        if kind is Stream:
            producer.resumeProducing()

    home.call(write)
    assert digest(receive_all(client)) == digest(BODY)
    assert home.memory.peak <= before + 4 * PIECE


@pytest.mark.xfail(strict=True, reason="TLS holds what is written before its handshake has ended, uncharged")
def test_what_is_written_before_a_handshake_is_charged(make_installed_home: MakeHome, tls: TLS) -> None:
    home = make_installed_home("1MiB")
    port = home.keep_port(
        home.call(lambda: home.reactor.listenSSL(0, home.factory(), tls[0], interface="127.0.0.1"))
    )
    home.connect(port)
    protocol = home.next()

    def write() -> None:
        for _ in range(100):
            protocol.write(bytes(PIECE))

    home.call(write)
    home.loop.pass_turns(3)
    assert home.memory.peak > MIB


def test_over_tls_a_buffer_s_size_that_the_application_has_set_stays(
    make_installed_home: MakeHome, tls: TLS
) -> None:
    home = make_installed_home("64MiB")
    StartsTLS.options = tls[0]
    plain, protocol = home.pair(build=StartsTLS)
    home.call(lambda: setattr(protocol.transport, "bufferSize", MIB))
    plain.sendall(b"please")
    assert receive(plain, 2) == b"go"
    over_tls(home, plain, tls[1]).sendall(b"ready")
    until(lambda: protocol.received.endswith(b"ready"))
    assert home.call(lambda: protocol.transport.bufferSize) == MIB


def test_a_protocol_in_a_wrapper_without_tls_costs_what_one_without_does(make_home: MakeHome) -> None:
    home = make_home("64MiB")
    home.pair()
    before = home.memory.used
    factory = WrappingFactory(home.factory())
    factory.noisy = False
    port = home.keep_port(home.call(lambda: home.reactor.listenTCP(0, factory, interface="127.0.0.1")))
    home.connect(port)
    home.next()
    assert home.memory.used == 2 * before


# What is read


def filled(home: Home, protocol: Recorder, client: socket.socket, data: bytes = b"data") -> Callable[[], None]:
    """The quota is full, and `protocol` waits to read what was sent; the result gives the memory back."""
    give_back = home.fill()
    client.sendall(data)
    until(lambda: home.memory.somebody_waits)
    home.loop.pass_turns(3)
    assert protocol.received == b""
    return give_back


@families
def test_a_read_waits_while_the_quota_is_full_and_goes_on(make_home: MakeHome, family: int) -> None:
    home = make_home("1MiB")
    client, protocol = home.pair(family)
    for _ in range(3):
        protocol.received.clear()
        give_back = filled(home, protocol, client)
        give_back()
        until(lambda: protocol.received == b"data")
        assert not home.memory.somebody_waits


def test_one_gift_lets_all_go_on_who_wait(make_home: MakeHome) -> None:
    home = make_home("1MiB")
    port = home.listen()
    pairs = [home.pair_at(port) for _ in range(20)]
    give_back = home.fill()
    for client, _ in pairs:
        client.sendall(b"data")
    until(lambda: len(home.memory.waiters) == len(pairs))
    assert not any(protocol.received for _, protocol in pairs)
    give_back()
    until(lambda: all(protocol.received == b"data" for _, protocol in pairs))


def test_what_waits_also_goes_on_when_the_quota_is_made_larger(make_home: MakeHome) -> None:
    home = make_home("1MiB")
    client, protocol = home.pair()
    give_back = filled(home, protocol, client)
    home.memory.resize("2MiB")
    until(lambda: protocol.received == b"data")
    give_back()


def test_while_it_waits_it_is_not_watched(make_home: MakeHome) -> None:
    """Else the reactor would turn without a pause."""
    home = make_home("1MiB")
    client, protocol = home.pair()
    give_back = filled(home, protocol, client)
    assert home.call(lambda: protocol.transport not in home.reactor.getReaders())
    home.call(lambda: protocol.transport.resumeProducing())
    assert home.call(lambda: protocol.transport not in home.reactor.getReaders())
    give_back()
    until(lambda: protocol.received == b"data")


def test_what_was_paused_while_it_waits_stays_so(make_home: MakeHome) -> None:
    home = make_home("1MiB")
    client, protocol = home.pair()
    give_back = filled(home, protocol, client)
    home.call(lambda: protocol.transport.pauseProducing())
    give_back()
    until(lambda: not home.memory.somebody_waits)
    home.loop.pass_turns(3)
    assert protocol.received == b""
    home.call(lambda: protocol.transport.resumeProducing())
    until(lambda: protocol.received == b"data")


def test_what_was_paused_and_resumed_while_it_waits_goes_on(make_home: MakeHome) -> None:
    home = make_home("1MiB")
    client, protocol = home.pair()
    give_back = filled(home, protocol, client)
    home.call(lambda: protocol.transport.pauseProducing())
    home.call(lambda: protocol.transport.resumeProducing())
    home.loop.pass_turns(3)
    assert protocol.received == b""
    give_back()
    until(lambda: protocol.received == b"data")


def test_who_waits_but_was_paused_does_not_stand_in_the_way(make_home: MakeHome) -> None:
    home = make_home("1MiB")
    port = home.listen()
    client, protocol = home.pair_at(port)
    other, others = home.pair_at(port)
    give_back = filled(home, protocol, client)
    other.sendall(b"data")
    until(lambda: len(home.memory.waiters) == 2)
    home.call(lambda: protocol.transport.pauseProducing())
    give_back()
    until(lambda: others.received == b"data")
    home.call(lambda: protocol.transport.resumeProducing())


@families
def test_what_a_peer_sent_that_has_gone_meanwhile_is_read_and_then_its_end(
    make_home: MakeHome, family: int
) -> None:
    home = make_home("1MiB")
    client, protocol = home.pair(family)
    give_back = filled(home, protocol, client, BODY[: 10 * KIB])
    client.close()
    home.loop.pass_turns(3)
    give_back()
    until(lambda: protocol.losses)
    assert protocol.received == BODY[: 10 * KIB]
    assert [type(loss) for loss in protocol.losses] == [ConnectionDone]


@pytest.mark.parametrize(
    ("end", "said"), [("loseConnection", ConnectionDone), ("abortConnection", ConnectionAborted)]
)
def test_who_is_closed_while_it_waits_waits_no_longer(
    make_home: MakeHome, end: str, said: type[BaseException]
) -> None:
    home = make_home("1MiB")
    client, protocol = home.pair()
    give_back = filled(home, protocol, client)
    home.call(lambda: getattr(protocol.transport, end)())
    until(lambda: protocol.losses)
    assert not home.memory.somebody_waits
    assert [type(loss) for loss in protocol.losses] == [said]
    give_back()
    home.loop.pass_turns(3)
    assert protocol.received == b""


def test_who_is_closed_as_it_is_woken_passes_it_on(make_home: MakeHome) -> None:
    home = make_home("1MiB")
    port = home.listen()
    client, protocol = home.pair_at(port)
    other, others = home.pair_at(port)
    give_back = filled(home, protocol, client)
    other.sendall(b"data")
    until(lambda: len(home.memory.waiters) == 2)

    def close_and_wake() -> None:
        protocol.transport.abortConnection()
        give_back()

    home.call(close_and_wake)
    until(lambda: others.received == b"data")
    until(lambda: protocol.losses)
    assert protocol.received == b""


@families
def test_what_is_written_goes_out_while_reading_waits(make_home: MakeHome, family: int) -> None:
    home = make_home("1MiB")
    client, protocol = home.pair(family)
    give_back = filled(home, protocol, client)
    home.call(lambda: protocol.write(b"hello"))
    assert receive(client, 5) == b"hello"
    give_back()
    until(lambda: protocol.received == b"data")


# Who does not read


class Reading:
    """Reads in a thread, to the end."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._parts: list[bytes] = []
        self.count = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while part := self._sock.recv(PIECE):
                self._parts.append(part)
                self.count += len(part)

    def all(self) -> bytes:
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive()
        return b"".join(self._parts)


@families
def test_who_does_not_read_is_cut_and_who_reads_gets_every_byte(make_home: MakeHome, family: int) -> None:
    home = make_home("1MiB")
    port = home.listen(family)
    hogs = [home.pair_at(port, is_tight=True)[1] for _ in range(8)]
    client, honest = home.pair_at(port)
    reading = Reading(client)
    count = 40
    for number in range(count):
        piece = BODY[number * PIECE : (number + 1) * PIECE]
        for hog in hogs:
            home.call(lambda hog=hog, piece=piece: hog.write(piece))
        home.call(lambda piece=piece: honest.write(piece))
        until(lambda size=(number + 1) * PIECE: reading.count == size)
    assert home.memory.peak <= MIB + PIECE
    assert home.memory.used <= MIB
    home.call(lambda: honest.transport.loseConnection())
    assert digest(reading.all()) == digest(BODY[: count * PIECE])
    cut = [hog for hog in hogs if hog.losses]
    assert cut
    assert {type(loss) for hog in cut for loss in hog.losses} == {ConnectionAborted}
    until(lambda: honest.losses)
    assert type(honest.losses[0]) is ConnectionDone


def test_first_goes_who_holds_most(make_home: MakeHome) -> None:
    home = make_home("1MiB")
    port = home.listen()
    large, small, writing = (home.pair_at(port, is_tight=True) for _ in range(3))
    home.call(lambda: large[1].write(bytes(600 * KIB)))
    home.call(lambda: small[1].write(bytes(200 * KIB)))
    home.loop.pass_turns(3)
    home.call(lambda: writing[1].write(BODY[: 300 * KIB]))
    until(lambda: large[1].losses)
    assert [type(loss) for loss in large[1].losses] == [ConnectionAborted]
    assert receive(writing[0], 300 * KIB) == BODY[: 300 * KIB]
    assert receive(small[0], 200 * KIB) == bytes(200 * KIB)
    assert small[1].is_open
    assert writing[1].is_open


def test_who_is_cut_gives_its_memory_back_at_once_and_is_told_in_a_later_turn(make_home: MakeHome) -> None:
    home = make_home("1MiB")
    port = home.listen()
    (_, hog), (_, writing) = (home.pair_at(port, is_tight=True) for _ in range(2))
    before = home.memory.used

    def write() -> tuple[int, int]:
        hog.write(bytes(900 * KIB))
        writing.write(bytes(300 * KIB))
        return home.memory.used - before, len(hog.losses)

    assert home.call(write) == (300 * KIB + charged._PIECE, 0)
    until(lambda: hog.losses)


@families
def test_a_protocol_that_writes_for_ever_in_one_turn_is_cut_and_its_writes_are_silent(
    make_home: MakeHome, family: int
) -> None:
    home = make_home("1MiB")
    _, protocol = home.pair(family, is_tight=True)
    before = home.memory.used

    def write() -> tuple[int, int]:
        for _ in range(1000):
            protocol.write(bytes(PIECE))
        protocol.transport.writeSequence([bytes(PIECE)] * 100)
        return home.memory.used, len(protocol.losses)

    used, losses = home.call(write)
    assert used <= before
    assert losses == 0
    until(lambda: protocol.losses)
    assert [type(loss) for loss in protocol.losses] == [ConnectionAborted]
    assert home.memory.peak <= MIB + PIECE
    home.call(lambda: protocol.write(b"silent"))


def test_over_tls_a_protocol_that_writes_for_ever_is_cut(make_installed_home: MakeHome, tls: TLS) -> None:
    home = make_installed_home("1MiB")
    StartsTLS.options = tls[0]
    plain, protocol = home.pair(build=StartsTLS, is_tight=True)
    plain.sendall(b"please")
    assert receive(plain, 2) == b"go"
    client = over_tls(home, plain, tls[1])
    client.sendall(b"ready")
    until(lambda: protocol.received.endswith(b"ready"))

    def write() -> None:
        for _ in range(100):
            protocol.write(bytes(PIECE))

    home.call(write)
    until(lambda: protocol.losses)
    assert [type(loss) for loss in protocol.losses] == [ConnectionLost]  # as TLS has it when it is aborted below
    assert home.memory.peak <= MIB + 2 * PIECE


def test_a_stream_that_is_cut_is_stopped(make_home: MakeHome) -> None:
    home = make_home("1MiB")
    _, protocol = home.pair(is_tight=True)
    stream = Stream(protocol.transport, BODY)

    def write() -> bool:
        protocol.transport.registerProducer(stream, True)
        stream.resumeProducing()
        protocol.write(bytes(2 * MIB))  # more than there is, by itself
        return stream.is_stopped

    assert not home.call(write)
    until(lambda: protocol.losses)
    assert stream.is_stopped
    assert [type(loss) for loss in protocol.losses] == [ConnectionAborted]


def test_a_write_larger_than_the_quota_arrives_if_the_kernel_takes_it(make_home: MakeHome) -> None:
    home = make_home("128KiB")
    client, protocol = home.pair()
    size = 300 * KIB
    home.call(lambda: protocol.transport.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * size))
    home.call(lambda: protocol.write(BODY[:size]))
    assert receive(client, size) == BODY[:size]


@pytest.mark.usefixtures("impatient")
def test_who_stalls_while_another_waits_to_read_is_cut(make_home: MakeHome) -> None:
    home = make_home("1MiB")
    port = home.listen()
    _, hog = home.pair_at(port, is_tight=True)
    client, waiting = home.pair_at(port)
    home.call(lambda: hog.write(bytes(500 * KIB)))
    give_back = home.fill()
    client.sendall(b"data")
    until(lambda: hog.losses)
    assert [type(loss) for loss in hog.losses] == [ConnectionAborted]
    until(lambda: waiting.received == b"data")
    give_back()


def test_who_stalls_is_not_cut_before_its_time(make_home: MakeHome) -> None:
    home = make_home("1MiB")
    port = home.listen()
    _, hog = home.pair_at(port, is_tight=True)
    client, waiting = home.pair_at(port)
    home.call(lambda: hog.write(bytes(500 * KIB)))
    began = time.monotonic()
    give_back = home.fill()
    client.sendall(b"data")
    until(lambda: hog.losses)
    assert time.monotonic() - began > admission.STALLED - 0.1
    until(lambda: waiting.received == b"data")
    give_back()


@pytest.mark.usefixtures("impatient")
def test_who_stalls_while_nobody_waits_is_left_alone(make_home: MakeHome) -> None:
    home = make_home("1MiB")
    client, protocol = home.pair(is_tight=True)
    home.call(lambda: protocol.write(BODY[: 500 * KIB]))
    give_back = home.fill()
    looks = threading.Event()
    home.call(lambda: home.reactor.callLater(20 * admission.STALLED, looks.set) and None)
    assert looks.wait(TIMEOUT)
    assert protocol.is_open
    assert receive(client, 500 * KIB) == BODY[: 500 * KIB]
    give_back()


# Who is idle


@pytest.fixture
def soon_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has received nothing just now."""
    monkeypatch.setattr(bound, "SILENT", 0.05)
    monkeypatch.setattr(bound, "NEW", 0.05)


@pytest.mark.usefixtures("soon_idle")
def test_who_is_silent_is_closed_when_another_waits(make_home: MakeHome) -> None:
    home = make_home("1MiB")
    port = home.listen()
    idle, _ = home.pair_at(port)
    client, waiting = home.pair_at(port)
    give_back = home.fill()
    client.sendall(b"data")
    assert receive_all(idle) == b""
    until(lambda: waiting.received == b"data")
    give_back()


@pytest.mark.usefixtures("soon_idle")
def test_who_is_silent_over_tls_is_closed_though_it_does_not_answer(
    make_installed_home: MakeHome, tls: TLS
) -> None:
    home = make_installed_home("1MiB")
    StartsTLS.options = tls[0]
    port = home.listen(build=StartsTLS)
    plain, idle = home.pair_at(port)
    plain.sendall(b"please")
    assert receive(plain, 2) == b"go"
    over_tls(home, plain, tls[1]).sendall(b"ready")
    until(lambda: idle.received.endswith(b"ready"))
    client, waiting = home.pair_at(port)
    give_back = home.fill()
    client.sendall(b"data")
    until(lambda: waiting.received == b"data")
    give_back()
    until(lambda: idle.losses)


@pytest.mark.usefixtures("soon_idle")
def test_a_write_beyond_the_quota_closes_who_is_silent_over_tls_once(
    make_installed_home: MakeHome, tls: TLS
) -> None:
    """It may not answer, and is there until it was aborted: the turn did not end, for it was found again and again."""
    home = make_installed_home("1MiB")
    StartsTLS.options = tls[0]
    port = home.listen(build=StartsTLS)
    plain, idle = home.pair_at(port)
    plain.sendall(b"please")
    assert receive(plain, 2) == b"go"
    over_tls(home, plain, tls[1]).sendall(b"ready")
    until(lambda: idle.received.endswith(b"ready"))
    for _ in range(2):
        _, writer = home.pair_at(port)
        later = threading.Event()
        home.call(lambda later=later: home.reactor.callLater(2 * _LOOKED, later.set) and None)
        assert later.wait(TIMEOUT)
        home.call(lambda writer=writer: writer.write(bytes(20 << 20)))
        until(lambda writer=writer: writer.losses)
    until(lambda: idle.losses)


@pytest.mark.usefixtures("soon_idle")
def test_who_waits_for_room_for_long_is_closed_once(make_home: MakeHome) -> None:
    home = make_home("1MiB")
    client, protocol = home.pair()
    connections = protocol.transport.bound.connections
    close_idle, answers = connections._close_idle, []

    def close_idle_again_and_again() -> bool:
        answers.extend(close_idle() for _ in range(3))
        return any(answers)

    connections._close_idle = close_idle_again_and_again  # the quota itself may be the first to ask
    give_back = home.fill()
    client.sendall(b"data")
    until(lambda: home.call(close_idle_again_and_again))
    give_back()
    until(lambda: protocol.losses)
    assert answers.count(True) == 1


# Sends that fail


@families
def test_a_send_that_fails_at_once_is_a_lost_connection_in_a_later_turn(make_home: MakeHome, family: int) -> None:
    home = make_home("1MiB")
    client, protocol = home.pair(family)

    def write() -> int:
        reset(client)
        for _ in range(3):
            protocol.write(b"data")
        return len(protocol.losses)

    assert home.call(write) == 0
    until(lambda: protocol.losses)
    home.loop.pass_turns(3)
    assert [type(loss) for loss in protocol.losses] == [ConnectionLost]


@families
def test_a_send_that_fails_while_reading_is_paused_is_a_lost_connection(make_home: MakeHome, family: int) -> None:
    home = make_home("1MiB")
    client, protocol = home.pair(family)
    home.call(lambda: protocol.transport.pauseProducing())

    def write() -> None:
        reset(client)
        protocol.write(b"data")

    home.call(write)
    until(lambda: protocol.losses)
    assert [type(loss) for loss in protocol.losses] == [ConnectionLost]


class Answers(Recorder):
    def dataReceived(self, data: bytes) -> None:  # noqa: N802
        super().dataReceived(data)
        self.write(b"got it")


@families
def test_what_came_before_a_peer_went_is_read_though_answers_to_it_fail(make_home: MakeHome, family: int) -> None:
    home = make_home("1MiB")
    client, protocol = home.pair(family, Answers)
    give_back = home.fill()  # so that all has come when the first is read
    client.sendall(BODY[: 100 * KIB])
    client.close()
    give_back()
    until(lambda: protocol.losses)
    assert protocol.received == BODY[: 100 * KIB]


@families
def test_a_failed_send_then_an_abort_is_one_end(make_home: MakeHome, family: int) -> None:
    home = make_home("1MiB")
    client, protocol = home.pair(family)

    def write() -> None:
        reset(client)
        protocol.write(b"data")
        protocol.transport.abortConnection()
        protocol.write(b"data")
        protocol.transport.loseConnection()

    home.call(write)
    until(lambda: protocol.losses)
    assert [type(loss) for loss in protocol.losses] == [ConnectionAborted]


# All kinds of connections


def made_by_listen_tcp(home: Home) -> tuple[socket.socket, Recorder]:
    return home.pair()


def made_by_listen_unix(home: Home) -> tuple[socket.socket, Recorder]:
    return home.pair(socket.AF_UNIX)


def made_by_connect_tcp(home: Home) -> tuple[socket.socket, Recorder]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(TIMEOUT)
        port = listener.getsockname()[1]
        home.call(lambda: home.reactor.connectTCP("127.0.0.1", port, home.factory(kind=ClientFactory)) and None)
        return home.keep(listener.accept()[0]), home.next()


def made_by_connect_unix(home: Home) -> tuple[socket.socket, Recorder]:
    path = home.path()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(TIMEOUT)
        listener.bind(path)
        listener.listen()
        home.call(lambda: home.reactor.connectUNIX(path, home.factory(kind=ClientFactory)) and None)
        return home.keep(listener.accept()[0]), home.next()


def made_by_adopt_stream_port(home: Home) -> tuple[socket.socket, Recorder]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        port = home.call(lambda: home.reactor.adoptStreamPort(listener.fileno(), socket.AF_INET, home.factory()))
    return home.pair_at(home.keep_port(port))


def made_by_adopt_stream_port_of_unix(home: Home) -> tuple[socket.socket, Recorder]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(home.path())
        listener.listen()
        listener.setblocking(False)
        port = home.call(lambda: home.reactor.adoptStreamPort(listener.fileno(), socket.AF_UNIX, home.factory()))
    return home.pair_at(home.keep_port(port))


def made_by_adopt_stream_connection(home: Home) -> tuple[socket.socket, Recorder]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = home.keep(socket.create_connection(listener.getsockname()))
        adopted = listener.accept()[0]
    return client, adopt(home, adopted)


def made_by_adopt_stream_connection_of_unix(home: Home) -> tuple[socket.socket, Recorder]:
    client, adopted = socket.socketpair()
    return home.keep(client), adopt(home, adopted)


def adopt(home: Home, sock: socket.socket) -> Recorder:
    with sock:
        sock.setblocking(False)
        home.call(lambda: home.reactor.adoptStreamConnection(sock.fileno(), sock.family, home.factory()) and None)
    return home.next()


KINDS = [
    made_by_listen_tcp,
    made_by_listen_unix,
    made_by_connect_tcp,
    made_by_connect_unix,
    made_by_adopt_stream_port,
    made_by_adopt_stream_port_of_unix,
    made_by_adopt_stream_connection,
    made_by_adopt_stream_connection_of_unix,
]


def check_is_charged(home: Home, client: socket.socket, protocol: Recorder) -> None:
    """That its reads wait, what it writes is charged, and all arrives."""
    client.sendall(b"ping")
    until(lambda: protocol.received == b"ping")
    before = home.memory.used
    home.call(lambda: protocol.write(BODY))
    assert before < home.memory.used <= before + len(BODY) * 1.05
    assert digest(receive(client, len(BODY))) == digest(BODY)
    until(lambda: home.memory.used == before)
    protocol.received.clear()
    filled(home, protocol, client)()
    until(lambda: protocol.received == b"data")


@pytest.mark.parametrize("make", KINDS)
def test_every_connection_of_the_reactor_is_charged(
    make_home: MakeHome, make: Callable[[Home], tuple[socket.socket, Recorder]]
) -> None:
    home = make_home("64MiB")
    client, protocol = make(home)
    check_is_charged(home, client, protocol)


def test_connections_over_tls_are_charged(make_installed_home: MakeHome, tls: TLS) -> None:
    home = make_installed_home("64MiB")
    port = home.keep_port(
        home.call(lambda: home.reactor.listenSSL(0, home.factory(), tls[0], interface="127.0.0.1"))
    )
    client = over_tls(home, home.connect(port), tls[1])
    check_is_charged(home, client, home.next())


@pytest.mark.parametrize(("size", "handshake"), [("64MiB", bound.HANDSHAKE), ("128KiB", 8 * KIB)])
def test_a_handshake_is_charged_what_it_may_take_until_it_is_over(
    make_installed_home: MakeHome, tls: TLS, size: str, handshake: int
) -> None:
    home = make_installed_home(size)
    port = home.keep_port(
        home.call(lambda: home.reactor.listenSSL(0, home.factory(), tls[0], interface="127.0.0.1"))
    )
    client = home.connect(port)
    until(lambda: home.memory.used == bound.TLS_COST + handshake)
    client = over_tls(home, client, tls[1])
    until(lambda: home.memory.used == bound.TLS_COST)
    client.close()
    until(lambda: home.memory.used == 0)
    home.connect(port).close()
    until(lambda: home.quota.connections.used == 0 == home.memory.used)


def test_who_stalls_in_a_handshake_is_closed_when_another_waits(
    make_installed_home: MakeHome, tls: TLS, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bound, "NEW", 0.05)
    monkeypatch.setattr(bound, "IDLE", 0.05)
    home = make_installed_home("1MiB")
    port = home.keep_port(
        home.call(lambda: home.reactor.listenSSL(0, home.factory(), tls[0], interface="127.0.0.1"))
    )
    shaken = over_tls(home, home.connect(port), tls[1])
    until(lambda: home.memory.used == bound.TLS_COST)
    home.connect(port)
    until(lambda: home.memory.used > 2 * bound.TLS_COST)
    protocols = [home.next() for _ in range(2)]
    give_back = home.fill()
    shaken.sendall(b"data")
    until(lambda: protocols[1].losses and protocols[0].received == b"data")
    give_back()


def test_a_client_over_tls_is_charged_and_a_server_over_tls_of_the_same_reactor_too(
    make_installed_home: MakeHome, tls: TLS
) -> None:
    home = make_installed_home("64MiB")
    port = home.keep_port(
        home.call(lambda: home.reactor.listenSSL(0, home.factory(), tls[0], interface="127.0.0.1"))
    )
    number = port.getHost().port
    home.call(
        lambda: home.reactor.connectSSL("127.0.0.1", number, home.factory(kind=ClientFactory), tls[0]) and None
    )
    one, other = home.next(), home.next()
    home.call(lambda: one.write(b"hello"))
    until(lambda: other.received == b"hello")
    other.received.clear()
    home.call(lambda: one.transport.pauseProducing())
    before = home.memory.used
    home.call(lambda: other.write(BODY))
    assert home.memory.used > before
    home.call(lambda: one.transport.resumeProducing())
    until(lambda: len(one.received) == len(BODY))
    assert digest(one.received) == digest(BODY)
    home.call(lambda: one.write(BODY))
    until(lambda: len(other.received) == len(BODY))
    assert digest(other.received) == digest(BODY)
    home.call(lambda: one.transport.loseConnection())


def test_a_client_that_finds_nobody_leaves_nothing(make_home: MakeHome) -> None:
    home = make_home("1MiB")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    failed = threading.Event()

    class Fails(ClientFactory):
        noisy = False

        def clientConnectionFailed(self, connector: Any, reason: Any) -> None:  # noqa: N802
            failed.set()

    for connect in (
        lambda: home.reactor.connectTCP("127.0.0.1", port, Fails()),
        lambda: home.reactor.connectUNIX(home.path(), Fails()),
    ):
        failed.clear()
        home.call(lambda connect=connect: connect() and None)
        assert failed.wait(TIMEOUT)


def test_descriptors_are_sent_over_a_unix_socket(make_home: MakeHome) -> None:
    home = make_home("1MiB")
    client, protocol = home.pair(socket.AF_UNIX)
    with socket.socket() as sent:

        def write() -> None:
            protocol.transport.sendFileDescriptor(sent.fileno())
            protocol.transport.write(b"x")

        home.call(write)
        data, got, _, _ = socket.recv_fds(client, 10, 1)
    assert data == b"x"
    socket.socket(fileno=got[0]).close()


def test_descriptors_are_sent_over_a_unix_socket_after_the_write_that_carries_them(make_home: MakeHome) -> None:
    """`sendFileDescriptor` is not ordered with respect to `write`; as many writes suffice."""
    home = make_home("1MiB")
    client, protocol = home.pair(socket.AF_UNIX)
    with socket.socket() as sent:

        def write() -> None:
            protocol.transport.write(b"x")
            protocol.transport.sendFileDescriptor(sent.fileno())

        home.call(write)
        data, got, _, _ = socket.recv_fds(client, 10, 1)
    assert data == b"x"
    for each in got:
        socket.socket(fileno=each).close()
    assert len(got) == 1


# Several quotas, and several loops


@pytest.mark.usefixtures("impatient")
def test_who_stalls_on_one_reactor_is_cut_for_who_waits_on_another(make_home: MakeHome) -> None:
    home = make_home("1MiB")
    other = make_home(home.quota)
    _, hog = other.pair(is_tight=True)
    client, waiting = home.pair()
    other.call(lambda: hog.write(bytes(500 * KIB)))
    give_back = home.fill()
    client.sendall(b"data")
    until(lambda: waiting.received == b"data")
    until(lambda: hog.losses)
    give_back()
    client.close()
    until(lambda: home.memory.used == 0)


@contextlib.contextmanager
def filled_where_a_reactor_ends(home: Home) -> Iterator[tuple[Callable[[], None], threading.Event]]:
    """The quota is full, and another reactor with it has ended, while a connection on it waited to read. Gives what
    gives the memory back, and whether that connection was told."""
    made: list[Protocol] = []
    lost = threading.Event()

    class Waits(Protocol):
        def connectionMade(self) -> None:  # noqa: N802
            made.append(self)

        def connectionLost(self, reason: Any = None) -> None:  # noqa: N802
            lost.set()

    factory = Factory.forProtocol(Waits)
    factory.noisy = False
    reactor = QuotaReactor(home.quota)
    loop = ReactorLoop(reactor, lambda: free(reactor))
    with closing(loop):
        loop.start()
        client = home.connect(loop.call(lambda: reactor.listenTCP(0, factory, interface="127.0.0.1")))
        until(lambda: made)
        give_back = home.fill()
        client.sendall(b"data")
        until(lambda: len(home.memory.waiters) == 1)
        loop.end()
        try:
            yield give_back, lost
        finally:  # so that what fails leaves nothing behind
            if not lost.is_set():
                made[0].transport.connectionLost(Failure(ConnectionAborted()))
            home.memory.wake_next_waiter()


def test_a_connection_that_waits_to_read_is_told_when_its_reactor_ends(make_home: MakeHome) -> None:
    home = make_home("1MiB")
    with filled_where_a_reactor_ends(home) as (give_back, lost):
        give_back()
        assert lost.is_set()


def test_reading_that_waited_on_a_reactor_that_ended_holds_up_no_other(make_home: MakeHome) -> None:
    home = make_home("1MiB")
    client, protocol = home.pair()
    with filled_where_a_reactor_ends(home) as (give_back, _):
        give_the_rest_back = home.fill()  # what the connection that was lost has cost
        client.sendall(b"data")
        until(lambda: home.memory.somebody_waits)
        home.loop.pass_turns(3)
        give_back()
        give_the_rest_back()
        until(lambda: protocol.received == b"data", 2.0)


def test_a_port_that_waits_for_room_is_closed_when_its_reactor_ends(make_home: MakeHome) -> None:
    home = make_home("1MiB")
    reactor = QuotaReactor(home.quota)
    loop = ReactorLoop(reactor, lambda: free(reactor))
    with closing(loop):
        loop.start()
        port = loop.call(lambda: reactor.listenTCP(0, home.factory(), interface="127.0.0.1"))
        give_back = home.fill()
        home.connect(port)
        until(lambda: home.memory.somebody_waits)
        loop.end()
        is_closed = not port.connected
        if not is_closed:
            port.connectionLost(Failure(ConnectionDone()))
        give_back()
    assert is_closed


# Endpoints


def on_asyncio() -> Any:
    import asyncio

    return AsyncioSelectorReactor(asyncio.new_event_loop())


REACTORS = {
    "quota": lambda: QuotaReactor(None),
    "epoll": EPollReactor,
    "select": SelectReactor,
    "asyncio": on_asyncio,
}


@pytest.fixture(params=REACTORS)
def make_other_home(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MakeHome]:
    """Makes homes on a reactor that knows nothing of their quota."""
    tcp._reservedFD.reserve()

    def make(memory: str | int | None = None) -> Home:
        quota = ResourceQuota("endpoints", memory=memory)
        return install(stack.enter_context(at_home(REACTORS[request.param](), quota, tmp_path)), monkeypatch)

    with nothing_left(), contextlib.ExitStack() as stack:
        yield make


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as sock:
        sock.bind(("::1", 0))
        return True
    return False


ADDRESSES = [
    "127.0.0.1:0",
    pytest.param("[::1]:0", marks=pytest.mark.skipif(not has_ipv6(), reason="needs IPv6")),
    "unix",
    ResolvedAddress.tcp("127.0.0.1", 0),
]


@pytest.mark.parametrize("address", ADDRESSES, ids=str)
def test_what_a_server_endpoint_accepts_is_charged(
    make_other_home: MakeHome, address: str | ResolvedAddress
) -> None:
    home = make_other_home("64MiB")
    where = f"unix:{home.path()}" if address == "unix" else address
    endpoint = QuotaServerEndpoint(home.reactor, where, quota=home.quota)
    assert endpoint.quota is home.quota
    port = home.keep_port(home.await_deferred(lambda: endpoint.listen(home.factory())))
    client, protocol = home.pair_at(port)
    check_is_charged(home, client, protocol)


@pytest.mark.parametrize("address", ["127.0.0.1", ADDRESSES[1], "localhost", "unix"], ids=str)
def test_what_a_client_endpoint_connects_is_charged(make_other_home: MakeHome, address: str) -> None:
    home = make_other_home("64MiB")
    path = home.path()
    family = {"unix": socket.AF_UNIX, "[::1]:0": socket.AF_INET6}.get(address, socket.AF_INET)
    with socket.socket(family) as listener:
        listener.settimeout(TIMEOUT)
        listener.bind(path if address == "unix" else ("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        listener.listen()
        where = (
            f"unix:{path}" if address == "unix" else f"{address.removesuffix(':0')}:{listener.getsockname()[1]}"
        )
        endpoint = QuotaClientEndpoint(home.reactor, where, quota=home.quota)
        assert endpoint.quota is home.quota
        protocol = home.await_deferred(lambda: endpoint.connect(home.factory()))
        client = home.keep(listener.accept()[0])
    home.next()
    check_is_charged(home, client, protocol)


def test_endpoints_are_written_as_strings(make_other_home: MakeHome) -> None:
    home = make_other_home()
    server = serverFromString(home.reactor, "quota:0:interface=127.0.0.1:memory=64MiB")
    assert isinstance(server, QuotaServerEndpoint)
    assert server.quota.memory.size == 64 * MIB
    port = home.keep_port(home.await_deferred(lambda: server.listen(home.factory())))
    number = port.getHost().port
    client = clientFromString(home.reactor, f"quota:host=127.0.0.1:port={number}:memory=1MiB")
    assert isinstance(client, QuotaClientEndpoint)
    assert client.quota.memory.size == MIB
    one = home.await_deferred(lambda: client.connect(home.factory()))
    protocols = [home.next(), home.next()]
    [other] = [protocol for protocol in protocols if protocol is not one]
    home.call(lambda: one.transport.pauseProducing())
    before = server.quota.memory.used
    home.call(lambda: other.write(BODY))
    assert before + len(BODY) <= server.quota.memory.used <= before + len(BODY) + 64
    home.call(lambda: one.transport.resumeProducing())
    until(lambda: len(one.received) == len(BODY))
    assert digest(one.received) == digest(BODY)
    home.call(lambda: one.transport.loseConnection())
    until(lambda: one.losses and other.losses)
    until(lambda: (server.quota.memory.used, client.quota.memory.used) == (0, 0))


@pytest.mark.parametrize(
    "text",
    [
        "quota:0:interface=127.0.0.1:memory=1MiB",
        "quota:port=0:interface=127.0.0.1:memory=1MiB:backlog=5:connections=7",
        "quota:0:127.0.0.1:memory=1MiB",
        "quota:0:127.0.0.1:5:memory=1MiB",
        "quota:127.0.0.1:port=0:memory=1MiB",
    ],
)
@pytest.mark.parametrize(
    "client",
    [
        "quota:host=127.0.0.1:port={}:memory=1MiB",
        "quota:127.0.0.1:{}:memory=1MiB",
        "quota:127.0.0.1:port={}:memory=1MiB",
        "quota:{}:host=127.0.0.1:memory=1MiB:timeout=5",
        "quota:127.0.0.1:{}:memory=1MiB:bindAddress=127.0.0.1",
    ],
)
def test_endpoints_take_what_those_of_tcp_take(make_installed_home: MakeHome, text: str, client: str) -> None:
    home = make_installed_home()
    server = serverFromString(home.reactor, text)
    port = home.keep_port(home.await_deferred(lambda: server.listen(home.factory())))
    assert port.getHost().host == "127.0.0.1"
    one = clientFromString(home.reactor, client.format(port.getHost().port))
    protocol = home.await_deferred(lambda: one.connect(home.factory()))
    other = [each for each in (home.next(), home.next()) if each is not protocol]
    home.call(lambda: protocol.write(b"hello"))
    until(lambda: other[0].received == b"hello")
    home.call(lambda: protocol.transport.loseConnection())
    until(lambda: protocol.losses and other[0].losses)


@pytest.mark.parametrize("text", ["quota:0:interface=:memory=1MiB", "quota:memory=1MiB:port=0"])
def test_without_an_interface_it_is_all_of_them(text: str) -> None:
    assert serverFromString(None, text)._endpoint._interface == "0.0.0.0"


@pytest.mark.skipif(sys.platform != "linux", reason="the whole of 127.0.0.0/8 is the machine itself")
def test_a_client_comes_from_where_it_is_told_to(make_installed_home: MakeHome) -> None:
    home = make_installed_home()
    port = home.listen()
    for make in (
        lambda where: QuotaClientEndpoint(home.reactor, where, quota="1MiB", bind_address="127.0.0.9"),
        lambda where: clientFromString(home.reactor, f"quota:{where}:bindAddress=127.0.0.9:memory=1MiB"),
    ):
        where = f"127.0.0.1:{port.getHost().port}"
        protocol = home.await_deferred(lambda where=where, make=make: make(where).connect(home.factory()))
        home.next()
        home.next()
        assert protocol.transport.getHost().host == "127.0.0.9"
        home.call(protocol.transport.loseConnection)


def test_a_unix_socket_is_connected_from_nowhere() -> None:
    with pytest.raises(ValueError, match="unix:/path has no bind_address"):
        QuotaClientEndpoint(object(), "unix:/path", quota="1MiB", bind_address="127.0.0.1")


def test_an_interface_of_ipv6_is_written_with_its_colons_escaped(make_installed_home: MakeHome) -> None:
    if not has_ipv6():
        pytest.skip("needs IPv6")
    home = make_installed_home()
    server = serverFromString(home.reactor, r"quota:0:interface=\:\:1:memory=64MiB:backlog=5")
    port = home.keep_port(home.await_deferred(lambda: server.listen(home.factory())))
    assert port.getHost().host == "::1"
    number = port.getHost().port
    client = clientFromString(home.reactor, rf"quota:host=\:\:1:port={number}:memory=1MiB:timeout=5")
    protocol = home.await_deferred(lambda: client.connect(home.factory()))
    home.call(lambda: protocol.transport.loseConnection())


def test_endpoints_that_share_a_quota_are_bounded_together(make_other_home: MakeHome) -> None:
    home = make_other_home("1MiB")
    ports = [
        home.keep_port(
            home.await_deferred(
                lambda: QuotaServerEndpoint(home.reactor, "127.0.0.1:0", quota=home.quota).listen(home.factory())
            )
        )
        for _ in range(2)
    ]
    _, hog = home.pair_at(ports[0], is_tight=True)
    client, writing = home.pair_at(ports[1], is_tight=True)
    home.call(lambda: hog.write(bytes(900 * KIB)))
    home.call(lambda: writing.write(BODY[: 300 * KIB]))
    until(lambda: hog.losses)
    assert receive(client, 300 * KIB) == BODY[: 300 * KIB]
    assert writing.is_open


def test_an_endpoint_that_shares_the_quota_of_its_reactor_is_bounded_with_it(make_home: MakeHome) -> None:
    home = make_home("1MiB")
    endpoint = QuotaServerEndpoint(home.reactor, "127.0.0.1:0", quota=home.quota)
    port = home.keep_port(home.await_deferred(lambda: endpoint.listen(home.factory())))
    _, hog = home.pair_at(port, is_tight=True)
    client, writing = home.pair(is_tight=True)
    home.call(lambda: hog.write(bytes(900 * KIB)))
    home.call(lambda: writing.write(BODY[: 300 * KIB]))
    until(lambda: hog.losses)
    assert receive(client, 300 * KIB) == BODY[: 300 * KIB]
    assert writing.is_open


def test_an_endpoint_leaves_what_the_reactor_listens_for_itself_uncharged(make_other_home: MakeHome) -> None:
    home = make_other_home("1MiB")
    endpoint = QuotaServerEndpoint(home.reactor, "127.0.0.1:0", quota=home.quota)
    home.keep_port(home.await_deferred(lambda: endpoint.listen(home.factory())))
    client, protocol = home.pair(is_tight=True)
    home.call(lambda: protocol.write(BODY))
    assert receive(client, len(BODY)) == BODY
    assert home.memory.peak == 0


def test_tls_over_a_client_endpoint_is_charged(make_installed_home: MakeHome, tls: TLS) -> None:
    home = make_installed_home("64MiB")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(TIMEOUT)
        where = f"127.0.0.1:{listener.getsockname()[1]}"
        endpoint = QuotaClientEndpoint(home.reactor, where, quota=home.quota)
        protocol = home.await_deferred(lambda: endpoint.connect(home.factory()))
        plain = home.keep(listener.accept()[0])
    home.next()
    home.call(lambda: protocol.transport.startTLS(tls[0], False))
    client = over_tls(home, plain, tls[1])
    check_is_charged(home, client, protocol)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("quota:0", "needs memory="),
        ("quota:0:memory=abc", "memory is 'abc': 'abc' is not a size"),
        ("quota:0:memory=", "memory is '': '' is not a size"),
        ("quota:0:memory=10", "memory is '10': a quota of 10 bytes has no room to serve a connection"),
        (
            "quota:0:memory=1MiB:memroy=2MiB",
            "has no option 'memroy'; port, interface, backlog, memory, connections are allowed",
        ),
        (
            "quota:0:127.0.0.1:5:1MiB",
            "has a value too many: '1MiB'; port, interface, backlog, memory, connections",
        ),
        ("quota:0:1MiB", "needs memory=, as in memory=64MiB"),
        ("quota:memory=1MiB", "needs port="),
        ("quota:memory=1MiB:timeout=5", "has no option 'timeout'"),
        ("quota:0:nowhere:memory=1MiB", "nowhere"),
        ("quota:0::many:memory=1MiB", "backlog is 'many'; a whole number without a sign is needed"),
        ("quota:http:memory=1MiB", "port is 'http': a number is needed"),
        ("quota:unix:/tmp/s:memory=1MiB", "port is 'unix': .* at a unix socket a QuotaServerEndpoint listens"),
        ("quota:::1:memory=1MiB", r"port is '': .* a colon of an IPv6 address is written \\:"),
        ("quota:70000:memory=1MiB", "70000"),
        ("quota:-1:memory=1MiB", "-1"),
        ("quota:0:interface=nowhere:memory=1MiB", "nowhere"),
        ("quota:0:memory=1MiB:connections=many", "connections is 'many'"),
        ("quota:0:memory=1MiB:connections=0", "connections is 0"),
        ("quota:0:memory=1MiB:backlog=-1", "backlog is '-1'"),
    ],
)
def test_what_is_no_server_is_said_before_anything_listens(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        serverFromString(None, text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("quota:host=localhost:port=1", "needs memory="),
        ("quota:host=localhost:port=1:memory=abc", "memory is 'abc': 'abc' is not a size"),
        ("quota:host=localhost:port=1:memory=127KiB", "memory is '127KiB': .* give 128 KiB or more"),
        ("quota:localhost:memory=1MiB", "needs port="),
        ("quota:1:host=localhost:port=1:memory=1MiB", "has a value too many: '1'"),
        ("quota:host=localhost:memory=1MiB", "needs port="),
        ("quota:port=1:memory=1MiB", "needs host="),
        ("quota:host=localhost:port=http:memory=1MiB", "'localhost:http' is not an address"),
        (
            "quota:host=localhost:port=70000:memory=1MiB",
            "'localhost:70000' is not an address.* with a port from 0 to 65535",
        ),
        ("quota:host=:port=1:memory=1MiB", "':1' is not an address"),
        ("quota:host=localhost:port=1:memory=1MiB:timeout=soon", "timeout is 'soon'"),
        (
            "quota:host=localhost:port=1:memory=1MiB:interface=any",
            "has no option 'interface'; host, port, timeout, bindAddress, memory are allowed",
        ),
    ],
)
def test_what_is_no_client_is_said_before_anything_connects(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        clientFromString(None, text)


@pytest.mark.parametrize("endpoint", [QuotaServerEndpoint, QuotaClientEndpoint])
@pytest.mark.parametrize(
    ("address", "quota", "kind", "said"),
    [
        ("127.0.0.1:0", "12XiB", ValueError, "'12XiB' is not a size"),
        ("127.0.0.1:0", "10", ValueError, "no room to serve a connection"),
        ("127.0.0.1:0", 1.5, TypeError, "not float"),
        ("127.0.0.1:0", True, TypeError, "not bool"),
        ("127.0.0.1:0", b"1MiB", TypeError, "not bytes"),
        ("nowhere", "1MiB", ValueError, "nowhere"),
        ("", "1MiB", ValueError, "''"),
        ("127.0.0.1:70000", "1MiB", ValueError, "70000"),
        ("::1:80", "1MiB", ValueError, "::1:80"),
    ],
)
def test_what_is_no_address_or_no_quota_is_said(
    endpoint: Any, address: Any, quota: Any, kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said):
        endpoint(object(), address, quota=quota)


@pytest.mark.parametrize("endpoint", [QuotaServerEndpoint, QuotaClientEndpoint])
@pytest.mark.parametrize("address", [80, None, b"127.0.0.1:0"])
def test_what_is_of_no_type_of_an_address_is_said(endpoint: Any, address: Any) -> None:
    with pytest.raises(TypeError, match=f"address.*{type(address).__name__}"):
        endpoint(object(), address, quota="1MiB")


@pytest.mark.parametrize("endpoint", [QuotaServerEndpoint, QuotaClientEndpoint])
def test_an_endpoint_without_a_quota_is_refused(endpoint: Any) -> None:
    with pytest.raises(TypeError, match="NoneType"):
        endpoint(EPollReactor, "127.0.0.1:0", quota=None)


@pytest.mark.parametrize(
    ("quota", "kind", "said"),
    [
        ("12XiB", ValueError, "'12XiB' is not a size"),
        (0, ValueError, "out of range"),
        (1.5, TypeError, "not float"),
        (object(), TypeError, "not object"),
    ],
)
def test_a_reactor_is_not_made_with_what_is_no_quota(quota: Any, kind: type[Exception], said: str) -> None:
    with nothing_left(), pytest.raises(kind, match=said):
        QuotaReactor(quota)


@pytest.mark.parametrize(
    "connections",
    [
        None,
        1000,
    ],
)
def test_many_who_connect_at_once_are_accepted_as_there_is_room(
    make_home: MakeHome, connections: int | None
) -> None:
    home = make_home(ResourceQuota("full", memory="1MiB", connections=connections))
    port = home.listen()
    amount = home.memory.size * 95 // 100
    home.memory.take(amount, amount)
    home.call(lambda: [home.connect(port) for _ in range(45)] and None)  # before the reactor's next turn
    until(lambda: home.memory.somebody_waits or len(home.protocols) == 45)
    used = home.memory.used
    home.memory.give(amount)
    until(lambda: len(home.protocols) == 45)
    assert used <= MIB


def test_only_so_many_connections_are_accepted_as_the_quota_allows(make_home: MakeHome) -> None:
    home = make_home()
    server = serverFromString(home.reactor, "quota:0:interface=127.0.0.1:memory=1MiB:connections=1")
    port = home.keep_port(home.await_deferred(lambda: server.listen(home.factory())))
    one, first = home.pair_at(port)
    home.connect(port)
    home.loop.pass_turns(10)
    assert len(home.protocols) == 1
    one.close()
    until(lambda: first.losses)
    home.next()


# The least quota, and what the log says


LEAST = 128 * KIB


class Echo(Recorder):
    def dataReceived(self, data: bytes) -> None:  # noqa: N802
        super().dataReceived(data)
        self.write(data)


@contextlib.contextmanager
def logged() -> Iterator[list[str]]:
    """The lines of this package's that are logged meanwhile."""
    lines: list[str] = []

    def observe(event: Any) -> None:
        if event["log_namespace"].startswith("eventengine."):
            lines.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    try:
        yield lines
    finally:
        globalLogPublisher.removeObserver(observe)


def test_endpoints_with_tls_around_them_are_bounded(make_installed_home: MakeHome, tls: TLS) -> None:
    home = make_installed_home()
    quotas = [ResourceQuota(name, memory="1MiB") for name in ("server", "client")]
    server = QuotaServerEndpoint(home.reactor, "127.0.0.1:0", quota=quotas[0])
    from twisted.protocols.tls import TLSMemoryBIOFactory  # which needs pyOpenSSL

    secured = TLSMemoryBIOFactory(tls[0], False, home.factory(Echo))
    secured.noisy = False
    port = home.keep_port(home.await_deferred(lambda: server.listen(secured)))
    where = f"127.0.0.1:{port.getHost().port}"
    client = wrapClientTLS(tls[0], QuotaClientEndpoint(home.reactor, where, quota=quotas[1]))
    protocol = home.await_deferred(lambda: client.connect(home.factory()))
    home.call(lambda: protocol.write(BODY[:1000]))
    until(lambda: protocol.received == BODY[:1000])
    assert quotas[0].memory.used == 64 * KIB
    home.call(lambda: protocol.transport.loseConnection())
    until(lambda: [quota.memory.used for quota in quotas] == [0, 0])


@pytest.mark.parametrize("quota", [LEAST - 1, "127KiB", ResourceQuota(memory=300)], ids=["int", "text", "quota"])
@pytest.mark.parametrize(
    "make",
    [
        QuotaReactor,
        lambda quota: QuotaServerEndpoint(object(), "127.0.0.1:0", quota=quota),
        lambda quota: QuotaClientEndpoint(object(), "127.0.0.1:1", quota=quota),
    ],
    ids=["reactor", "server", "client"],
)
def test_less_than_the_least_is_refused_by_one_sentence(make: Callable[[Any], object], quota: Any) -> None:
    with (
        nothing_left(),
        pytest.raises(
            ValueError, match=r"^a quota of \d+ bytes has no room to serve a connection; give 128 KiB or more$"
        ),
    ):
        make(quota)


def visit(home: Home, port: Any, context: ssl.SSLContext | None) -> None:
    """A client comes, is served, and goes."""
    sock = home.connect(port)
    if context is not None:
        sock = over_tls(home, sock, context)
    for data in (b"hello", BODY[:3000]):
        sock.sendall(data)
        assert receive(sock, len(data)) == data
    sock.close()


@pytest.mark.parametrize("over", ["plain", "tls"])
def test_the_least_serves_one_after_the_other_and_many_at_once(
    make_installed_home: MakeHome, request: pytest.FixtureRequest, over: str
) -> None:
    creator, context = (None, None) if over == "plain" else request.getfixturevalue("tls")
    home = make_installed_home("128KiB")
    factory = home.factory(Echo)
    port = home.keep_port(
        home.call(
            lambda: (
                home.reactor.listenTCP(0, factory, interface="127.0.0.1")
                if creator is None
                else home.reactor.listenSSL(0, factory, creator, interface="127.0.0.1")
            )
        )
    )
    for _ in range(5):
        visit(home, port, context)
    # They are there before the port accepts one, so that it takes as many as it likes.
    with ThreadPoolExecutor(8) as pool:
        going = threading.Event()
        home.reactor.callFromThread(going.wait, TIMEOUT)
        visits = [pool.submit(visit, home, port, context) for _ in range(8)]
        until(lambda: len(home._sockets) >= 13)
        going.set()
        for each in visits:
            each.result(TIMEOUT)
    assert home.memory.peak <= LEAST


def test_connections_that_fill_the_quota_as_they_begin_with_tls_make_room_for_one_another(
    make_installed_home: MakeHome, tls: TLS, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bound, "SILENT", 0.3)
    home = make_installed_home("128KiB")
    StartsTLS.options = tls[0]
    port = home.listen(build=StartsTLS)
    clients = [home.connect(port) for _ in range(2)]
    protocols = [home.next() for _ in range(2)]
    for client in clients:
        client.sendall(b"please")
        assert receive(client, 2) == b"go"
    first = over_tls(home, clients[0], tls[1])
    until(lambda: home.memory.used == bound.TLS_COST + bound.COST)
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(over_tls, home, clients[1], tls[1])
        until(lambda: home.memory.used >= LEAST)
        first.sendall(b"hello")  # both wait now, and hold all there is
        assert isinstance(second.exception(TIMEOUT), OSError)
    until(lambda: [bytes(protocol.received) for protocol in protocols] == [b"pleasehello", b"please"])
    assert (protocols[0].is_open, protocols[1].is_open) == (True, False)


def test_of_a_crowd_as_many_are_accepted_as_leave_room_to_read(make_home: MakeHome) -> None:
    home = make_home("128KiB")
    port = home.listen(build=Echo)
    clients = home.call(lambda: [home.connect(port) for _ in range(45)])  # before the reactor's next turn
    until(lambda: home.memory.somebody_waits)
    assert home.memory.used <= LEAST * 99 // 100
    for client in clients:  # each of whom makes room for another
        client.sendall(b"hello")
        assert receive(client, 5) == b"hello"
        client.close()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX], ids=["tcp", "unix"])
def test_connections_are_counted_where_there_is_no_limit(make_home: MakeHome, family: int) -> None:
    home = make_home()
    port = home.listen(family)
    clients = [home.pair_at(port)[0] for _ in range(3)]
    until(lambda: home.quota.connections.used == 3)
    clients[0].close()
    until(lambda: home.quota.connections.used == 2)
    for client in clients:
        client.close()
    until(lambda: home.quota.connections.used == 0)


def test_the_log_says_once_what_is_bounded(make_home: MakeHome) -> None:
    with logged() as lines:
        home = make_home(ResourceQuota("mine", memory="64MiB", connections=1))
        home.listen()
        home.listen(socket.AF_UNIX)
        home.loop.pass_turns(2)
    assert lines == ["connections are bounded by the quota 'mine': 64 MiB of memory and 1 connection"]


def test_the_log_says_that_there_is_no_limit(make_home: MakeHome) -> None:
    with logged() as lines:
        make_home(ResourceQuota("mine")).loop.pass_turns(2)
    assert lines == ["what connections hold is counted by the quota 'mine', which has no limit"]


def test_an_endpoint_says_once_what_is_bounded_when_it_listens(make_other_home: MakeHome) -> None:
    home = make_other_home("64MiB")
    with logged() as lines:
        endpoint = QuotaServerEndpoint(home.reactor, "127.0.0.1:0", quota=home.quota)
        assert lines == []
        for _ in range(2):
            home.keep_port(home.await_deferred(lambda: endpoint.listen(home.factory())))
    assert lines == [f"connections are bounded by the quota {home.quota.name!r}: 64 MiB of memory"]


def test_that_the_limit_of_connections_is_reached_is_logged_once_a_second(
    make_home: MakeHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tally, "monotonic", lambda: 7.0)  # all of it is within one
    home = make_home(ResourceQuota("mine", memory="1MiB", connections=2))
    port = home.listen()
    with logged() as lines:
        home.pair_at(port)
        assert lines == []
        one, _ = home.pair_at(port)
        home.connect(port)
        home.loop.pass_turns(5)
        one.close()
        home.next()
        home.loop.pass_turns(5)
    quota = "<ResourceQuota 'mine' memory 8192 of 1048576 bytes, connections 2 of 2>"
    assert lines == [f"{quota} has no room for one more connection: new ones wait"]


def test_who_waits_for_memory_is_logged(make_home: MakeHome) -> None:
    home = make_home("1MiB")
    port = home.listen()
    with logged() as lines:
        give_back = home.fill()
        home.connect(port)
        until(lambda: lines)
        give_back()
        home.next()
    assert [line.partition("> ")[2] for line in lines] == ["has no room for one more connection: new ones wait"]


def test_one_and_many_are_told_apart_in_the_log(make_home: MakeHome) -> None:
    home = make_home("1MiB")
    cut = home.reactor.bound.cut
    with logged() as lines:
        cut.add()
        cut.add(2)
        cut._told_at -= 1.0
        cut.add()
    assert [line.partition("full: ")[2] for line in lines] == [
        "1 client was cut before it had read everything",
        "3 clients were cut before they had read everything",
    ]


class Seen(bytes):
    """Bytes of which it can be seen when nobody has them any more."""

    alive = 0

    def __new__(cls, data: bytes) -> Seen:
        cls.alive += 1
        return super().__new__(cls, data)

    def __del__(self) -> None:
        type(self).alive -= 1


@pytest.mark.parametrize("over", ["plain", "tls"])
@pytest.mark.parametrize("ends", ["by our close", "by a reset", "by a write after a reset"])
def test_what_a_transport_held_is_gone_with_it_and_waits_for_no_garbage_collection(
    make_installed_home: MakeHome, request: pytest.FixtureRequest, over: str, ends: str
) -> None:
    creator, context = (None, None) if over == "plain" else request.getfixturevalue("tls")
    home = make_installed_home("64MiB")
    factory = home.factory()
    port = home.keep_port(
        home.call(
            lambda: (
                home.reactor.listenTCP(0, factory, interface="127.0.0.1")
                if creator is None
                else home.reactor.listenSSL(0, factory, creator, interface="127.0.0.1")
            )
        )
    )
    sock = home.connect(port, receive=SMALL)
    protocol = home.next()
    client = sock if context is None else over_tls(home, sock, context)
    client.sendall(b"give")
    until(lambda: protocol.received)
    gc.disable()
    try:

        def write() -> None:
            if ends == "by a write after a reset":
                reset(client)
            protocol.transport.write(Seen(BODY))

        home.call(write)
        if ends == "by our close":
            home.call(protocol.transport.abortConnection)
        elif ends == "by a reset":
            assert home.memory.used > MIB
            reset(client)
        until(lambda: protocol.losses)
        until(lambda: not Seen.alive and not home.memory.used)
    finally:
        gc.enable()
