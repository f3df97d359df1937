"""Writes that are done, though the turn's budget is spent."""

from __future__ import annotations

from eventengine import SliceBuffer, Status, StatusCode
from eventengine.testing.oracle import receive
from hand_turned import connected, hand_turned


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
