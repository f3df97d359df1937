"""What a server's OpenSSL gets to see of a ClientHello, and what one costs that is not what it says."""

from __future__ import annotations

import os
import socket
import ssl
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from certificates import HOST, certificates
from eventengine import Endpoint, ResourceQuota, Status, StatusCode, tls
from eventengine.core.hosted import HostedEventEngine
from eventengine.testing.oracle import TIMEOUT
from eventengine.tls.hello import ClientHello
from hand_turned import HandTurnedHost, connected, hand_turned, listen

Client = tuple[ssl.SSLObject, ssl.MemoryBIO, ssl.MemoryBIO]

CHANGE_CIPHER_SPEC = b"\x14\x03\x03\x00\x01\x01"
EARLY_DATA = b"\x17\x03\x03\x00\x20" + bytes(32)
SOME_ALERT = b"\x15\x03\x01\x00\x02\x01\x5a"  # user_canceled
RETRY_REQUEST = (
    b"\x16\x03\x03\x00\x30\x02\x00\x00\x2c\x03\x03"
    b"\xcf\x21\xad\x74\xe5\x9a\x61\x11\xbe\x1d\x8c\x02\x1e\x65\xb8\x91"
    b"\xc2\xa2\x11\x16\x7a\xbb\x8c\x5e\x07\x9e\x09\xe2\xc8\xa8\x33\x9c" + bytes(10)
)
SERVER_HELLO = b"\x16\x03\x03\x00\x30\x02\x00\x00\x2c\x03\x03" + bytes(42)
REFUSAL = b"\x15\x03\x03\x00\x02\x02\x2f"  # illegal_parameter


def record(payload: bytes, kind: int = 22) -> bytes:
    return bytes([kind, 3, 1]) + len(payload).to_bytes(2, "big") + payload


def claiming(size: int, sent: int = 35) -> bytes:
    """The first bytes of a ClientHello that says that it has `size`."""
    return record(b"\x01" + size.to_bytes(3, "big") + b"\x03\x03" + bytes(sent - 2))


def a_client() -> Client:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    return (
        certificates().client_context().wrap_bio(incoming, outgoing, server_hostname=HOST),
        incoming,
        outgoing,
    )


def says(client: Client) -> bytes:
    """What the client sends next."""
    with_what_it_has(client)
    return client[2].read()


def with_what_it_has(client: Client) -> bool:
    try:
        client[0].do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


def in_records_of(size: int, hello: bytes) -> bytes:
    message = hello[5:]
    return b"".join(record(message[at : at + size]) for at in range(0, len(message), size))


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def all_passed(hello: ClientHello, data: bytes, size: int) -> list[bytes]:
    """What passes of `data`, which comes in pieces of that size; nothing is refused."""
    passed: list[bytes] = []
    for piece in pieces(data, size):
        hello.take(memoryview(piece))
        more = hello.passed()
        assert not isinstance(more, Status)
        if more:
            passed.append(more)
    return passed


@pytest.mark.parametrize("records", [1, 3, 100, 5000])
@pytest.mark.parametrize("size", [1, 7, 5000])
def test_a_hello_passes_when_it_is_whole_and_what_comes_behind_it_does_not(records: int, size: int) -> None:
    data = in_records_of(records, says(a_client()))
    hello = ClientHello(asks_for_certificates=False)
    assert all_passed(hello, data, size) == [data]
    hello.take(memoryview(EARLY_DATA))
    assert not hello.is_over
    assert hello.answered(SERVER_HELLO) == EARLY_DATA
    assert hello.is_over


@pytest.mark.parametrize("size", [1, 7, 5000])
def test_after_a_retry_request_a_second_hello_passes_when_it_is_whole(size: int) -> None:
    data = says(a_client())
    hello = ClientHello(asks_for_certificates=False)
    hello.take(memoryview(data + EARLY_DATA))
    assert hello.passed() == data
    assert hello.answered(RETRY_REQUEST) == b""
    passed = all_passed(hello, CHANGE_CIPHER_SPEC + data, size)
    assert b"".join(passed) == EARLY_DATA + CHANGE_CIPHER_SPEC + data
    assert passed[-1].endswith(data)
    assert hello.answered(SERVER_HELLO) == b""
    assert hello.is_over


