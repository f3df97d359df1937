"""Calls of the system that fail once below the frameworks' own transports: bounded servers, and what was borrowed."""

from __future__ import annotations

import asyncio
import errno
import queue
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import pytest

from engines import is_installed, running, running_reactor
from eventengine import ResolvedAddress, ResourceQuota, SliceBuffer, StatusError
from eventengine.engine import HalfCloseable
from eventengine.testing.application import Application, Ledger
from eventengine.testing.conformance.fixtures import ledger, nothing_is_left
from eventengine.testing.oracle import TIMEOUT, OracleServer, connect, pattern, receive, receive_all, reset
from faults import Action, Faults, failing, faults, short

__all__ = ["faults", "ledger", "nothing_is_left"]

BROKEN = (errno.ECONNRESET, errno.EPIPE, errno.ETIMEDOUT, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENOMEM)

if is_installed("twisted"):
    from twisted.internet import tcp

    tcp._reservedFD.reserve()  # as its first port does, for ever; it is no leak of a test's

Serve = Callable[[ResourceQuota], Any]
SITES = {
    "tornado": {
        "accept": "bridges.tornado.accepting Gate.accept accept",
        "read": "tornado.iostream IOStream.read_from_fd recv_into",
        "write": "tornado.iostream IOStream.write_to_fd send",
    },
    "twisted": {
        "accept": "twisted.internet.tcp _accept accept",
        "read": "twisted.internet.tcp Connection.doRead recv",
        "write": "bridges.twisted.transports _OverTCP.writeSomeData send",
    },
}


@contextmanager
def tornado_echo(quota: ResourceQuota) -> Iterator[tuple[ResolvedAddress, Callable[[], None]]]:
    """Where it listens, and what waits until the loop has had some turns."""
    from tornado.iostream import StreamClosedError

    from eventengine.bridges.tornado import QuotaTCPServer

    class Echo(QuotaTCPServer):
        async def handle_stream(self, stream: Any, address: object) -> None:
            with suppress(StreamClosedError):
                while True:
                    await stream.write(await stream.read_bytes(1 << 16, partial=True))

    with running(asyncio.new_event_loop()) as loop:

        def call(function: Callable[[], Any]) -> Any:
            async def run() -> Any:
                for _ in range(10):
                    await asyncio.sleep(0)
                return function()

            return asyncio.run_coroutine_threadsafe(run(), loop).result(TIMEOUT)

        def start() -> tuple[Any, Any]:
            server = Echo(quota=quota)
            listening = socket.create_server(("127.0.0.1", 0))
            listening.setblocking(False)
            server.add_sockets([listening])
            return server, listening.getsockname()

        server, address = call(start)
        try:
            yield ResolvedAddress.tcp(*address), lambda: call(lambda: None)
        finally:
            call(server.stop)


@contextmanager
def twisted_echo(quota: ResourceQuota) -> Iterator[tuple[ResolvedAddress, Callable[[], None]]]:
    from twisted.internet.defer import maybeDeferred
    from twisted.internet.protocol import Factory
    from twisted.internet.selectreactor import SelectReactor
    from twisted.protocols.wire import Echo

    from eventengine.bridges.twisted import QuotaServerEndpoint

    with running_reactor(SelectReactor()) as reactor:

        def call(function: Callable[[], Any]) -> Any:
            outcome: queue.SimpleQueue[Any] = queue.SimpleQueue()
            reactor.callFromThread(lambda: maybeDeferred(function).addBoth(outcome.put))
            return outcome.get(timeout=TIMEOUT)

        port = call(
            lambda: QuotaServerEndpoint(reactor, "127.0.0.1:0", quota=quota).listen(Factory.forProtocol(Echo))
        )
        try:
            yield ResolvedAddress.tcp("127.0.0.1", port.getHost().port), lambda: [call(lambda: None) for _ in "ab"]
        finally:
            call(port.stopListening)


ECHOES: dict[str, Serve] = {"tornado": tornado_echo, "twisted": twisted_echo}


@pytest.fixture(params=ECHOES)
def framework(request: pytest.FixtureRequest) -> str:
    module = "twisted.internet" if request.param == "twisted" else request.param  # it may be our plugin's folder
    pytest.importorskip(module, reason=f"the extra {request.param} is not installed")
    return str(request.param)


