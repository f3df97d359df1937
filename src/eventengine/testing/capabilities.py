"""What an engine, or the machine, may be without: the cases that need it are then skipped, by its name.

Most of it the suite finds out by itself. What a test cannot tell from a fault is *declared*: who runs the suite says
that the engine is without it, by the option `--engine-without` or the fixture `without`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple, NoReturn, TypeVar

import pytest

__all__ = ["CAPABILITIES", "lacking", "needs", "needs_of"]

F = TypeVar("F", bound=Callable[..., object])


class Capability(NamedTuple):
    what: str
    is_declared: bool = False


CAPABILITIES: Final = {
    "abstract-unix": Capability("connections over unix sockets with abstract names", is_declared=True),
    "backpressure": Capability("a read waits while the quota is full, and its peer with it", is_declared=True),
    "collection": Capability("what was never closed is closed when it is collected", is_declared=True),
    "connection-limit": Capability("the number of connections of a quota is kept", is_declared=True),
    "descriptor": Capability("endpoints have a file descriptor"),
    "fork": Capability("what was made before a fork is refused in the child", is_declared=True),
    "half-close": Capability("endpoints can end their stream and read on"),
    "ipv6": Capability("connections over IPv6", is_declared=True),
    "names": Capability("names are looked up", is_declared=True),
    "resets": Capability("a reset by the peer is told apart from an end", is_declared=True),
    "reuse-port": Capability("two listeners may share a port"),
    "serial-callbacks": Capability("callbacks run one at a time, in order"),
    "socket-options": Capability("sockets have the options of their EndpointConfig", is_declared=True),
    "telemetry": Capability("endpoints tell what became of a write"),
    "unix": Capability("connections over unix sockets", is_declared=True),
}

_OF_PARTS: Final = {
    "collecting": "collection",
    "forking": "fork",
    "limits": "connection-limit",
    "names": "names",
    "options": "socket-options",
    "waiting": "backpressure",
}
"""The modules of the suite that are about one capability as a whole."""

_OF_CASES: Final[dict[Callable[..., object], str]] = {}


def needs(capability: str) -> Callable[[F], F]:
    """Marks a case that is about this one."""

    def mark(case: F) -> F:
        _OF_CASES[case] = _known(capability)
        return case

    return mark


def needs_of(case: Callable[..., object]) -> set[str]:
    """What a case is about, by itself and with its module."""
    package, _, part = case.__module__.rpartition(".")
    of_part = _OF_PARTS.get(part) if package == "eventengine.testing.conformance" else None
    return {each for each in (_OF_CASES.get(case), of_part) if each}


def lacking(capability: str, why: str = "") -> NoReturn:
    """Skips the case that calls it; `why` is told in place of what the capability is."""
    pytest.skip(f"without {_known(capability)}: {why or CAPABILITIES[capability].what}")


def _known(capability: str) -> str:
    if capability not in CAPABILITIES:
        raise ValueError(f"{capability!r} is no capability; those are {', '.join(CAPABILITIES)}")
    return capability
