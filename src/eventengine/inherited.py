"""Sockets that systemd has opened for this process: socket activation.

The protocol is that of `sd_listen_fds_with_names(3)`: LISTEN_FDS says how many descriptors there are, from 3 on,
LISTEN_PID for which process, LISTEN_FDNAMES how they are called.
"""

from __future__ import annotations

import os
import socket
import stat
from typing import Final, NamedTuple

__all__ = ["InheritedSocket", "inherited_sockets"]

_FIRST: Final = 3


class InheritedSocket(NamedTuple):
    """A socket that the service manager has opened; `name` is its FileDescriptorName, `"unknown"` without one."""

    name: str
    sock: socket.socket


def inherited_sockets(*, keep_environment: bool = False) -> list[InheritedSocket]:
    """The sockets that systemd, or whoever speaks its protocol, has passed to this process, in their order.

    Empty when there are none, or they are for another process. They are the caller's to close, and are not inherited
    further. A listening one is for a listener (`ListenerSupportsFileDescriptor.adopt`), a connected one, of a unit with
    `Accept=yes`, for `endpoint_from_socket`. Descriptors that are no sockets are left alone.

    Args:
        keep_environment: Leaves the variables as they are. Else they are taken out, for children and second calls.

    Raises ValueError when the variables do not say what they must, or a descriptor that they name is not open.
    May be called from any thread, while no other changes `os.environ`.
    """
    names = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
    given = [os.environ.get(name) if keep_environment else os.environ.pop(name, None) for name in names]
    pid, count, called = given
    if pid is None or count is None or _number("LISTEN_PID", pid) != os.getpid():
        return []
    total = _number("LISTEN_FDS", count)
    labels = called.split(":") if called else None
    if labels is not None and len(labels) != total:
        raise ValueError(
            f"LISTEN_FDNAMES is {called!r}, {len(labels)} names, and LISTEN_FDS says {total} descriptors"
        )
    modes: list[int] = []
    for fd in range(_FIRST, _FIRST + total):
        try:
            modes.append(os.fstat(fd).st_mode)
        except OSError:
            raise ValueError(f"LISTEN_FDS is {count}, but descriptor {fd} is not open") from None
    if labels is None:
        labels = ["unknown"] * total
    found: list[InheritedSocket] = []
    for fd, (name, mode) in enumerate(zip(labels, modes, strict=True), _FIRST):
        os.set_inheritable(fd, False)
        if stat.S_ISSOCK(mode):
            found.append(InheritedSocket(name, socket.socket(fileno=fd)))
    return found


def _number(name: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 20):
        raise ValueError(f"{name} is {value!r}; it must be a number, of less than 20 digits")
    return int(value)
