"""The conformance suite on every engine of the package: `make_engine` is all that there is to fill in, and, since
some of the engines here borrow a loop or a pool, how to make them in a forked child."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial

import pytest

from engines import KINDS, Kind, factory, skip_unless_installed
from eventengine import EventEngine
from eventengine.testing.conformance import *

pytestmark = pytest.mark.usefixtures("tries_again_soon")


@pytest.fixture(params=KINDS, ids=lambda kind: kind.id)
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
