"""The writing half of a socket's endpoint. Who may touch what stands in `operations`.

A write is tried at once. When the turn's budget is spent, one that is done reports by a letter: not by the next event,
for a socket is writable again only when its peer has read, and all was handed over already.

An error is kept in `_unwritable` for all later writes, and for the read that finds the socket at its end, for the
kernel reports one once, to whichever call comes first. EPIPE says nothing about the other direction, nor does a lack of
memory; but after either nothing is written any more, for a part may have gone.

What stands on an endpoint, as TLS does, may `send_at_once`: on the loop's thread alone, where nobody closes the socket
meanwhile, and while it has no write outstanding, or bytes would overtake those of that.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from threading import get_ident
from typing import TYPE_CHECKING, Final

from eventengine.core.host import WRITE
from eventengine.core.operations import CLOSED, LENT, WRITE_OUTSTANDING, OnDone, check_write
from eventengine.core.reading import LACKS, ReadingHalf
from eventengine.core.telemetry import Telling
from eventengine.engine import HalfCloseable, WriteEventSink
from eventengine.memory_quota import MemoryQuota
from eventengine.slices import SliceBuffer, recycle_all, recycle_last
from eventengine.status import BusyResourceError, ClosedResourceError, Status

if TYPE_CHECKING:
    from eventengine.core.loop import Loop

__all__ = ["WritingHalf"]

_FRAME: Final = 1 << 20
"""What nobody has asked for; the same object, so that nobody looks at it."""
_SHARE: Final = 3
"""TLS may send 2 ** 3 times as many bytes in a turn, which takes 4 ms. To go round an asyncio loop takes some 50 us of
CPU, for encrypting has emptied the caches: after each MiB that was a tenth of the whole. Without TLS more saves nothing
that can be told from noise, and lets one connection get ahead of the others."""
AT_ONCE: Final = 1 << 20
"""Bytes that one event writes at most before others have their turn."""
_PARTS_PER_CALL: Final = min(1024, os.sysconf("SC_IOV_MAX") if "SC_IOV_MAX" in os.sysconf_names else 16)
_NO_SIGNAL: Final = getattr(socket, "MSG_NOSIGNAL", 0)
_OK: Final = Status.OK


class WritingHalf(ReadingHalf, HalfCloseable):
    __slots__ = ("_is_done",)

    def __init__(self, loop: Loop, sock: socket.socket, memory: MemoryQuota) -> None:
        super().__init__(loop, sock, memory)
        self._is_done = False  # all of the outstanding write was handed over, and only the report is to come

    def write(
        self,
        on_writable: OnDone,
        data: SliceBuffer,
        *,
        max_frame_size: int = _FRAME,
        sink: WriteEventSink | None = None,
    ) -> bool:
        if sink is not None:
            return self._write_and_tell(on_writable, data, max_frame_size, sink)
        if max_frame_size is not _FRAME or type(data) is not SliceBuffer or not callable(on_writable):
            check_write(on_writable, data, max_frame_size)
        if self._closed or self._write_ended:  # as in `_claim_write`, whose call costs
            what = "endpoint" if self._closed else "endpoint's writing half"
            raise self._loop.misused(ClosedResourceError(f"the {what} was closed"))
        try:
            del self._write_idle
        except AttributeError:
            raise self._loop.misused(BusyResourceError(WRITE_OUTSTANDING)) from None
        size = data._length
        if not size or data._lent:
            self._write_idle = None
            if data._lent:
                raise BusyResourceError(LENT)
            return True
        loop = self._loop
        if get_ident() != loop.thread and not loop.is_here():
            self._hand_over_write(on_writable, data)
            return False
        parts = data._parts
        if size <= AT_ONCE and len(parts) <= _PARTS_PER_CALL and self._unwritable is None:
            try:
                if len(parts) == 1:
                    n = self._sock.send(parts[0], _NO_SIGNAL)
                else:
                    n = self._sock.sendmsg(parts, (), _NO_SIGNAL)
            except BlockingIOError:
                n = 0
            except OSError as error:
                self._fail(error)
                n = 0
            done = n == size
            if done:
                data._length = 0
                recycle_all(parts)
            else:
                self._take_out(data)
                _drop(self._out, n)
        else:
            self._take_out(data)
            done = self._send() is _OK
        if done:
            loop.budget -= size + 1024
            if loop.budget > 0:
                self._write_idle = None
                return True
            self._on_writable = on_writable
            self._is_done = True
            loop.post(self._report)
            return False
        self._on_writable = on_writable
        loop.poller.arm(self._fd, WRITE, self)
        return False

    def send_at_once(self, part: memoryview) -> int:
        """How many bytes of `part` the socket has taken now, within what the turn may do at once. All else that a
        write does, is for one to do: of the rest, or of the next.

        For what stands on this endpoint and has it for itself, as TLS does, while it has no write outstanding; in
        place of a `write` this takes a third of the steps. `part` is in no block of a quota.
        """
        loop = self._loop
        if get_ident() != loop.thread or loop.budget <= 0 or self._closed or self._unwritable is not None:
            return 0
        try:
            n = self._sock.send(part, _NO_SIGNAL)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._fail(error)
            return 0
        loop.budget -= (n >> _SHARE) + 1024
        return n

    def _write_and_tell(
        self, on_writable: OnDone, data: SliceBuffer, max_frame_size: int, sink: WriteEventSink
    ) -> bool:
        if not callable(on_writable):
            raise TypeError(f"on_writable must be callable, not {type(on_writable).__name__}")
        if not callable(getattr(sink, "on_event", None)):
            raise TypeError(f"sink must be a WriteEventSink, with on_event, not {type(sink).__name__}")
        is_empty = type(data) is SliceBuffer and not data
        telling = Telling(self, on_writable, sink)
        done = self.write(telling, data, max_frame_size=max_frame_size)
        if done and not is_empty:
            telling.tell_later()
        return done

    def close_write(self) -> None:
        self._end_writing()

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
        if isinstance(on_writable, Telling):
            on_writable.take_snapshot()
        self._on_writable = None
        self._is_done = False
        self._write_idle = None
        self._loop.run_callback(on_writable, status)

    def _report(self) -> None:
        if self._is_done and self._on_writable is not None:  # else a close has reported
            self._finish_write(_OK)
            self._rest()

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
                    view = out[0][:room]
                    size = len(view)
                    n = self._sock.send(view, _NO_SIGNAL)
                    del view
                else:
                    size, n = self._send_several(out, room)
                room -= n
                _drop(out, n)
                if n < size:  # the socket's buffer is full; to try again now would be in vain
                    return None
            return _OK
        except BlockingIOError:
            return None
        except OSError as error:
            out.clear()
            return self._fail(error)

    def _send_several(self, out: list[memoryview], room: int) -> tuple[int, int]:
        """One system call for many parts; how many bytes it was given, and how many it took."""
        views = out[: -_PARTS_PER_CALL - 1 : -1]
        size = sum(map(len, views))
        while size > room:
            last = views.pop()
            size -= len(last)
            if size < room:
                views.append(last[: room - size])
                size = room
        return size, self._sock.sendmsg(views, (), _NO_SIGNAL)

    def _fail(self, error: OSError) -> Status:
        number = error.errno or errno.EIO
        self._unwritable = Status.from_errno(number, "writing")
        if number != errno.EPIPE and number not in LACKS and self._broken is None:
            self._broken = Status.from_errno(number, "reading")
        return self._unwritable

    def _shut_down_writing(self) -> None:
        if not self._closed:
            with contextlib.suppress(OSError):  # the connection is broken, which the next read will say
                self._sock.shutdown(socket.SHUT_WR)


def _drop(out: list[memoryview], n: int) -> None:
    """Takes the `n` bytes that were sent out of what is to be."""
    while n:
        left = len(out[-1])
        if n < left:
            out[-1] = out[-1][n:]
            return
        recycle_last(out)
        n -= left
