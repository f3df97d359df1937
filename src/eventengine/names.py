"""`host:port` as text, for all that takes names: resolvers and targets.

Rules, which are those of gRPC's tests of its resolvers:

1. An IPv6 literal with a port is written in brackets, and nothing else is. Bare, it has no port.
2. What looks like a literal and is none is refused, so that no server is ever asked for it: what has a colon, and what
   ends in a label that is a number (no name does: RFC 3696, section 2), `127.1` and `0x7f.1` included.
3. A port is a number, or the name of a service. `http` and `https` are known here, as a machine may lack
   /etc/services; who looks up the name finds the others there.
4. A text that is refused is given in the error, as it was.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import Final

from eventengine.address import ResolvedAddress
from eventengine.status import Status, StatusCode, StatusError

__all__ = ["split_host_port", "to_port_number"]

_WELL_KNOWN: Final = {"http": "80", "https": "443"}
_SERVICE: Final = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9][\w.+-]*", re.ASCII)
_ENDS_IN_A_NUMBER: Final = re.compile(r"(?:.*\.)?(?:[0-9]+|0[xX][0-9A-Fa-f]*)\.?", re.DOTALL)
_NOT_IN_NAMES: Final = re.compile(r"[\s\x00-\x20\x7f\"#%,/<>?@\[\\\]^`{|}]")
_LONGEST_NAME: Final = 253
_LONGEST_LABEL: Final = 63


def split_host_port(name: str, default_port: str) -> tuple[str, str]:
    """Splits `host:port`, `[v6]:port`, `[v6]`, `host` or a bare v6 literal into the host, without brackets, and the
    port, which is `default_port` where there is none.

    The host is a literal that `ResolvedAddress.tcp` reads, or a name to look up. The port is all digits, or the name of
    a service other than http and https.

    Raises ValueError, with the text that was given.
    """
    host, port = _split(name, default_port)
    if not host:
        raise ValueError(f"{name!r} has no host; write host:port")
    _check_host(name, host)
    if not port:
        raise ValueError(f"{name!r} has no port, and there is no default one")
    return host, _check_port(name, port)


def to_port_number(name: str, port: str) -> int:
    """The number of the port that `split_host_port` returned for `name`; the names of services are looked for in
    /etc/services.

    Raises ValueError for a service that this machine does not know, StatusError, UNAVAILABLE, where there is no
    telling; both with the text that was given.
    """
    if port.isdigit():
        return int(port)
    try:  # not getservbyname, which is for one thread at a time
        found = socket.getaddrinfo(
            "127.0.0.1", port, socket.AF_INET, socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )
    except socket.gaierror as error:
        if error.errno in (socket.EAI_SERVICE, socket.EAI_NONAME):
            raise ValueError(
                f"{name!r}: this machine knows no service {port!r}; give the port as a number"
            ) from None
        why = f"{name!r}: looking up the port {port!r}: {error.strerror}"
        raise StatusError(Status(StatusCode.UNAVAILABLE, why)) from None
    return int(found[0][4][1])


def _split(name: str, default_port: str) -> tuple[str, str]:
    if name.startswith("["):
        host, bracket, rest = name[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")) or ":" not in host:
            raise ValueError(f"{name!r} is not a host; an IPv6 literal is written [::1] or [::1]:80")
        return host, rest[1:] if rest else default_port
    if name.count(":") == 1:
        host, _, port = name.partition(":")
        return host, port
    return name, default_port


def _check_host(name: str, host: str) -> None:
    if ":" in host:
        _check_literal(name, host)
        return
    if len(host) > _LONGEST_NAME + 1:  # encoding it might take long
        raise ValueError(f"{name!r}: a name of a host has at most {_LONGEST_NAME} bytes")
    try:
        encoded = host if host.isascii() else host.encode("idna").decode("ascii")  # wide digits are digits, too
    except UnicodeError as error:
        raise ValueError(f"{name!r}: {host!r} is no name of a host: {error}") from None
    if _ENDS_IN_A_NUMBER.fullmatch(encoded):
        _check_literal(name, host)
        return
    if wrong := _NOT_IN_NAMES.search(encoded):
        raise ValueError(f"{name!r}: a name of a host has no {wrong[0]!r} in it")
    bare = encoded.removesuffix(".")
    if len(bare) > _LONGEST_NAME:
        raise ValueError(f"{name!r}: a name of a host has at most {_LONGEST_NAME} bytes")
    if not all(0 < len(label) <= _LONGEST_LABEL for label in bare.split(".")):
        raise ValueError(f"{name!r}: each part of a name of a host has 1 to {_LONGEST_LABEL} bytes")


def _check_literal(name: str, host: str) -> None:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise ValueError(f"{name!r}: {host!r} is neither an IP address literal nor a name") from None
    try:
        ResolvedAddress.tcp(host, 0)
    except ValueError as error:  # an interface that this machine does not have
        raise ValueError(f"{name!r}: {error}") from None


def _check_port(name: str, port: str) -> str:
    if port.isascii() and port.isdigit():
        digits = port.lstrip("0") or "0"
        if len(digits) > 5 or int(digits) > 65535:
            raise ValueError(f"{name!r}: port {port} is out of range; a port is a number from 0 to 65535")
        return digits
    if not _SERVICE.fullmatch(port):
        raise ValueError(
            f"{name!r}: {port!r} is not a port; a port is a number from 0 to 65535 or the name of a service"
        )
    return _WELL_KNOWN.get(port, port)
