"""A framework's own tests, run on its own parts and on ours, and what is worse on ours.

What is worse must stand in a file, a line each: the test, what it gave on ours, and after a # the reason.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent


def run(program: str, kind: str, names: list[str], folder: Path) -> dict[str, str]:
    """What became of each test, by its name."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EVENTENGINE_")}
    environment["ASYNC_TEST_TIMEOUT"] = "60"  # Tornado's 5 s are too few where much else runs
    environment["EMULATION"] = "1"  # and its 0.1 s for a TLS handshake and a request, which it makes 0.5 then
    done = subprocess.run(
        [sys.executable, str(HERE / program), kind, *names],
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


def find_worse(framework: str, names: list[str], folder: Path) -> set[str]:
    """What is worse on ours and not in the framework's file. Prints the counts."""
    stock, ours = (run(f"{framework}_suite.py", kind, names, folder) for kind in ("stock", "ours"))
    print(f"stock {dict(Counter(stock.values()))}, ours {dict(Counter(ours.values()))}")
    assert Counter(stock.values())["ok"] > 400
    worse = {f"{test} {ours.get(test)}" for test in stock if stock[test] == "ok" != ours.get(test)}
    worse |= {f"{test} {ours[test]}" for test in ours if test not in stock}
    lines = (HERE / f"{framework}_differences.txt").read_text().splitlines()
    return worse - {line.partition("#")[0].strip() for line in lines}
