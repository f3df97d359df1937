"""Every call of the system that an engine makes for a connection fails once, in each way that it may; see `faults`.

Each operation ends with the status that its docstring names and with the errno, callbacks come exactly once, and the
fixtures find nothing left. What the kernel does not tell any call, EINTR, is in test_faults_signals.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import pytest

from engines import KINDS, Kind, factory, skip_unless_installed
from eventengine import (
    EventEngine,
    ResourceQuota,
    SliceBuffer,
    Status,
    StatusError,
    WriteEvent,
)
from eventengine.core.hosted import HostedEventEngine
from eventengine.core.poller import PrivatePoller
from eventengine.engine import Endpoint, HalfCloseable, SupportsFileDescriptor
from eventengine.testing.application import Application, Callback, Ledger
from eventengine.testing.conformance.fixtures import app, engine, ledger, nothing_is_left, quota
from eventengine.testing.oracle import TIMEOUT, OracleServer, pattern, receive
from faults import Action, Faults, calling_and, failing, faults, returning, short
from handshakes import oracle_server, try_connect

__all__ = ["app", "engine", "faults", "ledger", "nothing_is_left", "quota"]

BROKEN = (
    errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ETIMEDOUT,
)  # fmt: skip
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
REFUSED = {errno.EACCES: "PERMISSION_DENIED", errno.EPERM: "PERMISSION_DENIED", errno.EINVAL: "INVALID_ARGUMENT"}


def told(number: int) -> tuple[str, int]:
    """What is documented for an errno."""
    exhausted = number in (*EXHAUSTED, errno.ENOSPC)
    return REFUSED.get(number, "RESOURCE_EXHAUSTED" if exhausted else "UNAVAILABLE"), number


def said(status: object) -> tuple[str, int | None]:
    assert isinstance(status, Status), status
    return status.code.name, status.errno


@pytest.fixture(params=KINDS, ids=lambda kind: kind.id)
def kind(request: pytest.FixtureRequest) -> Kind:
    kind: Kind = request.param
    skip_unless_installed(kind)
    return kind


@pytest.fixture
def make_engine(kind: Kind, faults: Faults) -> Iterator[Callable[[], EventEngine]]:
    with factory(kind) as make:

        def make_faulty() -> EventEngine:
            engine = make()
            assert isinstance(engine, HostedEventEngine)
            faults.on_host(engine)
            return engine

        yield make_faulty


def watching_sites(engine: EventEngine) -> list[str]:
    """Where the system is first asked to watch a descriptor."""
    assert isinstance(engine, HostedEventEngine)
    poller = engine._loop.poller
    if not isinstance(poller, PrivatePoller):
        return ["core.poller HostPoller._change watch"]
    sites = ["core.poller PrivatePoller._change register"]
    if poller._host is not None:
        sites.append("core.poller PrivatePoller._change watch")
    return sites


def goes_on(app: Application) -> None:
    with OracleServer() as server, closing(app.connect(server.address)) as endpoint, server.accept() as peer:
        assert app.write(endpoint, b"ping").ok
        assert receive(peer, 4) == b"ping"
        peer.sendall(b"pong")
        assert app.receive(endpoint, 4) == b"pong"


CONNECTING: list[tuple[str, Callable[[int], Action], tuple[int, ...]]] = [
    ("core.host Host.new_socket __init__", failing, (*EXHAUSTED, errno.EACCES)),
    ("core.sockets make_socket setblocking", failing, (errno.ENOBUFS,)),
    ("core.sockets set_options setsockopt", failing, (errno.ENOBUFS, errno.EINVAL, errno.ENOPROTOOPT)),
    (
        "core.connector Attempt._connect connect_ex",
        returning,
        (*BROKEN, errno.EADDRNOTAVAIL, errno.EACCES, errno.EPERM, errno.ENOBUFS),
    ),
    ("core.connector Attempt.on_writable getsockopt", returning, BROKEN),
    ("core.connector Attempt.on_writable getsockopt", failing, (errno.ENOBUFS,)),
    ("core.connector Attempt.on_writable getpeername", failing, (errno.ENOBUFS, errno.ECONNRESET)),
    ("core.connector Attempt.on_writable getsockname", failing, (errno.ENOBUFS,)),
    ("core.endpoint SocketEndpoint.__init__ getsockname", failing, (errno.ENOBUFS,)),
]


def test_a_connect_ends_with_the_status_of_the_call_that_fails(app: Application, faults: Faults) -> None:
    cases = [(site, act(number), number) for site, act, numbers in CONNECTING for number in numbers]
    cases += [(site, failing(n), n) for site in watching_sites(app.engine) for n in (errno.ENOMEM, errno.ENOSPC)]
    with OracleServer() as server:
        for site, action, number in cases:
            with faults.at(site, action):
                result = app.try_connect(server.address)
            assert said(result) == told(number), site
    goes_on(app)


def test_a_connect_that_is_interrupted_or_not_done_yet_goes_on(app: Application, faults: Faults) -> None:
    cases = [
        ("core.connector Attempt._connect connect_ex", calling_and(returning(errno.EINTR))),
        ("core.connector Attempt.on_writable getpeername", failing(errno.ENOTCONN)),
    ]
    with OracleServer() as server:
        for site, action in cases:
            with faults.at(site, action):
                app.connect(server.address).close()


def test_a_connect_on_a_unix_socket_ends_with_the_status_of_the_call_that_fails(
    app: Application, faults: Faults, tmp_path: Any
) -> None:
    """It may connect within `connect_ex`, and then there is no event."""
    from eventengine.testing.scenes import unix_address

    with OracleServer(unix_address(tmp_path / "s")) as server:
        for call, number in (("getsockopt", errno.ENOBUFS), ("getpeername", errno.ENOMEM)):
            with faults.at(f"core.connector Attempt.on_writable {call}", failing(number)):
                assert said(app.try_connect(server.address)) == told(number)
        app.connect(server.address).close()


READ = "core.reading ReadingHalf._receive recv_into"
PEEK = "core.reading ReadingHalf._look_for_the_end recv"


def test_a_read_ends_with_what_recv_says_and_no_byte_is_lost(app: Application, faults: Faults) -> None:
    for number in (*BROKEN, errno.EPIPE, errno.ENOBUFS, errno.ENOMEM):
        with OracleServer() as server, closing(app.connect(server.address)) as endpoint, server.accept() as peer:
            buffer = SliceBuffer()
            with faults.at(READ, failing(number)):
                peer.sendall(b"data")
                assert said(app.read(endpoint, buffer)) == told(number)
            assert len(buffer) == 0
            assert app.receive(endpoint, 4) == b"data"
            peer.close()
            ended = app.read(endpoint, buffer)
            lack = number in EXHAUSTED  # which says nothing of the connection
            assert said(ended) == (("OUT_OF_RANGE", None) if lack else told(number)), errno.errorcode[number]


def test_reads_that_get_less_than_there_is_and_in_vain_bring_every_byte_in_order(
    app: Application, faults: Faults
) -> None:
    data = pattern(5000)
    with OracleServer() as server, closing(app.connect(server.address)) as endpoint, server.accept() as peer:
        odd = [short(1), failing(errno.EAGAIN), short(7), short(2), failing(errno.EWOULDBLOCK), short(3)] * 5
        with faults.at(READ, *odd):
            peer.sendall(data)
            assert app.receive(endpoint, 5000, hint=5000) == data


def test_while_the_quota_is_full_an_error_is_told_and_a_look_in_vain_waits(
    engine: EventEngine, ledger: Ledger, faults: Faults
) -> None:
    quota = ResourceQuota("full", memory="64KiB")
    app = Application(engine, quota, ledger)
    with OracleServer() as server:
        for number in (errno.ETIMEDOUT, errno.ECONNRESET, errno.ENOBUFS):
            with closing(app.connect(server.address)) as endpoint, server.accept() as peer:
                quota.memory.take(64 << 10, 64 << 10)
                with faults.at(PEEK, failing(number)):
                    peer.sendall(b"data")
                    assert said(app.read(endpoint, SliceBuffer())) == told(number)
                with faults.at(PEEK, failing(errno.EAGAIN)):
                    on_read = app.start_read(endpoint, buffer := SliceBuffer())
                    while not quota.memory.somebody_waits:
                        app.on_loop(lambda: None)
                assert on_read.count == 0
                quota.memory.give(64 << 10)
                assert on_read.result().ok
                assert bytes(buffer) == b"data"
                buffer.clear()
    assert quota.memory.used == 0


SEND_AT_ONCE = "core.writing WritingHalf.write send"
SEVERAL_AT_ONCE = "core.writing WritingHalf.write sendmsg"
SEND = "core.writing WritingHalf._send send"
SEND_SEVERAL = "core.writing WritingHalf._send_several sendmsg"


def write_by(app: Application, endpoint: Endpoint, site: str, parts: list[bytes]) -> Callback[Status]:
    """A write that comes by this site: at once on the loop or later from a thread, with one part or several."""
    data = SliceBuffer([b"".join(parts)] if site in (SEND_AT_ONCE, SEND) else parts)
    on_writable = Callback[Status](app.ledger)

    def write() -> None:
        if endpoint.write(on_writable, data):
            on_writable(Status.OK)

    engine = app.engine
    if site in (SEND_AT_ONCE, SEVERAL_AT_ONCE) and engine.callbacks_block_polling:
        app.on_loop(write)
    else:
        write()
    return on_writable


def write_sites(app: Application) -> tuple[str, ...]:
    # A pool's callbacks are not on the loop's thread, and from elsewhere all goes by `_send`.
    at_once = (SEND_AT_ONCE, SEVERAL_AT_ONCE) if app.engine.callbacks_block_polling else ()
    return (*at_once, SEND, SEND_SEVERAL)


def test_a_write_ends_with_what_send_says_and_so_do_later_ones(app: Application, faults: Faults) -> None:
    """A part may have gone, so nothing is written any more; what says nothing of the other direction leaves that."""
    for site in write_sites(app):
        for number in (*BROKEN, errno.EPIPE, errno.ENOBUFS, errno.ENOMEM):
            name = f"{site} {errno.errorcode[number]}"
            with (
                OracleServer() as server,
                closing(app.connect(server.address)) as endpoint,
                server.accept() as peer,
            ):
                with faults.at(site, failing(number)):
                    assert said(write_by(app, endpoint, site, [b"lost", b"too"]).result()) == told(number), name
                assert said(app.write(endpoint, b"later")) == told(number), name
                peer.sendall(b"data")
                assert app.receive(endpoint, 4) == b"data"
                peer.shutdown(socket.SHUT_WR)
                one_way = number in (errno.EPIPE, *EXHAUSTED)
                ended = app.read(endpoint, SliceBuffer())
                assert said(ended) == (("OUT_OF_RANGE", None) if one_way else told(number)), name


def test_a_stream_that_has_ended_stays_whole_whatever_a_write_finds_then(app: Application, faults: Faults) -> None:
    for site in write_sites(app):
        for number in (errno.ETIMEDOUT, errno.ECONNRESET, errno.EPIPE):
            with (
                OracleServer() as server,
                closing(app.connect(server.address)) as endpoint,
                server.accept() as peer,
            ):
                peer.shutdown(socket.SHUT_WR)
                assert said(app.read(endpoint, SliceBuffer())) == ("OUT_OF_RANGE", None)
                with faults.at(site, failing(number)):
                    assert said(write_by(app, endpoint, site, [b"lost", b"too"]).result()) == told(number)
                for _ in range(2):
                    assert said(app.read(endpoint, SliceBuffer())) == ("OUT_OF_RANGE", None)


def test_sends_that_take_less_than_there_is_or_nothing_bring_every_byte_in_order(
    app: Application, faults: Faults
) -> None:
    parts = [pattern(3000, n) for n in range(3)]
    for site in write_sites(app):
        with OracleServer() as server, closing(app.connect(server.address)) as endpoint, server.accept() as peer:
            is_at_once = site in (SEND_AT_ONCE, SEVERAL_AT_ONCE)  # and only once: `_send` goes on
            odd = [short(1)] if is_at_once else [short(1), failing(errno.EAGAIN), short(2999), short(7)]
            with faults.at(site, *odd):
                on_writable = write_by(app, endpoint, site, parts)
                assert receive(peer, 9000) == b"".join(parts)
                assert on_writable.result().ok
            if is_at_once:
                with faults.at(site, failing(errno.EAGAIN)):
                    assert write_by(app, endpoint, site, parts).result().ok
                    assert receive(peer, 9000) == b"".join(parts)


SEND_OF_TLS = "core.writing WritingHalf.send_at_once send"


@contextmanager
def over_tls(app: Application) -> Iterator[tuple[Endpoint, ssl.SSLSocket]]:
    if not app.engine.callbacks_block_polling:
        pytest.skip("a pool's callbacks are not on the loop's thread, and from elsewhere all goes by `_send`")
    with OracleServer() as server, closing(app.connect(server.address)) as below, ThreadPoolExecutor(1) as threads:
        shaking = threads.submit(oracle_server, server.accept())
        endpoint = try_connect(app, below)
        with shaking.result(TIMEOUT) as oracle, closing(endpoint):
            yield endpoint, oracle


def write_over_tls(app: Application, endpoint: Endpoint, data: bytes) -> Callback[Status]:
    on_writable = Callback[Status](app.ledger)

    def write() -> None:
        if endpoint.write(on_writable, SliceBuffer([data])):
            on_writable(Status.OK)

    app.on_loop(write)
    return on_writable


@pytest.mark.parametrize("number", [errno.ECONNRESET, errno.EPIPE, errno.ENOBUFS])
def test_a_write_over_tls_ends_with_what_send_says_and_so_do_later_ones(
    app: Application, faults: Faults, number: int
) -> None:
    with over_tls(app) as (endpoint, _):
        with faults.at(SEND_OF_TLS, failing(number)):
            assert said(write_over_tls(app, endpoint, bytes(300_000)).result()) == told(number)
        assert said(app.write(endpoint, b"later")) == told(number)


def test_sends_of_tls_that_take_less_than_there_is_or_nothing_bring_every_byte_in_order(
    app: Application, faults: Faults
) -> None:
    data = pattern(200_000)
    with over_tls(app) as (endpoint, oracle):
        for odd in (short(1), short(20_000), failing(errno.EAGAIN)):
            with faults.at(SEND_OF_TLS, odd):
                on_writable = write_over_tls(app, endpoint, data)
                assert receive(oracle, len(data)) == data
                assert on_writable.result().ok


def test_a_descriptor_that_cannot_be_watched_fails_what_waits_for_it_and_nothing_after(
    app: Application, faults: Faults
) -> None:
    """What the system refuses once it may grant the next time."""
    for site in watching_sites(app.engine):
        for number in (errno.ENOMEM, errno.ENOSPC):
            with (
                OracleServer() as server,
                closing(app.connect(server.address)) as endpoint,
                server.accept() as peer,
            ):
                with faults.at(site, failing(number)):
                    assert said(app.read(endpoint, SliceBuffer())) == told(number), site
                peer.sendall(b"data")
                assert app.receive(endpoint, 4) == b"data"
                size = 8 << 20
                on_read = app.start_read(endpoint, buffer := SliceBuffer())
                # More than the kernel takes at once, so that it is watched for writing, too.
                on_writable = app.start_write(endpoint, bytes(size))
                assert receive(peer, size) == bytes(size)
                assert on_writable.result().ok
                peer.sendall(b"more")
                assert on_read.result().ok
                assert bytes(buffer) == b"more"


def test_a_descriptor_that_cannot_be_watched_for_more_fails_the_write_and_the_read(
    app: Application, faults: Faults
) -> None:
    assert isinstance(app.engine, HostedEventEngine)
    private = isinstance(app.engine._loop.poller, PrivatePoller)
    site = "core.poller PrivatePoller._change modify" if private else "core.poller HostPoller._change watch"
    with OracleServer() as server, closing(app.connect(server.address)) as endpoint, server.accept() as peer:
        on_read = app.start_read(endpoint, buffer := SliceBuffer())
        app.on_loop(lambda: None)
        app.on_loop(lambda: None)
        with faults.at(site, failing(errno.ENOMEM)):
            on_writable = app.start_write(endpoint, bytes(32 << 20))
            assert said(on_writable.result()) == told(errno.ENOMEM)
            assert said(on_read.result()) == told(errno.ENOMEM)
        assert said(app.write(endpoint, b"after a part of what was before")) == told(errno.ENOMEM)
        on_read = app.start_read(endpoint, buffer)
        peer.sendall(b"data")
        assert on_read.result().ok
        assert bytes(buffer) == b"data"


def test_what_fails_on_the_way_leaves_the_endpoint_as_it_was(app: Application, faults: Faults) -> None:
    with OracleServer() as server, closing(app.connect(server.address)) as endpoint, server.accept() as peer:
        closable = endpoint.query_extension(HalfCloseable)
        described = endpoint.query_extension(SupportsFileDescriptor)
        assert closable is not None
        assert described is not None
        with (
            faults.at("core.endpoint SocketEndpoint.release dup", failing(errno.EMFILE)),
            pytest.raises(StatusError) as raised,
        ):
            described.release()
        assert said(raised.value.status) == told(errno.EMFILE)
        assert _told_of(app, endpoint, faults) == [(WriteEvent.SENDMSG, {})]
        assert receive(peer, 4) == b"data"
        with faults.at("core.writing WritingHalf._shut_down_writing shutdown", failing(errno.ENOTCONN)):
            closable.close_write()
            app.on_loop(lambda: None)
            app.on_loop(lambda: None)
        peer.sendall(b"more")
        assert app.receive(endpoint, 4) == b"more"


def _told_of(app: Application, endpoint: Endpoint, faults: Faults) -> list[tuple[WriteEvent, dict[str, float]]]:
    """A write with a sink, while the system says nothing of the connection."""
    events: list[tuple[WriteEvent, dict[str, float]]] = []
    done = Callback[Any](app.ledger)

    class Sink:
        requested_events = frozenset(WriteEvent)

        def on_event(self, event: WriteEvent, time: float, metrics: Any) -> None:
            events.append((event, dict(metrics)))
            done(event)

    with faults.at("core.telemetry _metrics_of getsockopt", failing(errno.ENOBUFS)):
        on_writable = Callback[Status](app.ledger)
        if endpoint.write(on_writable, SliceBuffer([b"data"]), sink=Sink()):  # type: ignore[arg-type]
            on_writable(Status.OK)
        assert on_writable.result().ok
        done.result()
    return events
