"""Tornado's servers where a connection breaks, or is gone, between two steps of a request or of a read."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import gzip
import logging
import socket
import ssl
import struct
import termios
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import Any, cast

import pytest

pytest.importorskip("tornado", reason="needs the extra tornado")

from tornado.httpserver import HTTPServer
from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPMessageDelegate,
    HTTPServerConnectionDelegate,
    HTTPServerRequest,
    RequestStartLine,
    ResponseStartLine,
)
from tornado.ioloop import IOLoop
from tornado.iostream import IOStream, SSLIOStream, StreamBufferFullError, StreamClosedError
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler, stream_request_body

from eventengine import ResourceQuota
from eventengine.bridges.tornado import QuotaHTTPServer, endings, heads, refusing, streams
from eventengine.bridges.tornado.accepting import Gate, Place
from eventengine.bridges.tornado.bound import Bound
from eventengine.bridges.tornado.reads import Bounded, bounded, taken_over
from eventengine.bridges.tornado.streams import Counted, counted
from eventengine.bridges.tornado.websockets import Message
from eventengine.idle import Connections
from tornado_certificate import contexts
from tornado_serving import KIB, MIB, free_connections, impatient, run, serving_site, until

__all__ = ["free_connections", "impatient"]  # fixtures

pytestmark = pytest.mark.usefixtures("free_connections")

HEAD = b"PUT / HTTP/1.1\r\nHost: site\r\nConnection: close\r\n"


def connected(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setblocking(False)
    return sock


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


async def receive_all(sock: socket.socket) -> bytes:
    received = b""
    while piece := await asyncio.get_running_loop().sock_recv(sock, 1 << 16):
        received += piece
    return received


def readable(stream: Any) -> int:
    """The bytes that have come and were not read."""
    (size,) = struct.unpack("i", fcntl.ioctl(stream.fileno(), termios.FIONREAD, bytes(4)))
    return int(size)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    near.setblocking(False)
    return near, far


@asynccontextmanager
async def pair(
    quota: ResourceQuota, make: Callable[..., IOStream] = bounded, place: Place | None = None
) -> AsyncIterator[tuple[Any, socket.socket]]:
    """A server's stream, and its peer's socket; in the end nothing is charged."""
    near, far = tcp_pair()
    stream = make(IOStream(near), Bound.of(quota, asyncio.get_running_loop()), place)
    try:
        yield stream, far
    finally:
        far.close()
        if stream.socket is not None:
            stream.close()
    await until(lambda: (quota.memory.used, quota.memory.somebody_waits) == (0, False))


class Delegate(HTTPMessageDelegate):
    """An application's own, one for all requests; keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[object] = []
        self.connection: Any = None

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        return None

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        self.told.append(len(chunk))
        return None

    def finish(self) -> None:
        self.told.append("finish")
        self.connection.write_headers(
            ResponseStartLine("HTTP/1.1", 200, "OK"), HTTPHeaders({"Content-Length": "0", "Connection": "close"})
        )
        self.connection.finish()

    def on_connection_close(self) -> None:
        self.told.append("close")


class Site(HTTPServerConnectionDelegate):
    def __init__(self, delegate: Delegate) -> None:
        self.delegate = delegate

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        self.delegate.connection = request_conn
        return self.delegate


@asynccontextmanager
async def serving(
    quota: ResourceQuota, application: Any, **options: Any
) -> AsyncIterator[tuple[QuotaHTTPServer, int]]:
    server = QuotaHTTPServer(application, quota=quota, **options)
    [sock] = bind_sockets(0, "127.0.0.1")
    server.add_sockets([sock])
    try:
        yield server, sock.getsockname()[1]
    finally:
        server.stop()
        await server.close_all_connections()
    await until(lambda: (quota.memory.used, quota.memory.somebody_waits) == (0, False))


def test_a_delegate_that_closes_its_connection_with_the_headers_waits_for_no_room() -> None:
    class Closing(Delegate):
        def headers_received(self, *_: object) -> None:
            self.connection.stream.close()

    async def case() -> None:
        quota, delegate = ResourceQuota(memory="1MiB"), Closing()
        held = quota.memory.take(900 * KIB, 900 * KIB)
        async with serving(quota, Site(delegate)) as (server, port):
            with connected(port) as sock:
                sock.send(HEAD + b"Content-Length: 500000\r\n\r\n")
                assert await receive_all(sock) == b""
            await until(lambda: not server._connections)
            assert not quota.memory.somebody_waits
            assert delegate.told == ["close"]
            quota.memory.give(held)

    run(case)


