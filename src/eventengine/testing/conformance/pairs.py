"""Connections with an engine at one end and the oracle at the other, and what the tests of endpoints do with them."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from eventengine.address import ResolvedAddress
from eventengine.config import EndpointConfig
from eventengine.engine import Endpoint
from eventengine.testing.application import Application
from eventengine.testing.capabilities import lacking
from eventengine.testing.oracle import TIMEOUT, OracleServer, connect, receive_all

__all__ = ["any_pair", "pair"]

SLOW = 32 * 1024
"""Bytes of a socket's buffer, for a connection that is soon full."""


class Pair(NamedTuple):
    """The two ends of a connection."""

    endpoint: Endpoint
    oracle: socket.socket


@contextmanager
def paired(
    app: Application,
    role: str = "client",
    address: ResolvedAddress | None = None,
    *,
    config: EndpointConfig | None = None,
    receive_buffer_size: int | None = None,
) -> Generator[Pair]:
    """A connection in which the engine is `"client"` or `"server"`; both ends are closed after it.

    `receive_buffer_size` is the oracle's, for one that holds the engine back.
    """
    with ExitStack() as stack:
        if role == "client":
            with OracleServer(address) as server:
                if receive_buffer_size is not None:  # what is accepted inherits it
                    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_size)
                endpoint = app.connect(server.address, config)
                stack.callback(endpoint.close)
                oracle = stack.enter_context(server.accept())
        else:
            accepting = app.listen(*([] if address is None else [address]), config=config)
            try:
                oracle = connect(accepting.address, receive_buffer_size=receive_buffer_size)
                stack.enter_context(oracle)
                endpoint = accepting.next()
                stack.callback(endpoint.close)
            finally:
                accepting.close()
        yield Pair(endpoint, oracle)


@contextmanager
def full(app: Application, role: str = "client") -> Generator[Pair]:
    """A connection with small buffers on both sides, so that a mebibyte does not fit into it."""
    config = EndpointConfig(send_buffer_size=SLOW, receive_buffer_size=SLOW)
    with paired(app, role, config=config, receive_buffer_size=SLOW) as pair:
        pair.oracle.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SLOW)
        yield pair


@pytest.fixture
def pair(anywhere: Application) -> Iterator[Pair]:
    """A connection over TCP. The engine is the client where it is called from a thread, else the server."""
    with paired(anywhere, _role(anywhere)) as pair:
        yield pair


@pytest.fixture(params=["tcp", "unix", "abstract-unix"])
def any_pair(request: pytest.FixtureRequest, anywhere: Application, unix_folder: Path) -> Iterator[Pair]:
    """As `pair`, over TCP, over a unix socket and over one with an abstract name."""
    address = None
    if request.param == "unix":
        if not hasattr(socket, "AF_UNIX"):
            lacking("unix", "this system has no unix sockets")
        address = ResolvedAddress.parse(f"unix:{unix_folder / 'socket'}")
    elif request.param == "abstract-unix":
        if not sys.platform.startswith("linux"):
            lacking("abstract-unix", "only Linux has them")
        address = ResolvedAddress.parse(f"unix-abstract:{unix_folder}")
    with paired(anywhere, _role(anywhere), address) as pair:
        yield pair


def _role(anywhere: Application) -> str:
    """Both sides are tested, and both ways to call, but not each with each: there are many engines to run on."""
    return "server" if anywhere._on_loop else "client"


def addresses_seen_by(oracle: socket.socket) -> tuple[ResolvedAddress, ResolvedAddress]:
    """What an endpoint's peer address and local address must be."""
    return (
        ResolvedAddress.from_sockaddr(oracle.family, oracle.getsockname()),
        ResolvedAddress.from_sockaddr(oracle.family, oracle.getpeername()),
    )


@contextmanager
def meanwhile(*functions: Callable[[], object]) -> Generator[None]:
    """Runs each function in a thread of its own while the body runs, then waits for them; raises what they raise."""
    with ThreadPoolExecutor(len(functions), "meanwhile") as threads:
        running = [threads.submit(function) for function in functions]
        yield
        for outcome in running:
            outcome.result(TIMEOUT)


def nothing() -> None:
    """A closure that shows, by having run, that what was called before it has been dealt with."""


def see_the_end(oracle: socket.socket) -> None:
    """Waits for the end of a connection that was closed over bytes that were not sent: it may come as a reset."""
    with suppress(ConnectionResetError):
        receive_all(oracle)


def send_until_full(oracle: socket.socket, data: bytes) -> int:
    """Sends as much of `data` as the connection takes while nobody reads, and says how much that is."""
    oracle.setblocking(False)
    sent = 0
    try:
        while sent < len(data):
            sent += oracle.send(data[sent : sent + (1 << 16)])
    except BlockingIOError:
        pass
    finally:
        oracle.settimeout(TIMEOUT)
    return sent
