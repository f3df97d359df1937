"""Compares TLS on the engines with that of their hosts, side by side in one run: `python -m benchmarks.tls [--quick]`.

Linux only, with two cores and the `openssl` command. All servers are up at once, on one core, and take turns in
alternating order under a load from the other. The server's CPU for a byte or a handshake is compared, too: what else
the machine does changes it less than the rate. The whole takes some four minutes.
"""

from __future__ import annotations

import argparse
import os
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.contest import HERE, Server, ratio
from benchmarks.tls_servers import SERVERS

MODULE = "benchmarks.tls_servers"
WORKS = (
    ("the server sends, 1 connection", "download", 1),
    ("the server sends, 10 connections", "download", 10),
    ("the server receives, 1 connection", "upload", 1),
    ("the server receives, 10 connections", "upload", 10),
    ("full handshakes, 4 at a time", "full", 4),
    ("resumed handshakes, 4 at a time", "resumed", 4),
)
PAIRS = (("tls on Twisted", "Twisted TLS"), ("tls on Tornado", "Tornado SSLIOStream"))
WARM_UP = 1.2
"""The load's whole time over the time that it counts."""


class Figures(NamedTuple):
    """Of one turn of one server."""

    rate: float
    """Bytes or handshakes a second."""
    cpu: float
    """Seconds of the server's CPU for one."""
    load: float
    """What the load used of its core."""
    cipher: str


def put_load(server: Server, what: str, connections: int, core: int, seconds: float) -> Figures:
    before = server.cpu_seconds()
    command = [
        sys.executable,
        str(HERE / "tls_load.py"),
        *map(str, (server.port, what, connections, seconds, core)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120 + 4 * seconds, check=False)
    if done.returncode:
        raise RuntimeError(f"{server.name}: {done.stderr.strip()}")
    used = server.cpu_seconds() - before
    *numbers, cipher = done.stdout.split()
    total, counted, took, load = map(float, numbers)
    return Figures(counted / took, used / total, load / (WARM_UP * took), cipher)


def show(title: str, figures: dict[str, list[Figures]], *, bulk: bool) -> None:
    print(f"\n{title}\n{'-' * len(title)}")
    line("", "MB/s" if bulk else "1/s", "least-most", "server's CPU", "load's core", "cipher suite")
    scale, unit = (1e6, "ns/KB") if bulk else (1, "µs")
    for name, each in figures.items():
        rates = [figure.rate / scale for figure in each]
        cpu = median(figure.cpu for figure in each) * (1e12 if bulk else 1e6)
        busy = median(figure.load for figure in each)
        line(
            name,
            f"{median(rates):.0f}",
            f"{min(rates):.0f}-{max(rates):.0f}",
            f"{cpu:.0f} {unit}",
            f"{busy:.0%}",
            each[0].cipher,
        )
    for mine, other in PAIRS:
        if mine in figures and other in figures:
            a, b = figures[mine], figures[other]
            rates_ratio = ratio([each.rate for each in a], [each.rate for each in b])
            cpu_ratio = ratio([each.cpu for each in b], [each.cpu for each in a])
            print(f"{mine} : {other}, rate {rates_ratio}, work for a second of CPU {cpu_ratio}", flush=True)


def line(*columns: str) -> None:
    print(f"{columns[0]:<22}", *(f"{column:>16}" for column in columns[1:-1]), f" {columns[-1]}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.tls", description="Compares TLS on the engines and their hosts."
    )
    parser.add_argument("--quick", action="store_true", help="two short rounds")
    parser.add_argument("--only", metavar="WHAT", nargs="+", choices=sorted({what for _, what, _ in WORKS}))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--servers", metavar="NAME", nargs="+", choices=SERVERS, default=list(SERVERS))
    options = parser.parse_args(arguments)
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        parser.error("two cores are needed, one for the servers and one for the load")
    rounds, seconds = (2, 0.2) if options.quick else (options.rounds, 1.0)
    print(f"{ssl.OPENSSL_VERSION} of Python's ssl, and of pyOpenSSL {pyopenssl_version()}")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="eventengine-benchmarks-")))
        certificate = make_certificate(folder)
        servers: list[Server] = []
        for name in options.servers:
            servers.append(Server(name, cores[0], folder, certificate, module=MODULE))
            stack.callback(servers[-1].close)
        for title, what, connections in WORKS:
            if options.only is None or what in options.only:
                figures: dict[str, list[Figures]] = {server.name: [] for server in servers}
                for turn in range(rounds):
                    for server in servers if turn % 2 == 0 else reversed(servers):
                        figures[server.name].append(put_load(server, what, connections, cores[1], seconds))
                show(title, figures, bulk=what in ("download", "upload"))


def pyopenssl_version() -> str:
    from OpenSSL import SSL

    return SSL.SSLeay_version(SSL.SSLEAY_VERSION).decode()


def make_certificate(folder: Path) -> str:
    """A file with a key (P-256) and its certificate."""
    pem, key = folder / "cert.pem", folder / "key.pem"
    command = (
        "openssl req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -days 2 -subj /CN=localhost"
    )
    subprocess.run([*command.split(), "-keyout", key, "-out", pem], check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_bytes(key.read_bytes() + pem.read_bytes())
    return str(both)


if __name__ == "__main__":
    main()
