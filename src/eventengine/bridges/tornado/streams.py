"""Tornado's streams, with what they have written and not sent charged to a quota.

`read_from_fd`, `write_to_fd` and `close_fd` are what Tornado's BaseIOStream has its subclasses override. A
stream comes from Tornado's server as a stock one, on which nothing was read or written yet, and is made anew on its
socket: the server has no other way to say what class it should be.

What a stream has read and nobody has taken is `_read_buffer_size` long, and who is told that it was closed is its
`_close_callback`, of an HTTP1Connection while that waits for an answer, and `_finish_ssl_connect` is called when a
handshake is over: Tornado has no public names for these.
tests/test_tornado_hostile.py finds it when that changes.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from tornado.concurrent import Future
from tornado.http1connection import HTTP1Connection
from tornado.iostream import IOStream, SSLIOStream, StreamBufferFullError

from eventengine.bridges.tornado.bound import COST, TLS_COST
from eventengine.bridges.tornado.endings import call_when_finished
from eventengine.memory import Reservation
from eventengine.unsent import Pieces

if TYPE_CHECKING:
    from eventengine.bridges.tornado.accepting import Place
    from eventengine.bridges.tornado.bound import Bound
    from eventengine.unsent import Unsent

__all__ = ["READ_AHEAD", "Counted", "Shaking", "counted", "made_anew", "opened"]

READ_AHEAD: Final = 4096
"""Bytes that a stream reads at a time while it receives no body and there is little room."""


_AT_ONCE: Final = 1 << 16
"""Bytes of a write that is tried without Tornado's buffer; what is left of it is copied."""

_CONTINUE: Final = b"HTTP/1.1 100"

_OFF: Final = 0
_ON: Final = 1
_OVER: Final = 2
"""TCP_NODELAY of a socket, which at the end has it and is not to, from the second write of an answer on."""


class _Unsent(Pieces):
    """A stream's. It does not keep the stream: who drops one relies on its socket being closed by that."""

    __slots__ = ("_stream",)

    def __init__(self, stream: Counted) -> None:
        super().__init__(stream.bound.admission)
        self._stream = weakref.ref(stream)

    def send(self) -> None:
        stream = self._stream()
        if stream is not None:
            stream.send()

    def on_cut(self) -> None:
        stream = self._stream()
        if stream is not None:
            stream.bound.cut.add()
            stream.close()


