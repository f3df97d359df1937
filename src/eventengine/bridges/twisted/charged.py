"""Twisted's transports, with what they have written and not sent charged to a quota, and reads that wait for room.

They are Twisted's own, as subclasses: everything that protocols, TLS and Twisted's own tests look for is there. What is
added hangs on five methods that Twisted's reactors and transports call on one another by their public names.

- `startWriting` is what every kind of `write` ends in, that of TLS which `startTLS` puts above included. What was
  written is sent in one piece, by the end of the reactor's turn (see `Bound.send`); the reactor is asked only for what
  the socket did not take. A producer that pulls, or that was paused, is served by the reactor, or it
  would be resumed within its own write.
- `doWrite` and `connectionLost` tell what has gone.
- `doRead` reads nothing while the quota is full; TCP holds the peer back, and the reading goes on when memory comes
  back. `startReading` and `stopReading` say what the application wishes meanwhile.

Who is cut is aborted in the reactor's next turn, as Twisted's contract has it, and lets go of what it holds at once.

What FileDescriptor has not sent lies in `_tempDataBuffer`, and its length in `_tempDataLen`: Twisted has no public name
for them, and `doWrite` and TLS no other place. tests/test_twisted_transports.py finds it when that changes.
"""

# Most of Twisted's own transports and of its web server has no types, so what is called on them has none.
# mypy: allow-untyped-calls
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final, cast

from eventengine.unsent import Unsent

if TYPE_CHECKING:
    from twisted.internet.abstract import FileDescriptor
    from twisted.python.failure import Failure

    from eventengine.bridges.twisted.bound import Bound

    class _Base(FileDescriptor):
        TLS: bool
        protocol: Any
        dataBuffer: bytes
        offset: int
        _tempDataBuffer: list[bytes]
        _tempDataLen: int

        def abortConnection(self) -> None: ...
else:
    _Base = object

__all__ = ["Charged", "is_tls", "is_tls_factory"]


_PIECE: Final = 56
"""Bytes that a piece takes besides in the list of those that wait."""

_TLS_READ: Final = 16384
"""Bytes, a record. What TLS is given at a time it keeps room for as long as the connection lasts."""


_tls_types: Final[set[type[object]]] = set()
"""Those that were seen, for it is asked at each read."""


def is_tls(protocol: Any) -> bool:
    """Whether it is that of TLS, over which another is spoken."""
    tls: Any = sys.modules.get("twisted.protocols.tls")  # which needs pyOpenSSL, which not all have
    if tls is None or not isinstance(protocol, tls.TLSMemoryBIOProtocol):
        return False
    _tls_types.add(cast("type[object]", type(protocol)))
    return True


def is_tls_factory(factory: Any) -> bool:
    """Whether the connections of its ports begin with a handshake."""
    tls: Any = sys.modules.get("twisted.protocols.tls")
    return tls is not None and isinstance(factory, tls.TLSMemoryBIOFactory)