def test_a_second_hello_that_came_with_the_first_is_looked_at_too() -> None:
    data = says(a_client())
    hello = ClientHello(asks_for_certificates=False)
    hello.take(memoryview(data + claiming(100_000)))
    assert hello.passed() == data
    assert hello.answered(RETRY_REQUEST) == b""
    assert isinstance(hello.passed(), Status)


def test_what_comes_amid_a_hello_keeps_its_place() -> None:
    first, second = pieces(says(a_client())[5:], 300)
    hello = ClientHello(asks_for_certificates=False)
    data = SOME_ALERT + record(first) + SOME_ALERT + record(second)
    assert all_passed(hello, data, 1) == [SOME_ALERT, data[len(SOME_ALERT) :]]


@pytest.mark.parametrize(
    "data",
    [
        b"G",
        b"HTTP/1.1 400 Bad Request\r\n",
        b"\x16\x02",  # no version of ours
        record(b"\x02" + bytes(60)),  # a ServerHello
        record(b"\x10"),
        b"\x80\x2e\x01\x03\x01" + bytes(43),  # a ClientHello as SSL 2 has it
        record(b"\x01\x00") + b"no record",
    ],
)
def test_what_is_no_hello_passes_at_once(data: bytes) -> None:
    hello = ClientHello(asks_for_certificates=False)
    assert all_passed(hello, data, len(data)) == [data]
    assert hello.is_over


@pytest.mark.parametrize(
    "data",
    [
        claiming(131_396),
        claiming(16_381),
        claiming(0xFFFFFF),
        record(b"\x01\x02\x00") + record(b"\x00"),
        SOME_ALERT + CHANGE_CIPHER_SPEC + claiming(20_000),
        claiming(40, sent=41),
        record(b"\x01\x00\x3f\x00") + record(b"\x00") * 5500,
        record(b"\x01\x00\x3f\x00") + record(b"") * 6600,
        b"\x16\x03\x01\xff\xff" + bytes(33_000),
    ],
    ids=str,
)
def test_what_no_client_sends_is_refused(data: bytes) -> None:
    hello = ClientHello(asks_for_certificates=False)
    hello.take(memoryview(data))
    refused = hello.passed()
    assert isinstance(refused, Status)
    assert refused.code is StatusCode.UNAVAILABLE
    assert "ClientHello" in refused.message


def test_the_longest_hello_that_passes_has_16_kib() -> None:
    longest = claiming(16_380, sent=16_380)
    assert all_passed(ClientHello(asks_for_certificates=False), longest, 1000) == [longest]
    in_pieces = in_records_of(6, longest)
    assert all_passed(ClientHello(asks_for_certificates=False), in_pieces, len(in_pieces)) == [in_pieces]


def test_where_clients_have_certificates_one_may_have_128_kib_for_tickets_have_them() -> None:
    longest = in_records_of(
        16_384, record(b"\x01" + (0x1FFFC).to_bytes(3, "big") + bytes(60_000)) + bytes(0x1FFFC - 60_000)
    )
    assert all_passed(ClientHello(asks_for_certificates=True), longest, 16_384) == [longest]
    too_long = ClientHello(asks_for_certificates=True)
    too_long.take(memoryview(claiming(0x1FFFD)))
    assert isinstance(too_long.passed(), Status)


class Accepting(NamedTuple):
    engine: HostedEventEngine
    host: HandTurnedHost
    peer: socket.socket
    quota: ResourceQuota
    handshake: tls.Handshake
    outcomes: list[Endpoint | Status]

    def receive(self) -> bytes:
        """What the server sends next."""
        self.peer.setblocking(False)
        received: list[bytes] = []

        def arrived() -> bool:
            try:
                received.append(self.peer.recv(1 << 16))
            except BlockingIOError:
                return False
            return True

        while not arrived():
            self.host.turn()
            self.host.poll(0)
        return received[0]

    def send(self, data: bytes) -> None:
        self.peer.setblocking(True)
        self.peer.sendall(data)
        self.host.settle()


