"""The memory of a quota: what is charged, how requests are sized, and who waits."""

from __future__ import annotations

import array
import gc
import math
import random
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventengine.memory import MemoryAllocator, MemoryRequest, Reservation
from eventengine.memory_quota import MemoryQuota, format_size, parse_size
from eventengine.slices import Block, Pool, Slice, SliceBuffer
from eventengine.status import ClosedResourceError
from shares import share_of
from together import run_script, run_together

KIB = 1 << 10
MIB = 1 << 20


def kind(value: object) -> str:
    return type(value).__name__


def limited(size: int) -> tuple[MemoryQuota, MemoryAllocator]:
    memory = MemoryQuota(size)
    return memory, MemoryAllocator(memory, "test")


@pytest.fixture
def memory() -> MemoryQuota:
    return MemoryQuota()


@pytest.fixture
def allocator(memory: MemoryQuota) -> MemoryAllocator:
    return MemoryAllocator(memory, "test")


@pytest.fixture
def no_collections() -> Iterator[None]:
    """Garbage is collected when the test says so."""
    gc.disable()
    yield
    gc.enable()


def exactly(n: int) -> MemoryRequest:
    return MemoryRequest(n)


def slice_of(block: bytearray, n: int) -> Slice:
    """The first bytes of a block, as an endpoint hands them over."""
    return Slice.of(memoryview(block)[:n])


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (1, 1),
        (1 << 40, 1 << 40),
        ("1", 1),
        ("100B", 100),
        ("64KiB", 64 * KIB),
        ("64MiB", 64 * MIB),
        ("3GiB", 3 << 30),
        ("2TiB", 2 << 40),
        ("64mib", 64 * MIB),
        ("64MIB", 64 * MIB),
        (" 64 MiB ", 64 * MIB),
        ("1.5KiB", 1536),
        ("0.5MiB", 512 * KIB),
        ("007", 7),
        ("7".rjust(40, "0"), 7),
        ("9007199254740993", 9007199254740993),  # which no float is
        (1 << 62, 1 << 62),
        ("4194304TiB", 1 << 62),
    ],
)
def test_a_size_is_a_number_of_bytes_or_a_text_with_a_unit(text: int | str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", " ", "MiB", "64 Mi B", "64MB", "64K", "64XiB", "-1", "-64MiB", "+1", "1e6", "1_000", "0x10", ".5MiB"],
)
def test_what_is_no_size_is_refused_with_the_text_and_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match="not a size") as caught:
        parse_size(text)
    assert str(caught.value) == f"{text!r} is not a size; write a number of bytes or one with KiB, MiB, GiB or TiB"


@pytest.mark.parametrize("size", [0, -1, "0", "0KiB", "0.1B"])
def test_a_size_is_at_least_1_and_the_message_has_what_was_given(size: int | str) -> None:
    with pytest.raises(ValueError, match="at least 1") as caught:
        parse_size(size)
    assert str(size) in str(caught.value)


@pytest.mark.parametrize(
    "size",
    [1 << 63, "9999999TiB", "9" * 400 + ".0", "9" * 5000, "1".rjust(41, "0")],
    ids=["int", "TiB", ".0", "9s", "41 digits"],
)
def test_a_size_that_is_too_large_is_refused_with_the_largest(size: int | str) -> None:
    with pytest.raises(ValueError, match="at most"):
        parse_size(size)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(st.sampled_from(" 019.KMiB²٣-\0\ud800") | st.characters(), max_size=45))
def test_any_text_is_a_size_or_refused_with_its_text(text: str) -> None:
    try:
        size = parse_size(text)
    except ValueError as error:
        refusal = error
    else:
        assert parse_size(format_size(size)) == size
        return
    assert type(refusal) is ValueError
    assert repr(text[:40]) in str(refusal)


@pytest.mark.parametrize("bad", [None, 1.5, b"1MiB", True, [1]], ids=kind)
def test_what_is_neither_int_nor_text_is_refused_by_its_type(bad: Any) -> None:
    with pytest.raises(TypeError, match=f'a size is an int of bytes or a text such as "64MiB", not {kind(bad)}'):
        parse_size(bad)


@pytest.mark.parametrize(("low", "high"), [(-1, None), (-1, 5), (5, 4), (0, -1)])
def test_a_request_has_a_minimum_of_0_or_more_and_a_maximum_no_less(low: int, high: int | None) -> None:
    with pytest.raises(ValueError, match="must hold") as caught:
        MemoryRequest(low, high)
    assert str(caught.value) == f"MemoryRequest({low}, {high}): 0 <= min <= max must hold"


@pytest.mark.parametrize("bad", [1.5, "1", None, b"1"], ids=kind)
def test_a_request_is_made_of_whole_numbers(bad: Any) -> None:
    with pytest.raises(TypeError, match=kind(bad)):
        MemoryRequest(bad)
    if bad is not None:
        with pytest.raises(TypeError, match=kind(bad)):
            MemoryRequest(1, bad)


def test_a_request_without_a_maximum_is_for_exactly_its_minimum() -> None:
    assert (MemoryRequest(5).most, MemoryRequest(5, 5).most, MemoryRequest(0, 7).most) == (5, 5, 7)
    assert MemoryRequest(5, 7) == MemoryRequest(5, 7) != MemoryRequest(5, 8)


def test_a_request_does_not_change() -> None:
    request = MemoryRequest(5)
    with pytest.raises(AttributeError):
        request.min = 6  # type: ignore[misc]
    assert request.min == 5


def block_for(n: int) -> int:
    """The bytes of the smallest block that holds `n`."""
    return n if n > 256 * KIB else max(256, 1 << math.ceil(math.log2(max(n, 1))))


@pytest.mark.parametrize(
    ("n", "charged"),
    [
        (1, 256),
        (255, 256),
        (256, 256),
        (257, 512),
        (1000, 1024),
        (1025, 2048),
        (128 * KIB + 1, 256 * KIB),
        (256 * KIB, 256 * KIB),
        (256 * KIB + 1, 256 * KIB + 1),
        (1_000_000, 1_000_000),
    ],
)
@pytest.mark.parametrize("make", ["make_slice", "copy"])
def test_a_slice_is_charged_by_its_block_a_power_of_two_from_256_bytes_to_256_kib(
    memory: MemoryQuota, allocator: MemoryAllocator, n: int, charged: int, make: str
) -> None:
    part = allocator.copy(bytes(n)) if make == "copy" else allocator.make_slice(exactly(n))
    assert (len(part), part.view.nbytes) == (n, n)
    assert part.storage_bytes == memory.used == memory.peak == charged == block_for(n)
    del part
    assert memory.used == 0


