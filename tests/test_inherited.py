"""Sockets that were there before: connected ones as endpoints, listening ones adopted, those that systemd passes."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

import eventengine
from engines import KINDS, Kind, factory, skip_unless_installed
from eventengine import (
    ClosedResourceError,
    EndpointConfig,
    ListenerSupportsFileDescriptor,
    ResolvedAddress,
    SliceBuffer,
    StatusCode,
    StatusError,
    SupportsFileDescriptor,
    create_event_engine,
    inherited_sockets,
)
from eventengine.testing.application import Accepting, Application
from eventengine.testing.conformance.fixtures import *
from eventengine.testing.oracle import TIMEOUT, connect, pattern, receive, receive_all, reset


@pytest.fixture(params=[kind for kind in KINDS if kind.private_poller], ids=lambda kind: kind.id)
def make_engine(request: pytest.FixtureRequest) -> Iterator[Callable[[], Any]]:
    kind: Kind = request.param
    skip_unless_installed(kind)
    with factory(kind) as make:
        yield make


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname(), TIMEOUT)
        other, _ = server.accept()
    one.settimeout(TIMEOUT)
    return other, one


def both_ways(app: Application, endpoint: Any, oracle: socket.socket) -> None:
    data = pattern(100_000)
    oracle.sendall(data)
    assert app.receive(endpoint, len(data)) == data
    assert app.write(endpoint, data).ok
    assert receive(oracle, len(data)) == data


@pytest.mark.parametrize("given", ["socket", "descriptor"])
@pytest.mark.parametrize("family", ["tcp", "unix"])
def test_a_connected_socket_is_an_endpoint(
    app: Application, anywhere: Application, given: str, family: str
) -> None:
    engine: Any = app.engine
    sock, oracle = tcp_pair() if family == "tcp" else socket.socketpair()
    name, peer = sock.getsockname(), sock.getpeername()
    allocator = app.quota.create_memory_allocator("taken over")
    with oracle:
        oracle.settimeout(TIMEOUT)
        if given == "socket":
            endpoint = anywhere.call(lambda: engine.endpoint_from_socket(sock, allocator))
            assert sock.fileno() == -1
        else:
            fd = sock.detach()
            os.set_inheritable(fd, True)
            endpoint = anywhere.call(lambda: engine.endpoint_from_fd(fd, allocator))
        with closing(endpoint):
            fd = endpoint.query_extension(SupportsFileDescriptor).fileno()
            assert not os.get_inheritable(fd)
            assert not os.get_blocking(fd)
            assert (endpoint.local_address.sockaddr, endpoint.peer_address.sockaddr) == (name, peer)
            both_ways(anywhere, endpoint, oracle)
        assert receive_all(oracle) == b""


def test_a_socket_that_was_taken_over_is_closed_with_its_engine_and_has_the_options_asked_for(
    app: Application,
) -> None:
    engine: Any = app.engine
    sock, oracle = tcp_pair()
    with oracle:
        allocator = app.quota.create_memory_allocator("taken over")
        config = EndpointConfig(keepalive=True, keepalive_count=5)
        endpoint = engine.endpoint_from_socket(sock, allocator, config)
        with socket.socket(fileno=os.dup(endpoint.fileno())) as same:
            assert same.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert same.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        on_read = app.start_read(endpoint, SliceBuffer())
        app.engine.close()
        assert on_read.result().code is StatusCode.CANCELLED
        assert receive_all(oracle) == b""
        again, other = socket.socketpair()
        with again, other, pytest.raises(ClosedResourceError, match="engine was closed"):
            engine.endpoint_from_socket(again, allocator)


def test_what_is_no_connected_stream_socket_is_refused_and_stays_the_callers(app: Application) -> None:
    engine: Any = app.engine
    allocator = app.quota.create_memory_allocator("refused")
    with ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        datagrams, other = socket.socketpair(type=socket.SOCK_DGRAM)
        stack.enter_context(datagrams)
        stack.enter_context(other)
        fresh = stack.enter_context(socket.socket())
        closed = socket.socket()
        closed.close()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        one, two = socket.socketpair()
        stack.enter_context(two)
        tls = stack.enter_context(context.wrap_socket(one, do_handshake_on_connect=False))
        reader, writer = os.pipe()
        stack.callback(os.close, reader)
        stack.callback(os.close, writer)
        cases: list[tuple[object, type[Exception], str]] = [
            (listening, ValueError, "listens; a listener adopts it"),
            (datagrams, ValueError, "is a SOCK_DGRAM; an engine needs a stream socket"),
            (fresh, StatusError, r"taking over the socket .* not connected \(ENOTCONN\)"),
            (closed, ValueError, "the socket was closed"),
            (tls, TypeError, "give the plain socket"),
            ("sock", TypeError, "sock must be a socket, not str"),
        ]
        for given, error, text in cases:
            with pytest.raises(error, match=text):
                engine.endpoint_from_socket(given, allocator)
        for fd, error, text in (
            (reader, ValueError, "is not a socket"),
            (1 << 20, ValueError, "there is no open descriptor 1048576"),
            (-1, ValueError, "there is no open descriptor -1"),
            (listening.fileno(), ValueError, "listens"),
            (True, TypeError, "fd must be an int, not bool"),
            (fresh, TypeError, "fd must be an int, not socket"),
        ):
            with pytest.raises(error, match=text):
                engine.endpoint_from_fd(fd, allocator)
        with pytest.raises(TypeError, match="memory_allocator must be"):
            engine.endpoint_from_socket(fresh, app.quota)
        with pytest.raises(TypeError, match="config must be an EndpointConfig"):
            engine.endpoint_from_socket(fresh, allocator, 5)
        assert listening.fileno() > 0
        assert fresh.fileno() > 0
        assert fresh.getblocking()


def test_a_connection_that_ended_before_it_was_taken_over_says_so(app: Application) -> None:
    engine: Any = app.engine
    sock, oracle = tcp_pair()
    with sock:
        reset(oracle)
        allocator = app.quota.create_memory_allocator("late")
        with pytest.raises(StatusError) as raised:
            engine.endpoint_from_socket(sock, allocator)
        assert raised.value.status.code is StatusCode.UNAVAILABLE
        assert sock.fileno() >= 0


def listener_of(app: Application) -> tuple[Accepting, ListenerSupportsFileDescriptor]:
    accepting = Accepting(app, EndpointConfig(keepalive=True))
    adopts = accepting.listener.query_extension(ListenerSupportsFileDescriptor)
    assert adopts is not None
    return accepting, adopts


def test_a_listener_accepts_on_sockets_that_others_made_besides_its_own(
    app: Application, unix_folder: Path
) -> None:
    accepting, adopts = listener_of(app)
    path = str(unix_folder / "adopted")
    tcp = socket.create_server(("127.0.0.1", 0))
    port = tcp.getsockname()[1]
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(path)
    unix.listen()
    assert adopts.adopt(tcp) == port
    assert tcp.fileno() == -1
    assert adopts.adopt(unix.detach()) == 1
    bound = ResolvedAddress.parse(f"unix:{unix_folder / 'bound'}")
    accepting.listener.bind(bound)
    accepting.listener.start()
    for address in (ResolvedAddress.tcp("127.0.0.1", port), ResolvedAddress.parse(f"unix:{path}"), bound):
        with connect(address) as oracle, closing(accepting.next()) as endpoint:
            assert endpoint.local_address == address
            both_ways(app, endpoint, oracle)
            if address.family == socket.AF_INET:
                fd = endpoint.query_extension(SupportsFileDescriptor)
                assert fd is not None
                with socket.socket(fileno=os.dup(fd.fileno())) as same:
                    assert same.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    accepting.close()
    assert os.path.exists(path)
    assert not os.path.exists(unix_folder / "bound")
    with pytest.raises(ConnectionRefusedError):
        connect(ResolvedAddress.tcp("127.0.0.1", port))


@contextmanager
def listening_where_another_may() -> Iterator[socket.socket]:
    """A socket that listens on 127.0.0.1, and whose port no other process can take on 127.0.0.2."""
    while True:
        with socket.socket() as held:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind(("127.0.0.2", 0))
            try:
                made = socket.create_server(("127.0.0.1", held.getsockname()[1]))
            except OSError:  # it is another's there
                continue
            yield made
            return


def test_port_0_takes_the_port_of_an_adopted_socket(app: Application) -> None:
    accepting, adopts = listener_of(app)
    with listening_where_another_may() as listening:
        port = adopts.adopt(listening)
        assert accepting.listener.bind(ResolvedAddress.tcp("127.0.0.2", 0)) == port
        accepting.close()


def test_what_a_listener_cannot_adopt_is_refused_and_stays_the_callers(app: Application) -> None:
    accepting, adopts = listener_of(app)
    connected, other = socket.socketpair()
    with connected, other, socket.create_server(("127.0.0.1", 0)) as late, socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        for given, error, text in (
            (connected, ValueError, "does not listen"),
            (bound, ValueError, r"does not listen; call listen\(\)"),
            ("late", TypeError, "a socket or the number of a descriptor"),
        ):
            with pytest.raises(error, match=text):
                adopts.adopt(given)  # type: ignore[arg-type]
        accepting.listener.bind(ResolvedAddress.tcp("127.0.0.1", 0))
        accepting.listener.start()
        with pytest.raises(StatusError, match="adopt must come before start"):
            adopts.adopt(late)
        accepting.close()
        with pytest.raises(ClosedResourceError, match="listener was closed"):
            adopts.adopt(late)
        assert late.fileno() > 0


def test_a_descriptor_is_taken_over_once(app: Application) -> None:
    """Else it would be closed twice, the second time as somebody else's."""
    ours, oracle = tcp_pair()
    allocator = app.quota.create_memory_allocator("taken over")
    with oracle:
        endpoint = app.engine.endpoint_from_fd(number := ours.detach(), allocator)
        with pytest.raises(ValueError, match=f"descriptor {number} is that of an endpoint of this engine already"):
            app.engine.endpoint_from_fd(number, allocator)
        with create_event_engine() as other, pytest.raises(ValueError, match="endpoint of another engine already"):
            other.endpoint_from_fd(number, allocator)
        both_ways(app, endpoint, oracle)
        endpoint.close()
    accepting, adopts = listener_of(app)
    listening = socket.create_server(("127.0.0.1", 0))
    adopts.adopt(number := listening.detach())
    with pytest.raises(ValueError, match=f"descriptor {number} was adopted already"):
        adopts.adopt(number)
    accepting.close()


