"""`ResourceQuota`: one bound for the memory, the connections and the threads of everything that shares it.

What memory is, and when a read waits, stands in `memory_quota`; this file adds the two plain counters.

The counters change under a lock of their own. Giving back takes no lock, for what is collected gives back in whatever
code the collection interrupts, the holder of the lock included: it is queued, and counted by who looks next, as in
`memory_quota`. Listeners that found no connection left wait in line: who gives one back wakes the first.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from eventengine.memory import MemoryAllocator
from eventengine.memory_quota import UNLIMITED, MemoryQuota, check_quota_size, format_size, parse_size
from eventengine.status import Status, StatusCode, StatusError
from eventengine.tally import number_of

__all__ = [
    "LEAST_SERVED",
    "ConnectionQuota",
    "ResourceQuota",
    "ThreadQuota",
    "as_quota",
    "check_served_size",
    "describe_limits",
]

LEAST_SERVED: Final = 128 << 10
"""Bytes of memory that a quota for connections of a framework has at least: one of Twisted's with TLS is charged half
of that, and needs room beside it for what is read and written, and for a piece of a body."""


class _Counter:
    """So many of something may be out at a time. Any method may be called from any thread."""

    __slots__ = ("__weakref__", "_given", "_lock", "_size", "_used")

    def __init__(self, size: int | None) -> None:
        self._lock = threading.Lock()
        self._size = size
        self._used = 0
        self._given: deque[int] = deque()
        _counters.add(self)

    @property
    def size(self) -> int | None:
        """The limit; None where there is none."""
        return self._size

    @property
    def used(self) -> int:
        """How many are out now."""
        with self._lock:
            return self._count()

    def _take(self, n: int) -> bool:
        with self._lock:
            used = self._count()  # also where there is no limit, or what is given back would pile up
            if self._size is not None and used + n > self._size:
                return False
            self._used += n
            return True

    def _give(self, n: int) -> None:
        self._given.append(n)

    def _count(self) -> int:
        """With the lock held."""
        while self._given:
            self._used -= self._given.popleft()
        return self._used


class ConnectionQuota(_Counter):
    """The connections that listeners may have accepted at a time. At the limit they leave new ones in the backlog."""

    __slots__ = ("_waiters",)

    def __init__(self, size: int | None) -> None:
        super().__init__(size)
        self._waiters: OrderedDict[Callable[[], object], None] = OrderedDict()

    def try_take(self, on_free: Callable[[], object]) -> bool:
        """Takes one connection. Where none is left, returns False and has `on_free` called, once and in any thread,
        when one is; if it is then not wanted any more, `wake_one` passes it on."""
        if self._take(1):
            return True
        self._waiters[on_free] = None
        if not self._take(1):
            return False
        self.cancel_wait(on_free)  # one was given back between the two looks
        return True

    def add(self) -> None:
        """Takes one where there is no limit."""
        self._take(1)

    def give(self) -> None:
        """Gives back one connection."""
        self._give(1)
        self.wake_one()

    def wake_one(self) -> None:
        """Wakes the listener that has waited longest, if there is one."""
        if not self._waiters:
            return
        try:
            on_free, _ = self._waiters.popitem(last=False)
        except KeyError:
            return
        on_free()

    def cancel_wait(self, on_free: Callable[[], object]) -> None:
        """Takes back the wait of a `try_take`. If it was being woken just then, the call to `on_free` still comes."""
        self._waiters.pop(on_free, None)


class ThreadQuota(_Counter):
    """The threads that worker pools may have at a time."""

    __slots__ = ()

    def reserve(self, n: int) -> None:
        """Counts `n` threads. Raises StatusError(RESOURCE_EXHAUSTED) when that is more than are left."""
        if isinstance(n, bool) or not isinstance(n, int):
            raise TypeError(f"a number of threads is an int, not {type(n).__name__}")
        if n < 1:
            raise ValueError(f"{n} threads were asked for; it must be 1 or more")
        if not self._take(n):
            raise StatusError(
                Status(
                    StatusCode.RESOURCE_EXHAUSTED,
                    f"{n} threads were asked for; {self.used} of the quota's {self._size} are in use",
                )
            )

    def release(self, n: int) -> None:
        """Gives back `n` reserved threads."""
        self._give(n)


class _QuotaExecutor(ThreadPoolExecutor):
    """A pool whose threads are counted from its making until it was shut down."""

    def __init__(self, threads: ThreadQuota, max_workers: int, name: str) -> None:
        threads.reserve(max_workers)
        self._return_threads = weakref.finalize(self, threads.release, max_workers)
        super().__init__(max_workers, thread_name_prefix=name)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait, cancel_futures=cancel_futures)
        self._return_threads()


class ResourceQuota:
    """Bounds what connections hold together; one quota may serve any number of engines, listeners and connections.

    Args:
        name: For logs and messages.
        memory: Bytes, or text such as `"64MiB"`; None: counted, without a limit.
        threads: How many threads the pools of `create_executor` may have together; None: no limit.
        connections: How many accepted connections there may be at a time; None: no limit. Listeners leave those
            beyond it in their backlog; connections that `EventEngine.connect` makes are not counted.

    Raises ValueError or TypeError for a size that is none. May be used from any thread.
    """

    __slots__ = ("_connections", "_memory", "_name", "_threads")

    def __init__(
        self,
        name: str = "",
        *,
        memory: int | str | None = None,
        threads: int | None = None,
        connections: int | None = None,
    ) -> None:
        self._name = _check_name(name)
        self._memory = MemoryQuota(UNLIMITED if memory is None else check_quota_size(memory))
        self._threads = ThreadQuota(_check_limit("threads", threads))
        self._connections = ConnectionQuota(_check_limit("connections", connections))

    @property
    def name(self) -> str:
        return self._name

    @property
    def memory(self) -> MemoryQuota:
        """`used`, `size`, `peak`, `pressure` and `resize` of the memory."""
        return self._memory

    @property
    def threads(self) -> ThreadQuota:
        return self._threads

    @property
    def connections(self) -> ConnectionQuota:
        return self._connections

    def create_memory_allocator(self, name: str) -> MemoryAllocator:
        """An allocator that draws on this quota; `name` is for messages. So a quota is a MemoryAllocatorFactory."""
        return MemoryAllocator(self._memory, name)

    def create_executor(self, max_workers: int, *, name: str = "eventengine-callbacks") -> ThreadPoolExecutor:
        """A pool for `callback_executor=` whose `max_workers` threads are counted in `threads` until its `shutdown`.

        Raises StatusError(RESOURCE_EXHAUSTED) when fewer than `max_workers` are left.
        """
        return _QuotaExecutor(self._threads, max_workers, name)

    def __repr__(self) -> str:
        limit = "without a limit" if self._memory.size is None else f"of {self._memory.size} bytes"
        places = self._connections
        counted = "" if places.size is None else f", connections {places.used} of {places.size}"
        return f"<ResourceQuota {self._name!r} memory {self._memory.used} {limit}{counted}>"


def as_quota(quota: ResourceQuota | str | int, name: str) -> ResourceQuota:
    """`quota`, or one with as much memory, for connections of a framework: it cannot be resized to less than they need.

    Raises TypeError or ValueError for what is no quota, and for one with less than LEAST_SERVED.
    """
    if isinstance(quota, ResourceQuota):
        if quota.memory.size is not None:
            check_served_size(quota.memory.size)
        quota.memory.need(LEAST_SERVED)
        return quota
    if isinstance(quota, bool) or not isinstance(quota, str | int):
        raise TypeError(
            f'quota must be a ResourceQuota, bytes or text such as "64MiB", not {type(quota).__name__}'
        )
    return as_quota(ResourceQuota(name, memory=check_served_size(quota)), name)


def check_served_size(size: int | str) -> int:
    """As `parse_size`, for a quota from which connections of a framework are served."""
    parsed = parse_size(size)
    if parsed < LEAST_SERVED:
        raise ValueError(
            f"a quota of {parsed} bytes has no room to serve a connection; give {format_size(LEAST_SERVED)} or more"
        )
    return parsed


def describe_limits(quota: ResourceQuota) -> str:
    """For the log, when something begins to be bounded."""
    memory, connections = quota.memory.size, quota.connections.size
    limits = [] if memory is None else [f"{format_size(memory)} of memory"]
    if connections is not None:
        limits.append(number_of(connections, "connection", "connections"))
    if not limits:
        return f"what connections hold is counted by the quota {quota.name!r}, which has no limit"
    return f"connections are bounded by the quota {quota.name!r}: {' and '.join(limits)}"


def _check_name(name: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"a quota's name is a str, not {type(name).__name__}; for a limit write memory=...")
    try:
        parse_size(name)
    except ValueError:
        return name
    raise ValueError(f"{name!r} is the quota's name here; for a limit write memory={name!r}")


def _check_limit(what: str, limit: int | None) -> int | None:
    if limit is None:
        return None
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"{what} must be an int or None, not {type(limit).__name__}")
    if limit < 1:
        raise ValueError(f"{what} is {limit}; it must be 1 or more, or None for no limit")
    return limit


_counters: weakref.WeakSet[_Counter] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    # The lock may have been held by a thread that the child does not have; the waiters are the parent's listeners.
    for counter in list(_counters):
        counter._lock = threading.Lock()
        if isinstance(counter, ConnectionQuota):
            counter._waiters.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
