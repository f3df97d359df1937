"""Everything at once, from many threads."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from eventengine.address import ResolvedAddress
from eventengine.config import EndpointConfig
from eventengine.engine import Endpoint
from eventengine.memory import MemoryAllocator
from eventengine.slices import SliceBuffer
from eventengine.status import BusyResourceError, ClosedResourceError, Status
from eventengine.testing.application import Application, Callback
from eventengine.testing.oracle import TIMEOUT

FAR_AWAY = 1e6
ANY_PORT = ResolvedAddress.tcp("127.0.0.1", 0)


class _Soak:
    """One thread of a soak: calls this and that by chance, on endpoints of its own and on some that all have."""

    def __init__(self, app: Application, address: ResolvedAddress, shared: list[Endpoint], seed: int) -> None:
        self._app = app
        self._address = address
        self._endpoints: list[Endpoint] = []
        self._shared = shared
        self._chance = random.Random(seed)
        self._allocator = app.quota.create_memory_allocator("soak")
        self._actions = (
            self._run,
            self._run_after,
            self._connect,
            self._listen,
            self._read,
            self._write,
            self._close,
        )
        self._lock = threading.Lock()
        self.timers: list[tuple[list[int], bool]] = []

    def run(self, until: float) -> None:
        """Until that time, or the engine's end."""
        while time.monotonic() < until:
            try:
                self._chance.choice(self._actions)()
            except (BusyResourceError, ClosedResourceError):
                if self._closed():
                    return

    def _closed(self) -> bool:
        try:
            self._app.engine.run(lambda: None)
        except ClosedResourceError:
            return True
        return False

    @contextmanager
    def _counted(self) -> Generator[Callback[Any]]:
        """A callback that must be called, unless the call that gets it raises."""
        callback = Callback[Any](self._app.ledger, times=0)
        yield callback
        callback.times += 1

    def _run(self) -> None:
        with self._counted() as callback:
            self._app.engine.run(lambda: callback(None))

    def _run_after(self) -> None:
        ran: list[int] = []
        handle = self._app.engine.run_after(self._chance.choice((0.0, 0.001, FAR_AWAY)), lambda: ran.append(1))
        if self._chance.random() < 0.7:
            self.timers.append((ran, self._app.engine.cancel(handle)))
        else:
            self.timers.append((ran, False))

    def _connect(self) -> None:
        with self._counted() as callback:

            def on_connect(result: Endpoint | Status) -> None:
                callback(result)
                if isinstance(result, Status):
                    return
                with self._lock:
                    self._endpoints.append(result)
                    extra = self._endpoints.pop(0) if len(self._endpoints) > 4 else None
                if extra is not None:
                    extra.close()

            handle = self._app.engine.connect(
                on_connect, self._address, EndpointConfig(), self._allocator, self._chance.choice((0.0, TIMEOUT))
            )
            if self._chance.random() < 0.4 and self._app.engine.cancel_connect(handle):
                callback.times = -1

    def _listen(self) -> None:
        def on_accept(endpoint: Endpoint, allocator: MemoryAllocator) -> None:
            endpoint.close()

        with self._counted() as on_shutdown:
            listener = self._app.engine.create_listener(on_accept, on_shutdown, EndpointConfig(), self._app.quota)
        try:
            listener.bind(ANY_PORT)
            listener.start()
        finally:
            listener.close()

    def _endpoint(self) -> Endpoint:
        with self._lock:
            return self._chance.choice((*self._endpoints, *self._shared))

    def _read(self) -> None:
        with self._counted() as callback:
            if self._endpoint().read(callback, SliceBuffer()):
                callback.times = -1

    def _write(self) -> None:
        with self._counted() as callback:
            data = SliceBuffer([bytes(self._chance.choice((1, 1000, 100_000)))])
            if self._endpoint().write(callback, data):
                callback.times = -1

    def _close(self) -> None:
        with self._lock:
            endpoint = self._endpoints.pop() if self._endpoints else None
        if endpoint is not None:
            endpoint.close()

    def end(self) -> None:
        with self._lock:
            for endpoint in self._endpoints:
                endpoint.close()
        assert all(len(ran) <= (not cancelled) for ran, cancelled in self.timers)


@pytest.mark.parametrize("end", ["after the threads", "among the threads"])
def test_all_methods_from_eight_threads_at_once(app: Application, end: str) -> None:
    """Each callback is called as often as it must be; see the ledger."""
    echoes: list[Endpoint] = []

    def on_accept(endpoint: Endpoint, allocator: MemoryAllocator) -> None:
        buffer = SliceBuffer()
        echoes.append(endpoint)

        def on_read(status: Status) -> None:
            try:
                while status.ok:
                    if not endpoint.read(on_read, buffer):
                        return
                endpoint.close()
            except ClosedResourceError:
                pass

        on_read(Status.OK)

    on_shutdown = Callback[Status](app.ledger)
    listener = app.engine.create_listener(on_accept, on_shutdown, EndpointConfig(), app.quota)
    address = ANY_PORT.with_port(listener.bind(ANY_PORT))
    listener.start()
    shared = [app.connect(address) for _ in range(2)]
    until = time.monotonic() + 0.25
    soaks = [_Soak(app, address, shared, seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as threads:
        running = [threads.submit(soak.run, until) for soak in soaks]
        if end == "among the threads":
            app.engine.run_after(0.1, app.engine.close)
        for thread in running:
            thread.result(TIMEOUT)
    listener.close()
    app.engine.close()
    assert on_shutdown.result() == Status.OK
    for soak in soaks:
        soak.end()
    for endpoint in (*shared, *echoes):
        endpoint.close()
