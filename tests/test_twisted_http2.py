"""`QuotaSite` over HTTP/2, whose streams are no transports, with the client of h2."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

pytest.importorskip("twisted.internet", reason="Twisted is not installed")
pytest.importorskip("h2", reason="h2 is not installed")
pytest.importorskip("priority", reason="priority is not installed")

import h2.connection
import h2.events
import twisted.internet
from twisted.internet import tcp

from eventengine import admission
from loops import TIMEOUT
from test_twisted_site import BODY, Serve, Served, digest, serve, until

__all__ = ["serve"]


@pytest.fixture
def served(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> Served:
    """A site that speaks HTTP/2 with everybody, as TLS would say by ALPN. Twisted's takes the program's reactor."""
    monkeypatch.setattr(tcp.Server, "negotiatedProtocol", b"h2", raising=False)
    made = serve("1MiB")
    monkeypatch.setattr(twisted.internet, "reactor", made.loop.target, raising=False)
    return made


class Client:
    def __init__(self, served: Served) -> None:
        self.sock = socket.create_connection(("127.0.0.1", served.port), TIMEOUT)
        served.keep(self.sock)
        self.h2 = h2.connection.H2Connection()
        self.h2.initiate_connection()
        self._events: Iterator[h2.events.Event] = iter(())

    def send(self) -> None:
        self.sock.sendall(self.h2.data_to_send())

    def begin(self, body: bytes, length: int) -> int:
        """A PUT; returns its stream."""
        stream = self.h2.get_next_available_stream_id()
        head = {
            ":method": "PUT",
            ":path": "/",
            ":scheme": "http",
            ":authority": "site",
            "content-length": str(length),
        }
        self.h2.send_headers(stream, list(head.items()))
        self.go_on(stream, body, ends=len(body) == length)
        return stream

    def go_on(self, stream: int, body: bytes, *, ends: bool = True) -> None:
        for start in range(0, len(body), 16384):
            self.h2.send_data(stream, body[start : start + 16384])
        if ends:
            self.h2.end_stream(stream)
        self.send()

    def until(self, kind: type[h2.events.Event], stream: int) -> h2.events.Event:
        while True:
            for event in self._events:
                if isinstance(event, kind) and event.stream_id == stream:  # type: ignore[attr-defined]
                    return event
            data = self.sock.recv(1 << 16)
            assert data
            self._events = iter(self.h2.receive_data(data))
            self.send()


def test_a_body_is_charged_until_its_request_is_done(served: Served) -> None:
    served.root.is_held = True
    client = Client(served)
    before = served.memory.used
    stream = client.begin(BODY[:30_000], 30_000)
    until(lambda: served.root.held)
    assert served.memory.used >= before + 30_000
    served.call(served.root.let_go)
    answer = client.until(h2.events.DataReceived, stream)
    assert isinstance(answer, h2.events.DataReceived)
    assert answer.data == digest(BODY[:30_000]).encode()
    until(lambda: served.memory.used < before + 30_000)


def test_an_upload_that_stalls_while_another_waits_is_cut_and_its_connection_goes_on(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "STALLED", 0.1)
    client = Client(served)
    stalled = client.begin(BODY[:100], 30_000)
    until(lambda: served.memory.used >= 30_000)
    amount = served.memory.size - served.memory.used
    served.memory.take(amount, amount)
    waiter = lambda: True  # noqa: E731  # it is added and removed
    served.memory.add_bulk_waiter(waiter)
    client.until(h2.events.StreamReset, stalled)
    served.memory.remove_bulk_waiter(waiter)
    served.memory.give(amount)
    stream = client.begin(b"abc", 3)
    answer = client.until(h2.events.DataReceived, stream)
    assert isinstance(answer, h2.events.DataReceived)
    assert answer.data == digest(b"abc").encode()
