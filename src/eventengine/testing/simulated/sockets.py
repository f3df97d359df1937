"""`SimulatedSocket`: a stream socket of a simulated network, with those methods of a socket that an engine calls.

What it says and when is as Linux has it: bytes come before an end or an error; an error is told once, to whichever call
comes first, and later reads find the end, later writes EPIPE; who closes over bytes that were not read sends a reset.

It is a `socket.socket` for the sake of types and socket hooks alone: the base class is never initialised, and so has no
descriptor. The numbers that `fileno` gives are none of the system's.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NoReturn

from eventengine.core.host import READ, WRITE
from eventengine.testing.simulated.places import place_of, unbound

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from eventengine.testing.simulated.network import SimulatedNetwork
    from eventengine.testing.simulated.pipe import Pipe
    from eventengine.testing.simulated.places import Place
    from eventengine.testing.simulated.simulation import Event

__all__ = ["SimulatedSocket"]

_NO_LINGERING: Final = struct.pack("ii", 1, 0)
_KEEPALIVE: Final = (7200, 75, 9)
"""Of Linux: seconds of silence before the first probe, seconds between two, and how many."""


class SimulatedSocket(socket.socket):
    incoming: Pipe
    outgoing: Pipe

    def __init__(self, network: SimulatedNetwork, family: int, number: int) -> None:
        self._io_refs = 0
        self._closed = False
        self.network = network
        self._family = socket.AddressFamily(family)
        self.number = number
        self._options: dict[tuple[int, int], Any] = {}
        self.label = f"fd{number & 0xFFFF}"
        self.local: Place | None = None
        self.remote: Place | None = None
        self.state = "new"  # connecting, connected, listening
        self.is_closed = False
        self.write_ended = False
        self._broken = False
        self._error = 0
        self._time_outs: list[Event] = []
        self.backlog = 0
        self.queue: deque[SimulatedSocket] = deque()  # connections that were made and not accepted
        self.waiting: deque[SimulatedSocket] = deque()  # those that have no place there yet

    def __repr__(self) -> str:
        return f"<SimulatedSocket {self.label} {self.local} {self.state}>"

    # What it is.

    @property
    def family(self) -> socket.AddressFamily:
        return self._family

    @property
    def type(self) -> socket.SocketKind:
        return socket.SOCK_STREAM

    def fileno(self) -> int:
        return -1 if self.is_closed else self.number

    def setblocking(self, flag: bool, /) -> None:
        """It never blocks."""

    def getblocking(self) -> bool:
        return False

    def get_inheritable(self) -> bool:
        return False

    def setsockopt(self, level: int, name: int, value: Any, length: Any = None, /) -> None:
        self._options[level, name] = value

    def getsockopt(self, level: int, name: int, length: int = 0, /) -> Any:
        if (level, name) == (socket.SOL_SOCKET, socket.SO_ERROR):
            number, self._error = self._error, 0
            return number
        if length:
            raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))
        return self._options.get((level, name), 0)

    def getsockname(self) -> Any:
        if self.is_closed:
            _fail(errno.EBADF)
        return unbound(self._family) if self.local is None else self.local.sockaddr

    def getpeername(self) -> Any:
        if self.state != "connected" or self._broken:
            _fail(errno.ENOTCONN)
        return self._peer

    @property
    def _peer(self) -> Any:
        return "" if self.remote is None else self.remote.sockaddr  # the client's of a unix socket

    @property
    def send_buffer_size(self) -> int:
        return self._buffer_size(socket.SO_SNDBUF)

    @property
    def receive_buffer_size(self) -> int:
        return self._buffer_size(socket.SO_RCVBUF)

    def _buffer_size(self, name: int) -> int:
        return int(self._options.get((socket.SOL_SOCKET, name)) or self.network.simulation.conditions.buffer // 2)

    def has_option(self, level: int, name: int) -> bool:
        return bool(self._options.get((level, name)))

    def inherit_from(self, listening: SimulatedSocket) -> None:
        self._options.update(listening._options)

    # Connecting and listening.

    def bind(self, address: Any, /) -> None:
        with self.network.lock:
            self.network.bind(self, place_of(self._family, address))

    def listen(self, backlog: int = 128, /) -> None:
        with self.network.lock:
            self.state, self.backlog = "listening", backlog

    def connect_ex(self, address: Any, /) -> int:
        with self.network.lock:
            if self._error:
                number, self._error = self._error, 0
                return number
            if self.state == "connected":
                return errno.EISCONN
            if self.state == "connecting":
                return errno.EALREADY
            return self.network.connect(self, place_of(self._family, address))

    def accept(self) -> tuple[SimulatedSocket, Any]:
        with self.network.lock:
            if self.is_closed or self.state != "listening":
                _fail(errno.EINVAL)
            accepted = self.network.accept(self)
            return accepted, accepted._peer

    # Bytes. What is borrowed is given back before these return.

    def send(self, data: Buffer, flags: int = 0, /) -> int:
        return self.sendmsg([data])

    def sendmsg(self, buffers: Any, ancillary: Any = (), flags: int = 0, address: Any = None, /) -> int:
        with self.network.lock:
            self._tell_error()
            if self.is_closed:
                _fail(errno.EBADF)
            if self.state == "connecting":
                _fail(errno.EAGAIN)
            if self.state != "connected" or self.write_ended or self._broken:
                _fail(errno.EPIPE)
            room = self.outgoing.room
            if room <= 0:
                _fail(errno.EAGAIN)
            data = b"".join(buffers)[:room]
            draws, conditions = self.network.simulation.draws, self.network.simulation.conditions
            if len(data) > 1 and draws.happens(self.outgoing.label, "short_write", conditions.short_write):
                data = data[: draws.size(self.outgoing.label, "written", 1, len(data) - 1, 1)]
            self.outgoing.send(data)
            self._watch_acknowledgement()
            return len(data)

    def recv_into(self, buffer: Buffer, nbytes: int = 0, flags: int = 0) -> int:
        with self.network.lock, memoryview(buffer).cast("B") as view:
            if not self._find_bytes():
                return 0
            piece = self.incoming.take(nbytes or len(view))
            view[: len(piece)] = piece
            return len(piece)

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        with self.network.lock:
            if not self._find_bytes():
                return b""
            return bytes(self.incoming.arrived[0][:size] if flags & socket.MSG_PEEK else self.incoming.take(size))

    def _find_bytes(self) -> bool:
        """Whether there are bytes; False: the stream has ended."""
        if self.is_closed or self.state != "connected":
            _fail(errno.EBADF if self.is_closed else errno.ENOTCONN)
        if self.incoming.arrived:
            return True
        if not self.incoming.ended:  # after an end, Linux tells readers no other
            self._tell_error()
            if not self._broken:
                _fail(errno.EAGAIN)
        return False

    def shutdown(self, how: int, /) -> None:
        with self.network.lock:
            if self.state != "connected" or self._broken:
                _fail(errno.ENOTCONN)
            if how in (socket.SHUT_WR, socket.SHUT_RDWR) and not self.write_ended:
                self.write_ended = True
                self.outgoing.end()

    def close(self) -> None:
        with self.network.lock:
            if self.is_closed:
                return
            self.is_closed = self._closed = True
            self.network.forget(self)
            for time_out in self._time_outs:
                time_out.cancel()
            if self.state == "connected":
                lingers = self._options.get((socket.SOL_SOCKET, socket.SO_LINGER)) != _NO_LINGERING
                if not self._broken:
                    if self.incoming.arrived or not lingers:
                        self.outgoing.reset()
                    elif not self.write_ended:
                        self.outgoing.end()
                self.incoming.forget()
            for made in self.queue:
                made.abort()
            for waiting in self.waiting:
                waiting.break_with(errno.ECONNREFUSED)

    def abort(self) -> None:
        """Closes with a reset."""
        self._options[socket.SOL_SOCKET, socket.SO_LINGER] = _NO_LINGERING
        self.close()

    # What the network tells it, with its lock held.

    def readiness(self) -> int:
        if self.state == "listening":
            return READ if self.queue else 0
        if self._error or self._broken:
            return READ | WRITE
        if self.state != "connected":
            return 0
        pipe = self.outgoing
        ready = READ if self.incoming.arrived or self.incoming.ended else 0
        if self.write_ended or pipe.room * 3 >= pipe.size:
            ready |= WRITE
        return ready

    def touch(self) -> None:
        self.network.simulation.touch(self.number)

    def on_reset(self) -> None:
        """After the end of its stream, a reset can only be news for who writes."""
        self.break_with(errno.EPIPE if self.incoming.ended else errno.ECONNRESET)

    def break_with(self, number: int) -> None:
        if not self.is_closed and not self._broken:
            self._broken = True
            self._error = number
            self.touch()

    def on_cut(self) -> None:
        """Keepalive finds the cut, where it is on."""
        if not self.is_closed and self.has_option(socket.SOL_SOCKET, socket.SO_KEEPALIVE):
            idle, interval, times = (
                self._options.get((socket.IPPROTO_TCP, getattr(socket, name, -1)), default)
                for name, default in zip(("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT"), _KEEPALIVE, strict=True)
            )
            self._time_out_after(idle + interval * times)
        if self.outgoing.room < self.outgoing.size:
            self._watch_acknowledgement()

    def _watch_acknowledgement(self) -> None:
        """TCP_USER_TIMEOUT finds a cut, when there are bytes that nobody acknowledges."""
        milliseconds = self._options.get((socket.IPPROTO_TCP, getattr(socket, "TCP_USER_TIMEOUT", -1)))
        if milliseconds and self.outgoing.is_cut:
            self._time_out_after(milliseconds / 1000)

    def _time_out_after(self, seconds: float) -> None:
        simulation = self.network.simulation
        self._time_outs.append(simulation.call_at(simulation.now + seconds, self._time_out))

    def _time_out(self) -> None:
        with self.network.lock:
            self.break_with(errno.ETIMEDOUT)

    def _tell_error(self) -> None:
        if self._error:
            number, self._error = self._error, 0
            _fail(number)


def _fail(number: int) -> NoReturn:
    """OSError makes the class of the number of it."""
    raise OSError(number, os.strerror(number))
