"""`QuotaSite`, `twist --reactor=eventengine` and `install`, with real sites and plain sockets."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import io
import os
import re
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest

pytest.importorskip("twisted.internet", reason="Twisted is not installed")

import twisted
from twisted.internet import tcp
from twisted.internet.defer import maybeDeferred
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from bridge_cases import run_python
from eventengine import ResourceQuota, admission
from eventengine.bridges.twisted import QuotaServerEndpoint, bound
from eventengine.bridges.twisted.heads import Heads
from eventengine.bridges.twisted.reactor import QuotaReactor
from eventengine.bridges.twisted.site import QuotaSite
from loops import TIMEOUT, ReactorLoop, closing, nothing_left

KIB = 1 << 10
MIB = 1 << 20
SPOOLED = 100_000
BODY = bytes(range(256)) * 300


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Digest(Resource):
    """Answers with the digest of the body; those of a held site when they are let go."""

    isLeaf = True  # noqa: N815

    def __init__(self) -> None:
        super().__init__()
        self.is_held = False
        self.held: list[Request] = []
        self.kinds: list[str] = []

    def render_GET(self, request: Request) -> bytes:  # noqa: N802
        return b"here"

    def render_PUT(self, request: Request) -> bytes | int:  # noqa: N802
        self.kinds.append("memory" if isinstance(request.content, io.BytesIO) else "file")
        if self.is_held:
            self.held.append(request)
            return NOT_DONE_YET
        return digest(request.content.read()).encode()

    def render_POST(self, request: Request) -> bytes:  # noqa: N802
        return b"|".join(request.args.get(b"a", [])) + b"!"

    def let_go(self) -> None:
        self.is_held = False
        held, self.held = self.held, []
        for request in held:
            request.write(digest(request.content.read()).encode())
            request.finish()


class Served:
    """A QuotaSite behind an endpoint with the same quota."""

    def __init__(self, loop: ReactorLoop, memory: str | None, **options: Any) -> None:
        self.loop = loop
        self.call = loop.call
        self.quota = ResourceQuota("site", memory=memory)
        self.memory = self.quota.memory
        self.root = Digest()
        self.site = QuotaSite(self.root, quota=self.quota, reactor=loop.target, **options)
        self.site.noisy = False
        endpoint = QuotaServerEndpoint(loop.target, "127.0.0.1:0", quota=self.quota)
        made: list[Any] = []
        self.call(lambda: endpoint.listen(self.site).addBoth(made.append) and None)
        until(lambda: made)
        self._port = made[0]
        self.port = self._port.getHost().port
        self._clients: list[socket.socket] = []

    def connect(self) -> Client:
        return Client(self)

    def keep(self, sock: socket.socket) -> None:
        self._clients.append(sock)

    def end(self) -> None:
        """Fails unless nothing is left charged."""
        for client in self._clients:
            client.close()
        stopped = threading.Event()
        self.call(lambda: maybeDeferred(self._port.stopListening).addBoth(lambda _: stopped.set()) and None)
        assert stopped.wait(TIMEOUT)
        until(lambda: self.memory.used == 0)
        assert not self.memory.somebody_waits
        until(lambda: len(self.call(self.loop.target.getReaders)) == 1)  # the waker
        assert self.call(self.loop.target.getWriters) == []
        until(lambda: self.call(self.loop.target.getDelayedCalls) == [])


class Client:
    def __init__(self, served: Served) -> None:
        self.sock = socket.create_connection(("127.0.0.1", served.port), TIMEOUT)
        served.keep(self.sock)
        self._file = self.sock.makefile("rb")
        served.keep(self._file)  # type: ignore[arg-type]

    def begin(self, body: bytes, length: int, *, method: str = "PUT", more: str = "") -> None:
        head = f"{method} / HTTP/1.1\r\nHost: site\r\nContent-Length: {length}\r\n{more}\r\n"
        self.sock.sendall(head.encode() + body)

    def answer(self) -> tuple[int, str]:
        status = int(self._file.readline().split()[1])
        length = 0
        while (line := self._file.readline().strip().lower()) != b"":
            if line.startswith(b"content-length:"):
                length = int(line.split()[1])
            if line == b"transfer-encoding: chunked":
                length = -1
        if length >= 0:
            return status, self._file.read(length).decode()
        body = b""
        while size := int(self._file.readline(), 16):
            body += self._file.read(size)
            self._file.readline()
        self._file.readline()
        return status, body.decode()

    def put(self, body: bytes) -> tuple[int, str]:
        self.begin(body, len(body))
        return self.answer()


Serve = Callable[..., Served]


@pytest.fixture
def serve() -> Iterator[Serve]:
    tcp._reservedFD.reserve()  # else the first port that listens opens it, for the rest of the process

    def make(memory: str | None = None, **options: Any) -> Served:
        reactor = QuotaReactor(None)
        loop = ReactorLoop(reactor, lambda: getattr(reactor, "_poller", None) and reactor._poller.close())
        stack.enter_context(closing(loop))
        errors = stack.enter_context(loop.errors())
        stack.callback(lambda: check(errors))
        loop.start()
        served = Served(loop, memory, **options)
        stack.callback(served.end)
        return served

    def check(errors: list[BaseException]) -> None:
        assert errors == []

    with nothing_left(), contextlib.ExitStack() as stack:
        yield make


def test_a_body_is_charged_until_its_request_is_done(serve: Serve) -> None:
    served = serve("1MiB")
    client = served.connect()
    assert client.put(b"") == (200, digest(b""))
    before = served.memory.used
    served.root.is_held = True
    client.begin(BODY, len(BODY))
    until(lambda: served.root.held)
    assert served.memory.used == before + len(BODY)
    served.call(served.root.let_go)
    assert client.answer() == (200, digest(BODY))
    until(lambda: served.memory.used == before)
    assert client.put(BODY) == (200, digest(BODY))  # on the same connection
    until(lambda: served.memory.used == before)
    assert served.root.kinds[1:] == ["memory", "memory"]


def test_a_body_is_charged_whole_before_its_first_byte(serve: Serve) -> None:
    served = serve("1MiB")
    client = served.connect()
    client.begin(b"", 1000)
    until(lambda: served.memory.used >= 1000)
    client.sock.sendall(bytes(1000))
    assert client.answer() == (200, digest(bytes(1000)))


@pytest.mark.parametrize("sent", [0, 1, len(BODY) - 1, len(BODY)])
def test_what_is_held_for_a_client_that_goes_is_given_back(serve: Serve, sent: int) -> None:
    served = serve("1MiB")
    served.root.is_held = True
    client = served.connect()
    client.begin(BODY[:sent], len(BODY))
    until(lambda: served.memory.used >= len(BODY))
    if sent == len(BODY):
        until(lambda: served.root.held)
        gone = threading.Event()
        served.call(lambda: served.root.held[0].notifyFinish().addErrback(lambda _: gone.set()) and None)
    client.sock.shutdown(socket.SHUT_RDWR)
    until(lambda: served.memory.used < len(BODY))
    if sent == len(BODY):
        assert gone.wait(TIMEOUT)
        served.root.held.clear()


def test_while_the_quota_is_short_bodies_go_to_files_and_arrive_whole(serve: Serve) -> None:
    served = serve("1MiB")
    client = served.connect()
    assert client.put(BODY) == (200, digest(BODY))
    until(lambda: served.memory.used < len(BODY))
    taken = int(served.memory.size * 0.81)
    served.memory.take(taken, taken)
    used = served.memory.used
    served.root.is_held = True
    client.begin(BODY, len(BODY))
    until(lambda: served.root.held)
    assert served.memory.used == used
    served.call(served.root.let_go)
    assert client.answer() == (200, digest(BODY))
    served.memory.give(taken)
    assert client.put(BODY) == (200, digest(BODY))
    assert served.root.kinds == ["memory", "file", "memory"]


def test_many_bodies_at_once_leave_room_for_what_is_written(serve: Serve) -> None:
    served = serve("1MiB")
    served.root.is_held = True
    clients = [served.connect() for _ in range(30)]
    bodies = [bytes([number]) * 80_000 for number in range(len(clients))]
    for client, body in zip(clients, bodies, strict=True):
        client.begin(body, len(body))
    until(lambda: len(served.root.held) == len(clients))
    assert set(served.root.kinds) == {"memory", "file"}
    assert served.memory.used <= MIB
    served.call(served.root.let_go)
    assert [client.answer() for client in clients] == [(200, digest(body)) for body in bodies]
    assert served.memory.peak <= MIB


@pytest.mark.parametrize("length", [len(BODY), MIB])
def test_an_upload_that_stalls_while_another_waits_is_cut(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    monkeypatch.setattr(admission, "STALLED", 0.05)
    monkeypatch.setattr(admission, "_LOOKS", 0.01)
    served = serve("1MiB")
    stalled, other = served.connect(), served.connect()
    assert other.put(b"") == (200, digest(b""))
    stalled.begin(BODY[:1000], length)
    until(lambda: served.call(lambda: served.site.admission.moving))
    amount = served.memory.size - served.memory.used
    served.memory.take(amount, amount)
    other.begin(BODY, len(BODY))
    assert stalled.answer() == (408, "")
    served.memory.give(amount)
    assert other.answer() == (200, digest(BODY))
    assert served.memory.peak <= MIB


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded"])
def test_an_upload_that_was_cut_is_not_handled_though_its_rest_comes_as_over_tls(kind: str) -> None:
    quota, root = ResourceQuota(memory="1MiB"), Digest()
    handled: list[Request] = []
    cast("Any", root).render_POST = handled.append
    site = QuotaSite(root, quota=quota, reactor=Clock())
    site.startFactory()
    channel: Any = site.buildProtocol(None)
    transport: Any = StringTransport()  # which delivers what a test says, also when it was told to close
    channel.makeConnection(transport)
    channel.dataReceived(f"POST / HTTP/1.1\r\nContent-Type: {kind}\r\nContent-Length: 5000\r\n\r\na=1&".encode())
    [upload] = site.admission.moving
    cast("Any", upload).cut()
    assert transport.value().startswith(b"HTTP/1.1 408 ")
    assert transport.disconnecting
    channel.dataReceived(b"a=1&" * 1249)
    assert handled == []
    channel.connectionLost(Failure(ConnectionDone()))
    site.stopFactory()
    assert quota.memory.used == 0


def test_each_piece_of_a_body_is_noticed_so_that_who_sends_slowly_does_not_stall(serve: Serve) -> None:
    served = serve("1MiB")
    client = served.connect()
    client.begin(BODY[:1000], len(BODY))
    until(lambda: served.call(lambda: served.site.admission.moving))
    [upload] = served.site.admission.moving
    for number in range(1, 4):
        before = upload.moved_at
        client.sock.sendall(BODY[number * 1000 : number * 1000 + 1000])
        until(lambda: upload.moved_at > before)  # noqa: B023
    client.sock.sendall(BODY[4000:])
    assert client.answer() == (200, digest(BODY))


@pytest.mark.parametrize("length", [SPOOLED - 1, SPOOLED, MIB])
def test_who_is_large_is_spooled_as_ever(serve: Serve, length: int) -> None:
    served = serve("4MiB")
    client = served.connect()
    served.root.is_held = True
    before = served.memory.used
    body = bytes(length)
    client.begin(body, length)
    until(lambda: served.root.held)
    charged = served.memory.used - before
    assert (charged >= length) == (length < SPOOLED)
    assert served.root.kinds == ["memory" if length < SPOOLED else "file"]
    served.call(served.root.let_go)
    assert client.answer() == (200, digest(body))


def test_a_chunked_body_is_spooled_as_ever(serve: Serve) -> None:
    served = serve("1MiB")
    client = served.connect()
    client.sock.sendall(b"PUT / HTTP/1.1\r\nHost: site\r\nTransfer-Encoding: chunked\r\n\r\n")
    client.sock.sendall(b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY))
    assert client.answer() == (200, digest(BODY))
    assert served.root.kinds == ["file"]


@pytest.mark.parametrize("is_short", [False, True])
def test_forms_work(serve: Serve, is_short: bool) -> None:
    served = serve("1MiB")
    client = served.connect()
    assert client.put(b"") == (200, digest(b""))
    taken = int(served.memory.size * 0.81) if is_short else 0
    served.memory.take(taken, taken)
    body = b"a=1&b=2&a=" + b"x" * 1000
    client.begin(body, len(body), method="POST", more="Content-Type: application/x-www-form-urlencoded\r\n")
    assert client.answer() == (200, "1|" + "x" * 1000 + "!")
    parts = b'--B\r\nContent-Disposition: form-data; name="a"\r\n\r\nhello\r\n--B--\r\n'
    client.begin(parts, len(parts), method="POST", more="Content-Type: multipart/form-data; boundary=B\r\n")
    assert client.answer() == (200, "hello!")
    served.memory.give(taken)


@pytest.mark.parametrize(("memory", "status"), [("4MiB", 200), ("2MiB", 413)])
def test_a_large_form_is_parsed_only_where_there_is_room(serve: Serve, memory: str, status: int) -> None:
    served = serve(memory)
    client = served.connect()
    body = b"a=" + b"x" * 200_000
    client.begin(body, len(body), method="POST", more="Content-Type: application/x-www-form-urlencoded\r\n")
    assert client.answer() == (status, "x" * 200_000 + "!" if status == 200 else "")
    if status == 200:
        assert served.memory.peak > 12 * 200_000


@pytest.mark.parametrize(
    ("kind", "body", "times"),
    [
        ("application/x-www-form-urlencoded", b"&".join(b"%d=" % number for number in range(3000)), 35),
        ("application/x-www-form-urlencoded", b"a=" + b"%61" * 5000, 75),
        (
            "multipart/form-data; boundary=B",
            b'--B\r\nContent-Disposition: form-data; name="b"\r\n\r\n\r\n' * 200 + b"--B--\r\n",
            16,
        ),
    ],
)
def test_a_form_is_charged_by_what_it_is_made_of(serve: Serve, kind: str, body: bytes, times: int) -> None:
    served = serve("4MiB")
    client = served.connect()
    client.begin(body, len(body), method="POST", more=f"Content-Type: {kind}\r\n")
    status, _ = client.answer()
    assert status == 200
    assert served.memory.peak > times * len(body)  # as many times tracemalloc says that it takes
    taken = int(served.memory.size * 0.81)
    served.memory.take(taken, taken)
    client.begin(body, len(body), method="POST", more=f"Content-Type: {kind}\r\n")
    assert client.answer() == (413, "")
    served.memory.give(taken)


def test_what_a_long_query_takes_is_charged_until_its_request_is_forgotten(serve: Serve) -> None:
    served = serve("1MiB")
    client = served.connect()
    assert client.put(b"") == (200, digest(b""))
    before = served.memory.used
    served.root.is_held = True
    query = b"&".join(b"%d=" % number for number in range(1000))
    client.sock.sendall(b"PUT /?" + query + b" HTTP/1.1\r\nHost: site\r\nContent-Length: 0\r\n\r\n")
    until(lambda: served.root.held)
    charged = served.memory.used - before
    assert charged > 200_000
    client.sock.shutdown(socket.SHUT_RDWR)
    until(lambda: served.memory.used <= charged)  # the connection's 4 KiB
    assert served.memory.used == charged
    gc.disable()
    try:
        served.call(served.root.held.clear)
        until(lambda: not served.memory.used)
    finally:
        gc.enable()


COOKIES = "Cookie: " + ";".join(f"{number}=" for number in range(2000)) + "\r\n"
HEADERS = "".join(f"x{number}: {number}\r\n" for number in range(400))


@pytest.mark.parametrize("head", [COOKIES, HEADERS])
def test_what_cookies_and_headers_take_is_charged_until_the_request_is_done(serve: Serve, head: str) -> None:
    served = serve("1MiB")
    client = served.connect()
    served.root.is_held = True
    client.begin(b"", 0, more=head)
    until(lambda: served.memory.used > 50_000)
    served.call(served.root.let_go)
    assert client.answer() == (200, digest(b""))
    until(lambda: served.memory.used == bound.COST)
    served.root.is_held = True
    client.begin(b"", 0, more=head)
    until(lambda: served.memory.used > 50_000)
    client.sock.shutdown(socket.SHUT_RDWR)
    until(lambda: not served.quota.connections.used)
    assert served.memory.used > 50_000
    served.call(served.root.held.clear)


@pytest.mark.parametrize("begin", ["PUT / HTTP/1.1\r\n" + HEADERS, "PUT /" + "x" * 15_000, None])
def test_what_has_come_of_requests_in_part_is_charged_and_who_has_sent_most_of_it_is_cut(
    serve: Serve, begin: str | None
) -> None:
    served = serve("128KiB")
    client = served.connect()
    if begin is None:  # sent ahead
        served.root.is_held = True
        client.begin(b"", 0)
        until(lambda: served.root.held)
        begin = "x" * 10_000
    before = served.memory.used
    client.sock.sendall(begin.encode())
    until(lambda: served.memory.used - before >= len(begin))
    served.root.is_held = False
    longer = [served.connect() for _ in range(4)]
    for each in longer:
        each.sock.sendall(HEADERS.encode().replace(b"x", b"PUT / HTTP/1.1\r\nx", 1))
        assert served.connect().put(b"x") == (200, digest(b"x"))
    assert served.memory.peak < 128 * KIB
    served.call(served.root.let_go)


class Held:
    """A channel, as `Heads` sees one."""

    def __init__(self, heads: Heads) -> None:
        self.heads = heads
        self.is_aborted = False

    def abort(self) -> None:
        self.is_aborted = True
        self.heads.hold(cast("Any", self), 0)


@pytest.mark.parametrize("sizes", [(10, 60, 50), (10, 10, 100)])
def test_without_room_for_a_head_who_holds_most_is_aborted_be_it_the_one_that_asks(sizes: tuple[int, ...]) -> None:
    quota = ResourceQuota(memory="128KiB")
    cuts: list[None] = []
    heads = Heads(quota.memory, lambda: cuts.append(None))
    channels = [Held(heads) for _ in sizes]
    for channel, size in zip(channels, sizes, strict=True):
        heads.hold(cast("Any", channel), size << 10)
        if channel.is_aborted:
            break
    worst = sizes.index(max(sizes))
    assert [channel.is_aborted for channel in channels] == [number == worst for number in range(3)]
    assert len(cuts) == 1
    assert quota.memory.used == (sum(sizes) - max(sizes)) << 10


class Upgraded(Protocol):
    def connectionMade(self) -> None:  # noqa: N802
        cast("Any", self.transport).write(b"hello")


def take_over(request: Request) -> int:
    """As autobahn does."""
    channel: Any = request.channel
    transport, channel.transport = channel.transport, None
    transport.protocol = protocol = Upgraded()
    protocol.makeConnection(transport)
    transport.resumeProducing()
    return NOT_DONE_YET


def upgrade(request: Request) -> int:
    """As Twisted's own websockets do."""
    cast("Any", request.channel)._protocolUpgradeForWebsockets(Upgraded())
    return NOT_DONE_YET


