"""Engines that are wrong, each in one way: the default engine, in a wrapper that does one thing otherwise.

`FAULTS` has for each the cases of the conformance suite whose names say what is wrong, and a text that they fail with.
`Right` is the wrapper alone.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from eventengine import (
    ConnectionHandle,
    Endpoint,
    EndpointConfig,
    Listener,
    MemoryAllocator,
    MemoryAllocatorFactory,
    MemoryRequest,
    ResolvedAddress,
    ResourceQuota,
    SliceBuffer,
    Status,
    StatusCode,
    StatusOr,
    SupportsFileDescriptor,
    TaskHandle,
    TelemetryInfo,
    WriteEventSink,
    create_event_engine,
)
from wrapped_engine import WrappedEngine


class WrappedEndpoint(Endpoint):
    """Passes everything on to `inner`."""

    def __init__(self, inner: Endpoint) -> None:
        self.inner = inner

    def read(self, on_read: Callable[[Status], object], buffer: SliceBuffer, *, read_hint_bytes: int = 1) -> bool:
        return self.inner.read(on_read, buffer, read_hint_bytes=read_hint_bytes)

    def write(
        self,
        on_writable: Callable[[Status], object],
        data: SliceBuffer,
        *,
        max_frame_size: int = 1 << 20,
        sink: WriteEventSink | None = None,
    ) -> bool:
        return self.inner.write(on_writable, data, max_frame_size=max_frame_size, sink=sink)

    @property
    def peer_address(self) -> ResolvedAddress:
        return self.inner.peer_address

    @property
    def local_address(self) -> ResolvedAddress:
        return self.inner.local_address

    def telemetry_info(self) -> TelemetryInfo | None:
        return self.inner.telemetry_info()

    def query_extension(self, extension: type[Any]) -> Any:
        return self.inner.query_extension(extension)

    def close(self) -> None:
        self.inner.close()


class Right(WrappedEngine):
    endpoint: type[WrappedEndpoint] = WrappedEndpoint

    def __init__(self) -> None:
        super().__init__(create_event_engine())

    def connect(
        self,
        on_connect: Callable[[StatusOr[Endpoint]], object],
        address: ResolvedAddress,
        config: EndpointConfig,
        memory_allocator: MemoryAllocator,
        timeout: float,
    ) -> ConnectionHandle:
        def on_done(result: StatusOr[Endpoint]) -> None:
            on_connect(result if isinstance(result, Status) else self.endpoint(result))

        return self.inner.connect(on_done, address, config, memory_allocator, timeout)

    def create_listener(
        self,
        on_accept: Callable[[Endpoint, MemoryAllocator], object],
        on_shutdown: Callable[[Status], object],
        config: EndpointConfig,
        memory_allocator_factory: MemoryAllocatorFactory,
    ) -> Listener:
        def on_endpoint(endpoint: Endpoint, allocator: MemoryAllocator) -> None:
            on_accept(self.endpoint(endpoint), allocator)

        return self.inner.create_listener(on_endpoint, on_shutdown, config, memory_allocator_factory)


# Tasks.


class ClosureTwice(Right):
    def run(self, closure: Callable[[], object]) -> None:
        self.inner.run(closure)
        self.inner.run(closure)


class ClosureInline(Right):
    def run(self, closure: Callable[[], object]) -> None:
        if self.is_worker_thread():
            closure()
        else:
            self.inner.run(closure)


class TimerForgotten(Right):
    """Has room for one timer: the nearest."""

    nearest = float("inf"), TaskHandle(-1)

    def run_after(self, delay: float, closure: Callable[[], object]) -> TaskHandle:
        deadline = time.monotonic() + delay
        handle = self.inner.run_after(delay, closure)
        if deadline < self.nearest[0]:
            self.inner.cancel(self.nearest[1])
            self.nearest = deadline, handle
        return handle


class TimerEarly(Right):
    def run_after(self, delay: float, closure: Callable[[], object]) -> TaskHandle:
        return self.inner.run_after(delay / 2, closure)


class CancelOfWhatRan(Right):
    def cancel(self, handle: TaskHandle) -> bool:
        self.inner.cancel(handle)
        return True


class CancelledRuns(Right):
    """Forgets a cancelled timer's handle, and runs it all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.known: set[TaskHandle] = set()

    def run_after(self, delay: float, closure: Callable[[], object]) -> TaskHandle:
        handle = self.inner.run_after(delay, closure)
        self.known.add(handle)
        return handle

    def cancel(self, handle: TaskHandle) -> bool:
        if handle in self.known:
            self.known.remove(handle)
            return True
        return False


