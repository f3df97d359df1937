"""What holds on every borrowed loop: the loop stays the user's.

A bridge's tests subclass `BorrowedLoopCases` and give it the fixtures `make_loop`, for each kind of loop, and
`make_loop_by`, a loop whose time is a `Clock`. The peer is always a plain blocking socket.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import errno
import http.client
import os
import queue
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

import eventengine
from eventengine import (
    ClosedResourceError,
    Endpoint,
    EndpointConfig,
    EventEngine,
    Listener,
    MemoryAllocator,
    ResolvedAddress,
    ResourceQuota,
    SliceBuffer,
    Status,
    StatusCode,
)
from eventengine.core.host import Host
from eventengine.core.hosted import HostedEventEngine
from loops import TIMEOUT, AsyncioLoop, Clock, MakeLoop, UserLoop, closing, count_descriptors, nothing_left

SOURCE = Path(eventengine.__file__).parent
LOOPBACK = ("127.0.0.1", 0)


class Got(queue.Queue[Any]):
    """A callback that keeps what it was given."""

    def __call__(self, value: Any = None) -> None:
        self.put(value)

    def next(self) -> Any:
        return self.get(timeout=TIMEOUT)


class Echo:
    """Writes back what it reads, and closes at the end of what the peer sends."""

    def __init__(self, endpoint: Endpoint, on_message: Callable[[], object] = lambda: None) -> None:
        self._endpoint = endpoint
        self._buffer = SliceBuffer()
        self._on_message = on_message
        self._go_on()

    def _go_on(self) -> None:
        while self._endpoint.read(self._on_read, self._buffer):
            if not self._write():
                return

    def _on_read(self, status: Status) -> None:
        if not status.ok:
            self._endpoint.close()
        elif self._write():
            self._go_on()

    def _write(self) -> bool:
        return self._endpoint.write(self._on_written, self._buffer)

    def _on_written(self, status: Status) -> None:
        if status.ok:
            self._go_on()
        else:
            self._endpoint.close()


def listen(
    engine: EventEngine, on_endpoint: Callable[[Endpoint], object] = Echo
) -> tuple[Listener, ResolvedAddress]:
    """A listener that was started, and its address."""

    def on_accept(endpoint: Endpoint, allocator: MemoryAllocator) -> None:
        allocator.close()
        on_endpoint(endpoint)

    listener = engine.create_listener(on_accept, lambda _: None, EndpointConfig(), ResourceQuota("listener"))
    port = listener.bind(ResolvedAddress.parse("127.0.0.1:0"))
    listener.start()
    return listener, ResolvedAddress.tcp("127.0.0.1", port)


@contextlib.contextmanager
def listening(engine: EventEngine, on_endpoint: Callable[[Endpoint], object] = Echo) -> Iterator[ResolvedAddress]:
    """The address of a listener that was started."""
    listener, address = listen(engine, on_endpoint)
    yield address
    listener.close()


def connect(engine: EventEngine, address: ResolvedAddress, **options: Any) -> Got:
    got = Got()
    engine.connect(
        got, address, EndpointConfig(**options), ResourceQuota().create_memory_allocator("client"), TIMEOUT
    )
    return got


def address_of(server: socket.socket) -> ResolvedAddress:
    return ResolvedAddress.from_sockaddr(server.family, server.getsockname())


def client_of(address: ResolvedAddress) -> socket.socket:
    client = socket.create_connection((address.host, address.port), TIMEOUT)
    client.settimeout(TIMEOUT)
    return client


def receive(connection: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count and (part := connection.recv(count - len(data))):
        data += part
    return bytes(data)


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def exchange(address: ResolvedAddress, data: bytes = b"to and fro") -> None:
    """A plain client says `data` and gets it back."""
    with client_of(address) as client:
        client.sendall(data)
        assert receive(client, len(data)) == data
        client.shutdown(socket.SHUT_WR)
        assert receive(client, 1) == b""


def assert_serves(engine: EventEngine) -> None:
    """The engine listens and echoes, runs closures and timers."""
    ran = Got()
    engine.run(ran)
    ran.next()
    engine.run_after(0.001, ran)
    ran.next()
    with listening(engine) as address:
        exchange(address)


def plain_pair() -> tuple[socket.socket, ResolvedAddress]:
    server = socket.create_server(LOOPBACK)
    server.settimeout(TIMEOUT)
    return server, address_of(server)


@contextlib.contextmanager
def connected(engine: EventEngine, **options: Any) -> Iterator[tuple[Endpoint, socket.socket]]:
    """An endpoint and the plain socket at its other end."""
    server, address = plain_pair()
    with server:
        got = connect(engine, address, **options)
        peer, _ = server.accept()
    endpoint = got.next()
    assert isinstance(endpoint, Endpoint), endpoint
    with peer:
        peer.settimeout(TIMEOUT)
        yield endpoint, peer
    endpoint.close()


class Busy:
    """An engine with one of everything under way: accepted connections, a read, a write, a connect, timers."""

    def __init__(self, engine: EventEngine) -> None:
        self._left = contextlib.ExitStack()
        enter = self._left.enter_context
        self.plain_sockets = 9
        self.timers = Got()
        for delay in (30.0, 300.0, 3.0e6):
            engine.run_after(delay, self.timers)
        address = enter(listening(engine))
        for _ in range(3):  # accepted; each waits for what its client says
            client = enter(client_of(address))
            client.sendall(b"x")
            assert receive(client, 1) == b"x"
        self.read = Got()
        self.reader, self._talker = enter(connected(engine))
        self.reader.read(self.read, SliceBuffer())
        self.write = Got()
        self.writer, self._listener_in_vain = enter(connected(engine, send_buffer_size=4096))
        data = SliceBuffer()
        data.append(bytes(32 << 20))
        self.writer.write(self.write, data)
        full = enter(socket.socket())
        full.bind(LOOPBACK)
        full.listen(0)
        for _ in range(3):
            filler = enter(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        self.connect = connect(engine, address_of(full))

    def assert_cancelled(self) -> None:
        for got in (self.read, self.write, self.connect):
            status = got.next()
            assert status.code is StatusCode.CANCELLED
            assert got.empty()
        assert self.timers.empty()

    def leave(self) -> None:
        self._left.close()


# How the engine is closed, and what the loop must have on the return of `close`.


def close_on_the_loop_s_thread(loop: UserLoop, engine: EventEngine) -> tuple[object, int]:
    def close() -> tuple[object, int]:
        engine.close()
        return loop.contents(), count_descriptors()

    return loop.call(close)


def close_from_another_thread(loop: UserLoop, engine: EventEngine) -> tuple[object, int]:
    engine.close()
    loop.pass_turns(2)  # the asyncio reactor takes one to hand the call over
    return loop.call(lambda: (loop.contents(), count_descriptors()))


def close_while_the_loop_does_not_run(loop: UserLoop, engine: EventEngine) -> tuple[object, int]:
    loop.end()
    engine.close()
    return loop.contents(), count_descriptors()


CLOSERS = [close_on_the_loop_s_thread, close_from_another_thread, close_while_the_loop_does_not_run]


def page(path: str) -> bytes:
    """What the framework's own site answers."""
    return path.encode() * 512


