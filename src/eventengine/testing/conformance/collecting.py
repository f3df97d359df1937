"""Endpoints that nobody closes: they live while they have something to do, and are closed when they are collected."""

from __future__ import annotations

import gc
import queue
import socket
import time
import warnings
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial

import pytest

from eventengine.config import EndpointConfig
from eventengine.engine import Endpoint
from eventengine.slices import SliceBuffer
from eventengine.status import Status, StatusCode
from eventengine.testing.application import Application
from eventengine.testing.conformance.pairs import SLOW, nothing, see_the_end
from eventengine.testing.oracle import TIMEOUT, OracleServer, connect, pattern, receive, receive_all


@contextmanager
def _resource_warnings() -> Generator[Callable[[], str]]:
    """What waits for the next ResourceWarning, in whichever thread it is given, and returns its text."""
    given: queue.SimpleQueue[str] = queue.SimpleQueue()

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        if issubclass(category, ResourceWarning):
            given.put(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("always", ResourceWarning)
        warnings.showwarning = show
        yield lambda: given.get(timeout=TIMEOUT)
    assert given.empty()


@contextmanager
def _unheld(app: Application, role: str) -> Generator[tuple[list[Endpoint], socket.socket]]:
    """A pair whose endpoint nobody holds but the list, with small buffers between the two."""
    config = EndpointConfig(send_buffer_size=SLOW)
    if role == "server":
        accepting = app.listen(config=config)
        with connect(accepting.address, receive_buffer_size=SLOW) as oracle:
            endpoints = [accepting.next()]
            accepting.close()
            yield endpoints, oracle
    else:
        connected: queue.SimpleQueue[Endpoint | Status] = queue.SimpleQueue()
        with OracleServer() as server:
            server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW)
            allocator = app.quota.create_memory_allocator("unheld")
            app.engine.connect(connected.put, server.address, config, allocator, TIMEOUT)
            with server.accept() as oracle:
                endpoint = connected.get(timeout=TIMEOUT)
                if isinstance(endpoint, Status):
                    raise AssertionError(f"connecting: {endpoint}")
                endpoints = [endpoint]
                del endpoint
                yield endpoints, oracle


@pytest.mark.parametrize("role", ["client", "server"])
def test_an_endpoint_that_was_never_closed_is_closed_when_it_is_collected_with_a_warning(
    app: Application, role: str
) -> None:
    with _unheld(app, role) as (endpoints, oracle), _resource_warnings() as next_warning:
        assert app.write(endpoints[0], b"used before").ok
        assert receive(oracle, 11) == b"used before"
        app.on_loop(nothing)
        endpoints.clear()
        assert "never closed" in next_warning()
        assert receive_all(oracle) == b""


@pytest.mark.parametrize("role", ["client", "server"])
def test_an_endpoint_that_nobody_holds_lives_as_long_as_its_read(app: Application, role: str) -> None:
    buffer = SliceBuffer()
    with _unheld(app, role) as (endpoints, oracle), _resource_warnings() as next_warning:
        on_read = app.start_read(endpoints[0], buffer)
        endpoints.clear()
        app.on_loop(nothing)
        assert on_read.count == 0
        oracle.sendall(b"still read")
        assert on_read.result().ok
        assert bytes(buffer) == b"still read"
        assert "never closed" in next_warning()
        assert receive_all(oracle) == b""


@pytest.mark.parametrize("role", ["client", "server"])
def test_an_endpoint_that_nobody_holds_lives_as_long_as_its_write(app: Application, role: str) -> None:
    with _unheld(app, role) as (endpoints, oracle), _resource_warnings() as next_warning:
        data = pattern(1 << 20)
        on_writable = app.start_write(endpoints[0], data)
        endpoints.clear()
        app.on_loop(nothing)
        assert on_writable.count == 0
        assert receive_all(oracle) == data
        assert on_writable.result().ok
        assert "never closed" in next_warning()


def test_an_endpoint_that_was_closed_is_collected_without_a_warning(app: Application) -> None:
    with _unheld(app, "server") as (endpoints, oracle), _resource_warnings():
        endpoints[0].close()
        assert receive_all(oracle) == b""
        endpoints.clear()
        app.on_loop(nothing)


@contextmanager
def _no_collections() -> Generator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class _Data(bytearray):
    """Bytes of the application's, of which it can be seen when nobody has them any more."""


class _Told:
    """A callback of which the same can be seen."""

    def __init__(self) -> None:
        self.statuses: queue.SimpleQueue[Status] = queue.SimpleQueue()

    def __call__(self, status: Status) -> None:
        self.statuses.put(status)


@pytest.mark.parametrize("role", ["client", "server"])
@pytest.mark.parametrize("ends", ["by our close", "by a reset"])
def test_what_a_connection_held_is_gone_with_it_and_waits_for_no_garbage_collection(
    app: Application, role: str, ends: str
) -> None:
    with _no_collections(), _unheld(app, role) as (endpoints, oracle):
        endpoint = endpoints.pop()
        buffer, data, on_read, on_writable = SliceBuffer(), _Data(pattern(1 << 20)), _Told(), _Told()
        statuses = on_read.statuses, on_writable.statuses
        oracle.sendall(b"read")
        assert app.read(endpoint, buffer).ok
        assert app.quota.memory.used
        assert not app.call(partial(endpoint.write, on_writable, SliceBuffer([data])))
        assert not app.call(partial(endpoint.read, on_read, buffer))
        gone = [weakref.ref(each) for each in (data, on_read, on_writable)]
        del buffer, data, on_read, on_writable
        if ends == "by our close":
            endpoint.close()
            see_the_end(oracle)
        else:
            oracle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            oracle.close()
        assert not any(each.get(timeout=TIMEOUT).ok for each in statuses)
        if ends == "by a reset":
            endpoint.close()
        deadline = time.monotonic() + TIMEOUT
        while (any(each() for each in gone) or app.quota.memory.used) and time.monotonic() < deadline:
            app.on_loop(nothing)  # frameworks close in a turn of their own
        assert [each() for each in gone] == [None] * 3
        assert app.quota.memory.used == 0


def test_an_engine_that_is_closed_closes_an_endpoint_that_nobody_holds(app: Application) -> None:
    with _unheld(app, "server") as (endpoints, oracle):
        on_read = app.start_read(endpoints[0], SliceBuffer())
        endpoints.clear()
        app.on_loop(nothing)
        app.engine.close()
        assert on_read.result().code is StatusCode.CANCELLED
        assert receive_all(oracle) == b""
