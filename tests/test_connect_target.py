"""`connect_target` on every engine: real sockets, real names, and what becomes of those that lose."""

from __future__ import annotations

import errno
import random
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from engines import KINDS, Kind, factory, skip_unless_installed
from eventengine import (
    ClosedResourceError,
    ConnectionHandle,
    DNSResolver,
    Endpoint,
    EndpointConfig,
    EventEngine,
    MemoryAllocator,
    ResolvedAddress,
    Status,
    StatusCode,
    StatusOr,
    Target,
    TargetConnection,
    TaskHandle,
    connect_target,
    connecting,
)
from eventengine.testing.application import Application, Callback, Ledger
from eventengine.testing.conformance.fixtures import (
    anywhere,
    app,
    engine,
    ledger,
    nothing_is_left,
    quota,
    skip_without_ipv6,
    unix_folder,
)
from eventengine.testing.oracle import TIMEOUT, OracleServer, receive, receive_all
from eventengine.testing.scenes import (
    close_if_connected,
    full_backlog,
    held,
    never_inline,
    port_without_listener,
    unix_address,
)
from together import run_together
from wrapped_engine import WrappedEngine

__all__ = ["anywhere", "app", "engine", "ledger", "nothing_is_left", "quota", "unix_folder"]  # fixtures

Connected = StatusOr[Endpoint]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.id)
def kind(request: pytest.FixtureRequest) -> Kind:
    kind: Kind = request.param
    skip_unless_installed(kind)
    return kind


@pytest.fixture
def make_engine(kind: Kind) -> Iterator[Callable[[], EventEngine]]:
    with factory(kind) as make:
        yield make


def start(
    app: Application,
    on_connect: Callable[[Connected], object],
    target: Target | str,
    timeout: float = TIMEOUT,
    *,
    engine: EventEngine | None = None,
    resolver: DNSResolver | None = None,
    config: EndpointConfig | None = None,
) -> TargetConnection:
    allocator = app.quota.create_memory_allocator("connecting")
    return app.call(
        lambda: connect_target(
            engine or app.engine,
            on_connect,
            target,
            config or EndpointConfig(),
            allocator,
            timeout,
            resolver=resolver,
        )
    )


def connect(app: Application, target: Target | str, timeout: float = TIMEOUT, **options: object) -> Connected:
    on_connect = Callback[Connected](app.ledger)
    start(app, on_connect, target, timeout, **options)  # type: ignore[arg-type]  # passed on
    return on_connect.result()


def list_of(*addresses: ResolvedAddress) -> Target:
    """A target with these addresses, of whatever families."""
    return Target("ipv4", addresses)


class Watched(WrappedEngine):
    """An engine, and what was asked of it, in its order."""

    def __init__(self, inner: EventEngine) -> None:
        super().__init__(inner)
        self.asked: list[str] = []

    def run_after(self, delay: float, closure: Callable[[], object]) -> TaskHandle:
        self.asked.append(f"after {delay:g}")
        return super().run_after(delay, closure)

    def connect(
        self,
        on_connect: Callable[[Connected], object],
        address: ResolvedAddress,
        config: EndpointConfig,
        memory_allocator: MemoryAllocator,
        timeout: float,
    ) -> ConnectionHandle:
        self.asked.append(str(address))

        def tell(result: Connected) -> None:
            self.asked.append(f"{address} {result.code.name if isinstance(result, Status) else 'connected'}")
            on_connect(result)

        return super().connect(tell, address, config, memory_allocator, timeout)

    def cancel_connect(self, handle: ConnectionHandle) -> bool:
        cancelled = super().cancel_connect(handle)
        if cancelled:
            self.asked.append("cancelled")
        return cancelled

    def get_dns_resolver(self, *, dns_server: str | None = None) -> DNSResolver:
        self.asked.append(f"resolver {dns_server}")
        return super().get_dns_resolver(dns_server=dns_server)