@pytest.mark.parametrize("high", [300, 512, 600])
def test_a_slice_has_what_its_block_has_up_to_the_maximum(allocator: MemoryAllocator, high: int) -> None:
    part = allocator.make_slice(MemoryRequest(1, high))
    assert len(part) == high


def test_a_slice_of_no_bytes_costs_nothing(memory: MemoryQuota, allocator: MemoryAllocator) -> None:
    parts = [allocator.make_slice(MemoryRequest(0)), allocator.copy(b"")]
    assert [bytes(part) for part in parts] == [b"", b""]
    assert memory.used == memory.peak == 0


def test_a_few_bytes_keep_their_whole_block_and_a_copy_of_them_does_not(
    memory: MemoryQuota, allocator: MemoryAllocator
) -> None:
    few = allocator.make_slice(exactly(8000))[:10]
    assert (few.storage_bytes, memory.used) == (8192, 8192)
    few = allocator.copy(few.view)
    assert (few.storage_bytes, memory.used) == (256, 256)


def test_a_slice_is_there_to_be_written(allocator: MemoryAllocator) -> None:
    part = allocator.make_slice(exactly(5))
    part.view[:] = b"hello"
    assert bytes(part) == b"hello"


@pytest.mark.parametrize(
    "data",
    [b"abcdef", bytearray(b"abcdef"), memoryview(b"_abcdef_")[1:7], array.array("H", b"abcdef")],
    ids=kind,
)
def test_a_copy_is_on_its_own(allocator: MemoryAllocator, data: Any) -> None:
    part = allocator.copy(data)
    part.view[0] = ord("X")
    assert bytes(part) == b"Xbcdef"
    assert bytes(data) == b"abcdef"


@pytest.mark.parametrize("bad", ["text", 5, None], ids=kind)
def test_what_is_not_bytes_like_cannot_be_copied(
    memory: MemoryQuota, allocator: MemoryAllocator, bad: Any
) -> None:
    with pytest.raises(TypeError, match=f"a bytes-like object is required, not '{kind(bad)}'"):
        allocator.copy(bad)
    assert memory.used == 0


def test_used_is_blocks_that_are_held_and_reservations() -> None:
    memory, allocator = limited(MIB)
    part = allocator.copy(bytes(1000))
    allocator.reserve(exactly(77))
    reservation = allocator.make_reservation(exactly(3))
    assert memory.used == 1024 + 77 + 3
    assert memory.pressure == (1024 + 77 + 3) / MIB
    reservation.release()
    assert memory.used == 1024 + 77
    del part
    assert memory.used == 77
    allocator.release(70)
    assert memory.used == 7
    allocator.close()
    assert memory.used == 0


def test_peak_is_the_most_there_was_with_the_free_blocks() -> None:
    memory, allocator = limited(MIB)
    parts = [allocator.make_slice(exactly(1024)) for _ in range(3)]
    assert memory.peak == 3 * KIB
    del parts
    assert (memory.used, memory.peak) == (0, 3 * KIB)
    part = allocator.make_slice(exactly(1024))
    assert (memory.used, memory.peak) == (KIB, 3 * KIB)
    reserved = allocator.make_reservation(exactly(100))
    assert (memory.used, memory.peak) == (KIB + 100, 3 * KIB + 100)
    del part, reserved
    assert (memory.used, memory.peak) == (0, 3 * KIB + 100)


def test_without_a_limit_memory_is_counted_and_there_is_no_pressure(
    memory: MemoryQuota, allocator: MemoryAllocator
) -> None:
    assert memory.size is None
    assert allocator.reserve(MemoryRequest(1, 1 << 60)) == 1 << 60
    assert (memory.used, memory.peak, memory.pressure) == (1 << 60, 1 << 60, 0.0)


def test_pressure_is_above_1_while_more_is_lent_than_allowed() -> None:
    memory, allocator = limited(1000)
    allocator.reserve(exactly(1500))
    assert memory.pressure == 1.5
    allocator.release(500)
    assert memory.pressure == 1.0


@pytest.mark.parametrize("n", [1, 2000, 10**6])
def test_what_the_application_insists_on_is_granted_beyond_the_size(n: int) -> None:
    memory, allocator = limited(1000)
    held = [
        allocator.reserve(exactly(n)),
        allocator.make_reservation(exactly(n)),
        allocator.make_slice(exactly(n)),
    ]
    assert held[0] == n
    assert memory.used == 2 * n + block_for(n)


def test_free_blocks_are_given_up_before_the_quota_is_exceeded() -> None:
    memory, allocator = limited(64 * KIB)
    parts = [allocator.make_slice(exactly(4 * KIB)) for _ in range(8)]
    del parts
    reserved = allocator.make_reservation(exactly(48 * KIB))
    assert (memory.used, memory.peak) == (48 * KIB, 64 * KIB)
    more = allocator.make_slice(exactly(16 * KIB))
    assert (memory.used, memory.peak) == (64 * KIB, 64 * KIB)
    del reserved, more
    assert memory.used == 0


@pytest.mark.parametrize("over", [1, 2, 255])
def test_a_free_block_is_given_up_for_a_single_byte_too(over: int) -> None:
    memory, allocator = limited(64 * KIB)
    allocator.make_slice(exactly(256))
    allocator.reserve(exactly(64 * KIB - 256 + over))
    assert memory.peak <= 64 * KIB
    assert memory.used == 64 * KIB - 256 + over


@pytest.mark.parametrize(("over", "kept"), [(0, 3), (1, 2), (256, 2), (257, 1), (768, 0)])
def test_no_more_free_blocks_are_given_up_than_it_takes(over: int, kept: int) -> None:
    memory, allocator = limited(64 * KIB)
    parts = [allocator.make_slice(exactly(256)) for _ in range(3)]
    parts.clear()
    allocator.reserve(exactly(64 * KIB - 768 + over))
    assert len(memory.pools[256]) == kept


@pytest.mark.parametrize(
    "take",
    [
        lambda memory: memory.take(2048, 2048),
        lambda memory: memory.try_take(1024, leave=1024),
        lambda memory: memory.make_block(2048, 2048),
        lambda memory: memory.try_block(2048),
        lambda memory: memory.resize(62 * KIB),
    ],
    ids=["take", "try_take", "make_block", "try_block", "resize"],
)
def test_nothing_that_needs_room_takes_more_free_blocks_than_it_needs(
    take: Callable[[MemoryQuota], object],
) -> None:
    memory, allocator = limited(64 * KIB)
    parts = [allocator.make_slice(exactly(256)) for _ in range(64)]
    parts.clear()
    allocator.reserve(exactly(48 * KIB))
    taken = take(memory)  # 2 KiB, where 16 KiB are free blocks
    assert taken is not False
    assert len(memory.pools[256]) == 56


