"""Lookups that ask real DNS servers: by c-ares on every engine, and by twisted.names on every reactor."""

from __future__ import annotations

import errno
import gc
import os
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import Any

import pytest

from engines import KINDS, MAIN, Kind, factory, skip_unless_installed
from eventengine import DNSResolver, EventEngine, ResolvedAddress, SRVRecord, Status, StatusCode, StatusError
from eventengine.core.resolver import AT_ONCE, Question
from eventengine.testing.application import Application, Callback, Ledger
from eventengine.testing.conformance.fixtures import *
from eventengine.testing.conformance.fixtures import skip_without_ipv6
from faults import Faults, failing, faults
from hand_turned import hand_turned
from name_servers import NameServer, dnsmasq, twisted_server

__all__ = ["faults"]

Resolved = list[ResolvedAddress] | Status
Asker = tuple[Kind, str]

# c-ares on every loop, on the four engines with either poller; twisted.names on two reactors.
ASKERS: list[Asker] = [
    *((kind, "c-ares") for kind in KINDS if not kind.pool and (kind.loop in MAIN or not kind.private_poller)),
    *((kind, "c-ares") for kind in KINDS if kind.pool and kind.loop == "default"),
    *((kind, "twisted.names") for kind in KINDS if kind.id in ("twisted, one epoll", "twisted epoll, each fd")),
]
MAIN_ASKERS = [
    asker for asker in ASKERS if asker[0].loop in MAIN and asker[0].private_poller and not asker[0].pool
]


def id_of(asker: Asker) -> str:
    return f"{asker[0].id}, {asker[1]}"


on_main = pytest.mark.parametrize("asker", MAIN_ASKERS, ids=id_of)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NameServer]:
    with twisted_server(tmp_path_factory.mktemp("dns")) as server:
        yield server


@pytest.fixture(params=ASKERS, ids=id_of)
def asker(request: pytest.FixtureRequest) -> Asker:
    asker: Asker = request.param
    return asker


@pytest.fixture
def make_engine(asker: Asker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], EventEngine]]:
    kind, resolver = asker
    skip_unless_installed(kind)
    if resolver == "c-ares":
        pytest.importorskip("pycares", reason="the extra dns is not installed")
        monkeypatch.setenv("RES_OPTIONS", "timeout:1 attempts:1")
    else:
        monkeypatch.setattr("eventengine.bridges.twisted.names.TIMEOUTS", (0.5, 0.5))
    with factory(kind, resolver=resolver) as make:
        yield make


@pytest.fixture
def resolver(engine: EventEngine, server: NameServer) -> Iterator[DNSResolver]:
    server.forget()
    with closing(engine.get_dns_resolver(dns_server=server.text)) as resolver:
        yield resolver


def look_up(ledger: Ledger, resolver: DNSResolver, name: str) -> Resolved:
    on_resolve = Callback[Resolved](ledger)
    resolver.lookup_hostname(on_resolve, name, "80")
    return on_resolve.result()


def hosts(found: Resolved) -> list[str]:
    assert not isinstance(found, Status), found
    assert {address.port for address in found} == {80}
    return [address.host for address in found]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("both.test", ["::1", "127.0.0.2"]),
        ("BOTH.test.", ["::1", "127.0.0.2"]),
        ("four.test", ["127.0.0.3", "127.0.0.4"]),
        ("six.test", ["::1"]),
        ("alias.test", ["::1", "127.0.0.2"]),
        ("b\N{LATIN SMALL LETTER U WITH DIAERESIS}cher.test", ["127.0.0.7"]),
        # One of the two queries fails, and what the other has found is given:
        ("six-refused.test", ["127.0.0.5"]),
        ("four-failed.test", ["::1"]),
    ],
)
def test_a_name_is_asked_for_and_its_addresses_are_in_order(
    resolver: DNSResolver, ledger: Ledger, name: str, expected: list[str]
) -> None:
    if "::1" in expected:
        skip_without_ipv6()  # which is what puts it first
    assert hosts(look_up(ledger, resolver, name)) == expected


