"""What clients that stall cost a site, stock and within a quota.

    python -m benchmarks.attacks [--quota 64MiB] [--only TITLE...]

Linux only. Each attack is made on each site, in a process of its own, beside honest clients, who check the digest of
what they sent or got; every fifth moves 1 MiB/s. Where the site speaks HTTP, a small GET is sent every 100 ms. Printed
is by how much the resident memory of the process grew, how many of the honest were served and how long the last took,
and the longest time to answer a GET.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import hashlib
import logging
import os
import resource
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Callable, Coroutine
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

HERE = Path(__file__).parent
MIB = 1 << 20
BODY = 4 * MIB
PATTERN = bytes(range(256))
WATCHED = 10.0
"""Seconds, at least, for which memory is watched."""


class Site:
    """A process with the site."""

    def __init__(self, kind: str, quota: str, folder: str) -> None:
        command = [sys.executable, "-m", "benchmarks.sites", kind, quota, *([folder] if folder else [])]
        self.process = subprocess.Popen(
            command,
            cwd=HERE.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        self.port, self.other_port = map(int, self.process.stdout.readline().split())
        self.tls: ssl.SSLContext | None = None
        if folder:
            self.tls = ssl.create_default_context(cafile=f"{folder}/cert.pem")
            self.tls.check_hostname = False

    def resident(self) -> int:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def resize(self, quota: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{quota}\n")
        self.process.stdin.flush()

    def other(self) -> Site:
        """The second server in the process."""
        other = copy(self)
        other.port = self.other_port
        return other

    def close(self) -> None:
        try:
            self.process.communicate(timeout=60)
        finally:
            self.process.kill()  # one that hangs, or nothing


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Stalled:
    """What stays open until the attack is over."""

    def __init__(self) -> None:
        self.connections: list[Connection] = []

    async def connect(self, site: Site) -> Connection:
        """A connection of which nothing is read ahead."""
        made = await connect(site, limit=1)
        made[1].transport.pause_reading()  # type: ignore[attr-defined]
        self.connections.append(made)
        return made

    def close(self) -> None:
        for _, writer in self.connections:
            writer.transport.abort()


async def connect(site: Site, limit: int = 1 << 16) -> Connection:
    """From one of many addresses of the loopback network: ports of one run out."""
    source = f"127.0.0.{2 + connect_count() % 200}"
    return await asyncio.open_connection("127.0.0.1", site.port, ssl=site.tls, local_addr=(source, 0), limit=limit)


def connect_count(count: list[int] = [0]) -> int:  # noqa: B006  # it is to be kept
    count[0] += 1
    return count[0]


async def request(site: Site, method: str, body: bytes = b"", rate: float = 0.0, path: str = "/") -> bytes:
    """What the site answers, with the body sent at `rate` bytes a second, or at once."""
    reader, writer = await connect(site)
    try:
        writer.write(f"{method} {path} HTTP/1.1\r\nHost: site\r\nContent-Length: {len(body)}\r\n\r\n".encode())
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


async def upload(site: Site, number: int, size: int = BODY) -> None:
    body = hashlib.sha256(b"%d" % number).digest() * (size // 32)
    answer = await request(site, "PUT", body, MIB if number % 5 == 0 else 0.0)
    if answer.decode() != hashlib.sha256(body).hexdigest():
        raise ValueError("a wrong digest")


async def download(site: Site, number: int) -> None:
    reader, writer = await connect(site)
    try:
        writer.write(b"GET /body?MiB=4 HTTP/1.1\r\nHost: site\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        digest = hashlib.sha256()
        for _ in range(64):
            digest.update(await reader.readexactly(BODY // 64))
            if number % 5 == 0:
                await asyncio.sleep(0.0625)
    finally:
        writer.close()
    if digest.digest() != hashlib.sha256(PATTERN * (BODY // 256)).digest():
        raise ValueError("a wrong digest")


async def echo(site: Site, number: int) -> None:
    reader, writer = await connect(site)
    body = hashlib.sha256(b"%d" % number).digest() * (BODY // 32)

    async def send() -> None:
        for start in range(0, BODY, 1 << 16):
            writer.write(body[start : start + (1 << 16)])
            await writer.drain()
            if number % 5 == 0:
                await asyncio.sleep(0.0625)

    sending = asyncio.create_task(send())
    try:
        if await reader.readexactly(BODY) != body:
            raise ValueError("wrong bytes")
        await sending
    finally:
        sending.cancel()
        writer.close()


async def listen_to_broadcast(site: Site, number: int) -> None:
    """Reads fifty messages, which must come one after the other."""
    reader, writer = await connect(site)
    try:
        await open_websocket(reader, writer)
        last = 0
        for _ in range(50):
            head = await reader.readexactly(10)  # of a frame of 64 KiB
            if head[:2] != b"\x82\x7f":
                raise ValueError("no frame of 64 KiB")
            message = await reader.readexactly(1 << 16)
            this = int.from_bytes(message[:8])
            if (last and this != last + 1) or message[8:] != (PATTERN * 256)[8:]:
                raise ValueError("a message is missing, or other than it was sent")
            last = this
    finally:
        writer.close()


async def open_websocket(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str = "/ws") -> None:
    key = base64.b64encode(os.urandom(16)).decode()
    head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    writer.write(f"{head}Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")


async def stall_in_upload(site: Site, stalled: Stalled, sent: int, size: int) -> None:
    _, writer = await stalled.connect(site)
    with contextlib.suppress(ConnectionError):
        writer.write(b"PUT / HTTP/1.1\r\nHost: site\r\nContent-Length: %d\r\n\r\n" % size)
        writer.write(bytes(sent))
        await writer.drain()


async def stall_after_6_mib(site: Site, stalled: Stalled) -> None:
    await stall_in_upload(site, stalled, 6 * MIB, 8 * MIB)


async def stall_in_chunks(site: Site, stalled: Stalled) -> None:
    _, writer = await stalled.connect(site)
    with contextlib.suppress(ConnectionError):
        writer.write(b"PUT / HTTP/1.1\r\nHost: site\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(96):
            writer.write(b"10000\r\n%b\r\n" % bytes(1 << 16))
            await writer.drain()


async def stall_before_the_last_byte(site: Site, stalled: Stalled) -> None:
    await stall_in_upload(site, stalled, 95_999, 96_000)


async def stall_in_download(site: Site, stalled: Stalled) -> None:
    _, writer = await stalled.connect(site)
    writer.write(b"GET /body?MiB=10 HTTP/1.1\r\nHost: site\r\n\r\n")


async def stall_in_a_file(site: Site, stalled: Stalled) -> None:
    _, writer = await stalled.connect(site)
    writer.write(b"GET /file HTTP/1.1\r\nHost: site\r\n\r\n")


async def stall_in_1_gib(site: Site, stalled: Stalled) -> None:
    _, writer = await stalled.connect(site)
    writer.write(b"GET /body?MiB=1024 HTTP/1.1\r\nHost: site\r\n\r\n")


async def stall_in_echo(site: Site, stalled: Stalled) -> None:
    """Sends as long as it is taken, and reads nothing."""
    _, writer = await stalled.connect(site)
    with contextlib.suppress(ConnectionError):
        for _ in range(1024):  # of a connection that was reset below TLS asyncio does not tell
            writer.write(bytes(1 << 16))
            await writer.drain()
            await asyncio.sleep(0)


async def stall_in_broadcast(site: Site, stalled: Stalled) -> None:
    reader, writer = await connect(site, limit=1 << 10)
    stalled.connections.append((reader, writer))
    await open_websocket(reader, writer)
    writer.transport.pause_reading()  # type: ignore[attr-defined]


async def stall_in_a_message(site: Site, stalled: Stalled) -> None:
    """6 MiB of one of 8 MiB, in fragments of 1 MiB."""
    reader, writer = await connect(site, limit=1 << 10)
    stalled.connections.append((reader, writer))
    await open_websocket(reader, writer, "/digest")
    with contextlib.suppress(ConnectionError):
        for number in range(6):
            writer.write(frame(0 if number else 2, bytes(MIB)))
            await writer.drain()


async def send_message(site: Site, number: int) -> None:
    """Of 4 MiB, and gets its digest."""
    message = hashlib.sha256(b"%d" % number).digest() * (BODY // 32)
    reader, writer = await connect(site)
    try:
        await open_websocket(reader, writer, "/digest")
        whole = frame(0x82, message)
        piece = MIB // 10 if number % 5 == 0 else len(whole)
        for start in range(0, len(whole), piece):
            writer.write(whole[start : start + piece])
            await writer.drain()
            await asyncio.sleep(0.1)
        await reader.readexactly(2)
        if (await reader.readexactly(64)).decode() != hashlib.sha256(message).hexdigest():
            raise ValueError("a wrong digest")
    finally:
        writer.close()


def frame(first: int, payload: bytes) -> bytes:
    """One of 64 KiB or more, with a mask of zeros (RFC 6455, section 5.2)."""
    return bytes([first, 0xFF]) + len(payload).to_bytes(8) + bytes(4) + payload


async def stall_in_a_line(site: Site, stalled: Stalled) -> None:
    _, writer = await stalled.connect(site)
    writer.write(b"GET /a/path/that/does/not/e")


async def nothing(site: Site, number: int) -> None:
    await request(site, "GET")


@dataclass(frozen=True)
class Attack:
    """`stock` says whether the machine could bear it on a stock site; `elsewhere`, whether the honest come to another
    server of the same process; `sizes`, what the quota becomes after 2, 4, ... seconds."""

    title: str
    site: str
    stall: Callable[[Site, Stalled], Coroutine[None, None, None]]
    stalled: int
    serve: Callable[[Site, int], Coroutine[None, None, None]]
    honest: int = 20
    tls: bool = False
    asks: bool = True
    stock: bool = True
    elsewhere: bool = False
    sizes: tuple[str, ...] = ()


SIZES = ("32MiB", "96MiB", "48MiB", "64MiB")

ATTACKS = [
    attack
    for tls in (False, True)
    for attack in (
        Attack("uploads of 8 MiB", "tornado", stall_after_6_mib, 200, upload, tls=tls),
        Attack("uploads in chunks", "tornado", stall_in_chunks, 200, upload, tls=tls),
        Attack("downloads of 10 MiB", "tornado", stall_in_download, 200, download, tls=tls),
        Attack("a websocket broadcast", "tornado", stall_in_broadcast, 200, listen_to_broadcast, 200, tls=tls),
        Attack("websocket messages", "tornado", stall_in_a_message, 200, send_message, tls=tls),
        Attack("uploads of 8 MiB", "twisted.web", stall_after_6_mib, 200, upload, tls=tls),
        Attack("uploads of 96 kB", "twisted.web", stall_before_the_last_byte, 1500, upload, tls=tls),
        Attack("downloads of 10 MiB", "twisted.web", stall_in_download, 200, download, tls=tls),
        Attack("an echo", "twisted echo", stall_in_echo, 200, echo, tls=tls, asks=False),
        Attack("half request lines", "tornado", stall_in_a_line, 1000, nothing, tls=tls),
        Attack("half request lines", "twisted.web", stall_in_a_line, 1000, nothing, tls=tls),
    )
] + [
    Attack("a file of 1 GiB", "twisted.web", stall_in_a_file, 200, download),
    Attack("writes of 1 GiB", "twisted.web", stall_in_1_gib, 200, download, stock=False),
    Attack("uploads, resized", "tornado", stall_after_6_mib, 200, upload, stock=False, sizes=SIZES),
    Attack("downloads, resized", "tornado", stall_in_download, 200, download, stock=False, sizes=SIZES),
    Attack("downloads, resized", "twisted.web", stall_in_download, 200, download, stock=False, sizes=SIZES),
    Attack("uploads elsewhere", "tornado", stall_after_6_mib, 200, upload, elsewhere=True),
    Attack("downloads elsewhere", "tornado", stall_in_download, 200, download, elsewhere=True),
    Attack("downloads elsewhere", "twisted.web", stall_in_download, 200, download, elsewhere=True),
    Attack("an echo elsewhere", "twisted echo", stall_in_echo, 200, echo, asks=False, elsewhere=True),
]


async def run(attack: Attack, site: Site) -> str:
    if attack.asks:
        await request(site, "PUT", bytes(MIB))
    before = most = site.resident()
    slowest = 0.0
    refused = 0
    stalled = Stalled()
    attackers = [asyncio.create_task(attack.stall(site, stalled)) for _ in range(attack.stalled)]
    await asyncio.sleep(1.0)
    times: list[float] = []
    started = perf_counter()
    for number, size in enumerate(attack.sizes):
        asyncio.get_running_loop().call_later(2.0 * (number + 1), site.resize, size)
    if attack.elsewhere:
        site = site.other()

    async def serve(number: int) -> None:
        await asyncio.wait_for(attack.serve(site, number), 90)
        times.append(perf_counter() - started)

    path, used = "/used" if attack.sizes else "/", dict[int, int]()
    served = asyncio.gather(*(serve(number) for number in range(attack.honest)), return_exceptions=True)
    while not served.done() or perf_counter() - started < WATCHED:
        if attack.asks:
            asked = perf_counter()
            try:
                answer = await asyncio.wait_for(request(site, "GET", path=path), 60)
                if attack.sizes:
                    used[int((asked - started) / 2)] = int(answer) >> 20  # the last in two seconds
            except (OSError, EOFError, TimeoutError):
                refused += 1
            slowest = max(slowest, perf_counter() - asked)
        most = max(most, site.resident())
        await asyncio.sleep(0.1)
    failures = {repr(each) for each in await served if each is not None}
    if refused:
        failures.add(f"{refused} GET failed")
    for each in attackers:
        each.cancel()
    await asyncio.gather(*attackers, return_exceptions=True)
    stalled.close()
    text = (
        f"{(most - before) / MIB:>12.0f} {f'{len(times)} of {attack.honest}':>16} {max(times, default=0.0):>14.1f}"
    )
    if attack.sizes:
        sizes = ("64MiB", *attack.sizes)
        failures.add(f"used {' '.join(f'{used.get(i)} of {size},' for i, size in enumerate(sizes))}")
    return f"{text} {f'{slowest:.2f}' if attack.asks else '':>14} {', '.join(sorted(failures))[:120]}".rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quota", default="64MiB")
    parser.add_argument("--only", nargs="*", help="titles, or sites, or tls, or no-tls")
    options = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # it tells of each write after a reset
    print(f"{'attack':<24} {'on':<18} {'site':<7} {'grown, MiB':>12} {'honest served':>16}", end="")
    print(f" {'last after, s':>14} {'slowest GET, s':>14}")
    with tempfile.TemporaryDirectory() as folder:
        command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=site -keyout key.pem -out cert.pem"
        subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
        for attack in ATTACKS:
            marks = {attack.title, attack.site, "tls" if attack.tls else "no-tls"}
            if options.only and not set(options.only) <= marks:
                continue
            for quota in ("stock", options.quota) if attack.stock else (options.quota,):
                site = Site(attack.site, quota, folder if attack.tls else "")
                try:
                    line = asyncio.run(run(attack, site))
                    on = attack.site + (", TLS" if attack.tls else "")
                    print(f"{attack.title:<24} {on:<18} {quota:<7} {line}", flush=True)
                finally:
                    site.close()


if __name__ == "__main__":
    main()
