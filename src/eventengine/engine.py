"""THE INTERFACE: what a protocol is written on, and what an engine implements.

Words used throughout:

* *The loop's thread* is the one that does the engine's I/O: its own, or the one that runs the reactor or IOLoop.
* *A callback* is what the application passes. It runs on the loop's thread, one at a time, or, for an engine made
  with a `callback_executor`, on a thread of that pool, where several may run at once. What it raises is logged and
  counted, and nothing else comes of it.
* *Done* means that the call returned True: the result is there and the callback will not be called.
* A `StatusOr[T]` is the value, or a `Status` that is not OK.

Durations are seconds, as floats. Times are the host's clock.

Source: `grpc/event_engine/event_engine.h` of gRPC 1.81, whose contract this follows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from enum import Enum
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, NewType, Protocol, TypeAlias, TypeVar

from eventengine.address import ResolvedAddress
from eventengine.config import EndpointConfig
from eventengine.memory import MemoryAllocator, MemoryAllocatorFactory
from eventengine.slices import SliceBuffer
from eventengine.status import Status

if TYPE_CHECKING:
    import socket
    from typing import Self

__all__ = [
    "ConnectionHandle",
    "DNSResolver",
    "Endpoint",
    "EventEngine",
    "HalfCloseable",
    "Listener",
    "ListenerSupportsFileDescriptor",
    "SRVRecord",
    "StatusOr",
    "SupportsFileDescriptor",
    "TaskHandle",
    "TelemetryInfo",
    "WriteEvent",
    "WriteEventSink",
]

T = TypeVar("T")
E = TypeVar("E")

StatusOr: TypeAlias = T | Status

TaskHandle = NewType("TaskHandle", int)
"""Names a closure given to `EventEngine.run_after`; no two engines of a process give out the same one."""

ConnectionHandle = NewType("ConnectionHandle", int)
"""Names a connection attempt of `EventEngine.connect`; no two engines of a process give out the same one."""


class SRVRecord(NamedTuple):
    """A service record (RFC 2782)."""

    host: str
    port: int
    priority: int
    weight: int


class WriteEvent(Enum):
    """What a `WriteEventSink` can be told of the bytes of one write."""

    SENDMSG = "sendmsg"
    SCHEDULED = "scheduled"
    SENT = "sent"
    ACKED = "acked"
    CLOSED = "closed"


class WriteEventSink(Protocol):
    """Is told what became of a write's bytes, by engines that can know: see `Endpoint.telemetry_info`."""

    @property
    def requested_events(self) -> frozenset[WriteEvent]: ...

    def on_event(self, event: WriteEvent, time: float, metrics: Mapping[str, float]) -> None:
        """Called where callbacks are, never before `Endpoint.write` has returned, and before that write's callback.
        What it raises is logged.

        `time` is the host's clock; `metrics` are those of `TelemetryInfo.metrics` that are known."""
        ...


class TelemetryInfo(ABC):
    """Says what an endpoint can measure about its writes."""

    __slots__ = ()

    @property
    @abstractmethod
    def metrics(self) -> tuple[str, ...]:
        """The names of the metrics that `WriteEventSink.on_event` may get; those that the sockets of this package have
        stand in the documentation, docs/concepts.md."""

    @property
    @abstractmethod
    def events(self) -> frozenset[WriteEvent]:
        """The events that a sink may be told of; of others that it requests it never hears."""


