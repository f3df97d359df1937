"""A lossy, slow and reordering network, and one that is cut; see `bad_networks` and `network_faults`."""

from __future__ import annotations

import errno
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engines import KINDS, MAIN, is_installed

HERE = Path(__file__).parent
TIMEOUT = 120

SET_UP = """
import sys
from bad_networks import Mirror, Netem
(Netem() if sys.argv[1] == "netem" else Mirror(0)).close()
"""


@pytest.mark.parametrize("network", ["netem", "mirror"])
def test_bytes_come_through_a_bad_network_and_a_cut_one_ends_what_has_a_timeout_and_nothing_else(
    network: str,
) -> None:
    """The seed is in the output. With netem, chance is the kernel's."""
    if not all(map(shutil.which, ("unshare", "ip", "tc"))):
        pytest.skip("unshare, ip and tc are not installed")
    unshared = ["unshare", "--map-root-user", "--net", sys.executable, "-W", "error"]
    made = subprocess.run(
        [*unshared, "-c", SET_UP, network], cwd=HERE, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    if made.returncode:
        what = "has no netem" if network == "netem" else "makes no TUN device in a network of one's own"
        pytest.skip(f"this machine {what}: {made.stderr.strip().splitlines()[0]}")
    seed = str(random.randrange(1 << 32))
    print(f"seed {seed}")
    done = subprocess.run(
        [*unshared, "network_faults.py", network, seed],
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    over, broken = f"UNAVAILABLE {errno.ETIMEDOUT}", f"UNAVAILABLE {errno.EPIPE}"
    assert done.stdout.splitlines() == [
        f"{kind.id}; right; OK None patience; "
        f"user_timeout {over}, then {broken}; keepalive {over}, {over}; connect DEADLINE_EXCEEDED None"
        for kind in KINDS
        if kind.loop in MAIN and not kind.pool and all(map(is_installed, kind.needs))
    ]
