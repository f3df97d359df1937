"""Streams whose reads wait while the quota is full, and that are charged for what they have read and not handed over.

Tornado collects what a read asks for in the stream's buffer, up to 100 MiB. What is in there is charged; what
`read_into` reads is not, for it lies in a buffer of the application's.

Rules:

1. `_size` is what the buffer holds, and what the reader of a websocket keeps. Tornado has no public name for that, but
   all that comes in passes `read_from_fd`, and what goes out is the result of a read. What one that was cancelled has
   dropped is not known, so the count begins anew then: what may be left is not charged.
2. The charge follows the buffer when an event was handled, or when a method that reads returns. So a read that one
   chunk satisfies is not charged at all. Where there is little room, it is taken before anything is read.
3. `read_bytes` tells how much it wants. When that begins to come, room for all of it is asked for first, as for an
   upload (see `admission`), or bodies that are half there would fill the quota. What other reads collect grows as it
   comes; should all wait for one another, the one that holds most is closed.
4. Only what has come waits, and so stands in the line: an event says so, or TLS, which may have more in hand that no
   event tells of. A read that finds nothing waits for nothing but its event.
5. While it waits, READ is masked by the `Watch` that stands for the IOLoop, or the loop would spin.
"""

from __future__ import annotations

import ssl
import sys
import weakref
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from tornado.concurrent import Future
from tornado.ioloop import IOLoop
from tornado.iostream import IOStream, SSLIOStream, StreamBufferFullError
from tornado.log import gen_log
from tornado.netutil import ssl_wrap_socket

from eventengine.bridges.tornado.bound import TLS_COST
from eventengine.bridges.tornado.streams import Counted, Shaking, made_anew, opened
from eventengine.bridges.tornado.watching import Watch
from eventengine.bridges.tornado.websockets import Message
from eventengine.memory_quota import format_size
from eventengine.upload import Upload

if TYPE_CHECKING:
    from eventengine.bridges.tornado.accepting import Place
    from eventengine.bridges.tornado.bound import Bound

__all__ = ["DEFLATE_COST", "Bounded", "BoundedIOStream", "BoundedSSLIOStream", "bounded", "taken_over"]

DEFLATE_COST: Final = 303104
"""Bytes that both directions of a compressed websocket take, as zlib has it: 256 KiB and 40."""

SMALL: Final = 16384
"""Bytes up to which a `read_bytes` asks for no room beforehand."""

_LEAST: Final = 256
"""There is room if there are as many bytes."""

_T = TypeVar("_T")


class _Buffer(Upload):
    """What a stream's buffer holds."""

    __slots__ = ()

    def shrink(self, size: int) -> None:
        """It holds this now, which is less."""
        self._admission.memory.give(self.held - size)
        self.held = size

    def set_moving(self, moves: bool) -> None:
        """Whether its peer is to send more, and so may stall."""
        if moves and self.held:
            if self not in self._admission.moving:
                self.moved()
                self._admission.watch(self)
        elif not self.wanted and self in self._admission.moving:
            self._admission.forget(self)


