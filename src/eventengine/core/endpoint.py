"""`SocketEndpoint`: a connected stream socket.

How operations are claimed and ended stands in `operations`, how it reads and writes in `reading` and `writing`.

The socket is closed by the loop's thread only, after the poller forgot it, so that no system call can meet a descriptor
that has become another's. An endpoint that is collected hands its socket over the same way.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import warnings
import weakref
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from eventengine.address import ResolvedAddress, Sockaddr
from eventengine.core.host import READ, WRITE
from eventengine.core.telemetry import SocketTelemetry, telemetry_of
from eventengine.core.writing import WritingHalf
from eventengine.engine import SupportsFileDescriptor
from eventengine.memory_quota import MemoryQuota
from eventengine.status import ClosedResourceError, ForkedProcessError, Status, StatusError

if TYPE_CHECKING:
    from eventengine.core.loop import Loop

__all__ = ["SocketEndpoint"]

E = TypeVar("E")


class SocketEndpoint(WritingHalf, SupportsFileDescriptor):
    __slots__ = ("__weakref__", "_local", "_on_closed", "_peer")

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        peer: Sockaddr,
        local: ResolvedAddress | None,
        memory: MemoryQuota,
        on_closed: Callable[[], object] | None,
    ) -> None:
        """On the loop's thread. `on_closed` is called once, when the socket was closed, on that thread too."""
        super().__init__(loop, sock, memory)
        self._peer = peer
        self._local = ResolvedAddress(sock.family, sock.getsockname()).normalized() if local is None else local
        self._on_closed = on_closed
        self._open = None
        loop.endpoints[self._fd] = weakref.ref(self)

    @property
    def peer_address(self) -> ResolvedAddress:
        return ResolvedAddress(self._sock.family, self._peer).normalized()

    @property
    def local_address(self) -> ResolvedAddress:
        return self._local

    def telemetry_info(self) -> SocketTelemetry:
        return telemetry_of(self._local.family)

    def query_extension(self, extension: type[E]) -> E | None:
        if extension is SupportsFileDescriptor and not self._loop.host.has_system_sockets:
            return None
        return super().query_extension(extension)

    def fileno(self) -> int:
        if self._closed:
            raise self._loop.misused(ClosedResourceError("the endpoint was closed"))
        return self._fd

    def release(self) -> int:
        try:
            del self._open
        except AttributeError:
            raise self._loop.misused(ClosedResourceError("the endpoint was closed")) from None
        try:
            fd = os.dup(self._fd)
        except OSError as error:
            self._open = None
            raise StatusError(Status.from_errno(error.errno or errno.EIO, "releasing the descriptor")) from None
        self._close()
        return fd

    def __del__(self) -> None:
        try:
            if self._closed:  # as a rule; an exception costs more
                return
            del self._open
        except AttributeError:
            return
        try:
            self._loop.post(partial(_close_socket, self._loop, self._sock, self._on_closed))
        except ClosedResourceError:
            self._sock.close()
            if self._on_closed is not None:
                self._on_closed()
        except ForkedProcessError:
            self._sock.close()
        warnings.warn(
            f"an endpoint to {self.peer_address} was never closed", ResourceWarning, stacklevel=1, source=self
        )

    def _close(self) -> None:
        try:
            super()._close()
        except ForkedProcessError:
            self._sock.close()
            raise

    # All that follows is the loop's thread's.

    def on_readable(self) -> None:
        on_read = self._on_read
        if on_read is not None and not self._waiting:
            status = self._receive()
            if status is not None:  # as in `_finish_read`, whose call costs
                self._buffer._lent = False  # type: ignore[union-attr]  # there is one while there is an `_on_read`
                self._on_read = self._buffer = None
                self._read_idle = None
                loop = self._loop
                if loop.calls_back_here:
                    try:
                        on_read(status)
                    except BaseException as error:
                        loop.callbacks.failed(on_read, error)
                else:
                    loop.run_callback(on_read, status)
                if self._on_read is None:
                    self._rest()
        else:
            self._watched = False
            self._loop.poller.disarm(self._fd, READ)
            self._rest()

    def on_writable(self) -> None:
        if self._closed:
            return
        if self._on_writable is not None:
            status = self._send()
            if status is None:
                return
            self._loop.poller.disarm(self._fd, WRITE)
            self._finish_write(status)
        else:
            self._loop.poller.disarm(self._fd, WRITE)
        self._rest()

    def on_unwatchable(self, error: OSError) -> None:
        self._watched = False
        status = Status.from_errno(error.errno or errno.EIO, "watching the socket")
        if self._on_read is not None:
            self._finish_read(status)
        if self._on_writable is not None and not self._is_done:
            self._out.clear()  # of which a part may have gone: nothing can be written after it
            self._unwritable = status
            self._finish_write(status)
        self._rest()

    def _rest(self) -> None:
        """With nothing outstanding, the poller holds us no longer."""
        if self._on_read is None and self._on_writable is None and not self._closed:
            self._watched = False
            self._loop.poller.busy.pop(self._fd, None)

    def _tear_down(self) -> None:
        _close_socket(self._loop, self._sock, self._on_closed)
        self._cancel_outstanding()


def _close_socket(loop: Loop, sock: socket.socket, on_closed: Callable[[], object] | None) -> None:
    fd = sock.fileno()
    loop.poller.forget(fd)
    loop.endpoints.pop(fd, None)
    with contextlib.suppress(OSError):  # somebody else has closed it; what is outstanding is still to be told
        sock.close()
    if on_closed is not None:
        on_closed()
