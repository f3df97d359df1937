"""`ResolvedAddress`: where a socket is, without a name left to look up.

A value of two parts, the family and what Python's `socket` module takes as the address. It is parsed from and
formatted as text; names ("localhost:80") are not addresses and go through a `DNSResolver` first.
"""

from __future__ import annotations

import ipaddress
import os
import socket

__all__ = ["ResolvedAddress", "Sockaddr"]

Sockaddr = tuple[str, int] | tuple[str, int, int, int] | tuple[int, int] | str | bytes
"""What `socket.bind` and `socket.connect` take: (host, port), (host, port, flowinfo, scope), (cid, port), a path."""

_FORMS = '"127.0.0.1:80", "[::1]:80", "unix:/path", "unix-abstract:name" or "vsock:cid:port"'
_AF_VSOCK = getattr(socket, "AF_VSOCK", -1)
_UNIX_PATH_BYTES = 107  # sun_path holds 108 bytes on Linux, the last one is the terminator of a path


_MOST_32_BITS = 2**32 - 1


def _check_port(port: int, most: int) -> None:
    if isinstance(port, bool) or not isinstance(port, int):
        raise TypeError(f"port must be an int, not {type(port).__name__}")
    if not 0 <= port <= most:
        raise ValueError(f"port {port} is out of range; a port is a number from 0 to {most}")


def _encode(text: str, name: str) -> bytes:
    """The bytes of a unix socket's path or name, which is part of `text`."""
    try:
        return os.fsencode(name)
    except UnicodeEncodeError as error:
        raise ValueError(f"{text!r}: {name[error.start]!r} cannot be encoded as {error.encoding}") from None


