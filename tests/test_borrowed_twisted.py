"""What only Twisted has as transports: a process' pipes, UNIX ports, its own wrappers, the reactor of ours."""

from __future__ import annotations

import errno
import queue
import threading
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from eventengine import (
    Endpoint,
    HalfCloseable,
    ResolvedAddress,
    ResourceQuota,
    SliceBuffer,
    Status,
    StatusCode,
    StatusError,
    create_event_engine,
)
from eventengine.testing.application import Application, Callback
from eventengine.testing.conformance.fixtures import *
from eventengine.testing.oracle import TIMEOUT, connect, pattern, receive, receive_all

pytest.importorskip("twisted.internet", reason="twisted is not installed")

from twisted.internet import error
from twisted.internet.protocol import Factory, Protocol
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure

from borrowed_stages import STAGES, TwistedStage
from eventengine.bridges import asyncio as asyncio_bridge
from eventengine.bridges.twisted import EndpointFactory, EndpointProcessProtocol, EndpointProtocol


@pytest.fixture
def stage(quota: ResourceQuota) -> Iterator[TwistedStage]:
    with STAGES["twisted"][1]() as stage:
        yield stage


@pytest.fixture
def engine(stage: TwistedStage) -> Any:
    return stage.engine


class Process:
    """A process that the reactor has spawned, as an endpoint; its end is waited for."""

    def __init__(self, stage: TwistedStage, app: Application, *command: str) -> None:
        ended = self.ended = threading.Event()
        started = Callback[Endpoint](app.ledger)

        class Ours(EndpointProcessProtocol):
            errors = b""

            def errReceived(self, data: bytes) -> None:  # noqa: N802
                self.errors += data

            def processEnded(self, reason: Any) -> None:  # noqa: N802
                super().processEnded(reason)
                ended.set()

        self.protocol = Ours(stage.engine, app.quota.create_memory_allocator("process"), started)
        stage.call(lambda: stage.reactor.spawnProcess(self.protocol, command[0], command, env={"PATH": "/bin"}))
        self.endpoint = started.result()
        self._stage = stage

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.endpoint.close()
        # Nobody handles SIGCHLD for a reactor in a thread.
        from twisted.internet.process import reapAllProcesses

        for _ in range(int(TIMEOUT * 100)):
            self._stage.call(reapAllProcesses)
            if self.ended.wait(0.01):
                return
        raise AssertionError("the process has not ended")


def test_a_process_is_an_endpoint(stage: TwistedStage, app: Application) -> None:
    data = pattern(2 << 20)
    with Process(stage, app, "/bin/cat") as process:
        endpoint = process.endpoint
        on_writable = app.start_write(endpoint, data)
        assert app.receive(endpoint, len(data)) == data
        assert on_writable.result().ok
        half = endpoint.query_extension(HalfCloseable)
        assert half is not None
        assert app.write(endpoint, b"the end").ok
        half.close_write()
        assert app.receive_all(endpoint) == (b"the end", app.read(endpoint, SliceBuffer()))
        assert app.read(endpoint, SliceBuffer()).code is StatusCode.OUT_OF_RANGE
        assert str(endpoint.peer_address) == str(endpoint.local_address) == "unix:"


def test_a_process_that_nobody_reads_is_held_back(stage: TwistedStage, app: Application) -> None:
    with Process(stage, app, "/bin/sh", "-c", "yes | head -c 3000000; echo done >&2") as process:
        buffer = SliceBuffer()
        assert app.read(process.endpoint, buffer).ok
        first = bytes(buffer)
        buffer.clear()
        for _ in range(20):
            app.on_loop(lambda: None)
        assert app.quota.memory.used <= 256 * 1024
        assert process.protocol.errors == b""
        rest, status = app.receive_all(process.endpoint)
        assert first + rest == b"y\n" * 1_500_000
        assert status.code is StatusCode.OUT_OF_RANGE


