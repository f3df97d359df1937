"""`Loop`: what the endpoints, listeners, connects and timers of one engine share.

Rules:

1. The host calls in at three places: the poller's events, the earliest timer, the mailbox. Each is a *turn*, between
   `begin` and `end`; `thread` is the loop's thread during a turn, and -1 between two. So one comparison tells the
   usual caller, a callback, that it is there. All others ask `is_here`: a loop may be made in one thread, run in
   another, and then in a third. Who is not on the loop's thread goes by the mailbox.
2. What a turn completes at once has a budget. When it is spent, reads wait for the poller and finished writes report
   in the next turn, so that an application which loops on True does not keep the host from its own work. Calls made
   outside a turn, in the host's own callbacks, spend from the same budget, which the next turn renews.
3. `is_open` ends when the engine is closed or its process was forked: the one thing that each call looks at.
4. What is open is in `endpoints` (weakly, see `poller`) and `listeners`, so that closing the engine finds it.
5. In a forked child nothing here works but to say so: `is_here` is False for every thread there, and `post` raises.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Final, TypeVarTuple

from eventengine.core.callbacks import Callbacks, PoolCallbacks
from eventengine.core.host import Host
from eventengine.core.mailbox import Mailbox, forked
from eventengine.core.poller import HostPoller, Poller, PrivatePoller, has_private_poller
from eventengine.core.timers import Timers
from eventengine.status import ClosedResourceError

if TYPE_CHECKING:
    from eventengine.core.listener import Acceptor
    from eventengine.core.operations import Operations

__all__ = ["Loop", "loops"]

BUDGET: Final = 1 << 20
"""Bytes that one turn may complete at once; each operation costs 1 KiB besides."""

Ts = TypeVarTuple("Ts")

_get_ident = threading.get_ident


class Loop:
    __slots__ = (
        "__weakref__",
        "_learned",
        "_mailbox",
        "budget",
        "callbacks",
        "calls_back_here",
        "endpoints",
        "host",
        "is_forked",
        "is_open",
        "listeners",
        "poller",
        "post",
        "post_first",
        "run_callback",
        "thread",
        "timers",
    )

    def __init__(
        self,
        host: Host,
        *,
        callback_executor: Executor | None,
        private_poller: bool | None,
        own_thread: bool,
    ) -> None:
        self.host = host
        self.thread = self._learned = -1
        self.budget = BUDGET
        self.is_open = True
        self.is_forked = False
        self.callbacks: Callbacks = (
            Callbacks(host, own_thread=own_thread)
            if callback_executor is None
            else PoolCallbacks(host, callback_executor)
        )
        self._mailbox = Mailbox(host, self._on_wake, self.callbacks.failed)
        self.post: Callable[[Callable[[], object]], None] = self._mailbox.post
        self.post_first = self._mailbox.post_first
        self.timers = Timers(self)
        self.run_callback = self.callbacks.run
        self.calls_back_here = self.callbacks.block_polling
        self.endpoints: dict[int, weakref.ref[Operations]] = {}
        self.listeners: dict[Acceptor, None] = {}  # closed in their order
        if private_poller is None:
            private_poller = host.can_watch_epoll and has_private_poller()
        self.poller: Poller = PrivatePoller(self) if private_poller else HostPoller(self)
        _loops.add(self)

    def is_here(self) -> bool:
        """Whether the calling thread is the loop's. Any thread."""
        ident = _get_ident()
        if ident == self.thread:
            return True
        if self.is_forked:
            return False
        if self._learned == -1 or self.host.knows_its_thread:
            return self.host.is_here()
        return ident == self._learned

    @property
    def knows_its_thread(self) -> bool:
        """Whether `is_here` can tell by now. Any thread."""
        return self._learned != -1 or self.host.knows_its_thread

    def misused(self, error: Exception) -> Exception:
        """What to raise for a misuse: `error`, or in a forked child that it is one. Any thread."""
        return forked() if self.is_forked else error

    def begin(self) -> None:
        """A turn begins; `end` must follow."""
        self.thread = self._learned = _get_ident()
        self.budget = BUDGET
        self._mailbox.hold()

    def end(self) -> None:
        """The turn ends, with what was posted in it or came from other threads meanwhile."""
        try:
            self._mailbox.drain()
        finally:
            if self.timers.fresh:
                self.timers.absorb()
            self.thread = -1

    def __enter__(self) -> None:
        self.begin()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def _on_wake(self) -> None:
        if self.is_forked:
            return
        if self.thread == _get_ident():  # a host that wakes within a turn of the poller that it adopted
            self._mailbox.drain()
        else:
            self.thread = self._learned = _get_ident()
            self.budget = BUDGET
            self.end()

    def run_here(self, function: Callable[[], object]) -> None:
        """Calls `function` on the loop's thread: at once there, else by the mailbox. Any thread."""
        if self.is_here():
            function()
        else:
            self.post(function)

    def post_callback(self, function: Callable[[*Ts], object], *args: *Ts) -> None:
        """Has a callback run, but not before this returns; unless the host's loop was closed, and nobody else will.
        Any thread."""
        try:
            self.post(partial(self.run_callback, function, *args))
        except ClosedResourceError:
            self.run_callback(function, *args)

    def close(self, cancel: Iterable[Callable[[], object]]) -> None:
        """Ends everything, on the loop's thread or while the loop does not run; `cancel` ends what others know of."""
        self.thread = _get_ident()
        cancel = list(cancel)
        with contextlib.ExitStack() as last_to_first:
            last_to_first.callback(self.poller.close)
            last_to_first.callback(self.timers.close)
            last_to_first.callback(self._end_all, cancel)  # what other threads' letters have begun meanwhile
            last_to_first.callback(self._mailbox.close)
            self._end_all(cancel)

    def _end_all(self, cancel: Iterable[Callable[[], object]]) -> None:
        for end in cancel:
            end()
        for acceptor in list(self.listeners):
            acceptor.close()
        for reference in list(self.endpoints.values()):
            endpoint = reference()
            if endpoint is not None:
                endpoint.close()

    def _abandon(self) -> None:
        self.is_open = False
        self.is_forked = True
        self.thread = -1
        self._mailbox.abandon()
        self.timers.abandon()
        self.poller.abandon()


_loops: weakref.WeakSet[Loop] = weakref.WeakSet()


def loops() -> list[Loop]:
    """Those of this process. Any thread."""
    while True:
        with contextlib.suppress(RuntimeError):  # another thread has just made one
            return list(_loops)


def _after_fork_in_child() -> None:
    for loop in loops():
        loop._abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
