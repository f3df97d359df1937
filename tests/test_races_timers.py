"""Timers that other threads set: in their order, cancelled on their way, or too late."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from eventengine.core import timers as timers_module
from eventengine.core.timers import Timers
from eventengine.engine import TaskHandle
from eventengine.status import ClosedResourceError
from hand_turned import elsewhere, hand_turned
from manual_host import ManualHost, letters_of, make_loop


def test_a_timer_of_another_thread_keeps_its_place_however_many_letters_wait() -> None:
    host = ManualHost()
    loop = make_loop(host)
    ran: list[str] = []
    loop.timers.schedule(0.1, lambda: ran.append("0.1, of the loop's thread"))

    def from_elsewhere() -> None:
        for _ in range(1000):
            loop.post(lambda: None)
        loop.timers.schedule(0.0, lambda: ran.append("0.0, of another"))

    elsewhere(from_elsewhere)
    host.now += 1.0
    host.fire()
    assert ran == ["0.0, of another", "0.1, of the loop's thread"]


def test_a_timer_that_comes_from_another_thread_makes_none_that_is_earlier_late() -> None:
    host = ManualHost()
    host.now = 0.0
    timers = make_loop(host).timers
    late: list[float] = []

    def schedule(deadline: float) -> None:
        timers.schedule(deadline - host.now, lambda: late.append(host.now - deadline))

    for deadline in (0.125, 0.375, 0.25):
        schedule(deadline)
    elsewhere(lambda: schedule(0.5))  # whose letter waits
    while host.timers:
        host.now = min(when for when, _ in host.timers.values())
        host.fire()
    assert late == [0.0] * 4


def test_a_timer_that_another_thread_cancels_as_the_turn_that_set_it_ends_is_cancelled_once() -> None:
    host = ManualHost()
    loop = make_loop(host)
    timers = loop.timers
    answers: list[bool] = []

    class Contested(dict[TaskHandle, tuple[float, Callable[[], object]]]):
        """Another thread cancels what the end of the turn has just found."""

        def items(self) -> Any:
            found = list(super().items())
            for handle, _ in found:
                elsewhere(lambda handle=handle: answers.append(timers.cancel(handle)))
            return found

    with loop:
        timers.fresh = Contested()
        handle = timers.schedule(1.0, lambda: pytest.fail("it was cancelled"))
    assert answers == [True]
    assert not timers.cancel(handle)
    host.now += 1.0
    run_all(host)
    assert (host.timers, host.delays) == ({}, [])


def run_all(host: ManualHost) -> None:
    while host.fire() or host.woken:
        host.turn()


def test_more_timers_than_a_turn_takes_in_run_in_the_order_of_their_deadlines() -> None:
    host = ManualHost()
    loop = make_loop(host)
    ran: list[int] = []
    count = timers_module._DROPPED_PER_TURN + 500
    loop.timers.schedule(count / 1000 + 1, lambda: ran.append(count))

    def from_elsewhere() -> None:
        for n in reversed(range(count)):
            loop.timers.schedule(n / 1000, lambda n=n: ran.append(n))

    elsewhere(from_elsewhere)
    host.now += count
    run_all(host)
    assert ran == list(range(count + 1))


def test_a_timer_of_another_thread_behind_thousands_that_were_cancelled_is_not_left_behind() -> None:
    host = ManualHost()
    loop = make_loop(host)
    ran: list[str] = []

    def from_elsewhere() -> None:
        for _ in range(timers_module._DROPPED_PER_TURN):
            assert loop.timers.cancel(loop.timers.schedule(1.0, lambda: pytest.fail("it was cancelled")))
        loop.timers.schedule(1.0, lambda: ran.append("the last"))

    elsewhere(from_elsewhere)
    host.now += 1.0
    run_all(host)
    assert ran == ["the last"]


def test_timers_of_another_thread_cost_one_letter_and_those_cancelled_on_their_way_never_run() -> None:
    host = ManualHost()
    loop = make_loop(host)
    ran: list[int] = []
    answers: list[bool] = []

    def from_elsewhere() -> None:
        handles = [loop.timers.schedule(n, lambda n=n: ran.append(n)) for n in range(100)]
        answers.extend(loop.timers.cancel(handle) for handle in handles[1:])

    elsewhere(from_elsewhere)
    assert len(host.woken) == 1
    host.now += 1000
    host.turn()
    assert len(host.timers) == 1
    run_all(host)
    assert (ran, answers) == ([0], [True] * 99)
    assert host.timers == {}


def test_timers_of_another_thread_have_one_letter_under_way_however_many_they_are() -> None:
    host = ManualHost()
    loop = make_loop(host)
    letters = letters_of(loop)
    ran: list[int] = []

    def from_elsewhere(first: int, end: int) -> None:
        for n in range(first, end):
            loop.timers.schedule(0.0, lambda n=n: ran.append(n))

    count = timers_module._DROPPED_PER_TURN + 1
    elsewhere(lambda: from_elsewhere(0, count))
    assert len(letters) == 1
    host.turn()  # which leaves one timer, and posts the letter for it
    elsewhere(lambda: from_elsewhere(count, count + 10))
    assert len(letters) == 2
    run_all(host)
    assert ran == list(range(count + 10))


def test_a_timer_of_another_thread_whose_letter_could_not_be_posted_is_refused_and_the_next_is_not() -> None:
    host = ManualHost()
    loop = make_loop(host)
    post = loop.post
    ran: list[str] = []

    def fail(letter: object) -> None:
        raise MemoryError

    def refused() -> None:
        with pytest.raises(MemoryError):
            loop.timers.schedule(0.0, lambda: ran.append("refused"))

    loop.post = fail
    elsewhere(refused)
    loop.post = post
    elsewhere(lambda: loop.timers.schedule(0.0, lambda: ran.append("the next")))
    run_all(host)
    assert ran == ["the next"]


def test_timers_of_another_thread_that_are_all_cancelled_leave_nothing_on_the_host() -> None:
    host = ManualHost()
    loop = make_loop(host)

    def from_elsewhere() -> None:
        assert loop.timers.cancel(loop.timers.schedule(1.0, lambda: pytest.fail("it was cancelled")))

    elsewhere(from_elsewhere)
    run_all(host)
    assert (host.timers, host.delays) == ({}, [])


def test_a_timer_of_another_thread_is_refused_or_dropped_once_the_engine_has_closed_its_timers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    close = Timers.close
    ran: list[str] = []
    refused: list[bool] = []

    def schedule(timers: Timers) -> None:
        try:
            timers.schedule(0.0, lambda: ran.append("after the close"))
        except ClosedResourceError:
            refused.append(True)

    def then_another(self: Timers) -> None:
        close(self)
        elsewhere(lambda: schedule(self))  # it saw the engine open, a moment ago

    monkeypatch.setattr(Timers, "close", then_another)
    with hand_turned() as (engine, host):
        engine.run_after(1.0, lambda: ran.append("pending"))
        engine.close()
        assert (host.timers, refused) == ({}, [True])
        assert engine._loop.timers._pending == {}, "a closure that was refused is not kept"
        host.now += 10
        host.fire()
        host.settle()
        assert ran == []
