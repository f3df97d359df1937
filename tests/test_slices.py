"""Slices and buffers: what they hold, what they share, and that nothing shows another's bytes."""

from __future__ import annotations

import array
import ctypes
import gc
import hashlib
import importlib.util
import io
import mmap
import pickle
import platform
import queue
import random
import re
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from eventengine.memory import MemoryAllocator, MemoryRequest
from eventengine.memory_quota import MemoryQuota
from eventengine.quota import ResourceQuota
from eventengine.slices import Block, Pool, Slice, SliceBuffer, is_unshared, recycle_all, recycle_last
from eventengine.status import EmptyBufferError
from together import run_script, run_together

SIZE = 512
DATA = random.Random(1).randbytes(SIZE)


@pytest.fixture
def quota() -> ResourceQuota:
    return ResourceQuota("test")


@pytest.fixture
def allocator(quota: ResourceQuota) -> MemoryAllocator:
    return quota.create_memory_allocator("test")


@pytest.fixture
def no_collections() -> Iterator[None]:
    """Garbage is collected when the test says so."""
    gc.disable()
    yield
    gc.enable()


def recycle(allocator: MemoryAllocator, times: int = 2000) -> None:
    """Makes and drops slices of all the small sizes, each full of other bytes."""
    for n in range(times):
        allocator.copy(bytes([n % 256]) * (SIZE // 2 << n % 4))


def kind(value: object) -> str:
    return type(value).__name__


# Each way to hold on to the memory of a slice, and what it shows.
Hold = Callable[[Slice], Any]
WAYS: dict[str, tuple[Hold, Callable[[Any], bytes]]] = {
    "the slice": (lambda s: s, bytes),
    "a view": (lambda s: s.view, bytes),
    "a view of a view": (lambda s: memoryview(s.view), bytes),
    "a part of a view": (lambda s: s.view[3:200], bytes),
    "every other byte of a view": (lambda s: s.view[::2], bytes),
    "a view without a byte": (lambda s: s.view[7:7], bytes),
    "a read-only view": (lambda s: s.view.toreadonly(), bytes),
    "a view of numbers": (lambda s: s.view.cast("I"), lambda view: struct.pack(f"{len(view)}I", *view)),
    "an iterator over a view": (lambda s: iter(s.view), bytes),
    "a view as an object to pickle": (lambda s: pickle.PickleBuffer(s.view), lambda held: bytes(held.raw())),
    "a sub-slice": (lambda s: s[10:100], bytes),
    "a view of a sub-slice": (lambda s: s[10:100][5:50].view, bytes),
    "the first part of a split": (lambda s: s.split(100)[0], bytes),
    "a view of the last part of a split": (lambda s: s.split(100)[1].view, bytes),
    "a buffer": (lambda s: SliceBuffer([s]), bytes),
    "the slices of a buffer": (
        lambda s: SliceBuffer([s[1:5], s[7:9]]).slices,
        lambda held: b"".join(map(bytes, held)),
    ),
    "a match of a pattern": (lambda s: re.search(rb"(?s).{20}", s.view), lambda match: match[0]),
    "matches to come": (lambda s: re.finditer(rb"(?s).{20}", s.view), lambda found: b"".join(m[0] for m in found)),
    "structs to come": (
        lambda s: struct.iter_unpack("<I", s.view),
        lambda rest: b"".join(struct.pack("<I", *part) for part in rest),
    ),
    "an object of ctypes": (lambda s: (ctypes.c_char * 100).from_buffer(s.view), bytes),
}
COPIES: dict[str, Hold] = {
    "bytes of the slice": bytes,
    "bytes of a view": lambda s: bytes(s.view),
    "bytearray": lambda s: bytearray(s.view),
    "tobytes": lambda s: s.view.tobytes(),
    "struct.unpack": lambda s: struct.unpack_from("4s", s.view)[0],
    "re.findall": lambda s: re.findall(rb"(?s).{50}", s.view),
    "a hash": lambda s: hashlib.sha256(s.view).digest(),
    "a file": lambda s: io.BytesIO(s.view).getvalue(),
    "join": lambda s: b"".join([s.view, s.view]),
}


@pytest.mark.parametrize("way", WAYS)
def test_memory_that_is_held_is_charged_and_never_shows_the_bytes_of_another_use(
    way: str, quota: ResourceQuota, allocator: MemoryAllocator
) -> None:
    hold, read = WAYS[way]
    held = hold(allocator.copy(DATA))
    recycle(allocator)
    others = [allocator.copy(bytes(SIZE)) for _ in range(50)]
    assert quota.memory.used == (1 + len(others)) * SIZE
    assert read(held) == read(hold(Slice.of(bytearray(DATA))))
    del held, others
    assert quota.memory.used == 0


@pytest.mark.parametrize("way", WAYS)
def test_memory_that_anything_else_holds_is_shared(way: str, allocator: MemoryAllocator) -> None:
    part = allocator.copy(DATA)
    held = WAYS[way][0](part)
    parts = SliceBuffer([part])._parts
    del part
    view = parts.pop()
    assert not is_unshared(view)
    del held
    assert is_unshared(view)


def test_memory_that_cannot_be_written_or_is_not_ours_is_shared(allocator: MemoryAllocator) -> None:
    block = memoryview(allocator.copy(DATA).view).obj
    assert not is_unshared(memoryview(bytearray(SIZE)))
    view = memoryview(block)
    assert not is_unshared(view), "somebody has the block"
    del block
    assert is_unshared(view)
    assert not is_unshared(view.toreadonly())


@pytest.mark.parametrize("way", COPIES)
def test_what_copies_holds_no_memory(way: str, quota: ResourceQuota, allocator: MemoryAllocator) -> None:
    copied = COPIES[way](allocator.copy(DATA))
    assert quota.memory.used == 0
    recycle(allocator)
    assert copied == COPIES[way](Slice.of(DATA))


def test_the_charge_lives_until_the_last_view_is_gone(quota: ResourceQuota, allocator: MemoryAllocator) -> None:
    whole = allocator.copy(DATA)
    head, tail = whole.split(5)
    held: list[object] = [
        whole,
        head,
        tail,
        tail[1:],
        whole.view,
        tail.view[3:4],
        head[5:5],
        memoryview(head.view),
    ]
    del whole, head, tail
    random.Random(2).shuffle(held)
    while held:
        assert quota.memory.used == SIZE
        held.pop()
    assert quota.memory.used == 0


def test_a_released_view_holds_nothing(quota: ResourceQuota, allocator: MemoryAllocator) -> None:
    view = allocator.copy(DATA).view
    view.release()
    assert quota.memory.used == 0


def test_blocks_that_nobody_holds_are_used_again(quota: ResourceQuota, allocator: MemoryAllocator) -> None:
    for n in range(1000):
        one, other = allocator.copy(DATA).split(n % SIZE)
        assert bytes(one) + bytes(other) == DATA
    assert quota.memory.peak == 2 * SIZE


def test_views_held_in_other_threads_never_show_the_bytes_of_another_use(quota: ResourceQuota) -> None:
    views: queue.Queue[tuple[bytes, memoryview] | None] = queue.Queue(maxsize=40)

    def make(seed: int) -> None:
        allocator = quota.create_memory_allocator("maker")
        random_ = random.Random(seed)
        for _ in range(2000):
            data = random_.randbytes(random_.randrange(1, 600))
            part = allocator.copy(data)
            if random_.random() < 0.3:
                start = random_.randrange(len(data))
                views.put((data[start:], part[start:].view))
        views.put(None)

    def check() -> None:
        held: list[tuple[bytes, memoryview]] = []
        while (item := views.get(timeout=60)) is not None:
            held.append(item)
            if len(held) > 20:
                assert all(view == data for data, view in held)
                del held[::2]
        assert all(view == data for data, view in held)

    run_together(*[lambda seed=seed: make(seed) for seed in range(4)], *[check] * 4)
    assert quota.memory.used == 0


def test_a_block_whose_slices_die_in_many_threads_is_given_back_once(
    quota: ResourceQuota, allocator: MemoryAllocator
) -> None:
    for _ in range(100):
        whole = allocator.copy(DATA)
        shares = [[whole[n:]] for n in range(4)]
        del whole
        run_together(*[share.clear for share in shares])
        assert quota.memory.used == 0
    texts = [bytes([n]) * SIZE for n in range(200)]
    assert [bytes(part) for part in [allocator.copy(text) for text in texts]] == texts


class Cycle:
    """Refers to itself, so that only the garbage collection ends it and what it holds."""

    def __init__(self, *held: object) -> None:
        self.held = held
        self.self = self


@pytest.mark.usefixtures("no_collections")
@pytest.mark.parametrize("way", ["the slice", "a view", "a sub-slice", "a buffer", "an object of ctypes"])
def test_slices_that_die_in_a_garbage_collection_give_back_what_was_charged(
    way: str, quota: ResourceQuota, allocator: MemoryAllocator
) -> None:
    Cycle(WAYS[way][0](allocator.copy(DATA)))
    assert quota.memory.used == SIZE
    gc.collect()
    assert quota.memory.used == 0
    held = [allocator.copy(DATA) for _ in range(3)]
    assert quota.memory.used == 3 * SIZE
    del held
    assert quota.memory.used == 0


class Undead(Cycle):
    """Hands what it holds to the living as it is collected."""

    saved: list[memoryview]

    def __del__(self) -> None:
        for part in self.held:
            assert isinstance(part, Slice)
            self.saved.append(part.view)


@pytest.mark.usefixtures("no_collections")
@pytest.mark.parametrize("slice_is_older", [False, True])
def test_a_view_that_a_finalizer_saves_never_shows_the_bytes_of_another_use(
    slice_is_older: bool, allocator: MemoryAllocator
) -> None:
    Undead.saved = []
    if slice_is_older:
        part = allocator.copy(DATA)
        Undead(part)
        del part
    else:
        undead = Undead()
        undead.held = (allocator.copy(DATA),)
        del undead
    gc.collect()
    [view] = Undead.saved
    recycle(allocator)
    assert view == DATA


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="where memory begins is another for each C library")
def test_a_block_with_pages_of_its_own_does_not_begin_at_the_head_of_one() -> None:
    """Where a `rep movsb` from the first bytes of a page, which is where much that is received lies, is slow."""
    allocator = ResourceQuota("large").create_memory_allocator("connection")
    block = allocator.make_slice(MemoryRequest(1 << 26)).view.obj  # more than malloc ever pools
    assert len(block) == 1 << 26
    assert ctypes.addressof(ctypes.c_char.from_buffer(block)) % mmap.PAGESIZE == 64


class Owner:
    """Of a block, on no quota."""

    waiters = bulk_waiters = ()

    def __init__(self) -> None:
        self.given: list[int] = []

    def give(self, amount: int) -> None:
        self.given.append(amount)

    def wake_one(self) -> None:
        raise AssertionError("nobody waits")


@pytest.mark.skipif(
    not getattr(sys, "_is_gil_enabled", lambda: True)(), reason="no count of references is exact without a GIL"
)
@pytest.mark.parametrize("gil", [True, False], ids=["with a GIL", "without"])
def test_blocks_are_used_again_only_where_a_gil_makes_the_count_of_references_exact(
    monkeypatch: pytest.MonkeyPatch, gil: bool
) -> None:
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: gil, raising=False)
    spec = importlib.util.find_spec("eventengine.slices")
    assert spec is not None
    assert spec.loader is not None
    slices = importlib.util.module_from_spec(spec)  # one of our own: it looks for the GIL when it is imported
    spec.loader.exec_module(slices)
    owner, pool = Owner(), slices.Pool(8)
    view = memoryview(slices.Block(SIZE, owner, pool))
    is_unshared = slices.is_unshared(view)
    parts = [view, memoryview(slices.Block(SIZE, owner, pool))]
    slices.recycle_last(parts)
    del view
    part = slices.Slice(parts.pop())
    del part
    assert (is_unshared, len(pool), owner.given) == ((True, 2, []) if gil else (False, 0, [SIZE, SIZE]))


