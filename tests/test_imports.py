"""Imports run one way, and load no more than was asked for."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import eventengine

SOURCE = Path(eventengine.__file__).parent
MODULES = sorted(SOURCE.rglob("*.py"))
TIMEOUT = 60

# Lowest first. What shares a line may not import one another. `slices` lies lowest of what counts memory, for a slice
# needs of the quota just two calls. An IOLoop is an asyncio loop, so Tornado's bridge builds on asyncio's.
LAYERS = (
    ("status", "address", "config"),
    ("slices", "reclaim", "tally", "names"),
    ("memory_quota",),
    ("memory",),
    ("quota", "unsent", "upload"),
    ("admission",),
    ("idle",),
    ("engine", "target", "attempts"),
    ("core", "connecting"),
    ("tls", "resolvers", "inherited"),
    ("bridges.asyncio_borrowed",),
    ("default", "bridges", "bridges.asyncio", "bridges.twisted", "testing"),
    ("bridges.tornado",),
    ("",),  # eventengine/__init__.py
    ("cli",),
    ("__main__",),
)
RANKS = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}
FRAMEWORKS = {"asyncio", "pycares", "tornado", "twisted", "uvloop", "zope"}
MAY_IMPORT = {
    "bridges.asyncio": {"asyncio"},
    "bridges.asyncio_borrowed": {"asyncio"},
    "bridges.tornado": {"asyncio", "tornado"},
    "bridges.twisted": {"twisted", "zope"},
    "resolvers": {"pycares"},
}


def name_of(path: Path) -> str:
    """`core.poller` for eventengine/core/poller.py, `core` for eventengine/core/__init__.py."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """The part of LAYERS that a module of the package belongs to."""
    names = module.split(".")
    for length in (2, 1):
        if (part := ".".join(names[:length])) in RANKS:
            return part
    raise AssertionError(f"eventengine.{module} has no place in LAYERS")


def imports_of(path: Path) -> Iterator[str]:
    """All that a module imports, in functions and for type checkers too, as full names."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            assert node.module
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def own_modules_of(path: Path) -> Iterator[str]:
    """The modules of this package that a module imports."""
    names = {name_of(each) for each in MODULES}
    for full in imports_of(path):
        if full.split(".")[0] == "eventengine":
            inner = full.removeprefix("eventengine").removeprefix(".")
            while inner not in names:  # a class or function: what it is in
                inner = inner.rpartition(".")[0]
            yield inner


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_what_lies_below_it(path: Path) -> None:
    part = part_of(name_of(path))
    for imported in own_modules_of(path):
        other = part_of(imported)
        assert other == part or RANKS[other] < RANKS[part], f"eventengine.{imported}"


def test_nothing_imports_testing() -> None:
    guilty = [
        name_of(path)
        for path in MODULES
        if part_of(name_of(path)) != "testing" and any(part_of(own) == "testing" for own in own_modules_of(path))
    ]
    assert not guilty


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_the_standard_library_and_no_framework_but_its_own(path: Path) -> None:
    part = part_of(name_of(path))
    roots = {name.split(".")[0] for name in imports_of(path)} - {"eventengine"}
    foreign = {root for root in roots if root in FRAMEWORKS or root not in sys.stdlib_module_names}
    allowed = MAY_IMPORT.get(part, set()) | {"typing_extensions"}  # which nothing imports when it runs: see below
    if part == "testing":
        allowed |= {"pycares", "pytest"}
    assert foreign <= allowed


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_module_imports_the_global_reactor(path: Path) -> None:
    assert "twisted.internet.reactor" not in set(imports_of(path))


def run_python(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_importing_the_package_loads_no_framework_and_nothing_optional() -> None:
    run_python(
        "import sys, eventengine\n"
        "loaded = {name.split('.')[0] for name in sys.modules}\n"
        f"assert not loaded & {FRAMEWORKS | {'typing_extensions', 'pytest'}!r}, loaded\n"
        "assert not [name for name in sys.modules if name.startswith(('eventengine.bridges', 'eventengine.testing'))]\n"
    )


@pytest.mark.parametrize("framework", ["twisted", "tornado"])
def test_a_bridge_loads_its_framework_alone_and_installs_no_reactor(framework: str) -> None:
    module = "twisted.internet" if framework == "twisted" else framework  # `twisted` may be our plugin's folder
    pytest.importorskip(module, reason=f"the extra {framework} is not installed")
    other = {"twisted": "tornado", "tornado": "twisted"}[framework]
    run_python(
        f"import sys, eventengine.bridges.{framework}\n"
        "assert 'twisted.internet.reactor' not in sys.modules\n"
        f"assert {other!r} not in sys.modules\n"
    )


def test_importing_every_module_installs_no_reactor() -> None:
    names = [f"eventengine.{name_of(path)}".rstrip(".") for path in MODULES if name_of(path) != "__main__"]
    run_python(
        "import importlib, sys\n"
        f"for name in {names!r}:\n"
        "    try:\n"
        "        importlib.import_module(name)\n"
        "    except ImportError as error:\n"
        "        assert 'pip install' in str(error), error\n"
        "assert 'twisted.internet.reactor' not in sys.modules\n"
    )


@pytest.mark.parametrize("framework", ["twisted", "tornado"])
def test_without_its_framework_a_bridge_names_the_extra(framework: str) -> None:
    run_python(
        "import sys\n"
        f"sys.modules[{framework!r}] = None\n"  # as if it were not installed
        "try:\n"
        f"    import eventengine.bridges.{framework}\n"
        "except ImportError as error:\n"
        f"""    assert 'pip install "eventengine[{framework}]"' in str(error), error\n"""
        "else:\n"
        "    raise AssertionError('it was imported')\n"
    )
