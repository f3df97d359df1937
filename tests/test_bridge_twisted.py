"""An engine on a Twisted reactor leaves the reactor its user's."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from bridge_cases import (
    BorrowedLoopCases,
    Got,
    InterruptCases,
    InThreadCases,
    SourceCases,
    exchange,
    listening,
    page,
    run_python,
)
from loops import Clock as StandingClock
from loops import MakeLoop, ReactorLoop, UserLoop, new_uvloop, skip_without_uvloop

pytest.importorskip("twisted.internet", reason="Twisted is not installed")

from twisted.internet import tcp
from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.defer import maybeDeferred
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.main import CONNECTION_LOST
from twisted.internet.pollreactor import PollReactor
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactor, MemoryReactorClock
from twisted.python import log, threadable
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from eventengine import EventEngine, ResolvedAddress
from eventengine.bridges.twisted import TwistedEventEngine
from eventengine.bridges.twisted.host import TwistedHost


@pytest.fixture(scope="module", autouse=True)
def no_reactor_is_installed_here() -> Iterator[None]:
    before = "twisted.internet.reactor" in sys.modules
    yield
    assert ("twisted.internet.reactor" in sys.modules) == before


def on_epoll() -> UserLoop:
    reactor = EPollReactor()
    return ReactorLoop(reactor, reactor._poller.close)


def on_asyncio() -> UserLoop:
    loop = asyncio.new_event_loop()
    return ReactorLoop(AsyncioSelectorReactor(loop), loop.close)


def on_uvloop() -> UserLoop:
    loop = new_uvloop()
    return ReactorLoop(AsyncioSelectorReactor(loop), loop.close)


REACTORS = {
    "epoll": on_epoll,
    "poll": lambda: ReactorLoop(PollReactor()),
    "select": lambda: ReactorLoop(SelectReactor()),
    "asyncio": on_asyncio,
    "uvloop": on_uvloop,
}


@pytest.fixture(params=REACTORS)
def make_loop(request: pytest.FixtureRequest) -> MakeLoop:
    if request.param == "uvloop":
        skip_without_uvloop()
    tcp._reservedFD.reserve()  # else the first port that listens opens it, for the rest of the process
    return REACTORS[request.param]


@pytest.fixture(params=[EPollReactor, PollReactor, SelectReactor])
def make_loop_by(request: pytest.FixtureRequest) -> Callable[[StandingClock], UserLoop]:
    def make(clock: StandingClock) -> UserLoop:
        class Reactor(request.param):
            def seconds(self) -> float:
                return clock()

        reactor = Reactor()
        return ReactorLoop(reactor, reactor._poller.close if isinstance(reactor, EPollReactor) else lambda: None)

    return make


class Page(Resource):
    isLeaf = True  # noqa: N815

    def render_GET(self, request: Request) -> bytes:  # noqa: N802
        return page(request.path.decode())


@pytest.fixture
def site(running_loop: UserLoop) -> Iterator[ResolvedAddress]:
    """A site of the framework's own, on the reactor."""
    reactor = running_loop.target
    port = running_loop.call(lambda: reactor.listenTCP(0, Site(Page(), reactor=reactor), interface="127.0.0.1"))
    yield ResolvedAddress.tcp("127.0.0.1", port.getHost().port)
    stopped = Got()
    running_loop.call(lambda: maybeDeferred(port.stopListening).addCallback(stopped))
    stopped.next()


class TestBorrowedReactor(BorrowedLoopCases):
    def test_a_reactor_that_drops_all_that_it_watches_is_given_it_anew(
        self, running_loop: UserLoop, engine: EventEngine
    ) -> None:
        """As trial does after a test that has left something."""

        def drop_all() -> int:
            dropped = running_loop.target.removeAll()
            for descriptor in dropped:
                descriptor.connectionLost(Failure(CONNECTION_LOST))
            return len(dropped)

        with listening(engine) as address:
            exchange(address)
            assert running_loop.call(drop_all)
            exchange(address)


@pytest.mark.parametrize(
    ("make", "missing"),
    [
        (Clock, "Clock does not provide IReactorFDSet and IReactorThreads;"),
        (MemoryReactor, "MemoryReactor does not provide IReactorTime and IReactorThreads;"),
        (MemoryReactorClock, "MemoryReactorClock does not provide IReactorThreads;"),
    ],
)
def test_a_reactor_that_lacks_an_interface_is_refused_with_its_name(
    make: Callable[[], object], missing: str
) -> None:
    with pytest.raises(TypeError, match=missing):
        TwistedEventEngine(make())


@pytest.mark.parametrize("wrong", [None, "reactor", object()])
def test_what_is_no_reactor_is_refused(wrong: object) -> None:
    with pytest.raises(
        TypeError,
        match=f"{type(wrong).__name__} does not provide IReactorFDSet and IReactorTime and IReactorThreads",
    ):
        TwistedEventEngine(wrong)


