"""`BorrowedEndpoint`: an endpoint over a transport that a framework made, seen through a port, `PushTransport`.

Rules:

1. The transport, and all of the endpoint's state but its tokens, is the loop's thread's; calls from elsewhere are
   handed over by the mailbox. The tokens (`_read_idle`, `_write_idle`, `_open`) are those of `endpoint`: who deletes
   one has claimed the operation, and close and a claimed operation end as there.
2. The transport is resumed only while a read is outstanding and the quota has room, and paused otherwise: after a
   read only if its callback has not asked for more. What it delivers while it is paused is kept for the next read,
   and charged, as all that arrives: it is copied into blocks, for no framework reads into memory that is ours.
3. A transport says nothing of how much it will deliver, so each that is reading may take the quota over its size by
   one chunk; what came is given to the read rather than held back. Whoever then reads on waits in the quota's line,
   and who is let in passes the news on when its chunk has come, or after PASS_ON: else all would come at once.
4. What is written goes to the transport as bytes, a piece at a time, the next when the one before has drained: so
   what is not charged of it is at most PIECE bytes. The slices stay charged until their piece has drained.
5. No callback runs within a call of the application: what the transport tells while it is being called (`_calling`)
   is told by a letter.
6. While an operation is outstanding the port holds the endpoint (`kept`); else only the application does, and one
   that is collected has its transport closed.
"""

from __future__ import annotations

import contextlib
import errno
import warnings
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Final, TypeVarTuple

from eventengine.address import ResolvedAddress
from eventengine.core.handles import next_handle
from eventengine.core.reading import CLOSED, LENT, OnDone, check_count
from eventengine.engine import Endpoint, HalfCloseable, TaskHandle, WriteEventSink
from eventengine.memory_quota import LARGEST_POOLED_BLOCK, SMALLEST_BLOCK, MemoryQuota
from eventengine.slices import SliceBuffer, recycle_last
from eventengine.status import BusyResourceError, ClosedResourceError, ForkedProcessError, Status, StatusCode

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from eventengine.core.loop import Loop

__all__ = ["BorrowedEndpoint", "PushTransport", "borrow", "check_is_here"]

PIECE: Final = 128 * 1024
"""Bytes that are given to a transport at a time."""
AT_ONCE: Final = 1 << 20
"""Bytes that one turn writes at most before others have theirs."""
PASS_ON: Final = 0.01
"""Seconds that the next in the quota's line waits for one whose chunk does not come."""

_END: Final = Status(StatusCode.OUT_OF_RANGE, "the peer ended its stream")

Ts = TypeVarTuple("Ts")


class PushTransport(ABC):
    """A framework's transport, as an endpoint sees it: the port that a bridge implements.

    All of it is the loop's thread's. The bridge's part is above `data`; from there on it is what the bridge calls.
    None of the bridge's methods raises, and all may be called when the transport has gone.
    """

    __slots__ = ("_endpoint", "kept")

    can_half_close: bool = False

    def __init__(self) -> None:
        self._endpoint: Callable[[], BorrowedEndpoint | None] = _nobody
        self.kept: BorrowedEndpoint | None = None

    @abstractmethod
    def resume(self) -> None:
        """Delivers what comes by `data`, until `pause`; a chunk that comes after that does no harm."""

    @abstractmethod
    def pause(self) -> None:
        """Delivers no more. A transport is paused when it is borrowed."""

    @abstractmethod
    def write(self, piece: bytes) -> bool:
        """Takes a piece to write. True: it has handed everything over. False: `drained` will be called, or the
        transport breaks; a `drained` within this call counts for nothing. Not called again before."""

    @abstractmethod
    def close_write(self) -> None:
        """Ends the outgoing stream. Only called where `can_half_close`, with nothing left to write."""

    @abstractmethod
    def close(self) -> None:
        """Closes, after what was written; nothing that comes is of interest any more."""

    @abstractmethod
    def abort(self) -> None:
        """Closes, and drops what was not handed over yet."""

    def forget_endpoint(self) -> None:
        """Tells nobody any more."""
        self._endpoint = _nobody
        self.kept = None

    def data(self, chunk: Buffer) -> None:
        """Bytes have come."""
        endpoint = self._endpoint()
        if endpoint is not None:
            endpoint._turn(endpoint._on_data, chunk)

    def end(self) -> None:
        """The peer has ended its stream."""
        endpoint = self._endpoint()
        if endpoint is not None:
            endpoint._turn(endpoint._on_end)

    def drained(self) -> None:
        """What was written has been handed over."""
        endpoint = self._endpoint()
        if endpoint is not None:
            endpoint._turn(endpoint._on_drained)

    def unwritable(self, number: int) -> None:
        """Nothing can be written any more, for this errno; reading goes on."""
        endpoint = self._endpoint()
        if endpoint is not None:
            endpoint._turn(endpoint._on_unwritable, number)

    def broken(self, number: int) -> None:
        """The transport has gone, for this errno; after `end` reads go on to say that."""
        endpoint = self._endpoint()
        if endpoint is not None:
            endpoint._turn(endpoint._on_broken, number)


