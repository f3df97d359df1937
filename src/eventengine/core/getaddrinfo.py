"""Names by the system's `getaddrinfo`, on the engine's pool of threads: all that the system knows, mDNS and LDAP too.

A lookup under way cannot be stopped, only its answer be dropped. The engine's close ends the pool's threads as they
become idle.
"""

from __future__ import annotations

import socket
from functools import partial
from typing import cast

from eventengine.address import ResolvedAddress, Sockaddr
from eventengine.core.resolver import Addresses, Answer, Names, NameSource, Question, refuse_server
from eventengine.status import Status, StatusCode

__all__ = ["SystemSource", "failed_lookup", "system_source"]

_CODES = {
    socket.EAI_NONAME: StatusCode.NOT_FOUND,
    getattr(socket, "EAI_NODATA", socket.EAI_NONAME): StatusCode.NOT_FOUND,
    socket.EAI_SERVICE: StatusCode.INVALID_ARGUMENT,
    socket.EAI_MEMORY: StatusCode.RESOURCE_EXHAUSTED,
}


def system_source(names: Names, server: ResolvedAddress | None) -> NameSource:
    """A `SourceFactory`."""
    if server is not None:
        raise refuse_server(SystemSource.kind, server)
    return SystemSource(names)


class SystemSource(NameSource):
    __slots__ = ("_names",)

    kind = "system"

    def __init__(self, names: Names) -> None:
        self._names = names

    def find_addresses(self, question: Question, answer: Answer[Addresses]) -> None:
        try:
            self._names.submit(partial(self._look_up, question, answer))
        except RuntimeError as error:  # no thread to be had, or the interpreter ends
            answer(question.failed(StatusCode.UNAVAILABLE, str(error)))

    def close(self) -> None:
        """What waits for a thread is looked up in vain."""

    def _look_up(self, question: Question, answer: Answer[Addresses]) -> None:
        """On a thread of the pool."""
        try:
            result = _getaddrinfo(question)
        except Exception as error:
            result = failed_lookup(question, error)
        self._names.post_answer(answer, result)


def _getaddrinfo(question: Question) -> Addresses | Status:
    found = socket.getaddrinfo(question.host, question.port, type=socket.SOCK_STREAM)
    addresses = [ResolvedAddress(family, cast("Sockaddr", sockaddr)) for family, _, _, _, sockaddr in found]
    return list(dict.fromkeys(addresses)) or question.failed(StatusCode.NOT_FOUND, "no address")


def failed_lookup(question: Question, error: BaseException) -> Status:
    """What `getaddrinfo` raised, here or within a framework, as a status."""
    if isinstance(error, socket.gaierror):
        return question.failed(_CODES.get(error.errno, StatusCode.UNAVAILABLE), error.strerror or str(error))
    if isinstance(error, OSError):
        return Status.from_errno(error.errno or 0, f"looking up {question.text!r}")
    if isinstance(error, ValueError):  # what the encodings refuse
        return question.failed(StatusCode.INVALID_ARGUMENT, str(error))
    return question.failed(StatusCode.INTERNAL, repr(error))
