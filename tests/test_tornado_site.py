"""`QuotaHTTPServer` with real sites and plain sockets."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import gzip
import hashlib
import socket
import ssl
import subprocess
import sys
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

pytest.importorskip("tornado", reason="needs the extra tornado")

from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPConnection, HTTPMessageDelegate
from tornado.iostream import IOStream
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler, stream_request_body

from eventengine import ResourceQuota, tally
from eventengine.bridges.tornado import QuotaHTTPServer, refusing
from tornado_certificate import contexts
from tornado_serving import KIB, MIB, digest, free_connections, impatient, run, serving_site, until

__all__ = ["free_connections", "impatient"]  # fixtures

pytestmark = pytest.mark.usefixtures("free_connections")

BODY = bytes(range(256)) * (32 * KIB)


class Digest(RequestHandler):
    """Answers with the digest of the body; first waits for `gate`, if there is one."""

    def initialize(self, gate: asyncio.Event | None = None) -> None:
        self.gate = gate

    async def put(self) -> None:
        if self.gate is not None:
            await self.gate.wait()
        self.write(hashlib.sha256(self.request.body).hexdigest())

    def get(self) -> None:
        self.write("here")


class Body(RequestHandler):
    """Writes BODY, and waits for nothing."""

    def get(self) -> None:
        self.set_header("Content-Length", len(BODY))
        for start in range(0, len(BODY), 1 << 16):
            self.write(BODY[start : start + (1 << 16)])
            self.flush()


@stream_request_body
class Counting(RequestHandler):
    def initialize(self) -> None:
        self.count = 0

    def data_received(self, chunk: bytes) -> None:
        self.count += len(chunk)

    def put(self) -> None:
        self.write(str(self.count))


@stream_request_body
class Slow(Counting):
    """Takes a piece only when `gate` is open."""

    def initialize(self, gate: asyncio.Event | None = None) -> None:
        super().initialize()
        self.gate = gate

    async def data_received(self, chunk: bytes) -> None:
        super().data_received(chunk)
        assert self.gate is not None
        await self.gate.wait()


@stream_request_body
class Early(RequestHandler):
    """Answers before its body has come."""

    async def prepare(self) -> None:
        self.set_header("Content-Length", "1000")
        self.write("x" * 900)
        await self.flush()

    def data_received(self, chunk: bytes) -> None:
        pass


def serving(
    quota: ResourceQuota, gate: asyncio.Event | None = None, **options: Any
) -> AbstractAsyncContextManager[int]:
    pages = [
        ("/", Digest, {"gate": gate}),
        ("/counting", Counting),
        ("/early", Early),
        ("/slow", Slow, {"gate": gate}),
        ("/body", Body),
        ("/cycle", Cycle),
    ]
    return serving_site(quota, pages, **options)


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    @asynccontextmanager
    async def to(cls, port: int, context: ssl.SSLContext | None = None) -> AsyncIterator[Client]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        try:
            yield cls(reader, writer)
        finally:
            writer.close()

    def begin(self, body: bytes, length: int, *, path: str = "/", more: str = "") -> None:
        head = f"PUT {path} HTTP/1.1\r\nHost: site\r\nContent-Length: {length}\r\n{more}\r\n"
        self.writer.write(head.encode() + body)

    def get(self, path: str) -> None:
        self.writer.write(f"GET {path} HTTP/1.1\r\nHost: site\r\n\r\n".encode())

    def begin_chunks(self) -> None:
        self.writer.write(b"PUT / HTTP/1.1\r\nHost: site\r\nTransfer-Encoding: chunked\r\n\r\n")

    def chunk(self, data: bytes) -> None:
        """One of a chunked body; an empty one ends it."""
        self.writer.write(b"%x\r\n%b\r\n" % (len(data), data))

    async def answer(self) -> tuple[int, str]:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
        return int(head.split()[1]), (await self.reader.readexactly(length)).decode()

    async def put(self, body: bytes, path: str = "/") -> tuple[int, str]:
        self.begin(body, len(body), path=path)
        return await self.answer()


def test_a_body_is_charged_until_its_request_is_over() -> None:
    async def case() -> None:
        quota, gate = ResourceQuota(memory="1MiB"), asyncio.Event()
        body = bytes(range(256)) * 400
        async with serving(quota, gate) as port, Client.to(port) as client:
            answer = asyncio.create_task(client.put(body))
            await until(lambda: quota.memory.used == len(body))
            gate.set()
            assert await answer == (200, digest(body))
            await until(lambda: quota.memory.used == 0)
            assert await client.put(body) == (200, digest(body))  # on the same connection
            await until(lambda: quota.memory.used == 0)

    run(case)


def test_bodies_wait_unread_until_there_is_room_and_what_has_none_does_not() -> None:
    async def case() -> None:
        quota, gate = ResourceQuota(memory="1MiB"), asyncio.Event()
        async with (
            serving(quota, gate) as port,
            Client.to(port) as one,
            Client.to(port) as two,
            Client.to(port) as three,
            Client.to(port) as other,
        ):
            bodies = [bytes([n]) * (600 * KIB) for n in range(3)]
            answers = [
                asyncio.create_task(client.put(body))
                for client, body in zip((one, two, three), bodies, strict=True)
            ]
            await until(lambda: quota.memory.used == 600 * KIB and quota.memory.somebody_waits)
            other.writer.write(b"GET / HTTP/1.1\r\nHost: site\r\n\r\n")
            assert await other.answer() == (200, "here")
            gate.set()
            assert await asyncio.gather(*answers) == [(200, digest(body)) for body in bodies]
            assert quota.memory.peak <= MIB

    run(case)


def test_a_body_that_can_never_fit_is_answered_with_413() -> None:
    async def case() -> None:
        async with serving(ResourceQuota(memory="1MiB")) as port:
            async with Client.to(port) as client:
                client.begin(b"", 960 * KIB + 1)
                assert await client.answer() == (413, "")
                assert await client.reader.read() == b""
            async with Client.to(port) as client:
                assert await client.put(bytes(960 * KIB)) == (200, digest(bytes(960 * KIB)))

    run(case)


def test_a_body_that_tornado_refuses_is_not_asked_room_for() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        async with serving(quota, max_body_size=1000) as port, Client.to(port) as client:
            client.begin(bytes(1001), 1001)
            head = await client.reader.read()  # and it is closed
            assert head.startswith(b"HTTP/1.1 400 ")
            assert quota.memory.peak < 1001

    run(case)


def test_a_connection_that_was_closed_before_the_server_came_to_it_takes_nothing() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        server = QuotaHTTPServer(Application([("/", Digest)]), quota=quota)
        ours, theirs = socket.socketpair()
        with theirs:
            stream = IOStream(ours)
            stream.close()
            server.handle_stream(stream, ("127.0.0.1", 1))
            await server.close_all_connections()
            assert theirs.recv(1) == b""
        assert (quota.memory.used, quota.memory.peak) == (0, 0)

    run(case)


@pytest.mark.usefixtures("impatient")
def test_who_stalls_while_others_wait_is_answered_with_408() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        async with serving(quota) as port, Client.to(port) as stalled, Client.to(port) as client:
            stalled.begin(bytes(300 * KIB), 600 * KIB)
            await until(lambda: quota.memory.used == 600 * KIB)
            body = b"x" * (600 * KIB)
            assert await client.put(body) == (200, digest(body))
            assert await stalled.answer() == (408, "")
            assert await stalled.reader.read() == b""

    run(case)


def test_a_client_that_leaves_in_the_middle_gives_its_room_back() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        async with serving(quota) as port, Client.to(port) as leaver, Client.to(port) as client:
            leaver.begin(bytes(300 * KIB), 600 * KIB)
            await until(lambda: quota.memory.used == 600 * KIB)
            answer = asyncio.create_task(client.put(bytes(600 * KIB)))
            await until(lambda: quota.memory.somebody_waits)
            leaver.writer.close()
            assert (await answer)[0] == 200

    run(case)


def test_closing_the_connections_ends_those_that_wait() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        async with closing_early(quota) as (port, close), Client.to(port) as holder, Client.to(port) as waiting:
            holder.begin(b"", 900 * KIB)
            await until(lambda: quota.memory.used == 900 * KIB)
            waiting.begin(b"", 900 * KIB)
            await until(lambda: quota.memory.somebody_waits)
            await close()
            assert await waiting.reader.read() == b""

    run(case)


@asynccontextmanager
async def closing_early(
    quota: ResourceQuota,
) -> AsyncIterator[tuple[int, Callable[[], Awaitable[None]]]]:
    server = QuotaHTTPServer(Application([("/", Digest)]), quota=quota)
    [sock] = bind_sockets(0, "127.0.0.1")
    server.add_sockets([sock])
    yield sock.getsockname()[1], server.close_all_connections
    server.stop()
    await until(lambda: not quota.memory.used)
    assert not quota.memory.somebody_waits


def test_a_chunked_body_asks_as_it_grows() -> None:
    async def case() -> None:
        quota, gate = ResourceQuota(memory="1MiB"), asyncio.Event()
        async with serving(quota, gate) as port, Client.to(port) as client:
            client.begin_chunks()
            body = b""
            for n in range(1, 6):
                client.chunk(bytes([n]) * (50 * KIB))
                body += bytes([n]) * (50 * KIB)
                await until(lambda: quota.memory.used >= len(body))  # noqa: B023  # it is awaited here
                assert quota.memory.used < len(body) * 9 // 8 + 74 * KIB  # a bytearray that grows, and a piece
            client.chunk(b"")
            gate.set()
            assert await client.answer() == (200, digest(body))
            await until(lambda: quota.memory.used == 0)

    run(case)


@pytest.mark.usefixtures("impatient")
def test_chunked_bodies_that_wait_for_one_another_are_not_stuck() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="256KiB")
        async with (
            serving(quota) as port,
            Client.to(port) as one,
            Client.to(port) as two,
            Client.to(port) as three,
            Client.to(port) as four,
        ):
            clients = (one, two, three, four)
            for client in clients:
                client.begin_chunks()
                client.chunk(bytes(48 * KIB))
            await until(lambda: quota.memory.used >= 224 * KIB)
            for client in clients:
                client.chunk(bytes(48 * KIB))
                client.chunk(b"")
            answers = await asyncio.gather(*(client.answer() for client in clients))
            assert {code for code, _ in answers} == {200, 503}
            assert {text for code, text in answers if code == 200} == {digest(bytes(96 * KIB))}

    run(case)


def test_a_compressed_body_is_charged_as_what_it_becomes() -> None:
    async def case() -> None:
        quota, gate = ResourceQuota(memory="1MiB"), asyncio.Event()
        async with serving(quota, gate, decompress_request=True) as port, Client.to(port) as client:
            packed = gzip.compress(bytes(500 * KIB))
            client.begin(packed, len(packed), more="Content-Encoding: gzip\r\n")
            await until(lambda: quota.memory.used >= 500 * KIB)
            assert quota.memory.used < 572 * KIB  # with what a bytearray that grows takes
            gate.set()
            assert await client.answer() == (200, digest(bytes(500 * KIB)))

    run(case)


@pytest.mark.usefixtures("impatient")
def test_a_packed_body_that_becomes_larger_than_the_quota_is_refused_and_gives_all_back() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        async with serving(quota, decompress_request=True) as port:
            for _ in range(2):
                async with Client.to(port) as client:
                    packed = gzip.compress(bytes(5 * MIB))
                    client.begin(packed, len(packed), more="Content-Encoding: gzip\r\n")
                    assert await client.answer() == (413, "")
                await until(lambda: quota.memory.used == 0)
            async with Client.to(port) as client:
                assert await client.put(bytes(900 * KIB)) == (200, digest(bytes(900 * KIB)))

    run(case)


@pytest.mark.usefixtures("impatient")
def test_a_packed_body_that_is_cut_while_it_waits_asks_for_nothing_more() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        held = quota.memory.take(700 * KIB, 700 * KIB)
        async with serving(quota, decompress_request=True) as port, Client.to(port) as client:
            packed = gzip.compress(bytes(900 * KIB))
            client.begin(packed, len(packed), more="Content-Encoding: gzip\r\n")
            assert await client.answer() == (503, "")
            await until(lambda: quota.memory.used == 700 * KIB)
            assert not quota.memory.somebody_waits
            quota.memory.give(held)

    run(case)


def test_zeros_before_a_length_change_nothing() -> None:
    async def case() -> None:
        quota, gate = ResourceQuota(memory="1MiB"), asyncio.Event()
        async with serving(quota, gate) as port, Client.to(port) as client:
            head = f"PUT / HTTP/1.1\r\nHost: site\r\nContent-Length: {'600000'.zfill(30)}\r\n\r\n"
            client.writer.write(head.encode() + bytes(600000))
            await until(lambda: quota.memory.used == 600000)
            gate.set()
            assert await client.answer() == (200, digest(bytes(600000)))

    run(case)


def test_a_form_is_charged_for_its_parts_too() -> None:
    async def case() -> None:
        quota, gate = ResourceQuota(memory="1MiB"), asyncio.Event()
        async with serving(quota, gate) as port, Client.to(port) as client:
            body = b"a=" + b"x" * 1000
            client.begin(body, len(body), more="Content-Type: application/x-www-form-urlencoded\r\n")
            await until(lambda: quota.memory.used == 2 * len(body))
            gate.set()
            assert await client.answer() == (200, digest(body))

    run(case)


class Cycle(RequestHandler):
    def put(self) -> None:
        self.me = self
        self.write("done")


def test_a_handler_that_is_garbage_holds_no_room() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        async with serving(quota) as port, Client.to(port) as client:
            gc.collect()
            gc.disable()
            try:
                for _ in range(3):
                    assert await client.put(bytes(600 * KIB), "/cycle") == (200, "done")
            finally:
                gc.enable()

    run(case)


class Noting(Application):
    """One that keeps something for each connection."""

    def __init__(self) -> None:
        super().__init__([("/", Digest, {"gate": None})])
        self.there: set[object] = set()

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        self.there.add(server_conn)
        return super().start_request(server_conn, request_conn)


def test_an_application_that_notes_when_requests_begin_is_told_before_they_have_come() -> None:
    async def case() -> None:
        application = Noting()
        server = QuotaHTTPServer(application, quota="1MiB")
        [sock] = bind_sockets(0, "127.0.0.1")
        server.add_sockets([sock])
        async with Client.to(sock.getsockname()[1]) as client:
            await until(lambda: len(application.there) == 1)
            assert await client.put(b"abc") == (200, digest(b"abc"))
        server.stop()
        await server.close_all_connections()

    run(case)


class Clogged(RequestHandler):
    """Sends BODY behind its answer, so that the next one is not sent to who does not read."""

    def initialize(self, streams: list[Any]) -> None:
        self.streams = streams

    def get(self) -> None:
        self.write("here")

    def on_finish(self) -> None:
        connection: Any = self.request.connection
        connection.stream.write(BODY)
        self.streams.append(connection.stream)


def test_who_is_refused_and_does_not_take_the_answer_is_closed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(refusing, "_LINGER", 0.05)
    caplog.set_level("INFO", "tornado.general")

    async def case() -> None:
        streams: list[Any] = []
        pages = [("/", Clogged, {"streams": streams})]
        async with serving_site(ResourceQuota(memory="12MiB"), pages) as port:
            with silent_client(port, "/") as silent:
                await until(lambda: len(streams) == 1)
                silent.sendall(b"PUT / HTTP/1.1\r\nHost: site\r\nContent-Length: 12000000\r\n\r\nabc")
                await until(streams[0].closed)

    run(case)
    assert "was refused with 413" in caplog.text
    assert "before it had read everything" not in caplog.text


EXIT = """
import asyncio, gzip, socket
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler
from eventengine.bridges.tornado import QuotaHTTPServer

