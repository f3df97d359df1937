"""Compares the engines with their hosts, side by side in one run, and prints a table.

    python -m benchmarks [--quick] [--svg FILE] [--only TITLE ...]

Linux only, with two cores and a C compiler. All servers are up at once, on one core, and take turns in alternating
order under a load from the other core, or from the same one where it is said. `--quick` takes two short rounds, to see
that all works; its figures say little. The whole takes some twelve minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from benchmarks.chart import draw
from benchmarks.contest import HERE, Figures, Ratio, Server, Work, built, contest, put_load, ratio, running
from benchmarks.servers import SERVERS

TWISTED, TORNADO, BARE, DEFAULT = "Twisted Protocol", "Tornado IOStream", "bare epoll loop", "engine, default"
ON_TWISTED, ON_TORNADO = "engine on Twisted", "engine on Tornado"
PAIRS = ((ON_TWISTED, TWISTED), (ON_TORNADO, TORNADO), (ON_TWISTED, BARE), (ON_TORNADO, BARE), (DEFAULT, BARE))

WORKS = (
    Work("64 B, 100 connections", "echo", 100, 64),
    Work("64 B, 1 connection, same core", "echo", 1, 64, same_core=True),
    Work("64 KiB, 8 connections", "echo", 8, 64 << 10),
    Work("256 KiB, 8 connections", "echo", 8, 256 << 10),
    Work("1 MiB, 8 connections", "echo", 8, 1 << 20),
    Work("connect, 1 B, close", "connect", 16, 1),
)
MANY = Work("64 B, 5,000 connections", "echo", 5000, 64)
IDLE = 5000


class Report:
    """Prints as it goes, and keeps what the chart shows."""

    def __init__(self, rounds: int, seconds: float, cores: tuple[int, int]) -> None:
        self.rounds = rounds
        self.seconds = seconds
        self.cores = cores
        self.shown: dict[str, dict[str, float]] = {}

    def title(self, text: str) -> None:
        print(f"\n{text}\n{'-' * len(text)}", flush=True)

    def line(self, *columns: object) -> None:
        print(f"{columns[0]!s:<52}", *(f"{column!s:>18}" for column in columns[1:]), flush=True)


def echoes(report: Report, folder: Path) -> None:
    with running(folder, ("C epoll", *SERVERS), report.cores[0]) as servers:
        for work in WORKS:
            report.title(work.title)
            figures = contest(folder, servers, work, report.cores, report.rounds, report.seconds)
            show(report, work, figures)


def show(report: Report, work: Work, figures: dict[str, list[Figures]]) -> None:
    bulk = work.size >= 64 << 10
    report.line("", "MB/s" if bulk else "k/s", "least-most", "server's µs each", "slowest/median")
    scale = work.size / 1e6 if bulk else 1e-3
    shown = report.shown[work.title] = {}
    for name, each in figures.items():
        rates = [figure.rate * scale for figure in each]
        cpu = median(figure.cpu for figure in each) * 1e6
        shown[name] = median(rates)
        fairness = f"{median(figure.fairness for figure in each):.2f}" if work.connections >= 100 else ""
        report.line(name, f"{median(rates):.1f}", f"{min(rates):.1f}-{max(rates):.1f}", f"{cpu:.2f}", fairness)
    print()
    for mine, other in (
        *PAIRS,
        (ON_TWISTED, f"{ON_TWISTED}, no quota"),
        (ON_TORNADO, f"{ON_TORNADO}, no quota"),
        (DEFAULT, "asyncio streams, uvloop"),
        ("engine on asyncio", "asyncio Protocol"),
        ("engine on asyncio, uvloop", "asyncio Protocol, uvloop"),
    ):
        report.line(f"{mine} : {other}", rates_compared(figures[mine], figures[other]))


def rates_compared(mine: Sequence[Figures], others: Sequence[Figures]) -> Ratio:
    return ratio([figure.rate for figure in mine], [figure.rate for figure in others])


def many(report: Report, folder: Path) -> None:
    """What is left of the rate of 100 connections when there are 5,000."""
    report.title("What 5,000 busy connections leave of the rate of 100")
    names = ("C epoll", BARE, DEFAULT, ON_TWISTED, ON_TORNADO, TWISTED, TORNADO)
    with running(folder, names, report.cores[0]) as servers:
        few: dict[str, list[Figures]] = {name: [] for name in names}
        lots: dict[str, list[Figures]] = {name: [] for name in names}
        for _ in range(report.rounds):  # side by side: what the machine does beside changes from minute to minute
            for server in servers:
                few[server.name].append(put_load(folder, server, WORKS[0], report.cores[1], report.seconds))
                lots[server.name].append(put_load(folder, server, MANY, report.cores[1], 2 * report.seconds))
    for name in names:
        report.line(name, rates_compared(lots[name], few[name]))


def idle(report: Report, folder: Path) -> None:
    """Resident memory of idle connections, each server in a fresh process."""
    report.title(f"Resident bytes for each of {IDLE:,} idle connections")
    for name in (*SERVERS, "C epoll"):
        server = Server(name, report.cores[0], folder)
        try:
            warm_up = [str(folder / "load"), str(server.port), "connect", "16", "1", "0.3"]
            subprocess.run(warm_up, check=True, capture_output=True)
            before = server.resident()
            load = [str(folder / "load"), str(server.port), "idle", str(IDLE), "0", "0"]
            with subprocess.Popen(load, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                if process.stdout.readline() != "ready\n":
                    raise RuntimeError(f"{name}: the connections could not be made")
                settle(server)
                report.line(name, f"{(server.resident() - before) / IDLE:.0f}")
                assert process.stdin is not None
                process.stdin.close()
        finally:
            server.close()


def settle(server: Server) -> None:
    """Waits until the server has accepted all: until it uses no more CPU."""
    last = -1.0
    while (used := server.cpu_seconds()) != last:
        last = used
        subprocess.run(["sleep", "0.2"], check=True)


def lateness(report: Report, folder: Path) -> None:
    """How late a timer of the host's own is under load: nobody must be starved."""
    report.title("A timer of the host's own, every 5 ms, late by (ms)")
    report.line("", "median", "p99", "most")
    works = (None, WORKS[0], Work("256 KiB, 8 connections", "echo", 8, 256 << 10))
    for name in (ON_TWISTED, TWISTED, ON_TORNADO, TORNADO):
        for work in works:
            server = Server(name, report.cores[0], folder, "lateness")
            try:
                if work is None:
                    subprocess.run(["sleep", str(report.seconds)], check=True)
                else:
                    contest(folder, [server], work, report.cores, 1, 2 * report.seconds)
            finally:
                late = sorted(json.loads(server.close()))
            title = "nothing else to do" if work is None else work.title
            figures = (late[len(late) // 2], late[len(late) * 99 // 100], late[-1])
            report.line(f"{name}: {title}", *(f"{1000 * figure:.2f}" for figure in figures))


def inside(report: Report, folder: Path) -> None:
    """Timers and hand-over between threads."""
    for host in ("twisted", "tornado"):
        report.title(f"The engine on {host.title()}, and {host.title()}'s own calls, in one process")
        report.line("", "engine", "host", "engine : host")
        command = [sys.executable, "-m", "benchmarks.inside", host, str(report.cores[0]), str(report.rounds)]
        out = subprocess.run(command, cwd=HERE.parent, check=True, capture_output=True, text=True).stdout
        for title, sides in json.loads(out).items():
            mine, other = sides["engine"], sides["host"]
            report.line(title, f"{median(mine):.3g}", f"{median(other):.3g}", ratio(mine, other))


PARTS: dict[str, Callable[[Report, Path], None]] = {
    "echoes": echoes,
    "many": many,
    "idle": idle,
    "lateness": lateness,
    "inside": inside,
}


def machine() -> str:
    named = re.search(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    versions = [f"{name} {version(name)}" for name in ("twisted", "tornado", "uvloop")]
    return (
        f"{named[1] if named else platform.machine()}, {os.cpu_count()} cores; Linux {platform.release()}; "
        f"Python {platform.python_version()}; {', '.join(versions)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two short rounds, to see that all works")
    parser.add_argument("--svg", type=Path, help="draw the rates there")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    missing = [name for name in ("twisted", "tornado", "uvloop") if find_spec(name) is None]
    if missing:
        parser.error(f"{', '.join(missing)} is needed; pip install brings it")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        parser.error("two cores are needed, one for the servers and one for the load")
    report = Report(2 if options.quick else 7, 0.2 if options.quick else 1.0, (cores[0], cores[1]))
    print(machine())
    with built() as folder:
        for part in options.only:
            PARTS[part](report, folder)
    if options.svg and report.shown:
        options.svg.write_text(draw(report.shown), "utf-8")
        print(f"\nThe chart is in {options.svg}.")


if __name__ == "__main__":
    main()