class Patient(WrappedEngine):
    """An engine whose first timer, that of the whole, begins with the attempt at `address`, however late that is; the
    attempts themselves may take longer."""

    def __init__(self, inner: EventEngine, address: ResolvedAddress) -> None:
        super().__init__(inner)
        self._address = address
        self._first: tuple[float, Callable[[], object]] | None = None

    def run_after(self, delay: float, closure: Callable[[], object]) -> TaskHandle:
        if self._first is not None:
            return super().run_after(delay, closure)
        self._first = delay, closure
        return super().run_after(TIMEOUT, lambda: None)

    def connect(
        self,
        on_connect: Callable[[Connected], object],
        address: ResolvedAddress,
        config: EndpointConfig,
        memory_allocator: MemoryAllocator,
        timeout: float,
    ) -> ConnectionHandle:
        handle = super().connect(on_connect, address, config, memory_allocator, TIMEOUT)
        if address == self._address:
            assert self._first is not None
            super().run_after(*self._first)
        return handle


class Names(DNSResolver):
    """Answers each lookup with the same, by way of an engine, or never."""

    def __init__(self, engine: EventEngine, answer: StatusOr[list[ResolvedAddress]] | None) -> None:
        self._engine = engine
        self._answer = answer
        self.asked: list[str] = []
        self.closed = False

    def lookup_hostname(
        self, on_resolve: Callable[[StatusOr[list[ResolvedAddress]]], object], name: str, default_port: str = ""
    ) -> None:
        if self.closed:
            raise ClosedResourceError("the resolver was closed")
        self.asked.append(name)
        answer = self._answer
        if answer is not None:
            self._engine.run(lambda: on_resolve(answer))

    def lookup_srv(self, *_: object) -> None:  # type: ignore[override]  # not used
        raise NotImplementedError

    def lookup_txt(self, *_: object) -> None:  # type: ignore[override]  # not used
        raise NotImplementedError

    def close(self) -> None:
        self.closed = True


@contextmanager
def silent(count: int) -> Iterator[list[ResolvedAddress]]:
    """Addresses where a connect gets no answer."""
    with ExitStack() as stack:
        yield [stack.enter_context(full_backlog()).address for _ in range(count)]


@contextmanager
def refusing(count: int) -> Iterator[list[ResolvedAddress]]:
    with ExitStack() as stack:
        yield [stack.enter_context(port_without_listener()) for _ in range(count)]


def v6_server() -> OracleServer:
    skip_without_ipv6()
    return OracleServer(ResolvedAddress.tcp("::1", 0))


# What is connected to


@pytest.mark.parametrize("form", ["{}", "dns:{}", "dns:///{}", "ipv4:{}", "dns://192.0.2.1/{}"])
def test_an_ipv4_literal_is_connected_to(anywhere: Application, form: str) -> None:
    with OracleServer() as server:
        endpoint = connect(anywhere, form.format(server.address))
        assert isinstance(endpoint, Endpoint)
        with closing(endpoint), server.accept() as peer:
            assert endpoint.peer_address == server.address
            assert anywhere.write(endpoint, b"question").ok
            assert receive(peer, 8) == b"question"
            peer.sendall(b"answer")
            assert anywhere.receive(endpoint, 6) == b"answer"


@pytest.mark.parametrize("form", ["{}", "dns:///{}", "ipv6:{}"])
def test_an_ipv6_literal_is_connected_to(app: Application, form: str) -> None:
    with v6_server() as server:
        endpoint = connect(app, form.format(server.address))
        assert isinstance(endpoint, Endpoint)
        assert endpoint.peer_address == server.address
        endpoint.close()


@pytest.mark.parametrize("form", ["localhost:{}", "dns:localhost:{}", "dns:///localhost:{}"])
def test_a_name_is_looked_up_and_connected_to(anywhere: Application, form: str) -> None:
    with OracleServer() as server:
        watched = Watched(anywhere.engine)
        endpoint = connect(anywhere, form.format(server.address.port), engine=watched)
        assert isinstance(endpoint, Endpoint)
        assert endpoint.peer_address == server.address
        assert watched.asked[1] == "resolver None"
        endpoint.close()


def test_a_name_whose_server_listens_on_one_family_only_is_connected_to(app: Application) -> None:
    """Where localhost has both, the other one refuses, and the next is tried at once."""
    with v6_server() as server:
        endpoint = connect(
            app,
            "name:1",
            resolver=Names(app.engine, [ResolvedAddress.tcp("127.0.0.1", server.address.port), server.address]),
        )
        assert isinstance(endpoint, Endpoint)
        assert endpoint.peer_address == server.address
        endpoint.close()


