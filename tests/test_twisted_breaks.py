"""Twisted's ports, connections and processes where they break, or have gone, between two steps; no reactor runs."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, cast

import pytest

from eventengine import ResourceQuota

pytest.importorskip("twisted.internet", reason="twisted is not installed")

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure

from eventengine.bridges.twisted.borrowed import Receiver
from eventengine.bridges.twisted.bound import Bound
from eventengine.bridges.twisted.host import _Descriptor
from eventengine.bridges.twisted.ports import QuotaPort
from eventengine.bridges.twisted.processes import EndpointProcessProtocol
from eventengine.bridges.twisted.reactor import QuotaReactor
from eventengine.bridges.twisted.transports import QuotaServer
from eventengine.idle import Connections
from eventengine.memory import Reservation
from hand_turned import hand_turned
from loops import ReactorLoop


class Delayed:
    def cancel(self) -> None:
        pass


class HandReactor:
    """What is posted to it runs when a test says so."""

    def __init__(self, quota: ResourceQuota) -> None:
        self.readers: set[Any] = set()
        self.writers: set[Any] = set()
        self.posted: list[Callable[[], object]] = []
        self.delayed: list[Callable[[], object]] = []
        self.bound = Bound.of(quota, self)

    def addReader(self, reader: object) -> None:  # noqa: N802
        self.readers.add(reader)

    def removeReader(self, reader: object) -> None:  # noqa: N802
        self.readers.discard(reader)

    def addWriter(self, writer: object) -> None:  # noqa: N802
        self.writers.add(writer)

    def removeWriter(self, writer: object) -> None:  # noqa: N802
        self.writers.discard(writer)

    def getReaders(self) -> list[object]:  # noqa: N802
        return [*self.readers]

    def callFromThread(self, function: Callable[[], object]) -> None:  # noqa: N802
        self.posted.append(function)

    def callLater(self, delay: float, function: Callable[..., object], *_: object) -> Delayed:  # noqa: N802
        self.delayed.append(function)
        return Delayed()

    def addSystemEventTrigger(self, *_: object) -> object:  # noqa: N802
        return self

    def removeSystemEventTrigger(self, _: object) -> None:  # noqa: N802
        pass

    def turn(self) -> None:
        posted, self.posted = self.posted, []
        for function in posted:
            function()


class Home:
    def __init__(self, quota: ResourceQuota) -> None:
        self.quota = quota
        self.reactor = HandReactor(quota)
        self.bound = self.reactor.bound
        self.built: list[Protocol] = []
        self.factory = Factory()
        self.factory.noisy = False
        self.factory.buildProtocol = self._build  # type: ignore[method-assign]
        self.port: Any = QuotaPort(0, self.factory, 5, "127.0.0.1", self.reactor, self.bound)
        self.port.startListening()
        self._sockets: list[socket.socket] = []

    def _build(self, _: object) -> Protocol:
        protocol = Protocol()
        self.built.append(protocol)
        return protocol

    def connect(self) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port.number), timeout=10)
        self._sockets.append(sock)
        return sock

    def adopted(self) -> Any:
        """A connection that came by no port."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            near = socket.create_connection(listener.getsockname())
            self._sockets.append(listener.accept()[0])
        with near:  # of which the transport has a copy
            made: Any = QuotaServer._fromConnectedSocket(near.fileno(), socket.AF_INET, self.factory, self.reactor)
        return made

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()
        for protocol in self.built:
            cast("Any", protocol.transport).socket.close()
        self.port.socket.close()


@pytest.fixture
def home() -> Iterator[Home]:
    home = Home(ResourceQuota(memory="1MiB", connections=1))
    yield home
    home.close()


def looks(monkeypatch: pytest.MonkeyPatch, *found: bool) -> None:
    """What each look for room finds."""
    left = iter(found)
    monkeypatch.setattr(Connections, "may_open", lambda *_: next(left))


