"""Names by Tornado's `Resolver`, whichever `Resolver.configure` has chosen."""

from __future__ import annotations

import asyncio
from typing import cast

from tornado.netutil import Resolver

from eventengine.address import ResolvedAddress, Sockaddr
from eventengine.core.getaddrinfo import failed_lookup
from eventengine.core.resolver import Addresses, Answer, Names, NameSource, Question, refuse_server
from eventengine.engine import StatusOr
from eventengine.status import StatusCode

__all__ = ["TornadoSource", "tornado_source"]


def tornado_source(names: Names, server: ResolvedAddress | None) -> NameSource:
    """A `SourceFactory`."""
    if server is not None:
        raise refuse_server(TornadoSource.kind, server)
    return TornadoSource(names)


class TornadoSource(NameSource):
    """What Tornado's resolver says, by default `getaddrinfo` in the asyncio loop's default executor."""

    __slots__ = ("_names", "_resolver", "_tasks")

    kind = "tornado"

    def __init__(self, names: Names) -> None:
        self._names = names
        self._resolver: Resolver | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def find_addresses(self, question: Question, answer: Answer[Addresses]) -> None:
        resolver = self._resolver
        if resolver is None:
            resolver = self._resolver = Resolver()
        task = asyncio.ensure_future(self._look_up(resolver, question, answer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _look_up(self, resolver: Resolver, question: Question, answer: Answer[Addresses]) -> None:
        result: StatusOr[Addresses]
        try:
            found = await resolver.resolve(question.host, question.port)
            addresses = [ResolvedAddress(family, cast("Sockaddr", sockaddr)) for family, sockaddr in found]
            result = list(dict.fromkeys(addresses)) or question.failed(StatusCode.NOT_FOUND, "no address")
        except Exception as error:
            result = failed_lookup(question, error)
        self._names.post_answer(answer, result)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        resolver, self._resolver = self._resolver, None
        if resolver is not None:
            resolver.close()
