"""The conformance suite on the simulated engine. Its oracle is on the simulated network; see `simulated_sockets`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from eventengine import EventEngine
from eventengine.testing import SimulatedEventEngine
from eventengine.testing.conformance import *
from simulated_sockets import PacedSimulation, passing_time, put_peers_on

pytestmark = pytest.mark.usefixtures("tries_again_soon")

FILES = "unix sockets of the simulated network have no files"
FORK = "a forked child has not the thread that lets time pass"
NOT_SIMULATED = dict.fromkeys(
    (
        "test_a_path_where_nobody_listens_is_unavailable[a file]",
        "test_a_path_where_nobody_listens_is_unavailable[a socket that nobody listens on]",
        "test_an_address_that_cannot_be_bound_is_told_at_the_caller",
        "test_a_file_that_is_no_socket_is_left_alone",
        "test_closing_removes_the_file_of_a_unix_socket_but_not_anothers",
    ),
    FILES,
)
"""What a network in memory cannot mean, and why. What needs a descriptor skips itself."""


@pytest.fixture(autouse=True)
def applies(request: pytest.FixtureRequest) -> None:
    if request.function.__module__.endswith(".forking"):
        pytest.skip(FORK)
    if request.node.name in NOT_SIMULATED:
        pytest.skip(NOT_SIMULATED[request.node.name])


@pytest.fixture
def make_engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], EventEngine]]:
    simulation = PacedSimulation()
    put_peers_on(simulation, monkeypatch)
    with passing_time(simulation):
        yield lambda: SimulatedEventEngine(simulation=simulation)
    assert simulation.network.sockets == 0