ways = pytest.mark.parametrize(
    "way",
    [
        take_over,
        pytest.param(
            upgrade,
            marks=pytest.mark.skipif(
                not hasattr(HTTPChannel, "_protocolUpgradeForWebsockets"), reason="this Twisted has no websockets"
            ),
        ),
    ],
)


@ways
def test_what_a_head_takes_is_given_back_with_its_channel_though_another_protocol_has_the_connection(
    serve: Serve, way: Callable[[Request], int]
) -> None:
    served = serve("1MiB")
    cast("Any", served.root).render_GET = way
    client = served.connect()
    client.sock.sendall(f"GET / HTTP/1.1\r\n{HEADERS}\r\n".encode())
    assert client.sock.recv(5) == b"hello"
    until(lambda: served.memory.used > 50_000)
    client.sock.shutdown(socket.SHUT_RDWR)
    until(lambda: not served.quota.connections.used)
    served.call(gc.collect)
    assert served.memory.used == 0


@ways
def test_heads_of_connections_that_another_protocol_has_do_not_keep_others_out(
    serve: Serve, way: Callable[[Request], int]
) -> None:
    served = serve("128KiB")
    cast("Any", served.root).render_GET = way
    upgraded = served.connect()
    upgraded.sock.sendall(f"GET / HTTP/1.1\r\n{HEADERS}\r\n".encode())
    assert upgraded.sock.recv(5) == b"hello"
    until(lambda: served.memory.used > 50_000)
    served.root.is_held = True
    client = served.connect()
    client.begin(b"x", 1, more=HEADERS[: HEADERS.index("x350:")])
    until(lambda: served.root.held)
    served.call(served.root.let_go)
    assert client.answer() == (200, digest(b"x"))
    with contextlib.suppress(OSError):  # it was aborted, where that can be done
        upgraded.sock.shutdown(socket.SHUT_RDWR)
    until(lambda: served.quota.connections.used == 1)
    served.call(gc.collect)


