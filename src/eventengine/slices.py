"""`Slice` and `SliceBuffer`: bytes by reference, from the socket to the application and back.

Rules:

1. A buffer is a list of memoryviews, its *parts*; a `Slice` is one of them as an object, made when somebody asks for
   it. Cutting copies nothing.
2. What a view shows is either a `Block`, which is charged to a quota, or a bytes-like object of the application, which
   is not.
3. A block is charged when it is made. When a part or a slice on it is done with, one of two things happens. If nothing
   else refers to the block, it goes to the pool it came from, to be filled again. If anything does, a memoryview above
   all, the block is left to whoever holds it and gives its charge back when that is gone. So a view that was handed
   out never shows the bytes of another read. The view at hand is let go before anybody counts: views that were cut
   from one another share a single reference to the block.
4. A garbage collection calls the `__del__` of all that it found, in any order: of a slice in a cycle and of its block.
   Such a slice pools nothing, or the block would live on, its charge given back already.
5. Rule 3 asks CPython's reference count, which is exact only under the GIL; without one, nothing is pooled.
   `Slice.__del__` and `Block.__del__` run in any thread, also inside a garbage collection that interrupts the
   quota's own code: they take no lock.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Collection, Iterable
from gc import get_referents as _referents
from gc import is_finalized as _is_finalized
from typing import TYPE_CHECKING, Protocol, SupportsIndex

from eventengine.status import EmptyBufferError

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Slice", "SliceBuffer"]


class BlockOwner(Protocol):
    """What a block needs of the quota it is charged to. Both methods may run in any thread, and take no lock."""

    @property
    def waiters(self) -> Collection[object]: ...

    @property
    def bulk_waiters(self) -> Collection[object]: ...

    def give(self, amount: int) -> None: ...

    def wake_one(self) -> None: ...


class Pool(deque["Block"]):
    """A free list of blocks of one size, at most `limit` of them: one more lets the oldest go."""

    __slots__ = ()

    def __init__(self, limit: int) -> None:
        super().__init__(maxlen=limit)


_MAPPED = 1 << 17
_SHIFT = 48
"""glibc gives blocks of 128 KiB and more pages of their own, and begins 16 bytes into the first. There the kernel's
copy, a `rep movsb`, takes six times as long on an AMD EPYC if the sender's bytes begin up to 15 bytes into a page: it
writes closely ahead of where it reads next, in the low 12 bits that the processor compares. Bulk over loopback met that
often enough to be an eighth slower (docs/benchmarks.md); 64 bytes into the page it does not."""


class Block(bytearray):
    """A fixed number of bytes charged to `owner`; `pool` is the free list that it may return to, or None."""

    __slots__ = ("owner", "pool")

    def __init__(self, size: int, owner: BlockOwner, pool: Pool | None) -> None:
        self.owner: BlockOwner = owner  # first, for `__del__` runs also when there is no memory
        self.pool: Pool | None = pool
        if size < _MAPPED:
            super().__init__(size)
        else:
            super().__init__(size + _SHIFT)
            del self[:_SHIFT]  # moves the beginning, not the bytes

    def __del__(self) -> None:
        self.pool = None  # who finds it again, in a cycle, must not pool what is no longer charged
        self.owner.give(len(self))

    def __repr__(self) -> str:
        return f"<Block of {len(self)} bytes>"  # and not all of them


class Slice:
    """A run of bytes; its parts share its storage. Made by a `MemoryAllocator`, by an endpoint's read, or `of`.

    Immutable in extent. The content of one from `MemoryAllocator.make_slice` is there to be written, through
    `view`; who shares the storage sees it change. May be used from any thread, if none writes while others read.
    """

    __slots__ = ("_view",)

    def __init__(self, view: memoryview) -> None:
        self._view = view

    @classmethod
    def of(cls, data: Buffer) -> Slice:
        """A slice on `data` itself, any C-contiguous bytes-like object: not copied, not charged to a quota.

        A bytearray or memoryview must not change while the slice is in use; `MemoryAllocator.copy` copies.
        Raises TypeError for what is not bytes-like, ValueError for a view that is not contiguous.
        """
        return cls(_view_of(data))

    def __del__(self) -> None:
        try:
            block = self._view.obj
        except AttributeError:  # its making failed
            return
        if type(block) is Block and not _is_finalized(self):
            del self._view
            if (pool := block.pool) is not None and _references(block) == _ONLY_OURS:
                owner = block.owner  # before it is anybody's
                pool.append(block)
                if owner.waiters or owner.bulk_waiters:
                    owner.wake_one()

    def __len__(self) -> int:
        return len(self._view)

    @property
    def view(self) -> memoryview:
        """A new memoryview of the bytes, of format "B". It keeps the memory, and the charge for it, alive."""
        return self._view[:]

    @property
    def storage_bytes(self) -> int:
        """The bytes of memory that this slice keeps alive; what is charged, for one that a quota made."""
        return memoryview(self._view.obj).nbytes

    def __bytes__(self) -> bytes:
        return bytes(self._view)

    def split(self, n: int) -> tuple[Slice, Slice]:
        """The first `n` bytes and the rest, which share the storage. Raises ValueError unless 0 <= n <= len."""
        if not 0 <= n <= len(self._view):
            raise ValueError(f"cannot split {len(self)} bytes at {n}; 0 to {len(self)} are allowed")
        return Slice(self._view[:n]), Slice(self._view[n:])

    def __getitem__(self, part: slice[SupportsIndex | None, SupportsIndex | None, None]) -> Slice:
        """A sub-slice, `s[2:5]`, which shares the storage. Raises TypeError for an index or a step."""
        if type(part) is not slice or part.step is not None:
            raise TypeError("a Slice takes a range without a step, as in s[2:5]; for single bytes use s.view")
        return Slice(self._view[part])

    def __repr__(self) -> str:
        return f"<Slice of {len(self)} bytes: {bytes(self._view[:16])!r}{'...' if len(self) > 16 else ''}>"


def _view_of(data: Buffer) -> memoryview:
    try:
        view = memoryview(data)
    except TypeError:
        raise TypeError(
            f"a Slice or a bytes-like object is needed (bytes, bytearray, memoryview), not {type(data).__name__}"
        ) from None
    if view.format == "B" and view.ndim == 1 and view.contiguous:
        return view
    if not view.c_contiguous:
        raise ValueError("the memoryview is not contiguous; pass bytes(view) or a contiguous one")
    return view.cast("B") if view.nbytes else memoryview(b"")


def recycle_last(parts: list[memoryview]) -> None:
    """Takes the last part out, and returns its block to the pool if nothing else refers to it: rule 3."""
    block = parts.pop().obj
    if type(block) is Block and (pool := block.pool) is not None and _references(block) == _ONLY_OURS:
        owner = block.owner  # before it is anybody's
        pool.append(block)
        if owner.waiters or owner.bulk_waiters:
            owner.wake_one()


def recycle_all(parts: list[memoryview]) -> None:
    """`recycle_last`, as often as there are parts: a call for each would cost."""
    while parts:
        block = parts.pop().obj
        if type(block) is Block and (pool := block.pool) is not None and _references(block) == _ONLY_OURS:
            owner = block.owner
            pool.append(block)
            if owner.waiters or owner.bulk_waiters:
                owner.wake_one()


_references = sys.getrefcount


def _count_ours() -> int:
    """What `_references` says of a block to which a local variable alone refers; -1 without a GIL."""
    gil: bool = getattr(sys, "_is_gil_enabled", lambda: True)()
    if not gil:
        return -1
    trace = sys.gettrace()
    sys.settrace(None)  # a debugger that looks at the locals refers to them, too
    try:
        return _probe([memoryview(bytearray(1))])
    finally:
        sys.settrace(trace)


def _probe(parts: list[memoryview]) -> int:
    block = parts.pop().obj
    return _references(block)


_ONLY_OURS = _count_ours()


def is_unshared(part: memoryview) -> bool:
    """Whether `part`, a local variable of the caller's, is all that refers to its block, which may then be written
    to: no other view, whole or cut, nobody else who has this one, nobody who has the block."""
    return type(part.obj) is Block and not part.readonly and _holders(part) == _NOBODY_ELSE


def _holders(part: memoryview) -> tuple[int, int, int]:
    # What a view refers to is not the block, but what all views that were cut from one another share.
    shared = _referents(part)
    return _references(part), _references(shared[0]) if shared else 0, _references(part.obj)


def _count_ours_of_a_view() -> tuple[int, int, int] | None:
    if _ONLY_OURS == -1:
        return None
    trace = sys.gettrace()
    sys.settrace(None)
    try:
        return _probe_view([memoryview(bytearray(1))])
    finally:
        sys.settrace(trace)


def _probe_view(parts: list[memoryview]) -> tuple[int, int, int]:
    part = parts.pop()
    return _probe_argument(part)


def _probe_argument(part: memoryview) -> tuple[int, int, int]:
    return _holders(part)


_NOBODY_ELSE = _count_ours_of_a_view()


class SliceBuffer:
    """A queue of slices, read into by `Endpoint.read`, emptied by `Endpoint.write`. `len()` is bytes.

    Not locked: one thread at a time. While a read or a write is outstanding the endpoint borrows the buffer, and
    nobody else may touch it. Another read or write that is given a buffer of an outstanding read is refused; that its
    other methods are not called is not checked.
    """

    __slots__ = ("_length", "_lent", "_parts")

    def __init__(self, slices: Iterable[Slice | Buffer] = ()) -> None:
        self._parts: list[memoryview] = []
        self._length = 0
        self._lent = False  # to a read that is outstanding
        try:
            for part in slices:
                self.append(part)
        except TypeError:
            if isinstance(slices, bytes | bytearray | memoryview | str):  # whose parts are no slices
                raise TypeError(
                    f"a SliceBuffer is made of slices, not of {type(slices).__name__}; write SliceBuffer([data])"
                ) from None
            raise

    def __len__(self) -> int:
        return self._length

    @property
    def count(self) -> int:
        """How many slices there are; none of them is empty."""
        return len(self._parts)

    @property
    def slices(self) -> tuple[Slice, ...]:
        """The slices, first to last, as they are now."""
        return tuple([Slice(part) for part in self._parts])

    def __bytes__(self) -> bytes:
        return b"".join(self._parts)

    def append(self, data: Slice | Buffer) -> None:
        """Adds at the end, without a copy; see `Slice.of` for what is allowed. Nothing is added for no bytes."""
        part = data._view if isinstance(data, Slice) else _view_of(data)
        if part:
            self._parts.append(part)
            self._length += len(part)

    def prepend(self, data: Slice | Buffer) -> None:
        """Adds at the front, else as `append`."""
        part = data._view if isinstance(data, Slice) else _view_of(data)
        if part:
            self._parts.insert(0, part)
            self._length += len(part)

    def take_first(self) -> Slice:
        """Takes the first slice out. Raises EmptyBufferError when there is none."""
        if not self._parts:
            raise EmptyBufferError(
                "the SliceBuffer is empty; take_first needs at least one slice (ask len or count)"
            )
        part = self._parts.pop(0)
        self._length -= len(part)
        return Slice(part)

    def move_first(self, n: int, into: SliceBuffer) -> None:
        """Moves the first `n` bytes to the end of `into`, cutting a slice in two where needed.

        Raises EmptyBufferError, and moves nothing, when there are fewer; ValueError for a negative `n` or when
        `into` is this buffer.
        """
        self._check_count(n)
        _check_is_buffer(into)
        if into is self:
            raise ValueError("move_first needs another SliceBuffer to move into")
        parts = self._parts
        whole = 0
        left = n
        while left and len(parts[whole]) <= left:
            left -= len(parts[whole])
            whole += 1
        into._parts += parts[:whole]
        del parts[:whole]
        if left:
            into._parts.append(parts[0][:left])
            parts[0] = parts[0][left:]
        into._length += n
        self._length -= n

    def copy_first_into(self, target: Buffer) -> int:
        """Copies from the front into a writable bytes-like object until one of the two ends; takes nothing out.

        Returns the number of bytes copied.
        """
        view = memoryview(target).cast("B")
        if view.readonly:
            raise TypeError(f"copy_first_into needs a writable bytes-like object, not {type(target).__name__}")
        done = 0
        for part in self._parts:
            if done == len(view):
                break
            piece = part[: len(view) - done]
            view[done : done + len(piece)] = piece
            done += len(piece)
        return done

    def drop_last(self, n: int) -> None:
        """Removes the last `n` bytes. Raises EmptyBufferError when there are fewer, ValueError for a negative `n`."""
        self._check_count(n)
        self._length -= n
        parts = self._parts
        while n:
            left = len(parts[-1]) - n
            if left > 0:
                parts[-1] = parts[-1][:left]
                break
            n = -left
            recycle_last(parts)

    def swap(self, other: SliceBuffer) -> None:
        """Exchanges the contents of the two buffers."""
        _check_is_buffer(other)
        self._parts, other._parts = other._parts, self._parts
        self._length, other._length = other._length, self._length

    def clear(self) -> None:
        """Removes everything; memory that nobody else holds is given back."""
        parts, self._parts = self._parts, []
        self._length = 0
        while parts:
            recycle_last(parts)

    def _check_count(self, n: int) -> None:
        if not isinstance(n, int):
            raise TypeError(f"a count of bytes is an int, not {type(n).__name__}")
        if n < 0:
            raise ValueError(f"{n} bytes were asked for; a count is 0 or more")
        if n > self._length:
            raise EmptyBufferError(f"{n} bytes were asked for and the SliceBuffer has {self._length}")

    def __repr__(self) -> str:
        return f"<SliceBuffer of {self._length} bytes in {len(self._parts)} slices>"


def _check_is_buffer(value: object) -> None:
    if not isinstance(value, SliceBuffer):
        raise TypeError(f"a SliceBuffer is needed, not {type(value).__name__}")
