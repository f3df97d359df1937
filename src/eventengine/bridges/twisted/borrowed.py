"""Twisted's transports as endpoints: what Twisted connected or accepted, over TCP, TLS, UNIX sockets or pipes.

Who makes them: `protocols`. A process, with its three pipes, is no such transport: `processes`.

Rules, besides those of `core.borrowed`:

1. A socket's or pipe's own transport (`FileDescriptor`) calls a pull producer each time that it has handed everything
   to the system; so a write is done then. Anything that wraps one (TLS above all) only says when it holds more than
   64 KiB, and when that has gone, so up to 64 KiB may be on their way within Twisted when a write on it is done.
2. A TLS transport is borrowed when its handshake is done: a paused one would never do it.
3. Twisted's TLS, once told to close, waits for the peer to do so, too, for ever; after LINGER seconds it is cut.
4. A producer keeps a transport from closing, by halves or whole. So a pull producer is taken back before, and when it
   is asked for more by one that somebody else has closed; others are there only while there is much to write.
5. What somebody else has closed takes no writes, and has not come to its end: bytes that came after are nobody's.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Final, Protocol, cast

from twisted.internet import error
from twisted.internet.abstract import FileDescriptor
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure
from zope.interface import classImplements  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

from eventengine.address import ResolvedAddress
from eventengine.core.borrowed import BorrowedEndpoint, PushTransport, borrow, check_is_here
from eventengine.engine import Endpoint
from eventengine.memory import MemoryAllocator
from eventengine.status import Status, StatusCode, StatusError

if TYPE_CHECKING:
    from twisted.internet.interfaces import ITransport

    from eventengine.core.loop import Loop

__all__ = [
    "DONE",
    "NO_NAME",
    "Receiver",
    "Transport",
    "borrow_transport",
    "endpoint_from_transport",
    "number_of",
]

LINGER: Final = 5.0
"""Seconds that a closed TLS transport has for its peer's answer."""

DONE: Final = Failure(error.ConnectionDone())
NO_NAME: Final = ResolvedAddress(socket.AF_UNIX, "")


class Transport(Protocol):
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


def _why(reason: Failure) -> BaseException:
    return cast("_Reason", reason).value


def number_of(reason: Failure) -> int:
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
    return NO_NAME if below is None else _address_of(below)


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

    def __init__(self, loop: Loop, transport: Transport) -> None:
        super().__init__()
        self._call_later = loop.host.call_later
        self._cancel = loop.host.cancel
        self._transport = transport
        self._is_own = isinstance(transport, FileDescriptor) and not getattr(transport, "TLS", False)
        self.can_half_close = self._is_own and hasattr(transport, "loseWriteConnection")
        self._full = False
        self._linger: object = None
        self._produces = False
        self._start_producing()
        if not self._is_own:  # it was tried whether there is one
            self._stop_producing()
        transport.pauseProducing()

    def resume(self) -> None:
        self._transport.resumeProducing()

    def pause(self) -> None:
        self._transport.pauseProducing()

    @property
    def is_closing(self) -> bool:
        """Whether somebody has closed the transport, and not its peer."""
        holder: object = self._transport
        if isinstance(holder, FileDescriptor) and getattr(holder, "TLS", False):
            holder = cast("object", getattr(holder, "protocol", None))
        return bool(getattr(holder, "disconnecting", False))

    def write(self, piece: bytes) -> bool:
        if self.is_closing:
            self.unwritable(errno.ECONNABORTED)
            return False
        self._full = self._is_own
        if not self._is_own:
            self._start_producing()
        self._transport.write(piece)
        if not self._is_own and not self._full:
            self._stop_producing()
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

    def _start_producing(self) -> None:
        if not self._produces and hasattr(self._transport, "registerProducer"):
            self._produces = True
            self._transport.registerProducer(self, not self._is_own)

    def _stop_producing(self) -> None:
        if self._produces:
            self._produces = False
            self._transport.unregisterProducer()

    # What the transport calls its producer for.

    def pauseProducing(self) -> None:
        self._full = True

    def resumeProducing(self) -> None:
        if not self._is_own or self.is_closing:
            self._stop_producing()
        if self._full:
            self._full = False
            self.drained()

    def stopProducing(self) -> None:
        self._produces = False


class Receiver(TwistedProtocol):
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

    def connectionLost(self, reason: Failure = DONE) -> None:
        port = self.port
        if port is not None:
            port.lost()
            number = number_of(reason)
            if isinstance(_why(reason), error.ConnectionDone):
                if port.is_closing:
                    number = errno.ECONNABORTED
                else:
                    port.end()
            port.broken(number)


classImplements(Receiver, IHalfCloseableProtocol)


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
    receiver = Receiver()
    receiver.transport = cast("ITransport", transport)
    try:
        endpoint = borrow_transport(loop, cast("Transport", transport), receiver, allocator)
    except RuntimeError:
        raise StatusError(
            Status(StatusCode.FAILED_PRECONDITION, "the transport has a producer; take it back first")
        ) from None
    setattr(holder, name, receiver)
    return endpoint


def borrow_transport(
    loop: Loop, transport: Transport, receiver: Receiver, allocator: MemoryAllocator
) -> BorrowedEndpoint:
    """The endpoint over a transport, which `receiver` serves from now on. On the loop's thread."""
    port = _Port(loop, transport)
    receiver.port = port
    return borrow(loop, port, _address_of(transport.getPeer()), _address_of(transport.getHost()), allocator.memory)
