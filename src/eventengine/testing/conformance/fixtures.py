"""The fixtures of the conformance suite. `make_engine` is not among them: it is what who runs the suite fills in.

They are set up in this order, and taken down in the reverse one: `nothing_is_left`, `quota`, `ledger`, `make_engine`,
`engine`, and what uses that. So the ledger and the quota are looked at when the engine and its loop have ended.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
import re
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pytest

from eventengine.address import ResolvedAddress
from eventengine.engine import EventEngine
from eventengine.quota import ResourceQuota
from eventengine.testing.application import Application, Ledger
from eventengine.testing.capabilities import lacking, needs_of
from eventengine.testing.oracle import TIMEOUT

__all__ = [
    "anywhere",
    "app",
    "capable",
    "engine",
    "free_address",
    "ledger",
    "nothing_is_left",
    "quota",
    "unix_folder",
    "without",
]

_DESCRIPTORS = "/dev/fd"
_NUMBER = re.compile(r"\[\d+\]")

if importlib.util.find_spec("pycares"):
    from pycares import Channel

    # With its first one it starts a thread, which is the process's and no leak of a test's.
    Channel(sock_state_cb=lambda fd, readable, writable: None).close()


def _open_descriptors() -> list[str]:
    """What each open descriptor is, as far as the system tells."""
    found: list[str] = []
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(_DESCRIPTORS):
            with contextlib.suppress(OSError):  # the one that listed the folder
                found.append(_NUMBER.sub("", os.readlink(f"{_DESCRIPTORS}/{name}")))
    return sorted(found)


@pytest.fixture
def without(request: pytest.FixtureRequest) -> Collection[str]:
    """The names of the capabilities that the engine is declared to be without. May be overridden."""
    names: Collection[str] = request.config.getoption("eventengine_without", None) or ()
    return names


@pytest.fixture(autouse=True)
def capable(request: pytest.FixtureRequest, without: Collection[str]) -> None:
    """Skips a case that needs one of those. A parameter that is the name of a capability needs it, too."""
    callspec = getattr(request.node, "callspec", None)
    parameters = () if callspec is None else callspec.params.values()
    for capability in without:
        if capability in needs_of(request.function) or capability in parameters:
            lacking(capability)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """When a test and its engine have ended, there are the descriptors and threads that there were before."""
    threads = set(threading.enumerate())
    descriptors = _open_descriptors()
    yield
    for thread in set(threading.enumerate()) - threads:
        thread.join(TIMEOUT)
        assert not thread.is_alive(), f"the thread {thread.name!r} has not ended"
    if _open_descriptors() != descriptors:
        gc.collect()
        assert _open_descriptors() == descriptors


@pytest.fixture
def quota() -> Iterator[ResourceQuota]:
    """What the engine's memory is counted on, without a limit. In the end everything must have been given back."""
    quota = ResourceQuota("conformance")
    yield quota
    if quota.memory.used:
        gc.collect()
    assert quota.memory.used == 0
    assert quota.connections.used == 0


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    """Knows the callbacks; in the end each must have been called as often as it was to be."""
    ledger = Ledger()
    yield ledger
    ledger.check()


@pytest.fixture
def engine(quota: ResourceQuota, ledger: Ledger, make_engine: Callable[[], EventEngine]) -> Iterator[EventEngine]:
    """The engine that is tested."""
    with make_engine() as engine:
        yield engine


@pytest.fixture
def app(engine: EventEngine, quota: ResourceQuota, ledger: Ledger) -> Application:
    """Calls the engine from the thread of the test."""
    return Application(engine, quota, ledger)


@pytest.fixture(params=["from a thread", "from a callback"])
def anywhere(
    request: pytest.FixtureRequest, engine: EventEngine, quota: ResourceQuota, ledger: Ledger
) -> Application:
    """Calls the engine from the thread of the test, and from its own callbacks."""
    return Application(engine, quota, ledger, on_loop=request.param == "from a callback")


@pytest.fixture
def unix_folder() -> Iterator[Path]:
    """A folder whose path is short enough for unix sockets in it."""
    with tempfile.TemporaryDirectory(prefix="ee-") as folder:
        yield Path(folder)


@pytest.fixture(params=["ipv4", "ipv6", "unix", "abstract-unix"])
def free_address(request: pytest.FixtureRequest, unix_folder: Path) -> ResolvedAddress:
    """Where one may listen; with port 0, where there are ports."""
    kind = request.param
    if kind == "ipv4":
        return ResolvedAddress.tcp("127.0.0.1", 0)
    if kind == "unix":
        return ResolvedAddress.parse(f"unix:{unix_folder / 'socket'}")
    if kind == "abstract-unix":
        if not sys.platform.startswith("linux"):
            lacking("abstract-unix", "only Linux has them")
        return ResolvedAddress.parse(f"unix-abstract:{unix_folder}")
    skip_without_ipv6()
    return ResolvedAddress.tcp("::1", 0)


def skip_without_ipv6() -> None:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError as error:
        lacking("ipv6", f"this machine has none: {error.strerror}")
