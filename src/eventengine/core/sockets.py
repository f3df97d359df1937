"""Making sockets and setting their options; binding, with what unix sockets need besides."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import sys
from collections.abc import Callable

from eventengine.address import ResolvedAddress
from eventengine.config import EndpointConfig
from eventengine.core.host import Host

__all__ = ["UnixFile", "bind_and_listen", "make_socket", "options_are_inherited", "set_options"]

_IP_FAMILIES = (socket.AF_INET, socket.AF_INET6)


def options_are_inherited(family: int) -> bool:
    """Whether an accepted socket has the options of its listener."""
    return sys.platform == "linux" and family in _IP_FAMILIES


def make_socket(family: int, config: EndpointConfig, make: Callable[[int, int], socket.socket]) -> socket.socket:
    """A non-blocking stream socket with the options of `config`. Raises OSError, or what the hook raised."""
    sock = make(family, socket.SOCK_STREAM | getattr(socket, "SOCK_NONBLOCK", 0))
    try:
        sock.setblocking(False)
        set_options(sock, config)
    except BaseException:
        sock.close()
        raise
    return sock


def set_options(sock: socket.socket, config: EndpointConfig) -> None:
    """Applies `config`, its hook last. Raises OSError, or what the hook raised."""
    family = sock.family
    if family in _IP_FAMILIES:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if config.keepalive:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_KEEPIDLE", config.keepalive_idle),
            ("TCP_KEEPINTVL", config.keepalive_interval),
            ("TCP_KEEPCNT", config.keepalive_count),
            ("TCP_USER_TIMEOUT", None if config.user_timeout is None else config.user_timeout * 1000),
        ):
            if value is not None:
                sock.setsockopt(socket.IPPROTO_TCP, _option(name), int(value))
        if config.dscp is not None:
            traffic_class = config.dscp << 2  # the two low bits are for congestion notification, RFC 3168
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, traffic_class)
            with contextlib.suppress(OSError) if family == socket.AF_INET6 else contextlib.nullcontext():
                sock.setsockopt(
                    socket.IPPROTO_IP, socket.IP_TOS, traffic_class
                )  # for v4 on a dual-stack socket too
    if config.send_buffer_size is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, config.send_buffer_size)
    if config.receive_buffer_size is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, config.receive_buffer_size)
    if config.socket_hook is not None:
        config.socket_hook(sock)


def _option(name: str) -> int:
    number: int | None = getattr(socket, name, None)
    if number is None:
        raise OSError(errno.ENOPROTOOPT, f"{name} is not known on this system")
    return number


class UnixFile:
    """The file of a unix socket that we bound, to be removed when the listener closes, if it is still ours."""

    __slots__ = ("_identity", "_path")

    def __init__(self, path: str) -> None:
        found = os.stat(path)
        self._path = os.path.abspath(path)
        self._identity = (found.st_dev, found.st_ino)

    def remove(self) -> None:
        with contextlib.suppress(OSError):
            found = os.stat(self._path)
            if (found.st_dev, found.st_ino) == self._identity:
                os.unlink(self._path)


def bind_and_listen(
    host: Host, address: ResolvedAddress, config: EndpointConfig, *, dual_stack: bool = False
) -> tuple[socket.socket, ResolvedAddress, UnixFile | None]:
    """A socket that listens on `address`, and where it does. Raises OSError, or what the hook raised.

    With `dual_stack` an IPv6 socket takes IPv4 connections too, else it never does.
    """
    sock = make_socket(address.family, config, host.new_listening_socket)
    file = None
    try:
        if address.family in _IP_FAMILIES:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if config.reuse_port and hasattr(socket, "SO_REUSEPORT"):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if address.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if dual_stack else 1)
        path = address.sockaddr if isinstance(address.sockaddr, str) and host.has_system_sockets else None
        if path is not None:
            _remove_stale(path)
        sock.bind(address.sockaddr)
        if path is not None:
            file = UnixFile(path)
        sock.listen(config.backlog)
        bound = ResolvedAddress(address.family, sock.getsockname())
    except BaseException:
        sock.close()
        if file is not None:
            file.remove()
        raise
    return sock, bound, file


def _remove_stale(path: str) -> None:
    """Removes a socket file that nobody listens on. What is no socket, or is in use, is left to make bind fail."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
    except OSError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a live listener whose backlog is full answers EAGAIN
        if probe.connect_ex(path) == errno.ECONNREFUSED:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
