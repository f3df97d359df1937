"""`TLSEventEngine`: an engine whose connections are all over TLS; and the oracle that is the peer of these.

So the conformance suite, which knows nothing of TLS, says whether an endpoint over TLS is an endpoint like any other.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from functools import cache, partial
from inspect import iscoroutinefunction
from typing import Any, Self, TypeVar

from certificates import HOST, certificates
from eventengine import (
    ConnectionHandle,
    Endpoint,
    EndpointConfig,
    EventEngine,
    Listener,
    MemoryAllocator,
    MemoryAllocatorFactory,
    ResolvedAddress,
    Status,
    StatusOr,
    tls,
)
from eventengine.testing import oracle
from eventengine.testing.oracle import TIMEOUT, OracleServer
from wrapped_engine import UnderWay, WrappedEngine

E = TypeVar("E")


@cache
def _contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A client's and a server's, for all: to make them takes longer than to shake hands."""
    client, server = certificates().client_context(), certificates().server_context()
    server.num_tickets = 0  # which a client that does not read would answer with a reset when it closes
    return client, server


class TLSEventEngine(WrappedEngine):
    """Connects and accepts as `inner` does, and gives its connections out when their handshakes are done."""

    def __init__(self, inner: EventEngine) -> None:
        super().__init__(inner)
        self._handles = itertools.count(1 << 40)
        self._stages: dict[ConnectionHandle, _Stage] = {}
        self._client, self._server = _contexts()

    def connect(
        self,
        on_connect: Callable[[StatusOr[Endpoint]], object],
        address: ResolvedAddress,
        config: EndpointConfig,
        memory_allocator: MemoryAllocator,
        timeout: float,
    ) -> ConnectionHandle:
        if not callable(on_connect) or iscoroutinefunction(on_connect):  # is refused
            return super().connect(on_connect, address, config, memory_allocator, timeout)
        began = time.monotonic()
        handle = ConnectionHandle(next(self._handles))
        stage = self._stages[handle] = _Stage()

        def on_done(result: StatusOr[Endpoint]) -> None:
            self._stages.pop(handle, None)
            on_connect(result)

        def on_connected(result: StatusOr[Endpoint]) -> None:
            if isinstance(result, Status):
                on_done(result)
                return
            left = max(timeout - (time.monotonic() - began), 0.0)
            with stage.lock:
                if stage.cancelled:
                    result.close()
                    return
                stage.cancel = tls.connect(
                    self.inner,
                    on_done,
                    result,
                    self._client,
                    server_hostname=HOST,
                    memory_allocator=memory_allocator,
                    timeout=left,
                ).cancel

        try:
            with stage.lock:
                inner = super().connect(on_connected, address, config, memory_allocator, timeout)
                stage.cancel = partial(self.inner.cancel_connect, inner)
        except BaseException:
            del self._stages[handle]
            raise
        return handle

    def cancel_connect(self, handle: ConnectionHandle) -> bool:
        stage = self._stages.get(handle)
        if stage is None:
            return super().cancel_connect(ConnectionHandle(-1))
        with stage.lock:
            if not stage.cancel() and not stage.is_between():
                return False
            stage.cancelled = True
        return self._stages.pop(handle, None) is not None

    def create_listener(
        self,
        on_accept: Callable[[Endpoint, MemoryAllocator], object],
        on_shutdown: Callable[[Status], object],
        config: EndpointConfig,
        memory_allocator_factory: MemoryAllocatorFactory,
    ) -> Listener:
        if not callable(on_accept) or not callable(on_shutdown):
            return super().create_listener(on_accept, on_shutdown, config, memory_allocator_factory)
        under_way = UnderWay(on_accept, on_shutdown)

        def on_accepted(below: Endpoint, allocator: MemoryAllocator) -> None:
            on_done = under_way.begin(allocator)
            tls.accept(self.inner, on_done, below, self._server, memory_allocator=allocator, timeout=TIMEOUT)

        return super().create_listener(on_accepted, under_way.shut_down, config, memory_allocator_factory)


