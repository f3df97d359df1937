"""`Timers`: one heap for all deadlines, and one timer of the host for the earliest of them.

Rules:

1. `fresh` holds what was scheduled in this turn. Most deadlines are taken back soon, a good part of them in the turn
   that set them: such a one costs two dictionary operations, and leaves nothing behind. `absorb` moves the others at
   the turn's end, or before anything due runs, in three steps under a lock, so that from any thread a cancel finds
   each in one of the two places, and just one finds it.
2. `_pending` holds the closures. Taking one out, `pop(handle, None)`, is atomic, so it settles from any thread who
   wins: the cancel that returns True, or the turn that runs it. Everything else is the loop's thread's.
3. Heaps hold (deadline, handle). Handles grow, so that equal deadlines run first in, first out. An entry whose
   closure is gone is dead; it is dropped when it comes up, or moved out of the way (rule 6).
4. Timers of other threads come by `_arrived`, not one by one through the mailbox: whoever runs what is due takes them
   in first, so that deadlines keep their order however many letters wait. `_called` says that a letter for them is
   under way; it is cleared before the queue is looked at, as in `mailbox`.
5. Never early: the clock is looked at again before a closure runs, whenever the host calls. A clock that is coarse
   (`Host.clock_lag`) makes deadlines later by as much.
6. When more than half of the entries are dead, the heap becomes `_old`, and each new timer moves a few of its entries
   that are alive to a new heap. Cutting off the last entry of a heap leaves a heap, so both can be asked for their
   earliest at any time, and no turn pays for a hundred thousand cancels at once.
7. A turn runs or drops at most LIMIT entries; what is left has the next.
8. When nothing is pending the host's timer is taken back, but not by the cancel itself: a deadline that is set and
   cancelled for each request would cost the host two calls. It is a letter to ourselves, one at a time.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from threading import get_ident
from typing import TYPE_CHECKING, Final, cast

from eventengine.core.handles import next_handle
from eventengine.engine import TaskHandle
from eventengine.status import ClosedResourceError

if TYPE_CHECKING:
    from eventengine.core.loop import Loop

__all__ = ["Timers", "check_seconds"]

LIMIT: Final = 256
LONGEST: Final = 3600.0  # of a host's timer: reactors and libuv overflow on huge ones
_MOVED_PER_TIMER: Final = 4
_DROPPED_PER_TURN: Final = 4096

Entry = tuple[float, TaskHandle]

_next_task_handle = cast("Callable[[], TaskHandle]", next_handle)


def check_seconds(what: str, seconds: float) -> None:
    """Raises TypeError or ValueError, naming `what`, unless `seconds` is a finite number of 0 or more."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"{what} must be a number of seconds, not {type(seconds).__name__}")
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{what} is {seconds}; it must be a finite number of seconds, 0 or more")


class _OnLoop:
    """A closure of the core's own, which runs on the loop's thread wherever callbacks run."""

    __slots__ = ("closure",)

    def __init__(self, closure: Callable[[], object]) -> None:
        self.closure = closure

    def __call__(self) -> None:
        self.closure()


