"""One quota on one reactor: what all transports and ports under it share.

A connection is charged what Twisted's own objects for one take. When the quota is short, those that have been idle
longest are closed: connections of a server with nothing unsent, that have received nothing for IDLE seconds and wait
for a request of twisted.web, or are amid a handshake of TLS; or for SILENT seconds if their protocol is another, which
cannot tell, or the request has come in part. One whose request is being handled is not idle. One with TLS, or that has
received nothing yet, is left alone for its first NEW seconds. Where none is idle and nothing is about to make room, the
one that has waited for room for longest is closed, after SILENT seconds: nobody could go on else.

Everything here is the reactor's thread's, but for `of`.
"""

# Most of Twisted's own transports and of its web server has no types, so what is called on them has none.
# mypy: allow-untyped-calls
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import heapq
import math
import os
import threading
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, cast, runtime_checkable
from weakref import WeakValueDictionary

from twisted.internet.main import CONNECTION_LOST
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.log import callWithLogger

from eventengine.admission import Admission
from eventengine.idle import Connections
from eventengine.quota import describe_limits
from eventengine.tally import Tally, number_of

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall

    from eventengine.quota import ResourceQuota

__all__ = ["COST", "HANDSHAKE", "TLS_COST", "Bound", "Closable"]

COST: Final = 4096
"""Bytes that a connection is charged: one of twisted.web takes 2.9 KiB after its first request."""

TLS_COST: Final = 65536
"""The same with TLS: 55 KiB after the handshake, and a record."""

HANDSHAKE: Final = 163840
"""Bytes besides until a handshake of TLS is over: OpenSSL takes a message of up to 131,396, and a third more for it.
1,000 clients that sent 100 kB of one each made an echo of 64 MiB grow by 174."""

NEW: Final = 5.0
IDLE: Final = 1.0
SILENT: Final = 60.0
_NOT_YET: Final = b"(no clientproto yet)"
"""The protocol of a twisted.web request that has not come whole."""

_SENT_TOGETHER: Final = 32
"""As many connections at most have something written that is not sent nor charged; of small quotas fewer, for each may
have 64 KiB: together that is a sixteenth."""

_LINGER: Final = 1.0
_TICK: Final = 0.125
"""Seconds for which the time that is kept is one object: each connection would have one of 24 bytes else."""

_BATCH: Final = 16
"""As many are closed in one turn."""

_log: Final = Logger()


@runtime_checkable
class Closable(Protocol):
    """A server's connection, as it is looked at here."""

    new_since: float

    @property
    def is_shaking(self) -> bool:
        """Whether it has TLS, whose handshake is not over."""
        ...

    def silent_since(self) -> float | None:
        """When it last received something, if it could be closed; None if not."""

    def stuck_since(self) -> float | None:
        """The same, if it waits for room."""

    def close_as_idle(self) -> None: ...


class Written(Protocol):
    """A transport to which something was written."""

    def send_what_was_written(self) -> None: ...


class Waiting(Protocol):
    """A transport or a port that waits for room."""

    def stop_waiting(self) -> None: ...

    def connectionLost(self, reason: Failure) -> object: ...


class Aborted(Protocol):
    """A transport that is ending."""

    def abortConnection(self) -> None: ...


