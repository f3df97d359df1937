"""Websockets on a `QuotaHTTPServer`, whose peer makes its frames by hand (RFC 6455)."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import os
import ssl
import weakref
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

pytest.importorskip("tornado", reason="needs the extra tornado")

from tornado.web import RequestHandler
from tornado.websocket import WebSocketHandler, WebSocketProtocol

from eventengine import ResourceQuota, admission
from eventengine.bridges.tornado.reads import DEFLATE_COST
from eventengine.bridges.tornado.websockets import Message
from tornado_certificate import contexts
from tornado_serving import KIB, digest, free_connections, run, serving_site, until

__all__ = ["free_connections"]  # a fixture

pytestmark = pytest.mark.usefixtures("free_connections")

FINAL, CONTINUES, BINARY, PING = 0x80, 0, 2, 9


class Digest(WebSocketHandler):
    def on_message(self, message: str | bytes) -> None:
        assert isinstance(message, bytes)
        self.write_message(hashlib.sha256(message).hexdigest())


class Compressed(Digest):
    def get_compression_options(self) -> dict[str, Any]:
        return {}


class Noted(WebSocketHandler):
    """Whose connections are looked for when they have ended."""

    def initialize(self, made: list[weakref.ref[WebSocketProtocol]]) -> None:  # type: ignore[override]
        self.made = made

    def open(self, *_: str) -> None:
        assert self.ws_connection is not None
        self.made.append(weakref.ref(self.ws_connection))


class Here(RequestHandler):
    def get(self) -> None:
        self.write("here")


def serving(
    quota: ResourceQuota,
    context: ssl.SSLContext | None = None,
    pages: Sequence[tuple[Any, ...]] = (("/", Digest), ("/here", Here)),
) -> AbstractAsyncContextManager[int]:
    return serving_site(quota, pages, ssl_options=context)


def frame(first: int, payload: bytes, length: int | None = None) -> bytes:
    """One with a mask of zeros; it says that its payload has `length` bytes."""
    size = len(payload) if length is None else length
    if size < 126:
        head = bytes([first, 0x80 | size])
    elif size < 1 << 16:
        head = bytes([first, 0x80 | 126]) + size.to_bytes(2)
    else:
        head = bytes([first, 0x80 | 127]) + size.to_bytes(8)
    return head + bytes(4) + payload


HANDSHAKE = (
    b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
)


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    @asynccontextmanager
    async def to(
        cls, port: int, context: ssl.SSLContext | None = None, ahead: bytes = b"", offer: bytes = b""
    ) -> AsyncIterator[Client]:
        """A websocket; `ahead` is sent with the handshake."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        try:
            writer.write(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + offer + HANDSHAKE + ahead)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
            yield cls(reader, writer)
        finally:
            writer.close()

    async def answer(self) -> str:
        """A text of 64 characters."""
        assert await self.reader.readexactly(2) == bytes([FINAL | 1, 64])
        return (await self.reader.readexactly(64)).decode()

    async def is_closed(self) -> bool:
        try:
            return not await self.reader.read(1)
        except ConnectionError:
            return True


@pytest.mark.parametrize("over_tls", [False, True])
def test_messages_of_any_size_arrive_and_leave_nothing_charged(over_tls: bool) -> None:
    server, client = contexts() if over_tls else (None, None)

    async def case() -> None:
        quota = ResourceQuota(memory="4MiB")
        first = os.urandom(3000)
        async with (
            serving(quota, server) as port,
            Client.to(port, client, ahead=frame(FINAL | BINARY, first)) as socket,
        ):
            assert await socket.answer() == digest(first)
            for size in (0, 1, 125, 126, 65535, 65536, 1 << 20):
                message = os.urandom(size)
                socket.writer.write(frame(FINAL | BINARY, message))
                assert await socket.answer() == digest(message)
                await until(lambda: quota.memory.used == 0)

    run(case)