@contextmanager
def accepting(context: ssl.SSLContext | None = None) -> Iterator[Accepting]:
    """A handshake that waits for its client, and in the end nothing that is charged."""
    quota = ResourceQuota("hellos", memory="1MiB")
    outcomes: list[Endpoint | Status] = []
    with hand_turned() as (engine, host):
        with connected(engine, host, quota) as (below, peer):
            allocator = quota.create_memory_allocator("tls")
            context = context or certificates().server_context()
            handshake = tls.accept(
                engine, outcomes.append, below, context, memory_allocator=allocator, timeout=TIMEOUT
            )
            allocator.close()
            yield Accepting(engine, host, peer, quota, handshake, outcomes)
            for outcome in outcomes:
                if isinstance(outcome, Endpoint):
                    outcome.close()
            host.settle()
        handshake.cancel()
    assert quota.memory.used == 0


def finish(it: Accepting, client: Client) -> Endpoint:
    while not it.outcomes:
        client[1].write(it.receive())
        with_what_it_has(client)
        if client[2].pending:
            it.send(client[2].read())
    endpoint = it.outcomes[0]
    assert isinstance(endpoint, Endpoint)
    return endpoint


@pytest.mark.parametrize("records", [100, 5000])
@pytest.mark.parametrize("size", [50, 5000])
@pytest.mark.parametrize("version", ["TLSv1.3", "TLSv1.3, retried", "TLSv1.2"])
def test_a_hello_in_pieces_is_served(version: str, size: int, records: int) -> None:
    context = certificates().server_context()
    if version == "TLSv1.3, retried":
        context.set_ecdh_curve("secp521r1")  # for which no client has keys at first
    elif version == "TLSv1.2":
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    with accepting(context) as it:
        client = a_client()
        for piece in pieces(in_records_of(records, says(client)), size):
            it.send(piece)
        if version == "TLSv1.3, retried":
            answer = it.receive()
            assert answer[11:43] == RETRY_REQUEST[11:43]
            client[1].write(answer)
            for piece in pieces(says(client), size):
                it.send(piece)
        secured = finish(it, client).query_extension(tls.Secured)
        assert secured is not None
        assert secured.protocol_version == version[:7]


def test_a_hello_is_charged_and_unseen_until_it_is_whole() -> None:
    with accepting() as it:
        client = a_client()
        data = says(client)
        it.send(data[:-1])
        assert it.quota.memory.used == len(data) - 1
        assert it.handshake._incoming.pending == 0
        it.send(data[-1:])
        finish(it, client)


@pytest.mark.parametrize("when", ["at first", "after a retry request", "with what came before a retry request"])
def test_a_hello_that_claims_too_much_is_refused_and_its_peer_told(when: str) -> None:
    context = certificates().server_context()
    context.set_ecdh_curve("secp521r1")
    with accepting(context) as it:
        too_much = claiming(131_396)
        if when == "at first":
            it.send(too_much)
        elif when == "after a retry request":
            it.send(says(a_client()))
            assert it.receive()[11:43] == RETRY_REQUEST[11:43]
            it.send(CHANGE_CIPHER_SPEC + too_much)
        else:
            it.send(says(a_client()) + too_much)
            assert it.receive()[11:43] == RETRY_REQUEST[11:43]
            it.send(CHANGE_CIPHER_SPEC)
        it.host.until(lambda: it.outcomes)
        (status,) = it.outcomes
        assert isinstance(status, Status)
        assert status.code is StatusCode.UNAVAILABLE
        assert status.message == "the TLS handshake: the peer's ClientHello is too long, it has 131400 bytes"
        received = b"".join(iter(lambda: it.peer.recv(1 << 16), b""))
        assert received.endswith(REFUSAL)


