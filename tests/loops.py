"""Loops as their users have them: made by a test, run in a thread of its own, looked at, and ended.

A `UserLoop` says nothing of engines but how to make one. What it has of private names of a framework is for looking
at what an engine left behind, and for freeing what a reactor keeps after its end.
"""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest

from eventengine.core.host import Host
from eventengine.core.hosted import HostedEventEngine

TIMEOUT = 30.0
T = TypeVar("T")

MakeLoop = Callable[[], "UserLoop"]


class Clock:
    """A clock that stands still until a test moves it."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class UserLoop(ABC):
    """One loop; `target` is what an engine is given, `engine_type` and `host_type` are the bridge's."""

    target: Any
    engine_type: Callable[..., HostedEventEngine]
    host_type: type[Host]
    restarts = True

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    @abstractmethod
    def run(self) -> None:
        """Runs the loop on the calling thread, until it is stopped."""

    @abstractmethod
    def stop(self) -> None:
        """On the loop's thread: `run` returns soon."""

    @abstractmethod
    def close(self) -> None:
        """Frees what the loop keeps; it does not run."""

    @abstractmethod
    def call_soon(self, function: Callable[[], object]) -> None:
        """The framework's own way to hand a call to the loop. Any thread."""

    @abstractmethod
    def call_later(self, delay: float, function: Callable[[], object]) -> None:
        """The framework's own timer. On the loop's thread, or while it does not run."""

    @abstractmethod
    def contents(self) -> object:
        """What is watched and which timers wait. On the loop's thread, or while it does not run."""

    @abstractmethod
    def errors(self) -> Any:
        """A context manager: a list to which all that is logged as an exception is added."""

    def make_engine(self, **options: Any) -> HostedEventEngine:
        return self.engine_type(self.target, **options)

    def start(self) -> None:
        """Runs the loop in a thread; on return it runs."""
        running = threading.Event()
        self.call_soon(running.set)
        self._thread = threading.Thread(target=self.run, name="the user's loop")
        self._thread.start()
        assert running.wait(TIMEOUT)

    def end(self) -> None:
        """Stops the loop and waits for its thread."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self.call_soon(self.stop)
            thread.join(TIMEOUT)
            assert not thread.is_alive()

    def call(self, function: Callable[[], T]) -> T:
        """What `function` returns on the loop's thread."""
        result: Future[T] = Future()

        def run() -> None:
            try:
                result.set_result(function())
            except BaseException as error:
                result.set_exception(error)

        self.call_soon(run)
        return result.result(TIMEOUT)

    def pass_turns(self, count: int) -> None:
        """Returns when the loop has looked at its descriptors and timers so many times, at least."""
        for _ in range(count):
            self.call(lambda: None)


class ReactorLoop(UserLoop):
    """A reactor that is not installed."""

    restarts = False

    def __init__(self, reactor: Any, close: Callable[[], object] = lambda: None) -> None:
        from eventengine.bridges.twisted import TwistedEventEngine
        from eventengine.bridges.twisted.host import TwistedHost

        super().__init__()
        self.target = reactor
        self.engine_type = TwistedEventEngine
        self.host_type = TwistedHost
        self._close = close

    def run(self) -> None:
        from twisted.python import threadable

        before = threadable.ioThread
        try:
            self.target.run(installSignalHandlers=False)
        finally:
            threadable.ioThread = before

    def stop(self) -> None:
        self.target.stop()

    def close(self) -> None:
        from twisted.internet.main import CONNECTION_DONE
        from twisted.python.failure import Failure

        self.target.waker.connectionLost(Failure(CONNECTION_DONE))
        self._close()

    def call_soon(self, function: Callable[[], object]) -> None:
        self.target.callFromThread(function)

    def call_later(self, delay: float, function: Callable[[], object]) -> None:
        self.target.callLater(delay, function)

    def contents(self) -> object:
        reactor = self.target
        # The asyncio reactor stops by a call of its own, which stays.
        timers = {
            call for call in reactor.getDelayedCalls() if call.func.__module__ != "twisted.internet.asyncioreactor"
        }
        return set(reactor.getReaders()), set(reactor.getWriters()), timers

    @contextmanager
    def errors(self) -> Iterator[list[BaseException]]:
        from twisted.logger import globalLogPublisher

        seen: list[BaseException] = []

        def observe(event: dict[str, Any]) -> None:
            if "log_failure" in event:
                seen.append(event["log_failure"].value)

        globalLogPublisher.addObserver(observe)
        try:
            yield seen
        finally:
            globalLogPublisher.removeObserver(observe)


