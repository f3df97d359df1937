"""Situations that a test puts an engine in: no descriptor left, a full backlog, a loop that stands still."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from eventengine.address import ResolvedAddress
from eventengine.config import EndpointConfig
from eventengine.engine import Endpoint
from eventengine.status import ClosedResourceError, Status, StatusCode
from eventengine.testing.application import Application, Callback, Ledger
from eventengine.testing.oracle import TIMEOUT, OracleServer

__all__ = [
    "close_if_connected",
    "full_backlog",
    "held",
    "never_inline",
    "no_descriptors_left",
    "port_without_listener",
    "repeat_until_closed",
    "unix_address",
]

T = TypeVar("T")


def unix_address(path: Path) -> ResolvedAddress:
    return ResolvedAddress.parse(f"unix:{path}")


def close_if_connected(result: Endpoint | Status) -> None:
    """Closes what `on_connect` got."""
    if not isinstance(result, Status):
        result.close()


@contextmanager
def no_descriptors_left() -> Generator[None]:
    """No thread of this process can open a descriptor: the limit is lowered to what is open, and the gaps are filled.

    The body should do no more than it must: it cannot import a module or read a file either.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    filling = [os.open(os.devnull, os.O_RDONLY)]
    try:
        highest = max(int(name) for name in os.listdir("/dev/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
        with contextlib.suppress(OSError):
            while True:
                filling.append(os.dup(filling[0]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in filling:
            os.close(descriptor)


@contextmanager
def port_without_listener(host: str = "127.0.0.1") -> Generator[ResolvedAddress]:
    """A port of this machine where nobody listens, and nobody can begin to without SO_REUSEPORT."""
    with socket.socket() as reserved:
        if hasattr(socket, "SO_REUSEPORT"):  # for a test that binds it, too
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind((host, 0))
        yield ResolvedAddress.from_sockaddr(socket.AF_INET, reserved.getsockname())


@contextmanager
def full_backlog(address: ResolvedAddress | None = None) -> Generator[OracleServer]:
    """A listener, at `address` or `oracle.somewhere`, where a connect waits until somebody accepts."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(OracleServer(address, backlog=0))
        for _ in range(8):  # those that find no room wait as well
            waiting = stack.enter_context(socket.socket(server.address.family, socket.SOCK_STREAM))
            waiting.setblocking(False)
            waiting.connect_ex(server.address.sockaddr)
        yield server


@contextmanager
def held(app: Application) -> Generator[Callable[[], None]]:
    """The loop stands still: a socket hook, which runs there wherever callbacks run, does not return before the end
    of the block, or before what it yields is called."""
    entered, released = threading.Event(), threading.Event()

    def hook(sock: socket.socket) -> None:
        entered.set()
        released.wait(TIMEOUT)

    on_connect = Callback[Endpoint | Status](app.ledger)
    with OracleServer() as server:
        app.start_connect(on_connect, server.address, EndpointConfig(socket_hook=hook))
        try:
            if not entered.wait(TIMEOUT):
                raise AssertionError(f"the socket hook was not called within {TIMEOUT} s")
            yield released.set
        finally:
            released.set()
        close_if_connected(on_connect.result())


def repeat_until_closed(ledger: Ledger, start: Callable[[Callback[Status]], bool]) -> Status:
    """Reads or writes again and again, as `start` does, and returns what ended that: CANCELLED, too, when the endpoint
    was closed between two of them."""
    status = Status.OK
    while status.ok:
        callback = Callback[Status](ledger)
        try:
            if start(callback):
                callback(Status.OK)
        except ClosedResourceError:
            callback.times = 0
            return Status(StatusCode.CANCELLED, "the endpoint was closed")
        status = callback.result()
    return status


def never_inline(app: Application, begin: Callable[[Callable[[T], None]], object]) -> T:
    """Calls `begin` with a callback, from where callbacks run, and returns what the callback gets in the end.

    Raises AssertionError when it was called before `begin` had returned.
    """
    inside = threading.local()
    inline: list[bool] = []
    done = Callback[T](app.ledger)

    def callback(value: T) -> None:
        inline.append(getattr(inside, "begin", False))
        done(value)

    def call() -> None:
        inside.begin = True
        try:
            begin(callback)
        finally:
            inside.begin = False

    app.on_loop(call)
    value = done.result()
    if any(inline):
        raise AssertionError("the callback was called before the call that it was given to had returned")
    return value
