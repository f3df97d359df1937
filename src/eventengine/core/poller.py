"""Which descriptors are ready: a private epoll (or kqueue) that the host watches as one, or each fd on the host.

Rules, for both kinds; all of it is the loop's thread's:

1. `busy` maps a descriptor to its owner while the owner has an operation outstanding: the only strong reference that
   the core keeps, so that an endpoint which nobody uses or holds can be collected.
2. `interest` says what the kernel was asked. Asking is lazy: READ stays on between two reads, and is taken away
   only when an event finds nobody busy. A descriptor without interest is not registered at all, for epoll reports
   errors and hang-ups even of those with an empty mask.
3. An event may be stale: its descriptor was closed in this very turn, and its number given to a new socket. So an
   event is a hint. Owners act on what the system call then says.
4. A private poller is on the host only while it has descriptors: an engine with nothing to do leaves nothing there.
5. At most LIMIT events a turn, or the host starves; level-triggered, so that the others come in the next.
6. A host may drop a failed descriptor by itself. Twisted's reactors report READ | WRITE then; uvloop reports what was
   asked for, once, and says nothing. So `HostPoller` looks whether a descriptor has failed, and watches anew what is
   still of interest. A private poller is spared the look, for nobody closes an epoll under it but on an interrupt.
"""

from __future__ import annotations

import contextlib
import errno
import select
from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from eventengine.core.host import READ, WRITE, Host
from eventengine.core.kqueue import Kqueue
from eventengine.status import ClosedResourceError

if TYPE_CHECKING:
    from eventengine.core.loop import Loop

__all__ = ["HostPoller", "Owner", "Poller", "PrivatePoller", "has_private_poller"]

LIMIT: Final = 64  # half a millisecond of small messages
_EPOLLIN: Final = 1
_EPOLLOUT: Final = 4
# All else has EPOLLERR or EPOLLHUP in it, or both bits: whichever is tried will tell.
_READY: Final = {_EPOLLIN: READ, _EPOLLOUT: WRITE}


class Owner(Protocol):
    """What has a descriptor: an endpoint, a listening socket, a connection attempt."""

    def on_readable(self) -> None:
        """Reading may be possible now, or would tell of an end or an error."""

    def on_writable(self) -> None:
        """Writing may be possible now, or would tell of an error."""

    def on_unwatchable(self, error: OSError) -> None:
        """The descriptor is not watched any more: the system refused, or the engine failed. What waits for it fails.
        Not called from within `arm`."""


class Poller(ABC):
    __slots__ = ("_loop", "busy", "interest")

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.interest: dict[int, int] = {}
        self.busy: dict[int, Owner] = {}

    def arm(self, fd: int, events: int, owner: Owner) -> None:
        """`owner` now waits for `events`, besides what it waits for already."""
        self.busy[fd] = owner
        have = self.interest.get(fd, 0)
        if have & events != events:
            try:
                self._ask(fd, have, have | events)
            except OSError as error:
                self._loop.post(partial(owner.on_unwatchable, error))

    def disarm(self, fd: int, events: int) -> None:
        """Nobody waits for `events` any more; busy or not, the rest stays."""
        have = self.interest.get(fd, 0)
        if have & events:
            self._ask(fd, have, have & ~events)

    def forget(self, fd: int) -> None:
        """To be called before `fd` is closed."""
        self.busy.pop(fd, None)
        have = self.interest.get(fd, 0)
        if have:
            self._change(fd, have, 0)
            self.interest.pop(fd, None)

    def dispatch(self, fd: int, events: int) -> None:
        owner = self.busy.get(fd)
        if owner is None:
            self.disarm(fd, READ | WRITE)
            return
        try:
            if events & READ:
                owner.on_readable()
            if events & WRITE and self.busy.get(fd) is owner:
                owner.on_writable()
        except BaseException as error:
            self._failed(fd, owner, error)

    def _failed(self, fd: int, owner: Owner, error: BaseException) -> None:
        """An interrupt from a callback; or a fault of ours, which must not end the loop."""
        if not isinstance(error, KeyboardInterrupt | SystemExit):
            if self.busy.get(fd) is owner:
                self.forget(fd)
            fault = OSError(errno.EIO, f"the engine itself raised {error!r}")
            with contextlib.suppress(ClosedResourceError):  # then all has ended
                self._loop.post(partial(owner.on_unwatchable, fault))
        self._loop.callbacks.failed(owner, error)

    def _ask(self, fd: int, have: int, events: int) -> None:
        self._change(fd, have, events)
        if events:
            self.interest[fd] = events
        else:
            self.interest.pop(fd, None)  # while the engine closes, an endpoint's close may have been faster

    @abstractmethod
    def _change(self, fd: int, have: int, events: int) -> None:
        """Has the system watch for `events` instead of `have`; either may be none. Removing never fails."""

    def close(self) -> None:
        """Takes everything off the host."""
        for fd in list(self.interest):
            self.forget(fd)
        self.busy.clear()

    def abandon(self) -> None:
        """In a child process, which shares the kernel's side of this with its parent and must not change it."""
        self.interest.clear()
        self.busy.clear()


