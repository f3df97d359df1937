"""Who is told that a request of Tornado's has ended: what its handler holds is charged until then, also when the client
has left before."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import cast

from tornado.http1connection import HTTP1Connection
from tornado.iostream import IOStream

__all__ = ["call_when_finished", "has_ended"]


class _Ending:
    """Stands for the methods by which a request ends."""

    __slots__ = ("_find", "_functions")

    def __init__(self, request: HTTP1Connection) -> None:
        self._find = weakref.ref(request)
        self._functions: list[Callable[[], object]] = []
        request.finish = self._finish  # type: ignore[method-assign]  # where nobody calls it, it is collected with that
        request.detach = self._detach  # type: ignore[method-assign]

    @classmethod
    def of(cls, request: HTTP1Connection) -> _Ending | None:
        found = getattr(vars(request).get("finish"), "__self__", None)
        return found if isinstance(found, cls) else None

    def call_when_ended(self, function: Callable[[], object]) -> None:
        self._functions.append(function)

    def end(self) -> HTTP1Connection | None:
        functions, self._functions = self._functions, []
        for function in functions:
            function()
        return self._find()

    def _finish(self) -> None:
        request = self.end()
        if request is not None:
            type(request).finish(request)

    def _detach(self) -> IOStream:
        request = cast("HTTP1Connection", self.end())  # of which it was called
        return type(request).detach(request)


def call_when_finished(function: Callable[[], object], request: HTTP1Connection) -> None:
    """The client has left, and the handler, whose request knows its connection, goes on: with `finish`, as a rule, or
    with `detach`."""
    (_Ending.of(request) or _Ending(request)).call_when_ended(function)


def has_ended(request: HTTP1Connection) -> None:
    """It will not finish: its body was not received whole."""
    ending = _Ending.of(request)
    if ending is not None:
        ending.end()
