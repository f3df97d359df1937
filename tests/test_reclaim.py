"""Reclaimers: which run, when, how many at a time, and who is told that he will not."""

from __future__ import annotations

import gc
import logging
import threading
from typing import Any

import pytest

from eventengine import (
    ClosedResourceError,
    MemoryRequest,
    ResourceQuota,
    SliceBuffer,
    Status,
    StatusCode,
    idle,
)
from eventengine.idle import AGAIN, Connections
from eventengine.reclaim import Reclaimer, Reclaimers, ReclamationPass, ReclamationSweep
from hand_turned import connected, elsewhere, hand_turned
from together import run_together
from turned_loop import Loop

BENIGN, IDLE, DESTRUCTIVE = ReclamationPass
KIB = 1 << 10


class Short:
    """A quota of 64 KiB, and what its reclaimers did."""

    def __init__(self) -> None:
        self.quota = ResourceQuota("short", memory=64 * KIB)
        self.memory = self.quota.memory
        self.ran: list[str] = []
        self.sweeps: list[ReclamationSweep] = []
        self.kept: list[Any] = []

    def post(self, name: str, which: ReclamationPass, gives: int = 0, finishes: bool = True) -> None:
        """Has an allocator of its own hold `gives` bytes, and give them back when its reclaimer runs."""
        allocator = self.quota.create_memory_allocator(name)
        held = allocator.make_reservation(MemoryRequest(gives))

        def reclaim(sweep: ReclamationSweep | None) -> None:
            if sweep is None:
                self.ran.append(f"{name} cancelled")
                return
            self.ran.append(name)
            if gives:
                held.release()  # of nothing it would wake who waits
            if finishes:
                sweep.finish()
            else:
                self.sweeps.append(sweep)

        allocator.post_reclaimer(which, reclaim)
        self.kept.append(allocator)


@pytest.fixture
def short() -> Short:
    return Short()


def test_none_runs_while_there_is_room(short: Short) -> None:
    for which in ReclamationPass:
        short.post(which.name, which)
    short.memory.give(short.memory.take(32 * KIB, 32 * KIB))
    assert short.ran == []


def test_the_mildest_runs_first_and_within_a_pass_who_waited_longest(short: Short) -> None:
    for number, which in enumerate((DESTRUCTIVE, IDLE, BENIGN, DESTRUCTIVE, IDLE, BENIGN)):
        short.post(f"{number} {which.name}", which)
    short.memory.take(65 * KIB, 65 * KIB)
    assert short.ran == ["2 BENIGN", "5 BENIGN", "1 IDLE", "4 IDLE", "0 DESTRUCTIVE", "3 DESTRUCTIVE"]


def test_they_stop_when_there_is_enough(short: Short) -> None:
    short.post("benign", BENIGN, gives=10 * KIB)
    short.post("idle", IDLE, gives=10 * KIB)
    short.post("destructive", DESTRUCTIVE, gives=10 * KIB)
    short.memory.take(50 * KIB, 50 * KIB)
    assert short.ran == ["benign", "idle"]
    assert short.memory.used == 60 * KIB


def test_a_slice_that_is_made_beyond_the_quota_starts_them(short: Short) -> None:
    short.post("idle", IDLE)
    slices = [short.quota.create_memory_allocator("slices").make_slice(MemoryRequest(32 * KIB)) for _ in range(3)]
    assert short.ran == ["idle"]
    assert sum(map(len, slices)) == 96 * KIB


@pytest.mark.parametrize("line", ["add_waiter", "add_bulk_waiter"])
def test_who_waits_has_the_mild_ones_run_and_no_work_lost(short: Short, line: str) -> None:
    for which in ReclamationPass:
        short.post(which.name, which)
    getattr(short.memory, line)(lambda: None)
    assert short.ran == ["BENIGN", "IDLE"]


def test_a_smaller_size_starts_them(short: Short) -> None:
    short.post("benign", BENIGN, gives=10 * KIB)
    short.memory.resize(8 * KIB)
    assert short.ran == ["benign"]


def test_one_that_is_posted_into_a_shortage_runs_at_once(short: Short) -> None:
    short.memory.take(65 * KIB, 65 * KIB)
    short.post("late", BENIGN)
    assert short.ran == ["late"]


def test_the_next_waits_until_the_sweep_is_finished(short: Short) -> None:
    short.post("slow", BENIGN, finishes=False)
    short.post("next", BENIGN)
    short.memory.take(65 * KIB, 65 * KIB)
    assert short.ran == ["slow"]
    (sweep,) = short.sweeps
    assert not sweep.is_sufficient
    sweep.finish()
    sweep.finish()
    assert short.ran == ["slow", "next"]
    assert sweep.is_sufficient  # it concerns nobody any more


