"""`Gate`: what it keeps open is open for whoever is in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from eventengine.core.threaded import Gate
from eventengine.status import ClosedResourceError
from together import run_together


def test_a_gate_that_nobody_is_in_closes_at_once_and_lets_nobody_in() -> None:
    closed: list[str] = []
    gate = Gate(lambda: closed.append("closed"))
    with gate:
        assert not gate.is_closed
    assert closed == []
    gate.close()
    assert (gate.is_closed, closed) == (True, ["closed"])
    with pytest.raises(ClosedResourceError, match="thread has ended"), gate:
        pytest.fail("somebody is in")


@pytest.mark.parametrize("error", [None, ZeroDivisionError], ids=["leaves", "raises"])
def test_a_gate_that_is_closed_with_somebody_in_it_waits_for_the_last_one_out(
    error: type[BaseException] | None,
) -> None:
    closed: list[str] = []
    gate = Gate(lambda: closed.append("closed"))

    def be_the_last() -> None:
        with gate:
            with gate:
                gate.close()
            assert (gate.is_closed, closed) == (True, [])
            if error is not None:
                raise error

    if error is None:
        be_the_last()
    else:
        with pytest.raises(error):
            be_the_last()
    assert closed == ["closed"]


def test_what_a_gate_keeps_is_open_for_whoever_of_eight_threads_is_in() -> None:
    for _ in range(20):
        state = ["open"]
        gate = Gate(state.clear)
        within: list[list[str]] = []
        out: list[int] = []

        def enter(
            n: int, gate: Gate = gate, state: list[str] = state, within: Any = within, out: Any = out
        ) -> None:
            try:
                while True:
                    with gate:
                        within.append([*state])
            except ClosedResourceError:
                out.append(n)

        callers: list[Callable[[], object]] = [lambda n=n: enter(n) for n in range(8)]  # type: ignore[misc]
        run_together(*callers, gate.close)
        assert (sorted(out), state) == (list(range(8)), [])
        assert all(each == ["open"] for each in within)
