"""Lifecycles of endpoints and listeners under random interleavings, with every fault: hypothesis chooses what is called
and when, and the seed what the network makes of it.

After each step, and in the end, when all was closed: each callback came exactly as often as it must, and never within
the call that it was given to; misuse was refused exactly where it is one; what came of a stream is what was sent of it,
as far as it came; no memory, socket or place is held by anybody.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from eventengine import (
    BusyResourceError,
    ClosedResourceError,
    ConnectionHandle,
    Endpoint,
    EndpointConfig,
    HalfCloseable,
    Listener,
    MemoryAllocator,
    ResolvedAddress,
    ResourceQuota,
    SliceBuffer,
    Status,
    StatusCode,
    StatusError,
)
from eventengine.testing import ROUGH, SimulatedEventEngine

ADDRESSES = [ResolvedAddress.parse(text) for text in ("10.0.0.2:80", "[fd00::2]:80", "unix-abstract:server")]
SMALL = EndpointConfig(send_buffer_size=3000, receive_buffer_size=2000, backlog=1)
CONDITIONS = replace(ROUGH, cut=0.005, fill_quota=0.03, refuse=0.02)
CHOICE = st.integers(0, 1 << 20)


class Once:
    """A callback that must be called once, after the call that it was given to has returned."""

    def __init__(self, machine: Lifecycles, then: Callable[[Any], object] = lambda value: None) -> None:
        self._machine = machine
        self._then = then
        self.values: list[Any] = []
        self.is_due = True
        machine.callbacks.append(self)

    def __call__(self, value: Any) -> None:
        assert not self._machine.is_calling, "a callback was called within a call"
        self.values.append(value)
        self._then(value)

    def check(self, ended: bool) -> None:
        assert len(self.values) <= self.is_due
        if ended:
            assert len(self.values) == self.is_due


class End:
    """One end of a connection, and what it must be like."""

    def __init__(self, machine: Lifecycles, endpoint: Endpoint) -> None:
        self.machine = machine
        self.endpoint = endpoint
        self.buffer = SliceBuffer()
        self.reads = self.writes = False  # whether one is outstanding
        self.closed = self.write_closed = False
        self.sent = bytearray()
        self.received = bytearray()
        self.ended: Status | None = None
        self.key = (str(endpoint.local_address), str(endpoint.peer_address))
        machine.ends.append(self)

    def read(self, hint: int, goes_on: bool) -> None:
        """`goes_on`: the next read begins when this one has brought something."""
        with self.machine.calling(self._busy(self.reads)):
            on_read = Once(self.machine, partial(self._on_read, hint, goes_on))
            on_read.is_due = False
            if self.endpoint.read(on_read, self.buffer, read_hint_bytes=hint):
                self._take(hint, goes_on)
            else:
                on_read.is_due = self.reads = True

    def _on_read(self, hint: int, goes_on: bool, status: Status) -> None:
        self.reads = False
        if status.ok:
            assert self.buffer
            self._take(hint, goes_on)
        else:
            assert not self.buffer
            assert (status.code is StatusCode.CANCELLED) == self.closed, status
            if status.code is StatusCode.CANCELLED:
                return
            assert status.code in (StatusCode.OUT_OF_RANGE, StatusCode.UNAVAILABLE)
            assert self.ended is None or status.code is self.ended.code, "an end is told again as it was"
            self.ended = status

    def _take(self, hint: int, goes_on: bool) -> None:
        assert self.ended is None, "bytes after the end"
        self.received += bytes(self.buffer)
        if goes_on:
            self.machine.later.append(lambda: None if self.reads or self.closed else self.read(hint, True))

    def write(self, size: int) -> None:
        with self.machine.calling(self._busy(self.writes) or (ClosedResourceError if self.write_closed else None)):
            start = len(self.sent)
            data = bytes((start + n) % 251 for n in range(size))
            on_writable = Once(self.machine, self._on_writable)
            on_writable.is_due = False
            if not self.endpoint.write(on_writable, SliceBuffer([data])):
                on_writable.is_due = self.writes = True
            self.sent += data

    def _on_writable(self, status: Status) -> None:
        self.writes = False
        assert (status.code is StatusCode.CANCELLED) == self.closed, status
        assert status.code in (StatusCode.OK, StatusCode.CANCELLED, StatusCode.UNAVAILABLE)

    def close_write(self) -> None:
        half = self.endpoint.query_extension(HalfCloseable)
        assert half is not None
        with self.machine.calling(self._busy(self.writes)):
            half.close_write()
            self.write_closed = True

    def close(self) -> None:
        self.closed = True
        with self.machine.calling(None):
            self.endpoint.close()

    def _busy(self, outstanding: bool) -> type[Exception] | None:
        if self.closed:
            return ClosedResourceError
        return BusyResourceError if outstanding else None


class Calling:
    """A call of the engine, which must raise what it is said to."""

    def __init__(self, machine: Lifecycles, error: type[Exception] | None) -> None:
        self._machine = machine
        self._error = error

    def __enter__(self) -> None:
        self._machine.is_calling = True

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        self._machine.is_calling = False
        assert kind is self._error or (kind is not None and self._error is None), f"{self._error} was not raised"
        return kind is not None and kind is self._error


class Lifecycles(RuleBasedStateMachine):
    """What hypothesis drives."""

    def begin(self, seed: int) -> None:
        self.engine = SimulatedEventEngine(seed, CONDITIONS)
        self.quota = ResourceQuota("lifecycles", memory="16KiB", connections=6)
        self.is_calling = False
        self.callbacks: list[Once] = []
        self.ends: list[End] = []
        self.listeners: list[Listener] = []
        self.connects: list[tuple[ConnectionHandle, Once]] = []
        self.later: list[Callable[[], object]] = []

    def calling(self, error: type[Exception] | None) -> Calling:
        return Calling(self, error)

    @initialize(seed=CHOICE, pairs=st.integers(1, 3))
    def begin_with_some_connections(self, seed: int, pairs: int) -> None:
        self.begin(seed)
        self.listen(0, False)
        for _ in range(pairs):
            self.connect(0, 5.0)
        self.let_time_pass(3.0)

    @rule(which=CHOICE, closes_in_on_accept=st.booleans())
    def listen(self, which: int, closes_in_on_accept: bool) -> None:

        def on_accept(endpoint: Endpoint, allocator: MemoryAllocator) -> None:
            assert not self.is_calling
            end = End(self, endpoint)
            if closes_in_on_accept:
                end.close()

        on_shutdown = Once(self)
        listener = self.engine.create_listener(on_accept, on_shutdown, SMALL, self.quota)
        self.listeners.append(listener)
        try:
            listener.bind(ADDRESSES[which % 3])
        except StatusError:  # a unix socket's name is taken
            assert which % 3 == 2
        else:
            listener.start()

    @precondition(lambda self: self.listeners)
    @rule(which=CHOICE)
    def close_a_listener(self, which: int) -> None:
        with self.calling(None):
            self.listeners.pop(which % len(self.listeners)).close()

    @rule(which=CHOICE, timeout=st.sampled_from([5.0, 0.05, 0.0]))
    def connect(self, which: int, timeout: float) -> None:

        def connected(result: Endpoint | Status) -> None:
            if not isinstance(result, Status):
                End(self, result)

        on_connect = Once(self, connected)
        allocator = self.quota.create_memory_allocator("client")
        with self.calling(None):
            handle = self.engine.connect(on_connect, ADDRESSES[which % 3], SMALL, allocator, timeout)
        self.connects.append((handle, on_connect))

    @precondition(lambda self: self.connects)
    @rule(which=CHOICE)
    def cancel_a_connect(self, which: int) -> None:
        handle, on_connect = self.connects.pop(which % len(self.connects))
        with self.calling(None):
            if self.engine.cancel_connect(handle):
                assert not on_connect.values
                on_connect.is_due = False
            else:
                assert on_connect.values

    def end(self, which: int) -> End:
        """Three times of four one that is open, if there is any."""
        candidates = [end for end in self.ends if not end.closed] if which % 4 else []
        candidates = candidates or self.ends
        return candidates[which // 4 % len(candidates)]

    @precondition(lambda self: self.ends)
    @rule(which=CHOICE, hint=st.sampled_from([1, 1, 100, 3000]), goes_on=st.booleans())
    def read(self, which: int, hint: int, goes_on: bool) -> None:
        self.end(which).read(hint, goes_on)

    @precondition(lambda self: self.ends)
    @rule(which=CHOICE, size=st.sampled_from([1, 50, 2000, 20_000]))
    def write(self, which: int, size: int) -> None:
        self.end(which).write(size)

    @precondition(lambda self: self.ends)
    @rule(which=CHOICE, size=st.sampled_from([1, 50, 2000, 20_000]), hint=st.sampled_from([1, 50]))
    def talk(self, which: int, size: int, hint: int) -> None:
        """One end writes, and the other reads on and on."""
        end = self.end(which)
        end.write(size)
        for other in self.ends:
            if other.key == end.key[::-1]:
                other.read(hint, goes_on=True)
        self.let_time_pass(0.05)

    @precondition(lambda self: self.ends)
    @rule(which=CHOICE)
    def close_write(self, which: int) -> None:
        self.end(which).close_write()

    @precondition(lambda self: self.ends)
    @rule(which=CHOICE, pause=st.sampled_from([None, 0.2]))
    def close_an_end(self, which: int, pause: float | None) -> None:
        self.end(which).close()
        if pause is not None:
            self.let_time_pass(pause)

    @precondition(lambda self: self.engine.network.connections)
    @rule(which=CHOICE, what=st.sampled_from(["reset", "cut", "hold", "release"]))
    def meddle(self, which: int, what: str) -> None:
        connections = self.engine.network.connections
        getattr(connections[which % len(connections)], what)()

    @rule()
    def fill_the_quota(self) -> None:
        self.engine.network.fill_quotas(0.5)

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.1, 3.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.engine.advance(seconds)
        for _ in range(100):
            later, self.later = self.later, []
            for read in later:
                read()
            self.engine.advance(0.0)
            if not self.later:
                break

    @invariant()
    def nothing_came_twice_or_changed(self) -> None:
        for callback in self.callbacks:
            callback.check(ended=False)
        by_key = {end.key: end for end in self.ends if end.key[0] != end.key[1]}
        for end in self.ends:
            other = by_key.get((end.key[1], end.key[0]))
            if other is not None and "unix" not in end.key[0]:
                assert bytes(other.sent).startswith(bytes(end.received))
        assert self.quota.connections.used <= 6

    def teardown(self) -> None:
        engine = self.engine
        for end in self.ends:
            end.closed = True  # what is outstanding now gets CANCELLED
        engine.close()
        engine.simulation.run_until_idle()
        for callback in self.callbacks:
            callback.check(ended=True)
        for end in self.ends:
            with pytest.raises(ClosedResourceError):
                end.endpoint.read(lambda status: None, SliceBuffer())
            end.endpoint.close()
        for listener in self.listeners:
            listener.close()
        for end in self.ends:
            end.buffer.clear()
        assert engine.network.sockets == 0
        assert self.quota.memory.used == 0
        assert self.quota.connections.used == 0


TestLifecycles = Lifecycles.TestCase
TestLifecycles.settings = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
