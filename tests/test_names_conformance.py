"""What the conformance suite asks of names, of every resolver that an engine can be made with."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator

import pytest

from engines import KINDS, factory, skip_unless_installed
from eventengine import EventEngine
from eventengine.testing.conformance.fixtures import *
from eventengine.testing.conformance.names import *

RESOLVERS = {
    "default": ("c-ares", "system"),
    "asyncio": ("c-ares", "system"),
    "tornado": ("c-ares", "system", "tornado"),
    "twisted": ("c-ares", "system", "twisted.names", "reactor"),
}
CASES = [
    (kind, resolver)
    for kind in KINDS
    if kind.private_poller
    for resolver in RESOLVERS.get(kind.loop, ())
    if not (kind.pool and resolver == "c-ares")  # it is the default, on which the whole suite runs
]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0].id}, {case[1]}")
def make_engine(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], EventEngine]]:
    kind, resolver = request.param
    skip_unless_installed(kind)
    if resolver == "c-ares" and importlib.util.find_spec("pycares") is None:
        pytest.skip("the extra dns is not installed")
    if resolver == "twisted.names":
        monkeypatch.setattr("eventengine.bridges.twisted.names.TIMEOUTS", (0.1,))
    with factory(kind, resolver=resolver) as make:
        yield make


def test_the_resolver_is_the_one_that_was_chosen(engine: EventEngine, request: pytest.FixtureRequest) -> None:
    resolver = engine.get_dns_resolver()
    chosen = request.node.callspec.params["make_engine"][1]
    assert resolver.kind == chosen
    assert repr(resolver) == f"<DNS resolver {chosen!r}>"
    resolver.close()
    assert repr(resolver) == f"<DNS resolver {chosen!r}, closed>"