class Load:
    """Clients of one kind: so many threads, each with one connection, which make request after request."""

    def __init__(self, threads: int, open_client: Callable[[], tuple[Any, Callable[[int], object]]]) -> None:
        self._open_client = open_client
        self._one_more = threading.Condition()
        self._ended = False
        self._threads = ThreadPoolExecutor(threads)
        self.done = [0] * threads
        self._results = [self._threads.submit(self._run, index) for index in range(threads)]

    def _run(self, index: int) -> None:
        client, request = self._open_client()
        with contextlib.closing(client):
            while not self._ended:
                request(self.done[index])
                with self._one_more:
                    self.done[index] += 1
                    self._one_more.notify_all()

    def wait_for_each(self, count: int) -> None:
        """Returns when each client has done `count` more."""
        with self._one_more:
            wanted = [done + count for done in self.done]
            assert self._one_more.wait_for(lambda: all(map(int.__ge__, self.done, wanted)), TIMEOUT), self.done

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._threads.shutdown()
        for result in self._results:
            result.result()


def echo_client(address: ResolvedAddress) -> tuple[Any, Callable[[int], object]]:
    client = client_of(address)
    salt = os.urandom(1 << 10)

    def request(number: int) -> None:
        data = (salt + number.to_bytes(4, "big")) * 255
        client.sendall(data)
        assert receive(client, len(data)) == data

    return client, request


