"""The conformance suite on every engine of the package: `make_engine` is all that there is to fill in."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from engines import KINDS, Kind, factory, skip_unless_installed
from eventengine import EventEngine
from eventengine.testing.conformance import *


@pytest.fixture(params=KINDS, ids=lambda kind: kind.id)
def make_engine(request: pytest.FixtureRequest) -> Iterator[Callable[[], EventEngine]]:
    kind: Kind = request.param
    skip_unless_installed(kind)
    with factory(kind) as make:
        yield make