class AsyncioLoop(UserLoop):
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        from eventengine.bridges.asyncio import AsyncioEventEngine, AsyncioHost

        super().__init__()
        self.asyncio_loop = loop
        self.target = loop
        self.engine_type = AsyncioEventEngine
        self.host_type = AsyncioHost

    def run(self) -> None:
        self.asyncio_loop.run_forever()

    def stop(self) -> None:
        self.asyncio_loop.stop()

    def close(self) -> None:
        self.asyncio_loop.close()

    def call_soon(self, function: Callable[[], object]) -> None:
        self.asyncio_loop.call_soon_threadsafe(function)

    def call_later(self, delay: float, function: Callable[[], object]) -> None:
        self.asyncio_loop.call_later(delay, function)

    def contents(self) -> object:
        loop: Any = self.asyncio_loop
        if hasattr(loop, "recorded"):
            return loop.recorded()
        watched = {(fd, key.events) for fd, key in loop._selector.get_map().items()}
        return watched, {timer for timer in loop._scheduled if not timer.cancelled()}

    @contextmanager
    def errors(self) -> Iterator[list[BaseException]]:
        seen: list[BaseException] = []
        self.asyncio_loop.set_exception_handler(lambda _, context: seen.append(context["exception"]))
        yield seen
        self.asyncio_loop.set_exception_handler(None)


class TornadoLoop(AsyncioLoop):
    def __init__(self, io_loop: Any) -> None:
        from eventengine.bridges.tornado import TornadoEventEngine
        from eventengine.bridges.tornado.host import TornadoHost

        super().__init__(io_loop.asyncio_loop)
        self.target = io_loop
        self.engine_type = TornadoEventEngine
        self.host_type = TornadoHost

    def run(self) -> None:
        self.target.start()

    def stop(self) -> None:
        self.target.stop()

    def close(self) -> None:
        self.target.close()

    def call_soon(self, function: Callable[[], object]) -> None:
        self.target.add_callback(function)

    def call_later(self, delay: float, function: Callable[[], object]) -> None:
        self.target.call_later(delay, function)

    def contents(self) -> object:
        io_loop = self.target
        return set(io_loop.handlers), set(io_loop.readers), set(io_loop.writers), super().contents()

    @contextmanager
    def errors(self) -> Iterator[list[BaseException]]:
        import logging

        seen: list[BaseException] = []

        class Handler(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                if record.exc_info and record.exc_info[1] is not None:
                    seen.append(record.exc_info[1])

        handler = Handler()
        log = logging.getLogger("tornado.application")
        log.addHandler(handler)
        try:
            yield seen
        finally:
            log.removeHandler(handler)


def skip_without_uvloop() -> None:
    """And has it open now what it opens once in each process, or a test that counts descriptors would find it."""
    uvloop = pytest.importorskip("uvloop", reason="uvloop is not installed")
    loop = uvloop.new_event_loop()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


def new_uvloop() -> asyncio.AbstractEventLoop:
    """A uvloop that tells what is on it, which uvloop itself does not."""
    import uvloop

    class Recording(uvloop.Loop):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._watched: set[tuple[str, int]] = set()
            self._timers: list[asyncio.TimerHandle] = []

        def recorded(self) -> object:
            return set(self._watched), {timer for timer in self._timers if not timer.cancelled()}

        def add_reader(self, fd: Any, *args: Any) -> None:
            super().add_reader(fd, *args)
            self._watched.add(("read", fd))

        def add_writer(self, fd: Any, *args: Any) -> None:
            super().add_writer(fd, *args)
            self._watched.add(("write", fd))

        def remove_reader(self, fd: Any) -> bool:
            self._watched.discard(("read", fd))
            return super().remove_reader(fd)

        def remove_writer(self, fd: Any) -> bool:
            self._watched.discard(("write", fd))
            return super().remove_writer(fd)

        def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
            def run(*args: Any) -> None:
                self._timers.remove(timer)
                callback(*args)

            timer = super().call_later(delay, run, *args, context=context)
            self._timers.append(timer)
            return timer

    return Recording()


def count_descriptors() -> int:
    return len(os.listdir("/dev/fd"))


@contextmanager
def nothing_left() -> Iterator[None]:
    """Fails unless the descriptors and threads of the process are at the end those of the beginning."""
    gc.collect()
    descriptors, threads = count_descriptors(), set(threading.enumerate())
    yield
    gc.collect()
    assert set(threading.enumerate()) <= threads
    assert count_descriptors() == descriptors


@contextmanager
def closing(loop: UserLoop) -> Iterator[UserLoop]:
    try:
        yield loop
    finally:
        loop.end()
        loop.close()
