"""One connection through the proxy, written on the interface alone.

    client  --- up: read, then write --->  target
            <-- down: read, then write --

Rules:

1. A `Pipe` is one direction. It reads, writes what it read, and reads again only when that write is done: it holds
   one read's worth at most, and a reader that is slow holds back its sender.
2. The end of one stream is passed on as a half-close; the other direction goes on. Who takes no more ends that
   direction only: what it said before it left is passed on. When both have ended, or a read has failed, the `Relay`
   closes both ends, once; who did not get its stream to the end is reset, and takes no half for the whole.
   Over TLS the end of a stream is its close_notify. A connection that ends without one was cut off, perhaps on purpose;
   or is that of a peer that never sends any, and had said all. So who is on the other side is reset likewise, but gets
   what came before first: `_reset_once_delivered`.
3. The two directions draw on two quotas. With one, connections that all send at once could fill it with what their
   targets take only after their answers were read, and for those reads nothing would be left: all would wait for
   ever.
4. Callbacks must be serial, as they are on every engine without a `callback_executor`: nothing here is locked. No
   engine calls back from within `read` or `write`, so a loop of them is never interrupted by another callback.
5. TLS is in `proxy_tls`. A client's handshake comes before the target is connected to: who does not get through it
   costs the target nothing. `_client` and `_server` are what is read and written, `_client_below` and `_server_below`
   the connections themselves, which are what is reset: closing an endpoint over TLS would tell its peer first that it
   has everything.
"""

from __future__ import annotations

import contextlib
import struct
from functools import partial
from socket import SO_LINGER, SOCK_STREAM, SOL_SOCKET, socket
from time import monotonic
from typing import TYPE_CHECKING

from eventengine import (
    Endpoint,
    EndpointConfig,
    HalfCloseable,
    MemoryAllocator,
    ResolvedAddress,
    SliceBuffer,
    Status,
    StatusCode,
    StatusOr,
    SupportsFileDescriptor,
    Target,
    TargetConnection,
    TaskHandle,
    connect_target,
)
from eventengine.cli.proxy_tls import unsent
from eventengine.tls import Handshake
from eventengine.tls.statuses import UNCLEAN_END

if TYPE_CHECKING:
    from eventengine.cli.proxy import Proxy

__all__ = ["Pipe", "Relay"]

CONNECT_TIMEOUT = 10.0
DELIVERY_TIMEOUT = 30.0
"""Seconds within which a peer that is going to be reset must take some of what is on its way to it."""
_DELIVERY_INTERVAL = 0.02

_NO_LINGER = struct.pack("ii", 1, 0)


class Pipe:
    """One direction of a relay: what comes from `source` goes to `sink`.

    Attributes:
        bytes: How many were passed on; a write that did not go to its end counts for none.
        ended: Nothing more passes this way.
        whole: It ended with its stream.
    """

    __slots__ = ("_buffer", "_relay", "_source", "_writing", "bytes", "ended", "name", "sink", "whole")

    def __init__(self, relay: Relay, name: str, source: Endpoint, sink: Endpoint) -> None:
        self.name = name
        self.sink = sink
        self.bytes = 0
        self.ended = False
        self.whole = False
        self._relay = relay
        self._source = source
        self._buffer = SliceBuffer()
        self._writing = 0

    def run(self) -> None:
        """Reads and writes for as long as each is done at once; the callbacks go on from there."""
        while self._source.read(self._on_read, self._buffer):
            if not self._write():
                return

    def _write(self) -> bool:
        self._writing = len(self._buffer)
        done = self.sink.write(self._on_written, self._buffer)
        if done:
            self._count()
        return done

    def _count(self) -> None:
        self.bytes += self._writing
        self._relay.moved_at = monotonic()

    def _on_read(self, status: Status) -> None:
        if self._relay.outcome is not None:
            self._buffer.clear()
        elif status.ok:
            if self._write():
                self.run()
        elif status.code is StatusCode.OUT_OF_RANGE:
            self.ended = self.whole = True
            self._relay.on_stream_end(self)
        elif status is UNCLEAN_END:
            self.ended = True
            self._relay.on_stream_cut(self, f"reading {self.name} failed: {status}")
        else:
            self._relay.end(f"reading {self.name} failed: {status}")

    def _on_written(self, status: Status) -> None:
        if status.ok:
            self._count()
        if self._relay.outcome is not None:
            self._buffer.clear()
        elif status.ok:
            self.run()
        else:
            self._buffer.clear()
            self.ended = True
            self._relay.on_sink_lost(f"writing {self.name} failed: {status}")


