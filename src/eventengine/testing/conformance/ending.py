"""Closing an engine, and dropping it."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import Any

import pytest

from eventengine.address import ResolvedAddress
from eventengine.config import EndpointConfig
from eventengine.engine import EventEngine
from eventengine.quota import ResourceQuota
from eventengine.slices import SliceBuffer
from eventengine.status import ClosedResourceError, Status, StatusCode
from eventengine.testing.application import Application, Callback, Ledger
from eventengine.testing.capabilities import needs
from eventengine.testing.oracle import TIMEOUT, OracleServer, connect
from eventengine.testing.scenes import full_backlog, held

FAR_AWAY = 1e6


class _FaultError(Exception):
    """Raised in callbacks. The frameworks log it, each in its way."""


@pytest.mark.parametrize("where", ["here", "in a callback", "in eight threads"])
def test_closing_an_engine_ends_everything_exactly_once(app: Application, ledger: Ledger, where: str) -> None:
    """Closures of `run` that wait are run, those of `run_after` dropped, the others get CANCELLED."""
    engine = app.engine
    runs = Callback[None](ledger, times=0)
    never = Callback[Any](ledger, times=0)
    cancelled: list[Callback[Any]] = []
    with ExitStack() as stack:
        server = stack.enter_context(OracleServer())
        full = stack.enter_context(full_backlog())
        endpoints = [app.connect(server.address) for _ in range(3)]
        peers = [stack.enter_context(server.accept()) for _ in endpoints]
        accepting = app.listen()
        stack.enter_context(connect(accepting.address))
        accepted = accepting.next()
        idle, _ = app.listen(), app.listen()
        resolver = engine.get_dns_resolver()

        def fill() -> None:
            for endpoint in (*endpoints, accepted):
                on_read, on_writable = Callback[Status](ledger), Callback[Status](ledger)
                assert not endpoint.read(on_read, SliceBuffer())
                assert not endpoint.write(on_writable, SliceBuffer([bytes(32 << 20)]))
                cancelled.extend((on_read, on_writable))
            for _ in range(3):
                on_connect = Callback[Any](ledger)
                app.start_connect(on_connect, full.address)
                cancelled.append(on_connect)
                on_resolve = Callback[Any](ledger)
                resolver.lookup_srv(on_resolve, "localhost")
                cancelled.append(on_resolve)
                engine.run_after(FAR_AWAY, lambda: never(None))
                engine.run(lambda: runs(None))
                runs.times += 1

        def fill_and_close() -> None:
            fill()
            engine.close()
            engine.close()

        if where == "in a callback":
            app.on_loop(fill_and_close)
        else:
            with held(app) as release:
                fill()
                closers = [threading.Thread(target=engine.close) for _ in range(1 if where == "here" else 8)]
                for closer in closers:
                    closer.start()
                release()
                for closer in closers:
                    closer.join(TIMEOUT)
        engine.close()
        for callback in cancelled:
            status = callback.result()
            assert isinstance(status, Status)
            assert status.code in (StatusCode.CANCELLED, StatusCode.UNIMPLEMENTED)
        for listening in (accepting, idle):
            assert listening.on_shutdown.result() == Status.OK
        for endpoint in (*endpoints, accepted):
            with pytest.raises(ClosedResourceError):
                endpoint.read(never, SliceBuffer())
            endpoint.close()
        for listening in (accepting, idle):
            listening.listener.close()
        resolver.close()
        assert peers


def test_a_closed_engine_leaves_no_descriptor_and_no_thread(app: Application) -> None:
    """`nothing_is_left` looks, when the loop has ended, too; here is something that could be left."""
    accepting = app.listen()
    with closing(app.connect(accepting.address)) as client, closing(accepting.next()) as server:
        assert app.write(client, b"ping").ok
        assert app.receive(server, 4) == b"ping"
    app.engine.close()


def test_closing_an_engine_may_be_done_by_leaving_its_context(
    ledger: Ledger, make_engine: Callable[[], EventEngine]
) -> None:
    ran = Callback[None](ledger)
    engine = make_engine()
    with pytest.raises(_FaultError):
        _leave_context(engine, ran)
    ran.result()
    with pytest.raises(ClosedResourceError):
        engine.run(lambda: None)


def _leave_context(engine: EventEngine, ran: Callback[None]) -> None:
    with engine as entered:
        assert entered is engine
        entered.run(lambda: ran(None))
        raise _FaultError


@needs("collection")
def test_an_engine_that_was_dropped_is_closed_with_a_warning(
    quota: ResourceQuota, ledger: Ledger, make_engine: Callable[[], EventEngine]
) -> None:
    status = Callback[Any](ledger)
    with full_backlog() as full:
        with pytest.warns(ResourceWarning, match="engine was never closed"):
            _connect_and_drop(make_engine(), full.address, status, quota)
        result = status.result()
    assert isinstance(result, Status)
    assert result.code is StatusCode.CANCELLED


def _connect_and_drop(
    engine: EventEngine, address: ResolvedAddress, on_connect: Callback[Any], quota: ResourceQuota
) -> None:
    allocator = quota.create_memory_allocator("connecting")
    engine.connect(on_connect, address, EndpointConfig(), allocator, TIMEOUT)
    del engine
    gc.collect()
