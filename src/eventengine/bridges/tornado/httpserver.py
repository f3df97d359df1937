"""`QuotaHTTPServer`: Tornado's HTTPServer, what it holds for its connections bounded by a quota.

A body is charged from before its first byte until the connection's next request may begin, or it was closed; but where
the client has left and the handler works on, until that has ended, which an HTTP1Connection's `_write_finished` says.
So are its head and what a connection costs itself. Else only Tornado's public hooks are used: `start_request` and
`on_close`, and an `HTTPMessageDelegate` around the application's (see `heads` and `bodies`); how writes are counted
stands in `streams`.

A stream reads ahead, up to its `read_chunk_size`, and so the beginning of a body comes with the headers. What waits to
be admitted is not charged for that, so it is kept small until a first body is received, and while there is little room.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast

from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPMessageDelegate, HTTPServerConnectionDelegate, HTTPServerRequest
from tornado.iostream import IOStream
from tornado.routing import Router

from eventengine.admission import Admission
from eventengine.bridges.tornado.accepting import LimitedServer
from eventengine.bridges.tornado.bound import Bound
from eventengine.bridges.tornado.endings import call_when_finished
from eventengine.bridges.tornado.heads import Head
from eventengine.bridges.tornado.streams import READ_AHEAD, Counted, counted
from eventengine.quota import as_quota
from eventengine.upload import Upload

if TYPE_CHECKING:
    from tornado.http1connection import HTTP1Connection
    from tornado.httputil import HTTPConnection

    from eventengine.quota import ResourceQuota

__all__ = ["QuotaHTTPServer"]

_NOBODY: Final[frozenset[str]] = frozenset()
"""Whom a server trusts that was told nothing. Tornado makes an empty set for each connection, of 216 bytes, which is as
much as is added here to one that is idle."""


class QuotaHTTPServer(LimitedServer, HTTPServer):
    """An HTTPServer whose request bodies and unsent answers are bounded, all together, by a quota.

    Everything else is Tornado's: arguments, application, handlers. `HTTPServer.configure(QuotaHTTPServer,
    quota=quota)` has `Application.listen` make one.

    A body waits, unread, until the quota has room for its `Content-Length`; TCP's flow control holds its sender back
    meanwhile. The smallest goes first, and who has waited for ten seconds before all. One that is longer than the quota
    is answered with 413. One that has sent nothing for two seconds while others wait is answered with 408 and closed;
    who keeps sending, however slowly, is not. A chunked body asks for room as it grows. One that a handler with
    `@stream_request_body` takes is charged a piece of it; what the handler keeps, it may charge itself.

    What was written and not sent yet is charged; when that is more than there is, connections are cut, first those that
    hold most and have taken least. Where the quota has a limit of `connections`, those beyond it stay in the backlog.

    Args:
        request_callback: As for HTTPServer.
        quota: A ResourceQuota, which other servers and engines may share; or its memory alone, as in "64MiB".
        **options: As for HTTPServer.

    Raises TypeError or ValueError for what is no quota, and for one of less than 128 KiB.
    """

    def initialize(
        self,
        request_callback: HTTPServerConnectionDelegate | Callable[[HTTPServerRequest], None],
        *arguments: object,
        quota: ResourceQuota | str | int | None = None,
        **options: object,
    ) -> None:
        if quota is None:
            raise TypeError(
                'QuotaHTTPServer needs a quota, as in HTTPServer.configure(QuotaHTTPServer, quota="64MiB")'
            )
        self.quota = as_quota(quota, "http")
        self.body_chunk_size = READ_AHEAD  # each stream tells
        self._bounds: dict[asyncio.AbstractEventLoop, Bound] = {}
        self._uploads: dict[object, tuple[Upload, HTTP1Connection]] = {}  # the last of each connection
        begins = getattr(request_callback, "start_request", None)  # a function that takes requests has none
        self._is_lazy = begins is None or getattr(begins, "__func__", None) is Router.start_request
        super().initialize(request_callback, *cast("tuple[Any]", arguments), **cast("dict[str, Any]", options))

    def handle_stream(self, stream: IOStream, address: object) -> None:
        stream = counted(stream, self._bound(), self.claim())
        self.body_chunk_size = stream.read_chunk_size
        stream.read_chunk_size = min(READ_AHEAD, self.body_chunk_size)
        super().handle_stream(  # pyright: ignore[reportUnknownMemberType]  # Tornado's tuple has no parameters
            stream, cast("tuple[Any, ...]", address)
        )

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        self._end_upload(server_conn)
        connection = cast("HTTP1Connection", request_conn)
        stream = connection.stream
        if isinstance(stream, Counted):
            stream.begin_head()
            stream.bound.waits_for_request(server_conn, stream)
            if not stream.is_used:  # its first
                context: Any = connection.context
                if not getattr(context, "trusted_downstream", True):
                    context.trusted_downstream = _NOBODY
        delegate = None if self._is_lazy else self.make_delegate(server_conn, connection)
        return cast("HTTPMessageDelegate", Head(delegate, connection, self, server_conn))

    def make_delegate(self, server_conn: object, request_conn: HTTP1Connection) -> HTTPMessageDelegate:
        """The application's, as HTTPServer gives it."""
        return super().start_request(server_conn, request_conn)

    def on_close(self, server_conn: object) -> None:
        self._end_upload(server_conn)
        for bound in self._bounds.values():
            bound.has_request(server_conn)
        super().on_close(server_conn)

    def begin_upload(
        self, server_conn: object, request_conn: HTTP1Connection, on_cut: Callable[[], object]
    ) -> Upload:
        """That of the connection's request; it ends with the request."""
        upload = Upload(self.admission(), on_cut)
        self._uploads[server_conn] = upload, request_conn
        return upload

    def _end_upload(self, server_conn: object) -> None:
        found = self._uploads.pop(server_conn, None)
        if found is not None:
            upload, request_conn = found
            is_detached = request_conn.stream is None  # nobody would say when it has finished
            if upload.is_complete and upload.held and not (request_conn._write_finished or is_detached):
                call_when_finished(upload.end, request_conn)
            else:
                upload.end()

    def admission(self) -> Admission:
        """That of the running loop."""
        return self._bound().admission

    def _bound(self) -> Bound:
        loop = asyncio.get_running_loop()
        found = self._bounds.get(loop)
        if found is None:
            found = self._bounds[loop] = Bound.of(self.quota, loop)
        return found
