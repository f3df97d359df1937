"""A process that forks: what was made before says so in the child, and the parent goes on.

The child is this very process, forked: it reports through a pipe and leaves by `os._exit`, so that nothing of pytest
runs in it.
"""

from __future__ import annotations

import os
import select
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext, suppress

import pytest

from eventengine.address import ResolvedAddress
from eventengine.config import EndpointConfig
from eventengine.engine import ConnectionHandle, EventEngine, HalfCloseable
from eventengine.quota import ResourceQuota
from eventengine.slices import SliceBuffer
from eventengine.status import ForkedProcessError, Status
from eventengine.testing.application import Application, Callback, Ledger
from eventengine.testing.capabilities import lacking
from eventengine.testing.oracle import TIMEOUT, OracleServer, receive

MakeEngine = Callable[[], EventEngine]


@pytest.fixture
def make_engine_in_child(make_engine: MakeEngine) -> Callable[[], AbstractContextManager[MakeEngine]]:
    """`make_engine` for a forked child. To be overridden where that one lends its engines what a child has not, such
    as a loop that runs in a thread of the parent, or a pool."""
    return lambda: nullcontext(make_engine)


def _in_child(report: Callable[[], str]) -> str:
    """Forks, calls `report` in the child, and returns what that says, or what it raised. Kills a child that hangs."""
    if not hasattr(os, "fork"):
        lacking("fork", "this system has no fork")
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that there are threads, which is what this is about
        child = os.fork()
    if not child:
        try:
            try:
                text = report()
            except BaseException as error:
                text = "".join(traceback.format_exception(error))
            os.write(writer, text.encode()[:4096])
        finally:
            os._exit(0)
    os.close(writer)
    said = b""
    try:
        deadline = time.monotonic() + TIMEOUT
        while select.select([reader], [], [], max(deadline - time.monotonic(), 0.0))[0]:
            part = os.read(reader, 4096)
            if not part:
                return said.decode()
            said += part
        raise AssertionError(f"the child hangs; it said {said.decode()!r}")
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _what_is_not_refused(calls: dict[str, Callable[[], object]]) -> str:
    """The calls that raise anything but ForkedProcessError, or nothing."""
    wrong: list[str] = []
    for name, call in calls.items():
        try:
            wrong.append(f"{name} returned {call()!r}")
        except ForkedProcessError as error:
            if "before the fork" not in str(error):
                wrong.append(f"{name} does not say why: {error}")
        except BaseException as error:
            wrong.append(f"{name} raised {error!r}")
    return "\n".join(wrong)


