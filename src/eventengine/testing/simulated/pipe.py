"""`Pipe`: one direction of a connection. `Connection`: the two of them, and what can be done to a connection.

Rules:

1. What is sent is cut into pieces (`Conditions`), each of which arrives after a time of its own, but never before what
   was sent earlier. The end of the stream, and a reset, travel the same way.
2. What was sent and not yet read counts against the room, that of both sockets' buffers together.
3. A socket that is read gives one piece at a time, so that the borders are seen.
4. On a connection that was cut nothing arrives any more; on one that is held, it waits for the release.
5. What arrives at a socket that was closed is answered by a reset, as TCP does.

With the network's lock held, all of it.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from eventengine.testing.simulated.sockets import SimulatedSocket

if TYPE_CHECKING:
    from eventengine.testing.simulated.network import SimulatedNetwork

__all__ = ["Connection", "Pipe"]


class Pipe:
    def __init__(
        self, connection: Connection, label: str, source: SimulatedSocket, target: SimulatedSocket
    ) -> None:
        self._connection = connection
        self._simulation = connection.network.simulation
        self.label = label
        self.source = source
        self.target = target
        self.arrived: deque[memoryview] = deque()
        self.ended = False
        self._sent = 0  # bytes that were not read yet, under way or arrived
        self._under_way = 0  # pieces, ends, resets
        self._latest = 0.0

    @property
    def size(self) -> int:
        return self.source.send_buffer_size + self.target.receive_buffer_size

    @property
    def room(self) -> int:
        return self.size - self._sent

    @property
    def is_cut(self) -> bool:
        return self._connection.is_cut

    def send(self, data: bytes) -> None:
        draws, conditions = self._simulation.draws, self._simulation.conditions
        self._sent += len(data)
        left = memoryview(data)
        while left:
            low, high = conditions.piece or (len(left), len(left))
            size = draws.size(self.label, "piece", min(low, len(left)), min(high, len(left)), len(left))
            self._carry(partial(self._arrive, left[:size]))
            left = left[size:]

    def end(self) -> None:
        self._carry(self._arrive_end)

    def reset(self) -> None:
        self._carry(self._arrive_reset)

    def take(self, size: int) -> memoryview:
        """At most so much of the first piece."""
        piece = self.arrived[0]
        if len(piece) <= size:
            self.arrived.popleft()
        else:
            self.arrived[0] = piece[size:]
            piece = piece[:size]
        self._sent -= len(piece)
        self.source.touch()
        return piece

    def forget(self) -> None:
        """The target was closed."""
        self.arrived.clear()

    def _carry(self, arrive: Callable[[], object]) -> None:
        """Rule 1."""
        simulation = self._simulation
        if self._connection.is_cut:
            return
        latency = simulation.draws.seconds(self.label, "latency", *simulation.conditions.latency)
        when = self._latest = max(self._latest, simulation.now + latency)
        if when <= simulation.now and not self._under_way and not self._connection.is_held:
            arrive()
        else:
            self._under_way += 1
            simulation.call_at(when, partial(self._come, arrive))

    def _come(self, arrive: Callable[[], object]) -> None:
        with self._connection.network.lock:
            if self._connection.is_held:
                self._connection.held.append(partial(self._come, arrive))
            else:
                self._under_way -= 1
                if not self._connection.is_cut:
                    arrive()

    def _arrive(self, piece: memoryview) -> None:
        draws, conditions = self._simulation.draws, self._simulation.conditions
        if draws.happens(self.label, "reset", conditions.reset):
            self._connection.reset()
        elif draws.happens(self.label, "cut", conditions.cut):
            self._connection.cut()
        elif self.target.is_closed:
            self._simulation.note(self.label, f"{len(piece)} bytes arrive where the socket was closed")
            self.target.outgoing.reset()
        else:
            self._simulation.note(self.label, f"{len(piece)} bytes arrive")
            self.arrived.append(piece)
            self.target.touch()
            if draws.happens(self.label, "fill_quota", conditions.fill_quota):
                self._connection.network.fill_quotas()

    def _arrive_end(self) -> None:
        self._simulation.note(self.label, "the stream ends")
        self.ended = True
        self.target.touch()

    def _arrive_reset(self) -> None:
        self._simulation.note(self.label, "a reset arrives")
        self.target.on_reset()


class Connection:
    """A connection of a simulated network, for a test to meddle with. Any thread may."""

    def __init__(
        self, network: SimulatedNetwork, label: str, client: SimulatedSocket, server: SimulatedSocket
    ) -> None:
        self.network = network
        self.label = label
        self.is_cut = self.is_held = False
        self.held: list[Callable[[], object]] = []
        self._ends = (client, server)
        client.incoming = server.outgoing = Pipe(self, f"{label}<", server, client)
        client.outgoing = server.incoming = Pipe(self, f"{label}>", client, server)

    @property
    def is_open(self) -> bool:
        """Whether any end is."""
        return not all(end.is_closed for end in self._ends)

    def reset(self) -> None:
        """Both ends are told that the connection was reset; what was under way is lost."""
        self._end("is reset at both ends", SimulatedSocket.on_reset)

    def fail(self, number: int) -> None:
        """Both ends are told this errno, such as `errno.ETIMEDOUT`; what was under way is lost."""
        name = errno.errorcode.get(number, str(number))
        self._end(f"{name} at both ends", lambda end: end.break_with(number))

    def cut(self) -> None:
        """Nothing arrives any more, and nobody is told but by keepalive probes and TCP_USER_TIMEOUT."""
        self._end("is cut", SimulatedSocket.on_cut)

    def _end(self, what: str, tell: Callable[[SimulatedSocket], object]) -> None:
        with self.network.lock:
            self.is_cut = True
            self.network.simulation.note(self.label, what)
            for end in self._ends:
                tell(end)

    def hold(self) -> None:
        """What is under way waits for `release`."""
        self.is_held = True

    def release(self) -> None:
        with self.network.lock:
            self.is_held = False
            held, self.held = self.held, []
            for come in held:
                come()

    def __repr__(self) -> str:
        return f"<Connection {self.label}>"