def test_the_two_families_are_asked_for_apart(resolver: DNSResolver, ledger: Ledger, server: NameServer) -> None:
    look_up(ledger, resolver, "both.test")
    assert server.queries("both.test") == ["udp A", "udp AAAA"]


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST.", "a.localhost", "127.0.0.9", "[::9]"])
def test_what_is_known_here_is_not_asked_for(
    resolver: DNSResolver, ledger: Ledger, server: NameServer, name: str
) -> None:
    found = hosts(look_up(ledger, resolver, name))
    assert set(found) <= {"127.0.0.1", "::1", "127.0.0.9", "::9"}
    assert not server.queries(name.lower().removesuffix("."))


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("nosuch.test", StatusCode.NOT_FOUND),
        ("mail.test", StatusCode.NOT_FOUND),  # it is there, and has no address
        ("refused.test", StatusCode.UNAVAILABLE),
        ("failed.test", StatusCode.UNAVAILABLE),
    ],
)
@pytest.mark.parametrize("records", ["hostname", "srv", "txt"])
def test_a_lookup_that_fails_says_why_and_for_what(
    resolver: DNSResolver, ledger: Ledger, records: str, name: str, code: StatusCode
) -> None:
    on_resolve = Callback[object](ledger)
    text = f"{name}:443" if records == "hostname" else name
    getattr(resolver, f"lookup_{records}")(on_resolve, text)
    status = on_resolve.result()
    assert isinstance(status, Status)
    assert status.code is code, status
    assert repr(text) in status.message


@on_main
def test_what_cannot_be_asked_for_is_refused_with_the_text_that_was_given(
    resolver: DNSResolver, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    for lookup in (resolver.lookup_srv, resolver.lookup_txt):
        with pytest.raises(TypeError, match="a name must be str"):
            lookup(Callback[object](ledger, times=0), 5)  # type: ignore[arg-type]
    status = look_up(ledger, resolver, "[fe80::1%nosuch]:80")
    assert isinstance(status, Status)
    assert status.code is StatusCode.INVALID_ARGUMENT
    assert "'[fe80::1%nosuch]:80': 'fe80::1%nosuch' names the interface 'nosuch'" in status.message

    def fail(name: str, _: str) -> int:
        raise StatusError(Status(StatusCode.UNAVAILABLE, f"{name!r}: later"))

    monkeypatch.setattr("eventengine.core.resolver.to_port_number", fail)
    status = look_up(ledger, resolver, "both.test:service")
    assert status == Status(StatusCode.UNAVAILABLE, "'both.test:service': later")


@pytest.mark.parametrize("records", ["hostname", "srv", "txt"])
@on_main
def test_a_server_that_says_nothing_is_given_up(resolver: DNSResolver, ledger: Ledger, records: str) -> None:
    on_resolve = Callback[object](ledger)
    getattr(resolver, f"lookup_{records}")(on_resolve, "silent.test" + ":80" * (records == "hostname"))
    status = on_resolve.result()
    assert isinstance(status, Status)
    assert status.code is StatusCode.DEADLINE_EXCEEDED
    assert "silent.test" in status.message


@on_main
def test_one_family_is_not_lost_when_the_server_says_nothing_of_the_other(
    resolver: DNSResolver, ledger: Ledger
) -> None:
    assert hosts(look_up(ledger, resolver, "six-silent.test")) == ["127.0.0.6"]


def test_an_answer_that_was_cut_is_asked_for_again_by_tcp(
    resolver: DNSResolver, ledger: Ledger, server: NameServer
) -> None:
    found = hosts(look_up(ledger, resolver, "many.test"))
    assert sorted(found) == sorted(f"127.1.{n}.1" for n in range(200))
    assert server.queries("many.test") == ["tcp A", "udp A", "udp AAAA"]


def test_service_records_are_told(resolver: DNSResolver, ledger: Ledger) -> None:
    on_resolve, none = Callback[object](ledger), Callback[object](ledger)
    resolver.lookup_srv(on_resolve, "_http._tcp.test")
    assert on_resolve.result() == [SRVRecord("a.test", 8080, 10, 60), SRVRecord("b.test", 8081, 20, 0)]
    resolver.lookup_srv(none, "_none._tcp.test")  # its record says that there is no such service
    status = none.result()
    assert isinstance(status, Status)
    assert status.code is StatusCode.NOT_FOUND


def test_a_service_whose_host_is_no_text_is_told_and_leaves_its_place_to_others(
    resolver: DNSResolver, ledger: Ledger
) -> None:
    """More of them than are asked for at a time: one that was never answered would keep its place for good."""
    found = [Callback[object](ledger) for _ in range(AT_ONCE + 6)]
    for on_resolve in found:
        resolver.lookup_srv(on_resolve, "_bytes._tcp.test")
    for on_resolve in found:
        assert on_resolve.result() == [SRVRecord("\\255\\254.test", 80, 0, 0)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("text.test", ["v=spf1 -all", "caf\xe9"]),
        ("bytes.test", [os.fsdecode(b"\xff\0x")]),
        ("long.test", ["".join(f"{n:03}" + "x" * 200 for n in range(20))]),
    ],
)
def test_text_records_are_told_whole(
    resolver: DNSResolver, ledger: Ledger, name: str, expected: list[str]
) -> None:
    on_resolve = Callback[object](ledger)
    resolver.lookup_txt(on_resolve, name)
    assert on_resolve.result() == expected


