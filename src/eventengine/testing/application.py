"""The interface as an application calls it, in blocking calls, for the thread of a test.

Every callback that is handed to an engine comes from a `Ledger`, which knows how often it must be called before the
engine and its loop have ended; so each test, whatever it is about, also tests "exactly once".
"""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from eventengine.address import ResolvedAddress
from eventengine.config import EndpointConfig
from eventengine.engine import ConnectionHandle, Endpoint, EventEngine, Listener
from eventengine.memory import MemoryAllocator
from eventengine.quota import ResourceQuota
from eventengine.slices import SliceBuffer
from eventengine.status import Status
from eventengine.testing import oracle
from eventengine.testing.oracle import TIMEOUT

__all__ = ["Accepting", "Application", "Callback", "Ledger"]

T = TypeVar("T")


class Ledger:
    """Knows the callbacks of a test, and checks in the end how often each was called."""

    def __init__(self) -> None:
        self._callbacks: list[_Counted] = []

    def add(self, callback: _Counted) -> None:
        self._callbacks.append(callback)

    def check(self) -> None:
        """To be called when the engine and its loop have ended."""
        for callback in self._callbacks:
            if callback.count != callback.times:
                raise AssertionError(f"{callback!r} was called {callback.count} times, not {callback.times}")


class _Counted(Protocol):
    @property
    def times(self) -> int: ...

    @property
    def count(self) -> int: ...


class Callback(Generic[T]):
    """A callback that keeps what it was called with. It must be called as many `times` before the engine has ended.

    It never raises: an engine would log that, and the test would not see it.
    """

    def __init__(self, ledger: Ledger, times: int = 1) -> None:
        self.times = times
        self.values: list[T] = []
        self._called = threading.Event()
        ledger.add(self)

    def __call__(self, value: T) -> None:
        self.values.append(value)
        self._called.set()

    def result(self, timeout: float = TIMEOUT) -> T:
        """Waits for the call, and returns what it brought. Raises AssertionError when it does not come."""
        if not self._called.wait(timeout):
            raise AssertionError(f"a callback was not called within {timeout} s")
        return self.values[0]

    @property
    def count(self) -> int:
        """How often it was called."""
        return len(self.values)

    def __repr__(self) -> str:
        return f"<Callback called with {self.values}>"


class Accepting:
    """A listener that was started; `next` gives its connections one by one."""

    def __init__(self, application: Application, config: EndpointConfig) -> None:
        self.accepted: queue.SimpleQueue[Endpoint] = queue.SimpleQueue()
        self.on_shutdown = Callback[Status](application.ledger)
        self.listener: Listener = application.call(
            lambda: application.engine.create_listener(
                self._on_accept, self.on_shutdown, config, application.quota
            )
        )
        self.addresses: list[ResolvedAddress] = []

    def _on_accept(self, endpoint: Endpoint, allocator: MemoryAllocator) -> None:
        self.accepted.put(endpoint)

    @property
    def address(self) -> ResolvedAddress:
        """The first one that was bound, with its port."""
        return self.addresses[0]

    def next(self) -> Endpoint:
        """Waits for the next connection. Raises AssertionError when there is none."""
        try:
            return self.accepted.get(timeout=TIMEOUT)
        except queue.Empty:
            raise AssertionError(f"no connection was accepted within {TIMEOUT} s") from None

    def close(self) -> None:
        """Closes the listener, and waits for `on_shutdown`."""
        self.listener.close()
        self.on_shutdown.result()


