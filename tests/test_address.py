"""Addresses: read from text, written as text, and what the kernel says of them."""

from __future__ import annotations

import ipaddress
import os
import pickle
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eventengine.address import ResolvedAddress, Sockaddr

FORMS = '"127.0.0.1:80", "[::1]:80", "unix:/path", "unix-abstract:name" or "vsock:cid:port"'
VSOCK = getattr(socket, "AF_VSOCK", -1)
needs_vsock = pytest.mark.skipif(VSOCK < 0, reason="this system has no vsock sockets")
needs_abstract = pytest.mark.skipif(not os.path.exists("/proc/net/unix"), reason="no abstract unix sockets here")
INDEX, INTERFACE = socket.if_nameindex()[0]

parse = ResolvedAddress.parse
tcp = ResolvedAddress.tcp


def refused(make: Callable[[], object]) -> str:
    with pytest.raises(ValueError, match=r".+") as caught:
        make()
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "family", "sockaddr", "host", "port"),
    [
        ("127.0.0.1:80", socket.AF_INET, ("127.0.0.1", 80), "127.0.0.1", 80),
        ("0.0.0.0:0", socket.AF_INET, ("0.0.0.0", 0), "0.0.0.0", 0),
        ("255.255.255.255:65535", socket.AF_INET, ("255.255.255.255", 65535), "255.255.255.255", 65535),
        ("[::1]:80", socket.AF_INET6, ("::1", 80, 0, 0), "::1", 80),
        ("[::]:0", socket.AF_INET6, ("::", 0, 0, 0), "::", 0),
        ("[2001:db8::1]:65535", socket.AF_INET6, ("2001:db8::1", 65535, 0, 0), "2001:db8::1", 65535),
        ("[fe80::1%7]:80", socket.AF_INET6, ("fe80::1", 80, 0, 7), "fe80::1%7", 80),
        ("unix:/tmp/a:b c", socket.AF_UNIX, "/tmp/a:b c", "/tmp/a:b c", 1),
        ("unix:relative", socket.AF_UNIX, "relative", "relative", 1),
        ("unix:///tmp/a", socket.AF_UNIX, "///tmp/a", "///tmp/a", 1),
        ("unix-abstract:na:me", socket.AF_UNIX, b"\0na:me", "na:me", 1),
        pytest.param("vsock:2:1234", VSOCK, (2, 1234), "2", 1234, marks=needs_vsock),
        pytest.param("vsock:4294967295:0", VSOCK, (0xFFFFFFFF, 0), "4294967295", 0, marks=needs_vsock),
    ],
)
def test_each_form_is_read_and_written_as_it_was(
    text: str, family: int, sockaddr: Sockaddr, host: str, port: int
) -> None:
    address = parse(text)
    assert (address.family, address.sockaddr, address.host, address.port) == (family, sockaddr, host, port)
    assert str(address) == text
    assert repr(address) == f"<ResolvedAddress {text}>"
    assert parse(str(address)) == address


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("127.0.0.1:080", "127.0.0.1:80"),
        ("[0:0:0:0:0:0:0:1]:80", "[::1]:80"),
        ("[2001:DB8:0::0:1]:80", "[2001:db8::1]:80"),
        (f"[fe80::1%{INTERFACE}]:80", f"[fe80::1%{INDEX}]:80"),
        ("[fe80::1%0]:80", "[fe80::1]:80"),
    ],
)
def test_an_address_is_written_in_its_shortest_form(text: str, written: str) -> None:
    assert str(parse(text)) == written
    assert parse(written) == parse(text)


IPV4 = st.builds(tcp, st.ip_addresses(v=4).map(str), st.integers(0, 65535))
IPV6 = st.builds(
    lambda ip, scope, port: tcp(f"{ip}%{scope}" if scope else str(ip), port),
    st.ip_addresses(v=6),
    st.sampled_from([0, 0, 1, 2**32 - 1]),
    st.integers(0, 65535),
)
NAMES = st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=26)
UNIX = NAMES.filter(lambda name: "\0" not in name).map(lambda name: parse(f"unix:{name}"))
ABSTRACT = NAMES.map(lambda name: parse(f"unix-abstract:{name}"))
VSOCKS = st.builds(lambda cid, port: parse(f"vsock:{cid}:{port}"), *[st.integers(0, 2**32 - 1)] * 2)


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(IPV4, IPV6, UNIX, ABSTRACT, *([VSOCKS] if VSOCK >= 0 else [])))
def test_what_was_written_is_read_as_the_same_address(address: ResolvedAddress) -> None:
    twin = parse(str(address))
    assert twin == address
    assert hash(twin) == hash(address)
    assert (twin.host, twin.port, twin.family) == (address.host, address.port, address.family)


