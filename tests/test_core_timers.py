"""The timers of the core, on a clock that the test moves."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from threading import get_ident

import pytest

from eventengine.core.host import Host
from eventengine.core.timers import LIMIT, check_seconds
from eventengine.engine import TaskHandle
from manual_host import ManualHost, letters_of, make_loop


@pytest.fixture
def host() -> ManualHost:
    return ManualHost()


def test_a_timer_runs_at_its_deadline_and_not_before(host: ManualHost) -> None:
    timers = make_loop(host).timers
    ran: list[float] = []
    timers.schedule(2.0, lambda: ran.append(host.now))
    host.now += 1.999
    host.fire()
    assert ran == []
    host.now += 0.001
    host.fire()
    assert ran == [1002.0]


def test_a_host_that_calls_early_is_sent_back(host: ManualHost) -> None:
    timers = make_loop(host).timers
    ran: list[float] = []
    timers.schedule(1.0, lambda: ran.append(host.now))
    host.now += 0.9989
    assert host.fire(early=0.0011) == 1
    assert ran == []
    assert [pytest.approx(when) for when, _ in host.timers.values()] == [1001.0]
    host.now += 0.0011
    host.fire()
    assert len(ran) == 1


def test_a_clock_that_lags_makes_deadlines_later_by_as_much(host: ManualHost) -> None:
    host.clock_lag = 0.001
    ran: list[float] = []
    make_loop(host).timers.schedule(1.0, lambda: ran.append(host.now))
    host.now += 1.0
    host.fire()
    assert ran == []
    host.now += 0.001
    host.fire()
    assert ran == [1001.001]


def test_deadlines_run_in_order_and_equal_ones_first_in_first_out(host: ManualHost) -> None:
    timers = make_loop(host).timers
    ran: list[tuple[float, int]] = []
    wanted = []
    for n, delay in enumerate([3.0, 1.0, 2.0, 1.0, 3.0, 0.0, 1.0]):
        timers.schedule(delay, lambda delay=delay, n=n: ran.append((delay, n)))
        wanted.append((delay, n))
    host.now += 3.0
    host.fire()
    assert ran == sorted(wanted)


def test_what_a_timer_sets_and_what_falls_due_meanwhile_run_in_the_same_turn_in_their_order(
    host: ManualHost,
) -> None:
    timers = make_loop(host).timers
    ran: list[str] = []

    def slow(what: str, seconds: float) -> None:
        ran.append(what)
        host.now += seconds

    def slow_that_sets_another() -> None:
        slow("1001", 5.0)
        timers.schedule(0.0, lambda: ran.append("1006, set at last"))

    timers.schedule(1.0, slow_that_sets_another)
    timers.schedule(6.0, lambda: slow("1006", 2.0))
    timers.schedule(7.0, lambda: ran.append("1007"))
    host.now += 1.0
    host.fire()
    assert ran == ["1001", "1006", "1006, set at last", "1007"]


def test_those_that_are_left_among_thousands_of_cancelled_ones_run_on_time(host: ManualHost) -> None:
    timers = make_loop(host).timers
    ran: list[float] = []

    def schedule(deadline: float) -> TaskHandle:
        return timers.schedule(deadline - host.now, lambda: ran.append(deadline - host.now))

    handles = [schedule(1000.0 + n) for n in range(3000)]
    for n, handle in enumerate(handles):
        if n % 100:
            assert timers.cancel(handle)
    for n in (2, 0, 1):
        schedule(1050.0 + 100 * n)
    assert 2900 < len(timers._old) < 3000, "some were moved, and not all of them at once"
    while host.timers:
        host.now = max(host.now, *(when for when, _ in host.timers.values()))
        host.fire()
    assert ran == [0.0] * 33


def test_a_heap_of_those_that_are_wanted_stays_as_it_is(host: ManualHost) -> None:
    timers = make_loop(host).timers
    for _ in range(3000):
        timers.schedule(1.0, lambda: None)
    assert (len(timers._heap), timers._old) == (3000, [])


def test_many_deadlines_run_as_a_sorted_list_would_have_them(host: ManualHost) -> None:
    timers = make_loop(host).timers
    random_ = random.Random(7)
    ran: list[int] = []
    alive: list[tuple[float, int]] = []
    for n in range(20_000):
        delay = random_.choice([random_.random() * 100, float(random_.randrange(100))])
        handle = timers.schedule(delay, lambda n=n: ran.append(n))
        if random_.random() < 0.8:
            assert timers.cancel(handle)
        else:
            alive.append((delay, n))
    host.now += 100
    while host.timers:
        host.fire()
    assert ran == [n for _, n in sorted(alive)]


def test_one_host_timer_is_armed_however_many_deadlines_there_are(host: ManualHost) -> None:
    timers = make_loop(host).timers
    for n in range(1000):
        timers.schedule(1000.0 - n, lambda: None)
    assert len(host.timers) == 1


def test_a_turn_runs_no_more_than_its_limit(host: ManualHost) -> None:
    timers = make_loop(host).timers
    ran: list[int] = []
    for n in range(2 * LIMIT + 1):
        timers.schedule(0.0, lambda n=n: ran.append(n))
    counts = []
    while host.timers:
        host.fire()
        counts.append(len(ran))
    assert counts == [LIMIT, 2 * LIMIT, 2 * LIMIT + 1]


def test_a_timer_set_by_a_timer_waits_for_the_host(host: ManualHost) -> None:
    timers = make_loop(host).timers
    ran: list[str] = []
    timers.schedule(0.0, lambda: (ran.append("first"), timers.schedule(5.0, lambda: ran.append("second"))))
    host.fire()
    assert ran == ["first"]
    host.now += 5.0
    host.fire()
    assert ran == ["first", "second"]


def test_a_turn_drops_the_cancelled_that_come_up_and_arms_the_host_for_the_next_that_is_not(
    host: ManualHost,
) -> None:
    timers = make_loop(host).timers
    _, second, _ = [timers.schedule(delay, lambda: None) for delay in (1.0, 2.0, 3.0)]
    timers.cancel(second)
    host.now += 1.0
    host.fire()
    assert [when for when, _ in host.timers.values()] == [1003.0]


def test_a_deadline_that_is_taken_back_in_the_turn_that_set_it_costs_the_host_nothing(host: ManualHost) -> None:
    loop = make_loop(host)
    with loop:
        assert loop.timers.cancel(loop.timers.schedule(60.0, lambda: None))
    assert (host.delays, host.woken) == ([], [])


def test_a_deadline_of_the_turn_that_closes_the_timers_leaves_nothing_on_the_host(host: ManualHost) -> None:
    loop = make_loop(host)
    with loop:
        loop.timers.schedule(60.0, lambda: None)
        loop.timers.close()
    assert host.timers == {}


def test_cancel_says_true_once(host: ManualHost) -> None:
    timers = make_loop(host).timers
    handle = timers.schedule(1.0, lambda: pytest.fail("a cancelled timer ran"))
    assert timers.cancel(handle)
    assert not timers.cancel(handle)
    host.now += 2.0
    host.fire()
    host.turn()
    host.fire()


def test_a_timer_cannot_be_cancelled_while_it_runs(host: ManualHost) -> None:
    timers = make_loop(host).timers
    said: list[bool] = []
    handle = timers.schedule(0.0, lambda: said.append(timers.cancel(handle)))
    host.fire()
    assert said == [False]


def test_when_nothing_is_pending_nothing_is_left_on_the_host(host: ManualHost) -> None:
    timers = make_loop(host).timers
    for handle in [timers.schedule(60.0, lambda: None) for _ in range(100)]:
        timers.cancel(handle)
    while host.woken:
        host.turn()
    assert host.timers == {}


def test_setting_and_cancelling_again_and_again_costs_the_host_one_timer(host: ManualHost) -> None:
    timers = make_loop(host).timers
    for _ in range(1000):
        timers.cancel(timers.schedule(60.0, lambda: None))
    assert len(host.delays) == 1
    assert len(host.woken) == 1


def test_one_letter_at_a_time_takes_the_timer_of_the_host_back(host: ManualHost) -> None:
    loop = make_loop(host)
    letters = letters_of(loop)
    for count in (1, 2):
        for _ in range(10):
            loop.timers.cancel(loop.timers.schedule(60.0, lambda: None))
        assert len(letters) == count
        host.turn()
        assert host.timers == {}
    kept, another = (loop.timers.schedule(60.0, lambda: None) for _ in range(2))
    assert loop.timers.cancel(another)
    assert len(letters) == 2
    assert loop.timers.cancel(kept)


def test_when_all_are_cancelled_nothing_is_kept_of_them(host: ManualHost) -> None:
    timers = make_loop(host).timers
    for handle in [timers.schedule(60.0, lambda: None) for _ in range(10_000)]:
        timers.cancel(handle)
    while host.woken:
        host.turn()
    assert (timers._heap, timers._old) == ([], [])


def test_cancelled_entries_do_not_pile_up(host: ManualHost) -> None:
    timers = make_loop(host).timers
    kept = [timers.schedule(3000.0, lambda: None) for _ in range(100)]
    for _ in range(100_000):
        timers.cancel(timers.schedule(60.0, lambda: None))
    assert len(timers._heap) + len(timers._old) < 10_000
    assert all(timers.cancel(handle) for handle in kept)


def test_the_host_is_never_asked_for_more_than_an_hour(host: ManualHost) -> None:
    timers = make_loop(host).timers
    ran: list[float] = []
    timers.schedule(1e9, lambda: ran.append(host.now))
    assert host.delays == [3600.0]
    host.now += 3600.0
    host.fire()
    assert ran == []
    assert host.delays == [3600.0, 3600.0]


def test_a_timer_that_raises_is_logged_and_the_next_one_runs(host: ManualHost) -> None:
    loop = make_loop(host)
    ran: list[str] = []
    loop.timers.schedule(0.0, lambda: 1 / 0)
    loop.timers.schedule(0.0, lambda: ran.append("next"))
    host.fire()
    assert ran == ["next"]
    assert [type(error) for error in host.logged] == [ZeroDivisionError]
    assert loop.callbacks.errors == 1


def test_an_interrupt_goes_to_the_host_and_what_is_due_after_it_is_not_lost(host: ManualHost) -> None:
    loop = make_loop(host)
    ran: list[str] = []

    def interrupt() -> None:
        raise KeyboardInterrupt

    loop.timers.schedule(0.0, interrupt)
    loop.timers.schedule(0.0, lambda: ran.append("after"))
    with pytest.raises(KeyboardInterrupt):
        host.fire()
    host.fire()
    assert ran == ["after"]


def test_a_timer_of_the_core_itself_runs_on_the_loop_wherever_callbacks_run(host: ManualHost) -> None:
    with ThreadPoolExecutor(1) as pool:
        loop = make_loop(host, pool)
        ran: dict[str, int] = {}
        loop.timers.schedule_own(1.0, lambda: ran.update(own=get_ident()))
        loop.timers.schedule(1.0, lambda: ran.update(application=get_ident()))
        host.now += 1.0
        host.fire()
        assert ran["own"] == get_ident()
    assert ran["application"] != get_ident()


@pytest.mark.parametrize("good", [0, 0.0, 1, 1e-9, 1e300])
def test_a_finite_number_of_seconds_is_a_duration(good: float) -> None:
    check_seconds("delay", good)


@pytest.mark.parametrize("bad", [-1.0, -0.001, float("inf"), float("nan")])
def test_what_is_no_duration_is_refused_by_name_and_value(bad: float) -> None:
    with pytest.raises(ValueError, match=rf"delay is {bad}; it must be a finite number of seconds, 0 or more"):
        check_seconds("delay", bad)


@pytest.mark.parametrize("bad", ["1", None, True])
def test_what_is_no_number_is_refused_by_its_type(bad: object) -> None:
    with pytest.raises(TypeError, match=f"delay must be a number of seconds, not {type(bad).__name__}"):
        check_seconds("delay", bad)  # type: ignore[arg-type]


def test_the_manual_host_is_a_whole_host() -> None:
    assert issubclass(ManualHost, Host)
