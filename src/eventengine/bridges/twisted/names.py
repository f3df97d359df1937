"""Names by `twisted.names`, which asks DNS servers itself.

It opens a UDP port for each query, and a connection where an answer was cut; what it waits with are the reactor's
delayed calls. It has no way to give up, so it is given a reactor that keeps account of these three, and closing the
source takes them off the real one. It also is kept from the global reactor, which its TCP protocol would look for.
"""

from __future__ import annotations

import socket
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Protocol, TypeVar, cast

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.error import CannotListenError, ConnectError
from twisted.names import client, dns, hosts
from twisted.names.error import AuthoritativeDomainError, DNSNameError, DomainError
from twisted.python.failure import Failure
from twisted.python.filepath import FilePath

from eventengine.address import ResolvedAddress
from eventengine.core.address_order import in_order
from eventengine.core.resolver import Addresses, Answer, Names, NameSource, Question, SourceFactory
from eventengine.engine import SRVRecord, StatusOr
from eventengine.status import Status, StatusCode

__all__ = ["TwistedNamesSource", "twisted_names_source"]

T = TypeVar("T")

TIMEOUTS: Final = (1, 3, 11)
"""Seconds before `twisted.names` asks again, and in the end gives up."""

_HOSTS: Final = FilePath("/etc/hosts")
_RESOLV_CONF: Final = Path("/etc/resolv.conf")


class _DelayedCall(Protocol):
    def active(self) -> bool: ...
    def cancel(self) -> None: ...


class _Port(Protocol):
    def stopListening(self) -> object: ...


class _Connector(Protocol):
    def disconnect(self) -> object: ...


class _Reactor(Protocol):
    """What is used of the reactor."""

    def seconds(self) -> float: ...
    def callLater(self, delay: float, callable: Callable[..., object], *args: object) -> _DelayedCall: ...
    def listenUDP(self, port: int, protocol: object, interface: str, maxPacketSize: int) -> _Port: ...
    def connectTCP(self, host: str, port: int, factory: object, timeout: float) -> _Connector: ...


class _Accounting:
    """A reactor that knows what was asked of it, and can end it."""

    __slots__ = ("_calls", "_connectors", "_ports", "_reactor")

    def __init__(self, reactor: _Reactor) -> None:
        self._reactor = reactor
        self._calls = weakref.WeakSet[_DelayedCall]()
        self._ports = weakref.WeakSet[_Port]()
        self._connectors = weakref.WeakSet[_Connector]()

    def seconds(self) -> float:
        return self._reactor.seconds()

    def callLater(self, delay: float, callable: Callable[..., object], *args: object) -> _DelayedCall:
        call = self._reactor.callLater(delay, callable, *args)
        self._calls.add(call)
        return call

    def listenUDP(self, port: int, protocol: object, interface: str = "", maxPacketSize: int = 8192) -> _Port:
        # Theirs is a port picked at random, and one after another where it is taken, whose sockets are left for the
        # garbage collector. The kernel picks at random, too, and a free one.
        listening = self._reactor.listenUDP(0, protocol, interface, maxPacketSize)
        self._ports.add(listening)
        return listening

    def connectTCP(self, host: str, port: int, factory: object, timeout: float = 10) -> _Connector:
        connector = self._reactor.connectTCP(host, port, factory, timeout)
        self._connectors.add(connector)
        return connector

    def end(self) -> None:
        for call in list(self._calls):
            if call.active():
                call.cancel()
        for port in list(self._ports):
            port.stopListening()
        for connector in list(self._connectors):
            connector.disconnect()


class _HostsFile(Protocol):
    def searchFileForAll(self, hostsFile: FilePath[str], name: bytes) -> list[str]: ...


class _CannotListen(Protocol):
    socketError: OSError


class _OverTCP(client.DNSClientFactory):
    """Theirs makes protocols that look for the global reactor."""

    def __init__(self, resolver: client.Resolver, reactor: _Accounting) -> None:
        super().__init__(resolver, TIMEOUTS[-1])  # type: ignore[no-untyped-call]
        self._resolver = resolver
        self._reactor = reactor
        self.noisy = False

    def buildProtocol(self, addr: object) -> dns.DNSProtocol:
        protocol = dns.DNSProtocol(self._resolver, reactor=self._reactor)
        protocol.factory = self
        return protocol


class _Name(Protocol):
    name: bytes


class _Record(Protocol):
    address: bytes
    data: list[bytes]
    priority: int
    weight: int
    port: int
    target: _Name


class _Header(Protocol):
    type: int
    payload: _Record


Section = Sequence[_Header]
Found = tuple[Section, Section, Section]
Lookup = Callable[[str], "Deferred[Found]"]


class _Resolver(Protocol):
    factory: object

    def lookupAddress(self, name: str) -> Deferred[Found]: ...
    def lookupIPV6Address(self, name: str) -> Deferred[Found]: ...
    def lookupService(self, name: str) -> Deferred[Found]: ...
    def lookupText(self, name: str) -> Deferred[Found]: ...


def twisted_names_source(reactor: object) -> SourceFactory:
    """The factory for engines on `reactor`, which must provide IReactorUDP and IReactorTCP, too, as Twisted's do."""
    return partial(TwistedNamesSource, cast("_Reactor", reactor))


