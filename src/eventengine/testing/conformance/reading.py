"""`Endpoint.read`: bytes, hints, ends, and the memory that reads take."""

from __future__ import annotations

import errno
import gc
import random
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from eventengine.quota import ResourceQuota
from eventengine.slices import SliceBuffer
from eventengine.status import BusyResourceError, Status, StatusCode
from eventengine.testing.application import Application, Callback, Ledger
from eventengine.testing.capabilities import needs
from eventengine.testing.conformance.pairs import Pair, meanwhile, nothing, paired
from eventengine.testing.oracle import pattern, receive, reset

SIZES = (1, 2, 255, 256, 257, 1000, 4096, 8191, 8192, 8193, 65_537)
HINTS = (1, 2, 1000, 8192, 100_000, 1 << 20)


def _send_in_pieces(oracle: socket.socket, data: bytes, pieces: int = 7) -> None:
    cuts = sorted(random.Random(len(data)).randrange(len(data) + 1) for _ in range(pieces - 1))
    for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
        oracle.sendall(data[start:stop])


def test_bytes_come_in_order_whatever_sizes_they_are_sent_in(any_pair: Pair, anywhere: Application) -> None:
    endpoint, oracle = any_pair
    for size in SIZES:
        data = pattern(size, size)
        oracle.sendall(data)
        assert anywhere.receive(endpoint, size) == data


def test_four_mebibytes_come_in_order(pair: Pair, anywhere: Application) -> None:
    data = pattern(4 << 20)
    with meanwhile(lambda: _send_in_pieces(pair.oracle, data)):
        assert anywhere.receive(pair.endpoint, len(data)) == data


def test_bytes_that_come_one_by_one_are_all_read(app: Application) -> None:
    data = pattern(500)
    with paired(app, "server") as (endpoint, oracle), meanwhile(lambda: _send_in_pieces(oracle, data, pieces=500)):
        assert app.receive(endpoint, len(data)) == data


def test_a_read_clears_the_buffer_first(any_pair: Pair, anywhere: Application) -> None:
    buffer = SliceBuffer([b"what was there before", b"and more"])
    any_pair.oracle.sendall(b"new")
    assert anywhere.read(any_pair.endpoint, buffer, 3).ok
    assert bytes(buffer) == b"new"
    any_pair.oracle.close()
    assert anywhere.read(any_pair.endpoint, buffer).code is StatusCode.OUT_OF_RANGE
    assert bytes(buffer) == b""


def test_a_buffer_that_is_lent_to_a_read_is_refused_to_others(app: Application, ledger: Ledger) -> None:
    """Two reads into one buffer would mix the bytes of two peers."""
    with paired(app) as one, paired(app) as other:
        buffer = SliceBuffer()
        first = app.start_read(one.endpoint, buffer)
        with pytest.raises(BusyResourceError, match="lent to a read that is outstanding"):
            app.call(lambda: other.endpoint.read(Callback[Status](ledger, times=0), buffer))
        with pytest.raises(BusyResourceError, match="lent to a read that is outstanding"):
            app.call(lambda: other.endpoint.write(Callback[Status](ledger, times=0), buffer))
        one.oracle.sendall(b"one")
        assert (first.result(), bytes(buffer)) == (Status.OK, b"one")
        other.oracle.sendall(b"other")
        assert app.receive(other.endpoint, 5) == b"other"
        assert app.write(other.endpoint, buffer).ok
        assert other.oracle.recv(3) == b"one"


@pytest.mark.parametrize("what", ["bytes", "end", "reset"])
def test_on_read_is_never_called_before_read_has_returned(app: Application, ledger: Ledger, what: str) -> None:
    inside = threading.local()
    called_inside: list[bool] = []
    buffer = SliceBuffer()

    with paired(app) as (endpoint, oracle):
        oracle.sendall(pattern(50_000))
        if what == "end":
            oracle.close()
        elif what == "reset":
            reset(oracle)
        for _ in range(5):
            ended = Callback[Status](ledger)

            def on_read(status: Status, ended: Callback[Status] = ended) -> None:
                called_inside.append(getattr(inside, "call", False))
                ended(status)

            def read(on_read: Callable[[Status], None] = on_read, ended: Callback[Status] = ended) -> None:
                inside.call = True
                done = endpoint.read(on_read, buffer)
                inside.call = False
                if done:
                    ended(Status.OK)

            app.on_loop(read)
            ended.result()
            if what == "bytes":
                oracle.sendall(b"more")
    assert True not in called_inside


