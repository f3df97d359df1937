"""`connect`: to what, and how it ends."""

from __future__ import annotations

import errno
import random
import socket
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from eventengine.address import ResolvedAddress
from eventengine.config import EndpointConfig
from eventengine.engine import Endpoint
from eventengine.status import Status, StatusCode
from eventengine.testing.application import Application, Callback, Ledger
from eventengine.testing.capabilities import needs
from eventengine.testing.oracle import TIMEOUT, OracleServer, receive, receive_all
from eventengine.testing.scenes import (
    close_if_connected,
    full_backlog,
    never_inline,
    no_descriptors_left,
    port_without_listener,
    unix_address,
)

Connected = Endpoint | Status


def test_a_connection_carries_bytes_both_ways(app: Application, free_address: ResolvedAddress) -> None:
    with OracleServer(free_address) as server:
        endpoint = app.connect(server.address)
        with closing(endpoint), server.accept() as peer:
            assert app.write(endpoint, b"question").ok
            assert receive(peer, 8) == b"question"
            peer.sendall(b"answer")
            assert app.receive(endpoint, 6) == b"answer"
            assert endpoint.peer_address == server.address
            if free_address.family != socket.AF_UNIX:
                assert endpoint.local_address.sockaddr == peer.getpeername()


def test_connect_may_be_called_from_anywhere(anywhere: Application) -> None:
    with OracleServer() as server:
        endpoint = anywhere.connect(server.address)
        with server.accept() as peer:
            endpoint.close()
            assert receive_all(peer) == b""


@needs("unix")
def test_on_connect_is_never_called_within_connect(app: Application, unix_folder: Path) -> None:
    """Not for a failure that is known at once either."""

    def connect(address: ResolvedAddress, timeout: float = TIMEOUT) -> Connected:
        def begin(on_connect: Callable[[Connected], None]) -> None:
            app.start_connect(on_connect, address, timeout=timeout)

        return never_inline(app, begin)

    with OracleServer() as server, OracleServer(unix_address(unix_folder / "server")) as unix_server:
        for address in (server.address, unix_server.address):
            endpoint = connect(address)
            assert not isinstance(endpoint, Status)
            endpoint.close()
    with port_without_listener() as nobody:
        for address in (
            nobody,
            unix_address(unix_folder / "nobody"),
            ResolvedAddress(socket.AF_INET, ("::1", 80)),
        ):
            assert isinstance(connect(address), Status)
    with full_backlog() as full:
        assert isinstance(connect(full.address, timeout=0.0), Status)


def test_a_port_where_nobody_listens_is_unavailable(anywhere: Application) -> None:
    with port_without_listener() as nobody:
        status = anywhere.try_connect(nobody)
        assert isinstance(status, Status)
        assert (status.code, status.errno) == (StatusCode.UNAVAILABLE, errno.ECONNREFUSED)
        assert str(nobody) in status.message


@needs("unix")
@pytest.mark.parametrize("what", ["nothing", "a file", "a socket that nobody listens on"])
def test_a_path_where_nobody_listens_is_unavailable(app: Application, unix_folder: Path, what: str) -> None:
    path = unix_folder / "there"
    number = errno.ECONNREFUSED
    if what == "nothing":
        number = errno.ENOENT
    elif what == "a file":
        path.write_bytes(b"")
    else:
        OracleServer(unix_address(path)).close()
    status = app.try_connect(unix_address(path))
    assert isinstance(status, Status)
    assert status.code is StatusCode.UNAVAILABLE
    assert status.errno in ((number, errno.ENOTSOCK) if what == "a file" else (number,))


@pytest.mark.parametrize("timeout", [0, 0.0, 0.1])
@pytest.mark.parametrize("family", ["tcp", "unix"])
def test_a_connect_that_takes_too_long_has_exceeded_its_deadline(
    app: Application, unix_folder: Path, family: str, timeout: float
) -> None:
    with full_backlog(unix_address(unix_folder / "full") if family == "unix" else None) as server:
        status = app.try_connect(server.address, timeout=timeout)
    assert isinstance(status, Status)
    assert status.code is StatusCode.DEADLINE_EXCEEDED


