"""System calls that fail, or do less than they were asked for, at one place of the code at a time.

`Faults.at(site, action, ...)` has the next calls made there act so, as many as there are actions; all others are real.
A site is where the call stands and what it calls, as in "core.reading ReadingHalf._receive recv_into", so that the
peers of a test, in the same process, are left alone. Leaving the block asserts that each action was taken.

`sites_of` finds all such places in the source.
"""

from __future__ import annotations

import ast
import os
import select
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import eventengine
from eventengine.core import poller
from eventengine.core.hosted import HostedEventEngine

Action = Callable[..., Any]

SOCKET_CALLS = (
    "__init__", "accept", "bind", "connect", "connect_ex", "getpeername", "getsockname", "getsockopt", "listen",
    "recv", "recv_into", "send", "sendmsg", "set_inheritable", "setblocking", "setsockopt", "shutdown",
)  # fmt: skip
OS_CALLS = ("close", "dup", "fstat", "pipe", "read", "set_blocking", "set_inheritable", "stat", "unlink", "write")
EPOLL_CALLS = ("modify", "poll", "register", "unregister")
HOST_CALLS = ("unwatch", "watch")

ROOT = Path(eventengine.__file__).parent


def failing(number: int) -> Action:
    def act(real: Action, *args: Any, **options: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return act


def returning(value: object) -> Action:
    """For `connect_ex`, and `getsockopt` of SO_ERROR: how they tell of an error."""
    return lambda real, *args, **options: value


def calling_and(act: Action) -> Action:
    """Does what was asked for, and then tells what `act` tells."""

    def then(real: Action, *args: Any, **options: Any) -> Any:
        real(*args, **options)
        return act(real, *args, **options)

    return then


def short(size: int) -> Action:
    """No more than so many bytes are read, or sent of the first part."""

    def act(real: Action, sock: socket.socket, data: Any, *args: Any) -> Any:
        if isinstance(data, int):
            return real(sock, min(size, data), *args)
        if isinstance(data, list):
            return real(sock, [data[0][:size]], *args)
        view = memoryview(data)[:size]
        return real(sock, view) if args == (len(data),) else real(sock, view, *args)

    return act


class Faults:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self._planned: dict[str, deque[Action]] = {}
        self._always: dict[str, Action] = {}
        for name in SOCKET_CALLS:
            monkeypatch.setattr(socket.socket, name, self._faulty(name, getattr(socket.socket, name)))
        for name in OS_CALLS:
            monkeypatch.setattr(os, name, self._faulty(name, getattr(os, name)))
        monkeypatch.setattr(poller, "select", _Select(self))

    def on_host(self, engine: HostedEventEngine) -> None:
        """Its host's calls, too."""
        host = type(engine._loop.host)
        for name in HOST_CALLS:
            self._monkeypatch.setattr(host, name, self._faulty(name, getattr(host, name)))

    @contextmanager
    def at(self, site: str, *actions: Action) -> Iterator[deque[Action]]:
        """Gives those that are left to be taken."""
        left = self._planned[site] = deque(actions)
        try:
            yield left
            assert not left, f"{len(left)} of {len(actions)} faults did not happen: nothing is called at {site}"
        finally:
            del self._planned[site]

    def whenever(self, site: str, action: Action) -> None:
        """All calls made there act so, for the rest of the test."""
        self._always[site] = action

    def act(self, caller: Any, name: str, real: Action, *args: Any, **options: Any) -> Any:
        module = str(caller.f_globals.get("__name__"))
        site = f"{module.removeprefix('eventengine.')} {caller.f_code.co_qualname} {name}"
        left = self._planned.get(site)
        if left:
            return left.popleft()(real, *args, **options)
        if site in self._always:
            return self._always[site](real, *args, **options)
        return real(*args, **options)

    def _faulty(self, name: str, real: Action) -> Action:
        def call(*args: Any, **options: Any) -> Any:
            return self.act(sys._getframe(1), name, real, *args, **options)

        return call


class _Select:
    """The module `select` as the poller sees it, whose epoll can fail."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        return getattr(select, name)

    def epoll(self) -> Any:
        return _Epoll(self._faults, self._faults.act(sys._getframe(1), "epoll", select.epoll))


class _Epoll:
    def __init__(self, faults: Faults, real: Any) -> None:
        self._real = real
        for name in EPOLL_CALLS:
            setattr(self, name, faults._faulty(name, getattr(real, name)))
        self.fileno, self.close = real.fileno, real.close


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    return Faults(monkeypatch)


def sites_of(*folders: str) -> set[str]:
    """Every place in these parts of the package that calls the system."""
    found: set[str] = set()
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found |= {f"{module} {site}" for site in _sites(ast.parse(path.read_text("utf-8")), ())}
    return found


_OWNERS = {
    **dict.fromkeys(SOCKET_CALLS, ("sock", "given", "looked_at", "probe")),
    **dict.fromkeys(EPOLL_CALLS, ("_epoll",)),
    **dict.fromkeys(HOST_CALLS, ("host",)),
}


def _sites(node: ast.AST, inside: tuple[str, ...]) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from _sites(child, (*inside, child.name))
            continue
        if isinstance(child, ast.Call):
            call = _system_call(child.func)
            if call is not None:
                yield f"{'.'.join(inside)} {call}"
        yield from _sites(child, inside)


def _system_call(function: ast.expr) -> str | None:
    if not isinstance(function, ast.Attribute):
        return None
    owner, name = ast.unparse(function.value), function.attr
    if (owner, name) in (("socket", "socket"), ("select", "epoll")):
        return "__init__" if name == "socket" else name
    if owner == "os":
        return name if name in OS_CALLS else None
    return name if any(word in owner.lower() for word in _OWNERS.get(name, ())) else None
