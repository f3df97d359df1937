"""What a fault, an interrupt or a host that drops a descriptor ends, and what goes on."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest

from eventengine import (
    ResourceQuota,
    SliceBuffer,
    Status,
)
from eventengine.core.host import READ
from eventengine.core.poller import HostPoller
from eventengine.slices import Block
from hand_turned import connected, hand_turned
from manual_host import ManualHost, make_loop


@pytest.mark.parametrize("private_poller", [False, True])
def test_a_fault_of_the_engine_ends_what_is_outstanding_on_that_endpoint_and_no_other(
    monkeypatch: pytest.MonkeyPatch, private_poller: bool
) -> None:
    bad, good = ResourceQuota(), ResourceQuota()
    with (
        hand_turned(private_poller=private_poller) as (engine, host),
        connected(engine, host, bad) as (one, one_s_peer),
        connected(engine, host, good) as (other, other_s_peer),
    ):
        got: dict[str, list[Status]] = {"read": [], "write": [], "other": []}
        one.read(got["read"].append, SliceBuffer())
        assert not one.write(got["write"].append, SliceBuffer([bytes(64 << 20)]))
        other.read(got["other"].append, buffer := SliceBuffer())
        try_block = type(bad.memory).try_block

        def faulty(self: Any, size: int) -> Block | None:
            if self is bad.memory:
                raise MemoryError
            return try_block(self, size)

        monkeypatch.setattr(type(bad.memory), "try_block", faulty)
        one_s_peer.sendall(b"x")
        host.until(lambda: got["read"])
        host.settle()
        assert [status.ok for status in got["read"] + got["write"]] == [False, False]
        assert got["read"][0].errno == errno.EIO
        assert [type(error) for error in host.logged] == [MemoryError]
        assert got["other"] == []
        other_s_peer.sendall(b"y")
        host.until(lambda: got["other"])
        assert (got["other"][0].ok, bytes(buffer)) == (True, b"y")
        monkeypatch.undo()
        # And one that is at fault once may go on.
        again: list[Status] = []
        one.read(again.append, buffer)
        host.until(lambda: again)
        assert (again[0].ok, bytes(buffer)) == (True, b"x")


def test_a_fault_of_one_that_has_closed_its_descriptor_leaves_the_next_owner_of_the_number_alone() -> None:
    host = ManualHost()
    loop = make_loop(host)
    poller = loop.poller
    assert isinstance(poller, HostPoller)
    told: list[tuple[str, OSError]] = []

    class Owner:
        def __init__(self, name: str, act: Callable[[], object]) -> None:
            self.name = name
            self._act = act

        def on_readable(self) -> None:
            self._act()

        def on_writable(self) -> None:
            pytest.fail("nobody asked for this")

        def on_unwatchable(self, error: OSError) -> None:
            told.append((self.name, error))

    def close_and_fail() -> None:
        poller.forget(7)
        poller.arm(7, READ, second)
        raise ZeroDivisionError

    second = Owner("second", lambda: None)
    poller.arm(7, READ, Owner("first", close_and_fail))
    poller.dispatch(7, READ)
    host.turn()
    assert (poller.busy, host.watched) == ({7: second}, {7: READ})
    assert [(name, error.errno) for name, error in told] == [("first", errno.EIO)]
    poller.close()


@pytest.mark.parametrize("private_poller", [False, True])
@pytest.mark.parametrize("raises", [False, True], ids=["failed", "raised"])
def test_a_host_that_drops_a_descriptor_by_itself_watches_it_again(private_poller: bool, raises: bool) -> None:
    with (
        hand_turned(private_poller=private_poller) as (engine, host),
        connected(engine, host) as (one, one_s_peer),
        connected(engine, host) as (other, other_s_peer),
    ):
        got: list[Status] = []

        def interrupt(status: Status) -> None:
            raise SystemExit

        one.read(interrupt if raises else got.append, SliceBuffer())
        other.read(got.append, SliceBuffer())
        (fd,) = [*host.watched] if private_poller else [one.fileno()]  # type: ignore[attr-defined]
        if raises:
            one_s_peer.sendall(b"x")
            with pytest.raises(SystemExit):
                host.until(lambda: False)
        host.drop(fd)
        host.settle()
        if not raises:
            one_s_peer.sendall(b"x")
            host.until(lambda: got)
            got.clear()
        other_s_peer.sendall(b"y")
        assert host.watched
        host.until(lambda: got)
        assert got[0].ok
