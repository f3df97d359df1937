"""Connections that a framework made or accepted by its own means, over TCP and over its TLS, as endpoints."""

from __future__ import annotations

import gc
import os
import queue
import random
import socket
import ssl
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from typing import Any

import pytest

from borrowed_stages import STAGES, Certificate, Stage, is_installed
from eventengine import (
    BusyResourceError,
    ClosedResourceError,
    Endpoint,
    HalfCloseable,
    MemoryAllocator,
    MemoryRequest,
    ResolvedAddress,
    ResourceQuota,
    SliceBuffer,
    Status,
    StatusCode,
    StatusError,
    SupportsFileDescriptor,
)
from eventengine.core.borrowed import PushTransport, borrow
from eventengine.memory_quota import MemoryQuota
from eventengine.reclaim import ReclamationPass, ReclamationSweep
from eventengine.testing.application import Application, Callback, Ledger
from eventengine.testing.conformance.fixtures import *
from eventengine.testing.oracle import TIMEOUT, OracleServer, connect, pattern, receive, receive_all
from hand_turned import LOOPBACK, HandTurnedHost, hand_turned


@pytest.fixture(params=STAGES)
def stage(request: pytest.FixtureRequest, quota: ResourceQuota, ledger: Ledger) -> Iterator[Stage]:
    if not is_installed(request.param):
        pytest.skip(f"{request.param} is not installed")
    with STAGES[request.param][1]() as stage:
        yield stage


@pytest.fixture
def engine(stage: Stage) -> Any:
    return stage.engine


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(params=["tcp", "tls"])
def tls(request: pytest.FixtureRequest, certificate: Certificate) -> Certificate | None:
    return certificate if request.param == "tls" else None


def through_tls(tls: Certificate | None, sock: socket.socket, *, server: bool = False) -> socket.socket:
    if tls is None:
        return sock
    if server:
        return tls.server.wrap_socket(sock, server_side=True)
    return tls.client.wrap_socket(sock, server_hostname="localhost")


def end_stream(oracle: socket.socket) -> None:
    if isinstance(oracle, ssl.SSLSocket):
        with suppress(OSError):  # not every framework answers
            oracle.unwrap()
    else:
        oracle.shutdown(socket.SHUT_WR)


def both_ways(app: Application, endpoint: Endpoint, oracle: socket.socket) -> None:
    data, answer = pattern(1 << 20, 1), pattern(1 << 20, 2)
    sending = threading.Thread(target=oracle.sendall, args=(data,))
    sending.start()
    assert app.receive(endpoint, len(data)) == data
    sending.join(TIMEOUT)
    on_writable = app.start_write(endpoint, answer)
    assert receive(oracle, len(answer)) == answer
    assert on_writable.result().ok


def accepted_by(stage: Stage, quota: ResourceQuota, tls: Certificate | None) -> tuple[Any, int]:
    accepted: queue.SimpleQueue[Endpoint] = queue.SimpleQueue()

    def on_accept(endpoint: Endpoint, allocator: MemoryAllocator) -> None:
        accepted.put(endpoint)

    return partial(accepted.get, timeout=TIMEOUT), stage.serve(on_accept, quota, tls)


def test_a_connection_that_the_framework_accepted_is_an_endpoint(
    stage: Stage, app: Application, quota: ResourceQuota, tls: Certificate | None
) -> None:
    next_endpoint, port = accepted_by(stage, quota, tls)
    with through_tls(tls, connect(ResolvedAddress.tcp("127.0.0.1", port))) as oracle:
        endpoint = next_endpoint()
        with closing(endpoint):
            assert endpoint.peer_address.sockaddr == oracle.getsockname()
            assert endpoint.local_address.sockaddr == oracle.getpeername()
            both_ways(app, endpoint, oracle)
            oracle.sendall(b"the last words")
            ending = threading.Thread(target=end_stream, args=(oracle,))
            ending.start()
            assert app.receive_all(endpoint)[0] == b"the last words"
            assert app.read(endpoint, SliceBuffer()).code is StatusCode.OUT_OF_RANGE
        ending.join(TIMEOUT)
        oracle.close()


