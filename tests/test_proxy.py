"""The proxy's classes on every engine that is installed, against plain blocking sockets."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from eventengine import EventEngine, ResolvedAddress, ResourceQuota, Status, StatusCode, StatusError
from eventengine.cli import relay as relay_module
from eventengine.cli.engines import ENGINES
from eventengine.cli.proxy import Proxy
from eventengine.testing.scenes import port_without_listener
from proxying import (
    MIB,
    TIMEOUT,
    Served,
    Target,
    echo,
    ended_stream,
    made_engine,
    receive,
    receive_all,
    reset,
    say_ready_then_wait,
)


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[EventEngine]:
    yield from made_engine(request.param)


def test_megabytes_cross_in_both_directions_at_once_unchanged(engine: EventEngine) -> None:
    there, back = os.urandom(8 * MIB), os.urandom(8 * MIB)

    def swap(connection: socket.socket, data: bytes) -> str:
        with ThreadPoolExecutor(1) as thread:
            sent = thread.submit(connection.sendall, data)
            received = receive(connection, len(data))
            sent.result()
        return hashlib.sha256(received).hexdigest()

    with Target(lambda c: swap(c, back)) as target, Served(engine, target.address) as served:
        with served.connect() as client:
            assert swap(client, there) == hashlib.sha256(back).hexdigest()
        relay = served.wait_for_ended(1)[0]
        assert target.results[0].result(TIMEOUT) == hashlib.sha256(there).hexdigest()
        assert (relay.bytes_up, relay.bytes_down) == (len(there), len(back))
        assert (served.proxy.connections, served.proxy.bytes_up) == (1, len(there))


def test_a_client_that_ends_its_stream_still_reads_the_answer(engine: EventEngine) -> None:
    question = os.urandom(3 * MIB)

    def answer(connection: socket.socket) -> None:
        connection.sendall(hashlib.sha256(receive_all(connection)).digest() * MIB)

    with Target(answer) as target, Served(engine, target.address) as served, served.connect() as client:
        client.sendall(question)
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == hashlib.sha256(question).digest() * MIB
        assert served.wait_for_ended(1)[0].outcome == "both sides ended"


def test_a_target_that_ends_its_stream_still_reads_what_the_client_sends(engine: EventEngine) -> None:
    def greet_and_listen(connection: socket.socket) -> bytes:
        connection.sendall(b"goodbye")
        connection.shutdown(socket.SHUT_WR)
        return receive_all(connection)

    with Target(greet_and_listen) as target, Served(engine, target.address) as served:
        with served.connect() as client:
            assert receive_all(client) == b"goodbye"
            client.sendall(b"one last word")
        assert served.wait_for_ended(1)[0].outcome == "both sides ended"
        assert target.results[0].result(TIMEOUT) == b"one last word"


def test_unix_sockets_serve_on_both_sides(engine: EventEngine, tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "target"))
    listener.listen()
    with (
        Target(lambda c: c.sendall(receive_all(c)[::-1]), listener) as target,
        Served(engine, target.address, listen=f"unix:{tmp_path}/proxy") as served,
        served.connect() as client,
    ):
        assert str(served.address) == f"unix:{tmp_path}/proxy"
        client.sendall(b"abc")
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == b"cba"


def test_a_name_is_looked_up(engine: EventEngine) -> None:
    with Target(echo) as target, Served(engine, f"localhost:{target.address.port}") as served:
        with served.connect() as client:
            client.sendall(b"to a name")
            assert receive(client, 9) == b"to a name"
        assert served.wait_for_ended(1)[0].target == target.address


@pytest.mark.parametrize("form", ["dns:localhost:{}", "dns:///127.0.0.1:{}", "ipv4:127.0.0.1:1,127.0.0.1:{}"])
def test_a_target_of_any_form_is_connected_to(engine: EventEngine, form: str) -> None:
    with Target(echo) as target, Served(engine, form.format(target.address.port)) as served:
        with served.connect() as client:
            client.sendall(b"to a target")
            assert receive(client, 11) == b"to a target"
        assert served.wait_for_ended(1)[0].target == target.address


class Wrapped:
    """An engine but for the parts that a test takes into its own hands."""

    def __init__(self, engine: EventEngine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)


class WithNames(Wrapped):
    """Its resolver gives the same answer to every question."""

    def __init__(self, engine: EventEngine, answer: list[ResolvedAddress] | Status) -> None:
        super().__init__(engine)
        self._answer = answer

    def get_dns_resolver(self, *, dns_server: str | None) -> WithNames:
        return self

    def lookup_hostname(self, on_resolve: Callable[[list[ResolvedAddress] | Status], object], name: str) -> None:
        self._engine.run(lambda: on_resolve(self._answer))

    def close(self) -> None:
        pass


def test_the_addresses_of_a_name_are_tried_in_turn(engine: EventEngine) -> None:
    with Target(echo) as target, port_without_listener() as one, port_without_listener() as other:
        names = WithNames(engine, [one, other, target.address])
        with Served(names, "name:1") as served, served.connect() as client:
            client.sendall(b"third")
            assert receive(client, 5) == b"third"


def test_a_name_that_is_not_found_closes_the_client(engine: EventEngine) -> None:
    names = WithNames(engine, Status(StatusCode.NOT_FOUND, "no such name"))
    with Served(names, "name:1") as served, served.connect() as client:
        assert ended_stream(client)
        assert "no such name" in str(served.wait_for_ended(1)[0].outcome)


def test_a_target_that_refuses_closes_the_client(engine: EventEngine) -> None:
    with port_without_listener() as refusing, Served(engine, refusing) as served, served.connect() as client:
        assert ended_stream(client)
        assert "refused" in str(served.wait_for_ended(1)[0].outcome)


def test_a_target_that_resets_closes_the_client(engine: EventEngine) -> None:
    def greet_and_reset(connection: socket.socket) -> None:
        connection.sendall(b"hello")
        connection.recv(1)
        reset(connection)

    with Target(greet_and_reset) as target, Served(engine, target.address) as served:
        with served.connect() as client:
            assert receive(client, 5) == b"hello"
            client.sendall(b"x")
            assert ended_stream(client)
        assert "failed" in str(served.wait_for_ended(1)[0].outcome)


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:0"])
def test_who_did_not_get_its_stream_to_the_end_is_reset(engine: EventEngine, listen: str) -> None:
    def greet_and_reset(connection: socket.socket) -> None:
        connection.sendall(b"half of it")
        connection.recv(1)
        reset(connection)

    with Target(greet_and_reset) as target, Served(engine, target.address, listen=listen) as served:
        with served.connect() as client:
            assert receive(client, 10) == b"half of it"
            client.sendall(b"x")
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        served.wait_for_ended(1)


def test_what_a_target_said_before_it_would_take_no_more_is_passed_on(engine: EventEngine, tmp_path: Path) -> None:
    """As a server does that refuses an upload."""
    answer = os.urandom(3 * MIB)

    def answer_early(connection: socket.socket) -> None:
        connection.shutdown(socket.SHUT_RD)  # on a unix socket, a write of the other side fails
        connection.sendall(answer)

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "target"))
    listener.listen()
    with Target(answer_early, listener) as target, Served(engine, target.address) as served:
        with served.connect() as client:
            assert receive(client, 1) == answer[:1]
            client.sendall(b"what is not taken any more")
            assert receive_all(client) == answer[1:]
        assert "writing up failed" in str(served.wait_for_ended(1)[0].outcome)
        assert (served.up.memory.used, served.down.memory.used) == (0, 0)


def test_a_client_that_resets_closes_the_target(engine: EventEngine) -> None:
    with Target(say_ready_then_wait) as target, Served(engine, target.address) as served:
        client = served.connect()
        assert receive(client, 5) == b"ready"
        reset(client)
        assert "failed" in str(served.wait_for_ended(1)[0].outcome)
        with pytest.raises(ConnectionResetError):
            target.results[0].result(TIMEOUT)


class Clock(Wrapped):
    """An engine whose timers a test runs by hand, and the clock to go with them."""

    def __init__(self, engine: EventEngine) -> None:
        super().__init__(engine)
        self.now = 100.0
        self.set = threading.Semaphore(0)
        self.timers: list[tuple[float, Callable[[], object]]] = []

    def run_after(self, delay: float, closure: Callable[[], object]) -> int:
        self.timers.append((self.now + delay, closure))
        self.set.release()
        return -id(closure)

    def cancel(self, handle: int) -> bool:
        waiting = [timer for timer in self.timers if -id(timer[1]) == handle]
        for timer in waiting:
            self.timers.remove(timer)
            self.set.acquire()
        return bool(waiting)

    def go_to(self, now: float) -> None:
        """Sets the time once the loop is done with what it was doing."""
        self._on_loop(lambda: None)
        self.now = now

    def run_next(self) -> None:
        """Waits for a timer to be there, goes to its time, and has it run."""
        assert self.set.acquire(timeout=TIMEOUT)
        when, closure = self.timers.pop(0)
        self.go_to(when)
        self._on_loop(closure)

    def _on_loop(self, closure: Callable[[], object]) -> None:
        ran = threading.Event()
        self._engine.run(lambda: (closure(), ran.set()))
        assert ran.wait(TIMEOUT)


def test_an_idle_connection_is_closed_and_one_on_which_bytes_pass_is_not(
    engine: EventEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(engine)
    monkeypatch.setattr(relay_module, "monotonic", lambda: clock.now)

    def pass_bytes(client: socket.socket, now: float) -> None:
        clock.go_to(now)
        client.sendall(b"bytes")
        assert receive(client, 5) == b"bytes"

    with (
        Target(echo) as target,
        Served(clock, target.address, idle_timeout=10.0) as served,
        served.connect() as client,
    ):
        pass_bytes(client, 100.0)
        pass_bytes(client, 105.0)
        clock.run_next()
        assert (clock.now, clock.timers[0][0], served.ended) == (110.0, 115.0, [])
        pass_bytes(client, 111.0)
        clock.run_next()
        assert (clock.now, clock.timers[0][0], served.ended) == (115.0, 121.0, [])
        clock.run_next()
        assert clock.now == 121.0
        assert served.wait_for_ended(1)[0].outcome == "nothing moved for 10 s"
        assert ended_stream(client)


def test_an_idle_timeout_runs_on_the_timers_of_the_engine(engine: EventEngine) -> None:
    with Target(echo) as target, Served(engine, target.address, idle_timeout=0.05) as served:
        with served.connect() as client:
            assert ended_stream(client)
        relay = served.wait_for_ended(1)[0]
        assert relay.outcome == "nothing moved for 0.05 s"
        assert relay.seconds >= 0.05


def test_connections_beyond_the_limit_wait_in_the_backlog(engine: EventEngine) -> None:
    with Target(echo) as target, Served(engine, target.address, connections=1) as served:
        with served.connect() as first, served.connect() as second:
            second.sendall(b"second")
            for _ in range(100):
                first.sendall(b"first")
                assert receive(first, 5) == b"first"
            assert (served.proxy.connections, target.accepted) == (1, 1)
            first.close()
            assert receive(second, 6) == b"second"
        assert served.proxy.connections == 2


def test_a_slow_reader_holds_its_sender_back_within_the_quota(engine: EventEngine) -> None:
    block = os.urandom(MIB)

    def send(connection: socket.socket) -> None:
        for _ in range(32):
            connection.sendall(block)

    with Target(send) as target, Served(engine, target.address, memory=2 * MIB) as served:
        clients = [served.connect() for _ in range(4)]
        for _ in range(1024):
            for client in clients:
                client.recv(512)
        for client in clients:
            receive_all(client)
            client.close()
        assert served.wait_for_ended(4)[0].outcome == "both sides ended"
        assert served.proxy.bytes_down == 4 * 32 * MIB
        assert 0 < served.down.memory.peak <= MIB


def test_echoes_of_many_that_send_at_once_do_not_wait_for_one_another_for_ever(engine: EventEngine) -> None:
    data = os.urandom(4 * MIB)

    def small(connection: socket.socket) -> socket.socket:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        return connection

    def send_and_receive(client: socket.socket) -> bool:
        with client, ThreadPoolExecutor(1) as thread:
            sent = thread.submit(client.sendall, data)
            received = receive(client, len(data))
            sent.result()
        return received == data

    with Target(lambda c: echo(small(c))) as target, Served(engine, target.address, memory=MIB) as served:
        with ThreadPoolExecutor(24) as threads:
            done = [threads.submit(send_and_receive, small(served.connect())) for _ in range(24)]
            assert all(each.result() for each in done)
        assert served.up.memory.peak <= MIB // 2
        assert served.down.memory.peak <= MIB // 2


def test_nothing_is_left_of_connections_that_ended(engine: EventEngine) -> None:
    with Target(echo) as target, Served(engine, target.address) as served:
        before = None
        for each in range(100):
            with served.connect() as client:
                client.sendall(b"x")
                assert receive(client, 1) == b"x"
            served.wait_for_ended(each + 1)
            if each == 0:
                before = count_descriptors(target)
        assert count_descriptors(target) == before
        assert (served.up.memory.used, served.down.memory.used) == (0, 0)
        assert served.up.connections.used == 0


def count_descriptors(target: Target) -> int:
    for result in target.results:
        result.result(TIMEOUT)
    return len(os.listdir("/dev/fd"))


def test_closing_ends_the_connections_that_are_open(engine: EventEngine) -> None:
    with Target(say_ready_then_wait) as target:
        with Served(engine, target.address) as served:
            clients = [served.connect() for _ in range(5)]
            for client in clients:
                assert receive(client, 5) == b"ready"
        assert [relay.outcome for relay in served.ended] == ["the proxy was stopped"] * 5
        for client in clients:
            assert ended_stream(client)
            client.close()
        with pytest.raises(ConnectionRefusedError):
            served.connect()


def test_closing_cancels_a_connect_that_is_under_way(engine: EventEngine) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        target = ResolvedAddress.from_sockaddr(full.family, full.getsockname())
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        connecting = threading.Event()
        served = Served(Connecting(engine, connecting), target)
        with served.connect() as client:
            assert connecting.wait(TIMEOUT)
            served.proxy.close()
            assert served.ended[0].outcome == "the proxy was stopped"
            assert ended_stream(client)
        for filler in fillers:
            filler.close()


class Connecting(Wrapped):
    """Says when a connect has begun."""

    def __init__(self, engine: EventEngine, begun: threading.Event) -> None:
        super().__init__(engine)
        self._begun = begun

    def connect(self, *arguments: object) -> object:
        handle = self._engine.connect(*arguments)
        self._begun.set()
        return handle


def test_a_port_that_is_taken_is_refused(engine: EventEngine) -> None:
    with Target(echo) as target:
        proxy = Proxy(engine, ResourceQuota(), ResourceQuota(), target.address)
        with pytest.raises(StatusError, match="in use"):
            proxy.listen(target.address)
        proxy.close()
