"""TLS over the connections of every engine, with Python's blocking `ssl` sockets as its peer."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import pytest

from engines import KINDS, MAIN, Kind, factory, skip_unless_installed
from eventengine import Endpoint, EventEngine, SliceBuffer, Status
from eventengine.testing.application import Application
from eventengine.testing.conformance.fixtures import *
from eventengine.testing.oracle import TIMEOUT, OracleServer, connect, pattern, receive, receive_all
from handshakes import (
    oracle_client,
    oracle_server,
    try_accept,
    try_connect,
)

SOME = [kind for kind in KINDS if kind.loop in MAIN and kind.private_poller]


@pytest.fixture(params=SOME, ids=lambda kind: kind.id)
def make_engine(request: pytest.FixtureRequest) -> Iterator[Callable[[], EventEngine]]:
    kind: Kind = request.param
    skip_unless_installed(kind)
    with factory(kind) as make:
        yield make


class Pair(NamedTuple):
    endpoint: Endpoint
    oracle: ssl.SSLSocket


@contextmanager
def paired(
    app: Application,
    role: str,
    ours: ssl.SSLContext | None = None,
    theirs: ssl.SSLContext | None = None,
) -> Iterator[Pair]:
    """A connection over TLS in which the engine is `"client"` or `"server"`."""
    with ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(1))
        if role == "client":
            with OracleServer() as server:
                below = app.connect(server.address)
                shaking = threads.submit(lambda: oracle_server(server.accept(), theirs))
                endpoint = try_connect(app, below, ours)
        else:
            accepting = app.listen()
            shaking = threads.submit(lambda: oracle_client(connect(accepting.address), theirs))
            endpoint = try_accept(app, accepting.next(), ours)
            accepting.close()
        oracle = stack.enter_context(shaking.result(TIMEOUT))
        assert not isinstance(endpoint, Status), endpoint
        stack.callback(endpoint.close)
        yield Pair(endpoint, oracle)


@pytest.mark.parametrize("role", ["client", "server"])
def test_bytes_go_both_ways_and_the_end_is_a_clean_one(anywhere: Application, role: str) -> None:
    question, answer = pattern(300_000, 1), pattern(3_000_000, 2)
    with paired(anywhere, role) as (endpoint, oracle), ThreadPoolExecutor(1) as threads:
        hearing = threads.submit(receive, oracle, len(question))
        assert anywhere.write(endpoint, SliceBuffer([question[:10], question[10:20], question[20:]])).ok
        assert hearing.result(TIMEOUT) == question
        saying = threads.submit(oracle.sendall, answer)
        assert anywhere.receive(endpoint, len(answer)) == answer
        saying.result(TIMEOUT)
        anywhere.call(endpoint.close)
        assert receive_all(oracle) == b""
