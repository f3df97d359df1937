"""RFC 6724: its own examples, with the source addresses that they assume, and what the system says here."""

from __future__ import annotations

import itertools

import pytest

from eventengine import ResolvedAddress
from eventengine.core.address_order import MOST, in_order, source_of
from eventengine.testing.conformance.fixtures import skip_without_ipv6

# Section 10.2, each destination with the source that is chosen for it, in the order that comes out. Two of its examples
# are about deprecated and home addresses, which no program is told of. Below the line, the rules one by one.
TABLE = {
    "matching scope, IPv6": [("2001:db8:1::1", "2001:db8:1::2"), ("198.51.100.121", "169.254.13.78")],
    "matching scope, IPv4": [("198.51.100.121", "198.51.100.117"), ("2001:db8:1::1", "fe80::1")],
    "higher precedence": [("2001:db8:1::1", "2001:db8:1::2"), ("10.1.2.3", "10.1.2.4")],
    "smaller scope": [("fe80::1", "fe80::2"), ("2001:db8:1::1", "2001:db8:1::2")],
    "longest prefix": [("2001:db8:1::1", "2001:db8:1::2"), ("2001:db8:3ffe::1", "2001:db8:3f44::2")],
    "matching label": [("2002:c633:6401::1", "2002:c633:6401::2"), ("2001:db8:1::1", "2002:c633:6401::2")],
    "higher precedence than 6to4": [
        ("2001:db8:1::1", "2001:db8:1::2"),
        ("2002:c633:6401::1", "2002:c633:6401::2"),
    ],
    # ---
    "unreachable last": [("10.0.0.1", "10.0.0.2"), ("2001:db8::1", None)],
    "both unreachable": [("2001:db8::1", None), ("10.0.0.1", None)],
    "loopback": [("::1", "::1"), ("127.0.0.1", "127.0.0.1")],
    "global IPv4 before unique local": [("192.0.2.1", "192.0.2.2"), ("fd00::1", "fd00::2")],
    "unique local with its own label": [("fd00::1", "fd00::2"), ("2001:db8::1", "fd00::2")],
    "Teredo after IPv4": [("192.0.2.1", "192.0.2.2"), ("2001::1", "2001::2")],
    "a scoped literal": [("fe80::1%7", "fe80::2%7"), ("2001:db8::1", "2001:db8::2")],
    "site-local": [("fec0::1", "fec0::2"), ("3ffe::1", "3ffe::2")],
}


@pytest.mark.parametrize("rows", TABLE.values(), ids=TABLE)
def test_destinations_are_in_the_order_of_the_rfc(rows: list[tuple[str, str | None]]) -> None:
    sources = dict(rows)
    addresses = [ResolvedAddress.tcp(destination, 80) for destination, _ in rows]
    for given in itertools.permutations(addresses):
        assert in_order(given, lambda address: sources[address.host]) == addresses


def test_equals_keep_their_order_and_none_comes_twice() -> None:
    addresses = [ResolvedAddress.tcp(f"192.0.2.{last}", 80) for last in (9, 1, 5, 1, 9)]
    assert in_order(addresses, lambda address: "192.0.2.77") == addresses[:3]
    within = [ResolvedAddress.tcp(f"2001:db8::{last:x}", 80) for last in (9, 1, 0x8000)]
    assert (
        in_order(within, lambda address: "2001:db8::8001") == within
    )  # beyond the prefix there is nothing to compare


def test_thousands_of_addresses_do_not_take_a_socket_each() -> None:
    asked: list[ResolvedAddress] = []

    def note(address: ResolvedAddress) -> str | None:
        asked.append(address)
        return None if address == addresses[0] else "192.0.2.77"

    addresses = [ResolvedAddress.tcp(f"10.0.{n >> 8}.{n & 255}", 80) for n in range(4000)]
    found = in_order(addresses, note)
    assert found == [*addresses[1:MOST], addresses[0], *addresses[MOST:]]
    assert len(asked) == MOST


def test_one_address_needs_no_socket() -> None:
    def unused(address: ResolvedAddress) -> str | None:
        raise AssertionError("asked for a source")

    one = [ResolvedAddress.tcp("192.0.2.1", 80)]
    assert in_order(one, unused) == one
    assert in_order([], unused) == []


@pytest.mark.parametrize("port", [0, 80])
def test_the_system_tells_the_source(port: int) -> None:
    assert source_of(ResolvedAddress.tcp("127.0.0.7", port)) == "127.0.0.1"


def test_the_system_tells_the_source_of_ipv6() -> None:
    skip_without_ipv6()
    assert source_of(ResolvedAddress.tcp("::1", 80)) == "::1"


def test_what_the_system_has_no_way_to_has_no_source() -> None:
    assert source_of(ResolvedAddress.tcp("255.255.255.255", 80)) is None  # to broadcast must be allowed first
