"""Timers against a sorted list, in whatever order they are set, taken back and called, and in whichever thread."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from eventengine.core.timers import LIMIT, LONGEST
from eventengine.engine import TaskHandle
from hand_turned import elsewhere
from manual_host import ManualHost, make_loop

DELAYS = st.sampled_from([0.0, 0.25, 1.0, 1.0, 2.5, 60.0, LONGEST + 1]) | st.floats(0, 100)
PLACES = st.sampled_from(["within a turn", "between two turns", "in another thread"])


class TimersModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.host = ManualHost()
        self.loop = make_loop(self.host)
        self.timers = self.loop.timers
        self.count = 0
        self.alive: list[tuple[float, int]] = []  # what should run: deadline, and which came first
        self.handles: list[tuple[TaskHandle, tuple[float, int]]] = []
        self.ran_in_a_turn = 0

    @initialize(lag=st.sampled_from([0.0, 0.0, 0.001]))
    def begin(self, lag: float) -> None:
        self.host.clock_lag = lag
        self.loop = make_loop(self.host)
        self.timers = self.loop.timers

    def set(self, delay: float, follow: Callable[[], object] = lambda: None) -> None:
        timer = (self.host.now + self.host.clock_lag + delay, self.count)
        self.count += 1

        def run() -> None:
            assert timer == min(self.alive), "not the earliest of those that were set"
            assert timer[0] <= self.host.now, "too early"
            self.alive.remove(timer)
            self.ran_in_a_turn += 1
            follow()

        handle = self.timers.schedule(delay, run)
        self.alive.append(timer)
        self.handles.append((handle, timer))

    def cancel(self, which: int) -> None:
        handle, timer = self.handles[which % len(self.handles)]
        assert self.timers.cancel(handle) is (timer in self.alive)
        if timer in self.alive:
            self.alive.remove(timer)

    def do(self, place: str, what: Callable[[], object]) -> None:
        if place == "within a turn":
            with self.loop:
                what()
        elif place == "between two turns":
            what()
        else:
            elsewhere(what)

    @rule(delays=st.lists(DELAYS, max_size=4), place=PLACES)
    def set_some(self, delays: list[float], place: str) -> None:
        self.do(place, lambda: [self.set(delay) for delay in delays])

    @rule(delay=DELAYS, then=DELAYS, which=st.integers(0), place=PLACES)
    def set_one_that_sets_and_cancels_others(self, delay: float, then: float, which: int, place: str) -> None:
        def follow() -> None:
            self.set(then)
            self.cancel(which)

        self.do(place, partial(self.set, delay, follow))

    @rule(delays=st.lists(DELAYS, min_size=1, max_size=3), place=PLACES)
    def set_some_and_take_the_last_back_in_one_turn(self, delays: list[float], place: str) -> None:
        def work() -> None:
            for delay in delays:
                self.set(delay)
            self.cancel(-1)

        self.do(place, work)

    @precondition(lambda self: self.handles)
    @rule(which=st.lists(st.integers(0), max_size=4), place=PLACES)
    def cancel_some(self, which: list[int], place: str) -> None:
        self.do(place, lambda: [self.cancel(each) for each in which])

    @rule(delay=DELAYS, kept=st.integers(0, 3), place=PLACES)
    def set_and_cancel_a_thousand(self, delay: float, kept: int, place: str) -> None:
        def work() -> None:
            handles = [self.timers.schedule(delay, lambda: None) for _ in range(1100)]
            for _ in range(kept):
                self.set(delay)
            assert all(map(self.timers.cancel, handles))

        self.do(place, work)

    @rule(ahead=DELAYS, early=st.sampled_from([0.0, 0.0, 0.3]))
    def wait(self, ahead: float, early: float) -> None:
        self.host.now += ahead
        self.host.fire(early)

    @rule()
    def wait_for_the_next(self) -> None:
        if self.host.timers:
            self.host.now = max(self.host.now, min(when for when, _ in self.host.timers.values()))
            self.ran_in_a_turn = 0
            self.host.fire()
            assert self.ran_in_a_turn <= LIMIT

    @rule()
    def take_letters(self) -> None:
        self.host.turn()

    @rule()
    def settle(self) -> None:
        """All that is due has run, and the host is asked for no more than one call, at the right moment."""
        while self.host.woken or self.host.fire():
            self.host.turn()
        assert not self.alive or min(self.alive)[0] > self.host.now
        if self.alive:
            [(when, _)] = self.host.timers.values()
            assert when <= max(min(self.alive)[0], self.host.now + LONGEST)
        else:
            assert self.host.timers == {}

    @invariant()
    def asks_the_host_for_one_timer_at_a_time(self) -> None:
        assert len(self.host.timers) <= 1
        assert all(0 <= delay <= LONGEST for delay in self.host.delays)
        assert self.host.logged == []
        self.host.delays.clear()

    def teardown(self) -> None:
        self.timers.close()
        for handle, _ in self.handles:
            assert not self.timers.cancel(handle)
        self.alive.clear()
        self.host.now += 2 * LONGEST
        while self.host.woken or self.host.fire():
            self.host.turn()
        assert self.host.timers == {}
        assert self.host.logged == []


TestTimersModel = TimersModel.TestCase
TestTimersModel.settings = settings(
    max_examples=80,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
