"""A site within a bound, for the thread of a test, and what its tests have in common."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tornado.netutil import bind_sockets
from tornado.web import Application

from eventengine import ResourceQuota, admission, unsent
from eventengine.bridges.tornado import QuotaHTTPServer, streams

KIB = 1 << 10
MIB = 1 << 20
TIMEOUT = 60.0


@asynccontextmanager
async def serving_site(
    quota: ResourceQuota, pages: Sequence[tuple[Any, ...]], **options: Any
) -> AsyncIterator[int]:
    """Gives the port of a site; in the end all its connections are closed, and nothing is charged any more."""
    server = QuotaHTTPServer(Application([*pages]), quota=quota, **options)
    [sock] = bind_sockets(0, "127.0.0.1")
    server.add_sockets([sock])
    try:
        yield sock.getsockname()[1]
    finally:
        server.stop()
        await server.close_all_connections()
    await until(lambda: not quota.memory.used)
    assert not quota.memory.somebody_waits


def run(case: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(case(), TIMEOUT))


async def until(condition: Callable[[], bool]) -> None:
    """Within a `run`, which has a limit of time."""
    while not condition():  # noqa: ASYNC110  # a quota has no event
        await asyncio.sleep(0.001)


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


@pytest.fixture
def free_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that count the bytes of bodies and answers; tests/test_tornado_idle.py has what connections cost."""
    monkeypatch.setattr(streams, "COST", 0)
    monkeypatch.setattr(unsent, "COST", 0)
    monkeypatch.setattr(streams, "TLS_COST", 0)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who stalls is cut soon."""
    monkeypatch.setattr(admission, "STALLED", 0.05)
    monkeypatch.setattr(admission, "_LOOKS", 0.01)
