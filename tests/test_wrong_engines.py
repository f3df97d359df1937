"""The conformance suite finds what is wrong: each fault of `wrong_engines` fails the cases whose names say it, and the
same engine without a fault passes them."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from pathlib import Path

import pytest

from inner_pytest import SUITE, run_pytest
from wrong_engines import FAULTS, Right

pytestmark = pytest.mark.timeout(240)

Outcomes = dict[str, dict[str, str]]
"""What the cases of each engine failed with; nothing, where they passed."""


def run(folder: Path, engines: list[type[Right]], expression: str, timeout: float) -> Outcomes:
    """The suite on these engines, in a process of its own, in which what hangs is given up after `timeout` seconds."""
    options = [f"--engine=wrong_engines:{engine.__name__}" for engine in engines]
    report = folder / "report.xml"
    patience = (
        f"from eventengine.testing import oracle\noracle.TIMEOUT = {timeout}"  # before the suite is imported
    )
    done = run_pytest(folder, *SUITE, *options, "-k", expression, f"--junitxml={report}", before=patience)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    outcomes: Outcomes = defaultdict(dict)
    for case in ElementTree.parse(report).iter("testcase"):
        name = case.attrib["name"].partition("[")[0]
        engine = case.findall("properties/property")[0].attrib["value"].removeprefix("wrong_engines:")
        texts = [each.attrib["message"] + (each.text or "") for each in case if each.tag in ("failure", "error")]
        outcomes[engine][name] = "\n".join([*outcomes[engine].get(name, "").splitlines(), *texts])
    return outcomes


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    expression = " or ".join(
        f"({engine.__name__} and ({' or '.join(fault.cases)}) and {fault.where})"
        for engine, fault in FAULTS.items()
    )
    return run(tmp_path_factory.mktemp("wrong"), list(FAULTS), expression, timeout=2.0)


def test_there_are_as_many_as_the_page_says() -> None:
    page = (Path(__file__).parents[1] / "docs" / "testing.md").read_text()
    assert len(FAULTS) == 16
    assert "with sixteen engines of which each has one fault" in page


@pytest.mark.parametrize("engine", FAULTS, ids=lambda engine: engine.__name__)
def test_a_wrong_engine_fails_the_cases_whose_names_say_it(outcomes: Outcomes, engine: type[Right]) -> None:
    fault = FAULTS[engine]
    assert set(outcomes[engine.__name__]) == set(fault.cases)
    for text in outcomes[engine.__name__].values():
        assert fault.text in text


def test_the_same_engine_without_a_fault_passes_them(tmp_path: Path) -> None:
    cases = {case for fault in FAULTS.values() for case in fault.cases}
    outcomes = run(tmp_path, [Right], " or ".join(cases), timeout=30.0)
    assert outcomes == {"Right": dict.fromkeys(cases, "")}
