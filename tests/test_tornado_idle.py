"""What connections of a Tornado site cost, and which are closed when its quota is short."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket

import pytest

pytest.importorskip("tornado", reason="Tornado is not installed")

from tornado.ioloop import IOLoop
from tornado.iostream import IOStream, StreamClosedError
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from eventengine import ResourceQuota, admission
from eventengine.bridges.tornado import QuotaHTTPServer, QuotaTCPServer, bound
from tornado_certificate import contexts
from tornado_serving import run, until


class Here(RequestHandler):
    def get(self) -> None:
        self.write("here")


class Body(RequestHandler):
    def get(self) -> None:
        self.write(bytes(20 << 20))


class Drops(QuotaTCPServer):
    def handle_stream(self, stream: IOStream, address: object) -> None:
        """Nobody keeps the stream, and so its socket is closed."""


class Hurries(QuotaTCPServer):
    async def handle_stream(self, stream: IOStream, address: object) -> None:
        await stream.write(b"busy")


class Length(RequestHandler):
    def put(self) -> None:
        self.write(str(len(self.request.body)))


async def _put(port: int, head: bytes, pieces: list[bytes]) -> bytes:
    """The status line of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"PUT /length?secret HTTP/1.1\r\nHost: site\r\n" + head + b"\r\n\r\n")
    for piece in pieces:
        writer.write(piece)
    try:
        return (await reader.readline()).strip()
    finally:
        writer.close()


def test_a_body_for_which_there_is_no_room_beside_its_own_connection_is_refused_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        most = 960 * 1024 - bound.COST
        server = QuotaHTTPServer(Application([("/length", Length)]), quota=quota)
        [sock] = bind_sockets(0, "127.0.0.1")
        server.add_sockets([sock])
        port = sock.getsockname()[1]
        too_large = b"HTTP/1.1 413 Content Too Large"
        assert await _put(port, b"Content-Length: %d" % (most + 1), []) == too_large
        assert await _put(port, b"Content-Length: %d" % most, [bytes(most)]) == b"HTTP/1.1 200 OK"
        form = b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: %d" % (most // 2 + 1)
        assert await _put(port, form, []) == too_large
        chunks = [b"10000\r\n" + bytes(1 << 16) + b"\r\n"] * 15
        assert await _put(port, b"Transfer-Encoding: chunked", chunks) == too_large
        server.stop()
        await server.close_all_connections()

    caplog.set_level("INFO", logger="tornado.general")
    run(case)
    refused = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert len(refused) == 3
    assert all(
        text.startswith("PUT /length from 127.0.0.1 was refused with 413: its body takes") for text in refused
    )
    assert ["twice as that of a form" in text for text in refused] == [False, True, False]
    assert all(text.endswith(" than one may have, 952 KiB") for text in refused)


@pytest.mark.parametrize("waits", [False, True], ids=["over", "somebody waits"])
def test_idle_connections_are_charged_and_closed_when_the_quota_is_short_and_busy_ones_are_not(
    waits: bool,
) -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        going_on = asyncio.Event()

        class Slow(RequestHandler):
            async def get(self) -> None:
                await going_on.wait()
                self.write("done")

        server = QuotaHTTPServer(Application([("/", Here), ("/slow", Slow)]), quota=quota)
        [sock] = bind_sockets(0, "127.0.0.1")
        server.add_sockets([sock])
        streams = [await asyncio.open_connection("127.0.0.1", sock.getsockname()[1]) for _ in range(20)]
        for number, (_, writer) in enumerate(streams):
            path = "/slow" if number < 5 else "/"
            writer.write(f"GET {path} HTTP/1.1\r\nHost: site\r\n\r\n".encode())
        for reader, _ in streams[5:]:
            await reader.readuntil(b"\r\n\r\n")
        await until(lambda: quota.memory.used == 20 * 8192)
        for number, stream in enumerate(bound.Bound.of(quota, asyncio.get_running_loop()).idle.values()):
            stream.idle_since = number  # they have been idle for long
        if waits:
            quota.memory.add_waiter(lambda: None)
        else:
            taken = quota.memory.take((1 << 20) - 12 * 8192, (1 << 20) - 12 * 8192)
        await until(lambda: quota.memory.used <= (1 << 20) and len(server._connections) < 20)
        for reader, _ in streams[5:9]:
            await reader.read()  # the end
        going_on.set()
        for reader, _ in streams[:5]:
            assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
        if not waits:
            quota.memory.give(taken)
        for _, writer in streams:
            writer.close()
        server.stop()
        await server.close_all_connections()
        await until(lambda: quota.memory.used == 0)
        assert not quota.memory.reclaimers

    run(case)


