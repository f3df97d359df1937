"""`TLSEndpoint`: the end of a connection over TLS, on top of another endpoint, the one *below*.

Rules:

1. `_read_idle`, `_write_idle` and `_open` are tokens, as in `core.endpoint`: deleting one is atomic, and who deletes it
   has claimed the operation. A token comes back just before the operation's callback is called, or its call returns
   True.
2. Whatever may be called from anywhere (a call of the application's, a callback from below, news of the quota) leaves
   what it brings in an attribute of its own, and takes a *turn*. One attribute each is enough, for at most one of each
   kind is outstanding. A turn sets `_again`, then tries for `_strand`, without waiting. Who gets it works on all that
   was left, until `_again` stays clear, and looks at `_again` once more after letting go; who does not get it leaves
   the news to who has it. So nothing is left lying, one thread at a time is in `ssl`, and no thread waits for another.
   A garbage collection in the middle of a turn may call us, too, from a finalizer: it finds `_in_turn`.
   A write beside which nothing is to be done takes a turn of fewer steps (`_write_at_once`): under the strand, too, and
   with the same look at `_again` after it.
3. All that is in `steps`, `decrypting` and `encrypting` is called within a turn only.
4. No callback is called within a turn. What a turn ended is told after it: to the call that took the turn, if it is
   that call's own operation; directly, if the turn was taken by a callback from below, for callbacks may run there;
   else by a closure of the engine's.
5. While a read is outstanding there is one outstanding below, or what that brought is being decrypted; and while a
   write is, there is a write below, or, while OpenSSL renegotiates, a read. So the end of the engine, a reset, and our
   own close reach each operation from below, once. While no read is outstanding, nothing is read below.
6. Close: the claimant sets `_closed`. The next turn sends a close_notify, unless that would come in the middle of a
   write, and closes what is below: at once, if that was sent at once; else, as from another thread, when it was, or
   after LINGER seconds.
7. After a fork the child may find `_strand` taken by a thread that it has not: every call asks for that first.
"""

from __future__ import annotations

import ssl
import warnings
import weakref
from collections.abc import Callable
from typing import Final, TypeVar

from eventengine.address import ResolvedAddress
from eventengine.core.operations import LENT, check_count
from eventengine.engine import (
    Endpoint,
    EventEngine,
    HalfCloseable,
    SupportsFileDescriptor,
    TelemetryInfo,
    WriteEventSink,
)
from eventengine.memory_quota import MemoryQuota
from eventengine.slices import SliceBuffer
from eventengine.status import (
    BusyResourceError,
    ClosedResourceError,
    ForkedProcessError,
    Status,
    StatusCode,
    StatusError,
)
from eventengine.tls.extension import Secured
from eventengine.tls.steps import OnDone
from eventengine.tls.turns import Turns

__all__ = ["TLSEndpoint"]

_FRAME: Final = 1 << 20
"""As in `core.writing`."""
_OK: Final = Status.OK

E = TypeVar("E")


