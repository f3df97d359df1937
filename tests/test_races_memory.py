"""What the memory and the counters of a quota do when a collection, a refusal or another thread comes in between."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator

import pytest

import hand_turned
from eventengine import Endpoint, Status
from eventengine.memory import MemoryAllocator, MemoryRequest
from eventengine.memory_quota import MemoryQuota
from eventengine.quota import ConnectionQuota, ResourceQuota, ThreadQuota
from eventengine.slices import Block, Pool, SliceBuffer
from eventengine.status import BusyResourceError
from hand_turned import connected, elsewhere

KIB = 1 << 10


@pytest.fixture(autouse=True)
def _no_collections() -> Iterator[None]:
    with hand_turned.no_collections():
        yield


def leave_in_a_cycle(*things: object) -> None:
    """Leaves them to the next collection."""
    cycle: list[object] = [*things]
    cycle.append(cycle)


def a_slice(allocator: MemoryAllocator) -> object:
    """The collector goes by age: it comes to the block first."""
    return allocator.make_slice(MemoryRequest(3 * KIB))


def a_slice_younger_than_its_block(allocator: MemoryAllocator) -> object:
    """A full collection comes to the youngest generation before the next one, and so to the slice first."""
    whole = allocator.make_slice(MemoryRequest(3 * KIB))
    gc.collect(0)
    return whole[5:10]


def two_slices(allocator: MemoryAllocator) -> object:
    return allocator.make_slice(MemoryRequest(3 * KIB)).split(KIB)


def a_buffer(allocator: MemoryAllocator) -> object:
    return SliceBuffer([allocator.copy(bytes(3 * KIB)), allocator.copy(bytes(3 * KIB))[10:20]])


@pytest.mark.parametrize("make", [a_slice, a_slice_younger_than_its_block, two_slices, a_buffer])
def test_what_is_collected_in_a_cycle_gives_its_charge_back_once_and_the_quota_keeps_its_bound(
    make: Callable[[MemoryAllocator], object],
) -> None:
    quota = ResourceQuota(memory=64 * KIB)
    memory, allocator = quota.memory, quota.create_memory_allocator("test")
    for _ in range(5):
        leave_in_a_cycle(make(allocator), make(allocator))
        assert memory.used > 0
        gc.collect()
        assert memory.used == 0
    held: list[Block] = []
    while len(held) < 100 and (block := memory.try_block(4 * KIB)) is not None:
        held.append(block)
    assert sum(map(len, held)) == memory.used == 64 * KIB


def test_a_block_that_is_found_again_after_its_end_is_not_pooled() -> None:
    memory = ResourceQuota(memory=64 * KIB).memory
    found: list[Block] = []

    class Finder:
        def __init__(self, block: Block) -> None:
            self.block = block

        def __del__(self) -> None:
            found.append(self.block)

    block = memory.try_block(4 * KIB)
    assert block is not None
    leave_in_a_cycle(Finder(block))
    del block
    gc.collect()
    assert memory.used == 0
    memory.put_back(found.pop())
    assert memory.used == 0


@pytest.mark.parametrize("size", [1 << 50, 1 << 70], ids=["a pebibyte", "more than a size can say"])
def test_memory_that_the_system_does_not_have_is_not_counted(size: int) -> None:
    quota = ResourceQuota(memory="16MiB")
    allocator = quota.create_memory_allocator("test")
    with pytest.raises((MemoryError, OverflowError)):
        allocator.make_slice(MemoryRequest(size))
    assert (quota.memory.used, quota.memory.peak) == (0, 0)
    assert quota.memory.try_block(8 * KIB) is not None


def test_reserving_does_not_fail_when_another_thread_takes_the_last_free_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quota = ResourceQuota(memory="1MiB")
    memory, allocator = quota.memory, quota.create_memory_allocator("test")
    two = [allocator.copy(b"x" * 300) for _ in range(2)]
    two.clear()
    main = threading.current_thread()
    taken: list[Block | None] = []
    pop = Pool.pop

    def contested(self: Pool) -> Block:
        """Another thread takes a block between the look at the pool and the pop."""
        if threading.current_thread() is main and len(self) == 1:
            elsewhere(lambda: taken.append(memory.try_block(512)))
        return pop(self)

    monkeypatch.setattr(Pool, "pop", contested)
    assert allocator.reserve(MemoryRequest(1 << 20)) == 1 << 20
    assert [type(block) for block in taken] == [Block]
    assert memory.used == (1 << 20) + 512


@pytest.mark.parametrize("size", [1, 255, "255B", "0.2KiB"])
def test_a_quota_without_room_for_a_single_read_is_refused(size: int | str) -> None:
    with pytest.raises(ValueError, match="no room for a single read; give 256 or more"):
        ResourceQuota(memory=size)
    quota = ResourceQuota(memory=256)
    assert quota.memory.try_block(8 * KIB) is not None
    with pytest.raises(ValueError, match="no room for a single read"):
        quota.memory.resize(size)
    assert quota.memory.size == 256


def test_an_endpoint_that_is_closed_just_as_it_is_woken_passes_the_room_on() -> None:
    quota = ResourceQuota(memory=64 * KIB)
    with (
        hand_turned.hand_turned() as (engine, host),
        connected(engine, host, quota) as (first, first_peer),
        connected(engine, host, quota) as (second, second_peer),
    ):
        held = quota.create_memory_allocator("test").make_reservation(MemoryRequest(64 * KIB))
        got: list[str] = []
        for name, endpoint, peer in (("first", first, first_peer), ("second", second, second_peer)):
            waiting = len(quota.memory.waiters) + 1
            endpoint.read(lambda status, name=name: got.append(f"{name} {status.ok}"), SliceBuffer())
            peer.sendall(b"x")
            host.until(lambda waiting=waiting: len(quota.memory.waiters) == waiting)
        held.release()  # the first is woken, by a letter
        elsewhere(first.close)  # whose letter comes after it
        host.settle()
        assert sorted(got) == ["first False", "second True"]
        assert (len(quota.memory.waiters), quota.memory.used) == (0, 0)


# The counters


class CollectingLock:
    """A lock within which a collection comes, in the thread that holds it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.collected = 0

    def __enter__(self) -> None:
        assert self._lock.acquire(blocking=False), "whoever holds the lock asks for it again, and so for ever"
        gc.collect(0)
        self.collected += 1

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def reserve(counter: ConnectionQuota | ThreadQuota) -> None:
    assert isinstance(counter, ThreadQuota)
    counter.reserve(4)


