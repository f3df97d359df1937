"""Listeners: accepting and closing."""

from __future__ import annotations

import gc
import socket
import threading
from contextlib import ExitStack, closing, suppress

import pytest

from eventengine.address import ResolvedAddress
from eventengine.config import EndpointConfig
from eventengine.engine import Endpoint, Listener
from eventengine.memory import MemoryAllocator
from eventengine.quota import ResourceQuota
from eventengine.status import Status
from eventengine.testing.application import Accepting, Application, Callback, Ledger
from eventengine.testing.capabilities import needs
from eventengine.testing.oracle import TIMEOUT, connect, receive_all
from eventengine.testing.scenes import no_descriptors_left

ANY_PORT = ResolvedAddress.tcp("127.0.0.1", 0)
ALONE = EndpointConfig(reuse_port=False)


def _new_listener(app: Application, config: EndpointConfig | None = None) -> tuple[Listener, Callback[Status]]:
    """A listener that nobody connects to, and its `on_shutdown`."""
    on_shutdown = Callback[Status](app.ledger)
    listener = app.call(
        lambda: app.engine.create_listener(
            lambda endpoint, allocator: endpoint.close(), on_shutdown, config or EndpointConfig(), app.quota
        )
    )
    return listener, on_shutdown


def _is_refused(address: ResolvedAddress) -> bool:
    try:
        connect(address).close()
    except (ConnectionRefusedError, FileNotFoundError):
        return True
    return False


def _serve_one(app: Application, accepting: Accepting, address: ResolvedAddress) -> None:
    """One connection through, and closed."""
    with connect(address) as peer, closing(accepting.next()) as endpoint:
        peer.sendall(b"ping")
        assert app.receive(endpoint, 4) == b"ping"


# Accepting.


def test_a_burst_of_three_hundred_connections(app: Application) -> None:
    accepting = app.listen()
    with ExitStack() as stack:
        peers = [stack.enter_context(connect(accepting.address)) for _ in range(300)]
        endpoints = [stack.enter_context(closing(accepting.next())) for _ in peers]
        assert {endpoint.peer_address.sockaddr for endpoint in endpoints} == {p.getsockname() for p in peers}


def test_connections_are_accepted_that_came_before_the_start_or_left_at_once(app: Application) -> None:
    accepted = threading.Semaphore(0)
    on_shutdown = Callback[Status](app.ledger)

    def on_accept(endpoint: Endpoint, allocator: MemoryAllocator) -> None:
        endpoint.close()
        accepted.release()

    listener = app.engine.create_listener(on_accept, on_shutdown, EndpointConfig(), app.quota)
    address = ANY_PORT.with_port(listener.bind(ANY_PORT))
    for _ in range(10):
        connect(address).close()
    listener.start()
    for _ in range(10):
        assert accepted.acquire(timeout=TIMEOUT)
    listener.close()


def test_what_on_accept_raises_closes_that_connection_alone(app: Application, ledger: Ledger) -> None:
    on_shutdown = Callback[Status](ledger)
    ports: list[int] = []

    def on_accept(endpoint: Endpoint, allocator: MemoryAllocator) -> None:
        ports.append(endpoint.peer_address.port)
        raise LookupError("on_accept raises")

    listener = app.engine.create_listener(on_accept, on_shutdown, EndpointConfig(), app.quota)
    address = ANY_PORT.with_port(listener.bind(ANY_PORT))
    listener.start()
    for _ in range(3):
        with connect(address) as peer:
            assert receive_all(peer) == b""
            assert peer.getsockname()[1] in ports
    listener.close()


class _BrokenFactory:
    def __init__(self, quota: ResourceQuota) -> None:
        self._quota = quota
        self.broken = True

    def create_memory_allocator(self, name: str) -> MemoryAllocator:
        if self.broken:
            raise LookupError("the factory raises")
        return self._quota.create_memory_allocator(name)


def test_an_allocator_factory_that_raises_closes_that_connection_alone(app: Application, ledger: Ledger) -> None:
    factory = _BrokenFactory(app.quota)
    accepted, on_shutdown = Callback[Endpoint](ledger), Callback[Status](ledger)
    listener = app.engine.create_listener(
        lambda endpoint, allocator: accepted(endpoint), on_shutdown, EndpointConfig(), factory
    )
    address = ANY_PORT.with_port(listener.bind(ANY_PORT))
    listener.start()
    with connect(address) as peer:
        assert receive_all(peer) == b""
    factory.broken = False
    with connect(address), closing(accepted.result()):
        listener.close()


def test_a_socket_hook_that_raises_closes_an_accepted_connection_alone(app: Application) -> None:
    calls: list[int] = []

    def hook(sock: socket.socket) -> None:
        calls.append(1)
        if len(calls) == 2:  # the first was for the listening socket
            raise LookupError("no such mark")

    accepting = app.listen(config=EndpointConfig(socket_hook=hook))
    with connect(accepting.address) as peer:
        assert receive_all(peer) == b""
    _serve_one(app, accepting, accepting.address)


def test_without_a_descriptor_left_a_listener_loses_no_connection(app: Application) -> None:
    accepting = app.listen()
    with ExitStack() as stack:
        peers = [stack.enter_context(socket.socket(accepting.address.family)) for _ in range(20)]
        with no_descriptors_left():
            for peer in peers:
                peer.settimeout(TIMEOUT)
                peer.connect(accepting.address.sockaddr)
            for _ in range(5):  # turns of the loop, in which it finds that there is none
                app.on_loop(lambda: None)
            assert accepting.accepted.empty()
        for n, peer in enumerate(peers):
            peer.sendall(bytes([n]))
        endpoints = [stack.enter_context(closing(accepting.next())) for _ in peers]
        assert sorted(app.receive(endpoint, 1) for endpoint in endpoints) == [bytes([n]) for n in range(20)]
        _serve_one(app, accepting, accepting.address)


