"""A quota against a plain count of what is held of it, in whatever order things are taken, given back and reclaimed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from eventengine.memory import MemoryAllocator, MemoryRequest, Reservation
from eventengine.quota import ResourceQuota
from eventengine.reclaim import ReclamationPass, ReclamationSweep
from eventengine.slices import Slice
from eventengine.status import ClosedResourceError
from shares import share_of

LEAST = 256
SIZES = st.sampled_from([1000, 20_000, 100_000])
SHARES = st.floats(0, 1)
BOUNDS = st.tuples(st.integers(0, 3000), st.integers(0, 3000))
DESTRUCTIVE = ReclamationPass.DESTRUCTIVE

QUICK = settings(
    max_examples=120,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


class Reader:
    """Waits for memory as an endpoint does: it enlists first and tries again after."""

    def __init__(self, model: MemoryModel) -> None:
        self.model = model
        self.is_woken = False

    def on_room(self) -> bool:
        if self not in self.model.readers:  # it was closed
            return True
        assert not self.is_woken, "woken twice"
        self.is_woken = True
        return False


class Poster:
    """An allocator, what was reserved of it, and what it has posted and not heard of yet."""

    def __init__(self, model: MemoryModel) -> None:
        self.model = model
        self.allocator: MemoryAllocator = model.quota.create_memory_allocator("model")
        self.reserved = 0
        self.posted: dict[ReclamationPass, Callable[[ReclamationSweep | None], None]] = {}

    def post(self, which: ReclamationPass, answer: str, gives: float) -> None:
        model = self.model
        place = (which, model.posts)
        model.posts += 1

        def reclaim(sweep: ReclamationSweep | None) -> None:
            if sweep is None:
                model.told += 1
                return
            shortage = model.shortage()
            assert shortage is not None
            assert which <= shortage
            assert model.sweep is None, "two sweeps at a time"
            assert place == min(model.line)[:2], "not the first of the mildest pass"
            model.line.remove((*place, self))
            assert not sweep.is_sufficient
            model.drop(model.slices, gives)
            if answer == "is in no hurry":
                model.sweep = sweep
            elif answer == "finishes":
                assert sweep.is_sufficient is (model.shortage() is None)
                sweep.finish()

        replaced = [each for each in model.line if (each[0], each[2]) == (which, self)]
        model.line = [each for each in model.line if each not in replaced]
        model.line.append((*place, self))
        told = model.told
        self.allocator.post_reclaimer(which, reclaim)
        assert model.told == told + len(replaced)


class MemoryModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.quota = ResourceQuota(memory=20_000)
        self.memory = self.quota.memory
        self.size = 20_000
        self.bound = 20_000  # of the peak
        self.slices: list[Slice] = []
        self.reservations: list[Reservation] = []
        self.posters: list[Poster] = []
        self.readers: list[Reader] = []
        self.line: list[tuple[ReclamationPass, int, Poster]] = []
        self.posts = self.told = 0
        self.sweep: ReclamationSweep | None = None
        self.was_forgotten = False
        self.bulk: list[int] = []

    def used(self) -> int:
        storages = {id(part.view.obj): part.storage_bytes for part in self.slices}
        reserved = sum(each.reserved for each in self.posters)
        return sum(storages.values()) + sum(each.size for each in self.reservations) + reserved

    def shortage(self) -> ReclamationPass | None:
        if self.memory.used > self.size:
            return DESTRUCTIVE
        return ReclamationPass.IDLE if self.memory.somebody_waits else None

    def drop(self, held: list[Any], share: float) -> None:
        del held[: round(share * len(held))]

    def granted(self, low: int, over: int) -> Any:
        return pytest.approx(share_of(low, low + over, self.used(), self.size), abs=1)

    @initialize()
    def begin(self) -> None:
        self.make_allocator()

    @rule()
    def make_allocator(self) -> None:
        self.posters.append(Poster(self))

    # What the application insists on.

    @rule(bounds=BOUNDS, which=st.integers(0))
    def reserve(self, bounds: tuple[int, int], which: int) -> None:
        poster = self.posters[which % len(self.posters)]
        low, over = bounds
        wanted = self.granted(low, over)
        before = self.used()
        n = poster.allocator.reserve(MemoryRequest(low, low + over))
        self.bound = max(self.bound, before + n)  # a reclaimer may have run since
        poster.reserved += n
        assert n == wanted
        assert low <= n <= low + over

    @rule(share=SHARES, which=st.integers(0))
    def release(self, share: float, which: int) -> None:
        poster = self.posters[which % len(self.posters)]
        n = round(share * poster.reserved)
        poster.reserved -= n
        poster.allocator.release(n)

    @rule(bounds=BOUNDS)
    def make_reservation(self, bounds: tuple[int, int]) -> None:
        low, over = bounds
        wanted, before = self.granted(low, over), self.used()
        made = self.posters[0].allocator.make_reservation(MemoryRequest(low, low + over))
        self.bound = max(self.bound, before + made.size)
        assert made.size == wanted
        self.reservations.append(made)

    @rule(bounds=BOUNDS, which=st.integers(0))
    def make_slice(self, bounds: tuple[int, int], which: int) -> None:
        low, over = bounds
        allocator = self.posters[which % len(self.posters)].allocator
        before = self.used()
        made = allocator.make_slice(MemoryRequest(low + 1, low + 1 + over))
        assert low < len(made) <= low + 1 + over
        self.bound = max(self.bound, before + made.storage_bytes)
        self.slices.append(made)

    @precondition(lambda self: self.slices)
    @rule(share=SHARES)
    def split(self, share: float) -> None:
        part = self.slices.pop()
        self.slices.extend(part.split(round(share * len(part))))

    # What reads.

    @rule(wanted=st.sampled_from([256, 1024, 4096]))
    def read(self, wanted: int) -> None:
        if not self.take_block(wanted):
            reader = Reader(self)
            self.readers.append(reader)
            self.memory.add_waiter(reader.on_room)
            if self.take_block(wanted):  # a reclaimer has given back something
                self.memory.remove_waiter(reader.on_room)
                self.readers.remove(reader)
                self.memory.wake_next_waiter()

    @precondition(lambda self: any(each.is_woken for each in self.readers))
    @rule(wanted=st.sampled_from([256, 1024, 4096]))
    def read_on(self, wanted: int) -> None:
        reader = next(each for each in self.readers if each.is_woken)
        reader.is_woken = False
        if self.take_block(wanted):
            self.readers.remove(reader)
            self.memory.wake_next_waiter()
        else:
            self.memory.add_waiter(reader.on_room)
            self.memory.keep_place(reader.on_room)

    @precondition(lambda self: self.readers)
    @rule(which=st.integers(0))
    def close_reader(self, which: int) -> None:
        reader = self.readers.pop(which % len(self.readers))
        self.memory.remove_waiter(reader.on_room)
        if reader.is_woken:
            self.memory.wake_next_waiter()

    def take_block(self, wanted: int) -> bool:
        room = self.size - self.used()
        block = self.memory.try_block(wanted)
        assert (block is None) == (room < LEAST)
        if block is None:
            return False
        assert LEAST <= len(block) <= max(LEAST, min(room, wanted, self.size // 16))
        self.slices.append(Slice.of(block))
        return True

    @rule(amount=st.integers(0, 3000), leave=st.integers(0, 300))
    def try_take(self, amount: int, leave: int) -> None:
        fits = self.used() + amount + leave <= self.size
        assert self.memory.try_take(amount, leave) is fits
        if fits:
            self.memory.give(amount)

    @rule()
    def wait_for_much(self) -> None:
        def on_room() -> None:
            self.bulk.append(self.used())

        self.memory.add_bulk_waiter(on_room)
        before, others = len(self.bulk), len(self.memory.waiters)
        self.bound = max(self.bound, self.used() + 1)
        self.memory.take(1, 1)
        self.memory.give(1)
        if self.memory.waiters:
            assert len(self.bulk) == before, "those who wait for little go first"
        elif not others:
            assert len(self.bulk) > before
        self.memory.remove_bulk_waiter(on_room)

    # What gives back.

    @rule(share=SHARES)
    def drop_slices(self, share: float) -> None:
        self.drop(self.slices, share)

    @rule(share=SHARES, by_release=st.booleans())
    def drop_reservations(self, share: float, by_release: bool) -> None:
        if by_release:
            for each in self.reservations[: round(share * len(self.reservations))]:
                each.release()
                assert each.size == 0
        self.drop(self.reservations, share)

    @precondition(lambda self: len(self.posters) > 1)
    @rule(which=st.integers(0), by_close=st.booleans())
    def close_allocator(self, which: int, by_close: bool) -> None:
        poster = self.posters.pop(which % len(self.posters))
        theirs = [each for each in self.line if each[2] is poster]
        self.line = [each for each in self.line if each[2] is not poster]
        told = self.told
        allocator = poster.allocator
        del poster.allocator
        if by_close:
            allocator.close()
            with pytest.raises(ClosedResourceError):
                allocator.reserve(MemoryRequest(1))
        del allocator
        assert self.told == told + len(theirs), "who is in line no longer was not told"

    @rule(size=SIZES)
    def resize(self, size: int) -> None:
        self.size = size
        self.memory.resize(size)

    # Reclaimers.

    @rule(
        which=st.integers(0),
        level=st.sampled_from(ReclamationPass),
        answer=st.sampled_from(["finishes", "is in no hurry", "forgets"]),
        gives=st.sampled_from([0.0, 0.3, 1.0]),
    )
    def post(self, which: int, level: ReclamationPass, answer: str, gives: float) -> None:
        self.was_forgotten = False
        self.posters[which % len(self.posters)].post(level, answer, gives)

    @precondition(lambda self: self.sweep is not None)
    @rule(is_forgotten=st.booleans())
    def finish(self, is_forgotten: bool) -> None:
        sweep, self.sweep = self.sweep, None
        assert sweep is not None
        self.was_forgotten = is_forgotten
        if not is_forgotten:
            sweep.finish()
            sweep.finish()

    # What must hold after each of these.

    @invariant()
    def figures_are_exact(self) -> None:
        used = self.used()
        self.bound = max(self.bound, self.size)
        assert self.memory.used == used >= 0
        assert self.memory.size == self.size
        assert self.memory.pressure == used / self.size
        assert used <= self.memory.peak <= self.bound  # free blocks, too, never go beyond the size
        assert self.memory.is_over is (used > self.size)

    @invariant()
    def no_wake_up_is_lost(self) -> None:
        if self.size - self.used() >= LEAST and self.readers:
            assert any(each.is_woken for each in self.readers)

    @invariant()
    def no_reclaimer_is_left_while_there_is_a_shortage(self) -> None:
        shortage = self.shortage()
        if shortage is not None and self.sweep is None and not self.was_forgotten:
            assert [each for each in self.line if each[0] <= shortage] == []

    def teardown(self) -> None:
        self.sweep = None
        self.line.clear()
        self.slices.clear()
        self.reservations.clear()
        for each in self.posters:
            each.allocator.close()
        assert self.memory.used == 0
        assert self.memory.try_block(LEAST) is not None


class Listener:
    def __init__(self, model: ConnectionModel) -> None:
        self.model = model
        self.is_woken = False

    def on_free(self) -> None:
        assert not self.is_woken, "woken twice"
        self.is_woken = True


class ConnectionModel(RuleBasedStateMachine):
    """Listeners that share the connections of a quota."""

    def __init__(self) -> None:
        super().__init__()
        self.places = ResourceQuota(connections=3).connections
        self.open = 0
        self.waiting: list[Listener] = []

    def accept(self, listener: Listener) -> bool:
        is_taken = self.places.try_take(listener.on_free)
        assert is_taken is (self.open < 3)
        self.open += is_taken
        return is_taken

    @rule()
    def listen(self) -> None:
        listener = Listener(self)
        if not self.accept(listener):
            self.waiting.append(listener)

    @precondition(lambda self: any(each.is_woken for each in self.waiting))
    @rule()
    def accept_on(self) -> None:
        listener = next(each for each in self.waiting if each.is_woken)
        listener.is_woken = False
        if self.accept(listener):
            self.waiting.remove(listener)

    @precondition(lambda self: self.open)
    @rule()
    def close_connection(self) -> None:
        self.open -= 1
        self.places.give()

    @precondition(lambda self: self.waiting)
    @rule(which=st.integers(0))
    def close_listener(self, which: int) -> None:
        listener = self.waiting.pop(which % len(self.waiting))
        self.places.cancel_wait(listener.on_free)
        if listener.is_woken:
            self.places.wake_one()

    @invariant()
    def all_are_counted_and_no_wake_up_is_lost(self) -> None:
        assert self.places.used == self.open <= 3
        if self.open < 3 and self.waiting:
            assert any(each.is_woken for each in self.waiting)

    def teardown(self) -> None:
        for _ in range(self.open):
            self.places.give()
        assert self.places.used == 0


TestMemoryModel = MemoryModel.TestCase
TestMemoryModel.settings = QUICK
TestConnectionModel = ConnectionModel.TestCase
TestConnectionModel.settings = QUICK