class TLSEndpoint(Turns, HalfCloseable):
    __slots__ = ("__weakref__", "_open", "_secured")

    def __init__(
        self,
        engine: EventEngine,
        below: Endpoint,
        tls: ssl.SSLObject,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        memory: MemoryQuota,
    ) -> None:
        """After the handshake; nothing is outstanding on `below`, which is ours from now on."""
        super().__init__(engine, below, tls, incoming, outgoing, memory)
        self._secured = Secured(tls, _session_of(weakref.ref(self)))
        self._open = None

    def read(self, on_read: OnDone, buffer: SliceBuffer, *, read_hint_bytes: int = 1) -> bool:
        if not callable(on_read):
            raise TypeError(f"on_read must be callable, not {type(on_read).__name__}")
        if type(buffer) is not SliceBuffer:
            raise TypeError(f"a read needs a SliceBuffer, not {type(buffer).__name__}")
        if type(read_hint_bytes) is not int or read_hint_bytes < 1:
            check_count("read_hint_bytes", read_hint_bytes)
        if self._closed or self._is_gone or self._is_forked:
            raise self._misused(ClosedResourceError("the endpoint was closed"))
        try:
            del self._read_idle
        except AttributeError:
            raise BusyResourceError("a read is outstanding on this endpoint; wait for its callback") from None
        if buffer._lent:
            self._read_idle = None
            raise BusyResourceError(LENT)
        if buffer._length:
            buffer.clear()
        buffer._lent = True
        request = (on_read, buffer, read_hint_bytes)
        self._reading = request
        status = self._turn(request)
        if status is None:
            return False
        if status is _OK:
            self._read_idle = None
            return True
        if status.code is StatusCode.CANCELLED:  # by another thread just now, or with the engine
            self._read_idle = None
            raise self._misused(ClosedResourceError("the endpoint was closed"))
        self._tell_later(self._tell_read, request, status)
        return False

    def write(
        self,
        on_writable: OnDone,
        data: SliceBuffer,
        *,
        max_frame_size: int = _FRAME,
        sink: WriteEventSink | None = None,
    ) -> bool:
        if not callable(on_writable):
            raise TypeError(f"on_writable must be callable, not {type(on_writable).__name__}")
        if type(data) is not SliceBuffer:
            raise TypeError(f"a write needs a SliceBuffer, not {type(data).__name__}; write SliceBuffer([data])")
        if max_frame_size is not _FRAME and (type(max_frame_size) is not int or max_frame_size < 1):
            check_count("max_frame_size", max_frame_size)
        if sink is not None and not callable(getattr(sink, "on_event", None)):
            raise TypeError(f"sink must be a WriteEventSink, with on_event, not {type(sink).__name__}")
        if self._closed or self._write_ended or self._is_gone or self._is_forked:
            what = "endpoint's writing half" if self._write_ended and not self._closed else "endpoint"
            raise self._misused(ClosedResourceError(f"the {what} was closed"))
        try:
            del self._write_idle
        except AttributeError:
            raise BusyResourceError("a write is outstanding on this endpoint; wait for its callback") from None
        if not data._length or data._lent:
            self._write_idle = None
            if data._lent:
                raise BusyResourceError(LENT)
            return True
        request = (on_writable, data, max_frame_size, sink)
        if self._write_at_once(request):
            self._write_idle = None
            return True
        status = self._turn(request)
        if status is None:
            return False
        if status is _OK:
            self._write_idle = None
            return True
        if status.code is StatusCode.CANCELLED:
            self._write_idle = None
            raise self._misused(ClosedResourceError("the endpoint was closed"))
        self._tell_later(self._tell_written, request, status)
        return False

    def close_write(self) -> None:
        """Ends the outgoing stream with a close_notify; the connection below stays open in both directions.

        Else as `HalfCloseable.close_write`. A peer with TLS 1.2 may answer by closing the connection (RFC 5246, 7.2.1).
        """
        if self._closed or self._is_gone or self._is_forked:
            raise self._misused(ClosedResourceError("the endpoint was closed"))
        try:
            del self._write_idle
        except AttributeError:
            if self._write_ended:
                return
            raise BusyResourceError("a write is outstanding on this endpoint; wait for its callback") from None
        self._write_ended = True
        self._must_end = True
        self._turn(None)

    def close(self) -> None:
        try:
            del self._open
        except AttributeError:
            return
        self._closed = True
        if self._is_forked:
            self._below.close()
            return
        self._turn(None)

    def __del__(self) -> None:
        try:
            if self._closed:  # as a rule; an exception costs more
                return
            del self._open
        except AttributeError:
            return
        if self._is_gone:
            return
        try:  # by a closure that does not hold this object: it may be collected in any thread, at any point
            self._engine.run(self._below.close)
        except (ClosedResourceError, ForkedProcessError):
            return  # the engine has closed what is below
        warnings.warn(
            f"an endpoint to {self.peer_address} was never closed", ResourceWarning, stacklevel=1, source=self
        )

    @property
    def peer_address(self) -> ResolvedAddress:
        return self._below.peer_address

    @property
    def local_address(self) -> ResolvedAddress:
        return self._below.local_address

    def telemetry_info(self) -> TelemetryInfo | None:
        """That of the endpoint below: what it measures are records, not the bytes that were written."""
        return self._below.telemetry_info()

    def query_extension(self, extension: type[E]) -> E | None:
        """This endpoint as an `extension`, or the one below as that. `SupportsFileDescriptor` is only for looking: its
        `release` is refused, for who takes the descriptor has not the keys.

        May be called from any thread.
        """
        if isinstance(self, extension):
            return self
        if isinstance(self._secured, extension):
            return self._secured
        found = self._below.query_extension(extension)
        if isinstance(found, SupportsFileDescriptor):
            descriptor = _Descriptor(self, found)
            if isinstance(descriptor, extension):
                return descriptor
        return found

    def _session(self) -> ssl.SSLSession | None:
        if self._is_forked:
            raise self._misused(ClosedResourceError())
        with self._strand:  # a ticket that is being read replaces the session
            session = None if self._tls.server_side else self._tls.session
        if self._again:  # somebody left news meanwhile, to us
            self._turn(None)
        return session


class _Descriptor(SupportsFileDescriptor):
    """The descriptor below, for looking."""

    __slots__ = ("_below", "_endpoint")

    def __init__(self, endpoint: TLSEndpoint, below: SupportsFileDescriptor) -> None:
        self._endpoint = endpoint
        self._below = below

    def fileno(self) -> int:
        if self._endpoint._closed:
            raise ClosedResourceError("the endpoint was closed")
        return self._below.fileno()

    def release(self) -> int:
        """Refused, for who took the descriptor would not have the keys: StatusError(UNIMPLEMENTED)."""
        if self._endpoint._closed:
            raise ClosedResourceError("the endpoint was closed")
        raise StatusError(
            Status(
                StatusCode.UNIMPLEMENTED,
                "an endpoint over TLS does not release its descriptor: who took it would not have the keys",
            )
        )


def _session_of(reference: weakref.ref[TLSEndpoint]) -> Callable[[], ssl.SSLSession | None]:
    """Asks an endpoint for its session, without holding it: a cycle would put its collection off."""

    def session() -> ssl.SSLSession | None:
        endpoint = reference()
        return None if endpoint is None else endpoint._session()

    return session
