"""SSH channels as transports that can be paused, and that tell when what was written has gone.

Twisted's have neither: what comes is delivered, and what the window has no room for is kept, however much it is. But
both follow from a channel's own attributes and hooks, as `SSHChannel` documents them.

Rules:

1. The peer may send as much as the window has left (RFC 4254, section 5.2). Twisted makes it anew when half of
   `localWindowSize` is gone, so while that is 0 it does not: at most one window comes after a pause, 128 KiB as a rule.
2. What the peer's window has no room for lies in `buf`. `startWriting` is called when there is room again, just before
   what is in there is sent; so the look whether it has all gone is taken a turn later.
3. The end of the peer's stream is told to the channel only; what the application does about it comes first.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from eventengine.bridges.twisted.borrowed import Transport

__all__ = ["as_pausable"]


class _ChannelTransport:
    """Stands before the transport that an SSH channel's protocol was given, on the reactor's thread.

    Args:
        transport: The channel, or what `SSHSession` hands to a protocol.
        channel: What the peer's window, and ours, are of.
        call_soon: Calls a function in the reactor's next turn.
        on_end: Called when the peer has ended its stream.
    """

    __slots__ = ("_call_soon", "_channel", "_on_end", "_on_eof", "_producer", "_transport", "_window")

    def __init__(
        self,
        transport: Transport,
        channel: Any,
        call_soon: Callable[[Callable[[], object]], object],
        on_end: Callable[[], object],
    ) -> None:
        self._transport = transport
        self._channel = channel
        self._call_soon = call_soon
        self._on_end = on_end
        self._window: int = channel.localWindowSize
        self._producer: Any = None
        self._on_eof: Callable[[], object] = channel.eofReceived
        # Hooks for subclasses; which class a channel has, is not ours to say.
        channel.startWriting = self._may_write
        channel.eofReceived = self._end

    def write(self, data: bytes) -> None:
        self._transport.write(data)
        if self._channel.buf and self._producer is not None:
            self._producer.pauseProducing()

    def loseConnection(self) -> None:
        self._transport.loseConnection()

    def abortConnection(self) -> None:
        self._channel.buf = b""
        self._transport.loseConnection()

    def getPeer(self) -> object:
        return self._transport.getPeer()

    def getHost(self) -> object:
        return self._transport.getHost()

    def pauseProducing(self) -> None:
        self._channel.localWindowSize = 0  # rule 1

    def resumeProducing(self) -> None:
        channel = self._channel
        channel.localWindowSize = self._window
        used = self._window - channel.localWindowLeft
        if used > self._window // 2 and not (channel.localClosed or channel.remoteClosed):
            channel.conn.adjustWindow(channel, used)

    def registerProducer(self, producer: object, streaming: bool) -> None:
        self._producer = producer

    def unregisterProducer(self) -> None:
        self._producer = None

    def _may_write(self) -> None:
        self._call_soon(self._look)  # rule 2

    def _look(self) -> None:
        if not self._channel.buf and self._producer is not None:
            self._producer.resumeProducing()

    def _end(self) -> None:
        self._on_eof()
        self._on_end()


def as_pausable(
    transport: Transport, call_soon: Callable[[Callable[[], object]], object], on_end: Callable[[], object]
) -> Transport:
    """`transport`, or what stands before it if it is an SSH channel, or one's; `on_end` is called by that alone."""
    module: Any = sys.modules.get("twisted.conch.ssh.channel")  # which needs `cryptography`, which not all have
    if module is None:
        return transport
    for each in (transport, getattr(transport, "session", None)):
        if isinstance(each, module.SSHChannel):
            return cast("Transport", _ChannelTransport(transport, each, call_soon, on_end))
    return transport
