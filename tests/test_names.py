"""`host:port` as text: what gRPC's tests of its resolvers ask, and what comes of it on an engine."""

from __future__ import annotations

import re
import socket
from contextlib import closing
from typing import Never

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventengine import ResolvedAddress, Status, StatusCode, StatusError, Target, create_event_engine
from eventengine.core import getaddrinfo
from eventengine.core.resolver import _to_ascii as to_ascii
from eventengine.core.resolver import parse_dns_server
from eventengine.names import split_host_port, to_port_number
from eventengine.testing.application import Callback, Ledger

INDEX, INTERFACE = socket.if_nameindex()[0]

READ = [
    ("localhost:1", "", "localhost", "1"),
    ("localhost", "1", "localhost", "1"),
    ("localhost", "http", "localhost", "80"),
    ("localhost:https", "1", "localhost", "443"),
    ("localhost:imaps", "", "localhost", "imaps"),
    ("localhost:007", "", "localhost", "7"),
    ("127.0.0.1:1", "", "127.0.0.1", "1"),
    ("127.0.0.1", "http", "127.0.0.1", "80"),
    ("[2001:db8::1]:1", "", "2001:db8::1", "1"),
    ("[2001:db8::1]", "80", "2001:db8::1", "80"),
    ("2001:db8::1", "80", "2001:db8::1", "80"),
    ("2001:db8::1.2.3.4", "80", "2001:db8::1.2.3.4", "80"),
    (f"[fe80::1%{INTERFACE}]:1", "", f"fe80::1%{INTERFACE}", "1"),
    (f"fe80::1%{INTERFACE}", "1", f"fe80::1%{INTERFACE}", "1"),
    (f"[fe80::1%{INDEX}]", "1", f"fe80::1%{INDEX}", "1"),
    ("a.example.", "1", "a.example.", "1"),
    ("_grpc._tcp.a-b.example:1", "", "_grpc._tcp.a-b.example", "1"),
    ("bücher.example:1", "", "bücher.example", "1"),
    ("10.example:1", "", "10.example", "1"),
    ("0xface.example", "1", "0xface.example", "1"),
]


@pytest.mark.parametrize(("name", "default_port", "host", "port"), READ)
def test_a_name_is_split_into_host_and_port(name: str, default_port: str, host: str, port: str) -> None:
    assert split_host_port(name, default_port) == (host, port)


REFUSED = [
    ("293.283.1238.3:1", "", "neither an IP address literal nor a name"),
    ("[2001:db8::11111]:1", "", "neither an IP address literal nor a name"),
    ("[", "1", "an IPv6 literal is written"),
    ("[::1", "1", "an IPv6 literal is written"),
    ("[::1]bad", "1", "an IPv6 literal is written"),
    ("[1.2.3.4]", "1", "an IPv6 literal is written"),
    ("[localhost]", "1", "an IPv6 literal is written"),
    ("[localhost]:1", "1", "an IPv6 literal is written"),
    ("localhost", "", "has no port"),
    ("localhost:", "1", "has no port"),
    ("[::1]", "", "has no port"),
    ("[::1]:", "1", "has no port"),
    ("::1", "", "has no port"),
    ("", "1", "has no host"),
    (":1", "", "has no host"),
    ("[fe80::1%nosuch0]:1", "", "names the interface 'nosuch0', which this machine does not have"),
    ("127.1:1", "", "neither"),
    ("2130706433:1", "", "neither"),
    ("0x7f.0x1:1", "", "neither"),
    ("0x:1", "", "neither"),
    ("010.0.0.1:1", "", "neither"),
    ("1.2.3.4.:1", "", "neither"),
    ("name.1:1", "", "neither"),
    ("\uff11\uff12\uff17.\uff11:1", "", "neither"),
    ("1:2:3", "1", "neither"),
    ("localhost:65536", "", "port 65536 is out of range"),
    ("localhost:" + "9" * 5000, "", "out of range"),
    ("localhost", "65536", "port 65536 is out of range"),
    ("localhost:-1", "", "'-1' is not a port"),
    ("localhost:+1", "", "'+1' is not a port"),
    ("localhost: 1", "", "' 1' is not a port"),
    ("localhost:1 ", "", "'1 ' is not a port"),
    ("localhost:²", "", "'²' is not a port"),
    ("localhost:80/path", "", "'80/path' is not a port"),
    ("http://localhost", "1", "'//localhost' is not a port"),
    ("a b:1", "", "has no ' ' in it"),
    ("a\0:1", "", r"has no '\x00' in it"),
    ("user@host:1", "", "has no '@' in it"),
    ("1.2.3.4%lo:1", "", "has no '%' in it"),
    ("a..b:1", "", "each part"),
    (".:1", "", "each part"),
    ("x" * 64 + ":1", "", "each part"),
    ("ü" * 64 + ":1", "", "no name of a host"),
    ("x." * 127 + "xx:1", "", "at most 253 bytes"),
    ("ü." * 200 + ":1", "", "at most 253 bytes"),
]


