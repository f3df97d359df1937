"""`MemoryQuota`: memory that is counted, and the pools of blocks behind slices.

Rules:

1. `_lock` is re-entrant, for a collection within the code that holds it may run a `__del__` of the application's that
   releases or closes something; no statement under it spans a call between reading and writing what it protects.
   `_taken` is what the quota has made and lent: whole blocks, in use or pooled, and reservations. It changes only
   under `_lock`. Blocks die in any thread, also inside a garbage collection that interrupts a holder of the lock, so
   what they give back is appended to `_given` (a deque's append is atomic) and folded in by the next who locks.
2. Taking never fails and never waits. What bounds memory is that *reading* waits: `try_block` gives None while there
   is no room, and the endpoint puts itself on `waiters`.
3. No wake-up is lost: a waiter registers first and tries again after; who gives back appends first and looks for
   waiters after. One gift wakes one waiter, who wakes the next when it finds room left. Bulk waiters, who want more
   than a block, are woken all, and only while no other waits; they stay enlisted, so being woken in vain loses nothing.
4. Pools are the reserve that spares the lock: free lists of blocks of a power of two, whose pop and append are
   atomic. Pooled blocks count in `taken` and `peak`, so the bound includes them, but not in `used`. As soon as more
   than 0.8 of the quota is taken (`is_tight`), every request goes the slow way, which empties the pools before it
   would exceed the size.
5. A connection that is idle has no reserve of its own; pools belong to the quota.

Sizes under pressure follow gRPC's memory_quota.cc: above 0.8 the part of a request above its minimum shrinks by
(1 - p) / 0.2, and one request gets at most a sixteenth of the quota, but never less than its minimum.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable

from eventengine.reclaim import Reclaimers, ReclamationPass
from eventengine.slices import Block, Pool

__all__ = ["MemoryQuota", "check_quota_size", "format_size", "parse_size"]

SMALLEST_BLOCK = 256
LARGEST_POOLED_BLOCK = 256 * 1024
UNLIMITED = 1 << 62
_POOLED_BYTES_PER_SIZE = 2 << 20  # a free list keeps at most this many bytes, or eight blocks
_TIGHT = 0.8

_UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", re.ASCII)


def parse_size(size: int | str) -> int:
    """Bytes from a number or from text such as `"64MiB"`: B, KiB, MiB, GiB or TiB, in any case.

    Raises ValueError with the text that was given and what is allowed.
    """
    given = size
    if isinstance(size, str):
        if len(size) > 40:
            raise ValueError(f"a size of {size[:40]!r}... is out of range; it must be at most 2**62 bytes")
        match = _SIZE.fullmatch(size)
        unit = _UNITS.get(match[2].upper()) if match else None
        if match is None or unit is None:
            raise ValueError(f"{size!r} is not a size; write a number of bytes or one with KiB, MiB, GiB or TiB")
        size = int(float(match[1]) * unit) if "." in match[1] else int(match[1]) * unit
    elif isinstance(size, bool) or not isinstance(size, int):
        raise TypeError(f'a size is an int of bytes or a text such as "64MiB", not {type(size).__name__}')
    if not 1 <= size <= UNLIMITED:
        raise ValueError(f"a size of {given!r} is out of range; it must be at least 1 and at most 2**62 bytes")
    return size


def format_size(size: int) -> str:
    """Text that `parse_size` reads, in the largest unit of which it is a whole number."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size % _UNITS[unit.upper()] == 0:
            return f"{size // _UNITS[unit.upper()]} {unit}"
    return f"{size} B"


def check_quota_size(size: int | str) -> int:
    """As `parse_size`, for a quota: one that has no room for the smallest block would have reads wait for ever."""
    parsed = parse_size(size)
    if parsed < SMALLEST_BLOCK:
        raise ValueError(f"a quota of {parsed} bytes has no room for a single read; give {SMALLEST_BLOCK} or more")
    return parsed


