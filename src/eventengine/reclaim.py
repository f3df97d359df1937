"""Reclaimers: functions that give memory back when a quota is short of it, the mildest first.

Rules:

1. One runs at a time on a quota, once, and the next when its sweep is finished, if the shortage lasts. A sweep is
   finished by whoever runs it, from any thread, or by being forgotten; so a reclaimer may hand the work to its loop.
2. A shortage is: more is lent than there is (then all passes), or somebody waits for memory (then all but DESTRUCTIVE).
   It is looked for where it begins, in the thread that ran short, after the quota's lock was left.
3. Posting again replaces. Who is replaced, or whose allocator is closed, is told so by a sweep that is None; who posts
   while a sweep runs is in line for the next.
4. A sweep that is forgotten may be so within a garbage collection anywhere, so it starts no other reclaimer; the next
   shortage does.

Source: `reclamation passes` in gRPC's `memory_quota.h`.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from enum import IntEnum
from typing import Final, final

__all__ = ["Reclaimer", "Reclaimers", "ReclamationPass", "ReclamationSweep"]

_log: Final = logging.getLogger("eventengine")


class ReclamationPass(IntEnum):
    """What a reclaimer costs its user."""

    BENIGN = 0
    """Nobody notices: buffers shrink, producers pause."""
    IDLE = 1
    """No work is lost: an idle connection is closed."""
    DESTRUCTIVE = 2
    """Work is lost: a connection is cut."""


@final
class ReclamationSweep:
    """What a reclaimer holds while it gives memory back. `finish` ends it; so does its being forgotten."""

    __slots__ = ("_reclaimers",)

    def __init__(self, reclaimers: Reclaimers) -> None:
        self._reclaimers: Reclaimers | None = reclaimers

    @property
    def is_sufficient(self) -> bool:
        """Whether the shortage is over. Any thread."""
        reclaimers = self._reclaimers
        return reclaimers is None or reclaimers.is_enough

    def finish(self) -> None:
        """The reclaimer has given back what it will. May be called twice, and from any thread."""
        reclaimers, self._reclaimers = self._reclaimers, None
        if reclaimers is not None:
            reclaimers.end_sweep()
            reclaimers.start()

    def __del__(self) -> None:
        if self._reclaimers is not None:
            self._reclaimers.end_sweep()  # rule 4


Reclaimer = Callable[[ReclamationSweep | None], object]


class Reclaimers:
    """Those of one quota; `shortage` says how far they may go now, None if there is none."""

    __slots__ = ("_is_starting", "_is_sweeping", "_is_wanted", "_lock", "_passes", "_shortage")

    def __init__(self, shortage: Callable[[], ReclamationPass | None]) -> None:
        self._shortage = shortage
        self._lock = threading.RLock()  # a collection within it may close an allocator
        self._passes: tuple[OrderedDict[Hashable, Reclaimer], ...] = tuple(OrderedDict() for _ in ReclamationPass)
        self._is_sweeping = self._is_starting = self._is_wanted = False

    @property
    def is_enough(self) -> bool:
        return self._shortage() is None

    def post(self, owner: Hashable, which: ReclamationPass, reclaimer: Reclaimer) -> None:
        """Puts `owner`'s reclaimer of this pass in line; it runs at once if there is a shortage."""
        with self._lock:
            replaced = self._passes[which].pop(owner, None)
            self._passes[which][owner] = reclaimer
        if replaced is not None:
            _call(replaced, None)
        self.start()

    def cancel(self, owner: Hashable) -> None:
        """Takes out all that `owner` posted."""
        with self._lock:
            posted = [each.pop(owner, None) for each in self._passes]
        for reclaimer in posted:
            if reclaimer is not None:
                _call(reclaimer, None)

    def start(self) -> None:
        """Runs reclaimers while the shortage lasts; returns when a sweep goes on elsewhere."""
        with self._lock:
            self._is_wanted = True
            if self._is_starting:  # in another thread, or further up in this one, who looks again
                return
            self._is_starting = True
        try:
            while True:
                self._is_wanted = False
                while (reclaimer := self._take_next()) is not None:
                    sweep = ReclamationSweep(self)
                    if not _call(reclaimer, sweep):
                        sweep.finish()
                    del sweep  # or it could not be forgotten
                with self._lock:
                    if not self._is_wanted:
                        self._is_starting = False
                        return
        except BaseException:  # an interrupt: the next shortage goes on
            self._is_starting = False
            raise

    def _take_next(self) -> Reclaimer | None:
        shortage = self._shortage()
        if shortage is None:
            return None
        with self._lock:
            if self._is_sweeping:
                return None
            for posted in self._passes[: shortage + 1]:
                if posted:
                    self._is_sweeping = True
                    return posted.popitem(last=False)[1]
        return None

    def end_sweep(self) -> None:
        """By the sweep."""
        self._is_sweeping = False

    def __bool__(self) -> bool:
        return any(self._passes)


def _call(reclaimer: Reclaimer, sweep: ReclamationSweep | None) -> bool:
    try:
        reclaimer(sweep)
    except Exception:
        _log.exception("a reclaimer failed")
        return False
    return True
