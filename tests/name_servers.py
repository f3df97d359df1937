"""DNS servers to ask: that of `dns_server.py`, and dnsmasq."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from eventengine.testing.oracle import TIMEOUT

__all__ = ["NameServer", "dnsmasq", "twisted_server"]

PROGRAM = Path(__file__).with_name("dns_server.py")


class NameServer:
    """One that runs; `text` is its address."""

    def __init__(self, port: int, log: Path) -> None:
        self.text = f"127.0.0.1:{port}"
        self._log = log

    def queries(self, name: str) -> list[str]:
        """What was asked about `name`, so far."""
        lines = self._log.read_text("utf-8").splitlines()
        return sorted(line.removesuffix(f" {name}") for line in lines if line.endswith(f" {name}"))

    def forget(self) -> None:
        with self._log.open("r+") as file:
            file.truncate(0)


@contextmanager
def twisted_server(folder: Path) -> Iterator[NameServer]:
    pytest.importorskip(
        "twisted.names", reason="the DNS server of these tests is Twisted's, which is not installed"
    )
    log = folder / "queries"
    with subprocess.Popen(
        [sys.executable, str(PROGRAM), str(log)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        try:
            yield NameServer(int(process.stdout.readline()), log)
        finally:
            process.stdin.close()  # it ends with it
            try:
                process.wait(TIMEOUT)
            finally:
                process.kill()


@contextmanager
def dnsmasq(*options: str) -> Iterator[str]:
    """Debian's dnsmasq with the names that are given, alone; gives its address."""
    program = shutil.which("dnsmasq") or shutil.which("/usr/sbin/dnsmasq")
    if program is None:
        pytest.skip("dnsmasq is not installed")
    port = _free_port()
    command = [
        program,
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--pid-file=",
        "--user=",
        "--log-facility=-",
        f"--port={port}",
        "--listen-address=127.0.0.1",
        "--bind-interfaces",
        "--no-resolv",
        "--no-hosts",
        "--local=/test/",
        *options,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            _wait_for(port, process)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(TIMEOUT)
            finally:
                process.kill()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def _wait_for(port: int, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + TIMEOUT
    while process.poll() is None and time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), TIMEOUT).close()
        except ConnectionRefusedError:
            time.sleep(0.01)
        else:
            return
    raise AssertionError(f"dnsmasq does not answer: {process.communicate()[0] if process.poll() else ''}")
