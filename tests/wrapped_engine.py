"""`WrappedEngine`: another engine, for those that do one thing otherwise; and listeners whose connections take time."""

from __future__ import annotations

import threading
from collections.abc import Callable

from eventengine import (
    ConnectionHandle,
    DNSResolver,
    Endpoint,
    EndpointConfig,
    EventEngine,
    Listener,
    MemoryAllocator,
    MemoryAllocatorFactory,
    ResolvedAddress,
    Status,
    StatusOr,
    TaskHandle,
)


class WrappedEngine(EventEngine):
    """Passes everything on to `inner`."""

    def __init__(self, inner: EventEngine) -> None:
        self.inner = inner

    @property
    def callbacks_block_polling(self) -> bool:
        return self.inner.callbacks_block_polling

    def run(self, closure: Callable[[], object]) -> None:
        self.inner.run(closure)

    def run_after(self, delay: float, closure: Callable[[], object]) -> TaskHandle:
        return self.inner.run_after(delay, closure)

    def cancel(self, handle: TaskHandle) -> bool:
        return self.inner.cancel(handle)

    def connect(
        self,
        on_connect: Callable[[StatusOr[Endpoint]], object],
        address: ResolvedAddress,
        config: EndpointConfig,
        memory_allocator: MemoryAllocator,
        timeout: float,
    ) -> ConnectionHandle:
        return self.inner.connect(on_connect, address, config, memory_allocator, timeout)

    def cancel_connect(self, handle: ConnectionHandle) -> bool:
        return self.inner.cancel_connect(handle)

    def create_listener(
        self,
        on_accept: Callable[[Endpoint, MemoryAllocator], object],
        on_shutdown: Callable[[Status], object],
        config: EndpointConfig,
        memory_allocator_factory: MemoryAllocatorFactory,
    ) -> Listener:
        return self.inner.create_listener(on_accept, on_shutdown, config, memory_allocator_factory)

    def get_dns_resolver(self, *, dns_server: str | None = None) -> DNSResolver:
        return self.inner.get_dns_resolver(dns_server=dns_server)

    def is_worker_thread(self) -> bool:
        return self.inner.is_worker_thread()

    def close(self) -> None:
        self.inner.close()


class UnderWay:
    """Connections of a listener that its application has yet to get: its `on_shutdown` comes after the last."""

    def __init__(
        self, on_accept: Callable[[Endpoint, MemoryAllocator], object], on_shutdown: Callable[[Status], object]
    ) -> None:
        self._on_accept = on_accept
        self._on_shutdown = on_shutdown
        self._count = 1  # the listener itself
        self._lock = threading.Lock()

    def begin(self, allocator: MemoryAllocator) -> Callable[[StatusOr[Endpoint]], None]:
        """One more; what is returned gets the endpoint in the end, or why there is none."""
        with self._lock:
            self._count += 1

        def on_done(result: StatusOr[Endpoint]) -> None:
            try:
                if not isinstance(result, Status):
                    try:
                        self._on_accept(result, allocator)
                    except BaseException:
                        result.close()
                        raise
            finally:
                self._end()

        return on_done

    def shut_down(self, status: Status) -> None:
        """The `on_shutdown` of the listener below."""
        assert status.ok
        self._end()

    def _end(self) -> None:
        with self._lock:
            self._count -= 1
            last = not self._count
        if last:
            self._on_shutdown(Status.OK)