def test_a_sweep_knows_when_there_is_enough(short: Short) -> None:
    short.post("slow", BENIGN, finishes=False)
    taken = short.memory.take(65 * KIB, 65 * KIB)
    short.memory.give(taken)
    assert short.sweeps[0].is_sufficient


def test_a_sweep_that_is_forgotten_is_finished_and_the_next_shortage_goes_on(short: Short) -> None:
    short.post("forgets", BENIGN, finishes=False)
    short.post("next", BENIGN)
    short.memory.take(65 * KIB, 65 * KIB)
    short.sweeps.clear()
    gc.collect()
    assert short.ran == ["forgets"]
    short.memory.take(1, 1)
    assert short.ran == ["forgets", "next"]


def test_those_that_neither_finish_nor_keep_their_sweep_hold_up_nobody(short: Short) -> None:
    ran: list[str] = []
    allocators = [short.quota.create_memory_allocator(name) for name in "abc"]
    for allocator in allocators:
        allocator.post_reclaimer(BENIGN, lambda sweep, name=allocator.name: ran.append(name))
    short.memory.take(65 * KIB, 65 * KIB)
    assert ran == ["a", "b", "c"]


def test_one_that_raises_is_logged_and_the_next_runs(short: Short, caplog: pytest.LogCaptureFixture) -> None:
    allocator = short.quota.create_memory_allocator("raises")

    def fail(sweep: ReclamationSweep | None) -> None:
        raise ArithmeticError("no way to give back")

    allocator.post_reclaimer(BENIGN, fail)
    short.post("next", IDLE)
    with caplog.at_level(logging.ERROR, "eventengine"):
        short.memory.take(65 * KIB, 65 * KIB)
    assert short.ran == ["next"]
    assert "no way to give back" in caplog.text


def test_one_that_posts_itself_again_runs_until_there_is_enough(short: Short) -> None:
    allocator = short.quota.create_memory_allocator("steps")
    held = [allocator.make_reservation(MemoryRequest(KIB)) for _ in range(20)]

    def reclaim(sweep: ReclamationSweep | None) -> None:
        if sweep is not None:
            held.pop().release()
            allocator.post_reclaimer(IDLE, reclaim)
            sweep.finish()

    allocator.post_reclaimer(IDLE, reclaim)
    short.memory.take(50 * KIB, 50 * KIB)
    assert len(held) == 14
    assert short.memory.used == 64 * KIB


def test_a_long_line_of_those_that_finish_at_once_runs_one_after_the_other(
    short: Short, caplog: pytest.LogCaptureFixture
) -> None:
    for n in range(2000):
        short.post(str(n), BENIGN)
    short.memory.take(65 * KIB, 65 * KIB)
    assert short.ran == [str(n) for n in range(2000)]
    assert caplog.records == []


def test_a_shortage_that_begins_just_when_there_was_enough_is_found() -> None:
    ran: list[str] = []
    looks = 0

    def shortage() -> ReclamationPass | None:
        nonlocal looks
        looks += 1
        if looks == 1:
            reclaimers.start()  # as another thread would, which runs short after this look
            return None
        return BENIGN

    reclaimers = Reclaimers(shortage)
    reclaimers.post("allocator", BENIGN, lambda sweep: ran.append("ran"))
    assert ran == ["ran"]


