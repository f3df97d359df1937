"""The transports of a bounded reactor: Twisted's own kinds, charged; those that were accepted count as connections.

`_handshakeDone` says whether the handshake of Twisted's TLS is over: Twisted has no public name for that.
tests/test_twisted_transports.py finds it when that changes.
"""

# Most of Twisted's own transports and of its web server has no types, so what is called on them has none.
# mypy: allow-untyped-calls
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from twisted.internet import main, tcp, unix

from eventengine.bridges.twisted.bound import COST, TLS_COST
from eventengine.bridges.twisted.charged import Charged, is_tls

if TYPE_CHECKING:
    from twisted.python.failure import Failure

__all__ = ["QuotaClient", "QuotaServer", "QuotaUNIXClient", "QuotaUNIXServer"]


class Accepted(Charged):
    """What a server's connections have besides.

    Attributes:
        read_at: When it last received something, or somewhat later.
        new_since: When the wait for its first bytes, or for those of its handshake, began; without TLS 0.0 after them.
    """

    __slots__ = ("_cost", "new_since", "read_at")

    server: Any

    def _begin(self, protocol: Any, server: Any, reactor: Any) -> None:
        self._prepare((server or reactor).bound)  # one that was adopted has no port
        if server is not None:
            server.has_accepted()
        self.read_at = self.new_since = self.bound.now()
        self._cost = TLS_COST + self.bound.handshake if is_tls(protocol) else COST
        self.bound.connections.opened(self._cost)

    def doRead(self) -> Any:
        self.read_at = now = self.bound.now()
        if self._cost == COST:
            if self.TLS:  # by startTLS
                self._cost = TLS_COST + self.bound.handshake
                self.bound.connections.grew(self._cost - COST)
                self.new_since = now
            else:
                self.new_since = 0.0
        result = super().doRead()
        if self._cost > TLS_COST and getattr(self.protocol, "_handshakeDone", True):
            self.bound.connections.shrank(self._cost - TLS_COST)
            self._cost = TLS_COST
        return result

    def connectionLost(self, reason: Failure) -> None:
        is_first = hasattr(self, "socket")  # it may be called twice, and Twisted looks for the same
        try:
            super().connectionLost(reason)
        finally:
            self._count_out()
            self.bound.has_ended(self)
            if is_first and self.server is not None:
                self.server.give_place()

    @property
    def is_shaking(self) -> bool:
        return self._cost > TLS_COST

    def silent_since(self) -> float | None:
        if not self._cost:  # it is being closed: over TLS, that may take its peer's answer
            return None
        is_busy = not self.connected or self.disconnecting or self._waits or self._left or not self._reads
        return None if is_busy else self.read_at

    def stuck_since(self) -> float | None:
        return self.read_at if self._waits and self._cost else None

    def close_as_idle(self) -> None:
        self._count_out()
        if is_tls(self.protocol):
            self.protocol.loseConnection()
        else:
            self.loseConnection()
        self.abort_later()

    def abort_later(self) -> None:
        """For who has written its last."""
        self.bound.abort_later(self)

    def _count_out(self) -> None:
        cost, self._cost = self._cost, 0
        if cost:
            self.bound.connections.closed(cost)


class _OverTCP(tcp.Connection):
    """What a socket takes goes to it directly, without Twisted's loop for EINTR, which Python has, too."""

    __slots__ = ()

    def writeSomeData(self, data: Any) -> Any:
        piece = data if len(data) <= self.SEND_LIMIT else memoryview(data)[: self.SEND_LIMIT]
        try:
            return self.socket.send(piece)
        except OSError as error:
            return 0 if error.errno in (errno.EWOULDBLOCK, errno.ENOBUFS) else main.CONNECTION_LOST


class QuotaServer(Accepted, _OverTCP, tcp.Server):
    """A connection that a port has accepted, or that was adopted."""

    __slots__ = ("_host",)

    @property
    def repstr(self) -> str:
        """What `repr` gives. Twisted makes this text for each connection and keeps it, 90 bytes: more than is added
        here to a connection that is idle."""
        kept: str | None = self.__dict__.get("repstr")
        return kept or f"<{type(self.protocol).__name__} #{self.sessionno} on {self.server.number}>"

    @repstr.setter
    def repstr(self, text: str) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        if self.server is None:  # it was adopted
            self.__dict__["repstr"] = text

    def __init__(self, sock: Any, protocol: Any, client: Any, server: Any, sessionno: int, reactor: Any) -> None:
        self._host: Any = None
        self._begin(protocol, server, reactor)
        super().__init__(sock, protocol, client, server, sessionno, reactor)

    def getHost(self) -> Any:
        """Twisted's, which asks the system each time, and twisted.web for each request: a twentieth of a small one. It
        is that of the connection before, as a rule, and one object then."""
        if self._host is None:
            self._host = super().getHost()
            if self.server is not None:
                if self._host == self.server.last_host:
                    self._host = self.server.last_host
                else:
                    self.server.last_host = self._host
        return self._host


class QuotaUNIXServer(Accepted, unix.Server):
    """The same on a unix socket."""

    def __init__(self, sock: Any, protocol: Any, client: Any, server: Any, sessionno: int, reactor: Any) -> None:
        self._begin(protocol, server, reactor)
        super().__init__(sock, protocol, client, server, sessionno, reactor)


class QuotaClient(Charged, _OverTCP, tcp.Client):
    """A connection that a connector makes."""

    def __init__(self, host: Any, port: Any, bind_address: Any, connector: Any, reactor: Any) -> None:
        self._prepare(connector.bound)
        super().__init__(host, port, bind_address, connector, reactor)


class QuotaUNIXClient(Charged, unix.Client):
    """The same on a unix socket."""

    def __init__(self, filename: Any, connector: Any, reactor: Any, check_pid: Any) -> None:
        self._prepare(connector.bound)
        super().__init__(filename, connector, reactor, check_pid)
