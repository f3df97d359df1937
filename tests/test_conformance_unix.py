"""The conformance suite over unix sockets: where no address was asked for, one is taken in the file system or, by the
engines whose callbacks run on a pool, an abstract name.

The modules that are about addresses themselves, about names and about tasks run with them on every engine anyway.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest

from engines import KINDS, MAIN, Kind, factory, skip_unless_installed
from eventengine import EventEngine, ResolvedAddress
from eventengine.testing import oracle
from eventengine.testing.conformance.accepting import *
from eventengine.testing.conformance.cancelling import *
from eventengine.testing.conformance.churn import *
from eventengine.testing.conformance.closing import *
from eventengine.testing.conformance.collecting import *
from eventengine.testing.conformance.endpoints import *
from eventengine.testing.conformance.exchange import *
from eventengine.testing.conformance.extensions import *
from eventengine.testing.conformance.fixtures import *
from eventengine.testing.conformance.forking import *
from eventengine.testing.conformance.limits import *
from eventengine.testing.conformance.pairs import *
from eventengine.testing.conformance.reading import *
from eventengine.testing.conformance.robustness import *
from eventengine.testing.conformance.waiting import *
from eventengine.testing.conformance.writing import *

pytestmark = pytest.mark.usefixtures("tries_again_soon")

SOME = [kind for kind in KINDS if kind.loop in MAIN and kind.private_poller]


@pytest.fixture(params=SOME, ids=lambda kind: kind.id)
def kind(request: pytest.FixtureRequest) -> Kind:
    kind: Kind = request.param
    skip_unless_installed(kind)
    return kind


@pytest.fixture
def make_engine(kind: Kind) -> Iterator[Callable[[], EventEngine]]:
    with factory(kind) as make:
        yield make


@pytest.fixture
def make_engine_in_child(kind: Kind) -> Callable[[], AbstractContextManager[Callable[[], EventEngine]]]:
    return partial(factory, kind)


@pytest.fixture
def without() -> set[str]:
    """A unix socket that is closed with SO_LINGER of 0 s has come to its end: there is no reset."""
    return {"resets"}


@pytest.fixture(autouse=True)
def over_unix(monkeypatch: pytest.MonkeyPatch, kind: Kind, unix_folder: Path) -> None:
    if kind.pool and not sys.platform.startswith("linux"):
        pytest.skip("only Linux has abstract unix sockets")
    numbers = itertools.count()
    scheme = "unix-abstract" if kind.pool else "unix"
    monkeypatch.setattr(
        oracle, "somewhere", lambda: ResolvedAddress.parse(f"{scheme}:{unix_folder}/{next(numbers)}")
    )