def refusals(ledger: Ledger, resolver: DNSResolver, name: str) -> list[Status]:
    """What becomes of the three lookups of a name that has nothing."""
    answers = [Callback[object](ledger) for _ in range(3)]
    resolver.lookup_hostname(answers[0], name, "80")
    resolver.lookup_srv(answers[1], name)
    resolver.lookup_txt(answers[2], name)
    statuses: list[Status] = []
    for on_resolve in answers:
        status = on_resolve.result()
        assert isinstance(status, Status)
        statuses.append(status)
    return statuses


@pytest.mark.parametrize(
    "name", ["a..test", ".test", "x" * 64 + ".test", "x." * 127 + "test", "a\0.test", "a\\.test", "\xad.test"]
)
@on_main
def test_what_cannot_be_a_name_is_asked_of_nobody(
    resolver: DNSResolver, ledger: Ledger, server: NameServer, name: str
) -> None:
    for status in refusals(ledger, resolver, name):
        assert status.code is StatusCode.INVALID_ARGUMENT
        assert repr(name) in status.message
    assert not server.queries(name)


@pytest.mark.parametrize("name", ["a b.test", "\x7f.test", "a/b.test"])
@on_main
def test_odd_characters_are_answered_one_way_or_the_other(
    app: Application, resolver: DNSResolver, ledger: Ledger, name: str
) -> None:
    for status in refusals(ledger, resolver, name):
        assert status.code in (StatusCode.INVALID_ARGUMENT, StatusCode.NOT_FOUND), status
    assert hosts(look_up(ledger, resolver, "four.test")) == ["127.0.0.3", "127.0.0.4"]


@on_main
def test_a_server_that_is_not_there_is_unavailable_or_silent(
    engine: EventEngine, ledger: Ledger, asker: Asker
) -> None:
    """c-ares connects its sockets, and so is told that nobody listens."""
    with closing(engine.get_dns_resolver(dns_server="127.0.0.1:1")) as resolver:
        status = look_up(ledger, resolver, "both.test")
    assert isinstance(status, Status)
    expected = StatusCode.UNAVAILABLE if asker[1] == "c-ares" else StatusCode.DEADLINE_EXCEEDED
    assert status.code is expected


@pytest.mark.parametrize("what", ["the resolver", "the engine"])
def test_a_close_cancels_what_is_under_way_and_what_waits(
    app: Application, resolver: DNSResolver, ledger: Ledger, what: str
) -> None:
    lookups = [Callback[Any](ledger) for _ in range(3 * AT_ONCE)]
    for number, on_resolve in enumerate(lookups):
        (resolver.lookup_hostname, resolver.lookup_srv, resolver.lookup_txt)[number % 3](on_resolve, "silent.test")
        if number == AT_ONCE:
            app.on_loop(lambda: None)  # those before are under way
    resolver.close() if what == "the resolver" else app.engine.close()
    for on_resolve in lookups:
        status = on_resolve.result()
        assert isinstance(status, Status)
        assert status.code in (StatusCode.CANCELLED, StatusCode.INVALID_ARGUMENT)


def test_a_resolver_closed_in_a_callback_while_others_are_under_way(resolver: DNSResolver, ledger: Ledger) -> None:
    done, silent = Callback[Resolved](ledger), [Callback[Resolved](ledger) for _ in range(9)]

    def on_resolve(result: Resolved) -> None:
        resolver.close()
        done(result)

    for each in silent:
        resolver.lookup_hostname(each, "silent.test:80")
    resolver.lookup_hostname(on_resolve, "four.test:80")
    assert hosts(done.result()) == ["127.0.0.3", "127.0.0.4"]
    for each in silent:
        status = each.result()
        assert isinstance(status, Status)
        assert status.code is StatusCode.CANCELLED


