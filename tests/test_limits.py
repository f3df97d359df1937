"""The page of limits: each that it lists has a test, and those that no other file tests have it here."""

from __future__ import annotations

import os
import re
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import eventengine.testing
from eventengine import EndpointConfig, ResolvedAddress, ResourceQuota, SliceBuffer, create_event_engine
from eventengine.testing.application import Application, Ledger
from eventengine.testing.oracle import connect

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "limits.md"
_TCP_INFO = struct.Struct("8B6I")  # of which the last two, of a listener: how many wait, and how many may


@pytest.fixture
def app() -> Iterator[Application]:
    ledger = Ledger()
    with create_event_engine() as engine:
        yield Application(engine, ResourceQuota("limits"), ledger)
    ledger.check()


def test_each_limit_of_the_page_names_a_test_that_there_is() -> None:
    rows = [line.split("|")[1:-1] for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    limits = [[cell.strip() for cell in row] for row in rows if row[-1] != " held by "]
    assert len(limits) > 30
    sources = [*HERE.glob("test_*.py"), *Path(eventengine.testing.__path__[0]).rglob("*.py")]
    tests = set(re.findall(r"^def (test_\w+)", "\n".join(path.read_text() for path in sources), re.MULTILINE))
    assert [row for row in limits if row[-1].strip("`") not in tests] == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how many may wait")
def test_so_many_wait_to_be_accepted_as_the_backlog_says(app: Application) -> None:
    sockets: list[socket.socket] = []
    accepting = app.listen(config=EndpointConfig(backlog=7, socket_hook=sockets.append))
    *_, most = _TCP_INFO.unpack(sockets[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size))
    assert most == 7
    accepting.close()


@pytest.mark.skipif(not hasattr(socket, "send_fds"), reason="no descriptors are sent here")
def test_descriptors_that_a_peer_sends_are_not_taken(app: Application, tmp_path: Path) -> None:
    accepting = app.listen(ResolvedAddress.parse(f"unix:{tmp_path / 'socket'}"))
    with connect(accepting.address) as oracle, open(os.devnull) as sent:
        endpoint = accepting.next()
        before = os.listdir("/dev/fd")
        socket.send_fds(oracle, [b"take these"], [sent.fileno()] * 5)
        buffer = SliceBuffer()
        assert app.read(endpoint, buffer).ok
        assert bytes(buffer) == b"take these"
        assert os.listdir("/dev/fd") == before
        endpoint.close()
    accepting.close()
