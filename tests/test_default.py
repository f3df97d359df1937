"""The engine that a process shares."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from eventengine import (
    EventEngine,
    create_event_engine,
    get_default_event_engine,
    set_default_event_engine,
    shutdown_default_event_engine,
)

TIMEOUT = 30.0


@pytest.fixture(autouse=True)
def no_default_is_left() -> Iterator[None]:
    shutdown_default_event_engine()
    yield
    shutdown_default_event_engine()


def works(engine: EventEngine) -> bool:
    ran = threading.Event()
    engine.run(ran.set)
    return ran.wait(TIMEOUT)


def test_everybody_gets_the_same_engine_until_it_is_shut_down() -> None:
    engine = get_default_event_engine()
    assert get_default_event_engine() is engine
    assert works(engine)
    shutdown_default_event_engine()
    assert get_default_event_engine() is not engine


def test_one_that_somebody_closed_is_replaced() -> None:
    with get_default_event_engine() as engine:
        assert works(engine)
    assert get_default_event_engine() is not engine
    assert works(get_default_event_engine())


def test_one_that_was_set_is_what_everybody_gets() -> None:
    with create_event_engine() as engine:
        set_default_event_engine(engine)
        assert get_default_event_engine() is engine
        set_default_event_engine(None)
        assert get_default_event_engine() is not engine


def test_what_is_no_engine_is_refused() -> None:
    with pytest.raises(TypeError, match="the default must be an EventEngine or None, not str"):
        set_default_event_engine("default")  # type: ignore[arg-type]
