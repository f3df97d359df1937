"""`QuotaTCPServer`, `QuotaTCPClient` and the limit of connections, with real sockets."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import pytest

pytest.importorskip("tornado", reason="needs the extra tornado")

from tornado.iostream import IOStream, SSLIOStream, StreamBufferFullError, StreamClosedError
from tornado.netutil import bind_sockets
from tornado.tcpserver import TCPServer
from tornado.web import Application, RequestHandler

from eventengine import ResourceQuota, unsent
from eventengine.bridges.tornado import QuotaHTTPServer, QuotaTCPClient, QuotaTCPServer, reads, streams
from eventengine.bridges.tornado.bound import Bound
from eventengine.bridges.tornado.reads import Bounded
from tornado_certificate import contexts
from tornado_serving import KIB, MIB, impatient, run, until

__all__ = ["impatient"]  # a fixture

BODY = bytes(range(256)) * (4 * KIB)
CHUNK = 64 * KIB  # what a stream reads at a time

Handle = Callable[[Any], Awaitable[None]]


class Server(QuotaTCPServer):
    """Has `handle` take each stream, and closes it then."""

    def __init__(self, handle: Handle, **options: Any) -> None:
        super().__init__(**options)
        self.handle = handle
        self.streams: list[Any] = []

    async def handle_stream(self, stream: IOStream, address: object) -> None:
        self.streams.append(stream)
        try:
            await self.handle(stream)
        except StreamClosedError:
            pass
        finally:
            close(stream)


def close(stream: IOStream) -> None:
    if stream.socket is not None:  # else it has become another
        stream.close()


@asynccontextmanager
async def serving(handle: Handle, quota: ResourceQuota, **options: Any) -> AsyncIterator[tuple[int, Server]]:
    """Gives the port; in the end all is closed, and nothing is charged any more."""
    server = Server(handle, quota=quota, **options)
    [sock] = bind_sockets(0, "127.0.0.1")
    server.add_sockets([sock])
    try:
        yield sock.getsockname()[1], server
    finally:
        server.stop()
        for stream in server.streams:
            close(stream)
    await until(lambda: not quota.memory.used)
    assert not quota.memory.somebody_waits
    assert not quota.connections.used
    assert not quota.connections._waiters


@asynccontextmanager
async def client(
    port: int, context: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()  # it may have something unsent
        with suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()


async def turns(count: int = 100) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def free_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests here count the bytes of buffers; tests/test_tornado_idle.py has what connections cost."""
    monkeypatch.setattr(streams, "COST", 0)
    monkeypatch.setattr(unsent, "COST", 0)
    monkeypatch.setattr(streams, "TLS_COST", 0)
    monkeypatch.setattr(reads, "TLS_COST", 0)


@pytest.fixture(params=["plain", "tls"])
def tls(request: pytest.FixtureRequest) -> tuple[dict[str, Any], ssl.SSLContext | None]:
    """A server's options, and its clients' context."""
    if request.param == "plain":
        return {}, None
    server, mine = contexts()
    return {"ssl_options": server}, mine


Tls = tuple[dict[str, Any], ssl.SSLContext | None]


async def echo(stream: IOStream) -> None:
    while True:
        await stream.write(await stream.read_bytes(CHUNK, partial=True))


def silent_client(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * KIB)
    sock.connect(("127.0.0.1", port))
    sock.sendall(b"give\n")
    return sock


def test_the_streams_are_of_tornado_s_kinds(tls: Tls) -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        async with serving(echo, quota, **tls[0]) as (port, server), client(port, tls[1]) as (reader, writer):
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            [stream] = server.streams
            assert isinstance(stream, SSLIOStream if tls[1] else IOStream)
            assert isinstance(stream, Bounded)

    run(case)


def test_every_byte_comes_back_under_a_quota_that_is_smaller(tls: Tls) -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="128KiB")
        async with serving(echo, quota, **tls[0]) as (port, _), AsyncExitStack() as stack:

            async def exchange() -> None:
                reader, writer = await stack.enter_async_context(client(port, tls[1]))
                writer.write(BODY)
                assert await reader.readexactly(len(BODY)) == BODY

            await asyncio.gather(*(exchange() for _ in range(3)))

    run(case)


