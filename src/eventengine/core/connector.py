"""Connecting: one `Attempt` for each `EventEngine.connect`.

Rules:

1. `attempts` maps handles to attempts. Taking one out is atomic, and settles from any thread who ends it: success,
   failure, the timeout, `cancel_connect`, or the engine's close. Only who took it out calls `on_connect`, or, for a
   cancel, sees that nobody does.
2. All else is the loop's thread's. A cancel from elsewhere has the attempt dropped there by a letter.
3. `on_connect` is never called within `connect`: the attempt starts with a letter.

What connect(2) says of TCP comes with writability and SO_ERROR; an event may be stale (see `poller`), so that only a
peer's address proves a connection. A unix socket whose listener's backlog is full answers EAGAIN and reports nothing
later: it is tried again until the timeout. A TCP socket on this machine may meet itself, when the port that it was
given is the one that it asks for: nobody listens there, and so it was refused.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from eventengine.address import ResolvedAddress
from eventengine.config import EndpointConfig
from eventengine.core.endpoint import SocketEndpoint
from eventengine.core.handles import next_handle
from eventengine.core.host import WRITE
from eventengine.core.sockets import make_socket
from eventengine.engine import ConnectionHandle, Endpoint, TaskHandle
from eventengine.memory import MemoryAllocator
from eventengine.status import ClosedResourceError, Status, StatusCode

if TYPE_CHECKING:
    from eventengine.core.loop import Loop

__all__ = ["Connector"]

UNIX_RETRY: Final = 0.01
"""Seconds between two tries on a unix socket with a full backlog."""

OnConnect = Callable[[Endpoint | Status], object]


class Connector:
    """The connection attempts of one engine."""

    __slots__ = ("_attempts", "_loop")

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._attempts: dict[ConnectionHandle, Attempt] = {}

    def connect(
        self,
        on_connect: OnConnect,
        address: ResolvedAddress,
        config: EndpointConfig,
        memory_allocator: MemoryAllocator,
        timeout: float,
    ) -> ConnectionHandle:
        """See `EventEngine.connect`. Any thread."""
        handle = ConnectionHandle(next_handle())
        attempt = Attempt(self, self._loop, handle, on_connect, address, config, memory_allocator)
        attempt.deadline = self._loop.host.time() + timeout
        self._attempts[handle] = attempt
        try:
            self._loop.post(attempt.start)
        except BaseException:
            if self.claim(handle) is not None:
                raise  # else the engine's close has it, and reports
        return handle

    def claim(self, handle: ConnectionHandle) -> Attempt | None:
        """Rule 1. Any thread."""
        return self._attempts.pop(handle, None)

    def cancel(self, handle: ConnectionHandle) -> bool:
        """See `EventEngine.cancel_connect`. Any thread."""
        attempt = self.claim(handle)
        if attempt is None:
            return False
        try:
            self._loop.run_here(attempt.drop)
        except ClosedResourceError:  # nobody else will do it
            attempt.drop()
        return True

    def cancel_all(self) -> None:
        """The engine closes, on the loop's thread."""
        for handle in list(self._attempts):
            attempt = self.claim(handle)
            if attempt is not None:
                attempt.drop()
                self._loop.post_callback(attempt.on_connect, Status(StatusCode.CANCELLED, "the engine was closed"))