class Charged(_Base):
    """What each kind of transport has besides Twisted's, in slots, for Twisted's dictionary is full."""

    __slots__ = ("_failure", "_is_aborted", "_is_written", "_reads", "_unsent", "_waits", "bound")

    def _prepare(self, bound: Bound) -> None:
        self.bound = bound
        self._unsent: Unsent | None = None
        self._reads = False  # the application wishes to
        self._waits = False  # for room
        self._is_written = False  # and in the bound's list
        self._is_aborted = False
        self._failure: Any = None  # of a send that the reactor did not make: the socket tells its error once

    def startReading(self) -> None:
        self._reads = True
        if not self._waits:
            super().startReading()

    def stopReading(self) -> None:
        self._reads = False
        super().stopReading()

    def doRead(self) -> Any:
        bound = self.bound
        if bound.memory.is_tight and not bound.memory.has_room and not bound.is_ending:
            self._wait_for_room()
            return None
        if self.TLS or type(self.protocol) in _tls_types:
            own = self.__dict__.get("bufferSize")
            self.bufferSize = _TLS_READ
            try:
                result: Any = super().doRead()
            finally:
                if own is None:
                    del self.bufferSize
                else:
                    self.bufferSize = own
        else:
            result = super().doRead()
        bound.send_if_many()
        return result if result is None or self._failure is None else self._failure

    def _wait_for_room(self) -> None:
        self._waits = True
        super().stopReading()
        self.bound.wait(self)
        memory = self.bound.memory
        memory.add_waiter(self._on_room)
        if memory.has_room:  # it came back between the two looks
            memory.wake_next_waiter()

    def _on_room(self) -> bool:
        """Any thread."""
        if self.disconnected or not self._waits:
            return True
        self.bound.call_soon_threadsafe(self._read_on)
        return False

    def _read_on(self) -> None:
        if self._waits:
            self.stop_waiting()
        self.bound.memory.wake_next_waiter()

    def stop_waiting(self) -> None:
        """By `Bound` when the reactor ends, too."""
        self._waits = False
        self.bound.memory.remove_waiter(self._on_room)
        self.bound.waits_no_more(self)
        if self._reads and self.connected:
            super().startReading()

    def startWriting(self) -> None:
        waiting = self._tempDataBuffer
        if not waiting:
            super().startWriting()
            return
        if self._is_aborted:
            self._let_go()
            return
        if self._may_send_at_once:
            if not self._is_written:
                self._is_written = True
                self.bound.send_later(self)
            if self._tempDataLen > self.bufferSize:
                self._settle()  # it may write for ever
            return
        super().startWriting()
        self._settle()

    @property
    def _may_send_at_once(self) -> bool:
        return not self.dataBuffer and (
            self.producer is None or (self.streamingProducer and not self.producerPaused)
        )

    def send_what_was_written(self) -> None:
        """By `Bound`, by the end of the turn."""
        self._is_written = False
        if self._is_aborted or not self.connected:
            self._let_go()
            self._settle()
            return
        if self._tempDataBuffer and self._may_send_at_once:
            self._send_some()
        is_left = self.dataBuffer or self._tempDataBuffer
        if is_left or self._failure is not None or self.disconnecting or self._writeDisconnecting:
            super().startWriting()  # what its doWrite goes on with, or ends
        if is_left or self._unsent is not None:
            self._settle()

    def doWrite(self) -> Any:
        if self._left and self._failure is None:
            self._send_some()
            self._settle()
        if self._failure is not None:
            return self._failure
        return None if self._left else super().doWrite()  # which serves the producer, or ends the connection

    def _send_some(self) -> bool:
        """Sends up to SEND_LIMIT bytes in one piece; says whether any went. No more is joined than that, unlike by
        FileDescriptor, for it exists twice meanwhile."""
        if self.offset == len(self.dataBuffer):
            waiting = self._tempDataBuffer
            n = size = 0
            while n < len(waiting) and size < self.SEND_LIMIT:
                size += len(waiting[n])
                n += 1
            self.dataBuffer = waiting[0] if n == 1 else b"".join(waiting[:n])
            del waiting[:n]
            self._tempDataLen -= size
            self.offset = 0
        view = cast("bytes", memoryview(self.dataBuffer)[self.offset :]) if self.offset else self.dataBuffer
        sent = self.writeSomeData(view)
        if not isinstance(sent, int) or sent < 0:
            self._failure = sent
            return False
        self.offset += sent
        if self.offset == len(self.dataBuffer):
            self.dataBuffer = b""
            self.offset = 0
        if sent and self._unsent is not None:
            self._unsent.moved()
        return sent > 0

    def abortConnection(self) -> None:
        self._is_aborted = True
        super().abortConnection()

    def connectionLost(self, reason: Failure) -> None:
        try:
            super().connectionLost(reason)
        finally:
            self._let_go()
            if self._unsent is not None:
                self._unsent.end()
            if self._waits:
                self._waits = False
                self.bound.memory.remove_waiter(self._on_room)
                self.bound.waits_no_more(self)

    @property
    def _left(self) -> int:
        offset: int = self.offset
        return len(self.dataBuffer) - offset + self._tempDataLen

    def _settle(self) -> None:
        held = len(self.dataBuffer) + self._tempDataLen + len(self._tempDataBuffer) * _PIECE
        unsent = self._unsent
        if held:
            if unsent is None:
                unsent = self._unsent = _Unsent(self)
            unsent.hold(held)
        elif unsent is not None:
            self._unsent = None
            unsent.hold(0)

    def try_to_send(self) -> None:
        """So that nobody is cut who reads."""
        while self._left and self._send_some():
            pass
        self._settle()

    def _let_go(self) -> None:
        self._tempDataBuffer.clear()
        self._tempDataLen = self.offset = 0
        self.dataBuffer = b""

    def cut(self) -> None:
        self.bound.cut.add()
        self.abortConnection()
        self._let_go()
        if self._unsent is not None:
            self._unsent.end()


class _Unsent(Unsent):
    __slots__ = ("_transport",)

    def __init__(self, transport: Charged) -> None:
        super().__init__(transport.bound.admission)
        self._transport = transport

    def send(self) -> None:
        self._transport.try_to_send()

    def on_cut(self) -> None:
        self._transport.cut()
