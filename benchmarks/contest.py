"""Runs servers side by side: all are up at once and take turns, in alternating order, under the same load.

What a figure of one run says is drowned by what else the machine does meanwhile; the ratio of two that ran one after
the other is not. So rates come as medians, and comparisons as the medians of paired ratios, with the least and most.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

HERE = Path(__file__).parent
WARM_UP = 1.2
"""The load generator's whole time over the time that it counts."""


@contextmanager
def built() -> Iterator[Path]:
    """A folder with `load` and `echo`, built with the system's C compiler (CC, or cc)."""
    with tempfile.TemporaryDirectory(prefix="eventengine-benchmarks-") as folder:
        for name in ("load", "echo"):
            command = [os.environ.get("CC", "cc"), "-O2", "-o", f"{folder}/{name}", str(HERE / f"{name}.c")]
            subprocess.run(command, check=True)
        yield Path(folder)


class Server:
    """A server in a process of its own on one core; `name` is one of the `SERVERS` of `module`, or "C epoll"."""

    def __init__(
        self, name: str, core: int, folder: Path, *options: str, module: str = "benchmarks.servers"
    ) -> None:
        self.name = name
        if name == "C epoll":
            command = ["taskset", "-c", str(core), str(folder / "echo")]
        else:
            command = [sys.executable, "-m", module, name, str(core), *options]
        self.process = subprocess.Popen(
            command, cwd=HERE.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.strip().isdigit():
            self.process.kill()
            raise RuntimeError(f"the server {name!r} did not start")
        self.port = int(line)

    def cpu_seconds(self) -> float:
        """What all its threads have used."""
        tasks = Path(f"/proc/{self.process.pid}/task")
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir()) / 1e9

    def resident(self) -> int:
        """Bytes of memory."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def close(self) -> str:
        """Ends it, and returns what it had to say in the end."""
        if self.name == "C epoll":
            self.process.terminate()
        out, _ = self.process.communicate(timeout=30)
        return out


class Figures(NamedTuple):
    """Of one turn of one server."""

    rate: float
    """Messages a second."""
    cpu: float
    """Seconds of the server's CPU for a message."""
    fairness: float
    """Messages of the slowest connection over those of the median one."""


@dataclass(frozen=True)
class Work:
    """What the load generator does; `same_core` puts it on the server's."""

    title: str
    mode: str
    connections: int
    size: int
    same_core: bool = False


def put_load(folder: Path, server: Server, work: Work, core: int, seconds: float) -> Figures:
    before = server.cpu_seconds()
    load = [str(folder / "load"), str(server.port), work.mode, str(work.connections), str(work.size), str(seconds)]
    done = subprocess.run(
        ["taskset", "-c", str(core), *load], capture_output=True, text=True, timeout=60 + 4 * seconds, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{server.name}: {done.stderr.strip()}")
    used = server.cpu_seconds() - before
    messages, took, least, middle, _ = map(float, done.stdout.split())
    if not messages:
        raise RuntimeError(f"{server.name}: no message came back")
    return Figures(messages / took, used / (messages * WARM_UP), least / middle if middle else 0.0)


def contest(
    folder: Path, servers: Sequence[Server], work: Work, cores: tuple[int, int], rounds: int, seconds: float
) -> dict[str, list[Figures]]:
    """The figures of each server, by its name, in `rounds` turns."""
    figures: dict[str, list[Figures]] = {server.name: [] for server in servers}
    core = cores[0] if work.same_core else cores[1]
    for turn in range(rounds):
        for server in servers if turn % 2 == 0 else reversed(servers):
            figures[server.name].append(put_load(folder, server, work, core, seconds))
    return figures


class Ratio(NamedTuple):
    median: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f}-{self.most:.2f})"


def ratio(mine: Sequence[float], others: Sequence[float]) -> Ratio:
    """Of what was measured in pairs."""
    each = [a / b for a, b in zip(mine, others, strict=True)]
    return Ratio(median(each), min(each), max(each))


@contextmanager
def running(folder: Path, names: Sequence[str], core: int, *options: str) -> Iterator[list[Server]]:
    with ExitStack() as stack:
        servers: list[Server] = []
        for name in names:
            servers.append(Server(name, core, folder, *options))
            stack.callback(servers[-1].close)
        yield servers
