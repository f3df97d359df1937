"""What a listener does when something comes in between: a hook, another listener, the end of the descriptors."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable

import pytest

from eventengine import (
    Endpoint,
    ResourceQuota,
    Status,
)
from eventengine.core.endpoint import SocketEndpoint
from eventengine.core.host import READ
from eventengine.core.listener import PAUSE
from eventengine.memory import MemoryAllocator
from hand_turned import TIMEOUT, hand_turned, listen


def test_a_place_that_comes_back_goes_on_to_the_listener_that_has_somebody_waiting() -> None:
    quota = ResourceQuota(connections=1)
    with hand_turned() as (engine, host):
        accepted: list[tuple[str, Endpoint]] = []
        a, at_a = listen(engine, lambda endpoint: accepted.append(("a", endpoint)), quota)
        b, at_b = listen(engine, lambda endpoint: accepted.append(("b", endpoint)), quota)
        with socket.create_connection(at_a, TIMEOUT), socket.create_connection(at_b, TIMEOUT):
            # Whoever is first takes the place and stands in line for the next, with nobody in its backlog.
            host.until(lambda: len(quota.connections._waiters) == 2)
            assert len(accepted) == 1
            accepted[0][1].close()
            host.settle()
            assert sorted(name for name, _ in accepted) == ["a", "b"]
            assert quota.connections.used == 1
            accepted[1][1].close()
        a.close()
        b.close()
        host.settle()
        assert (quota.connections.used, len(quota.connections._waiters)) == (0, 0)


def test_a_listener_that_is_closed_while_it_stands_in_line_leaves_the_line() -> None:
    quota = ResourceQuota(connections=1)
    with hand_turned() as (engine, host):
        accepted: list[Endpoint] = []
        listener, where = listen(engine, accepted.append, quota)
        with socket.create_connection(where, TIMEOUT):
            host.until(lambda: quota.connections._waiters)
            listener.close()
            assert len(quota.connections._waiters) == 0
            accepted[0].close()
        assert quota.connections.used == 0


class ClosingFactory:
    """Makes allocators, but closes something first."""

    def __init__(self, close: Callable[[], object]) -> None:
        self._close = close

    def create_memory_allocator(self, name: str) -> MemoryAllocator:
        self._close()
        return ResourceQuota().create_memory_allocator(name)


@pytest.mark.parametrize("by", ["hook", "factory"])
@pytest.mark.parametrize("what", ["listener", "engine"])
def test_what_is_closed_while_a_connection_is_being_accepted_accepts_nothing_more(what: str, by: str) -> None:
    accepted: list[Endpoint] = []
    shut_down: list[Status] = []
    with hand_turned() as (engine, host):
        closes: dict[str, Callable[[], object]] = {}

        def hook(sock: socket.socket) -> None:
            if closes:  # and so not for the listening socket
                closes[what]()

        def nothing(sock: socket.socket) -> None: ...

        listener, where = listen(
            engine,
            accepted.append,
            ClosingFactory(lambda: closes[what]()) if by == "factory" else None,
            shut_down.append,
            socket_hook=nothing if by == "factory" else hook,
        )
        closes |= {"engine": engine.close, "listener": listener.close}
        with socket.create_connection(where, TIMEOUT) as client:
            host.poll()
            host.settle()
            assert (accepted, shut_down) == ([], [Status.OK])
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""


def test_without_descriptors_a_listener_pauses_and_closing_it_leaves_no_timer() -> None:
    accepted: list[Endpoint] = []
    shut_down: list[Status] = []
    with hand_turned() as (engine, host):
        listener, where = listen(engine, accepted.append, None, shut_down.append)
        (listening,) = listener._acceptor._sockets  # type: ignore[attr-defined]
        real = listening.sock

        class Exhausted:
            def accept(self) -> None:
                raise OSError(errno.EMFILE, "too many open files")

            def close(self) -> None:
                real.close()

        with socket.create_connection(where, TIMEOUT):
            listening.sock = Exhausted()
            host.until(lambda: host.timers)
            assert (host.watched, host.delays) == ({}, [PAUSE])
            listener.close()
            host.settle()
            assert (accepted, shut_down, host.timers) == ([], [Status.OK], {})


def test_when_there_are_descriptors_again_the_listener_goes_on() -> None:
    accepted: list[Endpoint] = []
    with hand_turned() as (engine, host):
        listener, where = listen(engine, accepted.append)
        (listening,) = listener._acceptor._sockets  # type: ignore[attr-defined]
        with socket.create_connection(where, TIMEOUT):
            listener._acceptor.pause(PAUSE)  # type: ignore[attr-defined]
            host.settle()
            assert (accepted, host.watched) == ([], {})
            host.now += PAUSE
            assert host.fire() == 1
            host.settle()
            assert [type(endpoint) for endpoint in accepted] == [SocketEndpoint]
            assert host.watched == {listening.fd: READ}
            accepted[0].close()
        listener.close()