class Endpoint(ABC):
    """One end of a connection: a stream of bytes in each direction.

    At most one read and one write may be outstanding at a time. An endpoint must be closed; one that is collected
    without is closed then, with a ResourceWarning.
    """

    __slots__ = ()

    @abstractmethod
    def read(self, on_read: Callable[[Status], object], buffer: SliceBuffer, *, read_hint_bytes: int = 1) -> bool:
        """Reads some bytes, at least one, into `buffer`, which is cleared first and borrowed until the read is done.

        True: done, the bytes are in `buffer`. False: `on_read` is called later, exactly once, with OK and the bytes
        in `buffer`, or with what ended the connection and `buffer` empty. Bytes that arrived before the end come
        first, with OK; the end is then the answer to the next read.

        While the memory quota is full the read waits, and TCP's flow control holds the peer back.

        Args:
            on_read: Gets OK; OUT_OF_RANGE when the peer has ended its stream; UNAVAILABLE, with the errno, when the
                connection broke; CANCELLED when this endpoint was closed.
            buffer: Where the bytes go.
            read_hint_bytes: A wish to be called when so many bytes are there, and not for less. Fewer come when the
                stream ends, and when the quota has no room for more.

        Raises:
            BusyResourceError: A read is outstanding.
            ClosedResourceError: This endpoint was closed.
            TypeError, ValueError: An argument is not what it must be, or the hint is below 1.

        Not promised: which sizes the slices have, and that a read which could be done at once is.

        May be called from any thread.
        """

    @abstractmethod
    def write(
        self,
        on_writable: Callable[[Status], object],
        data: SliceBuffer,
        *,
        max_frame_size: int = 1 << 20,
        sink: WriteEventSink | None = None,
    ) -> bool:
        """Writes all of `data`, which is borrowed until the write is done; what it then contains is undefined.

        True, or `on_writable` with OK: every byte was handed to the system. An empty write is done at once.
        Writing goes on after the peer has closed only its writing half.

        Args:
            on_writable: Called later, exactly once, if the write is not done on return. Gets OK; UNAVAILABLE, with
                the errno, when the connection broke; CANCELLED when this endpoint was closed first, however much was
                written.
            data: The bytes; nobody may change what its slices show until the write is done.
            max_frame_size: A wish for the size of frames, for endpoints that frame what they send; plain sockets
                do not.
            sink: Is told of this write's events where `telemetry_info` is not None.

        Raises:
            BusyResourceError: A write is outstanding.
            ClosedResourceError: This endpoint, or its writing half, was closed.
            TypeError, ValueError: An argument is not what it must be.

        Not promised: that the peer got what was handed over.

        May be called from any thread.
        """

    @property
    @abstractmethod
    def peer_address(self) -> ResolvedAddress:
        """The other end's address. A v4-mapped IPv6 address is given as the IPv4 address it stands for."""

    @property
    @abstractmethod
    def local_address(self) -> ResolvedAddress:
        """This end's address, as `peer_address`."""

    @abstractmethod
    def telemetry_info(self) -> TelemetryInfo | None:
        """What this endpoint can measure about its writes; None: nothing, and a `sink` is never called."""

    def query_extension(self, extension: type[E]) -> E | None:
        """This endpoint as an `extension` (`HalfCloseable`, ...), or None if it is none.

        May be called from any thread.
        """
        return self if isinstance(self, extension) else None

    @abstractmethod
    def close(self) -> None:
        """Closes the connection. An outstanding read and write get CANCELLED, later; bytes not yet handed to the
        system are dropped. May be called at any time, inside callbacks, twice, and from any thread.
        """


# Extensions are not abstract classes: mypy takes no abstract class for a type[E], so that none could be asked for.


class HalfCloseable:
    """An endpoint that can end its outgoing stream and go on reading."""

    __slots__ = ()

    def close_write(self) -> None:
        """Ends the outgoing stream: the peer reads the end after the bytes that were written (`shutdown(SHUT_WR)`).

        Does nothing when it was called before, or when the connection is broken already.

        Raises:
            BusyResourceError: A write is outstanding; wait for it, so that no byte is lost.
            ClosedResourceError: This endpoint was closed.

        May be called from any thread.
        """
        raise NotImplementedError


class SupportsFileDescriptor:
    """An endpoint that has a file descriptor to look at or to take over."""

    __slots__ = ()

    def fileno(self) -> int:
        """The descriptor, for looking at. It stays the endpoint's.

        Raises ClosedResourceError after close. May be called from any thread.
        """
        raise NotImplementedError

    def release(self) -> int:
        """Closes the endpoint but not the connection, and returns a descriptor of it that is now the caller's.

        An outstanding read and write get CANCELLED. Raises ClosedResourceError after close. May be called from any
        thread; only with no read outstanding is it certain that no bytes were read that nobody gets.
        """
        raise NotImplementedError


