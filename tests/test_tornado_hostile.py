"""Peers of a `QuotaHTTPServer` and a `QuotaTCPServer` that do what no client would."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

pytest.importorskip("tornado", reason="needs the extra tornado")

from tornado.httputil import HTTPConnection, HTTPMessageDelegate, HTTPServerConnectionDelegate
from tornado.iostream import IOStream
from tornado.netutil import bind_sockets
from tornado.web import RequestHandler, stream_request_body

from eventengine import ResourceQuota
from eventengine.bridges.tornado import QuotaHTTPServer, bound, streams
from eventengine.bridges.tornado.bound import Bound
from tornado_serving import KIB, MIB, free_connections, impatient, run, serving_site, until

__all__ = ["free_connections", "impatient"]  # fixtures

pytestmark = pytest.mark.usefixtures("free_connections")

GET = b"GET / HTTP/1.1\r\nHost: site\r\n\r\n"


class Waits(RequestHandler):
    """Answers with the length of the body when `site.permits` has a permit."""

    def initialize(self, site: Site) -> None:
        self.site = site

    def on_connection_close(self) -> None:
        self.site.left += 1

    async def get(self) -> None:
        self.site.came += 1
        await self.site.permits.acquire()
        if self.site.fails:
            raise ValueError("as it should")
        self.write(f"{len(self.request.body)}")

    put = get


class Here(RequestHandler):
    def put(self) -> None:
        self.write("here")


class Detaches(RequestHandler):
    def put(self) -> None:
        self.detach().write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


@stream_request_body
class Pieces(RequestHandler):
    def data_received(self, chunk: bytes) -> None:
        pass

    def put(self) -> None:
        pass


class DetachesLater(Waits):
    async def get(self) -> None:
        self.site.came += 1
        await self.site.permits.acquire()
        self.site.detached.append(self.detach())


class Site:
    """A site whose handlers wait.

    Attributes:
        came: How many requests have come.
        left: How many of their clients have left before they were answered.
    """

    def __init__(self) -> None:
        self.permits = asyncio.Semaphore(0)
        self.came = self.left = 0
        self.fails = False
        self.detached: list[IOStream] = []
        self.port = 0

    @asynccontextmanager
    async def serving(self, quota: ResourceQuota, **options: Any) -> AsyncIterator[Site]:
        pages = [("/", Waits, {"site": self}), ("/here", Here), ("/detaches", Detaches), ("/pieces", Pieces)]
        pages.append(("/detaches/later", DetachesLater, {"site": self}))
        async with serving_site(quota, pages, **options) as self.port:
            yield self

    @asynccontextmanager
    async def client(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield reader, writer
        finally:
            writer.close()


def put(body: bytes, path: str = "/") -> bytes:
    return f"PUT {path} HTTP/1.1\r\nHost: site\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def turns() -> None:
    """Has the site handle what was sent: both are on one loop."""
    for _ in range(3):
        await asyncio.sleep(0)


async def answer(reader: asyncio.StreamReader) -> bytes:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    return await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))


def test_that_a_client_leaves_is_heard_also_while_a_request_is_handled_that_was_read_ahead() -> None:
    async def case() -> None:
        async with (
            Site().serving(ResourceQuota(memory="1MiB")) as site,
            site.client() as (reader, writer),
        ):
            writer.write(GET)
            await until(lambda: site.came == 1)
            writer.write(GET)
            await turns()  # so that it is read while the first is handled
            site.permits.release()
            assert await answer(reader) == b"0"
            await until(lambda: site.came == 2)
            writer.close()
            await asyncio.wait_for(until(lambda: site.left == 1), 5)

    run(case)


@pytest.mark.parametrize("fails", [False, True])
def test_a_body_holds_its_room_while_its_handler_works_though_the_client_has_left(fails: bool) -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        body = bytes(600 * KIB)
        async with Site().serving(quota) as site, site.client() as (reader, writer):
            site.fails = fails
            async with site.client() as (_, leaver):
                leaver.write(put(body))
                await until(lambda: site.came == 1)
            await until(lambda: site.left == 1 and quota.connections.used == 1)
            assert quota.memory.used == len(body)
            writer.write(put(body))
            await until(lambda: quota.memory.somebody_waits)
            site.permits.release()  # the handler of who has left ends
            await until(lambda: site.came == 2)
            assert quota.memory.used == len(body)
            site.fails = False
            site.permits.release()
            assert await answer(reader) == b"%d" % len(body)
            await until(lambda: not quota.memory.used)

    gc.disable()  # who has left is forgotten without it
    try:
        run(case)
    finally:
        gc.enable()


def test_a_body_holds_its_room_no_longer_when_its_handler_has_taken_the_connection_over() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        body = bytes(600 * KIB)
        async with Site().serving(quota) as site, site.client() as (reader, writer):
            writer.write(put(body, "/detaches"))
            assert await answer(reader) == b""
            await until(lambda: not quota.memory.used)

    gc.disable()
    try:
        run(case)
    finally:
        gc.enable()


def test_a_body_that_gets_its_room_as_its_connection_is_closed_gives_it_back() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        held = 0

        class Gives(HTTPServerConnectionDelegate, HTTPMessageDelegate):
            def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
                return self

            def on_connection_close(self) -> None:
                quota.memory.give(held)

        server = QuotaHTTPServer(Gives(), quota=quota)
        [sock] = bind_sockets(0, "127.0.0.1")
        server.add_sockets([sock])
        _, writer = await asyncio.open_connection("127.0.0.1", sock.getsockname()[1])
        await until(lambda: quota.connections.used == 1)
        held = quota.memory.take(1000 * KIB, 1000 * KIB)
        writer.write(put(bytes(1000)))  # which is read ahead whole
        await until(lambda: quota.memory.somebody_waits)
        server.stop()
        await server.close_all_connections()
        assert (quota.memory.used, quota.memory.somebody_waits) == (0, False)
        assert not Bound.of(quota, asyncio.get_running_loop()).admission.moving
        writer.close()

    run(case)


@pytest.mark.parametrize("is_handled", [True, False])
def test_what_was_read_beyond_a_request_is_charged(is_handled: bool) -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        async with Site().serving(quota) as site, site.client() as (reader, writer):
            writer.write(put(b"x", "/here"))
            assert await answer(reader) == b"here"
            writer.write(put(b"x", "/" if is_handled else "/here") + b"GET / HTTP/1.1\r\nx: " + bytes(30 * KIB))
            await until(lambda: site.came == is_handled and quota.memory.used >= 30 * KIB)
            assert quota.memory.used < 32 * KIB
            site.permits.release()
            assert await answer(reader) == (b"1" if is_handled else b"here")

    run(case)


@pytest.mark.parametrize("chunked", [True, False])
def test_little_is_read_beyond_a_request_while_there_is_little_room(chunked: bool) -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        async with Site().serving(quota) as site, site.client() as (reader, writer):
            writer.write(put(b"x", "/here"))
            assert await answer(reader) == b"here"
            held = quota.memory.take(900 * KIB, 900 * KIB)
            head = b"PUT / HTTP/1.1\r\nHost: site\r\nTransfer-Encoding: chunked\r\n\r\n"
            writer.write(head + b"1\r\nx\r\n0\r\n\r\n" if chunked else put(b"x"))
            writer.write(b"GET / HTTP/1.1\r\nx: " + bytes(60 * KIB))
            await until(lambda: site.came == 1)
            assert quota.memory.used < (930 if chunked else 910) * KIB  # with room for a piece of the body
            site.permits.release()
            assert await answer(reader) == b"1"
            quota.memory.give(held)

    run(case)


@pytest.fixture
def none_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is."""
    monkeypatch.setattr(bound, "NEW", 3600.0)