def test_a_connection_that_the_framework_made_is_an_endpoint(
    stage: Stage, app: Application, quota: ResourceQuota, tls: Certificate | None
) -> None:
    made: list[Endpoint] = []
    with OracleServer() as server:
        allocator = quota.create_memory_allocator("connection")
        connecting = threading.Thread(
            target=lambda: made.append(stage.connect(server.address.port, allocator, tls))
        )
        connecting.start()
        with through_tls(tls, server.accept(), server=True) as oracle:
            connecting.join(TIMEOUT)
            endpoint = made.pop()
            both_ways(app, endpoint, oracle)
            assert app.write(endpoint, b"to the last byte").ok
            endpoint.close()
            assert receive_all(oracle) == b"to the last byte"


def test_a_borrowed_endpoint_has_no_descriptor_to_show_and_halves_only_where_the_transport_has(
    stage: Stage, app: Application, quota: ResourceQuota, certificate: Certificate
) -> None:
    for tls in (None, certificate):
        next_endpoint, port = accepted_by(stage, quota, tls)
        with (
            through_tls(tls, connect(ResolvedAddress.tcp("127.0.0.1", port))),
            closing(next_endpoint()) as endpoint,
        ):
            assert endpoint.query_extension(SupportsFileDescriptor) is None
            assert (endpoint.query_extension(HalfCloseable) is not None) == (tls is None)
            assert endpoint.telemetry_info() is None


def test_a_tls_peer_that_does_not_answer_the_end_does_not_keep_the_socket(
    stage: Stage, app: Application, quota: ResourceQuota, certificate: Certificate
) -> None:
    """The fixtures see that nothing is left of it."""
    next_endpoint, port = accepted_by(stage, quota, certificate)
    with through_tls(certificate, connect(ResolvedAddress.tcp("127.0.0.1", port))) as oracle:
        endpoint = next_endpoint()
        on_read = app.start_read(endpoint, SliceBuffer())
        endpoint.close()
        assert on_read.result().code is StatusCode.CANCELLED
        assert oracle.recv(1) == b""


def test_while_no_read_is_outstanding_the_peer_is_held_back(
    stage: Stage, app: Application, quota: ResourceQuota, tls: Certificate | None
) -> None:
    """And what was charged meanwhile is at most what a transport delivers at once."""
    next_endpoint, port = accepted_by(stage, quota, tls)
    data = pattern(1 << 20) * 16
    with (
        through_tls(tls, connect(ResolvedAddress.tcp("127.0.0.1", port))) as oracle,
        closing(next_endpoint()) as endpoint,
    ):
        oracle.sendall(data[:1000])
        first = app.receive(endpoint, 1000)
        oracle.settimeout(0.3)
        sent = 1000
        try:
            while sent < len(data):
                sent += oracle.send(data[sent : sent + 16384])
        except TimeoutError:
            pass
        assert sent < len(data)
        assert quota.memory.used <= 512 * 1024
        oracle.settimeout(TIMEOUT)
        rest = threading.Thread(target=lambda: (oracle.sendall(data[sent:]), oracle.shutdown(socket.SHUT_WR)))
        if tls is None:
            rest.start()
            assert first + app.receive(endpoint, len(data) - 1000) == data
            rest.join(TIMEOUT)
        else:  # a write of TLS that timed out can only be repeated as it was
            received = bytearray(first)
            buffer = SliceBuffer()
            while len(received) < sent:
                assert app.read(endpoint, buffer).ok
                received += bytes(buffer)
                buffer.clear()
            assert received == data[: len(received)]


