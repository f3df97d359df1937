"""A hundred connections at once, as in gRPC's own suite: each byte both ways is compared."""

from __future__ import annotations

import functools
import random
import socket
import sys
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest

from eventengine.address import ResolvedAddress
from eventengine.engine import Endpoint
from eventengine.slices import SliceBuffer
from eventengine.status import Status
from eventengine.testing.application import Application, Callback, Ledger
from eventengine.testing.conformance.pairs import Pair, addresses_seen_by
from eventengine.testing.oracle import TIMEOUT, OracleServer, connect, pattern, receive

# Only Linux has all of 127.0.0.0/8.
HOSTS = [f"127.0.0.{n}" for n in range(1, 11)] if sys.platform == "linux" else ["127.0.0.1"]
MESSAGES = 100


class _Script:
    """What one connection says in one direction: messages of 1-4 KiB, unlike any other connection's."""

    def __init__(self, material: bytes, seed: int) -> None:
        choose = random.Random(seed)
        self.messages: list[bytes] = []
        for _ in range(MESSAGES):
            start = choose.randrange(len(material) - 4096)
            self.messages.append(material[start : start + choose.randrange(1024, 4097)])
        self.all = b"".join(self.messages)


@functools.cache
def _scripts() -> list[tuple[_Script, _Script]]:
    """What the engine and the oracle say on each of a hundred connections."""
    material = pattern(1 << 20)
    return [(_Script(material, 2 * n), _Script(material, 2 * n + 1)) for n in range(100)]


class _Exchange:
    """Reads one script and writes the other, each operation started by the end of the one before."""

    def __init__(self, ledger: Ledger, endpoint: Endpoint, heard: bytes, said: list[bytes]) -> None:
        self._endpoint = endpoint
        self._heard = heard
        self._said = iter(said)
        self._done = 0
        self._buffer = SliceBuffer()
        self.read = Callback[str](ledger)
        self.written = Callback[str](ledger)

    def start(self) -> None:
        if self._endpoint.read(self._on_read, self._buffer, read_hint_bytes=1024):
            self._on_read(Status.OK)
        self._on_writable(Status.OK)

    def _on_read(self, status: Status) -> None:
        while True:
            end = self._done + len(self._buffer)
            if not status.ok or bytes(self._buffer) != self._heard[self._done : end]:
                return self.read(f"{status} or other bytes after {self._done}")
            self._done = end
            if end == len(self._heard):
                return self.read("")
            if not self._endpoint.read(
                self._on_read, self._buffer, read_hint_bytes=min(1024, len(self._heard) - end)
            ):
                return None

    def _on_writable(self, status: Status) -> None:
        while True:
            message = next(self._said, None) if status.ok else None
            if message is None:
                return self.written("" if status.ok else str(status))
            if not self._endpoint.write(self._on_writable, SliceBuffer([message])):
                return None


def _peer(oracle: socket.socket, said: list[bytes], heard: bytes) -> None:
    received = bytearray()
    for message in said:
        oracle.sendall(message)
        if len(received) < len(heard):
            received += oracle.recv(4096)
    received += receive(oracle, len(heard) - len(received))
    assert received == heard


def _free_ports() -> list[tuple[str, int]]:
    """For each host a port that was free there just now: one for all might be somebody's on one of them."""
    with ExitStack() as stack:
        servers = [stack.enter_context(OracleServer(ResolvedAddress.tcp(host, 0))) for host in HOSTS]
        return [(server.address.host, server.address.port) for server in servers]


@contextmanager
def _a_hundred(app: Application, role: str) -> Generator[list[Pair]]:
    """Ten connections to each of the addresses of one listener."""
    with ExitStack() as stack:
        pairs: list[Pair] = []
        if role == "server":
            accepting = app.listen(*(ResolvedAddress.tcp(host, port) for host, port in _free_ports()))
            oracles: dict[tuple[ResolvedAddress, ResolvedAddress], socket.socket] = {}
            for address in accepting.addresses * (100 // len(HOSTS)):
                oracle = stack.enter_context(connect(address))
                oracles[addresses_seen_by(oracle)] = oracle
            for _ in range(100):
                endpoint = accepting.next()
                stack.callback(endpoint.close)
                pairs.append(Pair(endpoint, oracles[endpoint.peer_address, endpoint.local_address]))
            accepting.close()
        else:
            for host in HOSTS:
                server = stack.enter_context(OracleServer(ResolvedAddress.tcp(host, 0)))
                for _ in range(100 // len(HOSTS)):
                    endpoint = app.connect(server.address)
                    stack.callback(endpoint.close)
                    pairs.append(Pair(endpoint, stack.enter_context(server.accept())))
        assert len(pairs) == 100
        yield pairs


@pytest.mark.parametrize("role", ["client", "server"])
def test_a_hundred_connections_on_ten_addresses_exchange_a_hundred_messages_each_way_at_once(
    app: Application, role: str
) -> None:
    scripts = _scripts()
    with _a_hundred(app, role) as pairs, ThreadPoolExecutor(100) as threads:
        exchanges = [
            _Exchange(app.ledger, pair.endpoint, theirs.all, ours.messages)
            for pair, (ours, theirs) in zip(pairs, scripts, strict=True)
        ]
        for exchange in exchanges:
            exchange.start()
        peers = [
            threads.submit(_peer, pair.oracle, theirs.messages, ours.all)
            for pair, (ours, theirs) in zip(pairs, scripts, strict=True)
        ]
        assert [exchange.read.result() for exchange in exchanges] == [""] * 100
        assert [exchange.written.result() for exchange in exchanges] == [""] * 100
        for peer in peers:
            peer.result(TIMEOUT)
