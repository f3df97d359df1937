"""`Names`: what a DNS server of a simulated network knows, and the source that asks it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from eventengine.address import ResolvedAddress
from eventengine.core.resolver import DEADLINE, Addresses, Answer, NameSource, Question
from eventengine.core.resolver import Names as EngineNames
from eventengine.engine import SRVRecord, StatusOr
from eventengine.status import Status, StatusCode

if TYPE_CHECKING:
    from eventengine.testing.simulated.simulation import Simulation

__all__ = ["Names", "NoServer", "simulated_source"]

T = TypeVar("T")


class Names:
    """Names and what is answered for them; a name that is not known gets NOT_FOUND. A later answer replaces one."""

    def __init__(self) -> None:
        self._hosts: dict[str, list[str]] = {"localhost": ["127.0.0.1", "::1"]}
        self._services: dict[str, list[SRVRecord]] = {}
        self._texts: dict[str, list[str]] = {}
        self._failing: dict[str, Status | None] = {}

    def add(self, name: str, *hosts: str) -> None:
        """A name with these IP addresses, in the order in which to try them."""
        self._hosts[name] = [ResolvedAddress.tcp(host, 0).host for host in hosts]

    def add_services(self, name: str, *records: SRVRecord) -> None:
        self._services[name] = list(records)

    def add_texts(self, name: str, *texts: str) -> None:
        self._texts[name] = list(texts)

    def fail(self, name: str, status: Status) -> None:
        """Whoever asks for this name, for whatever record, gets this status."""
        self._failing[name] = status

    def silence(self, name: str) -> None:
        """Whoever asks for this name gets no answer."""
        self._failing[name] = None

    def find_addresses(self, question: Question) -> StatusOr[Addresses] | None:
        hosts = self._hosts.get(question.host, ())
        return self._find(question, [ResolvedAddress.tcp(host, question.port) for host in hosts])

    def find_services(self, question: Question) -> StatusOr[list[SRVRecord]] | None:
        return self._find(question, self._services.get(question.host, []))

    def find_texts(self, question: Question) -> StatusOr[list[str]] | None:
        return self._find(question, self._texts.get(question.host, []))

    def _find(self, question: Question, found: list[T]) -> StatusOr[list[T]] | None:
        """None: no answer."""
        if question.host in self._failing:
            return self._failing[question.host]
        return list(found) or question.failed(StatusCode.NOT_FOUND, "no such name")


class NoServer(Names):
    """Where no DNS server is."""

    def _find(self, question: Question, found: list[T]) -> Status:
        return question.failed(StatusCode.UNAVAILABLE, "there is no DNS server at this address (simulated)")


class _SimulatedSource(NameSource):
    __slots__ = ("_asked_by", "_closed", "_names", "_simulation")

    kind = "simulated"

    def __init__(self, simulation: Simulation, asked_by: EngineNames, names: Names) -> None:
        self._simulation = simulation
        self._asked_by = asked_by
        self._names = names
        self._closed = False

    def find_addresses(self, question: Question, answer: Answer[Addresses]) -> None:
        self._ask(question, answer, self._names.find_addresses)

    def find_services(self, question: Question, answer: Answer[list[SRVRecord]]) -> None:
        self._ask(question, answer, self._names.find_services)

    def find_texts(self, question: Question, answer: Answer[list[str]]) -> None:
        self._ask(question, answer, self._names.find_texts)

    def close(self) -> None:
        self._closed = True

    def _ask(self, question: Question, answer: Answer[T], find: Callable[[Question], StatusOr[T] | None]) -> None:
        simulation, conditions = self._simulation, self._simulation.conditions
        subject = f"?{question.host}"
        delay = simulation.draws.seconds(subject, "latency", *conditions.latency)
        found = find(question)
        if simulation.draws.happens(subject, "fail_lookup", conditions.fail_lookup):
            silent = simulation.draws.happens(subject, "silence", 0.5)
            found = None if silent else question.failed(StatusCode.UNAVAILABLE, "the server failed (simulated)")
        if found is None:
            delay, found = DEADLINE, question.failed(StatusCode.DEADLINE_EXCEEDED, "no answer (simulated)")
        simulation.call_at(simulation.now + delay, partial(self._answer, subject, answer, found))

    def _answer(self, subject: str, answer: Answer[T], found: StatusOr[T]) -> None:
        if not self._closed:
            self._simulation.note(subject, str(found) if isinstance(found, Status) else "found")
            self._asked_by.post_answer(answer, found)


def simulated_source(simulation: Simulation, asked_by: EngineNames, server: ResolvedAddress | None) -> NameSource:
    """A `SourceFactory`, but for the first argument."""
    return _SimulatedSource(simulation, asked_by, simulation.network.names_of(server))
