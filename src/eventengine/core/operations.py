"""`Operations`: the read, the write and the close of an endpoint of a loop: who claims them, and what ends them.

Rules, for sockets and for borrowed transports:

1. `_read_idle`, `_write_idle` and `_open` are tokens: present or absent. Deleting one is atomic, so the thread that
   deletes it has claimed the operation; a second claimant fails at once, at its own caller. A token comes back, on
   the loop's thread, just before the operation's callback is called.
2. `_closed` and `_write_ended` are set by the claimant and never cleared. All else is the loop's thread's: other
   threads claim, and hand over by the mailbox.
3. Close: the claimant sets `_closed` and has `_tear_down` run on the loop's thread, which gives CANCELLED to what is
   outstanding. An operation that was claimed before the close and arrives after it gets CANCELLED there. So each
   claimed operation ends exactly once: by its result, or by the one tear-down.
4. An endpoint that waits for room stands in the quota's line (`_on_room`). A wake-up that finds it no longer waiting
   is passed on.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from eventengine.engine import Endpoint
from eventengine.memory_quota import MemoryQuota
from eventengine.slices import SliceBuffer
from eventengine.status import BusyResourceError, ClosedResourceError, ForkedProcessError, Status, StatusCode

if TYPE_CHECKING:
    from eventengine.core.loop import Loop

__all__ = [
    "CLOSED",
    "ENDED",
    "LENT",
    "READ_OUTSTANDING",
    "WRITE_OUTSTANDING",
    "OnDone",
    "Operations",
    "check_count",
    "check_read",
    "check_write",
]

LENT: Final = "this SliceBuffer is lent to a read that is outstanding; each connection needs buffers of its own"
READ_OUTSTANDING: Final = "a read is outstanding on this endpoint; wait for its callback"
WRITE_OUTSTANDING: Final = "a write is outstanding on this endpoint; wait for its callback"
CLOSED: Final = Status(StatusCode.CANCELLED, "the endpoint was closed")
ENDED: Final = Status(StatusCode.OUT_OF_RANGE, "the peer ended its stream")

OnDone = Callable[[Status], object]


def check_count(name: str, value: object) -> None:
    """Raises TypeError or ValueError, naming the argument, unless `value` is an int of 1 or more."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} is {value}; it must be 1 or more")


def check_read(on_read: object, buffer: object, read_hint_bytes: object) -> None:
    """Raises TypeError or ValueError unless these are arguments of a read."""
    if not callable(on_read):
        raise TypeError(f"on_read must be callable, not {type(on_read).__name__}")
    if type(buffer) is not SliceBuffer:
        raise TypeError(f"a read needs a SliceBuffer, not {type(buffer).__name__}")
    check_count("read_hint_bytes", read_hint_bytes)


def check_write(on_writable: object, data: object, max_frame_size: object) -> None:
    """Raises TypeError or ValueError unless these are arguments of a write."""
    if not callable(on_writable):
        raise TypeError(f"on_writable must be callable, not {type(on_writable).__name__}")
    if type(data) is not SliceBuffer:
        raise TypeError(f"a write needs a SliceBuffer, not {type(data).__name__}; write SliceBuffer([data])")
    check_count("max_frame_size", max_frame_size)