@on_main
def test_a_lookup_has_a_deadline_whatever_the_server_does(
    resolver: DNSResolver, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventengine.core.resolver.DEADLINE", 0.05)
    lookups = [Callback[Resolved](ledger) for _ in range(2 * AT_ONCE)]
    for on_resolve in lookups:
        resolver.lookup_hostname(on_resolve, "silent.test:80")
    for on_resolve in lookups:  # those too that were not even begun
        status = on_resolve.result()
        assert isinstance(status, Status)
        assert status == Status(
            StatusCode.DEADLINE_EXCEEDED, "looking up 'silent.test:80': no answer within 0.05 s"
        )


@on_main
def test_a_socket_of_c_ares_that_cannot_be_watched_fails_its_lookups_and_none_after(
    faults: Faults, app: Application, server: NameServer, ledger: Ledger, asker: Asker
) -> None:
    if asker[1] != "c-ares":
        pytest.skip("the reactor watches the sockets of twisted.names")
    app.on_loop(lambda: None)
    with closing(app.engine.get_dns_resolver(dns_server=server.text)) as resolver:
        with faults.at("core.poller PrivatePoller._change register", failing(errno.ENOMEM)):
            status = look_up(ledger, resolver, "silent.test")
        assert isinstance(status, Status)
        assert status.code is StatusCode.UNAVAILABLE
        assert hosts(look_up(ledger, resolver, "four.test")) == ["127.0.0.3", "127.0.0.4"]


@on_main
def test_what_pycares_raises_is_told_and_no_timer_stays_for_it(
    app: Application, resolver: DNSResolver, ledger: Ledger, asker: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    if asker[1] != "c-ares":
        pytest.skip("twisted.names has no pycares")
    import pycares

    def refuse(*args: object, **options: object) -> None:
        raise ValueError("not today")

    with monkeypatch.context() as patched:
        patched.setattr(pycares.Channel, "query", refuse)
        on_resolve = Callback[object](ledger)
        resolver.lookup_txt(on_resolve, "texts.test")
        status = on_resolve.result()
    assert isinstance(status, Status)
    assert (status.code, "not today" in status.message) == (StatusCode.INTERNAL, True)
    source: Any = resolver._source  # type: ignore[attr-defined]
    app.on_loop(lambda: None)
    assert (source._under_way, source._timer) == (set(), None)


def open_descriptors() -> int:
    return len(os.listdir("/dev/fd"))


@on_main
def test_ten_thousand_lookups_at_once(
    resolver: DNSResolver, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RES_OPTIONS", "timeout:2 attempts:3")  # this machine has more to do
    monkeypatch.setattr("eventengine.core.resolver.DEADLINE", 100.0)
    look_up(ledger, resolver, "four.test")
    threads, descriptors, most = threading.active_count(), open_descriptors(), 0
    lookups = [Callback[Resolved](ledger) for _ in range(10_000)]
    for number, on_resolve in enumerate(lookups):
        resolver.lookup_hostname(on_resolve, f"n{number}.numbers.test:80")
    for number, on_resolve in enumerate(lookups):
        assert hosts(on_resolve.result()) == [f"127.2.{number >> 8}.{number & 255}"]
        if number % 100 == 0:
            most = max(most, open_descriptors())
            assert threading.active_count() == threads
    # Two for each that is under way, and those that twisted.names has dropped and its reactor not closed yet: of these
    # there may be several turns' worth where the machine has more to do.
    assert most <= descriptors + 8 * 2 * AT_ONCE


@on_main
def test_a_thousand_abandoned_lookups_leave_nothing(app: Application, server: NameServer, ledger: Ledger) -> None:
    def abandon() -> None:
        resolver = app.engine.get_dns_resolver(dns_server=server.text)
        on_resolve = Callback[Resolved](ledger)
        resolver.lookup_hostname(on_resolve, "silent.test:80")
        app.on_loop(lambda: None)  # it has been asked for
        resolver.close()
        status = on_resolve.result()
        assert isinstance(status, Status)
        assert status.code is StatusCode.CANCELLED

    abandon()
    app.on_loop(lambda: None)
    threads, descriptors = threading.active_count(), open_descriptors()
    for _ in range(1000):
        abandon()
    for _ in range(3):
        app.on_loop(lambda: None)
    gc.collect()
    assert threading.active_count() == threads
    assert open_descriptors() <= descriptors
    names = [type(each).__name__ for each in gc.get_objects()]
    left = sum(names.count(name) for name in ("HostedResolver", "CaresSource", "TwistedNamesSource"))
    assert left < 20  # pycares' thread, and a reactor's list of calls, keep what they had last


@on_main
def test_a_resolver_that_nobody_holds_answers_first(app: Application, server: NameServer, ledger: Ledger) -> None:
    found = Callback[Resolved](ledger)
    with pytest.warns(ResourceWarning, match="a DNS resolver was never closed"):
        _ask_and_drop(app, server, found)


def _ask_and_drop(app: Application, server: NameServer, found: Callback[Resolved]) -> None:
    app.engine.get_dns_resolver(dns_server=server.text).lookup_hostname(found, "four.test:80")
    assert hosts(found.result()) == ["127.0.0.3", "127.0.0.4"]
    for _ in range(3):
        app.on_loop(gc.collect)


@pytest.fixture(scope="module")
def mask() -> Iterator[str]:
    many = [f"--host-record=many.test,127.3.{n}.1" for n in range(150)]
    with dnsmasq(
        "--host-record=both.test,127.0.0.2,::1",
        "--srv-host=_http._tcp.test,a.test,8080,10,60",
        "--txt-record=text.test,v=spf1 -all",
        *many,
    ) as address:
        yield address


@on_main
def test_dnsmasq_is_understood(engine: EventEngine, mask: str, ledger: Ledger) -> None:
    skip_without_ipv6()
    services, texts = Callback[object](ledger), Callback[object](ledger)
    with closing(engine.get_dns_resolver(dns_server=mask)) as resolver:
        assert hosts(look_up(ledger, resolver, "both.test")) == ["::1", "127.0.0.2"]
        assert len(hosts(look_up(ledger, resolver, "many.test"))) == 150  # more than fit into a datagram
        resolver.lookup_srv(services, "_http._tcp.test")
        assert services.result() == [SRVRecord("a.test", 8080, 10, 60)]
        resolver.lookup_txt(texts, "text.test")
        assert texts.result() == ["v=spf1 -all"]
        failures = [look_up(ledger, resolver, name) for name in ("nosuch.test", "refused.example")]
    codes = [status.code for status in failures if isinstance(status, Status)]
    assert codes == [StatusCode.NOT_FOUND, StatusCode.UNAVAILABLE]


@on_main
def test_nothing_is_open_while_nothing_is_under_way(
    app: Application, resolver: DNSResolver, ledger: Ledger, asker: Asker
) -> None:
    if asker[1] == "twisted.names":
        pytest.skip("it keeps a TCP connection until the server or the resolver closes it")
    app.on_loop(lambda: None)
    threads, descriptors = threading.active_count(), open_descriptors()
    assert len(hosts(look_up(ledger, resolver, "many.test"))) == 200
    app.on_loop(lambda: None)
    assert threading.active_count() == threads
    assert open_descriptors() == descriptors


def test_many_answers_at_once_leave_others_their_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pycares", reason="the extra dns is not installed")
    from eventengine.resolvers import cares

    monkeypatch.setattr(cares, "TURN", 0.0)
    given: list[int] = []
    with hand_turned() as (engine, host):
        source = cares.CaresSource(engine._loop, None)
        source._found.extend(partial(given.append, number) for number in range(3))
        source._deliver()
        for turn in range(1, 4):
            assert given == [*range(turn)]
            host.turn()


def test_an_answer_that_came_while_the_loop_stood_still_is_taken_however_late_it_is(
    server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pycares", reason="the extra dns is not installed")
    from eventengine.resolvers import cares

    monkeypatch.setenv("RES_OPTIONS", "timeout:1 attempts:1")
    server.forget()
    given: list[object] = []
    with hand_turned() as (engine, host):
        source = cares.CaresSource(engine._loop, ResolvedAddress.parse(server.text))
        for number in range(6):  # after these, c-ares knows that the server is quick, and waits a quarter second
            source.find_texts(Question("", f"nosuch{number}.test"), given.append)
            while len(given) == number:
                assert host.poll()
                host.turn()
        source.find_texts(Question("", "text.test"), given.append)
        assert source._channel is not None
        [fd] = source._sockets
        assert select.select([fd], [], [], 30)[0]
        while source._channel.timeout() > 0:
            pass
        source._on_timer()
        assert given[6:] == [["v=spf1 -all", "caf\xe9"]]
        source.close()