@pytest.mark.parametrize("name", ["\0name", "\0", "na\0me", "name\0"], ids=ascii)
def test_an_abstract_name_keeps_its_nuls(name: str) -> None:
    address = parse(f"unix-abstract:{name}")
    assert address.sockaddr == b"\0" + name.encode()
    assert address.host == name
    assert parse(str(address)) == address


def test_a_unix_path_that_is_not_utf_8_survives() -> None:
    address = parse("unix:" + os.fsdecode(b"/tmp/\xff"))
    assert parse(str(address)) == address
    assert os.fsencode(address.host) == b"/tmp/\xff"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "]",
        "[]",
        "[]:",
        "[]:80",
        "[::1",
        "[::1]",
        "[::1]bad",
        "[::1]80",
        "[[::1]]:80",
        "[::1]]:80",
        "::1]:80",
        "::1",
        "::1:80",
        "[1.2.3.4]",
        "[1.2.3.4]:80",
        "[localhost]:1",
        "1.2.3.4",
        "localhost",
        "80",
        "UNIX",
        "unix",
        "http://127.0.0.1:80",
    ],
)
def test_what_has_no_form_of_an_address_is_refused_with_the_forms_there_are(text: str) -> None:
    assert refused(lambda: parse(text)) == f"{text!r} is not an address; write {FORMS}"


@pytest.mark.parametrize(
    "text",
    [
        ":",
        "127.0.0.1:",
        "127.0.0.1:http",
        "127.0.0.1:-1",
        "127.0.0.1:+80",
        "127.0.0.1:8 0",
        "127.0.0.1:80 ",
        "127.0.0.1:8_0",
        "127.0.0.1:80.0",
        "127.0.0.1:0x50",
        "127.0.0.1:²",
        "127.0.0.1:٨",
        "[::1]:",
        "[::1]:http",
        "[::1]:80:90",
        "[::1]:-1",
        "[::1]: 80",
        "UNIX:/path",
    ],
)
def test_a_port_that_is_no_number_is_refused_with_the_forms_there_are(text: str) -> None:
    assert refused(lambda: parse(text)) == f"{text!r} has no port number; write {FORMS}"


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("293.283.1238.3:1", "293.283.1238.3"),
        ("[2001:db8::11111]:1", "2001:db8::11111"),
        ("[fe80::1%]:1", "fe80::1%"),
        ("[:]:1", ":"),
        ("[:::]:1", ":::"),
        ("[1:2:3:4:5:6:7:8:9]:1", "1:2:3:4:5:6:7:8:9"),
        ("localhost:80", "localhost"),
        ("1.2.3:80", "1.2.3"),
        ("1.2.3.4.5:80", "1.2.3.4.5"),
        ("010.0.0.1:80", "010.0.0.1"),
        (" 1.2.3.4:80", " 1.2.3.4"),
        ("1.2.3.4%lo:80", "1.2.3.4%lo"),
        ("2130706433:80", "2130706433"),
    ],
)
def test_a_host_that_is_no_literal_is_refused_and_sent_to_a_resolver(text: str, host: str) -> None:
    why = f"{host!r} is not an IP address, as 127.0.0.1 or ::1; a name is looked up by a DNSResolver"
    assert refused(lambda: parse(text)) == f"{text!r}: {why}"
    assert refused(lambda: tcp(host, 1)) == why


@pytest.mark.parametrize("text", [":80", "*:80"])
def test_a_host_that_is_left_out_is_refused_with_the_wildcards_there_are(text: str) -> None:
    message = refused(lambda: parse(text))
    assert message.startswith(f"{text!r}: ")
    assert '"0.0.0.0:80" or "[::]:80"' in message


@pytest.mark.parametrize("text", [":80", "*:80"])
def test_who_means_every_interface_is_told_how_to_write_it(text: str) -> None:
    assert refused(lambda: parse(text)).endswith('for every interface write "0.0.0.0:80" or "[::]:80"')


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("port", [-1, 65536, 10**30])
def test_a_port_out_of_range_is_refused_with_the_range(host: str, port: int) -> None:
    why = f"port {port} is out of range; a port is a number from 0 to 65535"
    assert refused(lambda: tcp(host, port)) == why
    if port > 0:
        text = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        assert refused(lambda: parse(text)) == f"{text!r}: {why}"


