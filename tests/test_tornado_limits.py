"""The limits of Tornado's bounded servers: the least quota, who waits at a limit, and what the log says of them."""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import pytest

pytest.importorskip("tornado", reason="needs the extra tornado")

from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream, StreamClosedError
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from eventengine import ResourceQuota, tally
from eventengine.bridges.tornado import QuotaHTTPServer, QuotaTCPClient, QuotaTCPServer
from tornado_certificate import contexts

LEAST = 128 << 10
TIMEOUT = 60.0
HEAD = b" / HTTP/1.1\r\nHost: site\r\n"


class Count(RequestHandler):
    def get(self) -> None:
        self.write("here")

    def put(self) -> None:
        self.write(str(len(self.request.body)))


class Lines(QuotaTCPServer):
    async def handle_stream(self, stream: IOStream, address: object) -> None:
        with suppress(StreamClosedError):
            while True:
                await stream.write(await stream.read_until(b"\n"))


def make_server(kind: str, quota: Any, **options: Any) -> QuotaHTTPServer | QuotaTCPServer:
    if kind == "http":
        return QuotaHTTPServer(Application([("/", Count)]), quota=quota, **options)
    return Lines(quota=quota, **options)


async def ask(kind: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Something small, and something of 3,000 bytes."""
    if kind == "tcp":
        for line in (b"hello\n", bytes(3000) + b"\n"):
            writer.write(line)
            assert await reader.readline() == line
        return
    writer.write(b"GET" + HEAD + b"\r\n")
    assert (await reader.readuntil(b"here")).startswith(b"HTTP/1.1 200 ")
    writer.write(b"PUT" + HEAD + b"Content-Length: 3000\r\n\r\n" + bytes(3000))
    assert (await reader.readuntil(b"3000")).startswith(b"HTTP/1.1 200 ")


@asynccontextmanager
async def serving(server: QuotaHTTPServer | QuotaTCPServer) -> AsyncIterator[int]:
    """Gives the port; when the clients have gone, nothing is charged any more."""
    [sock] = bind_sockets(0, "127.0.0.1")
    server.add_sockets([sock])
    try:
        yield sock.getsockname()[1]
        await until(lambda: (server.quota.memory.used, server.quota.connections.used) == (0, 0))
    finally:
        server.stop()


@asynccontextmanager
async def client(
    port: int, context: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()


def run(case: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(case(), TIMEOUT))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  # a quota has no event
        await asyncio.sleep(0.001)


kinds = pytest.mark.parametrize("kind", ["http", "tcp"])


@pytest.fixture(params=["plain", "tls"])
def tls(request: pytest.FixtureRequest) -> tuple[dict[str, Any], ssl.SSLContext | None]:
    """A server's options, and its clients' context."""
    if request.param == "plain":
        return {}, None
    server, mine = contexts()
    return {"ssl_options": server}, mine


Tls = tuple[dict[str, Any], ssl.SSLContext | None]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[str], list[str]]:
    """The lines of Tornado's log with a text in them."""
    caplog.set_level(logging.INFO, "tornado.general")

    def find(text: str) -> list[str]:
        lines = (re.sub(r"^\w+ +\S+ ", "", line) for line in caplog.text.splitlines())  # as they were then
        return [line for line in lines if text in line]

    return find


Said = Callable[[str], list[str]]


@pytest.mark.parametrize("quota", [LEAST - 1, "127KiB", ResourceQuota(memory=300)], ids=["int", "text", "quota"])
@pytest.mark.parametrize("make", [Lines, QuotaTCPClient, lambda quota: make_server("http", quota)])
def test_less_than_the_least_is_refused_by_one_sentence(make: Callable[..., object], quota: Any) -> None:
    with pytest.raises(
        ValueError, match=r"^a quota of \d+ bytes has no room to serve a connection; give 128 KiB or more$"
    ):
        make(quota=quota)


@kinds
def test_the_least_serves_one_after_the_other_and_many_at_once(kind: str, tls: Tls) -> None:
    async def case() -> None:
        server = make_server(kind, "128KiB", **tls[0])
        async with serving(server) as port:

            async def come() -> None:
                async with client(port, tls[1]) as (reader, writer):
                    await ask(kind, reader, writer)

            for _ in range(5):
                await come()
            await asyncio.gather(*(come() for _ in range(8)))
            assert server.quota.memory.peak <= LEAST

    run(case)


@kinds
def test_as_many_as_are_accepted_are_served_though_none_is_closed(kind: str) -> None:
    async def case() -> None:
        server = make_server(kind, "128KiB")
        async with serving(server) as port, AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(client(port)) for _ in range(20)]
            await until(lambda: server.quota.connections.used == 14)
            await asyncio.gather(*(ask(kind, *each) for each in clients[:14]))
            assert server.quota.connections.used == 14
            for _, writer in clients[:6]:
                writer.close()
            await asyncio.gather(*(ask(kind, *each) for each in clients[6:]))

    run(case)


