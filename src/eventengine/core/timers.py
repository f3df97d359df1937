"""`Timers`: one heap for all deadlines, and one timer of the host for the earliest of them.

Rules:

1. `_pending` holds the closures. Taking one out, `pop(handle, None)`, is atomic, so it settles from any thread who
   wins: the cancel that returns True, or the turn that runs it. Everything else is the loop's thread's.
2. Heaps hold (deadline, handle). Handles grow, so that equal deadlines run first in, first out. An entry whose
   closure is gone is dead; it is dropped when it comes up, or moved out of the way (rule 5).
3. Timers of other threads come by `_arrived`, not one by one through the mailbox: whoever runs what is due takes them
   in first, so that deadlines keep their order however many letters wait. `_called` says that a letter for them is
   under way; it is cleared before the queue is looked at, as in `mailbox`.
4. Never early: the clock is looked at again before a closure runs, whenever the host calls. A clock that is coarse
   (`Host.clock_lag`) makes deadlines later by as much.
5. When more than half of the entries are dead, the heap becomes `_old`, and each new timer moves a few of its entries
   that are alive to a new heap. Cutting off the last entry of a heap leaves a heap, so both can be asked for their
   earliest at any time, and no turn pays for a hundred thousand cancels at once.
6. A turn runs, drops or takes in or drops at most LIMIT entries; what is left has the next.
7. When nothing is pending the host's timer is taken back, but not by the cancel itself: a deadline that is set and
   cancelled for each request would cost the host two calls. It is a letter to ourselves, one at a time.
"""

from __future__ import annotations

import contextlib
import math
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
_LOOKED_AT: Final = 1023  # how dead the heap is, once for so many timers
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
        "_armed_at",
        "_arrived",
        "_called",
        "_clock_lag",
        "_heap",
        "_host_timer",
        "_loop",
        "_old",
        "_pending",
        "_quick_from",
        "_tidying",
        "_time",
    )

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._time = loop.host.time
        self._clock_lag = loop.host.clock_lag
        self._pending: dict[TaskHandle, Callable[[], object]] = {}
        self._heap: list[Entry] = []
        self._old: list[Entry] = []
        self._arrived: deque[Entry] = deque()
        self._called = False
        self._host_timer: object = None
        self._armed_at = math.inf
        self._quick_from = math.inf  # `_armed_at` while `_old` is empty: such deadlines need nothing but the heap
        self._tidying = False

    def schedule(self, delay: float, closure: Callable[[], object]) -> TaskHandle:
        """Runs `closure` as a callback after `delay` seconds. Any thread."""
        deadline = self._time() + self._clock_lag + delay
        handle = _next_task_handle()
        self._pending[handle] = closure
        loop = self._loop
        if get_ident() == loop.thread and deadline >= self._quick_from and handle & _LOOKED_AT:
            heappush(self._heap, (deadline, handle))  # nothing is to be armed or moved
        elif loop.is_here():
            self._insert(deadline, handle)
        else:
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
        """Rule 1. Any thread."""
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
        self._quick_from = math.inf if self._old else self._armed_at
        heappush(self._heap, (deadline, handle))
        if deadline < self._armed_at:
            self._arm(deadline)

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
        self._quick_from = math.inf if self._old else deadline
        delay = deadline - self._time()
        self._host_timer = self._loop.host.call_later(min(max(delay, 0.0), LONGEST), self._on_host_timer)

    def _disarm(self) -> None:
        if self._host_timer is not None:
            self._loop.host.cancel(self._host_timer)
            self._host_timer = None
            self._armed_at = self._quick_from = math.inf

    def _on_host_timer(self) -> None:
        self._host_timer = None
        self._armed_at = self._quick_from = math.inf
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
        """Rule 7; and what is dead is dropped in portions, a long list takes milliseconds to free."""
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
