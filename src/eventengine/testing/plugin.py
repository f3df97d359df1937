"""What `pytest --engine MODULE:FUNCTION` does: the fixture `engine`; and, by `--pyargs`, the conformance suite.

The suite is one module of pytest's, the package `eventengine.testing.conformance`: whose namespace is what a test file
has that does `from eventengine.testing.conformance import *`. So its fixtures are those of its own tests alone.
`_eventengine_pytest` has the options, and calls `start`.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator
from operator import attrgetter
from pathlib import Path
from types import FunctionType
from typing import Final, cast

import pytest

from eventengine.engine import EventEngine
from eventengine.testing.capabilities import CAPABILITIES

MakeEngine = Callable[[], EventEngine]

_SUITE: Final = Path(__file__).parent / "conformance" / "__init__.py"
_PROPERTY: Final = "eventengine conformance"
_SKIP: Final = re.compile(r"(?:Skipped: )?without ([\w-]+): (.*)", re.DOTALL)


def start(config: pytest.Config, engines: list[str], without: list[str]) -> None:
    """Has pytest know what the options are about. Raises pytest.UsageError for what they cannot be."""
    if engines and pytest.version_tuple < (8, 0):  # which does not ask plugins about an `__init__.py`
        raise pytest.UsageError(f"--engine needs pytest 8 or newer, and this is {pytest.__version__}")
    folder = str(config.invocation_params.dir)
    if folder not in sys.path:  # as `python -m pytest` does
        sys.path.insert(0, folder)
    factories = {spec: _load(spec) for spec in engines}
    if without:
        _check(without)
    if factories:
        config.pluginmanager.register(_fixtures_for(factories), "eventengine fixtures")
        config.pluginmanager.register(sys.modules[__name__], "eventengine conformance")


def _load(spec: str) -> MakeEngine:
    module, _, name = spec.partition(":")
    if not (module and name):
        raise pytest.UsageError(f"--engine {spec}: it must be a module and a function, my.module:make_engine")
    try:
        make_engine = attrgetter(name)(importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise pytest.UsageError(f"--engine {spec}: {error}") from error
    if not callable(make_engine):
        raise pytest.UsageError(f"--engine {spec}: it is no function, but {type(make_engine).__name__}")
    return make_engine  # type: ignore[no-any-return]  # what it returns is for the tests to see


def _check(without: Iterable[str]) -> None:
    declarable = [name for name, capability in CAPABILITIES.items() if capability.is_declared]
    for name in without:
        if name not in declarable:
            raise pytest.UsageError(f"--engine-without {name}: it must be one of {', '.join(declarable)}")


def _fixtures_for(factories: dict[str, MakeEngine]) -> object:
    class Fixtures:
        @pytest.fixture(params=list(factories))
        def make_engine(self, request: pytest.FixtureRequest) -> MakeEngine:
            """What makes an event engine; of each --engine."""
            return factories[request.param]

        @pytest.fixture
        def engine(self, make_engine: MakeEngine) -> Iterator[EventEngine]:
            """An event engine, of each --engine; it is closed in the end."""
            with make_engine() as engine:
                yield engine

    return Fixtures()


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """The parts of the suite are no test files by themselves, whatever test files are called here."""
    return True if collection_path.parent == _SUITE.parent and collection_path != _SUITE else None


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(
    file_path: Path, parent: pytest.Collector
) -> Generator[None, list[pytest.Collector], list[pytest.Collector]]:
    collectors = yield
    if file_path == _SUITE and not collectors:
        from_parent = cast("Callable[..., pytest.Module]", pytest.Module.from_parent)  # pyright: ignore[reportUnknownMemberType]  # pytest has no type for it
        return [from_parent(parent, path=file_path)]
    return collectors


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each case goes by the name of its part, too (`-k reading`), and its reports tell of which engine they are."""
    for item in items:
        if item.path == _SUITE and isinstance(item, pytest.Function):
            function = cast("FunctionType", item.obj)
            item.extra_keyword_matches.add(function.__module__.rpartition(".")[2])
            item.user_properties.append((_PROPERTY, item.callspec.params["make_engine"]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Of each engine: how many cases there were, and which were skipped for want of what."""
    reports: defaultdict[str, dict[str, pytest.TestReport]] = defaultdict(dict)
    for report in (each for some in list(terminalreporter.stats.values()) for each in some):
        if isinstance(report, pytest.TestReport) and (report.when == "call" or not report.passed):
            engine = dict(report.user_properties).get(_PROPERTY)
            if engine and (report.nodeid not in reports[str(engine)] or report.failed):  # in its teardown, that is
                reports[str(engine)][report.nodeid] = report
    for engine, cases in reports.items():
        terminalreporter.section(f"conformance of {engine}")
        for line in _summary(cases.values()):
            terminalreporter.write_line(line)


def _summary(reports: Iterable[pytest.TestReport]) -> Iterator[str]:
    counts = Counter(report.outcome for report in reports)
    parts = [f"{counts[outcome]} {outcome}" for outcome in ("passed", "failed", "skipped") if counts[outcome]]
    yield f"{counts.total()} cases: {', '.join(parts)}"
    why = Counter(_why(report) for report in reports if report.skipped)
    for (capability, reason), count in sorted(why.items()):
        yield f"{count:5} skipped {f'without {capability}' if capability else 'for another reason'}: {reason}"


def _why(report: pytest.TestReport) -> tuple[str, str]:
    """The capability that a skipped case would have needed, if any, and the reason that it gave."""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    match = _SKIP.match(reason)
    return (match[1], match[2]) if match else ("", reason.removeprefix("Skipped: "))
