"""Every engine that the tests run on: by its loop, its poller, and where its callbacks run.

`LOOPS` names the loops; a new one is one line. Some engines make their loop themselves (`in_thread`). The others get
one that is made and run here, in a thread, as a user's would be, and that is ended here when the engine was closed.
"""

from __future__ import annotations

import asyncio
import importlib.util
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import pytest

from eventengine import EventEngine, create_event_engine
from eventengine.testing.oracle import TIMEOUT

MakeEngine = Callable[..., EventEngine]


class Kind(NamedTuple):
    """An engine to test; `needs` names the modules without which it is left out."""

    loop: str
    needs: tuple[str, ...]
    private_poller: bool
    pool: bool

    @property
    def id(self) -> str:
        return f"{self.loop}, {'one epoll' if self.private_poller else 'each fd'}{', pool' if self.pool else ''}"


@contextmanager
def _default() -> Iterator[MakeEngine]:
    def make(private_poller: bool, **options: Any) -> EventEngine:
        return create_event_engine(**options)

    yield make


@contextmanager
def _asyncio() -> Iterator[MakeEngine]:
    from eventengine.bridges.asyncio import AsyncioEventEngine

    yield AsyncioEventEngine.in_thread


@contextmanager
def _tornado() -> Iterator[MakeEngine]:
    from eventengine.bridges.tornado import TornadoEventEngine

    yield TornadoEventEngine.in_thread


@contextmanager
def _twisted() -> Iterator[MakeEngine]:
    from eventengine.bridges.twisted import TwistedEventEngine

    yield TwistedEventEngine.in_thread


@contextmanager
def running(loop: asyncio.AbstractEventLoop) -> Iterator[asyncio.AbstractEventLoop]:
    """An asyncio loop that runs in a thread, and is closed in the end."""
    thread = threading.Thread(target=loop.run_forever, name="borrowed asyncio loop")
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(TIMEOUT)
        loop.close()


@contextmanager
def running_reactor(reactor: Any) -> Iterator[Any]:
    """A reactor that runs in a thread; in the end nothing of it is left, the epoll and the pipe of its own included."""
    from twisted.internet.main import CONNECTION_DONE
    from twisted.python.failure import Failure

    started = threading.Event()
    reactor.callWhenRunning(started.set)
    thread = threading.Thread(target=reactor.run, args=(False,), name="borrowed reactor")
    thread.start()
    try:
        assert started.wait(TIMEOUT)
        yield reactor
    finally:
        reactor.callFromThread(reactor.stop)
        thread.join(TIMEOUT)
        reactor.waker.connectionLost(Failure(CONNECTION_DONE))
        poller = getattr(reactor, "_poller", None)
        if hasattr(poller, "close"):
            poller.close()


@contextmanager
def _asyncio_on_uvloop() -> Iterator[MakeEngine]:
    from eventengine.bridges.asyncio import AsyncioEventEngine

    with running(new_uvloop()) as loop:
        yield lambda **options: AsyncioEventEngine(loop, **options)


@contextmanager
def _tornado_on_uvloop() -> Iterator[MakeEngine]:
    from tornado.ioloop import IOLoop

    from eventengine.bridges.tornado import TornadoEventEngine

    with running(new_uvloop()) as loop:
        io_loop = IOLoop(make_current=False, asyncio_loop=loop)
        yield lambda **options: TornadoEventEngine(io_loop, **options)


def _reactor(module: str, name: str) -> Callable[[], Any]:
    @contextmanager
    def engine_on_reactor() -> Iterator[MakeEngine]:
        from eventengine.bridges.twisted import TwistedEventEngine

        reactor_class = getattr(importlib.import_module(module), name)
        with running_reactor(reactor_class()) as reactor:
            yield lambda **options: TwistedEventEngine(reactor, **options)

    return engine_on_reactor


def _reactor_on(new_event_loop: Callable[[], asyncio.AbstractEventLoop]) -> Callable[[], Any]:
    @contextmanager
    def engine_on_reactor() -> Iterator[MakeEngine]:
        from twisted.internet.asyncioreactor import AsyncioSelectorReactor

        from eventengine.bridges.twisted import TwistedEventEngine

        loop = new_event_loop()
        try:
            with running_reactor(AsyncioSelectorReactor(loop)) as reactor:
                yield lambda **options: TwistedEventEngine(reactor, **options)
        finally:
            loop.close()

    return engine_on_reactor


def new_uvloop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


if importlib.util.find_spec("uvloop"):
    new_uvloop().close()  # its first loop opens descriptors that stay; they are no leak of a test's


LOOPS: dict[str, tuple[tuple[str, ...], Callable[[], Any]]] = {
    "default": ((), _default),
    "asyncio": ((), _asyncio),
    "tornado": (("tornado",), _tornado),
    "twisted": (("twisted",), _twisted),
    "asyncio on uvloop": (("uvloop",), _asyncio_on_uvloop),
    "tornado on uvloop": (("tornado", "uvloop"), _tornado_on_uvloop),
    "twisted epoll": (("twisted",), _reactor("twisted.internet.epollreactor", "EPollReactor")),
    "twisted select": (("twisted",), _reactor("twisted.internet.selectreactor", "SelectReactor")),
    "twisted asyncio": (("twisted",), _reactor_on(asyncio.new_event_loop)),
    "twisted asyncio on uvloop": (("twisted", "uvloop"), _reactor_on(new_uvloop)),
}

MAIN = ("default", "asyncio", "tornado", "twisted")

KINDS = [
    Kind(loop, needs, private_poller, pool)
    for loop, (needs, _) in LOOPS.items()
    for private_poller in (True, False)
    for pool in (False, True)
    if (loop != "default" or private_poller) and (not pool or (loop in MAIN and private_poller))
]
"""Each loop with both pollers, where it has both; the four engines with a pool, too, for where callbacks run is nothing
that a poller knows of."""


@contextmanager
def factory(kind: Kind, **options: Any) -> Iterator[Callable[[], EventEngine]]:
    """What makes an engine of this kind, with these options; in the end its loop and its pool are ended."""
    with ExitStack() as stack:
        make = stack.enter_context(LOOPS[kind.loop][1]())
        pool = stack.enter_context(ThreadPoolExecutor(4, "callbacks")) if kind.pool else None
        yield lambda: make(private_poller=kind.private_poller, callback_executor=pool, **options)


def is_installed(module: str) -> bool:
    spec = importlib.util.find_spec(module)
    return (
        spec is not None and spec.origin is not None
    )  # else it is a mere folder, as our plugin's is for `twisted`


def skip_unless_installed(kind: Kind) -> None:
    for module in kind.needs:
        if not is_installed(module):
            pytest.skip(f"{module} is not installed")