class Operations(Endpoint):
    __slots__ = (
        "_buffer",
        "_closed",
        "_hint",
        "_loop",
        "_memory",
        "_on_read",
        "_on_writable",
        "_open",
        "_out",
        "_read_idle",
        "_unwritable",
        "_waiting",
        "_write_ended",
        "_write_idle",
    )

    _open: None  # there from the end of the making: nobody closes, or warns of, what was not made

    def __init__(self, loop: Loop, memory: MemoryQuota) -> None:
        self._loop = loop
        self._memory = memory
        self._closed = self._write_ended = self._waiting = False
        self._on_read: OnDone | None = None
        self._buffer: SliceBuffer | None = None
        self._hint = 1
        self._on_writable: OnDone | None = None
        self._out: list[memoryview] = []  # last to first, so that what was sent is popped from the end
        self._unwritable: Status | None = None
        self._read_idle = self._write_idle = None

    def close(self) -> None:
        try:
            del self._open
        except AttributeError:
            return
        self._close()

    def _close(self) -> None:
        """By who claimed `_open`."""
        self._closed = True
        try:
            self._loop.run_here(self._tear_down)
        except ClosedResourceError:  # the host's loop was closed under us; nobody else will do it
            self._tear_down()

    def _claim_read(self, buffer: SliceBuffer) -> None:
        """Raises where there can be no read now; else the buffer is lent to it."""
        if self._closed:
            raise self._loop.misused(ClosedResourceError("the endpoint was closed"))
        try:
            del self._read_idle
        except AttributeError:
            raise self._loop.misused(BusyResourceError(READ_OUTSTANDING)) from None
        if buffer._lent:
            self._read_idle = None
            raise BusyResourceError(LENT)
        buffer.clear()
        buffer._lent = True

    def _hand_over_read(self, on_read: OnDone, buffer: SliceBuffer, hint: int) -> None:
        """A read that was claimed on another thread."""
        try:
            self._loop.post(partial(self._start_read, on_read, buffer, hint))
        except BaseException:
            buffer._lent = False
            self._read_idle = None
            raise

    def _claim_write(self, data: SliceBuffer) -> bool:
        """Raises where there can be no write now; False: there is nothing to write."""
        if self._closed or self._write_ended:
            what = "endpoint" if self._closed else "endpoint's writing half"
            raise self._loop.misused(ClosedResourceError(f"the {what} was closed"))
        try:
            del self._write_idle
        except AttributeError:
            raise self._loop.misused(BusyResourceError(WRITE_OUTSTANDING)) from None
        if data._length and not data._lent:
            return True
        self._write_idle = None
        if data._lent:
            raise BusyResourceError(LENT)
        return False

    def _hand_over_write(self, on_writable: OnDone, data: SliceBuffer) -> None:
        """A write that was claimed on another thread."""
        try:
            self._loop.post(partial(self._start_write, on_writable, data))
        except BaseException:
            self._write_idle = None
            raise

    def _end_writing(self) -> None:
        """`HalfCloseable.close_write`, for endpoints that are."""
        if self._closed:
            raise self._loop.misused(ClosedResourceError("the endpoint was closed"))
        try:
            del self._write_idle
        except AttributeError:
            if self._write_ended:
                return
            raise self._loop.misused(BusyResourceError(WRITE_OUTSTANDING)) from None
        self._write_ended = True
        self._loop.run_here(self._shut_down_writing)

    def _on_room(self) -> bool:
        """The quota has room. Any thread, and takes no lock; True passes the news on."""
        if self._closed:
            return True
        try:
            self._loop.post(self._let_in)
        except (ClosedResourceError, ForkedProcessError):
            return True
        return False

    # All that follows is the loop's thread's.

    @abstractmethod
    def _start_read(self, on_read: OnDone, buffer: SliceBuffer, hint: int) -> None:
        """A read that was handed over; the endpoint may have been closed."""

    @abstractmethod
    def _start_write(self, on_writable: OnDone, data: SliceBuffer) -> None:
        """A write that was handed over; the endpoint may have been closed."""

    @abstractmethod
    def _shut_down_writing(self) -> None:
        """Ends the outgoing stream; the endpoint may have been closed."""

    @abstractmethod
    def _let_in(self) -> None:
        """The endpoint is the first in the quota's line, unless it is no longer waiting."""

    @abstractmethod
    def _tear_down(self) -> None:
        """Rule 3."""

    def _leave_line(self) -> None:
        if self._waiting:
            self._waiting = False
            self._memory.remove_waiter(self._on_room)

    def _take_out(self, data: SliceBuffer) -> None:
        """What is to be written is ours from here on."""
        out = self._out = data._parts
        data._parts = []
        data._length = 0
        if len(out) > 1:
            out.reverse()

    def _cancel_outstanding(self) -> None:
        """The operations' part of `_tear_down`."""
        self._leave_line()
        if self._buffer is not None:
            self._buffer.clear()
            self._buffer._lent = False
        if self._on_read is not None:
            self._loop.post_callback(self._on_read, CLOSED)
        if self._on_writable is not None:  # never OK: who hears that goes on, with an endpoint that was closed
            self._loop.post_callback(self._on_writable, CLOSED)
        self._out.clear()
        self._on_read = self._on_writable = self._buffer = None
