"""An engine whose loop a test turns by hand, in the test's own thread, so that the test says what comes after what."""

from __future__ import annotations

import gc
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from eventengine import Endpoint, EndpointConfig, Listener, MemoryAllocator, ResolvedAddress, ResourceQuota, Status
from eventengine.core.host import READ, WRITE
from eventengine.core.hosted import HostedEventEngine
from eventengine.memory import MemoryAllocatorFactory
from eventengine.status import ClosedResourceError
from manual_host import ManualHost

TIMEOUT = 30.0
LOOPBACK = ResolvedAddress.tcp("127.0.0.1", 0)


class HandTurnedHost(ManualHost):
    """A manual host that watches descriptors, and looks at them when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.is_closed = False
        self.on_ready: dict[int, Callable[[int], object]] = {}

    def watch(self, fd: int, events: int, on_ready: Callable[[int], object]) -> None:
        super().watch(fd, events, on_ready)
        self.on_ready[fd] = on_ready

    def wake(self, function: Callable[[], object]) -> None:
        if self.is_closed:
            raise ClosedResourceError("the loop was closed")
        super().wake(function)

    def close(self) -> None:
        """The loop ends, and with it what was on it."""
        self.is_closed = True
        self.woken.clear()
        self.timers.clear()
        self.watched.clear()

    def drop(self, fd: int) -> None:
        """Does as Twisted's reactors do with a descriptor that failed, or whose reader raised."""
        del self.watched[fd]
        self.on_ready[fd](READ | WRITE)

    def poll(self, timeout: float = TIMEOUT) -> bool:
        """Waits until a descriptor is ready and reports those that are; False if none is in time."""
        poll = select.poll()
        for fd, events in self.watched.items():
            poll.register(fd, (select.POLLIN if events & READ else 0) | (select.POLLOUT if events & WRITE else 0))
        ready = poll.poll(timeout * 1000)
        for fd, mask in ready:
            if fd in self.watched:
                events = (READ if mask & ~select.POLLOUT else 0) | (WRITE if mask & ~select.POLLIN else 0)
                self.on_ready[fd](events)
        return bool(ready)

    def until(self, happened: Callable[[], object]) -> None:
        """Turns until it has happened."""
        while not happened():
            if self.woken:
                self.turn()
            else:
                assert self.poll(), "nothing happens any more"

    def settle(self) -> None:
        """Turns until there is nothing left to do."""
        for _ in range(2000):
            self.turn()
            if not self.woken and not self.poll(0) and not self.woken:
                return
        raise AssertionError("the loop is busy with nothing")


@contextmanager
def hand_turned(
    *, private_poller: bool = False, **options: Any
) -> Iterator[tuple[HostedEventEngine, HandTurnedHost]]:
    """An engine that has had its first turn; in the end it is closed, and nothing of it may be left on its host."""
    host = HandTurnedHost()
    engine = HostedEventEngine(host, private_poller=private_poller, **options)
    try:
        engine.run(lambda: None)
        host.turn()  # the loop's thread is this one
        yield engine, host
    finally:
        engine.close()
    assert (host.watched, host.timers) == ({}, {})


def listen(
    engine: HostedEventEngine,
    on_accept: Callable[[Endpoint], object],
    quota: MemoryAllocatorFactory | None = None,
    on_shutdown: Callable[[Status], object] = lambda _: None,
    **config: Any,
) -> tuple[Listener, tuple[str, int]]:
    """A listener that was started, and where."""

    def accept(endpoint: Endpoint, allocator: MemoryAllocator) -> None:
        allocator.close()
        on_accept(endpoint)

    listener = engine.create_listener(accept, on_shutdown, EndpointConfig(**config), quota or ResourceQuota())
    port = listener.bind(LOOPBACK)
    listener.start()
    return listener, ("127.0.0.1", port)


@contextmanager
def connected(
    engine: HostedEventEngine, host: HandTurnedHost, quota: ResourceQuota | None = None
) -> Iterator[tuple[Endpoint, socket.socket]]:
    """An endpoint and its peer, a plain blocking socket."""
    accepted: list[Endpoint] = []
    listener, address = listen(engine, accepted.append, quota)
    with socket.create_connection(address, TIMEOUT) as peer:
        host.until(lambda: accepted)
        listener.close()
        try:
            yield accepted[0], peer
        finally:
            accepted.pop().close()


def elsewhere(function: Callable[[], object]) -> None:
    """Runs it in another thread, to its end; raises what it raised."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    assert not thread.is_alive()
    if errors:
        raise errors[0]


@contextmanager
def no_collections() -> Iterator[None]:
    """Garbage is collected when the test says so."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
