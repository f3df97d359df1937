"""TLS with peers that keep to the protocol and mean harm. They are OpenSSL's own client, by ctypes: `ssl` has no call
that asks for new keys."""

from __future__ import annotations

import _ssl
import ctypes
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress

import pytest

from engines import KINDS, MAIN, Kind, factory, skip_unless_installed
from eventengine import Endpoint, EndpointConfig, EventEngine, Status, StatusCode
from eventengine.testing.application import Application, Callback
from eventengine.testing.conformance.fixtures import *
from eventengine.testing.oracle import TIMEOUT, connect
from handshakes import start_accept, try_accept

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
    for name in ("TLS_client_method", "SSL_CTX_new", "SSL_new"):
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

    def close(self) -> None:
        self._openssl.SSL_free(self._ssl)
        self._openssl.SSL_CTX_free(self._context)


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


BEGINNING = b"\x01\x01\x00\x00\x03\x03" + bytes(16_000)  # of a ClientHello of 64 KiB, as one record has it


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