def page_client(address: ResolvedAddress) -> tuple[Any, Callable[[int], object]]:
    client = http.client.HTTPConnection(address.host, address.port, timeout=TIMEOUT)

    def request(number: int) -> None:
        client.request("GET", f"/{number}")
        response = client.getresponse()
        assert (response.status, response.read()) == (200, page(f"/{number}"))

    return client, request


class BorrowedLoopCases:
    @pytest.fixture(params=[True, False], ids=["one epoll", "each fd"])
    def private_poller(self, request: pytest.FixtureRequest) -> bool:
        return request.param

    @pytest.fixture
    def loop(self, make_loop: MakeLoop) -> Iterator[UserLoop]:
        with nothing_left(), closing(make_loop()) as loop:
            yield loop

    @pytest.fixture
    def running_loop(self, loop: UserLoop) -> UserLoop:
        loop.start()
        return loop

    @pytest.fixture
    def engine(self, running_loop: UserLoop, private_poller: bool) -> Iterator[HostedEventEngine]:
        """An engine on `running_loop`, which already takes turns there."""
        with running_loop.make_engine(private_poller=private_poller) as engine:
            ran = Got()
            engine.run(ran)
            ran.next()
            yield engine

    # Taking a loop.

    @pytest.mark.parametrize("elsewhere", [False, True], ids=["main thread", "other thread"])
    def test_calls_made_before_the_loop_runs_take_effect_once_it_does(
        self, loop: UserLoop, private_poller: bool, elsewhere: bool
    ) -> None:
        engine = loop.make_engine(private_poller=private_poller)
        ran, timed, late = Got(), Got(), Got()
        server, server_address = plain_pair()

        def calls() -> tuple[Listener, ResolvedAddress, Got]:
            engine.run(ran)
            engine.run_after(0.001, timed)
            engine.cancel(engine.run_after(0.001, late))
            return *listen(engine), connect(engine, server_address)

        with ThreadPoolExecutor(1) as thread:
            listener, address, got = thread.submit(calls).result(TIMEOUT) if elsewhere else calls()
        assert ran.empty()
        assert timed.empty()
        assert got.empty()
        loop.start()
        ran.next()
        timed.next()
        exchange(address)
        server.accept()[0].close()
        got.next().close()
        server.close()
        listener.close()
        engine.close()
        loop.pass_turns(2)
        assert late.empty()

    def test_an_engine_made_in_a_callback_of_the_loop_serves(
        self, running_loop: UserLoop, private_poller: bool
    ) -> None:
        ran = Got()

        def make() -> tuple[EventEngine, tuple[Listener, ResolvedAddress]]:
            engine = running_loop.make_engine(private_poller=private_poller)
            engine.run(ran)
            engine.run_after(0.001, ran)
            return engine, listen(engine)

        engine, (listener, address) = running_loop.call(make)
        exchange(address)
        ran.next()
        ran.next()
        listener.close()
        running_loop.call(engine.close)

    def test_an_engine_made_in_another_thread_while_the_loop_runs_serves(
        self, running_loop: UserLoop, private_poller: bool
    ) -> None:
        with running_loop.make_engine(private_poller=private_poller) as engine:
            assert_serves(engine)

    def test_several_engines_share_a_loop(self, running_loop: UserLoop, private_poller: bool) -> None:
        engines = [running_loop.make_engine(private_poller=private_poller) for _ in range(3)]
        served = [listen(engine) for engine in engines]
        for engine, (listener, address) in zip(engines, served, strict=True):
            exchange(address)
            engine.close()
            listener.close()
            with pytest.raises(ClosedResourceError):
                engine.run(print)

    def test_what_is_no_callable_or_delay_is_refused_as_on_every_engine(self, engine: EventEngine) -> None:
        with pytest.raises(TypeError, match="closure must be callable"):
            engine.run(3)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="delay"):
            engine.run_after(-1.0, print)

    def test_a_stock_site_and_a_listener_of_the_engine_serve_side_by_side_under_load(
        self, engine: HostedEventEngine, site: ResolvedAddress
    ) -> None:
        with (
            listening(engine) as address,
            Load(8, lambda: echo_client(address)) as echoes,
            Load(2, lambda: page_client(site)) as pages,
        ):
            # Both are kept busy throughout, and each client of either makes its requests meanwhile.
            pages.wait_for_each(100)
            echoes.wait_for_each(5)
            pages.wait_for_each(5)
            echoes.wait_for_each(5)
            assert min(echoes.done) >= 10
            assert sum(pages.done) >= 200

    # Closing.

    @pytest.mark.parametrize("close", CLOSERS)
    def test_closing_leaves_the_loop_as_it_was(
        self,
        running_loop: UserLoop,
        private_poller: bool,
        close: Callable[[UserLoop, EventEngine], tuple[object, int]],
    ) -> None:
        loop = running_loop
        loop.call(lambda: loop.call_later(TIMEOUT, lambda: None))  # something of the user's
        loop.pass_turns(2)
        contents, descriptors = loop.call(lambda: (loop.contents(), count_descriptors()))
        threads = set(threading.enumerate())
        engine = loop.make_engine(private_poller=private_poller)
        used = Busy(engine)
        assert loop.call(loop.contents) != contents
        assert close(loop, engine) == (contents, descriptors + used.plain_sockets)
        assert set(threading.enumerate()) <= threads
        used.assert_cancelled()
        used.leave()
        with pytest.raises(ClosedResourceError):
            engine.run(print)
        engine.close()
        if close is close_while_the_loop_does_not_run:
            if not loop.restarts:
                return
            loop.start()
        loop.pass_turns(2)
        with loop.make_engine(private_poller=private_poller) as another:
            assert_serves(another)

    def test_closing_in_the_engine_s_first_turn_is_done_on_return(
        self, running_loop: UserLoop, private_poller: bool
    ) -> None:
        def make_and_close() -> None:
            before = running_loop.contents(), count_descriptors()
            engine = running_loop.make_engine(private_poller=private_poller)
            listener, _address = listen(engine)
            engine.close()
            listener.close()
            assert (running_loop.contents(), count_descriptors()) == before

        running_loop.call(make_and_close)

    def test_closing_in_a_callback_of_the_engine_is_done_on_return(
        self, running_loop: UserLoop, private_poller: bool
    ) -> None:
        before = running_loop.call(lambda: (running_loop.contents(), count_descriptors()))
        engine = running_loop.make_engine(private_poller=private_poller)
        after = Got()

        def close(_: Status) -> None:
            engine.close()
            after((running_loop.contents(), count_descriptors()))

        with connected(engine) as (endpoint, peer):
            endpoint.read(close, SliceBuffer())
            peer.sendall(b"close")
            contents, descriptors = after.next()
            assert descriptors == before[1] + 1  # the peer
        running_loop.pass_turns(1)
        assert running_loop.call(running_loop.contents) == before[0]
        assert contents == before[0]

    def test_an_engine_with_nothing_to_do_has_nothing_on_the_loop(
        self, running_loop: UserLoop, private_poller: bool
    ) -> None:
        loop = running_loop
        before = loop.call(loop.contents)
        with loop.make_engine(private_poller=private_poller) as engine:
            assert loop.call(loop.contents) == before
            assert_serves(engine)
            with connected(engine) as (endpoint, peer):
                got = Got()
                endpoint.read(got, SliceBuffer())
                peer.sendall(b"x")
                got.next()
            assert engine.cancel(engine.run_after(TIMEOUT, print))
            loop.pass_turns(3)
            assert loop.call(loop.contents) == before

    # Time.

    def test_a_timer_fires_by_the_loop_s_own_clock(
        self, make_loop_by: Callable[[Clock], UserLoop], private_poller: bool
    ) -> None:
        clock = Clock()
        with nothing_left(), closing(make_loop_by(clock)) as loop:
            engine = loop.make_engine(private_poller=private_poller)
            fired = Got()
            engine.run_after(100.0, lambda: fired(1))
            engine.run_after(5000.0, lambda: fired(2))
            loop.start()
            loop.pass_turns(10)
            clock.now += 99.9
            loop.pass_turns(10)
            assert fired.empty()
            clock.now += 0.2
            loop.pass_turns(1)
            assert fired.next() == 1
            clock.now += 4899.8
            loop.pass_turns(10)
            assert fired.empty()
            clock.now += 0.2
            loop.pass_turns(1)
            assert fired.next() == 2
            engine.close()
            loop.pass_turns(2)

    # What callbacks raise.

    def test_what_a_callback_raises_is_logged_by_the_framework_and_counted(
        self, engine: HostedEventEngine, running_loop: UserLoop
    ) -> None:
        def fail(number: int) -> Callable[..., object]:
            def callback(*_: object) -> None:
                raised.put(number)
                raise LookupError(number)

            return callback

        raised: queue.Queue[int] = queue.Queue()
        with running_loop.errors() as errors:
            engine.run(fail(1))
            engine.run_after(0.001, fail(2))
            with listening(engine, fail(3)) as address, client_of(address) as client:
                assert receive(client, 1) == b""
            with connected(engine) as (endpoint, peer):
                endpoint.read(fail(4), SliceBuffer())
                peer.sendall(b"x")
                numbers = {raised.get(timeout=TIMEOUT) for _ in range(4)}
                assert numbers == {1, 2, 3, 4}
                running_loop.pass_turns(2)
                assert sorted(error.args[0] for error in errors) == [1, 2, 3, 4]
                assert {type(error) for error in errors} == {LookupError}
                assert engine.callback_errors == 4
                # The endpoint whose callback raised goes on, and so do the loop and the engine.
                got = Got()
                endpoint.read(got, SliceBuffer())
                peer.sendall(b"y")
                assert got.next().ok
            assert_serves(engine)

    # Hang-ups.

    def test_a_refused_connect_is_unavailable(self, engine: EventEngine) -> None:
        server, address = plain_pair()
        server.close()
        for _ in range(3):
            status = connect(engine, address).next()
            assert (status.code, status.errno) == (StatusCode.UNAVAILABLE, errno.ECONNREFUSED)

    def test_a_reset_during_a_read_is_unavailable(self, engine: EventEngine) -> None:
        with connected(engine) as (endpoint, peer):
            got = Got()
            endpoint.read(got, SliceBuffer())
            reset(peer)
            status = got.next()
            assert (status.code, status.errno) == (StatusCode.UNAVAILABLE, errno.ECONNRESET)

    def test_a_reset_during_a_write_is_unavailable(self, engine: EventEngine) -> None:
        with connected(engine, send_buffer_size=4096) as (endpoint, peer):
            got = Got()
            data = SliceBuffer()
            data.append(bytes(32 << 20))
            endpoint.write(got, data)
            assert receive(peer, 10) == bytes(10)
            reset(peer)
            assert got.next().code is StatusCode.UNAVAILABLE

    def test_a_reset_during_a_read_and_a_write_ends_both(self, engine: EventEngine) -> None:
        with connected(engine, send_buffer_size=4096) as (endpoint, peer):
            read, write = Got(), Got()
            data = SliceBuffer()
            data.append(bytes(32 << 20))
            endpoint.write(write, data)
            endpoint.read(read, SliceBuffer())
            assert receive(peer, 10) == bytes(10)
            reset(peer)
            assert read.next().code is StatusCode.UNAVAILABLE
            assert write.next().code is StatusCode.UNAVAILABLE

    @pytest.mark.parametrize("end", [socket.socket.close, reset], ids=["end", "reset"])
    def test_bytes_before_the_end_come_first_where_the_kernel_gives_them(
        self, engine: EventEngine, running_loop: UserLoop, end: Callable[[socket.socket], object]
    ) -> None:
        expected = what_a_plain_socket_gets(end)
        with connected(engine) as (endpoint, peer):

            def say_and_end() -> None:  # between two turns, so that bytes and end come in one event
                peer.sendall(b"last words")
                end(peer)

            got, buffer = Got(), SliceBuffer()
            running_loop.call(lambda: (endpoint.read(got, buffer), say_and_end()))
            received = b""
            while (status := got.next()).ok:
                received += bytes(buffer)
                endpoint.read(got, buffer)
            assert (received, status.errno) == expected
            assert status.code is (StatusCode.UNAVAILABLE if status.errno else StatusCode.OUT_OF_RANGE)

    @pytest.mark.parametrize("end", [socket.socket.close, reset], ids=["end", "reset"])
    @pytest.mark.parametrize("outstanding", ["nothing", "read that was done"])
    def test_a_hang_up_that_nobody_waits_for_does_not_keep_the_loop_busy(
        self,
        running_loop: UserLoop,
        private_poller: bool,
        end: Callable[[socket.socket], object],
        outstanding: str,
    ) -> None:
        calls = Got()
        host = counting(running_loop, calls)
        with HostedEventEngine(host, private_poller=private_poller) as engine, connected(engine) as (one, peer):
            if outstanding != "nothing":
                got = Got()
                one.read(got, SliceBuffer())
                peer.sendall(b"x")
                got.next()
            running_loop.pass_turns(2)
            before = calls.qsize()
            end(peer)
            running_loop.pass_turns(200)
            assert calls.qsize() - before <= 3
            # It is known all the same to who asks.
            got = Got()
            one.read(got, SliceBuffer())
            assert not got.next().ok

    def test_bytes_that_nobody_reads_do_not_keep_the_loop_busy(
        self, running_loop: UserLoop, private_poller: bool
    ) -> None:
        calls = Got()
        host = counting(running_loop, calls)
        with HostedEventEngine(host, private_poller=private_poller) as engine, connected(engine) as (one, peer):
            got, buffer = Got(), SliceBuffer()
            one.read(got, buffer)
            peer.sendall(b"x")
            got.next()
            running_loop.pass_turns(2)
            before = calls.qsize()
            peer.sendall(b"yz")
            running_loop.pass_turns(200)
            assert calls.qsize() - before <= 3
            one.read(got, buffer)
            assert got.next().ok
            assert bytes(buffer) == b"yz"