def test_who_does_not_read_is_cut_and_who_reads_gets_every_byte(caplog: pytest.LogCaptureFixture) -> None:
    piece = 256 * KIB

    async def give(stream: IOStream) -> None:
        waits = await stream.read_until(b"\n") == b"please\n"
        for start in range(0, len(BODY) if waits else 8 * MIB, piece):
            written = stream.write(BODY[start : start + piece] if waits else BODY[:piece])
            await (written if waits else asyncio.sleep(0))

    async def case() -> None:
        quota = ResourceQuota("tcp", memory="1MiB")
        async with serving(give, quota) as (port, server):
            silent = [silent_client(port) for _ in range(20)]
            await until(lambda: len(server.streams) == 20)
            for _ in range(3):
                async with client(port) as (reader, writer):
                    writer.write(b"please\n")
                    assert await reader.readexactly(len(BODY)) == BODY
            assert quota.memory.peak <= MIB + piece
            for each in silent:
                each.close()

    run(case)
    assert "read everything" in caplog.text


def test_reads_wait_while_the_quota_is_full_and_the_loop_does_not_spin(
    tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    read_from_fd = Bounded.read_from_fd

    def counting(self: Any, buf: Any) -> int | None:
        nonlocal calls
        calls += 1
        return read_from_fd(self, buf)

    monkeypatch.setattr(Bounded, "read_from_fd", counting)

    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        async with serving(echo, quota, **tls[0]) as (port, server), client(port, tls[1]) as (reader, writer):
            writer.write(b"x")
            await reader.readexactly(1)
            held = quota.memory.take(MIB, MIB)
            writer.write(BODY)
            await until(lambda: quota.memory.somebody_waits)
            [stream] = server.streams
            before = calls
            await turns()
            assert calls == before
            assert stream.waits
            quota.memory.give(held)
            assert await reader.readexactly(len(BODY)) == BODY

    run(case)


def test_a_read_of_a_length_asks_for_room_when_it_begins_to_come() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")

        async def read(stream: IOStream) -> None:
            await stream.write(await stream.read_bytes(600 * KIB))

        async with serving(read, quota) as (port, server), client(port) as (reader, writer):
            await until(lambda: bool(server.streams))
            await turns()
            assert quota.memory.used == 0
            writer.write(BODY[:1000])
            await until(lambda: quota.memory.used == 600 * KIB)
            writer.write(BODY[1000 : 600 * KIB])
            assert await reader.readexactly(600 * KIB) == BODY[: 600 * KIB]
            assert await reader.read() == b""

    run(case)


def test_reads_of_a_length_are_served_in_turn_and_none_is_cut(tls: Tls) -> None:
    size = 200 * KIB

    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")

        async def read(stream: IOStream) -> None:
            await stream.write(await stream.read_bytes(size))

        async with serving(read, quota, **tls[0]) as (port, _), AsyncExitStack() as stack:
            both = [await stack.enter_async_context(client(port, tls[1])) for _ in range(20)]
            for part in range(0, size, 50 * KIB):  # all are half there at the same time
                for _, writer in both:
                    writer.write(BODY[part : part + 50 * KIB])
                await turns(10)
            for reader, _ in both:
                assert await reader.readexactly(size) == BODY[:size]
            assert quota.memory.peak <= MIB + size  # and what an answer was charged

    run(case)


def test_what_a_read_until_collects_is_charged_until_it_is_handed_over() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        lines: list[int] = []

        async def read(stream: IOStream) -> None:
            while True:
                lines.append(len(await stream.read_until(b"\n")))
                await stream.write(b".")

        async with serving(read, quota) as (port, _), client(port) as (reader, writer):
            writer.write(b"x" * 500000)
            await until(lambda: quota.memory.used == 500000)
            writer.write(b"\nxx")
            await reader.readexactly(1)
            await until(lambda: quota.memory.used == 2)
            writer.write(b"\n")
            await reader.readexactly(1)
            await until(lambda: quota.memory.used == 0)
            assert lines == [500001, 3]

    run(case)


@pytest.mark.parametrize("read", ["read_until", "read_until_close", "read_bytes"])
def test_a_read_that_takes_more_than_the_quota_is_closed(read: str, caplog: pytest.LogCaptureFixture) -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="256KiB")

        async def handle(stream: IOStream) -> None:
            arguments = {"read_until": [b"\n"], "read_until_close": [], "read_bytes": [257 * KIB]}[read]
            with suppress(StreamBufferFullError):
                await getattr(stream, read)(*arguments)

        async with serving(handle, quota) as (port, server), client(port) as (reader, writer):
            writer.write(b"x" * MIB)
            with suppress(ConnectionError):
                assert await reader.read() == b""
            assert isinstance(server.streams[0].error, StreamBufferFullError)
        assert quota.memory.peak <= 256 * KIB

    run(case)


