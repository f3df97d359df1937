"""Reading while the memory quota is full: it waits, the peer with it, and goes on without a loss."""

from __future__ import annotations

import errno
import gc
import queue
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from eventengine.address import ResolvedAddress
from eventengine.config import EndpointConfig
from eventengine.engine import Endpoint, EventEngine
from eventengine.memory import MemoryRequest
from eventengine.quota import ResourceQuota
from eventengine.slices import Slice, SliceBuffer
from eventengine.status import Status, StatusCode
from eventengine.testing.application import Application, Callback, Ledger
from eventengine.testing.capabilities import needs
from eventengine.testing.conformance.pairs import full, meanwhile, nothing, paired, send_until_full
from eventengine.testing.oracle import TIMEOUT, connect, pattern, reset

SIZE = 64 * 1024


@pytest.fixture
def small_quota() -> Iterator[ResourceQuota]:
    """One of 64 KiB. In the end all has been given back, and there was never more than that."""
    quota = ResourceQuota("small", memory=SIZE)
    yield quota
    if quota.memory.used:
        gc.collect()
    assert quota.memory.used == 0
    assert quota.memory.peak <= SIZE


@pytest.fixture
def small(small_quota: ResourceQuota, engine: EventEngine, ledger: Ledger) -> Application:
    """Calls the engine; its connections draw on the small quota."""
    return Application(engine, small_quota, ledger)