def test_a_process_that_has_closed_its_input_refuses_writes(stage: TwistedStage, app: Application) -> None:
    with Process(stage, app, "/bin/sh", "-c", "exec <&-; echo closed; read x <&1 2>/dev/null; sleep 0") as process:
        assert app.receive(process.endpoint, 7) == b"closed\n"
        status = Status.OK
        for _ in range(100):
            status = app.write(process.endpoint, pattern(1000))
            if not status.ok:
                break
        assert status.code is StatusCode.UNAVAILABLE
        assert app.read(process.endpoint, SliceBuffer()).code is StatusCode.OUT_OF_RANGE


def test_closing_a_process_cancels_what_is_outstanding(stage: TwistedStage, app: Application) -> None:
    with Process(stage, app, "/bin/cat") as process:
        on_read = app.start_read(process.endpoint, SliceBuffer())
        process.endpoint.close()
        assert on_read.result().code is StatusCode.CANCELLED


class Recorder(Protocol):
    """What a connection had before it was borrowed."""

    def __init__(self, made: queue.SimpleQueue[Any]) -> None:
        self._made = made
        self.heard = b""

    def connectionMade(self) -> None:  # noqa: N802
        self._made.put(self)

    def dataReceived(self, data: bytes) -> None:  # noqa: N802
        self.heard += data
        self._made.put(self)


def _listen(
    stage: TwistedStage, where: Path | None, wrap: bool = False
) -> tuple[queue.SimpleQueue[Any], ResolvedAddress]:
    made: queue.SimpleQueue[Any] = queue.SimpleQueue()
    factory: Any = Factory()
    factory.noisy = False
    factory.buildProtocol = lambda _: Recorder(made)
    if wrap:
        factory = WrappingFactory(factory)
        factory.protocol = ProtocolWrapper
    if where is not None:
        port = stage.call(lambda: stage.reactor.listenUNIX(str(where), factory))
        address = ResolvedAddress.parse(f"unix:{where}")
    else:
        port = stage.call(lambda: stage.reactor.listenTCP(0, factory, interface="127.0.0.1"))
        address = ResolvedAddress.tcp("127.0.0.1", port.getHost().port)
    stage._ports.append(port)
    return made, address


@pytest.mark.parametrize("kind", ["tcp", "unix", "wrapped"])
def test_a_connection_may_be_borrowed_after_its_protocol_has_used_it(
    stage: TwistedStage, app: Application, unix_folder: Path, kind: str
) -> None:
    made, address = _listen(stage, unix_folder / "socket" if kind == "unix" else None, kind == "wrapped")
    allocator = app.quota.create_memory_allocator("borrowed")
    with connect(address) as oracle:
        protocol = made.get(timeout=TIMEOUT)
        oracle.sendall(b"hello")
        made.get(timeout=TIMEOUT)
        endpoint: Endpoint = stage.call(
            lambda: stage.engine.endpoint_from_transport(protocol.transport, allocator)
        )
        with closing(endpoint):
            assert endpoint.local_address == address
            data = pattern(300_000)
            sending = threading.Thread(target=oracle.sendall, args=(data,))
            sending.start()
            assert app.receive(endpoint, len(data)) == data
            sending.join(TIMEOUT)
            on_writable = app.start_write(endpoint, data)
            assert receive(oracle, len(data)) == data
            assert on_writable.result().ok
        assert receive_all(oracle) == b""
        assert protocol.heard == b"hello"
    stage.close()  # while there is the folder that its socket lies in


def test_a_transport_that_has_a_producer_or_was_closed_is_refused_and_stays_as_it_was(
    stage: TwistedStage, app: Application
) -> None:
    made, address = _listen(stage, None)
    allocator = app.quota.create_memory_allocator("borrowed")
    with connect(address) as oracle:
        protocol = made.get(timeout=TIMEOUT)
        borrow = partial(stage.engine.endpoint_from_transport, protocol.transport, allocator)

        class Producer:
            def resumeProducing(self) -> None:  # noqa: N802
                pass

            pauseProducing = stopProducing = resumeProducing  # noqa: N815

        stage.call(lambda: protocol.transport.registerProducer(Producer(), True))
        with pytest.raises(StatusError, match="FAILED_PRECONDITION: the transport has a producer"):
            stage.call(borrow)
        oracle.sendall(b"still heard")
        made.get(timeout=TIMEOUT)
        assert protocol.heard == b"still heard"
        stage.call(protocol.transport.unregisterProducer)
        stage.call(protocol.transport.loseConnection)
        with pytest.raises(StatusError, match=r"was closed.*ENOTCONN"):
            stage.call(borrow)


