"""Signals, a peer that is stopped, and servers that fork: with real processes.

What forks is a program of its own, as it would be; its workers are ended with it.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from hashlib import sha256
from http.client import HTTPConnection
from pathlib import Path

import pytest

from engines import KINDS, MAIN, Kind, factory, is_installed, skip_unless_installed
from eventengine import EndpointConfig, EventEngine, SliceBuffer, StatusCode
from eventengine.core.hosted import HostedEventEngine
from eventengine.testing.application import Application, Callback
from eventengine.testing.conformance.fixtures import app, engine, ledger, nothing_is_left, quota
from eventengine.testing.oracle import TIMEOUT, OracleServer, pattern, receive

__all__ = ["app", "engine", "ledger", "nothing_is_left", "quota"]

MIB = 1 << 20


@pytest.fixture(params=KINDS, ids=lambda kind: kind.id)
def kind(request: pytest.FixtureRequest) -> Kind:
    kind: Kind = request.param
    skip_unless_installed(kind)
    return kind


@pytest.fixture
def make_engine(kind: Kind) -> Iterator[Callable[[], EventEngine]]:
    with factory(kind) as make:
        yield make


@contextmanager
def signals_to(thread: int) -> Iterator[list[int]]:
    """That thread gets one signal after another; its system calls end with EINTR, and nothing is called there."""
    sent: list[int] = []
    over = threading.Event()

    def storm() -> None:
        while not over.is_set():
            signal.pthread_kill(thread, signal.SIGUSR1)
            sent.append(1)
            over.wait(0.0001)

    before = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    storming = threading.Thread(target=storm)
    storming.start()
    try:
        yield sent
    finally:
        over.set()
        storming.join()
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # which drops one that is on its way; it would end us
        signal.signal(signal.SIGUSR1, before)


def stop(pid: int) -> None:
    """`kill -STOP`; it does nothing more when this returns."""
    os.kill(pid, signal.SIGSTOP)
    stat = Path(f"/proc/{pid}/stat")
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "T":
        pass


def test_system_calls_that_are_interrupted_by_signals_all_the_time_lose_nothing(app: Application) -> None:
    """EINTR at epoll_wait, accept, connect, recv and send, as the system gives it."""
    assert isinstance(app.engine, HostedEventEngine)
    app.on_loop(lambda: None)
    data = pattern(MIB)
    with signals_to(app.engine._loop._learned) as sent, OracleServer() as server:
        accepting = app.listen()
        while len(sent) < 100:
            with closing(app.connect(accepting.address)) as client, closing(accepting.next()) as served:
                assert app.write(client, b"ping").ok
                assert app.receive(served, 4) == b"ping"
            with closing(app.connect(server.address)) as endpoint, server.accept() as peer:
                on_writable = app.start_write(endpoint, data)
                assert receive(peer, MIB) == data
                assert on_writable.result().ok
                with ThreadPoolExecutor(1) as threads:
                    sending = threads.submit(peer.sendall, data)
                    assert app.receive(endpoint, MIB, hint=MIB) == data
                    sending.result(TIMEOUT)
        accepting.close()


PEER = """
import hashlib, socket, sys
digest, size = hashlib.sha256(), 0
with socket.socket() as sock:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    sock.connect(("127.0.0.1", int(sys.argv[1])))
    while part := sock.recv(1 << 16):
        digest.update(part)
        size += len(part)
