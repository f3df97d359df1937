"""Sockets that are there already: from the application, from a parent process, from systemd.

What becomes the engine's is checked first; on an error it stays the caller's, as it was.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import stat
from collections.abc import Generator
from contextlib import contextmanager

from eventengine.address import ResolvedAddress
from eventengine.core.host import ListeningSocket
from eventengine.status import Status, StatusError

__all__ = ["take_connection", "take_listening"]

_FAMILIES = frozenset(
    getattr(socket, name) for name in ("AF_INET", "AF_INET6", "AF_UNIX", "AF_VSOCK") if hasattr(socket, name)
)


def take_connection(given: socket.socket | int) -> tuple[socket.socket, ResolvedAddress]:
    """A connected stream socket, or its descriptor, as a socket of ours: non-blocking, not inherited. With its peer.

    Raises TypeError or ValueError for what is none, StatusError for one whose connection has ended.
    """
    with _status_for(given), _looking_at(given) as looked_at:
        what = _check(looked_at)
        if looked_at.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise ValueError(f"{what} listens; a listener adopts it (ListenerSupportsFileDescriptor)")
        peer = ResolvedAddress(looked_at.family, looked_at.getpeername())
        return _take(given, socket.socket(fileno=_number_of(given))), peer


def take_listening(given: socket.socket | int) -> tuple[socket.socket, ResolvedAddress]:
    """A listening stream socket, or its descriptor, as a socket of ours: non-blocking, not inherited. With where it
    listens.

    Raises TypeError or ValueError for what is none, StatusError where the system refuses.
    """
    with _status_for(given), _looking_at(given) as looked_at:
        what = _check(looked_at)
        if not looked_at.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise ValueError(f"{what} does not listen; call listen() on it before")
        family = looked_at.family
        address = ResolvedAddress(family, looked_at.getsockname())
        return _take(given, ListeningSocket(family, socket.SOCK_STREAM, _number_of(given))), address


@contextmanager
def _status_for(given: socket.socket | int) -> Generator[None]:
    try:
        yield
    except OSError as error:
        what = f"the socket with descriptor {_number_of(given)}"
        raise StatusError(Status.from_errno(error.errno or errno.EIO, f"taking over {what}")) from None


def _take(given: socket.socket | int, sock: socket.socket) -> socket.socket:
    try:
        sock.setblocking(False)
        sock.set_inheritable(False)
    except OSError:
        sock.detach()  # it stays the caller's
        raise
    if isinstance(given, socket.socket):
        given.detach()
    return sock


def _number_of(given: socket.socket | int) -> int:
    return given.fileno() if isinstance(given, socket.socket) else given


@contextmanager
def _looking_at(given: object) -> Generator[socket.socket]:
    """A second object for the same descriptor, which is detached again."""
    looked_at = _look_at(given)
    try:
        yield looked_at
    finally:
        looked_at.detach()


def _look_at(given: object) -> socket.socket:
    if isinstance(given, ssl.SSLSocket):
        raise TypeError("an SSLSocket does its TLS itself; give the plain socket, and do TLS over the endpoint")
    if isinstance(given, socket.socket):
        if given.fileno() < 0:
            raise ValueError("the socket was closed")
        fd = given.fileno()
    elif isinstance(given, int) and not isinstance(given, bool):
        fd = given
    else:
        raise TypeError(f"a socket or the number of a descriptor is needed, not {type(given).__name__}")
    try:
        mode = os.fstat(fd).st_mode
    except (OSError, OverflowError):
        raise ValueError(f"there is no open descriptor {fd}") from None
    if not stat.S_ISSOCK(mode):
        raise ValueError(f"descriptor {fd} is not a socket")
    return socket.socket(fileno=fd)


def _check(sock: socket.socket) -> str:
    what = f"the socket with descriptor {sock.fileno()}"
    if sock.type != socket.SOCK_STREAM:
        raise ValueError(f"{what} is a {sock.type.name}; an engine needs a stream socket")
    if sock.family not in _FAMILIES:
        raise ValueError(f"{what} is of {sock.family.name}; an engine needs a TCP, unix or vsock socket")
    return what