@pytest.mark.parametrize("seed", [1, 2])
def test_connections_that_are_abandoned_at_any_moment_leave_nothing(
    stage: Stage, app: Application, quota: ResourceQuota, ledger: Ledger, seed: int, tls: Certificate | None
) -> None:
    """By turns closed or dropped, in a callback, by a thread, while it reads or writes, by the peer with a reset."""
    count = 250  # with the two seeds and both kinds of connection, a thousand
    choose = random.Random(seed)
    material = bytes(300_000)
    next_endpoint, port = accepted_by(stage, quota, tls)
    cancelled = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # of those that are dropped
        for _ in range(count):
            with ExitStack() as stack:
                oracle = stack.enter_context(connect(ResolvedAddress.tcp("127.0.0.1", port)))
                if tls is not None and choose.random() < 0.1:
                    continue  # in the midst of a handshake
                oracle = stack.enter_context(through_tls(tls, oracle))
                endpoint = next_endpoint()
                outstanding: list[Callback[Status]] = []
                if choose.random() < 0.7:
                    outstanding.append(app.start_read(endpoint, SliceBuffer()))
                if choose.random() < 0.5:
                    outstanding.append(app.start_write(endpoint, material[: choose.choice((1, 5000, 300_000))]))
                if choose.random() < 0.5:
                    oracle.sendall(material[: choose.choice((1, 5000))])
                way = choose.choice(("close", "in a callback", "drop", "peer"))
                if way == "close":
                    endpoint.close()
                elif way == "in a callback":
                    app.on_loop(endpoint.close)
                elif way == "drop":
                    del endpoint
                    oracle.close()
                else:
                    oracle.close()
                    app.read(endpoint, SliceBuffer()) if not outstanding else None
                    endpoint.close()
            for callback in outstanding:
                cancelled += callback.result().code is StatusCode.CANCELLED
        if "endpoint" in locals():
            del endpoint
        gc.collect()
        app.on_loop(lambda: None)
    assert cancelled > 10


def test_an_end_of_tls_without_close_notify_is_no_end_of_the_stream(
    stage: Stage, app: Application, quota: ResourceQuota, certificate: Certificate
) -> None:
    """It may be that of one who cut the stream off; the frameworks tell both alike, but for Twisted."""
    next_endpoint, port = accepted_by(stage, quota, certificate)
    below = connect(ResolvedAddress.tcp("127.0.0.1", port))
    with socket.socket(fileno=os.dup(below.fileno())) as plain, through_tls(certificate, below) as oracle:
        endpoint = next_endpoint()
        with closing(endpoint):
            oracle.sendall(b"half of a mess")
            assert app.receive(endpoint, 14) == b"half of a mess"
            plain.shutdown(socket.SHUT_WR)
            for _ in range(2):
                assert app.read(endpoint, SliceBuffer()).code is StatusCode.UNAVAILABLE


@pytest.mark.parametrize("how", ["close", "abort"])
@pytest.mark.parametrize("writes", [False, True])
def test_a_transport_that_another_closes_has_not_come_to_its_end(
    stage: Stage, app: Application, quota: ResourceQuota, tls: Certificate | None, how: str, writes: bool
) -> None:
    """Who is told of an end takes for whole what he has read."""
    next_endpoint, port = accepted_by(stage, quota, tls)
    with (
        through_tls(tls, connect(ResolvedAddress.tcp("127.0.0.1", port))) as oracle,
        closing(next_endpoint()) as endpoint,
    ):
        on_writable = app.start_write(endpoint, bytes(16 << 20)) if writes else None
        on_read = app.start_read(endpoint, SliceBuffer())
        stage.call(lambda: close_under(endpoint, how))
        draining = threading.Thread(target=drain, args=(oracle,))
        draining.start()
        assert on_read.result().code is StatusCode.UNAVAILABLE
        assert on_writable is None or on_writable.result().code is StatusCode.UNAVAILABLE
        assert app.read(endpoint, SliceBuffer()).code is StatusCode.UNAVAILABLE
        assert app.write(endpoint, b"more").code is StatusCode.UNAVAILABLE
        draining.join(TIMEOUT)


def close_under(endpoint: Any, how: str) -> None:
    transport = getattr(endpoint._port, "_transport", None) or endpoint._port._stream
    by_name = {"close": ("loseConnection", "close"), "abort": ("abortConnection", "abort", "close")}
    next(getattr(transport, name) for name in by_name[how] if hasattr(transport, name))()


def drain(oracle: socket.socket) -> None:
    with suppress(OSError):
        while oracle.recv(1 << 16):
            pass
        end_stream(oracle)