@pytest.fixture
def threads_that_switch_at_every_chance() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("threads_that_switch_at_every_chance")
class TestReactorInThread(InThreadCases):
    @pytest.fixture
    def in_thread(self) -> Callable[..., EventEngine]:
        return TwistedEventEngine.in_thread

    def test_the_io_thread_of_the_process_stays_who_it_was(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(threadable, "ioThread", 12345)
        for _ in range(10):
            with contextlib.ExitStack() as engines:
                ready = [Got() for _ in range(4)]
                for got in ready:
                    engines.enter_context(TwistedEventEngine.in_thread()).run(got)
                for got in ready:
                    got.next()
                assert threadable.ioThread == 12345
        assert threadable.ioThread == 12345

    def test_no_reactor_is_installed(self) -> None:
        run_python(
            """
            import sys
            from eventengine.bridges.twisted import TwistedEventEngine
            from bridge_cases import assert_serves
            with TwistedEventEngine.in_thread() as engine:
                assert_serves(engine)
            assert "twisted.internet.reactor" not in sys.modules
            """
        )


class TestInterruptsOnReactor(InterruptCases):
    prologue = """
        from twisted.internet.pollreactor import PollReactor
        from eventengine.bridges.twisted import TwistedEventEngine
        reactor = PollReactor()
        engine = TwistedEventEngine(reactor)
        run = reactor.run
        stop = reactor.stop
        call_soon = reactor.callFromThread
        call_later = reactor.callLater
        def watch(fd, function):
            class Reader:
                fileno = lambda self: fd
                logPrefix = lambda self: "reader"
                doRead = function
                connectionLost = lambda self, reason: None
            reactor.addReader(Reader())
        """


def test_twisted_s_older_log_shows_what_raised() -> None:
    """As `log.startLogging` and twistd's files do."""
    lines: list[str] = []

    def observe(event: dict[str, Any]) -> None:
        lines.append(log.textFromEventDict(event) or "")

    log.addObserver(observe)
    try:
        TwistedHost(PollReactor()).log_exception("a callback raised", ValueError("so it is"))
    finally:
        log.removeObserver(observe)
    assert "a callback raised" in lines[-1]
    assert "so it is" in lines[-1]


class TestTwistedSource(SourceCases):
    files = (
        "bridges/twisted/host.py",
        "bridges/twisted/engine.py",
        "bridges/twisted/__init__.py",
        "bridges/twisted/borrowed.py",
        "bridges/twisted/protocols.py",
        "bridges/twisted/processes.py",
    )


TRIAL = """
    from twisted.internet import defer, reactor
    from twisted.trial import unittest

    from bridge_cases import Echo, Got, SliceBuffer, connect, listen
    from eventengine import Endpoint
    from eventengine.bridges.twisted import TwistedEventEngine


    class Tests(unittest.TestCase):
        engine = None
        left = []

        def exchange(self):
            listener, address = listen(self.engine)
            done = defer.Deferred()
            buffer = SliceBuffer()

            def on_connect(endpoint):
                assert isinstance(endpoint, Endpoint), endpoint
                data = SliceBuffer()
                data.append(b"under trial")
                endpoint.write(lambda status: None, data)
                endpoint.read(lambda status: on_read(endpoint), buffer)

            def on_read(endpoint):
                self.assertEqual(bytes(buffer), b"under trial")
                self.engine.cancel(self.engine.run_after(1000.0, print))
                endpoint.close()
                if LEAVE:
                    self.left.append(listener)
                else:
                    listener.close()
                self.engine.run_after(0.001, lambda: reactor.callLater(0, done.callback, None))

            got = connect(self.engine, address)
            got.put = on_connect
            return done

        def test_1_made_and_used(self):
            Tests.engine = TwistedEventEngine(reactor, private_poller=PRIVATE_POLLER)
            return self.exchange()

        def test_2_used_again(self):
            return self.exchange()

        def test_3_closed(self):
            self.engine.close()
    """


@pytest.mark.parametrize("private_poller", [True, False], ids=["one epoll", "each fd"])
@pytest.mark.parametrize("leave", [False, True], ids=["all closed", "listener left open"])
def test_trial_finds_nothing_of_an_idle_engine_on_its_reactor(
    tmp_path: Path, private_poller: bool, leave: bool
) -> None:
    script = dedent(TRIAL).replace("PRIVATE_POLLER", str(private_poller)).replace("LEAVE", str(leave))
    (tmp_path / "test_under_trial.py").write_text(script)
    tests = "test_under_trial.Tests.test_1_made_and_used" if leave else "test_under_trial"
    done = run_python(
        f"import sys; sys.argv[1:] = [{tests!r}]; from twisted.scripts.trial import run; run()",
        cwd=tmp_path,
        check=False,
    )
    if leave:
        assert "Reactor was unclean" in done.stdout
        assert done.returncode
    else:
        assert "PASSED (successes=3)" in done.stdout, done.stdout + done.stderr
        assert not done.returncode
