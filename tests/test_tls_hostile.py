"""TLS with peers that keep to the protocol and mean harm, or take their time. They are OpenSSL itself, by ctypes: `ssl`
has no call that asks for new keys, and none for a new handshake."""

from __future__ import annotations

import _ssl
import ctypes
import itertools
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any, NamedTuple

import pytest

from certificates import certificates
from engines import KINDS, MAIN, Kind, factory, skip_unless_installed
from eventengine import (
    Endpoint,
    EndpointConfig,
    EventEngine,
    HalfCloseable,
    ResourceQuota,
    SliceBuffer,
    Status,
    StatusCode,
    tls,
)
from eventengine.core.hosted import HostedEventEngine
from eventengine.core.operations import CLOSED
from eventengine.testing.application import Application, Callback
from eventengine.testing.conformance.fixtures import *
from eventengine.testing.oracle import TIMEOUT, OracleServer, connect, pattern
from eventengine.tls import decrypting
from hand_turned import HandTurnedHost, connected, hand_turned
from handshakes import start_accept, try_accept, try_connect

SOME = [kind for kind in KINDS if kind.loop in MAIN and kind.private_poller]


@pytest.fixture(params=SOME, ids=lambda kind: kind.id)
def make_engine(request: pytest.FixtureRequest) -> Iterator[Callable[[], EventEngine]]:
    kind: Kind = request.param
    skip_unless_installed(kind)
    with factory(kind) as make:
        yield make


@pytest.fixture(scope="module")
def openssl() -> ctypes.CDLL:
    """The library that `ssl` itself is linked with."""
    library = ctypes.CDLL(_ssl.__file__)
    if not hasattr(library, "SSL_key_update"):
        pytest.skip("Python's ssl does not show its OpenSSL, or it has no TLS 1.3")
    for name in ("TLS_client_method", "TLS_server_method", "SSL_CTX_new", "SSL_new"):
        getattr(library, name).restype = ctypes.c_void_p
    return library


class Flooder:
    """A client on a blocking connection, which asks for new keys and never reads what it gets."""

    def __init__(self, openssl: ctypes.CDLL, connection: socket.socket) -> None:
        self._openssl = openssl
        self._context = ctypes.c_void_p(openssl.SSL_CTX_new(ctypes.c_void_p(openssl.TLS_client_method())))
        self._ssl = ctypes.c_void_p(openssl.SSL_new(self._context))
        connection.settimeout(None)
        assert openssl.SSL_set_fd(self._ssl, connection.fileno()) == 1
        assert openssl.SSL_connect(self._ssl) == 1

    def flood(self, most: int) -> None:
        """Until the server is gone, or this was asked `most` times. OpenSSL takes 32 in a row."""
        asked = 0
        while asked < most:
            for _ in range(31):
                if (
                    self._openssl.SSL_key_update(self._ssl, 1) != 1
                    or self._openssl.SSL_do_handshake(self._ssl) != 1
                ):
                    return
                asked += 1
            if self._openssl.SSL_write(self._ssl, b"x", 1) != 1:
                return

    def write(self, data: bytes) -> None:
        assert self._openssl.SSL_write(self._ssl, data, len(data)) == len(data)

    def close(self) -> None:
        self._openssl.SSL_free(self._ssl)
        self._openssl.SSL_CTX_free(self._context)


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


BEGINNING = b"\x01\x00\x3f\x00\x03\x03" + bytes(16_000)  # of a ClientHello of 16,128 bytes, as one record has it


@pytest.mark.parametrize("end", ["cancel", "hang up", "close the engine"])
def test_what_a_handshake_has_received_is_charged_until_it_ends(app: Application, end: str) -> None:
    accepting = app.listen()
    with connect(accepting.address) as connection:
        on_done = Callback[Endpoint | Status](app.ledger, times=0 if end == "cancel" else 1)
        endpoint = accepting.next()
        handshake = app.call(lambda: start_accept(app, on_done, endpoint))
        connection.sendall(b"\x16\x03\x01" + len(BEGINNING).to_bytes(2, "big") + BEGINNING)
        until(lambda: app.quota.memory.used > 16_000)
        if end == "cancel":
            assert handshake.cancel()
        elif end == "hang up":
            connection.close()
            on_done.result()
        else:
            accepting.close()
            app.engine.close()
            on_done.result()
        until(lambda: app.quota.memory.used == 0)
    if end != "close the engine":
        accepting.close()


def test_a_handshake_that_comes_byte_by_byte_keeps_one_number_of_what_came(app: Application) -> None:
    accepting = app.listen()
    with connect(accepting.address) as connection:
        on_done = Callback[Endpoint | Status](app.ledger)
        endpoint = accepting.next()
        handshake = app.call(lambda: start_accept(app, on_done, endpoint))
        for come, byte in enumerate(b"\x16\x03\x01\x40", 1):
            connection.sendall(bytes([byte]))
            until(lambda: sum(handshake._fed) == come)  # noqa: B023
        assert len(handshake._fed) == 1
        connection.close()
        assert not isinstance(on_done.result(), Endpoint)
    accepting.close()