class RestartedLoopCases:
    """For loops that may be stopped and run again."""

    def test_an_engine_goes_on_when_its_loop_is_stopped_and_run_again(
        self, running_loop: UserLoop, private_poller: bool
    ) -> None:
        loop = running_loop
        with loop.make_engine(private_poller=private_poller) as engine:
            listener, address = listen(engine)
            exchange(address)
            loop.end()
            ran, timed = Got(), Got()
            engine.run(ran)
            engine.run_after(0.001, timed)
            with plain_pair()[0] as server:
                got = connect(engine, address_of(server))
                assert (ran.empty(), timed.empty(), got.empty()) == (True, True, True)
                loop.start()
                ran.next()
                timed.next()
                server.accept()[0].close()
            got.next().close()
            exchange(address)
            listener.close()

    def test_calls_of_the_thread_that_ran_the_loop_before_reach_the_one_that_runs_it_now(
        self, loop: AsyncioLoop, private_poller: bool
    ) -> None:
        with loop.make_engine(private_poller=private_poller) as engine:
            ran = Got()
            engine.run(ran)
            engine.run(loop.stop)
            loop.run()
            ran.next()
            loop.asyncio_loop.set_debug(True)  # so that a call from a thread that does not run the loop is refused
            loop.start()
            engine.run_after(0.001, ran)
            ran.next()
            with listening(engine) as address:
                exchange(address)

    def test_a_closed_loop_is_refused(self, make_loop: MakeLoop, private_poller: bool) -> None:
        with nothing_left():
            loop = make_loop()
            loop.close()
            with pytest.raises(ClosedResourceError, match="closed"):
                loop.make_engine(private_poller=private_poller)

    def test_an_engine_whose_loop_was_closed_says_so_and_can_be_closed(
        self, make_loop: MakeLoop, private_poller: bool
    ) -> None:
        with nothing_left():
            loop = make_loop()
            loop.start()
            engine = loop.make_engine(private_poller=private_poller)
            used = Busy(engine)
            loop.end()
            loop.close()
            with pytest.raises(ClosedResourceError):
                engine.run(print)
            engine.close()
            used.assert_cancelled()
            used.leave()