def test_an_interface_that_is_not_there_is_refused_by_its_name() -> None:
    text = "[fe80::1%nosuchif0]:80"
    assert refused(lambda: parse(text)) == (
        f"{text!r}: 'fe80::1%nosuchif0' names the interface 'nosuchif0', which this machine does not have"
    )


@pytest.mark.parametrize("zone", ["²", "4294967296", "99999999999999999999"])
def test_a_scope_that_no_socket_takes_is_refused_by_its_name(zone: str) -> None:
    message = refused(lambda: parse(f"[fe80::1%{zone}]:80"))
    assert repr(zone) in message
    assert "int()" not in message


@pytest.mark.parametrize("zone", ["\0", "lo\0", "\ud800"], ids=ascii)
def test_a_scope_that_is_no_text_of_the_system_is_an_interface_that_is_not_there(zone: str) -> None:
    why = f"'fe80::1%{ascii(zone)[1:-1]}' names the interface {zone!r}, which this machine does not have"
    assert refused(lambda: tcp(f"fe80::1%{zone}", 80)) == why


@pytest.mark.parametrize("scheme", ["unix", "unix-abstract"])
def test_half_a_surrogate_pair_is_in_no_path_and_no_name(scheme: str) -> None:
    text = f"{scheme}:a\ud800b"
    why = f"'\\ud800' cannot be encoded as {sys.getfilesystemencoding()}"
    assert refused(lambda: parse(text)) == f"{text!r}: {why}"


ANY_TEXT = st.lists(
    st.sampled_from(["unix:", "unix-abstract:", "vsock:", "127.0.0.1", "::1", "fe80::1%", INTERFACE, "]:"])
    | st.sampled_from("[]:.%/019٣²é\0\ud800\udcff")
    | st.characters(),
    max_size=8,
).map("".join)


@settings(max_examples=600, deadline=None, derandomize=True)
@given(ANY_TEXT)
def test_any_text_is_an_address_that_reads_back_or_is_refused_with_its_text(text: str) -> None:
    try:
        address = parse(text)
    except ValueError as error:
        refusal = error
    else:
        assert parse(str(address)) == address
        return
    assert type(refusal) is ValueError
    assert str(refusal).startswith(repr(text))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(ANY_TEXT | ANY_TEXT.map("fe80::1%".__add__), st.integers(-1, 65536))
def test_any_host_and_port_are_an_address_or_refused_in_our_words(host: str, port: int) -> None:
    try:
        address = tcp(host, port)
    except ValueError as error:
        refusal = error
    else:
        assert parse(str(address)) == address
        return
    assert type(refusal) is ValueError
    assert re.search("out of range|no host|is not an IP address|this machine does not have", str(refusal))


@pytest.mark.parametrize("path", ["", "/" * 108, "é" * 54, "/a\0b"], ids=["none", "108", "108 bytes", "NUL"])
def test_a_unix_path_has_1_to_107_bytes_and_no_nul(path: str) -> None:
    text = f"unix:{path}"
    assert refused(lambda: parse(text)) == f"{text!r}: a unix socket's path has 1 to 107 bytes and no NUL"


@pytest.mark.parametrize("name", ["", "n" * 108, "é" * 54], ids=["none", "108", "108 bytes"])
def test_an_abstract_name_has_1_to_107_bytes(name: str) -> None:
    text = f"unix-abstract:{name}"
    assert refused(lambda: parse(text)) == f"{text!r}: an abstract unix name has 1 to 107 bytes"