class Bounded(Counted):
    """What both kinds have besides Tornado's.

    Attributes:
        ahead: What was read before the stream was made, and comes first.
        message: That of the websocket that reads from it, if one does.
    """

    __slots__ = (
        "_buffer",
        "_is_admitted",
        "_is_into",
        "_on_close",
        "_pending",
        "_secured",
        "_size",
        "_wants",
        "_watch",
        "ahead",
        "message",
    )  # beside Tornado's dictionary, which is full

    _watch: Watch

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.ahead = b""
        self.message: Message | None = None
        self._buffer: _Buffer | None = None  # none before `charge`, and when it was closed
        self._size = 0  # rule 1
        self._pending: Future[Any] | None = None
        self._wants = 0  # of a read that says how much it wants
        self._is_into: bool = False
        self._is_admitted = False  # and to go on in the loop's next turn
        self._on_close: Callable[[], None] | None = None
        self._secured: weakref.ref[Bounded] | None = None  # what it has become by TLS
        super().__init__(*arguments, **options)
        self.is_in_body = True
        self.body_left = sys.maxsize  # how much is read at a time, is said here

    @property
    def io_loop(self) -> IOLoop:  # Tornado's attribute, which its constructor sets
        return cast("IOLoop", self._watch)

    @io_loop.setter
    def io_loop(self, io_loop: IOLoop) -> None:
        self._watch = Watch(io_loop, self)

    @property
    def waits(self) -> bool:
        """Whether it waits for room."""
        return self._is_admitted or (self._buffer is not None and self._buffer.wanted > 0)

    def write(self, data: bytes | memoryview) -> Future[None]:
        if not self.is_answered and self.message is not None and b"permessage-deflate" in bytes(data):
            self._begin_to_deflate(self.message.peer)
        return super().write(data)

    def _begin_to_deflate(self, peer: str) -> None:
        """The websocket is agreed to be compressed. Who has no room is closed: nothing could be read any more else."""
        connections = self.bound.connections
        if self.cost is None:
            return
        if connections.may_open(DEFLATE_COST):
            connections.grew(DEFLATE_COST)
            self.cost += DEFLATE_COST
        else:
            gen_log.info("a websocket from %s was closed: there is no room to compress what it sends", peer)
            self.bound.loop.call_soon(self.close)

    def charge(self, bound: Bound) -> None:
        super().charge(bound)
        me = weakref.ref(self)

        def on_stalled() -> None:
            stream = me()
            if stream is not None:
                stream.make_room()

        self._buffer = _Buffer(bound.admission, on_stalled)

    def read_until_regex(self, regex: bytes, max_bytes: int | None = None) -> Awaitable[bytes]:
        if self.message is not None:  # who reads so is no websocket
            self._size = max(0, self._size - self.message.size)
            self.message = None
        read = super().read_until_regex
        return self._read(lambda: read(regex, max_bytes))

    def read_until(self, delimiter: bytes, max_bytes: int | None = None) -> Awaitable[bytes]:
        read = super().read_until
        return self._read(lambda: read(delimiter, max_bytes))

    def read_bytes(self, num_bytes: int, partial: bool = False) -> Awaitable[bytes]:
        read = super().read_bytes
        kept = 0 if self.message is None else self.message.size
        return self._read(lambda: read(num_bytes, partial), wants=0 if partial else kept + num_bytes)

    def read_into(self, buf: bytearray, partial: bool = False) -> Awaitable[int]:
        read = super().read_into
        return self._read(lambda: read(buf, partial), into=len(buf))

    def read_until_close(self) -> Awaitable[bytes]:
        return self._read(super().read_until_close)

    def _read(
        self, read: Callable[[], Awaitable[_T]], *, wants: int = 0, into: int | None = None
    ) -> Awaitable[_T]:
        before = self._size, self._wants, self._is_into
        self._wants = wants
        self._is_into = into is not None
        self._size = max(0, self._size - (into or 0))  # as much is the application's now
        try:
            future = read()
        except BaseException:
            _, self._wants, self._is_into = before
            if self._pending is not None:  # two at a time
                self._size = before[0]
            self.settle()
            raise
        self._pending = cast("Future[Any]", future)
        self.settle()
        return future

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        most = self._room(len(buf))
        if not most:
            return None
        if self.ahead:
            n: int | None = min(most, len(self.ahead))
            buf[:n] = self.ahead[:n]
            self.ahead = self.ahead[n:]
        else:
            n = super().read_from_fd(buf if most >= len(buf) else memoryview(buf)[:most])
        if n and not self._is_into and self._buffer is not None:
            self._size += n
            self._buffer.moved()
        return n

    def _room(self, most: int) -> int:
        """How many bytes may be read now; none while it waits for room."""
        buffer = self._buffer
        if buffer is None:
            return most
        if self.waits:
            return 0
        memory = self.bound.memory
        quota = self.most
        if quota is None:
            return most
        if self._wants > max(SMALL, buffer.held) and not self._take(self._wants - buffer.held, quota):  # rule 3
            return 0
        if self._size > buffer.held and not self._take(self._size - buffer.held, quota):
            return 0
        spare = buffer.held - self._size
        if self._is_into:
            return most if spare >= _LEAST or not memory.is_tight or self._take(_LEAST, quota) else 0
        if spare >= _LEAST or 0 < self._wants <= self._size + spare:
            return min(most, spare)
        if not memory.is_tight and most * 5 <= quota:
            return most
        piece = max(_LEAST, min(most, quota // 16))
        if not self._take(min(piece, max(1, quota - buffer.held)), quota):
            return 0
        return min(most, buffer.held - self._size)

    def _take(self, amount: int, quota: int) -> bool:
        """Takes room. False: there is none, and it waits if something has come (rule 4), or was closed."""
        buffer = cast("_Buffer", self._buffer)
        if buffer.held + amount > quota:
            error = StreamBufferFullError(f"a read takes more than {self.bound.quota!r} has")
            self.close(exc_info=error)
            if self.message is not None:  # nobody asked for so much but the peer: no error of the handler's
                gen_log.info(
                    "a websocket from %s was closed: its message takes more room than one may have, %s",
                    self.message.peer,
                    format_size(quota),
                )
                return False
            raise error
        if not self.bound.memory.somebody_waits and self.bound.admission.try_take(amount):
            buffer.held += amount
            return True
        if not (self._watch.reads or self._has_more()):
            return False
        return self._ask(amount)

    def _ask(self, amount: int) -> bool:
        if self.message is None:
            grows = not self._wants and self._size > SMALL
        else:
            grows = self.message.size > 0 and not self.message.is_last
        if cast("_Buffer", self._buffer).ask(amount, self._on_admitted, grows=grows):
            return True
        self._watch.mask()
        return False

    def settle(self) -> None:
        """Charges what the buffer holds."""
        pending = self._pending
        if pending is not None and pending.done() and not (pending.cancelled() and self.reading()):
            self._pending = None
            if pending.cancelled():
                self._size = 0  # rule 1
            elif pending.exception() is None and not self._is_into:
                result = pending.result()
                gone = len(result) if self.message is None else self.message.read(result)
                self._size = max(0, self._size - gone)
            self._wants = 0
            self._is_into = False
        buffer = self._buffer
        if buffer is None:
            return
        size = self._size
        if not self.waits:
            if size > buffer.held:
                if not self.bound.memory.somebody_waits and self.bound.admission.try_take(size - buffer.held):
                    buffer.held = size
                else:
                    self._ask(size - buffer.held)
            elif buffer.held > size and not 0 < size < self._wants:
                buffer.shrink(size)
        buffer.set_moving(self._pending is not None)

    def _on_admitted(self) -> None:
        self._is_admitted = True
        self.bound.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._is_admitted = False
        if not self.closed():
            self._watch.go_on()
            self.settle()

    def _has_more(self) -> bool:
        """Whether something has come that no event will tell of."""
        return bool(self.ahead)

    def make_room(self) -> None:
        """It stalls while others wait."""
        gen_log.info("a connection was closed whose read had come in part, to make room for others")
        self.close(exc_info=StreamBufferFullError("it made room for others"))

    def close_fd(self) -> None:
        buffer, self._buffer = self._buffer, None
        self._size = 0
        self._pending = None  # its error knows whoever waited for it, who knows us
        if buffer is not None:
            buffer.end()
        super().close_fd()

    def set_close_callback(self, callback: Callable[[], None] | None) -> None:
        self._on_close = callback
        super().set_close_callback(callback)

    def abandon(self) -> None:
        """Closes it, or what it has become by TLS: its handler has failed."""
        secured = None if self._secured is None else self._secured()
        if secured is not None:
            secured.close()
        elif self.socket is not None:
            self.close()

    def start_tls(
        self,
        server_side: bool,
        ssl_options: dict[str, Any] | ssl.SSLContext | None = None,
        server_hostname: str | None = None,
    ) -> Future[SSLIOStream]:
        """As Tornado's, whose new stream would not be charged."""
        if self.reading() or self.writing() or self.closed() or self._size:
            raise ValueError("IOStream is not idle; cannot convert to SSL")
        if ssl_options is None:
            purpose = ssl.Purpose.CLIENT_AUTH if server_side else ssl.Purpose.SERVER_AUTH
            ssl_options = ssl.create_default_context(purpose)
        on_close = self._on_close
        self.set_close_callback(None)
        sock = self.socket
        self.io_loop.remove_handler(sock)
        self.socket = cast("Any", None)
        made = BoundedSSLIOStream(
            ssl_wrap_socket(
                sock,
                ssl_options,
                server_hostname=server_hostname,
                server_side=server_side,
                do_handshake_on_connect=False,
            ),
            max_buffer_size=self.max_buffer_size,
            read_chunk_size=self.read_chunk_size,
        )
        made.charge(self.bound)
        self._secured = weakref.ref(made)
        made.place, self.place = self.place, None
        if self.cost is not None:
            made.handshake = self.bound.handshake
            made.cost = TLS_COST + made.handshake
            self.bound.connections.grew(made.cost - self.cost)
            self.cost = None
            made.begin_handshake()
        made.set_close_callback(on_close)
        future = made.wait_for_handshake()
        future.add_done_callback(lambda done: made.close() if done.cancelled() else None)
        return future


class BoundedIOStream(Bounded):
    pass


class BoundedSSLIOStream(Bounded, Shaking):
    def begin_handshake(self) -> None:
        """As a server's: it is charged so much until then that who never goes on may be closed."""
        self.bound.waits_for_request(self, self)

    def _finish_ssl_connect(self) -> None:
        self.bound.has_request(self)
        super()._finish_ssl_connect()

    def close_fd(self) -> None:
        self.bound.has_request(self)
        super().close_fd()

    def _has_more(self) -> bool:
        return super()._has_more() or (isinstance(self.socket, ssl.SSLSocket) and self.socket.pending() > 0)


def bounded(stream: IOStream, bound: Bound, place: Place | None = None) -> IOStream:
    """`stream`, which is fresh, as one of a server's: it is charged, and gives back its place when it is closed."""
    made = opened(stream, BoundedSSLIOStream if isinstance(stream, SSLIOStream) else BoundedIOStream, bound, place)
    if isinstance(made, BoundedSSLIOStream):
        made.begin_handshake()
    return made


def taken_over(stream: IOStream, bound: Bound, message: Message | None = None) -> IOStream:
    """The same of one that is connected, and may have read ahead; `message` if a websocket reads from it."""
    ahead = cast("Future[bytes]", stream.read_bytes(stream.max_buffer_size, partial=True))
    if stream.closed():
        return stream
    made = made_anew(stream, BoundedSSLIOStream if isinstance(stream, SSLIOStream) else BoundedIOStream, bound)
    if made is None:
        return stream
    made.send()  # with TLS, that its handshake is over already is noticed by a write
    if ahead.done():
        made.ahead = ahead.result()
    made.message = message
    if isinstance(stream, Counted):
        made.place, made.cost, made.is_used = stream.place, stream.cost, stream.is_used
        stream.place = stream.cost = None
        stream.begin_head()  # it has none any more
    return made
