"""What clients that stall cost a Tornado site, stock and with a quota.

    python benchmarks/attacks.py [--quota 64MiB] [--stalled 200] [--honest 20]

Linux only. Each attack is made on each site, in a process of its own. *Uploads*: STALLED clients send 6 MiB of an
upload of 8 MiB and then nothing; a second later HONEST ones upload 4 MiB each. *Downloads*: STALLED clients ask for 10
MiB, which the handler writes without waiting, and read nothing; a second later HONEST ones ask for 4 MiB and read all
of it. The honest check the digest of what they sent or got; every fifth moves 1 MiB/s. Meanwhile a small GET is sent
every 100 ms. It prints by how much the resident memory of the process grew, how many of the honest were served and how
long the last took, and the longest time to answer a GET.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from time import perf_counter

MIB = 1 << 20
BODY = 4 * MIB
SITE = """
import asyncio, hashlib, sys
from tornado.httpserver import HTTPServer
from tornado.web import Application, RequestHandler

BODY = bytes(range(256)) * (10 << 12)

class Body(RequestHandler):
    def get(self):
        size = int(self.get_argument("MiB")) << 20
        self.set_header("Content-Length", size)
        for start in range(0, size, 1 << 16):
            self.write(BODY[start : start + (1 << 16)])
            self.flush()

class Digest(RequestHandler):
    def get(self):
        self.write("here")
    def put(self):
        self.write(hashlib.sha256(self.request.body).hexdigest())

async def main():
    if sys.argv[1] != "stock":
        from eventengine.bridges.tornado import QuotaHTTPServer
        HTTPServer.configure(QuotaHTTPServer, quota=sys.argv[1])
    server = Application([("/", Digest), ("/body", Body)]).listen(0, "127.0.0.1")
    print(next(iter(server._sockets.values())).getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


class Site:
    """A process with the site, stock or with a quota."""

    def __init__(self, quota: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SITE, quota], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def resident(self) -> int:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def close(self) -> None:
        self.process.communicate(timeout=30)


async def request(site: Site, head: str, body: bytes = b"", rate: float = 0.0) -> bytes:
    """What the site answers, with the body sent at `rate` bytes a second, or at once."""
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    try:
        writer.write(f"{head} / HTTP/1.1\r\nHost: site\r\nContent-Length: {len(body)}\r\n\r\n".encode())
        piece = int(rate / 10) or len(body) or 1
        for start in range(0, len(body), piece):
            writer.write(body[start : start + piece])
            await writer.drain()
            if rate:
                await asyncio.sleep(0.1)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = int(answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if not answer.startswith(b"HTTP/1.1 200"):
            raise ConnectionError(answer.partition(b"\r\n")[0].decode())
        return await reader.readexactly(length)
    finally:
        writer.close()


async def stall_in_upload(site: Site) -> None:
    """Sends 6 MiB of 8, and no more, until the site closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    try:
        writer.write(b"PUT / HTTP/1.1\r\nHost: site\r\nContent-Length: %d\r\n\r\n" % (8 * MIB))
        writer.write(bytes(6 * MIB))
        await writer.drain()
        await reader.read()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def upload(site: Site, number: int) -> float:
    body = hashlib.sha256(b"%d" % number).digest() * (4 * MIB // 32)
    started = perf_counter()
    answer = await request(site, "PUT", body, MIB if number % 5 == 0 else 0.0)
    if answer.decode() != hashlib.sha256(body).hexdigest():
        raise ValueError("a wrong digest")
    return perf_counter() - started


async def stall_in_download(site: Site) -> None:
    """Asks for 10 MiB, and reads none of it."""
    with socket.socket() as client:
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, ("127.0.0.1", site.port))
        await loop.sock_sendall(client, b"GET /body?MiB=10 HTTP/1.1\r\nHost: site\r\n\r\n")
        await asyncio.sleep(3600)


async def download(site: Site, number: int) -> float:
    started = perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    try:
        writer.write(b"GET /body?MiB=4 HTTP/1.1\r\nHost: site\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        digest = hashlib.sha256()
        for _ in range(40):
            digest.update(await reader.readexactly(BODY // 40))
            if number % 5 == 0:
                await asyncio.sleep(0.1)
    finally:
        writer.close()
    if digest.digest() != hashlib.sha256((bytes(range(256)) * (BODY // 256))[: BODY // 40 * 40]).digest():
        raise ValueError("a wrong digest")
    return perf_counter() - started


async def attack(
    site: Site,
    stall: Callable[[Site], Coroutine[None, None, None]],
    serve: Callable[[Site, int], Coroutine[None, None, float]],
    stalled: int,
    honest: int,
) -> str:
    await request(site, "PUT", bytes(MIB))
    before = most = site.resident()
    slowest = 0.0
    attackers = [asyncio.create_task(stall(site)) for _ in range(stalled)]
    await asyncio.sleep(1.0)
    served_ones = asyncio.gather(*(serve(site, number) for number in range(honest)), return_exceptions=True)
    started = perf_counter()
    while not served_ones.done() or perf_counter() - started < 10:
        asked = perf_counter()
        await request(site, "GET")
        slowest = max(slowest, perf_counter() - asked)
        most = max(most, site.resident())
        await asyncio.sleep(0.1)
    times = [each for each in await served_ones if isinstance(each, float)]
    for each in attackers:
        each.cancel()
    await asyncio.gather(*attackers, return_exceptions=True)
    served, last = f"{len(times)} of {honest}", max(times, default=0.0)
    return f"{(most - before) / MIB:>12.0f} {served:>16} {last:>14.1f} {slowest:>14.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quota", default="64MiB")
    parser.add_argument("--stalled", type=int, default=200)
    parser.add_argument("--honest", type=int, default=20)
    options = parser.parse_args()
    print(f"{'attack':<10} {'site':<8} {'grown, MiB':>12} {'honest served':>16}", end="")
    print(f" {'last after, s':>14} {'slowest GET, s':>14}")
    for title, stall, serve in (
        ("uploads", stall_in_upload, upload),
        ("downloads", stall_in_download, download),
    ):
        for quota in ("stock", options.quota):
            site = Site(quota)
            try:
                line = asyncio.run(attack(site, stall, serve, options.stalled, options.honest))
                print(f"{title:<10} {quota:<8} {line}", flush=True)
            finally:
                site.close()


if __name__ == "__main__":
    main()