class Bound:
    """One quota on one reactor: what all transports under it share. The reactor's thread's."""

    _all: ClassVar[WeakValueDictionary[tuple[int, int], Bound]] = WeakValueDictionary()
    _all_lock: ClassVar = threading.Lock()

    def __init__(self, quota: ResourceQuota, reactor: Any) -> None:
        self.quota = quota
        self.memory = quota.memory
        self.reactor = reactor
        self.connections = Connections(quota, self, self._close_idle)
        self.admission = Admission(quota.memory, self, self.connections.close_idle)
        self.is_turned = False  # by a reactor of ours, which calls `send` itself
        self.is_ending = False  # the reactor: nobody waits any more
        self._is_told = False
        self._written: list[Written] = []
        self._most_written = 1  # until the first is sent, which looks at the quota's size
        self._waiting: dict[Waiting, None] = {}
        self._triggers: list[object] = []
        self._ends: dict[Aborted, Any] = {}  # delayed calls
        self._until = 0.0  # the end of the tick
        self.cut = Tally(
            lambda n: _log.warn(
                "{quota!r} is full: {number} had read everything",
                quota=quota,
                number=number_of(n, "client was cut before it", "clients were cut before they"),
            )
        )
        self._idle = Tally(
            lambda n: _log.info(
                "{quota!r} is short: {number} closed",
                quota=quota,
                number=number_of(n, "idle connection was", "idle connections were"),
            )
        )
        self.crowded = Tally(
            lambda n: _log.warn("{quota!r} has no room for one more connection: new ones wait", quota=quota)
        )

    @classmethod
    def of(cls, quota: ResourceQuota, reactor: Any) -> Bound:
        """The same for all who ask for the two."""
        with cls._all_lock:
            found = cls._all.get((id(quota), id(reactor)))
            if found is None:
                found = cls._all[id(quota), id(reactor)] = cls(quota, reactor)
            return found

    @property
    def handshake(self) -> int:
        """What a handshake is charged: no more than a sixteenth, or small quotas had no room for one."""
        size = self.memory.size
        return HANDSHAKE if size is None else min(HANDSHAKE, size // 16)

    def now(self) -> float:
        """The time as connections keep it, up to _TICK late."""
        now = monotonic()
        if now > self._until:
            self._until = now + _TICK
        return self._until

    def tell(self) -> None:
        """Says in the log, once, what is bounded: something is about to be served."""
        if not self._is_told:
            self._is_told = True
            _log.info("{limits}", limits=describe_limits(self.quota))

    def send_later(self, transport: Written) -> None:
        """Has it send at the end of this turn."""
        if not self._written:
            if not self.is_turned:
                self.reactor.callLater(0, self.send)
        elif len(self._written) >= self._most_written:
            self.send()
        self._written.append(transport)

    def send_if_many(self) -> None:
        """After a connection has handled what it received."""
        if len(self._written) >= self._most_written:
            self.send()

    def send(self) -> None:
        """Sends what was written since this was last called. Many in a row, for one alone has to wake a peer that waits
        on this machine, and those that follow do not; not too many, for it could work meanwhile."""
        if not self._written:
            return
        size = self.memory.size
        self._most_written = _SENT_TOGETHER if size is None else max(1, min(_SENT_TOGETHER, size >> 20))
        while self._written:
            written, self._written = self._written, []
            for each in written:
                try:
                    each.send_what_was_written()
                except Exception:
                    _log.failure("what was written to {transport!r} could not be sent", transport=each)

    def wait(self, each: Waiting) -> None:
        """It is no reader while it waits for room, so the reactor would not find it when it ends."""
        if not self._waiting:
            add = self.reactor.addSystemEventTrigger
            self._triggers = [
                add("before", "shutdown", self._stop_waiting),
                add("during", "shutdown", self._end_waiting),
            ]
        self._waiting[each] = None

    def waits_no_more(self, each: Waiting) -> None:
        if self._waiting.pop(each, self) is None and not self._waiting and not self.is_ending:
            for trigger in self._triggers:
                self.reactor.removeSystemEventTrigger(trigger)

    def abort_later(self, transport: Aborted) -> None:
        """A peer of TLS may never say that it has heard of the end, and one may never take what was written."""
        if transport not in self._ends:
            self._ends[transport] = self.call_later(_LINGER, partial(self._abort, transport))

    def _abort(self, transport: Aborted) -> None:
        del self._ends[transport]
        transport.abortConnection()

    def has_ended(self, transport: Aborted) -> None:
        end = self._ends.pop(transport, None)
        if end is not None:
            end.cancel()

    def _stop_waiting(self) -> None:
        self.is_ending = True
        for each in list(self._waiting):
            each.stop_waiting()

    def _end_waiting(self) -> None:
        """By then the reactor has told all others that they are lost, and not those that wait since it began to end."""
        self.is_ending = True
        for each in list(self._waiting):
            callWithLogger(each, each.connectionLost, Failure(CONNECTION_LOST))

    def call_later(self, delay: float, function: Callable[[], object], /) -> IDelayedCall:
        return cast("IDelayedCall", self.reactor.callLater(delay, function))

    def call_soon_threadsafe(self, function: Callable[[], object], /) -> None:
        self.reactor.callFromThread(function)

    def _close_idle(self) -> bool:
        now = monotonic()
        idle: list[tuple[float, Closable]] = []
        for each in self.reactor.getReaders():
            if getattr(each, "bound", None) is self and hasattr(each, "silent_since"):
                since = each.silent_since()
                if since is None or each.new_since > now - NEW:
                    continue
                if since <= now - (IDLE if each.is_shaking else _patience(each.protocol)):
                    idle.append((since, each))
        longest = heapq.nsmallest(_BATCH, idle, key=itemgetter(0))
        closing = [each for _, each in longest] or self._find_stuck(now)
        for each in closing:
            self._idle.add()
            each.close_as_idle()
        return bool(closing)

    def _find_stuck(self, now: float) -> list[Closable]:
        """Connections cost more when they begin with TLS, so that they can fill the quota themselves, and all wait: the
        one that has waited longest, if it has for SILENT seconds and nothing else is about to make room."""
        if self.admission.moving:
            return []
        stuck: list[tuple[float, Closable]] = []
        for each in self._waiting:
            if isinstance(each, Closable):
                since = each.stuck_since()
                if since is not None and since <= now - SILENT:
                    stuck.append((since, each))
        return [min(stuck, key=itemgetter(0))[1]] if stuck else []  # of two, who has begun to wait first


def _patience(protocol: object) -> float:
    """The seconds after which it is idle. A channel of twisted.web stands behind a wrapper for HTTP/2, whose attribute
    is private, and below TLS."""
    protocol = getattr(protocol, "wrappedProtocol", protocol)
    requests = getattr(getattr(protocol, "_channel", protocol), "requests", None)
    if requests == []:
        return IDLE
    is_handled = requests and getattr(requests[0], "clientproto", _NOT_YET) != _NOT_YET
    return math.inf if is_handled else SILENT


def _after_fork_in_child() -> None:
    Bound._all_lock = threading.Lock()  # a thread may have held it that the child does not have


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
