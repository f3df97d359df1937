"""`Upload`: one body on its way in, and the room that it has; the rules are those of `admission`.

Everything here is the loop's thread's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from eventengine.status import ClosedResourceError

if TYPE_CHECKING:
    from eventengine.memory_quota import MemoryQuota

__all__ = ["Door", "Upload"]


class Door(Protocol):
    """What is needed of an `Admission`."""

    @property
    def memory(self) -> MemoryQuota: ...

    @property
    def moving(self) -> Container[object]: ...

    def let_in(self, upload: Upload, /) -> bool: ...

    def is_beyond(self, size: int, /) -> bool: ...

    def watch(self, upload: Upload, /) -> None: ...

    def forget(self, upload: Upload, /) -> None: ...

    def leave(self, upload: Upload, /) -> None: ...


class Upload:
    """One body that is being received.

    Args:
        on_cut: Called once if it stalls (rule 3); it ends the connection, and calls `end`.

    Attributes:
        held: The bytes that it has room for.
        grows: Whether what it has asked for last may not be all.
    """

    __slots__ = (
        "__weakref__",
        "_admission",
        "_on_admitted",
        "_on_cut",
        "_wanted",
        "grows",
        "held",
        "moved_at",
        "since",
    )

    def __init__(self, admission: Door, on_cut: Callable[[], object]) -> None:
        self._admission = admission
        self.held = 0
        self._wanted = 0
        self.grows = False
        self._on_admitted: Callable[[], object] | None = None
        self._on_cut: Callable[[], object] | None = on_cut
        self.moved_at = self.since = monotonic()

    @property
    def is_too_large(self) -> bool:
        """Whether it wants more than there is beside what connections themselves are charged now."""
        return self._admission.is_beyond(self.held + self._wanted)

    @property
    def wanted(self) -> int:
        """The bytes that it waits for; 0 while it does not wait."""
        return self._wanted

    @property
    def is_complete(self) -> bool:
        """Whether it receives nothing more."""
        return self._on_cut is None

    def ask(self, size: int, on_admitted: Callable[[], object], *, grows: bool = False) -> bool:
        """Asks for room for `size` bytes more; `grows`: it may ask again. True: it has them. False: `on_admitted` is
        called when it has, and no byte may be taken off the socket until then."""
        if self._on_cut is None:
            raise ClosedResourceError("the upload is complete, or was ended")
        self._wanted = size
        self.grows = grows
        self.since = monotonic()
        if self._admission.let_in(self):
            return True
        self._on_admitted = on_admitted
        return False

    def try_ask(self, size: int) -> bool:
        """As `ask`, for who has another place than memory: True if there is room, and a fifth of the quota left for
        others; else it holds none. It may stall either way (rule 3)."""
        if self._on_cut is None:
            raise ClosedResourceError("the upload is complete, or was ended")
        memory = self._admission.memory
        is_held = not memory.is_tight and memory.try_take(size)
        if is_held:
            self.held += size
        self.moved_at = monotonic()
        self._admission.watch(self)
        return is_held

    def moved(self) -> None:
        """Bytes have arrived."""
        self.moved_at = monotonic()

    async def while_nothing_is_read(self, handled: Awaitable[None]) -> None:
        """Waits for `handled`: its sender is held back meanwhile, and cannot be said to stall."""
        self._admission.forget(self)
        try:
            await handled
        finally:
            if self._on_cut is not None:
                self.moved()
                self._admission.watch(self)

    def complete(self) -> None:
        """All has arrived: it cannot stall any more, and holds its room until `end`."""
        self._on_cut = None
        self._admission.forget(self)

    def end(self) -> None:
        """Gives back what it holds, and waits for nothing more. May be called twice."""
        self._admission.leave(self)
        self._on_cut = self._on_admitted = None
        self._give_back()

    def __del__(self) -> None:
        self._give_back()

    def _give_back(self) -> None:
        held, self.held = self.held, 0
        if held:
            self._admission.memory.give(held)

    def cut(self) -> None:
        """By `Admission`: rule 3."""
        on_cut, self._on_cut = self._on_cut, None
        if on_cut is not None:
            on_cut()

    def admit(self) -> None:
        """By `Admission`, who has taken the room."""
        self.held += self._wanted
        self._wanted = 0
        self.moved_at = monotonic()
        on_admitted, self._on_admitted = self._on_admitted, None
        if on_admitted is not None:  # else it is admitted within `ask`, which says so
            on_admitted()