@pytest.mark.parametrize("end", ["hang up", "cancel", "the endpoint", "the engine"])
def test_what_is_kept_of_a_hello_is_charged_no_more_when_the_handshake_ends(end: str) -> None:
    with accepting() as it:
        it.send(claiming(10_000, 5000))
        assert it.quota.memory.used == 5000 + 9
        if end == "hang up":
            it.peer.close()
        elif end == "cancel":
            assert it.handshake.cancel()
        elif end == "the endpoint":
            it.handshake._below.close()
        else:
            it.engine.close()
        it.host.settle()
        assert it.quota.memory.used == 0
        assert len(it.outcomes) == (0 if end == "cancel" else 1)


class Many(NamedTuple):
    host: HandTurnedHost
    quota: ResourceQuota
    peers: list[socket.socket]
    outcomes: list[Endpoint | Status]
    before: int

    @property
    def grown(self) -> float:
        """By how much the process has grown for each handshake, in KiB."""
        return (_resident() - self.before) / len(self.peers) / 1024


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def many(count: int, context: ssl.SSLContext) -> Iterator[Many]:
    """So many handshakes that wait for their clients, which hang up in the end; nothing is left of them then."""
    quota = ResourceQuota("hellos", memory="8MiB")
    outcomes: list[Endpoint | Status] = []
    with hand_turned() as (engine, host), ExitStack() as peers:
        allocator = quota.create_memory_allocator("tls")
        begun: list[None] = []

        def secure(endpoint: Endpoint) -> None:
            tls.accept(engine, outcomes.append, endpoint, context, memory_allocator=allocator, timeout=TIMEOUT)
            begun.append(None)

        listener, address = listen(engine, secure, quota)
        before = _resident()
        connections = [peers.enter_context(socket.create_connection(address, TIMEOUT)) for _ in range(count)]
        host.until(lambda: len(begun) == count)
        yield Many(host, quota, connections, outcomes, before)
        peers.close()
        host.until(lambda: len(outcomes) == count)
        listener.close()
        allocator.close()
        host.settle()
        assert quota.memory.used == 0
        assert all(isinstance(outcome, Status) for outcome in outcomes)


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from Linux's /proc")
def test_what_hellos_claim_takes_no_memory_and_abandoned_ones_leave_nothing() -> None:
    """Each took 150 KiB."""
    with many(200, certificates().server_context()) as it:
        for number, peer in enumerate(it.peers):
            peer.sendall(claiming(131_396 if number % 2 else 16_000))
        it.host.settle()
        assert len(it.outcomes) == 100  # those that claimed more than any has
        assert it.quota.memory.used == 100 * len(claiming(16_000))
        assert it.grown < 40


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from Linux's /proc")
def test_what_stops_amid_certificates_takes_what_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    certificate = certificates().path("client").read_bytes()
    der = ssl.PEM_cert_to_DER_cert(certificate[certificate.index(b"-----BEGIN CERT") :].decode())
    chain = tmp_path / "chain.pem"
    chain.write_bytes(certificate + certificate[certificate.index(b"-----BEGIN CERT") :] * (90_000 // len(der)))
    of_clients = certificates().client_context()
    of_clients.load_cert_chain(chain)
    with many(30, certificates().server_context(asks_the_client=True)) as it:
        clients = [
            (of_clients.wrap_bio(incoming, outgoing, server_hostname=HOST), incoming, outgoing)
            for incoming, outgoing in ((ssl.MemoryBIO(), ssl.MemoryBIO()) for _ in it.peers)
        ]
        for peer, client in zip(it.peers, clients, strict=True):
            peer.sendall(says(client))
        it.host.settle()
        for peer, client in zip(it.peers, clients, strict=True):
            client[1].write(peer.recv(1 << 16))
            certificates_of_client = says(client)
            assert len(certificates_of_client) > 90_000
            peer.sendall(certificates_of_client[:17_000])
        grown, before = it.grown, it.quota.memory.used
        it.host.settle()
        assert it.outcomes == []
        assert it.quota.memory.used == before + 30 * 17_000
        assert it.grown - grown < 185
