"""Tornado's streams as endpoints: what Tornado connected or accepted, `IOStream` and `SSLIOStream`.

Rules, besides those of `core.borrowed`:

1. A stream is asked for bytes by `read_bytes(partial=True)`, one request at a time. One cannot be taken back: what it
   brings after `pause` is kept by the endpoint.
2. Between two requests a stream may read one chunk of 64 KiB ahead into a buffer of its own, which is not charged, to
   learn of the end.
3. A stream closes whole: when the peer has ended its stream nothing can be written any more.
4. A stream tells alike that its peer has ended it and that somebody else has closed it; who looks at what it reads from
   its descriptor knows which it was.
5. Python's `ssl` hides an end of TLS without close_notify, unless it is told not to: it may be that of one who cut the
   stream off.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
from asyncio import Future
from typing import TYPE_CHECKING, Final, Protocol, cast
from weakref import WeakMethod, WeakSet

from tornado.iostream import IOStream, SSLIOStream, StreamClosedError

from eventengine.address import ResolvedAddress
from eventengine.core.borrowed import PushTransport, borrow, check_is_here
from eventengine.engine import Endpoint
from eventengine.memory import MemoryAllocator
from eventengine.status import BusyResourceError, Status, StatusCode, StatusError

if TYPE_CHECKING:
    from collections.abc import Callable

    from eventengine.core.loop import Loop

__all__ = ["endpoint_from_iostream"]

CHUNK: Final = 64 * 1024

_borrowed: Final = WeakSet[IOStream]()


class _SSLSocket(Protocol):
    suppress_ragged_eofs: bool


class _Reads(Protocol):
    read_from_fd: Callable[[bytearray | memoryview], int | None]


class _HasSocket(Protocol):
    socket: socket.socket


def _socket_of(stream: IOStream) -> socket.socket:
    """That of a stream which is not closed."""
    return cast("_HasSocket", stream).socket


class _Port(PushTransport):
    __slots__ = ("_ends", "_reading", "_stream", "_wanted", "can_half_close")

    def __init__(self, stream: IOStream) -> None:
        super().__init__()
        self._stream = stream
        self.can_half_close = not isinstance(stream, SSLIOStream)
        if isinstance(stream, SSLIOStream):
            cast("_SSLSocket", _socket_of(stream)).suppress_ragged_eofs = False
        self._reading = self._wanted = False
        self._ends: list[None] = []
        """Not empty when the peer has ended its stream."""
        _watch_for_the_end(stream, self._ends)

    def resume(self) -> None:
        self._wanted = True
        if not self._reading:
            self._read()

    def pause(self) -> None:
        self._wanted = False

    def write(self, piece: bytes) -> bool:
        stream = self._stream
        try:
            future = stream.write(piece)
        except StreamClosedError:
            self._lost()
            return False
        if not stream.writing() and not stream.closed():
            return True
        future.add_done_callback(self._on_written)
        return False

    def close_write(self) -> None:
        if not self._stream.closed():
            with contextlib.suppress(OSError):  # the connection is broken, which the next read will say
                _socket_of(self._stream).shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._stream.close()

    def abort(self) -> None:
        self._stream.close()

    def _read(self) -> None:
        try:
            future = cast("Future[bytes]", self._stream.read_bytes(CHUNK, partial=True))
        except StreamClosedError:
            self._lost()
            return
        self._reading = True
        future.add_done_callback(self._on_read)

    def _on_read(self, future: Future[bytes]) -> None:
        self._reading = False
        if future.cancelled() or future.exception() is not None:
            self._lost()
            return
        self.data(future.result())
        if self._wanted and not self._reading:
            self._read()

    def _on_written(self, future: Future[None]) -> None:
        if future.cancelled() or future.exception() is not None:
            self._lost()
        else:
            self.drained()

    def _lost(self) -> None:
        error = self._stream.error
        number = _number_of(error)
        if error is None:
            if self._ends:
                self.end()
            else:
                number = errno.ECONNABORTED
        else:
            # Its frames hold the stream, which holds it, and what was being written: until a garbage collection.
            error.__traceback__ = None
        self.broken(number)


def _watch_for_the_end(stream: IOStream, ends: list[None]) -> None:
    """Rule 4. By what does not hold the stream, whose it becomes."""
    read = WeakMethod(stream.read_from_fd)

    def read_from_fd(buf: bytearray | memoryview) -> int | None:
        method = read()
        size = None if method is None else method(buf)
        if size == 0:
            ends.append(None)
        return size

    cast("_Reads", stream).read_from_fd = read_from_fd


def _number_of(error: BaseException | None) -> int:
    """The errno for what closed a stream: Tornado keeps the system's."""
    if isinstance(error, ssl.SSLError):
        return errno.EPROTO
    if isinstance(error, OSError) and error.errno:
        return error.errno
    return errno.EPIPE if error is None else errno.ECONNRESET


def endpoint_from_iostream(loop: Loop, stream: object, allocator: MemoryAllocator) -> Endpoint:
    """See `TornadoEventEngine.endpoint_from_iostream`."""
    check_is_here(loop, "endpoint_from_iostream")
    if not isinstance(stream, IOStream):
        raise TypeError(f"stream must be a tornado.iostream.IOStream, not {type(stream).__name__}")
    if stream.closed():
        raise StatusError(Status.from_errno(errno.ENOTCONN, "borrowing a stream that was closed"))
    if stream in _borrowed:
        raise StatusError(Status(StatusCode.FAILED_PRECONDITION, "the stream is an endpoint's already"))
    if stream.reading() or stream.writing():
        what = "read" if stream.reading() else "write"
        raise BusyResourceError(f"a {what} is outstanding on the stream; wait for it first")
    sock = _socket_of(stream)
    try:
        peer, local = sock.getpeername(), sock.getsockname()
    except OSError as error:
        raise StatusError(Status.from_errno(error.errno or errno.EIO, "borrowing a stream")) from None
    family = sock.family
    _borrowed.add(stream)
    return borrow(
        loop,
        _Port(stream),
        ResolvedAddress(family, peer).normalized(),
        ResolvedAddress(family, local).normalized(),
        allocator.memory,
    )
