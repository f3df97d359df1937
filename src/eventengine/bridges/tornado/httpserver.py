"""`QuotaHTTPServer`: Tornado's HTTPServer, what it holds for its connections bounded by a quota.

Tornado holds a body whole before it calls the handler. Its length stands in the headers, so it is admitted before its
first byte is read (see `admission`), and charged until the connection's next request may begin, or it was closed; but
where the client has left and the handler works on, until that has ended, which an HTTP1Connection's `_write_finished`
says. So are its head and what a connection costs itself. Else only Tornado's public hooks are used: `start_request` and
`on_close`, an `HTTPMessageDelegate` around the application's, and that reading waits for what `headers_received` and
`data_received` return; how writes are counted stands in `streams`.

A stream reads ahead, up to its `read_chunk_size`, and so the beginning of a body comes with the headers. What waits to
be admitted is not charged for that, so it is kept small until a first body is received, and while there is little room.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, cast

from tornado.httpserver import HTTPServer
from tornado.httputil import (
    HTTPHeaders,
    HTTPMessageDelegate,
    HTTPServerConnectionDelegate,
    HTTPServerRequest,
    RequestStartLine,
    ResponseStartLine,
)
from tornado.iostream import IOStream
from tornado.log import gen_log

from eventengine.admission import Admission
from eventengine.bridges.tornado.accepting import LimitedServer
from eventengine.bridges.tornado.bound import Bound
from eventengine.bridges.tornado.reads import taken_over
from eventengine.bridges.tornado.streams import READ_AHEAD, Counted, call_when_finished, counted
from eventengine.bridges.tornado.websockets import Message
from eventengine.memory_quota import format_size
from eventengine.quota import as_quota
from eventengine.upload import Upload

if TYPE_CHECKING:
    from tornado.http1connection import HTTP1Connection, HTTP1ServerConnection
    from tornado.httputil import HTTPConnection

    from eventengine.quota import ResourceQuota

__all__ = ["QuotaHTTPServer"]

_FORMS: Final = ("multipart/form-data", "application/x-www-form-urlencoded")
"""Of these Tornado keeps a copy in parts, beside the body."""

_FRAMING: Final = frozenset(("Content-Length", "Transfer-Encoding", "Sec-Websocket-Key"))
"""As Tornado writes them."""

_PIECE: Final = 64
"""What a piece costs besides its bytes where they are kept in a list, as by Tornado before 6.6."""

_GROWTH: Final = 8
"""A bytearray that grows, in which later ones keep a body, has room for an eighth more."""

_LINGER: Final = 1.0
"""Seconds that a refused client has to take its answer."""

_NOBODY: Final[frozenset[str]] = frozenset()
"""Whom a server trusts that was told nothing. Tornado makes an empty set for each connection, of 216 bytes, which is as
much as is added here to one that is idle."""

_DEAF: Final = HTTPMessageDelegate()

_MOST_HEADERS: Final = 256
_HEADER: Final = 320
"""Bytes that a header takes beside its text, or an argument of a query."""

_COPIES: Final = 4
"""Of the path and the query a request has the whole, both parts, and the arguments."""

_REASONS: Final = {
    408: "Request Timeout",
    413: "Content Too Large",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


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
        return _Admitted(super().start_request(server_conn, request_conn), connection, self, server_conn)

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


class _Admitted(HTTPMessageDelegate):
    """Stands before the application's delegate."""

    # What most requests leave as it is, so that none sets it.
    _streams = False
    _copies = 1
    _upload: Upload | None = None
    _left = 0  # of what room was asked for
    _waiter: asyncio.Future[None] | None = None
    _is_refused = _is_cut_short = False
    _start_line: RequestStartLine | ResponseStartLine | None = None

    def __init__(
        self,
        delegate: HTTPMessageDelegate,
        connection: HTTP1Connection,
        server: QuotaHTTPServer,
        server_conn: object,
    ) -> None:
        self._delegate = delegate
        self._connection = connection
        self._server = server
        self._server_conn = server_conn

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        stream = cast("Counted", self._connection.stream)  # one that was closed before has no headers
        self._start_line = start_line
        stream.is_used = stream.is_in_body = True
        if len(headers) > _MOST_HEADERS:
            self._delegate = _DEAF  # that of the application hears nothing of it
            self._refuse(431, f"it has more than {_MOST_HEADERS} headers")
            return None
        path = start_line.path if isinstance(start_line, RequestStartLine) else ""
        size = _COPIES * len(path) + _HEADER * path.count("&")
        found: dict[str, str] = {}  # what is absent is found so in half the time
        for name, value in headers.get_all():
            size += _HEADER + len(name) + len(value)
            if name in _FRAMING:
                found.setdefault(name, value)
        length = _length_of(found.get("Content-Length", ""))
        has_body = length > 0 or "Transfer-Encoding" in found
        stream.bound.has_request(self._server_conn)
        size += stream.head_read  # Tornado keeps it as it came, too
        if not (stream.hold_for(self._connection, size) if stream.closed() else stream.hold_head(size)):
            self._delegate = _DEAF
            self._refuse(503, "there is no room for its head")
            return None
        if not has_body and "Sec-Websocket-Key" in found:
            self._upgrade(stream)
        streams = self._delegate.headers_received(start_line, headers)
        if not has_body:
            return streams
        self._streams = streams is not None
        stream.body_left = length
        if streams is not None:
            return self._begin_to_stream(streams, length)
        most = self._server.conn_params.max_body_size
        if self._connection.stream is None or length > (stream.max_buffer_size if most is None else most):
            return None  # it was detached, or Tornado refuses it
        if headers.get("Content-Type", "").startswith(_FORMS):
            self._copies = 2
        room = stream.most
        if room is not None and length * self._copies > room:
            self._refuse_as_too_large()
            return None
        upload = self._upload = self._server.begin_upload(self._server_conn, self._connection, self._on_stalled)
        if not length:
            return None
        waits = self._ask(upload, length)
        if waits is None:
            stream.begin_body(self._server.body_chunk_size)
        return waits

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        if self._streams:
            return self._pass_on(chunk)
        upload = self._upload
        if upload is None:
            upload = self._upload = self._server.begin_upload(
                self._server_conn, self._connection, self._on_stalled
            )
        if self._is_over:  # whoever unpacks a body goes on with what he has
            self._is_cut_short = True
            return None
        upload.moved()
        if len(chunk) > self._left:  # chunked, or decompressed
            more = len(chunk) - self._left
            besides = more // _GROWTH + _PIECE
            most = cast("Counted", self._connection.stream).most
            if most is not None:
                if not upload.held:  # Tornado knows the last piece besides, and one that has come may have to wait
                    besides += min(self._server.body_chunk_size, most // 64)
                if upload.held + more * self._copies + besides > most:
                    self._refuse_as_too_large()
                    return None
            room = self._ask(upload, more, besides)
            if room is not None:
                return self._receive_later(room, chunk)
            cast("Counted", self._connection.stream).begin_body(self._server.body_chunk_size)
        self._left -= len(chunk)
        return self._delegate.data_received(chunk)

    def finish(self) -> None:
        if self._upload is not None:
            if self._streams or self._is_cut_short:
                self._upload.end()
            else:
                self._upload.complete()
        stream = self._connection.stream
        if isinstance(stream, Counted):
            stream.end_body()
        delegate, self._delegate = self._delegate, _DEAF  # it holds a second copy of the body
        if self._is_cut_short:
            delegate.on_connection_close()
        else:
            delegate.finish()

    def on_connection_close(self) -> None:
        if self._upload is not None:
            self._upload.end()
        self._delegate.on_connection_close()

    def _upgrade(self, stream: Counted) -> None:
        """To a websocket: what is read is charged from now on, as by a QuotaTCPServer."""
        made = taken_over(stream, stream.bound, Message(str(self._connection.context)))
        made.read_chunk_size = self._server.body_chunk_size
        made.set_nodelay(False)  # as Tornado's is between requests
        self._connection.stream = cast("HTTP1ServerConnection", self._server_conn).stream = made

    async def _begin_to_stream(self, prepared: Awaitable[None], length: int) -> None:
        """A body that its handler takes in pieces is charged one piece, until its end."""
        await prepared
        stream = self._connection.stream
        if stream is None or stream.closed():
            return
        server = self._server
        upload = self._upload = server.begin_upload(self._server_conn, self._connection, self._on_stalled)
        size = min(length or server.body_chunk_size, server.body_chunk_size, server.admission().most or 1 << 62)
        waits = self._ask(upload, size)
        if waits is not None:
            await waits
        else:
            cast("Counted", stream).begin_body(server.body_chunk_size)

    def _pass_on(self, chunk: bytes) -> Awaitable[None] | None:
        upload = self._upload
        if self._is_over or upload is None:
            self._is_cut_short = True
            return None
        upload.moved()
        handled = self._delegate.data_received(chunk)
        return None if handled is None else upload.while_nothing_is_read(handled)

    async def _receive_later(self, room: Awaitable[None], chunk: bytes) -> None:
        await room
        if self._is_over:
            self._is_cut_short = True
            return
        self._left -= len(chunk)
        passed_on = self._delegate.data_received(chunk)
        if passed_on is not None:
            await passed_on

    def _ask(self, upload: Upload, size: int, besides: int = 0) -> Awaitable[None] | None:
        """Asks for room: None if it is there, else what is done when it is, or when the connection was closed."""
        self._left += size
        if upload.ask(size * self._copies + besides, self._go_on, grows=besides > 0):
            return None
        return self._wait()

    async def _wait(self) -> None:
        stream = cast("Counted | None", self._connection.stream)
        if stream is None or self._is_over or self._upload is None or not self._upload.wanted:
            return
        self._waiter = asyncio.get_running_loop().create_future()
        stream.on_closed = self._go_on  # Tornado then finds that it was closed
        try:
            await self._waiter
            stream.begin_body(self._server.body_chunk_size)
        except asyncio.CancelledError:  # the program ends: to be told so is no news for Tornado's log
            stream.close()
        finally:
            self._waiter = stream.on_closed = None

    @property
    def _is_over(self) -> bool:
        stream = self._connection.stream
        return self._is_refused or stream is None or stream.closed()

    def _go_on(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _on_stalled(self) -> None:
        upload = self._upload
        if upload is not None and upload.wanted and upload.is_too_large:
            self._refuse(413, "its body takes more room than other connections leave")
        elif upload is not None and upload.wanted:
            self._refuse(503, "its body waits for room, and so do others")
        else:
            self._refuse(408, "its body has stalled while others wait for room")
        self._go_on()

    def _refuse_as_too_large(self) -> None:
        twice = ", twice as that of a form," if self._copies > 1 else ""
        most = cast("Counted", self._connection.stream).most or 0
        self._refuse(413, f"its body takes more room{twice} than one may have, {format_size(most)}")

    def _refuse(self, code: int, why: str) -> None:
        """Answers, and closes when that is written; the body is read no further."""
        if self._is_refused:
            return
        self._is_refused = True
        line = self._start_line
        what = (
            f"{line.method} {line.path.partition('?')[0]}" if isinstance(line, RequestStartLine) else "a request"
        )
        gen_log.info("%s from %s was refused with %d: %s", what, self._connection.context, code, why)
        stream = cast("Counted | None", self._connection.stream)
        if stream is not None and (stream.is_answered or stream.closed()):  # no other answer can go into that
            stream.close()
            return
        headers = HTTPHeaders({"Content-Length": "0", "Connection": "close"})
        self._connection.write_headers(ResponseStartLine("HTTP/1.1", code, _REASONS[code]), headers)
        self._connection.finish()
        if stream is not None and not stream.closed():  # the client does not read
            asyncio.get_running_loop().call_later(_LINGER, stream.close)


def _length_of(text: str) -> int:
    """Of a Content-Length; 0 where there is none, or one that Tornado refuses."""
    if not text:
        return 0
    text = text.partition(",")[0].strip()
    return min(int(text[-4000:]), 1 << 62) if text.isascii() and text.isdigit() else 0
