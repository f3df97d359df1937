"""`EndpointConfig`: how the sockets of a connection or listener are set up."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["EndpointConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointConfig:
    """Options for the sockets that `connect` and `create_listener` make. Every field has a default.

    None means: leave the system's default. A value that is out of range raises ValueError when the config is made;
    a system that refuses an option fails the `connect` (a Status to its callback) or the `bind` (StatusError).
    All sockets are non-blocking, close-on-exec and, over TCP, TCP_NODELAY; that is not an option.

    Attributes:
        keepalive: Whether SO_KEEPALIVE (socket(7)) is set. Off, as in gRPC, whose HTTP/2 has pings of its own.
        keepalive_idle: Seconds of silence before the first probe, TCP_KEEPIDLE (tcp(7)).
        keepalive_interval: Seconds between probes, TCP_KEEPINTVL.
        keepalive_count: Probes without an answer that end the connection, TCP_KEEPCNT.
        user_timeout: Seconds that sent bytes may stay unacknowledged before the connection ends with ETIMEDOUT,
            TCP_USER_TIMEOUT (RFC 5482). On Linux so does one whose peer takes nothing for so long, though bytes wait
            for it: a reader that pauses is cut, too.
        send_buffer_size: Bytes, SO_SNDBUF; Linux doubles the number.
        receive_buffer_size: Bytes, SO_RCVBUF; set before connecting or listening, so that the window follows it.
        dscp: Differentiated services code point of 0-63 (RFC 2474), for IP_TOS and IPV6_TCLASS.
        reuse_port: Whether listeners have SO_REUSEPORT, so that several processes share a port. On, as in gRPC.
        backlog: Connections that may wait to be accepted (listen(2)); the system caps it at somaxconn.
        socket_hook: Called with each new socket before it is bound, connected or, for accepted ones, used.
            What it raises fails that connect or bind; an accepted connection is closed. It runs on the
            engine's thread, but for a listener's own sockets, where it runs on the thread that calls `bind`.
    """

    keepalive: bool = False
    keepalive_idle: float | None = None
    keepalive_interval: float | None = None
    keepalive_count: int | None = None
    user_timeout: float | None = None
    send_buffer_size: int | None = None
    receive_buffer_size: int | None = None
    dscp: int | None = None
    reuse_port: bool = True
    backlog: int = 4096
    socket_hook: Callable[[socket.socket], object] | None = None

    def __post_init__(self) -> None:
        for name in ("keepalive_idle", "keepalive_interval"):
            _check(name, getattr(self, name), 1, 32767, "whole seconds from 1 to 32767")
        _check("keepalive_count", self.keepalive_count, 1, 127, "a number from 1 to 127")
        _check("user_timeout", self.user_timeout, 0.001, 2147483, "seconds from 0.001 to 2147483", whole=False)
        for name in ("send_buffer_size", "receive_buffer_size"):
            _check(name, getattr(self, name), 1, 2**31 - 1, "bytes from 1 to 2**31 - 1")
        _check("dscp", self.dscp, 0, 63, "a code point from 0 to 63")
        _check("backlog", self.backlog, 0, 65535, "a number from 0 to 65535", optional=False)
        for name in ("keepalive", "reuse_port"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, not {type(getattr(self, name)).__name__}")
        if self.socket_hook is not None and not callable(self.socket_hook):
            raise TypeError(f"socket_hook must be callable, not {type(self.socket_hook).__name__}")


def _check(
    name: str,
    value: float | None,
    low: float,
    high: float,
    allowed: str,
    *,
    whole: bool = True,
    optional: bool = True,
) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be {allowed}, not {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}; it must be {allowed}")
    if whole and isinstance(value, float) and not (name.startswith("keepalive_i") and value.is_integer()):
        raise TypeError(f"{name} must be {allowed}, not {value}")