class Counted(IOStream):
    """What both kinds have besides Tornado's.

    Attributes:
        on_closed: Called when the stream was closed, from within that.
        place: Its place among the quota's connections, if those have a limit.
        cost: Bytes that it is charged itself, if it is a server's.
        is_used: Whether a request has come on it.
        is_in_body: Whether what it reads is charged as it comes.
        body_left: Bytes that may still come of a body whose length is known; while there is little room, no more is
            read at a time, or READ_AHEAD.
        is_answered: Whether something was written since its last request began, but that it may go on.
        idle_since: When it has begun to wait for a request, or somewhat later, if it still does.
        bound: What it is charged to.
    """

    __slots__ = (
        "_head",
        "_head_size",
        "_unsent",
        "body_left",
        "bound",
        "cost",
        "idle_since",
        "is_answered",
        "is_in_body",
        "is_used",
        "on_closed",
        "place",
    )  # beside Tornado's dictionary, which is full

    bound: Bound
    idle_since: float

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.on_closed: Callable[[], object] | None = None
        self.place: Place | None = None
        self.cost: int | None = None
        self.is_used = self.is_in_body = self.is_answered = False
        self.body_left = 0
        self._head_size = 0  # bytes of a request's head that have come
        self._head = 0  # and what is charged for it
        self._unsent: _Unsent | None = None  # there is one while there is something
        super().__init__(*arguments, **options)

    def charge(self, bound: Bound) -> None:
        """Says to what, before anything is read or written."""
        self.bound = bound

    @property
    def most(self) -> int | None:
        """The bytes that it may be given room for, beside what it is charged itself; None: there is no limit."""
        most = self.bound.admission.most
        return None if most is None else max(0, most - (self.cost or 0) - self._head)

    def begin_head(self) -> None:
        """The last request is over."""
        self.is_in_body = self.is_answered = False
        self.body_left = 0
        self._head_size = self._read_buffer_size
        self.hold_head(self._head_size)

    @property
    def head(self) -> int:
        """The bytes that are charged for the head of its request."""
        return self._head

    @property
    def head_read(self) -> int:
        """How long that is, when it was read."""
        return self._head_size - self._read_buffer_size

    def hold_head(self, amount: int) -> bool:
        """Charges what the head of a request takes, until the next begins; a small one is charged with any connection.
        False: there is no room for it, and none could be made."""
        if amount <= READ_AHEAD:
            if not self._head:
                return True
            amount = 0
        elif self.closed():
            amount = 0
        more, self._head = amount - self._head, amount
        if more > 0:
            self.bound.memory.take(more, more)
            return not self.bound.memory.is_over or self.bound.make_room_for_head()
        if more:
            self.bound.memory.give(-more)
        return True

    def _hold_head_as_it_comes(self) -> bool:
        """Twice, for Tornado keeps what it makes of it beside it. False: it was closed to make room."""
        if not self.hold_head(2 * self._head_size):
            self.close()
        return not self.closed()

    def hold_for(self, request: HTTP1Connection, head: int) -> bool:
        """Its client has closed it, and its request is handled all the same: what that takes is charged until it has
        finished. False: there is no room for it, or it was closed to make some."""
        if isinstance(self.error, StreamBufferFullError):
            return False
        self._hold_until_finished(request, head if head > READ_AHEAD else 0)
        return not self.bound.memory.is_over or self.bound.make_room_for_head()

    def _hold_until_finished(self, request: HTTP1Connection, head: int) -> None:
        memory = self.bound.memory
        held = Reservation(memory, memory.take(head + COST, head + COST))
        call_when_finished(held.release, request)

    def begin_body(self, chunk_size: int) -> None:
        """What comes now was let in; it is read `chunk_size` bytes at a time."""
        self.read_chunk_size = chunk_size
        self.is_in_body = True

    def end_body(self) -> None:
        """The request has come whole; what was read beyond it, by a client that does not wait, is charged."""
        self.body_left = 0
        if self._read_buffer_size > READ_AHEAD:
            self.hold_head(self._head + self._read_buffer_size)

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        # While nobody reads, Tornado does, to notice that the peer has gone; once it has something, it watches no more.
        if not self.reading():
            return None if self._read_buffer_size else super().read_from_fd(memoryview(buf)[:READ_AHEAD])
        if self.body_left < len(buf) > READ_AHEAD and self.bound.memory.is_tight:
            buf = memoryview(buf)[: max(READ_AHEAD, self.body_left)]
        n = super().read_from_fd(buf)
        if n:
            if self.is_in_body:
                self.body_left -= n
            else:
                self._head_size += n
                if self._head_size > READ_AHEAD and not self._hold_head_as_it_comes():
                    return None
        return n

    def write(self, data: bytes | memoryview) -> Future[None]:
        size = memoryview(data).nbytes
        if not size:
            return super().write(data)
        self.is_answered = self.is_answered or data[: len(_CONTINUE)] != _CONTINUE
        unsent = self._unsent
        if unsent is None:  # as a rule all is sent at once, and there is nothing to count
            bound = self.bound
            bound.sent_at_once = 0
            future = super().write(data)
            if bound.sent_at_once < size and not self.closed():
                unsent = self._unsent = _Unsent(self)
                unsent.add(size)
                if bound.sent_at_once:
                    unsent.sent(bound.sent_at_once)
                unsent.settle()
            return future
        unsent.add(size)
        try:
            future = super().write(data)
        except BaseException:
            unsent.take_back()
            raise
        unsent.settle()
        return future

    def write_to_fd(self, data: memoryview) -> int:
        n = super().write_to_fd(data)
        if n:
            unsent = self._unsent
            if unsent is None:
                self.bound.sent_at_once += n
            else:
                unsent.sent(n)
                if unsent.is_empty:
                    self._unsent = None
        return n

    def send(self) -> None:
        """Sends what can be sent now: a write of nothing tries to."""
        super().write(b"")

    def close_fd(self) -> None:
        super().close_fd()
        if isinstance(self.error, OSError):
            with contextlib.suppress(RuntimeError):  # the loop was closed
                self.bound.loop.call_soon(_forget_frames, self.error)
        unsent, self._unsent = self._unsent, None
        head, self._head = self._head, 0
        cost, self.cost = self.cost, None
        request = getattr(self._close_callback, "__self__", None)
        if isinstance(request, HTTP1Connection) and not request._write_finished:  # its answer is awaited
            self._hold_until_finished(request, head)
        _give_back(self.bound, unsent, head, cost)
        if self.place is not None:
            self.place.give()
        if self.on_closed is not None:
            self.on_closed()

    def __del__(self) -> None:
        """Who drops a stream closes its socket by that. It may be collected in any thread, and after its loop ended."""
        if self.cost is not None or self._head or self._unsent is not None:
            give_back = partial(_give_back, self.bound, self._unsent, self._head, self.cost)
            try:
                self.bound.loop.call_soon_threadsafe(give_back)
            except RuntimeError:  # the loop was closed
                give_back()