def _fill(quota: ResourceQuota, parts: int = 1) -> list[Slice]:
    """Takes all of the quota's memory, in so many slices."""
    allocator = quota.create_memory_allocator("held by the test")
    held = [allocator.make_slice(MemoryRequest(SIZE // parts)) for _ in range(parts)]
    assert quota.memory.used == SIZE
    return held


@pytest.mark.parametrize("released_by", ["a thread", "a callback"])
@pytest.mark.parametrize("role", ["client", "server"])
def test_a_read_and_its_peer_wait_while_the_quota_is_full_and_go_on_when_memory_comes_back(
    small: Application, role: str, released_by: str
) -> None:
    data = pattern(8 << 20)
    buffer = SliceBuffer()
    with full(small, role) as (endpoint, oracle):
        held = _fill(small.quota)
        on_read = small.start_read(endpoint, buffer)
        sent = send_until_full(oracle, data)
        small.on_loop(nothing)
        assert 0 < sent < len(data)
        assert on_read.count == 0
        assert small.quota.memory.used == SIZE
        if released_by == "a callback":
            small.on_loop(held.clear)
        else:
            held.clear()
        assert on_read.result().ok
        received = bytes(buffer)
        buffer.clear()
        received += small.receive(endpoint, sent - len(received))
        assert received == data[:sent]


def test_a_read_waits_too_when_the_quota_was_filled_while_it_was_outstanding(small: Application) -> None:
    buffer = SliceBuffer()
    with full(small) as (endpoint, oracle):
        oracle.sendall(b"before")
        assert small.receive(endpoint, 6) == b"before"
        on_read = small.start_read(endpoint, buffer)
        small.on_loop(nothing)
        held = _fill(small.quota)
        oracle.sendall(b"after")
        small.on_loop(nothing)
        assert on_read.count == 0
        held.clear()
        assert on_read.result().ok
        assert bytes(buffer) == b"after"


def test_all_that_wait_go_on_when_all_memory_comes_back(small: Application) -> None:
    with ExitStack() as stack:
        held = _fill(small.quota)
        reads: list[tuple[Callback[Status], SliceBuffer]] = []
        for n in range(10):
            endpoint, oracle = stack.enter_context(paired(small))
            buffer = SliceBuffer()
            reads.append((small.start_read(endpoint, buffer), buffer))
            oracle.sendall(pattern(200, n))
        small.on_loop(nothing)
        assert [on_read.count for on_read, _ in reads] == [0] * 10
        held.clear()
        for n, (on_read, buffer) in enumerate(reads):
            assert on_read.result().ok
            assert bytes(buffer) == pattern(200, n)


def test_those_that_wait_go_on_one_by_one_as_memory_comes_back(small: Application) -> None:
    """Each that goes on keeps what it read; memory for one more is given back only then."""
    with ExitStack() as stack:
        held = _fill(small.quota, parts=16)
        called = threading.Semaphore(0)
        buffers: list[SliceBuffer] = []
        reads: list[Callback[Status]] = []
        for n in range(16):
            endpoint, oracle = stack.enter_context(paired(small))
            buffer = SliceBuffer()
            buffers.append(buffer)
            on_read = Callback[Status](small.ledger)
            reads.append(on_read)

            def count(status: Status, on_read: Callback[Status] = on_read) -> None:
                on_read(status)
                called.release()

            assert not endpoint.read(count, buffer)
            oracle.sendall(pattern(200, n))
        small.on_loop(nothing)
        assert not called.acquire(blocking=False)
        while held:
            held.pop()
            assert called.acquire(timeout=TIMEOUT)
            assert small.quota.memory.used <= SIZE
        for n, on_read in enumerate(reads):
            assert on_read.result().ok
            assert bytes(buffers[n]) == pattern(200, n)


@pytest.mark.parametrize("closed_by", ["a thread", "a callback"])
def test_closing_an_endpoint_that_waits_for_memory_cancels_its_read_and_lets_others_go_on(
    small: Application, closed_by: str
) -> None:
    first, second = SliceBuffer(), SliceBuffer()
    with paired(small) as (endpoint, oracle), paired(small) as (other, other_oracle):
        held = _fill(small.quota)
        cancelled = small.start_read(endpoint, first)
        oracle.sendall(b"never read")
        small.on_loop(nothing)
        on_read = small.start_read(other, second)
        other_oracle.sendall(b"read in the end")
        small.on_loop(nothing)
        if closed_by == "a callback":
            small.on_loop(endpoint.close)
        else:
            endpoint.close()
        assert cancelled.result().code is StatusCode.CANCELLED
        assert len(first) == 0
        assert on_read.count == 0
        held.clear()
        assert on_read.result().ok
        assert bytes(second) == b"read in the end"


def test_the_end_that_comes_while_a_read_waits_for_memory_is_told(small: Application) -> None:
    buffer = SliceBuffer()
    with paired(small) as (endpoint, oracle):
        held = _fill(small.quota)
        on_read = small.start_read(endpoint, buffer)
        oracle.sendall(b"the last words")
        small.on_loop(nothing)
        oracle.close()
        small.on_loop(nothing)
        held.clear()
        assert on_read.result().ok
        assert bytes(buffer) == b"the last words"
        assert small.read(endpoint, buffer).code is StatusCode.OUT_OF_RANGE


def test_closing_the_engine_cancels_the_reads_that_wait_for_memory(small: Application) -> None:
    buffer = SliceBuffer()
    with paired(small) as (endpoint, oracle):
        held = _fill(small.quota)
        on_read = small.start_read(endpoint, buffer)
        oracle.sendall(b"never read")
        small.on_loop(nothing)
        small.engine.close()
        assert on_read.result().code is StatusCode.CANCELLED
        held.clear()


def test_nothing_is_lost_or_reordered_while_the_quota_is_full_again_and_again(small: Application) -> None:
    """Four streams, each eight times the quota, whose slices another thread lets go of one by one."""
    size = 8 * SIZE
    streams = [pattern(size, n) for n in range(4)]
    read: queue.SimpleQueue[Slice | None] = queue.SimpleQueue()
    wrong: list[str] = []

    def let_go() -> None:
        while read.get() is not None:
            pass

    with ExitStack() as stack:
        pairs = [stack.enter_context(paired(small, role)) for role in ("client", "server") * 2]
        ended = [Callback[None](small.ledger) for _ in pairs]

        def reader(n: int) -> None:
            endpoint = pairs[n].endpoint
            buffer = SliceBuffer()
            done = 0

            def on_read(status: Status) -> None:
                nonlocal done
                while True:
                    if not status.ok or bytes(buffer) != streams[n][done : done + len(buffer)]:
                        wrong.append(f"stream {n} after {done} bytes: {status}")
                        ended[n](None)
                        return
                    done += len(buffer)
                    while buffer.count:
                        read.put(buffer.take_first())
                    if done == size:
                        ended[n](None)
                        return
                    if not endpoint.read(on_read, buffer):
                        return

            if endpoint.read(on_read, buffer):
                on_read(Status.OK)

        with meanwhile(let_go):
            try:
                with meanwhile(*(lambda n=n: pairs[n].oracle.sendall(streams[n]) for n in range(4))):
                    for n in range(4):
                        reader(n)
                    for callback in ended:
                        callback.result()
            finally:
                read.put(None)
    assert wrong == []


@needs("resets")
@pytest.mark.parametrize("how", ["end", "reset"])
def test_an_end_or_a_reset_is_told_though_the_quota_is_full(small: Application, how: str) -> None:
    """It needs no memory; and whoever holds the memory may be waiting for just this."""
    with paired(small) as (endpoint, oracle):
        held = _fill(small.quota)
        on_read = small.start_read(endpoint, SliceBuffer())
        small.on_loop(nothing)
        if how == "end":
            oracle.close()
            assert on_read.result().code is StatusCode.OUT_OF_RANGE
        else:
            reset(oracle)
            assert on_read.result().errno == errno.ECONNRESET
            assert small.read(endpoint, SliceBuffer()).errno == errno.ECONNRESET
        held.clear()


class _Keeper:
    """Keeps all that it reads until the stream ends, as who waits for the rest of a message does."""

    def __init__(self, endpoint: Endpoint, ended: threading.Semaphore) -> None:
        self._endpoint = endpoint
        self._ended = ended
        self._kept: list[Slice] = []
        self._buffer = SliceBuffer()
        self._go_on(Status.OK)

    def _go_on(self, status: Status) -> None:
        while status.ok:
            while self._buffer.count:
                self._kept.append(self._buffer.take_first())
            if not self._endpoint.read(self._go_on, self._buffer):
                return
        self._kept.clear()
        self._endpoint.close()
        self._ended.release()


def test_a_quota_that_vanished_peers_had_filled_is_free_again(small: Application) -> None:
    ended = threading.Semaphore(0)
    on_shutdown = Callback[Status](small.ledger)
    listener = small.engine.create_listener(
        lambda endpoint, _: _Keeper(endpoint, ended), on_shutdown, EndpointConfig(), small.quota
    )
    address = ResolvedAddress.tcp("127.0.0.1", 0)
    address = address.with_port(listener.bind(address))
    listener.start()
    oracles = [connect(address) for _ in range(60)]
    for oracle in oracles:
        oracle.sendall(b"the beginning of a message")
    for oracle in oracles:
        oracle.close()
    for n in range(60):
        assert ended.acquire(timeout=TIMEOUT), f"{n} of 60 were told that the rest will not come"
    listener.close()
    on_shutdown.result()