class InThreadCases:
    """For engines on a loop of their own, in a thread."""

    def test_several_at_once_are_apart_and_leave_nothing(self, in_thread: Callable[..., EventEngine]) -> None:
        handlers = [signal.getsignal(number) for number in signal.valid_signals()]
        with nothing_left():
            engines = [in_thread(private_poller=poller) for poller in (True, False, None)]
            got = Got()
            for engine in engines:
                engine.run(lambda engine=engine: got((engine, threading.get_ident())))
            ran = dict(got.next() for _ in engines)
            assert len({*ran.values(), threading.get_ident()}) == 4
            for engine in engines:
                assert_serves(engine)
            assert [signal.getsignal(number) for number in signal.valid_signals()] == handlers
            engines[0].close()
            for engine in engines[1:]:
                assert_serves(engine)
                here = Got()
                engine.run(
                    lambda engine=engine, here=here: here([each.is_worker_thread() for each in engines[1:]])
                )
                assert here.next() == [each is engine for each in engines[1:]]
                used = Busy(engine)
                engine.close()
                used.assert_cancelled()
                used.leave()
        assert [signal.getsignal(number) for number in signal.valid_signals()] == handlers

    def test_one_may_be_closed_in_its_own_callback(self, in_thread: Callable[..., EventEngine]) -> None:
        with nothing_left():
            engine = in_thread()
            got = Got()
            engine.run(lambda: got((engine.close(), threading.current_thread())))
            thread = got.next()[1]
            thread.join(TIMEOUT)
            assert not thread.is_alive()
            with pytest.raises(ClosedResourceError):
                engine.run(print)

    def test_the_caller_s_thread_gets_no_asyncio_loop(self, in_thread: Callable[..., EventEngine]) -> None:
        def look() -> None:
            for set_one in (False, True):
                own = asyncio.new_event_loop()
                if set_one:
                    asyncio.set_event_loop(own)
                with in_thread() as engine:
                    assert_serves(engine)
                    if set_one:
                        assert asyncio.get_event_loop() is own
                    else:
                        with pytest.raises(RuntimeError, match="no current event loop"):
                            asyncio.get_event_loop()
                asyncio.set_event_loop(None)
                own.close()

        with ThreadPoolExecutor(1) as thread:
            thread.submit(look).result(TIMEOUT)


