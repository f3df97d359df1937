"""The demo's sites, stock and bounded, under a small attack."""

from __future__ import annotations

import importlib.util
import itertools
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from eventengine.cli import demo, frameworks, main, plot, sites
from eventengine.cli.frameworks import Framework
from eventengine.cli.sites import Attack

TIMEOUT = 60.0
SMALL = Attack(clients=16, honest=2, seconds=1.0, rest=0.5)
SVG = "{http://www.w3.org/2000/svg}"
KINDS = ("stock", "64 MiB")

needs_memory_of_processes = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="there is no /proc with the memory of processes"
)


def is_installed(framework: Framework) -> bool:
    try:
        return importlib.util.find_spec(framework.module) is not None
    except ImportError:
        return False


INSTALLED = [each.name for each in sites.FRAMEWORKS if is_installed(each)]
needs_a_framework = pytest.mark.skipif(not INSTALLED, reason="neither Tornado nor Twisted is installed")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The processes of sites that were started; they must have ended."""
    processes: list[subprocess.Popen[bytes]] = []

    class Recorded(sites._Site):
        def __init__(self, framework: Framework, *, bounded: bool) -> None:
            super().__init__(framework, bounded=bounded)
            processes.append(self.process)

    monkeypatch.setattr(sites, "_Site", Recorded)
    yield processes
    assert all(each.returncode is not None for each in processes)


def row(out: str, head: str) -> list[str]:
    found = re.search(rf"^{head} {{2,}}(.*)$", out, re.MULTILINE)
    assert found, head
    return re.split(r"  +", found[1].strip())


def lines_of(svg: str) -> dict[str, list[tuple[float, float]]]:
    """The points of each line, by its title."""
    lines = {}
    for line in ElementTree.fromstring(svg).iter(f"{SVG}polyline"):
        points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
        lines[line.findtext(f"{SVG}title") or ""] = [(x, y) for x, y in points]
    return lines


@needs_memory_of_processes
@needs_a_framework
def test_bounded_sites_serve_honest_clients_within_their_quota_and_stock_ones_grow(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    assert sites.run(tmp_path / "chart.svg", SMALL)
    out = capsys.readouterr().out
    names = [f"{name}, {kind}" for name in INSTALLED for kind in KINDS]
    assert len(started) == len(names)
    assert row(out, "seconds") == [*KINDS] * len(INSTALLED)
    assert row(out, "honest served") == ["2 of 2"] * len(names)
    assert len(row(out, "0")) == len(row(out, "1")) == len(names)
    grown = [int(each) for each in row(out, "grown by")]
    assert all(each > 0.8 * 6 * SMALL.clients for each in grown[::2])
    assert all(each <= 64 + 32 for each in grown[1::2])
    lines = lines_of((tmp_path / "chart.svg").read_text("utf-8"))
    assert [*lines] == names
    assert all(len(points) >= 6 for points in lines.values())


@needs_memory_of_processes
@needs_a_framework
def test_it_fails_when_an_honest_client_of_a_bounded_site_is_not_served(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    started: list[subprocess.Popen[bytes]],
) -> None:
    monkeypatch.setattr(frameworks, "_exchange", lambda *_: b"something else")
    assert not sites.run(None, Attack(clients=1, honest=1, seconds=0.1, rest=0.1))
    out = capsys.readouterr().out
    for name in INSTALLED:
        assert f"failed: {name}, 64 MiB: of 1 honest clients it served 0" in out
        assert f"failed: {name}, stock" not in out


@needs_memory_of_processes
@needs_a_framework
def test_it_fails_when_a_bounded_site_grows_by_more_than_its_quota_and_some(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    started: list[subprocess.Popen[bytes]],
) -> None:
    monkeypatch.setattr(sites, "SLACK", -64)
    assert not sites.run(None, Attack(clients=4, honest=1, seconds=0.1, rest=0.5))
    assert re.search(
        r"^failed: .*, 64 MiB: it grew by \d+ MiB, more than 0$", capsys.readouterr().out, re.MULTILINE
    )


@needs_memory_of_processes
def test_what_a_site_says_as_it_fails_to_start_is_told(
    monkeypatch: pytest.MonkeyPatch, started: list[subprocess.Popen[bytes]]
) -> None:
    broken = replace(sites.FRAMEWORKS[0], module="json", program="raise SystemExit('out of luck')", bound="0\n")
    monkeypatch.setattr(sites, "FRAMEWORKS", (broken,))
    with pytest.raises(RuntimeError, match="out of luck"):
        sites.run(None, SMALL)
    assert len(started) == 2


@needs_memory_of_processes
@needs_a_framework
def test_ctrl_c_ends_the_sites() -> None:
    code = (
        "from eventengine.cli import sites\n"
        "find_port = sites._Site.find_port\n"
        "sites._Site.find_port = lambda site: (print('site', site.process.pid, flush=True), find_port(site))\n"
        "sites.run(None, sites.Attack(clients=4, honest=1, seconds=60.0))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout
        seen = list(itertools.takewhile(lambda line: not line.startswith("0 "), process.stdout))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
        process.communicate()
    assert "KeyboardInterrupt" in err
    processes = [Path("/proc", line.split()[1]) for line in seen if line.startswith("site ")]
    assert len(processes) == 2 * len(INSTALLED)
    assert not [each for each in processes if each.exists()]


@needs_memory_of_processes
@needs_a_framework
def test_a_site_ends_when_whoever_started_it_is_gone() -> None:
    framework = next(each for each in sites.FRAMEWORKS if each.name in INSTALLED)
    site = sites._Site(framework, bounded=True)
    try:
        site.find_port()
        assert site.process.stdin
        site.process.stdin.close()
        site.process.stdin = None
        site.process.wait(TIMEOUT)
    finally:
        site.close()


@needs_memory_of_processes
def test_frameworks_that_are_missing_are_named_and_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("tornado", "tornado.web", "twisted", "twisted.web"):
        monkeypatch.setitem(sys.modules, name, None)
    assert sites.run()
    out = capsys.readouterr().out
    assert re.search(r"^Tornado: left out: .*eventengine\[tornado\]", out, re.MULTILINE)
    assert re.search(r"^twisted.web: left out: .*eventengine\[twisted\]", out, re.MULTILINE)
    assert "Resident" not in out


def test_where_the_memory_of_processes_cannot_be_read_all_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sites, "PROC", tmp_path)
    assert sites.run()
    assert "Left out" in capsys.readouterr().out


def test_the_attack_takes_at_most_half_of_the_free_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sites, "_free_memory", lambda: 480 << 20)
    assert sites._fitting(Attack(clients=100), stock_sites=2) == Attack(clients=20)
    assert "room for 20 clients" in capsys.readouterr().out
    assert sites._fitting(Attack(clients=20), stock_sites=2) == Attack(clients=20)
    assert not capsys.readouterr().out


@needs_memory_of_processes
def test_the_free_memory_is_what_the_machine_or_the_container_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert 0 < sites._free_memory() < 1 << 60
    (tmp_path / "meminfo").write_text("MemTotal: 30 kB\nMemAvailable:      20 kB\n", "ascii")
    (tmp_path / "memory.current").write_text("5000\n", "ascii")
    monkeypatch.setattr(sites, "PROC", tmp_path)
    monkeypatch.setattr(sites, "CONTROL_GROUP", tmp_path)
    for most, free in (("max", 20480), ("25000", 20000), ("90000", 20480)):
        (tmp_path / "memory.max").write_text(f"{most}\n", "ascii")
        assert sites._free_memory() == free


def test_the_demo_ends_with_1_when_the_sites_fail_and_passes_on_where_to_draw(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fail(path: Path | None) -> bool:
        if path:
            raise RuntimeError(f"not {path.name}")
        return False

    monkeypatch.setattr(demo, "FILE_SIZE", 1 << 20)
    monkeypatch.setattr(demo, "ENGINES", ())
    monkeypatch.setattr(sites, "run", fail)
    assert main(["demo"]) == 1
    assert "failed" not in capsys.readouterr().out
    assert main(["demo", "--plot", str(tmp_path / "chart.svg")]) == 1
    assert "failed: not chart.svg" in capsys.readouterr().out


def test_a_chart_that_cannot_be_written_is_told_before_anything_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for path in (tmp_path, tmp_path / "no" / "chart.svg"):
        with pytest.raises(SystemExit) as raised:
            main(["demo", "--plot", str(path)])
        assert raised.value.code == 2
        out, err = capsys.readouterr()
        assert not out
        assert re.fullmatch(r"eventengine demo: error: argument --plot: .* cannot be written; .+\n", err)
    with pytest.raises(SystemExit):
        main(["demo", "--plot", str(tmp_path / "chart.png")])
    assert capsys.readouterr().err.endswith("the chart is SVG, so give a name that ends in .svg\n")


def test_a_chart_has_a_line_for_each_site_and_values_on_both_axes() -> None:
    svg = plot.draw({"<stock>": [(0.0, 20.0), (5.0, 700.0), (10.0, 700.0)], "bounded & more": [(0.0, 20.0)]}, 64)
    lines = lines_of(svg)
    assert [*lines] == ["<stock>", "bounded & more"]
    first, second, third = lines["<stock>"]
    assert first == lines["bounded & more"][0]
    assert first[0] < second[0] < third[0]
    assert first[1] > second[1] == third[1]
    texts = {each.text for each in ElementTree.fromstring(svg).iter(f"{SVG}text")}
    assert {"MiB", "seconds", "700", "10", "the quota, 64 MiB", "<stock>: at most 700 MiB"} <= texts


def test_a_chart_of_nothing_is_drawn_too() -> None:
    assert lines_of(plot.draw({"stock": []}, 64)) == {"stock": []}
