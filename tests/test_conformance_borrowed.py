"""The conformance suite over transports that are borrowed from Twisted, Tornado and asyncio."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial

import pytest

from borrowing import BORROWED, BorrowedKind, borrowing
from engines import is_installed
from eventengine import EventEngine, ResourceQuota
from eventengine.testing.conformance import *


@pytest.fixture(params=BORROWED, ids=lambda kind: kind.id)
def kind(request: pytest.FixtureRequest) -> BorrowedKind:
    kind: BorrowedKind = request.param
    for module in kind.needs:
        if not is_installed(module):
            pytest.skip(f"{module} is not installed")
    return kind


WRAPPER = "the engine of these tests hands each connection over, and what this is about stays behind"
LOSES = "the framework closes the socket at the first error, and what it had not read is lost"
WHOLE = "Tornado closes a stream whole when the peer ends its half"

SIZE = 64 * 1024
CHUNK = 256 * 1024  # of asyncio; the others' are smaller
CONNECTIONS = 4  # of those tests that fill the quota

NOT_HERE: dict[str, tuple[str, tuple[str, ...]]] = {
    "test_an_engine_that_was_dropped_is_closed_with_a_warning": (WRAPPER, ()),
    "test_beyond_the_limit_a_connection_waits_for_the_end_of_another": (WRAPPER, ()),
    "test_where_there_is_no_limit_connections_are_counted": (WRAPPER, ()),
    "test_listeners_on_one_limit_each_get_their_turn": (WRAPPER, ()),
    "test_without_a_descriptor_left_a_listener_loses_no_connection": (WRAPPER, ()),
    "test_a_read_waits_too_when_the_quota_was_filled_while_it_was_outstanding": (
        "a transport that was resumed delivers what comes, above the quota's size, too",
        (),
    ),
    "test_an_end_or_a_reset_is_told_though_the_quota_is_full": ("a paused transport tells no end", ()),
    "test_a_peer_that_closed_refuses_writes_and_what_it_had_sent_is_still_read": (LOSES, ()),
    "test_a_connection_that_floods_does_not_keep_another_from_its_turn": (
        "libuv itself reads up to 32 times in a turn from one connection",
        ("uvloop",),
    ),
    "test_writing_goes_on_after_the_peer_ended_its_stream": (WHOLE, ("tornado",)),
}
"""What cannot apply: why, and to which frameworks' transports, if not to all."""


@pytest.fixture
def small_quota() -> Iterator[ResourceQuota]:
    """As the suite's, but that each connection may take it over its size by one chunk of a transport."""
    quota = ResourceQuota("small", memory=SIZE)
    yield quota
    assert quota.memory.used == 0
    assert quota.memory.peak <= SIZE + CONNECTIONS * CHUNK


@pytest.fixture(autouse=True)
def applies(request: pytest.FixtureRequest, kind: BorrowedKind) -> None:
    reason, frameworks = NOT_HERE.get(request.node.originalname, ("", ()))
    if reason and kind.framework in (frameworks or (kind.framework,)):
        pytest.skip(reason)


@pytest.fixture
def make_engine(kind: BorrowedKind) -> Iterator[Callable[[], EventEngine]]:
    with borrowing(kind) as make:
        yield make


@pytest.fixture
def make_engine_in_child(kind: BorrowedKind) -> Callable[[], AbstractContextManager[Callable[[], EventEngine]]]:
    return partial(borrowing, kind)
