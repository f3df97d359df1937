"""An engine on a Tornado IOLoop leaves the IOLoop its user's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from bridge_cases import (
    BorrowedLoopCases,
    InterruptCases,
    InThreadCases,
    RestartedLoopCases,
    SourceCases,
    page,
)
from loops import TIMEOUT, Clock, MakeLoop, TornadoLoop, UserLoop, new_uvloop, skip_without_uvloop

pytest.importorskip("tornado", reason="Tornado is not installed")

from tornado import version_info
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from eventengine import EventEngine, ResolvedAddress
from eventengine.bridges.tornado import TornadoEventEngine

LOOPS = {"IOLoop": asyncio.new_event_loop, "IOLoop on uvloop": new_uvloop}


@pytest.fixture(scope="module", autouse=True)
def loop_of_this_thread() -> Iterator[None]:
    """Before 6.3, `IOLoop.start` asks asyncio for the thread's own loop, and so makes one, once, which stays."""
    if version_info >= (6, 3):
        yield
        return
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()


@pytest.fixture(params=LOOPS)
def make_loop(request: pytest.FixtureRequest) -> MakeLoop:
    if request.param == "IOLoop on uvloop":
        skip_without_uvloop()
    return lambda: TornadoLoop(IOLoop(make_current=False, asyncio_loop=LOOPS[request.param]()))


@pytest.fixture
def make_loop_by() -> Callable[[Clock], UserLoop]:
    def make(clock: Clock) -> UserLoop:
        class Loop(asyncio.SelectorEventLoop):
            def time(self) -> float:
                return clock()

        io_loop = IOLoop(make_current=False, asyncio_loop=Loop())
        io_loop.time = clock
        return TornadoLoop(io_loop)

    return make


class Page(RequestHandler):
    def get(self, path: str) -> None:
        self.finish(page(path))


@pytest.fixture
def site(running_loop: UserLoop) -> Iterator[ResolvedAddress]:
    """A site of the framework's own, on the IOLoop."""

    def listen() -> tuple[HTTPServer, int]:
        server = HTTPServer(Application([("(.*)", Page)], log_function=lambda _: None))
        sockets = bind_sockets(0, "127.0.0.1")
        server.add_sockets(sockets)
        return server, sockets[0].getsockname()[1]

    async def close() -> None:
        server.stop()
        await server.close_all_connections()

    server, port = running_loop.call(listen)
    yield ResolvedAddress.tcp("127.0.0.1", port)
    asyncio.run_coroutine_threadsafe(close(), running_loop.target.asyncio_loop).result(TIMEOUT)


class TestBorrowedIOLoop(BorrowedLoopCases, RestartedLoopCases):
    pass


@pytest.mark.parametrize("wrong", [None, "loop", IOLoop, object()])
def test_what_is_no_io_loop_is_refused(wrong: object) -> None:
    with pytest.raises(TypeError, match=f"io_loop must be a tornado.ioloop.IOLoop, not {type(wrong).__name__}"):
        TornadoEventEngine(wrong)  # type: ignore[arg-type]


def test_an_asyncio_loop_is_refused() -> None:
    loop = asyncio.SelectorEventLoop()
    with pytest.raises(TypeError, match=f"not {type(loop).__name__}"):
        TornadoEventEngine(loop)  # type: ignore[arg-type]
    loop.close()


class TestIOLoopInThread(InThreadCases):
    @pytest.fixture
    def in_thread(self) -> Callable[..., EventEngine]:
        return TornadoEventEngine.in_thread


class TestInterruptsOnIOLoop(InterruptCases):
    prologue = """
        from tornado.ioloop import IOLoop
        from eventengine.bridges.tornado import TornadoEventEngine
        loop = IOLoop(make_current=False)
        engine = TornadoEventEngine(loop)
        run = loop.start
        stop = loop.stop
        call_soon = loop.add_callback
        call_later = loop.call_later
        watch = lambda fd, function: loop.add_handler(fd, function, IOLoop.READ)
        """


class TestTornadoSource(SourceCases):
    files = ("bridges/tornado/host.py", "bridges/tornado/__init__.py", "bridges/tornado/borrowed.py")
