"""`cancel_connect`, at every stage of a connect; and the engine's close."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from eventengine.config import EndpointConfig
from eventengine.engine import ConnectionHandle, Endpoint
from eventengine.status import Status, StatusCode
from eventengine.testing.application import Application, Callback, Ledger
from eventengine.testing.capabilities import needs
from eventengine.testing.oracle import TIMEOUT, OracleServer, receive_all
from eventengine.testing.scenes import (
    close_if_connected,
    full_backlog,
    held,
    unix_address,
)

Connected = Endpoint | Status


def test_a_connect_is_cancelled_right_after_it_began(anywhere: Application, ledger: Ledger) -> None:
    engine = anywhere.engine
    never = Callback[Connected](ledger, times=0)
    allocator = anywhere.quota.create_memory_allocator("connecting")
    with OracleServer() as server:

        def connect_and_cancel() -> bool:
            handle = engine.connect(never, server.address, EndpointConfig(), allocator, TIMEOUT)
            return engine.cancel_connect(handle)

        if anywhere.engine.callbacks_block_polling and anywhere.call(engine.is_worker_thread):
            assert anywhere.call(connect_and_cancel)
        else:  # the loop may be as fast
            never.times = 0 if anywhere.call(connect_and_cancel) else 1
            if never.times:
                close_if_connected(never.result())


def test_a_connect_is_cancelled_before_the_loop_took_it_up(app: Application, ledger: Ledger) -> None:
    never = Callback[Connected](ledger, times=0)
    with OracleServer() as server:
        with held(app):
            handle = app.start_connect(never, server.address)
            assert app.engine.cancel_connect(handle)
            assert not app.engine.cancel_connect(handle)
        app.connect(server.address).close()


@pytest.mark.parametrize("family", ["tcp", "unix"])
def test_a_connect_is_cancelled_while_it_waits_for_the_peer(
    anywhere: Application, ledger: Ledger, unix_folder: Path, family: str
) -> None:
    engine = anywhere.engine
    never = Callback[Connected](ledger, times=0)
    with full_backlog(unix_address(unix_folder / "full") if family == "unix" else None) as server:
        handle = anywhere.start_connect(never, server.address)
        anywhere.on_loop(lambda: None)
        assert anywhere.call(lambda: engine.cancel_connect(handle))
        assert not anywhere.call(lambda: engine.cancel_connect(handle))


def test_a_connection_that_was_made_but_not_told_of_is_closed_by_a_cancel(
    app: Application, ledger: Ledger
) -> None:
    """The loop stands still, by another connect's hook, when the peer has the connection already."""
    on_connect, other = Callback[Connected](ledger), Callback[Connected](ledger)
    entered, released = threading.Event(), threading.Event()

    def hook(sock: socket.socket) -> None:
        entered.set()
        released.wait(TIMEOUT)

    with OracleServer() as server, OracleServer() as elsewhere:
        try:
            with held(app) as release:
                handle = app.start_connect(on_connect, server.address)
                app.start_connect(other, elsewhere.address, EndpointConfig(socket_hook=hook))
                release()
                assert entered.wait(TIMEOUT)
                with server.accept() as peer:
                    cancelled = app.engine.cancel_connect(handle)
                    on_connect.times = 0 if cancelled else 1
                    released.set()
                    if not cancelled:
                        close_if_connected(on_connect.result())
                    assert receive_all(peer) == b""
        finally:
            released.set()
        close_if_connected(other.result())


def test_a_connect_that_was_told_of_cannot_be_cancelled(app: Application, ledger: Ledger) -> None:
    during = Callback[tuple[bool, Connected]](ledger)
    handles: list[ConnectionHandle] = []
    begun = threading.Event()

    def on_connect(result: Connected) -> None:
        begun.wait(TIMEOUT)
        during((app.engine.cancel_connect(handles[0]), result))

    with OracleServer() as server:
        handles.append(app.start_connect(on_connect, server.address))
        begun.set()
        cancelled, endpoint = during.result()
        assert not isinstance(endpoint, Status)
        with closing(endpoint), server.accept() as peer:
            assert not cancelled
            assert not app.engine.cancel_connect(handles[0])
            peer.sendall(b"still there")
            assert app.receive(endpoint, 11) == b"still there"


def test_an_unknown_connect_cannot_be_cancelled(anywhere: Application) -> None:
    assert anywhere.call(lambda: anywhere.engine.cancel_connect(ConnectionHandle(-1))) is False


def test_a_cancel_raced_with_completion_says_whether_on_connect_is_called(app: Application) -> None:
    """1,000 connects, which end from first to last while another thread cancels them from last to first."""
    blocks, size = 50, 20
    called, cancelled = bytearray(blocks * size), bytearray(blocks * size)
    finished = threading.Semaphore(0)

    def on_connect(n: int) -> Callable[[Connected], None]:
        def called_back(result: Connected) -> None:
            called[n] += 1
            close_if_connected(result)
            finished.release()

        return called_back

    with OracleServer(backlog=2048) as server:
        for block in range(0, blocks * size, size):
            handles = [app.start_connect(on_connect(n), server.address) for n in range(block, block + size)]
            for n in reversed(range(size)):
                if app.engine.cancel_connect(handles[n]):
                    cancelled[block + n] = 1
                    finished.release()
            for _ in range(size):
                assert finished.acquire(timeout=TIMEOUT), "a connect neither ended nor was cancelled"
            while _can_accept(server):
                pass
        app.engine.close()
    assert [a + b for a, b in zip(called, cancelled, strict=True)] == [1] * (blocks * size)


@needs("unix")
def test_closing_the_engine_cancels_connects(anywhere: Application, ledger: Ledger, unix_folder: Path) -> None:
    callbacks = [Callback[Connected](ledger) for _ in range(4)]
    with full_backlog() as server, full_backlog(unix_address(unix_folder / "full")) as unix_server:
        for on_connect, where in zip(callbacks, (server, unix_server) * 2, strict=True):
            anywhere.start_connect(on_connect, where.address)
        anywhere.call(anywhere.engine.close)
        for on_connect in callbacks:
            status = on_connect.result()
            assert isinstance(status, Status)
            assert status.code is StatusCode.CANCELLED


def _can_accept(server: OracleServer) -> bool:
    server.socket.setblocking(False)
    try:
        server.socket.accept()[0].close()
    except BlockingIOError:
        return False
    finally:
        server.socket.settimeout(TIMEOUT)
    return True


def test_a_connect_is_cancelled_by_its_own_socket_hook(app: Application, ledger: Ledger) -> None:
    never = Callback[Connected](ledger, times=0)
    handles: list[ConnectionHandle] = []
    cancelled = Callback[bool](ledger)
    begun = threading.Event()

    def hook(sock: socket.socket) -> None:
        begun.wait(TIMEOUT)
        cancelled(app.engine.cancel_connect(handles[0]))

    with OracleServer() as server:
        handles.append(app.start_connect(never, server.address, EndpointConfig(socket_hook=hook)))
        begun.set()
        assert cancelled.result() is True
        app.connect(server.address).close()