def _give_back(bound: Bound, unsent: Unsent | None, head: int, cost: int | None) -> None:
    if unsent is not None:
        unsent.end()
    if head:
        bound.memory.give(head)
    if cost is not None:
        bound.connections.closed(cost)


def _forget_frames(error: OSError) -> None:
    """Once what raised it has ended: they hold the stream, which holds its error, and what was being written, all of it
    until a garbage collection."""
    error.__traceback__ = None


class _CountedIOStream(Counted):
    """One without TLS. It spares each request a read that finds nothing, what Tornado keeps for a write that waits, and
    the two system calls by which it has each answer sent to its end: together a twelfth of a small one."""

    __slots__ = ("_is_drained", "_nodelay")

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._is_drained = False
        self._nodelay = _OFF
        super().__init__(*arguments, **options)

    def begin_body(self, chunk_size: int) -> None:
        self._is_drained = False  # more is on its way, and has come as a rule
        super().begin_body(chunk_size)

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        if self._is_drained:  # by the read before, as a rule; if not, an event says so
            self._is_drained = False
            return None
        n = super().read_from_fd(buf)
        self._is_drained = n is not None and 0 < n < len(buf)
        return n

    def set_nodelay(self, value: bool) -> None:
        """Tornado sets it at the end of each answer, and takes it back. An answer in one piece is sent at once either
        way, so that it stays, until there is a second piece."""
        if value and self._nodelay == _OFF:
            super().set_nodelay(True)
        if value or self._nodelay != _OFF:
            self._nodelay = _ON if value else _OVER

    def write(self, data: bytes | memoryview) -> Future[None]:
        if self._nodelay == _OVER and self.is_answered:
            self._nodelay = _OFF
            super().set_nodelay(False)
        if not isinstance(data, bytes) or not 0 < len(data) <= _AT_ONCE or self.writing() or self.closed():
            return super().write(data)
        try:
            sent = self.write_to_fd(memoryview(data))
        except OSError:  # Tornado's own attempt meets it, too
            sent = 0
        if sent < len(data):
            return super().write(data[sent:])
        self.is_answered = self.is_answered or not data.startswith(_CONTINUE)
        future: Future[None] = Future()
        future.set_result(None)
        return future


class Shaking(Counted, SSLIOStream):
    """One with TLS, which is charged more until its handshake is over.

    Attributes:
        handshake: The bytes of its cost that it is charged for that.
    """

    handshake = 0

    def _finish_ssl_connect(self) -> None:
        handshake, self.handshake = self.handshake, 0
        if handshake and self.cost is not None:
            self.cost -= handshake
            self.bound.connections.shrank(handshake)
        super()._finish_ssl_connect()


class _CountedSSLIOStream(Shaking):
    pass


_Kind = TypeVar("_Kind", bound=Counted)


def counted(stream: IOStream, bound: Bound, place: Place | None = None) -> IOStream:
    """`stream`, which is fresh, as one of a server's: what it costs is charged, and what it has not sent; when it is
    closed it gives that back, and its place."""
    return opened(
        stream, _CountedSSLIOStream if isinstance(stream, SSLIOStream) else _CountedIOStream, bound, place
    )


def opened(stream: IOStream, kind: type[Counted], bound: Bound, place: Place | None) -> IOStream:
    """`stream` as one of that kind, which costs something; itself if it was closed."""
    made = made_anew(stream, kind, bound)
    if made is None:
        if place is not None:
            place.give()
        return stream
    made.place = place
    made.cost = COST
    if isinstance(made, Shaking):
        made.handshake = bound.handshake
        made.cost = TLS_COST + made.handshake
    bound.connections.opened(made.cost)
    return made


def made_anew(stream: IOStream, kind: type[_Kind], bound: Bound) -> _Kind | None:
    """One of that kind on the socket of `stream`; None if that was closed."""
    sock = stream.socket
    if sock is None:
        return None
    stream.io_loop.remove_handler(stream.fileno())  # with TLS, it waits for the handshake already
    made = kind(sock, max_buffer_size=stream.max_buffer_size, read_chunk_size=stream.read_chunk_size)
    made.charge(bound)
    return made
