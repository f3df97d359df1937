"""The limit on connections: `ResourceQuota(connections=...)`."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from contextlib import ExitStack, closing

import pytest

from eventengine.address import ResolvedAddress
from eventengine.config import EndpointConfig
from eventengine.engine import Endpoint, EventEngine
from eventengine.memory import MemoryAllocator
from eventengine.quota import ResourceQuota
from eventengine.status import Status
from eventengine.testing.application import Application, Callback, Ledger
from eventengine.testing.oracle import TIMEOUT, connect, receive_all

ANY_PORT = ResolvedAddress.tcp("127.0.0.1", 0)


def _drop_first(endpoints: list[Endpoint]) -> None:
    del endpoints[0]
    gc.collect()


@pytest.mark.parametrize("how", ["close", "collect"])
def test_beyond_the_limit_a_connection_waits_for_the_end_of_another(
    engine: EventEngine, ledger: Ledger, how: str
) -> None:
    quota = ResourceQuota("two", connections=2)
    app = Application(engine, quota, ledger)
    accepting = app.listen()
    with ExitStack() as stack:
        peers = [stack.enter_context(connect(accepting.address)) for _ in range(4)]
        for n, peer in enumerate(peers):
            peer.sendall(bytes([n]))
        endpoints = [accepting.next(), accepting.next()]
        for _ in range(2):
            app.on_loop(lambda: None)
            assert accepting.accepted.empty()
            assert quota.connections.used == 2
            if how == "close":
                endpoints.pop(0).close()
            else:
                with pytest.warns(ResourceWarning, match="never closed"):
                    _drop_first(endpoints)
            endpoints.append(accepting.next())
        for n, endpoint in enumerate(endpoints, 2):
            assert app.receive(endpoint, 1) == bytes([n])
            endpoint.close()
    accepting.close()
    app.on_loop(lambda: None)
    app.on_loop(lambda: None)
    engine.close()
    assert quota.connections.used == 0


def test_closing_an_engine_gives_its_connections_to_another(
    ledger: Ledger, make_engine: Callable[[], EventEngine]
) -> None:
    quota = ResourceQuota("one", connections=1)
    with make_engine() as first, make_engine() as second:
        here, there = (Application(engine, quota, ledger).listen() for engine in (first, second))
        with connect(here.address):
            held = here.next()
            with connect(there.address) as waiting:
                first.close()
                waiting.sendall(b"served")
                with closing(there.next()) as endpoint:
                    assert Application(second, quota, ledger).receive(endpoint, 6) == b"served"
                    held.close()
    there.on_shutdown.result()  # an engine on a borrowed loop ends at that loop's next turn
    assert quota.connections.used == 0


def test_listeners_on_one_limit_each_get_their_turn(engine: EventEngine, ledger: Ledger) -> None:
    """A place that comes back goes to a listener that has a connection waiting, whoever is first in the line."""
    quota = ResourceQuota("one", connections=1)
    app = Application(engine, quota, ledger)
    listeners = [app.listen() for _ in range(3)]
    with connect(listeners[0].address):
        held = listeners[0].next()
        for accepting in (listeners[1], listeners[2], listeners[1], listeners[0], listeners[2]):
            with connect(accepting.address) as peer:
                app.on_loop(lambda: None)
                assert accepting.accepted.empty()
                held.close()
                held = accepting.next()
                peer.sendall(b"served")
                assert app.receive(held, 6) == b"served"
    held.close()


def test_a_listener_that_was_closed_in_the_line_takes_no_place(engine: EventEngine, ledger: Ledger) -> None:
    quota = ResourceQuota("one", connections=1)
    app = Application(engine, quota, ledger)
    first, second, third = (app.listen() for _ in range(3))
    with connect(first.address), closing(first.next()) as held, connect(second.address):
        app.on_loop(lambda: None)
        app.on_loop(lambda: None)
        with connect(third.address):
            app.on_loop(lambda: None)
            second.close()
            held.close()
            third.next().close()
    first.close()


def test_a_limit_is_kept_and_everybody_served_when_connections_come_and_go(
    engine: EventEngine, ledger: Ledger
) -> None:
    quota = ResourceQuota("five", connections=5)
    app = Application(engine, quota, ledger)
    most: list[int] = []
    served = threading.Semaphore(0)
    on_shutdown = Callback[Status](ledger)

    def on_accept(endpoint: Endpoint, allocator: MemoryAllocator) -> None:
        most.append(quota.connections.used)
        endpoint.close()
        served.release()

    listener = engine.create_listener(on_accept, on_shutdown, EndpointConfig(), quota)
    address = ANY_PORT.with_port(listener.bind(ANY_PORT))
    listener.start()
    with ExitStack() as stack:
        for peer in [stack.enter_context(connect(address)) for _ in range(100)]:
            assert receive_all(peer) == b""
            assert served.acquire(timeout=TIMEOUT)
    listener.close()
    assert on_shutdown.result() == Status.OK
    assert max(most) <= 5
    app.on_loop(lambda: None)
    engine.close()
    assert quota.connections.used == 0


def test_where_there_is_no_limit_connections_are_counted(engine: EventEngine, ledger: Ledger) -> None:
    quota = ResourceQuota("none")
    accepting = Application(engine, quota, ledger).listen()
    with connect(accepting.address), connect(accepting.address):
        endpoints = [accepting.next(), accepting.next()]
        assert quota.connections.used == 2
        for endpoint in endpoints:
            endpoint.close()
    accepting.close()
    engine.close()
    assert quota.connections.used == 0