class InterruptCases:
    """What ends a program ends the run of a borrowed loop as it does when the framework's own callbacks raise it."""

    prologue: str

    @pytest.mark.parametrize("error", ["KeyboardInterrupt", "SystemExit"])
    @pytest.mark.parametrize("how", ["call", "timer", "descriptor"])
    def test_an_interrupt_does_what_it_does_in_the_framework_s_own_callbacks(self, how: str, error: str) -> None:
        script = dedent(self.prologue) + dedent(INTERRUPT)
        with ThreadPoolExecutor(2) as both:
            done = both.map(lambda who: run_python(script, who, how, error).stdout, ("framework", "engine"))
            expected, found = done
        assert expected.splitlines()[0] in ("went on", f"ended with {error}")
        assert found == expected  # and the engine was closed after that


INTERRUPT = """
    import socket, sys
    from eventengine import EndpointConfig, ResolvedAddress, ResourceQuota, SliceBuffer

    _, who, how, what = sys.argv

    def interrupt(*_):
        call_later(0.01, stop)  # for a framework that goes on
        raise {"KeyboardInterrupt": KeyboardInterrupt, "SystemExit": SystemExit}[what]

    with socket.create_server(("127.0.0.1", 0)) as server:
        if who == "framework":
            if how == "call":
                call_soon(interrupt)
            elif how == "timer":
                call_later(0.01, interrupt)
            else:
                client = socket.create_connection(server.getsockname())
                server.accept()[0].sendall(b"x")
                watch(client.fileno(), interrupt)
        elif how == "call":
            engine.run(interrupt)
        elif how == "timer":
            engine.run_after(0.01, interrupt)
        else:
            def on_connect(endpoint):
                globals()["kept"] = endpoint
                server.accept()[0].sendall(b"x")
                endpoint.read(interrupt, SliceBuffer())

            engine.connect(
                on_connect,
                ResolvedAddress.from_sockaddr(server.family, server.getsockname()),
                EndpointConfig(),
                ResourceQuota().create_memory_allocator("client"),
                60.0,
            )
        try:
            run()
        except BaseException as error:
            print("ended with", type(error).__name__)
        else:
            print("went on")
        engine.close()
        engine.close()
    """


