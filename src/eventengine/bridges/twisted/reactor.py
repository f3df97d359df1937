"""A reactor under which every TCP, TLS and UNIX connection is charged to one quota: `install`, `--reactor=eventengine`.

It is Twisted's own reactor for the platform (epoll on Linux); only what listens and connects gives other transports
(see `transports`). `Bounded` has these methods for that reactor and for `BoundedReactor`, which bounds some of the
connections of a reactor that is not ours.
"""

# Most of Twisted's own transports and of its web server has no types, so what is called on them has none.
# mypy: allow-untyped-calls
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import os
import select
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from twisted.internet import main
from twisted.internet.error import ReactorAlreadyInstalledError, UnsupportedAddressFamily
from twisted.logger import Logger
from twisted.python.usage import UsageError
from zope.interface import (  # pyright: ignore[reportMissingTypeStubs]  # there are none
    directlyProvides,
    providedBy,
)

from eventengine.bridges.twisted.bound import Bound
from eventengine.bridges.twisted.ports import QuotaConnector, QuotaPort, QuotaUNIXConnector, QuotaUNIXPort
from eventengine.bridges.twisted.transports import QuotaServer, QuotaUNIXServer
from eventengine.quota import ResourceQuota, as_quota, check_served_size

if TYPE_CHECKING:
    from twisted.internet.posixbase import PosixReactorBase as _Reactor
elif hasattr(select, "epoll"):
    from twisted.internet.epollreactor import EPollReactor as _Reactor
elif hasattr(select, "kqueue"):
    from twisted.internet.kqreactor import KQueueReactor as _Reactor
else:
    from twisted.internet.selectreactor import SelectReactor as _Reactor

__all__ = ["BoundedReactor", "QuotaReactor", "install"]

_PREFIX: Final = "EVENTENGINE_"
_MEMORY: Final = f"{_PREFIX}MEMORY"
_CONNECTIONS: Final = f"{_PREFIX}CONNECTIONS"

_log: Final = Logger()


class Bounded:
    """What listens and connects, with the signatures of IReactorTCP and IReactorUNIX. TLS needs nothing: Twisted puts
    it above what these give."""

    bound: Bound

    def listenTCP(self, port: Any, factory: Any, backlog: int = 50, interface: str = "") -> QuotaPort:
        made = QuotaPort(port, factory, backlog, interface, self.bound.reactor, self.bound)
        made.startListening()
        return made

    def connectTCP(
        self, host: Any, port: Any, factory: Any, timeout: float = 30, bindAddress: Any = None
    ) -> QuotaConnector:
        made = QuotaConnector(self.bound, host, port, factory, timeout, bindAddress, self.bound.reactor)
        made.connect()
        return made

    def listenUNIX(
        self, address: Any, factory: Any, backlog: int = 50, mode: int = 0o666, wantPID: Any = 0
    ) -> QuotaUNIXPort:
        made = QuotaUNIXPort(address, factory, backlog, mode, self.bound.reactor, wantPID, self.bound)
        made.startListening()
        return made

    def connectUNIX(
        self, address: Any, factory: Any, timeout: float = 30, checkPID: Any = 0
    ) -> QuotaUNIXConnector:
        made = QuotaUNIXConnector(self.bound, address, factory, timeout, self.bound.reactor, checkPID)
        made.connect()
        return made


