"""Targets: read from text, written as text."""

from __future__ import annotations

import os
import re
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventengine import ResolvedAddress, Target

tcp = ResolvedAddress.tcp
needs_vsock = pytest.mark.skipif(not hasattr(socket, "AF_VSOCK"), reason="this system has no vsock sockets")


@pytest.mark.parametrize(
    ("text", "name", "server", "written"),
    [
        ("localhost:80", "localhost:80", None, "localhost:80"),
        ("localhost", "localhost:443", None, "localhost:443"),
        ("localhost:http", "localhost:80", None, "localhost:80"),
        ("dns:localhost:80", "localhost:80", None, "localhost:80"),
        ("dns:///localhost:80", "localhost:80", None, "localhost:80"),
        ("dns:localhost", "localhost:443", None, "localhost:443"),
        ("dns:///localhost", "localhost:443", None, "localhost:443"),
        ("dns://192.0.2.1/localhost:80", "localhost:80", "192.0.2.1:53", "dns://192.0.2.1:53/localhost:80"),
        (
            "dns://192.0.2.1:5353/localhost",
            "localhost:443",
            "192.0.2.1:5353",
            "dns://192.0.2.1:5353/localhost:443",
        ),
        ("dns://[2001:db8::1]/a.b.", "a.b.:443", "[2001:db8::1]:53", "dns://[2001:db8::1]:53/a.b.:443"),
        ("dns://[2001:db8::1]:54/a", "a:443", "[2001:db8::1]:54", "dns://[2001:db8::1]:54/a:443"),
        ("unix", "unix:443", None, "dns:unix:443"),
        ("dns:dns:53", "dns:53", None, "dns:dns:53"),
        ("xds", "xds:443", None, "xds:443"),
        ("xds:1", "xds:1", None, "xds:1"),
        ("DNS:1", "DNS:1", None, "DNS:1"),
    ],
)
def test_a_name_is_kept_for_a_resolver(text: str, name: str, server: str | None, written: str) -> None:
    target = Target.parse(text)
    assert (target.scheme, target.addresses, target.name, target.dns_server) == ("dns", (), name, server)
    assert str(target) == written
    assert Target.parse(written, "") == target


@pytest.mark.parametrize(
    ("text", "scheme", "addresses", "written"),
    [
        ("127.0.0.1:80", "dns", [tcp("127.0.0.1", 80)], "127.0.0.1:80"),
        ("127.0.0.1", "dns", [tcp("127.0.0.1", 443)], "127.0.0.1:443"),
        ("::1", "dns", [tcp("::1", 443)], "[::1]:443"),
        ("dns:///[::1]:80", "dns", [tcp("::1", 80)], "[::1]:80"),
        ("dns:127.0.0.1:80", "dns", [tcp("127.0.0.1", 80)], "127.0.0.1:80"),
        ("ipv4:127.0.0.1:80", "ipv4", [tcp("127.0.0.1", 80)], "ipv4:127.0.0.1:80"),
        (
            "ipv4:127.0.0.2,127.0.0.1:80,127.0.0.2",
            "ipv4",
            [tcp("127.0.0.2", 443), tcp("127.0.0.1", 80), tcp("127.0.0.2", 443)],
            "ipv4:127.0.0.2:443,127.0.0.1:80,127.0.0.2:443",
        ),
        ("ipv6:[2607:f8b0:400e:c00::ef]:443", "ipv6", [tcp("2607:f8b0:400e:c00::ef", 443)], None),
        ("ipv6:[::]:1234", "ipv6", [tcp("::", 1234)], None),
        ("ipv6:::1,[::2]:http", "ipv6", [tcp("::1", 443), tcp("::2", 80)], "ipv6:[::1]:443,[::2]:80"),
        ("ipv6:[fe80::1%7]:1", "ipv6", [tcp("fe80::1%7", 1)], None),
        ("unix:relative/path", "unix", [ResolvedAddress.parse("unix:relative/path")], None),
        ("unix:/absolute", "unix", [ResolvedAddress.parse("unix:/absolute")], None),
        ("unix:///absolute", "unix", [ResolvedAddress.parse("unix:/absolute")], "unix:/absolute"),
        ("unix:////two", "unix", [ResolvedAddress.parse("unix://two")], None),
        ("unix:/a%20b?c#d:1,2", "unix", [ResolvedAddress.parse("unix:/a%20b?c#d:1,2")], None),
        ("unix-abstract:na:me", "unix-abstract", [ResolvedAddress.parse("unix-abstract:na:me")], None),
        pytest.param("vsock:2:1234", "vsock", [(2, 1234)], None, marks=needs_vsock),
    ],
)
def test_addresses_are_kept_in_their_order(
    text: str, scheme: str, addresses: list[ResolvedAddress], written: str | None
) -> None:
    target = Target.parse(text)
    found = [address.sockaddr for address in target.addresses] if scheme == "vsock" else [*target.addresses]
    assert (target.scheme, found, target.dns_server) == (scheme, addresses, None)
    assert str(target) == (written or text)
    assert Target.parse(str(target), "") == target


