"""The writing half of a borrowed endpoint. The rules are in `endpoint`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from eventengine.core.borrowed.reading import BorrowedReading
from eventengine.core.operations import CLOSED, OnDone, check_write
from eventengine.engine import WriteEventSink
from eventengine.memory_quota import MemoryQuota
from eventengine.slices import SliceBuffer, recycle_last
from eventengine.status import Status

if TYPE_CHECKING:
    from eventengine.core.borrowed.port import PushTransport
    from eventengine.core.loop import Loop

__all__ = ["BorrowedWriting"]

PIECE: Final = 128 * 1024
"""Bytes that are given to a transport at a time."""
AT_ONCE: Final = 1 << 20
"""Bytes that one turn writes at most before others have theirs."""


class BorrowedWriting(BorrowedReading):
    __slots__ = ("_sent",)

    def __init__(self, loop: Loop, port: PushTransport, memory: MemoryQuota) -> None:
        super().__init__(loop, port, memory)
        self._sent: list[memoryview] = []  # what the piece in the transport is made of

    def write(
        self,
        on_writable: OnDone,
        data: SliceBuffer,
        *,
        max_frame_size: int = 1 << 20,
        sink: WriteEventSink | None = None,
    ) -> bool:
        check_write(on_writable, data, max_frame_size)
        if not self._claim_write(data):
            return True
        loop = self._loop
        if not loop.is_here():
            self._hand_over_write(on_writable, data)
            return False
        size = len(data)
        self._take_out(data)
        self._on_writable = on_writable
        if self._unwritable is None and self._pump():
            loop.budget -= size + 1024
            if loop.budget > 0:
                self._on_writable = None
                self._write_idle = None
                return True
            loop.post(self._write_on)
        elif self._unwritable is not None:
            loop.post(self._write_on)
        self._keep()
        return False

    # All that follows is the loop's thread's.

    def _start_write(self, on_writable: OnDone, data: SliceBuffer) -> None:
        self._on_writable = on_writable
        if self._closed:
            self._finish_write(CLOSED)
            return
        self._take_out(data)
        self._keep()
        self._write_on()

    def _write_on(self) -> None:
        """What is left goes to the transport, which has nothing to write at this point."""
        if self._on_writable is None or self._closed or self._sent:
            return
        if self._unwritable is not None:
            self._finish_write(self._unwritable)
        elif self._pump():
            self._finish_write(Status.OK)

    def _pump(self) -> bool:
        """Gives the transport pieces until one is not drained at once; whether all are."""
        room = AT_ONCE
        while self._out:
            if room <= 0:
                self._loop.post(self._write_on)
                return False
            piece = self._next_piece()
            room -= len(piece)
            self._calling = True
            try:
                drained = self._port.write(piece)
            finally:
                self._calling = False
            if not drained or self._unwritable is not None:
                return False
            self._recycle()
        return True

    def _next_piece(self) -> bytes:
        out, sent = self._out, self._sent
        room = PIECE
        while out and room:
            part = out[-1]
            if len(part) <= room:
                sent.append(out.pop())
                room -= len(part)
            else:
                sent.append(part[:room])
                out[-1] = part[room:]
                room = 0
        return b"".join(sent)

    def _recycle(self) -> None:
        while self._sent:
            recycle_last(self._sent)

    def _on_drained(self) -> None:
        if self._sent and not self._calling:  # else the transport has taken the piece within `write`, and says so
            self._recycle()
            self._write_on()

    def _finish_write(self, status: Status) -> None:
        on_writable = self._on_writable
        assert on_writable is not None
        self._out.clear()
        self._recycle()
        self._on_writable = None
        self._write_idle = None
        self._keep()
        self._loop.run_callback(on_writable, status)

    def _on_unwritable(self, number: int) -> None:
        if self._unwritable is None:
            self._unwritable = Status.from_errno(number, "writing")
        if self._on_writable is not None and not self._closed:
            self._out.clear()
            self._recycle()
            if self._calling:
                self._loop.post(self._write_on)
            else:
                self._write_on()

    def _shut_down_writing(self) -> None:
        if not self._closed and not self._gone:
            self._port.close_write()