class Relay:
    """One connection through the proxy.

    Attributes:
        peer: The client's address.
        target: Where it was connected to; the proxy's target until then.
        up, down: The pipes from and to the client; None until the target was reached.
        moved_at: When bytes were last passed on (`time.monotonic`); waiting for a slow reader moves none.
        outcome: How it ended; None while it goes on.
        seconds: How long it took, once it ended.
    """

    __slots__ = (
        "_allocator",
        "_client",
        "_client_below",
        "_connection",
        "_cut",
        "_delivery",
        "_handshake",
        "_lost",
        "_proxy",
        "_server",
        "_server_below",
        "_started",
        "_target_allocator",
        "_timer",
        "down",
        "moved_at",
        "outcome",
        "peer",
        "seconds",
        "target",
        "up",
    )

    def __init__(self, proxy: Proxy, client: Endpoint, allocator: MemoryAllocator) -> None:
        self.peer = client.peer_address
        self.target: ResolvedAddress | Target = proxy.target
        self.up: Pipe | None = None
        self.down: Pipe | None = None
        self.outcome: str | None = None
        self.seconds = 0.0
        self.moved_at = self._started = monotonic()
        self._proxy = proxy
        self._client = self._client_below = client
        self._allocator = allocator
        self._target_allocator = proxy.down.create_memory_allocator(f"to {proxy.target} for {self.peer}")
        self._lost: str | None = None
        self._cut = False
        self._server: Endpoint | None = None
        self._server_below: Endpoint | None = None
        self._handshake: Handshake | None = None
        self._connection: TargetConnection | None = None
        self._timer: TaskHandle | None = None
        self._delivery: TaskHandle | None = None

    @property
    def bytes_up(self) -> int:
        return self.up.bytes if self.up else 0

    @property
    def bytes_down(self) -> int:
        return self.down.bytes if self.down else 0

    def start(self) -> None:
        proxy = self._proxy
        self._handshake = proxy.tls.accept(proxy.engine, self._on_client_secured, self._client, self._allocator)
        if self._handshake is None:
            self._connect()

    def _connect(self) -> None:
        proxy = self._proxy
        self._connection = connect_target(
            proxy.engine,
            self._on_connect,
            proxy.target,
            EndpointConfig(),
            self._target_allocator,
            CONNECT_TIMEOUT,
            resolver=proxy.resolver,
        )

    @property
    def _is_over(self) -> bool:
        return self.up is not None and self.up.ended and self.down is not None and self.down.ended

    def on_sink_lost(self, why: str) -> None:
        self._lost = self._lost or why
        if self._is_over and not self._cut:
            self.end(self._lost)

    def on_stream_cut(self, pipe: Pipe, why: str) -> None:
        self._lost = self._lost or why
        if self._cut:  # both were, so nobody is there
            self.end(self._lost)
        else:
            self._cut = True
            self._reset_once_delivered(pipe.sink, self._lost, unsent(pipe.sink), monotonic())

    def _reset_once_delivered(self, sink: Endpoint, why: str, before: int, since: float) -> None:
        left = unsent(sink)
        now = monotonic()
        if left != before:
            since = now
        if not left or now - since >= DELIVERY_TIMEOUT:
            self.end(why)
        elif self.outcome is None:
            again = partial(self._reset_once_delivered, sink, why, left, since)
            self._delivery = self._proxy.engine.run_after(_DELIVERY_INTERVAL, again)

    def on_stream_end(self, pipe: Pipe) -> None:
        if self._is_over:
            if not self._cut:
                self.end(self._lost or "both sides ended")
        elif half := pipe.sink.query_extension(HalfCloseable):
            half.close_write()
        else:
            self.end(f"{pipe.name} ended, which cannot be passed on alone")

    def end(self, outcome: str) -> None:
        """Closes both ends and tells the proxy; only the first call counts."""
        if self.outcome is not None:
            return
        self.outcome = outcome
        self.seconds = monotonic() - self._started
        for timer in (self._timer, self._delivery):
            if timer is not None:
                self._proxy.engine.cancel(timer)
        if self._connection is not None:
            self._connection.cancel()
        if self._handshake is not None:
            self._handshake.cancel()
        _close(self._client, self._client_below, self.down)
        if self._server is not None and self._server_below is not None:
            _close(self._server, self._server_below, self.up)
        self._allocator.close()
        self._target_allocator.close()
        self._proxy.on_relay_end(self)

    def _on_client_secured(self, result: StatusOr[Endpoint]) -> None:
        if isinstance(result, Status):
            self.end(f"TLS with the client failed: {result}")
        else:
            self._client = result
            self._connect()

    def _on_connect(self, result: StatusOr[Endpoint]) -> None:
        proxy = self._proxy
        if isinstance(result, Status):
            self.end(f"connecting failed: {result}")
            return
        self.target = result.peer_address
        self._server = self._server_below = result
        self._handshake = proxy.tls.connect(proxy.engine, self._on_target_secured, result, self._target_allocator)
        if self._handshake is None:
            self._join(result)

    def _on_target_secured(self, result: StatusOr[Endpoint]) -> None:
        if isinstance(result, Status):
            self.end(f"TLS with the target failed: {result}")
        else:
            self._join(result)

    def _join(self, server: Endpoint) -> None:
        self._server = server
        self.moved_at = monotonic()
        self.up = Pipe(self, "up", self._client, server)
        self.down = Pipe(self, "down", server, self._client)
        if self._proxy.idle_timeout is not None:
            self._timer = self._proxy.engine.run_after(self._proxy.idle_timeout, self._check_idle)
        self.up.run()
        self.down.run()

    def _check_idle(self) -> None:
        # One timer a relay, put off when it comes and not with each read: those come by the thousand.
        limit = self._proxy.idle_timeout
        if limit is None or self.outcome is not None:
            return
        left = self.moved_at + limit - monotonic()
        if left > 0:
            self._timer = self._proxy.engine.run_after(left, self._check_idle)
        else:
            self.end(f"nothing moved for {limit:g} s")


def _close(sink: Endpoint, below: Endpoint, pipe: Pipe | None) -> None:
    """With a reset, where `sink` has not got all of a stream that was begun. Unix sockets know none."""
    if pipe is not None and not pipe.whole:
        descriptor = below.query_extension(SupportsFileDescriptor)
        if descriptor is not None:
            sock = socket(below.peer_address.family, SOCK_STREAM, fileno=descriptor.fileno())
            try:
                with contextlib.suppress(OSError):  # it was reset already
                    sock.setsockopt(SOL_SOCKET, SO_LINGER, _NO_LINGER)
            finally:
                sock.detach()
        below.close()
    sink.close()