print(size, digest.hexdigest())
"""


@pytest.fixture
def processes() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts programs; those that still run are killed in the end, with what they have forked."""
    started: list[subprocess.Popen[str]] = []

    def start(program: str, *arguments: object, **options: object) -> subprocess.Popen[str]:
        warnings = ["-W", "error", "-W", "ignore:'cgi' is deprecated:DeprecationWarning"]  # see pyproject.toml
        process = subprocess.Popen(
            [sys.executable, *warnings, "-c", program, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **options,  # type: ignore[call-overload]
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize(
    "kind",
    [kind for kind in KINDS if kind.loop in MAIN and not kind.pool],
    indirect=True,
    ids=lambda kind: kind.id,
)
def test_a_peer_that_is_stopped_holds_back_its_own_connection_alone(
    app: Application, processes: Callable[..., subprocess.Popen[str]]
) -> None:
    accepting = app.listen(config=EndpointConfig(send_buffer_size=1 << 16))
    peer = processes(PEER, accepting.address.port)
    data = pattern(4 * MIB)
    with closing(accepting.next()) as endpoint:
        stop(peer.pid)
        on_writable = app.start_write(endpoint, data)
        on_read = app.start_read(endpoint, SliceBuffer())
        timer = Callback[None](app.ledger)
        app.engine.run_after(0.01, lambda: timer(None))
        timer.result()
        with closing(app.connect(accepting.address)) as client, closing(accepting.next()) as other:
            assert app.write(client, b"ping").ok
            assert app.receive(other, 4) == b"ping"
        assert (on_writable.count, on_read.count) == (0, 0)
        os.kill(peer.pid, signal.SIGCONT)
        assert on_writable.result().ok
    accepting.close()
    assert peer.communicate(timeout=TIMEOUT) == (f"{len(data)} {sha256(data).hexdigest()}\n", "")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts what a peer does not take")
@pytest.mark.parametrize(
    "kind",
    [kind for kind in KINDS if kind.loop in MAIN and kind.private_poller and not kind.pool],
    indirect=True,
    ids=lambda kind: kind.id,
)
def test_a_peer_that_is_stopped_for_longer_than_the_user_timeout_is_given_up(
    app: Application, processes: Callable[..., subprocess.Popen[str]]
) -> None:
    accepting = app.listen(config=EndpointConfig(send_buffer_size=1 << 16, user_timeout=0.2))
    peer = processes(PEER, accepting.address.port)
    with closing(accepting.next()) as endpoint:
        stop(peer.pid)
        status = app.write(endpoint, bytes(4 * MIB))
        assert (status.code, status.errno) == (StatusCode.UNAVAILABLE, errno.ETIMEDOUT)
    accepting.close()


WORKERS = """
import os, signal, socket, sys
from eventengine import *
from eventengine.cli.engines import load_engine

name, port, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
make = load_engine(name)
quota = ResourceQuota("each of them", memory="1MiB")

def work():
    def on_accept(endpoint, allocator):
        said = SliceBuffer([f"{os.getpid():8}".encode()])
        if endpoint.write(lambda status: endpoint.close(), said):
            endpoint.close()
    with make() as engine:
        listener = engine.create_listener(on_accept, lambda status: None, EndpointConfig(), quota)
        listener.bind(ResolvedAddress.tcp("127.0.0.1", port))
        listener.start()
        os.write(1, f"{os.getpid()}\\n".encode())
        signal.sigwait([signal.SIGTERM])
    assert quota.memory.used == 0

signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
with make() as before:  # an engine of the parent's, which the children must not mind
    for _ in range(workers):
        if not os.fork():
            work()
            os._exit(0)
    before.run(lambda: None)
assert [os.wait()[1] for _ in range(workers)] == [0] * workers
"""


@pytest.mark.parametrize("name", MAIN)
def test_workers_that_were_forked_share_a_port_each_with_an_engine_of_its_own(
    name: str, processes: Callable[..., subprocess.Popen[str]]
) -> None:
    if name in ("tornado", "twisted") and not is_installed(name):
        pytest.skip(f"the extra {name} is not installed")
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(("127.0.0.1", 0))
        parent = processes(WORKERS, name, reserved.getsockname()[1], 3)
        assert parent.stdout is not None
        pids = {int(parent.stdout.readline()) for _ in range(3)}
        answered: list[int] = []
        for _ in range(100):
            with socket.create_connection(reserved.getsockname(), TIMEOUT) as client:
                answered.append(int(receive(client, 8)))
        assert set(answered) == pids  # but for once in 10**17 times
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
        assert parent.communicate(timeout=TIMEOUT) == ("", "")
        assert parent.returncode == 0


TORNADO = """
import asyncio, hashlib, os, sys
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.process import fork_processes
from tornado.web import Application, RequestHandler
from eventengine.bridges.tornado import QuotaHTTPServer

class Upload(RequestHandler):
    def put(self):
        self.write(f"{os.getpid()} {hashlib.sha256(self.request.body).hexdigest()}")

HTTPServer.configure(QuotaHTTPServer, quota="4MiB")
sockets = bind_sockets(0, "127.0.0.1")
print(sockets[0].getsockname()[1], flush=True)
fork_processes(2, max_restarts=10)

async def main():
    server = HTTPServer(Application([("/", Upload)]))
    server.add_sockets(sockets)
    await asyncio.Event().wait()

asyncio.run(main())
"""

TWISTED = """
import hashlib, os, socket, sys
from eventengine.bridges.twisted.reactor import install
install("4MiB")
from twisted.internet import reactor
from twisted.web.resource import Resource
from eventengine.bridges.twisted.site import QuotaSite

class Upload(Resource):
    isLeaf = True
    def render_PUT(self, request):
        return f"{os.getpid()} {hashlib.sha256(request.content.read()).hexdigest()}".encode()


reactor.adoptStreamPort(int(sys.argv[1]), socket.AF_INET, QuotaSite(Upload(), quota=reactor.quota))
os.write(1, f"{os.getpid()}\\n".encode())
reactor.run()
"""


def upload(port: int, body: bytes) -> tuple[int, str]:
    """Who took it, and the digest that it got."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)) as client:
        client.request("PUT", "/", body)
        pid, digest = client.getresponse().read().decode().split()
        return int(pid), digest


def only(worker: int, workers: set[int], port: int, body: bytes) -> None:
    """While the others are stopped, this worker takes what comes."""
    for other in workers - {worker}:
        stop(other)
    try:
        with ThreadPoolExecutor(4) as threads:
            answers = list(threads.map(lambda n: upload(port, body), range(8)))
    finally:
        for other in workers - {worker}:
            os.kill(other, signal.SIGCONT)
    assert answers == [(worker, sha256(body).hexdigest())] * 8


def test_a_bounded_site_of_tornado_serves_from_processes_that_it_has_forked(
    processes: Callable[..., subprocess.Popen[str]],
) -> None:
    pytest.importorskip("tornado", reason="the extra tornado is not installed")
    parent = processes(TORNADO)
    assert parent.stdout is not None
    port = int(parent.stdout.readline())
    body = pattern(MIB)
    first, _ = upload(port, body)
    stop(first)
    second, _ = upload(port, body)
    os.kill(first, signal.SIGCONT)
    assert second != first
    for worker in (first, second):
        only(worker, {first, second}, port, body)
    os.kill(first, signal.SIGKILL)  # and its parent makes another
    stop(second)
    third, _ = upload(port, body)
    os.kill(second, signal.SIGCONT)
    assert third not in (first, second)
    only(third, {second, third}, port, body)


def test_bounded_sites_of_twisted_serve_from_a_socket_that_they_share(
    processes: Callable[..., subprocess.Popen[str]],
) -> None:
    pytest.importorskip("twisted.internet", reason="the extra twisted is not installed")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)  # which Twisted leaves to who hands it over
        port = listening.getsockname()[1]
        workers: set[int] = set()
        for _ in range(2):
            worker = processes(TWISTED, listening.fileno(), pass_fds=[listening.fileno()])
            assert worker.stdout is not None
            workers.add(int(worker.stdout.readline()))
        for pid in workers:
            only(pid, workers, port, pattern(MIB))
