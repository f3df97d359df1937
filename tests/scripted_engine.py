"""An engine without sockets: a test says which attempt succeeds, fails or hangs, which timer fires, and on what thread.

It keeps to the interface: what is answered was outstanding until then, and is answered once. Time stands still but
when a timer fires; `calls` sees each call of the engine just before it returns, as another thread might.
"""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from eventengine import (
    ClosedResourceError,
    ConnectionHandle,
    DNSResolver,
    Endpoint,
    EventEngine,
    ResolvedAddress,
    Status,
    StatusCode,
    TaskHandle,
)

REFUSED = Status(StatusCode.UNAVAILABLE, "refused", 111)
_CLOSED = Status(StatusCode.CANCELLED, "the engine was closed")


class ScriptedEndpoint(Endpoint):
    def __init__(self, address: ResolvedAddress) -> None:
        self.closed = 0
        self._address = address

    def close(self) -> None:
        self.closed += 1

    def read(self, *_: Any, **__: Any) -> bool:
        raise NotImplementedError

    write = read  # type: ignore[assignment]
    telemetry_info = read  # type: ignore[assignment]

    @property
    def peer_address(self) -> ResolvedAddress:
        return self._address

    local_address = peer_address


class Outstanding(NamedTuple):
    """Something that an engine has yet to answer."""

    kind: str  # "connect", "timer", "run", "lookup"
    when: float
    address: ResolvedAddress | None
    answer: Callable[..., object]


class ScriptedEngine(EventEngine):
    callbacks_block_polling = False

    def __init__(self, found: list[ResolvedAddress] | Status | None = None) -> None:
        self.now = 0.0
        self.closed = False
        self.found = found
        self.outstanding: dict[int, Outstanding] = {}
        self.started: list[tuple[float, ResolvedAddress]] = []
        self.endpoints: list[ScriptedEndpoint] = []
        self.resolvers: list[ScriptedResolver] = []
        self.calls: Callable[[str], object] = lambda name: None
        self._next = itertools.count(1).__next__
        self._calling_back = threading.local()

    # What a test does

    def keys(self, kind: str) -> list[int]:
        """Those of a kind, in the order of their making, timers in that of their times."""
        found = [(each.when, key) for key, each in [*self.outstanding.items()] if each.kind == kind]
        return [key for _, key in sorted(found)]

    def succeed(self, key: int) -> bool:
        return self._answer(key, lambda it: self._connected(it.address))

    def fail(self, key: int, status: Status = REFUSED) -> bool:
        return self._answer(key, lambda it: status)

    def resolve(self, key: int) -> bool:
        return self._answer(key, lambda it: self.found)

    def fire(self, key: int) -> bool:
        """Lets time pass until this timer, or closure of `run`, is due."""
        it = self.outstanding.pop(key, None)
        if it is None:
            return False
        self.now = max(self.now, it.when)
        self._call_back(it.answer)
        return True

    def fire_until(self, now: float) -> None:
        """Fires what is due until then, and goes there."""
        while (keys := self.keys("timer")) and self.outstanding[keys[0]].when <= now:
            self.fire(keys[0])
        self.now = now

    def step(self, kind: str, key: int, success: bool) -> bool:
        if kind == "connect":
            return self.succeed(key) if success else self.fail(key)
        return self.resolve(key) if kind == "lookup" else self.fire(key)

    def _connected(self, address: ResolvedAddress | None) -> ScriptedEndpoint:
        assert address is not None
        endpoint = ScriptedEndpoint(address)
        self.endpoints.append(endpoint)
        return endpoint

    def _answer(self, key: int, result: Callable[[Outstanding], object]) -> bool:
        it = self.outstanding.pop(key, None)
        if it is not None:
            self._call_back(it.answer, result(it))
        return it is not None

    def _call_back(self, function: Callable[..., object], *args: object) -> None:
        self._calling_back.now = True
        try:
            function(*args)
        finally:
            self._calling_back.now = False

    # The interface

    def _add(self, kind: str, answer: Callable[..., object], when: float = 0.0, address: Any = None) -> int:
        if self.closed:
            raise ClosedResourceError("the engine was closed")
        key = self._next()
        self.outstanding[key] = Outstanding(kind, when, address, answer)
        return key

    def run(self, closure: Callable[[], object]) -> None:
        self._add("run", closure)
        self.calls("run")

    def run_after(self, delay: float, closure: Callable[[], object]) -> TaskHandle:
        key = self._add("timer", closure, self.now + delay)
        self.calls("run_after")
        return TaskHandle(key)

    def cancel(self, handle: TaskHandle) -> bool:
        return self.outstanding.pop(handle, None) is not None

    def connect(self, on_connect: Any, address: Any, config: Any, memory_allocator: Any, timeout: float) -> Any:
        key = self._add("connect", on_connect, address=address)
        self.started.append((self.now, address))
        self.calls("connect")
        return ConnectionHandle(key)

    def cancel_connect(self, handle: ConnectionHandle) -> bool:
        return self.outstanding.pop(handle, None) is not None

    def get_dns_resolver(self, *, dns_server: str | None = None) -> ScriptedResolver:
        if self.closed:
            raise ClosedResourceError("the engine was closed")
        resolver = ScriptedResolver(self)
        self.resolvers.append(resolver)
        self.calls("get_dns_resolver")
        return resolver

    def is_worker_thread(self) -> bool:
        return getattr(self._calling_back, "now", False)

    def close(self) -> None:
        self.closed = True
        for key, it in [*self.outstanding.items()]:
            if it.kind != "run" and self.outstanding.pop(key, None) and it.kind != "timer":
                self.answer_as_closed(it)
        for resolver in self.resolvers:
            resolver.closed = True

    def answer_as_closed(self, it: Outstanding) -> None:
        self.outstanding[self._next()] = Outstanding("run", 0.0, None, partial(it.answer, _CLOSED))

    def create_listener(self, *_: Any) -> Any:
        raise NotImplementedError


class ScriptedResolver(DNSResolver):
    def __init__(self, engine: ScriptedEngine) -> None:
        self.closed = False
        self.was_closed = False
        self._engine = engine
        self._asked: list[int] = []

    def lookup_hostname(self, on_resolve: Callable[..., object], name: str, default_port: str = "") -> None:
        if self.closed:
            raise ClosedResourceError("the resolver was closed")
        self._asked.append(self._engine._add("lookup", on_resolve))
        self._engine.calls("lookup_hostname")

    def close(self) -> None:
        self.closed = self.was_closed = True
        for key in self._asked:
            it = self._engine.outstanding.pop(key, None)
            if it is not None:
                self._engine.answer_as_closed(it)

    def lookup_srv(self, *_: Any) -> None:
        raise NotImplementedError

    lookup_txt = lookup_srv


def tcp_addresses(count: int, port: int = 1) -> list[ResolvedAddress]:
    return [ResolvedAddress(socket.AF_INET, (f"192.0.2.{number}", port)) for number in range(1, count + 1)]