def look(counter: ConnectionQuota | ThreadQuota) -> None:
    assert counter.used == 0


@pytest.mark.parametrize(("use", "used"), [(reserve, 4), (look, 0)])
def test_a_pool_that_is_collected_within_the_code_of_the_counter_gives_its_threads_back(
    use: Callable[[ThreadQuota], None], used: int
) -> None:
    quota = ResourceQuota(threads=4)
    threads = quota.threads
    leave_in_a_cycle(quota.create_executor(3))
    assert threads.used == 3
    lock = CollectingLock()
    threads._lock = lock  # type: ignore[assignment]
    use(threads)
    assert lock.collected == 1
    assert threads.used == used


def test_a_connection_that_is_collected_within_the_code_of_the_counter_gives_its_place_back() -> None:
    places = ResourceQuota(connections=1).connections
    woken: list[str] = []

    class Connection:
        def __del__(self) -> None:
            places.give()

    assert places.try_take(lambda: woken.append("never"))
    leave_in_a_cycle(Connection())
    lock = CollectingLock()
    places._lock = lock  # type: ignore[assignment]
    assert places.try_take(lambda: woken.append("first"))
    assert lock.collected == 1
    assert not places.try_take(lambda: woken.append("second"))
    assert places.used == 1
    places.give()
    assert woken == ["second"]
    assert places.used == 0


def test_a_place_that_comes_back_between_the_two_looks_is_taken_at_once() -> None:
    places = ResourceQuota(connections=1).connections
    assert places.try_take(lambda: None)
    places.give()
    assert places.try_take(lambda: None)

    class GivenBack(CollectingLock):
        def __exit__(self, *_: object) -> None:
            super().__exit__()
            if self.collected == 1:
                places.give()

    places._lock = GivenBack()  # type: ignore[assignment]
    assert places.try_take(lambda: pytest.fail("woken, though the place was there at once"))
    assert places.used == 1
    places.give()


def start_read(endpoint: Endpoint, buffer: SliceBuffer, hint: int = 1) -> list[Status]:
    """What becomes of the read, when it does."""
    outcome: list[Status] = []
    if endpoint.read(outcome.append, buffer, read_hint_bytes=hint):
        outcome.append(Status.OK)
    return outcome


