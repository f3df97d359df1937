"""`Kqueue`: for the systems that have no epoll."""

from __future__ import annotations

import contextlib
import select
from typing import Any, Final

__all__ = ["Kqueue"]

_EPOLLIN: Final = 1
_EPOLLOUT: Final = 4

# The stubs of the standard library know kqueue only where it is.
_select: Any = select


class Kqueue:
    """A kqueue with the face of `select.epoll`, as far as the poller needs it."""

    def __init__(self) -> None:
        self._queue = _select.kqueue()
        self._masks: dict[int, int] = {}

    def fileno(self) -> int:
        fd: int = self._queue.fileno()
        return fd

    def close(self) -> None:
        self._queue.close()

    def register(self, fd: int, mask: int) -> None:
        self.modify(fd, mask)

    def unregister(self, fd: int) -> None:
        self._masks.pop(fd, None)
        for which in (_select.KQ_FILTER_READ, _select.KQ_FILTER_WRITE):
            # One by one, and whether we think it is there or not: a change that was refused may have been made in part.
            with contextlib.suppress(OSError):
                self._queue.control([_select.kevent(fd, which, _select.KQ_EV_DELETE)], 0)

    def modify(self, fd: int, mask: int) -> None:
        have = self._masks.get(fd, 0)
        changes = [
            _select.kevent(fd, which, _select.KQ_EV_ADD if mask & bit else _select.KQ_EV_DELETE)
            for bit, which in ((_EPOLLIN, _select.KQ_FILTER_READ), (_EPOLLOUT, _select.KQ_FILTER_WRITE))
            if (mask ^ have) & bit
        ]
        self._masks.pop(fd, None)  # first, for the system may refuse, and the number may be another's next time
        self._queue.control(changes, 0)
        if mask:
            self._masks[fd] = mask

    def poll(self, timeout: float, limit: int) -> list[tuple[int, int]]:
        events = self._queue.control(None, limit, None if timeout < 0 else timeout)
        return [
            (event.ident, _EPOLLIN if event.filter == _select.KQ_FILTER_READ else _EPOLLOUT) for event in events
        ]