def test_a_server_whose_quota_is_full_leaves_connections_in_the_backlog_until_there_is_room() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        server = QuotaHTTPServer(Application([("/", Here)]), quota=quota)
        [sock] = bind_sockets(0, "127.0.0.1")
        server.add_sockets([sock])
        held = quota.memory.take(1 << 20, 1 << 20)
        reader, writer = await asyncio.open_connection("127.0.0.1", sock.getsockname()[1])
        writer.write(b"GET / HTTP/1.1\r\nHost: site\r\n\r\n")
        await until(lambda: quota.memory.somebody_waits)
        assert not server._connections
        quota.memory.give(held)
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
        writer.close()
        server.stop()
        await server.close_all_connections()

    run(case)


@pytest.mark.parametrize(("size", "handshake"), [(64 << 20, bound.HANDSHAKE), (128 << 10, 8 << 10)])
def test_a_handshake_is_charged_what_it_may_take_until_it_is_over(size: int, handshake: int) -> None:
    for_server, for_client = contexts()

    async def case() -> None:
        quota = ResourceQuota(memory=size)
        server = QuotaHTTPServer(Application([]), quota=quota, ssl_options=for_server)
        [sock] = bind_sockets(0, "127.0.0.1")
        server.add_sockets([sock])
        reader, writer = await asyncio.open_connection("127.0.0.1", sock.getsockname()[1])
        await until(lambda: quota.memory.used == bound.TLS_COST + handshake)
        quota.memory.resize("1MiB")  # what is given back is what was taken
        await writer.start_tls(for_client)
        await until(lambda: quota.memory.used == bound.TLS_COST)
        writer.close()
        await until(lambda: quota.memory.used == 0)
        assert await reader.read() == b""
        _, writer = await asyncio.open_connection("127.0.0.1", sock.getsockname()[1])
        await until(lambda: quota.connections.used == 1)
        writer.close()
        await until(lambda: quota.memory.used == 0)
        server.stop()

    run(case)


def test_a_connection_of_a_server_of_streams_costs_something_too_and_more_with_tls() -> None:
    for_server, for_client = contexts()

    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")

        class Server(QuotaTCPServer):
            async def handle_stream(self, stream: IOStream, address: object) -> None:
                await stream.read_until(b"\n")
                await stream.write(b".")
                secure = await stream.start_tls(True, for_server)
                with contextlib.suppress(StreamClosedError):
                    await secure.read_until(b"\n")

        server = Server(quota=quota)
        [sock] = bind_sockets(0, "127.0.0.1")
        server.add_sockets([sock])
        reader, writer = await asyncio.open_connection("127.0.0.1", sock.getsockname()[1])
        await until(lambda: quota.memory.used == bound.COST)
        writer.write(b"\n")
        assert await reader.readexactly(1) == b"."
        await writer.start_tls(for_client)
        await until(lambda: quota.memory.used == bound.TLS_COST)
        writer.close()
        await until(lambda: quota.memory.used == 0)
        assert await reader.read() == b""
        server.stop()

    run(case)


