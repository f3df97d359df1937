"""Compares services within a quota with stock ones, in one run: `python -m benchmarks.web [--quick]`.

First an echo on Twisted's reactor and on ours, and then sites under wrk. Linux only, with two cores, a C compiler and
wrk (Debian's package). The sites are those of `sites`, on one core; wrk is on the
other, or with `--same-core` on the same. Stock and bounded take turns in alternating order. Printed are the ratios of
the rates and of what one request takes of the site's CPU, which other work on the machine changes less; above 1 is
better than stock. The whole takes some five minutes.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple, Protocol

from benchmarks.attacks import Site
from benchmarks.contest import Work, built, contest, ratio, running

KINDS = ("tornado", "twisted.web")
WORKS = (
    ("a page, 100 connections", 100, 0),
    *((f"uploads of {n:,} B, 10", 10, n) for n in (96_000, 1 << 20, 8 << 20)),
)


class Figures(NamedTuple):
    rate: float
    cpu: float
    """Seconds for one request."""


class Measured(Protocol):
    @property
    def rate(self) -> float: ...

    @property
    def cpu(self) -> float: ...


def show(kind: str, title: str, stock: Sequence[Measured], ours: Sequence[Measured]) -> None:
    rates = ratio([each.rate for each in ours], [each.rate for each in stock])
    cpu = ratio([each.cpu for each in stock], [each.cpu for each in ours])
    took = "{:.1f} / {:.1f} µs".format(*(1e6 * median(each.cpu for each in side) for side in (stock, ours)))
    print(f"{kind:<12}{title:<28}{rates!s:>20}{cpu!s:>20}{took:>22}", flush=True)


def put_load(site: Site, core: int, connections: int, script: str, seconds: float) -> Figures:
    before = cpu_seconds(site)
    command = ["taskset", "-c", str(core), "wrk", "-t1", f"-c{connections}", f"-d{seconds}", "-s", script]
    said = subprocess.run(
        [*command, f"http://127.0.0.1:{site.port}/"], capture_output=True, text=True, check=True
    ).stdout
    used = cpu_seconds(site) - before
    counted, rate = (re.search(pattern, said) for pattern in (r"(\d+) requests in", r"Requests/sec: +([\d.]+)"))
    assert counted is not None, said
    assert rate is not None, said
    wrong = re.search(r"Non-2xx.*|Socket errors.*", said)
    if wrong is not None:
        raise RuntimeError(wrong[0])
    return Figures(float(rate[1]), used / int(counted[1]))


def cpu_seconds(site: Site) -> float:
    tasks = Path(f"/proc/{site.process.pid}/task")
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir()) / 1e9


def compare(kind: str, quota: str, rounds: int, seconds: float, core: int, load_core: int) -> None:
    sites = [Site(kind, "stock", ""), Site(kind, quota, "")]
    for site in sites:
        for task in Path(f"/proc/{site.process.pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), {core})
    try:
        for title, connections, size in WORKS:
            with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
                if size:
                    script.write(f"wrk.method = 'PUT'; wrk.body = string.rep('x', {size})")
                script.flush()
                figures: list[list[Figures]] = [[], []]
                for n in range(-1, rounds):
                    for which in (0, 1) if n % 2 else (1, 0):
                        made = put_load(sites[which], load_core, connections, script.name, seconds)
                        if n >= 0:  # the first is to warm up
                            figures[which].append(made)
            show(kind, title, *figures)
    finally:
        for site in sites:
            site.close()


def compare_echoes(rounds: int, seconds: float, cores: tuple[int, int]) -> None:
    work = Work("echo, 64 B, 100 connections", "echo", 100, 64, same_core=cores[0] == cores[1])
    with (
        built() as folder,
        running(folder, ("Twisted Protocol", "Twisted Protocol, bounded"), cores[0]) as servers,
    ):
        stock, ours = contest(folder, servers, work, cores, rounds, seconds).values()
    show("twisted", work.title, stock, ours)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.web", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quota", default="64MiB")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--same-core", action="store_true")
    arguments = parser.parse_args()
    rounds, seconds = (2, 1) if arguments.quick else (9, 2)
    core, other = sorted(os.sched_getaffinity(0))[:2]
    print(f"{'':<40}{'rate':>20}{'CPU':>20}{'CPU, stock / ours':>22}")
    compare_echoes(rounds, seconds, (core, core if arguments.same_core else other))
    for kind in KINDS:
        compare(kind, arguments.quota, rounds, seconds, core, core if arguments.same_core else other)


if __name__ == "__main__":
    main()