@pytest.mark.parametrize(("name", "default_port", "why"), REFUSED, ids=lambda each: ascii(each)[:30])
def test_what_is_no_host_and_port_is_refused_with_the_text_that_was_given(
    name: str, default_port: str, why: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(why)) as caught:
        split_host_port(name, default_port)
    assert str(caught.value).startswith(repr(name))


ANY_TEXT = st.text(st.sampled_from("[]:.%0x1a٣é- /\0\\\ud800") | st.characters(), max_size=20)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    ANY_TEXT,
    st.sampled_from(["", "1", "http", "x"]),
)
def test_any_text_is_split_or_refused_and_a_split_one_is_joined_again(name: str, default_port: str) -> None:
    try:
        host, port = split_host_port(name, default_port)
    except ValueError as error:
        refusal = str(error)
    else:
        assert split_host_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", "") == (host, port)
        return
    assert refusal.startswith(repr(name))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(ANY_TEXT | st.lists(ANY_TEXT, max_size=40).map(".".join))
def test_any_text_is_asked_for_in_ascii_or_refused_with_its_text(name: str) -> None:
    try:
        asked = to_ascii(name, name)
    except ValueError as error:
        refusal = error
    else:
        assert asked.isascii()
        assert 0 < len(asked) <= 254
        return
    assert type(refusal) is ValueError
    assert str(refusal).startswith(repr(name))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(ANY_TEXT | st.ip_addresses().map(str) | st.ip_addresses().map("[{}]:5353".format))
def test_any_text_is_the_address_of_a_dns_server_or_refused_with_its_text(text: str) -> None:
    try:
        address = parse_dns_server(text)
    except ValueError as error:
        refusal = error
    else:
        assert ResolvedAddress.parse(str(address)) == address
        assert address.port
        return
    assert type(refusal) is ValueError
    assert str(refusal).startswith(repr(text))


@pytest.mark.parametrize(("port", "number"), [("0", 0), ("65535", 65535), ("domain", 53)])
def test_a_port_has_a_number(port: str, number: int) -> None:
    if port == "domain":
        try:
            socket.getservbyname(port)
        except OSError:
            pytest.skip("this machine has no /etc/services")
    assert to_port_number(f"localhost:{port}", port) == number


def test_a_service_that_nobody_knows_has_no_number() -> None:
    with pytest.raises(
        ValueError, match=r"'x:nosuchservice': .* no service 'nosuchservice'; give the port as a number"
    ):
        to_port_number("x:nosuchservice", "nosuchservice")


def test_where_there_is_no_telling_a_port_is_not_called_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> Never:
        raise socket.gaierror(socket.EAI_AGAIN, "later")

    monkeypatch.setattr(socket, "getaddrinfo", failing)
    with pytest.raises(StatusError) as raised:
        to_port_number("x:service", "service")
    assert raised.value.status.code is StatusCode.UNAVAILABLE
    assert raised.value.status.message == "'x:service': looking up the port 'service': later"
    with pytest.raises(ValueError, match="'x:service': looking up the port 'service': later; a target is"):
        Target.parse("x:service")


def test_no_literal_and_nothing_like_one_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(name: str, host: str, port: str) -> Status:
        raise AssertionError(f"{name!r} was looked up")

    monkeypatch.setattr(getaddrinfo, "_getaddrinfo", never)
    ledger = Ledger()
    with create_event_engine() as engine, closing(engine.get_dns_resolver()) as resolver:
        for name, default_port, host, port in READ:
            if host[0] in "12f" and not host.endswith("e"):
                on_resolve = Callback[list[ResolvedAddress] | Status](ledger)
                resolver.lookup_hostname(on_resolve, name, default_port)
                assert on_resolve.result() == [ResolvedAddress.tcp(host, int(port))]
        for name, default_port, _ in REFUSED:
            on_resolve = Callback[list[ResolvedAddress] | Status](ledger)
            resolver.lookup_hostname(on_resolve, name, default_port)
            status = on_resolve.result()
            assert isinstance(status, Status)
            assert status.code is StatusCode.INVALID_ARGUMENT
            assert status.message.startswith(repr(name))
    ledger.check()
