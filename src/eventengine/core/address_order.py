"""The order in which to try a name's addresses: RFC 6724, section 6, "Destination Address Selection".

Each destination is looked at together with the source address that the system would send from, which a UDP socket tells
that is connected there: nothing is sent. The rules that can be known from the two, in their order:

    1  avoid what cannot be reached: no source address
    2  prefer a source of the destination's own scope
    5  prefer a source of the destination's own label
    6  prefer the higher precedence
    8  prefer the smaller scope
    9  prefer the longer common prefix with the source, among IPv6 addresses
   10  else leave the order as it was

Rules 3, 4 and 7 (deprecated and home addresses, native transport) ask for what the system tells no program by this way.
`getaddrinfo` of the C library goes by the same rules. IPv4 addresses count as their IPv4-mapped ones.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Final

from eventengine.address import ResolvedAddress

__all__ = ["in_order", "source_of"]

MOST: Final = 256
"""Addresses that are put in order. Each takes a socket, on the loop's thread, and a server may name six thousand."""

_LINK_LOCAL: Final = 2
_SITE_LOCAL: Final = 5
_GLOBAL: Final = 14

# RFC 6724, section 2.1: prefix, precedence, label. The longest prefix that matches counts.
_POLICY: Final = sorted(
    (
        (IPv6Network(prefix), precedence, label)
        for prefix, precedence, label in (
            ("::1/128", 50, 0),
            ("::/0", 40, 1),
            ("::ffff:0:0/96", 35, 4),
            ("2002::/16", 30, 2),
            ("2001::/32", 5, 5),
            ("fc00::/7", 3, 13),
            ("::/96", 1, 3),
            ("fec0::/10", 1, 11),
            ("3ffe::/16", 1, 12),
        )
    ),
    key=lambda row: -row[0].prefixlen,
)


def source_of(destination: ResolvedAddress) -> str | None:
    """The address that the system would send from; None: it has no way there."""
    with suppress(OSError), socket.socket(destination.family, socket.SOCK_DGRAM) as sock:
        sock.connect(destination.with_port(destination.port or 53).sockaddr)  # some systems refuse port 0
        return str(sock.getsockname()[0])
    return None


def in_order(
    destinations: Iterable[ResolvedAddress],
    source_of: Callable[[ResolvedAddress], str | None] = source_of,
) -> list[ResolvedAddress]:
    """The IPv4 and IPv6 addresses `destinations`, none twice, the best first; those beyond MOST as they came."""
    unique = list(dict.fromkeys(destinations))
    if len(unique) < 2:
        return unique
    ranked = sorted(unique[:MOST], key=lambda destination: _rank(destination.host, source_of(destination)))
    return ranked + unique[MOST:]


def _rank(destination: str, source: str | None) -> tuple[bool, bool, bool, int, int, int]:
    """What is tried first ranks lowest."""
    to = _parse(destination)
    precedence, label = _policy(to)
    scope = _scope(to)
    if source is None:
        return True, False, False, -precedence, scope, 0
    at = _parse(source)
    common = 0
    if to.ipv4_mapped is None and at.ipv4_mapped is None:
        common = min(128 - (int(to) ^ int(at)).bit_length(), 64)  # the rest is the interface's
    return False, _scope(at) != scope, _policy(at)[1] != label, -precedence, scope, -common


def _parse(text: str) -> IPv6Address:
    address = ip_address(text.partition("%")[0])
    return address if isinstance(address, IPv6Address) else IPv6Address(f"::ffff:{address}")


def _policy(address: IPv6Address) -> tuple[int, int]:
    return next((precedence, label) for prefix, precedence, label in _POLICY if address in prefix)


def _scope(address: IPv6Address) -> int:
    """Section 3.1 and 3.2. Unicast and multicast scopes compare by their numbers."""
    mapped = address.ipv4_mapped
    if mapped is not None:
        return _LINK_LOCAL if mapped.is_link_local or mapped.is_loopback else _GLOBAL
    if address.is_multicast:
        return address.packed[1] & 0xF
    if address.is_link_local or address.is_loopback:
        return _LINK_LOCAL
    return _SITE_LOCAL if address.is_site_local else _GLOBAL
