"""A protocol and a factory that make endpoints of Twisted's connections. The rules are in `borrowed`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, cast

from twisted.internet.interfaces import IHandshakeListener, ISSLTransport
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure
from zope.interface import classImplements  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

from eventengine.bridges.twisted.borrowed import DONE, Receiver, Transport, borrow_transport, number_of
from eventengine.bridges.twisted.channels import as_pausable
from eventengine.core.hosted import HostedEventEngine, check_factory, check_protocol
from eventengine.engine import Endpoint, StatusOr
from eventengine.memory import MemoryAllocator, MemoryAllocatorFactory
from eventengine.status import Status, StatusCode

if TYPE_CHECKING:
    from twisted.internet.interfaces import ITransport

    from eventengine.bridges.twisted.engine import TwistedEventEngine

__all__ = ["EndpointFactory", "EndpointProtocol"]

OnAccept = Callable[[Endpoint, MemoryAllocator], object]


class _Asked(Protocol):
    def providedBy(self, candidate: object) -> bool: ...


class EndpointProtocol(Receiver):
    """A protocol that makes an endpoint of its connection, for Twisted's own client endpoints.

        connectProtocol(HostnameEndpoint(reactor, "example.org", 80), EndpointProtocol(engine, allocator, on_connect))

    Of an SSH channel of twisted.conch's, too, on either side.

    Args:
        engine: On the reactor of the connection.
        memory_allocator: What the endpoint draws its memory from.
        on_connect: Gets the endpoint, which is then the callback's to close, once it is connected; over TLS, when the
            handshake is done. Gets UNAVAILABLE if the connection is lost before that. A connection that Twisted could
            not make is told by its Deferred alone.
    """

    def __init__(
        self,
        engine: TwistedEventEngine,
        memory_allocator: MemoryAllocator,
        on_connect: Callable[[StatusOr[Endpoint]], object],
    ) -> None:
        check_protocol(engine, memory_allocator, "on_connect", on_connect)
        # The engine's is no framework's.
        self._loop = engine._loop
        self._allocator = memory_allocator
        self._on_connect: Callable[[StatusOr[Endpoint]], object] | None = on_connect

    def makeConnection(self, transport: ITransport) -> None:
        call_later = self._loop.host.call_later
        self._made = as_pausable(
            cast("Transport", transport), lambda function: call_later(0.0, function), self.readConnectionLost
        )
        super().makeConnection(transport)  # type: ignore[no-untyped-call]  # pyright: ignore[reportUnknownMemberType]

    def connectionMade(self) -> None:
        if not cast("_Asked", ISSLTransport).providedBy(self._made):
            self._begin()

    def handshakeCompleted(self) -> None:
        self._begin()

    def connectionLost(self, reason: Failure = DONE) -> None:
        if self.port is None and self._on_connect is not None:
            on_connect, self._on_connect = self._on_connect, None
            status = Status(
                StatusCode.UNAVAILABLE,
                f"the handshake failed: {reason.getErrorMessage()}",
                number_of(reason),
            )
            self._loop.run_callback(on_connect, status)
        super().connectionLost(reason)

    def _begin(self) -> None:
        on_connect, self._on_connect = self._on_connect, None
        if on_connect is None:
            return
        if not self._loop.is_open:
            self._made.loseConnection()
            return
        endpoint = borrow_transport(self._loop, self._made, self, self._allocator)
        self._loop.run_callback(on_connect, endpoint)


classImplements(EndpointProtocol, IHandshakeListener)


class EndpointFactory(Factory):
    """A factory that makes an endpoint of each connection, for `listenTCP` and all that takes a factory.

    Args:
        engine: On the reactor of the connections.
        on_accept: As in `EventEngine.create_listener`: gets each endpoint and an allocator for the application's use.
        memory_allocator_factory: As there: a `ResourceQuota`, as a rule.
    """

    noisy = False

    def __init__(
        self, engine: TwistedEventEngine, on_accept: OnAccept, memory_allocator_factory: MemoryAllocatorFactory
    ) -> None:
        if not isinstance(engine, HostedEventEngine):
            raise TypeError(f"engine must be a TwistedEventEngine, not {type(engine).__name__}")
        check_factory(on_accept, memory_allocator_factory)
        self._engine = engine
        self._on_accept = on_accept
        self._factory = memory_allocator_factory

    def buildProtocol(self, addr: object) -> EndpointProtocol:
        allocator = self._factory.create_memory_allocator("connection")
        protocol = EndpointProtocol(self._engine, allocator, self._accepted)
        protocol.factory = self
        return protocol

    def _accepted(self, endpoint: StatusOr[Endpoint]) -> None:
        if isinstance(endpoint, Status):
            return
        try:
            self._on_accept(endpoint, self._factory.create_memory_allocator("application"))
        except BaseException:
            endpoint.close()
            raise