def test_what_was_sent_ahead_is_charged_no_more_when_its_turn_has_come(serve: Serve) -> None:
    served = serve("1MiB")
    client = served.connect()
    served.root.is_held = True
    client.begin(b"", 0)
    until(lambda: served.root.held)
    for _ in range(150):
        client.begin(b"", 0)
    until(lambda: served.memory.used > 8000)
    served.call(served.root.let_go)
    assert [client.answer() for _ in range(151)] == [(200, digest(b""))] * 151
    until(lambda: served.memory.used == bound.COST)


@pytest.mark.skipif(
    (twisted.version.major, twisted.version.minor) < (24, 7),
    reason="before Twisted 24.7 a stock Site loses large requests that were sent ahead, too",
)
def test_requests_that_were_sent_ahead_are_charged_one_by_one(serve: Serve) -> None:
    served = serve("1MiB")
    client = served.connect()
    bodies = [bytes([number]) * 50_000 for number in range(5)]
    for body in bodies:
        client.begin(body, len(body))
    assert [client.answer() for _ in bodies] == [(200, digest(body)) for body in bodies]
    assert served.memory.peak < 3 * 50_000


def test_a_connection_whose_request_is_handled_is_not_idle_however_long_that_takes(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SILENT", "IDLE", "NEW"):
        monkeypatch.setattr(bound, name, 0.0)
    served = serve("1MiB")
    idle, stalled, working = (served.connect() for _ in range(3))
    assert idle.put(b"") == (200, digest(b""))
    stalled.sock.sendall(b"PUT / HTTP/1.1\r\nHost: si")
    served.root.is_held = True
    working.begin(BODY, len(BODY))
    until(lambda: served.root.held and served.quota.connections.used == 3)
    held = served.memory.take(MIB, MIB)
    assert (idle.sock.recv(1), stalled.sock.recv(1)) == (b"", b"")
    served.memory.give(held)
    served.call(served.root.let_go)
    assert working.answer() == (200, digest(BODY))


def test_a_request_that_is_no_http_is_answered_and_leaves_nothing(serve: Serve) -> None:
    served = serve("1MiB")
    for text in (b"nonsense\r\n\r\n", b"PUT / HTTP/1.1\r\nContent-Length: abc\r\n\r\n"):
        client = served.connect()
        client.sock.sendall(text)
        assert client.answer()[0] == 400
    client = served.connect()
    client.sock.sendall(b"PUT / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 90000\r\n\r\n")
    client.sock.shutdown(socket.SHUT_WR)
    while client.sock.recv(KIB):
        pass


@pytest.mark.parametrize(
    ("quota", "kind", "said"),
    [
        ("12XiB", ValueError, "'12XiB' is not a size"),
        ("10", ValueError, "no room to serve a connection"),
        (1.5, TypeError, "not float"),
        (None, TypeError, "NoneType"),
    ],
)
def test_what_is_no_quota_is_said(quota: Any, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        QuotaSite(Resource(), quota=quota, reactor=object())


def test_the_least_serves_one_after_the_other_and_many_at_once(serve: Serve) -> None:
    served = serve("128KiB")
    body = bytes(3000)
    for _ in range(5):
        assert served.connect().put(body) == (200, digest(body))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: served.connect().put(body), range(8)))
    assert answers == [(200, digest(body))] * 8


