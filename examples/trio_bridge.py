"""Event engines on a Trio loop, for which the package has no bridge: what docs/write-your-own-bridge.md says, done.

Trio has tasks and no callbacks, so each timer and each descriptor that is watched is a task, in a nursery that lasts as
long as the engine. The conformance suite says whether all of it is right:

    cd examples && pytest --pyargs eventengine.testing.conformance --engine trio_bridge:TrioEventEngine.in_thread
"""

from __future__ import annotations

import logging
import queue
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import cast

import trio

from eventengine import ClosedResourceError
from eventengine.core.host import READ, WRITE, Host
from eventengine.core.hosted import HostedEventEngine
from eventengine.core.threaded import LoopThread


class TrioHost(Host):
    """The loop that runs in this thread, for as long as the nursery is open."""

    knows_its_thread = True

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._token = trio.lowlevel.current_trio_token()
        self._clock = trio.lowlevel.current_clock()
        self._watches: dict[tuple[int, int], trio.CancelScope] = {}
        self._is_closed = False

    @property
    def time(self) -> Callable[[], float]:
        return self._clock.current_time

    def call_later(self, delay: float, function: Callable[[], object]) -> trio.CancelScope:
        scope = trio.CancelScope()
        self._nursery.start_soon(self._call_at, trio.current_time() + delay, function, scope)
        return scope

    async def _call_at(self, deadline: float, function: Callable[[], object], scope: trio.CancelScope) -> None:
        with scope:
            await trio.sleep_until(deadline)
            if not scope.cancel_called:
                function()

    def cancel(self, handle: object) -> None:
        cast("trio.CancelScope", handle).cancel()

    def wake(self, function: Callable[[], object]) -> None:
        try:
            self._token.run_sync_soon(self._call, function)
        except trio.RunFinishedError:
            raise ClosedResourceError("the Trio loop has ended") from None

    def _call(self, function: Callable[[], object]) -> None:
        try:
            function()
        except (KeyboardInterrupt, SystemExit) as error:  # what is raised here, Trio takes for a fault of its own
            self._nursery.start_soon(self._raise, error)

    async def _raise(self, error: BaseException) -> None:
        raise error

    def watch(self, fd: int, events: int, on_ready: Callable[[int], object]) -> None:
        for event in (READ, WRITE):
            if not events & event:
                self._unwatch(fd, event)
            elif (fd, event) not in self._watches:
                scope = self._watches[fd, event] = trio.CancelScope()
                self._nursery.start_soon(self._watch, fd, event, on_ready, scope)

    async def _watch(
        self, fd: int, event: int, on_ready: Callable[[int], object], scope: trio.CancelScope
    ) -> None:
        wait = trio.lowlevel.wait_readable if event == READ else trio.lowlevel.wait_writable
        with scope:
            while not scope.cancel_called:  # else the number may be another descriptor's by now
                try:
                    await wait(fd)
                except OSError:  # it cannot be watched
                    del self._watches[fd, event]
                    on_ready(READ | WRITE)
                    return
                if not scope.cancel_called:
                    on_ready(event)

    def unwatch(self, fd: int) -> None:
        self._unwatch(fd, READ)
        self._unwatch(fd, WRITE)

    def _unwatch(self, fd: int, event: int) -> None:
        if scope := self._watches.pop((fd, event), None):
            scope.cancel()  # which takes it off Trio's poller before it returns

    def log_exception(self, message: str, error: BaseException) -> None:
        logging.getLogger("trio").error(message, exc_info=error)

    @property
    def is_running(self) -> bool:
        return not self._is_closed

    def is_here(self) -> bool:
        try:
            return trio.lowlevel.current_trio_token() is self._token
        except RuntimeError:  # no Trio loop runs here
            return False

    @property
    def is_closed(self) -> bool:
        return self._is_closed


@asynccontextmanager
async def open_host() -> AsyncIterator[TrioHost]:
    async with trio.open_nursery() as nursery:
        yield (host := TrioHost(nursery))
    host._is_closed = True


class TrioEventEngine(HostedEventEngine):
    @classmethod
    def in_thread(cls) -> TrioEventEngine:
        """An engine on a Trio loop of its own, in a thread, until it is closed."""
        hosts: queue.SimpleQueue[TrioHost] = queue.SimpleQueue()
        stop = trio.Event()

        async def main() -> None:
            async with open_host() as host:
                hosts.put(host)
                await stop.wait()

        thread = LoopThread(partial(trio.run, main), stop.set, "eventengine-trio")
        thread.start()
        return cls(hosts.get(), thread=thread)


@asynccontextmanager
async def open_engine() -> AsyncIterator[TrioEventEngine]:
    """An engine on the loop that runs; it is closed at the end of the block."""
    async with open_host() as host:
        with TrioEventEngine(host) as engine:
            yield engine
