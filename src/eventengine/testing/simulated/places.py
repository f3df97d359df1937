"""`Place`: where a socket of a simulated network is bound or connects to."""

from __future__ import annotations

import ipaddress
import socket
from typing import Final, NamedTuple, cast

from eventengine.address import ResolvedAddress, Sockaddr

__all__ = ["Place", "place_of", "source_of", "tcp_place", "unbound"]

_WILDCARDS: Final = frozenset({"0.0.0.0", "::"})


class Place(NamedTuple):
    """An address; `name` is what is taken of a network: a port, or the name of a unix socket, whose host is empty."""

    family: int
    host: str
    name: int | str | bytes
    sockaddr: Sockaddr

    @property
    def is_wildcard(self) -> bool:
        return self.host in _WILDCARDS

    def overlaps(self, other: Place, *, takes_both: bool) -> bool:
        """Whether this one and another of the same name have an address in common; `takes_both`: one of them has all
        addresses of IPv4 and IPv6."""
        if takes_both or not self.host:
            return True
        wild = self.is_wildcard or other.is_wildcard
        return self.family == other.family and (self.host == other.host or wild)

    def mapped(self) -> Place:
        """As an IPv6 socket sees it that takes IPv4, too."""
        return tcp_place(socket.AF_INET6, f"::ffff:{self.host}", self.name)

    def __str__(self) -> str:
        return str(ResolvedAddress(self.family, self.sockaddr))


def place_of(family: int, address: object) -> Place:
    """Raises what the `socket` module does for what is no address of this family."""
    if family not in (socket.AF_INET, socket.AF_INET6):
        if not isinstance(address, str | bytes):
            raise TypeError(f"a bytes-like object is required, not {type(address).__name__!r}")
        return Place(family, "", address, address)
    if not isinstance(address, tuple):
        raise TypeError(f"AF_INET address must be tuple, not {type(address).__name__}")
    host, port = cast("tuple[str, int]", address)[:2]
    try:
        (ipaddress.IPv4Address if family == socket.AF_INET else ipaddress.IPv6Address)(host)
    except ValueError:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known") from None
    return tcp_place(family, host, port)


def tcp_place(family: int, host: str, port: int | str | bytes) -> Place:
    assert isinstance(port, int)
    return Place(family, host, port, (host, port) if family == socket.AF_INET else (host, port, 0, 0))


def source_of(destination: Place) -> Place:
    """Where one connects from, who has bound nothing; the port is yet to be found."""
    ip = ipaddress.ip_address(destination.host)
    if ip.version == 4:
        return tcp_place(socket.AF_INET, "127.0.0.1" if ip.is_loopback else "10.0.0.1", 0)
    return tcp_place(socket.AF_INET6, "::1" if ip.is_loopback else "fd00::1", 0)


def unbound(family: int) -> Sockaddr:
    """What `getsockname` says of a socket that was not bound."""
    if family == socket.AF_INET:
        return ("0.0.0.0", 0)
    return ("::", 0, 0, 0) if family == socket.AF_INET6 else ""