class HostPoller(Poller):
    """Each descriptor on the host: for loops and systems where an epoll cannot be watched."""

    __slots__ = ()

    def _change(self, fd: int, have: int, events: int) -> None:
        if events:
            self._loop.host.watch(fd, events, partial(self._on_ready, fd))
        elif not self._loop.host.is_closed:
            self._loop.host.unwatch(fd)

    def _on_ready(self, fd: int, events: int) -> None:
        with self._loop:
            # To be asked first: the system tells of an error once.
            dropped = events == READ | WRITE or (self._loop.host.has_system_sockets and _has_failed(fd))
            self.dispatch(fd, events)
            if dropped and (interest := self.interest.get(fd, 0)):  # rule 6
                self._loop.host.unwatch(fd)
                self._change(fd, 0, interest)


class PrivatePoller(Poller):
    """One epoll of our own. The host watches it as a single descriptor, or adopts it and calls `turn`."""

    __slots__ = ("_epoll", "_host")

    def __init__(self, loop: Loop) -> None:
        super().__init__(loop)
        self._host: Host | None = None if loop.host.adopt(self) else loop.host
        self._epoll: select.epoll | Kqueue = select.epoll() if hasattr(select, "epoll") else Kqueue()

    def turn(self, timeout: float) -> None:
        """Waits for events for so many seconds (negative: for ever), and deals with them."""
        events = self._epoll.poll(timeout, LIMIT)
        loop = self._loop
        loop.begin()
        try:
            busy = self.busy
            for fd, mask in events:
                owner = busy.get(fd)
                if mask == _EPOLLIN and owner is not None:
                    try:
                        owner.on_readable()
                    except BaseException as error:
                        self._failed(fd, owner, error)
                else:
                    self.dispatch(fd, _READY.get(mask, READ | WRITE))
        finally:
            loop.end()

    def _on_host_ready(self, events: int) -> None:
        if self._loop.is_forked:
            return
        if events != READ | WRITE:
            self.turn(0)
            return
        try:
            self.turn(0)
        finally:  # rule 6
            if self.interest and self._host is not None and not self._host.is_closed:
                self._host.watch(self._epoll.fileno(), READ, self._on_host_ready)

    def _change(self, fd: int, have: int, events: int) -> None:
        mask = (_EPOLLIN if events & READ else 0) | (_EPOLLOUT if events & WRITE else 0)
        if not have:
            self._epoll.register(fd, mask)
            if self._host is not None and not self.interest:
                try:
                    self._host.watch(self._epoll.fileno(), READ, self._on_host_ready)
                except BaseException:
                    self._epoll.unregister(fd)  # or it could not be registered again
                    raise
        elif events:
            self._epoll.modify(fd, mask)
        else:
            with contextlib.suppress(OSError):  # a socket hook may have closed it
                self._epoll.unregister(fd)
            if self._host is not None and len(self.interest) == 1 and not self._host.is_closed:
                self._host.unwatch(self._epoll.fileno())

    def close(self) -> None:
        super().close()
        self._epoll.close()


def _has_failed(fd: int) -> bool:
    poller = select.poll()
    poller.register(fd, 0)
    return any(mask & select.POLLERR for _, mask in poller.poll(0))


def has_private_poller() -> bool:
    """Whether this system has epoll or kqueue."""
    return hasattr(select, "epoll") or hasattr(select, "kqueue")
