"""`QuotaTCPServer`: Tornado's TCPServer, what it holds for its connections bounded by a quota."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from tornado.iostream import IOStream

from eventengine.bridges.tornado.accepting import LimitedServer
from eventengine.bridges.tornado.bound import Bound
from eventengine.bridges.tornado.reads import Bounded, bounded
from eventengine.quota import ResourceQuota, as_quota

__all__ = ["QuotaTCPServer"]


class QuotaTCPServer(LimitedServer):
    """A TCPServer whose streams are bounded, all together, by a quota.

    As with TCPServer, override `handle_stream`; when it raises, its stream is closed. The streams that it is given are
    IOStreams, or SSLIOStreams:

    - What was written and not sent yet is charged. When that is more than there is, connections are closed, first those
      that hold most and have taken least.
    - What a stream has read and not handed over yet is charged. While there is no room, reads wait, and TCP's flow
      control holds the peer back; a `read_bytes` waits until there is room for all that it asks for. One that takes
      more than the quota is closed with StreamBufferFullError, as at `max_buffer_size`. A read that has come in part,
      and to which nothing was added for two seconds while others wait, is closed. What `read_into` reads is not
      charged.
    - A connection is charged 8 KiB for itself, with TLS 48 KiB, and 176 KiB more until its handshake is over: when that
      takes more than five seconds, it may be closed to make room for others.
    - Where the quota has a limit of `connections`, those beyond it stay in the backlog.

    Args:
        quota: A ResourceQuota, which other servers and engines may share; or its memory alone, as in "64MiB".
        **options: As for TCPServer.

    Raises TypeError or ValueError for what is no quota, and for one of less than 128 KiB.
    """

    def __init__(self, *, quota: ResourceQuota | str | int, **options: Any) -> None:
        self.quota = as_quota(quota, "tcp")
        super().__init__(**options)
        # Tornado makes the streams where only private methods reach, and looks for this on the server: found here, it
        # comes before that of any subclass, and once, also where a subclass calls that of another by super().
        self.handle_stream = _Handler(self, self.handle_stream)  # type: ignore[method-assign]


class _Handler:
    def __init__(
        self, server: QuotaTCPServer, handle_stream: Callable[[IOStream, Any], Awaitable[None] | None]
    ) -> None:
        self._server = server
        self._handle_stream = handle_stream

    def __call__(self, stream: IOStream, address: Any) -> Awaitable[None] | None:
        server = self._server
        bound = Bound.of(server.quota, asyncio.get_running_loop())
        stream = bounded(stream, bound, server.claim())
        try:
            handled = self._handle_stream(stream, address)
        except BaseException:
            _close(stream)
            raise
        if handled is None:
            return None
        future = asyncio.ensure_future(handled)
        future.add_done_callback(lambda done: _close(stream) if done.cancelled() or done.exception() else None)
        return future


def _close(stream: IOStream) -> None:
    """That it is dropped is not enough: a log may keep the error, which has the frames."""
    if isinstance(stream, Bounded):  # else it was closed before
        stream.abandon()
