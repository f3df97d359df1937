"""Servers that hold whole messages: which uploads are let in as a quota has room, and who is cut to make room.

An `Upload` is a body on its way in. Its length is known, as a rule, before its first byte. Bodies that are half there
would fill the quota, none could be finished, and all would wait for ever. So an upload asks for all of its room first;
who has none waits, and TCP holds its sender back.

What connections have written and their peers not read is charged beside them (`unsent`), and is cut here.

Rules:

1. Everything here is the loop's thread's, but for `_on_room`, which any thread may call.
2. The smallest goes first, for it waits for the least; but those whose length is known go before those who ask as they
   grow, of whom nobody knows when they are done: while one of the former waits, these get what is free beyond a quarter
   of the quota. That the large do not wait for ever, the oldest goes before all others when it has waited for PATIENCE
   seconds, for as many seconds, and again after as many more: it holds the others back by turns, for those who hold
   what it wants may be slow. A sixteenth of the quota is left for what is small, such as new connections.
3. Who holds room for what is still to move, either way, and has moved nothing for STALLED seconds while somebody waits
   is cut. Who keeps moving, however slowly, is not; what is unsent has the chance to move first, for the system says
   that a socket can be written only when a third of its buffer is free. Whether somebody waits is the quota's to know:
   it may be on another loop. Time in which the loop did not turn counts for nobody. Those who ask as they grow may come
   to wait for one another, or for who is slow: then the one of them that holds most is cut, if others move after twice
   as long; and as many as it takes to let in those whose length is known. Of these one is cut that holds a part and
   waits for the rest, where nobody moves and none of the others is left. One that has waited for two turns of rule 2,
   and whose room is what the connections themselves are charged, is cut: none of that comes back. So are some at a
   look of those that have waited as long, while no connection more may open: nobody else would be served till they are.
4. All who wait here are one bulk waiter of the quota. It stays enlisted while there is one, so no wake-up is lost;
   `_posted` makes one letter of many wake-ups.
5. A write that takes more than there is has connections ended within it, for the application may go on writing without
   letting the loop turn: first idle ones (see `idle`), then, of those with something unsent, who holds most and has
   moved least (bytes times the seconds since it moved, and a quarter more, or one that holds little and has not moved
   for a turn would go before all that write in it), and so on until it fits. Each of these is first given the
   chance to send: its peer may read, and only the loop have had no turn to notice. The same is done when a look finds
   that the quota was made smaller. Where another loop has more unsent, that one is asked to cut, by a letter; but who
   has half of the quota cuts its own, for the other may have stopped.
"""

from __future__ import annotations

import heapq
import itertools
import os
import threading
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, ClassVar, Final, Protocol
from weakref import WeakSet

from eventengine.unsent import Unsent
from eventengine.upload import Upload

if TYPE_CHECKING:
    from eventengine.memory_quota import MemoryQuota

__all__ = ["Admission", "Scheduler", "Timer"]

STALLED: Final = 2.0
PATIENCE: Final = 10.0
_LOOKS: Final = 0.25
"""Seconds between two looks for stalled ones."""

_BATCH: Final = 16
"""As many are cut at a look because no connection more may open."""

_numbers = itertools.count()


class Timer(Protocol):
    """A call that was scheduled, and not made yet."""

    def cancel(self) -> object: ...


class Scheduler(Protocol):
    """The little that is needed of a loop."""

    def call_later(self, delay: float, function: Callable[[], object], /) -> Timer: ...

    def call_soon_threadsafe(self, function: Callable[[], object], /) -> object:
        """From any thread. Raises RuntimeError when the loop was closed."""