@pytest.mark.parametrize(("size", "kept"), [(256 * KIB, 8), (64 * KIB, 32), (1000 * KIB, 0)])
def test_so_many_free_blocks_of_a_size_are_kept_and_no_more(
    memory: MemoryQuota, allocator: MemoryAllocator, size: int, kept: int
) -> None:
    parts = [allocator.make_slice(exactly(size)) for _ in range(40)]
    parts.clear()
    allocator.reserve(exactly(40 * size))
    assert memory.peak == (40 + kept) * size


def test_free_blocks_of_any_size_are_given_up_for_a_read() -> None:
    memory, allocator = limited(64 * KIB)
    parts = [allocator.make_slice(exactly(256)) for _ in range(256)]
    del parts
    block = memory.try_block(4 * KIB)
    assert block is not None
    assert len(block) == 4 * KIB
    assert memory.peak == 64 * KIB


PRESSURES = [0.0, 0.5, 0.79, 0.81, 0.85, 0.9, 0.95, 0.99, 1.0, 1.5]
RANGES = [
    (0, 1),
    (0, 1000),
    (100, 1000),
    (1000, 1000),
    (256, 8192),
    (256, 65536),
    (1, 65537),
    (0, MIB),
    (70_000, MIB),
]
pressures = pytest.mark.parametrize("pressure", PRESSURES)
ranges = pytest.mark.parametrize(("low", "high"), RANGES)
sizes = pytest.mark.parametrize("size", [MIB, 1_000_000])


@pressures
@ranges
@sizes
def test_what_is_reserved_is_what_grpc_grants(pressure: float, low: int, high: int, size: int) -> None:
    _, allocator = limited(size)
    used = allocator.reserve(exactly(round(pressure * size)))
    granted = allocator.reserve(MemoryRequest(low, high))
    assert low <= granted <= high
    assert granted == pytest.approx(share_of(low, high, used, size), abs=1)
    allocator.release(granted)
    assert allocator.make_reservation(MemoryRequest(low, high)).size == granted


@pressures
@ranges
@sizes
def test_a_slice_takes_the_block_of_what_grpc_grants_at_most(
    pressure: float, low: int, high: int, size: int
) -> None:
    memory, allocator = limited(size)
    used = allocator.reserve(exactly(round(pressure * size)))
    part = allocator.make_slice(MemoryRequest(low, high))
    assert low <= len(part) <= min(high, part.storage_bytes)
    assert memory.used == used + part.storage_bytes
    assert part.storage_bytes <= block_for(share_of(low, high, used, size) + 1)


@pressures
@pytest.mark.parametrize("target", [256, 1024, 8192, 65536, 256 * KIB])
@sizes
def test_a_block_for_reading_is_the_power_of_two_within_what_grpc_grants_and_what_is_left(
    pressure: float, target: int, size: int
) -> None:
    memory, allocator = limited(size)
    used = allocator.reserve(exactly(round(pressure * size)))
    block = memory.try_block(target)
    if pressure >= 1:
        assert block is None
    else:
        assert block is not None
        granted = min(share_of(256, target, used, size), size - used)
        assert len(block) == 1 << (granted.bit_length() - 1)
        assert memory.used == used + len(block)