@pytest.mark.parametrize("form", ["unix:{}", "unix://{}"])
def test_a_unix_socket_is_connected_to(app: Application, unix_folder: Path, form: str) -> None:
    with OracleServer(unix_address(unix_folder / "server")) as server:
        endpoint = connect(app, form.format(unix_folder / "server"))
        assert isinstance(endpoint, Endpoint)
        with server.accept() as peer:
            endpoint.close()
            assert receive_all(peer) == b""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has abstract unix sockets")
def test_an_abstract_unix_socket_is_connected_to(app: Application, unix_folder: Path) -> None:
    target = f"unix-abstract:{unix_folder}"
    with OracleServer(ResolvedAddress.parse(target)) as server:
        endpoint = connect(app, target)
        assert isinstance(endpoint, Endpoint)
        with server.accept() as peer:
            endpoint.close()
            assert receive_all(peer) == b""


# The order of attempts


def test_addresses_that_refuse_are_passed_over_at_once(app: Application) -> None:
    with refusing(3) as bad, OracleServer() as server:
        watched = Watched(app.engine)
        endpoint = connect(app, list_of(*bad, server.address), engine=watched)
        assert isinstance(endpoint, Endpoint)
        endpoint.close()
    told = [each for each in watched.asked if not each.startswith("after")]
    expected = [line for address in bad for line in (str(address), f"{address} UNAVAILABLE")]
    assert told == [*expected, str(server.address), f"{server.address} connected"]


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> float:
    """The seconds between two attempts, fewer than there are; for tests in which no attempt fails."""
    monkeypatch.setattr(connecting, "ATTEMPT_DELAY", 0.02)
    return connecting.ATTEMPT_DELAY


def test_an_address_that_is_silent_is_overtaken_by_the_next_and_cancelled(app: Application, soon: float) -> None:
    with silent(2) as hanging, OracleServer() as server:
        watched = Watched(app.engine)
        endpoint = connect(app, list_of(*hanging, server.address), engine=watched)
        assert isinstance(endpoint, Endpoint)
        assert endpoint.peer_address == server.address
        endpoint.close()
    delay = f"after {soon:g}"
    assert watched.asked == [
        f"after {TIMEOUT:g}",
        str(hanging[0]),
        delay,
        str(hanging[1]),
        delay,
        str(server.address),
        f"{server.address} connected",
        "cancelled",
        "cancelled",
    ]


def test_families_take_turns_beginning_with_the_first(app: Application) -> None:
    skip_without_ipv6()
    with refusing(4) as v4:
        v6 = [ResolvedAddress.tcp("::1", address.port) for address in v4]
        watched = Watched(app.engine)
        found = [v6[0], v6[1], v4[0], v4[1], v4[2]]
        status = connect(app, "name:1", engine=watched, resolver=Names(app.engine, found))
        assert isinstance(status, Status)
    tried = [each for each in watched.asked if each in map(str, found)]
    assert tried == list(map(str, [v6[0], v4[0], v6[1], v4[1], v4[2]]))


# How it fails


def test_when_all_have_failed_one_status_names_each(app: Application) -> None:
    with refusing(3) as bad:
        status = connect(app, list_of(*bad))
        assert isinstance(status, Status)
        assert (status.code, status.errno) == (StatusCode.UNAVAILABLE, errno.ECONNREFUSED)
        for address in bad:
            assert f"connecting to {address}: Connection refused (ECONNREFUSED)" in status.message


def test_failures_of_several_kinds_are_unavailable(app: Application) -> None:
    nonsense = ResolvedAddress(socket.AF_INET, ("::1", 80))
    with refusing(1) as bad:
        status = connect(app, list_of(nonsense, *bad))
        assert isinstance(status, Status)
        assert (status.code, status.errno) == (StatusCode.UNAVAILABLE, None)
        assert str(nonsense) in status.message
        assert str(bad[0]) in status.message


def test_a_target_of_one_address_fails_as_that_address_does(app: Application, unix_folder: Path) -> None:
    status = connect(app, f"unix:{unix_folder}/nobody")
    assert status == Status.from_errno(errno.ENOENT, f"connecting to unix:{unix_folder}/nobody")


def test_the_message_of_a_hundred_failures_has_a_bound(app: Application) -> None:
    with refusing(100) as bad:
        status = connect(app, list_of(*bad))
    assert isinstance(status, Status)
    assert sum(str(address) in status.message.partition(": ")[2] for address in bad) >= 16
    assert "84 more were tried" in status.message
    assert len(status.message) < 4000