def test_a_descriptor_that_its_giver_closes_leaves_no_callback_untold(app: Application) -> None:
    ours, oracle = tcp_pair()
    with oracle:
        endpoint = app.engine.endpoint_from_fd(
            number := ours.detach(), app.quota.create_memory_allocator("taken over")
        )
        on_read = app.start_read(endpoint, SliceBuffer())
        app.on_loop(lambda: (os.close(number), endpoint.close()))
        assert on_read.result().code is StatusCode.CANCELLED
    accepting, adopts = listener_of(app)
    adopts.adopt(number := socket.create_server(("127.0.0.1", 0)).detach())
    accepting.listener.start()
    app.on_loop(lambda: (os.close(number), accepting.listener.close()))
    accepting.on_shutdown.result()


# Socket activation: what starts the service passes descriptors as systemd does, and then is the service (execve).

STARTER = """
import fcntl, os, sys
passed = [int(fd) for fd in sys.argv[2].split(",")]
copies = [fcntl.fcntl(fd, fcntl.F_DUPFD, 100) for fd in passed]  # out of the way
for number, fd in enumerate(copies, 3):
    os.dup2(fd, number, inheritable=True)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, "-W", "error", sys.argv[1]])
"""

SERVICE = """
import os, sys, threading
from eventengine import *

quota = ResourceQuota(memory="1MiB")
ended = threading.Event()
listeners = []
with create_event_engine() as engine:
    for name, sock in inherited_sockets():
        def greet(endpoint, allocator, name=name):
            def done(status):
                endpoint.close()
            if endpoint.write(done, SliceBuffer([f"this is {name}".encode()])):
                done(Status.OK)
        listener = engine.create_listener(greet, lambda status: ended.set(), EndpointConfig(), quota)
        listener.query_extension(ListenerSupportsFileDescriptor).adopt(sock)
        listener.start()
        listeners.append(listener)
    print(len(listeners), os.environ.get("LISTEN_FDS"), inherited_sockets(), flush=True)
    sys.stdin.read()
    for listener in listeners:
        listener.close()
"""