def test_a_peer_that_asks_for_new_keys_and_takes_no_answer_is_cut(app: Application, openssl: ctypes.CDLL) -> None:
    accepting = app.listen(config=EndpointConfig(send_buffer_size=4096))
    with connect(accepting.address, receive_buffer_size=4096) as connection:
        flooders: list[Flooder] = []
        shaken = threading.Thread(target=lambda: flooders.append(Flooder(openssl, connection)))
        shaken.start()
        endpoint = try_accept(app, accepting.next())
        shaken.join()
        with closing(flooders[0]) as flooder, closing(endpoint):

            def flood() -> None:
                flooder.flood(20_000)
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_WR)  # else the server waits, if it was not cut

            flooding = threading.Thread(target=flood)
            flooding.start()
            data, status = app.receive_all(endpoint)
            endpoint.close()
            flooding.join()
    accepting.close()
    assert status.code is StatusCode.UNAVAILABLE
    assert "does not take the answers" in status.message
    assert 0 < len(data) < 20_000 / 31


class Flooded(NamedTuple):
    engine: HostedEventEngine
    host: HandTurnedHost
    endpoint: Endpoint
    quota: ResourceQuota
    flooder: Flooder
    statuses: list[Status]
    """What reads were told."""

    def read(self, buffer: SliceBuffer, size: int) -> None:
        if self.endpoint.read(self.statuses.append, buffer, read_hint_bytes=size):
            self.statuses.append(Status.OK)


@contextmanager
def flooded(openssl: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flooded]:
    """An endpoint to which 1,240 requests for new keys have come, and 40 bytes between them, and for which each turn
    is over that has decrypted anything short."""
    monkeypatch.setattr(decrypting, "TURN", 0.0)
    quota = ResourceQuota("a flood")
    with hand_turned() as (engine, host), connected(engine, host, quota) as (below, peer):
        done: list[Any] = []
        allocator = quota.create_memory_allocator("tls")
        context = certificates().server_context()
        tls.accept(engine, done.append, below, context, memory_allocator=allocator, timeout=TIMEOUT)
        allocator.close()
        flooders: list[Flooder] = []
        thread = threading.Thread(target=lambda: flooders.append(Flooder(openssl, peer)))
        thread.start()
        host.until(lambda: done)
        thread.join()
        with closing(flooders[0]) as flooder, closing(done.pop()) as endpoint:
            flooder.flood(1240)
            yield Flooded(engine, host, endpoint, quota, flooder, [])
    assert quota.memory.used == 0


@pytest.mark.parametrize("blocks", ["ours alone", "shared"])
def test_who_asks_for_new_keys_all_the_time_leaves_others_their_turns(
    openssl: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, blocks: str
) -> None:
    """And a read gets as much as it wished for all the same."""
    if blocks == "shared":
        monkeypatch.setattr(decrypting, "is_unshared", lambda part: False)
    with flooded(openssl, monkeypatch) as it:
        turns = itertools.count()

        def of_others() -> None:
            next(turns)
            if not it.statuses:
                it.engine.run(of_others)

        it.engine.run(of_others)
        it.flooder.write(bytes(100))
        buffer = SliceBuffer()
        it.read(buffer, 140)
        while not it.statuses:
            it.host.turn()
            it.host.poll(0)
        assert (it.statuses, bytes(buffer)) == ([Status.OK], b"x" * 40 + bytes(100))
        assert next(turns) > 20
        buffer.clear()


