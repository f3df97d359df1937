"""How many connections an event of a listening socket brings, and how often accept(2) is asked for them."""

from __future__ import annotations

import socket
from contextlib import ExitStack

import pytest

from eventengine import Endpoint
from eventengine.core.host import ListeningSocket
from eventengine.core.listener import ACCEPTS_PER_EVENT, LONE_EVENTS
from eventengine.testing.oracle import TIMEOUT
from hand_turned import hand_turned, listen


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One for each call of accept(2)."""
    calls: list[None] = []

    def accept(sock: ListeningSocket) -> tuple[socket.socket, object]:
        calls.append(None)
        return socket.socket.accept(sock)

    monkeypatch.setattr(ListeningSocket, "accept", accept, raising=False)
    return calls


def test_connections_that_come_one_by_one_are_not_asked_for_twice(asked: list[None]) -> None:
    with hand_turned() as (engine, host), ExitStack() as stack:
        accepted: list[Endpoint] = []
        listener, address = listen(engine, accepted.append, backlog=64)
        for _ in range(2 * LONE_EVENTS):
            stack.enter_context(socket.create_connection(address, TIMEOUT))
            host.settle()
        assert len(accepted) == 2 * LONE_EVENTS
        assert len(asked) < len(accepted) * 1.25
        listener.close()
        for endpoint in accepted:
            endpoint.close()


def test_connections_that_come_all_at_once_soon_take_few_events(asked: list[None]) -> None:
    """Also after a time in which they came one by one."""
    with hand_turned() as (engine, host), ExitStack() as stack:
        accepted: list[Endpoint] = []
        listener, address = listen(engine, accepted.append, backlog=512)
        for _ in range(2):
            stack.enter_context(socket.create_connection(address, TIMEOUT))
            host.settle()
        del asked[:]
        for _ in range(3 * ACCEPTS_PER_EVENT):
            stack.enter_context(socket.create_connection(address, TIMEOUT))
        events = 0
        while len(accepted) < 2 + 3 * ACCEPTS_PER_EVENT:
            host.poll()
            host.turn()
            events += 1
        assert events < LONE_EVENTS + 10
        assert len(asked) < 3 * ACCEPTS_PER_EVENT + 5
        listener.close()
        for endpoint in accepted:
            endpoint.close()