@pytest.mark.parametrize("recycle", [recycle_last, recycle_all])
@pytest.mark.parametrize("add", [MemoryQuota.add_waiter, MemoryQuota.add_bulk_waiter])
def test_who_waits_is_woken_when_a_block_that_was_written_goes_back(
    recycle: Callable[[list[memoryview]], None], add: Callable[[MemoryQuota, Callable[[], object]], None]
) -> None:
    quota = MemoryQuota(1 << 20)
    parts = [memoryview(quota.make_block(SIZE, SIZE))]
    woken: list[None] = []
    add(quota, lambda: woken.append(None))
    recycle(parts)
    assert (woken, parts, quota.used) == ([None], [], 0)


@pytest.mark.skipif(
    not getattr(sys, "_is_gil_enabled", lambda: True)(), reason="no count of references is exact without a GIL"
)
@pytest.mark.parametrize("recycle", [recycle_last, recycle_all])
def test_of_what_was_written_go_back_the_blocks_that_nobody_else_refers_to(
    recycle: Callable[[list[memoryview]], None],
) -> None:
    owner, pool = Owner(), Pool(8)
    held, free = memoryview(Block(SIZE, owner, pool)), memoryview(Block(SIZE, owner, pool))
    free[:] = DATA
    parts = [held, free, memoryview(Block(SIZE, owner, None)), memoryview(bytearray(SIZE))]
    del free
    while parts:
        recycle(parts)
    assert ([bytes(block) for block in pool], owner.given) == ([DATA], [SIZE])