def test_what_a_delegate_awaits_for_a_piece_is_awaited_when_the_piece_has_waited_for_room() -> None:
    gate = asyncio.Event()

    class Slow(Delegate):
        def data_received(self, chunk: bytes) -> Awaitable[None]:
            async def take() -> None:
                await gate.wait()
                self.told.append(len(chunk))

            return take()

    async def case() -> None:
        quota, delegate = ResourceQuota(memory="1MiB"), Slow()
        held = quota.memory.take(MIB - 60 * KIB, MIB - 60 * KIB)
        async with serving(quota, Site(delegate)) as (_, port):
            with connected(port) as sock:
                sock.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n64\r\n" + bytes(100) + b"\r\n0\r\n\r\n")
                await until(lambda: quota.memory.somebody_waits)
                quota.memory.give(held)
                await until(lambda: not quota.memory.somebody_waits)
                assert delegate.told == []
                gate.set()
                assert (await receive_all(sock)).startswith(b"HTTP/1.1 200 ")
        assert delegate.told == [100, "finish"]

    run(case)


def test_a_chunked_body_has_no_limit_where_the_quota_has_none() -> None:
    async def case() -> None:
        quota, delegate = ResourceQuota(), Delegate()
        async with serving(quota, Site(delegate)) as (_, port):
            with connected(port) as sock:
                sock.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
                assert (await receive_all(sock)).startswith(b"HTTP/1.1 200 ")
        assert delegate.told == [3, "finish"]

    run(case)


def test_a_body_whose_length_tornado_alone_understands_asks_for_room_as_it_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(heads, "_length_of", lambda _: 0)  # as older ones do `+300000`
    charged: list[int] = []

    class Charged(Delegate):
        def data_received(self, chunk: bytes) -> None:
            charged.append(quota.memory.used)
            super().data_received(chunk)

    quota, delegate = ResourceQuota(memory="1MiB"), Charged()

    async def case() -> None:
        async with serving(quota, Site(delegate)) as (_, port):
            with connected(port) as sock:
                body = bytes(300000)
                sock.setblocking(True)
                sending = asyncio.get_running_loop().run_in_executor(
                    None, sock.sendall, HEAD + b"Content-Length: 300000\r\n\r\n" + body
                )
                await sending
                sock.setblocking(False)
                assert (await receive_all(sock)).startswith(b"HTTP/1.1 200 ")
        assert charged[-1] >= 300000
        assert delegate.told[-1] == "finish"

    run(case)


def test_a_streaming_handler_that_closes_while_it_prepares_asks_for_no_room() -> None:
    received: list[bytes] = []

    @stream_request_body
    class Closing(RequestHandler):
        async def prepare(self) -> None:
            await asyncio.sleep(0)
            cast("Any", self.request.connection).stream.close()

        def data_received(self, chunk: bytes) -> None:
            received.append(chunk)

    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        held = quota.memory.take(MIB - 60 * KIB, MIB - 60 * KIB)
        async with serving(quota, Application([("/", Closing)])) as (server, port):
            with connected(port) as sock:
                sock.send(HEAD + b"Content-Length: 500000\r\n\r\n")
                assert await receive_all(sock) == b""
            await until(lambda: not server._connections)
            assert not quota.memory.somebody_waits
            quota.memory.give(held)
        assert received == []

    run(case)


def test_a_streaming_handler_that_closes_gets_nothing_more_of_what_a_packed_piece_becomes() -> None:
    told: list[object] = []

    @stream_request_body
    class Closing(RequestHandler):
        def data_received(self, chunk: bytes) -> None:
            told.append(len(chunk))
            cast("Any", self.request.connection).stream.close()

        def on_connection_close(self) -> None:
            super().on_connection_close()
            told.append("close")

        def put(self) -> None:
            told.append("put")

    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        async with serving_site(quota, [("/", Closing)], decompress_request=True) as port:
            packed = gzip.compress(bytes(300 * KIB))
            with connected(port) as sock:
                sock.send(HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed) + packed)
                assert await receive_all(sock) == b""
            await until(lambda: "close" in told)
        assert told == [64 * KIB, "close"]

    run(case)