@pytest.mark.usefixtures("impatient")
def test_a_read_that_stalls_while_others_wait_is_closed() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")

        async def read(stream: IOStream) -> None:
            await stream.write(await stream.read_bytes(600 * KIB))

        async with serving(read, quota) as (port, _), client(port) as stalled, client(port) as other:
            stalled[1].write(BODY[: 300 * KIB])
            await until(lambda: quota.memory.used == 600 * KIB)
            other[1].write(BODY[: 600 * KIB])
            assert await other[0].readexactly(600 * KIB) == BODY[: 600 * KIB]
            assert await stalled[0].read() == b""

    run(case)


@pytest.mark.usefixtures("impatient")
def test_reads_that_wait_for_one_another_are_not_stuck(tls: Tls) -> None:
    size = 120 * KIB

    async def case() -> None:
        quota = ResourceQuota(memory="256KiB")

        async def read(stream: IOStream) -> None:
            await stream.write(b"%d" % len(await stream.read_until(b"\n")))

        async with serving(read, quota, **tls[0]) as (port, _), AsyncExitStack() as stack:
            both = [await stack.enter_async_context(client(port, tls[1])) for _ in range(4)]
            for _, writer in both:
                writer.write(b"x" * (60 * KIB))
            await until(lambda: quota.memory.used >= 200 * KIB)
            for _, writer in both:
                writer.write(b"x" * (60 * KIB - 1) + b"\n")

            async def answer(reader: asyncio.StreamReader) -> bytes:
                try:
                    return await reader.read()
                except ConnectionError:
                    return b""

            answers = await asyncio.gather(*(answer(reader) for reader, _ in both))
            assert set(answers) == {b"%d" % size, b""}

    run(case)


def test_what_read_into_reads_is_not_charged_and_waits_too() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="128KiB")

        async def read(stream: IOStream) -> None:
            await stream.read_bytes(1)
            buf = bytearray(len(BODY))
            assert await stream.read_into(buf) == len(BODY)
            await stream.write(b"well" if buf == BODY else b"ill")

        async with serving(read, quota) as (port, _), client(port) as (reader, writer):
            held = quota.memory.take(128 * KIB, 128 * KIB)
            writer.write(b"x" + BODY)
            await until(lambda: quota.memory.somebody_waits)
            quota.memory.give(held)
            assert await reader.read() == b"well"

    run(case)


def test_what_tls_has_in_hand_is_read_on_though_no_event_tells_of_it() -> None:
    async def case() -> None:
        server_context, context = contexts()
        quota = ResourceQuota(memory="128KiB")
        held = 0

        async def read(stream: IOStream) -> None:
            nonlocal held
            assert await stream.read_bytes(1) == BODY[:1]
            held = quota.memory.take(112 * KIB, 112 * KIB)
            await stream.write(b".")
            data = await stream.read_bytes(CHUNK, partial=True)
            assert len(data) == 120 * KIB // 16  # a sixteenth of what reads may have
            held += quota.memory.take(8 * KIB, 8 * KIB)
            rest = stream.read_bytes(16000 - len(data) - 1)
            assert quota.memory.somebody_waits
            asyncio.get_running_loop().call_soon(quota.memory.give, held)
            assert BODY[:1] + data + await rest == BODY[:16000]

        async with (
            serving(read, quota, ssl_options=server_context) as (port, _),
            client(port, context) as (reader, writer),
        ):
            writer.write(BODY[:1])
            await reader.readexactly(1)
            writer.write(BODY[1:16000])  # one record
            assert await reader.read() == b""

    run(case)


def test_a_cancelled_read_leaves_no_charge() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        dropped = asyncio.Event()

        async def read(stream: IOStream) -> None:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(stream.read_until(b"\n"), 0)
            dropped.set()
            await until(lambda: not stream.reading())
            assert await stream.read_bytes(4) == b"kept"

        async with serving(read, quota) as (port, _), client(port) as (reader, writer):
            await dropped.wait()
            writer.write(b"x" * 5000)
            await until(lambda: quota.memory.used == 5000)
            writer.write(b"\n")
            await until(lambda: quota.memory.used == 0)
            writer.write(b"kept")
            assert await reader.read() == b""

    run(case)


