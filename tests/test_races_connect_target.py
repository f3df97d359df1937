"""Who wins when several things end a `connect_target` at once, on an engine that a test plays step by step."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from eventengine import (
    ClosedResourceError,
    Endpoint,
    EndpointConfig,
    ResolvedAddress,
    ResourceQuota,
    Status,
    StatusCode,
    StatusOr,
    Target,
    TargetConnection,
    connect_target,
)
from eventengine.attempts import Attempt, Attempts, interleaved
from eventengine.connecting import ATTEMPT_DELAY
from eventengine.testing.scenes import full_backlog
from hand_turned import elsewhere, hand_turned
from scripted_engine import REFUSED, ScriptedEndpoint, ScriptedEngine, tcp_addresses
from together import run_together

Connected = StatusOr[Endpoint]
TIMEOUT = 30.0
ADDRESSES = tcp_addresses(4)
NAME = Target.parse("name:1")
ALLOCATOR = ResourceQuota().create_memory_allocator("scripted")


class Told:
    """An `on_connect` that knows what it was called with, and that it was called from a callback of the engine."""

    def __init__(self, engine: ScriptedEngine) -> None:
        self.results: list[Connected] = []
        self.inline = 0
        self._engine = engine

    def __call__(self, result: Connected) -> None:
        self.inline += not self._engine.is_worker_thread()
        self.results.append(result)


def begin(engine: ScriptedEngine, target: Target, timeout: float = TIMEOUT) -> tuple[TargetConnection, Told]:
    told = Told(engine)
    return connect_target(engine, told, target, EndpointConfig(), ALLOCATOR, timeout), told


def list_of(*addresses: ResolvedAddress) -> Target:
    return Target("ipv4", addresses)


def check_all_is_over(engine: ScriptedEngine, told: Told, *, cancelled: bool = False) -> None:
    """Exactly one call, or none after a cancel; whoever connected beside that is closed; nothing is outstanding."""
    while keys := engine.keys("run"):  # answers to what was closed
        engine.fire(keys[0])
    assert engine.outstanding == {}
    assert len(told.results) == (0 if cancelled else 1)
    assert told.inline == 0
    for endpoint in engine.endpoints:
        assert endpoint.closed == (0 if endpoint in told.results else 1)
    assert all(resolver.was_closed for resolver in engine.resolvers)


# The order of attempts, in virtual time


def test_attempts_start_250_ms_apart_and_at_once_after_a_failure() -> None:
    engine = ScriptedEngine()
    _, told = begin(engine, list_of(*ADDRESSES))
    engine.fire_until(0.249)
    assert engine.started == [(0.0, ADDRESSES[0])]
    engine.fire_until(0.35)
    assert engine.started[1:] == [(0.25, ADDRESSES[1])]
    engine.fail(engine.keys("connect")[0])
    assert engine.started[2:] == [(0.35, ADDRESSES[2])]
    engine.fire_until(0.599)  # not at 0.5: the last start was at 0.35
    assert len(engine.started) == 3
    engine.fire_until(0.6)
    assert engine.started[3:] == [(0.6, ADDRESSES[3])]
    engine.fire_until(29.0)
    assert (len(engine.started), len(engine.keys("connect")), told.results) == (4, 3, [])
    engine.succeed(engine.keys("connect")[1])
    assert told.results == engine.endpoints
    assert told.results[0].peer_address == ADDRESSES[2]  # type: ignore[union-attr]  # it is one
    check_all_is_over(engine, told)


def test_one_that_was_started_earlier_may_answer_when_the_last_has_failed() -> None:
    engine = ScriptedEngine()
    _, told = begin(engine, list_of(*ADDRESSES[:2]))
    engine.fire_until(1.0)
    first, second = engine.keys("connect")
    engine.fail(second)
    assert told.results == []
    engine.succeed(first)
    assert told.results == engine.endpoints
    check_all_is_over(engine, told)


def test_attempts_on_the_core_start_250_ms_apart_by_its_own_clock() -> None:
    with full_backlog() as one, full_backlog() as two, hand_turned() as (engine, host):
        got: list[Connected] = []
        allocator = ResourceQuota().create_memory_allocator("x")
        sockets: list[object] = []
        connection = connect_target(
            engine,
            got.append,
            list_of(one.address, two.address),
            EndpointConfig(socket_hook=sockets.append),
            allocator,
            TIMEOUT,
        )
        host.settle()
        host.now += 0.249
        host.fire()
        host.settle()
        assert len(sockets) == 1
        host.now += 0.002
        host.fire()
        host.settle()
        assert len(sockets) == 2
        assert connection.cancel()
        host.settle()
        assert (got, host.watched, host.timers) == ([], {}, {})


def test_families_take_turns_beginning_with_the_first() -> None:
    v4 = tcp_addresses(3)
    v6 = [ResolvedAddress.tcp(f"2001:db8::{number}", 1) for number in range(1, 6)]
    assert interleaved([*v6, *v4]) == [v6[0], v4[0], v6[1], v4[1], v6[2], v4[2], v6[3], v6[4]]
    assert interleaved([v4[0], *v6[:2], *v4[1:]]) == [v4[0], v6[0], v4[1], v6[1], v4[2]]
    assert interleaved(v4) == v4
    engine = ScriptedEngine([*v6[:2], *v4[:2]])
    connection, told = begin(engine, NAME)
    engine.resolve(engine.keys("lookup")[0])
    engine.fire_until(1.0)
    assert [address for _, address in engine.started] == [v6[0], v4[0], v6[1], v4[1]]
    assert connection.cancel()
    check_all_is_over(engine, told, cancelled=True)


def test_of_threads_that_waited_for_the_same_attempt_one_starts_the_next() -> None:
    addresses = tcp_addresses(200)
    for _ in range(20):
        attempts = Attempts()
        attempts.add(addresses)
        first = attempts.take()
        taken: list[Attempt | None] = [first]

        def wait_and_take(attempts: Attempts = attempts, taken: list[Attempt | None] = taken) -> None:
            taken.extend(attempts.take(after=number) for number in range(150))

        run_together(*[wait_and_take] * 4)
        got = [attempt for attempt in taken if attempt is not None]
        assert sorted(attempt.number for attempt in got) == list(range(len(got)))
        assert all(attempt.address == addresses[attempt.number] for attempt in got)


# Two ends at once


def test_of_two_attempts_that_succeed_one_is_told_and_the_other_closed() -> None:
    engine = ScriptedEngine()
    _, told = begin(engine, list_of(*ADDRESSES))
    engine.fire_until(0.3)
    first, second = engine.keys("connect")
    late = engine.outstanding[first]
    engine.outstanding.pop(first)  # it is connected, and its callback is on its way
    engine.succeed(second)
    endpoint = ScriptedEndpoint(ADDRESSES[0])
    engine.endpoints.append(endpoint)
    late.answer(endpoint)
    assert (endpoint.closed, told.results) == (1, [engine.endpoints[0]])
    check_all_is_over(engine, told)


def test_the_timeout_is_told_as_that_though_an_attempt_says_so_before_the_timer() -> None:
    """On a pool two that are due at once may come in either order."""
    engine = ScriptedEngine()
    _, told = begin(engine, list_of(*ADDRESSES[:3]))
    late = Status(StatusCode.DEADLINE_EXCEEDED, "the timeout has passed")
    for status in (REFUSED, late, late):
        engine.fail(engine.keys("connect")[0], status)
    [result] = told.results
    assert isinstance(result, Status)
    assert result.code is StatusCode.DEADLINE_EXCEEDED
    check_all_is_over(engine, told)


def test_what_connects_after_a_cancel_is_closed() -> None:
    engine = ScriptedEngine()
    connection, told = begin(engine, list_of(*ADDRESSES))
    late = engine.outstanding.pop(engine.keys("connect")[0])
    assert connection.cancel()
    assert not connection.cancel()
    late.answer(engine._connected(ADDRESSES[0]))
    check_all_is_over(engine, told, cancelled=True)


def test_a_failure_that_comes_after_the_end_starts_nothing() -> None:
    engine = ScriptedEngine()
    _, told = begin(engine, list_of(*ADDRESSES))
    engine.fire_until(0.3)
    late = engine.outstanding.pop(engine.keys("connect")[0])
    engine.succeed(engine.keys("connect")[0])
    late.answer(REFUSED)
    assert len(engine.started) == 2
    check_all_is_over(engine, told)


def test_a_timer_that_a_failure_has_overtaken_starts_nothing() -> None:
    engine = ScriptedEngine()
    connection, told = begin(engine, list_of(*ADDRESSES))
    late = engine.outstanding.pop(engine.keys("timer")[0])  # it fires, and is not yet there
    engine.fail(engine.keys("connect")[0])
    late.answer()
    assert len(engine.started) == 2
    assert connection.cancel()
    check_all_is_over(engine, told, cancelled=True)


def test_a_lookup_that_is_answered_after_the_end_starts_nothing() -> None:
    engine = ScriptedEngine(ADDRESSES)
    connection, told = begin(engine, NAME)
    late = engine.outstanding.pop(engine.keys("lookup")[0])
    assert connection.cancel()
    late.answer(ADDRESSES)
    assert engine.started == []
    check_all_is_over(engine, told, cancelled=True)


@pytest.mark.parametrize(
    ("target", "call"),
    [
        (list_of(*ADDRESSES), "run_after"),
        (list_of(*ADDRESSES), "connect"),
        (NAME, "run_after"),
        (NAME, "get_dns_resolver"),
        (NAME, "lookup_hostname"),
        (NAME, "connect"),
    ],
)
@pytest.mark.parametrize("event", ["success", "failure", "the timeout", "closing the engine"])
def test_what_comes_on_another_thread_before_a_call_of_the_engine_has_returned(
    target: Target, call: str, event: str
) -> None:
    engine = ScriptedEngine(ADDRESSES)
    happened: list[str] = []

    def happen() -> None:
        if event == "closing the engine":
            engine.close()
        elif event == "the timeout":
            engine.fire_until(TIMEOUT)
        else:
            for key in engine.keys("lookup"):
                engine.resolve(key)
            while keys := engine.keys("connect"):
                engine.step("connect", keys[0], event == "success")

    def calls(name: str) -> None:
        if name == call and not happened:
            happened.append(name)
            elsewhere(happen)

    engine.calls = calls
    told = Told(engine)
    refused = False
    try:
        connect_target(engine, told, target, EndpointConfig(), ALLOCATOR, TIMEOUT)
    except ClosedResourceError:
        refused = True
    while kinds := [kind for kind in ("run", "lookup", "connect", "timer") if engine.keys(kind)]:
        engine.step(kinds[0], engine.keys(kinds[0])[0], success=True)
    assert happened
    check_all_is_over(engine, told, cancelled=refused)
    if event == "closing the engine":
        assert refused or told.results[0].code is StatusCode.CANCELLED  # type: ignore[union-attr]  # it is one
    elif event == "the timeout":
        assert told.results[0].code is StatusCode.DEADLINE_EXCEEDED  # type: ignore[union-attr]  # it is one


def test_an_engine_that_refuses_an_address_of_a_resolver_is_told_as_an_error_of_ours() -> None:
    class Picky(ScriptedEngine):
        def connect(self, on_connect: object, address: object, *others: object) -> object:
            raise TypeError("no such address")

    engine = Picky(ADDRESSES)
    _, told = begin(engine, NAME)
    engine.resolve(engine.keys("lookup")[0])
    status = told.results[0]
    assert isinstance(status, Status)
    assert (status.code, "no such address" in status.message) == (StatusCode.INTERNAL, True)
    check_all_is_over(engine, told)
    with pytest.raises(TypeError, match="no such address"):
        begin(engine, list_of(*ADDRESSES))
    assert engine.outstanding == {}


def test_an_engine_that_fails_to_cancel_does_not_keep_the_application_from_being_told() -> None:
    class Broken(ScriptedEngine):
        def cancel_connect(self, handle: object) -> bool:
            raise RuntimeError("broken")

    engine = Broken()
    _, told = begin(engine, list_of(*ADDRESSES))
    engine.fire_until(0.3)
    with pytest.raises(RuntimeError, match="broken"):
        engine.succeed(engine.keys("connect")[0])
    assert told.results == engine.endpoints


# Whatever comes after what


def play(chance: random.Random) -> None:
    """One game, each step drawn: the rules hold whatever the order."""
    count = chance.randrange(1, 5)
    addresses = ADDRESSES[:count]
    engine = ScriptedEngine(addresses if chance.random() < 0.9 else chance.choice([[], REFUSED]))
    connection, told = begin(
        engine, chance.choice([list_of(*addresses), NAME]), chance.choice([0.1, 0.6, TIMEOUT])
    )
    cancelled = False
    luck = chance.choice([0.0, 0.2, 0.5])
    failures = 0
    while True:
        choices = [(kind, key) for kind in ("run", "connect", "lookup") for key in engine.keys(kind)]
        choices += [("timer", key) for key in engine.keys("timer")[:1]]
        if not choices:
            break
        before, failed = len(engine.started), False
        last = engine.started[-1][0] if engine.started else None
        what = chance.random()
        if what < 0.04:
            cancelled = connection.cancel() or cancelled
        elif what < 0.08:
            engine.close()
        else:
            kind, key = chance.choice(choices)
            success = chance.random() < luck
            failed = kind == "connect" and not success
            failures += failed
            engine.step(kind, key, success)
        new = len(engine.started) - before
        assert new <= 1
        if new and last is not None:
            assert failed or engine.now - last >= ATTEMPT_DELAY - 1e-9
        if failed and not told.results and not cancelled and not engine.closed and before < count:
            assert new == 1
    check_all_is_over(engine, told, cancelled=cancelled)
    assert [address for _, address in engine.started] == addresses[: len(engine.started)]
    if REFUSED.code in [getattr(result, "code", None) for result in told.results] and engine.started:
        assert failures == count


def test_twenty_thousand_games_each_end_with_one_call_and_nothing_left() -> None:
    for seed in range(20_000):
        try:
            play(random.Random(seed))
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise


def play_together(chance: random.Random) -> None:
    """Several threads answer what is outstanding, as a pool does; one cancels, one closes the engine, at any moment."""
    count = chance.randrange(1, 5)
    addresses = ADDRESSES[:count]
    engine = ScriptedEngine(addresses)
    connection, told = begin(engine, chance.choice([list_of(*addresses), NAME]))
    cancelled: list[bool] = []
    luck = chance.choice([0.0, 0.3, 1.0])

    def answer(own: random.Random) -> Callable[[], None]:
        def run() -> None:
            while engine.outstanding:
                kinds = [kind for kind in ("run", "connect", "lookup", "timer") if engine.keys(kind)]
                if kinds:
                    kind = own.choice(kinds)
                    keys = engine.keys(kind)
                    if keys and (kind != "timer" or own.random() < 0.1 or len(kinds) == 1):
                        engine.step(kind, own.choice(keys), own.random() < luck)

        return run

    def interrupt(what: Callable[[], object]) -> Callable[[], None]:
        turns = chance.randrange(0, 200)

        def run() -> None:
            for _ in range(turns):
                if not engine.outstanding:
                    break
            what()

        return run

    others: list[Callable[[], None]] = []
    if chance.random() < 0.5:
        others.append(interrupt(lambda: cancelled.append(connection.cancel())))
        others.append(interrupt(lambda: cancelled.append(connection.cancel())))
    if chance.random() < 0.3:
        others.append(interrupt(engine.close))
    run_together(*(answer(random.Random(chance.random())) for _ in range(3)), *others)
    assert sum(cancelled) <= 1
    while kinds := [kind for kind in ("run", "lookup", "connect", "timer") if engine.keys(kind)]:
        engine.step(kinds[0], engine.keys(kinds[0])[0], success=True)
    check_all_is_over(engine, told, cancelled=any(cancelled))
    assert len(engine.started) <= count


def test_answers_on_several_threads_at_once_end_with_one_call_and_nothing_left() -> None:
    for seed in range(1500):
        try:
            play_together(random.Random(seed))
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
