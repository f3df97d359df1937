"""The writing half of a socket's endpoint. Who may touch what stands in `endpoint`.

A write is tried at once. When the turn's budget is spent, one that is done reports by the next event all the same.

An error is kept in `_unwritable` for all later writes, and for the read that finds the socket at its end, for the
kernel reports one once, to whichever call comes first. EPIPE says nothing about the other direction.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Final

from eventengine.core.host import WRITE
from eventengine.core.reading import CLOSED, OnDone, ReadingHalf
from eventengine.engine import HalfCloseable, WriteEventSink
from eventengine.memory import MemoryQuota
from eventengine.slices import Slice, SliceBuffer
from eventengine.status import BusyResourceError, ClosedResourceError, Status

if TYPE_CHECKING:
    from eventengine.core.loop import Loop

__all__ = ["WritingHalf"]

AT_ONCE: Final = 1 << 20
"""Bytes that one event writes at most before others have their turn."""
_SLICES_PER_CALL: Final = min(1024, os.sysconf("SC_IOV_MAX") if "SC_IOV_MAX" in os.sysconf_names else 16)
_NO_SIGNAL: Final = getattr(socket, "MSG_NOSIGNAL", 0)
_OK: Final = Status.OK


class WritingHalf(ReadingHalf, HalfCloseable):
    __slots__ = ("_on_writable", "_out", "_unwritable", "_write_ended", "_write_idle")

    def __init__(self, loop: Loop, sock: socket.socket, memory: MemoryQuota) -> None:
        super().__init__(loop, sock, memory)
        self._write_ended = False
        self._on_writable: OnDone | None = None
        self._out: list[Slice] = []  # last to first, so that what was sent is popped from the end
        self._unwritable: Status | None = None
        self._write_idle = None

    def write(
        self,
        on_writable: OnDone,
        data: SliceBuffer,
        *,
        max_frame_size: int = 1 << 20,
        sink: WriteEventSink | None = None,
    ) -> bool:
        if not callable(on_writable):
            raise TypeError(f"on_writable must be callable, not {type(on_writable).__name__}")
        if type(data) is not SliceBuffer:
            raise TypeError(f"a write needs a SliceBuffer, not {type(data).__name__}")
        if max_frame_size < 1:
            raise ValueError(f"max_frame_size is {max_frame_size}; it must be 1 or more")
        if self._closed or self._write_ended:
            raise ClosedResourceError(
                f"the endpoint{'' if self._closed else chr(39) + 's writing half'} was closed"
            )
        try:
            del self._write_idle
        except AttributeError:
            raise BusyResourceError("a write is outstanding on this endpoint; wait for its callback") from None
        size = data._length
        if not size:
            self._write_idle = None
            return True
        loop = self._loop
        if get_ident() != loop.thread:
            try:
                loop.post(partial(self._start_write, on_writable, data))
            except BaseException:
                self._write_idle = None
                raise
            return False
        self._take_out(data)
        if self._send() is _OK:
            loop.budget -= size + 1024
            if loop.budget > 0:
                self._write_idle = None
                return True
        self._on_writable = on_writable
        loop.poller.arm(self._fd, WRITE, self)
        return False

    def close_write(self) -> None:
        if self._closed:
            raise ClosedResourceError("the endpoint was closed")
        try:
            del self._write_idle
        except AttributeError:
            if self._write_ended:
                return
            raise BusyResourceError("a write is outstanding on this endpoint; wait for its callback") from None
        self._write_ended = True
        self._loop.run_here(self._shut_down_writing)

    # All that follows is the loop's thread's.

    def _start_write(self, on_writable: OnDone, data: SliceBuffer) -> None:
        self._on_writable = on_writable
        if self._closed:
            self._finish_write(CLOSED)
            return
        self._take_out(data)
        status = self._send()
        if status is not None:
            self._finish_write(status)
        else:
            self._loop.poller.arm(self._fd, WRITE, self)

    def _finish_write(self, status: Status) -> None:
        on_writable = self._on_writable
        assert on_writable is not None
        self._on_writable = None
        self._write_idle = None
        self._loop.run_callback(on_writable, status)

    def _take_out(self, data: SliceBuffer) -> None:
        out = self._out = data._slices
        data._slices = []
        data._length = 0
        if len(out) > 1:
            out.reverse()

    def _send(self) -> Status | None:
        """Writes what is left: OK when that was all, what broke the connection, or None when one has to wait."""
        out = self._out
        if self._unwritable is not None:
            out.clear()
            return self._unwritable
        room = AT_ONCE
        try:
            while out:
                if room <= 0:
                    return None
                if len(out) == 1:
                    size = out[0]._stop - out[0]._start
                    if size <= room:
                        n = self._sock.send(out[0].payload(), _NO_SIGNAL)
                        if n == size:
                            out.pop()
                            return _OK
                    else:
                        n = self._sock.send(out[0].view[:room], _NO_SIGNAL)
                        size = room
                else:
                    size, n = self._send_several(out, room)
                room -= n
                short = n < size
                while n:
                    left = len(out[-1])
                    if n < left:
                        out[-1] = out[-1][n:]
                        break
                    out.pop()
                    n -= left
                if short:  # the socket's buffer is full; to try again now would be in vain
                    return None
            return _OK
        except BlockingIOError:
            return None
        except OSError as error:
            out.clear()
            number = error.errno or errno.EIO
            self._unwritable = Status.from_errno(number, "writing")
            if number != errno.EPIPE and self._broken is None:
                self._broken = Status.from_errno(number, "reading")
            return self._unwritable

    def _send_several(self, out: list[Slice], room: int) -> tuple[int, int]:
        """One system call for many slices; how many bytes it was given, and how many it took."""
        views: list[bytes | bytearray | memoryview] = []
        size = 0
        for part in reversed(out[-_SLICES_PER_CALL:]):
            size += len(part)
            if size > room:
                views.append(part.view[: len(part) - (size - room)])
                size = room
                break
            views.append(part.payload())
        return size, self._sock.sendmsg(views, (), _NO_SIGNAL)

    def _shut_down_writing(self) -> None:
        if not self._closed:
            with contextlib.suppress(OSError):  # the connection is broken, which the next read will say
                self._sock.shutdown(socket.SHUT_WR)