def test_a_debugger_that_watches_the_import_does_not_make_views_unsafe() -> None:
    run_script(
        "import sys\n"
        "import eventengine.quota\n"
        "for name in ['slices', 'memory_quota', 'memory', 'quota']:\n"
        "    del sys.modules[f'eventengine.{name}']\n"
        "def trace(frame, event, argument):\n"
        "    if frame.f_globals.get('__name__') == 'eventengine.slices':\n"
        "        len(frame.f_locals)\n"
        "    return trace\n"
        "sys.settrace(trace)\n"
        "import eventengine.slices\n"
        "assert sys.gettrace() is trace, 'the debugger goes on'\n"
        "sys.settrace(None)\n"
        "from eventengine.quota import ResourceQuota\n"
        "from eventengine.slices import SliceBuffer, is_unshared\n"
        "allocator = ResourceQuota().create_memory_allocator('')\n"
        "view = allocator.copy(b'1' * 256).view\n"
        "other = allocator.copy(b'2' * 256)\n"
        "assert bytes(view) == b'1' * 256\n"
        "view = SliceBuffer([other])._parts.pop()\n"
        "held = [view]\n"
        "del other\n"
        "assert not is_unshared(view)\n"
        "held.clear()\n"
        "assert is_unshared(view)\n"
    )