class QuotaReactor(Bounded, _Reactor):  # type: ignore[misc]  # Twisted's connectTCP is generic in the protocol
    """Twisted's reactor for this platform, whose connections are charged to `quota`.

    Args:
        quota: A ResourceQuota, or its memory alone, as in "64MiB"; None: counted, without a limit.

    Raises TypeError or ValueError for what is no quota, and for one of less than 128 KiB.
    """

    def __init__(self, quota: ResourceQuota | str | int | None = None) -> None:
        self.bound = Bound.of(ResourceQuota("twisted") if quota is None else as_quota(quota, "twisted"), self)
        self.bound.is_turned = True
        super().__init__()

    def startRunning(self, installSignalHandlers: bool = True) -> None:
        """Twisted's, with a line in the log that says what is bounded."""
        self.bound.tell()
        super().startRunning(installSignalHandlers)

    def doIteration(self, delay: float | None) -> None:
        """Twisted's turn, with what is written before and within it sent."""
        self.bound.send()
        super().doIteration(delay)
        self.bound.send()

    @property
    def quota(self) -> ResourceQuota:
        return self.bound.quota

    # Adopting goes through these class methods, which are private, and have the reactor as their argument.

    def adoptStreamPort(self, fileDescriptor: int, addressFamily: int, factory: Any) -> Any:
        if addressFamily not in self._supportedAddressFamilies:
            raise UnsupportedAddressFamily(addressFamily)
        made: QuotaPort | QuotaUNIXPort
        if addressFamily == socket.AF_UNIX:
            made = QuotaUNIXPort._fromListeningDescriptor(self, fileDescriptor, factory)
        else:
            made = QuotaPort._fromListeningDescriptor(self, fileDescriptor, addressFamily, factory)
        made.startListening()
        return made

    def adoptStreamConnection(self, fileDescriptor: int, addressFamily: int, factory: Any) -> Any:
        if addressFamily not in self._supportedAddressFamilies:
            raise UnsupportedAddressFamily(addressFamily)
        if addressFamily == socket.AF_UNIX:
            return QuotaUNIXServer._fromConnectedSocket(fileDescriptor, factory, self)
        return QuotaServer._fromConnectedSocket(fileDescriptor, addressFamily, factory, self)


class BoundedReactor(Bounded):
    """`reactor`, as Twisted's own endpoints use it, but what it listens on and connects to is charged to `quota`."""

    def __init__(self, reactor: Any, quota: ResourceQuota | str | int) -> None:
        self.bound = Bound.of(as_quota(quota, "twisted"), reactor)
        directlyProvides(self, providedBy(reactor))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.bound.reactor, name)

    def listenSSL(
        self, port: Any, factory: Any, contextFactory: Any, backlog: int = 50, interface: str = ""
    ) -> QuotaPort:
        from twisted.protocols.tls import TLSMemoryBIOFactory  # noqa: PLC0415  # needs pyOpenSSL, which not all have

        return self.listenTCP(port, TLSMemoryBIOFactory(contextFactory, False, factory), backlog, interface)


def install(quota: ResourceQuota | str | int | None = None) -> QuotaReactor:
    """Makes a `QuotaReactor` the program's reactor, as Twisted's own `install` functions do.

    Args:
        quota: As for QuotaReactor. None: what the environment says, `EVENTENGINE_MEMORY` (as in `64MiB`) and
            `EVENTENGINE_CONNECTIONS` (a number); without these all is counted, and nothing limited. Another variable
            whose name begins with `EVENTENGINE_` is told in the log.

    Raises ValueError for a variable that does not parse, and ReactorAlreadyInstalledError when the program has a
    reactor already.
    """
    installed = sys.modules.get("twisted.internet.reactor")
    if installed is not None:
        raise ReactorAlreadyInstalledError(
            f"the program has a {type(installed).__name__} already; "
            "call install before anything imports twisted.internet.reactor"
        )
    reactor = QuotaReactor(_from_environment() if quota is None else quota)
    main.installReactor(reactor)
    return reactor


class _BadVariableError(ValueError, UsageError):
    """Which `twist` shows as a line."""


def _from_environment() -> ResourceQuota:
    for name in sorted(os.environ):
        if name.startswith(_PREFIX) and name not in (_MEMORY, _CONNECTIONS):
            _log.warn(
                "{name} is set, and no such variable is known: {memory} and {connections} are",
                name=name,
                memory=_MEMORY,
                connections=_CONNECTIONS,
            )
    return ResourceQuota(
        "twisted",
        memory=_parse_variable(_MEMORY, check_served_size),
        connections=_parse_variable(_CONNECTIONS, _parse_count),
    )


def _parse_count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text[:20])):
        raise ValueError("a number of 1 or more is needed")
    return int(text)


def _parse_variable(name: str, parse: Callable[[str], int]) -> int | None:
    text = os.environ.get(name, "").strip()
    if not text:
        return None
    try:
        return parse(text)
    except ValueError as error:
        raise _BadVariableError(f"{name} is {text!r}: {error}") from None
