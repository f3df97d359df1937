"""The sites that `attacks` attacks, each in a process of its own, stock or within a quota.

    python -m benchmarks.sites KIND stock|SIZE [FOLDER]

KIND is one of SITES. With FOLDER, which has `key.pem` and `cert.pem`, it speaks TLS. Prints two ports, of two servers
on one quota; resizes it to what comes as a line on stdin, and ends with that.
"""

from __future__ import annotations

import asyncio
import hashlib
import resource
import sys
import tempfile
from collections.abc import Callable
from typing import Any

BODY = bytes(range(256)) * (10 << 12)
BACKLOG = 4096


def obey(quota: Any) -> None:
    """Until the end of stdin."""
    for line in sys.stdin:
        quota.memory.resize(line.strip())


def tornado(quota: str, folder: str) -> None:
    from tornado.httpserver import HTTPServer
    from tornado.web import Application, RequestHandler
    from tornado.websocket import WebSocketClosedError, WebSocketHandler

    readers: set[Any] = set()

    class Body(RequestHandler):
        def get(self) -> None:
            size = int(self.get_argument("MiB")) << 20
            self.set_header("Content-Length", size)
            for start in range(0, size, 1 << 16):
                self.write(BODY[start : start + (1 << 16)])
                self.flush()

    class Used(RequestHandler):
        def get(self) -> None:
            self.write(str(0 if quota == "stock" else server.quota.memory.used))

    class Slow(RequestHandler):
        async def get(self) -> None:
            await asyncio.sleep(20)
            self.write("done")

    class Digest(RequestHandler):
        def get(self) -> None:
            self.write("here")

        def put(self) -> None:
            self.write(hashlib.sha256(self.request.body).hexdigest())

    class Digests(WebSocketHandler):
        def on_message(self, message: str | bytes) -> None:
            assert isinstance(message, bytes)
            self.write_message(hashlib.sha256(message).hexdigest())

    class Broadcast(WebSocketHandler):
        def open(self, *_: str) -> None:
            readers.add(self)

        def on_close(self) -> None:
            readers.discard(self)

    async def broadcast() -> None:
        """Sends numbered messages of 64 KiB to all, and waits for nobody."""
        number = 0
        while True:
            await asyncio.sleep(0.1)
            number += 1
            for each in list(readers):
                try:
                    each.write_message(number.to_bytes(8) + BODY[8 : 1 << 16], binary=True)
                except WebSocketClosedError:
                    readers.discard(each)

    server: Any = None

    async def main() -> None:
        nonlocal server
        if quota != "stock":
            from eventengine import ResourceQuota
            from eventengine.bridges.tornado import QuotaHTTPServer

            HTTPServer.configure(QuotaHTTPServer, quota=ResourceQuota("site", memory=quota))
        tls = {"certfile": f"{folder}/cert.pem", "keyfile": f"{folder}/key.pem"} if folder else None
        pages = {"/": Digest, "/body": Body, "/ws": Broadcast, "/digest": Digests, "/used": Used, "/slow": Slow}
        site = Application(list(pages.items()))
        servers = [site.listen(0, "127.0.0.1", backlog=BACKLOG, ssl_options=tls) for _ in range(2)]
        server = servers[0]
        sending = asyncio.create_task(broadcast())
        print(*(next(iter(each._sockets.values())).getsockname()[1] for each in servers), flush=True)
        await asyncio.to_thread(obey, getattr(server, "quota", None))
        sending.cancel()

    asyncio.run(main())


def _twisted(quota: str, folder: str, make: Callable[[], Any]) -> None:
    if quota == "stock":
        from twisted.internet import epollreactor

        epollreactor.install()
    else:
        from eventengine.bridges.twisted.reactor import install

        install(quota)
    from twisted.internet import reactor as installed  # noqa: TID251  # this is a program

    reactor: Any = installed
    if folder:
        from pathlib import Path

        from twisted.internet.ssl import PrivateCertificate

        pem = Path(folder, "key.pem").read_bytes() + Path(folder, "cert.pem").read_bytes()
        tls = PrivateCertificate.loadPEM(pem).options()
        ports = [reactor.listenSSL(0, make(), tls, BACKLOG, "127.0.0.1") for _ in range(2)]
    else:
        ports = [reactor.listenTCP(0, make(), BACKLOG, "127.0.0.1") for _ in range(2)]
    print(*(port.getHost().port for port in ports), flush=True)
    quota = getattr(reactor, "quota", None)
    reactor.callInThread(lambda: (obey(quota), reactor.callFromThread(reactor.stop)))
    reactor.run()


def twisted_echo(quota: str, folder: str) -> None:
    from twisted.internet.protocol import Factory, Protocol

    class Echo(Protocol):
        def dataReceived(self, data: bytes) -> None:
            self.transport.write(data)

    _twisted(quota, folder, lambda: Factory.forProtocol(Echo))


def twisted_web(quota: str, folder: str) -> None:
    from twisted.web.resource import Resource
    from twisted.web.server import NOT_DONE_YET, Site
    from twisted.web.static import File

    class Digest(Resource):
        def render_GET(self, request: Any) -> bytes:
            return b"here"

        def render_PUT(self, request: Any) -> bytes:
            digest = hashlib.sha256()
            while piece := request.content.read(1 << 16):
                digest.update(piece)
            return digest.hexdigest().encode()

    class Body(Resource):
        isLeaf = True

        def render_GET(self, request: Any) -> int:
            size = int(request.args[b"MiB"][0]) << 20
            request.setHeader(b"content-length", str(size).encode())
            for sent in range(0, size, 1 << 16):
                start = sent % len(BODY)
                request.write(BODY[start : start + (1 << 16)])
            request.finish()
            return NOT_DONE_YET

    class Used(Resource):
        def render_GET(self, request: Any) -> bytes:
            from twisted.internet import reactor  # noqa: TID251

            return str(0 if quota == "stock" else reactor.quota.memory.used).encode()  # type: ignore[attr-defined]

    class Slow(Resource):
        def render_GET(self, request: Any) -> int:
            from twisted.internet import reactor  # noqa: TID251

            reactor.callLater(20, lambda: (request.write(b"done"), request.finish()))  # type: ignore[attr-defined]
            return NOT_DONE_YET

    root = Resource()
    root.putChild(b"used", Used())
    root.putChild(b"slow", Slow())
    root.putChild(b"", Digest())
    root.putChild(b"body", Body())

    def site() -> Any:
        if quota == "stock":
            return Site(root)
        from twisted.internet import reactor  # noqa: TID251

        from eventengine.bridges.twisted.site import QuotaSite

        return QuotaSite(root, quota=reactor.quota)  # type: ignore[attr-defined]

    with tempfile.NamedTemporaryFile() as large:
        large.truncate(1 << 30)
        root.putChild(b"file", File(large.name))
        _twisted(quota, folder, site)


SITES = {"tornado": tornado, "twisted echo": twisted_echo, "twisted.web": twisted_web}


if __name__ == "__main__":
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    SITES[sys.argv[1]](sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else "")
