"""What is done once for all tests."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that may take longest, as their own timeouts say, come first: else one is the last, and a core idle."""
    items.sort(key=_timeout, reverse=True)


def _timeout(item: pytest.Item) -> float:
    mark = item.get_closest_marker("timeout")
    return 0.0 if mark is None else mark.args[0]


def pytest_collection_finish() -> None:
    """Takes the collected tests, half a million objects that live to the end, out of the garbage collector's sight.

    Many tests collect the garbage that they made, to see what is left. With these objects that takes 0.2 s each time.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def tries_again_soon() -> Iterator[None]:
    """A listener that was out of descriptors tries again after 50 ms instead of a second."""
    from eventengine.core import listener

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(listener, "PAUSE", 0.05)
        yield