class ResolvedAddress:
    """The address of a TCP, unix or vsock socket. Immutable, hashable; equal when family and address are.

    Made by `parse` and `tcp`, or by `from_sockaddr` from what the `socket` module returned.
    """

    __slots__ = ("_family", "_sockaddr")

    def __init__(self, family: int, sockaddr: Sockaddr) -> None:
        self._family = family
        self._sockaddr = sockaddr

    @classmethod
    def from_sockaddr(cls, family: int, sockaddr: Sockaddr) -> ResolvedAddress:
        """Wraps a family and the address that `getsockname`, `getpeername`, `accept` or `getaddrinfo` returned."""
        return cls(family, sockaddr)

    @classmethod
    def tcp(cls, host: str, port: int) -> ResolvedAddress:
        """An IPv4 or IPv6 address from a literal (`"10.0.0.1"`, `"::1"`, `"fe80::1%eth0"`) and a port of 0-65535.

        Raises ValueError, saying what was wrong, for a name or a port out of range.
        """
        if not isinstance(host, str):
            raise TypeError(f"host must be a str, not {type(host).__name__}")
        _check_port(port, 65535)
        try:
            ip = ipaddress.ip_address(host)
        except ValueError:
            if host in ("", "*"):
                raise ValueError('there is no host; for every interface write "0.0.0.0:80" or "[::]:80"') from None
            raise ValueError(
                f"{host!r} is not an IP address, as 127.0.0.1 or ::1; a name is looked up by a DNSResolver"
            ) from None
        if ip.version == 4:
            return cls(socket.AF_INET, (str(ip), port))
        scope = 0
        zone = ip.scope_id
        if zone is not None:
            try:
                is_number = zone.isascii() and zone.isdigit() and len(zone) <= 10 and int(zone) <= _MOST_32_BITS
                scope = int(zone) if is_number else socket.if_nametoindex(zone)
            except (OSError, ValueError):  # a NUL, or half a surrogate pair, is in no name of an interface
                raise ValueError(
                    f"{host!r} names the interface {zone!r}, which this machine does not have"
                ) from None
        return cls(socket.AF_INET6, (socket.inet_ntop(socket.AF_INET6, ip.packed), port, 0, scope))

    @classmethod
    def parse(cls, text: str) -> ResolvedAddress:
        """Reads `127.0.0.1:80`, `[::1]:80`, `unix:/path`, `unix-abstract:name` or `vsock:cid:port`.

        Raises ValueError with the text that was given and the forms that are allowed.
        """
        if not isinstance(text, str):
            raise TypeError(f"an address is parsed from a str, not {type(text).__name__}")
        scheme, colon, rest = text.partition(":")
        if colon and scheme == "unix":
            return cls._unix(text, rest)
        if colon and scheme == "unix-abstract":
            name = _encode(text, rest)
            if not name or len(name) > _UNIX_PATH_BYTES:
                raise ValueError(f"{text!r}: an abstract unix name has 1 to {_UNIX_PATH_BYTES} bytes")
            return cls(socket.AF_UNIX, b"\0" + name)
        if colon and scheme == "vsock":
            return cls._vsock(text, rest)
        if text.startswith("["):
            host, bracket, port = text[1:].rpartition("]:")
            well_formed = bool(bracket) and "]" not in host and "[" not in host and ":" in host
        else:
            host, bracket, port = text.rpartition(":")
            well_formed = bool(bracket) and ":" not in host
        if not well_formed:
            raise ValueError(f"{text!r} is not an address; write {_FORMS}")
        if not (port.isascii() and port.isdigit()):
            raise ValueError(f"{text!r} has no port number; write {_FORMS}")
        try:
            return cls.tcp(host, int(port))
        except ValueError as error:
            raise ValueError(f"{text!r}: {error}") from None

    @classmethod
    def _unix(cls, text: str, path: str) -> ResolvedAddress:
        size = len(_encode(text, path))
        if not 0 < size <= _UNIX_PATH_BYTES or "\0" in path:
            raise ValueError(f"{text!r}: a unix socket's path has 1 to {_UNIX_PATH_BYTES} bytes and no NUL")
        return cls(socket.AF_UNIX, path)

    @classmethod
    def _vsock(cls, text: str, rest: str) -> ResolvedAddress:
        cid, _, port = rest.partition(":")
        if not (cid.isascii() and cid.isdigit() and port.isascii() and port.isdigit()):
            raise ValueError(f"{text!r} is not a vsock address; write vsock:cid:port, both as numbers")
        if max(len(cid), len(port)) > 10 or max(int(cid), int(port)) > _MOST_32_BITS:
            raise ValueError(f"{text!r}: a vsock cid and port are numbers below 2**32")
        if _AF_VSOCK < 0:
            raise ValueError(f"{text!r}: this system has no vsock sockets")
        return cls(_AF_VSOCK, (int(cid), int(port)))

    @property
    def family(self) -> int:
        """`socket.AF_INET`, `AF_INET6`, `AF_UNIX` or `AF_VSOCK`."""
        return self._family

    @property
    def sockaddr(self) -> Sockaddr:
        """The address as the `socket` module takes it."""
        return self._sockaddr

    @property
    def host(self) -> str:
        """The IP address, with its scope where it has one; a unix socket's path or name; a vsock's cid."""
        address = self._sockaddr
        if isinstance(address, bytes):
            return os.fsdecode(address[1:])
        if isinstance(address, str):
            return address
        if len(address) == 4 and address[3] and "%" not in address[0]:
            return f"{address[0]}%{address[3]}"
        return str(address[0])

    @property
    def port(self) -> int:
        """The port; 1 for a unix socket, as gRPC's listeners report it."""
        return 1 if isinstance(self._sockaddr, str | bytes) else int(self._sockaddr[1])

    @property
    def is_wildcard(self) -> bool:
        """True for `0.0.0.0` and `::`, the addresses that mean "every interface"."""
        return self._family in (socket.AF_INET, socket.AF_INET6) and self.host in ("0.0.0.0", "::")

    def normalized(self) -> ResolvedAddress:
        """The IPv4 address that a v4-mapped IPv6 address (`::ffff:127.0.0.1`) stands for; else the same address."""
        if self._family == socket.AF_INET6:
            mapped = ipaddress.IPv6Address(self.host).ipv4_mapped
            if mapped is not None:
                return ResolvedAddress(socket.AF_INET, (str(mapped), self.port))
        return self

    def with_port(self, port: int) -> ResolvedAddress:
        """The same host on another port. Raises ValueError for a unix socket, which has none."""
        address = self._sockaddr
        if isinstance(address, str | bytes):
            raise ValueError(f"{self} has no port")
        _check_port(port, _MOST_32_BITS if self._family == _AF_VSOCK else 65535)
        if len(address) == 4:
            return ResolvedAddress(self._family, (address[0], port, address[2], address[3]))
        if isinstance(address[0], int):
            return ResolvedAddress(self._family, (address[0], port))
        return ResolvedAddress(self._family, (address[0], port))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ResolvedAddress):
            return NotImplemented
        return self._family == other._family and self._sockaddr == other._sockaddr

    def __hash__(self) -> int:
        return hash((self._family, self._sockaddr))

    def __str__(self) -> str:
        """The form that `parse` reads; a peer that has no name, as most unix clients, is `unix:`."""
        if self._family == socket.AF_INET6:
            return f"[{self.host}]:{self.port}"
        if isinstance(self._sockaddr, bytes):
            return f"unix-abstract:{self.host}" if self._sockaddr else "unix:"
        if isinstance(self._sockaddr, str):
            return f"unix:{self._sockaddr}"
        prefix = "vsock:" if self._family == _AF_VSOCK else ""
        return f"{prefix}{self.host}:{self.port}"

    def __repr__(self) -> str:
        return f"<ResolvedAddress {self}>"