def test_a_read_with_a_hint_gets_so_many_bytes_at_once_while_writes_go_the_other_way(
    pair: Pair, anywhere: Application
) -> None:
    """Messages of the hint's size in both directions: each read gets a whole one, though it was sent in pieces."""
    endpoint, oracle = pair
    buffer = SliceBuffer()
    for hint in HINTS:
        request, answer = pattern(hint, 1), pattern(hint, 2)
        received: list[bytes] = []

        def peer(request: bytes = request, received: list[bytes] = received) -> None:
            _send_in_pieces(oracle, request)
            received.append(receive(oracle, len(request)))

        on_read = anywhere.start_read(endpoint, buffer, hint)
        with meanwhile(peer):
            assert anywhere.write(endpoint, answer).ok
            assert on_read.result().ok
        assert bytes(buffer) == request
        assert received == [answer]


def test_fewer_bytes_than_the_hint_call_nobody(pair: Pair, anywhere: Application) -> None:
    endpoint, oracle = pair
    buffer = SliceBuffer()
    data = pattern(1000)
    on_read = anywhere.start_read(endpoint, buffer, 1000)
    for start, stop in ((0, 1), (1, 500), (500, 999)):
        oracle.sendall(data[start:stop])
        anywhere.on_loop(nothing)
        assert on_read.count == 0
    oracle.sendall(data[999:])
    assert on_read.result().ok
    assert bytes(buffer) == data


def test_the_end_of_the_stream_is_out_of_range_at_each_read_of_it(any_pair: Pair, anywhere: Application) -> None:
    buffer = SliceBuffer()
    any_pair.oracle.shutdown(socket.SHUT_WR)
    for hint in (1, 1, 100_000):
        status = anywhere.read(any_pair.endpoint, buffer, hint)
        assert status.code is StatusCode.OUT_OF_RANGE
        assert len(buffer) == 0


@pytest.mark.parametrize("hint", [1, 1 << 20])
def test_bytes_before_the_end_come_first_from_a_peer_that_closed_before_we_read(
    any_pair: Pair, app: Application, hint: int
) -> None:
    """With a hint beyond them, they come in one read, which then knows that no more will."""
    endpoint, oracle = any_pair
    data = pattern(50_000)
    oracle.sendall(data)
    oracle.close()
    buffer = SliceBuffer()
    if hint == 1:
        received, status = app.receive_all(endpoint)
    else:
        assert app.read(endpoint, buffer, hint).ok
        received = bytes(buffer)
        status = app.read(endpoint, buffer, hint)
    assert received == data
    assert status.code is StatusCode.OUT_OF_RANGE


def test_the_end_calls_a_read_whose_hint_will_not_be_reached(pair: Pair, anywhere: Application) -> None:
    endpoint, oracle = pair
    buffer = SliceBuffer()
    on_read = anywhere.start_read(endpoint, buffer, 1 << 20)
    oracle.sendall(b"all that comes")
    anywhere.on_loop(nothing)
    assert on_read.count == 0
    oracle.shutdown(socket.SHUT_WR)
    assert on_read.result().ok
    assert bytes(buffer) == b"all that comes"
    assert anywhere.read(endpoint, buffer, 1 << 20).code is StatusCode.OUT_OF_RANGE


@needs("resets")
def test_a_reset_is_unavailable_with_its_errno_at_each_read_of_it(pair: Pair, anywhere: Application) -> None:
    buffer = SliceBuffer()
    on_read = anywhere.start_read(pair.endpoint, buffer)
    reset(pair.oracle)
    status = on_read.result()
    for _ in range(3):
        assert status.code is StatusCode.UNAVAILABLE
        assert status.errno == errno.ECONNRESET
        assert len(buffer) == 0
        status = anywhere.read(pair.endpoint, buffer)


