"""The reading half of a socket's endpoint. Who may touch what stands in `operations`.

`_watched` spares asking the poller for each read: it is only true while the poller watches for READ and holds us.

The block is taken when there is something to read, so an idle endpoint has none. While the quota has no room, READ is
disarmed and the endpoint stands in the quota's line. It enlists first and tries once more after, so no wake-up is lost;
one that finds too little room leaves it its place. An end or an error needs no block and so no room: it is told at
once, or an application that keeps what it read until the message is whole would never learn that the rest will not
come, and never let go.

A read is tried at once only after one that filled its block (a recv in vain costs more than waiting for the event),
and within the turn's budget. Blocks are sized by what has been read of late: the size doubles after a read of more
than 80 % of a block, as in gRPC's posix endpoint, and halves after SMALL_READS of less than a quarter, where gRPC takes
an average; so sizes are powers of two, and each has its pool.

The kernel reports an error once, to whichever call comes first, and says end of stream after. `_broken` keeps it for
the read that comes then; but not a lack of memory (LACKS), after which there is more to read. It keeps an end, too:
what a write finds later takes nothing from a stream that was whole. What a read finds at once but bytes is not told
within it: READ is armed, and the event of a dead socket comes surely.
"""

from __future__ import annotations

import errno
import socket
from abc import abstractmethod
from threading import get_ident
from typing import TYPE_CHECKING, Final

from eventengine.core.host import READ
from eventengine.core.operations import (
    CLOSED,
    ENDED,
    LENT,
    READ_OUTSTANDING,
    OnDone,
    Operations,
    check_read,
)
from eventengine.memory_quota import LARGEST_POOLED_BLOCK, SMALLEST_BLOCK, MemoryQuota
from eventengine.slices import Block, SliceBuffer
from eventengine.status import BusyResourceError, ClosedResourceError, Status

if TYPE_CHECKING:
    from eventengine.core.loop import Loop

__all__ = ["ReadingHalf"]

FIRST_TARGET: Final = 8192
SMALL_READS: Final = 32
AT_ONCE: Final = 1 << 20
"""Bytes that one event reads at most before others have their turn."""

LACKS: Final = frozenset({errno.ENOBUFS, errno.ENOMEM})
"""The system is short of memory, which says nothing of the connection."""

_OK: Final = Status.OK