class Listener(ABC):
    """Accepts connections on any number of addresses. Must be closed, as an `Endpoint` must."""

    __slots__ = ()

    @abstractmethod
    def bind(self, address: ResolvedAddress) -> int:
        """Binds one more address and returns its port: 1 for a unix socket.

        Port 0 takes the port of this listener's earlier sockets, else one that is free. `::` listens on IPv6 and
        IPv4 where the system can do this with one socket, else with two on the same port. A unix socket's file that
        nobody listens on any more is replaced; one that somebody does is not.

        Raises:
            StatusError: FAILED_PRECONDITION after `start`; else what the system says, with the errno.
            ClosedResourceError: This listener was closed.

        May be called from any thread.
        """

    @abstractmethod
    def start(self) -> None:
        """Begins to accept on all that was bound.

        Raises:
            StatusError: FAILED_PRECONDITION for a second start, or when nothing was bound.
            ClosedResourceError: This listener was closed.

        May be called from any thread.
        """

    def query_extension(self, extension: type[E]) -> E | None:
        """This listener as an `extension`, or None if it is none. May be called from any thread."""
        return self if isinstance(self, extension) else None

    @abstractmethod
    def close(self) -> None:
        """Stops accepting, frees the addresses, and has `on_shutdown` called once every `on_accept` has returned.

        Connections that were accepted are not touched. May be called at any time, inside callbacks, twice, and from
        any thread; on the loop's thread the addresses are free on return.
        """


class ListenerSupportsFileDescriptor:
    """A listener that can accept on a socket which somebody else has bound and made listen."""

    __slots__ = ()

    def adopt(self, listening: socket.socket | int) -> int:
        """Takes a listening stream socket, or its descriptor, besides what is bound; returns its port, as `bind` does.

        It is then the listener's: non-blocking, which all processes that share it will see, closed at exec and closed
        with the listener; a socket object that was given is left without a descriptor. Its own options stay as they
        are; those of the listener's config are set on what it accepts. The file of a unix socket is not removed.

        Raises:
            TypeError, ValueError: It is no listening stream socket of TCP, unix or vsock. It stays the caller's, as it
                does whenever this raises.
            StatusError: FAILED_PRECONDITION after `start`; else why the system does not hand it over.
            ClosedResourceError: This listener was closed.

        May be called from any thread.

        Source: `ListenerSupportsFdExtension` in `grpc/event_engine/extensions/supports_fd.h`.
        """
        raise NotImplementedError


class DNSResolver(ABC):
    """Looks up names. Must be closed."""

    __slots__ = ()

    @property
    def kind(self) -> str:
        """How it looks names up: `"c-ares"`, `"system"`, ... For logs and messages. May be called from any thread."""
        return type(self).__name__

    @abstractmethod
    def lookup_hostname(
        self, on_resolve: Callable[[StatusOr[list[ResolvedAddress]]], object], name: str, default_port: str = ""
    ) -> None:
        """Looks up the addresses of `"host"`, `"host:port"`, `"[::1]:port"`; literals are answered without a query.

        `on_resolve` gets at least one address, in the order in which to try them (RFC 6724), or NOT_FOUND when the
        name has none, UNAVAILABLE when a server refused or failed, DEADLINE_EXCEEDED when none answered in time,
        INVALID_ARGUMENT when `name` does not parse or has no port and `default_port` is empty, CANCELLED when the
        resolver was closed. It is called exactly once, never before this returns. A port may be the name of a
        service that the machine knows, as `http`. What looks like a literal and is none (`127.1`, `[1.2.3.4]`) does
        not parse.

        Raises ClosedResourceError after close. May be called from any thread.
        """

    @abstractmethod
    def lookup_srv(self, on_resolve: Callable[[StatusOr[list[SRVRecord]]], object], name: str) -> None:
        """Looks up service records (RFC 2782); `on_resolve` as above, UNIMPLEMENTED from a resolver without SRV.

        Raises ClosedResourceError after close. May be called from any thread.
        """

    @abstractmethod
    def lookup_txt(self, on_resolve: Callable[[StatusOr[list[str]]], object], name: str) -> None:
        """Looks up text records (RFC 1035), the strings of each joined; `on_resolve` as above, UNIMPLEMENTED from a
        resolver without TXT. Bytes that are not UTF-8 are given as `os.fsdecode` gives them.

        Raises ClosedResourceError after close. May be called from any thread.
        """

    @abstractmethod
    def close(self) -> None:
        """Ends all lookups; their callbacks get CANCELLED, later. May be called twice, and from any thread."""