def test_a_literal_that_names_a_server_is_its_own_address() -> None:
    target = Target.parse("dns://192.0.2.1/127.0.0.1:80")
    assert target.addresses == (tcp("127.0.0.1", 80),)
    assert Target.parse(str(target)) == target


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "'' has no host"),
        ("dns:", "'dns:': '' has no host"),
        ("dns:///", "'dns:///': '' has no host"),
        ("dns://192.0.2.1", "dns:// is followed by a server, or none, and a slash, as in dns:///host:port"),
        ("dns://192.0.2.1/", "'' has no host"),
        ("dns:/localhost", "a name of a host has no '/' in it"),
        ("dns://:53/localhost", "':53' has no host"),
        ("dns://192.0.2.300/localhost", "'192.0.2.300' is neither an IP address literal nor a name"),
        ("dns://192.0.2.1:99999/localhost", "port 99999 is out of range"),
        ("dns:///293.283.1238.3:1", "'293.283.1238.3' is neither an IP address literal nor a name"),
        ("293.283.1238.3:1", "'293.283.1238.3' is neither an IP address literal nor a name"),
        ("[2001:db8::11111]:1", "'2001:db8::11111' is neither"),
        ("[", "'[' is not a host"),
        ("[::1", "'[::1' is not a host"),
        ("[::1]bad", "'[::1]bad' is not a host"),
        ("[1.2.3.4]", "'[1.2.3.4]' is not a host"),
        ("[localhost]:1", "'[localhost]:1' is not a host"),
        ("localhost:", "'localhost:' has no port"),
        ("localhost:nosuchservice", "this machine knows no service 'nosuchservice'"),
        ("http://localhost:80", "'http' is not a scheme of targets"),
        ("xds:///a", "'xds' is not a scheme of targets"),
        ("ipv4:", "'' has no host"),
        ("ipv4:127.0.0.1,", "'' has no host"),
        ("ipv4:localhost:80", "'localhost:80' is not an IPv4 address"),
        ("ipv4:127.0.0.1:80,[::1]:80", "'[::1]:80' is not an IPv4 address"),
        ("ipv6:127.0.0.1:80", "'127.0.0.1:80' is not an IPv6 address"),
        ("ipv6:localhost", "'localhost' is not an IPv6 address"),
        ("ipv6:[::1]:65536", "port 65536 is out of range"),
        ("ipv6:[::1]:nosuchservice", "knows no service 'nosuchservice'"),
        ("unix:", "a unix socket's path has 1 to 107 bytes"),
        ("unix:" + "x" * 108, "a unix socket's path has 1 to 107 bytes"),
        ("unix://relative", "after unix:// the path is absolute, as in unix:///path"),
        ("unix-abstract:", "an abstract unix name has 1 to 107 bytes"),
        ("vsock:", "write vsock:cid:port, both as numbers"),
        ("vsock:1", "write vsock:cid:port, both as numbers"),
        ("vsock:any:1", "write vsock:cid:port, both as numbers"),
    ],
)
def test_what_is_no_target_is_refused_with_its_text_and_what_is_allowed(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)) as caught:
        Target.parse(text)
    message = str(caught.value)
    assert message.startswith(repr(text))
    assert message.endswith('or "vsock:cid:port"')
    assert "\n" not in message


def test_without_a_default_port_one_must_be_written() -> None:
    for text in (
        "localhost",
        "dns:localhost",
        "127.0.0.1",
        "ipv4:127.0.0.1",
        "ipv6:::1",
        "dns://192.0.2.1/localhost",
    ):
        with pytest.raises(ValueError, match="has no port, and there is no default one"):
            Target.parse(text, "")
    assert Target.parse("dns://192.0.2.1/localhost:1", "").dns_server == "192.0.2.1:53"


@pytest.mark.parametrize(("default_port", "number"), [("8080", 8080), ("http", 80)])
def test_a_default_port_is_taken_where_none_is_written(default_port: str, number: int) -> None:
    assert str(Target.parse("ipv4:127.0.0.1,127.0.0.2:1", default_port)) == f"ipv4:127.0.0.1:{number},127.0.0.2:1"


