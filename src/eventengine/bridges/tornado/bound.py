"""One quota on one loop: what servers, clients and streams share, so that each can make room for another.

A connection of a QuotaHTTPServer is charged what Tornado's own objects for one take. When the quota is short, those are
closed that have waited longest for a request: for IDLE seconds after another, or for NEW seconds where there was none
yet, for its line may be on its way. Of other servers' connections none is known to be idle, unless it is amid a
handshake of TLS.
"""

from __future__ import annotations

import asyncio
import os
import threading
from time import monotonic
from typing import TYPE_CHECKING, ClassVar, Final
from weakref import WeakValueDictionary

from tornado.iostream import StreamBufferFullError
from tornado.log import gen_log

from eventengine.admission import Admission
from eventengine.idle import Connections
from eventengine.tally import Tally, number_of

if TYPE_CHECKING:
    from eventengine.bridges.tornado.streams import Counted
    from eventengine.quota import ResourceQuota

__all__ = ["COST", "HANDSHAKE", "TLS_COST", "Bound"]

COST: Final = 8192
"""Bytes that a connection is charged: one takes 8.5 KiB after its first request."""

TLS_COST: Final = 49152
"""The same with TLS."""

HANDSHAKE: Final = 180224
"""Bytes besides until a handshake of TLS is over. OpenSSL makes room for a message as long as its first bytes say, up
to 131,396, and a third more: 1,200 clients that sent 44 bytes each made a site of 64 MiB grow by 209."""

_WARM: Final = 1 << 20
"""glibc gives the end of its heap back, and takes it anew page by page, with each few bodies of 100 kB (21 page faults
a body, a tenth of its time), until a block as large as this was freed once: as after the first body of 1 MiB."""

IDLE: Final = 1.0
NEW: Final = 5.0
_TICK: Final = 0.125
"""Seconds for which the time that is kept is one object: each stream would have one of 24 bytes else."""

_BATCH: Final = 16
"""As many are closed in one turn."""

_MADE_ROOM: Final = "it made room for others"
"""To a stream that is closed so; a request of which the last byte had just come is not handled any more."""


class Bound:
    """The loop's thread's."""

    _all: ClassVar[WeakValueDictionary[tuple[int, int], Bound]] = WeakValueDictionary()
    _all_lock: ClassVar = threading.Lock()

    def __init__(self, quota: ResourceQuota, loop: asyncio.AbstractEventLoop) -> None:
        self.quota = quota
        self.loop = loop
        self.memory = quota.memory
        self.sent_at_once = 0  # within a write of one of its streams
        self._until = 0.0  # the end of the tick
        self.idle: dict[object, Counted] = {}
        """Streams that wait for a request, or amid a handshake, by their connection, longest first."""
        self.connections = Connections(quota, loop, self._close_idle)
        self.admission = Admission(
            quota.memory,
            loop,
            self.connections.close_idle,
            lambda: self.connections.charged,
            lambda: self.connections.is_full,
        )
        self._closed = Tally(
            lambda n: gen_log.info(
                "%r is short: %s closed", quota, number_of(n, "idle connection was", "idle connections were")
            )
        )
        self.cut = Tally(
            lambda n: gen_log.warning(
                "%r is full: %s had read everything",
                quota,
                number_of(n, "client was cut before it", "clients were cut before they"),
            )
        )
        self.crowded = Tally(
            lambda n: gen_log.warning("%r has no room for one more connection: new ones wait", quota)
        )

    @classmethod
    def of(cls, quota: ResourceQuota, loop: asyncio.AbstractEventLoop) -> Bound:
        """The same for all who ask for the two."""
        with cls._all_lock:
            found = cls._all.get((id(quota), id(loop)))
            if found is None:
                bytearray(_WARM)
                found = cls._all[id(quota), id(loop)] = cls(quota, loop)
            return found

    @property
    def handshake(self) -> int:
        """What a handshake is charged: no more than a sixteenth, or small quotas had no room for one."""
        size = self.memory.size
        return HANDSHAKE if size is None else min(HANDSHAKE, size // 16)

    def waits_for_request(self, connection: object, stream: Counted) -> None:
        now = monotonic()
        if now > self._until:
            self._until = now + _TICK
        stream.idle_since = self._until
        self.idle[connection] = stream

    def has_request(self, connection: object) -> None:
        """Or was closed."""
        self.idle.pop(connection, None)

    def make_room_for_head(self) -> bool:
        """Heads do not wait. Says whether there is room when what is unsent was cut, and then those whose head has come
        in part, the longest first."""
        self.admission.shed()
        while self.memory.is_over:
            longest = max(self.idle.values(), key=_head_of, default=None)
            if longest is None or not longest.head:
                return False
            self._closed.add()
            longest.close(exc_info=StreamBufferFullError(_MADE_ROOM))
        return True

    def _close_idle(self) -> bool:
        used, new = monotonic() - IDLE, monotonic() - NEW
        ripe = [
            connection
            for connection, stream in self.idle.items()
            if stream.idle_since <= (used if stream.is_used else new)
        ][:_BATCH]
        for connection in ripe:
            self._closed.add()
            self.idle.pop(connection).close(exc_info=StreamBufferFullError(_MADE_ROOM))
        return bool(ripe)


def _head_of(stream: Counted) -> int:
    return stream.head


def _after_fork_in_child() -> None:
    Bound._all_lock = threading.Lock()  # a thread may have held it that the child does not have


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