def test_the_log_says_once_what_is_bounded() -> None:
    lines: list[str] = []
    observe: Callable[[Any], object] = lambda event: lines.append(formatEvent(event))  # noqa: E731
    site = QuotaSite(Digest(), quota=ResourceQuota("mine", memory="1MiB"), reactor=Clock())
    globalLogPublisher.addObserver(observe)
    try:
        for _ in range(2):
            site.startFactory()
            site.stopFactory()
    finally:
        globalLogPublisher.removeObserver(observe)
    assert lines == ["connections are bounded by the quota 'mine': 1 MiB of memory"]


# The program's reactor


@contextlib.contextmanager
def twist(folder: Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    command = ["--reactor=eventengine", "web", "--listen", "tcp:0:interface=127.0.0.1", "--path", "."]
    process = subprocess.Popen(
        [sys.executable, "-m", "twisted", *command],
        cwd=folder,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=TIMEOUT)


def read_until(process: subprocess.Popen[str], pattern: str) -> re.Match[str]:
    """In what the process writes."""
    assert process.stdout is not None
    text = ""
    while select.select([process.stdout], [], [], TIMEOUT)[0]:
        part = os.read(process.stdout.fileno(), 10_000).decode()
        text += part
        if (found := re.search(pattern, text)) is not None:
            return found
        assert part, text
    raise AssertionError(text)


def test_twist_serves_a_file_within_the_quota_that_the_environment_says(tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_bytes(BODY)
    with twist(tmp_path, EVENTENGINE_MEMORY="64MiB") as process:
        line = r"Site starting on (\d+)[^\0]*connections are bounded by the quota 'twisted': 64 MiB of memory"
        port = int(read_until(process, line)[1])
        with socket.create_connection(("127.0.0.1", port), TIMEOUT) as client:
            client.sendall(b"GET /file.txt HTTP/1.0\r\n\r\n")
            answer = b""
            while part := client.recv(1 << 16):
                answer += part
    assert answer.startswith((b"HTTP/1.0 200 OK", b"HTTP/1.1 200 OK"))
    assert answer.endswith(b"\r\n\r\n" + BODY)


@pytest.mark.parametrize(("name", "text"), [("EVENTENGINE_MEMORY", "abc"), ("EVENTENGINE_CONNECTIONS", "many")])
def test_twist_says_which_variable_it_does_not_understand(tmp_path: Path, name: str, text: str) -> None:
    with twist(tmp_path, **{name: text}) as process:
        output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode != 0
    [line] = [line for line in output.splitlines() if line.startswith("Error: ")]  # Twisted 22.1 warns before it
    assert line.startswith(f"Error: {name} is '{text}': ")
    assert "Traceback" not in output


INSTALL = """
    import sys
    from eventengine import ResourceQuota, admission
    from eventengine.bridges.twisted.reactor import QuotaReactor, install

    quota = ResourceQuota("program", memory="1MiB")
    installed = install(quota)
    from twisted.internet import reactor

    assert reactor is installed
    assert isinstance(reactor, QuotaReactor)
    assert reactor.quota is quota
    reactor.callWhenRunning(reactor.stop)
    reactor.run()

    from twisted.internet.error import ReactorAlreadyInstalledError
    try:
        install()
    except ReactorAlreadyInstalledError as error:
        print(error)
"""


def test_install_makes_the_program_s_reactor() -> None:
    assert run_python(INSTALL).stdout == (
        "the program has a QuotaReactor already; call install before anything imports twisted.internet.reactor\n"
    )


def test_install_says_what_to_do_when_there_is_another_reactor() -> None:
    code = """
        from twisted.internet import reactor
        from twisted.internet.error import ReactorAlreadyInstalledError
        from eventengine.bridges.twisted.reactor import install
        try:
            install("1MiB")
        except ReactorAlreadyInstalledError as error:
            print(str(error).replace(type(reactor).__name__, "reactor"))
    """
    assert run_python(code).stdout == (
        "the program has a reactor already; call install before anything imports twisted.internet.reactor\n"
    )


def test_a_variable_that_is_not_known_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTENGINE_MEMROY", "64MiB")
    code = """
        import sys
        from twisted.logger import globalLogBeginner, textFileLogObserver
        from eventengine.bridges.twisted.reactor import install
        install()
        globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stdout)], redirectStandardIO=False)
    """
    [line] = run_python(code).stdout.splitlines()
    assert "EVENTENGINE_MEMROY is set, and no such variable is known: EVENTENGINE_MEMORY and EV" in line


@pytest.mark.parametrize(
    ("memory", "connections", "size"),
    [("64MiB", "10", (64 * MIB, 10)), ("", "", (None, None)), (" ", " 7 ", (None, 7))],
)
def test_install_takes_its_quota_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, memory: str, connections: str, size: tuple[int | None, int | None]
) -> None:
    monkeypatch.setenv("EVENTENGINE_MEMORY", memory)
    monkeypatch.setenv("EVENTENGINE_CONNECTIONS", connections)
    code = """
        from eventengine.bridges.twisted.reactor import install
        quota = install().quota
        print((quota.memory.size, quota.connections.size))
    """
    assert run_python(code).stdout == f"{size}\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("EVENTENGINE_MEMORY", "abc"),
        ("EVENTENGINE_MEMORY", "0"),
        ("EVENTENGINE_MEMORY", "10"),
        ("EVENTENGINE_MEMORY", "127KiB"),
        ("EVENTENGINE_CONNECTIONS", "1.5"),
        ("EVENTENGINE_CONNECTIONS", "0"),
        ("EVENTENGINE_CONNECTIONS", "-1"),
    ],
)
def test_install_says_which_variable_it_does_not_understand(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    monkeypatch.setenv(name, text)
    code = """
        from eventengine.bridges.twisted.reactor import install
        try:
            install()
        except ValueError as error:
            print(error)
    """
    assert name in run_python(code).stdout