@pytest.mark.usefixtures("none_is_idle")
def test_heads_that_have_come_in_part_take_no_more_than_there_is() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        async with Site().serving(quota) as site, site.client() as (reader, writer), AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(site.client()) for _ in range(20)]
            for _, each in clients:
                each.write(b"GET / HTTP/1.1\r\nx: " + b"x" * 60 * KIB)
            closed, _ = await asyncio.wait(
                [asyncio.ensure_future(head.read()) for head, _ in clients], return_when=asyncio.FIRST_COMPLETED
            )
            assert closed
            assert quota.memory.peak <= (1024 + 16) * KIB
            writer.write(put(b"", "/here"))
            assert await answer(reader) == b"here"

    run(case)


@pytest.mark.usefixtures("none_is_idle")
def test_a_request_is_answered_with_503_that_has_a_long_head_for_which_there_is_no_room() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        async with Site().serving(quota) as site, site.client() as long, site.client() as short:
            await until(lambda: quota.connections.used == 2)
            held = quota.memory.take(MIB, MIB)
            long[1].write(b"GET / HTTP/1.1\r\n" + b"x: x\r\n" * 20 + b"\r\n")
            assert (await long[0].read()).startswith(b"HTTP/1.1 503 ")
            assert quota.memory.used == held
            short[1].write(put(b"", "/here"))
            assert await answer(short[0]) == b"here"
            quota.memory.give(held)

    run(case)


