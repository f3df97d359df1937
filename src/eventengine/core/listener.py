"""Listening sockets: `Acceptor` does the work, `SocketListener` is what the application holds.

Two objects, so that a listener which is dropped without `close` is collected, and closed then, although the loop
keeps its acceptor while it accepts.

Who may touch what:

1. Binding and starting happen on the caller's thread, under `_lock`: bind answers at once. The states are open,
   started, closed, in this order. The lock is held across bind(2) and the socket hook, and so re-entrant; never
   across another callback.
2. Accepting, pausing and closing the sockets is the loop's thread's. Before the start it has nothing to do with them.
3. `on_shutdown` follows the last `on_accept`. Where callbacks run on the loop's thread, it is a letter of the close,
   which comes after whatever runs there. On a pool, `_running` counts those that were handed over and have not
   returned, under `_lock`; whoever brings it to nought after the sockets were closed calls `on_shutdown`.

A connection is accepted only with a place in the quota's `connections`. Without one, or without a file descriptor
left, the sockets are not watched (the kernel's backlog keeps the connections) until a place comes back or a second
has passed.

An accept(2) in vain costs as much as one that brings a connection, so an event asks for no more than the last ones
had: where connections come one by one, for one. It is level-triggered, and comes again when there are more; for as long
as there are, it asks for twice as many each time.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

from eventengine.address import ResolvedAddress
from eventengine.config import EndpointConfig
from eventengine.core.endpoint import SocketEndpoint
from eventengine.core.host import READ
from eventengine.core.inherited import take_listening
from eventengine.core.mailbox import forked
from eventengine.core.sockets import UnixFile, bind_and_listen, options_are_inherited, set_options
from eventengine.engine import Endpoint, EventEngine, Listener, ListenerSupportsFileDescriptor, TaskHandle
from eventengine.memory import MemoryAllocator, MemoryAllocatorFactory
from eventengine.memory_quota import MemoryQuota
from eventengine.quota import ConnectionQuota, ResourceQuota
from eventengine.status import ClosedResourceError, ForkedProcessError, Status, StatusCode, StatusError

if TYPE_CHECKING:
    from eventengine.core.loop import Loop

__all__ = ["Acceptor", "OnAccept", "SocketListener"]

ACCEPTS_PER_EVENT: Final = 64
LONE_EVENTS: Final = 8
"""Events that had one connection, after which the next looks whether there are two."""
PAUSE: Final = 1.0
"""Seconds until the next try when there are no file descriptors or buffers, as in gRPC's posix listener, or the socket
fails."""

_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_OF_ONE_CONNECTION: Final = frozenset(
    getattr(errno, name)
    for name in (
        "ECONNABORTED", "ECONNRESET", "EHOSTDOWN", "EHOSTUNREACH", "EINTR", "ENETDOWN", "ENETUNREACH", "ENONET",
        "ENOPROTOOPT", "EOPNOTSUPP", "EPERM", "EPROTO", "ETIMEDOUT",
    )
    if hasattr(errno, name)
)  # fmt: skip
"""What accept(2) tells of a connection that broke before it was accepted."""

E = TypeVar("E")

OnAccept = Callable[[Endpoint, MemoryAllocator], object]


class _ListeningSocket:
    """One bound socket; `local` is its address where accepted connections have the same."""

    __slots__ = ("_acceptor", "expected", "fd", "file", "hands_down_nothing", "local", "lone", "port", "sock")

    def __init__(
        self,
        acceptor: Acceptor,
        sock: socket.socket,
        address: ResolvedAddress,
        file: UnixFile | None,
        *,
        is_adopted: bool = False,
    ) -> None:
        self._acceptor = acceptor
        self.sock = sock
        self.fd = sock.fileno()
        self.file = file
        self.hands_down_nothing = is_adopted or not options_are_inherited(sock.family)
        self.expected = ACCEPTS_PER_EVENT  # of connections, at the next event
        self.lone = 0  # events, one after another, that had one connection
        self.port = address.port
        self.local = None if address.is_wildcard else address.normalized()

    def on_readable(self) -> None:
        self._acceptor.accept_from(self)

    def on_writable(self) -> None:
        """Nobody asked for this."""

    def on_unwatchable(self, error: OSError) -> None:
        self._acceptor.pause(PAUSE)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # somebody else has closed it; `on_shutdown` is still to be told
            self.sock.close()
        if self.file is not None:
            self.file.remove()


class Acceptor:
    __slots__ = (
        "_closed",
        "_config",
        "_factory",
        "_give_place",
        "_is_limited",
        "_lock",
        "_loop",
        "_memory",
        "_on_accept",
        "_on_shutdown",
        "_pause_timer",
        "_paused",
        "_places",
        "_port",
        "_running",
        "_sockets",
        "_started",
    )

    def __init__(
        self,
        loop: Loop,
        on_accept: OnAccept,
        on_shutdown: Callable[[Status], object],
        config: EndpointConfig,
        factory: MemoryAllocatorFactory,
    ) -> None:
        self._loop = loop
        self._on_accept = on_accept
        self._on_shutdown = on_shutdown
        self._config = config
        self._factory = factory
        self._places: ConnectionQuota | None = None
        self._is_limited = False
        self._give_place: Callable[[], object] | None = None
        self._memory: MemoryQuota | None = None
        if isinstance(factory, ResourceQuota):
            self._memory = factory.memory
            self._places = factory.connections
            self._is_limited = factory.connections.size is not None
            self._give_place = factory.connections.give  # one for all, for each of its own takes 64 bytes
        self._lock = threading.RLock()
        self._sockets: list[_ListeningSocket] = []
        self._port = 0
        self._started = self._closed = self._paused = False
        self._pause_timer: TaskHandle | None = None
        self._running = 0
        loop.listeners[self] = None

    def bind(self, address: ResolvedAddress) -> int:
        """See `Listener.bind`. Any thread."""
        self._check_not_forked()
        with self._lock:
            self._check_open()
            if self._started:
                raise StatusError(Status(StatusCode.FAILED_PRECONDITION, "bind must come before start"))
            inet = address.family in (socket.AF_INET, socket.AF_INET6)
            if inet and not address.port and self._port:
                address = address.with_port(self._port)
            try:
                added = (
                    self._bind_wildcard(address) if inet and address.host == "::" else [self._bind_one(address)]
                )
            except socket.gaierror as error:
                raise StatusError(
                    Status(StatusCode.INVALID_ARGUMENT, f"binding {address}: {error.strerror}")
                ) from None
            except OSError as error:
                number = error.errno or errno.EIO
                raise StatusError(Status.from_errno(number, f"binding {address}")) from None
            self._sockets += added
            port = added[0].port
            if inet and not self._port:
                self._port = port
            return port

    def adopt(self, given: socket.socket | int) -> int:
        """See `ListenerSupportsFileDescriptor.adopt`. Any thread."""
        self._check_not_forked()
        if not self.has_descriptors:
            raise StatusError(Status(StatusCode.UNIMPLEMENTED, "the sockets of this engine have no descriptors"))
        with self._lock:
            self._check_open()
            if self._started:
                raise StatusError(Status(StatusCode.FAILED_PRECONDITION, "adopt must come before start"))
            if given in [listening.fd for listening in self._sockets]:
                raise ValueError(f"descriptor {given} was adopted already")
            listening = _ListeningSocket(self, *take_listening(given), None, is_adopted=True)
            self._sockets.append(listening)
            if not self._port and listening.sock.family in (socket.AF_INET, socket.AF_INET6):
                self._port = listening.port
            return listening.port

    def _bind_one(self, address: ResolvedAddress, *, dual_stack: bool = False) -> _ListeningSocket:
        return _ListeningSocket(
            self, *bind_and_listen(self._loop.host, address, self._config, dual_stack=dual_stack)
        )

    def _bind_wildcard(self, address: ResolvedAddress) -> list[_ListeningSocket]:
        """One dual-stack socket; where the system has none, one for IPv6 and one for IPv4, or what there is of them."""
        if socket.has_dualstack_ipv6():
            return [self._bind_one(address, dual_stack=True)]
        v4 = ResolvedAddress.tcp("0.0.0.0", address.port)
        try:
            v6 = self._bind_one(address)
        except OSError as error:
            if error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                return [self._bind_one(v4)]
            raise
        try:
            return [v6, self._bind_one(v4.with_port(v6.port))]
        except BaseException:
            v6.close()
            raise

    def start(self) -> None:
        """See `Listener.start`. Any thread."""
        self._check_not_forked()
        with self._lock:
            self._check_open()
            if self._started:
                raise StatusError(Status(StatusCode.FAILED_PRECONDITION, "the listener was started before"))
            if not self._sockets:
                raise StatusError(
                    Status(StatusCode.FAILED_PRECONDITION, "nothing was bound; bind an address first")
                )
            self._started = True
        self._loop.run_here(self._watch)

    def close(self) -> None:
        """See `Listener.close`. Any thread."""
        if self._loop.is_forked:  # `_lock` may be held by a thread that is not here
            for listening in self._sockets:
                listening.sock.close()
            self._check_not_forked()
        with self._lock:
            if self._closed:
                return
            self._closed = True
        try:
            self._loop.run_here(self._close_sockets)
        except ClosedResourceError:  # the host's loop was closed under us; nobody else will do it
            self._close_sockets()

    def close_later(self) -> None:
        """Closes by a letter, without a lock: the listener was collected, in whatever thread."""
        with contextlib.suppress(ClosedResourceError, ForkedProcessError):  # then the sockets went, or go, with us
            self._loop.post(self.close)

    @property
    def is_closed(self) -> bool:
        return self._closed

    @property
    def has_descriptors(self) -> bool:
        return self._loop.host.has_system_sockets

    def _check_not_forked(self) -> None:
        if self._loop.is_forked:
            raise forked("listener")

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedResourceError("the listener was closed")

    # All that follows is the loop's thread's, but for `_deliver`.

    def _watch(self) -> None:
        if not self._closed:
            for listening in self._sockets:
                self._loop.poller.arm(listening.fd, READ, listening)

    def pause(self, seconds: float) -> None:
        """Does not watch the sockets for so long; for 0 until `_resume` is called."""
        if not self._paused and not self._closed:
            self._paused = True
            for listening in self._sockets:
                self._loop.poller.forget(listening.fd)
            if seconds:
                self._pause_timer = self._loop.timers.schedule_own(seconds, self._resume)

    def _resume(self) -> None:
        if self._paused and not self._closed:
            self._paused = False
            self._watch()
            # Nobody may be waiting for us: then what `accept_from` does not need goes to the next in line.
            for listening in self._sockets:
                self.accept_from(listening)
        elif self._places is not None:
            self._places.wake_one()  # it was another's turn

    def _on_place(self) -> None:
        """The quota has a place for a connection. Any thread."""
        try:
            self._loop.post(self._resume)
        except (ClosedResourceError, ForkedProcessError):
            if self._places is not None:
                self._places.wake_one()

    def accept_from(self, listening: _ListeningSocket) -> None:
        for n in range(listening.expected):
            if self._closed or self._paused:
                return
            places = self._places
            if places is not None and self._is_limited and not places.try_take(self._on_place):
                self.pause(0)
                return
            try:
                sock, peer = listening.sock.accept()
            except OSError as error:
                if self._is_limited:
                    self._give_place_back()
                if isinstance(error, BlockingIOError):
                    listening.expected = max(n, 1)
                    listening.lone = 0
                    return
                if error.errno in _OF_ONE_CONNECTION:
                    continue
                if error.errno not in _EXHAUSTED:  # a socket that fails for good, as one that was shut down
                    self._loop.host.log_exception("a listener cannot accept, and will try again", error)
                self.pause(PAUSE)
                return
            if places is not None and not self._is_limited:
                places.add()
            try:
                sock.setblocking(False)
                if listening.hands_down_nothing or self._config.socket_hook is not None:
                    set_options(sock, self._config)
                memory = self._memory or self._factory.create_memory_allocator("connection").memory
                allocator = self._factory.create_memory_allocator("application")
                if self._closed:  # by the hook or the factory, just now
                    raise ConnectionAbortedError
                endpoint = SocketEndpoint(self._loop, sock, peer, listening.local, memory, self._give_place)
            except BaseException as error:
                sock.close()
                self._give_place_back()
                if not isinstance(error, OSError):  # which is how a connection ends that broke already
                    self._loop.callbacks.failed(self._config.socket_hook or self._factory, error)
                continue
            if self._loop.calls_back_here:
                self._call(endpoint, allocator)
            else:
                with self._lock:
                    self._running += 1
                self._loop.run_callback(self._deliver, endpoint, allocator)
        listening.lone += 1
        if listening.expected > 1 or listening.lone == LONE_EVENTS:
            listening.expected = min(2 * listening.expected, ACCEPTS_PER_EVENT)

    def _give_place_back(self) -> None:
        if self._give_place is not None:
            self._give_place()

    def _deliver(self, endpoint: SocketEndpoint, allocator: MemoryAllocator) -> None:
        """Calls `on_accept` on a pool."""
        try:
            self._call(endpoint, allocator)
        finally:
            with self._lock:
                self._running -= 1
                last = self._closed and not self._running and not self._sockets
            if last:
                self._loop.run_callback(self._on_shutdown, Status.OK)

    def _call(self, endpoint: SocketEndpoint, allocator: MemoryAllocator) -> None:
        try:
            self._on_accept(endpoint, allocator)
        except BaseException as error:
            endpoint.close()
            self._loop.callbacks.failed(self._on_accept, error)

    def _close_sockets(self) -> None:
        for listening in self._sockets:
            self._loop.poller.forget(listening.fd)
            listening.close()
        self._loop.listeners.pop(self, None)
        with self._lock:
            self._sockets = []
            last = not self._running
        if self._pause_timer is not None:
            self._loop.timers.cancel(self._pause_timer)
        if self._places is not None:
            self._places.cancel_wait(self._on_place)
        if last:
            self._loop.post_callback(self._on_shutdown, Status.OK)


class SocketListener(Listener, ListenerSupportsFileDescriptor):
    """Holds its engine, too: who keeps a listener alone expects it to go on."""

    __slots__ = ("_acceptor", "_engine")

    def __init__(self, acceptor: Acceptor, engine: EventEngine) -> None:
        self._acceptor = acceptor
        self._engine: EventEngine | None = engine

    def bind(self, address: ResolvedAddress) -> int:
        if not isinstance(address, ResolvedAddress):
            raise TypeError(
                f"bind needs a ResolvedAddress, not {type(address).__name__}; see ResolvedAddress.parse"
            )
        return self._acceptor.bind(address)

    def query_extension(self, extension: type[E]) -> E | None:
        if extension is ListenerSupportsFileDescriptor and not self._acceptor.has_descriptors:
            return None
        return super().query_extension(extension)

    def adopt(self, listening: socket.socket | int) -> int:
        return self._acceptor.adopt(listening)

    def start(self) -> None:
        self._acceptor.start()

    def close(self) -> None:
        self._acceptor.close()
        self._engine = None

    def __del__(self) -> None:
        if getattr(self, "_acceptor", None) is None or self._acceptor.is_closed:
            return
        self._acceptor.close_later()
        warnings.warn("a listener was never closed", ResourceWarning, stacklevel=1, source=self)