@kinds
def test_connections_are_counted_where_there_is_no_limit(kind: str, tls: Tls) -> None:
    async def case() -> None:
        server = make_server(kind, ResourceQuota(), **tls[0])
        used: list[int] = []
        async with serving(server) as port, AsyncExitStack() as stack:
            for _ in range(3):
                await ask(kind, *await stack.enter_async_context(client(port, tls[1])))
                used.append(server.quota.connections.used)
        assert used == [1, 2, 3]

    run(case)


def test_a_stream_that_becomes_one_of_tls_is_still_one_connection() -> None:
    async def case() -> None:
        context, mine = contexts()
        used: list[int] = []

        class Upgrading(QuotaTCPServer):
            async def handle_stream(self, stream: IOStream, address: object) -> None:
                used.append(self.quota.connections.used)
                secure = await stream.start_tls(True, context)
                used.append(self.quota.connections.used)
                secure.close()

        async with serving(Upgrading(quota="1MiB")) as port, client(port) as (reader, writer):
            await writer.start_tls(mine)
            assert await reader.read() == b""
        assert used == [1, 1]

    run(case)


@kinds
def test_the_log_says_once_what_is_bounded(kind: str, said: Said) -> None:
    async def case() -> None:
        server = make_server(kind, ResourceQuota("mine", memory="64MiB", connections=1))
        assert said("bounded") == []
        async with serving(server), serving(server):
            pass

    run(case)
    name = {"http": "QuotaHTTPServer", "tcp": "Lines"}[kind]
    assert said("bounded") == [
        f"{name}: connections are bounded by the quota 'mine': 64 MiB of memory and 1 connection"
    ]


def test_the_log_says_that_there_is_no_limit(said: Said) -> None:
    async def case() -> None:
        async with serving(make_server("tcp", ResourceQuota("mine"))):
            pass

    run(case)
    assert said("mine") == [
        "Lines: what connections hold is counted by the quota 'mine', which has no limit",
    ]


@kinds
def test_that_the_limit_of_connections_is_reached_is_logged(
    kind: str, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tally, "monotonic", lambda: 7.0)  # all of it is within a second

    async def case() -> None:
        server = make_server(kind, ResourceQuota("mine", memory="1MiB", connections=2))
        async with serving(server) as port, client(port) as first:
            await ask(kind, *first)
            assert said("no room") == []
            async with AsyncExitStack() as stack:
                clients = [await stack.enter_async_context(client(port)) for _ in range(3)]
                await until(lambda: bool(said("no room")))
                await ask(kind, *clients[0])

    run(case)
    assert len(said("no room")) == 1
    assert ", connections 2 of 2> has no room for one more connection: new ones wait" in said("no room")[0]


def test_who_waits_for_memory_is_logged(said: Said) -> None:
    async def case() -> None:
        server = make_server("tcp", "1MiB")
        memory = server.quota.memory
        async with serving(server) as port, client(port) as (reader, writer):
            await ask("tcp", reader, writer)
            held = memory.take((1 << 20) - memory.used, 1 << 20)
            async with client(port) as second:
                await until(lambda: bool(said("no room for one more connection")))
                memory.give(held)
                await ask("tcp", *second)

    run(case)


def test_one_and_many_are_told_apart(said: Said) -> None:
    async def case() -> None:
        server = make_server("http", "1MiB")
        async with serving(server):
            bound = server._bound()  # type: ignore[union-attr]
            bound.cut.add()
            bound.cut.add(2)
            bound.cut._told_at -= 1.0
            bound.cut.add()

    run(case)
    assert [line.partition("full: ")[2] for line in said("full")] == [
        "1 client was cut before it had read everything",
        "3 clients were cut before they had read everything",
    ]


@pytest.mark.parametrize("how", [QuotaHTTPServer, "eventengine.bridges.tornado.QuotaHTTPServer"])
def test_a_server_that_was_configured_without_a_quota_says_how(how: Any) -> None:
    HTTPServer.configure(how)
    try:
        with pytest.raises(TypeError, match=r'HTTPServer\.configure\(QuotaHTTPServer, quota="64MiB"\)'):
            Application().listen(0, "127.0.0.1")
    finally:
        HTTPServer.configure(None)
