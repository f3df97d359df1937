"""Processes as endpoints: what is written goes to standard input, what is read comes from standard output."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, cast

from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from eventengine.bridges.twisted.borrowed import NO_NAME, Transport
from eventengine.core.borrowed import PushTransport, borrow
from eventengine.core.hosted import check_protocol
from eventengine.engine import Endpoint
from eventengine.memory import MemoryAllocator

if TYPE_CHECKING:
    from twisted.internet.interfaces import ITransport

    from eventengine.bridges.twisted.engine import TwistedEventEngine

__all__ = ["EndpointProcessProtocol"]


class _Process(Transport, Protocol):
    def closeStdin(self) -> None: ...


class _ProcessPort(PushTransport):
    """The pipes of a process, and the producer of its standard input."""

    __slots__ = ("_full", "_process")

    can_half_close = True

    def __init__(self, process: _Process) -> None:
        super().__init__()
        self._process = process
        self._full = False
        process.registerProducer(self, False)
        process.pauseProducing()

    def resume(self) -> None:
        self._process.resumeProducing()

    def pause(self) -> None:
        self._process.pauseProducing()

    def write(self, piece: bytes) -> bool:
        self._full = True
        self._process.write(piece)
        return False

    def close_write(self) -> None:
        self._process.unregisterProducer()
        self._process.closeStdin()

    def close(self) -> None:
        self._process.unregisterProducer()
        self._process.loseConnection()

    def abort(self) -> None:
        self.close()

    def pauseProducing(self) -> None:
        """Not called: a pull producer is not paused."""

    def resumeProducing(self) -> None:
        if self._full:
            self._full = False
            self.drained()

    def stopProducing(self) -> None:
        """What is lost is told to the protocol."""


class EndpointProcessProtocol(ProcessProtocol):
    """A process as an endpoint: what is written goes to its standard input, what it prints is read.

        reactor.spawnProcess(EndpointProcessProtocol(engine, allocator, on_start), "/bin/cat", ["cat"])

    Its `close_write` closes standard input, `close` all three pipes; the process itself is not signalled. What a
    process that never reads was written stays in Twisted until it ends. Standard error is `errReceived`'s, which is
    there to be overridden; while no read is outstanding it is paused, too. The two addresses have no name.

    Args:
        engine: On the reactor that spawns the process.
        memory_allocator: What the endpoint draws its memory from.
        on_start: Gets the endpoint, which is then the callback's to close.
    """

    def __init__(
        self, engine: TwistedEventEngine, memory_allocator: MemoryAllocator, on_start: Callable[[Endpoint], object]
    ) -> None:
        check_protocol(engine, memory_allocator, "on_start", on_start)
        # The engine's is no framework's.
        self._loop = engine._loop
        self._allocator = memory_allocator
        self._on_start = on_start
        self._port: _ProcessPort | None = None

    def makeConnection(self, transport: ITransport) -> None:
        super().makeConnection(transport)  # type: ignore[no-untyped-call]  # pyright: ignore[reportUnknownMemberType]
        port = self._port = _ProcessPort(cast("_Process", transport))
        endpoint = borrow(self._loop, port, NO_NAME, NO_NAME, self._allocator.memory)
        self._loop.run_callback(self._on_start, endpoint)

    def outReceived(self, data: bytes) -> None:
        if self._port is not None:
            self._port.data(data)

    def inConnectionLost(self) -> None:
        if self._port is not None:
            self._port.unwritable(errno.EPIPE)

    def outConnectionLost(self) -> None:
        if self._port is not None:
            self._port.end()

    def processEnded(self, reason: Failure) -> None:
        port, self._port = self._port, None
        if port is not None:
            port.end()
            port.broken(errno.EPIPE)
