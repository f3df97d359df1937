"""The heads of a QuotaHTTPServer's requests: charged when they have come, and refused where there is no room.

For each request Tornado has a delegate before its first byte has come, so that each connection that is idle has one: it
is as small as it can be, and makes that of the application when there is a request, if nobody can tell.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Final, cast

from tornado.httputil import HTTPHeaders, HTTPMessageDelegate, RequestStartLine, ResponseStartLine

from eventengine.bridges.tornado.bodies import Body
from eventengine.bridges.tornado.endings import has_ended
from eventengine.bridges.tornado.reads import taken_over
from eventengine.bridges.tornado.refusing import DEAF, refuse
from eventengine.bridges.tornado.websockets import Message

if TYPE_CHECKING:
    from tornado.http1connection import HTTP1Connection, HTTP1ServerConnection

    from eventengine.bridges.tornado.httpserver import QuotaHTTPServer
    from eventengine.bridges.tornado.streams import Counted

__all__ = ["Head"]

_FRAMING: Final = frozenset(("Content-Length", "Transfer-Encoding", "Sec-Websocket-Key"))
"""As Tornado writes them."""

_MOST_HEADERS: Final = 256
_HEADER: Final = 320
"""Bytes that a header takes beside its text, or an argument of a query."""

_COPIES: Final = 4
"""Of the path and the query a request has the whole, both parts, and the arguments."""


class Head:
    """An HTTPMessageDelegate before the application's `delegate`; where that is None, it is made with the head.

    It is not derived from Tornado's, which would give it a dictionary.
    """

    __slots__ = ("_connection", "_delegate", "_server", "_server_conn")

    def __init__(
        self,
        delegate: HTTPMessageDelegate | None,
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
        connection = self._connection
        stream = cast("Counted", connection.stream)  # one that was closed before has no headers
        stream.is_used = stream.is_in_body = True
        delegate, self._delegate = self._delegate, DEAF
        if len(headers) > _MOST_HEADERS:
            refuse(connection, start_line, 431, f"it has more than {_MOST_HEADERS} headers")
            return None
        path = start_line.path if isinstance(start_line, RequestStartLine) else ""
        size = _COPIES * len(path) + _HEADER * path.count("&")
        found: dict[str, str] = {}  # what is absent is found so in half the time
        for name, value in headers.get_all():
            size += _HEADER + len(name) + len(value)
            if name in _FRAMING:
                found.setdefault(name, value)
        length = found.get("Content-Length", "0")
        has_body = length != "0" or "Transfer-Encoding" in found
        stream.bound.has_request(self._server_conn)
        size += stream.head_read  # Tornado keeps it as it came, too
        if not (stream.hold_for(connection, size) if stream.closed() else stream.hold_head(size)):
            refuse(connection, start_line, 503, "there is no room for its head")
            return None
        if not has_body and "Sec-Websocket-Key" in found:
            self._upgrade(stream)
        if delegate is None:
            delegate = self._server.make_delegate(self._server_conn, connection)
        self._delegate = delegate
        if not has_body:
            return delegate.headers_received(start_line, headers)
        self._delegate = body = Body(delegate, connection, self._server, self._server_conn)
        return body.begin(start_line, headers, _length_of(length))

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        return cast("HTTPMessageDelegate", self._delegate).data_received(chunk)

    def finish(self) -> None:
        stream = self._connection.stream
        if stream is not None:
            cast("Counted", stream).end_body()
        cast("HTTPMessageDelegate", self._delegate).finish()
        self._delegate = DEAF  # the application's holds a second copy of the body

    def on_connection_close(self) -> None:
        if self._delegate is not None:
            self._delegate.on_connection_close()
        has_ended(self._connection)

    def _upgrade(self, stream: Counted) -> None:
        """To a websocket: what is read is charged from now on, as by a QuotaTCPServer."""
        made = taken_over(stream, stream.bound, Message(str(self._connection.context)))
        made.read_chunk_size = self._server.body_chunk_size
        made.set_nodelay(False)  # as Tornado's is between requests
        self._connection.stream = cast("HTTP1ServerConnection", self._server_conn).stream = made


def _length_of(text: str) -> int:
    """Of a Content-Length; 0 for one that is none: Tornado refuses it, or is older and takes `+5`."""
    text = text.partition(",")[0].strip()
    return min(int(text[-4000:]), 1 << 62) if text.isascii() and text.isdigit() else 0