def test_a_part_shares_the_storage_and_sees_what_is_written(allocator: MemoryAllocator) -> None:
    whole = allocator.copy(b"abcdefgh")
    head, tail = whole.split(3)
    whole.view[2:4] = b"XY"
    assert (bytes(head), bytes(tail), bytes(whole[2:4])) == (b"abX", b"Yefgh", b"XY")
    head.view[0] = ord("A")
    assert bytes(whole) == b"AbXYefgh"
    assert whole.storage_bytes == head.storage_bytes == tail.storage_bytes == 256


def test_the_view_of_a_slice_is_of_single_bytes() -> None:
    view = Slice.of(array.array("I", [1, 2]))[4:].view
    assert (view.format, view.itemsize, view.ndim, view.nbytes) == ("B", 1, 1, 4)


@pytest.mark.parametrize("n", range(7))
def test_a_slice_is_split_anywhere(n: int) -> None:
    head, tail = Slice.of(b"..abcdef.")[2:8].split(n)
    assert (bytes(head), bytes(tail)) == (b"abcdef"[:n], b"abcdef"[n:])
    assert (len(head), len(tail)) == (n, 6 - n)


@pytest.mark.parametrize("n", [-1, 7, 100])
def test_a_slice_is_not_split_outside_of_it(n: int) -> None:
    with pytest.raises(ValueError, match=f"cannot split 6 bytes at {n}; 0 to 6 are allowed"):
        Slice.of(b"..abcdef.")[2:8].split(n)


