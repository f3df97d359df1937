"""Tornado's own tests over our servers, clients and streams, beside what they give on its own.

What is not the same must stand in `tornado_differences.txt`, a line each: the test, what it gave on Tornado's own, what
on ours, and after a # the reason.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("tornado", reason="needs the extra tornado")
pytest.importorskip("tornado.test.iostream_test", reason="Tornado is installed without its tests")

HERE = Path(__file__).parent
MODULES = ["iostream", "httpserver", "web", "websocket", "simple_httpclient", "tcpserver"]


def run(kind: str, folder: Path) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, str(HERE / "tornado_suite.py"), kind, *(f"tornado.test.{name}_test" for name in MODULES)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    outcomes: dict[str, str] = json.loads(done.stdout)
    return outcomes


@pytest.mark.timeout(250)
def test_tornado_s_own_tests_give_the_same_on_ours(tmp_path: Path) -> None:
    stock, ours = (run(kind, tmp_path) for kind in ("stock", "ours"))
    print(f"stock {dict(Counter(stock.values()))}, ours {dict(Counter(ours.values()))}")
    assert Counter(stock.values())["ok"] > 500
    seen = {
        f"{test} {stock.get(test)} {ours.get(test)}" for test in stock | ours if stock.get(test) != ours.get(test)
    }
    lines = (HERE / "tornado_differences.txt").read_text().splitlines()
    known = {line.partition("#")[0].strip() for line in lines} - {""}
    assert seen - known == set()
