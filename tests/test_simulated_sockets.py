"""The simulated sockets say what the system's say: each scene is played with both, and the answers are compared."""

from __future__ import annotations

import errno
import select
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from eventengine.testing import Simulation
from eventengine.testing.simulated.sockets import SimulatedSocket

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what is simulated is what Linux says")

LINGER = struct.pack("ii", 1, 0)


class Stage:
    """Where a scene is played: makes sockets, and waits until what was done to one has come to the other."""

    def __init__(self, stack: ExitStack, simulation: Simulation | None) -> None:
        self._stack = stack
        self._simulation = simulation

    def socket(self) -> socket.socket:
        simulation = self._simulation
        made = socket.socket() if simulation is None else simulation.network.make_socket(socket.AF_INET)
        made.setblocking(False)
        self._stack.callback(made.close)
        return made

    def listening(self, backlog: int = 5) -> tuple[socket.socket, Any]:
        made = self.socket()
        made.bind(("127.0.0.1", 0))
        made.listen(backlog)
        return made, made.getsockname()

    def pair(self) -> tuple[socket.socket, socket.socket]:
        listening, address = self.listening()
        one = self.socket()
        assert one.connect_ex(address) in (0, errno.EINPROGRESS)
        self.arrives(listening)
        other, _ = listening.accept()
        other.setblocking(False)
        self._stack.callback(other.close)
        listening.close()
        return one, other

    def arrives(self, sock: socket.socket, events: int = select.POLLIN) -> None:
        if self._simulation is None:
            poll = select.poll()
            poll.register(sock, events)
            assert poll.poll(30_000)
        else:
            assert isinstance(sock, SimulatedSocket)
            assert sock.readiness()


def answer(function: Callable[..., Any], *args: Any) -> object:
    """What a call returns, or the name of its errno."""
    try:
        return function(*args)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
    sock.close()


Scene = Callable[[Stage], Iterator[object]]
SCENES: list[Scene] = []


def scene(function: Scene) -> Scene:
    SCENES.append(function)
    return function


@scene
def the_end_after_bytes_and_a_write_to_who_has_gone(stage: Stage) -> Iterator[object]:
    one, other = stage.pair()
    one.send(b"x")
    one.close()
    stage.arrives(other)
    yield answer(other.recv, 1, socket.MSG_PEEK)
    yield answer(other.recv, 10)
    yield answer(other.recv, 10)
    yield answer(other.send, b"y")
    stage.arrives(other, select.POLLERR)
    yield answer(other.send, b"y")
    yield answer(other.send, b"y")
    yield answer(other.recv, 10)


@scene
def a_close_over_bytes_that_were_not_read(stage: Stage) -> Iterator[object]:
    one, other = stage.pair()
    one.send(b"x")
    stage.arrives(other)
    other.close()
    stage.arrives(one)
    for _ in range(3):
        yield answer(one.recv, 10)
    yield answer(one.send, b"y")


@scene
def a_reset_that_a_read_meets_first(stage: Stage) -> Iterator[object]:
    one, other = stage.pair()
    reset(other)
    stage.arrives(one)
    for _ in range(2):
        yield answer(one.recv_into, bytearray(10))
    for _ in range(2):
        yield answer(one.send, b"y")
    yield answer(one.shutdown, socket.SHUT_WR)
    yield answer(one.getpeername)


@scene
def a_reset_that_a_write_meets_first(stage: Stage) -> Iterator[object]:
    one, other = stage.pair()
    reset(other)
    stage.arrives(one)
    for _ in range(3):
        yield answer(one.sendmsg, [b"y", b"z"])
    yield answer(one.recv, 10)


@scene
def bytes_before_a_reset(stage: Stage) -> Iterator[object]:
    one, other = stage.pair()
    other.send(b"the last words")
    stage.arrives(one)
    reset(other)
    stage.arrives(one, select.POLLERR)
    for _ in range(3):
        yield answer(one.recv, 8)
    yield answer(one.recv, 8)