def test_a_port_that_finds_room_at_its_second_look_accepts_on(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.connect()
    looks(monkeypatch, False, True, True, True)
    home.port.doRead()
    assert home.port not in home.reactor.readers
    assert home.built == []
    home.reactor.turn()
    assert home.port in home.reactor.readers
    home.port.doRead()
    assert len(home.built) == 1


def test_two_ports_with_room_for_no_connection_do_not_wake_one_another(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    other: Any = QuotaPort(0, home.factory, 5, "127.0.0.1", home.reactor, home.bound)
    other.startListening()
    with closing(other.socket):
        monkeypatch.setattr(Connections, "may_open", lambda *_: False)
        home.port.doRead()
        other.doRead()
        home.quota.memory.give(home.quota.memory.take(1, 1))
        for _ in range(3):
            home.reactor.turn()
            for port in {home.port, other} & home.reactor.readers:
                port.doRead()
        assert home.reactor.posted == []
        assert home.reactor.readers == set()
        monkeypatch.undo()
        home.quota.memory.give(home.quota.memory.take(1, 1))
        home.reactor.turn()
        assert home.reactor.readers == {home.port, other}


def test_a_port_accepts_nobody_when_its_reactor_is_ending(home: Home) -> None:
    home.connect()
    home.bound._stop_waiting()
    home.port.doRead()
    assert home.built == []


def test_a_port_that_gets_a_place_when_it_waits_no_more_passes_it_on(home: Home) -> None:
    places, woken = home.quota.connections, list[int]()
    assert places.try_take(lambda: True)
    home.connect()
    home.port.doRead()
    assert home.port not in home.reactor.readers
    home.port._leave_the_lines()
    assert not places.try_take(lambda: woken.append(1))
    home.port._on_place()  # another thread was about to call it
    assert woken == [1]
    assert home.reactor.posted == []


def test_a_port_that_was_closed_while_it_waits_is_not_read_when_the_reactor_ends(home: Home) -> None:
    assert home.quota.connections.try_take(lambda: True)
    home.connect()
    home.port.doRead()
    home.port.connected = False
    home.bound._stop_waiting()
    assert home.port not in home.reactor.readers
    assert home.built == []


def test_a_connection_that_begins_to_wait_while_its_reactor_is_ending_is_told_that_it_is_lost() -> None:
    lost: list[Failure] = []
    quota = ResourceQuota(memory="1MiB")
    reactor: Any = QuotaReactor(quota)
    factory = Factory()
    factory.noisy = False
    protocol: Any = Protocol()
    protocol.connectionLost = lost.append
    factory.buildProtocol = lambda _: protocol  # type: ignore[assignment,method-assign]
    near, far = socket.socketpair()
    with near, far, closing(ReactorLoop(reactor, lambda: getattr(reactor, "_poller", near).close())):
        reactor.adoptStreamConnection(near.fileno(), socket.AF_UNIX, factory)
        ended: Deferred[None] = Deferred()
        reactor.addSystemEventTrigger("before", "shutdown", lambda: ended)
        reactor.fireSystemEvent("shutdown")
        with Reservation(quota.memory, quota.memory.take(1 << 20, 1 << 20)):
            protocol.transport.doRead()
            assert protocol.transport not in reactor.getReaders()
            ended.callback(None)
    assert [failure.type for failure in lost] == [ConnectionLost]
    assert quota.memory.used == 0


def test_a_connection_whose_room_comes_between_two_looks_reads_on(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = home.adopted()
    transport.startReading()
    found = iter([False, True])
    monkeypatch.setattr(type(home.quota.memory), "has_room", property(lambda _: next(found, True)))
    home.bound.memory.is_tight = True
    transport.doRead()
    home.bound.memory.is_tight = False
    assert transport not in home.reactor.readers
    home.reactor.turn()
    assert transport in home.reactor.readers


def test_a_connection_that_gets_room_when_it_was_lost_passes_it_on(home: Home) -> None:
    transport = home.adopted()
    transport._wait_for_room()
    transport.disconnected = True
    home.reactor.posted.clear()
    assert transport._on_room()
    assert home.reactor.posted == []


def test_a_connection_that_has_nothing_unsent_can_be_cut(home: Home) -> None:
    transport = home.adopted()
    before = home.quota.memory.used
    transport.cut()
    assert home.reactor.delayed == [transport.connectionLost]
    assert home.quota.memory.used == before


def test_a_connection_that_is_to_be_aborted_later_is_so_once(home: Home) -> None:
    transport = home.adopted()
    aborted: list[object] = []
    transport.abortConnection = lambda: aborted.append(transport)
    transport.abort_later()
    transport.abort_later()
    [abort] = home.reactor.delayed
    abort()
    assert aborted == [transport]
    assert not home.bound._ends


def test_an_adopted_connection_keeps_its_own_address(home: Home) -> None:
    transport = home.adopted()
    assert transport.getHost() is transport.getHost()
    assert home.port.last_host is None


def test_what_a_transport_says_before_it_is_an_endpoint_is_nobody_s() -> None:
    receiver = Receiver()
    receiver.dataReceived(b"abc")
    receiver.readConnectionLost()
    receiver.connectionLost()
    assert receiver.port is None


def test_what_a_process_says_before_it_begins_or_after_its_end_is_nobody_s() -> None:
    started: list[object] = []
    with (
        hand_turned() as (engine, _),
        closing(ResourceQuota().create_memory_allocator("process")) as allocator,
    ):
        protocol = EndpointProcessProtocol(cast("Any", engine), allocator, started.append)
        protocol.outReceived(b"abc")
        protocol.inConnectionLost()
        protocol.outConnectionLost()
        protocol.processEnded(cast("Any", None))
        assert started == []


def test_an_event_that_comes_when_its_descriptor_is_watched_no_more_is_nobody_s() -> None:
    told: list[int] = []

    class Host:
        def forget(self, descriptor: object) -> None:
            raise AssertionError("it is forgotten already")

    descriptor = _Descriptor(cast("Any", Host()), 0, told.append)
    descriptor.doRead()
    descriptor.on_ready = None
    descriptor.doRead()
    descriptor.doWrite()
    descriptor.connectionLost(cast("Any", None))
    assert len(told) == 1