def run_python(
    script: str, *args: str, cwd: Path | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Runs a script in a process of its own, with this directory on its path."""
    path = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-c", dedent(script), *args],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
    )
    assert not (check and done.returncode), done.stdout + done.stderr
    return done


class SourceCases:
    """What a bridge may do with its framework."""

    files: tuple[str, ...]

    def test_only_public_names_of_the_framework_are_used_or_a_comment_says_why(self) -> None:
        for file in self.files:
            assert not list(private_uses((SOURCE / file).read_text()))

    def test_the_host_is_read_in_ten_minutes(self) -> None:
        assert len((SOURCE / self.files[0]).read_text().splitlines()) < 180

    @pytest.mark.parametrize(
        "line",
        [
            "reactor._started = True",
            "self._reactor._poller.close()",
            "from twisted.internet._signals import x",
            "from asyncio.events import _x",
            "getattr(loop, '_selector')",
            "self._reads = {}\nloop._reads.clear()",
        ],
    )
    def test_a_private_name_is_found(self, line: str) -> None:
        assert list(private_uses(line))
        above, _, last = line.rpartition("\n")
        assert not list(private_uses(f"{above}\n# why\n{last}"))

    @pytest.mark.parametrize("line", ["self._reads = {}", "cls._x()", "a.__name__", "loop.time()"])
    def test_a_name_that_is_our_own_or_public_is_not(self, line: str) -> None:
        assert not list(private_uses(line))


def private_uses(source: str) -> Iterator[str]:
    """The lines that use a private name of something else than `self` and `cls`, without a comment above."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Attribute):
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                names = [node.attr]
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("eventengine"):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [part for alias in node.names for part in alias.name.split(".")]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("attr"):
            names = [arg.value for arg in node.args[1:2] if isinstance(arg, ast.Constant)]
        if any(re.match("_[a-z]", name) for name in names):
            above = lines[node.lineno - 2].strip() if node.lineno > 1 else ""
            if not above.startswith("#"):
                yield lines[node.lineno - 1].strip()


def what_a_plain_socket_gets(end: Callable[[socket.socket], object]) -> tuple[bytes, int | None]:
    """The bytes, and the errno of what followed, when the peer says its last words and then `end`s."""
    with plain_pair()[0] as server, client_of(address_of(server)) as client:
        peer, _ = server.accept()
        peer.sendall(b"last words")
        end(peer)
        received = b""
        try:
            while part := client.recv(100):
                received += part
        except OSError as error:
            return received, error.errno
        return received, None


def counting(loop: UserLoop, calls: Got) -> Host:
    """A host as the bridge's, that tells `calls` whenever the loop reports a descriptor as ready."""

    class Counting(loop.host_type):  # type: ignore[name-defined, misc]
        __slots__ = ()

        def watch(self, fd: int, events: int, on_ready: Callable[[int], object]) -> None:
            def counted(events: int) -> None:
                calls(events)
                on_ready(events)

            super().watch(fd, events, counted)

    return Counting(loop.target)
