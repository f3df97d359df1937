"""The soak of `benchmarks.soak`, for a minute: in a process of its own, whose memory it looks at."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from eventengine.testing.oracle import TIMEOUT

SECONDS = 60


@pytest.mark.skipif(sys.platform != "linux", reason="it looks at /proc")
@pytest.mark.timeout(300)
def test_random_traffic_over_all_engines_at_once_loses_nothing_and_nothing_grows() -> None:
    """On a failure, the seed is in its output."""
    seed = random.randrange(1 << 32)
    command = ["-m", "benchmarks.soak", "--seconds", str(SECONDS), "--seed", str(seed), "--connections", "400"]
    done = subprocess.run(
        [sys.executable, "-W", "error", *command],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=SECONDS + 6 * TIMEOUT,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    print(done.stdout)
    ended = re.search(r"^all is well: .*?(\d+) connects", done.stdout, re.MULTILINE)
    assert ended, done.stdout
    assert int(ended[1]) > 1000