@pytest.mark.parametrize("end", ["the endpoint", "the engine", "its writing half"])
def test_what_is_closed_amid_a_flood_ends_as_always(
    openssl: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    with flooded(openssl, monkeypatch) as it:
        buffer = SliceBuffer()
        it.read(buffer, 40)
        it.host.until(lambda: it.endpoint._decrypter.is_tired)  # type: ignore[attr-defined]
        assert it.statuses == []
        if end == "its writing half":
            assert isinstance(it.endpoint, HalfCloseable)
            it.endpoint.close_write()
        else:
            (it.endpoint if end == "the endpoint" else it.engine).close()
        it.host.until(lambda: it.statuses)
        assert it.statuses == ([CLOSED] if end == "the endpoint" else [Status.OK])
        assert len(buffer) == {"the endpoint": 0, "the engine": 9, "its writing half": 40}[end]
        it.host.settle()
        assert len(it.statuses) == 1
        buffer.clear()


_SET_MAX_VERSION, _TLS_1_2 = 124, 0x0303  # SSL_CTRL_SET_MAX_PROTO_VERSION and TLS1_2_VERSION of OpenSSL's headers


class Renegotiator:
    """A server of TLS 1.2 on a blocking connection, which asks for a new handshake whenever it likes."""

    def __init__(self, openssl: ctypes.CDLL, connection: socket.socket) -> None:
        self._openssl = openssl
        self._context = ctypes.c_void_p(openssl.SSL_CTX_new(ctypes.c_void_p(openssl.TLS_server_method())))
        openssl.SSL_CTX_ctrl(self._context, _SET_MAX_VERSION, ctypes.c_long(_TLS_1_2), None)
        path = str(certificates().path("server")).encode()
        assert openssl.SSL_CTX_use_certificate_chain_file(self._context, path) == 1
        assert openssl.SSL_CTX_use_PrivateKey_file(self._context, path, 1) == 1
        self._ssl = ctypes.c_void_p(openssl.SSL_new(self._context))
        connection.settimeout(None)
        for way in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            connection.setsockopt(socket.SOL_SOCKET, way, struct.pack("ll", int(TIMEOUT), 0))
        assert openssl.SSL_set_fd(self._ssl, connection.fileno()) == 1
        assert openssl.SSL_accept(self._ssl) == 1

    def renegotiate(self) -> None:
        """Asks, and does not wait for the answer."""
        assert self._openssl.SSL_renegotiate(self._ssl) == 1
        assert self._openssl.SSL_do_handshake(self._ssl) == 1

    def write(self, data: bytes) -> None:
        assert self._openssl.SSL_write(self._ssl, data, len(data)) == len(data)

    def read(self) -> bytes:
        """Does the handshake, if the client has begun one, and brings what it wrote."""
        data = ctypes.create_string_buffer(1 << 14)
        size = self._openssl.SSL_read(self._ssl, data, len(data))
        return data.raw[:size]

    def close(self) -> None:
        self._openssl.SSL_free(self._ssl)
        self._openssl.SSL_CTX_free(self._context)


class Renegotiating(NamedTuple):
    endpoint: Endpoint
    peer: Renegotiator
    connection: socket.socket


@contextmanager
def renegotiating(app: Application, openssl: ctypes.CDLL) -> Iterator[Renegotiating]:
    """A client that has begun a new handshake, of which it has heard nothing more yet."""
    with OracleServer() as server:
        below = app.connect(server.address)
        connection = server.accept()
    with connection:
        peers: list[Renegotiator] = []
        shaken = threading.Thread(target=lambda: peers.append(Renegotiator(openssl, connection)))
        shaken.start()
        endpoint = try_connect(app, below)
        shaken.join()
        with closing(peers[0]) as peer, closing(endpoint):
            peer.renegotiate()
            peer.write(b"meanwhile")
            assert app.receive(endpoint, 9) == b"meanwhile"
            yield Renegotiating(endpoint, peer, connection)


@pytest.mark.parametrize(("size", "reads"), [(10, False), (300_000, False), (300_000, True)])
def test_what_is_written_during_a_new_handshake_comes_after_it_and_nothing_is_lost(
    app: Application, openssl: ctypes.CDLL, size: int, *, reads: bool
) -> None:
    """OpenSSL passes over no plaintext that is before the peer's answer, and may hold what had no room."""
    data = pattern(size)
    with renegotiating(app, openssl) as (endpoint, peer, _):
        buffer = SliceBuffer()
        on_read = app.start_read(endpoint, buffer) if reads else None
        on_writable = app.start_write(endpoint, b"written")
        peer.write(data)
        assert peer.read() == b"written"
        assert on_writable.result().ok
        if on_read is not None:
            assert on_read.result().ok
        received = bytes(buffer)
        assert received + app.receive(endpoint, size - len(received)) == data
        peer.write(b"and on")
        assert app.receive(endpoint, 6) == b"and on"


@pytest.mark.parametrize("way", ["hang up", "close the endpoint", "close the engine"])
def test_a_write_that_waits_for_a_new_handshake_is_told_that_there_will_be_none(
    app: Application, openssl: ctypes.CDLL, way: str
) -> None:
    with renegotiating(app, openssl) as (endpoint, _, connection):
        on_writable = app.start_write(endpoint, b"written")
        app.on_loop(lambda: None)
        if way == "hang up":
            connection.shutdown(socket.SHUT_RDWR)
        elif way == "close the endpoint":
            app.call(endpoint.close)
        else:
            app.engine.close()
        expected = StatusCode.CANCELLED if way.startswith("close") else StatusCode.UNAVAILABLE
        assert on_writable.result().code is expected
        if not way.startswith("close"):
            status = app.read(endpoint, SliceBuffer())
            assert status.code is StatusCode.UNAVAILABLE
