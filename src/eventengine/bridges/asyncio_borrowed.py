"""asyncio's transports as endpoints: what a loop connected or accepted, over TCP, TLS or UNIX sockets.

Rules, besides those of `core.borrowed`:

1. A write is done when the transport's buffer is empty: its limits are set to nought, so that it says so. Over TLS, up
   to 64 KiB may still be in the buffer of the transport below.
2. asyncio reads ahead of nobody: a paused transport hears of no end and no reset until it is resumed.
3. Over TLS asyncio tells every end alike, also one without close_notify, which may be that of one who cut the stream
   off. OpenSSL, when it is asked to read on, says which it was. And it tells so when the peer has answered an end that
   somebody else has made here, when what it sent before may have been dropped.
4. A loop that was closed leaves its transports behind; nothing can be called on them, and nothing is.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final, cast

from eventengine.address import ResolvedAddress, Sockaddr
from eventengine.core.borrowed import PushTransport, borrow, check_is_here
from eventengine.core.hosted import HostedEventEngine, check_allocator, check_protocol
from eventengine.engine import Endpoint
from eventengine.memory import MemoryAllocator
from eventengine.status import Status, StatusCode, StatusError

if TYPE_CHECKING:
    from eventengine.core.loop import Loop

__all__ = ["BorrowsTransports", "EndpointProtocol"]

_NEEDED: Final = ("pause_reading", "resume_reading", "set_protocol", "set_write_buffer_limits", "write")


class _Port(PushTransport, asyncio.Protocol):
    """A transport, and its protocol."""

    __slots__ = ("_closed_here", "_is_tls", "_reading", "_transport", "can_half_close")

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__()
        self._transport = transport
        self._reading = self._closed_here = False
        self._is_tls = transport.get_extra_info("ssl_object") is not None
        if not self._is_tls:
            transport.pause_reading()
        transport.set_write_buffer_limits(0)
        self.can_half_close = not self._is_tls and transport.can_write_eof()

    def resume(self) -> None:
        self._reading = True
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def pause(self) -> None:
        self._reading = False
        self.pause_again()

    def pause_later(self, wake: Callable[[Callable[[], object]], None]) -> None:
        """uvloop begins to read after `connection_made`, whatever that has said; and over TLS, where it does so in the
        next turn, one that is paused by then never sends the end of its handshake."""
        if self._is_tls:
            wake(partial(wake, self.pause_again))
        else:
            wake(self.pause_again)

    def pause_again(self) -> None:
        """Unless it was resumed."""
        if not self._reading and not self._transport.is_closing():
            self._transport.pause_reading()

    def write(self, piece: bytes) -> bool:
        transport = self._transport
        transport.write(piece)
        return not transport.get_write_buffer_size() and not transport.is_closing()

    def close_write(self) -> None:
        if not self._transport.is_closing():
            with contextlib.suppress(OSError):  # the connection is broken, which the next read will say
                self._transport.write_eof()

    def close(self) -> None:
        with contextlib.suppress(RuntimeError):  # rule 4
            self._transport.close()

    def abort(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._transport.abort()

    # What the transport calls its protocol for.

    def data_received(self, data: bytes) -> None:
        self.data(data)

    def eof_received(self) -> bool:
        self._closed_here = self._transport.is_closing()
        if self._is_clean_end():
            self.end()
        return not self._is_tls  # which cannot be kept open

    def resume_writing(self) -> None:
        self.drained()

    def _is_clean_end(self) -> bool:
        """Rule 3."""
        if self._closed_here:
            return False
        tls = cast("ssl.SSLObject | None", self._transport.get_extra_info("ssl_object"))
        try:
            return tls is None or not tls.read(1)
        except ssl.SSLZeroReturnError:
            return True
        except ssl.SSLError:
            return False

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None and self._is_tls and self._is_clean_end():
            self.end()
        self.broken(_number_of(exc))


def _number_of(error: Exception | None) -> int:
    """The errno for what ended a connection: asyncio keeps the system's."""
    if isinstance(error, ssl.SSLError):
        return errno.EPROTO
    if isinstance(error, OSError) and error.errno:
        return error.errno
    return errno.EPIPE if error is None else errno.ECONNRESET