class ReadingHalf(Operations):
    __slots__ = ("_broken", "_eager", "_fd", "_pool", "_small_reads", "_sock", "_target", "_watched")

    def __init__(self, loop: Loop, sock: socket.socket, memory: MemoryQuota) -> None:
        super().__init__(loop, memory)
        self._sock = sock
        self._fd = sock.fileno()
        self._eager = self._watched = False
        self._small_reads = 0
        self._target = FIRST_TARGET
        self._pool = memory.pools[FIRST_TARGET]
        self._broken: Status | None = None

    def read(self, on_read: OnDone, buffer: SliceBuffer, *, read_hint_bytes: int = 1) -> bool:
        if (
            not callable(on_read)
            or type(buffer) is not SliceBuffer
            or type(read_hint_bytes) is not int
            or read_hint_bytes < 1
        ):
            check_read(on_read, buffer, read_hint_bytes)
        if self._closed:  # as in `_claim_read`, whose call costs
            raise self._loop.misused(ClosedResourceError("the endpoint was closed"))
        try:
            del self._read_idle
        except AttributeError:
            raise self._loop.misused(BusyResourceError(READ_OUTSTANDING)) from None
        if buffer._lent:
            self._read_idle = None
            raise BusyResourceError(LENT)
        if buffer._length:
            buffer.clear()
        buffer._lent = True
        loop = self._loop
        if get_ident() != loop.thread and not loop.is_here():
            self._hand_over_read(on_read, buffer, read_hint_bytes)
            return False
        self._on_read = on_read
        self._buffer = buffer
        self._hint = read_hint_bytes
        if self._eager and loop.budget > 0 and self._receive() is _OK:
            loop.budget -= buffer._length + 1024
            self._on_read = self._buffer = None
            buffer._lent = False
            self._read_idle = None
            return True
        if not self._watched and not self._waiting and not self._closed:
            self._watched = True
            loop.poller.arm(self._fd, READ, self)
        return False

    @abstractmethod
    def on_readable(self) -> None: ...

    @abstractmethod
    def on_writable(self) -> None: ...

    @abstractmethod
    def on_unwatchable(self, error: OSError) -> None: ...

    @abstractmethod
    def _rest(self) -> None:
        """Has the poller hold the endpoint no longer, when nothing is outstanding."""

    # All that follows is the loop's thread's.

    def _start_read(self, on_read: OnDone, buffer: SliceBuffer, hint: int) -> None:
        self._on_read = on_read
        self._buffer = buffer
        self._hint = hint
        if self._closed:
            self._finish_read(CLOSED)
        else:
            self._loop.poller.arm(self._fd, READ, self)

    def _finish_read(self, status: Status) -> None:
        on_read, buffer = self._on_read, self._buffer
        assert on_read is not None
        assert buffer is not None
        buffer._lent = False
        self._on_read = self._buffer = None
        self._read_idle = None
        self._loop.run_callback(on_read, status)

    def _receive(self) -> Status | None:
        """Reads into the buffer: OK when that was enough, what ended the stream, or None when one has to wait."""
        buffer = self._buffer
        assert buffer is not None
        self._eager = False
        memory = self._memory
        room = AT_ONCE
        while room > 0:
            try:  # what `try_block` does first, whose call costs
                block = None if memory.is_tight else self._pool.pop()
            except IndexError:
                block = None
            if block is None:
                block = memory.try_block(self._target)
                if block is None:
                    if buffer._length:
                        return _OK
                    status = self._look_for_the_end()
                    if status is not None:
                        return status
                    block = self._wait_for_room()
                    if block is None:
                        return None
            size = len(block)
            try:
                n = self._sock.recv_into(block)
            except BlockingIOError:
                self._memory.put_back(block)
                return None
            except OSError as error:
                self._memory.put_back(block)
                self._eager = True
                status = self._cannot_read(error)
                return _OK if buffer._length else status
            if not n:
                self._memory.put_back(block)
                self._eager = True  # after bytes, the next read finds the end at once
                status = self._at_the_end()
                return _OK if buffer._length else status
            view = memoryview(block)
            buffer._parts.append(view if n == size else view[:n])
            buffer._length += n
            if n * 5 > size * 4:
                self._aim_at(2 * size)
            elif n * 4 < size and size > SMALLEST_BLOCK:
                self._small_reads += 1
                if self._small_reads == SMALL_READS:
                    self._aim_at(size // 2)
            if buffer._length >= self._hint:
                self._eager = n == size
                return _OK
            if n < size:
                return None
            room -= n
            del view
        return None

    def _look_for_the_end(self) -> Status | None:
        """What has ended the stream, if no bytes come before that."""
        try:
            if self._sock.recv(1, socket.MSG_PEEK):
                return None
        except BlockingIOError:
            return None
        except OSError as error:
            return self._cannot_read(error)
        return self._at_the_end()

    def _at_the_end(self) -> Status:
        if self._broken is None:
            self._broken = ENDED
        return self._broken

    def _cannot_read(self, error: OSError) -> Status:
        number = error.errno or errno.EIO
        if number in LACKS:
            return Status.from_errno(number, "reading")
        if self._broken is None:
            self._broken = Status.from_errno(number, "reading")
        return self._broken

    def _aim_at(self, size: int) -> None:
        """The size of the next block."""
        self._target = size = min(max(size, SMALLEST_BLOCK), LARGEST_POOLED_BLOCK)
        self._pool = self._memory.pools[size]
        self._small_reads = 0

    def _wait_for_room(self) -> Block | None:
        memory = self._memory
        memory.add_waiter(self._on_room)
        if self._closed:  # by a reclaimer, just now
            memory.remove_waiter(self._on_room)
            return None
        block = memory.try_block(self._target)
        if block is None:
            self._waiting = True
            self._watched = False
            self._loop.poller.busy[self._fd] = self
            self._loop.poller.disarm(self._fd, READ)
        else:
            memory.remove_waiter(self._on_room)
        return block

    def _let_in(self) -> None:
        if self._waiting and not self._closed:
            self._waiting = False
            status = self._receive()
            if status is not None:
                self._finish_read(status)
            elif self._waiting:
                self._memory.keep_place(self._on_room)
            elif not self._closed:
                self._loop.poller.arm(self._fd, READ, self)
            self._rest()
        if self._closed or not self._waiting:  # the close does not know that we were woken
            self._memory.wake_next_waiter()