@pytest.mark.parametrize("text", ["unix:" + "/" * 107, "unix-abstract:" + "n" * 107])
def test_the_longest_unix_address_is_one_that_the_kernel_takes(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text.startswith("unix:"):
        monkeypatch.chdir(tmp_path)
        text = "unix:" + "n" * 107
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(parse(text).sockaddr)
        assert ResolvedAddress.from_sockaddr(sock.family, sock.getsockname()) == parse(text)


@pytest.mark.parametrize(
    "text", ["vsock:", "vsock:1", "vsock:1:", "vsock::1", "vsock:a:b", "vsock:1:2:3", "vsock:-1:1"]
)
def test_a_vsock_address_that_is_not_two_numbers_is_refused(text: str) -> None:
    assert (
        refused(lambda: parse(text)) == f"{text!r} is not a vsock address; write vsock:cid:port, both as numbers"
    )


@pytest.mark.parametrize("text", ["vsock:4294967296:1", "vsock:1:4294967296", "vsock:1:" + "9" * 5000])
def test_vsock_numbers_lie_below_2_to_the_32(text: str) -> None:
    assert refused(lambda: parse(text)) == f"{text!r}: a vsock cid and port are numbers below 2**32"


@pytest.mark.parametrize("bad", [None, 80, b"127.0.0.1:80", ("127.0.0.1", 80)], ids=repr)
def test_an_address_is_parsed_from_a_string_alone(bad: object) -> None:
    with pytest.raises(TypeError, match=f"an address is parsed from a str, not {type(bad).__name__}"):
        parse(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [None, "80", 80.0, True], ids=repr)
def test_a_port_is_an_int(bad: object) -> None:
    with pytest.raises(TypeError, match=f"port must be an int, not {type(bad).__name__}"):
        tcp("127.0.0.1", bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [None, 7, b"1::1", ipaddress.ip_address("127.0.0.1")], ids=repr)
def test_a_host_is_a_string(bad: object) -> None:
    with pytest.raises(TypeError, match=type(bad).__name__):
        tcp(bad, 80)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("[::ffff:127.0.0.1]:80", "127.0.0.1:80"),
        ("[::ffff:7f00:1]:80", "127.0.0.1:80"),
        ("[::ffff:0:0]:80", "0.0.0.0:80"),
        ("[::1]:80", "[::1]:80"),
        ("[::7f00:1]:80", "[::7f00:1]:80"),
        ("[fe80::1%7]:80", "[fe80::1%7]:80"),
        ("127.0.0.1:80", "127.0.0.1:80"),
        ("unix:/path", "unix:/path"),
        ("unix-abstract:name", "unix-abstract:name"),
    ],
)
def test_normalized_unwraps_v4_mapped_addresses_and_leaves_the_rest(text: str, normal: str) -> None:
    assert parse(text).normalized() == parse(normal)


@pytest.mark.parametrize("host", ["::ffff:127.0.0.1", "::ffff:1.2.3.4", "::1.2.3.4", "::ffff:0:1", "::", "1::"])
def test_an_ipv6_address_equals_itself_as_the_kernel_writes_it(host: str) -> None:
    written = socket.inet_ntop(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, host))
    from_kernel = ResolvedAddress.from_sockaddr(socket.AF_INET6, (written, 80, 0, 0))
    assert parse(f"[{host}]:80") == from_kernel
    assert parse(str(from_kernel)) == from_kernel


@pytest.mark.parametrize("text", ["127.0.0.1:0", "[::1]:0"])
def test_what_a_bound_socket_says_of_itself_reads_back(text: str) -> None:
    address = parse(text)
    with socket.socket(address.family) as sock:
        sock.bind(address.sockaddr)
        bound = ResolvedAddress.from_sockaddr(sock.family, sock.getsockname())
    assert bound == address.with_port(bound.port)
    assert bound.port != 0
    assert parse(str(bound)) == bound


def test_a_peer_on_a_dual_stack_socket_normalizes_to_its_ipv4_address() -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("no dual-stack sockets here")
    with (
        socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server,
        socket.create_connection(("127.0.0.1", server.getsockname()[1])) as client,
    ):
        accepted, peer = server.accept()
        accepted.close()
        address = ResolvedAddress.from_sockaddr(socket.AF_INET6, peer)
        assert address.normalized() == ResolvedAddress.from_sockaddr(client.family, client.getsockname())
        assert parse(str(address)) == address


def test_what_getaddrinfo_says_of_a_scoped_address_is_the_parsed_one() -> None:
    [(family, _, _, _, sockaddr)] = socket.getaddrinfo(f"fe80::1%{INTERFACE}", 80, type=socket.SOCK_STREAM)
    address = ResolvedAddress.from_sockaddr(family, sockaddr)
    assert address == parse(f"[fe80::1%{INTERFACE}]:80")
    assert address.host == f"fe80::1%{INDEX}"


@needs_abstract
def test_a_name_that_the_kernel_chose_reads_back() -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("")
        address = ResolvedAddress.from_sockaddr(sock.family, sock.getsockname())
    assert str(address).startswith("unix-abstract:")
    assert parse(str(address)) == address


def test_a_unix_socket_without_a_name_is_written_as_unix() -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        address = ResolvedAddress.from_sockaddr(sock.family, sock.getsockname())
    assert (str(address), address.host, address.port) == ("unix:", "", 1)
    assert str(ResolvedAddress.from_sockaddr(socket.AF_UNIX, b"")) == "unix:"


