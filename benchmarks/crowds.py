"""Very many connections, to sites that are stock or within a quota.

    python -m benchmarks.crowds [--quota 64MiB] [--idle 10000] [--coming 50000]

Linux only. IDLE connections make one request each and stay; printed is what each costs in resident memory. 20 more have
a request in progress meanwhile. Then 200 clients ask for 10 MiB each and read nothing: printed is how many of the idle
and of the 20 were closed by the site. Last, in a fresh process, COMING connections are made, each makes one request and
is closed: printed is by how much the process grew, and what the quota says is in use in the end.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import socket

from benchmarks.attacks import MIB, Site, Stalled, request, stall_in_download

HEAD = b"GET %s HTTP/1.1\r\nHost: site\r\n\r\n"


class Crowd(asyncio.Protocol):
    """One connection that waits; it says whether it was answered, and whether the site has closed it."""

    def __init__(self, path: bytes) -> None:
        self.path = path
        self.answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.is_closed = False
        self.answer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(HEAD % self.path)

    def data_received(self, data: bytes) -> None:
        self.answer += data
        if not self.answered.done():
            self.answered.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        self.is_closed = True
        if not self.answered.done():
            self.answered.set_result(None)


async def open_one(site: Site, number: int, path: bytes = b"/") -> Crowd:
    """From one of many addresses of the loopback network: ports of one run out."""
    loop = asyncio.get_running_loop()
    source = (f"127.0.{1 + number % 50}.2", 0)
    _, made = await loop.create_connection(lambda: Crowd(path), "127.0.0.1", site.port, local_addr=source)
    return made


async def stay(site: Site, count: int) -> str:
    for number in range(200):  # what the first cost is the program's
        first = await open_one(site, number)
        await first.answered
        first.transport.abort()
    before = site.resident()
    crowd: list[Crowd] = []
    for number in range(count):
        crowd.append(await open_one(site, number))
        await crowd[-1].answered
    each = (site.resident() - before) / count
    early = sum(one.is_closed for one in crowd)
    busy = [await open_one(site, number, b"/slow") for number in range(20)]
    await asyncio.sleep(1.5)
    stalled = Stalled()
    await asyncio.gather(*(stall_in_download(site, stalled) for _ in range(200)))
    await asyncio.sleep(6)
    closed = sum(one.is_closed for one in crowd) - early
    cut = sum(one.is_closed and b"done" not in one.answer for one in busy)
    grown = (site.resident() - before) / MIB
    stalled.close()
    for one in (*crowd, *busy):
        one.transport.abort()
    return f"{each:>12.0f} {early:>12} {closed:>12} {cut:>12} {grown:>12.0f}"


async def come_and_go(site: Site, count: int) -> str:
    async def some(share: int) -> None:
        for number in range(share):
            one = await open_one(site, number)
            await one.answered
            one.transport.close()

    await asyncio.gather(*(some(50) for _ in range(20)))
    before = site.resident()
    await asyncio.gather(*(some(count // 20) for _ in range(20)))
    grown = (site.resident() - before) / MIB
    while True:  # the last are still being closed
        used = int((await request(site, "GET", path="/used")).decode())
        if used <= 16384:
            break
        await asyncio.sleep(0.1)
    return f"{grown:>12.1f} {used:>12}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quota", default="64MiB")
    parser.add_argument("--idle", type=int, default=10_000)
    parser.add_argument("--coming", type=int, default=50_000)
    options = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    socket.setdefaulttimeout(30)
    print(f"{'site':<12} {'quota':<8} {'bytes each':>12} {'idle closed':>12} {'..pressure':>12}", end="")
    print(f" {'busy cut':>12} {'grown, MiB':>12} {'come, MiB':>12} {'used after':>12}")
    for kind in ("tornado", "twisted.web"):
        for quota in ("stock", "1GiB", options.quota):
            results = []
            for work, count in ((stay, options.idle), (come_and_go, options.coming)):
                site = Site(kind, quota, "")
                try:
                    results.append(asyncio.run(work(site, count)))
                finally:
                    site.close()
            print(f"{kind:<12} {quota:<8} {' '.join(results)}", flush=True)


if __name__ == "__main__":
    main()