def test_a_timeout_of_nought_is_a_timeout_or_a_connection(anywhere: Application) -> None:
    with OracleServer() as server:
        result = anywhere.try_connect(server.address, timeout=0)
        if isinstance(result, Status):
            assert result.code is StatusCode.DEADLINE_EXCEEDED
        else:
            result.close()


@needs("unix")
def test_a_connect_that_waits_for_a_place_in_the_backlog_gets_it(app: Application, unix_folder: Path) -> None:
    on_connect = Callback[Connected](app.ledger)
    with full_backlog(unix_address(unix_folder / "full")) as server:
        app.start_connect(on_connect, server.address)
        app.on_loop(lambda: None)
        server.accept().close()
        endpoint = on_connect.result()
        assert not isinstance(endpoint, Status)
        endpoint.close()


@pytest.mark.parametrize(
    "address",
    [
        ResolvedAddress(socket.AF_INET, ("::1", 80)),
        ResolvedAddress(socket.AF_INET6, ("127.0.0.1", 80, 0, 0)),
        ResolvedAddress(socket.AF_UNIX, ("127.0.0.1", 80)),
        ResolvedAddress(socket.AF_INET, "/path"),
        ResolvedAddress(9999, ("127.0.0.1", 80)),
        ResolvedAddress.tcp("127.0.0.1", 0),
    ],
    ids=["v6 as v4", "v4 as v6", "v4 as unix", "unix as v4", "no family", "port 0"],
)
def test_an_address_that_is_none_gives_a_status(app: Application, address: ResolvedAddress) -> None:
    status = app.try_connect(address)
    assert isinstance(status, Status)
    assert status.code in (StatusCode.INVALID_ARGUMENT, StatusCode.UNAVAILABLE)


def test_a_connect_that_meets_itself_was_refused(app: Application) -> None:
    """TCP connects a socket to itself where the port that it asks for is its own and nobody listens there."""
    with port_without_listener() as nobody:

        def bind(sock: socket.socket) -> None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(nobody.sockaddr)

        status = app.try_connect(nobody, EndpointConfig(socket_hook=bind))
    assert isinstance(status, Status)
    assert (status.code, status.errno) == (StatusCode.UNAVAILABLE, errno.ECONNREFUSED)


def test_five_hundred_connects_at_once(app: Application, ledger: Ledger) -> None:
    callbacks = [Callback[Connected](ledger) for _ in range(500)]
    with OracleServer(backlog=512) as server:
        for on_connect in callbacks:
            app.start_connect(on_connect, server.address)
        endpoints = [on_connect.result() for on_connect in callbacks]
        for endpoint in endpoints:
            assert not isinstance(endpoint, Status)
            endpoint.close()
        assert len({endpoint.local_address for endpoint in endpoints if not isinstance(endpoint, Status)}) == 500


def test_without_a_descriptor_left_a_connect_fails_and_the_next_succeeds(anywhere: Application) -> None:
    with OracleServer() as server:
        with no_descriptors_left():
            status = anywhere.try_connect(server.address)
        assert isinstance(status, Status)
        assert (status.code, status.errno) == (StatusCode.RESOURCE_EXHAUSTED, errno.EMFILE)
        anywhere.connect(server.address).close()


@needs("unix")
def test_connects_in_any_order_end_each_for_itself(app: Application, ledger: Ledger, unix_folder: Path) -> None:
    """Good and bad addresses, some cancelled, all at once: none takes another's end."""
    chance = random.Random(7)
    with ExitStack() as stack:
        good = stack.enter_context(OracleServer(backlog=512))
        bad = stack.enter_context(port_without_listener())
        full = stack.enter_context(full_backlog())
        wanted = {good.address: None, bad: StatusCode.UNAVAILABLE, full.address: StatusCode.DEADLINE_EXCEEDED}
        begun: list[tuple[ResolvedAddress, Callback[Connected]]] = []
        for _ in range(200):
            address = chance.choice([*wanted])
            on_connect = Callback[Connected](ledger)
            handle = app.start_connect(on_connect, address, timeout=0.05 if address == full.address else TIMEOUT)
            if chance.random() < 0.3 and app.engine.cancel_connect(handle):
                on_connect.times = 0
            else:
                begun.append((address, on_connect))
        for address, on_connect in begun:
            result = on_connect.result()
            close_if_connected(result)
            assert (result.code if isinstance(result, Status) else None) == wanted[address]
