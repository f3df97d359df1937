"""What an endpoint says of itself, and everybody's turn: no connection, and no loop of reads or writes, keeps another
from its own."""

from __future__ import annotations

import socket
import threading

import pytest

from eventengine.address import ResolvedAddress
from eventengine.config import EndpointConfig
from eventengine.engine import Endpoint
from eventengine.slices import SliceBuffer
from eventengine.status import Status
from eventengine.testing.application import Application, Callback, Ledger
from eventengine.testing.capabilities import needs
from eventengine.testing.conformance.fixtures import skip_without_ipv6
from eventengine.testing.conformance.pairs import Pair, addresses_seen_by, meanwhile, paired, send_until_full
from eventengine.testing.oracle import connect, pattern, receive

ROOMY = EndpointConfig(receive_buffer_size=8 << 20)
ONE_TURN = 2 << 20
"""More bytes than an engine may complete in one turn; a connection that holds fewer cannot show that it stops."""


def test_an_endpoints_addresses_are_those_that_its_peer_sees(any_pair: Pair, anywhere: Application) -> None:
    endpoint, oracle = any_pair
    assert anywhere.call(lambda: (endpoint.peer_address, endpoint.local_address)) == addresses_seen_by(oracle)


@pytest.mark.parametrize("role", ["client", "server"])
@needs("ipv6")
def test_an_endpoints_ipv6_addresses_are_those_that_its_peer_sees(app: Application, role: str) -> None:
    skip_without_ipv6()
    with paired(app, role, ResolvedAddress.tcp("::1", 0)) as (endpoint, oracle):
        assert (endpoint.peer_address, endpoint.local_address) == addresses_seen_by(oracle)
        assert endpoint.peer_address.family == socket.AF_INET6


@needs("ipv6")
def test_an_ipv4_connection_to_a_listener_on_all_addresses_has_ipv4_addresses(app: Application) -> None:
    skip_without_ipv6()
    accepting = app.listen(ResolvedAddress.tcp("::", 0))
    port = accepting.address.port
    for host, family in (("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)):
        with connect(ResolvedAddress.tcp(host, port)) as oracle:
            endpoint = accepting.next()
            assert (endpoint.peer_address, endpoint.local_address) == addresses_seen_by(oracle)
            assert endpoint.peer_address.family == endpoint.local_address.family == family
            endpoint.close()
    accepting.close()


def test_telemetry_info_names_its_metrics_or_is_none(pair: Pair) -> None:
    info = pair.endpoint.telemetry_info()
    assert info is None or all(isinstance(name, str) for name in info.metrics)


class _Flooded:
    """Reads all that comes, on and on as long as it is done at once, and counts it."""

    def __init__(self, ledger: Ledger, endpoint: Endpoint, size: int, hint: int) -> None:
        self._endpoint = endpoint
        self._size = size
        self._hint = min(hint, size)
        self._buffer = SliceBuffer()
        self.count = 0
        self.done = Callback[Status](ledger)

    def start(self) -> None:
        if self._endpoint.read(self._on_read, self._buffer, read_hint_bytes=self._hint):
            self._on_read(Status.OK)

    def _on_read(self, status: Status) -> None:
        while status.ok:
            self.count += len(self._buffer)
            left = self._size - self.count
            if left <= 0:
                break
            if not self._endpoint.read(self._on_read, self._buffer, read_hint_bytes=min(self._hint, left)):
                return
        self.done(status)


def _flood(pair: Pair) -> int:
    sent = send_until_full(pair.oracle, pattern(1 << 20) * 16)
    if sent < ONE_TURN:
        pytest.skip(f"connections of this system hold {sent} bytes, less than one turn")
    return sent


@pytest.mark.parametrize("hint", [1, 16 << 20])
def test_a_connection_that_floods_does_not_keep_another_from_its_turn(app: Application, hint: int) -> None:
    """Megabytes wait on one, one byte on the other, whose read is called before the first has read all its own."""
    seen: list[int] = []
    with paired(app, config=ROOMY) as flooding, paired(app) as (endpoint, oracle):
        sent = _flood(flooding)
        on_read = Callback[Status](app.ledger)
        flooded = _Flooded(app.ledger, flooding.endpoint, sent, hint)
        oracle.sendall(b"x")

        def look(status: Status) -> None:
            seen.append(flooded.count)
            on_read(status)

        def start() -> None:
            flooded.start()
            if endpoint.read(look, SliceBuffer()):
                look(Status.OK)

        app.on_loop(start)
        assert flooded.done.result().ok
        assert on_read.result().ok
        assert flooded.count == sent
    if app.engine.callbacks_block_polling:  # on a pool, who is called first may still run last
        assert seen[0] < sent


def test_an_application_that_loops_on_reads_does_not_starve_a_closure(app: Application) -> None:
    with paired(app, config=ROOMY) as flooding:
        sent = _flood(flooding)
        seen = Callback[int](app.ledger)
        flooded = _Flooded(app.ledger, flooding.endpoint, sent, 1)

        def start() -> None:
            app.engine.run(lambda: seen(flooded.count))
            flooded.start()

        app.on_loop(start)
        assert flooded.done.result().ok
    count = seen.result()
    if app.engine.callbacks_block_polling:
        assert count < sent


def test_an_application_that_loops_on_writes_does_not_starve_a_closure(app: Application) -> None:
    """Small ones, of which a connection takes more than a turn may complete."""
    total = 5000
    written = 0
    seen = Callback[int](app.ledger)
    done = Callback[Status](app.ledger)

    with paired(app) as (endpoint, oracle):

        def on_writable(status: Status) -> None:
            nonlocal written
            while status.ok:
                written += 1
                if written == total:
                    break
                if not endpoint.write(on_writable, SliceBuffer([b"x"])):
                    return
            done(status)

        def start() -> None:
            app.engine.run(lambda: seen(written))
            if endpoint.write(on_writable, SliceBuffer([b"x"])):
                on_writable(Status.OK)

        with meanwhile(lambda: receive(oracle, total)):
            app.on_loop(start)
            assert done.result().ok
    count = seen.result()
    if app.engine.callbacks_block_polling:
        assert count < total


def test_a_quiet_connection_is_answered_round_by_round_while_another_is_flooded(app: Application) -> None:
    rounds = 50
    stop = threading.Event()
    data = pattern(1 << 18)
    with paired(app) as flooding, paired(app, "server") as (endpoint, oracle):
        flooded = _Flooded(app.ledger, flooding.endpoint, 1 << 62, 1)

        def flood() -> None:
            while not stop.is_set():
                flooding.oracle.sendall(data)
            flooding.oracle.shutdown(socket.SHUT_WR)

        buffer = SliceBuffer()
        ended = Callback[Status](app.ledger)

        def echo(status: Status) -> None:
            if status.ok and endpoint.write(echoed, buffer):
                echoed(Status.OK)
            elif not status.ok:
                ended(status)

        def echoed(status: Status) -> None:
            if status.ok and endpoint.read(echo, buffer):
                echo(Status.OK)
            elif not status.ok:
                ended(status)

        def start() -> None:
            flooded.start()
            echoed(Status.OK)

        app.on_loop(start)
        with meanwhile(flood):
            try:
                for n in range(rounds):
                    oracle.sendall(b"%09d" % n)
                    assert receive(oracle, 9) == b"%09d" % n
            finally:
                stop.set()
        oracle.shutdown(socket.SHUT_WR)
        ended.result()
        flooded.done.result()
    assert flooded.count >= len(data)