def test_a_streaming_handler_that_detaches_with_the_last_piece_has_all_and_gives_its_room_back() -> None:
    @stream_request_body
    class Detaching(RequestHandler):
        def data_received(self, chunk: bytes) -> None:
            assert chunk == b"abc"
            self.taken = self.detach()

        def put(self) -> None:
            self.taken.write(b"taken over")
            self.taken.close()

    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        async with serving_site(quota, [("/", Detaching)]) as port:
            with connected(port) as sock:
                sock.send(HEAD + b"Content-Length: 3\r\n\r\nabc")
                assert await receive_all(sock) == b"taken over"
            await until(lambda: not quota.memory.used)

    run(case)


@pytest.mark.parametrize(("trusted", "address"), [(["10.0.0.1"], "192.0.2.7"), (None, "10.0.0.1")])
def test_who_stands_before_the_site_is_trusted_as_the_server_was_told(
    trusted: list[str] | None, address: str
) -> None:
    async def case() -> None:
        seen: list[str | None] = []

        def answer(request: HTTPServerRequest) -> None:
            seen.append(request.remote_ip)
            cast("Any", request.connection).stream.close()

        quota = ResourceQuota(memory="1MiB")
        async with serving(quota, answer, xheaders=True, trusted_downstream=trusted) as (_, port):
            with connected(port) as sock:
                sock.send(b"GET / HTTP/1.1\r\nHost: site\r\nX-Forwarded-For: 192.0.2.7, 10.0.0.1\r\n\r\n")
                assert await receive_all(sock) == b""
        assert seen == [address]

    run(case)


@asynccontextmanager
async def waiting_body(quota: ResourceQuota) -> AsyncIterator[tuple[socket.socket, Any]]:
    """A client whose body waits for room, and its upload."""
    held = quota.memory.take(900 * KIB, 900 * KIB)
    async with serving(quota, Site(Delegate())) as (server, port):
        sock = connected(port)
        try:
            sock.send(HEAD + b"Content-Length: 500000\r\n\r\n")
            await until(lambda: quota.memory.somebody_waits)
            [(upload, _)] = server._uploads.values()
            yield sock, upload
        finally:
            sock.close()
            quota.memory.give(held)


@pytest.mark.usefixtures("impatient")
def test_a_body_that_waits_when_the_quota_is_made_too_small_for_it_is_refused_as_too_large() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        async with waiting_body(quota) as (sock, _):
            quota.memory.resize(300 * KIB)
            assert (await receive_all(sock)).startswith(b"HTTP/1.1 413 ")

    run(case)


def test_a_body_that_was_refused_is_not_refused_again() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        async with waiting_body(quota) as (sock, upload):
            refuse = upload._on_cut
            refuse()
            refuse()
            answer = await receive_all(sock)
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert answer.count(b"HTTP/1.1") == 1

    run(case)


def test_a_refusal_of_who_has_just_left_closes_the_connection_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        async with waiting_body(quota) as (sock, upload):
            reset(sock)
            upload.cut()
            await until(lambda: not quota.memory.somebody_waits)

    run(case)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_who_does_not_take_a_refusal_is_closed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusing, "_LINGER", 0.01)

    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        async with waiting_body(quota) as (sock, upload):
            monkeypatch.setattr(IOStream, "write_to_fd", lambda *_: 0)  # its window is full
            upload.cut()
            assert await receive_all(sock) == b""

    run(case)


def test_a_websocket_that_was_closed_before_it_answers_is_charged_nothing_for_compression() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        async with pair(quota) as (stream, _):
            stream.message = Message("a peer")
            stream.close()
            with pytest.raises(StreamClosedError):
                stream.write(b"Sec-WebSocket-Extensions: permessage-deflate")
            assert (stream.bound.connections.charged, quota.memory.used) == (0, 0)

    run(case)


def test_an_event_that_comes_when_its_stream_was_closed_is_nobody_s() -> None:
    async def case() -> None:
        async with pair(ResourceQuota(memory="1MiB")) as (stream, far):
            future, watch, number = stream.read_bytes(3), stream._watch, stream.fileno()
            stream.close()
            far.send(b"abc")
            watch.mask()
            watch.go_on()
            watch._on_events(number, IOLoop.READ)
            with pytest.raises(StreamClosedError):
                await future
            assert not stream.reading()

    run(case)


def test_who_is_asked_to_make_room_when_its_stream_is_gone_does_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        near, far = tcp_pair()
        bound = Bound.of(quota, asyncio.get_running_loop())
        stream = cast("Bounded", bounded(IOStream(near), bound))
        buffer, unsent = cast("Any", stream._buffer), streams._Unsent(stream)
        del stream
        gc.collect()
        unsent.send()
        unsent.cut()
        buffer.cut()
        assert buffer.is_complete
        assert quota.memory.used == 0
        assert "cut" not in caplog.text
        near.close()
        far.close()

    run(case)


