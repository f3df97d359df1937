"""Names by the reactor's own name resolver, `IReactorPluggableNameResolver`."""

from __future__ import annotations

import socket
from typing import Protocol, cast

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IResolutionReceiver
from zope.interface import classImplements  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

from eventengine.address import ResolvedAddress
from eventengine.core.resolver import Addresses, Answer, Names, NameSource, Question, SourceFactory, refuse_server
from eventengine.status import StatusCode

__all__ = ["ReactorSource", "reactor_source"]


class _Resolver(Protocol):
    def resolveHostName(
        self,
        resolutionReceiver: object,
        hostName: str,
        portNumber: int,
        addressTypes: object,
        transportSemantics: str,
    ) -> object: ...


class _Reactor(Protocol):
    @property
    def nameResolver(self) -> _Resolver: ...


def reactor_source(reactor: object) -> SourceFactory:
    """The factory for engines on `reactor`, which must have a `nameResolver`, too, as Twisted's have."""

    def make(names: Names, server: ResolvedAddress | None) -> NameSource:
        if server is not None:
            raise refuse_server(ReactorSource.kind, server)
        return ReactorSource(cast("_Reactor", reactor), names)

    return make


class ReactorSource(NameSource):
    """What the reactor's `nameResolver` says: `getaddrinfo` in the reactor's threads, unless another one was installed.

    It does not tell why it has found nothing.
    """

    __slots__ = ("_names", "_reactor")

    kind = "reactor"

    def __init__(self, reactor: _Reactor, names: Names) -> None:
        self._reactor = reactor
        self._names = names

    def find_addresses(self, question: Question, answer: Answer[Addresses]) -> None:
        receiver = _Receiver(self._names, question, answer)
        self._reactor.nameResolver.resolveHostName(receiver, question.host, question.port, None, "TCP")

    def close(self) -> None:
        """A lookup in a thread cannot be stopped."""


class _Receiver:
    __slots__ = ("__weakref__", "_addresses", "_answer", "_names", "_question")

    def __init__(self, names: Names, question: Question, answer: Answer[Addresses]) -> None:
        self._names = names
        self._question = question
        self._answer = answer
        self._addresses: Addresses = []

    def resolutionBegan(self, resolutionInProgress: object) -> None:
        """It cannot be cancelled."""

    def addressResolved(self, address: object) -> None:
        if isinstance(address, IPv6Address):
            sockaddr = (address.host, address.port, address.flowInfo, int(address.scopeID))
            self._addresses.append(ResolvedAddress(socket.AF_INET6, sockaddr))
        elif isinstance(address, IPv4Address):
            self._addresses.append(ResolvedAddress(socket.AF_INET, (address.host, address.port)))

    def resolutionComplete(self) -> None:
        found = list(dict.fromkeys(self._addresses))
        none = self._question.failed(StatusCode.NOT_FOUND, "the reactor's resolver has found no address")
        self._names.post_answer(self._answer, found or none)


# Not its decorator: zope has no types, and the class would lose its own.
classImplements(_Receiver, IResolutionReceiver)
