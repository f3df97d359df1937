"""`EndpointConfig`, seen on the sockets of connections."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack, closing

from eventengine.address import ResolvedAddress
from eventengine.config import EndpointConfig
from eventengine.engine import Endpoint, SupportsFileDescriptor
from eventengine.status import Status, StatusCode
from eventengine.testing.application import Application
from eventengine.testing.capabilities import lacking
from eventengine.testing.oracle import TIMEOUT, OracleServer


def test_a_socket_hook_that_raises_fails_its_connect_alone(app: Application) -> None:
    def hook(sock: socket.socket) -> None:
        raise LookupError("no such mark")

    with OracleServer() as server:
        status = app.try_connect(server.address, EndpointConfig(socket_hook=hook))
        assert isinstance(status, Status)
        assert status.code is StatusCode.INTERNAL
        assert "no such mark" in status.message
        app.connect(server.address).close()


OPTIONS = EndpointConfig(
    keepalive=True,
    keepalive_idle=111,
    keepalive_interval=22,
    keepalive_count=5,
    user_timeout=7.5 if hasattr(socket, "TCP_USER_TIMEOUT") else None,
    send_buffer_size=70_000,
    receive_buffer_size=80_000,
    dscp=46,
)


def _check_options(endpoint: Endpoint) -> None:
    """Asks the system what it knows of a socket that was set up as `OPTIONS` say."""
    with_descriptor = endpoint.query_extension(SupportsFileDescriptor)
    if with_descriptor is None:
        lacking("descriptor")
    with socket.socket(fileno=os.dup(with_descriptor.fileno())) as sock:
        assert sock.gettimeout() == 0 or not os.get_blocking(sock.fileno())
        assert not os.get_inheritable(with_descriptor.fileno())
        assert _about(sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF), 70_000)
        assert _about(sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF), 80_000)
        if sock.family == socket.AF_UNIX:
            return
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        for name, value in (
            ("TCP_KEEPIDLE", 111),
            ("TCP_KEEPINTVL", 22),
            ("TCP_KEEPCNT", 5),
            ("TCP_USER_TIMEOUT", 7500),
        ):
            if hasattr(socket, name):
                assert sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) == value, name
        if sock.family == socket.AF_INET6:
            assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS) == 46 << 2
        else:
            assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == 46 << 2


def _about(size: int, wanted: int) -> bool:
    return wanted <= size <= 3 * wanted  # Linux doubles it


def test_a_connection_has_the_options_of_its_config(app: Application, free_address: ResolvedAddress) -> None:
    with OracleServer(free_address) as server:
        endpoint = app.connect(server.address, OPTIONS)
        with closing(endpoint):
            _check_options(endpoint)


def test_an_accepted_connection_has_the_options_of_its_config(
    app: Application, free_address: ResolvedAddress
) -> None:
    accepting = app.listen(free_address, config=OPTIONS)
    with socket.socket(free_address.family, socket.SOCK_STREAM) as peer:
        peer.settimeout(TIMEOUT)
        peer.connect(accepting.address.sockaddr)
        endpoint = accepting.next()
        with closing(endpoint):
            _check_options(endpoint)


def test_without_options_a_connection_has_no_keepalive_and_no_delay(app: Application) -> None:
    with OracleServer() as server:
        endpoint = app.connect(server.address)
        with closing(endpoint):
            with_descriptor = endpoint.query_extension(SupportsFileDescriptor)
            if with_descriptor is None:
                lacking("descriptor")
            with socket.socket(fileno=os.dup(with_descriptor.fileno())) as sock:
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_the_socket_hook_sees_each_new_socket_before_it_is_used(app: Application) -> None:
    seen: list[tuple[bool, bool, bool]] = []

    def hook(sock: socket.socket) -> None:
        try:
            connected = sock.getpeername() is not None
        except OSError:
            connected = False
        seen.append((sock.getblocking(), sock.get_inheritable(), connected))

    config = EndpointConfig(socket_hook=hook)
    accepting = app.listen(config=config)
    assert seen == [(False, False, False)], "the listening socket"
    with ExitStack() as stack:
        stack.enter_context(closing(app.connect(accepting.address, config)))
        stack.enter_context(closing(accepting.next()))
    assert seen[1:] == [(False, False, False), (False, False, True)], "the connecting and the accepted one"
