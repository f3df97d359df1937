"""`Attempts`: the addresses of one target, in the order in which they are tried, and what came of each.

The order is that of RFC 8305, section 4: the order in which the addresses were given, but with families in turn,
beginning with that of the first.

Rules:

1. Attempts are numbered from 0. `take` gives each address once, in this order.
2. Who wants the next one only for want of an answer says after which it waited: `take` gives none when a later one was
   started meanwhile, as after a failure.
3. `_lock` makes this true for callers on several threads. Nothing else is done with it.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Iterable
from typing import Final, NamedTuple

from eventengine.address import ResolvedAddress
from eventengine.status import Status, StatusCode

__all__ = ["Attempt", "Attempts", "cut", "interleaved"]

_MOST_TOLD: Final = 16
_LONGEST_PART: Final = 200


class Attempt(NamedTuple):
    number: int
    address: ResolvedAddress
    is_last: bool


class Attempts:
    """See the head of the module. Any thread."""

    __slots__ = ("_failures", "_lock", "_tried", "_waiting")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[ResolvedAddress] = deque()
        self._tried: list[ResolvedAddress] = []
        self._failures: dict[int, Status] = {}

    def add(self, addresses: Iterable[ResolvedAddress]) -> None:
        """The addresses, all at once, before the first is taken."""
        with self._lock:
            self._waiting.extend(interleaved(addresses))

    def take(self, after: int | None = None) -> Attempt | None:
        """The next attempt; None if there is none, or if `after` is not the number of the newest."""
        with self._lock:
            number = len(self._tried)
            if not self._waiting or after not in (None, number - 1):
                return None
            address = self._waiting.popleft()
            self._tried.append(address)
            return Attempt(number, address, not self._waiting)

    def fail(self, number: int, status: Status) -> bool:
        """Notes what came of an attempt. True: it was the last one to fail, and none is left."""
        with self._lock:
            self._failures[number] = status
            return not self._waiting and len(self._failures) == len(self._tried)

    def outcome(self, target: str) -> Status:
        """What is told when all have failed: what they have in common, and each with what came of it."""
        with self._lock:
            failures = list(self._failures.values())
            first = self._tried[0]
        codes = {failure.code for failure in failures}
        errnos = {failure.errno for failure in failures}
        if StatusCode.CANCELLED in codes:  # the engine was closed
            code = StatusCode.CANCELLED
        elif StatusCode.DEADLINE_EXCEEDED in codes:  # each has that of the whole, whose timer may be told later
            code = StatusCode.DEADLINE_EXCEEDED
        else:
            code = codes.pop() if len(codes) == 1 else StatusCode.UNAVAILABLE
        told = self.told()
        message = told if target == str(first) else f"{cut(target)}: {told}"
        return Status(code, message, errnos.pop() if len(errnos) == 1 else None)

    def told(self) -> str:
        """Each address that was tried, and what has come of it; empty while none was."""
        with self._lock:
            tried = self._tried[:]
            failures = dict(self._failures)
            waiting = len(self._waiting)
        if not tried:
            return ""
        parts: list[str] = []
        for number, address in enumerate(tried[:_MOST_TOLD]):
            failure = failures.get(number)
            if failure is None:
                parts.append(f"{address}: no answer")
            elif str(address) in failure.message:
                parts.append(cut(failure.message))
            else:
                parts.append(cut(f"{address}: {failure}"))
        if len(tried) > _MOST_TOLD:
            parts.append(f"{len(tried) - _MOST_TOLD} more were tried")
        if waiting:
            parts.append(f"{waiting} more were not tried")
        return "; ".join(parts)


def interleaved(addresses: Iterable[ResolvedAddress]) -> list[ResolvedAddress]:
    """The addresses with their families in turn, in the order in which each comes first."""
    families: dict[int, list[ResolvedAddress]] = {}
    for address in addresses:
        families.setdefault(address.family, []).append(address)
    turns = itertools.zip_longest(*families.values())
    return [address for turn in turns for address in turn if address is not None]


def cut(text: str) -> str:
    """The text, without its end if it is too long for a part of a message."""
    return text if len(text) <= _LONGEST_PART else f"{text[: _LONGEST_PART - 3]}..."
