"""Connections as what they cost themselves, and the closing of idle ones when a quota is short.

An idle connection has nothing in any buffer, but it is not free: the objects of a framework for one take some KiB. So
each is charged a fixed cost from its opening to its closing, as gRPC's transports are, and an idle one can be closed to
make room.

Rules:

1. Everything here is the loop's thread's, but for `_on_shortage`, which any thread may call.
2. A reclaimer is posted while there are connections; it hands the work to the loop. When nothing was idle, it is posted
   again after AGAIN seconds, for what was busy may be idle then; no timer is left when the last connection has gone.
3. A sweep that is on its way to a loop that has ended would hold up all others: it is finished with the last
   connection. `_on_shortage` stores it first and looks at the count after, `closed` does so the other way round.
4. Among the quota's `connections` they are counted here where these have no limit. Where they have one, who accepts
   takes the place before there is a connection, and gives it back.
5. Those of one loop take no more than seven eighths of the quota themselves: else so many that nobody may close, as
   those of websockets, could leave nothing to read with, and none would go on.
6. Who decides to close a connection calls `closed` at once, though its memory goes a turn later: a write in between
   finds the room, and cuts nobody for it.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Final

from eventengine.reclaim import ReclamationPass, ReclamationSweep

if TYPE_CHECKING:
    from eventengine.admission import Scheduler, Timer
    from eventengine.quota import ResourceQuota

__all__ = ["Connections"]

AGAIN: Final = 0.25
_LOOKED: Final = 0.1
_LEFT: Final = 8
"""One in so many bytes of the quota is left by connections themselves."""

_LARGE: Final = 6
"""Of one that costs no more than a sixth of the quota there is room while not more than 0.8 is used."""


class Connections:
    """Those of one quota on one loop.

    Args:
        close_idle: Closes some of those that have been idle longest, calls `closed` for each, and says whether there
            was any.
    """

    __slots__ = (
        "_charged",
        "_close_idle",
        "_count",
        "_is_posted",
        "_last",
        "_loop",
        "_memory",
        "_none_until",
        "_places",
        "_sweep",
        "_timer",
    )

    def __init__(self, quota: ResourceQuota, loop: Scheduler, close_idle: Callable[[], bool]) -> None:
        self._memory = quota.memory
        self._places = quota.connections
        self._loop = loop
        self._close_idle = close_idle
        self._count = 0
        self._charged = 0
        self._last = 0
        self._is_posted = False
        self._timer: Timer | None = None
        self._sweep: ReclamationSweep | None = None
        self._none_until = 0.0

    @property
    def charged(self) -> int:
        """The bytes that they are charged themselves."""
        return self._charged

    def may_open(self, cost: int) -> bool:
        """Whether there is room for one more that costs as much: rule 5; above 0.99 of the quota there is not."""
        memory = self._memory
        size = memory.size
        if size is None:
            return True
        if self._charged + cost > size - size // _LEFT:
            return False
        if not memory.is_tight and cost * _LARGE <= size:
            return True
        return memory.used + cost <= size * 0.99

    @property
    def is_full(self) -> bool:
        """Whether rule 5 leaves no room for one more that costs as much as the last."""
        size = self._memory.size
        return size is not None and self._charged + self._last > size - size // _LEFT

    def opened(self, cost: int) -> None:
        """There is one more, which is charged `cost` bytes."""
        self._count += 1
        self._charged += cost
        self._last = cost
        if self._places.size is None:
            self._places.add()
        if not self._is_posted:
            self._post()
        self._memory.take(cost, cost)

    def grew(self, cost: int) -> None:
        """One is charged `cost` bytes more from now on, as when it begins with TLS."""
        self._charged += cost
        self._memory.take(cost, cost)

    def shrank(self, cost: int) -> None:
        """The same of less, as when a handshake is over."""
        self._charged -= cost
        self._memory.give(cost)

    def closed(self, cost: int) -> None:
        """There is one less."""
        self._count -= 1
        self._charged -= cost
        if self._places.size is None:
            self._places.give()
        self._memory.give(cost)
        if not self._count:
            self._is_posted = False
            self._memory.reclaimers.cancel(id(self))
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            sweep, self._sweep = self._sweep, None
            if sweep is not None:
                sweep.finish()

    def close_idle(self) -> bool:
        """Closes some at once, and says whether there was any; for who is short within a turn, and may ask at each
        write. While there was none it looks again only after a while."""
        now = monotonic()
        if now < self._none_until:
            return False
        if self._close_idle():
            return True
        self._none_until = now + _LOOKED
        return False

    def _post(self) -> None:
        self._timer = None
        self._is_posted = True
        self._memory.reclaimers.post(id(self), ReclamationPass.IDLE, self._on_shortage)

    def _on_shortage(self, sweep: ReclamationSweep | None) -> None:
        if sweep is not None:
            self._sweep = sweep
            if not self._count:
                sweep.finish()
                return
            try:
                self._loop.call_soon_threadsafe(lambda: self._reclaim(sweep))
            except RuntimeError:  # the loop was closed, and all its connections with it
                sweep.finish()

    def _reclaim(self, sweep: ReclamationSweep) -> None:
        self._sweep = None
        if self._count and self._close_idle():
            if self._count:
                self._post()
        elif self._count and self._timer is None:
            self._timer = self._loop.call_later(AGAIN, self._post)
        sweep.finish()