@needs("resets")
def test_what_comes_before_a_reset_is_a_prefix_and_then_comes_the_error(pair: Pair, app: Application) -> None:
    data = pattern(100_000)
    pair.oracle.sendall(data)
    reset(pair.oracle)
    received, status = app.receive_all(pair.endpoint)
    assert data.startswith(received)
    assert status.code is StatusCode.UNAVAILABLE
    assert status.errno == errno.ECONNRESET


def test_a_view_never_shows_the_bytes_of_another_read(app: Application) -> None:
    """Of every third read the views are held to the end, of the others nothing is, so that their memory comes again."""
    choose = random.Random(3)
    material = pattern(400_000)
    messages = [
        material[n : n + choose.choice((1, 100, 256, 2000, 8192, 30_000))] for n in range(0, 300_000, 1000)
    ]
    held: list[tuple[memoryview, bytes]] = []
    buffer = SliceBuffer()
    with paired(app) as (endpoint, oracle):
        for n, message in enumerate(messages):
            oracle.sendall(message)
            done = 0
            while done < len(message):
                assert app.read(endpoint, buffer).ok
                expected = message[done : done + len(buffer)]
                assert bytes(buffer) == expected
                done += len(buffer)
                if n % 3 == 0:
                    for part in buffer.slices:
                        held.append((part.view, expected[: len(part)]))
                        expected = expected[len(part) :]
                buffer.clear()
    assert len(held) >= 50
    assert all(view == expected for view, expected in held)
    assert app.quota.memory.used >= sum(len(view) for view, _ in held)


def test_a_slice_that_is_held_keeps_its_charge_beyond_its_endpoint(app: Application, quota: ResourceQuota) -> None:
    buffer = SliceBuffer()
    with paired(app) as (endpoint, oracle):
        oracle.sendall(pattern(5000))
        assert app.read(endpoint, buffer, 5000).ok
    app.on_loop(nothing)
    assert quota.memory.used >= 5000
    view = buffer.slices[-1].view[-1:]
    buffer.clear()
    app.on_loop(nothing)
    assert quota.memory.used >= 1
    view.release()
    assert quota.memory.used == 0


def test_slices_that_die_in_a_garbage_collection_give_their_charge_back_once(
    app: Application, quota: ResourceQuota
) -> None:
    """And what is read after that is charged, though it may lie in the same memory."""
    data = pattern(5000)
    with paired(app) as (endpoint, oracle):
        oracle.sendall(data)
        cycle: list[object] = [buffer := SliceBuffer()]
        cycle.append(cycle)
        assert app.read(endpoint, buffer, len(data)).ok
        assert bytes(buffer) == data
        app.on_loop(nothing)
        assert quota.memory.used >= len(data)
        del buffer, cycle
        gc.collect()
        assert quota.memory.used == 0
        oracle.sendall(data)
        again = SliceBuffer()
        assert app.read(endpoint, again, len(data)).ok
        app.on_loop(nothing)
        assert quota.memory.used >= len(again) == len(data)


def test_idle_connections_hold_no_memory(app: Application, quota: ResourceQuota) -> None:
    buffers: list[SliceBuffer] = []
    with ExitStack() as stack:
        for n in range(50):
            endpoint, oracle = stack.enter_context(paired(app, "client" if n % 2 else "server"))
            data = pattern(10_000, n)
            oracle.sendall(data)
            assert app.receive(endpoint, len(data)) == data
            buffers.append(SliceBuffer())
            app.start_read(endpoint, buffers[-1])
        app.on_loop(nothing)
        assert quota.memory.used == 0


def test_a_peer_that_sends_nothing_leaves_a_read_outstanding_and_bytes_end_it(
    any_pair: Pair, app: Application
) -> None:
    buffer = SliceBuffer()
    on_read = app.start_read(any_pair.endpoint, buffer)
    app.on_loop(nothing)
    assert on_read.count == 0
    any_pair.oracle.sendall(b"at last")
    assert on_read.result().ok
    assert bytes(buffer) == b"at last"[: len(buffer)]