class Timers:
    __slots__ = (
        "_absorbing",
        "_armed_at",
        "_arrived",
        "_called",
        "_clock_lag",
        "_heap",
        "_host_timer",
        "_loop",
        "_old",
        "_pending",
        "_tidying",
        "_time",
        "fresh",
    )

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._time = loop.host.time
        self._clock_lag = loop.host.clock_lag
        self.fresh: dict[TaskHandle, tuple[float, Callable[[], object]]] = {}
        self._absorbing = threading.RLock()
        self._pending: dict[TaskHandle, Callable[[], object]] = {}
        self._heap: list[Entry] = []
        self._old: list[Entry] = []
        self._arrived: deque[Entry] = deque()
        self._called = False
        self._host_timer: object = None
        self._armed_at = math.inf
        self._tidying = False

    def schedule(self, delay: float, closure: Callable[[], object]) -> TaskHandle:
        """Runs `closure` as a callback after `delay` seconds. Any thread."""
        deadline = self._time() + self._clock_lag + delay
        handle = _next_task_handle()
        loop = self._loop
        if get_ident() == loop.thread:
            self.fresh[handle] = (deadline, closure)
        elif loop.is_here():
            self._pending[handle] = closure
            self._insert(deadline, handle)
        else:
            self._pending[handle] = closure
            self._arrived.append((deadline, handle))
            if not self._called:
                self._called = True
                try:
                    loop.post(self._take_in)
                except BaseException:
                    self._called = False
                    self._pending.pop(handle, None)
                    raise
        return handle

    def schedule_own(self, delay: float, closure: Callable[[], object]) -> TaskHandle:
        """The same for the core: `closure` runs on the loop's thread. Only from there."""
        return self.schedule(delay, _OnLoop(closure))

    def cancel(self, handle: TaskHandle) -> bool:
        """Rules 1 and 2. Any thread."""
        if self.fresh.pop(handle, None) is not None:
            return True
        with self._absorbing:
            if self._pending.pop(handle, None) is None:
                return False
        if not self._pending and not self._tidying:
            self._post_tidy()
        return True

    def close(self) -> None:
        """Drops all that is pending."""
        self.abandon()
        self._disarm()

    def abandon(self) -> None:
        """In a child process: the host's timer, if the child runs that loop at all, will find nothing."""
        self.fresh.clear()
        self._pending.clear()
        self._arrived.clear()
        self._heap = []
        self._old = []

    def _insert(self, deadline: float, handle: TaskHandle) -> None:
        if handle not in self._pending:  # cancelled on its way here
            return
        if self._old:
            self._move_some()
        elif len(self._heap) > 2 * len(self._pending) + 1024:
            self._old, self._heap = self._heap, []
        heappush(self._heap, (deadline, handle))
        if deadline < self._armed_at:
            self._arm(deadline)

    def absorb(self) -> None:
        """The turn ends: moves what is fresh to the heap."""
        fresh, pending = self.fresh, self._pending
        with self._absorbing:
            for handle, (deadline, closure) in list(fresh.items()):
                pending[handle] = closure
                if fresh.pop(handle, None) is None:  # cancelled just now
                    del pending[handle]
                else:
                    self._insert(deadline, handle)

    def _take_in(self) -> None:
        """Takes in what came from other threads."""
        self._called = False
        arrived = self._arrived
        for _ in range(min(len(arrived), _DROPPED_PER_TURN)):
            self._insert(*arrived.popleft())
        if arrived and not self._called:
            self._called = True
            with contextlib.suppress(ClosedResourceError):
                self._loop.post(self._take_in)

    def _move_some(self) -> None:
        for _ in range(min(_MOVED_PER_TIMER, len(self._old))):
            entry = self._old.pop()
            if entry[1] in self._pending:
                heappush(self._heap, entry)

    def _arm(self, deadline: float) -> None:
        self._disarm()
        self._armed_at = deadline
        delay = deadline - self._time()
        self._host_timer = self._loop.host.call_later(min(max(delay, 0.0), LONGEST), self._on_host_timer)

    def _disarm(self) -> None:
        if self._host_timer is not None:
            self._loop.host.cancel(self._host_timer)
            self._host_timer = None
            self._armed_at = math.inf

    def _on_host_timer(self) -> None:
        self._host_timer = None
        self._armed_at = math.inf
        with self._loop:
            try:
                self._take_in()
                if not self._arrived:
                    self._run_due()
            finally:
                self._arm_earliest()

    def _run_due(self) -> None:
        loop = self._loop
        pending = self._pending
        now = self._time()
        for _ in range(LIMIT):
            if self.fresh:  # what ran may have set a deadline that comes first
                self.absorb()
            heap = self._earlier()
            if not heap:
                return
            deadline, handle = heap[0]
            if handle in pending and deadline > now:
                now = self._time()
                if deadline > now:
                    return
            heappop(heap)
            closure = pending.pop(handle, None)
            if type(closure) is _OnLoop:
                closure()
            elif closure is not None:
                loop.run_callback(closure)

    def _arm_earliest(self) -> None:
        heap = self._earlier()
        if heap and self._pending and heap[0][0] < self._armed_at:
            self._arm(heap[0][0])

    def _earlier(self) -> list[Entry]:
        """The heap with the earliest entry."""
        if self._old and (not self._heap or self._old[0] < self._heap[0]):
            return self._old
        return self._heap

    def _tidy(self) -> None:
        """Rule 8; and what is dead is dropped in portions, a long list takes milliseconds to free."""
        self._tidying = False
        if self._pending:
            return
        self._disarm()
        for heap in (self._old, self._heap):
            if heap:
                del heap[-_DROPPED_PER_TURN:]
        if self._old or self._heap:
            self._post_tidy()

    def _post_tidy(self) -> None:
        self._tidying = True
        with contextlib.suppress(ClosedResourceError):  # then `close` does it
            self._loop.post(self._tidy)
