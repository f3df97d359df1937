"""`QuotaTCPClient`: Tornado's TCPClient, its streams bounded by a quota."""

from __future__ import annotations

import asyncio
import datetime
import socket
import ssl
from typing import Any

from tornado.iostream import IOStream
from tornado.netutil import Resolver
from tornado.tcpclient import TCPClient

from eventengine.bridges.tornado.bound import Bound
from eventengine.bridges.tornado.reads import taken_over
from eventengine.quota import ResourceQuota, as_quota

__all__ = ["QuotaTCPClient"]


class QuotaTCPClient(TCPClient):
    """A TCPClient whose streams are charged as those of a `QuotaTCPServer`. The quota's `connections` are for servers.

    Args:
        resolver: As for TCPClient.
        quota: A ResourceQuota, which servers, engines and other clients may share; or its memory alone.

    Raises TypeError or ValueError for what is no quota, and for one of less than 128 KiB.
    """

    def __init__(self, resolver: Resolver | None = None, *, quota: ResourceQuota | str | int) -> None:
        self.quota = as_quota(quota, "tcp")
        super().__init__(resolver)

    async def connect(
        self,
        host: str,
        port: int,
        af: socket.AddressFamily = socket.AF_UNSPEC,
        ssl_options: dict[str, Any] | ssl.SSLContext | None = None,
        max_buffer_size: int | None = None,
        source_ip: str | None = None,
        source_port: int | None = None,
        timeout: float | datetime.timedelta | None = None,  # noqa: ASYNC109  # as Tornado has it
    ) -> IOStream:
        stream = await super().connect(
            host, port, af, ssl_options, max_buffer_size, source_ip, source_port, timeout
        )
        return taken_over(stream, Bound.of(self.quota, asyncio.get_running_loop()))
