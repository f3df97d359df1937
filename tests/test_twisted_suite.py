"""Twisted's own tests over our transports, beside what they give on its own reactor.

What is not the same must stand in `twisted_differences.txt`, a line each: the test, what it gave on Twisted's reactor,
what on ours, and after a # the reason.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("twisted.internet", reason="Twisted is not installed")
pytest.importorskip("hamcrest", reason="Twisted's own tests need PyHamcrest")
if not hasattr(__import__("select"), "epoll"):
    pytest.skip("this system has no epoll, whose reactor is compared with", allow_module_level=True)

from twisted import version

HERE = Path(__file__).parent
MODULES = {
    "reactors": [
        f"twisted.internet.test.test_{name}"
        for name in [
            "tcp",
            "tls",
            "fdset",
            "time",
            "threads",
            "core",
            "base",
            "endpoints",
            "socket",
            "unix",
            "posixbase",
        ]
    ],
    "protocols": ["twisted.web", "twisted.test.test_tcp", "twisted.protocols"],
}


def run(kind: str, names: list[str], folder: Path) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EVENTENGINE_")}
    done = subprocess.run(
        [sys.executable, str(HERE / "twisted_suite.py"), kind, *names],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    outcomes: dict[str, str] = json.loads(done.stdout)
    return outcomes


@pytest.mark.timeout(500)
@pytest.mark.parametrize("group", MODULES)
def test_twisted_s_own_tests_give_the_same_on_our_reactor(group: str, tmp_path: Path) -> None:
    if group == "protocols" and version.major < 23:
        pytest.skip("some of these hang on the stock reactor of Twisted 22, too")
    stock, ours = (run(kind, MODULES[group], tmp_path) for kind in ("stock", "ours"))
    print(f"{group}: stock {dict(Counter(stock.values()))}, ours {dict(Counter(ours.values()))}")
    assert Counter(stock.values())["ok"] > 400
    seen = {
        f"{test} {stock.get(test)} {ours.get(test)}" for test in stock | ours if stock.get(test) != ours.get(test)
    }
    lines = (HERE / "twisted_differences.txt").read_text().splitlines()
    known = {line.partition("#")[0].strip() for line in lines} - {""}
    assert seen - known == set()