@scene
def a_reset_after_the_end(stage: Stage) -> Iterator[object]:
    one, other = stage.pair()
    other.shutdown(socket.SHUT_WR)
    stage.arrives(one)
    yield answer(one.recv, 8)
    reset(other)
    stage.arrives(one, select.POLLERR)
    yield answer(one.recv, 8)
    for _ in range(2):
        yield answer(one.send, b"y")
    yield answer(one.recv, 8)


@scene
def half_closing(stage: Stage) -> Iterator[object]:
    one, other = stage.pair()
    yield answer(one.shutdown, socket.SHUT_WR)
    yield answer(one.shutdown, socket.SHUT_WR)
    yield answer(one.send, b"x")
    stage.arrives(other)
    yield answer(other.recv, 8)
    yield answer(other.send, b"still")
    stage.arrives(one)
    yield answer(one.recv, 8)
    yield answer(one.recv, 8)
    other.close()
    stage.arrives(one)
    yield answer(one.recv, 8)


@scene
def what_is_not_connected(stage: Stage) -> Iterator[object]:
    sock = stage.socket()
    yield answer(sock.getsockname)
    yield answer(sock.getpeername)
    yield answer(sock.recv, 8)
    yield answer(sock.send, b"x")
    yield answer(sock.shutdown, socket.SHUT_WR)
    sock.close()
    yield sock.fileno()
    yield answer(sock.recv, 8)
    yield answer(sock.send, b"x")


@scene
def a_connect_that_is_refused(stage: Stage) -> Iterator[object]:
    listening, address = stage.listening()
    listening.close()
    sock = stage.socket()
    number = sock.connect_ex(address)
    assert number in (errno.EINPROGRESS, errno.ECONNREFUSED)
    stage.arrives(sock, select.POLLERR | select.POLLHUP)
    yield sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or number
    yield answer(sock.getpeername)


@scene
def a_connect_twice(stage: Stage) -> Iterator[object]:
    _, address = stage.listening()
    sock = stage.socket()
    sock.connect_ex(address)
    stage.arrives(sock, select.POLLOUT)
    yield errno.errorcode[sock.connect_ex(address) or errno.EISCONN]  # the system says once that it is done
    yield errno.errorcode[sock.connect_ex(address)]
    yield sock.getpeername() == address


@scene
def accepting(stage: Stage) -> Iterator[object]:
    listening, address = stage.listening()
    yield answer(listening.accept)
    gone, there = stage.socket(), stage.socket()
    gone.connect_ex(address)
    there.connect_ex(address)
    stage.arrives(listening)
    reset(gone)
    first, peer = listening.accept()
    first.setblocking(False)
    yield answer(first.recv, 8)
    yield peer == first.getpeername() if answer(first.recv, 8) else "an end"
    second, peer = listening.accept()
    yield peer == there.getsockname()
    yield second.getsockname() == address
    yield answer(listening.accept)
    first.close()
    second.close()
    sock = stage.socket()
    yield answer(sock.accept)


@scene
def a_listener_that_is_closed_over_its_backlog(stage: Stage) -> Iterator[object]:
    listening, address = stage.listening()
    sock = stage.socket()
    sock.connect_ex(address)
    stage.arrives(listening)
    listening.close()
    stage.arrives(sock)
    yield answer(sock.recv, 8)
    yield answer(sock.recv, 8)


@scene
def ports(stage: Stage) -> Iterator[object]:
    first, address = stage.listening()
    second, third = stage.socket(), stage.socket()
    yield answer(second.bind, address)
    yield answer(second.bind, ("0.0.0.0", address[1]))
    yield answer(second.bind, ("127.0.0.2", address[1]))
    yield answer(second.bind, ("127.0.0.3", 0))
    third.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    yield answer(third.bind, address)
    first.close()
    yield answer(third.bind, address)


@pytest.mark.parametrize("play", SCENES, ids=lambda play: play.__name__)
def test_a_simulated_socket_says_what_the_systems_says(play: Scene) -> None:
    simulation = Simulation()
    with ExitStack() as stack:
        of_the_system = list(play(Stage(stack, None)))
        simulated = list(play(Stage(stack, simulation)))
    assert simulated == of_the_system
    assert simulation.network.sockets == 0