def test_a_second_read_that_is_refused_leaves_the_charge_of_the_first() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        begun = asyncio.Event()

        async def handle(stream: Any) -> None:
            first = stream.read_until(b"\n")
            begun.set()
            await until(lambda: stream._size == 10_000)
            held = quota.memory.used
            with pytest.raises(AssertionError, match="Already reading"):
                await stream.read_into(bytearray(5000))
            assert (stream._size, quota.memory.used) == (10_000, held)
            begun.clear()
            assert len(await first) == 10_001
            await stream.write(b"done")

        async with serving(handle, quota) as (port, _), client(port) as (reader, writer):
            await begun.wait()
            writer.write(bytes(10_000))
            await until(lambda: not begun.is_set())
            writer.write(b"\n")
            assert await reader.readexactly(4) == b"done"

    run(case)


def test_a_stream_stays_within_the_bound_and_keeps_its_place_through_start_tls() -> None:
    server_context, context = contexts()

    async def case() -> None:
        quota = ResourceQuota(memory="32MiB", connections=1)
        closed = asyncio.Event()

        async def handle(stream: IOStream) -> None:
            stream.set_close_callback(closed.set)
            await stream.write(b"220\n")
            assert await stream.read_until(b"\n") == b"STARTTLS\n"
            stream.write(b"220 go ahead\n")
            secured = await stream.start_tls(True, server_context)
            assert isinstance(secured, Bounded)
            secured.write(BODY * 16)  # not all is sent at once
            assert quota.memory.used > 0
            assert quota.connections.used == 1
            try:
                await secured.read_until_close()
            finally:
                secured.close()

        async with serving(handle, quota) as (port, _), client(port) as (reader, writer):
            assert await reader.readline() == b"220\n"
            writer.write(b"STARTTLS\n")
            assert await reader.readline() == b"220 go ahead\n"
            await writer.start_tls(context)
            assert await reader.readexactly(16 * len(BODY)) == BODY * 16
            assert quota.connections.used == 1
            writer.close()
            await closed.wait()
            assert quota.connections.used == 0

    run(case)


def test_a_stream_that_is_not_idle_does_not_start_tls() -> None:
    async def case() -> None:
        async def handle(stream: IOStream) -> None:
            reading = asyncio.ensure_future(stream.read_until(b"\n"))
            with pytest.raises(ValueError, match="not idle"):
                stream.start_tls(True, contexts()[0])
            await reading
            await stream.write(b"went on")

        async with (
            serving(handle, ResourceQuota(memory="1MiB")) as (port, _),
            client(port) as (reader, writer),
        ):
            writer.write(b"\n")
            assert await reader.read() == b"went on"

    run(case)


def test_connections_beyond_the_limit_stay_in_the_backlog_until_one_is_closed(tls: Tls) -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB", connections=2)
        async with serving(echo, quota, **tls[0]) as (port, server), AsyncExitStack() as stack:
            one, two = [await stack.enter_async_context(client(port, tls[1])) for _ in range(2)]
            await until(lambda: len(server.streams) == 2)
            waiting = [asyncio.create_task(stack.enter_async_context(client(port, tls[1]))) for _ in range(2)]
            await turns()
            assert quota.connections.used == len(server.streams) == 2
            one[1].close()
            await until(lambda: len(server.streams) == 3)
            two[1].close()
            for _, writer in await asyncio.gather(*waiting):
                writer.write(b"hello")
            for reader, _ in await asyncio.gather(*waiting):
                assert await reader.readexactly(5) == b"hello"
            assert quota.connections.used == 2

    run(case)


class Hello(RequestHandler):
    def get(self) -> None:
        self.write("hello")


