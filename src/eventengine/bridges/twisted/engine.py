"""`TwistedEventEngine`: an engine on a reactor that is there, or on one of its own in a thread."""

from __future__ import annotations

from concurrent.futures import Executor
from functools import partial
from typing import Literal, TypeAlias

from twisted.internet.main import CONNECTION_DONE
from twisted.internet.pollreactor import PollReactor
from twisted.python.failure import Failure

from eventengine.bridges.twisted.borrowed import endpoint_from_transport
from eventengine.bridges.twisted.host import TwistedHost
from eventengine.bridges.twisted.nameresolver import reactor_source
from eventengine.core.hosted import HostedEventEngine, check_allocator
from eventengine.core.resolver import SourceFactory
from eventengine.core.threaded import Gate, LoopThread
from eventengine.engine import Endpoint
from eventengine.memory import MemoryAllocator
from eventengine.resolvers import Loaders, ResolverName, choose

__all__ = ["TwistedEventEngine", "TwistedResolverName"]

TwistedResolverName: TypeAlias = ResolverName | Literal["twisted.names", "reactor"]
"""Which resolver a `TwistedEventEngine` takes."""


class TwistedEventEngine(HostedEventEngine):
    """An engine on a Twisted reactor, which may run already or later.

    Callbacks run in the reactor's thread: one that blocks stops the reactor and all I/O (`callbacks_block_polling`
    is True). With a `callback_executor` they run on its threads, concurrently, and do not.

    Closing the engine leaves the reactor running, with no reader, writer or delayed call of the engine's on it.

    Args:
        reactor: One that provides IReactorFDSet, IReactorTime and IReactorThreads: the epoll, poll and select
            reactors do, and the asyncio reactor on any loop. None is installed, or looked for.
        callback_executor: A pool for the callbacks; the engine never shuts it down.
        private_poller: Whether sockets are watched by an epoll of the engine's own, which the reactor watches as
            one descriptor; None: where that can be.
        resolver: What looks names up, see docs/names.md: `"c-ares"`, `"system"`, `"twisted.names"` or
            `"reactor"`, the reactor's own; None: c-ares where pycares is installed,
            else the system's `getaddrinfo`.

    Raises TypeError for what is no such reactor, ValueError for a resolver that there is not, ImportError for c-ares
    without pycares.
    """

    __slots__ = ()

    def __init__(
        self,
        reactor: object,
        *,
        callback_executor: Executor | None = None,
        private_poller: bool | None = None,
        resolver: TwistedResolverName | None = None,
        _thread: LoopThread | None = None,
    ) -> None:
        host = reactor if isinstance(reactor, TwistedHost) else TwistedHost(reactor)
        super().__init__(
            host,
            callback_executor=callback_executor,
            private_poller=private_poller,
            thread=_thread,
            source_factory=choose(resolver, _loaders(host)),
        )

    @classmethod
    def in_thread(
        cls,
        *,
        callback_executor: Executor | None = None,
        private_poller: bool | None = None,
        resolver: TwistedResolverName | None = None,
    ) -> TwistedEventEngine:
        """An engine on a reactor of its own, which is not installed and runs in a thread until the engine is closed.

        Code that looks for the global reactor does not find this one.
        """
        # Not the epoll reactor: nothing public closes its epoll. With a private poller there are two descriptors to
        # watch, and poll(2) is as good.
        reactor = PollReactor()
        # What a reactor keeps after its end is the pipe that wakes it.
        gate = Gate(partial(reactor.waker.connectionLost, Failure(CONNECTION_DONE)))
        thread = LoopThread(partial(_run, reactor, gate), reactor.stop, "eventengine-twisted")
        try:
            return cls(
                TwistedHost(reactor, gate),
                callback_executor=callback_executor,
                private_poller=private_poller,
                resolver=resolver,
                _thread=thread,
            )
        except BaseException:
            gate.close()
            raise

    def endpoint_from_transport(self, transport: object, memory_allocator: MemoryAllocator) -> Endpoint:
        """A connection that Twisted made or accepted, as an endpoint. The transport is then the endpoint's.

        The protocol that it served hears nothing more of it; what that has received is not read again. To begin with
        an endpoint, give Twisted an `EndpointProtocol` or an `EndpointFactory`.

        A read resumes the transport, which else is paused. A write is done when the transport has handed everything to
        the system; over TLS, and others that wrap one, up to 64 KiB may still be on their way. The errno of a lost
        connection is the nearest to what Twisted says of it.

        Args:
            transport: Of this engine's reactor: TCP, UNIX, TLS after its handshake, or any with ITransport and
                IPushProducer whose `protocol` can be set.
            memory_allocator: What the endpoint draws its memory from.

        Raises TypeError for what is no such transport; StatusError: UNAVAILABLE for one that was closed,
        FAILED_PRECONDITION for one with a producer; ClosedResourceError after close; RuntimeError on another thread
        than the reactor's, where alone this may be called.
        """
        check_allocator(memory_allocator)
        return endpoint_from_transport(self._loop, transport, memory_allocator)


def _loaders(host: TwistedHost) -> Loaders:
    """What an engine on this host can choose from besides."""
    return {"twisted.names": partial(_twisted_names, host), "reactor": partial(_reactor, host)}


def _twisted_names(host: TwistedHost) -> SourceFactory:
    from eventengine.bridges.twisted.names import twisted_names_source  # noqa: PLC0415  # loads twisted.names

    return twisted_names_source(host.reactor)


def _reactor(host: TwistedHost) -> SourceFactory:
    return reactor_source(host.reactor)


def _run(reactor: PollReactor, gate: Gate) -> None:
    # Private, and the only way: a reactor that starts says that its thread is *the* I/O thread of the process, which is
    # not ours to be, and to say so after the fact races with other reactors that start.
    reactor._registerAsIOThread = False
    try:
        reactor.run(installSignalHandlers=False)
    finally:
        gate.close()