def test_silence_exceeds_the_deadline_and_is_told_as_that(anywhere: Application) -> None:
    with silent(2) as hanging, refusing(1) as bad:
        patient = Patient(anywhere.engine, hanging[0])
        status = connect(anywhere, list_of(*bad, *hanging), timeout=0.01, engine=patient)
        assert isinstance(status, Status)
        assert status.code is StatusCode.DEADLINE_EXCEEDED
        assert "the timeout has passed" in status.message
        assert f"connecting to {bad[0]}: Connection refused" in status.message
        assert f"{hanging[0]}: no answer" in status.message


def test_a_lookup_counts_against_the_timeout(app: Application) -> None:
    status = connect(app, "name:80", timeout=0.02, resolver=Names(app.engine, None))
    assert isinstance(status, Status)
    assert status.code is StatusCode.DEADLINE_EXCEEDED
    assert "looking up name:80" in status.message


@pytest.mark.parametrize("timeout", [0, 0.0])
def test_a_timeout_of_nought_is_a_timeout_or_a_connection(anywhere: Application, timeout: float) -> None:
    with OracleServer() as server:
        result = connect(anywhere, f"localhost:{server.address.port}", timeout=timeout)
        close_if_connected(result)
        assert not isinstance(result, Status) or result.code is StatusCode.DEADLINE_EXCEEDED


def test_what_the_resolver_says_is_what_is_told(app: Application) -> None:
    nobody = Status(StatusCode.NOT_FOUND, "looking up 'name:1': no such name")
    assert connect(app, "name:1", resolver=Names(app.engine, nobody)) is nobody
    status = connect(app, "name:1", resolver=Names(app.engine, []))
    assert isinstance(status, Status)
    assert (status.code, status.message) == (StatusCode.NOT_FOUND, "looking up 'name:1': no address")


def test_a_dns_server_that_the_engine_cannot_ask_is_told_later(app: Application) -> None:
    def begin(on_connect: Callable[[Connected], None]) -> None:
        start(app, on_connect, "dns://127.0.0.1:1/localhost:80", timeout=0.5)

    status = never_inline(app, begin)
    assert isinstance(status, Status)
    if status.code is StatusCode.UNIMPLEMENTED:
        assert "127.0.0.1:1" in status.message
    else:  # it can: nobody answers at that port
        assert status.code in (StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED)


def test_a_resolver_that_was_given_stays_open_and_is_asked_in_place_of_the_targets_server(
    app: Application,
) -> None:
    with OracleServer() as server:
        names = Names(app.engine, [server.address])
        watched = Watched(app.engine)
        endpoint = connect(app, "dns://192.0.2.1/name:1", engine=watched, resolver=names)
        assert isinstance(endpoint, Endpoint)
        endpoint.close()
        assert (names.asked, names.closed) == (["name:1"], False)
        assert not any(each.startswith("resolver") for each in watched.asked)


# Exactly once


def test_on_connect_is_never_called_within_the_call(app: Application, unix_folder: Path) -> None:
    with OracleServer() as server, OracleServer(unix_address(unix_folder / "s")) as unix, refusing(1) as bad:
        for target, connects in (
            (str(server.address), True),
            (f"localhost:{server.address.port}", True),
            (str(unix.address), True),
            (str(bad[0]), False),
            (f"unix:{unix_folder}/nobody", False),
            ("ipv4:127.0.0.1:0", False),
        ):

            def begin(on_connect: Callable[[Connected], None], target: str = target) -> None:
                start(app, on_connect, target)

            result = never_inline(app, begin)
            assert isinstance(result, Endpoint) == connects, result
            close_if_connected(result)


def test_after_a_cancel_that_was_in_time_nobody_is_told(anywhere: Application) -> None:
    never = Callback[Connected](anywhere.ledger, times=0)
    with silent(2) as hanging:
        for target in (str(hanging[0]), list_of(*hanging), "localhost:1"):
            connection = start(anywhere, never, target)
            if target == "localhost:1" and not anywhere.call(connection.cancel):
                never.times += 1
                continue
            anywhere.call(connection.cancel)
            assert not anywhere.call(connection.cancel)
            assert repr(connection).endswith(", over>")


