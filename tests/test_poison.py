"""Blocks that go back to a pool are poisoned: no connection sees the poison, nor what another connection received."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import pytest

from borrowing import BORROWED, borrowing
from engines import KINDS, MAIN, factory, is_installed
from eventengine import Endpoint, EventEngine, ResourceQuota, SliceBuffer
from eventengine.slices import Block, Pool
from eventengine.testing.application import Application, Ledger
from eventengine.testing.oracle import connect, receive

POISON = 0xA5
CONNECTIONS = 3
ROUNDS = 20


@contextmanager
def over_tls(kind: Any) -> Iterator[Callable[[], EventEngine]]:
    from tls_engine import TLSEventEngine

    with factory(kind) as make:
        yield lambda: TLSEventEngine(make())


PLAIN = [kind for kind in KINDS if kind.loop in MAIN and kind.private_poller and not kind.pool]
ENGINES: dict[str, tuple[tuple[str, ...], Callable[[], AbstractContextManager[Callable[[], EventEngine]]]]] = {
    **{kind.id: (kind.needs, lambda kind=kind: factory(kind)) for kind in PLAIN},
    **{f"TLS, {kind.id}": (kind.needs, lambda kind=kind: over_tls(kind)) for kind in PLAIN},
    **{kind.id: (kind.needs, lambda kind=kind: borrowing(kind)) for kind in BORROWED if not kind.pool},
}


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the blocks that have gone back to a pool since, each full of poison."""
    sizes: list[int] = []

    def append(self: Pool, block: Block) -> None:
        block[:] = bytes([POISON]) * len(block)
        sizes.append(len(block))
        super(Pool, self).append(block)

    monkeypatch.setattr(Pool, "append", append)
    return sizes


class Peer:
    """One end of a connection, which sends nothing but its own letter; and what the other end has made of it."""

    def __init__(self, letter: bytes, sock: socket.socket, endpoint: Endpoint) -> None:
        self.letter = letter
        self.sock = sock
        self.endpoint = endpoint
        self.buffer = SliceBuffer()
        self.held: list[Any] = []

    def check(self, seen: Any) -> None:
        assert bytes(seen) == self.letter * len(seen)

    def keep(self, random_: random.Random) -> None:
        """A part of what was received, in one of the ways to hold it; the rest goes back to be filled again."""
        match random_.randrange(5):
            case 0:
                self.held.append(self.buffer.take_first())
            case 1:
                self.held.append(self.buffer.take_first()[1:].view)
            case 2:
                other = SliceBuffer()
                self.buffer.move_first(random_.randint(0, len(self.buffer)), other)
                self.held.append(other)
            case 3:
                self.held.append(self.buffer.slices[-1].split(1)[0])
            case _:
                pass
        self.buffer.clear()


def converse(app: Application, peers: list[Peer], random_: random.Random) -> None:
    for _ in range(ROUNDS):
        for peer in peers:
            size = random_.choice([1, 300, 5000, 40_000])
            peer.sock.sendall(peer.letter * size)
            while size:
                assert app.read(peer.endpoint, peer.buffer).ok
                size -= len(peer.buffer)
                for part in peer.buffer.slices:
                    peer.check(part)
                if random_.random() < 0.3:
                    echo, answer = len(peer.buffer), SliceBuffer(peer.buffer.slices)
                    assert app.write(peer.endpoint, answer).ok
                    peer.check(receive(peer.sock, echo))
                peer.keep(random_)
        for peer in peers:
            for held in peer.held:
                peer.check(held)
            del peer.held[: random_.randrange(len(peer.held) + 1)]


@pytest.mark.parametrize("name", ENGINES)
def test_a_block_that_is_filled_again_shows_nobody_what_was_in_it(name: str, poisoned: list[int]) -> None:
    needs, engines = ENGINES[name]
    for module in needs:
        if not is_installed(module):
            pytest.skip(f"{module} is not installed")
    random_, quota, ledger = random.Random(name), ResourceQuota("poisoned", memory="16MiB"), Ledger()
    with engines() as make, ExitStack() as stack:
        app = Application(stack.enter_context(make()), quota, ledger)
        accepting = app.listen()
        knock = connect
        if name.startswith("TLS"):
            from tls_engine import tls_connect as knock
        peers = []
        for n in range(CONNECTIONS):
            sock = stack.enter_context(knock(accepting.address))
            endpoint = accepting.next()
            stack.callback(endpoint.close)
            peers.append(Peer(bytes([ord("a") + n]), sock, endpoint))
        accepting.close()
        converse(app, peers, random_)
        assert len(poisoned) >= ROUNDS, "so many were given back, to be filled again"
        peers.clear()
    ledger.check()
    assert quota.memory.used == 0