class MemoryQuota:
    """The memory part of a `ResourceQuota`: how much is allowed, and how much is there.

    Any method may be called from any thread.
    """

    __slots__ = (
        "__weakref__",
        "_given",
        "_least",
        "_lock",
        "_peak",
        "_size",
        "_taken",
        "bulk_waiters",
        "is_tight",
        "pools",
        "reclaimers",
        "waiters",
    )

    def __init__(self, size: int = UNLIMITED) -> None:
        self._lock = threading.RLock()
        self._size = size
        self._least = SMALLEST_BLOCK
        self._taken = 0
        self._peak = 0
        self._given: deque[int] = deque()
        self.is_tight = False
        self.waiters: OrderedDict[Callable[[], object], None] = OrderedDict()
        self.bulk_waiters: dict[Callable[[], object], None] = {}
        self.reclaimers = Reclaimers(self._shortage)
        self.pools: dict[int, Pool] = {}
        size_of_block = SMALLEST_BLOCK
        while size_of_block <= LARGEST_POOLED_BLOCK:
            self.pools[size_of_block] = Pool(max(8, _POOLED_BYTES_PER_SIZE // size_of_block))
            size_of_block *= 2
        _quotas.add(self)

    @property
    def size(self) -> int | None:
        """The limit in bytes; None where there is none."""
        return None if self._size == UNLIMITED else self._size

    @property
    def used(self) -> int:
        """Bytes in blocks that someone holds, and in reservations."""
        with self._lock:
            self._fold()
            return self._taken - self._pooled()

    @property
    def peak(self) -> int:
        """The most bytes that there have been at one time, pooled blocks included."""
        return self._peak

    @property
    def pressure(self) -> float:
        """used / size: 0.0 where there is no limit, above 1.0 while more is lent than allowed."""
        return self.used / self._size if self._size != UNLIMITED else 0.0

    def resize(self, size: int | str) -> None:
        """Changes the limit, as bytes or text (`"256MiB"`).

        A smaller one frees the pools and takes nothing away that is in use: reads wait until enough was given back.
        Raises ValueError or TypeError for what is not a size, and for less than what is served from it needs.
        """
        new = check_quota_size(size)
        if new < self._least:
            raise ValueError(
                f"a quota of {new} bytes has no room for what is served from it; "
                f"give {format_size(self._least)} or more"
            )
        with self._lock:
            self._size = new
            self._fold()
            self._trim(self._taken - new)
            for size, pool in self.pools.items():
                if size > max(SMALLEST_BLOCK, new >> 4):  # no way to more than a request may have
                    pool.clear()
        self._reclaim()
        self.wake_next_waiter()

    def need(self, least: int) -> None:
        """Has `resize` refuse what is less from now on."""
        self._least = max(self._least, least)

    def take(self, minimum: int, most: int) -> int:
        """Counts between `minimum` and `most` bytes as taken, and says how many. Never fails."""
        with self._lock:
            if self._given:
                self._fold()
            amount = minimum if minimum == most else self._sized(minimum, most)
            if self._taken + amount > self._size:
                self._trim(self._taken + amount - self._size)
            self._count(amount)
        if self._taken > self._size or self.waiters or self.bulk_waiters:
            self._reclaim()
        return amount

    def try_take(self, amount: int, leave: int = 0) -> bool:
        """Counts `amount` bytes as taken, if there is room for them and `leave` bytes more."""
        with self._lock:
            self._fold()
            self._trim(self._taken + amount + leave - self._size)
            if self._taken + amount + leave > self._size:
                return False
            self._count(amount)
            return True

    @property
    def is_over(self) -> bool:
        """Whether more is lent than the limit allows."""
        return self._taken > self._size and self.used > self._size

    def give(self, amount: int) -> None:
        """Gives back what was taken. Takes no lock: it is what a block calls when it dies."""
        self._given.append(amount)
        if self.waiters or self.bulk_waiters:
            self.wake_one()

    def make_block(self, minimum: int, most: int) -> Block:
        """A block of at least `minimum` bytes, whatever the limit says."""
        size = _block_size(most)
        if (
            not self.is_tight
            and size <= max(_block_size(minimum), self._size >> 4)
            and (pool := self.pools.get(size))
        ):
            try:
                return pool.pop()
            except IndexError:  # another thread took the last one
                pass
        with self._lock:
            self._fold()
            wanted = self._sized(minimum, most)
            size = _block_size(wanted)
            if wanted < most and size > wanted and size // 2 >= max(minimum, SMALLEST_BLOCK):
                size //= 2  # or rounding up would undo the shrinking
            self._trim(self._taken + size - self._size)
            block = self._new_block(size)
        self._reclaim()
        return block

    def try_block(self, size: int) -> Block | None:
        """A block for reading, of SMALLEST_BLOCK to `size` bytes, which is the size of a pool; None when the quota
        has no room for any."""
        if not self.is_tight and size <= max(SMALLEST_BLOCK, self._size >> 4) and (pool := self.pools[size]):
            try:
                return pool.pop()
            except IndexError:  # another thread took the last one
                pass
        with self._lock:
            self._fold()
            size = self._sized(SMALLEST_BLOCK, size)
            self._trim(self._taken + size - self._size)
            size = min(size, self._size - self._taken)
            if size < SMALLEST_BLOCK:
                return None
            return self._new_block(1 << (size.bit_length() - 1))

    def put_back(self, block: Block) -> None:
        """Returns a block that nothing but the caller refers to, and that it will not use again, to its pool."""
        pool = block.pool
        if pool is not None:
            pool.append(block)
            if self.waiters or self.bulk_waiters:
                self.wake_one()

    def add_waiter(self, on_room: Callable[[], object]) -> None:
        """Has `on_room` called once, in any thread, when memory was given back; it must take no lock of the quota.

        The caller tries again after this (rule 3). Who was woken calls `wake_next_waiter` once it took what it
        wanted, or wants it no longer; an `on_room` that knows this at once returns True, and the next is woken.
        """
        self.waiters[on_room] = None
        self._reclaim()

    def keep_place(self, on_room: Callable[[], object]) -> None:
        """Puts a waiter that was woken in vain, and waits again, back to the head of the line."""
        with contextlib.suppress(KeyError):  # it is being woken again
            self.waiters.move_to_end(on_room, last=False)

    def remove_waiter(self, on_room: Callable[[], object]) -> None:
        """Takes back `add_waiter`. If it was being woken just then, the call to `on_room` still comes."""
        self.waiters.pop(on_room, None)

    def add_bulk_waiter(self, on_room: Callable[[], object]) -> None:
        """Has `on_room` called, in any thread, whenever memory was given back that no other waits for, until
        `remove_bulk_waiter`: for who wants much at a time, and must not stand in the way of who wants little."""
        self.bulk_waiters[on_room] = None
        self._reclaim()

    def remove_bulk_waiter(self, on_room: Callable[[], object]) -> None:
        """Takes back `add_bulk_waiter`; a call to `on_room` may still come."""
        self.bulk_waiters.pop(on_room, None)

    @property
    def has_room(self) -> bool:
        """Whether there is room for any block."""
        with self._lock:
            self._fold()
            return self._size - self._taken + self._pooled() >= SMALLEST_BLOCK

    @property
    def somebody_waits(self) -> bool:
        """Whether anything waits for memory now, on any loop."""
        return bool(self.waiters or self.bulk_waiters)

    def wake_next_waiter(self) -> None:
        """Wakes a waiter if there is room for one."""
        if (self.waiters or self.bulk_waiters) and self.has_room:
            self.wake_one()

    def wake_one(self) -> None:
        """Wakes the waiter that has waited longest; where there is none, those in bulk."""
        while self.waiters:
            try:
                on_room, _ = self.waiters.popitem(last=False)
            except KeyError:  # another thread was faster
                return
            if on_room() is not True:
                return
        for on_room in list(self.bulk_waiters):
            on_room()

    def _reclaim(self) -> None:
        if (self._taken > self._size or self.waiters or self.bulk_waiters) and self.reclaimers:
            self.reclaimers.start()

    def _shortage(self) -> ReclamationPass | None:
        if self.is_over:
            return ReclamationPass.DESTRUCTIVE
        return ReclamationPass.IDLE if self.somebody_waits else None

    # What follows is called with the lock held.

    def _new_block(self, size: int) -> Block:
        # One that is more than a request may have would, pooled, be a way to get it.
        pool = self.pools.get(size) if size <= max(SMALLEST_BLOCK, self._size >> 4) else None
        block = Block(size, self, pool)  # first, for it may fail
        self._count(size)
        return block

    def _fold(self) -> None:
        while self._given:
            amount = self._given.popleft()
            self._taken -= amount
        self.is_tight = self._taken > self._size * _TIGHT

    def _count(self, amount: int) -> None:
        self._taken += amount
        if self._taken > self._peak:  # no call of max: rule 1
            self._peak = self._taken
        self.is_tight = self._taken > self._size * _TIGHT

    def _sized(self, minimum: int, most: int) -> int:
        """What a request gets under today's pressure."""
        if self._size == UNLIMITED:
            return most
        pressure = (self._taken - self._pooled()) / self._size if self.is_tight else 0.0
        if pressure > _TIGHT:
            most = minimum + int((most - minimum) * max(0.0, 1.0 - pressure) / (1.0 - _TIGHT))
        return max(minimum, min(most, self._size // 16))

    def _pooled(self) -> int:
        return sum(len(pool) * size for size, pool in self.pools.items())

    def _trim(self, amount: int) -> None:
        """Frees pooled blocks, the largest first, until `amount` bytes are free or none is left."""
        if amount > 0:
            for pool in reversed(self.pools.values()):
                while pool and amount > 0:
                    try:
                        block = pool.pop()
                    except IndexError:  # another thread took the last one
                        break
                    size = len(block)
                    block.owner = _NOBODY  # that it dies is no news for those who wait
                    self._taken -= size
                    amount -= size
            self._fold()


class _Nobody:
    """The owner of a block whose charge was given back for it."""

    waiters = bulk_waiters = ()

    def give(self, amount: int) -> None:
        """Nothing is left to give."""

    def wake_one(self) -> None:
        """Nobody waits."""


_NOBODY = _Nobody()


def _block_size(wanted: int) -> int:
    """The power of two that holds `wanted` where blocks of that size are pooled; else `wanted`."""
    if wanted > LARGEST_POOLED_BLOCK:
        return wanted
    return max(SMALLEST_BLOCK, 1 << (wanted - 1).bit_length())


_quotas: weakref.WeakSet[MemoryQuota] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    # The lock may have been held by a thread that the child does not have; the waiters are the parent's endpoints.
    for memory in list(_quotas):
        memory._lock = threading.RLock()
        memory.waiters.clear()
        memory.bulk_waiters.clear()
        memory.reclaimers = Reclaimers(memory._shortage)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