def test_a_slice_shrinks_to_a_half_at_a_pressure_of_nine_tenths() -> None:
    _, allocator = limited(MIB)
    allocator.reserve(exactly(MIB * 9 // 10))
    part = allocator.make_slice(MemoryRequest(256, 64 * KIB))
    assert len(part) <= 33 * KIB


def test_no_less_than_the_minimum_is_granted_whatever_the_pressure() -> None:
    _, allocator = limited(1000)
    allocator.reserve(exactly(100_000))
    assert allocator.reserve(MemoryRequest(777, 5000)) == 777
    assert len(allocator.make_slice(MemoryRequest(777, 5000))) >= 777


def test_free_blocks_are_no_pressure() -> None:
    memory, allocator = limited(MIB)
    parts = [allocator.make_slice(exactly(4 * KIB)) for _ in range(240)]
    assert memory.pressure > 0.8
    assert allocator.reserve(MemoryRequest(0, 1000)) < 1000
    del parts
    assert allocator.reserve(MemoryRequest(0, 1000)) == 1000


@pytest.mark.parametrize("take", ["make_slice", "try_block"])
@pytest.mark.parametrize("held", [False, True], ids=["free", "held"])
@pytest.mark.parametrize("size_before", [64 * KIB, MIB])
@pytest.mark.parametrize("size", [8 * KIB, 32 * KIB])
def test_a_free_block_is_no_way_round_the_sixteenth(take: str, size_before: int, held: bool, size: int) -> None:
    memory, allocator = limited(size_before)
    parts = [allocator.make_slice(exactly(size))]
    if not held:
        parts.clear()
    memory.resize(64 * KIB)
    parts.clear()
    if take == "make_slice":
        taken = allocator.make_slice(MemoryRequest(1, size)).storage_bytes
    else:
        block = memory.try_block(size)
        assert block is not None
        taken = len(block)
    assert taken <= 4 * KIB


def test_a_block_of_more_than_a_sixteenth_is_not_kept_when_it_is_free() -> None:
    memory, allocator = limited(64 * KIB)
    for size in (4 * KIB, 8 * KIB):
        allocator.make_slice(exactly(size))
    assert {size: len(pool) for size, pool in memory.pools.items() if pool} == {4 * KIB: 1}


def test_a_free_block_is_no_way_round_the_pressure() -> None:
    memory, allocator = limited(64 * KIB)
    allocator.make_slice(exactly(4 * KIB))
    allocator.reserve(exactly(58 * KIB))
    block = memory.try_block(4 * KIB)
    assert block is not None
    assert len(block) == 2 * KIB


@pytest.mark.parametrize("left", [0, 1, 255])
def test_there_is_no_block_for_reading_where_256_bytes_do_not_fit(left: int) -> None:
    memory, allocator = limited(64 * KIB)
    allocator.reserve(exactly(64 * KIB - left))
    assert memory.try_block(8192) is None
    assert memory.used == memory.peak == 64 * KIB - left


@pytest.mark.parametrize(("left", "size"), [(256, 256), (511, 256), (512, 256), (1023, 512), (5000, 1024)])
def test_a_block_for_reading_never_goes_beyond_the_quota(left: int, size: int) -> None:
    memory, allocator = limited(64 * KIB)
    allocator.reserve(exactly(64 * KIB - left))
    block = memory.try_block(4096)
    assert block is not None
    assert len(block) == size
    assert memory.peak <= 64 * KIB


def test_reads_alone_fill_the_quota_and_no_more() -> None:
    memory, _ = limited(10_000)
    blocks = []
    while (block := memory.try_block(8192)) is not None:
        blocks.append(block)
    assert memory.used == memory.peak == sum(map(len, blocks))
    assert 10_000 - 256 < memory.used <= 10_000
    blocks.pop()
    assert memory.try_block(256) is not None


def test_a_block_that_was_put_back_is_used_again(memory: MemoryQuota) -> None:
    for n in range(100):
        block = memory.try_block(8192)
        assert block is not None
        assert block[0] == n
        block[0] += 1
        memory.put_back(block)
        del block
        assert memory.used == 0
    assert memory.peak == 8192


@pytest.mark.parametrize("low", [1, 4096])
def test_a_free_block_is_used_again_also_where_less_would_do(low: int) -> None:
    memory, allocator = limited(MIB)
    for _ in range(10):
        assert len(allocator.make_slice(MemoryRequest(low, 4096))) == 4096
    assert memory.peak == 4096


@pytest.mark.parametrize("size", [256, 8192])
def test_a_free_block_of_just_a_sixteenth_is_used_again_for_reading(size: int) -> None:
    memory, _ = limited(16 * size)
    for _ in range(10):
        block = memory.try_block(size)
        assert block is not None
        memory.put_back(block)
        del block
    assert memory.peak == size


@pytest.mark.parametrize(
    "take", [lambda memory: memory.make_block(256, 4096), lambda memory: memory.try_block(4096)]
)
def test_what_was_given_back_is_no_pressure(take: Callable[[MemoryQuota], Block]) -> None:
    memory, allocator = limited(MIB)
    allocator.reserve(exactly(MIB * 9 // 10))
    allocator.release(MIB * 9 // 10)
    assert len(take(memory)) == 4096


def test_a_slice_that_gets_less_than_it_may_have_is_not_rounded_up_where_its_minimum_fits() -> None:
    _, allocator = limited(64 * KIB)
    assert allocator.make_slice(MemoryRequest(1, 8192)).storage_bytes == 4096
    _, allocator = limited(80 * KIB)  # a sixteenth is 5 KiB
    assert allocator.make_slice(MemoryRequest(4096, 8192)).storage_bytes == 4096
    assert allocator.make_slice(MemoryRequest(4097, 8192)).storage_bytes == 8192


def test_what_was_given_back_is_room_for_who_tries_to_take_it() -> None:
    memory, _ = limited(KIB)
    assert memory.try_take(KIB) is True
    assert memory.try_take(1) is False
    memory.give(KIB)
    assert memory.try_take(KIB - 256, leave=256)
    assert not memory.try_take(1, leave=256)
    assert memory.used == KIB - 256


@pytest.mark.parametrize(("amount", "leave"), [(KIB, 0), (KIB - 256, 256), (256, KIB - 256), (1, KIB - 1)])
def test_free_blocks_are_room_for_who_tries_to_take_it(amount: int, leave: int) -> None:
    memory, allocator = limited(KIB)
    parts = [allocator.make_slice(exactly(256)) for _ in range(4)]
    parts.clear()
    assert memory.try_take(amount, leave)
    assert (memory.used, memory.peak) == (amount, KIB)


def test_a_block_with_bytes_is_charged_until_the_slices_on_it_are_gone(memory: MemoryQuota) -> None:
    block = memory.try_block(8192)
    assert block is not None
    block[:3] = b"abc"
    part = slice_of(block, 3)
    del block
    assert memory.used == part.storage_bytes == 8192
    view = part[1:].view
    del part
    assert (memory.used, bytes(view)) == (8192, b"bc")
    del view
    assert memory.used == 0


def test_allocators_of_one_quota_share_its_memory_but_not_what_they_reserved(memory: MemoryQuota) -> None:
    one, other = MemoryAllocator(memory, "one"), MemoryAllocator(memory, "other")
    one.reserve(exactly(10))
    other.reserve(exactly(5))
    assert memory.used == 15
    with pytest.raises(ValueError, match="cannot release 6 bytes; 5 are reserved"):
        other.release(6)
    one.close()
    assert memory.used == 5
    assert other.memory is one.memory is memory
    assert (one.name, other.name) == ("one", "other")


@pytest.mark.parametrize("n", [-1, 11])
def test_no_more_is_released_than_is_reserved_and_nothing_less_than_0(
    memory: MemoryQuota, allocator: MemoryAllocator, n: int
) -> None:
    allocator.reserve(exactly(10))
    with pytest.raises(ValueError, match=f"cannot release {n} bytes; 10 are reserved"):
        allocator.release(n)
    assert memory.used == 10
    allocator.release(10)
    assert memory.used == 0


@pytest.mark.parametrize("bad", [0.5, "1", None], ids=kind)
def test_a_whole_number_of_bytes_is_released(memory: MemoryQuota, allocator: MemoryAllocator, bad: Any) -> None:
    allocator.reserve(exactly(10))
    with pytest.raises(TypeError):
        allocator.release(bad)
    assert memory.used == 10


@pytest.mark.parametrize("bad", [100, (1, 2), None], ids=kind)
@pytest.mark.parametrize("method", ["reserve", "make_reservation", "make_slice"])
def test_what_is_no_memory_request_is_refused_by_its_type(
    memory: MemoryQuota, allocator: MemoryAllocator, method: str, bad: Any
) -> None:
    with pytest.raises(TypeError, match=f"MemoryRequest.* not {kind(bad)}"):
        getattr(allocator, method)(bad)
    assert memory.used == 0


CALLS: dict[str, Callable[[MemoryAllocator], object]] = {
    "reserve": lambda allocator: allocator.reserve(exactly(1)),
    "release": lambda allocator: allocator.release(0),
    "make_reservation": lambda allocator: allocator.make_reservation(exactly(1)),
    "make_slice": lambda allocator: allocator.make_slice(exactly(1)),
    "make_slice of no bytes": lambda allocator: allocator.make_slice(exactly(0)),
    "copy": lambda allocator: allocator.copy(b"a"),
    "copy of no bytes": lambda allocator: allocator.copy(b""),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_closed_allocator_refuses_by_its_name(
    memory: MemoryQuota, allocator: MemoryAllocator, call: str
) -> None:
    CALLS[call](allocator)
    allocator.close()
    with pytest.raises(ClosedResourceError, match="the memory allocator 'test' was closed"):
        CALLS[call](allocator)
    assert memory.used == 0


def test_a_closed_allocator_counts_nothing_not_even_for_a_moment(
    memory: MemoryQuota, allocator: MemoryAllocator
) -> None:
    allocator.close()
    for take in (allocator.reserve, allocator.make_reservation, allocator.make_slice):
        with pytest.raises(ClosedResourceError):
            take(exactly(KIB))
    assert memory.peak == 0


def test_an_allocator_may_be_closed_twice(memory: MemoryQuota, allocator: MemoryAllocator) -> None:
    allocator.reserve(exactly(10))
    allocator.close()
    allocator.close()
    assert memory.used == 0


def test_slices_and_reservations_outlive_their_allocator(memory: MemoryQuota, allocator: MemoryAllocator) -> None:
    part, reservation = allocator.copy(b"abc"), allocator.make_reservation(exactly(10))
    allocator.close()
    assert (memory.used, bytes(part)) == (256 + 10, b"abc")
    del part
    reservation.release()
    assert memory.used == 0


def test_an_allocator_that_is_collected_gives_back_what_it_reserved(memory: MemoryQuota) -> None:
    MemoryAllocator(memory, "dropped").reserve(exactly(10))
    assert memory.used == 0


def test_the_repr_of_an_allocator_says_whether_it_is_closed(allocator: MemoryAllocator) -> None:
    assert repr(allocator) == "<MemoryAllocator 'test'>"
    allocator.close()
    assert repr(allocator) == "<MemoryAllocator 'test' closed>"


def test_a_reservation_is_counted_until_it_is_released(memory: MemoryQuota, allocator: MemoryAllocator) -> None:
    reservation = allocator.make_reservation(exactly(10))
    assert (reservation.size, memory.used) == (10, 10)
    reservation.release()
    reservation.release()
    assert (reservation.size, memory.used) == (0, 0)


def test_a_reservation_is_released_at_the_end_of_a_with_block_even_by_an_error(
    memory: MemoryQuota, allocator: MemoryAllocator
) -> None:
    with allocator.make_reservation(exactly(10)) as reservation:
        assert (reservation.size, memory.used) == (10, 10)
    assert memory.used == 0
    with pytest.raises(ZeroDivisionError), allocator.make_reservation(exactly(10)):
        _ = 1 // (memory.used - 10)
    assert memory.used == 0


def test_a_reservation_that_is_collected_is_released(memory: MemoryQuota, allocator: MemoryAllocator) -> None:
    reservation = allocator.make_reservation(exactly(10))
    assert memory.used == 10
    del reservation
    assert memory.used == 0


def test_a_reservation_released_in_many_threads_is_given_back_once(
    memory: MemoryQuota, allocator: MemoryAllocator
) -> None:
    reservations = [allocator.make_reservation(exactly(10)) for _ in range(500)]

    def release() -> None:
        for reservation in reservations:
            reservation.release()

    run_together(*[release] * 8)
    assert memory.used == 0


def test_reserving_while_another_thread_closes_leaves_nothing_counted(memory: MemoryQuota) -> None:
    def reserve(allocator: MemoryAllocator, refused: list[str]) -> None:
        try:
            while True:
                assert allocator.reserve(exactly(1)) == 1
        except ClosedResourceError as error:
            refused.append(str(error))

    def close(allocator: MemoryAllocator) -> None:
        while memory.used < 100:
            pass
        allocator.close()

    for _ in range(20):
        allocator = MemoryAllocator(memory, "test")
        refused: list[str] = []
        run_together(*[partial(reserve, allocator, refused)] * 3, partial(close, allocator))
        assert refused == ["the memory allocator 'test' was closed"] * 3
        assert memory.used == 0


@pytest.mark.parametrize("cls", [MemoryAllocator, Reservation])
def test_what_is_made_the_wrong_way_fails_once_and_leaves_nothing_behind(cls: type) -> None:
    with pytest.raises(TypeError, match="missing"):
        cls()


class Owner:
    """Refers to itself, so that only the garbage collection ends it; tidies up then, as careful classes do."""

    def __init__(self, tidy_up: Callable[[], object]) -> None:
        self.tidy_up = tidy_up
        self.self = self

    def __del__(self) -> None:
        self.tidy_up()


@pytest.mark.usefixtures("no_collections")
@pytest.mark.parametrize("owner_is_older", [False, True])
@pytest.mark.parametrize("what", ["reservation", "allocator"])
def test_what_an_owner_gives_back_as_both_are_collected_is_given_back_once(
    memory: MemoryQuota, allocator: MemoryAllocator, what: str, owner_is_older: bool
) -> None:
    owner = Owner(int) if owner_is_older else None
    if what == "reservation":
        reservation = allocator.make_reservation(exactly(10))
        tidy_up = reservation.release
        del reservation
    else:
        other = MemoryAllocator(memory, "other")
        other.reserve(exactly(10))
        tidy_up = other.close
        del other
    if owner is None:
        owner = Owner(tidy_up)
    else:
        owner.tidy_up = tidy_up
    del tidy_up, owner
    assert memory.used == 10
    gc.collect()
    assert memory.used == 0


GARBAGE = {
    "slice": "Cycle(allocator.copy(bytes(300)))",
    "view": "Cycle(allocator.copy(bytes(300)).view)",
    "large slice": "Cycle(allocator.copy(bytes(300_000)))",
    "reservation": "Cycle(allocator.make_reservation(MemoryRequest(100)))",
    "allocator": "Cycle(a := quota.create_memory_allocator('')); a.reserve(MemoryRequest(100)); del a",
    "owner that releases": "Owner(allocator.make_reservation(MemoryRequest(100)).release)",
    "owner that closes": "a = quota.create_memory_allocator(''); a.reserve(MemoryRequest(9)); Owner(a.close); del a",
}


@pytest.mark.parametrize("garbage", GARBAGE)
def test_a_collection_within_the_code_of_the_quota_neither_hangs_nor_miscounts(garbage: str) -> None:
    run_script(
        f"""
import gc, sys, threading
from eventengine import MemoryRequest, ResourceQuota

class Cycle:
    def __init__(self, held):
        self.held, self.self = held, self

class Owner(Cycle):
    def __del__(self):
        self.held()

quota = ResourceQuota(memory="64KiB")
allocator = quota.create_memory_allocator("")
woken = []

def make_garbage():
    {GARBAGE[garbage]}

def take_and_give():
    part = allocator.make_slice(MemoryRequest(1, 4096))
    block = quota.memory.try_block(1024)
    quota.memory.add_waiter(lambda: woken.append(1))
    with allocator.make_reservation(MemoryRequest(60_000)):
        quota.memory.pressure
    allocator.release(allocator.reserve(MemoryRequest(1, 100)))
    quota.create_memory_allocator("").close()
    quota.memory.resize(30_000)
    quota.memory.resize("64KiB")
    quota.memory.wake_next_waiter()
    quota.memory.used

lines = 0

def collect_at_one_line(frame, event, argument):
    global lines
    if frame.f_globals.get("__name__") in ("eventengine.memory", "eventengine.memory_quota", "eventengine.slices"):
        lines -= 1
        if not lines:
            gc.collect()
        return collect_at_one_line

def work():
    for n in range(200):
        gc.set_threshold(1 + n % 20)
        make_garbage()
        take_and_give()

gc.disable()
gc.freeze()
for n in range(1, 1000):
    make_garbage()
    lines = n
    sys.settrace(collect_at_one_line)
    take_and_give()
    sys.settrace(None)
    if lines > 0:
        break
assert 50 < n < 999, n
gc.enable()
sys.setswitchinterval(1e-6)
threads = [threading.Thread(target=work, daemon=True) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
gc.collect()
assert quota.memory.used == 0, quota.memory.used
assert woken
""",
        hangs_after=30,
    )


@pytest.mark.parametrize("garbage", [name for name in GARBAGE if not name.startswith("owner")])
def test_what_is_collected_does_not_wait_for_a_thread_that_is_in_the_code_of_the_quota(garbage: str) -> None:
    run_script(
        f"""
import gc, threading
from eventengine import MemoryRequest, ResourceQuota

class Cycle:
    def __init__(self, held):
        self.held, self.self = held, self

quota = ResourceQuota(memory="64KiB")
allocator = quota.create_memory_allocator("")
inside, collected = threading.Event(), threading.Event()

def be_inside():
    with quota.memory._lock:
        inside.set()
        collected.wait()

gc.disable()
{GARBAGE[garbage]}
thread = threading.Thread(target=be_inside)
thread.start()
inside.wait()
gc.collect()
collected.set()
thread.join()
assert quota.memory.used == 0, quota.memory.used
""",
        hangs_after=30,
    )


@pytest.mark.parametrize("size", [64 * KIB, MIB])
def test_a_size_whose_sixteenth_they_are_keeps_the_free_blocks(size: int) -> None:
    memory, _ = limited(64 * KIB)
    block = memory.make_block(4 * KIB, 4 * KIB)
    block[:4] = b"mark"
    memory.put_back(block)
    del block
    memory.resize(size)
    assert memory.make_block(4 * KIB, 4 * KIB)[:4] == b"mark"


def test_a_larger_size_makes_room_and_a_smaller_one_takes_nothing_away() -> None:
    memory, allocator = limited(1000)
    part = allocator.copy(bytes(800))
    assert memory.try_block(256) is None
    memory.resize("64KiB")
    assert (memory.size, memory.pressure) == (64 * KIB, 1024 / (64 * KIB))
    block = memory.try_block(256)
    assert block is not None
    memory.resize(512)
    assert (memory.size, memory.used, memory.pressure) == (512, 1024 + 256, 2.5)
    assert (bytes(part), len(block)) == (bytes(800), 256)


def test_a_smaller_size_shrinks_the_next_request() -> None:
    memory, allocator = limited(MIB)
    used = allocator.reserve(exactly(50_000))
    memory.resize(60_000)
    assert allocator.reserve(MemoryRequest(0, 1000)) == pytest.approx(share_of(0, 1000, used, 60_000), abs=1)


def test_a_smaller_size_shrinks_the_next_read_though_there_is_a_free_block() -> None:
    memory, allocator = limited(64 * KIB)
    allocator.make_slice(exactly(KIB))
    allocator.reserve(exactly(28 * KIB))
    memory.resize(34 * KIB)
    block = memory.try_block(KIB)
    assert block is not None
    assert len(block) == 512


def test_after_a_smaller_size_reads_wait_until_enough_was_given_back() -> None:
    memory, allocator = limited(8 * KIB)
    parts = [allocator.make_slice(exactly(KIB)) for _ in range(8)]
    memory.resize(2 * KIB)
    while memory.try_block(256) is None:
        parts.pop()
    assert len(parts) == 1


def test_a_smaller_size_frees_the_blocks_that_are_kept() -> None:
    memory, allocator = limited(64 * KIB)
    parts = [allocator.make_slice(exactly(4 * KIB)) for _ in range(8)]
    del parts
    memory.resize(4 * KIB)
    memory.resize(MIB)
    allocator.reserve(exactly(32 * KIB))
    assert memory.peak <= 36 * KIB


@pytest.mark.parametrize("size", [8 * KIB, 32 * KIB])
def test_a_smaller_size_frees_the_blocks_that_no_request_may_have_any_more_though_they_fit(size: int) -> None:
    memory, allocator = limited(MIB)
    allocator.make_slice(exactly(size))
    memory.resize(64 * KIB)
    memory.resize(MIB)
    allocator.reserve(exactly(100 * KIB))
    assert memory.peak == 100 * KIB


@pytest.mark.parametrize("bad", [0, -1, 255, "255B", "much", "1MB"])
def test_a_size_that_is_none_is_refused_and_the_old_one_stays(bad: int | str) -> None:
    memory, _ = limited(1000)
    with pytest.raises(ValueError, match=r"size|no room for a single read; give 256 or more"):
        memory.resize(bad)
    assert memory.size == 1000


class Waiters:
    """Callbacks with names, which say who was woken."""

    def __init__(self, memory: MemoryQuota) -> None:
        self.memory = memory
        self.woken: list[str] = []
        self.callbacks: dict[str, Callable[[], object]] = {}

    def add(self, names: str, answer: object = None) -> None:
        for name in names:
            self.callbacks[name] = lambda name=name: (self.woken.append(name), answer)[1]
            self.memory.add_waiter(self.callbacks[name])

    def take_woken(self) -> str:
        names = "".join(self.woken)
        self.woken.clear()
        return names


@pytest.fixture
def full() -> tuple[MemoryQuota, MemoryAllocator, Waiters]:
    """A quota of 4 KiB that is taken whole, by 4 x 1 KiB."""
    memory, allocator = limited(4 * KIB)
    for _ in range(4):
        allocator.reserve(exactly(KIB))
    return memory, allocator, Waiters(memory)


Full = tuple[MemoryQuota, MemoryAllocator, Waiters]


def test_who_was_woken_in_vain_keeps_its_place(full: Full) -> None:
    memory, allocator, waiters = full
    waiters.add("abc")
    allocator.release(1)
    assert waiters.take_woken() == "a"
    memory.add_waiter(waiters.callbacks["a"])
    memory.keep_place(waiters.callbacks["a"])
    for _ in range(3):
        allocator.release(KIB)
    assert waiters.take_woken() == "abc"


def test_a_place_that_is_lost_already_is_kept_for_nobody(full: Full) -> None:
    memory, allocator, waiters = full
    waiters.add("a")
    memory.keep_place(lambda: None)
    allocator.release(KIB)
    assert waiters.take_woken() == "a"


def test_one_gift_wakes_one_waiter_the_oldest_first(full: Full) -> None:
    _, allocator, waiters = full
    waiters.add("abc")
    woken = []
    for _ in range(4):
        allocator.release(100)
        woken.append(waiters.take_woken())
    assert woken == ["a", "b", "c", ""]


def test_a_waiter_that_does_not_want_the_memory_passes_the_news_on(full: Full) -> None:
    _, allocator, waiters = full
    waiters.add("ab", answer=True)
    waiters.add("cd")
    allocator.release(100)
    assert waiters.take_woken() == "abc"
    allocator.release(100)
    assert waiters.take_woken() == "d"


@pytest.mark.parametrize("answer", [None, False, 1, "yes"])
def test_only_true_passes_the_news_on(full: Full, answer: object) -> None:
    _, allocator, waiters = full
    waiters.add("ab", answer=answer)
    allocator.release(100)
    assert waiters.take_woken() == "a"


def test_a_waiter_that_was_removed_is_not_woken_and_the_order_stays(full: Full) -> None:
    memory, allocator, waiters = full
    waiters.add("abc")
    memory.remove_waiter(waiters.callbacks["b"])
    memory.remove_waiter(waiters.callbacks["b"])
    memory.remove_waiter(lambda: None)
    for _ in range(3):
        allocator.release(100)
    assert waiters.take_woken() == "ac"


def test_who_waits_for_much_is_woken_by_each_gift_that_no_other_waits_for_until_it_is_removed(full: Full) -> None:
    memory, allocator, waiters = full
    woken: list[int] = []

    def on_room() -> None:
        woken.append(memory.used)

    memory.add_bulk_waiter(on_room)
    waiters.add("a")
    for _ in range(3):
        allocator.release(100)
    assert waiters.take_woken() == "a"
    assert woken == [4 * KIB - 200, 4 * KIB - 300]
    memory.remove_bulk_waiter(on_room)
    memory.remove_bulk_waiter(on_room)
    allocator.release(100)
    assert len(woken) == 2
    assert not memory.somebody_waits


@pytest.mark.parametrize("left", [0, 255, 256])
def test_the_next_waiter_is_woken_only_where_there_is_room_for_a_block(full: Full, left: int) -> None:
    memory, allocator, waiters = full
    allocator.release(left)
    waiters.add("ab")
    memory.wake_next_waiter()
    assert waiters.take_woken() == ("a" if left >= 256 else "")


def test_free_blocks_are_room_for_a_waiter() -> None:
    memory, allocator = limited(4 * KIB)
    waiters = Waiters(memory)
    parts = [allocator.make_slice(exactly(256)) for _ in range(16)]
    parts.clear()
    waiters.add("a")
    memory.wake_next_waiter()
    assert waiters.take_woken() == "a"


def put_back(memory: MemoryQuota, _: MemoryAllocator) -> Callable[[], object]:
    blocks = [memory.make_block(KIB, KIB)]
    return lambda: memory.put_back(blocks.pop())


Gift = Callable[[MemoryQuota, MemoryAllocator], Callable[[], object]]
GIFTS: dict[str, Gift] = {
    "a reservation that is released": lambda _, allocator: allocator.make_reservation(exactly(KIB)).release,
    "a reservation that is collected": lambda _, allocator: [allocator.make_reservation(exactly(KIB))].clear,
    "a slice that dies": lambda _, allocator: [allocator.make_slice(exactly(KIB))].clear,
    "a large slice that dies": lambda _, allocator: [allocator.make_slice(exactly(300 * KIB))].clear,
    "a view that dies": lambda _, allocator: [allocator.make_slice(exactly(KIB)).view].clear,
    "a buffer that is cleared": lambda _, allocator: SliceBuffer([allocator.make_slice(exactly(KIB))]).clear,
    "bytes that are released": lambda _, allocator: partial(allocator.release, allocator.reserve(exactly(KIB))),
    "an allocator that is closed": lambda _, allocator: allocator.reserve(exactly(KIB)) and allocator.close,
    "a block that is put back": put_back,
    "a larger size": lambda memory, allocator: allocator.reserve(exactly(KIB)) and partial(memory.resize, 2 * MIB),
}


@pytest.mark.parametrize("gift", GIFTS)
def test_memory_that_comes_back_in_any_way_wakes_a_waiter_who_finds_it(gift: str) -> None:
    memory, allocator = limited(KIB)
    give = GIFTS[gift](memory, allocator)
    assert memory.try_block(256) is None
    found: list[bytearray] = []

    def look() -> None:
        block = memory.try_block(256)
        if block is None:
            memory.add_waiter(on_room)
        else:
            found.append(block)

    def on_room() -> None:
        run_together(look)  # in another thread, while this one is still giving

    memory.add_waiter(on_room)
    assert not found
    give()
    assert [kind(block) for block in found] == ["Block"]


@pytest.mark.parametrize("give", ["put back", "slice", "buffer"])
@pytest.mark.parametrize("bulk", [False, True])
def test_a_block_that_goes_back_to_its_pool_wakes_who_waits(give: str, bulk: bool) -> None:
    memory, allocator = limited(64 * KIB)
    held: list[Any] = [memory.make_block(4 * KIB, 4 * KIB)]
    if give != "put back":
        held = [slice_of(held.pop(), 4 * KIB)]
    if give == "buffer":
        held = [SliceBuffer(held)]
    allocator.reserve(exactly(60 * KIB))
    woken: list[int] = []
    (memory.add_bulk_waiter if bulk else memory.add_waiter)(lambda: woken.append(memory.used))
    if give == "put back":
        memory.put_back(held.pop())
    else:
        held.clear()
    assert woken == [60 * KIB]
    assert memory.try_block(4 * KIB) is not None


def test_room_that_is_made_of_free_blocks_for_someone_else_wakes_nobody() -> None:
    memory, allocator = limited(KIB)
    allocator.make_slice(exactly(KIB))
    waiters = Waiters(memory)
    waiters.add("ab")
    allocator.reserve(exactly(KIB))
    assert waiters.take_woken() == ""


@pytest.mark.parametrize("hold", [lambda part: [part], lambda part: SliceBuffer([part])], ids=["slice", "buffer"])
def test_a_waiter_is_woken_though_another_takes_a_little_of_what_came_back(hold: Callable[[Slice], Any]) -> None:
    memory, allocator = limited(16 * KIB)
    waiters = Waiters(memory)

    class Contested(Pool):
        """Whoever returns a block is overtaken by another thread, which makes room for a byte of its own."""

        __slots__ = ()

        def append(self, block: Block) -> None:
            super().append(block)
            run_together(lambda: allocator.reserve(exactly(1)))

    memory.pools[KIB] = Contested(8)
    allocator.reserve(exactly(15 * KIB))
    held = hold(allocator.make_slice(exactly(KIB)))
    waiters.add("ab")
    held.clear()
    assert memory.used == 15 * KIB + 1
    assert waiters.take_woken() == "a"


def test_an_allocator_that_reserved_nothing_wakes_nobody(full: Full) -> None:
    memory, _, waiters = full
    waiters.add("a")
    MemoryAllocator(memory, "other").close()
    assert waiters.take_woken() == ""


def test_free_blocks_that_a_smaller_size_gives_up_wake_nobody_where_they_leave_no_room() -> None:
    memory, allocator = limited(MIB)
    allocator.make_slice(exactly(64 * KIB))
    allocator.reserve(exactly(100 * KIB))
    waiters = Waiters(memory)
    waiters.add("ab")
    memory.resize(100 * KIB)
    assert waiters.take_woken() == ""


@pytest.mark.parametrize("size", ["2KiB", "4KiB", 4 * KIB + 255])
def test_a_size_that_leaves_no_room_for_a_block_wakes_nobody(full: Full, size: int | str) -> None:
    memory, allocator, waiters = full
    waiters.add("a")
    memory.resize(size)
    assert waiters.take_woken() == ""
    allocator.release(1)
    assert waiters.take_woken() == "a"


def test_waiters_who_take_turns_are_all_served_in_their_order(full: Full) -> None:
    memory, allocator, _ = full
    served: list[tuple[int, Slice]] = []

    def enlist(n: int) -> None:
        def on_room() -> None:
            ready.append(n)

        memory.add_waiter(on_room)

    ready: list[int] = []
    for n in range(8):
        enlist(n)
    allocator.release(2 * KIB)
    while ready:
        block = memory.try_block(256)
        assert block is not None
        served.append((ready.pop(0), slice_of(block, 256)))
        del block
        memory.wake_next_waiter()
    assert [n for n, _ in served] == list(range(8))


def read_on(memory: MemoryQuota, times: int) -> None:
    """Takes blocks as an endpoint does: enlists, tries again, waits; then fills, checks, and lets go."""
    for n in range(times):
        block = memory.try_block(1024)
        while block is None:
            room = threading.Event()
            memory.add_waiter(room.set)
            block = memory.try_block(1024)
            if block is None:
                assert room.wait(60), "a wake-up was lost"
            else:
                memory.remove_waiter(room.set)
        block[:256] = bytes([n % 256]) * 256
        part = slice_of(block, 256)
        del block
        memory.wake_next_waiter()
        assert bytes(part) == bytes([n % 256]) * 256
        del part


@pytest.mark.parametrize("size", [300, 1024, 20_000])
def test_no_wake_up_is_lost_and_reads_stay_within_the_quota(size: int) -> None:
    memory, _ = limited(size)
    run_together(*[lambda: read_on(memory, 300)] * 8)
    assert memory.used == 0
    assert memory.peak <= size
    memory.wake_next_waiter()
    assert memory.try_block(256) is not None


def test_no_wake_up_is_lost_while_the_size_changes_both_ways() -> None:
    memory, allocator = limited(1024)

    def resize() -> None:
        for n in range(300):
            memory.resize([256, 700, 3000][n % 3])
            with allocator.make_reservation(exactly(1500)):
                pass
        memory.resize(1024)

    run_together(*[lambda: read_on(memory, 300)] * 7, resize)
    assert memory.used == 0


def test_many_threads_that_take_and_give_leave_nothing_used() -> None:
    memory, allocator = limited(MIB)
    handed_over: list[Slice] = []

    def work(seed: int) -> None:
        random_ = random.Random(seed)
        own = MemoryAllocator(memory, str(seed))
        slices: list[Slice] = []
        views: list[tuple[bytes, memoryview]] = []
        reserved = 0
        for _ in range(2000):
            match random_.randrange(9):
                case 0:
                    reserved += own.reserve(MemoryRequest(1, 1000))
                case 1:
                    n = random_.randint(0, reserved)
                    own.release(n)
                    reserved -= n
                case 2:
                    own.make_reservation(MemoryRequest(1, 100_000))
                case 3:
                    data = random_.randbytes(random_.randrange(1, 2000))
                    slices.append(allocator.copy(data))
                    views.append((data, slices[-1].view))
                case 4:
                    slices.append(allocator.make_slice(MemoryRequest(1, 70_000)))
                case 5 if slices:
                    slices.extend(slices.pop().split(0))
                case 6:
                    handed_over.extend(slices)
                    slices.clear()
                case 7:
                    handed_over.clear()
                case _:
                    assert all(view == data for data, view in views)
                    views.clear()
                    assert memory.used >= reserved
        own.close()

    run_together(*[lambda seed=seed: work(seed) for seed in range(8)])
    handed_over.clear()
    assert memory.used == 0


def test_many_threads_that_reserve_and_release_leave_nothing_used() -> None:
    memory, allocator = limited(MIB)

    def work() -> None:
        for _ in range(2000):
            allocator.make_reservation(exactly(10))
            assert memory.used in range(0, 81, 10)

    run_together(*[work] * 8)
    assert memory.used == 0
    assert memory.peak <= 80