@pytest.mark.parametrize(("page", "cost", "room_for"), [(Compressed, DEFLATE_COST, 3), (Digest, 0, 4)])
def test_what_compression_takes_is_charged_and_only_as_many_are_open_as_there_is_room_for(
    page: type[Digest], cost: int, room_for: int
) -> None:
    offer = b"Sec-WebSocket-Extensions: permessage-deflate\r\n"

    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        async with serving(quota, pages=[("/", page)]) as port, AsyncExitStack() as stack:
            sockets = [await stack.enter_async_context(Client.to(port, offer=offer)) for _ in range(4)]
            if room_for < 4:
                assert await sockets[3].is_closed()
            assert quota.memory.used == room_for * cost
            for socket in sockets[:room_for]:
                socket.writer.write(frame(FINAL | BINARY, b"hello"))
            if page is Digest:
                assert await sockets[3].answer() == digest(b"hello")
            else:
                assert await sockets[2].reader.readexactly(1) == bytes([FINAL | 0x40 | 1])

    run(case)


def test_a_message_that_is_half_there_is_charged_whole() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="4MiB")
        async with serving(quota) as port, Client.to(port) as socket:
            socket.writer.write(frame(FINAL | BINARY, bytes(600 * KIB), 800 * KIB))
            await until(lambda: quota.memory.used == 800 * KIB)
            socket.writer.write(bytes(200 * KIB))
            assert await socket.answer() == digest(bytes(800 * KIB))
            await until(lambda: quota.memory.used == 0)

    run(case)


def test_fragments_are_charged_until_the_last_has_come() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="4MiB")
        async with serving(quota) as port, Client.to(port) as socket:
            pieces = [os.urandom(50 * KIB) for _ in range(10)]
            for number, piece in enumerate(pieces):
                socket.writer.write(frame(CONTINUES if number else BINARY, piece))
                await until(lambda number=number: quota.memory.used >= 100 * KIB * (number + 1))
                socket.writer.write(frame(FINAL | PING, b"between"))
                assert await socket.reader.readexactly(9) == bytes([FINAL | 0xA, 7]) + b"between"
                assert 0 <= quota.memory.used - 100 * KIB * (number + 1) < 16  # and room for what is read next
            socket.writer.write(frame(FINAL | CONTINUES, b"end"))
            assert await socket.answer() == digest(b"".join(pieces) + b"end")
            await until(lambda: quota.memory.used == 0)

    run(case)


