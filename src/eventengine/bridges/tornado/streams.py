"""Tornado's streams, with what they have written and not sent charged to a quota.

`write_to_fd` and `close_fd` are what Tornado's BaseIOStream offers its subclasses to override; `write` is public. A
stream comes from Tornado's server as a stock one, on which nothing was read or written yet, and is made anew on its
socket: the server has no other way to say what class it should be.
"""

from __future__ import annotations

from collections.abc import Callable

from tornado.concurrent import Future
from tornado.iostream import IOStream, SSLIOStream

from eventengine.admission import Admission, Unsent

__all__ = ["counted"]


class _Counted(IOStream):
    """What both kinds have besides Tornado's."""

    unsent: Unsent

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


class _CountedIOStream(_Counted):
    pass


class _CountedSSLIOStream(_Counted, SSLIOStream):
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

    made.unsent = Unsent(admission, made.send, cut)
    return made
