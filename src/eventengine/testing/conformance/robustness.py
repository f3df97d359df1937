"""What callbacks raise."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from eventengine.address import ResolvedAddress
from eventengine.config import EndpointConfig
from eventengine.engine import Endpoint
from eventengine.slices import SliceBuffer
from eventengine.status import Status
from eventengine.testing.application import Application, Callback, Ledger
from eventengine.testing.oracle import OracleServer, connect, receive, receive_all

ANY_PORT = ResolvedAddress.tcp("127.0.0.1", 0)


class _FaultError(Exception):
    """Raised in callbacks. The frameworks log it, each in its way."""


def _raises(called: Callable[[Any], object]) -> Callable[..., object]:
    """A callback that says that it was called, and raises."""

    def callback(*arguments: Any) -> object:
        called(arguments[0] if arguments else None)
        raise _FaultError("a callback raises; it is in a test of just that")

    return callback


def _goes_on(app: Application) -> None:
    """Tasks, timers, listening, connecting, reading and writing work."""
    done = Callback[None](app.ledger)
    app.engine.run_after(0.0, lambda: done(None))
    done.result()
    accepting = app.listen()
    with closing(app.connect(accepting.address)) as client, closing(accepting.next()) as server:
        assert app.write(client, b"ping").ok
        assert app.receive(server, 4) == b"ping"
    accepting.close()


@pytest.mark.parametrize("call", ["run", "run_after"])
def test_a_closure_that_raises_ends_nothing(anywhere: Application, ledger: Ledger, call: str) -> None:
    called, after = Callback[None](ledger, times=3), Callback[None](ledger)
    engine = anywhere.engine

    def schedule() -> None:
        for _ in range(3):
            engine.run(_raises(called)) if call == "run" else engine.run_after(0.0, _raises(called))
        engine.run_after(0.01, lambda: after(None))

    anywhere.call(schedule)
    called.result()
    after.result()
    _goes_on(anywhere)


def test_an_on_read_that_raises_leaves_its_endpoint_usable(anywhere: Application, ledger: Ledger) -> None:
    called = Callback[Status](ledger)
    buffer = SliceBuffer()
    with OracleServer() as server, closing(anywhere.connect(server.address)) as endpoint, server.accept() as peer:
        assert not anywhere.call(lambda: endpoint.read(_raises(called), buffer))
        peer.sendall(b"one")
        assert called.result().ok
        assert bytes(buffer) == b"one"
        peer.sendall(b"two")
        assert anywhere.receive(endpoint, 3) == b"two"
        assert anywhere.write(endpoint, b"three").ok
        assert receive(peer, 5) == b"three"


def test_an_on_writable_that_raises_leaves_its_endpoint_usable(app: Application, ledger: Ledger) -> None:
    called = Callback[Status](ledger)
    with OracleServer() as server, closing(app.connect(server.address)) as endpoint, server.accept() as peer:
        size = 8 << 20
        while endpoint.write(_raises(called), SliceBuffer([b"x" * size])):
            assert receive(peer, size)
        assert receive(peer, size)
        assert called.result().ok
        assert app.write(endpoint, b"more").ok
        assert receive(peer, 4) == b"more"


@pytest.mark.parametrize("way", ["connected", "refused"])
def test_an_on_connect_that_raises_ends_nothing(app: Application, ledger: Ledger, way: str) -> None:
    called = Callback[Endpoint | Status](ledger)
    server = OracleServer()
    with server:
        if way == "refused":
            server.close()
        app.start_connect(_raises(called), server.address)
        result = called.result()
        assert isinstance(result, Status) == (way == "refused")
        if not isinstance(result, Status):
            with closing(result), server.accept() as peer:
                peer.sendall(b"still there")
                assert app.receive(result, 11) == b"still there"
    _goes_on(app)


def test_what_the_callbacks_of_a_listener_raise_ends_nothing(app: Application, ledger: Ledger) -> None:
    accepted = Callback[Endpoint](ledger, times=2)
    shut_down = Callback[Status](ledger)
    listener = app.engine.create_listener(_raises(accepted), _raises(shut_down), EndpointConfig(), app.quota)
    address = ANY_PORT.with_port(listener.bind(ANY_PORT))
    listener.start()
    for _ in range(2):
        with connect(address) as peer:
            assert receive_all(peer) == b""
    listener.close()
    assert shut_down.result() == Status.OK
    _goes_on(app)


def test_an_on_resolve_that_raises_ends_nothing(app: Application, ledger: Ledger) -> None:
    called = Callback[object](ledger, times=3)
    with closing(app.engine.get_dns_resolver()) as resolver:
        for name in ("127.0.0.1:80", "localhost:80", "nonsense"):
            resolver.lookup_hostname(_raises(called), name)
        assert called.result()
        _goes_on(app)
        last = Callback[object](ledger)
        resolver.lookup_hostname(last, "localhost:80")
        last.result()
        while called.count < 3:
            app.on_loop(lambda: None)
