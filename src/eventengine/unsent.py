"""What a connection has written and its peer not read, charged to a quota.

The application writes what it likes, so this can take more than there is: `admission` cuts whom it must. Everything
here is the loop's thread's.
"""

from __future__ import annotations

from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from eventengine.memory_quota import MemoryQuota

__all__ = ["Pieces", "Unsent", "Watcher"]

COST: Final = 1536
"""Bytes that a piece takes besides: futures, a task for each message of a websocket, and its place in a line or two."""


class Watcher(Protocol):
    """What is needed of an `Admission`."""

    unsent: int

    @property
    def memory(self) -> MemoryQuota: ...

    def watch(self, unsent: Unsent, /) -> None: ...

    def forget(self, unsent: Unsent, /) -> None: ...

    def shed(self) -> None: ...


class Unsent:
    """What one connection has written and not sent yet.

    Subclasses say what `send` and `on_cut` do.

    Attributes:
        held: The bytes that it is charged for.
    """

    __slots__ = ("_is_open", "_watcher", "held", "moved_at")

    wanted = 0

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._is_open = True
        self.held = 0
        self.moved_at = 0.0

    def send(self) -> None:
        """Sends what can be sent at once, and tells by `moved`."""
        raise NotImplementedError

    def on_cut(self) -> None:
        """Called once if it must go (rules 3 and 5 of `admission`); lets go of what is unsent, ends the connection, and
        calls `end`."""
        raise NotImplementedError

    def moved(self) -> None:
        """Bytes have gone."""
        self.moved_at = monotonic()

    def hold(self, amount: int) -> None:
        """So many bytes are unsent now. May cut connections, this one, too: rule 5."""
        watcher = self._watcher
        more = amount - self.held
        self.held = amount
        watcher.unsent += more
        if more > 0:
            if amount == more:
                self.moved_at = monotonic()
                watcher.watch(self)
            watcher.memory.take(more, more)
            watcher.shed()
        elif more < 0:
            watcher.memory.give(-more)
            if not amount:
                watcher.forget(self)

    def end(self) -> None:
        """The connection was closed. May be called twice."""
        self._is_open = False
        self.hold(0)

    def cut(self) -> None:
        """By `Admission`."""
        if self._is_open:
            self._is_open = False
            self.on_cut()


class Pieces(Unsent):
    """Counts writes one by one.

    A piece is charged whole until its last byte was sent, for as long its stream holds it whole, and COST bytes more
    for the objects around it. What the first attempt sends is not charged at all.
    """

    __slots__ = ("_left", "_pieces", "_sent")

    def __init__(self, watcher: Watcher) -> None:
        super().__init__(watcher)
        self._pieces: deque[int] = deque()
        self._left = 0  # all pieces together
        self._sent = 0  # of the first piece

    @property
    def is_empty(self) -> bool:
        """Whether all has gone."""
        return not self._pieces

    def add(self, size: int) -> None:
        """A piece is about to be written; `settle` must follow."""
        self._pieces.append(size)
        self._left += size

    def take_back(self) -> None:
        """The last piece was refused."""
        if self._pieces:  # else the connection was closed over it
            self._left -= self._pieces.pop()

    def sent(self, size: int) -> None:
        """So many bytes more have gone."""
        self.moved()
        self._sent += size
        while self._pieces and self._sent >= self._pieces[0]:
            size = self._pieces.popleft()
            self._sent -= size
            self._left -= size
        if self.held:
            self.settle()

    def settle(self) -> None:
        """Charges what is left."""
        self.hold(self._left + COST * len(self._pieces))

    def end(self) -> None:
        self._pieces.clear()
        self._left = 0
        super().end()
