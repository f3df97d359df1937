"""`BorrowedEndpoint`: an endpoint over a transport that a framework made, seen through a port, `PushTransport`.

Rules:

1. The transport is the loop's thread's; operations are claimed and ended as `operations` says. Closing the
   endpoint closes it, after what it was given; where a write is not done by then, it is aborted.
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
from collections.abc import Callable
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, TypeVarTuple

from eventengine.address import ResolvedAddress
from eventengine.core.borrowed.port import PushTransport
from eventengine.core.borrowed.writing import BorrowedWriting
from eventengine.core.handles import next_handle
from eventengine.engine import HalfCloseable
from eventengine.memory_quota import MemoryQuota
from eventengine.status import ClosedResourceError, ForkedProcessError, Status

if TYPE_CHECKING:
    from eventengine.core.loop import Loop

__all__ = ["BorrowedEndpoint", "borrow", "check_is_here"]

Ts = TypeVarTuple("Ts")


class BorrowedEndpoint(BorrowedWriting):
    __slots__ = ("__weakref__", "_key", "_local", "_peer")

    def __init__(
        self, loop: Loop, port: PushTransport, peer: ResolvedAddress, local: ResolvedAddress, memory: MemoryQuota
    ) -> None:
        super().__init__(loop, port, memory)
        self._peer = peer
        self._local = local
        self._key = -next_handle()  # descriptors are the other keys
        self._open = None
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

    def __del__(self) -> None:
        try:
            del self._open
        except AttributeError:
            return
        self._closed = True  # the loop's thread may get hold of us once more while this runs
        with contextlib.suppress(ClosedResourceError, ForkedProcessError):  # else the transport went with its loop
            self._loop.post(partial(_drop, self._loop, self._key, self._port))
        warnings.warn(f"an endpoint to {self._peer} was never closed", ResourceWarning, stacklevel=1, source=self)

    # All that follows is the loop's thread's.

    def _turn(self, function: Callable[[*Ts], object], *args: *Ts) -> None:
        """The transport calls: a turn of the engine, unless one is on already."""
        loop = self._loop
        if loop.thread == get_ident() or loop.is_forked:
            function(*args)
        else:
            with loop:
                function(*args)

    def _on_broken(self, number: int) -> None:
        self._gone = True
        if self._ended is None:  # EPIPE is a writer's word
            self._ended = Status.from_errno(errno.ECONNRESET if number == errno.EPIPE else number, "reading")
        self._on_unwritable(number)
        self._settle()

    def _tear_down(self) -> None:
        self._loop.endpoints.pop(self._key, None)
        unsent = bool(self._out or self._sent)
        self._cancel_outstanding()
        self._pass_on()
        self._arrived.clear()
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
        self._end_writing()


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
