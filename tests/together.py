"""Functions run at the same time, each on a thread of its own; scripts run in a process of their own."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable

TIMEOUT = 60.0


def run_together(*functions: Callable[[], object]) -> None:
    """Starts all at one moment and waits for them. Raises what the first to fail raised.

    The threads take turns every few instructions, where they would have 5 ms each else.
    """
    start = threading.Barrier(len(functions))
    errors: list[BaseException] = []

    def run(function: Callable[[], object]) -> None:
        try:
            start.wait(TIMEOUT)
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(function,), daemon=True) for function in functions]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        end = time.monotonic() + TIMEOUT
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
    finally:
        sys.setswitchinterval(interval)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"


def run_script(code: str, *, hangs_after: float = TIMEOUT) -> None:
    """Runs Python code, which must end well and silently. One that hangs is ended, and says where it was."""
    code = f"import faulthandler\nfaulthandler.dump_traceback_later({hangs_after}, exit=True)\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=2 * TIMEOUT, check=False
    )
    failed = done.returncode or done.stderr
    assert not failed, f"exit status {done.returncode}\n{done.stderr}"