class Admission:
    """The uploads, and what is unsent, on one loop and one quota; `close_idle`, `charged` and `is_full` are those of
    `idle.Connections`.

    Attributes:
        unsent: The bytes of all that is unsent.
    """

    __slots__ = (
        "__weakref__",
        "_charged",
        "_close_idle",
        "_contended_since",
        "_is_cutting",
        "_is_full",
        "_is_to_shed",
        "_lines",
        "_looked_at",
        "_loop",
        "_posted",
        "_tick",
        "_waiting",
        "memory",
        "moving",
        "unsent",
    )

    _all: ClassVar[WeakSet[Admission]] = WeakSet()
    _all_lock: ClassVar = threading.Lock()

    def __init__(
        self,
        memory: MemoryQuota,
        loop: Scheduler,
        close_idle: Callable[[], bool] = lambda: False,
        charged: Callable[[], int] = lambda: 0,
        is_full: Callable[[], bool] = lambda: False,
    ) -> None:
        self.memory = memory
        self._charged = charged
        self._is_full = is_full
        self._close_idle = close_idle
        self.moving: set[Upload | Unsent] = set()
        self._loop = loop
        self._waiting: dict[Upload, int] = {}  # oldest first, with the number of its entry
        # Two heaps, of those whose length is known and of those that grow, with entries of some who wait no more.
        self._lines: tuple[list[tuple[int, int, Upload]], ...] = ([], [])
        self._contended_since: float | None = None
        self._looked_at = 0.0
        self._posted = False
        self._tick: Timer | None = None
        self._is_cutting = self._is_to_shed = False
        self.unsent = 0
        with Admission._all_lock:
            Admission._all.add(self)

    def let_in(self, upload: Upload) -> bool:
        """See `Upload.ask`."""
        if not self._waiting and self.try_take(upload.wanted):
            self.moving.add(upload)
            upload.admit()
            self._start_looking()
            return True
        number = self._waiting[upload] = next(_numbers)
        heapq.heappush(self._lines[upload.grows], (upload.wanted, number, upload))
        self.memory.add_bulk_waiter(self._on_room)
        self._let_in_who_fit()
        self._start_looking()
        return not upload.wanted

    @property
    def most(self) -> int | None:
        """The bytes that an upload may have at most; None: there is no limit."""
        size = self.memory.size
        return None if size is None else size - size // 16

    def is_beyond(self, size: int) -> bool:
        """Whether that is more than there is beside what connections themselves are charged."""
        most = self.most
        return most is not None and size > most - self._charged()

    def try_take(self, size: int, share: int = 16) -> bool:
        """Takes room, if one in `share` of the quota is left."""
        return self.memory.try_take(size, (self.memory.size or 0) // share)

    def watch(self, each: Upload | Unsent) -> None:
        """It may stall from now on."""
        self.moving.add(each)
        self._start_looking()

    def forget(self, each: Upload | Unsent) -> None:
        """It holds nothing, or cannot stall any more."""
        self.moving.discard(each)
        if self._tick is not None and not self.moving and not self._waiting:
            self._tick.cancel()  # nothing is left behind on the loop of a host
            self._tick = None

    def shed(self) -> None:
        """Rule 5."""
        if self.memory.is_over and self._another_sheds():
            return
        tried: set[Unsent] = set()
        while self.memory.is_over:
            if self._close_idle():
                continue
            now = monotonic()
            worst = max(
                (each for each in self.moving if isinstance(each, Unsent)),
                key=lambda each: each.held * (now - each.moved_at + _LOOKS),
                default=None,
            )
            if worst is None:
                return
            if worst in tried:
                worst.cut()
                self.forget(worst)
            else:
                tried.add(worst)
                worst.send()
                if worst.moved_at < now:
                    worst.cut()
                    self.forget(worst)

    def _another_sheds(self) -> bool:
        size = self.memory.size
        if size is None or self.unsent > size // 2:
            return False
        with Admission._all_lock:
            others = [each for each in Admission._all if each.memory is self.memory and each.unsent > self.unsent]
        for other in sorted(others, key=lambda each: each.unsent, reverse=True):
            try:
                other._shed_soon()
            except RuntimeError:  # that loop was closed
                continue
            return True
        return False

    def _shed_soon(self) -> None:
        """Any thread."""
        if not self._is_to_shed:
            self._is_to_shed = True
            self._loop.call_soon_threadsafe(self._shed_as_asked)

    def _shed_as_asked(self) -> None:
        self._is_to_shed = False
        self.shed()

    def leave(self, upload: Upload) -> None:
        """It waits no longer, and receives nothing more."""
        if upload in self._waiting:
            self._remove(upload)
            if not self._is_cutting:
                self._let_in_who_fit()
        self.forget(upload)

    def _on_room(self) -> None:
        """The quota has room. Any thread."""
        if not self._posted:
            self._posted = True
            try:
                self._loop.call_soon_threadsafe(self._on_room_here)
            except RuntimeError:  # the loop was closed, and with it ended what waits
                self.memory.remove_bulk_waiter(self._on_room)

    def _on_room_here(self) -> None:
        self._posted = False
        self._let_in_who_fit()

    def _let_in_who_fit(self) -> None:
        while self._waiting:
            first = self._take_for_first()
            if first is None:
                return
            self._remove(first)
            self.moving.add(first)
            first.admit()
        self.memory.remove_bulk_waiter(self._on_room)

    def _take_for_first(self) -> Upload | None:
        """Rule 2: takes the room of whose turn it is, if there is as much."""
        oldest = next(iter(self._waiting))
        if (monotonic() - oldest.since) // PATIENCE % 2:
            return oldest if self.try_take(oldest.wanted) else None
        known, growing = self._lines
        if known and self.try_take(known[0][0]):
            return known[0][2]
        if growing and self.try_take(growing[0][0], 4 if known else 16):
            return growing[0][2]
        return None

    def _remove(self, upload: Upload) -> None:
        del self._waiting[upload]
        line = self._lines[upload.grows]
        if len(line) > 2 * len(self._waiting) + 64:
            line[:] = [
                (each.wanted, number, each) for each, number in self._waiting.items() if each.grows == upload.grows
            ]
            heapq.heapify(line)
        while line and self._waiting.get(line[0][2]) != line[0][1]:
            heapq.heappop(line)

    def _start_looking(self) -> None:
        if self._tick is None and (self.moving or self._waiting):
            self._looked_at = monotonic()
            self._tick = self._loop.call_later(_LOOKS, self._look_for_stalled)

    def _look_for_stalled(self) -> None:
        """Rule 3."""
        now = monotonic()
        lost = now - self._looked_at - _LOOKS
        if lost > _LOOKS:
            for each in self.moving:
                each.moved_at += lost
        self._tick = None
        self._start_looking()
        self.shed()
        most = self.most
        if most is not None:  # the quota may have been made smaller
            uploads = (each for each in {*self._waiting, *self.moving} if isinstance(each, Upload))
            for upload in [each for each in uploads if each.held + each.wanted > most]:
                upload.cut()
        old = [each for each in self._waiting if now - each.since > 2 * PATIENCE]
        for upload in old[:_BATCH] if self._is_full() else [each for each in old if each.is_too_large]:
            upload.cut()
        if self._waiting:
            self._let_in_who_fit()  # it may be another's turn
        if not self.memory.somebody_waits:
            self._contended_since = None
            return
        if self._contended_since is None:
            self._contended_since = now
        late = now - STALLED
        if self._contended_since > late:
            return
        stalled = [each for each in self.moving if not each.wanted and each.moved_at <= late]
        for each in stalled:
            if isinstance(each, Unsent):
                each.send()
        stalled = [each for each in stalled if each.moved_at <= late and each in self.moving]
        if not stalled:
            stalled = [*self._who_make_room(now)]
            if stalled:
                self._contended_since = now
        self._is_cutting = True  # what is given back by each goes to whom all were cut for
        try:
            for each in stalled:
                each.cut()
        finally:
            self._is_cutting = False
        self._let_in_who_fit()

    def _who_make_room(self, now: float) -> list[Upload]:
        """Rule 3: of those who have a part and wait for more."""
        does_none_move = all(each.wanted for each in self.moving)
        late = now - (STALLED if does_none_move else 2 * STALLED)
        have_part = [each for each in self._waiting if each.held]
        growing = [each for each in have_part if each.grows]
        if not growing and not does_none_move:
            return []
        waiting = [each for each in growing or have_part if each.moved_at <= late]
        waiting.sort(key=lambda each: each.held)
        short = sum(each.wanted for each in self._waiting if not each.grows) if growing else 0
        chosen: list[Upload] = []
        while waiting and (not chosen or short > 0):
            chosen.append(waiting.pop())
            short -= chosen[-1].held
        return chosen


def _after_fork_in_child() -> None:
    Admission._all_lock = threading.Lock()  # a thread may have held it that the child does not have


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
