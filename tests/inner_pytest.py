"""A pytest in a process of its own, for tests of what eventengine does in pytest."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import eventengine

SUITE = ["--pyargs", "eventengine.testing.conformance"]
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(Path(eventengine.__file__).parents[1]), str(Path(__file__).parent)]),
    "PYTEST_ADDOPTS": "-p no:cacheprovider",
}
if not importlib.metadata.entry_points(
    group="pytest11", name="eventengine"
):  # it is not installed, but on the path
    ENVIRONMENT["PYTEST_ADDOPTS"] += " -p _eventengine_pytest"


def run_pytest(
    folder: Path, *arguments: str, before: str = "", timeout: float = 100
) -> subprocess.CompletedProcess[str]:
    """Runs it in `folder`, where it finds no settings; `before` is code that runs first."""
    code = f"{before}\nimport sys, pytest\nsys.exit(pytest.main({list(arguments)!r}))"
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