def test_a_read_that_was_woken_in_vain_keeps_its_place_in_the_line() -> None:
    quota = ResourceQuota(memory=64 * KIB)
    filler = quota.create_memory_allocator("whatever else there is")
    with (
        hand_turned.hand_turned() as (engine, host),
        connected(engine, host, quota) as (first, first_peer),
        connected(engine, host, quota) as (second, second_peer),
    ):
        filler.reserve(MemoryRequest(64 * KIB))
        buffers = [SliceBuffer(), SliceBuffer()]
        outcomes = [start_read(first, buffers[0]), start_read(second, buffers[1])]
        first_peer.sendall(b"a")
        second_peer.sendall(b"b")
        host.settle()
        filler.release(64 * KIB)
        filler.reserve(MemoryRequest(64 * KIB))  # who was faster
        host.settle()
        assert outcomes == [[], []]
        filler.release(64 * KIB)
        host.until(lambda: outcomes[0] or outcomes[1])
        assert outcomes[0] == [Status.OK]
        host.until(lambda: outcomes[1])
        assert [bytes(buffer) for buffer in buffers] == [b"a", b"b"]
        for buffer in buffers:
            buffer.clear()


def test_room_that_comes_just_as_a_read_enlists_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    quota = ResourceQuota(memory=64 * KIB)
    filler = quota.create_memory_allocator("whatever else there is")
    enlist = MemoryQuota.add_waiter

    def find_room_just_now(memory: MemoryQuota, waiter: Callable[[], bool]) -> None:
        filler.release(64 * KIB)  # nobody is in the line yet that could be told
        enlist(memory, waiter)

    with hand_turned.hand_turned() as (engine, host), connected(engine, host, quota) as (endpoint, peer):
        filler.reserve(MemoryRequest(64 * KIB))
        monkeypatch.setattr(MemoryQuota, "add_waiter", find_room_just_now)
        peer.sendall(b"data")
        outcome = start_read(endpoint, buffer := SliceBuffer())
        host.until(lambda: outcome)
        assert (bytes(buffer), quota.memory.somebody_waits) == (b"data", False)
        buffer.clear()


def test_room_that_was_for_an_endpoint_whose_loop_has_ended_goes_to_the_next() -> None:
    quota = ResourceQuota(memory=64 * KIB)
    filler = quota.create_memory_allocator("whatever else there is")
    with (
        hand_turned.hand_turned() as (engine, host),
        connected(engine, host, quota) as (endpoint, peer),
        hand_turned.hand_turned() as (ended, ended_host),
        connected(ended, ended_host, quota) as (orphan, orphans_peer),
    ):
        filler.reserve(MemoryRequest(64 * KIB))
        assert start_read(orphan, SliceBuffer()) == []
        orphans_peer.sendall(b"to nobody")
        ended_host.settle()
        outcome = start_read(endpoint, buffer := SliceBuffer())
        peer.sendall(b"data")
        host.settle()
        ended_host.close()
        filler.release(64 * KIB)
        host.until(lambda: outcome)
        assert bytes(buffer) == b"data"
        buffer.clear()


def test_a_read_that_wants_more_than_there_is_room_for_is_given_what_there_was() -> None:
    quota = ResourceQuota(memory=64 * KIB)
    filler = quota.create_memory_allocator("whatever else there is")
    with hand_turned.hand_turned() as (engine, host), connected(engine, host, quota) as (endpoint, peer):
        filler.reserve(MemoryRequest(60 * KIB))
        peer.sendall(bytes(20_000))
        outcome = start_read(endpoint, buffer := SliceBuffer(), 20_000)
        host.until(lambda: outcome)
        assert outcome == [Status.OK]
        assert 0 < len(buffer) <= 4 * KIB
        buffer.clear()
        filler.release(60 * KIB)


def test_a_buffer_that_is_lent_is_refused_and_the_endpoint_goes_on() -> None:
    with (
        hand_turned.hand_turned() as (engine, host),
        connected(engine, host) as (endpoint, peer),
        connected(engine, host) as (other, other_peer),
    ):
        lent = SliceBuffer()
        outcome = start_read(endpoint, lent)
        assert outcome == []
        with pytest.raises(BusyResourceError, match="lent"):
            other.read(pytest.fail, lent)
        with pytest.raises(BusyResourceError, match="lent"):
            other.write(pytest.fail, lent)
        assert other.write(pytest.fail, SliceBuffer([b"written"]))
        assert other_peer.recv(7) == b"written"
        other_peer.sendall(b"read")
        assert start_read(other, SliceBuffer()) is not None
        peer.sendall(b"data")
        host.until(lambda: outcome)
        assert bytes(lent) == b"data"