def test_in_a_child_all_that_was_made_before_is_refused_and_the_parent_goes_on(
    app: Application, ledger: Ledger
) -> None:
    engine = app.engine
    nothing = Callback[object](ledger, times=0)
    on_read, timer = Callback[Status](ledger), Callback[None](ledger)
    config, any_port = EndpointConfig(), ResolvedAddress.tcp("127.0.0.1", 0)
    allocator = app.quota.create_memory_allocator("forking")
    accepting = app.listen()
    fresh = engine.create_listener(
        lambda endpoint, allocator: endpoint.close(), Callback[Status](ledger), config, app.quota
    )
    fresh.bind(any_port)
    resolver = engine.get_dns_resolver()
    with ExitStack() as stack:
        stack.enter_context(closing(resolver))
        server = stack.enter_context(OracleServer())
        endpoint = stack.enter_context(closing(app.connect(server.address)))
        peer = stack.enter_context(server.accept())
        idle = stack.enter_context(closing(app.connect(server.address)))
        closable = idle.query_extension(HalfCloseable)
        buffer = SliceBuffer()
        assert not endpoint.read(on_read, buffer)
        handle = engine.run_after(0.05, lambda: timer(None))
        app.on_loop(lambda: None)
        data = SliceBuffer([b"data"])

        def report() -> str:
            calls: dict[str, Callable[[], object]] = {
                "run": lambda: engine.run(lambda: nothing(None)),
                "run_after": lambda: engine.run_after(0.0, lambda: nothing(None)),
                "cancel": lambda: engine.cancel(handle),
                "connect": lambda: engine.connect(nothing, server.address, config, allocator, TIMEOUT),
                "cancel_connect": lambda: engine.cancel_connect(ConnectionHandle(-1)),
                "create_listener": lambda: engine.create_listener(
                    lambda endpoint, allocator: nothing(endpoint), nothing, config, app.quota
                ),
                "get_dns_resolver": engine.get_dns_resolver,
                "is_worker_thread": engine.is_worker_thread,
                "read": lambda: idle.read(nothing, SliceBuffer()),
                "write": lambda: idle.write(nothing, data),
                "bind": lambda: fresh.bind(any_port),
                "start": fresh.start,
                "lookup_hostname": lambda: resolver.lookup_hostname(nothing, "localhost:80"),
                "lookup_srv": lambda: resolver.lookup_srv(nothing, "localhost"),
                "lookup_txt": lambda: resolver.lookup_txt(nothing, "localhost"),
                "the engine's close": engine.close,
            }
            if closable is not None:
                calls["close_write"] = closable.close_write
            return _what_is_not_refused(calls)

        assert _in_child(report) == ""
        peer.sendall(b"still there")
        assert on_read.result().ok
        assert bytes(buffer) == b"still there"
        assert app.write(endpoint, b"and here").ok
        assert receive(peer, 8) == b"and here"
        timer.result()
        with closing(app.connect(accepting.address)), closing(accepting.next()):
            fresh.start()
            fresh.close()


def test_closing_in_a_child_does_not_disturb_the_parent(app: Application) -> None:
    accepting = app.listen()
    with OracleServer() as server, closing(app.connect(server.address)) as endpoint, server.accept() as peer:
        resolver = app.engine.get_dns_resolver()

        def report() -> str:
            for closes in (endpoint.close, accepting.listener.close, resolver.close, app.engine.close):
                for _ in range(2):
                    with suppress(ForkedProcessError):
                        closes()
            return "closed"

        assert _in_child(report) == "closed"
        peer.sendall(b"still there")
        assert app.receive(endpoint, 11) == b"still there"
        assert app.write(endpoint, b"and here").ok
        assert receive(peer, 8) == b"and here"
        with closing(app.connect(accepting.address)), closing(accepting.next()):
            resolver.close()


def test_an_engine_that_was_made_in_a_child_works(
    app: Application, make_engine_in_child: Callable[[], AbstractContextManager[MakeEngine]]
) -> None:
    app.on_loop(lambda: None)

    def report() -> str:
        ledger = Ledger()
        with make_engine_in_child() as make, make() as engine:
            child = Application(engine, ResourceQuota("child"), ledger)
            child.on_loop(lambda: None)
            timer = Callback[None](ledger)
            engine.run_after(0.01, lambda: timer(None))
            timer.result()
            accepting = child.listen()
            with closing(child.connect(accepting.address)) as client, closing(accepting.next()) as server:
                assert child.write(client, b"ping").ok
                return child.receive(server, 4).decode()

    assert _in_child(report) == "ping"
    assert app.on_loop(lambda: "still there") == "still there"


def test_in_a_child_what_is_outstanding_is_refused_for_the_fork_too(app: Application) -> None:
    """It would never be done."""
    with OracleServer() as server, closing(app.connect(server.address)) as endpoint, server.accept() as peer:
        on_read = app.start_read(endpoint, SliceBuffer())
        on_writable = app.start_write(endpoint, bytes(32 << 20))
        app.on_loop(lambda: None)

        def report() -> str:
            return _what_is_not_refused(
                {
                    "read": lambda: endpoint.read(on_read, SliceBuffer()),
                    "write": lambda: endpoint.write(on_writable, SliceBuffer([b"data"])),
                }
            )

        assert _in_child(report) == ""
        peer.sendall(b"still there")
        assert on_read.result().ok
        receive(peer, 32 << 20)
        assert on_writable.result().ok
