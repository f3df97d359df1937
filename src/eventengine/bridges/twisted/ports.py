"""Ports and connectors whose connections are charged.

A port leaves connections in the backlog while the quota's memory is used to 0.99, or as many as its `connections` allow
are open; it accepts on when there is room. `numberAccepts` is how many Twisted's port accepts at a time: no more than
there is surely room for, since what is left for reading would go to connections, and none of them could go on.

It waits for memory in bulk: where there is room to read, but for no connection, ports that were woken one by the other
would wake one another for ever.
"""

# Most of Twisted's own transports and of its web server has no types, so what is called on them has none.
# mypy: allow-untyped-calls
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet import tcp, unix

from eventengine.bridges.twisted.bound import COST, TLS_COST, Bound
from eventengine.bridges.twisted.charged import is_tls_factory
from eventengine.bridges.twisted.transports import QuotaClient, QuotaServer, QuotaUNIXClient, QuotaUNIXServer

if TYPE_CHECKING:
    from twisted.python.failure import Failure

    _Port = tcp.Port
else:
    _Port = object

__all__ = ["QuotaConnector", "QuotaPort", "QuotaUNIXConnector", "QuotaUNIXPort"]


class _Bounded(_Port):
    """What both kinds of port have besides Twisted's."""

    bound: Bound
    _accepted = 0
    _waits = False

    def startListening(self) -> None:
        super().startListening()
        self.bound.tell()

    def doRead(self) -> None:
        bound = self.bound
        if bound.is_ending:
            return
        places = bound.quota.connections
        if places.size is None:
            if self._has_memory():
                super().doRead()
            return
        while self._has_memory():
            if not places.try_take(self._on_place):
                bound.crowded.add()
                self._wait()
                return
            before = self._accepted
            self.numberAccepts = 1
            super().doRead()
            if self._accepted == before:
                places.give()
                return

    def _has_memory(self) -> bool:
        """Whether there is room for another; else it waits."""
        bound = self.bound
        memory = bound.memory
        size = memory.size
        if size is None:
            return True
        cost = TLS_COST + bound.handshake if is_tls_factory(self.factory) else COST
        most = 1 if memory.is_tight else size * 19 // (100 * cost)  # which fill it from 0.8 to 0.99
        self.numberAccepts = max(1, min(self.numberAccepts, most))
        if bound.connections.may_open(cost):
            return True
        bound.crowded.add()
        self._wait()
        memory.add_bulk_waiter(self._on_memory)
        if bound.connections.may_open(cost):  # there was room between the two looks
            self._on_memory()
        return False

    def has_accepted(self) -> None:
        """By a connection, for which a place was taken."""
        self._accepted += 1

    def give_place(self) -> None:
        """By a connection that was closed."""
        connections = self.bound.quota.connections
        if connections.size is not None:
            connections.give()

    def _wait(self) -> None:
        self._waits = True
        self.stopReading()
        self.bound.wait(self)

    def _on_place(self) -> None:
        """Any thread."""
        if not self._waits or not self.connected or self.disconnecting:
            self._pass_on()
        else:
            self.bound.call_soon_threadsafe(self._accept_on)

    def _on_memory(self) -> None:
        """Any thread. Whether it is enough for a connection, is seen then."""
        self.bound.memory.remove_bulk_waiter(self._on_memory)
        self.bound.call_soon_threadsafe(self._accept_on)

    def _accept_on(self) -> None:
        if self._waits and self.connected and not self.disconnecting:
            self.stop_waiting()
        else:
            self._pass_on()

    def stop_waiting(self) -> None:
        """By `Bound` when the reactor ends, too, which finds it as a reader."""
        self._leave_the_lines()
        if self.connected:
            self.startReading()

    def _leave_the_lines(self) -> None:
        if self._waits:
            self._waits = False
            self.bound.memory.remove_bulk_waiter(self._on_memory)
            self.bound.quota.connections.cancel_wait(self._on_place)
            self.bound.waits_no_more(self)

    def _pass_on(self) -> None:
        self.bound.quota.connections.wake_one()

    def connectionLost(self, reason: Failure) -> None:
        self._leave_the_lines()
        super().connectionLost(reason)


class QuotaPort(_Bounded, tcp.Port):
    """A port whose connections are charged; `reactor.bound` says to what.

    Attributes:
        number: That on which it listens, and has listened when it listens no more.
        last_host: The address at which a client has reached it that was asked for last.
    """

    transport = QuotaServer
    number: int
    last_host: Any = None

    def __init__(
        self, port: Any, factory: Any, backlog: Any, interface: Any, reactor: Any, bound: Bound | None = None
    ) -> None:
        self.bound = bound or reactor.bound
        super().__init__(port, factory, backlog, interface, reactor)

    def startListening(self) -> None:
        super().startListening()
        self.number = self.getHost().port


class QuotaUNIXPort(_Bounded, unix.Port):
    """The same on a unix socket."""

    transport = QuotaUNIXServer

    def __init__(
        self,
        name: Any,
        factory: Any,
        backlog: int = 50,
        mode: int = 0o666,
        reactor: Any = None,
        want_pid: Any = 0,
        bound: Bound | None = None,
    ) -> None:
        self.bound = bound or reactor.bound
        super().__init__(name, factory, backlog, mode, reactor, want_pid)


class QuotaConnector(tcp.Connector):
    """`_makeTransport` is private, and the only place where Twisted says of what class a client's connection is."""

    def __init__(self, bound: Bound, *arguments: Any) -> None:
        self.bound = bound
        super().__init__(*arguments)

    def _makeTransport(self) -> QuotaClient:
        return QuotaClient(self.host, self.port, self.bindAddress, self, self.reactor)


class QuotaUNIXConnector(unix.Connector):
    """The same on a unix socket."""

    def __init__(self, bound: Bound, *arguments: Any) -> None:
        self.bound = bound
        super().__init__(*arguments)

    def _makeTransport(self) -> QuotaUNIXClient:  # type: ignore[override]  # Twisted's own differs as much
        return QuotaUNIXClient(self.address, self, self.reactor, self.checkPID)