def test_a_transport_is_not_borrowed_twice(stage: Stage, app: Application, quota: ResourceQuota) -> None:
    engine: Any = stage.engine
    next_endpoint, port = accepted_by(stage, quota, None)
    borrow = getattr(engine, "endpoint_from_iostream", None) or engine.endpoint_from_transport
    allocator = quota.create_memory_allocator("again")
    with (
        connect(ResolvedAddress.tcp("127.0.0.1", port)) as oracle,
        closing(next_endpoint()) as endpoint,
    ):
        port_of: Any = endpoint._port  # type: ignore[attr-defined]
        transport = getattr(port_of, "_transport", None) or port_of._stream
        with pytest.raises(StatusError, match="FAILED_PRECONDITION"):
            stage.call(lambda: borrow(transport, allocator))
        oracle.sendall(b"still heard")
        assert app.receive(endpoint, 11) == b"still heard"


def test_what_cannot_be_borrowed_is_refused(stage: Stage, app: Application, quota: ResourceQuota) -> None:
    engine: Any = stage.engine
    borrow = getattr(engine, "endpoint_from_iostream", None) or engine.endpoint_from_transport
    allocator = quota.create_memory_allocator("refused")
    with pytest.raises(TypeError, match="must be a"):
        stage.call(lambda: borrow(object(), allocator))
    with pytest.raises(TypeError, match="memory_allocator must be a MemoryAllocator"):
        stage.call(lambda: borrow(object(), quota))
    app.on_loop(lambda: None)
    with pytest.raises(RuntimeError, match="must be called on the loop's thread"):
        borrow(object(), allocator)
    engine.close()
    stage.call(lambda: None)
    with pytest.raises(ClosedResourceError, match="engine was closed"):
        stage.call(lambda: borrow(object(), allocator))


def test_a_transport_that_was_closed_is_refused(stage: Stage, app: Application, quota: ResourceQuota) -> None:
    engine: Any = stage.engine
    next_endpoint, port = accepted_by(stage, quota, None)
    borrow = getattr(engine, "endpoint_from_iostream", None) or engine.endpoint_from_transport
    allocator = quota.create_memory_allocator("closed")
    with connect(ResolvedAddress.tcp("127.0.0.1", port)), closing(next_endpoint()) as endpoint:
        port_of: Any = endpoint._port
        transport = getattr(port_of, "_transport", None) or port_of._stream

        def borrow_closed() -> None:
            port_of.close()
            borrow(transport, allocator)

        with pytest.raises(StatusError, match=r"UNAVAILABLE: borrowing a .* that was closed"):
            stage.call(borrow_closed)


def test_who_raises_when_a_connection_is_there_has_it_closed(
    stage: Stage, app: Application, quota: ResourceQuota
) -> None:
    def on_accept(endpoint: Endpoint, allocator: MemoryAllocator) -> None:
        raise LookupError("not today")

    if hasattr(stage.engine, "endpoint_from_iostream"):
        pytest.skip("a stream is borrowed by a call, and nobody is called back")
    port = stage.serve(on_accept, quota)
    with connect(ResolvedAddress.tcp("127.0.0.1", port)) as oracle:
        assert receive_all(oracle) == b""


def test_a_connection_that_comes_after_the_engine_is_closed(
    stage: Stage, app: Application, quota: ResourceQuota
) -> None:
    """The framework goes on listening."""
    if hasattr(stage.engine, "endpoint_from_iostream"):
        pytest.skip("a stream is borrowed by a call, which raises then")
    port = stage.serve(pytest.fail, quota)
    stage.engine.close()
    stage.call(lambda: None)
    with connect(ResolvedAddress.tcp("127.0.0.1", port)) as oracle:
        assert receive_all(oracle) == b""


# Turned by hand, over a transport that a test pushes.


class Pushed(PushTransport):
    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def resume(self) -> None:
        self.told.append("resume")

    def pause(self) -> None:
        self.told.append("pause")

    def write(self, piece: bytes) -> bool:
        return True

    def close_write(self) -> None:
        self.told.append("close_write")

    def close(self) -> None:
        self.told.append("close")

    abort = close


