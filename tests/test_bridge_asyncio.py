"""An engine on an asyncio loop leaves the loop its user's."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import selectors
import threading
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any

import pytest

from bridge_cases import (
    BorrowedLoopCases,
    InterruptCases,
    InThreadCases,
    RestartedLoopCases,
    SourceCases,
    page,
)
from eventengine import EventEngine, ResolvedAddress
from eventengine.bridges.asyncio import AsyncioEventEngine, AsyncioHost
from eventengine.core.hosted import HostedEventEngine
from eventengine.core.threaded import LoopThread
from loops import TIMEOUT, AsyncioLoop, Clock, MakeLoop, UserLoop, new_uvloop, skip_without_uvloop

LOOPS = {
    "asyncio on epoll": asyncio.new_event_loop,
    "asyncio on select": lambda: asyncio.SelectorEventLoop(selectors.SelectSelector()),
    "uvloop": new_uvloop,
}


@pytest.fixture(params=LOOPS)
def make_loop(request: pytest.FixtureRequest) -> MakeLoop:
    if request.param == "uvloop":
        skip_without_uvloop()
    return lambda: AsyncioLoop(LOOPS[request.param]())


@pytest.fixture
def make_loop_by() -> Callable[[Clock], UserLoop]:
    def make(clock: Clock) -> UserLoop:
        class Loop(asyncio.SelectorEventLoop):
            def time(self) -> float:
                return clock()

        return AsyncioLoop(Loop())

    return make


@pytest.fixture
def site(running_loop: UserLoop) -> Iterator[ResolvedAddress]:
    """A server of the framework's own, on the loop."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while request := await reader.readline():
            while (await reader.readline()).strip():
                pass
            body = page(request.split()[1].decode())
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            await writer.drain()
        writer.close()

    def wait_for(coroutine: Coroutine[object, object, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, running_loop.target).result(TIMEOUT)

    async def close() -> None:
        server.close()
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})

    server = wait_for(asyncio.start_server(answer, "127.0.0.1", 0))
    yield ResolvedAddress.tcp("127.0.0.1", server.sockets[0].getsockname()[1])
    wait_for(close())


class TestBorrowedAsyncioLoop(BorrowedLoopCases, RestartedLoopCases):
    pass


@pytest.mark.parametrize("wrong", [None, "loop", asyncio.new_event_loop, object()])
def test_what_is_no_asyncio_loop_is_refused(wrong: object) -> None:
    with pytest.raises(TypeError, match=f"loop must be an asyncio event loop, not {type(wrong).__name__}"):
        AsyncioEventEngine(wrong)  # type: ignore[arg-type]


def test_a_loop_that_watches_no_descriptors_is_refused() -> None:
    class Bare(asyncio.AbstractEventLoop):
        pass

    with pytest.raises(TypeError, match="Bare has no add_reader"):
        AsyncioEventEngine(Bare())


class TestAsyncioInThread(InThreadCases):
    @pytest.fixture(params=["asyncio", "uvloop"])
    def in_thread(self, request: pytest.FixtureRequest) -> Callable[..., EventEngine]:
        if request.param == "asyncio":
            return AsyncioEventEngine.in_thread
        skip_without_uvloop()
        import uvloop

        return partial(AsyncioEventEngine.in_thread, loop_factory=uvloop.new_event_loop)


class TestInterruptsOnAsyncio(InterruptCases):
    prologue = """
        import asyncio
        from eventengine.bridges.asyncio import AsyncioEventEngine
        loop = asyncio.new_event_loop()
        engine = AsyncioEventEngine(loop)
        run = loop.run_forever
        stop = loop.stop
        call_soon = loop.call_soon_threadsafe
        call_later = loop.call_later
        watch = loop.add_reader
        """


class TestAsyncioSource(SourceCases):
    files = ("bridges/asyncio.py", "bridges/asyncio_borrowed.py")


def test_an_engine_takes_a_loop_whose_thread_runs_already_and_ends_both() -> None:
    """For loops that can be set up only in the thread that runs them."""
    loops: queue.SimpleQueue[asyncio.AbstractEventLoop] = queue.SimpleQueue()
    ran = threading.Event()

    def run() -> None:
        with contextlib.closing(asyncio.new_event_loop()) as loop:
            loops.put(loop)
            loop.run_forever()

    thread = LoopThread(run, lambda: loop.stop(), "a loop with a thread of its own")
    thread.start()
    loop = loops.get(timeout=TIMEOUT)
    with HostedEventEngine(AsyncioHost(loop), thread=thread) as engine:
        engine.run(ran.set)
        assert ran.wait(TIMEOUT)
    assert loop.is_closed()