@pytest.mark.parametrize("bad", [1.5, 2.0, "1", None], ids=repr)
def test_a_slice_is_split_at_a_whole_number(bad: object) -> None:
    with pytest.raises(TypeError):
        Slice.of(b"abcdef").split(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("start", [None, -9, -6, -2, 0, 1, 3, 6, 9])
@pytest.mark.parametrize("stop", [None, -9, -6, -2, 0, 1, 3, 6, 9])
def test_a_sub_slice_has_the_bounds_of_a_list(start: int | None, stop: int | None) -> None:
    part = Slice.of(b"..abcdef.")[2:8][start:stop]
    assert bytes(part) == b"abcdef"[start:stop]
    assert len(part) == len(b"abcdef"[start:stop])


@pytest.mark.parametrize("bad", [0, -1, slice(None, None, 1), slice(0, 2, 2), "1", None, (1, 2)], ids=repr)
def test_single_bytes_and_steps_are_refused_with_what_to_do(bad: Any) -> None:
    with pytest.raises(
        TypeError, match=r"takes a range without a step, as in s\[2:5\]; for single bytes use s\.view"
    ):
        Slice.of(b"abcdef")[bad]


@pytest.mark.parametrize(
    "data",
    [
        b"abcd",
        bytearray(b"abcd"),
        memoryview(b"abcd"),
        memoryview(b"__abcd__")[2:6],
        memoryview(b"abcd").cast("B", (2, 2)),
        array.array("H", b"abcd"),
        (ctypes.c_char * 4)(*b"abcd"),
    ],
    ids=kind,
)
def test_a_slice_of_bytes_like_data_is_on_the_data_itself(data: Any) -> None:
    part = Slice.of(data)
    assert bytes(part) == b"abcd"
    assert len(part) == 4
    if not part.view.readonly:
        memoryview(data).cast("B")[1] = ord("X")
        assert bytes(part) == b"aXcd"


@pytest.mark.parametrize("data", [b"", bytearray(), memoryview(b"abc")[:0], ((ctypes.c_char * 0) * 3)()], ids=kind)
def test_a_slice_of_no_bytes_is_empty(data: Any) -> None:
    part = Slice.of(data)
    assert (len(part), bytes(part), part.view.nbytes, bytes(part[1:])) == (0, b"", 0, b"")


@pytest.mark.parametrize("bad", ["text", 5, None, [1, 2], object], ids=kind)
def test_what_is_not_bytes_like_is_refused_by_its_type(bad: Any) -> None:
    for take in (Slice.of, SliceBuffer().append, SliceBuffer().prepend, lambda data: SliceBuffer([data])):
        with pytest.raises(TypeError) as caught:
            take(bad)
        assert str(caught.value) == (
            "a Slice or a bytes-like object is needed (bytes, bytearray, memoryview), not " + type(bad).__name__
        )


def test_a_view_with_gaps_is_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"not contiguous; pass bytes\(view\) or a contiguous one"):
        Slice.of(memoryview(b"abcdef")[::2])


def test_a_slice_keeps_the_whole_of_its_storage_alive() -> None:
    assert Slice.of(b"abcdef")[2:4].split(1)[0].storage_bytes == 6
    assert Slice.of(array.array("I", [1, 2, 3])).storage_bytes == 12


@pytest.mark.parametrize("arguments", [(), (b"abc", 0, 3, 4)])
def test_a_slice_that_is_made_the_wrong_way_leaves_nothing_behind(arguments: tuple[Any, ...]) -> None:
    """Its `__del__` raises nothing: a warning of that would be an error here."""
    with pytest.raises(TypeError):
        Slice(*arguments)
    gc.collect()


def test_slices_leave_through_a_socket_as_they_are(allocator: MemoryAllocator) -> None:
    whole = allocator.copy(DATA)
    parts = [whole[:100], whole[100:], Slice.of(b"tail")]
    one, other = socket.socketpair()
    with one, other:
        other.settimeout(60)
        assert one.sendmsg([part.view for part in parts]) == SIZE + 4
        assert other.recv(SIZE + 4, socket.MSG_WAITALL) == DATA + b"tail"


def test_the_repr_of_a_slice_shows_its_head() -> None:
    assert repr(Slice.of(b"abc")) == "<Slice of 3 bytes: b'abc'>"
    assert repr(Slice.of(b"0123456789abcdefgh")) == "<Slice of 18 bytes: b'0123456789abcdef'...>"


# The buffer against plain bytes, which lie in it as one slice, in parts, and byte by byte.
TEXT = b"0123456789abcdefghij"


Cut = Callable[[bytes], list[bytes]]
CUTS: dict[str, Cut] = {
    "whole": lambda data: [data],
    "in parts": lambda data: [data[:1], b"", data[1:4], data[4:11], data[11:]],
    "byte by byte": lambda data: [data[n : n + 1] for n in range(len(data))],
}


@pytest.fixture(params=CUTS)
def cut(request: pytest.FixtureRequest) -> Cut:
    return CUTS[request.param]


def amid(data: bytes) -> Slice:
    """A slice of this amid other bytes."""
    return Slice.of(b"<<<" + data + b">")[3:-1]


def check(buffer: SliceBuffer, data: bytes) -> None:
    """A buffer has these bytes, by every way of asking."""
    assert bytes(buffer) == data
    assert len(buffer) == len(data)
    assert b"".join(map(bytes, buffer.slices)) == data
    assert buffer.count == len(buffer.slices)
    assert all(len(part) for part in buffer.slices)
    target = bytearray(len(data) + 3)
    assert buffer.copy_first_into(target) == len(data)
    assert target == data + bytes(3)


