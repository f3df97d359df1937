"""Requests that a QuotaHTTPServer answers itself, with an error, before their handler has: what they want, there is no
room for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, cast

from tornado.httputil import HTTPHeaders, HTTPMessageDelegate, RequestStartLine, ResponseStartLine
from tornado.log import gen_log

if TYPE_CHECKING:
    from tornado.http1connection import HTTP1Connection

    from eventengine.bridges.tornado.streams import Counted

__all__ = ["DEAF", "refuse"]

DEAF: Final = HTTPMessageDelegate()
"""In the place of the application's, which hears nothing more of the request."""

_LINGER: Final = 1.0
"""Seconds that a refused client has to take its answer."""

_REASONS: Final = {
    408: "Request Timeout",
    413: "Content Too Large",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


def refuse(
    connection: HTTP1Connection, line: RequestStartLine | ResponseStartLine | None, code: int, why: str
) -> None:
    """Answers, and closes when that is written; the body is read no further."""
    what = f"{line.method} {line.path.partition('?')[0]}" if isinstance(line, RequestStartLine) else "a request"
    gen_log.info("%s from %s was refused with %d: %s", what, connection.context, code, why)
    stream = cast("Counted | None", connection.stream)
    if stream is not None and (stream.is_answered or stream.closed()):  # no other answer can go into that
        stream.close()
        return
    headers = HTTPHeaders({"Content-Length": "0", "Connection": "close"})
    connection.write_headers(ResponseStartLine("HTTP/1.1", code, _REASONS[code]), headers)
    connection.finish()
    if stream is not None and not stream.closed():  # the client does not read
        asyncio.get_running_loop().call_later(_LINGER, stream.close)