def test_a_read_that_begins_while_what_is_left_of_another_waits_for_room_gets_all() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="352KiB")
        async with pair(quota) as (stream, far):
            held = quota.memory.take(272 * KIB, 272 * KIB)  # not so much that little is read at a time
            assert far.send(b"a\n" + bytes(62 * KIB)) == 62 * KIB + 2
            await until(lambda: readable(stream) == 62 * KIB + 2)
            assert await stream.read_until(b"\n") == b"a\n"
            assert stream.waits
            second = stream.read_until(b"\n")
            far.send(b"b\n")
            await asyncio.sleep(0)
            assert not second.done()
            quota.memory.give(held)
            assert await second == bytes(62 * KIB) + b"b\n"

    run(case)


def test_what_was_read_ahead_waits_for_room_though_no_event_tells_of_it() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        async with pair(quota) as (stream, far):
            stream.ahead = b"abc"
            held = quota.memory.take(MIB, MIB)
            future = asyncio.ensure_future(stream.read_bytes(6))
            await until(lambda: quota.memory.somebody_waits)
            far.send(b"def")
            quota.memory.give(held)
            assert await future == b"abcdef"

    run(case)


def test_a_stream_that_costs_nothing_costs_nothing_after_start_tls_and_trusts_whom_the_system_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server_side, mine = contexts()
    asked: list[object] = []

    def default_context(purpose: object) -> ssl.SSLContext:
        asked.append(purpose)
        return mine

    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        near, far = tcp_pair()
        far.setblocking(False)
        bound = Bound.of(quota, asyncio.get_running_loop())
        stream = cast("Bounded", taken_over(IOStream(near), bound))  # as a client's
        server = SSLIOStream(server_side.wrap_socket(far, server_side=True, do_handshake_on_connect=False))
        monkeypatch.setattr(ssl, "create_default_context", default_context)  # after Tornado has made its own
        done = asyncio.ensure_future(server.wait_for_handshake())
        secure = cast("Any", await stream.start_tls(False, None, "localhost"))
        await done
        assert asked == [ssl.Purpose.SERVER_AUTH]
        assert secure.cost is None
        assert (quota.connections.used, quota.memory.used) == (0, 0)
        secure.close()
        server.close()

    run(case)


@pytest.mark.parametrize("make", [counted, bounded])
def test_a_stream_that_was_closed_before_it_is_bounded_gives_its_place_back(make: Callable[..., IOStream]) -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB", connections=1)
        near, far = tcp_pair()
        assert quota.connections.try_take(lambda: True)
        stream = IOStream(near)
        stream.close()
        bound = Bound.of(quota, asyncio.get_running_loop())
        assert make(stream, bound, Place(quota.connections)) is stream
        assert (quota.connections.used, quota.memory.used) == (0, 0)
        assert make(stream, bound) is stream
        far.close()

    run(case)


def test_a_stream_that_is_found_closed_when_it_is_taken_over_stays_what_it_is() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        near, far = tcp_pair()
        reset(far)
        stream = IOStream(near)
        bound = Bound.of(quota, asyncio.get_running_loop())
        assert taken_over(stream, bound) is stream
        assert stream.closed()
        assert quota.memory.used == 0

    run(case)


def test_a_write_that_is_refused_beside_others_leaves_their_charge() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="16MiB")
        async with pair(quota, counted) as (stream, far):
            future = stream.write(bytes(8 * MIB))
            charged = quota.memory.used
            assert charged >= 8 * MIB
            stream.max_write_buffer_size = 8 * MIB
            with pytest.raises(StreamBufferFullError):
                stream.write(bytes(8 * MIB))
            assert quota.memory.used == charged
            future.add_done_callback(lambda done: done.exception())
            far.close()
            await until(stream.closed)

    run(case)


def test_a_write_at_once_to_who_has_just_reset_says_so_and_is_charged_nothing() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        async with pair(quota, counted) as (stream, far):
            reset(far)
            with suppress(StreamClosedError):
                await stream.write(b"abc")
            await until(stream.closed)
            assert quota.memory.used == 0
            assert isinstance(stream.error, ConnectionError)

    run(case)


def test_a_request_that_is_gone_when_it_would_finish_gives_back_what_it_holds() -> None:
    class Connection:
        def finish(self) -> None:
            raise AssertionError("it is gone")

    called: list[int] = []
    request = Connection()
    endings.call_when_finished(lambda: called.append(1), cast("Any", request))
    finish = request.finish
    del request
    gc.collect()
    finish()
    assert called == [1]