@pytest.mark.parametrize("reads", ["reads before", "reads after"])
def test_a_transport_that_another_closes_is_closed_and_reads_are_told(
    stage: TwistedStage, app: Application, reads: str
) -> None:
    """As its factory or a policy may; the producer that we are would keep it from that."""
    made, address = _listen(stage, None)
    allocator = app.quota.create_memory_allocator("borrowed")
    with connect(address) as oracle:
        transport = made.get(timeout=TIMEOUT).transport
        endpoint: Endpoint = stage.call(lambda: stage.engine.endpoint_from_transport(transport, allocator))
        with closing(endpoint):
            before = app.start_read(endpoint, SliceBuffer()) if reads == "reads before" else None
            stage.call(transport.loseConnection)
            assert oracle.recv(1) == b""
            status = before.result() if before else app.read(endpoint, SliceBuffer())
            assert status.code is StatusCode.UNAVAILABLE
            assert app.write(endpoint, b"x").code is StatusCode.UNAVAILABLE


def test_a_transport_that_cannot_be_paused_is_refused(stage: TwistedStage, app: Application) -> None:
    class Unpaused:
        def write(self, data: bytes) -> None:
            raise AssertionError("nobody writes")

        loseConnection = write  # noqa: N815

    allocator = app.quota.create_memory_allocator("borrowed")
    with pytest.raises(TypeError, match=r"can be paused \(ITransport and IPushProducer\), not Unpaused"):
        stage.call(lambda: stage.engine.endpoint_from_transport(Unpaused(), allocator))


def test_any_transport_that_can_be_paused_is_an_endpoint(stage: TwistedStage, app: Application) -> None:
    """As an SSH channel: no file descriptor, no producers, a protocol that can be set."""

    class Channel:
        protocol: Any = None
        connected = True

        def __init__(self) -> None:
            self.calls: list[object] = []

        def write(self, data: bytes) -> None:
            self.calls.append(data)

        def loseConnection(self) -> None:  # noqa: N802
            self.calls.append("lost")

        def pauseProducing(self) -> None:  # noqa: N802
            self.calls.append("paused")

        def resumeProducing(self) -> None:  # noqa: N802
            self.calls.append("resumed")

        def getPeer(self) -> object:  # noqa: N802
            return object()

        getHost = getPeer  # noqa: N815

    channel = Channel()
    allocator = app.quota.create_memory_allocator("borrowed")
    endpoint = stage.call(lambda: stage.engine.endpoint_from_transport(channel, allocator))
    assert app.write(endpoint, b"out").ok
    buffer = SliceBuffer()
    on_read = app.start_read(endpoint, buffer)
    app.on_loop(lambda: None)
    stage.call(lambda: channel.protocol.dataReceived(b"in"))
    assert on_read.result().ok
    assert bytes(buffer) == b"in"
    stage.call(lambda: channel.protocol.dataReceived(b"too early"))
    assert app.quota.memory.used > 0
    assert app.receive(endpoint, 9) == b"too early"
    endpoint.close()
    app.on_loop(lambda: None)
    assert [call for call in channel.calls if call != "resumed"][:3] == ["paused", b"out", "paused"]
    assert "lost" in channel.calls
    from twisted.internet.error import ConnectionDone
    from twisted.python.failure import Failure

    stage.call(lambda: channel.protocol.connectionLost(Failure(ConnectionDone())))