# Closing.


def test_closing_leaves_accepted_connections_and_frees_the_address(anywhere: Application) -> None:
    accepting = anywhere.listen(config=ALONE)
    with connect(accepting.address) as peer, closing(accepting.next()) as endpoint:
        anywhere.call(accepting.listener.close)
        assert accepting.on_shutdown.result() == Status.OK
        assert _is_refused(accepting.address)
        peer.sendall(b"still there")
        assert anywhere.receive(endpoint, 11) == b"still there"
        again = anywhere.listen(accepting.address, config=ALONE)
        _serve_one(anywhere, again, accepting.address)


@pytest.mark.parametrize("stage", ["made", "bound", "started"])
def test_on_shutdown_is_called_once_however_often_a_listener_is_closed(anywhere: Application, stage: str) -> None:
    listener, on_shutdown = _new_listener(anywhere)
    if stage != "made":
        anywhere.call(lambda: listener.bind(ANY_PORT))
    if stage == "started":
        anywhere.call(listener.start)
    anywhere.call(listener.close)
    anywhere.call(listener.close)
    assert on_shutdown.result() == Status.OK


def test_eight_threads_may_close_a_listener_at_once(app: Application) -> None:
    for _ in range(20):
        accepting = app.listen()
        together = threading.Barrier(8)

        def close(listener: Listener = accepting.listener, together: threading.Barrier = together) -> None:
            together.wait(TIMEOUT)
            listener.close()

        threads = [threading.Thread(target=close) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT)
        assert accepting.on_shutdown.result() == Status.OK
        assert _is_refused(accepting.address)


@pytest.mark.parametrize("closer", ["another thread", "on_accept"])
def test_on_shutdown_follows_every_on_accept(app: Application, ledger: Ledger, closer: str) -> None:
    events: list[str] = []
    entered, released = threading.Event(), threading.Event()
    done = Callback[Status](ledger)

    def on_accept(endpoint: Endpoint, allocator: MemoryAllocator) -> None:
        endpoint.close()
        if closer == "on_accept":
            listener.close()
            listener.close()
        entered.set()
        released.wait(TIMEOUT)
        events.append("on_accept returns")

    def on_shutdown(status: Status) -> None:
        events.append("on_shutdown")
        done(status)

    listener = app.engine.create_listener(on_accept, on_shutdown, EndpointConfig(), app.quota)
    address = ANY_PORT.with_port(listener.bind(ANY_PORT))
    listener.start()
    try:
        with connect(address):
            assert entered.wait(TIMEOUT)
            if closer == "another thread":
                listener.close()
            if not app.engine.callbacks_block_polling:
                app.on_loop(lambda: None)  # another thread of the pool has its turn, and on_shutdown would have
            assert not events
    finally:
        released.set()
    assert done.result() == Status.OK
    assert events[0] == "on_accept returns"
    assert events[-1] == "on_shutdown"
    assert events.count("on_shutdown") == 1


def test_a_listener_may_be_closed_in_on_shutdown(app: Application, ledger: Ledger) -> None:
    done = Callback[Status](ledger)

    def on_shutdown(status: Status) -> None:
        listener.close()
        done(status)

    listener = app.engine.create_listener(
        lambda endpoint, allocator: endpoint.close(), on_shutdown, EndpointConfig(), app.quota
    )
    listener.bind(ANY_PORT)
    listener.start()
    listener.close()
    assert done.result() == Status.OK
    assert app.on_loop(lambda: "still there") == "still there"


def test_a_close_raced_with_connections_answers_each(app: Application) -> None:
    """Whoever got through is accepted or sees its end; nobody hangs, and nothing is left open."""
    for _ in range(20):
        accepting = app.listen()
        peers: list[socket.socket] = []
        enough = threading.Event()

        def knock(
            address: ResolvedAddress = accepting.address,
            peers: list[socket.socket] = peers,
            enough: threading.Event = enough,
        ) -> None:
            while not _knocked(address, peers):
                if len(peers) == 5:
                    enough.set()

        thread = threading.Thread(target=knock)
        thread.start()
        enough.wait(TIMEOUT)
        accepting.close()
        thread.join(TIMEOUT)
        while not accepting.accepted.empty():
            accepting.accepted.get().close()
        for peer in peers:
            with peer, suppress(ConnectionError):
                # Linux forgets, without telling its client, a connection that was just being made when the listener
                # was closed; a byte makes it tell.
                peer.sendall(b"x")
                assert receive_all(peer) == b""


def _knocked(address: ResolvedAddress, peers: list[socket.socket]) -> bool:
    """Connects once more; True at the end."""
    try:
        peers.append(connect(address))
    except (ConnectionRefusedError, ConnectionResetError, FileNotFoundError):
        return True
    return len(peers) == 100


@needs("collection")
def test_a_listener_that_was_dropped_is_closed_with_a_warning(app: Application) -> None:
    accepting = app.listen()
    _serve_one(app, accepting, accepting.address)
    with pytest.warns(ResourceWarning, match="listener was never closed"):
        _drop_listener(accepting)
    assert _is_refused(accepting.address)


def _drop_listener(accepting: Accepting) -> None:
    del accepting.listener
    gc.collect()
    assert accepting.on_shutdown.result() == Status.OK
