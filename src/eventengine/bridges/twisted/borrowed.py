"""Twisted's transports as endpoints: what Twisted connected or accepted, over TCP, TLS, UNIX sockets or pipes.

Rules, besides those of `core.borrowed`:

1. A socket's or pipe's own transport (`FileDescriptor`) calls a pull producer each time that it has handed everything
   to the system; so a write is done then. Anything that wraps one (TLS above all) only says when it holds more than
   64 KiB, and when that has gone, so up to 64 KiB may be on their way within Twisted when a write on it is done.
2. A TLS transport is borrowed when its handshake is done: a paused one would never do it.
3. Twisted's TLS, once told to close, waits for the peer to do so, too, for ever; after LINGER seconds it is cut.
4. A pull producer keeps a transport from closing, by halves or whole; so it is taken back before.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol, cast

from twisted.internet import error
from twisted.internet.abstract import FileDescriptor
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IHalfCloseableProtocol, IHandshakeListener, ISSLTransport
from twisted.internet.protocol import Factory, ProcessProtocol
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure
from zope.interface import classImplements  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

from eventengine.address import ResolvedAddress
from eventengine.core.borrowed import BorrowedEndpoint, PushTransport, borrow, check_is_here
from eventengine.engine import Endpoint, StatusOr
from eventengine.memory import MemoryAllocator, MemoryAllocatorFactory
from eventengine.status import Status, StatusCode, StatusError

if TYPE_CHECKING:
    from twisted.internet.interfaces import ITransport

    from eventengine.bridges.twisted.engine import TwistedEventEngine
    from eventengine.core.loop import Loop

__all__ = ["EndpointFactory", "EndpointProcessProtocol", "EndpointProtocol", "endpoint_from_transport"]

LINGER: Final = 5.0
"""Seconds that a closed TLS transport has for its peer's answer."""

_DONE: Final = Failure(error.ConnectionDone())
_NO_NAME: Final = ResolvedAddress(socket.AF_UNIX, "")

OnAccept = Callable[[Endpoint, MemoryAllocator], object]


class _Transport(Protocol):
    """What is used of a transport; zope's interfaces say nothing to a type checker."""

    def write(self, data: bytes) -> None: ...
    def loseConnection(self) -> None: ...
    def getPeer(self) -> object: ...
    def getHost(self) -> object: ...
    def pauseProducing(self) -> None: ...
    def resumeProducing(self) -> None: ...
    def registerProducer(self, producer: object, streaming: bool) -> None: ...
    def unregisterProducer(self) -> None: ...


class _Reason(Protocol):
    """What is used of a Failure, which has types in part."""

    value: BaseException


class _Asked(Protocol):
    def providedBy(self, candidate: object) -> bool: ...


def _why(reason: Failure) -> BaseException:
    return cast("_Reason", reason).value


def _number_of(reason: Failure) -> int:
    """The errno for what ended a connection. Twisted does not keep the system's, so it is the nearest."""
    why = _why(reason)
    number = getattr(why, "osError", None)
    if isinstance(number, int):
        return number
    for kind, nearest in (
        (error.ConnectionAborted, errno.ECONNABORTED),
        (error.TimeoutError, errno.ETIMEDOUT),
        (error.ConnectionLost, errno.ECONNRESET),
        (error.ConnectionDone, errno.EPIPE),
    ):
        if isinstance(why, kind):
            return nearest
    return errno.EPROTO  # of TLS, whose errors are pyOpenSSL's


def _address_of(address: object) -> ResolvedAddress:
    if isinstance(address, IPv4Address):
        return ResolvedAddress(socket.AF_INET, (address.host, address.port))
    if isinstance(address, IPv6Address):
        full = (address.host, address.port, address.flowInfo, address.scopeID)
        return ResolvedAddress(socket.AF_INET6, cast("tuple[str, int, int, int]", full)).normalized()
    if isinstance(address, UNIXAddress):
        name = cast("bytes | str | None", address.name)
        if isinstance(name, bytes) and name.startswith(b"\0"):
            return ResolvedAddress(socket.AF_UNIX, name)
        return ResolvedAddress(socket.AF_UNIX, os.fsdecode(name or ""))
    below = getattr(address, "address", None)  # of an SSH connection
    return _NO_NAME if below is None else _address_of(below)


