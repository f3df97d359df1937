"""What a channel of twisted.web keeps of the heads of requests, and of those sent ahead, charged to a quota.

Twisted takes a line of up to 16 KiB, and up to 500 headers and 16 KiB of cookies, which take 60 and 350 KiB, and keeps
up to 80 KiB of what comes while a request is handled. What of all that is more than FREE is charged when a read was
handled, and until the request is done or, where its client has left, forgotten by who handles it. A fifth of the quota
is left by all of them, or as much as there is while they have a sixteenth. Where there is no room, those are aborted
that hold most, until it fits. A channel whose connection becomes that of another protocol, as of a websocket, is told
of no end: what it holds is given back when it is collected.

What a channel keeps lies in `_buffer` and `_dataBuffer`, and is counted in `_receivedHeaderSize` and
`_receivedHeaderCount`; `_handlingRequest` says whether the request has come whole. Twisted has no public names for
these. tests/test_twisted_site.py finds it when that changes.
"""

# Most of Twisted's own transports and of its web server has no types, so what is called on them has none.
# mypy: allow-untyped-calls
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from twisted.internet.protocol import connectionDone
from twisted.web.http import HTTPChannel

from eventengine.memory import Reservation

if TYPE_CHECKING:
    from twisted.python.failure import Failure
    from twisted.web.http import Request

    from eventengine.memory_quota import MemoryQuota

__all__ = ["FREE", "Heads", "QuotaChannel"]

FREE: Final = 4096
"""As much is charged with any connection."""

_SHORT: Final = 256
"""Bytes of which a head that comes at once takes little enough, whatever is in them."""

_HEADER: Final = 128
"""Bytes that a header or a cookie takes besides its text."""

_PIECE: Final = 48
"""The same of a piece of what was sent ahead."""


class _Share:
    """What one channel is charged, as long as this exists."""

    __slots__ = ("_memory", "amount")

    def __init__(self, memory: MemoryQuota) -> None:
        self._memory = memory
        self.amount = 0

    def __del__(self) -> None:
        self._memory.give(self.amount)


class Heads:
    """Those of one site. The reactor's thread's."""

    def __init__(self, memory: MemoryQuota, on_cut: Callable[[], object]) -> None:
        self.memory = memory
        self._on_cut = on_cut
        self._shares: WeakKeyDictionary[QuotaChannel, _Share] = WeakKeyDictionary()

    def hold(self, channel: QuotaChannel, amount: int) -> None:
        """It keeps so many bytes now. May abort channels, this one, too."""
        share = self._shares.get(channel)
        more = amount if share is None else amount - share.amount
        while more > 0 and not self._try_take(more):
            worst = max(self._shares, key=self._amount_of, default=channel)
            if self._amount_of(worst) < amount:
                worst = channel
            self._on_cut()
            worst.abort()
            if worst is channel:
                return
        if not amount:
            if share is not None:
                del self._shares[channel]
            return
        if share is None:
            share = self._shares[channel] = _Share(self.memory)
        share.amount = amount
        if more < 0:
            self.memory.give(-more)

    def _amount_of(self, channel: QuotaChannel) -> int:
        share = self._shares.get(channel)
        return 0 if share is None else share.amount

    def _try_take(self, amount: int) -> bool:
        size = self.memory.size or 0
        if self.memory.try_take(amount, size // 5):
            return True
        held = sum(share.amount for share in self._shares.values())
        return held + amount <= size // 16 and self.memory.try_take(amount)


class QuotaChannel(HTTPChannel):
    """One of a QuotaSite that holds nothing to speak of."""

    site: Any

    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        if len(data) > _SHORT or self._receivedHeaderSize or self._buffer or self._dataBuffer:
            self._hold()

    def _hold(self) -> None:
        me: Any = self
        ahead: list[bytes] = me._dataBuffer
        room = len(me._buffer) + sum(map(len, ahead)) + _PIECE * len(ahead)
        if me._receivedHeaderSize and me.requests:  # also while its body comes
            headers = me._receivedHeaderCount + len(me.requests[-1].received_cookies)
            room += me._receivedHeaderSize + _HEADER * headers
        elif me._handlingRequest and me.requests:
            room += self._head_of(me.requests[0])
        if room > FREE or type(self) is _ChargedChannel:
            me.__class__ = _ChargedChannel if room > FREE else QuotaChannel
            self.site.heads.hold(self, room if room > FREE else 0)

    def _head_of(self, request: Any) -> int:
        found: int | None = request.head
        if found is None:
            found = _HEADER * len(request.received_cookies)
            for _, values in request.requestHeaders.getAllRawHeaders():
                found += sum(map(len, values)) + _HEADER * len(values)
            request.head = found
        return found

    def abort(self) -> None:
        """By `Heads`."""
        self.site.heads.hold(self, 0)
        transport: Any = self.transport
        if transport is not None:  # else it is another's
            transport.abortConnection()


class _ChargedChannel(QuotaChannel):
    """One that is charged, until it holds little again: so the others are spared these steps."""

    def dataReceived(self, data: bytes) -> None:
        HTTPChannel.dataReceived(self, data)
        self._hold()

    def requestDone(self, request: Request) -> None:
        super().requestDone(request)
        self._hold()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        me: Any = self
        handled: Any = me.requests[0] if me._handlingRequest and me.requests else None
        room = self._head_of(handled) if handled is not None else 0
        super().connectionLost(reason)
        heads: Heads = self.site.heads
        heads.hold(self, 0)
        if handled is not None and room > FREE:
            handled.kept = Reservation(heads.memory, heads.memory.take(room, room))
