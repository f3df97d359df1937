"""`get_dns_resolver`, and the lookups of a `DNSResolver`. No test asks a server: names are local, or are none, or the
server is a port where nobody listens."""

from __future__ import annotations

import gc
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from eventengine.address import ResolvedAddress
from eventengine.engine import DNSResolver, EventEngine
from eventengine.status import ClosedResourceError, Status, StatusCode, StatusError
from eventengine.testing.application import Application, Callback, Ledger
from eventengine.testing.capabilities import lacking, needs
from eventengine.testing.scenes import held, never_inline

Resolved = list[ResolvedAddress] | Status


@pytest.fixture
def unanswered_port() -> Iterator[int]:
    """A port of 127.0.0.1 which nobody else gets, and where nothing is answered."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.connect(sock.getsockname())  # hears itself alone: what comes from elsewhere is refused
        yield sock.getsockname()[1]


@pytest.fixture
def resolver(engine: EventEngine) -> Iterator[DNSResolver]:
    with closing(engine.get_dns_resolver()) as resolver:
        yield resolver


def _look_up(app: Application, resolver: DNSResolver, name: str, default_port: str = "") -> Resolved:
    on_resolve = Callback[Resolved](app.ledger)
    app.call(lambda: resolver.lookup_hostname(on_resolve, name, default_port))
    return on_resolve.result()


@pytest.mark.parametrize(
    ("name", "default_port"),
    [
        ("localhost:443", ""),
        ("localhost:443", "80"),
        ("localhost", "443"),
        ("localhost", "https"),
        ("localhost:https", "http"),
    ],
)
def test_a_name_is_looked_up_with_its_port_or_the_default_one(
    anywhere: Application, resolver: DNSResolver, name: str, default_port: str
) -> None:
    found = _look_up(anywhere, resolver, name, default_port)
    assert not isinstance(found, Status)
    assert found
    assert {address.port for address in found} == {443}
    assert {address.host for address in found} <= {"127.0.0.1", "::1"}
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    ("name", "host", "port"),
    [
        ("192.0.2.1:443", "192.0.2.1", 443),
        ("192.0.2.1", "192.0.2.1", 80),
        ("192.0.2.1:https", "192.0.2.1", 443),
        ("[2001:db8::1]:443", "2001:db8::1", 443),
        ("[2001:db8::1]", "2001:db8::1", 80),
        ("2001:db8::1", "2001:db8::1", 80),
        ("2001:db8::1.2.3.4", "2001:db8::102:304", 80),
        ("[fe80::1%1]:80", "fe80::1%1", 80),
        ("[::1]:0", "::1", 0),
        ("127.0.0.1:65535", "127.0.0.1", 65535),
    ],
)
def test_a_literal_is_its_own_address(
    app: Application, resolver: DNSResolver, name: str, host: str, port: int
) -> None:
    if ":" in host and not socket.has_ipv6:
        lacking("ipv6", "this Python has no IPv6")
    assert _look_up(app, resolver, name, "80") == [ResolvedAddress.tcp(host, port)]


@pytest.mark.parametrize(
    ("name", "default_port"),
    [
        ("localhost", ""),
        ("127.0.0.1", ""),
        ("::1", ""),
        ("[::1]", ""),
        ("293.283.1238.3:1", ""),
        ("[2001:db8::11111]:1", ""),
        ("[", "1"),
        ("[::1]bad", "1"),
        ("[1.2.3.4]", "1"),
        ("[fe80::1%nosuch0]:1", ""),
        ("localhost:", ""),
        ("", "80"),
        (":80", "80"),
        ("[::1", "80"),
        ("[::1]80", "80"),
        ("[localhost]:80", "80"),
        ("localhost:65536", ""),
        ("127.0.0.1:65536", ""),
        ("localhost", "65536"),
        ("localhost:no-such-service", ""),
        ("localhost:-1", ""),
        ("x" * 64 + ":80", ""),
    ],
)
def test_what_is_no_name_is_an_invalid_argument(
    app: Application, resolver: DNSResolver, name: str, default_port: str
) -> None:
    def begin(on_resolve: Callable[[Resolved], None]) -> None:
        resolver.lookup_hostname(on_resolve, name, default_port)

    status = never_inline(app, begin)
    assert isinstance(status, Status), status
    assert status.code is StatusCode.INVALID_ARGUMENT
    assert repr(name) in status.message


@pytest.mark.parametrize("name", ["127.0.0.1:80", "localhost:80"])
def test_a_lookup_is_never_answered_before_it_has_returned(
    app: Application, resolver: DNSResolver, name: str
) -> None:
    def begin(on_resolve: Callable[[Resolved], None]) -> None:
        resolver.lookup_hostname(on_resolve, name)

    found = never_inline(app, begin)
    assert not isinstance(found, Status)
    assert ResolvedAddress.tcp("127.0.0.1", 80) in found


@pytest.mark.parametrize("records", ["SRV", "TXT"])
def test_service_and_text_records_are_answered_or_unimplemented(
    app: Application, unanswered_port: int, records: str
) -> None:
    """Nobody listens where the server should be: a resolver that can look for them says so."""
    try:
        resolver = app.engine.get_dns_resolver(dns_server=f"127.0.0.1:{unanswered_port}")
    except StatusError:
        resolver = app.engine.get_dns_resolver()

    def begin(on_resolve: Callable[[object], None]) -> None:
        look_up = resolver.lookup_srv if records == "SRV" else resolver.lookup_txt
        look_up(on_resolve, "_grpc._tcp.nosuch.invalid")

    with closing(resolver):
        status = never_inline(app, begin)
    assert isinstance(status, Status)
    assert status.code in (StatusCode.UNIMPLEMENTED, StatusCode.DEADLINE_EXCEEDED, StatusCode.UNAVAILABLE)
    assert "nosuch.invalid" in status.message


def test_a_server_can_be_chosen_or_not_which_is_told_at_the_caller(anywhere: Application) -> None:
    try:
        resolver = anywhere.call(lambda: anywhere.engine.get_dns_resolver(dns_server="127.0.0.1:53"))
    except StatusError as error:
        status = error.status
    else:
        resolver.close()
        return
    assert status.code is StatusCode.UNIMPLEMENTED
    assert "127.0.0.1:53" in status.message


@pytest.mark.parametrize(
    "text",
    ["", "localhost", "localhost:53", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:x", "[::1", "::1]:53", "1.2.3"],
)
def test_what_is_no_server_s_address_is_told_at_the_caller(app: Application, text: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(repr(text))} is not the address of a DNS server"):
        app.engine.get_dns_resolver(dns_server=text)


def test_a_server_s_address_is_a_text(app: Application) -> None:
    with pytest.raises(TypeError, match="dns_server must be a str or None, not int"):
        app.engine.get_dns_resolver(dns_server=53)  # type: ignore[arg-type]  # on purpose


def test_a_resolver_says_of_what_kind_it_is(resolver: DNSResolver) -> None:
    assert isinstance(resolver.kind, str)
    assert resolver.kind
    assert resolver.kind in repr(resolver)


def test_a_hundred_lookups_at_once(app: Application, resolver: DNSResolver, ledger: Ledger) -> None:
    lookups = [Callback[Resolved](ledger) for _ in range(100)]
    for port, on_resolve in enumerate(lookups, 1):
        resolver.lookup_hostname(on_resolve, f"localhost:{port}")
    for port, on_resolve in enumerate(lookups, 1):
        found = on_resolve.result()
        assert not isinstance(found, Status)
        assert {address.port for address in found} == {port}


def test_closing_cancels_lookups_that_wait(app: Application, ledger: Ledger) -> None:
    resolver = app.engine.get_dns_resolver()
    lookups = [Callback[Resolved](ledger) for _ in range(6)]
    services, texts = Callback[object](ledger), Callback[object](ledger)
    with held(app):
        for on_resolve, name in zip(lookups, ("localhost:80", "127.0.0.1:80", "nonsense") * 2, strict=True):
            resolver.lookup_hostname(on_resolve, name)
        resolver.lookup_srv(services, "localhost")
        resolver.lookup_txt(texts, "localhost")
        resolver.close()
        resolver.close()
    for status in (*(on_resolve.result() for on_resolve in lookups), services.result(), texts.result()):
        assert isinstance(status, Status)
        assert status.code is StatusCode.CANCELLED


@pytest.mark.parametrize("what", ["the resolver", "the engine"])
def test_a_close_raced_with_lookups_answers_each_once(app: Application, ledger: Ledger, what: str) -> None:
    resolver = app.engine.get_dns_resolver()
    lookups = [Callback[Resolved](ledger) for _ in range(100)]
    for on_resolve in lookups:
        resolver.lookup_hostname(on_resolve, "localhost:80")
    if what == "the engine":
        app.engine.close()
    resolver.close()
    for on_resolve in lookups:
        found = on_resolve.result()
        assert not isinstance(found, Status) or found.code is StatusCode.CANCELLED


def test_closing_is_never_told_within_close(app: Application, ledger: Ledger) -> None:
    resolver = app.engine.get_dns_resolver()

    def begin(on_resolve: Callable[[Resolved], None]) -> None:
        resolver.lookup_hostname(on_resolve, "localhost:80")
        resolver.close()

    result = never_inline(app, begin)
    if app.engine.callbacks_block_polling or isinstance(result, Status):  # else the answer may be faster
        assert isinstance(result, Status)
        assert result.code is StatusCode.CANCELLED


def test_a_resolver_may_be_closed_in_its_own_callback(app: Application, ledger: Ledger) -> None:
    resolver = app.engine.get_dns_resolver()
    done = Callback[Resolved](ledger)

    def on_resolve(result: Resolved) -> None:
        resolver.close()
        done(result)

    resolver.lookup_hostname(on_resolve, "localhost:80")
    assert not isinstance(done.result(), Status)


def test_resolvers_of_one_engine_are_closed_each_for_itself(app: Application) -> None:
    first, second = (app.engine.get_dns_resolver() for _ in range(2))
    first.close()
    assert _look_up(app, second, "127.0.0.1:80") == [ResolvedAddress.tcp("127.0.0.1", 80)]
    second.close()


def test_a_closed_resolver_is_refused_at_the_caller(anywhere: Application) -> None:
    resolver = anywhere.call(anywhere.engine.get_dns_resolver)
    anywhere.call(resolver.close)
    never = Callback[object](anywhere.ledger, times=0)
    calls: list[Callable[[], object]] = [
        lambda: resolver.lookup_hostname(never, "localhost:80"),
        lambda: resolver.lookup_srv(never, "localhost"),
        lambda: resolver.lookup_txt(never, "localhost"),
    ]
    for call in calls:
        with pytest.raises(ClosedResourceError, match="resolver was closed"):
            anywhere.call(call)


def test_closing_the_engine_closes_its_resolvers(app: Application) -> None:
    resolver = app.engine.get_dns_resolver()
    waiting, late = Callback[Resolved](app.ledger), Callback[Resolved](app.ledger, times=0)
    resolver.lookup_hostname(waiting, "localhost:80")
    app.engine.close()
    waiting.result()
    try:
        resolver.lookup_hostname(late, "localhost:80")
    except ClosedResourceError:
        pass
    else:  # on a loop that is not its own, an engine ends at the next turn
        late.times = 1
        status = late.result()
        assert isinstance(status, Status)
        assert status.code is StatusCode.CANCELLED
    resolver.close()


@needs("collection")
def test_a_resolver_that_was_dropped_warns(app: Application) -> None:
    with pytest.warns(ResourceWarning, match="resolver was never closed"):
        _make_and_drop(app.engine)
    assert app.on_loop(lambda: "still there") == "still there"


def _make_and_drop(engine: EventEngine) -> None:
    engine.get_dns_resolver()
    gc.collect()


def test_a_wrong_argument_of_a_lookup_is_told_at_the_caller(resolver: DNSResolver, ledger: Ledger) -> None:
    never = Callback[object](ledger, times=0)
    with pytest.raises(TypeError, match="on_resolve must be callable, not int"):
        resolver.lookup_hostname(5, "localhost:80")  # type: ignore[arg-type]  # on purpose
    with pytest.raises(TypeError, match="on_resolve must be callable, not int"):
        resolver.lookup_srv(5, "localhost")  # type: ignore[arg-type]  # on purpose
    with pytest.raises(TypeError, match="must be str"):
        resolver.lookup_hostname(never, b"localhost:80")  # type: ignore[arg-type]  # on purpose
    with pytest.raises(TypeError, match="must be str"):
        resolver.lookup_hostname(never, "localhost", 80)  # type: ignore[arg-type]  # on purpose