def test_a_cancel_after_the_end_comes_too_late(anywhere: Application) -> None:
    with OracleServer() as server:
        on_connect = Callback[Connected](anywhere.ledger)
        connection = start(anywhere, on_connect, str(server.address))
        endpoint = on_connect.result()
        assert isinstance(endpoint, Endpoint)
        assert not anywhere.call(connection.cancel)
        with server.accept() as peer:
            peer.sendall(b"still open")
            assert anywhere.receive(endpoint, 10) == b"still open"
        endpoint.close()


def test_it_may_be_cancelled_in_another_callback_and_in_its_own(app: Application) -> None:
    with OracleServer() as server:
        done = Callback[tuple[Connected, bool]](app.ledger)
        begun: list[TargetConnection] = []
        ready = threading.Event()

        def on_connect(result: Connected) -> None:
            ready.wait(TIMEOUT)
            done((result, begun[0].cancel()))

        def begin() -> None:
            begun.append(start(app, on_connect, str(server.address)))
            ready.set()

        app.on_loop(begin)
        result, cancelled = done.result()
        assert not cancelled
        close_if_connected(result)


def test_closing_the_engine_cancels_whatever_stage_it_is_in(app: Application) -> None:
    with silent(3) as hanging, OracleServer() as server:
        names = app.engine.get_dns_resolver()
        callbacks = [Callback[Connected](app.ledger) for _ in range(5)]
        with held(app):
            start(app, callbacks[0], list_of(*hanging))
            start(app, callbacks[1], str(hanging[0]))
            start(app, callbacks[2], f"localhost:{hanging[0].port}")
            start(app, callbacks[3], "localhost:1", resolver=names)
            start(app, callbacks[4], "dns://192.0.2.1/127.0.0.1:1")
            closer = threading.Thread(target=app.engine.close)
            closer.start()
        closer.join(TIMEOUT)
        for on_connect in callbacks:
            status = on_connect.result()
            close_if_connected(status)
            assert isinstance(status, Status)
            assert status.code in (StatusCode.CANCELLED, StatusCode.UNAVAILABLE)
        names.close()
        late = Callback[Connected](app.ledger, times=0)
        with pytest.raises(ClosedResourceError, match="engine was closed"):
            start(app, late, str(server.address))
        with pytest.raises(ClosedResourceError, match="engine was closed"):
            start(app, late, "localhost:1")


def test_a_closed_resolver_is_refused_at_the_caller(anywhere: Application) -> None:
    names = Names(anywhere.engine, [])
    names.close()
    with pytest.raises(ClosedResourceError, match="resolver was closed"):
        start(anywhere, Callback[Connected](anywhere.ledger, times=0), "name:1", resolver=names)


@pytest.mark.usefixtures("soon")
def test_what_on_connect_raises_ends_nothing_else(app: Application) -> None:
    """It is logged, and counted by engines that count."""
    before = getattr(app.engine, "callback_errors", 0)
    called = threading.Event()

    def fail(result: Connected) -> None:
        close_if_connected(result)
        called.set()
        raise RuntimeError("on purpose")

    with OracleServer() as server, silent(1) as hanging:
        start(app, fail, list_of(*hanging, server.address))
        assert called.wait(TIMEOUT)
        close_if_connected(connect(app, str(server.address)))
    app.on_loop(lambda: None)
    assert getattr(app.engine, "callback_errors", 1) - before == 1


def test_wrong_arguments_are_told_at_the_caller(app: Application) -> None:
    never = Callback[Connected](app.ledger, times=0)
    allocator = app.quota.create_memory_allocator("never")
    good = {"target": "127.0.0.1:1", "config": EndpointConfig(), "memory_allocator": allocator, "timeout": 1.0}

    async def coroutine(result: Connected) -> None: ...

    for wrong, error, why in (
        ({"target": "[::1"}, ValueError, r"'\[::1' is not a host"),
        ({"target": b"127.0.0.1:1"}, TypeError, "target must be a str or a Target, not bytes"),
        ({"config": None}, TypeError, "config must be an EndpointConfig, not NoneType"),
        (
            {"memory_allocator": app.quota},
            TypeError,
            "must be what ResourceQuota.create_memory_allocator makes, not",
        ),
        ({"timeout": -1}, ValueError, "timeout is -1; it must be a finite number of seconds, 0 or more"),
        ({"timeout": float("inf")}, ValueError, "timeout is inf"),
        ({"timeout": "1"}, TypeError, "timeout must be a number of seconds, not str"),
        ({"on_connect": 5}, TypeError, "on_connect must be callable, not int"),
        ({"on_connect": coroutine}, TypeError, "on_connect is a coroutine function"),
    ):
        with pytest.raises(error, match=why):
            connect_target(app.engine, **({"on_connect": never} | good | wrong))  # type: ignore[arg-type]  # on purpose
    with pytest.raises(TypeError, match="engine must be an EventEngine, not NoneType"):
        connect_target(None, never, **good)  # type: ignore[arg-type]  # on purpose


