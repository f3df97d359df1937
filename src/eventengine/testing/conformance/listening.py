"""Listeners: binding and starting."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from eventengine.address import ResolvedAddress
from eventengine.config import EndpointConfig
from eventengine.engine import Listener
from eventengine.status import ClosedResourceError, Status, StatusCode, StatusError
from eventengine.testing.application import Accepting, Application, Callback
from eventengine.testing.capabilities import lacking, needs
from eventengine.testing.conformance.fixtures import skip_without_ipv6
from eventengine.testing.oracle import OracleServer, connect, receive
from eventengine.testing.scenes import port_without_listener, unix_address

ANY_PORT = ResolvedAddress.tcp("127.0.0.1", 0)
ALONE = EndpointConfig(reuse_port=False)


def _new_listener(app: Application, config: EndpointConfig | None = None) -> tuple[Listener, Callback[Status]]:
    """A listener that nobody connects to, and its `on_shutdown`."""
    on_shutdown = Callback[Status](app.ledger)
    listener = app.call(
        lambda: app.engine.create_listener(
            lambda endpoint, allocator: endpoint.close(), on_shutdown, config or EndpointConfig(), app.quota
        )
    )
    return listener, on_shutdown


def _serve_one(app: Application, accepting: Accepting, address: ResolvedAddress) -> None:
    """One connection through, and closed."""
    with connect(address) as peer, closing(accepting.next()) as endpoint:
        peer.sendall(b"ping")
        assert app.receive(endpoint, 4) == b"ping"


def test_a_listener_accepts_with_the_addresses_of_both_ends(
    anywhere: Application, free_address: ResolvedAddress
) -> None:
    accepting = anywhere.listen(free_address)
    with connect(accepting.address) as peer, closing(accepting.next()) as endpoint:
        peer.sendall(b"question")
        assert anywhere.receive(endpoint, 8) == b"question"
        assert anywhere.write(endpoint, b"answer").ok
        assert receive(peer, 6) == b"answer"
        assert endpoint.local_address == accepting.address
        if free_address.family != socket.AF_UNIX:
            assert endpoint.peer_address.sockaddr == peer.getsockname()
    accepting.close()
    assert accepting.on_shutdown.result() == Status.OK


@needs("unix")
def test_a_listener_accepts_on_all_that_was_bound(app: Application, unix_folder: Path) -> None:
    accepting = app.listen(ANY_PORT, unix_address(unix_folder / "first"), unix_address(unix_folder / "second"))
    for address in accepting.addresses:
        _serve_one(app, accepting, address)


def test_port_0_takes_the_port_of_the_listeners_earlier_sockets(app: Application) -> None:
    with port_without_listener("0.0.0.0") as reserved:  # so that nobody has it on the second address
        port = reserved.port
        addresses = (ResolvedAddress.tcp("127.0.0.1", port), ResolvedAddress.tcp("127.0.0.2", 0))
        accepting = app.listen(*addresses)
        assert [address.port for address in accepting.addresses] == [port, port]
        for address in accepting.addresses:
            _serve_one(app, accepting, address)


@needs("unix")
def test_bind_returns_1_for_a_unix_socket(app: Application, unix_folder: Path) -> None:
    listener, _ = _new_listener(app)
    assert listener.bind(ResolvedAddress.parse(f"unix:{unix_folder / 'socket'}")) == 1
    listener.close()


def test_bind_and_start_in_the_wrong_order_are_told_at_the_caller(anywhere: Application) -> None:
    listener, _ = _new_listener(anywhere)
    ports: list[int] = []
    calls: list[tuple[str, Callable[[], object]]] = [
        ("nothing was bound", listener.start),
        ("bind must come before start", lambda: listener.bind(ANY_PORT)),
        ("started before", listener.start),
    ]
    for message, call in calls:
        with pytest.raises(StatusError, match=message) as raised:
            anywhere.call(call)
        assert raised.value.status.code is StatusCode.FAILED_PRECONDITION
        if "nothing" in message:
            ports.append(anywhere.call(lambda: listener.bind(ANY_PORT)))
            anywhere.call(listener.start)
    connect(ANY_PORT.with_port(ports[0])).close()
    listener.close()
    for call in (listener.start, lambda: listener.bind(ANY_PORT)):
        with pytest.raises(ClosedResourceError, match="listener was closed"):
            anywhere.call(call)


@needs("ipv6")
def test_the_ipv6_wildcard_takes_ipv4_too(app: Application) -> None:
    skip_without_ipv6()
    accepting = app.listen(ResolvedAddress.tcp("::", 0))
    for host in ("::1", "127.0.0.1"):
        address = ResolvedAddress.tcp(host, accepting.address.port)
        with connect(address) as peer, closing(accepting.next()) as endpoint:
            assert endpoint.peer_address == ResolvedAddress(address.family, peer.getsockname())
            assert endpoint.local_address == address


def test_the_ipv4_wildcard_takes_ipv4(app: Application) -> None:
    accepting = app.listen(ResolvedAddress.tcp("0.0.0.0", 0))
    _serve_one(app, accepting, ResolvedAddress.tcp("127.0.0.1", accepting.address.port))


def test_a_port_that_is_taken_is_told_at_the_caller(anywhere: Application) -> None:
    with OracleServer() as server:
        listener, _ = _new_listener(anywhere, ALONE)
        with pytest.raises(StatusError, match="EADDRINUSE") as raised:
            anywhere.call(lambda: listener.bind(server.address))
        assert raised.value.status.errno == errno.EADDRINUSE
        assert anywhere.call(lambda: listener.bind(ANY_PORT)) != server.address.port
        listener.close()


def test_two_listeners_share_a_port_if_both_may(app: Application) -> None:
    if not hasattr(socket, "SO_REUSEPORT"):
        lacking("reuse-port", "this system has no SO_REUSEPORT")
    first = app.listen()
    second = app.listen(first.address)
    assert first.address == second.address
    first.close()
    _serve_one(app, second, second.address)
    alone, _ = _new_listener(app, ALONE)
    with pytest.raises(StatusError, match="EADDRINUSE"):
        alone.bind(second.address)
    alone.close()


@needs("unix")
def test_an_address_that_cannot_be_bound_is_told_at_the_caller(app: Application, unix_folder: Path) -> None:
    listener, _ = _new_listener(app)
    for address, code in (
        (ResolvedAddress.parse(f"unix:{unix_folder}/none/socket"), StatusCode.UNAVAILABLE),
        (ResolvedAddress(9999, ("127.0.0.1", 0)), StatusCode.INVALID_ARGUMENT),
        (ResolvedAddress(socket.AF_INET, ("::1", 0)), StatusCode.INVALID_ARGUMENT),
    ):
        with pytest.raises(StatusError) as raised:
            listener.bind(address)
        assert raised.value.status.code is code, str(raised.value)
    listener.close()


def test_a_socket_hook_that_raises_fails_its_bind_alone(app: Application) -> None:
    failing = [True]

    def hook(sock: socket.socket) -> None:
        if failing:
            raise LookupError("no such mark")

    listener, _ = _new_listener(app, EndpointConfig(socket_hook=hook))
    with pytest.raises(LookupError, match="no such mark"):
        app.call(lambda: listener.bind(ANY_PORT))
    failing.clear()
    assert listener.bind(ANY_PORT)
    listener.close()


# Unix sockets' files.


@needs("unix")
def test_a_stale_unix_socket_is_replaced(app: Application, unix_folder: Path) -> None:
    address = ResolvedAddress.parse(f"unix:{unix_folder / 'socket'}")
    OracleServer(address).close()
    accepting = app.listen(address)
    _serve_one(app, accepting, address)


@needs("unix")
@pytest.mark.parametrize("backlog", [128, 0], ids=["idle", "with a full backlog"])
def test_a_unix_socket_that_somebody_listens_on_is_left_to_him(
    app: Application, unix_folder: Path, backlog: int
) -> None:
    address = ResolvedAddress.parse(f"unix:{unix_folder / 'socket'}")
    with OracleServer(address, backlog=backlog) as server, connect(address) as peer:
        listener, _ = _new_listener(app)
        with pytest.raises(StatusError) as raised:
            listener.bind(address)
        assert raised.value.status.errno == errno.EADDRINUSE
        listener.close()
        with server.accept() as accepted:
            peer.sendall(b"served")
            assert receive(accepted, 6) == b"served"


@needs("unix")
def test_a_file_that_is_no_socket_is_left_alone(app: Application, unix_folder: Path) -> None:
    path = unix_folder / "precious"
    path.write_bytes(b"data")
    listener, _ = _new_listener(app)
    with pytest.raises(StatusError) as raised:
        listener.bind(ResolvedAddress.parse(f"unix:{path}"))
    assert raised.value.status.errno == errno.EADDRINUSE
    listener.close()
    assert path.read_bytes() == b"data"


@needs("unix")
def test_closing_removes_the_file_of_a_unix_socket_but_not_anothers(app: Application, unix_folder: Path) -> None:
    ours, anothers = (unix_folder / name for name in ("ours", "another's"))
    accepting = app.listen(*(ResolvedAddress.parse(f"unix:{path}") for path in (ours, anothers)))
    assert ours.is_socket()
    anothers.unlink()
    with OracleServer(accepting.addresses[1]):
        accepting.close()
        assert not ours.exists()
        assert anothers.is_socket()