@pytest.mark.parametrize("bad", [b"hello", bytearray(b"hello"), memoryview(b"hello"), "hello"])
def test_a_buffer_is_made_of_several_and_who_gives_one_is_told_how(bad: Any) -> None:
    with pytest.raises(TypeError, match=rf"not of {type(bad).__name__}; write SliceBuffer\(\[data\]\)"):
        SliceBuffer(bad)
    with pytest.raises(TypeError, match=r"a bytes-like object is needed .* not int"):
        SliceBuffer([5])  # type: ignore[list-item]  # on purpose


@pytest.mark.parametrize("form", [bytes, amid])
def test_what_is_appended_comes_at_the_end(cut: Cut, form: Callable[[bytes], bytes | Slice]) -> None:
    buffer = SliceBuffer()
    done = b""
    for part in cut(TEXT):
        buffer.append(form(part))
        done += part
        check(buffer, done)
    assert buffer.count == len([part for part in cut(TEXT) if part])


@pytest.mark.parametrize("form", [bytes, amid])
def test_what_is_prepended_comes_first(cut: Cut, form: Callable[[bytes], bytes | Slice]) -> None:
    buffer = SliceBuffer([b"tail"])
    done = b"tail"
    for part in reversed(cut(TEXT)):
        buffer.prepend(form(part))
        done = part + done
        check(buffer, done)


@pytest.mark.parametrize("tail", [b"", b"tail"])
def test_a_buffer_is_made_of_slices_and_bytes(cut: Cut, tail: bytes) -> None:
    check(SliceBuffer([*map(amid, cut(TEXT)), tail]), TEXT + tail)
    check(SliceBuffer(iter([*cut(TEXT), bytearray(tail)])), TEXT + tail)


def test_bytes_of_the_caller_are_neither_copied_nor_charged(quota: ResourceQuota) -> None:
    data = bytearray(b"abc")
    buffer = SliceBuffer([data])
    data[0] = ord("X")
    assert bytes(buffer) == b"Xbc"
    assert quota.memory.used == 0


def test_a_slice_in_a_buffer_shares_its_memory(allocator: MemoryAllocator) -> None:
    one, two = allocator.copy(b"one"), allocator.copy(b"two")
    buffer = SliceBuffer([two])
    buffer.prepend(one)
    one.view[0], two.view[0] = b"OT"
    assert [bytes(part) for part in buffer.slices] == [b"One", b"Two"]
    buffer.slices[0].view[1] = ord("N")
    assert bytes(buffer.take_first()) == bytes(one) == b"ONe"


def test_slices_are_taken_first_to_last(cut: Cut) -> None:
    buffer = SliceBuffer(map(amid, cut(TEXT)))
    rest = TEXT
    for part in filter(None, cut(TEXT)):
        assert bytes(buffer.take_first()) == part
        rest = rest[len(part) :]
        check(buffer, rest)
    assert not rest


def test_an_empty_buffer_gives_no_slice() -> None:
    with pytest.raises(EmptyBufferError, match=r"the SliceBuffer is empty; take_first needs at least one slice"):
        SliceBuffer([b""]).take_first()


@pytest.mark.parametrize("tail", [b"", b"tail"])
@pytest.mark.parametrize("n", range(len(TEXT) + 1))
def test_the_first_bytes_move_to_the_end_of_another_buffer(cut: Cut, n: int, tail: bytes) -> None:
    source, target = SliceBuffer([*map(amid, cut(TEXT)), tail]), SliceBuffer([b"head"])
    source.move_first(n, target)
    check(target, b"head" + TEXT[:n])
    check(source, TEXT[n:] + tail)
    source.move_first(len(source), target)
    check(target, b"head" + TEXT + tail)
    check(source, b"")


@pytest.mark.parametrize("tail", [b"", b"tail"])
@pytest.mark.parametrize("n", range(len(TEXT) + 1))
def test_the_last_bytes_are_dropped(cut: Cut, n: int, tail: bytes) -> None:
    buffer = SliceBuffer([*map(amid, cut(TEXT)), tail])
    buffer.drop_last(n + len(tail))
    check(buffer, TEXT[: len(TEXT) - n])
    buffer.drop_last(len(buffer))
    check(buffer, b"")