class EventEngine(ABC):
    """Does all I/O, timers, task execution and name resolution. A context manager that closes itself.

    Every method may be called from any thread. In a process forked after the engine was made, every method raises
    ForkedProcessError.
    """

    __slots__ = ()

    @property
    @abstractmethod
    def callbacks_block_polling(self) -> bool:
        """Whether a callback that blocks stops the engine's I/O: True where callbacks run on the loop's thread."""

    @abstractmethod
    def run(self, closure: Callable[[], object]) -> None:
        """Runs `closure` soon, never before this returns; closures from one thread run in their order.

        Raises ClosedResourceError after close, TypeError for what is not callable. May be called from any thread.
        """

    @abstractmethod
    def run_after(self, delay: float, closure: Callable[[], object]) -> TaskHandle:
        """Runs `closure` once when `delay` seconds have passed, never earlier and never before this returns.

        Closures run in the order of their deadlines, those with equal ones in the order of their making. When the
        engine is closed, those that wait are dropped.

        Raises ValueError for a delay that is negative, infinite or not a number, TypeError for what is not
        callable, ClosedResourceError after close. May be called from any thread.
        """

    @abstractmethod
    def cancel(self, handle: TaskHandle) -> bool:
        """True: the closure was waiting and will never run. False: it ran, runs now, was cancelled or is unknown.

        May be called from any thread.
        """

    @abstractmethod
    def connect(
        self,
        on_connect: Callable[[StatusOr[Endpoint]], object],
        address: ResolvedAddress,
        config: EndpointConfig,
        memory_allocator: MemoryAllocator,
        timeout: float,
    ) -> ConnectionHandle:
        """Connects to `address`; the endpoint draws its memory from `memory_allocator`.

        Args:
            on_connect: Called exactly once, never before this returns, unless `cancel_connect` returned True. Gets
                the endpoint, which is then the callback's to close; or DEADLINE_EXCEEDED after `timeout`;
                UNAVAILABLE, with the errno, when the peer refused or cannot be reached; RESOURCE_EXHAUSTED when
                there is no file descriptor or memory left; CANCELLED when the engine was closed.
            timeout: Seconds.

        Raises ValueError for a timeout that is negative, infinite or not a number, TypeError for arguments of
        another type, ClosedResourceError after close. May be called from any thread.
        """

    @abstractmethod
    def cancel_connect(self, handle: ConnectionHandle) -> bool:
        """True: `on_connect` will never be called and the attempt is over. False: it was or will be called, or the
        handle is unknown. May be called from any thread.
        """

    @abstractmethod
    def create_listener(
        self,
        on_accept: Callable[[Endpoint, MemoryAllocator], object],
        on_shutdown: Callable[[Status], object],
        config: EndpointConfig,
        memory_allocator_factory: MemoryAllocatorFactory,
    ) -> Listener:
        """Makes a listener, to be bound and started.

        Args:
            on_accept: Called for each connection, with an endpoint that is the callback's to close and an allocator
                for the application's own memory on its behalf. What it raises closes the endpoint.
            on_shutdown: Called exactly once, with OK, when the listener was closed and every `on_accept` has
                returned.
            config: For the listening sockets and those accepted.
            memory_allocator_factory: A `ResourceQuota`, as a rule; with a limit on connections, what lies beyond it
                stays in the backlog. Any other is called twice for each connection.

        When there is no file descriptor left, or the listening socket fails, the listener tries again after a pause;
        connections wait in the backlog.

        Raises TypeError for arguments of another type, ClosedResourceError after close. May be called from any
        thread.
        """

    @abstractmethod
    def get_dns_resolver(self, *, dns_server: str | None = None) -> DNSResolver:
        """Makes a resolver. `dns_server`, as in `"192.0.2.53"` or `"[2001:db8::53]:5353"`, is the IP address of the
        server to ask; None: as the system is set up.

        Raises StatusError(UNIMPLEMENTED) where a server cannot be chosen, ValueError and TypeError for what is no such
        address, ClosedResourceError after close. May be called from any thread.
        """

    @abstractmethod
    def is_worker_thread(self) -> bool:
        """Whether the calling thread is one on which this engine runs callbacks. May be called from any thread."""

    def query_extension(self, extension: type[E]) -> E | None:
        """This engine as an `extension`, or None if it is none. May be called from any thread."""
        return self if isinstance(self, extension) else None

    @abstractmethod
    def close(self) -> None:
        """Ends the engine. Closures of `run` that wait are run, those of `run_after` dropped; connects, reads,
        writes and lookups get CANCELLED; endpoints and listeners are closed. A host's loop is left running, without
        anything of this engine's on it. May be called at any time, inside callbacks, twice, and from any thread.

        On the loop's thread, and while the loop does not run, all this is done on return. Elsewhere an engine with
        a thread of its own has ended it on return, and one on a borrowed loop ends at that loop's next turn.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
