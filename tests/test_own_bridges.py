"""The bridges of docs/write-your-own-bridge.md: its own, and that to Trio, which was written from it."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from inner_pytest import SUITE, run_pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
PAGE = ROOT / "docs" / "write-your-own-bridge.md"


def passes(folder: Path, engine: str, *arguments: str) -> bool:
    done = run_pytest(folder, *SUITE, f"--engine={engine}", *arguments)
    (report,) = re.findall(r"^\d+ cases: .*$", done.stdout, re.MULTILINE) or [done.stdout + done.stderr]
    print(report, *re.findall(r"^(?:FAILED|ERROR|E ) .*$", done.stdout, re.MULTILINE), sep="\n")
    return done.returncode == 0 and re.fullmatch(r"(\d+) cases: \1 passed", report) is not None


def test_the_bridge_on_the_page_passes_what_a_bridge_can_be_wrong_in(tmp_path: Path) -> None:
    (bridge,) = re.findall(r"^```python\n(# my_bridge.py\n.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "my_bridge.py").write_text(bridge)
    assert passes(
        tmp_path, "my_bridge:MyEventEngine.in_thread", "-k", "tasks or connecting or ending or robustness"
    )


@pytest.fixture
def trio(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(EXAMPLES)
    return pytest.importorskip("trio", reason="Trio is not installed")


def test_the_bridge_to_trio_passes_all(trio: Any) -> None:
    assert passes(EXAMPLES, "trio_bridge:TrioEventEngine.in_thread")


def test_the_bridge_to_trio_is_short() -> None:
    assert len((EXAMPLES / "trio_bridge.py").read_text().splitlines()) < 150


def test_an_engine_on_the_trio_loop_that_runs_leaves_nothing_on_it(trio: Any) -> None:
    from trio_bridge import open_engine

    ran: list[threading.Thread] = []

    async def main() -> None:
        tasks = trio.lowlevel.current_statistics().tasks_living
        async with open_engine() as engine:
            done = trio.Event()
            engine.run(lambda: ran.append(threading.current_thread()))
            engine.run_after(1e6, done.set)
            engine.run_after(0.01, done.set)
            await done.wait()
        assert trio.lowlevel.current_statistics().tasks_living == tasks

    with_a_limit(trio, main)
    assert ran == [threading.current_thread()]


@pytest.mark.parametrize("call", ["run", "run_after"])
def test_what_ends_a_program_ends_the_trio_loop(trio: Any, call: str) -> None:
    from trio_bridge import open_engine

    async def main() -> None:
        async with open_engine() as engine:
            engine.run(sys.exit) if call == "run" else engine.run_after(0.0, sys.exit)
            await trio.sleep_forever()

    with pytest.raises(BaseExceptionGroup) as raised:
        with_a_limit(trio, main)
    assert raised.group_contains(SystemExit)


def with_a_limit(trio: Any, main: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        with trio.fail_after(30):
            await main()

    trio.run(limited)