# Bytes.


class _ChangingReads(WrappedEndpoint):
    """Reads and then changes what was read."""

    def read(self, on_read: Callable[[Status], object], buffer: SliceBuffer, *, read_hint_bytes: int = 1) -> bool:
        def on_done(status: Status) -> None:
            on_read(self.change(status, buffer))

        done = self.inner.read(on_done, buffer, read_hint_bytes=read_hint_bytes)
        if done:
            self.change(Status.OK, buffer)
        return done

    def change(self, status: Status, buffer: SliceBuffer) -> Status:
        raise NotImplementedError


class BytesReordered(Right):
    class endpoint(_ChangingReads):  # noqa: N801  # in place of that of Right
        def change(self, status: Status, buffer: SliceBuffer) -> Status:
            data = bytes(buffer)
            buffer.clear()
            buffer.append(data[1:] + data[:1])
            return status


class BytesLost(Right):
    class endpoint(_ChangingReads):  # noqa: N801
        has_lost = False

        def change(self, status: Status, buffer: SliceBuffer) -> Status:
            if not self.has_lost:
                self.has_lost = True
                buffer.take_first()
            return status


class ResetIsAnEnd(Right):
    class endpoint(_ChangingReads):  # noqa: N801
        def change(self, status: Status, buffer: SliceBuffer) -> Status:
            return Status(StatusCode.OUT_OF_RANGE, "the end") if status.code is StatusCode.UNAVAILABLE else status


class CloseLeavesReads(Right):
    """An outstanding read hears nothing of a close."""

    class endpoint(WrappedEndpoint):  # noqa: N801
        def read(
            self, on_read: Callable[[Status], object], buffer: SliceBuffer, *, read_hint_bytes: int = 1
        ) -> bool:
            def on_done(status: Status) -> None:
                if status.code is not StatusCode.CANCELLED:
                    on_read(status)

            return self.inner.read(on_done, buffer, read_hint_bytes=read_hint_bytes)


# Memory, and what is left.


class WriteKeepsSlices(Right):
    class endpoint(WrappedEndpoint):  # noqa: N801
        def write(self, on_writable: Callable[[Status], object], data: SliceBuffer, **more: Any) -> bool:
            self.written = [part.view for part in data.slices]
            return self.inner.write(on_writable, data, **more)


class MemoryUncharged(Right):
    """Reads into memory that is not of the quota that it was given, and so knows no limit either."""

    def connect(
        self,
        on_connect: Callable[[StatusOr[Endpoint]], object],
        address: ResolvedAddress,
        config: EndpointConfig,
        memory_allocator: MemoryAllocator,
        timeout: float,
    ) -> ConnectionHandle:
        own = ResourceQuota("its own").create_memory_allocator("own")
        return super().connect(on_connect, address, config, own, timeout)


