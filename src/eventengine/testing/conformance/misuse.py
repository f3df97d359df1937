"""Wrong arguments, and a closed engine."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from eventengine.address import ResolvedAddress
from eventengine.config import EndpointConfig
from eventengine.engine import ConnectionHandle, TaskHandle
from eventengine.slices import SliceBuffer
from eventengine.status import ClosedResourceError
from eventengine.testing.application import Application, Callback, Ledger
from eventengine.testing.oracle import TIMEOUT

FAR_AWAY = 1e6
ANY_PORT = ResolvedAddress.tcp("127.0.0.1", 0)


async def _coroutine(value: object) -> None:
    """What is no callback."""


def test_wrong_arguments_are_told_at_the_caller(anywhere: Application, ledger: Ledger) -> None:
    engine: Any = anywhere.engine
    allocator = anywhere.quota.create_memory_allocator("misuse")
    never = Callback[Any](ledger, times=0)
    config, port = EndpointConfig(), ANY_PORT
    nan = float("nan")
    cases: list[tuple[str, type[Exception], str, Callable[[], object]]] = [
        ("run", TypeError, "closure must be callable, not int", lambda: engine.run(5)),
        ("run_after", TypeError, "closure must be callable, not None", lambda: engine.run_after(1.0, None)),
        (
            "run_after",
            TypeError,
            "delay must be a number of seconds, not str",
            lambda: engine.run_after("1", never),
        ),
        ("run_after", TypeError, "delay must be a number of seconds", lambda: engine.run_after(True, never)),
        ("run_after", ValueError, "delay is -1.*0 or more", lambda: engine.run_after(-1, never)),
        (
            "connect",
            TypeError,
            "on_connect must be callable",
            lambda: engine.connect(5, port, config, allocator, 1),
        ),
        (
            "connect",
            TypeError,
            "on_connect is a coroutine function; a callback is a plain function",
            lambda: engine.connect(_coroutine, port, config, allocator, 1),
        ),
        (
            "connect",
            TypeError,
            "address must be a ResolvedAddress, not str",
            lambda: engine.connect(never, "localhost:80", config, allocator, 1),
        ),
        (
            "connect",
            TypeError,
            "config must be a EndpointConfig|config must be an EndpointConfig",
            lambda: engine.connect(never, port, None, allocator, 1),
        ),
        (
            "connect",
            TypeError,
            "memory_allocator must be a MemoryAllocator, not ResourceQuota",
            lambda: engine.connect(never, port, config, anywhere.quota, 1),
        ),
        ("connect", TypeError, "timeout must be", lambda: engine.connect(never, port, config, allocator, None)),
        ("connect", ValueError, "timeout is -1", lambda: engine.connect(never, port, config, allocator, -1)),
        ("connect", ValueError, "timeout is nan", lambda: engine.connect(never, port, config, allocator, nan)),
        (
            "create_listener",
            TypeError,
            "on_accept must be callable",
            lambda: engine.create_listener(None, never, config, anywhere.quota),
        ),
        (
            "create_listener",
            TypeError,
            "on_shutdown must be callable",
            lambda: engine.create_listener(never, None, config, anywhere.quota),
        ),
        (
            "create_listener",
            TypeError,
            "config must be",
            lambda: engine.create_listener(never, never, {}, anywhere.quota),
        ),
        (
            "create_listener",
            TypeError,
            "must have create_memory_allocator",
            lambda: engine.create_listener(never, never, config, allocator),
        ),
    ]
    for method, error, message, call in cases:
        with pytest.raises(error, match=message) as raised:
            anywhere.call(call)
        assert raised.type is error, (method, message)
    assert anywhere.call(lambda: engine.cancel(TaskHandle(0))) is False


def test_wrong_arguments_of_endpoints_and_listeners_are_told_at_the_caller(
    app: Application, ledger: Ledger
) -> None:
    never = Callback[Any](ledger, times=0)
    accepting = app.listen()
    data = SliceBuffer([b"data"])
    with closing(app.connect(accepting.address)) as client, closing(accepting.next()) as server:
        wrong: Any = client
        listener: Any = accepting.listener
        cases: list[tuple[type[Exception], str, Callable[[], object]]] = [
            (TypeError, "on_read must be callable, not NoneType", lambda: wrong.read(None, SliceBuffer())),
            (TypeError, "read needs a SliceBuffer, not bytearray", lambda: wrong.read(never, bytearray())),
            (ValueError, "hint_bytes is 0.*1 or more", lambda: wrong.read(never, data, read_hint_bytes=0)),
            (TypeError, "on_writable must be callable, not bytes", lambda: wrong.write(b"data", data)),
            (TypeError, "write needs a SliceBuffer, not bytes", lambda: wrong.write(never, b"data")),
            (ValueError, "frame_size is 0.*1 or more", lambda: wrong.write(never, data, max_frame_size=0)),
            (TypeError, "bind needs a ResolvedAddress, not tuple", lambda: listener.bind(("127.0.0.1", 0))),
            (TypeError, "read_hint_bytes must be", lambda: wrong.read(never, data, read_hint_bytes="1")),
            (TypeError, "max_frame_size must be", lambda: wrong.write(never, data, max_frame_size=None)),
        ]
        for error, message, call in cases:
            with pytest.raises(error, match=message):
                call()
            assert bytes(data) == b"data"
        assert app.write(client, data).ok
        assert app.receive(server, 4) == b"data"


def test_a_closed_engine_is_refused_at_the_caller(anywhere: Application, ledger: Ledger) -> None:
    engine = anywhere.engine
    never = Callback[Any](ledger, times=0)
    allocator = anywhere.quota.create_memory_allocator("misuse")
    config = EndpointConfig()
    timer = engine.run_after(FAR_AWAY, lambda: never(None))
    calls: list[Callable[[], object]] = [
        lambda: engine.run(lambda: never(None)),
        lambda: engine.run_after(0.0, lambda: never(None)),
        lambda: engine.connect(never, ANY_PORT, config, allocator, TIMEOUT),
        lambda: engine.create_listener(lambda endpoint, allocator: never(None), never, config, anywhere.quota),
        engine.get_dns_resolver,
    ]
    outcome = Callback[list[BaseException | None]](ledger)

    def close_and_try() -> None:
        engine.close()
        found: list[BaseException | None] = []
        for call in calls:
            try:
                call()
            except BaseException as error:
                found.append(error)
            else:
                found.append(None)
        outcome(found)

    anywhere.call(close_and_try)
    for error in outcome.result():
        assert type(error) is ClosedResourceError
        assert "the engine was closed" in str(error)
    assert engine.cancel_connect(ConnectionHandle(-1)) is False
    engine.is_worker_thread()
    engine.close()
    assert engine.cancel(timer) in (False, True)  # True where a borrowed loop has not ended it yet
