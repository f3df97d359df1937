"""Writes that are done, though the turn's budget is spent, and what is no write, and no engine."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from eventengine import SliceBuffer, Status, StatusCode, WriteEvent
from eventengine.core.hosted import HostedEventEngine
from eventengine.testing.oracle import TIMEOUT, pattern, receive
from hand_turned import HandTurnedHost, connected, hand_turned


def test_a_write_that_was_handed_over_is_told_whether_the_peer_reads_or_not() -> None:
    """It reports by a letter: the socket, whose buffer may be full of it, is not waited for."""
    with hand_turned() as (engine, host), connected(engine, host) as (endpoint, peer):
        done: list[bool] = []
        told: list[Status] = []

        def write() -> None:
            engine._loop.budget = 0
            done.append(endpoint.write(told.append, SliceBuffer([b"all of it"])))

        watched = dict(host.watched)
        engine.run(write)
        while not told:
            assert host.woken, "nobody will tell"
            host.turn()
        assert (done, told, host.watched) == ([False], [Status.OK], watched)
        assert receive(peer, 9) == b"all of it"


def test_a_write_that_was_handed_over_but_not_told_of_is_cancelled_by_a_close() -> None:
    """OK after the close would have the application read on, from an endpoint that it cannot know is closed."""
    with hand_turned() as (engine, host), connected(engine, host) as (endpoint, peer):
        told: list[Status] = []

        def write_and_close() -> None:
            engine._loop.budget = 0
            endpoint.write(told.append, SliceBuffer([b"all of it"]))
            endpoint.close()

        engine.run(write_and_close)
        host.settle()
        assert [status.code for status in told] == [StatusCode.CANCELLED]
        assert receive(peer, 9) == b"all of it"


def test_many_parts_that_are_more_than_a_turn_may_write_come_whole_and_in_order() -> None:
    parts = [pattern(size, seed) for seed, size in enumerate((700_000, 5, 700_000, 700_000, 9))]
    with (
        hand_turned() as (engine, host),
        connected(engine, host) as (endpoint, peer),
        ThreadPoolExecutor(1) as threads,
    ):
        receiving = threads.submit(receive, peer, sum(map(len, parts)))
        told: list[Status] = []
        if endpoint.write(told.append, SliceBuffer(parts)):
            told.append(Status.OK)
        host.until(lambda: told)
        assert told == [Status.OK]
        assert receiving.result(TIMEOUT) == b"".join(parts)


def test_a_sink_that_is_none_is_refused_and_so_is_a_callback_beside_one() -> None:
    class Sink:
        requested_events = frozenset[WriteEvent]()

        def on_event(self, *_: object) -> None:
            """Told of nothing."""

    wrong: Any = object()
    with hand_turned() as (engine, host), connected(engine, host) as (endpoint, peer):
        with pytest.raises(TypeError, match="sink must be a WriteEventSink"):
            endpoint.write(pytest.fail, SliceBuffer([b"x"]), sink=wrong)
        sink: Any = Sink()
        with pytest.raises(TypeError, match="on_writable must be callable"):
            endpoint.write(wrong, SliceBuffer([b"x"]), sink=sink)
        assert endpoint.write(pytest.fail, SliceBuffer([b"y"]), sink=sink)
        assert receive(peer, 1) == b"y"


def test_an_engine_is_made_of_a_host_and_an_executor() -> None:
    wrong: Any = object()
    with pytest.raises(TypeError, match="host must be a Host"):
        HostedEventEngine(wrong, private_poller=False)
    with pytest.raises(TypeError, match=r"callback_executor must be a concurrent\.futures\.Executor"):
        HostedEventEngine(HandTurnedHost(), private_poller=False, callback_executor=wrong)
