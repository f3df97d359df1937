"""What lies above the interface, on the simulated engine with every fault: connecting to targets, and TLS.

A few seeds each, as many as take a second. Whatever happens, each callback comes once, and nothing is left.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from certificates import HOST, certificates
from eventengine import (
    ClosedResourceError,
    Endpoint,
    EndpointConfig,
    MemoryAllocator,
    ResolvedAddress,
    ResourceQuota,
    SliceBuffer,
    Status,
    StatusCode,
    connect_target,
    tls,
)
from eventengine.testing import ROUGH, SimulatedEventEngine
from eventengine.testing.application import Ledger
from simulated_peers import Sink

ROUGH_AT_TIMES = replace(ROUGH, reset=0.003, cut=0.001)
DATA = bytes(range(256)) * 50


class Counted:
    """A callback that must be called `times` times in all."""

    def __init__(self, ledger: Ledger, then: Callable[[Any], object] = lambda value: None) -> None:
        self.times = 1
        self.count = 0
        self._then = then
        ledger.add(self)

    def __call__(self, value: Any) -> None:
        self.count += 1
        self._then(value)


def nothing_is_left(engine: SimulatedEventEngine, quota: ResourceQuota) -> None:
    if quota.memory.used:
        gc.collect()
    assert quota.memory.used == 0
    assert engine.network.sockets == 0


def test_connecting_to_targets_ends_once_whatever_the_network_does() -> None:
    codes: set[StatusCode | None] = set()
    for seed in range(100):
        chance = random.Random(seed)
        ledger = Ledger()
        quota = ResourceQuota("targets")

        def connected(result: Endpoint | Status) -> None:
            codes.add(result.code if isinstance(result, Status) else None)
            if not isinstance(result, Status):
                result.close()

        with SimulatedEventEngine(seed, ROUGH) as engine:
            engine.network.names.add("site.example", "fd00::7", "10.0.0.2", "10.0.0.3", "fd00::8")
            engine.network.hang(ResolvedAddress.parse("[fd00::8]:80"))
            sink = Sink(engine)
            allocator = quota.create_memory_allocator("client")
            for timeout in (0.05, 1.0, 15.0):
                on_connect = Counted(ledger, connected)
                attempt = connect_target(
                    engine, on_connect, "site.example:80", EndpointConfig(), allocator, timeout=timeout
                )
                engine.advance(chance.random() * 0.5)
                if chance.random() < 0.2 and attempt.cancel():
                    on_connect.times = 0
            if seed % 2:
                engine.run_until_idle()
            sink.close()
        ledger.check()
        nothing_is_left(engine, quota)
    assert codes >= {None, StatusCode.DEADLINE_EXCEEDED, StatusCode.UNAVAILABLE, StatusCode.CANCELLED}


class _TLSPair:
    """A client that sends DATA over TLS, and a server that keeps what comes; each callback is counted."""

    def __init__(self, engine: SimulatedEventEngine, quota: ResourceQuota) -> None:
        self.engine = engine
        self.ledger = Ledger()
        self.received = bytearray()
        self.statuses: list[Status] = []
        self.endpoints: list[Endpoint] = []
        self._server_context = certificates().server_context()
        self._client_context = certificates().client_context()
        self._allocator = quota.create_memory_allocator("client")
        self.listener = engine.create_listener(self._accept, Counted(self.ledger), EndpointConfig(), quota)
        address = ResolvedAddress.parse("10.0.0.2:443")
        self.listener.bind(address)
        self.listener.start()
        engine.connect(Counted(self.ledger, self._connect), address, EndpointConfig(), self._allocator, 10.0)

    def _accept(self, endpoint: Endpoint, allocator: MemoryAllocator) -> None:
        on_done = Counted(self.ledger, self._serve)
        tls.accept(self.engine, on_done, endpoint, self._server_context, memory_allocator=allocator, timeout=10.0)

    def _connect(self, result: Endpoint | Status) -> None:
        if not isinstance(result, Status):
            tls.connect(
                self.engine,
                Counted(self.ledger, self._send),
                result,
                self._client_context,
                server_hostname=HOST,
                memory_allocator=self._allocator,
                timeout=10.0,
            )

    def _serve(self, result: Endpoint | Status) -> None:
        if isinstance(result, Status):
            return
        self.endpoints.append(result)
        buffer = SliceBuffer()

        def on_read(status: Status) -> None:
            while status.ok:
                self.received += bytes(buffer)
                again = Counted(self.ledger, on_read)
                if not result.read(again, buffer):
                    return
                again.times = 0
            self.statuses.append(status)

        on_read(Status.OK)

    def _send(self, result: Endpoint | Status) -> None:
        if isinstance(result, Status):
            return
        self.endpoints.append(result)
        on_written = Counted(self.ledger, lambda status: result.close())
        if result.write(on_written, SliceBuffer([DATA])):
            on_written.times = 0
            result.close()

    def close(self) -> None:
        self.listener.close()
        for endpoint in self.endpoints:
            endpoint.close()


def test_tls_ends_clean_or_is_told_otherwise_whatever_the_network_does() -> None:
    whole = cut_off = 0
    for seed in range(60):
        quota = ResourceQuota("tls", memory="128KiB")
        with SimulatedEventEngine(seed, ROUGH_AT_TIMES) as engine:
            pair = _TLSPair(engine, quota)
            engine.advance(30.0)
            if any(status.code is StatusCode.OUT_OF_RANGE for status in pair.statuses):
                assert bytes(pair.received) == DATA, "a clean end comes after all that was written"
                whole += 1
            else:
                assert DATA.startswith(pair.received)
                cut_off += 1
            pair.close()
        pair.ledger.check()
        pair.endpoints.clear()
        nothing_is_left(engine, quota)
    assert whole > cut_off > 0


def test_a_closed_engine_takes_no_target() -> None:
    engine = SimulatedEventEngine()
    engine.close()
    allocator = ResourceQuota().create_memory_allocator("client")
    with pytest.raises(ClosedResourceError):
        connect_target(engine, lambda result: None, "10.0.0.2:80", EndpointConfig(), allocator, timeout=1.0)
