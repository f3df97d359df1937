"""`Host`: the port that a bridge implements so that the core can live on a loop.

A bridge translates and decides nothing: what every engine must do alike stands in the other files of `core`.

Rules for who implements one:

1. Only `time`, `wake`, `log_exception`, `is_running`, `is_here` and `is_closed` are called from any thread, and `wake`
   also from within a garbage collection: it must not take a lock that the same thread may hold. All else is called on
   the loop's thread, or while the loop does not run.
2. The functions that the core passes in do not raise, except for what ends a program (KeyboardInterrupt,
   SystemExit), which is the host's to handle as it always does.
3. Nothing stays behind: after `cancel` and `unwatch` the loop is as it was.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final, Protocol

__all__ = ["READ", "WRITE", "Host", "ListeningSocket", "TurnedPoller"]

READ: Final = 1
"""The descriptor can be read, or has failed or ended."""

WRITE: Final = 2
"""The descriptor can be written, or has failed."""


class Watcher(Protocol):
    def on_readable(self) -> None: ...

    def on_writable(self) -> None: ...

    def on_unwatchable(self, error: OSError) -> None: ...


class TurnedPoller(Protocol):
    """A private poller, as a host sees it that waits in it: see `Host.adopt`."""

    def turn(self, timeout: float) -> None: ...

    def arm(self, fd: int, events: int, owner: Watcher) -> None: ...


class ListeningSocket(socket.socket):
    """`accept` looks at these two for each connection, and the standard library makes enums of both each time."""

    __slots__ = ("family", "type")

    def __init__(self, family: int, kind: int, fileno: int | None = None) -> None:
        super().__init__(family, kind, fileno=fileno)
        self.family = socket.AddressFamily(family)  # type: ignore[misc]  # a property there
        self.type = socket.SOCK_STREAM  # type: ignore[misc]


class Host(ABC):
    """A loop, seen through the few things that an engine needs of it."""

    __slots__ = ()

    can_watch_epoll: bool = True
    """Whether `watch` may be given an epoll (or kqueue) descriptor."""

    knows_its_thread: bool = False
    """Whether `is_here` can always tell. Otherwise it is asked only until the engine's first turn, which tells, and the
    loop must then stay in its thread."""

    clock_lag: float = 0.0
    """Seconds by which `time` may be behind the true time, for a clock that is coarse or cached."""

    has_system_sockets: bool = True
    """Whether sockets are the system's, which have descriptors and, where they have a path, files. A host that brings a
    network of its own makes them by `new_socket` and `new_listening_socket`."""

    @property
    @abstractmethod
    def time(self) -> Callable[[], float]:
        """The loop's own clock: the function that says what time it is, in seconds. Any thread."""

    @abstractmethod
    def call_later(self, delay: float, function: Callable[[], object]) -> object:
        """Has the loop call `function` once, about `delay` seconds (0 to 3600) from now; returns a handle for
        `cancel`. A call that comes early does no harm."""

    @abstractmethod
    def cancel(self, handle: object) -> None:
        """Takes back a `call_later` whose function was not called yet."""

    @abstractmethod
    def wake(self, function: Callable[[], object]) -> None:
        """Has the loop call `function` soon, and returns before it is called. Any thread (rule 1).

        Raises ClosedResourceError when the loop was closed.
        """

    @abstractmethod
    def watch(self, fd: int, events: int, on_ready: Callable[[int], object]) -> None:
        """Calls `on_ready` with READ, WRITE or both, level-triggered, whenever `fd` is ready for any of `events`.

        For an `fd` that is watched already, `events` replaces what it was watched for; `on_ready` is the same.
        An `on_ready` may unwatch any descriptor, its own too, and close it. A host that drops a failed descriptor
        by itself first reports it as ready for READ | WRITE, and takes a later `watch` as a new one.

        Raises OSError when the system cannot watch it.
        """

    @abstractmethod
    def unwatch(self, fd: int) -> None:
        """Ends `watch`. Does nothing for an `fd` that is not watched."""

    def new_socket(self, family: int, kind: int) -> socket.socket:
        """A socket, as `socket.socket(family, kind)`, whose `fileno` can be watched. Any thread."""
        return socket.socket(family, kind)

    def new_listening_socket(self, family: int, kind: int) -> socket.socket:
        """The same for one that is to listen."""
        return ListeningSocket(family, kind)

    @abstractmethod
    def log_exception(self, message: str, error: BaseException) -> None:
        """Logs `error`, with its traceback, by the framework's own logging."""

    def adopt(self, poller: TurnedPoller) -> bool:
        """Takes the engine's private poller, to wait in it; False: the host watches it instead, as nearly all do."""
        return False

    @property
    @abstractmethod
    def is_running(self) -> bool:
        """Whether the loop runs now, in any thread. Any thread."""

    def is_here(self) -> bool:
        """Whether the calling thread runs the loop now; False also where there is no telling. Any thread."""
        return False

    @property
    @abstractmethod
    def is_closed(self) -> bool:
        """Whether the loop was closed for good. Any thread."""
