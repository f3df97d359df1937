"""Every call of the system that listens, accepts, takes a socket over or makes an engine fails once; see `faults`."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from engines import Kind
from eventengine import EndpointConfig, EventEngine, Listener, ResolvedAddress, ResourceQuota, Status, StatusError
from eventengine.core import listener as core_listener
from eventengine.core.address_order import source_of
from eventengine.core.hosted import HostedEventEngine
from eventengine.core.poller import PrivatePoller
from eventengine.engine import ListenerSupportsFileDescriptor
from eventengine.testing.application import Application, Callback, Ledger
from eventengine.testing.oracle import OracleServer, connect, receive_all, somewhere
from eventengine.testing.scenes import unix_address
from faults import Action, Faults, calling_and, failing, returning, sites_of
from test_faults import (
    EXHAUSTED,
    app,
    engine,
    faults,
    goes_on,
    kind,
    ledger,
    make_engine,
    nothing_is_left,
    quota,
    said,
    told,
    watching_sites,
)

__all__ = ["app", "engine", "faults", "kind", "ledger", "make_engine", "nothing_is_left", "quota"]

ACCEPT = "core.listener Acceptor.accept_from accept"


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_listener, "PAUSE", 0.001)


def refused(call: Callable[[], object]) -> tuple[str, int | None]:
    with pytest.raises(StatusError) as raised:
        call()
    return said(raised.value.status)


BINDING: list[tuple[str, tuple[int, ...]]] = [
    ("core.host ListeningSocket.__init__ __init__", EXHAUSTED),
    ("core.sockets make_socket setblocking", (errno.ENOBUFS,)),
    ("core.sockets set_options setsockopt", (errno.ENOBUFS, errno.ENOPROTOOPT)),
    ("core.sockets bind_and_listen setsockopt", (errno.ENOBUFS, errno.ENOPROTOOPT)),
    ("core.sockets bind_and_listen bind", (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES, errno.ENOBUFS)),
    ("core.sockets bind_and_listen listen", (errno.EADDRINUSE, errno.ENOBUFS)),
    ("core.sockets bind_and_listen getsockname", (errno.ENOBUFS,)),
]
BINDING_UNIX: list[tuple[str, Action, int]] = [
    *(
        (site, failing(number), number)
        for site, numbers in BINDING
        for number in numbers
        if "setsockopt" not in site
    ),
    ("core.sockets UnixFile.__init__ stat", failing(errno.EACCES), errno.EACCES),
    ("core.sockets _remove_stale __init__", failing(errno.EMFILE), errno.EMFILE),
    ("core.sockets _remove_stale setblocking", failing(errno.ENOBUFS), errno.ENOBUFS),
    ("core.sockets _remove_stale unlink", failing(errno.EACCES), errno.EACCES),
    # Then it is not known to be stale, and stays.
    ("core.sockets _remove_stale stat", failing(errno.EACCES), errno.EADDRINUSE),
    ("core.sockets _remove_stale connect_ex", returning(errno.EAGAIN), errno.EADDRINUSE),
]


def new_listener(app: Application) -> tuple[Listener, Callback[Status]]:
    on_shutdown = Callback[Status](app.ledger)
    listener = app.engine.create_listener(
        lambda endpoint, allocator: endpoint.close(), on_shutdown, EndpointConfig(), app.quota
    )
    return listener, on_shutdown


def accepts(listener: Listener, address: ResolvedAddress) -> None:
    listener.start()
    with connect(address) as peer:
        assert receive_all(peer) == b""


def test_a_bind_raises_the_status_of_the_call_that_fails_and_may_be_made_again(
    app: Application, faults: Faults
) -> None:
    listener, on_shutdown = new_listener(app)
    for site, numbers in BINDING:
        for number in numbers:
            with faults.at(site, failing(number)):
                assert refused(lambda: listener.bind(somewhere())) == told(number), site
    accepts(listener, somewhere().with_port(listener.bind(somewhere())))
    listener.close()
    assert on_shutdown.result().ok


def test_a_bind_of_both_families_apart_leaves_neither_when_the_second_fails(
    app: Application, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    listener, on_shutdown = new_listener(app)
    real: Action = lambda real, *args: real(*args)  # noqa: E731
    with faults.at("core.sockets bind_and_listen bind", real, failing(errno.EADDRINUSE)):
        assert refused(lambda: listener.bind(ResolvedAddress.tcp("::", 0))) == told(errno.EADDRINUSE)
    with faults.at("core.sockets bind_and_listen bind", failing(errno.EADDRNOTAVAIL)):
        port = listener.bind(ResolvedAddress.tcp("::", 0))
    accepts(listener, somewhere().with_port(port))
    listener.close()
    assert on_shutdown.result().ok


def test_a_bind_of_a_unix_socket_raises_the_status_of_the_call_that_fails(
    app: Application, faults: Faults, tmp_path: Path
) -> None:
    listener, on_shutdown = new_listener(app)
    address = unix_address(tmp_path / "s")
    for site, action, number in BINDING_UNIX:
        if not (tmp_path / "s").exists():
            with socket.socket(socket.AF_UNIX) as stale:
                stale.bind(address.sockaddr)
        with faults.at(site, action):
            assert refused(lambda: listener.bind(address)) == told(number), site
    listener.bind(address)
    accepts(listener, address)
    with faults.at("core.sockets UnixFile.remove stat", failing(errno.EACCES)):
        listener.close()
        assert on_shutdown.result().ok


def test_a_listener_ends_though_its_file_cannot_be_removed_and_a_stale_one_may_go_by_itself(
    app: Application, faults: Faults, tmp_path: Path
) -> None:
    address = unix_address(tmp_path / "s")
    first, on_shutdown = new_listener(app)
    first.bind(address)
    first.start()
    with faults.at("core.sockets UnixFile.remove unlink", failing(errno.EACCES)):
        first.close()
        assert on_shutdown.result().ok
    second, on_shutdown = new_listener(app)
    with faults.at("core.sockets _remove_stale unlink", calling_and(failing(errno.ENOENT))):
        second.bind(address)
    accepts(second, address)
    second.close()
    assert on_shutdown.result().ok
    assert not (tmp_path / "s").exists()


def test_a_connection_that_breaks_before_it_is_accepted_and_a_lack_of_anything_lose_no_other(
    engine: EventEngine, ledger: Ledger, faults: Faults
) -> None:
    """With and without a limit on connections, of which no place is lost."""
    numbers = (
        errno.EAGAIN, errno.ECONNABORTED, errno.EPERM, errno.EPROTO, errno.ETIMEDOUT, errno.ENETUNREACH,
        errno.EHOSTUNREACH, errno.ENETDOWN, errno.EINVAL, errno.EBADF, *EXHAUSTED,
    )  # fmt: skip
    for places in (None, 1):
        quota = ResourceQuota("places", connections=places)
        app = Application(engine, quota, ledger)
        accepting = app.listen()
        for number in numbers:
            with faults.at(ACCEPT, failing(number)) as left:
                while left:  # a call that had begun before may take the connection
                    with connect(accepting.address) as peer:
                        accepting.next().close()
                        assert receive_all(peer) == b""
        accepting.close()
        app.on_loop(lambda: None)
        assert quota.connections.used == 0


def test_a_listening_socket_that_fails_for_good_does_not_keep_the_loop_busy(
    app: Application, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core_listener, "PAUSE", 1000.0)
    calls: list[int] = []

    def counted(real: Action, *args: Any) -> Any:
        calls.append(1)
        return real(*args)

    faults.whenever(ACCEPT, counted)
    with socket.socket() as given:
        given.bind(("127.0.0.1", 0))
        given.listen()
        twin = given.dup()
        adopting, on_shutdown = new_listener(app)
        by_descriptor = adopting.query_extension(ListenerSupportsFileDescriptor)
        assert by_descriptor is not None
        by_descriptor.adopt(given)
    adopting.start()
    with twin:
        twin.shutdown(socket.SHUT_RDWR)
        for _ in range(100):
            app.on_loop(lambda: None)
    assert len(calls) < 5
    adopting.close()
    assert on_shutdown.result().ok


def test_a_connection_that_cannot_be_set_up_is_closed_and_its_place_given_back(
    engine: EventEngine, ledger: Ledger, faults: Faults
) -> None:
    quota = ResourceQuota("one", connections=1)
    app = Application(engine, quota, ledger)
    accepting = app.listen(ResolvedAddress.tcp("0.0.0.0", 0), config=EndpointConfig(socket_hook=lambda sock: None))
    address = somewhere().with_port(accepting.address.port)
    for site, number in (
        ("core.listener Acceptor.accept_from setblocking", errno.ENOBUFS),
        ("core.sockets set_options setsockopt", errno.EINVAL),
        ("core.endpoint SocketEndpoint.__init__ getsockname", errno.ENOTCONN),
    ):
        with faults.at(site, failing(number)), connect(address) as peer:
            assert receive_all(peer) == b""
        with connect(address) as peer:
            accepting.next().close()
            assert receive_all(peer) == b""
    accepting.close()
    assert accepting.accepted.empty()
    app.on_loop(lambda: None)
    assert quota.connections.used == 0


def test_a_listening_socket_that_cannot_be_watched_is_watched_after_a_pause(
    app: Application, faults: Faults
) -> None:
    for site in watching_sites(app.engine):
        with faults.at(site, failing(errno.ENOSPC)):
            accepting = app.listen()
            with connect(accepting.address) as peer:
                accepting.next().close()
                assert receive_all(peer) == b""
        accepting.close()


TAKING_OVER: list[tuple[str, tuple[int, ...]]] = [
    ("core.inherited _look_at __init__", (errno.ENOBUFS,)),
    ("core.inherited take_connection getsockopt", (errno.ENOBUFS,)),
    ("core.inherited take_connection getpeername", (errno.ENOTCONN, errno.ENOBUFS)),
    ("core.inherited take_connection __init__", (errno.ENOBUFS,)),
    ("core.inherited _take setblocking", (errno.ENOBUFS,)),
    ("core.inherited _take set_inheritable", (errno.ENOBUFS,)),
]
ADOPTING: list[tuple[str, tuple[int, ...]]] = [
    ("core.inherited _look_at __init__", (errno.ENOBUFS,)),
    ("core.inherited take_listening getsockopt", (errno.ENOBUFS,)),
    ("core.inherited take_listening getsockname", (errno.ENOBUFS,)),
    ("core.host ListeningSocket.__init__ __init__", (errno.ENOBUFS,)),
    ("core.inherited _take setblocking", (errno.ENOBUFS,)),
    ("core.inherited _take set_inheritable", (errno.ENOBUFS,)),
]


def test_a_socket_that_cannot_be_taken_over_stays_its_owner_s(app: Application, faults: Faults) -> None:
    engine = app.engine
    assert isinstance(engine, HostedEventEngine)
    allocator = app.quota.create_memory_allocator("taken over")
    with OracleServer() as server, connect(server.address) as sock, server.accept() as peer:
        for site, numbers in TAKING_OVER:
            for number in numbers:
                with faults.at(site, failing(number)):
                    assert refused(lambda: engine.endpoint_from_socket(sock, allocator)) == told(number), site
        sock.setblocking(True)
        sock.sendall(b"mine")
        assert peer.recv(4) == b"mine"
        with closing(engine.endpoint_from_socket(sock, allocator)) as endpoint:
            assert app.write(endpoint, b"theirs").ok
            assert peer.recv(6) == b"theirs"


def test_a_socket_that_was_taken_over_is_closed_when_it_cannot_be_set_up(app: Application, faults: Faults) -> None:
    engine = app.engine
    assert isinstance(engine, HostedEventEngine)
    allocator = app.quota.create_memory_allocator("taken over")
    with OracleServer() as server:
        for site in ("core.sockets set_options setsockopt", "core.endpoint SocketEndpoint.__init__ getsockname"):
            with connect(server.address) as sock, server.accept() as peer:
                with faults.at(site, failing(errno.ENOBUFS)):
                    taking = lambda: engine.endpoint_from_socket(sock, allocator, EndpointConfig())  # noqa: E731
                    assert refused(taking) == told(errno.ENOBUFS), site
                assert receive_all(peer) == b""


def test_a_listening_socket_that_cannot_be_adopted_stays_its_owner_s(app: Application, faults: Faults) -> None:
    listener, on_shutdown = new_listener(app)
    adopting = listener.query_extension(ListenerSupportsFileDescriptor)
    assert adopting is not None
    with OracleServer() as server:
        for site, numbers in ADOPTING:
            for number in numbers:
                with faults.at(site, failing(number)):
                    assert refused(lambda: adopting.adopt(server.socket)) == told(number), site
        with connect(server.address), server.accept():
            pass
        adopting.adopt(server.socket)
        accepts(listener, server.address)
    listener.close()
    assert on_shutdown.result().ok


def test_an_engine_that_cannot_be_made_leaves_nothing(
    kind: Kind, make_engine: Callable[[], EventEngine], faults: Faults
) -> None:
    sites = ["core.poller PrivatePoller.__init__ epoll"] if kind.private_poller else []
    sites += ["core.threaded ThreadHost.__init__ pipe"] if kind.loop == "default" else []
    for site in sites:
        with faults.at(site, failing(errno.EMFILE)), pytest.raises(OSError, match="Too many open files"):
            make_engine()
    with make_engine() as engine:
        Application(engine, ResourceQuota(), Ledger()).on_loop(lambda: None)


def test_what_the_poller_and_the_pipe_of_the_engine_are_refused_once_stops_nothing(
    app: Application, faults: Faults
) -> None:
    engine = app.engine
    assert isinstance(engine, HostedEventEngine)
    poller = engine._loop.poller
    cases: list[tuple[str, Action]] = []
    if isinstance(poller, PrivatePoller):
        cases += [
            ("core.poller PrivatePoller.turn poll", failing(errno.ENOMEM)),
            ("core.poller PrivatePoller._change unregister", calling_and(failing(errno.ENOENT))),
        ]
        if poller._host is None:
            cases += [
                ("core.threaded ThreadHost.wake write", calling_and(failing(errno.EAGAIN))),
                ("core.threaded ThreadHost.on_readable read", failing(errno.EAGAIN)),
            ]
    for site, action in cases:
        with faults.at(site, action):
            goes_on(app)
    goes_on(app)


def test_addresses_are_put_in_order_though_no_socket_can_be_had(faults: Faults) -> None:
    address = ResolvedAddress.tcp("127.0.0.1", 80)
    assert source_of(address) == "127.0.0.1"
    for site, number in (
        ("core.address_order source_of __init__", errno.EMFILE),
        ("core.address_order source_of connect", errno.ENETUNREACH),
        ("core.address_order source_of getsockname", errno.ENOBUFS),
    ):
        with faults.at(site, failing(number)):
            assert source_of(address) is None


NO_FAULT = {
    "core.inherited _look_at fstat": "the one error of an open descriptor is that it is none, which test_inherited has",
    "core.poller HostPoller._change unwatch": "a Host's unwatch does not fail; see its docstring",
    "core.poller HostPoller._on_ready unwatch": "the same",
    "core.poller PrivatePoller._change unwatch": "the same",
    "core.poller PrivatePoller._on_host_ready watch": "after an interrupt, for what was watched before",
    "core.threaded ThreadHost.__init__ set_blocking": "nothing refuses it for a pipe that was just made",
    "core.threaded ThreadHost._close_pipe close": "nothing refuses it for a pipe",
}


def test_every_call_of_the_system_has_a_fault_here_or_a_reason() -> None:
    here = "\n".join(path.read_text("utf-8") for path in Path(__file__).parent.glob("test_faults*.py"))
    sites = sites_of("core", "bridges", "resolvers", "tls")
    assert len(sites) > 50
    without = {site for site in sites if f'"{site}"' not in here}
    assert without == set()
    assert set(NO_FAULT) <= sites
