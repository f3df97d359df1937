"""A proxy, its target and its client, in one process, for tests."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from eventengine import EventEngine, ResolvedAddress, ResourceQuota
from eventengine.cli.engines import load_engine
from eventengine.cli.proxy import Proxy
from eventengine.cli.proxy_tls import ProxyTLS
from eventengine.cli.relay import Relay

TIMEOUT = 60.0
MIB = 1 << 20


def made_engine(name: str) -> Iterator[EventEngine]:
    """The engine of that name, for a fixture; the test is skipped where its framework is not installed."""
    try:
        make_engine = load_engine(name)
    except ImportError as error:
        pytest.skip(str(error))
    with make_engine() as made:
        yield made


class Target:
    """A server of plain sockets: runs `handler` in a thread for each connection, and gives what it returned."""

    def __init__(self, handler: Callable[[socket.socket], object], listener: socket.socket | None = None) -> None:
        self.listener = listener or socket.create_server(("127.0.0.1", 0))
        self.address = ResolvedAddress.from_sockaddr(self.listener.family, self.listener.getsockname())
        self.accepted = 0
        self.results: list[Future[object]] = []
        self._noting = threading.Lock()
        self._handler = handler
        self._threads = ThreadPoolExecutor(128)
        self._acceptor = threading.Thread(target=self._accept)
        self._acceptor.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.accepted += 1
            connection.settimeout(TIMEOUT)
            with self._noting:
                self.results.append(self._threads.submit(self._handle, connection))

    def _handle(self, connection: socket.socket) -> object:
        with self._noting:  # who sees what the handler did finds its result in the list
            pass
        with connection:
            return self._handler(connection)

    def __enter__(self) -> Target:
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self.listener.close()
        self._threads.shutdown()


class Served:
    """A proxy that listens, and the relays that have ended on it."""

    def __init__(
        self,
        engine: EventEngine,
        target: ResolvedAddress | str,
        *,
        listen: str = "127.0.0.1:0",
        memory: int = 8 * MIB,
        connections: int | None = None,
        idle_timeout: float | None = None,
        tls: ProxyTLS | None = None,
    ) -> None:
        self.up = ResourceQuota("up", memory=memory // 2, connections=connections)
        self.down = ResourceQuota("down", memory=memory // 2)
        self.ended: list[Relay] = []
        self._one_more = threading.Condition()
        self.proxy = Proxy(
            engine, self.up, self.down, target, idle_timeout=idle_timeout, tls=tls, on_end=self._on_end
        )
        self.address = self.proxy.listen(ResolvedAddress.parse(listen))

    def _on_end(self, relay: Relay) -> None:
        with self._one_more:
            self.ended.append(relay)
            self._one_more.notify_all()

    def wait_for_ended(self, count: int) -> list[Relay]:
        with self._one_more:
            assert self._one_more.wait_for(lambda: len(self.ended) >= count, TIMEOUT)
            return self.ended

    def connect(self) -> socket.socket:
        client = socket.socket(self.address.family)
        client.settimeout(TIMEOUT)
        try:
            client.connect(self.address.sockaddr)
        except BaseException:
            client.close()
            raise
        return client

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self.proxy.close()


def receive_all(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(1 << 18):
        parts.append(part)
    return b"".join(parts)


def receive(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count and (part := connection.recv(count - len(data))):
        data += part
    return data


def echo(connection: socket.socket) -> None:
    while data := connection.recv(1 << 16):
        connection.sendall(data)


def say_ready_then_wait(connection: socket.socket) -> bytes:
    connection.sendall(b"ready")
    return receive_all(connection)


def ended_stream(connection: socket.socket) -> bool:
    """Waits for the end of what the peer sends; a reset is an end too."""
    try:
        return not receive_all(connection)
    except ConnectionResetError:
        return True


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
