"""What a connect does when something comes in between: its own hook, a full backlog, the engine's close."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eventengine import (
    ConnectionHandle,
    Endpoint,
    EndpointConfig,
    ResolvedAddress,
    ResourceQuota,
    Status,
    StatusCode,
)
from eventengine.core.connector import UNIX_RETRY, Connector
from eventengine.core.hosted import HostedEventEngine
from eventengine.status import ClosedResourceError
from hand_turned import TIMEOUT, elsewhere, hand_turned


def connect(
    engine: HostedEventEngine,
    address: ResolvedAddress,
    on_connect: Callable[[Endpoint | Status], object],
    hook: Callable[[socket.socket], object] | None = None,
) -> ConnectionHandle:
    allocator = ResourceQuota().create_memory_allocator("client")
    return engine.connect(on_connect, address, EndpointConfig(socket_hook=hook), allocator, TIMEOUT)


@pytest.fixture
def server() -> Any:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def address_of(server: socket.socket) -> ResolvedAddress:
    return ResolvedAddress.from_sockaddr(server.family, server.getsockname())


@pytest.mark.parametrize("private_poller", [False, True])
def test_a_hook_that_cancels_its_own_connect_leaves_no_socket(server: socket.socket, private_poller: bool) -> None:
    with hand_turned(private_poller=private_poller) as (engine, host):
        got: list[Endpoint | Status] = []
        sockets: list[socket.socket] = []
        cancelled: list[bool] = []

        def hook(sock: socket.socket) -> None:
            sockets.append(sock)
            cancelled.append(engine.cancel_connect(handle))

        handle = connect(engine, address_of(server), got.append, hook)
        host.settle()
        assert (got, cancelled, [sock.fileno() for sock in sockets]) == ([], [True], [-1])
        assert (host.watched, host.timers) == ({}, {})


def test_a_hook_that_closes_the_engine_of_its_connect_leaves_no_socket(server: socket.socket) -> None:
    with hand_turned() as (engine, host):
        got: list[Endpoint | Status] = []
        sockets: list[socket.socket] = []

        def hook(sock: socket.socket) -> None:
            sockets.append(sock)
            engine.close()

        connect(engine, address_of(server), got.append, hook)
        host.settle()
        assert [status.code for status in got if isinstance(status, Status)] == [StatusCode.CANCELLED]
        assert [sock.fileno() for sock in sockets] == [-1]


@pytest.mark.parametrize("end", ["cancel", "timeout", "success"])
def test_a_connect_that_tries_a_full_backlog_again_leaves_no_timer_when_it_ends(tmp_path: Path, end: str) -> None:
    with socket.socket(socket.AF_UNIX) as full, hand_turned() as (engine, host):
        full.bind(str(tmp_path / "s"))
        full.listen(0)
        waiting: list[socket.socket] = []
        try:
            while True:
                waiting.append(socket.socket(socket.AF_UNIX))
                waiting[-1].setblocking(False)
                waiting[-1].connect(full.getsockname())
        except BlockingIOError:
            pass
        got: list[Endpoint | Status] = []
        handle = connect(engine, ResolvedAddress.parse(f"unix:{tmp_path}/s"), got.append)
        host.settle()
        assert host.delays[-1] == pytest.approx(UNIX_RETRY)
        if end == "cancel":
            assert engine.cancel_connect(handle)
        elif end == "timeout":
            host.now += TIMEOUT
            host.fire()
        else:
            for _ in waiting[:-1]:
                full.accept()[0].close()
            host.now += UNIX_RETRY
            host.fire()
            host.until(lambda: got)
        host.settle()
        assert host.timers == {}
        if end == "success":
            assert isinstance(got[0], Endpoint)
            got[0].close()
        else:
            assert [status.code for status in got if isinstance(status, Status)] == (
                [] if end == "cancel" else [StatusCode.DEADLINE_EXCEEDED]
            )
        for sock in waiting:
            sock.close()


def test_a_connect_is_cancelled_though_its_loop_was_closed(server: socket.socket) -> None:
    with hand_turned() as (engine, host):
        got: list[Endpoint | Status] = []
        sockets: list[socket.socket] = []
        full = ResolvedAddress.tcp("127.0.0.1", server.getsockname()[1])
        handle = connect(engine, full, got.append, sockets.append)
        host.turn()
        assert sockets[0].fileno() >= 0
        host.close()
        answers: list[bool] = []
        elsewhere(lambda: answers.append(engine.cancel_connect(handle)))
        assert (answers, got, sockets[0].fileno()) == ([True], [], -1)


# Racing the engine's close


def connect_in_between(
    monkeypatch: pytest.MonkeyPatch, engine: HostedEventEngine, call: Callable[[], object]
) -> None:
    """Another thread has seen that the engine is open; its call comes when the close has ended all connects."""
    cancel_all = Connector.cancel_all
    calls = [call]

    def then_the_call(self: Connector) -> None:
        cancel_all(self)
        if calls:
            elsewhere(calls.pop())

    monkeypatch.setattr(Connector, "cancel_all", then_the_call)
    engine.close()


def test_a_connect_that_comes_while_the_engine_closes_is_reported(
    monkeypatch: pytest.MonkeyPatch, server: socket.socket
) -> None:
    with hand_turned() as (engine, host):
        got: list[Endpoint | Status] = []
        allocator = ResourceQuota().create_memory_allocator("client")
        late = engine._connector
        connect_in_between(
            monkeypatch,
            engine,
            lambda: late.connect(got.append, address_of(server), EndpointConfig(), allocator, TIMEOUT),
        )
        host.settle()
        assert [getattr(result, "code", result) for result in got] == [StatusCode.CANCELLED]


def test_a_connect_that_the_close_has_reported_is_not_refused_as_well(server: socket.socket) -> None:
    with hand_turned() as (engine, host):
        got: list[Endpoint | Status] = []
        loop = engine._loop
        post = loop.post

        def overtaken(letter: Callable[[], object]) -> None:
            loop.post = post
            engine.close()  # between the note of the connect and its letter
            post(letter)

        loop.post = overtaken
        handle = connect(engine, address_of(server), got.append)
        host.settle()
        assert [getattr(result, "code", result) for result in got] == [StatusCode.CANCELLED]
        assert not engine.cancel_connect(handle)


def test_a_connect_that_is_refused_is_not_reported_as_well(server: socket.socket) -> None:
    with hand_turned() as (engine, host):
        got: list[Endpoint | Status] = []
        late = engine._connector
        allocator = ResourceQuota().create_memory_allocator("client")
        engine.close()
        with pytest.raises(ClosedResourceError, match="the engine was closed"):
            late.connect(got.append, address_of(server), EndpointConfig(), allocator, TIMEOUT)
        host.settle()
        assert (got, late._attempts) == ([], {})
