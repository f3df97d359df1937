"""What an application asks for memory with, and what it gets: requests, allocators, reservations.

All of it draws on a `MemoryQuota`, whose file has the rules; here is what one user of a quota holds of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, final

from eventengine.memory_quota import MemoryQuota
from eventengine.reclaim import Reclaimer, ReclamationPass
from eventengine.slices import Slice
from eventengine.status import ClosedResourceError

if TYPE_CHECKING:
    from typing import Self

    from typing_extensions import Buffer

__all__ = [
    "MemoryAllocator",
    "MemoryAllocatorFactory",
    "MemoryRequest",
    "Reservation",
]


def _check_int(what: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} is an int, not {type(value).__name__}")


def _check_request(request: object) -> None:
    if not isinstance(request, MemoryRequest):
        raise TypeError(f"a MemoryRequest is needed, not {type(request).__name__}")


@dataclass(frozen=True, slots=True)
class MemoryRequest:
    """How much memory is wanted: at least `min` bytes and, where there is room, up to `max` (None: exactly `min`).

    Raises ValueError unless 0 <= min <= max.
    """

    min: int
    max: int | None = None

    def __post_init__(self) -> None:
        for bound in (self.min, self.most):
            _check_int("a bound of a MemoryRequest", bound)
        if not 0 <= self.min <= (self.min if self.max is None else self.max):
            raise ValueError(f"MemoryRequest({self.min}, {self.max}): 0 <= min <= max must hold")

    @property
    def most(self) -> int:
        return self.min if self.max is None else self.max


@final
class MemoryAllocator:
    """Draws memory from one quota on behalf of one user of it, a connection as a rule.

    Made by `ResourceQuota.create_memory_allocator`. Reserving never fails and never waits; it may take the quota
    above its size, and reads then wait until memory came back. Slices and reservations outlive the allocator.
    May be called from any thread; every method but `close` raises ClosedResourceError after `close`.

    Source: `memory_allocator.h` in `grpc/event_engine`.
    """

    __slots__ = ("_closed", "_has_posted", "_memory", "_name", "_reserved")

    def __init__(self, memory: MemoryQuota, name: str) -> None:
        self._memory = memory
        self._name = name
        self._reserved = 0
        self._closed = self._has_posted = False

    @property
    def name(self) -> str:
        return self._name

    @property
    def memory(self) -> MemoryQuota:
        """The quota that this allocator draws on."""
        return self._memory

    def reserve(self, request: MemoryRequest) -> int:
        """Counts bytes that the caller keeps in storage of its own; returns how many, `request.min` to `request.max`.

        They are counted until `release` or `close`. Less than the maximum is granted under pressure, and never more
        than a sixteenth of the quota beyond the minimum.
        """
        _check_request(request)
        self._check_open()
        amount = self._memory.take(request.min, request.most)
        with self._memory._lock:
            if not self._closed:
                self._reserved += amount
                return amount
        self._memory.give(amount)
        raise ClosedResourceError(f"the memory allocator {self._name!r} was closed")

    def release(self, n: int) -> None:
        """Gives back `n` reserved bytes. Raises ValueError for a negative `n` or more than is reserved."""
        _check_int("a count of bytes", n)
        with self._memory._lock:
            self._check_open()
            if not 0 <= n <= self._reserved:
                raise ValueError(f"cannot release {n} bytes; {self._reserved} are reserved")
            self._reserved -= n
        self._memory.give(n)

    def make_reservation(self, request: MemoryRequest) -> Reservation:
        """As `reserve`, for an object that gives the bytes back when it is released or collected."""
        _check_request(request)
        self._check_open()
        return Reservation(self._memory, self._memory.take(request.min, request.most))

    def make_slice(self, request: MemoryRequest) -> Slice:
        """A slice of `request.min` to `request.max` bytes of undefined content, to be written through its `view`.

        Its memory is counted, rounded up to the block it lies in, until the last view of it is gone.
        """
        _check_request(request)
        self._check_open()
        if not request.most:
            return Slice.of(b"")
        block = self._memory.make_block(request.min, request.most)
        return Slice(memoryview(block)[: request.most])

    def copy(self, data: Buffer) -> Slice:
        """A slice with a copy of a bytes-like object."""
        source = memoryview(data).cast("B")
        target = self.make_slice(MemoryRequest(len(source)))
        if source:
            target.view[:] = source
        return target

    def post_reclaimer(self, which: ReclamationPass, reclaimer: Reclaimer) -> None:
        """Has `reclaimer` called when the quota is short of memory: once; who wants to be called again posts again.

        The mildest pass goes first, and within it who has waited longest. BENIGN and IDLE run when more is lent than
        the quota has, or somebody waits for memory; DESTRUCTIVE only in the first case. Another of the same pass
        replaces the one that was posted before.

        Args:
            which: What calling it costs.
            reclaimer: Called with a `ReclamationSweep`, in the thread that ran short, which may be any, and may hold
                locks of its own: it must be quick, as by handing the work to a loop. No other is called until
                `sweep.finish()`, or until the sweep is forgotten. Called with None, from any thread, if it was replaced
                or the allocator is closed. What it raises is logged.
        """
        if not isinstance(which, ReclamationPass):
            raise TypeError(f"a ReclamationPass is needed, not {type(which).__name__}")
        if not callable(reclaimer):
            raise TypeError(f"a reclaimer is called with a sweep; {type(reclaimer).__name__} cannot be called")
        self._check_open()
        self._has_posted = True
        self._memory.reclaimers.post(id(self), which, reclaimer)
        if self._closed:  # by another thread just now
            self._memory.reclaimers.cancel(id(self))

    def close(self) -> None:
        """Gives back what `reserve` counted and ends the use of this allocator. May be called twice."""
        with self._memory._lock:
            self._closed = True
            amount, self._reserved = self._reserved, 0
        if amount:
            self._memory.give(amount)
        if self._has_posted:
            self._memory.reclaimers.cancel(id(self))

    def __del__(self) -> None:
        # Nobody else can be here; and it must not wait for the lock, see rule 1 of `memory_quota`.
        amount = getattr(self, "_reserved", 0)  # none if its making failed
        if amount:
            self._reserved = 0
            self._memory.give(amount)
        if getattr(self, "_has_posted", False):
            self._memory.reclaimers.cancel(id(self))

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedResourceError(f"the memory allocator {self._name!r} was closed")

    def __repr__(self) -> str:
        return f"<MemoryAllocator {self._name!r}{' closed' if self._closed else ''}>"


class MemoryAllocatorFactory(Protocol):
    """Makes an allocator for each connection that a listener accepts; a `ResourceQuota` is one.

    Called on the engine's thread for each connection: for the application's own use, and, unless the factory is a
    `ResourceQuota`, for the endpoint.
    """

    def create_memory_allocator(self, name: str) -> MemoryAllocator: ...


@final
class Reservation:
    """Bytes counted in a quota until `release`, the end of a `with` block, or the end of this object."""

    __slots__ = ("_held", "_memory")

    def __init__(self, memory: MemoryQuota, size: int) -> None:
        self._memory = memory
        self._held = [size]  # emptied by who releases, which is atomic

    @property
    def size(self) -> int:
        """The bytes that are reserved; 0 once they were released."""
        return sum(self._held)

    def release(self) -> None:
        """Gives the bytes back. May be called twice, and from any thread."""
        try:
            size = self._held.pop()
        except IndexError:
            return
        self._memory.give(size)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __del__(self) -> None:
        if hasattr(self, "_held"):  # else its making failed
            self.release()