@contextmanager
def two_that_wait() -> Iterator[
    tuple[ResourceQuota, HandTurnedHost, list[Endpoint], list[Pushed], MemoryAllocator]
]:
    """Two endpoints whose reads wait for room in a quota, which a third holds."""
    quota = ResourceQuota(memory=1 << 20)
    filler = quota.create_memory_allocator("whatever else there is")
    memory = quota.create_memory_allocator("borrowed").memory
    with hand_turned() as (engine, host):
        ports = [Pushed(), Pushed()]
        ends = [borrow(engine._loop, port, LOOPBACK, LOOPBACK, memory) for port in ports]
        filler.reserve(MemoryRequest(1 << 20))
        for endpoint in ends:
            endpoint.read(lambda _: None, SliceBuffer())
        host.settle()
        assert [port.told for port in ports] == [[], []]
        yield quota, host, list(ends), ports, filler
        for endpoint in ends:
            endpoint.close()
        host.settle()


def test_room_that_was_for_an_endpoint_which_is_closed_goes_to_the_next() -> None:
    with two_that_wait() as (_, host, ends, ports, filler):
        filler.release(1 << 20)  # wakes the first, by a letter
        ends[0].close()
        host.settle()
        assert ports[1].told == ["resume"]


def test_room_that_comes_while_a_borrowed_endpoint_enlists_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    with two_that_wait() as (_, host, ends, _, filler):
        ends[0].close()
        ends[1].close()
        host.settle()
        enlist = MemoryQuota.add_waiter

        def find_room_just_now(memory: MemoryQuota, waiter: Callable[[], bool]) -> None:
            enlist(memory, waiter)
            memory.remove_waiter(waiter)  # as if it were enlisted after the news
            filler.release(1 << 20)
            enlist(memory, waiter)

        monkeypatch.setattr(MemoryQuota, "add_waiter", find_room_just_now)
        loop, memory = ends[0]._loop, ends[0]._memory  # type: ignore[attr-defined]
        port = Pushed()
        late = borrow(loop, port, LOOPBACK, LOOPBACK, memory)
        late.read(lambda _: None, SliceBuffer())
        assert (port.told, memory.somebody_waits) == (["resume"], False)
        late.close()


def test_a_borrowed_endpoint_refuses_a_buffer_that_is_lent_and_goes_on() -> None:
    memory = ResourceQuota().create_memory_allocator("borrowed").memory
    with hand_turned() as (engine, host):
        ports = [Pushed(), Pushed()]
        reading, other = (borrow(engine._loop, port, LOOPBACK, LOOPBACK, memory) for port in ports)
        lent = SliceBuffer()
        outcome: list[Status] = []
        assert not reading.read(outcome.append, lent)
        for operation in (other.read, other.write):
            with pytest.raises(BusyResourceError, match="lent"):
                operation(pytest.fail, lent)
        assert other.write(pytest.fail, SliceBuffer([b"x"]))
        ports[0].data(b"data")
        host.until(lambda: outcome)
        assert (outcome, bytes(lent)) == ([Status.OK], b"data")
        reading.close()
        other.close()
        host.settle()


@pytest.mark.parametrize("when", ["it-begins-to-wait", "bytes-come"])
def test_a_borrowed_endpoint_that_a_reclaimer_closes_neither_waits_nor_holds_anything(when: str) -> None:
    quota = ResourceQuota(memory=1 << 20)
    allocator = quota.create_memory_allocator("its own")
    outcome: list[Status] = []

    def close(sweep: ReclamationSweep | None) -> None:
        if sweep is not None:
            endpoint.close()

    with hand_turned() as (engine, host):
        port = Pushed()
        endpoint = borrow(engine._loop, port, LOOPBACK, LOOPBACK, allocator.memory)
        if when == "bytes-come":
            endpoint.read(outcome.append, SliceBuffer())
        allocator.reserve(MemoryRequest(1 << 20))
        allocator.post_reclaimer(ReclamationPass.IDLE, close)
        if when == "bytes-come":
            port.data(b"data")
        else:
            endpoint.read(outcome.append, SliceBuffer())
        assert "close" in port.told
        host.settle()
        assert [status.code for status in outcome] == [StatusCode.CANCELLED]
        assert (quota.memory.somebody_waits, quota.memory.used) == (False, 1 << 20)