@pytest.mark.parametrize(("text", "default_port"), [(b"localhost:80", ""), ("localhost", 80), (None, "")])
def test_what_is_no_text_is_refused(text: object, default_port: object) -> None:
    what, bad = ("a default port", default_port) if isinstance(text, str) else ("a target", text)
    with pytest.raises(TypeError, match=f"{what} must be str, not {type(bad).__name__}"):
        Target.parse(text, default_port)  # type: ignore[arg-type]  # on purpose
    with pytest.raises(TypeError, match="made of a ResolvedAddress, not of str"):
        Target.of("localhost:80")  # type: ignore[arg-type]  # on purpose


def test_a_target_is_a_value() -> None:
    one, other = Target.parse("dns:///localhost:80"), Target.parse("localhost", "80")
    assert one == other
    assert len({one, other, Target.parse("localhost:81")}) == 2
    with pytest.raises(AttributeError):
        one.name = "elsewhere:80"  # type: ignore[misc]  # on purpose


NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,20}(\.[a-z]{1,10}){0,3}\.?", fullmatch=True) | st.sampled_from(
    ["dns", "ipv4", "unix", "unix-abstract", "vsock", "bücher.example"]
)
PORTS = st.integers(0, 65535)
V4 = st.builds(tcp, st.ip_addresses(v=4).map(str), PORTS)
V6 = st.builds(
    lambda ip, scope, port: tcp(f"{ip}%{scope}" if scope else str(ip), port),
    st.ip_addresses(v=6),
    st.sampled_from([0, 0, 7, 2**32 - 1]),
    PORTS,
)
TEXTS = st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=26)
PATHS = st.builds(lambda slashes, rest: "/" * slashes + rest, st.integers(0, 4), TEXTS).filter(
    lambda path: "\0" not in path and not re.match("//(?!/)", path)
)
HOSTS = st.builds(lambda name, port: f"{name}:{port}", NAMES, PORTS) | NAMES | V4.map(str) | V6.map(str)
TARGETS = st.one_of(
    HOSTS.filter(lambda text: text.partition(":")[0] not in ("dns", "ipv4", "unix", "unix-abstract", "vsock")),
    HOSTS.map(lambda text: f"dns:{text}"),
    st.builds(lambda server, text: f"dns://{server}/{text}", st.just("") | HOSTS, HOSTS),
    st.lists(V4, min_size=1, max_size=4).map(lambda all_of: f"ipv4:{','.join(map(str, all_of))}"),
    st.lists(V6, min_size=1, max_size=4).map(lambda all_of: f"ipv6:{','.join(map(str, all_of))}"),
    PATHS.map(lambda path: f"unix:{path}"),
    PATHS.map(lambda path: f"unix:///{path}"),
    TEXTS.map(lambda name: f"unix-abstract:{name}"),
    *(
        [st.builds(lambda cid, port: f"vsock:{cid}:{port}", *[st.integers(0, 2**32 - 1)] * 2)]
        if hasattr(socket, "AF_VSOCK")
        else []
    ),
)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(TARGETS, st.sampled_from(["", "1"]))
def test_what_was_written_is_read_as_the_same_target_whatever_the_default_port(
    text: str, default_port: str
) -> None:
    target = Target.parse(text, "443")
    twin = Target.parse(str(target), default_port)
    assert twin == target
    assert hash(twin) == hash(target)
    assert str(twin) == str(target)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.one_of(
        V4, V6, TEXTS.filter(lambda text: "\0" not in text).map(lambda path: ResolvedAddress.parse(f"unix:{path}"))
    )
)
def test_the_target_of_an_address_is_that_address(address: ResolvedAddress) -> None:
    target = Target.of(address)
    assert target.addresses == (address,)
    assert Target.parse(str(target), "") == target


def test_a_unix_path_that_is_not_utf_8_survives() -> None:
    target = Target.parse("unix:///" + os.fsdecode(b"tmp/\xff"))
    assert target.addresses[0].sockaddr == os.fsdecode(b"/tmp/\xff")
    assert Target.parse(str(target)) == target


@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    st.builds(
        lambda scheme, rest: scheme + rest,
        st.sampled_from(
            ["", "dns:", "dns://", "ipv4:", "ipv6:", "unix:", "unix://", "unix-abstract:", "vsock:", "x:"]
        ),
        st.text(st.sampled_from("[]:.,/%01a\ud800\0") | st.characters(), max_size=20),
    )
)
def test_any_text_is_a_target_or_refused_with_its_text(text: str) -> None:
    try:
        target = Target.parse(text)
    except ValueError as error:
        refusal = str(error)
    else:
        assert Target.parse(str(target), "") == target
        return
    assert refusal.startswith(repr(text))
