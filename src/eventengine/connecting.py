"""`connect_target`: from a target to an endpoint, on any engine, by Happy Eyeballs (RFC 8305).

    target -> look up its name -> addresses, families in turn -> attempts, 250 ms apart -> the first that succeeds

It is written on the interface alone. Callbacks may come on several threads at once, and before the call that they
were given to has returned to a caller on another thread.

Rules:

1. `_on_connect` holds the callback, once. Who takes it out, which is atomic, settles how the whole ends: an attempt
   that succeeds, the one that is the last to fail, a lookup that finds nothing, the timeout, or `cancel`. All others
   find it gone. So of two attempts that succeed at once, one is told, and the other's endpoint is closed by who
   brings it; nobody ever sees that one.
2. What is begun on the engine (attempts, timers, the resolver) is noted in `_begun` with what undoes it. Who settles
   the end sees to it that all of it is undone, and then tells. Who notes something looks afterwards whether the end
   came first, and if so undoes it itself. Taking a note out is atomic, so each is undone once.
3. No lock is held while the engine or the application is called, and `cancel` takes none, as it may be called by a
   garbage collection that interrupts anybody.
4. A timer of an attempt that is not the newest does nothing: one that failed meanwhile has started the next at once,
   and the 250 ms count from there. See `attempts`.
5. While the end is not settled, a lookup or an attempt is outstanding. So the engine's close, which drops timers, but
   answers those, is told, too: as CANCELLED.
6. `_on_connect` is called from within a callback of the engine, never from within `connect_target`. What fails at once
   goes by way of `EventEngine.run`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from functools import partial
from inspect import iscoroutinefunction
from typing import Final

from eventengine.address import ResolvedAddress
from eventengine.attempts import Attempts, cut
from eventengine.config import EndpointConfig
from eventengine.engine import DNSResolver, Endpoint, EventEngine, StatusOr
from eventengine.memory import MemoryAllocator
from eventengine.status import ClosedResourceError, Status, StatusCode, StatusError
from eventengine.target import Target

__all__ = ["TargetConnection", "connect_target"]

ATTEMPT_DELAY: Final = 0.25
"""Seconds between the starts of two attempts, "Connection Attempt Delay" in RFC 8305, section 5."""


def connect_target(
    engine: EventEngine,
    on_connect: Callable[[StatusOr[Endpoint]], object],
    target: Target | str,
    config: EndpointConfig,
    memory_allocator: MemoryAllocator,
    timeout: float,
    *,
    resolver: DNSResolver | None = None,
) -> TargetConnection:
    """Connects to a target: looks its name up, and tries its addresses until one answers.

    The addresses are tried in the order of the target or the resolver, but with families in turn, beginning with that
    of the first. Attempts start 250 ms apart; when one fails, the next starts at once. The first connection that is
    made wins, and the other attempts are cancelled (RFC 8305).

    Args:
        engine: What connects. Its own resolver is asked, or, where the target names a DNS server, that server.
        on_connect: Called exactly once, never before this returns on the same thread, unless `cancel` returned True.
            Gets the endpoint, which is then the callback's to close; or DEADLINE_EXCEEDED after `timeout`; what the
            resolver said, where the name has no address; UNIMPLEMENTED, where the engine cannot ask the DNS server
            that the target names; CANCELLED when the engine was closed. When every address has failed it gets one
            status: the code, and the errno, that all have in common, else UNAVAILABLE and none, or DEADLINE_EXCEEDED
            if an attempt has; its message gives each address with what came of it, or the first 16.
        target: What to connect to; text is read by `Target.parse`, without a port as 443.
        config: For the sockets.
        memory_allocator: For the endpoint.
        timeout: Seconds for all of it, the lookup included.
        resolver: Looks up the name instead, and stays open; the target's own DNS server is then not asked. One that
            the call makes, it closes.

    Raises ValueError for a target that does not parse and a timeout that is negative, infinite or not a number,
    TypeError for arguments of another type, ClosedResourceError when the engine or the resolver was closed.

    Not promised: that an address is tried again, or that the order of addresses is the one of RFC 6724, which is the
    resolver's to see to.

    May be called from any thread.
    """
    if not callable(on_connect):
        raise TypeError(f"on_connect must be callable, not {type(on_connect).__name__}")
    if iscoroutinefunction(on_connect):
        raise TypeError(
            "on_connect is a coroutine function; a callback is a plain function, which may start a task"
        )
    if isinstance(target, str):
        target = Target.parse(target)
    if not callable(getattr(engine, "connect", None)):  # one that stands before another need not be derived
        raise TypeError(f"engine must be an EventEngine, not {type(engine).__name__}")
    for name, value, wanted, allowed in (
        ("target", target, Target, "a str or a Target"),
        ("config", config, EndpointConfig, "an EndpointConfig"),
        (
            "memory_allocator",
            memory_allocator,
            MemoryAllocator,
            "what ResourceQuota.create_memory_allocator makes",
        ),
    ):
        if not isinstance(value, wanted):
            raise TypeError(f"{name} must be {allowed}, not {type(value).__name__}")
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise TypeError(f"timeout must be a number of seconds, not {type(timeout).__name__}")
    if not 0 <= timeout < math.inf:
        raise ValueError(f"timeout is {timeout}; it must be a finite number of seconds, 0 or more")
    connection = TargetConnection(engine, on_connect, target, config, memory_allocator, timeout)
    connection._begin(resolver)
    return connection


class TargetConnection:
    """A connection in the making. Made by `connect_target`; it goes on though nobody keeps it."""

    __slots__ = (
        "_allocator",
        "_attempts",
        "_begun",
        "_config",
        "_engine",
        "_next_note",
        "_on_connect",
        "_target",
        "_timeout",
    )

    def __init__(
        self,
        engine: EventEngine,
        on_connect: Callable[[StatusOr[Endpoint]], object],
        target: Target,
        config: EndpointConfig,
        memory_allocator: MemoryAllocator,
        timeout: float,
    ) -> None:
        self._engine = engine
        self._on_connect = [on_connect]
        self._target = target
        self._config = config
        self._allocator = memory_allocator
        self._timeout = timeout
        self._begun: dict[int, Callable[[], object]] = {}
        self._next_note = itertools.count().__next__
        self._attempts = Attempts()

    @property
    def target(self) -> Target:
        return self._target

    def cancel(self) -> bool:
        """True: `on_connect` will never be called and all attempts are over. False: it was or will be called, or this
        was cancelled before. May be called from any thread.
        """
        if self._take() is None:
            return False
        self._undo_all()
        return True

    def __repr__(self) -> str:
        return f"<TargetConnection to {self._target}{'' if self._on_connect else ', over'}>"

    # The end

    def _take(self) -> Callable[[StatusOr[Endpoint]], object] | None:
        """Rule 1."""
        try:
            return self._on_connect.pop()
        except IndexError:
            return None

    def _end(self, result: StatusOr[Endpoint]) -> None:
        """In a callback of the engine."""
        on_connect = self._take()
        if on_connect is not None:
            try:
                self._undo_all()
            finally:
                on_connect(result)
        elif not isinstance(result, Status):
            result.close()

    def _note(self, undo: Callable[[], object]) -> None:
        """Rule 2."""
        note = self._next_note()
        self._begun[note] = undo
        if not self._on_connect and self._begun.pop(note, None) is not None:
            undo()

    def _undo_all(self) -> None:
        while self._begun:
            try:
                _, undo = self._begun.popitem()
            except KeyError:
                return
            undo()

    # The beginning

    def _begin(self, resolver: DNSResolver | None) -> None:
        """On the caller's thread."""
        try:
            self._run_after(self._timeout, self._on_timeout)
            if self._target.addresses:
                self._start(self._target.addresses)
            else:
                self._look_up(resolver)
        except ClosedResourceError:
            if self.cancel():
                raise  # else the end came meanwhile, and was told
        except BaseException:
            self.cancel()
            raise

    def _run_after(self, delay: float, closure: Callable[[], object]) -> None:
        handle = self._engine.run_after(delay, closure)
        self._note(partial(self._engine.cancel, handle))

    def _look_up(self, resolver: DNSResolver | None) -> None:
        if resolver is None:
            server = self._target.dns_server
            try:
                resolver = (
                    self._engine.get_dns_resolver()
                    if server is None
                    else self._engine.get_dns_resolver(dns_server=server)
                )
            except StatusError as error:
                self._engine.run(partial(self._end, error.status))
                return
            self._note(resolver.close)
        resolver.lookup_hostname(self._on_resolve, self._target.name)

    def _on_resolve(self, found: StatusOr[list[ResolvedAddress]]) -> None:
        if isinstance(found, Status):
            self._end(found)
        elif not found:
            self._end(Status(StatusCode.NOT_FOUND, f"looking up {self._target.name!r}: no address"))
        else:
            self._go_on(partial(self._start, found))

    def _on_timeout(self) -> None:
        told = self._attempts.told()
        doing = "connecting to" if told or self._target.addresses else "looking up"
        message = f"{doing} {cut(str(self._target))}: the timeout has passed{'; ' if told else ''}{told}"
        self._end(Status(StatusCode.DEADLINE_EXCEEDED, message))

    # The attempts

    def _start(self, addresses: Iterable[ResolvedAddress]) -> None:
        self._attempts.add(addresses)
        self._start_next()

    def _start_next(self, after: int | None = None) -> None:
        """Starts the next attempt, unless `after` is given and another has done so meanwhile."""
        attempt = self._attempts.take(after) if self._on_connect else None
        if attempt is None:
            return
        engine = self._engine
        on_connect = partial(self._on_attempt, attempt.number)
        handle = engine.connect(on_connect, attempt.address, self._config, self._allocator, self._timeout)
        self._note(partial(engine.cancel_connect, handle))
        if not attempt.is_last:
            self._run_after(ATTEMPT_DELAY, partial(self._go_on, partial(self._start_next, attempt.number)))

    def _on_attempt(self, number: int, result: StatusOr[Endpoint]) -> None:
        if not isinstance(result, Status):
            self._end(result)
        elif self._attempts.fail(number, result):
            self._end(self._attempts.outcome(str(self._target)))
        else:
            self._go_on(self._start_next)

    def _go_on(self, step: Callable[[], object]) -> None:
        """Takes a step in a callback, where there is nobody to raise to."""
        try:
            step()
        except ClosedResourceError as error:
            self._end(self._failed(StatusCode.CANCELLED, str(error)))
        except Exception as error:
            self._end(self._failed(StatusCode.INTERNAL, repr(error)))

    def _failed(self, code: StatusCode, why: str) -> Status:
        return Status(code, f"connecting to {cut(str(self._target))}: {why}")
