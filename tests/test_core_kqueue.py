"""The kqueue behind the poller, over a double of the system's: this system has epoll."""

from __future__ import annotations

import contextlib
import errno
import os
import select
from types import SimpleNamespace

import pytest

from eventengine.core import kqueue

FILTERS = {-1: select.POLLIN, -2: select.POLLOUT}


class FakeQueue:
    """A kqueue's registrations as kqueue(2) has them, one for each descriptor and filter, over poll(2)."""

    def __init__(self) -> None:
        self.wanted: set[tuple[int, int]] = set()

    def fileno(self) -> int:
        return 99

    def close(self) -> None:
        self.wanted.clear()

    def control(
        self, changes: list[SimpleNamespace] | None, limit: int, timeout: float | None = None
    ) -> list[object]:
        for change in changes or []:
            if change.flags == 1:
                self.wanted.add((change.ident, change.filter))
            else:
                if (change.ident, change.filter) not in self.wanted:
                    raise FileNotFoundError(errno.ENOENT, "not registered")
                self.wanted.remove((change.ident, change.filter))
        if not limit:
            return []
        found: list[object] = []
        for fd, which in sorted(self.wanted):
            poll = select.poll()
            poll.register(fd, FILTERS[which])
            if poll.poll(0):
                found.append(SimpleNamespace(ident=fd, filter=which))
        return found[:limit]


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> kqueue.Kqueue:
    system = SimpleNamespace(
        kqueue=FakeQueue,
        kevent=lambda ident, which, flags: SimpleNamespace(ident=ident, filter=which, flags=flags),
        KQ_FILTER_READ=-1,
        KQ_FILTER_WRITE=-2,
        KQ_EV_ADD=1,
        KQ_EV_DELETE=2,
    )
    monkeypatch.setattr(kqueue, "_select", system)
    return kqueue.Kqueue()


def test_readiness_is_reported_as_epoll_does(queue: kqueue.Kqueue) -> None:
    reader, writer = os.pipe()
    try:
        queue.register(reader, 1)
        queue.register(writer, 4)
        assert queue.poll(0, 10) == [(writer, 4)]
        os.write(writer, b"x")
        assert sorted(queue.poll(0, 10)) == sorted([(reader, 1), (writer, 4)])
    finally:
        os.close(reader)
        os.close(writer)


def test_only_what_changed_is_told_to_the_system(queue: kqueue.Kqueue) -> None:
    reader, writer = os.pipe()
    try:
        queue.register(writer, 1)
        queue.modify(writer, 1 | 4)
        queue.modify(writer, 4)
        assert queue.poll(0, 10) == [(writer, 4)]
        queue.unregister(writer)
        assert queue.poll(0, 10) == []
        assert queue.fileno() == 99
    finally:
        os.close(reader)
        os.close(writer)


class Refusing(FakeQueue):
    """Refuses what a test says, as the system does for want of memory."""

    refuses: frozenset[tuple[int, int]] = frozenset()

    def control(
        self, changes: list[SimpleNamespace] | None, limit: int, timeout: float | None = None
    ) -> list[object]:
        if any((change.ident, change.filter) in self.refuses for change in changes or []):
            raise OSError(errno.ENOMEM, "refused")
        return super().control(changes, limit, timeout)


@pytest.fixture
def refusing(queue: kqueue.Kqueue) -> Refusing:
    system = Refusing()
    queue._queue = system
    return system


def test_after_a_change_that_the_system_refused_the_number_can_be_registered_anew(
    queue: kqueue.Kqueue, refusing: Refusing
) -> None:
    queue.register(5, 1)
    refusing.refuses = frozenset({(5, -2)})
    with pytest.raises(OSError, match="refused"):
        queue.modify(5, 1 | 4)
    refusing.refuses = frozenset()
    refusing.wanted.clear()  # the descriptor was closed, and the next one has its number
    queue.register(5, 1 | 4)
    assert refusing.wanted == {(5, -1), (5, -2)}


def test_a_number_whose_descriptor_was_closed_behind_our_back_can_be_registered_anew(
    queue: kqueue.Kqueue, refusing: Refusing
) -> None:
    queue.register(5, 1)
    refusing.wanted.clear()
    with contextlib.suppress(OSError):
        queue.unregister(5)
    queue.register(5, 1)
    assert refusing.wanted == {(5, -1)}


def test_after_a_change_that_the_system_refused_unregistering_leaves_nothing_there(
    queue: kqueue.Kqueue, refusing: Refusing
) -> None:
    queue.register(5, 1)
    refusing.refuses = frozenset({(5, -2)})
    with pytest.raises(OSError, match="refused"):
        queue.modify(5, 1 | 4)
    refusing.refuses = frozenset()
    with contextlib.suppress(OSError):
        queue.unregister(5)
    assert refusing.wanted == set()
