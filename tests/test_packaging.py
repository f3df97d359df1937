"""What is built is what users need, and the repository's files agree with one another."""

from __future__ import annotations

import configparser
import email
import importlib.util
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
TIMEOUT = 100
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

needs_hatchling = pytest.mark.skipif(
    not importlib.util.find_spec("hatchling"), reason="hatchling, which builds the package, is not installed"
)


def build(kind: str, folder: Path) -> Path:
    """Builds what lies in the repository with this environment's hatchling: nothing is downloaded."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The wheel's files by their names."""
    with zipfile.ZipFile(build("wheel", tmp_path_factory.mktemp("wheel"))) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def requirements(extra: str) -> list[str]:
    return [str(each) for each in PROJECT["optional-dependencies"][extra]]


@needs_hatchling
def test_the_wheel_has_every_module_and_says_that_it_is_typed(wheel: dict[str, bytes]) -> None:
    source = ROOT / "src"
    expected = {str(path.relative_to(source)) for path in source.rglob("*.py")} | {"eventengine/py.typed"}
    expected.remove("eventengine/bridges/twisted/plugin.py")
    expected.add("twisted/plugins/eventengine_plugin.py")  # where Twisted looks for it
    assert {name for name in wheel if ".dist-info/" not in name} == expected


@needs_hatchling
def test_where_only_the_wheel_is_installed_its_bridge_says_that_twisted_is_missing(
    wheel: dict[str, bytes], tmp_path: Path
) -> None:
    for name, content in wheel.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    code = (
        "import sys\n"
        f"sys.path = [{str(tmp_path)!r}, *(path for path in sys.path if not path.endswith('site-packages'))]\n"
        "import eventengine\n"
        "import twisted\n"  # a folder is a package, too: docs/twisted.md has why the plugin is there
        "assert twisted.__file__ is None, twisted\n"
        "try:\n"
        "    import eventengine.bridges.twisted.reactor\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    command = [sys.executable, "-I", "-S", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert (done.stderr, done.stdout) == (
        "",
        'Twisted is not installed; pip install "eventengine[twisted]" brings it\n',
    )


@needs_hatchling
def test_the_wheel_needs_nothing_but_names_its_extras(wheel: dict[str, bytes]) -> None:
    (name,) = [name for name in wheel if name.endswith(".dist-info/METADATA")]
    metadata = email.message_from_bytes(wheel[name])
    assert metadata["Name"] == "eventengine"
    assert metadata["Version"] == PROJECT["version"]
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata.get_all("Provides-Extra", [])) == {"all", "dns", "tornado", "twisted"}
    required = metadata.get_all("Requires-Dist", [])
    assert required
    assert all("extra ==" in each for each in required)


@needs_hatchling
def test_the_wheel_carries_the_licence(wheel: dict[str, bytes]) -> None:
    (name,) = [name for name in wheel if name.endswith(".dist-info/licenses/LICENSE")]
    assert wheel[name] == (ROOT / "LICENSE").read_bytes()
    assert b"Version 2.0, January 2004" in wheel[name]


@needs_hatchling
def test_the_source_archive_has_what_its_tests_need(tmp_path: Path) -> None:
    with tarfile.open(build("sdist", tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tests = {f"tests/{path.name}" for path in (ROOT / "tests").glob("*.py")}
    pages = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    files = {"CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md", "pyproject.toml", "tox.ini"}
    assert tests | pages | files | {"src/eventengine/py.typed"} <= names


def test_the_oldest_versions_that_tox_tries_are_the_lower_bounds() -> None:
    tox = configparser.ConfigParser()
    tox.read(ROOT / "tox.ini", "utf-8")
    tried = dict(re.findall(r"^([\w.]+)==(\S+)", tox["testenv:oldest"]["deps"], re.MULTILINE))
    extras = [each for extra in ("twisted", "tornado", "dns") for each in requirements(extra)]
    bounds = dict(re.findall(r"(\w+)>=([\d.]+)", " ".join(extras)))
    assert len(bounds) == 3
    assert {name: tried[name] for name in bounds} == bounds


def test_the_extra_all_is_all_extras() -> None:
    others = sorted(set(PROJECT["optional-dependencies"]) - {"all"})
    (everything,) = requirements("all")
    assert sorted(re.findall(r"\w+", everything.partition("[")[2])) == others


def test_the_changelog_begins_with_this_version_or_what_is_not_released_yet() -> None:
    versions = re.findall(r"^## \[?(\w[\w.]*)\]?", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert PROJECT["version"] in versions[:2]
    assert versions[0] in ("Unreleased", PROJECT["version"])


@pytest.mark.parametrize("framework", ["twisted", "tornado"])
def test_the_pages_say_the_lower_bounds(framework: str) -> None:
    (bound,) = re.findall(r">=([\d.]+)", " ".join(requirements(framework)))
    for page in ("README.md", f"docs/{framework}.md"):
        assert re.search(rf"{framework.title()},? {bound} or newer", (ROOT / page).read_text("utf-8")), page
