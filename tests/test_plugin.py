"""What eventengine does in pytest: nothing, until it is given an engine; then the suite, a fixture, and a report."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from eventengine.testing.capabilities import CAPABILITIES
from inner_pytest import SUITE, run_pytest

DEFAULT = "--engine=eventengine:create_event_engine"
FRAMEWORKS = {"tornado", "twisted", "uvloop"}


def test_who_merely_has_it_installed_pays_nothing_and_may_use_the_names(tmp_path: Path) -> None:
    """Neither the package is loaded, nor an option or a fixture of somebody else is in the way."""
    (tmp_path / "conftest.py").write_text(
        "import pytest\n"
        "def pytest_addoption(parser):\n"
        "    parser.addoption('--engine', choices=['diesel', 'steam'])\n"
        "@pytest.fixture\n"
        "def engine(request):\n"
        "    return request.config.getoption('--engine')\n"
    )
    (tmp_path / "test_theirs.py").write_text(
        "import sys\n"
        "def test_theirs(engine):\n"
        "    assert engine == 'steam'\n"
        f"    assert not set(sys.modules) & {{'eventengine', *{FRAMEWORKS}}}\n"
    )
    done = run_pytest(tmp_path, "-W", "error", "--engine", "steam", "test_theirs.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "conformance" not in done.stdout


def test_where_the_option_is_another_s_the_suite_says_so(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("def pytest_addoption(parser): parser.addoption('--engine')\n")
    done = run_pytest(tmp_path, *SUITE, DEFAULT)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "another plugin or a conftest.py has an option --engine" in done.stderr


def test_without_the_option_there_is_no_fixture_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "test_own.py").write_text("def test_it(engine): pass\n")
    done = run_pytest(tmp_path, "test_own.py")
    assert "fixture 'engine' not found" in done.stdout


def test_own_tests_get_each_engine_which_is_closed_in_the_end(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from eventengine import create_event_engine\n"
        "class engines:\n"
        "    made = []\n"
        "    @classmethod\n"
        "    def make(cls):\n"
        "        assert all(engine.is_closed for engine in cls.made)\n"
        "        cls.made.append(create_event_engine())\n"
        "        return cls.made[-1]\n"
    )
    (tmp_path / "test_own.py").write_text(
        "import sys, threading\n"
        "import mine\n"
        "def test_it(engine):\n"
        "    ran = threading.Event()\n"
        "    engine.run(ran.set)\n"
        "    assert ran.wait(30)\n"
        "def test_how_many_were_made():\n"
        "    assert [engine.is_closed for engine in mine.engines.made] == [True]\n"
        f"    assert not set(sys.modules) & {FRAMEWORKS}\n"
    )
    done = run_pytest(tmp_path, "-v", DEFAULT, "--engine", "mine:engines.make", "test_own.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_it[eventengine:create_event_engine] PASSED" in done.stdout
    assert "test_it[mine:engines.make] PASSED" in done.stdout
    assert "conformance of" not in done.stdout


def test_the_page_s_test_runs_on_each_engine(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "testing.md").read_text()
    (example,) = re.findall(r"^```python\n(# test_greeting.py\n.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "test_greeting.py").write_text(example)
    engines = [DEFAULT, "--engine=eventengine.bridges.asyncio:AsyncioEventEngine.in_thread"]
    done = run_pytest(tmp_path, "test_greeting.py", *engines)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


def test_the_page_names_each_capability() -> None:
    page = (Path(__file__).parents[1] / "docs" / "testing.md").read_text()
    _, _, table = page.partition("| capability |")
    rows = re.findall(r"^\| `([\w-]+)` \|.*\| ([^|]*) \|$", table.partition("\n\n")[0], re.MULTILINE)
    assert [name for name, _ in rows] == list(CAPABILITIES)
    assert {name for name, how in rows if "declared" in how} == {
        name for name, capability in CAPABILITIES.items() if capability.is_declared
    }


def test_the_suite_reports_of_each_engine_what_passed_failed_and_was_skipped_for_want_of_what(
    tmp_path: Path,
) -> None:
    (tmp_path / "mine.py").write_text(
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from eventengine import create_event_engine\n"
        "class Never:\n"
        "    def __enter__(self): raise LookupError('no such engine')\n"
        "    def __exit__(self, *_): pass\n"
        "def on_pool(): return create_event_engine(callback_executor=POOL)\n"
        "POOL = ThreadPoolExecutor(1)\n"
        "POOL.submit(int).result()\n"  # its thread is none that a case leaves
    )
    case = "equal_delays or prefix_and_then or tasks and raced"
    engines = [DEFAULT, "--engine=mine:Never", "--engine=mine:on_pool"]
    done = run_pytest(tmp_path, *SUITE, *engines, "--engine-without=resets", "-k", case, "-q")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    lines = [line.strip("= ") for line in done.stdout.splitlines()]
    skipped = "1 skipped without resets: a reset by the peer is told apart from an end"
    first = lines.index("conformance of eventengine:create_event_engine")
    assert lines[first + 1] == "5 cases: 3 passed, 2 skipped"
    assert [line.strip() for line in lines[first + 2 : first + 3]] == [skipped.replace("1", "2", 1)]
    second = lines.index("conformance of mine:Never")
    assert lines[second + 1] == "5 cases: 3 failed, 2 skipped"
    third = lines.index("conformance of mine:on_pool")
    assert lines[third + 1] == "5 cases: 1 passed, 4 skipped"
    assert [line.strip() for line in lines[third + 2 : third + 4]] == [
        skipped.replace("1", "2", 1),
        "2 skipped without serial-callbacks: on a pool, closures that are due run at the same time",
    ]


def test_the_suite_runs_by_xdist_and_beside_own_tests_of_which_it_asks_nothing(tmp_path: Path) -> None:
    """Also where every file that ends in .py is a test file; and who leaves a thread in his own tests may."""
    pytest.importorskip("xdist", reason="pytest-xdist is not installed")
    (tmp_path / "pytest.ini").write_text("[pytest]\npython_files = *.py\n")
    (tmp_path / "own.py").write_text(
        "import threading\n"
        "def test_that_leaves_a_thread():\n"
        "    threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    )
    done = run_pytest(tmp_path, "own.py", *SUITE, DEFAULT, "-k", "leaves_a_thread or robustness", "-n", "1")
    assert done.returncode == 0, done.stdout
    assert "11 cases: 11 passed" in done.stdout
    assert "12 passed" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            [DEFAULT, "eventengine.testing.conformance.reading"],
            "eventengine.testing.conformance.reading: a part of eventengine.testing.conformance is run by its name",
        ),
        ([], "eventengine.testing.conformance needs an engine to test: --engine my.module:make_engine"),
        (["--engine=json"], "--engine json: it must be a module and a function, my.module:make_engine"),
        (["--engine=no.such:thing"], "--engine no.such:thing: No module named 'no'"),
        (["--engine=json:thing"], "--engine json:thing: module 'json' has no attribute 'thing'"),
        (["--engine=json:__doc__"], "--engine json:__doc__: it is no function, but str"),
        (
            [DEFAULT, "--engine-without=wings"],
            "--engine-without wings: it must be one of abstract-unix, backpressure,",
        ),
        (
            [DEFAULT, "--engine-without=telemetry"],
            "--engine-without telemetry: it must be one of abstract-unix, backpressure,",
        ),
    ],
    ids=[
        "a part",
        "none",
        "no function",
        "no module",
        "no attribute",
        "a str",
        "no capability",
        "one that is found out",
    ],
)
def test_what_cannot_be_is_told_in_one_line(tmp_path: Path, arguments: list[str], text: str) -> None:
    done = run_pytest(tmp_path, *SUITE, *arguments)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert done.stdout == ""
    (line,) = done.stderr.split("\n\n")[:-1]
    assert line.startswith(f"ERROR: {text}")


def test_a_test_file_that_imports_the_suite_says_by_a_fixture_what_its_engine_is_without(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(
        "import pytest\n"
        "from eventengine import create_event_engine\n"
        "from eventengine.testing.conformance import *\n"
        "@pytest.fixture\n"
        "def make_engine(): return create_event_engine\n"
        "@pytest.fixture\n"
        "def without(): return {'unix', 'abstract-unix', 'fork', 'names'}\n"
    )
    case = "test_bytes_come_in_order or test_on_connect_is or in_a_child or test_a_hundred_lookups"
    done = run_pytest(tmp_path, "-rs", "test_mine.py", "-k", case)
    assert done.returncode == 0, done.stdout
    assert "2 passed, 10 skipped" in done.stdout
    for text in (
        "without unix: connections over unix sockets",
        "without fork: what was made before a fork is refused in the child",
        "without names: names are looked up",
    ):
        assert text in done.stdout
