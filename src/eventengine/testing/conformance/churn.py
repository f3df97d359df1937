"""Endpoints that come and go by the hundred. Afterwards the fixtures find no byte, descriptor or thread left."""

from __future__ import annotations

import warnings
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from eventengine.config import EndpointConfig
from eventengine.engine import Endpoint
from eventengine.slices import SliceBuffer
from eventengine.status import Status
from eventengine.testing.application import Accepting, Application, Callback
from eventengine.testing.conformance.pairs import SLOW
from eventengine.testing.oracle import TIMEOUT, OracleServer, connect, receive_all

DESTROYED = 1000
OPENED = 800
SENT = (1 << 10, 10 << 10, 100 << 10, 1 << 20, 10 << 20)
MATERIAL = bytes(10 << 20)


def _talk_to_the_doomed(accepting: Accepting, size: int) -> None:
    """Sends `size` bytes, or what can be sent of them, and sees the end, in whatever way it comes: a reset may be there
    before `connect` has looked, and is its outcome then."""
    try:
        with connect(accepting.address, receive_buffer_size=SLOW) as oracle:
            oracle.sendall(memoryview(MATERIAL)[:size])
            while oracle.recv(1 << 16):
                pass
    except ConnectionError:
        pass


def _closing_read(app: Application, endpoint: Endpoint) -> Callback[Status]:
    """A read whose callback closes the endpoint."""
    on_read = Callback[Status](app.ledger)

    def close(status: Status) -> None:
        endpoint.close()
        on_read(status)

    if endpoint.read(close, SliceBuffer()):
        close(Status.OK)
    return on_read


def test_a_thousand_endpoints_that_are_destroyed_while_they_read_and_write_leave_nothing(app: Application) -> None:
    """By turns closed by another thread, closed by a callback, and dropped: then the engine holds them until the read
    is done. That each peer sees the end shows that they are gone while the engine lives."""
    config = EndpointConfig(send_buffer_size=SLOW, receive_buffer_size=SLOW)
    ended: list[Callback[Status]] = []
    with warnings.catch_warnings(), ThreadPoolExecutor(8) as peers, ThreadPoolExecutor(2) as closers:
        warnings.simplefilter("ignore", ResourceWarning)
        accepting = app.listen(config=config)
        talking = [peers.submit(_talk_to_the_doomed, accepting, SENT[n % len(SENT)] + n) for n in range(DESTROYED)]
        closing: list[Future[None]] = []
        for n in range(DESTROYED):
            endpoint = accepting.next()
            if n % 3:
                ended.append(app.start_write(endpoint, MATERIAL))
            if n % 3 == 1:
                ended.append(_closing_read(app, endpoint))
            else:
                ended.append(app.start_read(endpoint, SliceBuffer()))
            if n % 3 == 2:
                closing.append(closers.submit(endpoint.close))
            del endpoint
        for outcome in (*talking, *closing):
            outcome.result(TIMEOUT)
        accepting.close()
    for callback in ended:
        callback.result()
    assert len(ended) == DESTROYED * 5 // 3


@pytest.mark.parametrize("role", ["client", "server"])
def test_hundreds_of_connections_that_are_opened_and_closed_leave_nothing(app: Application, role: str) -> None:
    """On the 26 engines of this package together more than 20,000."""
    oracles: list[bytes] = []
    if role == "client":
        with OracleServer() as server:

            def serve() -> None:
                for _ in range(OPENED // 2):
                    with server.accept() as oracle:
                        oracles.append(receive_all(oracle))

            with ThreadPoolExecutor(1) as threads:
                serving = threads.submit(serve)
                for _ in range(OPENED // 2):
                    endpoint = app.connect(server.address)
                    assert app.write(endpoint, b"a word").ok
                    endpoint.close()
                serving.result(TIMEOUT)
    else:
        accepting = app.listen()
        for _ in range(OPENED // 2):
            with connect(accepting.address) as oracle:
                endpoint = accepting.next()
                assert app.write(endpoint, b"a word").ok
                endpoint.close()
                oracles.append(receive_all(oracle))
        accepting.close()
    assert oracles == [b"a word"] * (OPENED // 2)
