"""`Endpoint.write`: all of it, in order, whatever it is made of; and what a broken connection says."""

from __future__ import annotations

import errno
import itertools
import random
import socket
import threading
import zlib

import pytest

from eventengine.memory import MemoryRequest
from eventengine.slices import Slice, SliceBuffer
from eventengine.status import Status, StatusCode
from eventengine.testing.application import Application, Callback, Ledger
from eventengine.testing.capabilities import needs
from eventengine.testing.conformance.pairs import SLOW, Pair, full, meanwhile, nothing, paired
from eventengine.testing.oracle import pattern, receive, receive_all, reset

BROKEN = (errno.EPIPE, errno.ECONNRESET)


@pytest.mark.parametrize("slices", [1, 10_000])
def test_64_mebibytes_in_one_write_to_a_slow_reader_arrive_unchanged(app: Application, slices: int) -> None:
    part = pattern((1 << 20) + 13)
    data = memoryview(part * 64)
    step = -(-len(data) // slices)
    buffer = SliceBuffer(data[start : start + step] for start in range(0, len(data), step))
    received = checksum = 0
    with paired(app, receive_buffer_size=2 * SLOW) as (endpoint, oracle), memoryview(bytearray(1 << 16)) as room:
        on_writable = app.start_write(endpoint, buffer)
        while received < len(data):
            count = oracle.recv_into(room)
            assert count
            checksum = zlib.crc32(room[:count], checksum)
            received += count
        assert on_writable.result().ok
    assert received == len(data)
    assert checksum == zlib.crc32(data)


def test_many_small_slices_arrive_in_order(any_pair: Pair, anywhere: Application) -> None:
    choose = random.Random(5)
    cuts = [0, *sorted(choose.randrange(200_000) for _ in range(4000)), 200_000]
    data = pattern(200_000)
    parts = [data[start:stop] for start, stop in itertools.pairwise(cuts)]
    received: list[bytes] = []
    with meanwhile(lambda: received.append(receive(any_pair.oracle, len(data)))):
        assert anywhere.write(any_pair.endpoint, SliceBuffer(parts)).ok
    assert received == [data]


def test_an_empty_write_is_done_at_once(pair: Pair, anywhere: Application, ledger: Ledger) -> None:
    never = Callback[Status](ledger, times=0)
    for empty in (SliceBuffer(), SliceBuffer([b"", bytearray(), memoryview(b""), Slice.of(b"")])):
        assert anywhere.call(lambda empty=empty: pair.endpoint.write(never, empty)) is True  # type: ignore[misc]
    assert anywhere.write(pair.endpoint, b"and then something").ok
    assert receive(pair.oracle, 18) == b"and then something"


def test_bytes_of_every_kind_can_be_written(any_pair: Pair, app: Application) -> None:
    allocator = app.quota.create_memory_allocator("writing")
    made = allocator.make_slice(MemoryRequest(5))
    made.view[:] = b"made;"
    buffer = SliceBuffer()
    for part in (
        b"bytes;",
        b"",
        bytearray(b"bytearray;"),
        bytearray(),
        memoryview(b"..memoryview;..")[2:-2],
        memoryview(b""),
        made,
        allocator.copy(b"copied;"),
        allocator.copy(b""),
        allocator.copy(b"<<part of it;>>")[2:-2],
        Slice.of(b"of;"),
    ):
        buffer.append(part)
    buffer.prepend(allocator.copy(b"first;"))
    expected = b"first;bytes;bytearray;memoryview;made;copied;part of it;of;"
    assert app.write(any_pair.endpoint, buffer).ok
    assert receive(any_pair.oracle, len(expected)) == expected


def test_a_write_larger_than_the_sockets_buffers_is_done_only_when_all_was_handed_over(
    any_pair: Pair, anywhere: Application
) -> None:
    data = pattern(1 << 20) * 16  # more than any socket's buffers hold
    on_writable = anywhere.start_write(any_pair.endpoint, data)
    anywhere.on_loop(nothing)
    assert on_writable.count == 0
    assert receive(any_pair.oracle, 100_000) == data[:100_000]
    assert on_writable.count == 0
    assert receive(any_pair.oracle, len(data) - 100_000) == data[100_000:]
    assert on_writable.result().ok


def test_a_small_write_that_a_full_connection_does_not_take_waits_and_arrives(app: Application) -> None:
    sent: list[bytes] = []
    with full(app) as (endpoint, oracle):
        while True:
            sent.append(pattern(1000, len(sent)))
            on_writable = app.start_write(endpoint, sent[-1])
            app.on_loop(nothing)
            if not on_writable.count:
                break
        assert receive(oracle, 1000 * len(sent)) == b"".join(sent)
        assert on_writable.result().ok


def test_on_writable_is_never_called_before_write_has_returned(app: Application, ledger: Ledger) -> None:
    inside = threading.local()
    called_inside: list[bool] = []

    def write(data: bytes) -> None:
        ended = Callback[Status](ledger)

        def on_writable(status: Status) -> None:
            called_inside.append(getattr(inside, "call", False))
            ended(status)

        def start() -> None:
            inside.call = True
            done = endpoint.write(on_writable, SliceBuffer([data]))
            inside.call = False
            if done:
                ended(Status.OK)

        app.on_loop(start)
        ended.result()

    with full(app) as (endpoint, oracle):
        write(b"small")
        with meanwhile(lambda: receive(oracle, (1 << 20) + 5)):
            write(bytes(1 << 20))
        reset(oracle)
        for _ in range(4):
            write(b"in vain")
    assert True not in called_inside


def test_writes_come_one_after_another_without_end(pair: Pair, ledger: Ledger, app: Application) -> None:
    """A thousand writes, each started by the end of the one before, whether that is True or a callback."""
    choose = random.Random(9)
    total = 1_000_000
    cuts = [0, *sorted(choose.randrange(total) for _ in range(999)), total]
    data = pattern(total)
    parts = [data[start:stop] for start, stop in itertools.pairwise(cuts)]
    ended = Callback[Status](ledger)
    left = iter(parts)

    def go_on(status: Status) -> None:
        while status.ok:
            part = next(left, None)
            if part is None:
                break
            if not pair.endpoint.write(go_on, SliceBuffer([part])):
                return
        ended(status)

    received: list[bytes] = []
    with meanwhile(lambda: received.append(receive(pair.oracle, total))):
        app.on_loop(lambda: go_on(Status.OK))
        assert ended.result().ok
    assert received == [data]


def test_reads_and_writes_go_on_at_the_same_time(pair: Pair, anywhere: Application) -> None:
    size = 2 << 20
    there, back = pattern(size, 1), pattern(size, 2)
    received: list[bytes] = []
    with meanwhile(lambda: pair.oracle.sendall(back), lambda: received.append(receive(pair.oracle, size))):
        on_writable = anywhere.start_write(pair.endpoint, there)
        assert anywhere.receive(pair.endpoint, size) == back
        assert on_writable.result().ok
    assert received == [there]


def test_a_write_goes_on_while_a_read_is_outstanding_and_the_other_way_round(
    pair: Pair, anywhere: Application
) -> None:
    buffer = SliceBuffer()
    on_read = anywhere.start_read(pair.endpoint, buffer)
    for n in range(10):
        assert anywhere.write(pair.endpoint, b"%d" % n).ok
    assert receive(pair.oracle, 10) == b"0123456789"
    anywhere.on_loop(nothing)
    assert on_read.count == 0
    with meanwhile(lambda: receive_all(pair.oracle)):
        on_writable = anywhere.start_write(pair.endpoint, bytes(16 << 20))
        pair.oracle.sendall(b"read")
        assert on_read.result().ok
        assert on_writable.result().ok
        pair.endpoint.close()
    assert bytes(buffer) == b"read"[: len(buffer)]


def _write_until_it_fails(app: Application, pair: Pair) -> Status:
    """The first write that is refused; those before it went where nobody reads."""
    for _ in range(100):
        status = app.write(pair.endpoint, pattern(1000))
        if not status.ok:
            return status
    raise AssertionError("100 writes to a peer that is gone were taken")


@needs("resets")
def test_writes_to_a_peer_that_reset_are_unavailable_and_so_is_the_read(pair: Pair, anywhere: Application) -> None:
    """The system reports a reset once; whoever asks later still gets it."""
    buffer = SliceBuffer()
    reset(pair.oracle)
    status = _write_until_it_fails(anywhere, pair)
    for _ in range(3):
        assert status.code is StatusCode.UNAVAILABLE
        assert status.errno in BROKEN
        status = anywhere.write(pair.endpoint, b"in vain")
    for _ in range(2):
        status = anywhere.read(pair.endpoint, buffer)
        assert status.code is StatusCode.UNAVAILABLE
        assert status.errno == errno.ECONNRESET
        assert len(buffer) == 0
    assert anywhere.write(pair.endpoint, b"in vain").errno in BROKEN


@needs("resets")
def test_a_read_that_met_the_reset_leaves_the_write_its_error(pair: Pair, anywhere: Application) -> None:
    reset(pair.oracle)
    assert anywhere.read(pair.endpoint, SliceBuffer()).errno == errno.ECONNRESET
    for _ in range(3):
        status = anywhere.write(pair.endpoint, b"in vain")
        assert status.code is StatusCode.UNAVAILABLE
        assert status.errno in BROKEN


@needs("resets")
def test_a_reset_ends_a_read_and_a_write_that_are_outstanding(app: Application) -> None:
    with full(app) as (endpoint, oracle):
        on_read = app.start_read(endpoint, SliceBuffer())
        on_writable = app.start_write(endpoint, bytes(1 << 20))
        app.on_loop(nothing)
        reset(oracle)
        assert on_read.result().code is StatusCode.UNAVAILABLE
        assert on_read.result().errno == errno.ECONNRESET
        assert on_writable.result().code is StatusCode.UNAVAILABLE
        assert on_writable.result().errno in BROKEN


def test_a_peer_that_closed_refuses_writes_and_what_it_had_sent_is_still_read(
    any_pair: Pair, anywhere: Application
) -> None:
    any_pair.oracle.sendall(b"farewell")
    any_pair.oracle.close()
    status = _write_until_it_fails(anywhere, any_pair)
    assert status.code is StatusCode.UNAVAILABLE
    assert status.errno in BROKEN
    buffer = SliceBuffer()
    assert anywhere.read(any_pair.endpoint, buffer, 8).ok
    assert bytes(buffer) == b"farewell"
    assert anywhere.read(any_pair.endpoint, buffer).code is StatusCode.OUT_OF_RANGE


def test_writing_goes_on_after_the_peer_ended_its_stream(any_pair: Pair, anywhere: Application) -> None:
    endpoint, oracle = any_pair
    oracle.sendall(b"a request")
    oracle.shutdown(socket.SHUT_WR)
    assert anywhere.receive_all(endpoint)[0] == b"a request"
    answer = pattern(2 << 20)
    received: list[bytes] = []
    with meanwhile(lambda: received.append(receive_all(oracle))):
        assert anywhere.write(endpoint, answer).ok
        assert anywhere.read(endpoint, SliceBuffer()).code is StatusCode.OUT_OF_RANGE
        assert anywhere.write(endpoint, b"and more").ok
        endpoint.close()
    assert received == [answer + b"and more"]


def test_a_write_gives_the_memory_of_its_slices_back_when_it_is_done(app: Application) -> None:
    allocator = app.quota.create_memory_allocator("writing")
    with paired(app) as (endpoint, oracle):
        buffer = SliceBuffer(allocator.copy(pattern(3000, n)) for n in range(100))
        assert app.quota.memory.used >= 300_000
        received: list[bytes] = []
        with meanwhile(lambda: received.append(receive(oracle, 300_000))):
            assert app.write(endpoint, buffer).ok
        buffer.clear()
        app.on_loop(nothing)
        assert app.quota.memory.used == 0
    assert received == [b"".join(pattern(3000, n) for n in range(100))]
