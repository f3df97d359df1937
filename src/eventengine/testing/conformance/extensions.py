"""What an endpoint can do besides: `HalfCloseable`, `SupportsFileDescriptor`."""

from __future__ import annotations

import os
import socket

import pytest

from eventengine.engine import Endpoint, HalfCloseable, SupportsFileDescriptor
from eventengine.slices import SliceBuffer
from eventengine.status import BusyResourceError, ClosedResourceError, Status, StatusCode
from eventengine.testing.application import Application, Callback
from eventengine.testing.capabilities import lacking, needs
from eventengine.testing.conformance.pairs import Pair, full, meanwhile, nothing
from eventengine.testing.oracle import TIMEOUT, pattern, receive, receive_all, reset


def _half_closeable(endpoint: Endpoint) -> HalfCloseable:
    half = endpoint.query_extension(HalfCloseable)
    if half is None:
        lacking("half-close")
    return half


def _with_descriptor(endpoint: Endpoint) -> SupportsFileDescriptor:
    descriptor = endpoint.query_extension(SupportsFileDescriptor)
    if descriptor is None:
        lacking("descriptor")
    return descriptor


def test_an_extension_that_an_endpoint_is_not_is_none(pair: Pair) -> None:
    class Unknown:
        pass

    assert pair.endpoint.query_extension(Unknown) is None


def test_close_write_ends_the_outgoing_stream_and_reading_goes_on(any_pair: Pair, anywhere: Application) -> None:
    endpoint, oracle = any_pair
    half = _half_closeable(endpoint)
    question, answer = pattern(60_000, 1), pattern(2 << 20, 2)
    on_read = anywhere.start_read(endpoint, buffer := SliceBuffer())
    assert anywhere.write(endpoint, question).ok
    anywhere.call(half.close_write)
    assert receive_all(oracle) == question
    assert on_read.count == 0
    with meanwhile(lambda: oracle.sendall(answer)):
        assert on_read.result().ok
        received = bytes(buffer)
        received += anywhere.receive(endpoint, len(answer) - len(received))
    assert received == answer
    oracle.close()
    assert anywhere.read(endpoint, buffer).code is StatusCode.OUT_OF_RANGE


def test_close_write_a_second_time_does_nothing(pair: Pair, anywhere: Application) -> None:
    half = _half_closeable(pair.endpoint)
    for _ in range(3):
        anywhere.call(half.close_write)
    assert receive_all(pair.oracle) == b""
    pair.oracle.sendall(b"still read")
    assert anywhere.receive(pair.endpoint, 10) == b"still read"


def test_writing_after_close_write_is_refused(pair: Pair, anywhere: Application) -> None:
    half = _half_closeable(pair.endpoint)
    never = Callback[Status](anywhere.ledger, times=0)
    anywhere.call(half.close_write)
    for data in (SliceBuffer([b"too late"]), SliceBuffer()):
        with pytest.raises(ClosedResourceError, match="writing half was closed"):
            anywhere.call(lambda data=data: pair.endpoint.write(never, data))  # type: ignore[misc]


def test_close_write_is_refused_while_a_write_is_outstanding_and_no_byte_is_lost(app: Application) -> None:
    data = pattern(1 << 20)
    with full(app) as (endpoint, oracle):
        half = _half_closeable(endpoint)
        on_writable = app.start_write(endpoint, data)
        with pytest.raises(BusyResourceError, match="a write is outstanding"):
            half.close_write()
        with pytest.raises(BusyResourceError, match="a write is outstanding"):
            app.on_loop(half.close_write)
        assert receive(oracle, len(data)) == data
        assert on_writable.result().ok
        assert app.write(endpoint, b"and more").ok
        half.close_write()
        assert receive_all(oracle) == b"and more"


def test_both_sides_may_end_their_streams_one_after_the_other(any_pair: Pair, anywhere: Application) -> None:
    endpoint, oracle = any_pair
    half = _half_closeable(endpoint)
    oracle.shutdown(socket.SHUT_WR)
    assert anywhere.read(endpoint, SliceBuffer()).code is StatusCode.OUT_OF_RANGE
    anywhere.call(half.close_write)
    assert receive_all(oracle) == b""
    assert anywhere.read(endpoint, SliceBuffer()).code is StatusCode.OUT_OF_RANGE


@needs("resets")
def test_close_write_of_a_broken_connection_does_nothing(pair: Pair, anywhere: Application) -> None:
    half = _half_closeable(pair.endpoint)
    reset(pair.oracle)
    anywhere.call(half.close_write)
    assert anywhere.read(pair.endpoint, SliceBuffer()).code is StatusCode.UNAVAILABLE
    anywhere.call(half.close_write)


def test_fileno_is_the_connections_descriptor_and_stays_the_endpoints(pair: Pair, anywhere: Application) -> None:
    fd = anywhere.call(_with_descriptor(pair.endpoint).fileno)
    with socket.socket(fileno=os.dup(fd)) as same:
        assert same.getpeername() == pair.oracle.getsockname()
        assert same.getsockname() == pair.oracle.getpeername()
    assert not os.get_blocking(fd)
    assert not os.get_inheritable(fd)
    assert anywhere.write(pair.endpoint, b"it goes on").ok
    assert receive(pair.oracle, 10) == b"it goes on"


def test_release_hands_the_connection_over_with_all_its_bytes(any_pair: Pair, anywhere: Application) -> None:
    endpoint, oracle = any_pair
    descriptor = _with_descriptor(endpoint)
    never = Callback[Status](anywhere.ledger, times=0)
    data = pattern(50_000)
    oracle.sendall(data[:100])
    assert anywhere.receive(endpoint, 100) == data[:100]
    oracle.sendall(data[100:])
    anywhere.on_loop(nothing)
    with socket.socket(fileno=anywhere.call(descriptor.release)) as taken:
        taken.settimeout(TIMEOUT)
        with pytest.raises(ClosedResourceError):
            anywhere.call(lambda: endpoint.read(never, SliceBuffer()))
        with pytest.raises(ClosedResourceError):
            anywhere.call(descriptor.release)
        with pytest.raises(ClosedResourceError):
            anywhere.call(descriptor.fileno)
        anywhere.call(endpoint.close)
        anywhere.on_loop(nothing)
        assert receive(taken, len(data) - 100) == data[100:]
        taken.sendall(b"from its new owner")
        assert receive(oracle, 18) == b"from its new owner"
        anywhere.engine.close()
        oracle.sendall(b"after the engine")
        assert receive(taken, 16) == b"after the engine"
    assert receive_all(oracle) == b""


def test_release_cancels_an_outstanding_read_and_write(app: Application) -> None:
    with full(app) as (endpoint, oracle):
        on_read = app.start_read(endpoint, SliceBuffer())
        on_writable = app.start_write(endpoint, bytes(1 << 20))
        with socket.socket(fileno=_with_descriptor(endpoint).release()) as taken:
            assert on_read.result().code is StatusCode.CANCELLED
            assert on_writable.result().code is StatusCode.CANCELLED
            taken.settimeout(TIMEOUT)
            oracle.sendall(b"still open")
            assert receive(taken, 10) == b"still open"
        receive_all(oracle)