class BorrowsTransports(HostedEventEngine):
    """An engine that makes endpoints of asyncio's transports."""

    __slots__ = ()

    def endpoint_from_transport(
        self, transport: asyncio.BaseTransport, memory_allocator: MemoryAllocator
    ) -> Endpoint:
        """A connection that the loop made or accepted, as an endpoint. The transport is then the endpoint's.

        The protocol that it served hears nothing more of it, and what that has received (a StreamReader, say) is not
        read again. A read resumes the transport, which else is paused. A write is done when the transport's buffer is
        empty; over TLS, up to 64 KiB may still be on their way.

        Args:
            transport: An `asyncio.Transport` of this engine's loop: TCP, UNIX or TLS, as `loop.create_connection`
                gives it. Not that of a StreamWriter, which closes it when it is collected.
            memory_allocator: What the endpoint draws its memory from.

        Raises TypeError for what is no such transport; StatusError, UNAVAILABLE, for one that was closed,
        FAILED_PRECONDITION for one that was borrowed already; ClosedResourceError after close; RuntimeError on another
        thread than the loop's, where alone this may be called.
        """
        check_allocator(memory_allocator)
        check_is_here(self._loop, "endpoint_from_transport")
        if not all(
            hasattr(transport, name) for name in _NEEDED
        ):  # uvloop's transports are of no class of asyncio's
            raise TypeError(
                f"transport must be an asyncio.Transport, to read from and write to, not {type(transport).__name__}"
            )
        transport = cast("asyncio.Transport", transport)
        if transport.is_closing():
            raise StatusError(Status.from_errno(errno.ENOTCONN, "borrowing a transport that was closed"))
        if isinstance(transport.get_protocol(), _Port):
            raise StatusError(Status(StatusCode.FAILED_PRECONDITION, "the transport is an endpoint's already"))
        return _borrow(self._loop, transport, memory_allocator)


class EndpointProtocol(asyncio.Protocol):
    """A protocol that makes an endpoint of its connection, for all that takes a protocol factory.

        await loop.create_server(lambda: EndpointProtocol(engine, allocator, on_connect), "127.0.0.1", 8080)

    On uvloop it is the better way: there a connection is read before `endpoint_from_transport` can be called, and what
    came, the end above all, went to the protocol before.

    Args:
        engine: On the loop of the connection.
        memory_allocator: What the endpoint draws its memory from.
        on_connect: Gets the endpoint, which is then the callback's to close; over TLS, when the handshake is done.
            What it raises closes the endpoint.
    """

    def __init__(
        self,
        engine: HostedEventEngine,
        memory_allocator: MemoryAllocator,
        on_connect: Callable[[Endpoint], object],
    ) -> None:
        check_protocol(engine, memory_allocator, "on_connect", on_connect)
        # The engine's is no framework's.
        self._loop = engine._loop
        self._allocator = memory_allocator
        self._on_connect = on_connect

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)
        if self._loop.is_open:
            self._loop.run_callback(self._call, _borrow(self._loop, transport, self._allocator))
        else:
            transport.close()

    def _call(self, endpoint: Endpoint) -> None:
        try:
            self._on_connect(endpoint)
        except BaseException:
            endpoint.close()
            raise


def _borrow(loop: Loop, transport: asyncio.Transport, allocator: MemoryAllocator) -> Endpoint:
    sock = cast("socket.socket | None", transport.get_extra_info("socket"))
    family = socket.AF_UNIX if sock is None else sock.family
    port = _Port(transport)
    transport.set_protocol(port)
    port.pause_later(loop.host.wake)
    return borrow(
        loop,
        port,
        _address(family, transport, "peername"),
        _address(family, transport, "sockname"),
        allocator.memory,
    )


def _address(family: int, transport: asyncio.Transport, which: str) -> ResolvedAddress:
    sockaddr = cast("Sockaddr | None", transport.get_extra_info(which))
    return ResolvedAddress(family, "" if sockaddr is None else sockaddr).normalized()