def test_another_of_the_same_pass_replaces_the_first_which_is_told(
    short: Short, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[tuple[str, bool]] = []
    allocator = short.quota.create_memory_allocator("twice")
    allocator.post_reclaimer(BENIGN, lambda sweep: told.append(("first", sweep is None)))
    allocator.post_reclaimer(IDLE, lambda sweep: told.append(("other pass", sweep is None)))
    allocator.post_reclaimer(BENIGN, lambda sweep: told.append(("second", sweep is None)))
    assert told == [("first", True)]
    allocator.close()
    assert sorted(told[1:]) == [("other pass", True), ("second", True)]
    short.memory.take(65 * KIB, 65 * KIB)
    assert len(told) == 3
    assert caplog.records == []


def test_the_reclaimers_of_an_allocator_that_is_collected_are_told(short: Short) -> None:
    told: list[object] = []
    allocator = short.quota.create_memory_allocator("collected")
    allocator.post_reclaimer(BENIGN, told.append)
    del allocator
    assert told == [None]
    short.memory.take(65 * KIB, 65 * KIB)
    assert told == [None]


def test_one_that_is_posted_as_another_thread_closes_the_allocator_is_told(
    short: Short, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []
    allocator = short.quota.create_memory_allocator("closed")
    post = Reclaimers.post

    def then_closed(*arguments: Any) -> None:
        elsewhere(allocator.close)
        post(*arguments)

    monkeypatch.setattr(Reclaimers, "post", then_closed)
    allocator.post_reclaimer(BENIGN, told.append)
    assert told == [None]


def test_what_is_no_reclaimer_is_refused(short: Short) -> None:
    allocator = short.quota.create_memory_allocator("wrong")
    wrong: Any = allocator.post_reclaimer
    with pytest.raises(TypeError, match="a ReclamationPass is needed, not int"):
        wrong(1, print)
    with pytest.raises(TypeError, match="called with a sweep; int cannot be called"):
        wrong(BENIGN, 1)
    allocator.close()
    with pytest.raises(ClosedResourceError):
        allocator.post_reclaimer(BENIGN, print)


def test_many_threads_that_run_short_have_one_reclaimer_run_at_a_time_and_none_is_lost() -> None:
    memory = ResourceQuota(memory=64 * KIB).memory
    running, most, ran = [0], [0], [0]
    lock = threading.Lock()

    def reclaim(sweep: ReclamationSweep | None) -> None:
        if sweep is None:
            return
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
            ran[0] += 1
        memory.give(KIB)  # one of those that the threads took
        with lock:
            running[0] -= 1
        sweep.finish()

    def run_short(number: int) -> None:
        for turn in range(300):
            memory.take(KIB, KIB)
            memory.reclaimers.post((number, turn), BENIGN, reclaim)

    memory.take(64 * KIB, 64 * KIB)
    run_together(*(lambda number=number: run_short(number) for number in range(4)))
    assert (most[0], ran[0]) == (1, 1200)
    assert memory.used == 64 * KIB


class Idle:
    """Connections on a loop that is turned by hand; `idle` of them may be closed, two at a time."""

    def __init__(self, idle: int) -> None:
        self.loop = Loop()
        self.quota = ResourceQuota(memory=64 * KIB)
        self.memory = self.quota.memory
        self.connections = Connections(self.quota, self.loop, self.close_some)
        self.idle = idle
        self.asked = 0

    def close_some(self) -> bool:
        self.asked += 1
        closing = min(2, self.idle)
        self.idle -= closing
        for _ in range(closing):
            self.connections.closed(4 * KIB)
        return closing > 0

    def turn(self) -> None:
        for _ in range(20):
            self.loop.turn()


def test_a_connection_is_charged_from_its_opening_to_its_closing() -> None:
    site = Idle(idle=0)
    for _ in range(15):
        site.connections.opened(4 * KIB)
    assert (site.memory.used, site.connections.may_open(4 * KIB)) == (60 * KIB, False)  # 0.99 of 64 KiB are 63.4
    assert site.quota.connections.used == 15
    for _ in range(2):
        site.connections.closed(4 * KIB)
    assert (site.memory.used, site.connections.may_open(4 * KIB)) == (52 * KIB, True)
    assert site.quota.connections.used == 13


def test_connections_themselves_leave_an_eighth_of_the_quota() -> None:
    site = Idle(idle=0)
    for _ in range(13):
        site.connections.opened(4 * KIB)
    assert site.connections.may_open(4 * KIB)
    site.connections.grew(1 * KIB)
    assert (site.memory.used, site.connections.may_open(4 * KIB)) == (53 * KIB, False)
    assert site.connections.may_open(3 * KIB)
    site.connections.closed(5 * KIB)
    assert site.connections.may_open(4 * KIB)


def test_whether_there_is_room_for_another_depends_on_what_it_costs() -> None:
    site = Idle(idle=0)
    held = site.memory.take(40 * KIB, 40 * KIB)
    assert site.connections.may_open(20 * KIB)
    assert not site.connections.may_open(24 * KIB)  # though no more than 0.8 is used
    site.memory.give(held)


def test_idle_ones_are_closed_as_many_as_the_shortage_asks_for() -> None:
    site = Idle(idle=10)
    for _ in range(10):
        site.connections.opened(4 * KIB)
    site.memory.take(30 * KIB, 30 * KIB)
    assert site.asked == 0  # the loop has not turned
    site.turn()
    assert (site.asked, site.idle, site.memory.used) == (1, 8, 62 * KIB)

    def wait_on() -> None:  # who waits wants more than there is
        site.memory.add_waiter(wait_on)

    wait_on()
    site.turn()
    assert site.idle == 0


def test_those_that_are_idle_later_are_found_and_no_timer_is_left() -> None:
    site = Idle(idle=0)
    for _ in range(10):
        site.connections.opened(4 * KIB)
    site.memory.take(30 * KIB, 30 * KIB)
    site.turn()
    assert (site.asked, len(site.loop.timers)) == (1, 1)
    site.idle = 4
    site.loop.go(AGAIN)
    site.turn()
    assert site.idle == 2
    site.idle = 0
    site.memory.take(8 * KIB, 8 * KIB)
    site.turn()
    assert len(site.loop.timers) == 1
    for _ in range(8):
        site.connections.closed(4 * KIB)
    assert site.loop.timers == []
    assert not site.memory.reclaimers


def test_a_loop_that_was_closed_holds_up_no_other_reclaimer() -> None:
    site = Idle(idle=1)
    site.connections.opened(4 * KIB)
    site.loop.is_closed = True
    ran: list[str] = []
    other: Reclaimer = lambda sweep: ran.append("other")  # noqa: E731
    site.memory.reclaimers.post("other", IDLE, other)
    site.memory.take(65 * KIB, 65 * KIB)
    assert ran == ["other"]


def test_a_sweep_on_its_way_to_a_loop_that_ended_is_finished_with_the_last_connection() -> None:
    site = Idle(idle=0)
    site.connections.opened(4 * KIB)
    site.memory.take(65 * KIB, 65 * KIB)
    assert len(site.loop.letters) == 1  # and the loop never turns again
    ran: list[str] = []
    other: Reclaimer = lambda sweep: ran.append("other")  # noqa: E731
    site.memory.reclaimers.post("other", IDLE, other)
    assert ran == []
    site.connections.closed(4 * KIB)
    assert ran == ["other"]


def test_an_interrupt_within_a_reclaimer_ends_no_others(short: Short) -> None:
    allocator = short.quota.create_memory_allocator("interrupted")

    def interrupt(sweep: ReclamationSweep | None) -> None:
        raise KeyboardInterrupt

    allocator.post_reclaimer(BENIGN, interrupt)
    short.post("next", BENIGN)
    with pytest.raises(KeyboardInterrupt):
        short.memory.take(65 * KIB, 65 * KIB)
    gc.collect()
    short.memory.take(1, 1)
    assert short.ran == ["next"]


def test_who_finds_none_idle_does_not_look_again_at_each_write(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Idle(idle=0)
    site.connections.opened(4 * KIB)
    clock = iter([10.0, 10.05, 10.2])
    monkeypatch.setattr(idle, "monotonic", lambda: next(clock))
    assert [site.connections.close_idle() for _ in range(3)] == [False, False, False]
    assert site.asked == 2


@pytest.mark.parametrize("gives", [0, 4 * KIB], ids=["no-room", "room"])
@pytest.mark.parametrize("when", ["an-event", "a-call", "a-wake-up"])
def test_a_read_that_begins_to_wait_may_have_its_connection_closed_by_a_reclaimer(when: str, gives: int) -> None:
    """It is told once, and the closed connection is nowhere any more."""
    quota = ResourceQuota("full", memory=4 * KIB)
    allocator = quota.create_memory_allocator("its own")
    told: list[Status] = []
    buffer = SliceBuffer()
    with hand_turned() as (engine, host), connected(engine, host, quota) as (endpoint, peer):
        loop = engine._loop

        def fill() -> None:
            held.append(allocator.make_reservation(MemoryRequest(4 * KIB)))

        def close(sweep: ReclamationSweep | None) -> None:
            if sweep is not None:
                endpoint.close()
                if gives:
                    held.pop().release()

        held: list[Any] = []
        peer.sendall(bytes(300))
        if when == "a-call":
            endpoint.read(told.append, buffer)  # fills its block, so that the next tries at once
            host.until(lambda: told)
            told.clear()
            buffer.clear()
        fill()
        if when == "a-wake-up":
            endpoint.read(told.append, buffer)
            host.until(lambda: quota.memory.waiters)
            held.pop().release()
            fill()
        allocator.post_reclaimer(IDLE, close)
        if when != "a-wake-up":
            engine.run(lambda: endpoint.read(told.append, buffer))
        host.until(lambda: told)
        host.settle()
        assert [status.code for status in told] == [StatusCode.CANCELLED]
        assert (list(quota.memory.waiters), loop.poller.busy, loop.callbacks.errors) == ([], {}, 0)
        assert quota.memory.used == (0 if gives else 4 * KIB)
