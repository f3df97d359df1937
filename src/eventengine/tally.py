"""What happens often and is logged seldom: at most once a second, with the count."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

__all__ = ["Tally", "number_of"]


def number_of(n: int, one: str, more: str) -> str:
    """As in "1 client was" and "2 clients were"."""
    return f"{n} {one if n == 1 else more}"


class Tally:
    """Calls `tell` with how often `add` was called since it last did. One thread's."""

    __slots__ = ("_count", "_tell", "_told_at")

    def __init__(self, tell: Callable[[int], object]) -> None:
        self._tell = tell
        self._count = 0
        self._told_at = monotonic() - 1.0

    def add(self, count: int = 1) -> None:
        self._count += count
        now = monotonic()
        if now - self._told_at >= 1.0:
            self._told_at = now
            count, self._count = self._count, 0
            self._tell(count)