class BorrowedEndpoint(Endpoint):
    __slots__ = (
        "__weakref__",
        "_arrived",
        "_buffer",
        "_calling",
        "_closed",
        "_ended",
        "_gone",
        "_hint",
        "_key",
        "_local",
        "_loop",
        "_memory",
        "_on_read",
        "_on_writable",
        "_open",
        "_out",
        "_passing",
        "_paused",
        "_peer",
        "_port",
        "_read_idle",
        "_sent",
        "_unwritable",
        "_waiting",
        "_write_ended",
        "_write_idle",
    )

    def __init__(
        self, loop: Loop, port: PushTransport, peer: ResolvedAddress, local: ResolvedAddress, memory: MemoryQuota
    ) -> None:
        self._loop = loop
        self._port = port
        self._peer = peer
        self._local = local
        self._memory = memory
        self._closed = self._write_ended = self._gone = False
        self._calling = self._waiting = False
        self._paused = True
        self._arrived = SliceBuffer()
        self._ended: Status | None = None
        self._on_read: OnDone | None = None
        self._buffer: SliceBuffer | None = None
        self._hint = 1
        self._passing: TaskHandle | None = None
        self._on_writable: OnDone | None = None
        self._out: list[memoryview] = []  # last to first, as in `writing`
        self._sent: list[memoryview] = []  # what the piece in the transport is made of
        self._unwritable: Status | None = None
        self._key = -next_handle()  # descriptors are the other keys
        self._read_idle = self._write_idle = self._open = None
        port._endpoint = weakref.ref(self)
        loop.endpoints[self._key] = weakref.ref(self)

    @property
    def peer_address(self) -> ResolvedAddress:
        return self._peer

    @property
    def local_address(self) -> ResolvedAddress:
        return self._local

    def telemetry_info(self) -> None:
        return None

    def read(self, on_read: OnDone, buffer: SliceBuffer, *, read_hint_bytes: int = 1) -> bool:
        if not callable(on_read):
            raise TypeError(f"on_read must be callable, not {type(on_read).__name__}")
        if type(buffer) is not SliceBuffer:
            raise TypeError(f"a read needs a SliceBuffer, not {type(buffer).__name__}")
        check_count("read_hint_bytes", read_hint_bytes)
        if self._closed:
            raise self._loop.misused(ClosedResourceError("the endpoint was closed"))
        try:
            del self._read_idle
        except AttributeError:
            busy = BusyResourceError("a read is outstanding on this endpoint; wait for its callback")
            raise self._loop.misused(busy) from None
        if buffer._lent:
            self._read_idle = None
            raise BusyResourceError(LENT)
        buffer.clear()
        buffer._lent = True
        loop = self._loop
        if not self._is_here():
            try:
                loop.post(partial(self._start_read, on_read, buffer, read_hint_bytes))
            except BaseException:
                buffer._lent = False
                self._read_idle = None
                raise
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
            raise TypeError(f"a write needs a SliceBuffer, not {type(data).__name__}; write SliceBuffer([data])")
        check_count("max_frame_size", max_frame_size)
        if self._closed or self._write_ended:
            what = "endpoint" if self._closed else "endpoint's writing half"
            raise self._loop.misused(ClosedResourceError(f"the {what} was closed"))
        self._claim_write()
        if not data or data._lent:
            self._write_idle = None
            if data._lent:
                raise BusyResourceError(LENT)
            return True
        loop = self._loop
        if not self._is_here():
            try:
                loop.post(partial(self._start_write, on_writable, data))
            except BaseException:
                self._write_idle = None
                raise
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

    def close(self) -> None:
        try:
            del self._open
        except AttributeError:
            return
        self._closed = True
        try:
            self._loop.run_here(self._tear_down)
        except ClosedResourceError:  # the host's loop was closed under us; nobody else will do it
            self._tear_down()

    def __del__(self) -> None:
        try:
            del self._open
        except AttributeError:
            return
        self._closed = True  # the loop's thread may get hold of us once more while this runs
        with contextlib.suppress(ClosedResourceError, ForkedProcessError):  # else the transport went with its loop
            self._loop.post(partial(_drop, self._loop, self._key, self._port))
        warnings.warn(f"an endpoint to {self._peer} was never closed", ResourceWarning, stacklevel=1, source=self)

    def _is_here(self) -> bool:
        return get_ident() == self._loop.thread or self._loop.is_here()

    def _claim_write(self) -> None:
        try:
            del self._write_idle
        except AttributeError:
            busy = BusyResourceError("a write is outstanding on this endpoint; wait for its callback")
            raise self._loop.misused(busy) from None

    # All that follows is the loop's thread's, but for `_on_room`.

    def _turn(self, function: Callable[[*Ts], object], *args: *Ts) -> None:
        """The transport calls: a turn of the engine, unless one is on already."""
        loop = self._loop
        if loop.thread == get_ident() or loop.is_forked:
            function(*args)
        else:
            with loop:
                function(*args)

    def _keep(self) -> None:
        """Rule 6."""
        outstanding = (self._on_read is not None or self._on_writable is not None) and not self._closed
        self._port.kept = self if outstanding else None

    # Reading.

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
        if self._memory.has_room:
            self._memory.remove_waiter(self._on_room)
            return True
        self._waiting = True
        return False

    def _on_room(self) -> bool:
        """As `ReadingHalf._on_room`. Any thread."""
        if self._closed:
            return True
        try:
            self._loop.post(self._let_in)
        except (ClosedResourceError, ForkedProcessError):
            return True
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
            self._ended = _END
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
        buffer = self._buffer
        assert buffer is not None
        buffer.swap(self._arrived)
        buffer._lent = False
        self._on_read = self._buffer = None
        self._read_idle = None

    def _finish_read(self, status: Status) -> None:
        on_read = self._on_read
        assert on_read is not None
        if self._waiting:
            self._waiting = False
            self._memory.remove_waiter(self._on_room)
        if status.ok:
            self._take_arrived()
        else:
            assert self._buffer is not None
            self._buffer._lent = False
            self._on_read = self._buffer = None
            self._read_idle = None
        self._keep()
        self._loop.run_callback(on_read, status)
        if self._on_read is None and not self._closed:  # rule 2
            self._pause()

    # Writing.

    def _take_out(self, data: SliceBuffer) -> None:
        out = self._out = data._parts
        data._parts = []
        data._length = 0
        out.reverse()

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

    # Ending.

    def _on_broken(self, number: int) -> None:
        self._gone = True
        if self._ended is None:  # EPIPE is a writer's word
            self._ended = Status.from_errno(errno.ECONNRESET if number == errno.EPIPE else number, "reading")
        self._on_unwritable(number)
        self._settle()

    def _tear_down(self) -> None:
        """Rule 1."""
        self._loop.endpoints.pop(self._key, None)
        if self._waiting:
            self._waiting = False
            self._memory.remove_waiter(self._on_room)
        self._pass_on()
        if self._buffer is not None:
            self._buffer._lent = False
        if self._on_read is not None:
            self._loop.post_callback(self._on_read, CLOSED)
        if self._on_writable is not None:
            self._loop.post_callback(self._on_writable, CLOSED)
        unsent = bool(self._out or self._sent)
        self._on_read = self._on_writable = self._buffer = None
        self._arrived.clear()
        self._out.clear()
        self._sent.clear()
        self._port.forget_endpoint()
        if not self._gone:
            if unsent:
                self._port.abort()
            else:
                self._port.close()


