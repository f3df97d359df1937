"""Blocking sockets on a simulated network, for the conformance suite's oracle, and a thread that lets virtual time pass
as the true time does, for its waits.

The suite's modules see `PeerSockets` in place of the standard library's `socket`: the oracle's own code is what runs.
"""

from __future__ import annotations

import contextlib
import errno
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from eventengine.testing import Simulation
from eventengine.testing.simulated.sockets import SimulatedSocket


class PeerSocket(SimulatedSocket):
    """A socket of another process: it blocks, as long as its timeout says."""

    _timeout: float | None = None

    def settimeout(self, value: float | None, /) -> None:
        self._timeout = value

    def setblocking(self, flag: bool, /) -> None:
        self._timeout = None if flag else 0.0

    def gettimeout(self) -> float | None:
        return self._timeout

    def _wait_for(self, function: Callable[[], Any]) -> Any:
        """Tries again at each change of the network, until it need not wait."""
        changed = self.network.simulation.changed
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        with changed:
            while True:
                try:
                    return function()
                except BlockingIOError:
                    if self._timeout == 0:
                        raise
                    left = None if deadline is None else deadline - time.monotonic()
                    if left is not None and left <= 0:
                        raise TimeoutError("timed out") from None
                    changed.wait(left)

    def connect(self, address: Any, /) -> None:
        number = self.connect_ex(address)
        if number in (errno.EINPROGRESS, errno.EAGAIN) and self._timeout != 0:
            number = self._wait_for(self._connected)
        if number:
            raise OSError(number, "connecting")

    def _connected(self) -> int:
        if self.state == "connected":
            return 0
        number: int = self.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not number:
            raise BlockingIOError
        return number

    def accept(self) -> tuple[PeerSocket, Any]:
        made, peer = self._wait_for(super().accept)
        made.__class__ = PeerSocket
        return made, peer

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        received: bytes = self._wait_for(partial(super().recv, size, flags))
        return received

    def recv_into(self, buffer: Any, size: int = 0, flags: int = 0, /) -> int:
        received: int = self._wait_for(partial(super().recv_into, buffer, size, flags))
        return received

    def send(self, data: Any, flags: int = 0, /) -> int:
        sent: int = self._wait_for(partial(super().send, data, flags))
        return sent

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        with memoryview(data).cast("B") as left:
            done = 0
            while done < len(left):
                done += self.send(left[done:])


class PeerSockets:
    """Stands for the module `socket`, with sockets of a simulated network."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> socket.socket:
        if kind != socket.SOCK_STREAM:
            return socket.socket(family, kind)
        return self._simulation.network.make_socket(family, PeerSocket)

    def __getattr__(self, name: str) -> Any:
        return getattr(socket, name)


class PacedSimulation(Simulation):
    """One whose time is the true one."""

    @property
    def now(self) -> float:
        return time.monotonic()

    @now.setter
    def now(self, value: float) -> None:
        """It passes by itself."""


@contextmanager
def passing_time(simulation: PacedSimulation) -> Iterator[None]:
    """A thread lets happen what its time has come for; in the end what is ready has its turn."""
    poked: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def run() -> None:
        with simulation.turning():
            started.set()
            stopping = False
            while not stopping:
                while simulation.step(simulation.now):
                    pass
                due = simulation.next_time
                left = None if due is None else max(due - simulation.now, 0.0)
                with contextlib.suppress(queue.Empty):
                    stopping = poked.get(timeout=left)
            while simulation.step(simulation.now):
                pass

    started = threading.Event()
    simulation.poke = lambda: poked.put(False)
    thread = threading.Thread(target=run, name="simulated time")
    thread.start()
    assert started.wait(30)
    try:
        yield
    finally:
        poked.put(True)
        thread.join(30)
        assert not thread.is_alive()


def put_peers_on(simulation: Simulation, monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite's modules get their sockets, and their want of descriptors, from this network."""
    peers = PeerSockets(simulation)
    for name, module in list(sys.modules.items()):
        if name.startswith("eventengine.testing.") and ".simulated" not in name:
            if getattr(module, "socket", None) is socket:
                monkeypatch.setattr(module, "socket", peers)
            if hasattr(module, "no_descriptors_left"):
                monkeypatch.setattr(module, "no_descriptors_left", simulation.network.no_descriptors_left)