@pytest.mark.parametrize("first", [FINAL | BINARY, BINARY])
def test_messages_that_stall_give_way_to_one_that_comes(monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    monkeypatch.setattr(admission, "STALLED", 0.05)
    monkeypatch.setattr(admission, "_LOOKS", 0.01)

    async def case() -> None:
        quota = ResourceQuota(memory="2MiB")
        async with (
            serving(quota) as port,
            Client.to(port) as one,
            Client.to(port) as other,
            Client.to(port) as late,
        ):
            for socket in (one, other):
                whole = 700 * KIB if first & FINAL else None
                socket.writer.write(frame(first, bytes(300 * KIB), whole))
            await until(lambda: quota.memory.used >= 1200 * KIB)
            message = os.urandom(1000 * KIB)
            late.writer.write(frame(FINAL | BINARY, message))
            assert await late.answer() == digest(message)
            assert await one.is_closed()
            assert quota.memory.peak <= 2 << 20

    run(case)


def test_what_one_had_that_was_cut_is_gone_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when the collector runs: a hundred of them held 150 MiB until it did."""
    monkeypatch.setattr(admission, "STALLED", 0.05)
    monkeypatch.setattr(admission, "_LOOKS", 0.01)

    async def case() -> None:
        made: list[weakref.ref[WebSocketProtocol]] = []
        quota = ResourceQuota(memory="1MiB")
        pages = [("/", Noted, {"made": made})]
        async with serving(quota, pages=pages) as port, Client.to(port) as one, Client.to(port) as other:
            for socket in (one, other):
                for number in range(4):
                    socket.writer.write(frame(CONTINUES if number else BINARY, bytes(60 * KIB)))
                    socket.writer.write(frame(CONTINUES, bytes(60 * KIB)))
            await until(lambda: any(each() is None for each in made))  # both may be cut

    gc.disable()
    try:
        run(case)
    finally:
        gc.enable()


def test_a_message_that_is_larger_than_the_quota_ends_its_connection_alone() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="256KiB")
        async with serving(quota) as port, Client.to(port) as large, Client.to(port) as small:
            large.writer.write(frame(FINAL | BINARY, bytes(100), 1 << 20))
            assert await large.is_closed()
            small.writer.write(frame(FINAL | BINARY, b"small"))
            assert await small.answer() == digest(b"small")

    run(case)


@pytest.mark.parametrize(
    "sent",
    [
        frame(FINAL | BINARY, bytes(100), 1 << 20),
        frame(BINARY, bytes(100 * KIB)) + frame(CONTINUES, b"", 100 * KIB),
    ],
    ids=["whole", "in fragments"],
)
def test_a_message_that_can_never_fit_is_one_line_in_the_log_and_no_error(
    sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def case() -> None:
        async with serving(ResourceQuota(memory="256KiB")) as port, Client.to(port) as socket:
            socket.writer.write(sent)
            assert await socket.is_closed()

    caplog.set_level("INFO")
    run(case)
    told = [(record.levelname, record.name, record.getMessage()) for record in caplog.records]
    assert [line for line in told if line[0] not in ("DEBUG", "INFO")] == []
    [message] = [text for _, name, text in told if name == "tornado.general" and "websocket" in text]
    assert (
        message == "a websocket from 127.0.0.1 was closed: its message takes more room than one may have, 240 KiB"
    )


def test_a_handler_that_is_no_websocket_answers_and_the_connection_goes_on() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        async with serving(quota) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for _ in range(3):
                for head in (HANDSHAKE, b"\r\n"):
                    writer.write(b"GET /here HTTP/1.1\r\nHost: 127.0.0.1\r\n" + head)
                    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
                    assert await reader.readexactly(4) == b"here"
                writer.write(b"GET /here HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n")
                writer.write(b"5\r\nabcde\r\n2\r\nfg\r\n0\r\n\r\n")
                await reader.readuntil(b"\r\n\r\nhere")
            await until(lambda: quota.memory.used == 0)
            writer.close()

    run(case)


def test_a_body_beside_a_handshake_is_no_message() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="4MiB")
        async with serving(quota) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for _ in range(2):
                head = HANDSHAKE.removesuffix(b"\r\n") + b"Content-Length: 60002\r\n\r\n"
                writer.write(b"GET /here HTTP/1.1\r\nHost: 127.0.0.1\r\n" + head + b"\2\xfe" + bytes(60_000))
                await reader.readuntil(b"\r\n\r\nhere")
            writer.write(b"GET /here HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            await reader.readuntil(b"\r\n\r\nhere")
            await until(lambda: quota.memory.used == 0)
            writer.close()

    run(case)


def test_a_handshake_over_tls_leaves_nothing_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    for_server, for_client = contexts()

    async def case() -> None:
        async with (
            serving(ResourceQuota(memory="4MiB"), for_server) as port,
            Client.to(port, for_client) as socket,
        ):
            socket.writer.write(frame(FINAL | BINARY, b"hello"))
            assert await socket.answer() == digest(b"hello")

    run(case)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_what_a_reader_keeps_is_told_by_what_it_was_given() -> None:
    message = Message("192.0.2.1")
    steps = [
        (b"\x02\xfe", 2, 0),  # begins, masked, with two bytes of length
        (b"\x01\x00", 2, 0),
        (b"mask", 4, 0),
        (bytes(256), -256, 512),
        (b"\x89\x00", 2, 512),  # a ping without a payload
        (b"", 0, 512),
        (b"\x00\x03", 2, 512),
        (b"abc", -3, 518),
        (b"\x80\x01", 2, 518),
        (b"d", 519, 0),
        (b"a line\n", 7, 0),  # of who reads otherwise
    ]
    for data, gone, size in steps:
        assert (message.read(data), message.size) == (gone, size)