class TwistedNamesSource(NameSource):
    """/etc/hosts, then A and AAAA records in two queries. No search domains."""

    __slots__ = ("_names", "_reactor", "_resolver", "_server")

    kind = "twisted.names"

    def __init__(self, reactor: _Reactor, names: Names, server: ResolvedAddress | None) -> None:
        self._reactor = _Accounting(reactor)
        self._names = names
        self._server = server
        self._resolver: _Resolver | None = None

    def find_addresses(self, question: Question, answer: Answer[Addresses]) -> None:
        name = question.host.lower().removesuffix(".")
        known = cast("_HostsFile", hosts).searchFileForAll(_HOSTS, name.encode("ascii"))
        if not known and (name == "localhost" or name.endswith(".localhost")):  # RFC 6761
            known = ["::1", "127.0.0.1"]
        if known:
            answer(in_order(ResolvedAddress.tcp(host, question.port) for host in known))
            return
        resolver = self._get_resolver()
        both = _Both(self._names, question, answer)
        self._ask(question, resolver.lookupAddress, partial(_addresses, question, dns.A, socket.AF_INET), both.add)
        self._ask(
            question,
            resolver.lookupIPV6Address,
            partial(_addresses, question, dns.AAAA, socket.AF_INET6),
            both.add,
        )

    def find_services(self, question: Question, answer: Answer[list[SRVRecord]]) -> None:
        self._ask(
            question, self._get_resolver().lookupService, _services, partial(self._names.post_answer, answer)
        )

    def find_texts(self, question: Question, answer: Answer[list[str]]) -> None:
        self._ask(question, self._get_resolver().lookupText, _texts, partial(self._names.post_answer, answer))

    def close(self) -> None:
        self._resolver = None
        self._reactor.end()

    def _get_resolver(self) -> _Resolver:
        if self._resolver is None:
            servers = [(self._server.host, self._server.port)] if self._server else _servers_of_system()
            resolver = client.Resolver(servers=servers, timeout=TIMEOUTS, reactor=self._reactor)
            self._resolver = cast("_Resolver", resolver)
            self._resolver.factory = _OverTCP(resolver, self._reactor)
        return self._resolver

    def _ask(
        self,
        question: Question,
        look_up: Lookup,
        read: Callable[[Section], list[T]],
        answer: Callable[[StatusOr[list[T]]], None],
    ) -> None:
        def read_answers(found: Found) -> StatusOr[list[T]]:
            return read(found[0]) or question.failed(StatusCode.NOT_FOUND, "there is no such record")

        def on_failure(failure: Failure) -> None:
            error = cast("BaseException", failure.value)  # pyright: ignore[reportUnknownMemberType]
            answer(_failed(question, error))

        # What `read_answers` raises is an answer, too: a lookup without one would keep its place for good.
        maybeDeferred(look_up, question.host).addCallback(read_answers).addCallbacks(answer, on_failure)


class _Both:
    """What both queries for a name have found."""

    __slots__ = ("_answer", "_names", "_question", "_results")

    def __init__(self, names: Names, question: Question, answer: Answer[Addresses]) -> None:
        self._names = names
        self._question = question
        self._answer = answer
        self._results: list[StatusOr[Addresses]] = []

    def add(self, result: StatusOr[Addresses]) -> None:
        self._results.append(result)
        if len(self._results) == 2:
            self._names.post_answer(self._answer, self._merge())

    def _merge(self) -> StatusOr[Addresses]:
        """One that failed leaves what the other found. A name has no address only when both say so."""
        statuses = [result for result in self._results if isinstance(result, Status)]
        found = [address for result in self._results if not isinstance(result, Status) for address in result]
        return in_order(found) or min(statuses, key=lambda status: status.code is StatusCode.NOT_FOUND)


def _addresses(question: Question, kind: int, family: socket.AddressFamily, answers: Section) -> Addresses:
    found = [each.payload.address for each in answers if each.type == kind]
    return [ResolvedAddress.tcp(socket.inet_ntop(family, packed), question.port) for packed in found]


def _services(answers: Section) -> list[SRVRecord]:
    """A target of "." says that there is no such service (RFC 2782)."""
    found = [each.payload for each in answers if each.type == dns.SRV]
    records = [SRVRecord(_text_of(each.target), each.port, each.priority, each.weight) for each in found]
    return [record for record in records if record.host not in ("", ".")]


def _text_of(name: _Name) -> str:
    """As zone files write it, and c-ares: a server may send any bytes."""
    return "".join(chr(byte) if 0x20 <= byte < 0x7F else f"\\{byte:03}" for byte in name.name)


def _texts(answers: Section) -> list[str]:
    found = [each.payload.data for each in answers if each.type == dns.TXT]
    return [b"".join(data).decode("utf-8", "surrogateescape") for data in found]


def _failed(question: Question, error: BaseException) -> Status:
    if isinstance(error, DNSNameError):
        return question.failed(StatusCode.NOT_FOUND, "there is no such name")
    if isinstance(error, DeferredTimeoutError):
        return question.failed(StatusCode.DEADLINE_EXCEEDED, "no server answered")
    if isinstance(error, CannotListenError):
        return Status.from_errno(
            cast("_CannotListen", error).socketError.errno or 0, f"looking up {question.text!r}"
        )
    if isinstance(error, DomainError | AuthoritativeDomainError | ConnectError):
        return question.failed(StatusCode.UNAVAILABLE, f"the server answered with a {type(error).__name__}")
    return question.failed(StatusCode.INTERNAL, repr(error))


def _servers_of_system() -> list[tuple[str, int]]:
    try:
        lines = [line.split() for line in _RESOLV_CONF.read_text("utf-8", "replace").splitlines()]
    except OSError:
        lines = []
    found = [(words[1], 53) for words in lines if len(words) > 1 and words[0] == "nameserver"]
    return found or [("127.0.0.1", 53)]  # resolv.conf(5)