# At once


def test_of_threads_that_cancel_at_once_at_most_one_is_in_time(app: Application, ledger: Ledger) -> None:
    with OracleServer(backlog=512) as server:
        for _ in range(100):
            on_connect = Callback[Connected](ledger)
            connection = start(app, on_connect, list_of(server.address, server.address))
            answers: list[bool] = []
            run_together(*[lambda c=connection, a=answers: a.append(c.cancel())] * 3)
            assert sum(answers) <= 1
            if any(answers):
                on_connect.times = 0
            else:
                close_if_connected(on_connect.result())
        app.on_loop(lambda: None)


def test_what_begins_while_the_engine_closes_is_refused_or_told(app: Application, ledger: Ledger) -> None:
    with OracleServer(backlog=512) as server:
        callbacks: list[Callback[Connected]] = []

        def begin(target: str) -> None:
            for _ in range(30):
                on_connect = Callback[Connected](ledger)
                try:
                    start(app, on_connect, target)
                except ClosedResourceError:
                    on_connect.times = 0
                else:
                    callbacks.append(on_connect)

        run_together(
            lambda: begin(str(server.address)),
            lambda: begin(f"localhost:{server.address.port}"),
            lambda: begin(f"unix:/no/such/{server.address.port}"),
            lambda: [app.on_loop(lambda: None), app.engine.close()],
        )
        for on_connect in callbacks:
            result = on_connect.result()
            assert isinstance(result, Endpoint) or result.code in (StatusCode.CANCELLED, StatusCode.UNAVAILABLE)
            close_if_connected(result)


# Abandoned


def _targets(
    hanging: Sequence[ResolvedAddress], bad: Sequence[ResolvedAddress], good: ResolvedAddress
) -> list[Target]:
    return [
        Target.of(good),
        list_of(*hanging, good),
        list_of(*bad, *hanging),
        list_of(*bad),
        list_of(*bad, good),
        list_of(good, good, good),
        Target.parse(f"localhost:{good.port}"),
        Target.parse(f"localhost:{bad[0].port}"),
    ]


def test_a_thousand_that_are_abandoned_at_random_moments_leave_nothing(
    kind: Kind, app: Application, ledger: Ledger
) -> None:
    """The fixtures look for what is left: bytes, descriptors, threads, callbacks, warnings."""
    chance = random.Random(kind.id)
    with OracleServer(backlog=4096) as server, silent(2) as hanging, refusing(2) as bad:
        targets = _targets(hanging, bad, server.address)
        begun: list[tuple[TargetConnection, Callback[Connected]]] = []
        for each in range(1000):
            on_connect = Callback[Connected](ledger)
            timeout = chance.choice([0.0, 0.001, 0.02, TIMEOUT])
            begun.append((start(app, on_connect, chance.choice(targets), timeout), on_connect))
            if chance.random() < 0.5:
                app.on_loop(lambda: None)  # some get on
            if chance.random() < 0.8:
                connection, on_connect = begun.pop(chance.randrange(len(begun)))
                if connection.cancel():
                    on_connect.times = 0
                else:
                    close_if_connected(on_connect.result())
            if each % 100 == 99:
                _drain(server)
        for connection, on_connect in begun:
            if connection.cancel():
                on_connect.times = 0
            else:
                close_if_connected(on_connect.result())
        app.on_loop(lambda: None)
        _drain(server)


def _drain(server: OracleServer) -> None:
    """Accepts, and closes, what has come."""
    server.socket.setblocking(False)
    try:
        while True:
            server.socket.accept()[0].close()
    except BlockingIOError:
        pass
