"""`SimulatedNetwork`: addresses, ports and names; who listens where, and how connections come about.

Every IP address is there, without being set up: who binds one has it. Unix sockets have names but no files. With the
lock of the simulation held, all of it but what a test calls.
"""

from __future__ import annotations

import errno
import os
import socket
import weakref
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

from eventengine.address import ResolvedAddress
from eventengine.core.timers import check_seconds
from eventengine.memory_quota import MemoryQuota
from eventengine.testing.simulated.names import Names, NoServer
from eventengine.testing.simulated.pipe import Connection
from eventengine.testing.simulated.places import Place, source_of, tcp_place
from eventengine.testing.simulated.sockets import SimulatedSocket

if TYPE_CHECKING:
    from eventengine.testing.simulated.simulation import Simulation

__all__ = ["SimulatedNetwork"]

_NO_SERVER: Final = NoServer()
_FIRST_NUMBER: Final = 1 << 30  # of sockets: beyond all descriptors of the system
_FIRST_PORT: Final = 49152  # of those that nobody has chosen, RFC 6335
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6, getattr(socket, "AF_UNIX", socket.AF_INET))


class SimulatedNetwork:
    """What a test may do to the network of a simulation; from any thread, but not in two at a time.

    Attributes:
        names: What the system's DNS server knows.
        quotas: Those of the engines' connections, which `fill_quotas` fills.
    """

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.lock = simulation.changed
        self.names = Names()
        self.quotas: weakref.WeakKeyDictionary[MemoryQuota, None] = weakref.WeakKeyDictionary()
        self._servers: dict[ResolvedAddress, Names] = {}
        self._sockets: dict[int, SimulatedSocket] = {}
        self._bound: dict[int | str | bytes, list[SimulatedSocket]] = {}  # by `Place.name`
        self._connections: dict[str, Connection] = {}
        self._doomed: dict[ResolvedAddress, str] = {}
        self._made = self._connects = 0
        self._last_port = _FIRST_PORT - 1
        self._has_descriptors = True

    # What a test does.

    @property
    def connections(self) -> list[Connection]:
        """Those that are open at either end, in the order of their connects."""
        with self.lock:
            return list(self._connections.values())

    @property
    def sockets(self) -> int:
        """How many are open: none, when all was closed."""
        return len(self._sockets)

    def refuse(self, address: ResolvedAddress) -> None:
        """Connects to this address are refused, whoever listens."""
        self._doomed[_checked(address)] = "refuse"

    def hang(self, address: ResolvedAddress) -> None:
        """Connects to this address are never answered."""
        self._doomed[_checked(address)] = "hang"

    def admit(self, address: ResolvedAddress) -> None:
        """Takes `refuse` and `hang` back, for connects that come then."""
        self._doomed.pop(_checked(address), None)

    @contextmanager
    def no_descriptors_left(self) -> Generator[None]:
        """Engines can make no socket and accept no connection: EMFILE."""
        self._has_descriptors = False
        try:
            yield
        finally:
            self._has_descriptors = True

    def add_dns_server(self, address: ResolvedAddress) -> Names:
        """One more server, which `get_dns_resolver(dns_server=...)` may choose, and what it knows: nothing yet."""
        return self._servers.setdefault(_checked(address), Names())

    def fill_quotas(self, seconds: float | None = None) -> None:
        """The quotas of the engines' connections that have a limit are full for so many seconds, whatever is closed
        meanwhile."""
        simulation = self.simulation
        if seconds is None:
            seconds = 1.0 + simulation.draws.seconds("quotas", "filled_for", *simulation.conditions.latency)
        check_seconds("seconds", seconds)
        for memory in list(self.quotas):
            room = 0 if memory.size is None else memory.size - memory.used
            if room > 0:
                memory.take(room, room)
                simulation.note("quotas", f"{room} of {memory.size} bytes are taken for {seconds:g} s")
                simulation.call_at(simulation.now + seconds, partial(memory.give, room))

    # What engines do.

    def new_socket(self, family: int) -> SimulatedSocket:
        if family not in _FAMILIES:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        if not self._has_descriptors:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return self.make_socket(family)

    def make_socket(self, family: int, kind: type[SimulatedSocket] = SimulatedSocket) -> SimulatedSocket:
        with self.lock:
            self._made += 1
            made = kind(self, family, _FIRST_NUMBER + self._made)
            self._sockets[made.number] = made
            return made

    def readiness(self, fd: int) -> int:
        with self.lock:
            found = self._sockets.get(fd)
            return 0 if found is None else found.readiness()

    def names_of(self, server: ResolvedAddress | None) -> Names:
        """What this DNS server knows; None: the system's."""
        return self.names if server is None else self._servers.get(server, _NO_SERVER)

    # What sockets do.

    def bind(self, sock: SimulatedSocket, place: Place) -> None:
        if sock.local is not None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if place.name == 0:
            place = tcp_place(place.family, place.host, self._free_port())
        for other in self._bound.get(place.name, ()):
            shared = _reuses_port(sock) and _reuses_port(other)
            sock.local = place
            takes_both = _takes_both(sock) or _takes_both(other)
            if not shared and other.local is not None and place.overlaps(other.local, takes_both=takes_both):
                sock.local = None
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        sock.local = place
        self._bound.setdefault(place.name, []).append(sock)

    def _free_port(self) -> int:
        for _ in range(65536 - _FIRST_PORT):
            self._last_port = _FIRST_PORT if self._last_port == 65535 else self._last_port + 1
            if self._last_port not in self._bound:
                return self._last_port
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))

    def connect(self, sock: SimulatedSocket, place: Place) -> int:
        """What connect(2) says."""
        if place.name == 0:
            return errno.ECONNREFUSED
        self._connects += 1
        sock.label = f"#{self._connects}"
        sock.remote = place
        return self._connect(sock, place) if place.host else self._connect_unix(sock, place)

    def _connect_unix(self, sock: SimulatedSocket, place: Place) -> int:
        listening = self._listening_at(place)
        if listening is None:
            return errno.ECONNREFUSED if isinstance(place.name, bytes) else errno.ENOENT
        if len(listening.queue) > listening.backlog:
            return errno.EAGAIN
        self.simulation.note(sock.label, f"connects to {place}")
        self._establish(sock, place, listening)
        return 0

    def _connect(self, sock: SimulatedSocket, place: Place) -> int:
        if sock.local is None:
            self.bind(sock, source_of(place))
        sock.state = "connecting"
        simulation, conditions = self.simulation, self.simulation.conditions
        simulation.note(sock.label, f"connects from {sock.local} to {place}")
        latency = simulation.draws.seconds(sock.label, "latency", *conditions.latency)
        fate = self._doomed.get(ResolvedAddress(place.family, place.sockaddr))
        if fate == "hang" or simulation.draws.happens(sock.label, "hang", conditions.hang):
            return errno.EINPROGRESS
        refused = fate == "refuse" or simulation.draws.happens(sock.label, "refuse", conditions.refuse)
        knock = partial(self._knock, sock, place, refused=refused)
        if latency:
            simulation.call_at(simulation.now + latency, knock)
        else:
            knock()
        return errno.EINPROGRESS

    def _knock(self, sock: SimulatedSocket, place: Place, *, refused: bool) -> None:
        with self.lock:
            if sock.is_closed:
                return
            listening = None if refused else self._listening_at(place)
            if listening is None:
                self.simulation.note(sock.label, "is refused")
                sock.break_with(errno.ECONNREFUSED)
            elif len(listening.queue) > listening.backlog:  # Linux has one more than was asked for
                self.simulation.note(sock.label, "waits for a place in the backlog")
                listening.waiting.append(sock)
            else:
                self._establish(sock, place, listening)

    def _listening_at(self, place: Place) -> SimulatedSocket | None:
        """Who listens there; of several who share a port, the one that has it longest, unless the conditions are to
        shuffle."""
        exact: list[SimulatedSocket] = []
        others: list[SimulatedSocket] = []
        for sock in self._bound.get(place.name, ()):
            local = sock.local
            if sock.state == "listening" and local and local.overlaps(place, takes_both=_takes_both(sock)):
                (others if local.is_wildcard else exact).append(sock)
        found = exact or others
        if len(found) < 2:
            return found[0] if found else None
        shuffle = self.simulation.conditions.shuffle
        return found[self.simulation.draws.order(f"port{place.name!r}", "taker", len(found), shuffle=shuffle)[0]]

    def _establish(self, sock: SimulatedSocket, place: Place, listening: SimulatedSocket) -> None:
        server = self.make_socket(listening.family)
        server.inherit_from(listening)
        server.label = sock.label
        server.local, server.remote = place, sock.local
        if sock.family != listening.family:  # IPv4, at a socket that takes both
            server.local, server.remote = place.mapped(), sock.local and sock.local.mapped()
        self._connections[sock.label] = Connection(self, sock.label, sock, server)
        sock.state = server.state = "connected"
        self.simulation.note(sock.label, "is connected")
        listening.queue.append(server)
        for each in (sock, server, listening):
            each.touch()

    def accept(self, listening: SimulatedSocket) -> SimulatedSocket:
        while True:
            if not listening.queue:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            first = listening.queue[0]
            number = self._why_not_accepted(listening, first)
            if number == errno.EMFILE:
                raise OSError(number, os.strerror(number))
            listening.queue.popleft()
            self._admit_next(listening)
            if number:
                self._connections[first.label].reset()
                first.close()
                raise OSError(number, os.strerror(number))
            if not first.is_closed:
                self.simulation.note(first.label, "is accepted")
                return first

    def _why_not_accepted(self, listening: SimulatedSocket, first: SimulatedSocket) -> int:
        if type(listening) is not SimulatedSocket:  # a peer's, which stands for another process
            return 0
        draws, conditions = self.simulation.draws, self.simulation.conditions
        if not self._has_descriptors:
            return errno.EMFILE
        if not draws.happens(first.label, "fail_accept", conditions.fail_accept):
            return 0
        return errno.ECONNABORTED if draws.happens(first.label, "aborted", 0.5) else errno.EMFILE

    def _admit_next(self, listening: SimulatedSocket) -> None:
        while listening.waiting:
            waiting = listening.waiting.popleft()
            if not waiting.is_closed and waiting.remote is not None:
                self._establish(waiting, waiting.remote, listening)
                return

    def forget(self, sock: SimulatedSocket) -> None:
        """It was closed."""
        self._sockets.pop(sock.number, None)
        bound = [] if sock.local is None else self._bound.get(sock.local.name, [])
        if sock in bound:
            bound.remove(sock)
            if not bound and sock.local is not None:
                del self._bound[sock.local.name]
        connection = self._connections.get(sock.label)
        if connection is not None and not connection.is_open:
            del self._connections[sock.label]


def _reuses_port(sock: SimulatedSocket) -> bool:
    return sock.has_option(socket.SOL_SOCKET, getattr(socket, "SO_REUSEPORT", -1))


def _takes_both(sock: SimulatedSocket) -> bool:
    """Whether it is bound to all addresses, of IPv6 and of IPv4."""
    return (
        sock.local is not None
        and sock.local.host == "::"
        and not sock.has_option(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    )


def _checked(address: ResolvedAddress) -> ResolvedAddress:
    """Raises TypeError for what is none: nobody connects to that, so nothing would ever happen to it."""
    if not isinstance(address, ResolvedAddress):
        raise TypeError(
            f"address must be a ResolvedAddress, not {type(address).__name__}; see ResolvedAddress.parse"
        )
    return address
