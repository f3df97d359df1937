"""The bodies of a QuotaHTTPServer's requests, charged while they are in the making; a `Body` stands before the
application's delegate from the head of a request that has one.

Tornado holds a body whole before it calls the handler. Its length stands in the headers, so it is admitted before its
first byte is read (see `admission`): reading waits for what `headers_received` and `data_received` return.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Final, cast

from tornado.httputil import HTTPHeaders, HTTPMessageDelegate, RequestStartLine, ResponseStartLine

from eventengine.bridges.tornado.endings import has_ended
from eventengine.bridges.tornado.refusing import DEAF, refuse
from eventengine.memory_quota import format_size

if TYPE_CHECKING:
    from tornado.http1connection import HTTP1Connection

    from eventengine.bridges.tornado.httpserver import QuotaHTTPServer
    from eventengine.bridges.tornado.streams import Counted

__all__ = ["Body"]

_FORMS: Final = ("multipart/form-data", "application/x-www-form-urlencoded")
"""Of these Tornado keeps a copy in parts, beside the body."""

_PIECE: Final = 64
"""What a piece costs besides its bytes where they are kept in a list, as by Tornado before 6.6."""

_GROWTH: Final = 8
"""A bytearray that grows, in which later ones keep a body, has room for an eighth more."""


class Body(HTTPMessageDelegate):
    """One request's."""

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
        self._upload = server.begin_upload(server_conn, connection, self._on_stalled)
        self._streams = False  # to a handler that takes it in pieces
        self._copies = 1
        self._left = 0  # of what room was asked for
        self._waiter: asyncio.Future[None] | None = None
        self._is_refused = self._is_cut_short = False
        self._start_line: RequestStartLine | ResponseStartLine | None = None

    def begin(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders, length: int
    ) -> Awaitable[None] | None:
        """Its head has come; a `length` of 0: it is not known."""
        stream = cast("Counted", self._connection.stream)
        self._start_line = start_line
        prepared = self._delegate.headers_received(start_line, headers)
        stream.body_left = length
        if prepared is not None:
            self._streams = True
            return self._begin_to_stream(prepared, length)
        most = self._server.conn_params.max_body_size
        if self._connection.stream is None or length > (stream.max_buffer_size if most is None else most):
            return None  # it was detached, or Tornado refuses it
        if headers.get("Content-Type", "").startswith(_FORMS):
            self._copies = 2
        room = stream.most
        if room is not None and length * self._copies > room:
            self._refuse_as_too_large()
            return None
        if not length:
            return None
        waits = self._ask(length)
        if waits is None:
            stream.begin_body(self._server.body_chunk_size)
        return waits

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        if self._is_over:  # whoever unpacks a body goes on with what he has
            self._is_cut_short = True
            return None
        self._upload.moved()
        if self._streams:
            handled = self._delegate.data_received(chunk)
            return None if handled is None else self._upload.while_nothing_is_read(handled)
        if len(chunk) > self._left:  # chunked, or decompressed
            more = len(chunk) - self._left
            besides = more // _GROWTH + _PIECE
            stream = cast("Counted", self._connection.stream)
            most = stream.most
            if most is not None:
                held = self._upload.held
                if not held:  # Tornado knows the last piece besides, and one that has come may have to wait
                    besides += min(self._server.body_chunk_size, most // 64)
                if held + more * self._copies + besides > most:
                    self._refuse_as_too_large()
                    return None
            room = self._ask(more, besides)
            if room is not None:
                return self._receive_later(room, chunk)
            stream.begin_body(self._server.body_chunk_size)
        self._left -= len(chunk)
        return self._delegate.data_received(chunk)

    def finish(self) -> None:
        if self._streams or self._is_cut_short:
            self._upload.end()
        else:
            self._upload.complete()
        if self._is_cut_short:
            self._delegate.on_connection_close()
            has_ended(self._connection)
        else:
            self._delegate.finish()
        self._delegate = DEAF  # the application's holds a second copy of the body

    def on_connection_close(self) -> None:
        self._upload.end()
        self._delegate.on_connection_close()

    async def _begin_to_stream(self, prepared: Awaitable[None], length: int) -> None:
        """A body that its handler takes in pieces is charged one piece, until its end."""
        await prepared
        if self._is_over:
            return
        server = self._server
        size = min(length or server.body_chunk_size, server.body_chunk_size, server.admission().most or 1 << 62)
        waits = self._ask(size)
        if waits is not None:
            await waits
        else:
            cast("Counted", self._connection.stream).begin_body(server.body_chunk_size)

    async def _receive_later(self, room: Awaitable[None], chunk: bytes) -> None:
        await room
        if self._is_over:
            self._is_cut_short = True
            return
        self._left -= len(chunk)
        passed_on = self._delegate.data_received(chunk)
        if passed_on is not None:
            await passed_on

    def _ask(self, size: int, besides: int = 0) -> Awaitable[None] | None:
        """Asks for room: None if it is there, else what is done when it is, or when the connection was closed."""
        self._left += size
        if self._upload.ask(size * self._copies + besides, self._go_on, grows=besides > 0):
            return None
        return self._wait()

    async def _wait(self) -> None:
        stream = cast("Counted | None", self._connection.stream)
        if stream is None or self._is_over or not self._upload.wanted:
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
        if not self._upload.wanted:
            self._refuse(408, "its body has stalled while others wait for room")
        elif self._upload.is_too_large:
            self._refuse(413, "its body takes more room than other connections leave")
        else:
            self._refuse(503, "its body waits for room, and so do others")
        self._go_on()

    def _refuse_as_too_large(self) -> None:
        twice = ", twice as that of a form," if self._copies > 1 else ""
        most = cast("Counted", self._connection.stream).most or 0
        self._refuse(413, f"its body takes more room{twice} than one may have, {format_size(most)}")

    def _refuse(self, code: int, why: str) -> None:
        if not self._is_refused:
            self._is_refused = True
            refuse(self._connection, self._start_line, code, why)
