"""Servers that accept as many connections as a quota allows, and while not more than 0.99 of its memory is used; others
stay in the backlog.

Tornado accepts in a loop of its own, which has no hook. So a server is given, for each listening socket, a `Gate` that
looks like it: its `accept` says that there is nothing more while no place is left, and has the socket watched no longer
until a place comes back. It waits for memory in bulk: where there is room to read, but for no connection, gates that
were woken one by the other would wake one another for ever.

A place is taken before a connection is accepted. What becomes of that connection, Tornado does not say: TLS may fail
before the server hears of it. So who is handed a stream claims its place, and what was not claimed when the loop turns
goes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from tornado.ioloop import IOLoop
from tornado.log import gen_log
from tornado.tcpserver import TCPServer

from eventengine.bridges.tornado.bound import COST, TLS_COST, Bound
from eventengine.quota import describe_limits

if TYPE_CHECKING:
    from eventengine.quota import ConnectionQuota, ResourceQuota

__all__ = ["LimitedServer", "Place"]


class Place:
    """One connection of the quota's; given back once, by `give` or when it is garbage."""

    __slots__ = ("_connections",)

    def __init__(self, connections: ConnectionQuota) -> None:
        self._connections: ConnectionQuota | None = connections

    def give(self) -> None:
        connections, self._connections = self._connections, None
        if connections is not None:
            connections.give()

    __del__ = give


class Gate:
    """A listening socket, of which no more is accepted than there are places."""

    def __init__(self, sock: socket.socket, server: LimitedServer) -> None:
        self._sock = sock
        self._server = server
        self._places = server.quota.connections
        self._memory = server.quota.memory
        self._bound: Bound | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_closed = False

    def accept(self) -> tuple[socket.socket, Any]:
        bound = self._bound
        if bound is None:
            loop = self._loop = asyncio.get_running_loop()
            bound = self._bound = Bound.of(self._server.quota, loop)
        cost = COST if self._server.ssl_options is None else TLS_COST + bound.handshake
        if not bound.connections.may_open(cost):
            bound.crowded.add()
            self._watch(0)
            self._memory.add_bulk_waiter(self._on_room)
            if bound.connections.may_open(cost):  # there was room between the two looks
                self._on_room()
            raise BlockingIOError
        if self._places.size is None:
            return self._sock.accept()
        if not self._places.try_take(self._on_place):
            bound.crowded.add()
            self._watch(0)
            raise BlockingIOError
        try:
            accepted = self._sock.accept()
        except BaseException:
            self._places.give()
            raise
        self._server.came(Place(self._places), bound.loop)
        return accepted

    def close(self) -> None:
        self._is_closed = True
        self._places.cancel_wait(self._on_place)
        self._memory.remove_bulk_waiter(self._on_room)
        self._sock.close()

    def _on_place(self) -> None:
        """Any thread."""
        if not self._is_closed and self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(self._go_on)
            except RuntimeError:  # the loop was closed
                pass
            else:
                return
        self._places.wake_one()

    def _on_room(self) -> None:
        """Any thread. Whether it is enough for a connection, is seen then."""
        self._memory.remove_bulk_waiter(self._on_room)
        if not self._is_closed and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop was closed
                self._loop.call_soon_threadsafe(self._go_on)

    def _go_on(self) -> None:
        if not self._is_closed:
            self._watch(IOLoop.READ)
        size = self._places.size
        if size is not None and self._places.used < size:
            self._places.wake_one()  # who waited here may have left

    def _watch(self, events: int) -> None:
        IOLoop.current().update_handler(cast("Any", self), events)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class LimitedServer(TCPServer):
    """Has a quota, whose `connections` it keeps to."""

    quota: ResourceQuota
    _unclaimed: Place | None = None
    _is_told = False

    def add_sockets(self, sockets: Iterable[socket.socket]) -> None:
        if not self._is_told:
            self._is_told = True
            gen_log.info("%s: %s", type(self).__name__, describe_limits(self.quota))
        super().add_sockets(cast("socket.socket", Gate(sock, self)) for sock in sockets)

    def came(self, place: Place, loop: asyncio.AbstractEventLoop) -> None:
        """By a gate: a connection was accepted, and goes to `handle_stream` now, or never."""
        self._unclaimed = place
        loop.call_soon(self._give_back, place)

    def claim(self) -> Place | None:
        """The place of the connection that was accepted last, if it was not claimed yet."""
        place, self._unclaimed = self._unclaimed, None
        return place

    def _give_back(self, place: Place) -> None:
        if self._unclaimed is place:
            self._unclaimed = None
            place.give()
