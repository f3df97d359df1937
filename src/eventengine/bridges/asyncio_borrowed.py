"""asyncio's transports as endpoints: what a loop connected or accepted, over TCP, TLS or UNIX sockets.

Rules, besides those of `core.borrowed`:

1. A write is done when the transport's buffer is empty: its limits are set to nought, so that it says so. Over TLS, up
   to 64 KiB may still be in the buffer of the transport below.
2. asyncio reads ahead of nobody: a paused transport hears of no end and no reset until it is resumed.
3. A loop that was closed leaves its transports behind; nothing can be called on them, and nothing is.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from typing import TYPE_CHECKING, Final, cast

from eventengine.address import ResolvedAddress, Sockaddr
from eventengine.core.borrowed import PushTransport, borrow, check_is_here
from eventengine.engine import Endpoint
from eventengine.memory import MemoryAllocator
from eventengine.status import Status, StatusError

if TYPE_CHECKING:
    from eventengine.core.loop import Loop

__all__ = ["endpoint_from_transport"]

_NEEDED: Final = ("pause_reading", "resume_reading", "set_protocol", "set_write_buffer_limits", "write")


class _Port(PushTransport, asyncio.Protocol):
    """A transport, and its protocol."""

    __slots__ = ("_is_tls", "_transport", "can_half_close")

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__()
        self._transport = transport
        self._is_tls = transport.get_extra_info("ssl_object") is not None
        self.can_half_close = not self._is_tls and transport.can_write_eof()

    def resume(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def pause(self) -> None:
        if not self._transport.is_closing():
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
        with contextlib.suppress(RuntimeError):  # rule 3
            self._transport.close()

    def abort(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._transport.abort()

    # What the transport calls its protocol for.

    def data_received(self, data: bytes) -> None:
        self.data(data)

    def eof_received(self) -> bool:
        self.end()
        return not self._is_tls  # which cannot be kept open

    def resume_writing(self) -> None:
        self.drained()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None and self._is_tls:
            self.end()
        self.broken(_number_of(exc))


def _number_of(error: Exception | None) -> int:
    """The errno for what ended a connection: asyncio keeps the system's."""
    if isinstance(error, ssl.SSLError):
        return errno.EPROTO
    if isinstance(error, OSError) and error.errno:
        return error.errno
    return errno.EPIPE if error is None else errno.ECONNRESET


def endpoint_from_transport(loop: Loop, transport: object, allocator: MemoryAllocator) -> Endpoint:
    """See `AsyncioEventEngine.endpoint_from_transport`."""
    check_is_here(loop, "endpoint_from_transport")
    if not all(hasattr(transport, name) for name in _NEEDED):  # uvloop's transports are of no class of asyncio's
        raise TypeError(
            f"transport must be an asyncio.Transport, to read from and write to, not {type(transport).__name__}"
        )
    transport = cast("asyncio.Transport", transport)
    if transport.is_closing():
        raise StatusError(Status.from_errno(errno.ENOTCONN, "borrowing a transport that was closed"))
    sock = cast("socket.socket | None", transport.get_extra_info("socket"))
    family = socket.AF_UNIX if sock is None else sock.family
    port = _Port(transport)
    transport.pause_reading()
    transport.set_write_buffer_limits(0)
    transport.set_protocol(port)
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