def test_a_site_keeps_to_the_limit_of_connections() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB", connections=1)
        server = QuotaHTTPServer(Application([("/", Hello)]), quota=quota)
        [sock] = bind_sockets(0, "127.0.0.1")
        server.add_sockets([sock])
        port = sock.getsockname()[1]
        async with client(port) as one, client(port) as two:
            for _, writer in (one, two):
                writer.write(b"GET / HTTP/1.1\r\nHost: site\r\n\r\n")
            head = await one[0].readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            await turns()
            assert quota.connections.used == 1
            one[1].close()
            assert (await two[0].readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        await until(lambda: quota.connections.used == 0)
        server.stop()
        assert quota.memory.used == 0

    run(case)


def test_two_servers_share_a_limit() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB", connections=1)
        async with serving(echo, quota) as (port, _), serving(echo, quota) as (other_port, other):
            async with client(port) as (reader, writer), client(other_port) as waiting:
                writer.write(b"x")
                await reader.readexactly(1)
                await turns()
                assert not other.streams
                writer.close()
                waiting[1].write(b"y")
                assert await waiting[0].readexactly(1) == b"y"
            await until(lambda: quota.connections.used == 0)

    run(case)


def test_a_place_that_comes_back_in_another_thread_lets_one_in() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB", connections=1)
        assert quota.connections.try_take(lambda: None)
        async with serving(echo, quota) as (port, server), client(port) as (reader, writer):
            writer.write(b"x")
            await until(lambda: bool(quota.connections._waiters))
            assert not server.streams
            thread = threading.Thread(target=quota.connections.give)
            thread.start()
            assert await reader.readexactly(1) == b"x"
            thread.join()

    run(case)


def test_a_server_whose_loop_was_closed_passes_the_place_on() -> None:
    quota = ResourceQuota(memory="1MiB", connections=1)
    assert quota.connections.try_take(lambda: None)
    [sock] = bind_sockets(0, "127.0.0.1")
    server = Server(echo, quota=quota)

    async def case() -> None:
        server.add_sockets([sock])
        async with client(sock.getsockname()[1]):
            await until(lambda: bool(quota.connections._waiters))

    run(case)
    woken = threading.Event()
    assert not quota.connections.try_take(woken.set)
    quota.connections.give()
    assert woken.is_set()
    sock.close()


def test_a_handshake_that_fails_gives_its_place_back() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB", connections=1)
        server_context, context = contexts()
        async with serving(echo, quota, ssl_options=server_context) as (port, _):
            for _ in range(3):
                async with client(port) as (reader, writer):
                    writer.write(b"this is no TLS\n" * 10)
                    with pytest.raises(ConnectionError):
                        await reader.readexactly(1000)
            async with client(port, context) as (reader, writer):
                writer.write(b"x")
                assert await reader.readexactly(1) == b"x"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tornado.iostream.gen_log.warning", lambda *_: None)
        run(case)


def test_a_connection_that_never_became_a_stream_gives_its_place_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrap(sock: socket.socket, *_: object, **__: object) -> None:
        sock.close()
        raise ssl.SSLError(ssl.SSL_ERROR_EOF, "gone")

    async def case() -> None:
        quota = ResourceQuota(memory="1MiB", connections=1)
        server_context, context = contexts()
        async with serving(echo, quota, ssl_options=server_context) as (port, _):
            with monkeypatch.context() as patch:
                patch.setattr("tornado.tcpserver.ssl_wrap_socket", wrap)
                async with client(port) as (reader, _):
                    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                        await reader.readexactly(1)
            await until(lambda: quota.connections.used == 0)
            async with client(port, context) as (reader, writer):
                writer.write(b"x")
                assert await reader.readexactly(1) == b"x"

    run(case)


def test_a_server_that_stops_while_it_waits_for_a_place_passes_it_on() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB", connections=1)
        async with serving(echo, quota) as (port, _), client(port) as (reader, writer):
            writer.write(b"x")
            await reader.readexactly(1)
            stopped = Server(echo, quota=quota)
            [sock] = bind_sockets(0, "127.0.0.1")
            stopped.add_sockets([sock])
            async with client(sock.getsockname()[1]) as (gone, _), client(port) as (last, last_writer):
                await until(lambda: len(quota.connections._waiters) == 2)
                writer.close()  # the place may be on its way to the one that stops
                stopped.stop()
                last_writer.write(b"y")
                assert await last.readexactly(1) == b"y"
                with pytest.raises(ConnectionError):
                    await gone.readexactly(1)
        assert not stopped.streams

    run(case)


@pytest.mark.parametrize("is_coroutine", [False, True])
def test_a_handler_that_raises_has_its_stream_closed(is_coroutine: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB", connections=1)

        class Raising(QuotaTCPServer):
            def handle_stream(self, stream: IOStream, address: object) -> Awaitable[None] | None:
                if is_coroutine:
                    return self.fail(stream)
                raise ZeroDivisionError

            async def fail(self, stream: IOStream) -> None:
                await stream.write(b"x")
                raise ZeroDivisionError

        server = Raising(quota=quota)
        [sock] = bind_sockets(0, "127.0.0.1")
        server.add_sockets([sock])
        for _ in range(3):
            async with client(sock.getsockname()[1]) as (reader, _):
                assert await reader.read() == (b"x" if is_coroutine else b"")
        await until(lambda: quota.connections.used == 0)
        server.stop()

    run(case)
    assert caplog.text.count("raise ZeroDivisionError") == 3


def test_a_handler_that_raises_has_its_stream_closed_also_after_start_tls(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server_context, context = contexts()

    async def case() -> None:
        quota = ResourceQuota(memory="1MiB", connections=1)

        class Raising(QuotaTCPServer):
            async def handle_stream(self, stream: IOStream, address: object) -> None:
                secured = await stream.start_tls(True, server_context)
                await secured.write(await secured.read_bytes(1))
                raise ZeroDivisionError

        server = Raising(quota=quota)
        [sock] = bind_sockets(0, "127.0.0.1")
        server.add_sockets([sock])
        async with client(sock.getsockname()[1]) as (reader, writer):
            await writer.start_tls(context)
            writer.write(b"x")
            assert await reader.read() == b"x"
        await until(lambda: quota.connections.used == 0)
        assert quota.memory.used == 0
        server.stop()

    run(case)
    assert caplog.text.count("raise ZeroDivisionError") == 1


def test_streams_are_made_once_where_handle_stream_calls_that_above() -> None:
    async def case() -> None:
        seen: list[IOStream] = []

        class Base(QuotaTCPServer):
            def handle_stream(self, stream: IOStream, address: object) -> None:
                seen.append(stream)
                stream.close()

        class Above(Base):
            def handle_stream(self, stream: IOStream, address: object) -> None:
                seen.append(stream)
                super().handle_stream(stream, address)

        server = Above(quota="1MiB", max_buffer_size=12345)
        server.listen(0, "127.0.0.1")
        [sock] = server._sockets.values()
        async with client(sock.getsockname()[1]) as (reader, _):
            assert await reader.read() == b""
        assert seen[0] is seen[1]
        assert seen[0].max_buffer_size == 12345
        server.stop()

    run(case)


def test_a_stream_that_is_dropped_is_closed_and_gives_its_place_back() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB", connections=1)

        class Dropping(QuotaTCPServer):
            async def handle_stream(self, stream: IOStream, address: object) -> None:
                await stream.read_until(b"\n")
                stream.io_loop.remove_handler(stream.fileno())

        server = Dropping(quota=quota)
        [sock] = bind_sockets(0, "127.0.0.1")
        server.add_sockets([sock])
        gc.collect()
        gc.disable()
        try:
            for _ in range(3):
                async with client(sock.getsockname()[1]) as (reader, writer):
                    writer.write(b"xxx\n")
                    assert await reader.read() == b""
        finally:
            gc.enable()
        await until(lambda: quota.connections.used == quota.memory.used == 0)
        server.stop()

    with pytest.warns(ResourceWarning, match="unclosed"):
        run(case)


class Seen(bytes):
    """Bytes of which it can be seen when nobody has them any more."""

    alive = 0

    def __new__(cls, data: bytes) -> Seen:
        cls.alive += 1
        return super().__new__(cls, data)

    def __del__(self) -> None:
        type(self).alive -= 1


@pytest.mark.parametrize("ends", ["by our close", "by a reset", "by a write after a reset"])
def test_what_a_stream_held_is_gone_with_it_and_waits_for_no_garbage_collection(tls: Tls, ends: str) -> None:
    streams_seen: list[weakref.ref[IOStream]] = []
    begun, was_reset, closed = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def handle(stream: IOStream) -> None:
        streams_seen.append(weakref.ref(stream))
        stream.set_close_callback(closed.set)
        await stream.read_bytes(4)
        if ends == "by a write after a reset":
            begun.set()
            await was_reset.wait()
        with suppress(StreamClosedError):  # its future is not kept: its error would have this frame, and so itself
            stream.write(Seen(BODY * 4))
        begun.set()
        if ends == "by our close":
            stream.close()
        await closed.wait()

    async def case() -> None:
        quota = ResourceQuota(memory="16MiB")
        gc.disable()
        try:
            async with serving(handle, quota, **tls[0]) as (port, server), client(port, tls[1]) as (_, writer):
                writer.write(b"give")
                await begun.wait()
                reset = writer.get_extra_info("socket")
                reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                writer.transport.abort()
                await turns()
                was_reset.set()
                server.streams.clear()
                await until(lambda: not Seen.alive and not streams_seen[0]())
                assert quota.memory.used == 0
        finally:
            gc.enable()

    run(case)


@pytest.mark.usefixtures("impatient")
def test_one_server_makes_room_for_another_that_shares_its_quota() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="12MiB")

        async def give(stream: IOStream) -> None:
            await stream.write(bytes(11 * MIB))

        class Length(RequestHandler):
            def put(self) -> None:
                self.write(str(len(self.request.body)))

        site = QuotaHTTPServer(Application([("/", Length)]), quota=quota)
        [sock] = bind_sockets(0, "127.0.0.1")
        site.add_sockets([sock])
        async with serving(give, quota) as (port, _):
            assert site.admission() is Bound.of(quota, asyncio.get_running_loop()).admission
            silent = silent_client(port)
            await until(lambda: quota.memory.used >= 11 * MIB)
            async with client(sock.getsockname()[1]) as (reader, writer):
                writer.write(b"PUT / HTTP/1.1\r\nHost: site\r\nContent-Length: 5000000\r\n\r\n" + bytes(5000000))
                await reader.readuntil(b"\r\n\r\n")
                assert await reader.readexactly(7) == b"5000000"
            site.stop()
            await site.close_all_connections()
            silent.close()

    run(case)


@pytest.mark.parametrize("kind", [Server, QuotaTCPClient])
@pytest.mark.parametrize(
    ("quota", "said"), [("12XiB", "'12XiB' is not a size"), (None, "quota must be a"), (True, "not bool")]
)
def test_what_is_no_quota_is_said(kind: type[Any], quota: Any, said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        kind(None, quota=quota)


@asynccontextmanager
async def greeting(handle: Handle, **options: Any) -> AsyncIterator[int]:
    """A stock server; gives its port."""

    class Stock(TCPServer):
        async def handle_stream(self, stream: IOStream, address: object) -> None:
            try:
                await handle(stream)
            except StreamClosedError:
                pass
            finally:
                stream.close()

    server = Stock(**options)
    [sock] = bind_sockets(0, "127.0.0.1")
    server.add_sockets([sock])
    yield sock.getsockname()[1]
    server.stop()


def test_a_client_s_stream_loses_nothing_that_came_at_once(tls: Tls) -> None:
    async def greet(stream: IOStream) -> None:
        await stream.write(b"220 " + BODY + b"\n")
        await stream.write(await stream.read_until(b"\n"))

    async def case() -> None:
        quota = ResourceQuota(memory="2MiB")
        async with greeting(greet, **tls[0]) as port:
            for _ in range(10):
                stream = await QuotaTCPClient(quota=quota).connect("127.0.0.1", port, ssl_options=tls[1])
                assert isinstance(stream, Bounded)
                assert await stream.read_bytes(4) == b"220 "
                assert await stream.read_bytes(len(BODY) + 1) == BODY + b"\n"
                await stream.write(b"hello\n")
                assert await stream.read_until_close() == b"hello\n"
                assert quota.memory.used == 0

    run(case)


def test_what_a_client_has_not_sent_is_charged_and_is_cut_with_the_rest(caplog: pytest.LogCaptureFixture) -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        gate = asyncio.Event()

        async def wait(stream: IOStream) -> None:
            await gate.wait()

        async with greeting(wait) as port:
            stream = await QuotaTCPClient(quota=quota).connect("127.0.0.1", port)
            while not stream.closed():
                stream.write(BODY)
            assert quota.memory.used == 0
            gate.set()

    run(case)
    assert "read everything" in caplog.text


def test_an_idle_client_over_tls_hears_of_the_end(tls: Tls) -> None:
    """Where what came first were TLS's own messages, of which nothing reaches the stream."""

    async def case() -> None:
        gate, closed = asyncio.Event(), asyncio.Event()

        async def wait(stream: IOStream) -> None:
            await gate.wait()

        async with greeting(wait, **tls[0]) as port:
            stream = await QuotaTCPClient(quota="1MiB").connect("127.0.0.1", port, ssl_options=tls[1])
            stream.set_close_callback(closed.set)
            await turns()
            assert not closed.is_set()
            gate.set()
            await closed.wait()
            assert stream.closed()

    run(case)
