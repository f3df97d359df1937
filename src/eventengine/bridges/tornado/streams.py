"""Tornado's streams, with what they have written and not sent charged to a quota.

`read_from_fd`, `write_to_fd` and `close_fd` are what Tornado's BaseIOStream has its subclasses override. A
stream comes from Tornado's server as a stock one, on which nothing was read or written yet, and is made anew on its
socket: the server has no other way to say what class it should be.
"""

from __future__ import annotations

from collections.abc import Callable

from tornado.concurrent import Future
from tornado.iostream import IOStream, SSLIOStream

from eventengine.admission import Admission
from eventengine.unsent import Pieces

__all__ = ["Counted", "counted"]


class Counted(IOStream):
    """What both kinds have besides Tornado's.

    Attributes:
        on_closed: Called when the stream was closed, from within that.
    """

    unsent: Pieces
    on_closed: Callable[[], object] | None = None
    _is_ahead = False

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        # While nobody reads, Tornado does, to notice that the peer has gone: once is enough for that.
        if self.reading():
            self._is_ahead = False
        elif self._is_ahead:
            return None
        else:
            self._is_ahead = True
        return super().read_from_fd(buf)

    def write(self, data: bytes | memoryview) -> Future[None]:
        unsent = self.unsent
        unsent.add(memoryview(data).nbytes)
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
            self.unsent.sent(n)
        return n

    def send(self) -> None:
        """Sends what can be sent now: a write of nothing tries to."""
        super().write(b"")

    def close_fd(self) -> None:
        super().close_fd()
        self.unsent.end()
        if self.on_closed is not None:
            self.on_closed()


class _CountedIOStream(Counted):
    pass


class _CountedSSLIOStream(Counted, SSLIOStream):
    pass


def counted(stream: IOStream, admission: Admission, on_cut: Callable[[], object]) -> IOStream:
    """`stream`, which is fresh, as one whose writes are charged; `on_cut` is called when it is closed for them."""
    sock = stream.socket
    if sock is None:  # it was closed at once
        return stream
    kind = _CountedSSLIOStream if isinstance(stream, SSLIOStream) else _CountedIOStream
    if isinstance(stream, SSLIOStream):
        stream.io_loop.remove_handler(stream.fileno())  # it waits for the handshake already
    made = kind(sock, max_buffer_size=stream.max_buffer_size, read_chunk_size=stream.read_chunk_size)

    def cut() -> None:
        on_cut()
        made.close()

    made.unsent = Pieces(admission, made.send, cut)
    return made
