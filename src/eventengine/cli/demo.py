"""The command `demo`: a file downloaded through the proxy on each engine, with a digest and a table; then `sites`."""

from __future__ import annotations

import hashlib
import random
import re
import selectors
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import IO

from eventengine.cli import sites
from eventengine.cli.engines import ENGINES, load_engine

__all__ = ["ProxyProcess", "run"]

FILE_SIZE = 100 << 20
MEMORY = "8MiB"
CONNECTIONS = 8
TIMEOUT = 10.0  # for each call on a socket, so that what hangs ends

_INTRODUCTION = f"""\
A file of {FILE_SIZE >> 20} MiB, downloaded through `python -m eventengine proxy --memory {MEMORY}`
over {CONNECTIONS} connections at once, on each engine. The SHA-256 of what arrived must be that of the file.
"""
_CONCLUSION = """
The same proxy, unchanged, ran on each of these event loops, and held no more memory for connections than it was
allowed ("peak quota"), whatever the size of the file. MB/s is 10^6 bytes a second, all connections together."""


class ProxyProcess:
    """A `python -m eventengine proxy` in a process of its own, on a free port of 127.0.0.1; `stop` ends it.

    Raises RuntimeError, with what it wrote, when it does not come to listen.
    """

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "eventengine", "proxy", "--listen", "127.0.0.1:0", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        first = self._first_line()
        match = re.match(r"listening on 127\.0\.0\.1:([0-9]+),", first)
        if match is None:
            self.process.kill()
            raise RuntimeError(first + self.process.communicate()[1])
        self.address = ("127.0.0.1", int(match[1]))

    def _first_line(self) -> str:
        stdout = self.process.stdout
        assert stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            return stdout.readline() if selector.select(3 * TIMEOUT) else "it did not begin to listen. "

    def stop(self) -> int:
        """Ends it as Ctrl-C does, and returns the peak of its quota in bytes."""
        self.process.send_signal(signal.SIGINT)
        try:
            out, err = self.process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise RuntimeError("the proxy did not end at SIGINT") from None
        match = re.search(r"peak memory ([0-9]+) of", out)
        if match is None or self.process.returncode:
            raise RuntimeError(f"the proxy ended with status {self.process.returncode}: {out}{err}")
        return int(match[1])


class _FileRequest(socketserver.StreamRequestHandler):
    """Answers a line "offset length" with that part of the file."""

    timeout = TIMEOUT

    def __init__(
        self, path: Path, request: socket.socket, client: object, server: socketserver.BaseServer
    ) -> None:
        self.path = path
        super().__init__(request, client, server)

    def handle(self) -> None:
        offset, length = map(int, self.rfile.readline().split())
        with self.path.open("rb") as file, suppress(OSError):  # who asked has gone, and will say so
            self.connection.sendfile(file, offset, length)


class _FileServer(socketserver.ThreadingTCPServer):
    request_queue_size = CONNECTIONS  # a connection beyond the backlog is tried again a second later


def run(plot: Path | None = None) -> int:
    """Prints the tables and returns the exit status: 0 if every digest was right, and every bound kept.

    The chart of the sites goes to `plot`.
    """
    print(_INTRODUCTION)
    print(f"{'engine':<9} {'MB/s':>6}  {'peak quota':<17} {'connections':>11}  SHA-256")
    good = True
    with tempfile.TemporaryDirectory(prefix="eventengine-demo-") as folder:
        path = Path(folder, "file")
        with path.open("wb") as file:
            expected = _write_file(file)
        with _serving(path) as port:
            for name in ENGINES:
                try:
                    load_engine(name)
                except ImportError as error:
                    print(f"{name:<9} left out: {error}")
                    continue
                try:
                    seconds, peak, digest = _download(name, port)
                except (OSError, RuntimeError) as error:
                    good = False
                    print(f"{name:<9} failed: {error}")
                    continue
                good &= digest == expected
                print(
                    f"{name:<9} {FILE_SIZE / seconds / 1e6:>6.0f}  {peak / (1 << 20):.2f} of {MEMORY:<9} "
                    f"{CONNECTIONS:>11}  {'equal' if digest == expected else 'DIFFERENT'}",
                    flush=True,
                )
    print(_CONCLUSION)
    try:
        good &= sites.run(plot)
    except (OSError, RuntimeError) as error:
        good = False
        print(f"failed: {error}")
    return 0 if good else 1


def _write_file(file: IO[bytes]) -> str:
    """Writes bytes that are the same each time, none of its parts like another, and returns their digest."""
    source = random.Random(2)
    digest = hashlib.sha256()
    for _ in range(FILE_SIZE >> 20):
        part = source.randbytes(1 << 20)
        digest.update(part)
        file.write(part)
    return digest.hexdigest()


@contextmanager
def _serving(path: Path) -> Generator[int, None, None]:
    with _FileServer(("127.0.0.1", 0), partial(_FileRequest, path)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def _download(engine: str, port: int) -> tuple[float, int, str]:
    """The seconds that the download took, the peak of the proxy's quota, and the digest of what arrived."""
    content = bytearray(FILE_SIZE)
    part = FILE_SIZE // CONNECTIONS
    proxy = ProxyProcess("--to", f"127.0.0.1:{port}", "--engine", engine, "--memory", MEMORY)
    try:
        with memoryview(content) as view, ThreadPoolExecutor(CONNECTIONS) as threads:
            started = perf_counter()
            parts = [
                threads.submit(_download_part, proxy.address, offset, view[offset : offset + part])
                for offset in range(0, FILE_SIZE, part)
            ]
            for each in parts:
                each.result()
            seconds = perf_counter() - started
    finally:
        peak = proxy.stop()
    return seconds, peak, hashlib.sha256(content).hexdigest()


def _download_part(proxy: tuple[str, int], offset: int, into: memoryview) -> None:
    with socket.create_connection(proxy, TIMEOUT) as connection:
        connection.sendall(b"%d %d\n" % (offset, len(into)))
        while into:
            received = connection.recv_into(into)
            if not received:
                raise RuntimeError(f"the stream ended {len(into)} bytes early")
            into = into[received:]