class _Stage:
    """How far a connect is, and how it is cancelled there."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.cancelled = False
        self.cancel: Callable[[], bool] = bool

    def is_between(self) -> bool:
        """The connection was made, and its handshake has not begun: `on_connected` waits for the lock."""
        return isinstance(self.cancel, partial)


class TLSOracle:
    """A blocking connection over TLS that is used as a socket: it ends its stream with a close_notify.

    Not an `ssl.SSLSocket`, for tests read and write at the same time, and that is not safe in two threads. One may read
    and one may write.
    """

    def __init__(self, connection: socket.socket, context: ssl.SSLContext, **more: Any) -> None:
        self._socket = connection
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, **more)
        self._lock = threading.Lock()  # of `_tls`
        self._unsent = b""
        self._resets = False
        for name in ("family", "fileno", "getpeername", "getsockname", "getsockopt", "setblocking", "settimeout"):
            setattr(self, name, getattr(connection, name))

    def do_handshake(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
                return
            except ssl.SSLWantReadError:
                self._socket.sendall(self._outgoing.read())
                self._feed()
            finally:
                self._socket.sendall(self._outgoing.read())

    def _feed(self) -> None:
        data = self._socket.recv(1 << 18)
        with self._lock:
            if data:
                self._incoming.write(data)
            else:
                self._incoming.write_eof()

    def recv(self, size: int) -> bytes:
        data = bytearray(size)
        return bytes(data[: self.recv_into(data)])

    def recv_into(self, target: Any) -> int:
        while True:
            with self._lock:
                try:
                    return self._tls.read(len(target), target)  # type: ignore[return-value]
                except ssl.SSLWantReadError:
                    pass
                except (ssl.SSLZeroReturnError, ssl.SSLEOFError):  # the latter is an end without close_notify
                    return 0
            self._feed()

    def send(self, data: Any) -> int:
        """One record: of several, some might be under way when the last finds no room."""
        with self._lock:
            size = self._tls.write(memoryview(data)[:16384])
            self._unsent += self._outgoing.read()
        while self._unsent:
            self._unsent = self._unsent[self._socket.send(self._unsent) :]
        return size

    def sendall(self, data: Any) -> None:
        with memoryview(data) as view:
            done = 0
            while done < len(view):
                done += self.send(view[done:])

    def shutdown(self, how: int) -> None:
        """Ends its stream; the peer's goes on."""
        with self._lock:
            unread = self._incoming.read()
            with contextlib.suppress(ssl.SSLError):  # the peer's end is still to come, or it is gone
                self._tls.unwrap()
            self._incoming.write(unread)
            ending = self._outgoing.read()
        self._socket.sendall(ending)

    def close(self) -> None:
        if self._socket.fileno() >= 0 and not self._resets and not self._unsent:
            self._socket.setblocking(False)
            with contextlib.suppress(OSError):
                self.shutdown(socket.SHUT_WR)
        self._socket.close()

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        if (level, option) == (socket.SOL_SOCKET, socket.SO_LINGER):
            self._resets = True
        self._socket.setsockopt(level, option, value)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _shake(connection: socket.socket, context: ssl.SSLContext, **more: Any) -> socket.socket:
    connection.settimeout(TIMEOUT)
    if connection.family == socket.AF_UNIX:  # records take more of its room than one piece of bytes
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    try:
        wrapped: Any = TLSOracle(connection, context, **more)
        wrapped.do_handshake()
    except BaseException:
        connection.close()
        raise
    return wrapped  # type: ignore[no-any-return]  # as far as the suite uses one


class TLSOracleServer(OracleServer):
    """Takes connections and shakes hands in a thread: those who test connect first and accept then."""

    def __init__(self, address: ResolvedAddress | None = None, *, backlog: int = 128) -> None:
        super().__init__(address, backlog=backlog)
        self._accepted: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()
        self._context = _contexts()[1]
        self._stop, self._stopped = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="TLS oracle")
        self._thread.start()

    def _serve(self) -> None:
        while self._stopped not in select.select([self.socket, self._stopped], [], [])[0]:
            connection, _ = self.socket.accept()
            with contextlib.suppress(OSError):  # a client that is gone
                self._accepted.put(_shake(connection, self._context, server_side=True))

    def accept(self) -> socket.socket:
        return self._accepted.get(timeout=TIMEOUT)

    def close(self) -> None:
        self._stop.close()
        self._thread.join(TIMEOUT)
        self._stopped.close()
        super().close()
        while not self._accepted.empty():
            self._accepted.get().close()


def tls_connect(address: ResolvedAddress, *, receive_buffer_size: int | None = None) -> socket.socket:
    """As `oracle.connect`."""
    connection = oracle.connect(address, receive_buffer_size=receive_buffer_size)
    return _shake(connection, _contexts()[0], server_hostname=HOST)