class Attempt:
    __slots__ = (
        "_address",
        "_allocator",
        "_config",
        "_connector",
        "_dropped",
        "_handle",
        "_loop",
        "_retry",
        "_sock",
        "_timer",
        "deadline",
        "on_connect",
    )

    def __init__(
        self,
        connector: Connector,
        loop: Loop,
        handle: ConnectionHandle,
        on_connect: OnConnect,
        address: ResolvedAddress,
        config: EndpointConfig,
        memory_allocator: MemoryAllocator,
    ) -> None:
        self._connector = connector
        self._loop = loop
        self._handle = handle
        self.on_connect = on_connect
        self._address = address
        self._config = config
        self._allocator = memory_allocator
        self._sock: socket.socket | None = None
        self._timer: TaskHandle | None = None
        self._retry: TaskHandle | None = None
        self._dropped = False
        self.deadline = 0.0

    def start(self) -> None:
        if self._dropped:
            return
        try:
            self._sock = make_socket(self._address.family, self._config, self._loop.host.new_socket)
        except OSError as error:
            self._fail(Status.from_errno(error.errno or errno.EIO, f"making a socket for {self._address}"))
            return
        except Exception as error:
            self._loop.callbacks.failed(self._config.socket_hook, error)
            self._fail(Status(StatusCode.INTERNAL, f"the socket hook raised {error!r}"))
            return
        if self._dropped:  # by the socket hook
            self._sock.close()
            return
        left = max(self.deadline - self._loop.host.time(), 0.0)
        self._timer = self._loop.timers.schedule_own(left, self._time_out)
        self._connect()

    def _connect(self) -> None:
        sock = self._sock
        if sock is None:
            return
        try:
            number = sock.connect_ex(self._address.sockaddr)
        except (OSError, OverflowError, TypeError, ValueError) as error:  # an address that Python refuses
            self._fail(Status(StatusCode.INVALID_ARGUMENT, f"connecting to {self._address}: {error}"))
            return
        if number in (0, errno.EISCONN):
            self.on_writable()
        elif number == errno.EAGAIN and self._address.family == socket.AF_UNIX:
            self._retry = self._loop.timers.schedule_own(UNIX_RETRY, self._connect)
        elif number in (errno.EINPROGRESS, errno.EAGAIN, errno.EINTR):
            self._loop.poller.arm(sock.fileno(), WRITE, self)
        else:
            self._fail_with(number)

    def on_readable(self) -> None:
        """Errors are readable, too; `on_writable` follows."""

    def on_writable(self) -> None:
        sock = self._sock
        if sock is None:
            return
        try:
            number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not number:
                peer = sock.getpeername()
                if self._address.family != socket.AF_UNIX and peer == sock.getsockname():
                    number = errno.ECONNREFUSED
        except OSError as error:
            if error.errno == errno.ENOTCONN:
                return  # a stale event: still connecting
            number = error.errno or errno.EIO
        if number:
            self._fail_with(number)
            return
        self._succeed(sock)

    def on_unwatchable(self, error: OSError) -> None:
        self._fail(Status.from_errno(error.errno or errno.EIO, f"watching the socket for {self._address}"))

    def _succeed(self, sock: socket.socket) -> None:
        if self._connector.claim(self._handle) is None:
            return  # cancelled from another thread, and `drop` is on its way
        self._sock = None
        self._cancel_timers()
        self._loop.poller.disarm(sock.fileno(), WRITE)
        self._loop.poller.busy.pop(sock.fileno(), None)
        try:
            endpoint = SocketEndpoint(self._loop, sock, self._address.sockaddr, None, self._allocator.memory, None)
        except OSError as error:
            sock.close()
            self._report(Status.from_errno(error.errno or errno.EIO, f"connecting to {self._address}"))
            return
        self._report(endpoint)

    def _fail_with(self, number: int) -> None:
        self._fail(Status.from_errno(number, f"connecting to {self._address}"))

    def _time_out(self) -> None:
        self._timer = None
        self._fail(Status(StatusCode.DEADLINE_EXCEEDED, f"connecting to {self._address}: the timeout has passed"))

    def _fail(self, status: Status) -> None:
        if self._connector.claim(self._handle) is not None:
            self.drop()
            self._report(status)

    def drop(self) -> None:
        """Ends the attempt without a report."""
        self._dropped = True
        self._cancel_timers()
        sock, self._sock = self._sock, None
        if sock is not None:
            self._loop.poller.forget(sock.fileno())
            sock.close()

    def _cancel_timers(self) -> None:
        for timer in (self._timer, self._retry):
            if timer is not None:
                self._loop.timers.cancel(timer)
        self._timer = self._retry = None

    def _report(self, result: Endpoint | Status) -> None:
        self._loop.run_callback(self.on_connect, result)
