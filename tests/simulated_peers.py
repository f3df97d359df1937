"""Programs for the simulated engine: a server that keeps what it gets, and a client that sends and closes."""

from __future__ import annotations

from eventengine import (
    Endpoint,
    EndpointConfig,
    MemoryAllocator,
    ResolvedAddress,
    ResourceQuota,
    SliceBuffer,
    Status,
)
from eventengine.testing import SimulatedEventEngine

SERVER = ResolvedAddress.parse("10.0.0.2:80")


class Sink:
    """Accepts connections, and keeps what each of them brings, piece by piece, and how it ended."""

    def __init__(
        self,
        engine: SimulatedEventEngine,
        address: ResolvedAddress = SERVER,
        *,
        quota: ResourceQuota | None = None,
        config: EndpointConfig | None = None,
    ) -> None:
        self.streams: list[list[bytes]] = []
        self.ends: list[Status] = []
        self.shut_down: list[Status] = []
        self.endpoints: list[Endpoint] = []
        self.listener = engine.create_listener(
            self._on_accept, self.shut_down.append, config or EndpointConfig(), quota or ResourceQuota("sink")
        )
        self.listener.bind(address)
        self.listener.start()

    @property
    def received(self) -> bytes:
        return b"".join(piece for stream in self.streams for piece in stream)

    def _on_accept(self, endpoint: Endpoint, allocator: MemoryAllocator) -> None:
        stream: list[bytes] = []
        buffer = SliceBuffer()
        self.streams.append(stream)
        self.endpoints.append(endpoint)

        def on_read(status: Status) -> None:
            while status.ok:
                if buffer:
                    stream.append(bytes(buffer))
                if endpoint.read(on_read, buffer):
                    continue
                return
            self.ends.append(status)
            endpoint.close()

        on_read(Status.OK)

    def close(self) -> None:
        self.listener.close()
        for endpoint in self.endpoints:
            endpoint.close()


def connect(
    engine: SimulatedEventEngine,
    address: ResolvedAddress = SERVER,
    *,
    timeout: float = 10.0,
    config: EndpointConfig | None = None,
    quota: ResourceQuota | None = None,
) -> Endpoint | Status:
    """Connects, and lets time pass until it is known how that ended."""
    results: list[Endpoint | Status] = []
    allocator = (quota or ResourceQuota("client")).create_memory_allocator("client")
    engine.connect(results.append, address, config or EndpointConfig(), allocator, timeout)
    engine.run_until(lambda: results)
    return results[0]


def connected(engine: SimulatedEventEngine, address: ResolvedAddress = SERVER, **options: object) -> Endpoint:
    result = connect(engine, address, **options)  # type: ignore[arg-type]
    assert not isinstance(result, Status), result
    return result


def write(endpoint: Endpoint, data: bytes) -> list[Status]:
    """Begins a write; what is returned gets its status."""
    statuses: list[Status] = []
    if endpoint.write(statuses.append, SliceBuffer([data])):
        statuses.append(Status.OK)
    return statuses