@pytest.mark.parametrize("size", range(len(TEXT) + 3))
def test_the_first_bytes_are_copied_as_far_as_the_target_reaches(cut: Cut, size: int) -> None:
    buffer = SliceBuffer(cut(TEXT))
    target = bytearray(b"." * size)
    assert buffer.copy_first_into(target) == min(size, len(TEXT))
    assert target == (TEXT + b"." * size)[:size]
    check(buffer, TEXT)


def test_bytes_are_copied_into_anything_that_can_be_written() -> None:
    buffer = SliceBuffer([b"ab", b"cdef", b"gh"])
    numbers = array.array("H", [0, 0, 0])
    assert buffer.copy_first_into(numbers) == 6
    assert numbers.tobytes() == b"abcdef"
    target = bytearray(8)
    assert buffer.copy_first_into(memoryview(target)[2:5]) == 3
    assert target == b"\0\0abc\0\0\0"


@pytest.mark.parametrize("buffer", [SliceBuffer([b"ab"]), SliceBuffer()], ids=["full", "empty"])
@pytest.mark.parametrize("bad", [b"bytes", memoryview(b"bytes"), "text", 5, None], ids=kind)
def test_what_cannot_be_written_is_refused(buffer: SliceBuffer, bad: Any) -> None:
    with pytest.raises(TypeError):
        buffer.copy_first_into(bad)


@pytest.mark.parametrize("empty", [False, True])
def test_swap_exchanges_all(cut: Cut, empty: bool) -> None:
    one, other = SliceBuffer(cut(TEXT)), SliceBuffer([] if empty else [b"other"])
    one.swap(other)
    check(one, b"" if empty else b"other")
    check(other, TEXT)
    one.append(b"1")
    other.append(b"2")
    check(one, b"1" if empty else b"other1")
    check(other, TEXT + b"2")


def test_a_buffer_swapped_with_itself_stays_as_it_is() -> None:
    buffer = SliceBuffer([TEXT])
    buffer.swap(buffer)
    check(buffer, TEXT)


def test_clear_removes_all_and_gives_the_memory_back(quota: ResourceQuota, allocator: MemoryAllocator) -> None:
    buffer = SliceBuffer([allocator.copy(DATA), b"tail", allocator.copy(DATA)])
    kept = buffer.slices[0][:1]
    assert quota.memory.used == 2 * SIZE
    buffer.clear()
    check(buffer, b"")
    assert quota.memory.used == SIZE
    del kept
    assert quota.memory.used == 0


def test_what_moves_stays_charged_until_it_is_taken_and_dropped(
    quota: ResourceQuota, allocator: MemoryAllocator
) -> None:
    source, target = SliceBuffer([allocator.copy(DATA), allocator.copy(DATA)]), SliceBuffer()
    source.move_first(SIZE + 1, target)
    assert quota.memory.used == 2 * SIZE
    target.take_first()
    assert quota.memory.used == SIZE
    target.clear()
    assert quota.memory.used == SIZE
    source.drop_last(SIZE - 2)
    assert quota.memory.used == SIZE
    source.drop_last(1)
    assert quota.memory.used == 0


def test_the_slices_of_a_buffer_are_those_of_that_moment() -> None:
    buffer = SliceBuffer([b"one"])
    before = buffer.slices
    buffer.append(b"two")
    assert [bytes(part) for part in before] == [b"one"]