class _Port(PushTransport):
    """A transport for a connection, and its producer."""

    __slots__ = (
        "_call_later",
        "_cancel",
        "_full",
        "_is_own",
        "_linger",
        "_produces",
        "_transport",
        "can_half_close",
    )

    def __init__(self, loop: Loop, transport: _Transport) -> None:
        super().__init__()
        self._call_later = loop.host.call_later
        self._cancel = loop.host.cancel
        self._transport = transport
        self._is_own = isinstance(transport, FileDescriptor) and not getattr(transport, "TLS", False)
        self.can_half_close = self._is_own and hasattr(transport, "loseWriteConnection")
        self._full = False
        self._linger: object = None
        self._produces = hasattr(transport, "registerProducer")
        if self._produces:
            transport.registerProducer(self, not self._is_own)
        transport.pauseProducing()

    def resume(self) -> None:
        self._transport.resumeProducing()

    def pause(self) -> None:
        self._transport.pauseProducing()

    def write(self, piece: bytes) -> bool:
        self._full = self._is_own
        self._transport.write(piece)
        return not self._full

    def close_write(self) -> None:
        self._stop_producing()
        cast("FileDescriptor", self._transport).loseWriteConnection()

    def close(self) -> None:
        self._stop_producing()
        self._transport.loseConnection()
        if not self._is_own:  # rule 3
            self._transport.resumeProducing()
            self._linger = self._call_later(LINGER, self._cut)

    def abort(self) -> None:
        self._stop_producing()
        getattr(self._transport, "abortConnection", self._transport.loseConnection)()

    def lost(self) -> None:
        """The transport has gone."""
        if self._linger is not None:
            self._cancel(self._linger)
            self._linger = None

    def _cut(self) -> None:
        self._linger = None
        self.abort()

    def _stop_producing(self) -> None:
        if self._produces:
            self._produces = False
            self._transport.unregisterProducer()

    # What the transport calls its producer for.

    def pauseProducing(self) -> None:
        self._full = True

    def resumeProducing(self) -> None:
        if self._full:
            self._full = False
            self.drained()

    def stopProducing(self) -> None:
        self._produces = False


class _Receiver(TwistedProtocol):
    """What a borrowed transport has as its protocol."""

    port: _Port | None = None

    def dataReceived(self, data: bytes) -> None:
        if self.port is not None:
            self.port.data(data)

    def readConnectionLost(self) -> None:
        if self.port is not None:
            self.port.end()

    def writeConnectionLost(self) -> None:
        """We asked for it."""

    def connectionLost(self, reason: Failure = _DONE) -> None:
        port = self.port
        if port is not None:
            port.lost()
            if isinstance(_why(reason), error.ConnectionDone):
                port.end()
            port.broken(_number_of(reason))


classImplements(_Receiver, IHalfCloseableProtocol)


class EndpointProtocol(_Receiver):
    """A protocol that makes an endpoint of its connection, for Twisted's own client endpoints.

        connectProtocol(HostnameEndpoint(reactor, "example.org", 80), EndpointProtocol(engine, allocator, on_connect))

    Args:
        engine: On the reactor of the connection.
        memory_allocator: What the endpoint draws its memory from.
        on_connect: Gets the endpoint, which is then the callback's to close, once it is connected; over TLS, when the
            handshake is done. Gets UNAVAILABLE if the connection is lost before that. A connection that Twisted could
            not make is told by its Deferred alone.
    """

    def __init__(
        self,
        engine: TwistedEventEngine,
        memory_allocator: MemoryAllocator,
        on_connect: Callable[[StatusOr[Endpoint]], object],
    ) -> None:
        # The engine's is no framework's.
        self._loop = engine._loop
        self._allocator = memory_allocator
        self._on_connect: Callable[[StatusOr[Endpoint]], object] | None = on_connect

    def makeConnection(self, transport: ITransport) -> None:
        self._made = cast("_Transport", transport)
        super().makeConnection(transport)  # type: ignore[no-untyped-call]  # pyright: ignore[reportUnknownMemberType]

    def connectionMade(self) -> None:
        if not cast("_Asked", ISSLTransport).providedBy(self._made):
            self._begin()

    def handshakeCompleted(self) -> None:
        self._begin()

    def connectionLost(self, reason: Failure = _DONE) -> None:
        if self.port is None and self._on_connect is not None:
            on_connect, self._on_connect = self._on_connect, None
            status = Status(
                StatusCode.UNAVAILABLE,
                f"the handshake failed: {reason.getErrorMessage()}",
                _number_of(reason),
            )
            self._loop.run_callback(on_connect, status)
        super().connectionLost(reason)

    def _begin(self) -> None:
        on_connect, self._on_connect = self._on_connect, None
        if on_connect is None:
            return
        if not self._loop.is_open:
            self._made.loseConnection()
            return
        endpoint = _borrow(self._loop, self._made, self, self._allocator)
        self._loop.run_callback(on_connect, endpoint)


classImplements(EndpointProtocol, IHandshakeListener)


class EndpointFactory(Factory):
    """A factory that makes an endpoint of each connection, for `listenTCP` and all that takes a factory.

    Args:
        engine: On the reactor of the connections.
        on_accept: As in `EventEngine.create_listener`: gets each endpoint and an allocator for the application's use.
        memory_allocator_factory: As there: a `ResourceQuota`, as a rule.
    """

    noisy = False

    def __init__(
        self, engine: TwistedEventEngine, on_accept: OnAccept, memory_allocator_factory: MemoryAllocatorFactory
    ) -> None:
        self._engine = engine
        self._on_accept = on_accept
        self._factory = memory_allocator_factory

    def buildProtocol(self, addr: object) -> EndpointProtocol:
        allocator = self._factory.create_memory_allocator("connection")
        protocol = EndpointProtocol(self._engine, allocator, self._accepted)
        protocol.factory = self
        return protocol

    def _accepted(self, endpoint: StatusOr[Endpoint]) -> None:
        if isinstance(endpoint, Status):
            return
        try:
            self._on_accept(endpoint, self._factory.create_memory_allocator("application"))
        except BaseException:
            endpoint.close()
            raise


