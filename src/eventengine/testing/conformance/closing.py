"""`Endpoint.close`, and the calls that an endpoint refuses."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import pytest

from eventengine.engine import Endpoint, HalfCloseable, SupportsFileDescriptor
from eventengine.slices import SliceBuffer
from eventengine.status import BusyResourceError, ClosedResourceError, Status, StatusCode
from eventengine.testing.application import Application, Callback, Ledger
from eventengine.testing.conformance.pairs import Pair, full, meanwhile, nothing, paired, see_the_end
from eventengine.testing.oracle import TIMEOUT, pattern, receive, receive_all
from eventengine.testing.scenes import repeat_until_closed

MORE_THAN_FITS = bytes(16 << 20)


def test_close_cancels_an_outstanding_read_and_write(any_pair: Pair, anywhere: Application) -> None:
    buffer = SliceBuffer()
    on_read = anywhere.start_read(any_pair.endpoint, buffer)
    on_writable = anywhere.start_write(any_pair.endpoint, MORE_THAN_FITS)
    anywhere.call(any_pair.endpoint.close)
    assert on_read.result().code is StatusCode.CANCELLED
    assert on_writable.result().code is StatusCode.CANCELLED
    assert len(buffer) == 0


def test_close_drops_what_a_read_with_a_hint_has_gathered(pair: Pair, app: Application) -> None:
    buffer = SliceBuffer()
    on_read = app.start_read(pair.endpoint, buffer, 1000)
    pair.oracle.sendall(pattern(999))
    app.on_loop(nothing)
    pair.endpoint.close()
    assert on_read.result().code is StatusCode.CANCELLED
    assert len(buffer) == 0


def test_close_may_be_called_twice(pair: Pair, anywhere: Application) -> None:
    anywhere.call(pair.endpoint.close)
    anywhere.call(pair.endpoint.close)
    assert receive_all(pair.oracle) == b""
    anywhere.call(pair.endpoint.close)


def test_the_peer_of_a_closed_endpoint_reads_the_end_after_what_was_written(
    any_pair: Pair, anywhere: Application
) -> None:
    data = pattern(50_000)
    assert anywhere.write(any_pair.endpoint, data).ok
    anywhere.call(any_pair.endpoint.close)
    assert receive_all(any_pair.oracle) == data


def test_callbacks_of_a_close_are_not_called_before_close_has_returned(app: Application, ledger: Ledger) -> None:
    inside = threading.local()
    called_inside: list[bool] = []
    on_read, on_writable = Callback[Status](ledger), Callback[Status](ledger)

    def observed(callback: Callback[Status]) -> Callable[[Status], None]:
        def observe(status: Status) -> None:
            called_inside.append(getattr(inside, "call", False))
            callback(status)

        return observe

    def close() -> None:
        inside.call = True
        endpoint.close()
        inside.call = False

    with full(app) as (endpoint, _):
        assert not endpoint.read(observed(on_read), SliceBuffer())
        assert not endpoint.write(observed(on_writable), SliceBuffer([bytes(1 << 20)]))
        app.on_loop(close)
        on_read.result()
        on_writable.result()
    assert called_inside == [False, False]


@pytest.mark.parametrize("closed_in", ["on_read", "on_writable"])
def test_an_endpoint_may_be_closed_in_its_own_callbacks(app: Application, ledger: Ledger, closed_in: str) -> None:
    on_read, on_writable = Callback[Status](ledger), Callback[Status](ledger)

    def closing(callback: Callback[Status]) -> Callable[[Status], None]:
        def close(status: Status) -> None:
            endpoint.close()
            callback(status)

        return close

    with full(app) as (endpoint, oracle):
        if closed_in == "on_read":
            assert not endpoint.read(closing(on_read), SliceBuffer())
            assert not endpoint.write(on_writable, SliceBuffer([bytes(1 << 20)]))
            oracle.sendall(b"x")
            assert on_read.result().ok
            assert on_writable.result().code is StatusCode.CANCELLED
        else:
            assert not endpoint.read(on_read, SliceBuffer())
            assert not endpoint.write(closing(on_writable), SliceBuffer([bytes(1 << 20)]))
            receive(oracle, 1 << 20)
            assert on_writable.result().ok
            assert on_read.result().code is StatusCode.CANCELLED


def test_eight_threads_may_close_at_once(app: Application) -> None:
    for role in ("client", "server") * 3:
        with full(app, role) as (endpoint, oracle):
            together = threading.Barrier(8)

            def close(together: threading.Barrier = together, endpoint: Endpoint = endpoint) -> None:
                together.wait(TIMEOUT)
                endpoint.close()

            on_read = app.start_read(endpoint, SliceBuffer())
            on_writable = app.start_write(endpoint, bytes(1 << 20))
            with meanwhile(*[close] * 8):
                assert on_read.result().code is StatusCode.CANCELLED
                assert on_writable.result().code is StatusCode.CANCELLED
            see_the_end(oracle)


def test_a_close_raced_with_reads_and_writes_loses_no_callback(app: Application, ledger: Ledger) -> None:
    """Each of them raises at its caller, or its callback is called: with what came, or CANCELLED."""

    def until_closed(start: Callable[[Callback[Status]], bool], together: threading.Barrier) -> None:
        together.wait(TIMEOUT)
        assert repeat_until_closed(ledger, start).code is StatusCode.CANCELLED

    for n in range(30):
        with paired(app, "client" if n % 2 else "server") as (endpoint, oracle):
            together = threading.Barrier(3)
            read = partial(endpoint.read, buffer=SliceBuffer())

            oracle.sendall(pattern(10_000))
            with meanwhile(
                partial(until_closed, read, together),
                partial(until_closed, lambda callback: endpoint.write(callback, SliceBuffer([b"x"])), together),
            ):
                together.wait(TIMEOUT)
                endpoint.close()


def test_a_closed_endpoint_refuses_all_but_close_and_tells_its_addresses(
    pair: Pair, anywhere: Application
) -> None:
    never = Callback[Status](anywhere.ledger, times=0)
    endpoint = pair.endpoint
    addresses = endpoint.peer_address, endpoint.local_address
    anywhere.call(endpoint.close)
    for refused in (
        lambda: endpoint.read(never, SliceBuffer()),
        lambda: endpoint.write(never, SliceBuffer([b"x"])),
        lambda: endpoint.write(never, SliceBuffer()),
    ):
        with pytest.raises(ClosedResourceError, match="endpoint was closed"):
            anywhere.call(refused)
    half = endpoint.query_extension(HalfCloseable)
    if half is not None:
        with pytest.raises(ClosedResourceError, match="endpoint was closed"):
            anywhere.call(half.close_write)
    descriptor = endpoint.query_extension(SupportsFileDescriptor)
    if descriptor is not None:
        with pytest.raises(ClosedResourceError, match="endpoint was closed"):
            anywhere.call(descriptor.fileno)
        with pytest.raises(ClosedResourceError, match="endpoint was closed"):
            anywhere.call(descriptor.release)
    assert (endpoint.peer_address, endpoint.local_address) == addresses


def test_a_closed_engine_has_closed_its_endpoints(any_pair: Pair, app: Application, ledger: Ledger) -> None:
    on_read = app.start_read(any_pair.endpoint, SliceBuffer())
    on_writable = app.start_write(any_pair.endpoint, MORE_THAN_FITS)
    app.engine.close()
    assert on_read.result().code is StatusCode.CANCELLED
    assert on_writable.result().code is StatusCode.CANCELLED
    see_the_end(any_pair.oracle)
    with pytest.raises(ClosedResourceError):
        any_pair.endpoint.read(Callback[Status](ledger, times=0), SliceBuffer())


def test_a_second_read_is_refused_and_the_first_goes_on(pair: Pair, anywhere: Application, ledger: Ledger) -> None:
    buffer, other = SliceBuffer(), SliceBuffer([b"untouched"])
    never = Callback[Status](ledger, times=0)
    on_read = anywhere.start_read(pair.endpoint, buffer, 5)
    for _ in range(2):
        with pytest.raises(BusyResourceError, match="a read is outstanding"):
            anywhere.call(lambda: pair.endpoint.read(never, other))
    pair.oracle.sendall(b"first")
    assert on_read.result().ok
    assert bytes(buffer) == b"first"
    assert bytes(other) == b"untouched"
    pair.oracle.sendall(b"second")
    assert anywhere.receive(pair.endpoint, 6) == b"second"


def test_a_second_write_is_refused_and_the_first_goes_on(app: Application, ledger: Ledger) -> None:
    data = pattern(1 << 20)
    never = Callback[Status](ledger, times=0)
    with full(app) as (endpoint, oracle):
        on_writable = app.start_write(endpoint, data)
        for refused in (SliceBuffer([b"second"]), SliceBuffer()):
            with pytest.raises(BusyResourceError, match="a write is outstanding"):
                app.call(lambda refused=refused: endpoint.write(never, refused))  # type: ignore[misc]
            with pytest.raises(BusyResourceError, match="a write is outstanding"):
                app.on_loop(lambda refused=refused: endpoint.write(never, refused))  # type: ignore[misc]
        assert receive(oracle, len(data)) == data
        assert on_writable.result().ok
        assert app.write(endpoint, b"third").ok
        assert receive(oracle, 5) == b"third"


def test_arguments_that_are_none_are_told_at_the_caller_and_the_endpoint_goes_on(
    pair: Pair, anywhere: Application, ledger: Ledger
) -> None:
    endpoint = pair.endpoint
    never = Callback[Status](ledger, times=0)
    wrong: list[tuple[Callable[[], object], type[Exception], str]] = [
        (lambda: endpoint.read(None, SliceBuffer()), TypeError, "on_read must be callable, not NoneType"),  # type: ignore[arg-type]
        (lambda: endpoint.read(never, bytearray()), TypeError, "needs a SliceBuffer, not bytearray"),  # type: ignore[arg-type]
        (lambda: endpoint.read(never, SliceBuffer(), read_hint_bytes=0), ValueError, "must be 1 or more"),
        (lambda: endpoint.read(never, SliceBuffer(), read_hint_bytes=-1), ValueError, "must be 1 or more"),
        (lambda: endpoint.write(None, SliceBuffer()), TypeError, "on_writable must be callable, not NoneType"),  # type: ignore[arg-type]
        (lambda: endpoint.write(never, b"bytes"), TypeError, "needs a SliceBuffer, not bytes"),  # type: ignore[arg-type]
        (lambda: endpoint.write(never, SliceBuffer([b"x"]), max_frame_size=0), ValueError, "must be 1 or more"),
    ]
    for call, error, text in wrong:
        with pytest.raises(error, match=text):
            anywhere.call(call)
    assert anywhere.write(endpoint, b"it goes on").ok
    assert receive(pair.oracle, 10) == b"it goes on"
    pair.oracle.sendall(b"both ways")
    assert anywhere.receive(endpoint, 9) == b"both ways"
