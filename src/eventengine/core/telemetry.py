"""What a socket's endpoint can tell of its writes: `WriteEvent`s, with what Linux knows of the TCP connection.

Told are SENDMSG, when the last byte of a write was handed to the system, and CLOSED, when the connection ended before.
What the kernel does with the bytes after that (SCHEDULED, SENT, ACKED) is not watched; how many of them are not
acknowledged is among the metrics.

A write with a sink has a `Telling` in place of its `on_writable`. The metrics are read by the loop's thread, whose the
socket is; the sink is called where callbacks are.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from eventengine.engine import TelemetryInfo, WriteEvent, WriteEventSink
from eventengine.status import Status

if TYPE_CHECKING:
    from eventengine.core.loop import Loop

__all__ = ["SocketTelemetry", "Telling", "telemetry_of"]

# The beginning of `struct tcp_info`, linux/tcp.h; kernels before 4.18 know less of it.
_LAYOUT: Final = struct.Struct("@8B24I4Q6I4Q2I2Q2I")
_US: Final = 1e-6
_FIELDS: Final = {
    "rto": (8, _US),
    "unacked": (12, 1),
    "lost": (14, 1),
    "srtt": (23, _US),
    "rttvar": (24, _US),
    "snd_ssthresh": (25, 1),
    "congestion_window": (26, 1),
    "reordering": (28, 1),
    "packet_retx": (31, 1),
    "pacing_rate": (32, 1),
    "data_acked": (34, 1),
    "packet_sent": (41, 1),
    "data_notsent": (38, 1),
    "min_rtt": (39, _US),
    "delivery_rate": (42, 1),
    "busy": (43, _US),
    "rwnd_limited": (44, _US),
    "sndbuf_limited": (45, _US),
    "packet_delivered": (46, 1),
    "data_sent": (48, 1),
    "data_retx": (49, 1),
}
"""Each metric's place in the structure and its unit there: seconds, bytes, packets, bytes a second."""


class SocketTelemetry(TelemetryInfo):
    __slots__ = ("_metrics",)

    def __init__(self, metrics: tuple[str, ...]) -> None:
        self._metrics = metrics

    @property
    def metrics(self) -> tuple[str, ...]:
        return self._metrics

    @property
    def events(self) -> frozenset[WriteEvent]:
        return _EVENTS


_EVENTS: Final = frozenset({WriteEvent.SENDMSG, WriteEvent.CLOSED})
_OF_TCP: Final = SocketTelemetry(tuple(_FIELDS))
_OF_OTHERS: Final = SocketTelemetry(())


def telemetry_of(family: int) -> SocketTelemetry:
    """What a socket of this family can tell. Any thread."""
    is_tcp = sys.platform == "linux" and family in (socket.AF_INET, socket.AF_INET6)
    return _OF_TCP if is_tcp else _OF_OTHERS


def _metrics_of(sock: socket.socket) -> Mapping[str, float]:
    if telemetry_of(sock.family) is _OF_TCP:
        with contextlib.suppress(OSError):
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAYOUT.size)
            if len(info) == _LAYOUT.size:
                values = _LAYOUT.unpack(info)
                return {name: values[place] * unit for name, (place, unit) in _FIELDS.items()}
    return {}


class _Writing(Protocol):
    _loop: Loop
    _sock: socket.socket


class Telling:
    """An `on_writable` that tells a sink first."""

    __slots__ = ("_loop", "_on_writable", "_sink", "_snapshot", "_sock")

    def __init__(self, endpoint: _Writing, on_writable: Callable[[Status], object], sink: WriteEventSink) -> None:
        self._loop = endpoint._loop
        self._sock = endpoint._sock
        self._on_writable = on_writable
        self._sink = sink
        self._snapshot: tuple[float, Mapping[str, float]] | None = None

    def take_snapshot(self) -> None:
        """The write has ended. On the loop's thread, before the socket is closed."""
        self._snapshot = self._loop.host.time(), _metrics_of(self._sock)

    def tell_later(self) -> None:
        """The write was done at once, so that nobody is called but the sink. On the loop's thread."""
        self.take_snapshot()
        self._loop.post_callback(partial(self._tell, WriteEvent.SENDMSG))

    def __call__(self, status: Status) -> None:
        try:
            self._tell(WriteEvent.SENDMSG if status.ok else WriteEvent.CLOSED)
        except Exception as error:
            self._loop.callbacks.failed(self._sink, error)
        self._on_writable(status)

    def _tell(self, event: WriteEvent) -> None:
        time, metrics = self._snapshot or (self._loop.host.time(), {})
        if event in self._sink.requested_events:
            self._sink.on_event(event, time, metrics)