def test_a_connection_of_the_bounded_reactor_may_be_borrowed(app: Application, quota: ResourceQuota) -> None:
    """In a process of its own below, for it is a reactor that is installed."""
    import subprocess
    import sys

    script = """
import socket, threading
from eventengine.bridges.twisted.reactor import install
install(quota="8MiB")
from twisted.internet import reactor
from eventengine import ResourceQuota, SliceBuffer, Status
from eventengine.bridges.twisted import EndpointFactory, TwistedEventEngine
engine = TwistedEventEngine(reactor)
def on_accept(endpoint, allocator):
    buffer = SliceBuffer()
    def on_read(status):
        if not status.ok:
            print(status.code.name, flush=True)
            endpoint.close()
            reactor.callLater(0, reactor.stop)
        elif endpoint.write(on_written, buffer):
            on_written(Status.OK)
    def on_written(status):
        if endpoint.read(on_read, buffer):
            on_read(Status.OK)
    on_written(Status.OK)
port = reactor.listenTCP(0, EndpointFactory(engine, on_accept, ResourceQuota()), interface="127.0.0.1")
def talk():
    with socket.create_connection(("127.0.0.1", port.getHost().port), 20) as peer:
        data = bytes(range(256)) * 4096
        threading.Thread(target=peer.sendall, args=(data,)).start()
        back = b""
        while len(back) < len(data):
            back += peer.recv(65536)
        print(back == data, flush=True)
reactor.callInThread(talk)
reactor.run()
engine.close()
"""
    done = subprocess.run(
        # Twisted's own reserve of a descriptor is never closed.
        [sys.executable, "-W", "error", "-W", "ignore::ResourceWarning", "-c", script],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("True\nOUT_OF_RANGE\n", "", 0)


def test_what_makes_endpoints_says_at_once_what_it_cannot_make_them_with() -> None:
    allocator = ResourceQuota().create_memory_allocator("never")
    with create_event_engine() as engine:
        for made in (EndpointProtocol, EndpointProcessProtocol, asyncio_bridge.EndpointProtocol):
            given: Any = made
            for wrong, why in (
                ((None, allocator, print), "engine must be a HostedEventEngine, not NoneType"),
                (
                    (engine, ResourceQuota(), print),
                    "memory_allocator must be a MemoryAllocator, not ResourceQuota",
                ),
                ((engine, allocator, 5), "on_(connect|start) must be callable, not int"),
            ):
                with pytest.raises(TypeError, match=why):
                    given(*wrong)
        factory: Any = EndpointFactory
        for wrong, why in (
            ((None, print, ResourceQuota()), "engine must be a TwistedEventEngine, not NoneType"),
            ((engine, 5, ResourceQuota()), "on_accept must be callable, not int"),
            ((engine, print, "64MiB"), "as a ResourceQuota has, and str has not"),
        ):
            with pytest.raises(TypeError, match=why):
                factory(*wrong)


@pytest.mark.parametrize(
    ("why", "number"),
    [
        (error.ConnectionRefusedError(osError=errno.ECONNREFUSED), errno.ECONNREFUSED),
        (error.ConnectionAborted(), errno.ECONNABORTED),
        (error.TimeoutError(), errno.ETIMEDOUT),
        (error.ConnectionLost(), errno.ECONNRESET),
        (error.ConnectionDone(), errno.EPIPE),
        (ValueError("of TLS"), errno.EPROTO),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, Exception) else errno.errorcode[each],
)
def test_what_ends_a_connection_of_twisted_s_has_the_nearest_errno(why: Exception, number: int) -> None:
    from eventengine.bridges.twisted.borrowed import number_of

    assert number_of(Failure(why)) == number


def test_a_transport_that_does_not_say_which_protocol_it_serves_is_refused(
    stage: TwistedStage, app: Application
) -> None:
    class Bare:
        def write(self, data: bytes) -> None:
            raise AssertionError("it was borrowed")

        loseConnection = pauseProducing = resumeProducing = write  # noqa: N815

    allocator = app.quota.create_memory_allocator("bare")
    with pytest.raises(TypeError, match="Bare does not say which protocol it serves; give it an EndpointProtocol"):
        stage.call(lambda: stage.engine.endpoint_from_transport(Bare(), allocator))
