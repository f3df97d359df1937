"""A relay whose two streams, timers and ends have news in any order; a test plays the endpoints and the proxy."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from eventengine import (
    ClosedResourceError,
    Endpoint,
    HalfCloseable,
    ResolvedAddress,
    ResourceQuota,
    SliceBuffer,
    Status,
    StatusCode,
    TaskHandle,
)
from eventengine.cli import proxy_tls
from eventengine.cli import relay as relay_module
from eventengine.cli.relay import Relay
from eventengine.tls.statuses import UNCLEAN_END

ADDRESS = ResolvedAddress.parse("127.0.0.1:1")
OK = Status()
END = Status(StatusCode.OUT_OF_RANGE, "the end")
BROKEN = Status(StatusCode.UNAVAILABLE, "broken")


class Side(Endpoint):
    """Reads and writes are outstanding until a test answers them."""

    peer_address = local_address = ADDRESS

    def __init__(self, *, halves: bool = True) -> None:
        self.closed = 0
        self.half_closed = 0
        self.on_read: Any = None
        self.on_write: Any = None
        self._halves = halves

    def read(self, on_done: Callable[[Status], object], buffer: SliceBuffer, *_: object, **__: object) -> bool:
        assert self.on_read is None
        self.on_read, self.buffer = on_done, buffer
        return False

    def write(self, on_done: Callable[[Status], object], buffer: SliceBuffer, *_: object, **__: object) -> bool:
        assert self.on_write is None
        self.on_write = on_done
        return False

    def close(self) -> None:
        self.closed += 1

    def close_write(self) -> None:
        self.half_closed += 1

    def telemetry_info(self) -> Any:
        raise NotImplementedError

    def query_extension(self, extension: type[Any]) -> Any:
        return self if extension is HalfCloseable and self._halves else None

    def reads(self, status: Status, data: bytes = b"") -> None:
        """What was asked for last has come."""
        on_read, self.on_read = self.on_read, None
        self.buffer.append(data)
        on_read(status)

    def has_written(self, status: Status) -> None:
        on_write, self.on_write = self.on_write, None
        on_write(status)


class Proxy:
    """What a relay needs of its proxy, and of that one's engine."""

    target = ADDRESS
    idle_timeout: float | None = None

    def __init__(self) -> None:
        self.engine = self.tls = self
        self.down = ResourceQuota()
        self.ended: list[str] = []
        self.timers: list[Callable[[], object]] = []

    def run_after(self, delay: float, function: Callable[[], object]) -> TaskHandle:
        self.timers.append(function)
        return TaskHandle(function)

    def cancel(self, handle: TaskHandle) -> bool:
        return True  # what has begun to run already is not stopped by that

    def connect(self, *_: object) -> None:
        """There is no handshake to do."""

    def on_relay_end(self, relay: Relay) -> None:
        self.ended.append(cast("str", relay.outcome))


class Scene:
    """A relay that has reached its target."""

    def __init__(self, *, idle_timeout: float | None = None, halves: bool = True) -> None:
        self.proxy = Proxy()
        self.proxy.idle_timeout = idle_timeout
        self.client, self.server = Side(halves=halves), Side(halves=halves)
        allocator = ResourceQuota().create_memory_allocator("client")
        self.relay = Relay(cast("Any", self.proxy), self.client, allocator)
        self.relay._on_connect(self.server)


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setattr(relay_module, "unsent", lambda _: 10)
    return Scene()


def test_what_is_read_or_written_when_the_relay_has_ended_is_dropped_and_asks_for_nothing(scene: Scene) -> None:
    scene.client.reads(OK, b"abc")
    scene.relay.end("the proxy was stopped")
    scene.server.has_written(OK)
    scene.server.reads(OK, b"late")
    assert scene.client.on_read is scene.server.on_read is scene.client.on_write is None
    assert not scene.client.buffer
    assert not scene.server.buffer
    assert scene.relay.bytes_up == 3
    assert scene.proxy.ended == ["the proxy was stopped"]


def test_a_relay_ends_once(scene: Scene) -> None:
    scene.relay.end("first")
    scene.relay.end("second")
    assert (scene.relay.outcome, scene.proxy.ended) == ("first", ["first"])


def test_a_relay_both_of_whose_streams_are_cut_waits_for_nobody(scene: Scene) -> None:
    scene.client.reads(UNCLEAN_END)
    assert len(scene.proxy.timers) == 1  # what is on its way to the target is awaited
    scene.server.reads(UNCLEAN_END)
    assert scene.proxy.ended == [f"reading up failed: {UNCLEAN_END}"]


def test_a_stream_that_ends_after_the_other_was_cut_leaves_the_time_for_what_is_on_its_way(scene: Scene) -> None:
    scene.client.reads(UNCLEAN_END)
    scene.server.reads(END)
    assert scene.proxy.ended == []
    scene.relay.end("the proxy was stopped")
    scene.proxy.timers[0]()  # it was about to run when it was cancelled
    assert len(scene.proxy.timers) == 1
    assert scene.proxy.ended == ["the proxy was stopped"]


def test_a_sink_that_is_lost_after_the_other_stream_was_cut_leaves_that_time_too(scene: Scene) -> None:
    scene.server.reads(OK, b"abc")
    scene.client.reads(UNCLEAN_END)
    scene.client.has_written(BROKEN)
    assert scene.proxy.ended == []
    scene.relay.end("the proxy was stopped")
    assert scene.proxy.ended == ["the proxy was stopped"]


def test_an_end_that_cannot_be_passed_on_alone_ends_the_relay() -> None:
    scene = Scene(halves=False)
    scene.client.reads(END)
    assert scene.proxy.ended == ["up ended, which cannot be passed on alone"]


def test_an_end_is_passed_on_alone(scene: Scene) -> None:
    scene.client.reads(END)
    assert (scene.server.half_closed, scene.client.half_closed) == (1, 0)
    scene.server.reads(END)
    assert scene.proxy.ended == ["both sides ended"]


def test_sides_without_a_descriptor_are_closed_where_there_is_nothing_to_reset(scene: Scene) -> None:
    scene.client.reads(BROKEN)
    assert scene.client.closed
    assert scene.server.closed
    assert scene.proxy.ended == [f"reading up failed: {BROKEN}"]


def test_a_look_for_idleness_that_comes_when_the_relay_has_ended_looks_no_more() -> None:
    scene = Scene(idle_timeout=0.0)
    scene.relay.end("first")
    scene.proxy.timers[0]()
    assert scene.proxy.ended == ["first"]
    assert len(scene.proxy.timers) == 1


@pytest.mark.parametrize("tells", ["nothing", "closed", "no socket"])
def test_nothing_is_said_to_be_unsent_where_nobody_knows(tells: str) -> None:
    with Path(os.devnull).open("rb") as file:

        class Told(Side):
            def query_extension(self, extension: type[Any]) -> Any:
                return None if tells == "nothing" else self

            def fileno(self) -> int:
                if tells == "closed":
                    raise ClosedResourceError("the endpoint was closed")
                return file.fileno()

        assert proxy_tls.unsent(Told()) == 0