def until(turn: Callable[[], None], happened: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if happened():
            return
        turn()
    raise AssertionError("it does not happen")


def test_a_bounded_connection_whose_call_fails_gives_back_its_place_and_its_memory(
    framework: str, faults: Faults
) -> None:
    quota = ResourceQuota("one", memory="1MiB", connections=1)
    sites = SITES[framework]
    cases: list[tuple[str, Action]] = [(sites[what], failing(n)) for what in ("read", "write") for n in BROKEN]
    with ECHOES[framework](quota) as (address, turn):
        for site, action in cases:
            with connect(address) as peer, faults.at(site, action):
                peer.sendall(b"data")
                with suppress(ConnectionError):
                    assert receive_all(peer) == b""
            until(turn, lambda: not quota.connections.used and not quota.memory.used)
        with connect(address) as peer:
            peer.sendall(b"data")
            assert receive(peer, 4) == b"data"
        until(turn, lambda: not quota.connections.used and not quota.memory.used)


def test_a_bounded_server_whose_accept_fails_loses_no_place_and_no_other_connection(
    framework: str, faults: Faults
) -> None:
    quota = ResourceQuota("one", memory="1MiB", connections=1)
    lacks = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
    with ECHOES[framework](quota) as (address, turn):
        for number in (errno.EAGAIN, errno.ECONNABORTED, errno.EPERM, *lacks):
            with faults.at(SITES[framework]["accept"], failing(number)) as left:
                while left:  # a call that had begun before may take the connection
                    with connect(address) as peer:
                        if (framework, number) == ("twisted", errno.EMFILE):
                            with suppress(ConnectionResetError):  # for want of a descriptor Twisted closes it
                                assert receive_all(peer) == b""
                        else:
                            peer.sendall(b"data")
                            assert receive(peer, 4) == b"data"
            until(turn, lambda: not quota.connections.used and not quota.memory.used)


def test_short_reads_and_writes_below_a_bounded_connection_bring_every_byte_in_order(
    framework: str, faults: Faults
) -> None:
    quota = ResourceQuota("small", memory="1MiB")
    data = pattern(200_000)
    sites = SITES[framework]
    odd = [short(1), failing(errno.EAGAIN), short(1000), short(3)]
    with ECHOES[framework](quota) as (address, turn):
        with connect(address) as peer, faults.at(sites["read"], *odd), faults.at(sites["write"], *odd):
            for start in range(0, len(data), 10_000):
                peer.sendall(data[start : start + 10_000])
                assert receive(peer, 10_000) == data[start : start + 10_000]
        until(turn, lambda: not quota.connections.used and not quota.memory.used)


def test_a_stream_of_tornado_that_cannot_be_borrowed_may_be_later(ledger: Ledger, faults: Faults) -> None:
    pytest.importorskip("tornado", reason="the extra tornado is not installed")
    from tornado.iostream import IOStream

    from eventengine.bridges.tornado import TornadoEventEngine

    quota = ResourceQuota()
    with OracleServer() as server, TornadoEventEngine.in_thread() as engine:
        app = Application(engine, quota, ledger, on_loop=True)
        allocator = quota.create_memory_allocator("borrowed")
        stream = app.call(lambda: IOStream(connect(server.address)))
        with server.accept() as peer:
            for site in (
                "bridges.tornado.borrowed endpoint_from_iostream getpeername",
                "bridges.tornado.borrowed endpoint_from_iostream getsockname",
            ):
                with faults.at(site, failing(errno.ENOBUFS)), pytest.raises(StatusError) as raised:
                    app.call(lambda: engine.endpoint_from_iostream(stream, allocator))
                assert raised.value.status.errno == errno.ENOBUFS
            endpoint = app.call(lambda: engine.endpoint_from_iostream(stream, allocator))
            with closing(endpoint):
                closable = endpoint.query_extension(HalfCloseable)
                assert closable is not None
                with faults.at("bridges.tornado.borrowed _Port.close_write shutdown", failing(errno.ENOTCONN)):
                    app.call(closable.close_write)
                peer.sendall(b"data")
                assert app.receive(endpoint, 4) == b"data"
                reset(peer)
                assert app.read(endpoint, SliceBuffer()).errno == errno.ECONNRESET
    assert quota.memory.used == 0