OPERATIONS: dict[str, Callable[[SliceBuffer, Any], object]] = {
    "move_first": lambda buffer, n: buffer.move_first(n, SliceBuffer()),
    "drop_last": lambda buffer, n: buffer.drop_last(n),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_more_bytes_than_there_are_cannot_be_taken_and_nothing_is(cut: Cut, operation: str) -> None:
    buffer = SliceBuffer(cut(TEXT))
    with pytest.raises(EmptyBufferError, match="21 bytes were asked for and the SliceBuffer has 20"):
        OPERATIONS[operation](buffer, 21)
    check(buffer, TEXT)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_negative_count_is_refused_and_nothing_is_taken(operation: str) -> None:
    buffer = SliceBuffer([TEXT])
    with pytest.raises(ValueError, match="-1 bytes were asked for; a count is 0 or more"):
        OPERATIONS[operation](buffer, -1)
    check(buffer, TEXT)


@pytest.mark.parametrize("bad", [1.5, 2.0, "1", None], ids=repr)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_count_is_a_whole_number_and_nothing_is_taken_for_another(operation: str, bad: object) -> None:
    buffer = SliceBuffer([TEXT])
    with pytest.raises(TypeError):
        OPERATIONS[operation](buffer, bad)
    check(buffer, TEXT)


def test_a_buffer_does_not_move_into_itself() -> None:
    buffer = SliceBuffer([TEXT])
    with pytest.raises(ValueError, match="move_first needs another SliceBuffer to move into"):
        buffer.move_first(1, buffer)
    check(buffer, TEXT)


@pytest.mark.parametrize("bad", [[], bytearray(5), None], ids=kind)
def test_a_buffer_moves_into_and_swaps_with_buffers_alone(bad: Any) -> None:
    buffer = SliceBuffer([TEXT])
    with pytest.raises(TypeError, match=f"SliceBuffer.* not {type(bad).__name__}"):
        buffer.move_first(1, bad)
    with pytest.raises(TypeError, match=f"SliceBuffer.* not {type(bad).__name__}"):
        buffer.swap(bad)
    check(buffer, TEXT)


def test_the_repr_of_a_buffer_counts_bytes_and_slices() -> None:
    assert repr(SliceBuffer([b"one", b"", b"three"])) == "<SliceBuffer of 8 bytes in 2 slices>"


class Model(RuleBasedStateMachine):
    """Two buffers of slices on a quota, and what they should hold as bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.quota = ResourceQuota()
        self.allocator = self.quota.create_memory_allocator("model")
        self.buffer, self.other = SliceBuffer(), SliceBuffer()
        self.data = self.other_data = b""
        self.held: list[tuple[memoryview, bytes]] = []

    @rule(data=st.binary(max_size=20), front=st.booleans(), charged=st.booleans())
    def add(self, data: bytes, front: bool, charged: bool) -> None:
        part = self.allocator.copy(data) if charged else data
        (self.buffer.prepend if front else self.buffer.append)(part)
        self.data = data + self.data if front else self.data + data

    @rule(share=st.floats(0, 1))
    def move(self, share: float) -> None:
        n = round(share * len(self.data))
        self.buffer.move_first(n, self.other)
        self.other_data += self.data[:n]
        self.data = self.data[n:]

    @rule(size=st.integers(0, 60))
    def copy(self, size: int) -> None:
        target = bytearray(b"." * size)
        assert self.buffer.copy_first_into(target) == min(size, len(self.data))
        assert target == (self.data + b"." * size)[:size]

    @rule(n=st.integers(1), move=st.booleans())
    def ask_for_more_than_there_is(self, n: int, move: bool) -> None:
        with pytest.raises(EmptyBufferError):
            self.buffer.move_first(len(self.data) + n, self.other) if move else self.buffer.drop_last(
                len(self.data) + n
            )

    @rule(share=st.floats(0, 1))
    def drop(self, share: float) -> None:
        n = round(share * len(self.data))
        self.buffer.drop_last(n)
        self.data = self.data[: len(self.data) - n]

    @precondition(lambda self: self.data)
    @rule(hold=st.booleans(), back=st.booleans(), share=st.floats(0, 1))
    def take(self, hold: bool, back: bool, share: float) -> None:
        part = self.buffer.take_first()
        n = len(part)
        assert bytes(part) == self.data[:n]
        if hold:
            self.held.append((part.view, self.data[:n]))
        if back:
            head, tail = part.split(round(share * n))
            self.buffer.prepend(tail)
            self.buffer.prepend(head)
        else:
            self.data = self.data[n:]

    @rule()
    def swap(self) -> None:
        self.buffer.swap(self.other)
        self.data, self.other_data = self.other_data, self.data

    @rule()
    def clear(self) -> None:
        self.buffer.clear()
        self.data = b""

    @rule(share=st.floats(0, 1))
    def let_go(self, share: float) -> None:
        del self.held[: round(share * len(self.held))]

    @invariant()
    def holds(self) -> None:
        check(self.buffer, self.data)
        check(self.other, self.other_data)
        assert all(view == data for view, data in self.held)

    @invariant()
    def charges_each_block_that_something_is_left_of(self) -> None:
        views = [part.view for part in (*self.buffer.slices, *self.other.slices)] + [view for view, _ in self.held]
        blocks = {id(view.obj): len(view.obj) for view in views if type(view.obj) is Block}
        assert self.quota.memory.used == sum(blocks.values())

    def teardown(self) -> None:
        self.buffer.clear()
        self.other.clear()
        self.held.clear()
        assert self.quota.memory.used == 0


TestModel = Model.TestCase
TestModel.settings = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