def test_a_scope_within_the_host_is_not_written_twice() -> None:
    address = ResolvedAddress.from_sockaddr(socket.AF_INET6, ("fe80::1%7", 80, 0, 7))
    assert (address.host, str(address)) == ("fe80::1%7", "[fe80::1%7]:80")


@pytest.mark.parametrize(
    ("text", "wildcard"),
    [
        ("0.0.0.0:80", True),
        ("[::]:80", True),
        ("[0:0::0]:80", True),
        ("127.0.0.1:80", False),
        ("[::1]:80", False),
        ("unix:0.0.0.0", False),
        ("unix:::", False),
    ],
)
def test_a_wildcard_is_one_of_the_two_zero_addresses(text: str, wildcard: bool) -> None:
    assert parse(text).is_wildcard is wildcard


@pytest.mark.parametrize(
    ("text", "moved"),
    [
        ("127.0.0.1:80", "127.0.0.1:90"),
        ("[fe80::1%7]:80", "[fe80::1%7]:90"),
        pytest.param("vsock:3:80", "vsock:3:90", marks=needs_vsock),
    ],
)
def test_with_port_is_the_same_host_on_another_port(text: str, moved: str) -> None:
    address = parse(text)
    assert address.with_port(90) == parse(moved)
    assert address == parse(text)


def test_with_port_keeps_the_flow() -> None:
    address = ResolvedAddress.from_sockaddr(socket.AF_INET6, ("::1", 80, 5, 0))
    assert address.with_port(90).sockaddr == ("::1", 90, 5, 0)


@pytest.mark.parametrize("text", ["unix:/path", "unix-abstract:name"])
def test_a_unix_socket_has_no_port_to_change(text: str) -> None:
    assert refused(lambda: parse(text).with_port(80)) == f"{text} has no port"


@needs_vsock
def test_a_vsock_port_may_have_32_bits() -> None:
    assert parse("vsock:3:80").with_port(2**32 - 1) == parse("vsock:3:4294967295")


@pytest.mark.parametrize(
    ("text", "bad"),
    [
        *[(text, bad) for text in ("127.0.0.1:80", "[::1]:80") for bad in (-1, 65536, "90", 90.0, True)],
        *[pytest.param("vsock:3:80", bad, marks=needs_vsock) for bad in (-1, 2**32, "90")],
    ],
)
def test_with_port_takes_no_port_that_parse_would_refuse(text: str, bad: object) -> None:
    with pytest.raises((TypeError, ValueError), match="port"):
        parse(text).with_port(bad)  # type: ignore[arg-type]


def test_addresses_are_equal_when_family_and_address_are() -> None:
    assert tcp("127.0.0.1", 80) == parse("127.0.0.1:80")
    assert len({tcp("::1", 80), parse("[::1]:80"), parse("[0::1]:80")}) == 1


@pytest.mark.parametrize(
    "other",
    [
        parse("127.0.0.1:81"),
        parse("127.0.0.2:80"),
        parse("[::ffff:127.0.0.1]:80"),
        parse("unix:127.0.0.1:80"),
        ResolvedAddress(socket.AF_INET6, ("127.0.0.1", 80)),
        "127.0.0.1:80",
        ("127.0.0.1", 80),
        None,
    ],
    ids=repr,
)
def test_an_address_differs_from_one_that_differs_in_one_part_and_from_all_else(other: object) -> None:
    assert other != parse("127.0.0.1:80")
    assert parse("127.0.0.1:80") != other


def test_a_path_and_an_abstract_name_are_different_addresses() -> None:
    assert parse("unix:name") != parse("unix-abstract:name")


@pytest.mark.parametrize("name", ["host", "port", "family", "sockaddr", "more"])
def test_an_address_does_not_change(name: str) -> None:
    address = parse("127.0.0.1:80")
    with pytest.raises(AttributeError):
        setattr(address, name, 1)
    assert address == parse("127.0.0.1:80")


def test_an_address_survives_pickling() -> None:
    for text in ("127.0.0.1:80", "[fe80::1%7]:80", "unix:/path", "unix-abstract:name"):
        assert pickle.loads(pickle.dumps(parse(text))) == parse(text)


def test_the_message_of_a_bad_address_names_it_and_says_what_is_allowed_on_one_line() -> None:
    for text in ("293.283.1238.3:1", "[", "127.0.0.1:http", "unix:", "vsock:x:y", "127.0.0.1:65536", "a\nb"):
        message = refused(lambda text=text: parse(text))
        assert re.match(re.escape(repr(text)), message)
        assert "\n" not in message
