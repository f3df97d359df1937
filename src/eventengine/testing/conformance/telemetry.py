"""`Endpoint.telemetry_info` and the sink of a write: what is told, once, and never before the write has returned."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import partial

from eventengine.engine import Endpoint, TelemetryInfo, WriteEvent
from eventengine.slices import SliceBuffer
from eventengine.status import Status, StatusCode
from eventengine.testing.application import Application, Callback, Ledger
from eventengine.testing.capabilities import lacking
from eventengine.testing.conformance.pairs import Pair, full, nothing, paired
from eventengine.testing.oracle import pattern, receive

EVERY = frozenset(WriteEvent)


class _Sink:
    """Keeps what it is told, with what was written then."""

    def __init__(self, ledger: Ledger, times: int = 1, requested: frozenset[WriteEvent] = EVERY) -> None:
        self.requested_events = requested
        self.told = Callback[tuple[WriteEvent, float, Mapping[str, float]]](ledger, times)

    def on_event(self, event: WriteEvent, time: float, metrics: Mapping[str, float]) -> None:
        self.told((event, time, metrics))


def _info(endpoint: Endpoint, *needed: WriteEvent) -> TelemetryInfo:
    info = endpoint.telemetry_info()
    if info is None:
        lacking("telemetry")
    if not info.events.issuperset(needed):
        lacking("telemetry", f"endpoints cannot tell {', '.join(event.name for event in needed)}")
    return info


def _only(event: WriteEvent) -> frozenset[WriteEvent]:
    return frozenset({event})


def test_a_sink_is_told_that_a_write_was_handed_over_and_what_is_known_then(
    any_pair: Pair, app: Application
) -> None:
    endpoint, oracle = any_pair
    info = _info(endpoint, WriteEvent.SENDMSG)
    for size in (1, 100_000):
        sink = _Sink(app.ledger, requested=_only(WriteEvent.SENDMSG))
        on_writable = Callback[Status](app.ledger)
        data = pattern(size)
        write = partial(endpoint.write, on_writable, SliceBuffer([data]), sink=sink)
        if app.on_loop(write):
            on_writable(Status.OK)
        assert receive(oracle, size) == data
        assert on_writable.result().ok
        event, time, metrics = sink.told.result()
        assert event is WriteEvent.SENDMSG
        assert time > 0
        assert set(metrics) <= set(info.metrics)
        assert all(value >= 0 for value in metrics.values())


def test_a_sink_is_told_before_the_callback_and_not_within_the_write(app: Application) -> None:
    with full(app) as (endpoint, oracle):
        _info(endpoint, WriteEvent.SENDMSG)
        order: list[str] = []
        inside = threading.local()
        on_writable = Callback[Status](app.ledger)
        told = Callback[None](app.ledger)

        class Sink:
            requested_events = _only(WriteEvent.SENDMSG)

            def on_event(self, event: WriteEvent, time: float, metrics: Mapping[str, float]) -> None:
                order.append("within" if getattr(inside, "call", False) else "told")
                told(None)
                raise LookupError("a sink that raises; it is in a test of just that")

        def called(status: Status) -> None:
            order.append("called")
            on_writable(status)

        def write() -> None:
            inside.call = True
            assert not endpoint.write(called, SliceBuffer([bytes(1 << 20)]), sink=Sink())
            inside.call = False

        app.on_loop(write)
        receive(oracle, 1 << 20)
        assert on_writable.result().ok
        told.result()
        assert order == ["told", "called"]


def test_a_sink_is_told_that_the_connection_was_closed_over_a_write(app: Application) -> None:
    with full(app) as (endpoint, _):
        _info(endpoint, WriteEvent.CLOSED)
        sink = _Sink(app.ledger, requested=_only(WriteEvent.CLOSED))
        unasked = _Sink(app.ledger, times=0, requested=frozenset())
        on_writable = Callback[Status](app.ledger)
        assert endpoint.write(on_writable, SliceBuffer(), sink=unasked)
        on_writable(Status.OK)
        cancelled = Callback[Status](app.ledger)
        assert not endpoint.write(cancelled, SliceBuffer([bytes(1 << 20)]), sink=sink)
        app.on_loop(nothing)
        endpoint.close()
        assert cancelled.result().code is StatusCode.CANCELLED
        assert sink.told.result()[0] is WriteEvent.CLOSED


def test_a_sink_hears_only_what_it_has_asked_for_and_of_what_the_endpoint_can_tell(app: Application) -> None:
    with paired(app) as (endpoint, oracle):
        info = endpoint.telemetry_info()
        can = frozenset[WriteEvent]() if info is None else info.events
        sink = _Sink(app.ledger, times=0, requested=EVERY - can)
        for size in (0, 10):
            on_writable = Callback[Status](app.ledger)
            if app.on_loop(partial(endpoint.write, on_writable, SliceBuffer([bytes(size)]), sink=sink)):
                on_writable(Status.OK)
            assert on_writable.result().ok
        assert receive(oracle, 10) == bytes(10)
        app.on_loop(nothing)
        assert sink.told.count == 0