class HalfCloseableBorrowedEndpoint(BorrowedEndpoint, HalfCloseable):
    __slots__ = ()

    def close_write(self) -> None:
        if self._closed:
            raise self._loop.misused(ClosedResourceError("the endpoint was closed"))
        if not self._write_ended:
            self._claim_write()
            self._write_ended = True
            self._loop.run_here(self._shut_down_writing)


def borrow(
    loop: Loop, port: PushTransport, peer: ResolvedAddress, local: ResolvedAddress, memory: MemoryQuota
) -> BorrowedEndpoint:
    """The endpoint over a transport that was paused. On the loop's thread."""
    endpoint = HalfCloseableBorrowedEndpoint if port.can_half_close else BorrowedEndpoint
    return endpoint(loop, port, peer, local, memory)


def check_is_here(loop: Loop, what: str) -> None:
    """Raises RuntimeError on a thread that is known not to be the loop's, where nobody may touch a transport."""
    if loop.is_forked:
        raise loop.misused(ClosedResourceError("the engine was closed"))
    if not loop.is_open:
        raise ClosedResourceError("the engine was closed")
    if loop.host.is_running and loop.knows_its_thread and not loop.is_here():
        raise RuntimeError(f"{what} must be called on the loop's thread, as all that touches a transport")


def _drop(loop: Loop, key: int, port: PushTransport) -> None:
    loop.endpoints.pop(key, None)
    port.forget_endpoint()
    port.close()


def _nobody() -> None:
    return None
