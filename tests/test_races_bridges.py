"""The races that need a real loop: before the first turn, in the last one, and when a callback ends a turn."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from eventengine import Endpoint, EndpointConfig, EventEngine, ResourceQuota, SliceBuffer, Status
from eventengine.bridges.asyncio import AsyncioEventEngine
from eventengine.core.hosted import HostedEventEngine
from eventengine.status import ClosedResourceError
from hand_turned import LOOPBACK, TIMEOUT, elsewhere, listen
from loops import (
    AsyncioLoop,
    ReactorLoop,
    TornadoLoop,
    UserLoop,
    closing,
    new_uvloop,
    nothing_left,
    skip_without_uvloop,
)


def asyncio_loop() -> UserLoop:
    return AsyncioLoop(asyncio.new_event_loop())


def uvloop_loop() -> UserLoop:
    skip_without_uvloop()
    return AsyncioLoop(new_uvloop())


def tornado_loop() -> UserLoop:
    ioloop = pytest.importorskip("tornado.ioloop", reason="tornado is not installed")
    return TornadoLoop(ioloop.IOLoop(make_current=False))


def poll_reactor() -> UserLoop:
    module = pytest.importorskip("twisted.internet.pollreactor", reason="twisted is not installed")
    return ReactorLoop(module.PollReactor())


def epoll_reactor() -> UserLoop:
    module = pytest.importorskip("twisted.internet.epollreactor", reason="twisted, or epoll, is not there")
    reactor = module.EPollReactor()
    return ReactorLoop(reactor, lambda: reactor._poller.close())


@pytest.fixture(params=[asyncio_loop, uvloop_loop, tornado_loop])
def loop(request: pytest.FixtureRequest) -> Iterator[UserLoop]:
    make: Callable[[], UserLoop] = request.param
    with closing(make()) as loop:
        yield loop


def listener_with(engine: EventEngine, sockets: list[socket.socket]) -> Any:
    config = EndpointConfig(socket_hook=sockets.append)
    listener = engine.create_listener(print, lambda _: None, config, ResourceQuota())
    listener.bind(LOOPBACK)
    listener.start()
    return listener


# An engine that has had no turn yet


def test_before_the_first_turn_a_listener_that_is_closed_on_its_loop_is_closed_on_return(loop: UserLoop) -> None:
    def make_and_close() -> tuple[int, int]:
        sockets: list[socket.socket] = []
        with loop.make_engine() as engine:
            listener_with(engine, sockets).close()
            first = sockets[0].fileno()
            open_still = listener_with(engine, sockets)
        open_still.close()
        return first, sockets[1].fileno()

    loop.start()
    assert loop.call(make_and_close) == (-1, -1)


def test_before_the_first_turn_only_the_loop_s_own_thread_is_the_loop_s(loop: UserLoop) -> None:
    engine = loop.make_engine()
    assert not engine.is_worker_thread()  # it does not run
    loop.start()
    assert not engine.is_worker_thread()
    assert loop.call(engine.is_worker_thread)
    assert not engine.is_worker_thread()
    engine.close()


# A loop that ends


def test_a_close_from_elsewhere_in_the_last_moment_of_a_loop_is_done_by_the_next_close() -> None:
    asyncio_loop = asyncio.new_event_loop()
    engine = AsyncioEventEngine(asyncio_loop)
    sockets: list[socket.socket] = []
    shut_down: list[Status] = []
    listener, _ = listen(engine, print, None, shut_down.append, socket_hook=sockets.append)

    def end() -> None:
        asyncio_loop.stop()
        elsewhere(engine.close)  # its letter comes with the turn that is not to be

    asyncio_loop.call_soon(lambda: asyncio_loop.call_soon(end))
    asyncio_loop.run_forever()
    asyncio_loop.close()
    engine.close()
    assert (shut_down, sockets[0].fileno()) == ([Status.OK], -1)
    listener.close()


def test_a_wake_that_the_end_of_a_twisted_thread_overtakes_reaches_a_pipe_that_is_still_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("twisted.internet", reason="twisted is not installed")
    from eventengine.bridges.twisted import TwistedEventEngine

    with nothing_left():
        engine = TwistedEventEngine.in_thread()
        host: Any = engine._loop.host
        call_from_thread = host._reactor.callFromThread
        within, ended = threading.Event(), threading.Event()
        poster: list[threading.Thread] = []
        errors: list[BaseException] = []

        def overtaken(function: Callable[[], object]) -> None:
            if threading.current_thread() in poster:
                within.set()
                assert ended.wait(TIMEOUT)
            call_from_thread(function)

        def post() -> None:
            try:
                host.wake(lambda: None)
            except BaseException as error:
                errors.append(error)

        monkeypatch.setattr(host._reactor, "callFromThread", overtaken)
        poster.append(threading.Thread(target=post))
        poster[0].start()
        assert within.wait(TIMEOUT)
        engine.close()
        assert host.is_closed
        ended.set()
        poster[0].join(TIMEOUT)
        assert errors == []
        with pytest.raises(ClosedResourceError):
            host.wake(lambda: None)


# A callback that ends a turn


@pytest.mark.parametrize("private_poller", [False, True])
@pytest.mark.parametrize("make", [poll_reactor, epoll_reactor])
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_after_a_callback_that_raised_an_interrupt_a_reactor_goes_on_with_the_engine(
    make: Callable[[], UserLoop], private_poller: bool, error: type[BaseException]
) -> None:
    with closing(make()) as loop:
        loop.start()
        engine: HostedEventEngine = loop.make_engine(private_poller=private_poller)
        ready = threading.Semaphore(0)
        endpoints: list[Endpoint] = []
        read: list[bytes] = []

        def serve(endpoint: Endpoint) -> None:
            buffer = SliceBuffer()

            def on_read(status: Status) -> None:
                if not status.ok:
                    return
                data = bytes(buffer)
                read.append(data)
                assert not endpoint.read(on_read, buffer)
                ready.release()
                if data == b"interrupt":
                    raise error

            endpoints.append(endpoint)
            endpoint.read(on_read, buffer)

        listener, where = listen(engine, serve)
        with socket.create_connection(where, TIMEOUT) as one, socket.create_connection(where, TIMEOUT) as other:
            for client, data in (
                (one, b"one"),
                (other, b"other"),
                (one, b"interrupt"),
                (other, b"other again"),
                (one, b"one again"),
            ):
                client.sendall(data)
                assert ready.acquire(timeout=TIMEOUT), f"{data!r} was not read"
                loop.pass_turns(1)
        assert read == [b"one", b"other", b"interrupt", b"other again", b"one again"]
        listener.close()
        for endpoint in endpoints:
            endpoint.close()
        engine.close()