@pytest.mark.parametrize("body", [b"", b"abc"], ids=["without a body", "with a body"])
def test_a_delegate_that_cannot_finish_is_told_what_tornado_tells_it(
    body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    class Fails(Delegate):
        def finish(self) -> None:
            self.told.append("finish")
            raise ValueError("as it should")

    async def ask(server: HTTPServer) -> None:
        [sock] = bind_sockets(0, "127.0.0.1")
        server.add_sockets([sock])
        with connected(sock.getsockname()[1]) as client:
            client.send(HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
            assert await receive_all(client) == b""
        server.stop()

    async def case() -> None:
        delegate, stock = Fails(), Fails()
        await ask(HTTPServer(Site(stock)))
        await ask(QuotaHTTPServer(Site(delegate), quota="1MiB"))
        assert delegate.told == stock.told
        assert "finish" in stock.told

    run(case)


def test_a_head_whose_stream_was_closed_is_charged_no_more() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        async with pair(quota, counted) as (stream, _):
            assert stream.hold_head(64 * KIB)
            assert quota.memory.used == 64 * KIB
            stream.close()
            assert quota.memory.used == 0
            assert stream.hold_head(64 * KIB)
            assert (stream.head, quota.memory.used) == (0, 0)

    run(case)


def test_a_head_for_which_there_is_no_room_as_it_comes_closes_its_connection() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        async with pair(quota, counted) as (stream, far):
            held = quota.memory.take(MIB, MIB)
            future = stream.read_until(b"\r\n\r\n")
            far.send(bytes(20 * KIB))
            with pytest.raises(StreamClosedError):
                await future
            assert quota.memory.used == MIB
            quota.memory.give(held)

    run(case)


def test_a_request_whose_connection_was_closed_to_make_room_is_not_held_for() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        async with pair(quota, counted) as (stream, _):
            stream.close(exc_info=StreamBufferFullError("it made room for others"))
            assert not cast("Counted", stream).hold_for(cast("Any", None), 10)

    run(case)


def test_a_server_that_finds_room_at_its_second_look_accepts_on(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([False, True])
    monkeypatch.setattr(Connections, "may_open", lambda *_: next(looks, True))

    async def case() -> None:
        quota, delegate = ResourceQuota(memory="1MiB"), Delegate()
        async with serving(quota, Site(delegate)) as (_, port):
            with connected(port) as sock:
                sock.send(HEAD + b"Content-Length: 3\r\n\r\nabc")
                assert (await receive_all(sock)).startswith(b"HTTP/1.1 200 ")
        assert next(looks, None) is None
        assert delegate.told == [3, "finish"]

    run(case)


def test_sockets_with_room_for_no_connection_do_not_wake_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = list[int]()

    def may_open(_: Connections, cost: int) -> bool:
        looks.append(cost)
        return False

    monkeypatch.setattr(Connections, "may_open", may_open)

    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        server = QuotaHTTPServer(Site(Delegate()), quota=quota)
        sockets = [bind_sockets(0, "127.0.0.1")[0] for _ in range(3)]
        server.add_sockets(sockets)
        with ExitStack() as stack:
            for sock in sockets:
                stack.enter_context(connected(sock.getsockname()[1]))
            await until(lambda: len(looks) >= 6)  # two of each
            quota.memory.give(quota.memory.take(1, 1))
            await until(lambda: len(looks) >= 12)
            for _ in range(10):
                await asyncio.sleep(0)
            assert len(looks) == 12
            server.stop()

    run(case)


@pytest.mark.parametrize("is_open", [False, True])
def test_a_place_that_comes_when_a_server_has_stopped_or_its_loop_was_closed_goes_to_the_next(
    is_open: bool,
) -> None:
    woken: list[int] = []
    quota = ResourceQuota(memory="1MiB", connections=1)
    [sock] = bind_sockets(0, "127.0.0.1")
    gate = Gate(sock, QuotaHTTPServer(Site(Delegate()), quota=quota))

    async def case() -> None:
        gate._loop = asyncio.get_running_loop()

    run(case)
    assert gate._loop is not None
    assert gate._loop.is_closed()
    if not is_open:
        gate.close()
    assert quota.connections.try_take(lambda: True)
    assert not quota.connections.try_take(lambda: woken.append(1))
    gate._on_room()
    gate._on_place()
    assert woken == [1]
    gate.close()