@pytest.mark.parametrize("is_read_first", [True, False])
@pytest.mark.parametrize("head", [0, 10 * KIB])
def test_what_a_request_takes_is_charged_until_its_handler_has_finished_though_the_client_has_left(
    monkeypatch: pytest.MonkeyPatch, head: int, is_read_first: bool
) -> None:
    monkeypatch.setattr(streams, "COST", 1000)

    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        async with Site().serving(quota) as site:
            async with site.client() as (_, writer):
                writer.write(b"GET / HTTP/1.1\r\nHost: site\r\nx: " + b"x" * head + b"\r\n\r\n")
                if is_read_first:
                    await until(lambda: site.came == 1)
            await until(lambda: site.came == 1 and not quota.connections.used)
            await turns()
            assert 1000 + 2 * head <= quota.memory.used < 2000 + 2 * head
            site.permits.release()
            await until(lambda: not quota.memory.used)

    gc.disable()
    try:
        run(case)
    finally:
        gc.enable()


def test_a_request_whose_client_has_left_holds_nothing_any_more_when_its_handler_has_detached() -> None:
    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        async with Site().serving(quota) as site:
            async with site.client() as (_, writer):
                writer.write(b"GET /detaches/later HTTP/1.1\r\nHost: site\r\nx: " + b"x" * 10 * KIB + b"\r\n\r\n")
                await until(lambda: site.came == 1)
            await until(lambda: site.left == 1 and not quota.connections.used)
            assert quota.memory.used >= 20 * KIB
            site.permits.release()
            await until(lambda: not quota.memory.used)
            [stream] = site.detached
            assert stream.closed()

    gc.disable()
    try:
        run(case)
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "rest",
    [b"Expect: 100-continue\r\n\r\nabcde", b"\r\nabc", b"\r\nabcde"],
    ids=["that was to be asked for", "in part", "whole"],
)
def test_what_a_request_takes_that_came_after_the_last_one_is_charged_no_longer_than_it_is_read(
    monkeypatch: pytest.MonkeyPatch, rest: bytes
) -> None:
    monkeypatch.setattr(streams, "COST", 1000)

    async def case() -> None:
        quota = ResourceQuota(memory="1MiB")
        async with Site().serving(quota) as site, site.client() as (reader, writer):
            last = b"PUT /here HTTP/1.1\r\nHost: site\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            writer.write(last + b"PUT /pieces HTTP/1.1\r\nHost: site\r\nContent-Length: 5\r\n" + rest)
            assert await answer(reader) == b"here"
            await until(lambda: not quota.connections.used)
            await turns()
            assert quota.memory.used == 0

    gc.disable()
    try:
        run(case)
    finally:
        gc.enable()