class Application:
    """Calls an engine, from the thread of the test or, with `on_loop`, from where the engine's callbacks run."""

    def __init__(
        self, engine: EventEngine, quota: ResourceQuota, ledger: Ledger, *, on_loop: bool = False
    ) -> None:
        self.engine = engine
        self.quota = quota
        self.ledger = ledger
        self._on_loop = on_loop

    def call(self, function: Callable[[], T]) -> T:
        """Calls `function` there, and returns or raises what it does."""
        if not self._on_loop or self.engine.is_worker_thread():
            return function()
        return self.on_loop(function)

    def on_loop(self, function: Callable[[], T]) -> T:
        """Calls `function` where callbacks run, and returns or raises what it does."""
        outcome: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

        def closure() -> None:
            try:
                outcome.put((function(), None))
            except BaseException as error:
                outcome.put((None, error))

        self.engine.run(closure)
        try:
            value, error = outcome.get(timeout=TIMEOUT)
        except queue.Empty:
            raise AssertionError(f"a closure did not run within {TIMEOUT} s") from None
        if error is not None:
            raise error
        return value  # type: ignore[return-value]  # None only where T is

    def connect(
        self, address: ResolvedAddress, config: EndpointConfig | None = None, timeout: float = TIMEOUT
    ) -> Endpoint:
        """Connects. Raises AssertionError, with the status, where that fails."""
        result = self.try_connect(address, config, timeout)
        if isinstance(result, Status):
            raise AssertionError(f"connecting to {address}: {result}")
        return result

    def try_connect(
        self, address: ResolvedAddress, config: EndpointConfig | None = None, timeout: float = TIMEOUT
    ) -> Endpoint | Status:
        on_connect = Callback[Endpoint | Status](self.ledger)
        self.start_connect(on_connect, address, config, timeout)
        return on_connect.result()

    def start_connect(
        self,
        on_connect: Callable[[Endpoint | Status], object],
        address: ResolvedAddress,
        config: EndpointConfig | None = None,
        timeout: float = TIMEOUT,
    ) -> ConnectionHandle:
        allocator = self.quota.create_memory_allocator("connecting")
        return self.call(
            lambda: self.engine.connect(on_connect, address, config or EndpointConfig(), allocator, timeout)
        )

    def listen(self, *addresses: ResolvedAddress, config: EndpointConfig | None = None) -> Accepting:
        """Listens on these addresses; without any, `oracle.somewhere`."""
        accepting = Accepting(self, config or EndpointConfig())

        def bind_and_start() -> None:
            for address in addresses or (oracle.somewhere(),):
                port = accepting.listener.bind(address)
                inet = address.family in (socket.AF_INET, socket.AF_INET6)
                accepting.addresses.append(address.with_port(port) if inet else address)
            accepting.listener.start()

        self.call(bind_and_start)
        return accepting

    def start_read(self, endpoint: Endpoint, buffer: SliceBuffer, hint: int = 1) -> Callback[Status]:
        """Begins a read. If it is done at once, the callback that is returned was called by us, with OK."""
        on_read = Callback[Status](self.ledger)
        if self.call(lambda: endpoint.read(on_read, buffer, read_hint_bytes=hint)):
            on_read(Status.OK)
        return on_read

    def read(self, endpoint: Endpoint, buffer: SliceBuffer, hint: int = 1) -> Status:
        return self.start_read(endpoint, buffer, hint).result()

    def receive(self, endpoint: Endpoint, size: int, hint: int = 1) -> bytes:
        """Exactly `size` bytes. Raises AssertionError when the stream ends before, or more come."""
        data = bytearray()
        buffer = SliceBuffer()
        while len(data) < size:
            status = self.read(endpoint, buffer, hint)
            if not status.ok:
                raise AssertionError(f"after {len(data)} of {size} bytes: {status}")
            data += bytes(buffer)
        if len(data) > size:
            raise AssertionError(f"{len(data)} bytes came, and {size} were expected")
        return bytes(data)

    def receive_all(self, endpoint: Endpoint) -> tuple[bytes, Status]:
        """All bytes until the end of the stream, and what ended it."""
        data = bytearray()
        buffer = SliceBuffer()
        while (status := self.read(endpoint, buffer)).ok:
            data += bytes(buffer)
        return bytes(data), status

    def start_write(self, endpoint: Endpoint, data: SliceBuffer | bytes) -> Callback[Status]:
        """Begins a write; as `start_read`."""
        buffer = data if isinstance(data, SliceBuffer) else SliceBuffer([data])
        on_writable = Callback[Status](self.ledger)
        if self.call(lambda: endpoint.write(on_writable, buffer)):
            on_writable(Status.OK)
        return on_writable

    def write(self, endpoint: Endpoint, data: SliceBuffer | bytes) -> Status:
        return self.start_write(endpoint, data).result()