class _Process(_Transport, Protocol):
    def closeStdin(self) -> None: ...


class _ProcessPort(PushTransport):
    """The pipes of a process, and the producer of its standard input."""

    __slots__ = ("_full", "_process")

    can_half_close = True

    def __init__(self, process: _Process) -> None:
        super().__init__()
        self._process = process
        self._full = False
        process.registerProducer(self, False)
        process.pauseProducing()

    def resume(self) -> None:
        self._process.resumeProducing()

    def pause(self) -> None:
        self._process.pauseProducing()

    def write(self, piece: bytes) -> bool:
        self._full = True
        self._process.write(piece)
        return False

    def close_write(self) -> None:
        self._process.unregisterProducer()
        self._process.closeStdin()

    def close(self) -> None:
        self._process.unregisterProducer()
        self._process.loseConnection()

    def abort(self) -> None:
        self.close()

    def pauseProducing(self) -> None:
        """Not called: a pull producer is not paused."""

    def resumeProducing(self) -> None:
        if self._full:
            self._full = False
            self.drained()

    def stopProducing(self) -> None:
        """What is lost is told to the protocol."""


class EndpointProcessProtocol(ProcessProtocol):
    """A process as an endpoint: what is written goes to its standard input, what it prints is read.

        reactor.spawnProcess(EndpointProcessProtocol(engine, allocator, on_start), "/bin/cat", ["cat"])

    Its `close_write` closes standard input, `close` all three pipes; the process itself is not signalled. What a
    process that never reads was written stays in Twisted until it ends. Standard error is `errReceived`'s, which is
    there to be overridden; while no read is outstanding it is paused, too. The two addresses have no name.

    Args:
        engine: On the reactor that spawns the process.
        memory_allocator: What the endpoint draws its memory from.
        on_start: Gets the endpoint, which is then the callback's to close.
    """

    def __init__(
        self, engine: TwistedEventEngine, memory_allocator: MemoryAllocator, on_start: Callable[[Endpoint], object]
    ) -> None:
        # The engine's is no framework's.
        self._loop = engine._loop
        self._allocator = memory_allocator
        self._on_start = on_start
        self._port: _ProcessPort | None = None

    def makeConnection(self, transport: ITransport) -> None:
        super().makeConnection(transport)  # type: ignore[no-untyped-call]  # pyright: ignore[reportUnknownMemberType]
        port = self._port = _ProcessPort(cast("_Process", transport))
        endpoint = borrow(self._loop, port, _NO_NAME, _NO_NAME, self._allocator.memory)
        self._loop.run_callback(self._on_start, endpoint)

    def outReceived(self, data: bytes) -> None:
        if self._port is not None:
            self._port.data(data)

    def inConnectionLost(self) -> None:
        if self._port is not None:
            self._port.unwritable(errno.EPIPE)

    def outConnectionLost(self) -> None:
        if self._port is not None:
            self._port.end()

    def processEnded(self, reason: Failure) -> None:
        port, self._port = self._port, None
        if port is not None:
            port.end()
            port.broken(errno.EPIPE)


def endpoint_from_transport(loop: Loop, transport: object, allocator: MemoryAllocator) -> Endpoint:
    """See `TwistedEventEngine.endpoint_from_transport`."""
    check_is_here(loop, "endpoint_from_transport")
    if not all(
        hasattr(transport, name) for name in ("write", "loseConnection", "pauseProducing", "resumeProducing")
    ):
        raise TypeError(
            f"transport must be a Twisted transport that can be paused (ITransport and IPushProducer), not "
            f"{type(transport).__name__}"
        )
    if not getattr(transport, "connected", True) or getattr(transport, "disconnecting", False):
        raise StatusError(Status.from_errno(errno.ENOTCONN, "borrowing a transport that was closed"))
    holder, name = transport, "protocol"
    if isinstance(transport, FileDescriptor) and getattr(transport, "TLS", False):
        holder = cast("object", getattr(transport, "protocol", None))  # `startTLS` has put it between
    if isinstance(holder, ProtocolWrapper):
        name = "wrappedProtocol"
    if not hasattr(holder, name):
        raise TypeError(
            f"{type(transport).__name__} does not say which protocol it serves; give it an EndpointProtocol instead"
        )
    receiver = _Receiver()
    receiver.transport = cast("ITransport", transport)
    try:
        endpoint = _borrow(loop, cast("_Transport", transport), receiver, allocator)
    except RuntimeError:
        raise StatusError(
            Status(StatusCode.FAILED_PRECONDITION, "the transport has a producer; take it back first")
        ) from None
    setattr(holder, name, receiver)
    return endpoint


def _borrow(
    loop: Loop, transport: _Transport, receiver: _Receiver, allocator: MemoryAllocator
) -> BorrowedEndpoint:
    port = _Port(loop, transport)
    receiver.port = port
    return borrow(loop, port, _address_of(transport.getPeer()), _address_of(transport.getHost()), allocator.memory)
