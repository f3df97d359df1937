"""The reading half of a borrowed endpoint. The rules are in `endpoint`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from eventengine.core.operations import CLOSED, ENDED, OnDone, Operations, check_read
from eventengine.engine import TaskHandle
from eventengine.memory_quota import LARGEST_POOLED_BLOCK, SMALLEST_BLOCK, MemoryQuota
from eventengine.slices import SliceBuffer
from eventengine.status import Status

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from eventengine.core.borrowed.port import PushTransport
    from eventengine.core.loop import Loop

__all__ = ["BorrowedReading"]

PASS_ON: Final = 0.01
"""Seconds that the next in the quota's line waits for one whose chunk does not come."""


class BorrowedReading(Operations):
    __slots__ = ("_arrived", "_calling", "_ended", "_gone", "_passing", "_paused", "_port")

    def __init__(self, loop: Loop, port: PushTransport, memory: MemoryQuota) -> None:
        super().__init__(loop, memory)
        self._port = port
        self._calling = self._gone = False
        self._paused = True
        self._arrived = SliceBuffer()
        self._ended: Status | None = None
        self._passing: TaskHandle | None = None

    def read(self, on_read: OnDone, buffer: SliceBuffer, *, read_hint_bytes: int = 1) -> bool:
        check_read(on_read, buffer, read_hint_bytes)
        self._claim_read(buffer)
        loop = self._loop
        if not loop.is_here():
            self._hand_over_read(on_read, buffer, read_hint_bytes)
            return False
        self._on_read = on_read
        self._buffer = buffer
        self._hint = read_hint_bytes
        if self._has_enough and loop.budget > 0:
            loop.budget -= len(self._arrived) + 1024
            self._take_arrived()
            return True
        self._keep()
        self._read_on()
        return False

    # All that follows is the loop's thread's.

    def _keep(self) -> None:
        """Rule 6."""
        outstanding = (self._on_read is not None or self._on_writable is not None) and not self._closed
        self._port.kept = self if outstanding else None

    def _start_read(self, on_read: OnDone, buffer: SliceBuffer, hint: int) -> None:
        self._on_read = on_read
        self._buffer = buffer
        self._hint = hint
        if self._closed:
            self._finish_read(CLOSED)
            return
        self._keep()
        if self._has_enough:
            self._settle()
        else:
            self._read_on()

    @property
    def _has_enough(self) -> bool:
        arrived = len(self._arrived)
        if not arrived:
            return False
        return arrived >= self._hint or self._ended is not None or not self._has_room

    @property
    def _has_room(self) -> bool:
        return not self._memory.is_tight or self._memory.has_room

    def _read_on(self) -> None:
        """Has the transport deliver, for the read that is outstanding."""
        if self._ended is not None or self._has_enough:
            self._loop.post(self._settle)
        elif not self._waiting and not self._may_resume():
            self._pause()
        elif self._paused and not self._waiting:
            self._paused = False
            self._calling = True
            try:
                self._port.resume()
            finally:
                self._calling = False

    def _may_resume(self) -> bool:
        """Whether there is room; else we stand in the quota's line."""
        if self._has_room:
            return True
        self._memory.add_waiter(self._on_room)
        if self._closed or self._memory.has_room:  # closed by a reclaimer, just now
            self._memory.remove_waiter(self._on_room)
            return not self._closed
        self._waiting = True
        return False

    def _let_in(self) -> None:
        if self._waiting and not self._closed:
            self._waiting = False
            self._read_on()
            if self._waiting:
                self._memory.keep_place(self._on_room)
            elif self._passing is None:
                self._passing = self._loop.timers.schedule_own(PASS_ON, self._pass_on)
        else:
            self._memory.wake_next_waiter()

    def _pass_on(self) -> None:
        """Rule 3."""
        passing, self._passing = self._passing, None
        if passing is not None:
            self._loop.timers.cancel(passing)
            self._memory.wake_next_waiter()

    def _pause(self) -> None:
        if not self._paused and not self._gone:
            self._paused = True
            self._port.pause()

    def _on_data(self, chunk: Buffer) -> None:
        if self._closed:
            return
        self._store(memoryview(chunk).cast("B"))
        if self._closed:  # by a reclaimer, just now
            self._arrived.clear()
            return
        if self._passing is not None:
            self._pass_on()
        if self._on_read is None:
            self._paused = False  # whatever it was told
            self._pause()
        elif self._has_enough:
            self._settle()

    def _store(self, left: memoryview) -> None:
        """Copies into blocks of which little stays empty."""
        arrived = self._arrived
        while left:
            size = min(1 << (len(left) - 1).bit_length(), LARGEST_POOLED_BLOCK)
            if size > SMALLEST_BLOCK and len(left) <= size * 3 // 4:
                size //= 2
            block = self._memory.make_block(size, size)
            view = memoryview(block)[: len(left)]
            view[:] = left[: len(view)]
            left = left[len(view) :]
            arrived._parts.append(view)
            arrived._length += len(view)
            del block, view

    def _on_end(self) -> None:
        if self._ended is None:
            self._ended = ENDED
        self._settle()

    def _settle(self) -> None:
        """Ends the read that is outstanding, if it can be."""
        if self._on_read is None or self._closed:
            return
        if self._calling:
            self._loop.post(self._settle)
        elif self._has_enough:
            self._finish_read(Status.OK)
        elif self._ended is not None:
            self._finish_read(self._ended)

    def _take_arrived(self) -> None:
        assert self._buffer is not None
        self._buffer.swap(self._arrived)
        self._give_back()

    def _give_back(self) -> None:
        assert self._buffer is not None
        self._buffer._lent = False
        self._on_read = self._buffer = None
        self._read_idle = None

    def _finish_read(self, status: Status) -> None:
        on_read = self._on_read
        assert on_read is not None
        self._leave_line()
        if status.ok:
            self._take_arrived()
        else:
            self._give_back()
        self._keep()
        self._loop.run_callback(on_read, status)
        if self._on_read is None and not self._closed:  # rule 2
            self._pause()