@pytest.mark.parametrize("begins", ["with TLS", "by start_tls"])
def test_who_never_begins_its_handshake_with_a_server_of_streams_makes_room_for_who_waits(
    begins: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for_server, for_client = contexts()

    class Server(QuotaTCPServer):
        async def handle_stream(self, stream: IOStream, address: object) -> None:
            with contextlib.suppress(StreamClosedError):
                if begins == "by start_tls":
                    stream = await stream.start_tls(True, for_server)
                while True:
                    await stream.write(await stream.read_until(b"\n"))

    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        server = Server(quota=quota, ssl_options=for_server if begins == "with TLS" else None)
        [sock] = bind_sockets(0, "127.0.0.1")
        server.add_sockets([sock])
        port = sock.getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=for_client)
        await until(lambda: quota.memory.used == bound.TLS_COST)
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
        await until(lambda: quota.memory.somebody_waits or quota.memory.is_over)
        monkeypatch.setattr(bound, "NEW", 0.0)
        other_reader, other_writer = await asyncio.open_connection("127.0.0.1", port, ssl=for_client)
        for each in (writer, other_writer):
            each.write(b"here\n")
        for each in (reader, other_reader):
            assert await each.readline() == b"here\n"
        assert await silent[0][0].read() == b""
        for _, each in [*silent, (reader, writer), (other_reader, other_writer)]:
            each.close()
        await until(lambda: quota.memory.used == 0)
        server.stop()

    run(case)


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # as of a stock server
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("kind", "said"), [(Drops, b""), (Hurries, b"busy")])
def test_a_stream_that_is_dropped_gives_back_what_it_is_charged(kind: type[QuotaTCPServer], said: bytes) -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        server = kind(quota=quota)
        [sock] = bind_sockets(0, "127.0.0.1")
        server.add_sockets([sock])
        reader, writer = await asyncio.open_connection("127.0.0.1", sock.getsockname()[1])
        assert await reader.read() == said
        await until(lambda: not quota.connections.used)
        assert (quota.memory.used, quota.memory.peak) == (0, bound.COST)
        writer.close()
        server.stop()

    run(case)


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_loop_that_ended_with_connections_open_leaves_nothing_charged() -> None:
    quota = ResourceQuota(memory="64MiB")
    clients: list[socket.socket] = []

    async def case() -> None:
        server = QuotaHTTPServer(Application([("/", Body)]), quota=quota)
        [sock] = bind_sockets(0, "127.0.0.1")
        server.add_sockets([sock])
        for _ in range(2):
            clients.append(socket.create_connection(sock.getsockname()))
            clients[-1].sendall(b"GET / HTTP/1.1\r\nHost: site\r\nx: " + b"x" * 5000 + b"\r\n\r\n")
        await until(lambda: quota.memory.used > 30 << 20)
        server.stop()

    async def another() -> None:
        IOLoop.current()  # as it makes one, Tornado forgets those that were closed

    run(case)
    run(another)
    gc.collect()
    assert (quota.memory.used, quota.connections.used) == (0, 0)
    for client in clients:
        client.close()


@pytest.mark.parametrize("sent", [b"", b"800\r\n" + bytes(2048)])
def test_bodies_that_wait_give_way_when_no_connection_more_may_open(
    sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "PATIENCE", 0.05)
    monkeypatch.setattr(admission, "_LOOKS", 0.01)

    async def case() -> None:
        quota = ResourceQuota(memory="128KiB")
        server = QuotaHTTPServer(Application([("/", Here)]), quota=quota)
        [sock] = bind_sockets(0, "127.0.0.1")
        server.add_sockets([sock])
        address = sock.getsockname()
        clients = [await asyncio.open_connection(*address) for _ in range(14)]  # seven eighths of the quota
        await until(lambda: quota.connections.used == 14)
        held = quota.memory.take(10 << 10, 10 << 10)
        length = b"Transfer-Encoding: chunked" if sent else b"Content-Length: 5000"
        for _, writer in clients:
            writer.write(b"PUT / HTTP/1.1\r\nHost: site\r\n" + length + b"\r\n\r\n" + sent)
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET / HTTP/1.1\r\nHost: site\r\n\r\n")
        assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        assert await clients[0][0].readline() == b"HTTP/1.1 503 Service Unavailable\r\n"
        quota.memory.give(held)
        for _, each in [*clients, (reader, writer)]:
            each.close()
        server.stop()
        await server.close_all_connections()

    run(case)