async def main():
    server = QuotaHTTPServer(Application([("/", RequestHandler)]), quota="1MiB", decompress_request=True)
    [sock] = bind_sockets(0, "127.0.0.1")
    server.add_sockets([sock])
    taken = (1 << 20) - 60000  # connections are still accepted
    server.quota.memory.take(taken, taken)
    body = gzip.compress(bytes(900000))
    packed, plain = (socket.create_connection(sock.getsockname()) for _ in range(2))
    head = b"PUT / HTTP/1.1\\r\\nHost: site\\r\\n"
    packed.sendall(head + b"Content-Encoding: gzip\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body)
    plain.sendall(head + b"Content-Length: 60000\\r\\n\\r\\n")
    while len(server.admission()._waiting) < 2:
        await asyncio.sleep(0.001)
    server.stop()

asyncio.run(main())
"""


def test_a_packed_body_whose_connection_was_closed_while_it_waits_reaches_no_handler() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        held = quota.memory.take(MIB - 60 * KIB, MIB - 60 * KIB)
        called: list[int] = []
        server = QuotaHTTPServer(
            lambda request: called.append(len(request.body)), quota=quota, decompress_request=True
        )
        [sock] = bind_sockets(0, "127.0.0.1")
        server.add_sockets([sock])
        async with Client.to(sock.getsockname()[1]) as client:
            packed = gzip.compress(bytes(900 * KIB))
            client.begin(packed, len(packed), more="Content-Encoding: gzip\r\n")
            await until(lambda: quota.memory.somebody_waits)
            server.stop()
            await server.close_all_connections()
        assert called == []
        quota.memory.give(held)
        assert (quota.memory.used, quota.memory.somebody_waits) == (0, False)

    run(case)


def test_an_exit_of_the_program_is_not_kept_by_uploads_that_wait() -> None:
    done = subprocess.run([sys.executable, "-c", EXIT], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_chunked_body_that_becomes_larger_than_the_quota_is_refused() -> None:
    async def case() -> None:
        async with serving(ResourceQuota(memory="256KiB")) as port, Client.to(port) as client:
            client.begin_chunks()
            for _ in range(5):
                client.chunk(bytes(64 * KIB))
            assert await client.answer() == (413, "")

    run(case)


def test_what_waits_reads_no_further_than_its_headers_came_with() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        streams: list[Any] = []

        class Watched(QuotaHTTPServer):
            def handle_stream(self, stream: Any, address: object) -> None:
                super().handle_stream(stream, address)
                streams.extend(self._connections)

        held = quota.memory.take(600 * KIB, 600 * KIB)  # it is accepted, and its body waits
        server = Watched(Application([("/", Digest)]), quota=quota)
        [sock] = bind_sockets(0, "127.0.0.1")
        server.add_sockets([sock])
        async with Client.to(sock.getsockname()[1]) as client:
            client.begin(b"", 512 * KIB)
            await until(lambda: quota.memory.somebody_waits)
            client.writer.write(bytes(512 * KIB))
            for _ in range(100):
                await asyncio.sleep(0)
            assert streams[0].stream._read_buffer_size <= 4096
            quota.memory.give(held)
            assert await client.answer() == (200, digest(bytes(512 * KIB)))
        server.stop()
        await server.close_all_connections()

    run(case)


def test_a_body_that_is_taken_in_pieces_may_be_larger_than_the_quota() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="128KiB")
        async with serving(quota) as port, Client.to(port) as client:
            assert await client.put(bytes(2 * MIB), "/counting") == (200, str(2 * MIB))
        assert quota.memory.peak == 64 * KIB

    run(case)


def test_a_body_is_held_once_while_its_handler_runs() -> None:
    """Tornado's delegate has a copy, which must go when the handler is called."""

    async def case() -> None:
        gate = asyncio.Event()
        async with serving(ResourceQuota(memory="64MiB"), gate) as port, Client.to(port) as client:
            tracemalloc.start()
            try:
                client.begin(b"", 16 * MIB)
                for _ in range(16):
                    client.writer.write(bytes(MIB))
                    await client.writer.drain()
                await until(lambda: tracemalloc.get_traced_memory()[1] > 30 * MIB)  # both, for a moment
                assert tracemalloc.get_traced_memory()[0] < 20 * MIB
            finally:
                tracemalloc.stop()
            gate.set()
            assert await client.answer() == (200, digest(bytes(16 * MIB)))

    run(case)


def silent_client(port: int, path: str = "/body") -> socket.socket:
    """Asks for this, and reads nothing."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * KIB)
    client.connect(("127.0.0.1", port))
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: site\r\n\r\n".encode())
    return client


def test_who_does_not_read_is_cut_when_the_quota_is_full_and_who_reads_gets_every_byte(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tally, "monotonic", lambda: 7.0)  # all of it is within a second

    async def case() -> None:
        quota = ResourceQuota("site", memory="12MiB")
        async with serving(quota) as port:
            clients = [silent_client(port) for _ in range(5)]
            for client in clients:  # who reads has no turn to do so in that in which they are answered
                client.setblocking(False)
                with contextlib.suppress(ConnectionResetError):
                    await asyncio.get_running_loop().sock_recv(client, 1)
            async with Client.to(port) as reading:
                for _ in range(3):
                    reading.get("/body")
                    head = (await reading.reader.readuntil(b"\r\n\r\n")).decode()
                    assert f"content-length: {len(BODY)}" in head.lower()
                    assert await reading.reader.readexactly(len(BODY)) == BODY
            assert quota.memory.peak <= 12 * MIB + len(BODY)
            assert quota.memory.used <= 12 * MIB
            for client in clients:
                client.close()

    run(case)
    assert "read everything" in caplog.text
    assert len(caplog.records) == 1  # not one for each


def test_a_request_that_comes_in_two_parts_is_answered_wherever_they_meet() -> None:
    """The first part comes with the request before, which says when it was read."""
    request = b"PUT / HTTP/1.1\r\nHost: site\r\nContent-Length: 3\r\n\r\nabc"

    async def case() -> None:
        async with serving(ResourceQuota("site", memory="12MiB")) as port, Client.to(port) as client:
            for size in range(len(request)):
                client.writer.write(request + request[:size])
                assert await client.answer() == (200, digest(b"abc"))
                client.writer.write(request[size:])
                assert await client.answer() == (200, digest(b"abc"))

    run(case)


def test_over_tls_bodies_are_charged_and_what_is_unsent_too() -> None:
    for_server, for_client = contexts()

    async def case() -> None:
        quota, gate = ResourceQuota(memory="64MiB"), asyncio.Event()
        async with (
            serving(quota, gate, ssl_options=for_server) as port,
            Client.to(port, for_client) as client,
        ):
            answer = asyncio.create_task(client.put(BODY))
            await until(lambda: quota.memory.used == len(BODY))
            gate.set()
            assert await answer == (200, digest(BODY))
            await until(lambda: quota.memory.used == 0)
            client.get("/body")
            await until(lambda: quota.memory.used > 0)
            await client.reader.readuntil(b"\r\n\r\n")
            assert await client.reader.readexactly(len(BODY)) == BODY
            await until(lambda: quota.memory.used == 0)

    run(case)


def test_a_body_that_is_taken_in_pieces_is_charged_one() -> None:
    async def case() -> None:
        quota, gate = ResourceQuota(memory="1MiB"), asyncio.Event()
        async with serving(quota, gate) as port, Client.to(port) as client:
            client.begin(bytes(2 * MIB), 2 * MIB, path="/slow")
            await until(lambda: quota.memory.used == 64 * KIB)
            gate.set()
            assert await client.answer() == (200, str(2 * MIB))
            assert quota.memory.peak == 64 * KIB
            client.begin(bytes(100), 100, path="/slow")
            assert await client.answer() == (200, "100")
            await until(lambda: quota.memory.used == 0)

    run(case)


@pytest.mark.usefixtures("impatient")
def test_of_bodies_taken_in_pieces_who_stalls_gives_way_and_whose_handler_is_slow_does_not() -> None:
    async def case() -> None:
        quota, gate = ResourceQuota(memory="160KiB"), asyncio.Event()
        async with (
            serving(quota, gate) as port,
            Client.to(port) as held,
            Client.to(port) as stalled,
            Client.to(port) as late,
        ):
            held.begin(bytes(100 * KIB), MIB, path="/slow")
            await until(lambda: quota.memory.used == 64 * KIB)
            stalled.begin(bytes(100 * KIB), MIB, path="/counting")
            await until(lambda: quota.memory.used == 128 * KIB)
            late.begin(bytes(100 * KIB), 100 * KIB, path="/counting")
            assert await late.answer() == (200, str(100 * KIB))
            assert await stalled.answer() == (408, "")
            gate.set()
            held.writer.write(bytes(MIB - 100 * KIB))
            assert await held.answer() == (200, str(MIB))

    run(case)


@pytest.mark.usefixtures("impatient")
def test_a_refusal_does_not_go_into_an_answer_that_has_begun() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="160KiB")
        async with serving(quota) as port, Client.to(port) as early, Client.to(port) as late:
            early.begin(bytes(100), MIB, path="/early")
            assert (await early.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            late.begin(bytes(100 * KIB), 100 * KIB)
            assert (await late.answer())[0] == 200
            with pytest.raises(asyncio.IncompleteReadError) as ended:
                await early.reader.readexactly(1000)
            assert ended.value.partial == b"x" * 900

    run(case)


@pytest.mark.parametrize("count", [256, 257])
def test_a_request_with_very_many_headers_is_refused_and_a_large_head_is_charged(count: int) -> None:
    async def case() -> None:
        quota, gate = ResourceQuota(memory="1MiB"), asyncio.Event()
        async with serving(quota, gate) as port, Client.to(port) as client:
            client.begin(b"", 0, more="".join(f"h{number}: \r\n" for number in range(count - 2)))
            if count > 256:
                assert await client.answer() == (431, "")
            else:
                await until(lambda: quota.memory.used > count * 300)
                gate.set()
                assert (await client.answer())[0] == 200
            await until(lambda: quota.memory.used == 0)

    run(case)


@pytest.mark.parametrize(("query", "least"), [("a" * 30_000, 120_000), ("a=1&" * 900, 900 * 320)])
def test_a_long_query_is_charged_until_its_request_is_over(query: str, least: int) -> None:
    async def case() -> None:
        quota, gate = ResourceQuota(memory="1MiB"), asyncio.Event()
        async with serving(quota, gate) as port, Client.to(port) as client:
            client.begin(b"", 0, path=f"/?{query}")
            await until(lambda: quota.memory.used >= least)
            gate.set()
            assert (await client.answer())[0] == 200
            client.get("/")
            assert (await client.answer())[0] == 200
            await until(lambda: quota.memory.used == 0)

    run(case)


def test_a_large_head_that_came_with_another_request_is_charged() -> None:
    async def case() -> None:
        quota, gate = ResourceQuota(memory="1MiB"), asyncio.Event()
        async with serving(quota, gate) as port, Client.to(port) as client:
            first = b"GET / HTTP/1.1\r\nHost: site\r\n\r\n"
            second = b"PUT / HTTP/1.1\r\nHost: site\r\nContent-Length: 0\r\n" + b"h: \r\n" * 500 + b"\r\n"
            client.writer.write(first + second)
            assert await client.answer() == (200, "here")
            await until(lambda: quota.memory.used > 500 * 300)
            gate.set()
            assert (await client.answer())[0] == 200
        await until(lambda: quota.memory.used == 0)

    run(case)


def test_a_head_that_does_not_end_is_charged_as_it_comes() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        async with serving(quota) as port, Client.to(port) as client:
            client.writer.write(b"GET / HTTP/1.1\r\nx: " + bytes(40 * KIB))
            await until(lambda: quota.memory.used >= 40 * KIB)
        await until(lambda: quota.memory.used == 0)

    run(case)


def test_who_trickles_into_nearly_the_whole_quota_keeps_nobody_out() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        async with serving(quota) as port, Client.to(port) as trickling, Client.to(port) as client:
            trickling.begin(b"x", 960 * KIB)
            await until(lambda: quota.memory.used == 960 * KIB)
            client.get("/")
            assert await client.answer() == (200, "here")

    run(case)


class Pieces(RequestHandler):
    """Answers with whether its socket delays small segments no more, before the answer and after each piece of it."""

    async def get(self, count: str) -> None:
        self.set_header("Content-Length", int(count) + 1)
        for _ in range(int(count)):
            self.write(self.nodelay())
            await self.flush()
        self.finish(self.nodelay())

    def nodelay(self) -> str:
        sock: socket.socket = self.request.connection.stream.socket  # type: ignore[union-attr]
        return str(int(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0))


def test_the_pieces_of_an_answer_are_collected_as_by_tornado_and_its_end_is_sent_at_once() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        answers = []
        async with serving_site(quota, [("/(.*)", Pieces)]) as port, Client.to(port) as client:
            for count in (0, 0, 3, 2, 0):
                client.get(f"/{count}")
                answers.append(await client.answer())
        # Once set it stays, for the first piece of an answer is sent at once either way.
        assert [text for _, text in answers] == ["0", "1", "1100", "110", "1"]

    run(case)


def test_configure_takes_effect_in_application_listen() -> None:
    async def case() -> None:
        HTTPServer.configure(QuotaHTTPServer, quota="1MiB")
        try:
            server = Application().listen(0, "127.0.0.1")
        finally:
            HTTPServer.configure(None)
        assert type(server) is QuotaHTTPServer
        assert server.quota.memory.size == MIB
        server.stop()

    run(case)


@pytest.mark.parametrize(
    ("quota", "said"),
    [
        ("12XiB", "'12XiB' is not a size"),
        (None, "needs a quota, as in HTTPServer.configure"),
        (1.5, "not float"),
        ("10", "no room to serve a connection"),
    ],
)
def test_what_is_no_quota_is_said_before_anything_listens(quota: Any, said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        QuotaHTTPServer(Application(), quota=quota)