class MemoryKept(Right):
    """Holds a block for each connection, though it is idle."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks: list[object] = []

    def connect(
        self,
        on_connect: Callable[[StatusOr[Endpoint]], object],
        address: ResolvedAddress,
        config: EndpointConfig,
        memory_allocator: MemoryAllocator,
        timeout: float,
    ) -> ConnectionHandle:
        self.blocks.append(memory_allocator.make_slice(MemoryRequest(1024)))
        return super().connect(on_connect, address, config, memory_allocator, timeout)


class DescriptorLeaked(Right):
    class endpoint(WrappedEndpoint):  # noqa: N801
        def close(self) -> None:
            descriptor = self.inner.query_extension(SupportsFileDescriptor)
            assert descriptor
            os.dup(descriptor.fileno())
            self.inner.close()


class ThreadLeaked(Right):
    def __init__(self) -> None:
        super().__init__()
        threading.Thread(target=threading.Event().wait, name="leaked", daemon=True).start()


# Listeners.


class _Hasty(Listener):
    """Says that it has ended as soon as it is closed."""

    def __init__(self, inner: Listener, on_shutdown: Callable[[Status], object]) -> None:
        self._inner = inner
        self._on_shutdown = [on_shutdown]

    def bind(self, address: ResolvedAddress) -> int:
        return self._inner.bind(address)

    def start(self) -> None:
        self._inner.start()

    def close(self) -> None:
        self._inner.close()
        while self._on_shutdown:
            self._on_shutdown.pop()(Status.OK)


class AcceptAfterShutdown(Right):
    def create_listener(
        self,
        on_accept: Callable[[Endpoint, MemoryAllocator], object],
        on_shutdown: Callable[[Status], object],
        config: EndpointConfig,
        memory_allocator_factory: MemoryAllocatorFactory,
    ) -> Listener:
        inner = super().create_listener(on_accept, lambda status: None, config, memory_allocator_factory)
        return _Hasty(inner, on_shutdown)


class Fault(NamedTuple):
    cases: tuple[str, ...]
    text: str
    where: str = "test"
    """Which parameters, as pytest's -k takes it: where the cases hang, one will do."""


FAULTS: dict[type[Right], Fault] = {
    ClosureTwice: Fault(("test_a_closure_runs_exactly_once",), "was called 2 times, not 1"),
    ClosureInline: Fault(("test_a_closure_never_runs_before_the_call_has_returned",), "assert [True] == [False]"),
    TimerForgotten: Fault(
        ("test_a_timer_that_was_the_earliest_is_not_forgotten_for_a_nearer_one",), "assert False"
    ),
    TimerEarly: Fault(("test_a_timer_is_never_early",), ">= 0.1"),
    CancelOfWhatRan: Fault(("test_a_timer_that_ran_or_runs_cannot_be_cancelled",), "assert True is False"),
    CancelledRuns: Fault(("test_a_cancelled_timer_never_runs_and_is_unknown_after",), "was called 1 times, not 0"),
    BytesReordered: Fault(("test_bytes_come_in_order_whatever_sizes_they_are_sent_in",), "assert b"),
    BytesLost: Fault(("test_bytes_that_come_one_by_one_are_all_read",), "a callback was not called within"),
    ResetIsAnEnd: Fault(
        (
            "test_a_reset_is_unavailable_with_its_errno_at_each_read_of_it",
            "test_what_comes_before_a_reset_is_a_prefix_and_then_comes_the_error",
        ),
        "UNAVAILABLE",
    ),
    CloseLeavesReads: Fault(
        ("test_close_cancels_an_outstanding_read_and_write",),
        "a callback was not called within",
        "tcp and thread",
    ),
    WriteKeepsSlices: Fault(("test_a_write_gives_the_memory_of_its_slices_back_when_it_is_done",), "== 0"),
    MemoryUncharged: Fault(
        (
            "test_a_slice_that_is_held_keeps_its_charge_beyond_its_endpoint",
            "test_a_read_waits_too_when_the_quota_was_filled_while_it_was_outstanding",
        ),
        "assert",
    ),
    MemoryKept: Fault(("test_idle_connections_hold_no_memory",), "== 0"),
    DescriptorLeaked: Fault(("test_a_closed_engine_leaves_no_descriptor_and_no_thread",), "socket:"),
    ThreadLeaked: Fault(
        ("test_a_closed_engine_leaves_no_descriptor_and_no_thread",), "the thread 'leaked' has not ended"
    ),
    AcceptAfterShutdown: Fault(("test_on_shutdown_follows_every_on_accept",), "on_shutdown"),
}