def test_a_service_is_reached_on_the_sockets_that_systemd_opened_for_it() -> None:
    with tempfile.TemporaryDirectory(prefix="ee-") as folder, ExitStack() as stack:
        script = Path(folder) / "service.py"
        script.write_text(SERVICE, "utf-8")
        web = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        admin = stack.enter_context(socket.socket(socket.AF_UNIX))
        admin.bind(f"{folder}/admin")
        admin.listen()
        fds = [web.fileno(), admin.fileno()]
        process = subprocess.Popen(
            [sys.executable, "-c", STARTER, str(script), ",".join(map(str, fds))],
            pass_fds=fds,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ
            | {
                "LISTEN_FDS": "2",
                "LISTEN_FDNAMES": "web:admin",
                "PYTHONPATH": str(Path(eventengine.__file__).parents[1]),
            },
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "2 None []\n"
            for sock, text in ((web, b"this is web"), (admin, b"this is admin")):
                address = ResolvedAddress.from_sockaddr(sock.family, sock.getsockname())
                with connect(address) as oracle:
                    assert receive_all(oracle) == text
        finally:
            _, errors = process.communicate("", timeout=TIMEOUT)
        assert (process.returncode, errors) == (0, "")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, []),
        ({"LISTEN_FDS": "1"}, []),
        ({"LISTEN_PID": "1", "LISTEN_FDS": "1"}, []),
        ({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "0"}, []),
        ({"LISTEN_PID": "me", "LISTEN_FDS": "1"}, "LISTEN_PID is 'me'; it must be a number"),
        ({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "-1"}, "LISTEN_FDS is '-1'; it must be a number"),
        (
            {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a"},
            "1 names, and LISTEN_FDS says 2 descriptors",
        ),
        ({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1000000"}, "descriptor .* is not open"),
        ({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "9" * 19}, "descriptor .* is not open"),
        ({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "9" * 20}, "LISTEN_FDS is .*; it must be a number"),
    ],
)
def test_what_the_environment_says_of_sockets_is_checked_and_taken_out(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: list[object] | str
) -> None:
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            inherited_sockets(keep_environment=True)
        with pytest.raises(ValueError, match=expected):
            inherited_sockets()
    else:
        assert inherited_sockets() == expected
    assert not [name for name in environment if name in os.environ]
