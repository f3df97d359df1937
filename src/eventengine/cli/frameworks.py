"""What the demo attacks: for each framework a site as a user writes it, the lines that bound it, and what clients ask.

The programs are text, for only the process that runs one imports a framework.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

__all__ = ["FRAMEWORKS", "HELD", "MIB", "QUOTA", "TIMEOUT", "Framework"]

MIB: Final = 1 << 20
QUOTA: Final = 64  # MiB
TIMEOUT: Final = 15.0
HELD: Final = 6 * MIB  # by a stock site, for each client that attacks
UPLOAD, HONEST_UPLOAD = 8 * MIB, 4 * MIB
PAGE: Final = bytes(range(256)) * (HELD >> 8)

_TORNADO: Final = """
import asyncio, hashlib, sys
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

class Digest(RequestHandler):
    def put(self):
        self.write(hashlib.sha256(self.request.body).hexdigest())

async def main():
    sockets = bind_sockets(0, "127.0.0.1")
    HTTPServer(Application([("/", Digest)])).add_sockets(sockets)
    print(sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""
_BOUNDED_TORNADO: Final = f"""\
from tornado.httpserver import HTTPServer
from eventengine.bridges.tornado import QuotaHTTPServer
HTTPServer.configure(QuotaHTTPServer, quota="{QUOTA}MiB")
"""
_TWISTED: Final = f"""
import sys
from twisted.internet import reactor
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

class Page(Resource):
    isLeaf = True
    def render_GET(self, request):
        request.setHeader("Content-Length", str({HELD}))
        for _ in range({HELD >> 16}):
            request.write(bytes(range(256)) * 256)
        request.finish()
        return NOT_DONE_YET

port = reactor.listenTCP(0, Site(Page()), interface="127.0.0.1")
print(port.getHost().port, flush=True)
reactor.callInThread(lambda: (sys.stdin.read(), reactor.callFromThread(reactor.stop)))
reactor.run()
"""
_BOUNDED_TWISTED: Final = f"""\
from eventengine.bridges.twisted.reactor import install
install(quota="{QUOTA}MiB")
"""


def _upload(port: int) -> bool:
    """Whether the site answered with the digest of what it was sent."""
    body = os.urandom(32) * (HONEST_UPLOAD // 32)
    answer = _exchange(port, b"PUT / HTTP/1.1\r\nContent-Length: %d\r\n" % len(body), body)
    return answer == hashlib.sha256(body).hexdigest().encode()


def _download(port: int) -> bool:
    """Whether what the site sent has the digest of the page."""
    return hashlib.sha256(_exchange(port, b"GET / HTTP/1.1\r\n")).digest() == hashlib.sha256(PAGE).digest()


def _exchange(port: int, head: bytes, body: bytes = b"") -> bytes:
    """The body of the answer, which is read as it comes; none if it is not that all is well."""
    with socket.create_connection(("127.0.0.1", port), TIMEOUT) as client:
        client.sendall(head + b"Host: site\r\nConnection: close\r\n\r\n")
        client.sendall(body)
        answer = bytearray()
        while part := client.recv(1 << 18):
            answer += part
    status, _, content = bytes(answer).partition(b"\r\n\r\n")
    return content if status.startswith(b"HTTP/1.1 200 ") else b""


@dataclass(frozen=True)
class Framework:
    name: str
    module: str
    program: str
    bound: str
    does: str
    request: bytes  # that which an attacking client sends as far as it is taken, before it stalls
    ask: Callable[[int], bool]


FRAMEWORKS: Final = (
    Framework(
        "Tornado",
        "tornado.web",
        _TORNADO,
        _BOUNDED_TORNADO,
        f"send {HELD // MIB} MiB of an upload of {UPLOAD // MIB} MiB, and then nothing",
        b"PUT / HTTP/1.1\r\nHost: site\r\nContent-Length: %d\r\n\r\n" % UPLOAD + PAGE,
        _upload,
    ),
    Framework(
        "twisted.web",
        "twisted.web",
        _TWISTED,
        _BOUNDED_TWISTED,
        f"ask for a page of {HELD // MIB} MiB, and do not read it",
        b"GET / HTTP/1.1\r\nHost: site\r\n\r\n",
        _download,
    ),
)
