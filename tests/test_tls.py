"""TLS over the connections of every engine, with Python's blocking `ssl` sockets as its peer.

That an endpoint over TLS is one like any other is in `test_conformance_tls`.
"""

from __future__ import annotations

import queue
import random
import select
import socket
import ssl
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

import pytest

from certificates import HOST, certificates
from engines import KINDS, MAIN, Kind, factory, skip_unless_installed
from eventengine import (
    BusyResourceError,
    ClosedResourceError,
    Endpoint,
    EventEngine,
    HalfCloseable,
    MemoryRequest,
    ResolvedAddress,
    ResourceQuota,
    SliceBuffer,
    Status,
    StatusCode,
    StatusError,
    SupportsFileDescriptor,
    WriteEvent,
    tls,
)
from eventengine.core.hosted import HostedEventEngine
from eventengine.memory_quota import MemoryQuota
from eventengine.testing.application import Application, Callback, Ledger
from eventengine.testing.conformance.fixtures import *
from eventengine.testing.oracle import TIMEOUT, OracleServer, connect, pattern, receive, receive_all, reset
from eventengine.testing.scenes import never_inline, repeat_until_closed
from eventengine.tls import decrypting
from hand_turned import HandTurnedHost, connected, hand_turned
from handshakes import (
    oracle_client,
    oracle_server,
    secured,
    shake_by_hand,
    start_accept,
    start_connect,
    try_accept,
    try_connect,
)

SOME = [kind for kind in KINDS if kind.loop in MAIN and kind.private_poller]


@pytest.fixture(params=SOME, ids=lambda kind: kind.id)
def make_engine(request: pytest.FixtureRequest) -> Iterator[Callable[[], EventEngine]]:
    kind: Kind = request.param
    skip_unless_installed(kind)
    with factory(kind) as make:
        yield make


class Pair(NamedTuple):
    endpoint: Endpoint
    oracle: ssl.SSLSocket


class Below(NamedTuple):
    """A connection without TLS."""

    endpoint: Endpoint
    oracle: socket.socket


@contextmanager
def below(app: Application, role: str) -> Iterator[Below]:
    with ExitStack() as stack:
        if role == "client":
            with OracleServer() as server:
                endpoint = app.connect(server.address)
                oracle = stack.enter_context(server.accept())
        else:
            accepting = app.listen()
            oracle = stack.enter_context(connect(accepting.address))
            endpoint = accepting.next()
            accepting.close()
        stack.callback(endpoint.close)
        yield Below(endpoint, oracle)


@contextmanager
def paired(
    app: Application,
    role: str,
    ours: ssl.SSLContext | None = None,
    theirs: ssl.SSLContext | None = None,
    **more: Any,
) -> Iterator[Pair]:
    """A connection over TLS in which the engine is `"client"` or `"server"`."""
    with below(app, role) as (beneath, connection), ThreadPoolExecutor(1) as threads:
        if role == "client":
            shaking = threads.submit(oracle_server, connection, theirs)
            endpoint = try_connect(app, beneath, ours, **more)
        else:
            shaking = threads.submit(oracle_client, connection, theirs)
            endpoint = try_accept(app, beneath, ours, **more)
        with shaking.result(TIMEOUT) as oracle:
            assert not isinstance(endpoint, Status), endpoint
            with closing(endpoint):
                yield Pair(endpoint, oracle)


def refused(
    app: Application, ours: ssl.SSLContext | None = None, theirs: ssl.SSLContext | None = None, **more: Any
) -> Status:
    """The status that a client gets whose handshake with the oracle does not succeed."""
    with below(app, "client") as (endpoint, connection), ThreadPoolExecutor(1) as threads:
        shaking = threads.submit(oracle_server, connection, theirs)
        status = try_connect(app, endpoint, ours, **more)
        with suppress(OSError):
            shaking.result(TIMEOUT).close()
        assert isinstance(status, Status)
        with pytest.raises(ClosedResourceError):
            endpoint.read(Callback[Status](app.ledger, times=0), SliceBuffer())
    return status


# Bytes.


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("role", ["client", "server"])
def test_bytes_go_both_ways_and_the_end_is_a_clean_one(
    anywhere: Application, role: str, version: ssl.TLSVersion
) -> None:
    question, answer = pattern(300_000, 1), pattern(3_000_000, 2)
    theirs = certificates().server_context() if role == "client" else certificates().client_context()
    theirs.maximum_version = version
    with paired(anywhere, role, None, theirs) as (endpoint, oracle), ThreadPoolExecutor(1) as threads:
        hearing = threads.submit(receive, oracle, len(question))
        parts = SliceBuffer([question[:10], question[10:20], question[20:]])
        assert anywhere.write(endpoint, parts).ok
        assert hearing.result(TIMEOUT) == question
        saying = threads.submit(oracle.sendall, answer)
        assert anywhere.receive(endpoint, len(answer)) == answer
        saying.result(TIMEOUT)
        anywhere.call(endpoint.close)
        assert receive_all(oracle) == b""


def _records_on_the_wire(app: Application, data: SliceBuffer, **more: Any) -> list[int]:
    """The lengths of the records that one write makes, as they come out of the connection below."""
    with below(app, "server") as (endpoint, connection):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        peer = certificates().client_context().wrap_bio(incoming, outgoing, server_hostname=HOST)
        server = certificates().server_context()
        server.num_tickets = 0
        on_done = Callback[Any](app.ledger)
        start_accept(app, on_done, endpoint, server)
        shake_by_hand(peer, incoming, outgoing, connection)
        connection.sendall(outgoing.read())
        with closing(on_done.result()) as secure:
            size = len(data)
            on_writable = Callback[Status](app.ledger)
            if secure.write(on_writable, data, **more):
                on_writable(Status.OK)
            raw = bytearray()
            lengths: list[int] = []
            while sum(lengths) < size:
                raw += connection.recv(1 << 16)
                while len(raw) >= 5 and len(raw) >= 5 + int.from_bytes(raw[3:5]):
                    length = int.from_bytes(raw[3:5])
                    lengths.append(length - 17)  # the type within, and the tag
                    del raw[: 5 + length]
            assert on_writable.result().ok
    return lengths


def test_many_small_slices_leave_in_few_records(app: Application) -> None:
    assert _records_on_the_wire(app, SliceBuffer([b"x" * 100] * 1000)) == [16384] * 6 + [100_000 - 6 * 16384]


@pytest.mark.parametrize("size", [98_304, 200_000, 300_000])
def test_a_long_slice_leaves_in_full_records_whatever_comes_before_it(app: Application, size: int) -> None:
    lengths = _records_on_the_wire(app, SliceBuffer([b"x" * 100, bytes(size)]))
    assert (set(lengths[:-1]), sum(lengths)) == ({16384}, size + 100)


def test_a_frame_size_below_that_of_a_record_is_kept(app: Application) -> None:
    assert _records_on_the_wire(app, SliceBuffer([b"x" * 5000]), max_frame_size=2000) == [2000, 2000, 1000]


def test_no_ciphertext_is_read_while_no_read_is_outstanding(app: Application) -> None:
    data = pattern(64 << 20)
    with paired(app, "server") as (_, oracle):
        oracle.settimeout(0.5)
        with pytest.raises(TimeoutError):
            oracle.sendall(data)
        assert app.quota.memory.used == 0


def test_what_came_with_the_handshake_is_read_and_was_charged_meanwhile(app: Application) -> None:
    with below(app, "server") as (endpoint, connection):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        peer = certificates().client_context().wrap_bio(incoming, outgoing, server_hostname=HOST)
        on_done = Callback[Any](app.ledger)
        start_accept(app, on_done, endpoint)
        shake_by_hand(peer, incoming, outgoing, connection)
        data = pattern(5000)
        peer.write(data)
        connection.sendall(outgoing.read())  # the handshake's last message and the data, in one piece
        with closing(on_done.result()) as secure:
            assert app.quota.memory.used >= 5000
            assert app.receive(secure, 5000) == data
        connection.close()


@pytest.mark.parametrize("answers", [True, False])
def test_a_server_s_tickets_go_with_its_first_answer_or_when_it_waits(app: Application, *, answers: bool) -> None:
    with below(app, "server") as (endpoint, connection):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        peer = certificates().client_context().wrap_bio(incoming, outgoing, server_hostname=HOST)
        on_done = Callback[Any](app.ledger)
        start_accept(app, on_done, endpoint)
        shake_by_hand(peer, incoming, outgoing, connection)
        peer.write(b"question")
        connection.sendall(outgoing.read())
        with closing(on_done.result()) as secure:
            assert app.receive(secure, 8) == b"question"
            assert not select.select([connection], [], [], 0)[0]
            if answers:
                assert app.write(secure, SliceBuffer([b"answer"])).ok
            else:
                on_read = Callback[Status](app.ledger)
                assert not app.call(lambda: secure.read(on_read, SliceBuffer()))
            incoming.write(connection.recv(1 << 16))
            if answers:
                assert peer.read(6) == b"answer"
            with pytest.raises(ssl.SSLWantReadError):
                peer.read(1)
            assert peer.session is not None
            assert peer.session.has_ticket
            connection.close()
            if not answers:
                assert not on_read.result().ok


@pytest.mark.parametrize("role", ["client", "server"])
def test_tls_goes_over_an_endpoint_over_tls(app: Application, role: str) -> None:
    with paired(app, role) as (beneath, oracle), ThreadPoolExecutor(1) as threads:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        if role == "client":
            peer = certificates().server_context().wrap_bio(incoming, outgoing, server_side=True)
        else:
            peer = certificates().client_context().wrap_bio(incoming, outgoing, server_hostname=HOST)
        on_done = Callback[Any](app.ledger)
        start = start_connect if role == "client" else start_accept
        start(app, on_done, beneath)
        shake_by_hand(peer, incoming, outgoing, oracle)
        oracle.sendall(outgoing.read())
        with closing(on_done.result()) as endpoint:
            data = pattern(100_000)
            peer.write(data)
            sending = threads.submit(oracle.sendall, outgoing.read())
            assert app.receive(endpoint, len(data)) == data
            sending.result(TIMEOUT)
            assert app.write(endpoint, b"answer").ok
            answer = b""
            while not answer:
                with suppress(ssl.SSLWantReadError):
                    answer = peer.read(100)
                if not answer:
                    incoming.write(oracle.recv(1 << 16))
            assert answer == b"answer"


# Ends.


@pytest.mark.parametrize("role", ["client", "server"])
def test_an_end_without_close_notify_is_unclean_and_told_after_the_bytes(anywhere: Application, role: str) -> None:
    with paired(anywhere, role) as (endpoint, oracle):
        oracle.sendall(b"the beginning of")
        with socket.socket(fileno=oracle.detach()) as connection:
            connection.shutdown(socket.SHUT_WR)
            data, status = anywhere.receive_all(endpoint)
            assert data == b"the beginning of"
            for _ in range(2):
                assert status.code is StatusCode.UNAVAILABLE
                assert "no close_notify" in status.message
                assert "cut off" in status.message
                status = anywhere.read(endpoint, SliceBuffer())


@pytest.mark.parametrize("ends_first", [False, True])
def test_a_close_tells_the_peer_that_it_has_everything(anywhere: Application, ends_first: bool) -> None:
    for n in range(5):
        with paired(anywhere, "server" if n % 2 else "client") as (endpoint, oracle):
            half = endpoint.query_extension(HalfCloseable)
            assert half is not None
            assert anywhere.write(endpoint, b"everything").ok
            if ends_first:
                anywhere.call(half.close_write)
            anywhere.call(endpoint.close)
            assert receive_all(oracle) == b"everything"


def test_a_close_does_not_wait_for_a_peer_that_takes_nothing(app: Application) -> None:
    with paired(app, "server") as (endpoint, oracle):
        on_writable = app.start_write(endpoint, bytes(32 << 20))
        app.on_loop(lambda: None)
        endpoint.close()
        assert on_writable.result().code is StatusCode.CANCELLED
        with pytest.raises(ssl.SSLEOFError):  # and it can tell that there was more
            receive_all(oracle)


def test_bytes_that_were_changed_on_the_way_break_the_connection_after_those_before(app: Application) -> None:
    with paired(app, "client") as (endpoint, oracle):
        oracle.sendall(b"genuine")
        with socket.socket(fileno=oracle.detach()) as connection:
            connection.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
            data, status = app.receive_all(endpoint)
            assert data == b"genuine"
            assert status.code is StatusCode.UNAVAILABLE
            assert "changed on the way" in status.message
            assert app.read(endpoint, SliceBuffer()) == status
            for _ in range(2):
                assert app.write(endpoint, b"to nobody").code is StatusCode.UNAVAILABLE


def test_close_write_keeps_what_was_received_and_not_yet_read(app: Application) -> None:
    """OpenSSL is asked to end our stream while it holds plaintext of the peer's, and would drop it."""
    data = pattern(100_000)
    with paired(app, "server") as (endpoint, oracle):
        oracle.sendall(data)
        buffer = SliceBuffer()
        assert app.read(endpoint, buffer).ok
        received = bytes(buffer)
        half = endpoint.query_extension(HalfCloseable)
        assert half is not None
        half.close_write()
        assert receive_all(oracle) == b""
        received += app.receive(endpoint, len(data) - len(received))
        assert received == data


# Who is whom.


def test_a_certificate_for_another_host_is_refused(anywhere: Application) -> None:
    status = refused(anywhere, server_hostname="another.example")
    assert status.code is StatusCode.UNAUTHENTICATED
    assert "is for another host than 'another.example'" in status.message


def test_an_ip_address_is_a_host_too(app: Application) -> None:
    with paired(app, "client", server_hostname="127.0.0.1") as (endpoint, _):
        assert secured(endpoint).server_name == "127.0.0.1"
    assert "is for another host than '127.0.0.2'" in refused(app, server_hostname="127.0.0.2").message


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("expired", "the peer's certificate has expired"),
        ("self-signed", "the peer's certificate is self-signed, and not among those that are trusted here"),
        ("of a stranger", "issued by an authority that is not trusted here (unknown authority)"),
    ],
)
def test_a_certificate_that_is_not_to_be_trusted_is_refused_with_the_reason(
    app: Application, name: str, why: str
) -> None:
    status = refused(app, None, certificates().server_context(name))
    assert status.code is StatusCode.UNAUTHENTICATED
    assert why in status.message


def test_a_client_may_have_to_show_a_certificate(app: Application) -> None:
    asking = certificates().server_context(asks_the_client=True)
    with paired(app, "server", asking, certificates().client_context("client")) as (endpoint, _):
        certificate = secured(endpoint).peer_certificate
        assert certificate is not None
        assert certificate["subject"] == ((("commonName", "a client"),),)
        assert secured(endpoint).peer_certificate_der
    with paired(app, "client", certificates().client_context("client"), asking) as (endpoint, oracle):
        peer = oracle.getpeercert()
        assert peer is not None
        assert peer["subject"] == ((("commonName", "a client"),),)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_server_refuses_a_client_without_a_certificate_and_the_client_hears_it(
    app: Application, version: ssl.TLSVersion
) -> None:
    asking = certificates().server_context(asks_the_client=True)
    asking.maximum_version = version
    with below(app, "server") as (endpoint, connection), ThreadPoolExecutor(1) as threads:
        shaking = threads.submit(oracle_client, connection)
        status = try_accept(app, endpoint, asking)
        assert isinstance(status, Status)
        assert status.code is StatusCode.UNAUTHENTICATED
        assert "sent no certificate" in status.message
        with suppress(OSError):
            shaking.result(TIMEOUT).close()
    with below(app, "client") as (endpoint, connection), ThreadPoolExecutor(1) as threads:
        shaking = threads.submit(oracle_server, connection, asking)
        result = try_connect(app, endpoint)
        if not isinstance(result, Status):  # TLS 1.3: the server has the last word, when we are done
            with closing(result):
                result = app.read(result, SliceBuffer())
        assert "certificate" in result.message
        if version is ssl.TLSVersion.TLSv1_3:  # before, there was no alert of its own for this
            assert result.code is StatusCode.UNAUTHENTICATED
        with suppress(OSError):
            shaking.result(TIMEOUT).close()


def test_alpn_sni_and_what_was_agreed_are_told(app: Application) -> None:
    ours, theirs = certificates().client_context(), certificates().server_context()
    ours.set_alpn_protocols(["h2", "http/1.1"])
    theirs.set_alpn_protocols(["http/1.1"])
    asked: list[object] = []

    def on_name(sock: object, name: object, context: object) -> None:
        asked.append(name)

    theirs.sni_callback = on_name
    with paired(app, "client", ours, theirs) as (endpoint, oracle):
        told = secured(endpoint)
        assert told.alpn_protocol == oracle.selected_alpn_protocol() == "http/1.1"
        cipher = oracle.cipher()
        assert cipher is not None
        assert (told.protocol_version, told.cipher) == (oracle.version(), cipher[0])
        assert told.server_name == HOST
        assert asked == [HOST]
        assert not told.is_resumed
        assert told.peer_certificate_der is not None
    asked.clear()
    with paired(app, "server", theirs, ours) as (endpoint, oracle):
        assert secured(endpoint).alpn_protocol == "http/1.1"
        assert secured(endpoint).session is None
        assert secured(endpoint).peer_certificate is None
        assert asked == [HOST]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_is_resumed(app: Application, version: ssl.TLSVersion) -> None:
    ours, theirs = certificates().client_context(), certificates().server_context()
    theirs.maximum_version = version
    session: tls.Session | None = None
    for resumed in (False, True):
        with paired(app, "client", ours, theirs, session=session) as (endpoint, oracle):
            assert secured(endpoint).is_resumed is oracle.session_reused is resumed
            oracle.sendall(b"x")
            assert app.receive(endpoint, 1) == b"x"
            session = secured(endpoint).session
            assert session is not None


def _session_with(app: Application, context: ssl.SSLContext, host: str) -> tls.Session:
    with paired(app, "client", context, server_hostname=host) as (endpoint, oracle):
        oracle.sendall(b"x")
        assert app.receive(endpoint, 1) == b"x"
        session = secured(endpoint).session
        assert session is not None
        return session


def test_a_session_is_not_gone_on_with_for_another_host(app: Application) -> None:
    """OpenSSL would: no certificate is sent, so the name of the host is not looked at."""
    context = certificates().client_context()
    session = _session_with(app, context, HOST)
    refusal = pytest.raises(ValueError, match=f"for 'localhost': when it was made, the host was '{HOST}'")
    with below(app, "client") as (endpoint, _), refusal:
        start_connect(app, print, endpoint, context, server_hostname="localhost", session=session)


def test_a_session_is_not_gone_on_with_where_more_must_be_checked(app: Application) -> None:
    context = certificates().client_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    session = _session_with(app, context, HOST)
    with below(app, "client") as (endpoint, _):
        context.verify_mode = ssl.CERT_REQUIRED
        with pytest.raises(ValueError, match="no certificate was checked, and the context asks for more"):
            start_connect(app, print, endpoint, context, session=session)
        context.check_hostname = True
        with pytest.raises(ValueError, match=f"for '{HOST}': when it was made, no host was checked"):
            start_connect(app, print, endpoint, context, session=session)


def test_the_descriptor_may_be_looked_at_and_not_taken(app: Application) -> None:
    with paired(app, "client") as (endpoint, oracle):
        descriptor = endpoint.query_extension(SupportsFileDescriptor)
        assert descriptor is not None
        with socket.socket(fileno=socket.dup(descriptor.fileno())) as same:
            assert same.getpeername() == oracle.getsockname()
        with pytest.raises(StatusError, match="would not have the keys") as raised:
            descriptor.release()
        assert raised.value.status.code is StatusCode.UNIMPLEMENTED


# Handshakes that fail.


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak TLS, it began with b'HTTP/1.1 400 Bad'"),
        (b"220 mail.example ESMTP\r\n", "does not speak TLS, it began with b'220 mail.example'"),
        (b"\x00\x01\x02\x03" * 50, "does not speak TLS, it began with b'"),
        (b"\x16\x03\x03\x00\x05hello", "is no TLS that we understand"),
        (b"\x16", "hung up in the middle of it"),
        (b"", "hung up before it sent anything"),
    ],
    ids=["HTTP", "SMTP", "garbage", "garbage in a record", "one byte", "nothing"],
)
@pytest.mark.parametrize("role", ["client", "server"])
def test_a_peer_that_does_not_speak_tls_is_told_by_what_it_said(
    app: Application, role: str, said: bytes, told: str
) -> None:
    with below(app, role) as (endpoint, connection):
        connection.sendall(said)
        connection.shutdown(socket.SHUT_WR)
        status = try_connect(app, endpoint) if role == "client" else try_accept(app, endpoint)
        assert isinstance(status, Status)
        assert status.code is StatusCode.UNAVAILABLE
        assert told in status.message


def test_a_peer_that_gives_up_is_told_by_its_alert(app: Application) -> None:
    with below(app, "client") as (endpoint, connection):
        connection.sendall(b"\x15\x03\x03\x00\x02\x02\x50")
        status = try_connect(app, endpoint)
        assert isinstance(status, Status)
        assert str(status) == "UNAVAILABLE: the TLS handshake: the peer gave up (internal_error)"


def test_a_peer_that_is_gone_before_the_alert_is_told_by_what_it_said(app: Application) -> None:
    with below(app, "server") as (endpoint, connection):
        connection.sendall(b"GET / HTTP/1.1\r\n")
        reset(connection)
        status = try_accept(app, endpoint)
        assert "does not speak TLS, it began with b'GET / HTTP/1.1\\r\\n'" in status.message


def test_a_client_that_speaks_http_is_told_apart(app: Application) -> None:
    with below(app, "server") as (endpoint, connection):
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        status = try_accept(app, endpoint)
        assert "does not speak TLS, it began with b'GET / HTTP/1.1\\r\\n'" in status.message


def test_nothing_in_common_is_told(app: Application) -> None:
    ours, theirs = certificates().client_context(), certificates().server_context()
    ours.maximum_version = ssl.TLSVersion.TLSv1_2
    theirs.minimum_version = ssl.TLSVersion.TLSv1_3
    status = refused(app, ours, theirs)
    assert status.code is StatusCode.UNAVAILABLE
    assert "the peer speaks none of our versions of TLS" in status.message
    with below(app, "server") as (endpoint, connection), ThreadPoolExecutor(1) as threads:
        shaking = threads.submit(oracle_client, connection, ours)
        status = try_accept(app, endpoint, theirs)
        with pytest.raises(ssl.SSLError):  # the alert reached it
            shaking.result(TIMEOUT)
    assert "no version of TLS in common" in status.message


def test_a_reset_in_the_handshake_has_its_errno(app: Application) -> None:
    with below(app, "server") as (endpoint, connection):
        on_done = Callback[Any](app.ledger)
        start_accept(app, on_done, endpoint)
        reset(connection)
        status = on_done.result()
        assert (status.code, status.errno is not None) == (StatusCode.UNAVAILABLE, True)


@pytest.mark.parametrize("role", ["client", "server"])
@pytest.mark.parametrize("timeout", [0, 0.05])
def test_a_handshake_that_takes_too_long_has_exceeded_its_deadline(
    anywhere: Application, role: str, timeout: float
) -> None:
    with below(anywhere, role) as (endpoint, connection):
        attempt = try_connect if role == "client" else try_accept
        status = attempt(anywhere, endpoint, timeout=timeout)
        assert isinstance(status, Status)
        assert status.code is StatusCode.DEADLINE_EXCEEDED
        connection.settimeout(TIMEOUT)
        receive_all(connection)


def test_closing_the_engine_cancels_a_handshake(anywhere: Application) -> None:
    with below(anywhere, "server") as (endpoint, _):
        on_done = Callback[Any](anywhere.ledger)
        start_accept(anywhere, on_done, endpoint)
        anywhere.on_loop(lambda: None)
        anywhere.engine.close()
        assert on_done.result().code is StatusCode.CANCELLED


def test_a_cancelled_handshake_calls_nobody_and_closes_the_connection(anywhere: Application) -> None:
    with below(anywhere, "server") as (endpoint, connection):
        handshake = anywhere.call(
            lambda: start_accept(anywhere, Callback[Any](anywhere.ledger, times=0), endpoint)
        )
        assert anywhere.call(handshake.cancel) is True
        assert anywhere.call(handshake.cancel) is False
        assert receive_all(connection) == b""


def test_a_handshake_that_was_told_of_cannot_be_cancelled(app: Application) -> None:
    with below(app, "client") as (endpoint, connection), ThreadPoolExecutor(1) as threads:
        shaking = threads.submit(oracle_server, connection)
        on_done = Callback[Any](app.ledger)
        handshake = start_connect(app, on_done, endpoint)
        with closing(on_done.result()) as secure, shaking.result(TIMEOUT) as oracle:
            assert handshake.cancel() is False
            oracle.sendall(b"still there")
            assert app.receive(secure, 11) == b"still there"


def test_on_done_is_never_called_within_connect(app: Application) -> None:
    for said in (b"", b"garbage"):
        with below(app, "client") as (endpoint, connection):
            connection.sendall(said)
            connection.shutdown(socket.SHUT_WR)
            app.on_loop(lambda: None)
            status: Any = never_inline(app, lambda on_done: start_connect(app, on_done, endpoint))
            assert status.code is StatusCode.UNAVAILABLE


def test_what_a_callback_of_the_context_raises_fails_its_handshake_alone(app: Application) -> None:
    server = certificates().server_context()

    def on_name(sock: object, name: object, context: object) -> int:
        return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME

    server.sni_callback = on_name
    with below(app, "server") as (endpoint, connection), ThreadPoolExecutor(1) as threads:
        shaking = threads.submit(oracle_client, connection)
        status = try_accept(app, endpoint, server)
        assert isinstance(status, Status)
        assert status.code is StatusCode.UNAVAILABLE
        with pytest.raises(ssl.SSLError):
            shaking.result(TIMEOUT)

    def on_message(*_: object) -> None:
        raise LookupError("no such message")

    client: Any = certificates().client_context()
    client._msg_callback = on_message
    assert str(refused(app, client)) == "INTERNAL: the TLS handshake: LookupError('no such message') was raised"


def test_wrong_arguments_are_told_at_the_caller_and_the_connection_stays(app: Application) -> None:
    client, server = certificates().client_context(), certificates().server_context()
    allocator = app.quota.create_memory_allocator("misuse")
    never = Callback[Any](app.ledger, times=0)
    with below(app, "client") as (endpoint, connection):
        good: dict[str, Any] = {"server_hostname": HOST, "memory_allocator": allocator, "timeout": 1.0}

        def call(*arguments: Any, **more: Any) -> None:
            tls.connect(*arguments, **(good | more))

        async def coroutine(result: object) -> None: ...

        engine: Any = app.engine
        wrong: list[tuple[type[Exception], str, Callable[[], object]]] = [
            (TypeError, "engine must be an EventEngine", lambda: call(None, never, endpoint, client)),
            (TypeError, "on_done must be callable, not int", lambda: call(engine, 5, endpoint, client)),
            (TypeError, "on_done is a coroutine", lambda: call(engine, coroutine, endpoint, client)),
            (TypeError, "must be an Endpoint, not socket", lambda: call(engine, never, connection, client)),
            (TypeError, "must be an ssl.SSLContext, not None", lambda: call(engine, never, endpoint, None)),
            (ValueError, "this is a server's", lambda: call(engine, never, endpoint, server)),
            (ValueError, "say whom", lambda: call(engine, never, endpoint, client, server_hostname=None)),
            (
                TypeError,
                "server_hostname must be",
                lambda: call(engine, never, endpoint, client, server_hostname=5),
            ),
            (ValueError, "server_hostname", lambda: call(engine, never, endpoint, client, server_hostname="")),
            (TypeError, "session must be", lambda: call(engine, never, endpoint, client, session=b"")),
            (
                TypeError,
                "memory_allocator",
                lambda: call(engine, never, endpoint, client, memory_allocator=app.quota),
            ),
            (ValueError, "timeout is -1", lambda: call(engine, never, endpoint, client, timeout=-1)),
            (
                ValueError,
                "this is a client's",
                lambda: tls.accept(engine, never, endpoint, client, memory_allocator=allocator, timeout=1.0),
            ),
        ]
        for error, message, attempt in wrong:
            with pytest.raises(error, match=message):
                attempt()
        connection.sendall(b"still there")
        assert app.receive(endpoint, 11) == b"still there"
        app.engine.close()
        with pytest.raises(ClosedResourceError):
            call(engine, never, endpoint, client)


@pytest.mark.parametrize("operation", ["read", "write"])
def test_a_client_s_handshake_while_something_is_outstanding_ends_at_once_and_says_so(
    app: Application, operation: str
) -> None:
    with below(app, "client") as (endpoint, _):
        outstanding, on_done = Callback[Status](app.ledger), Callback[Any](app.ledger)
        if operation == "read":
            assert not app.call(lambda: endpoint.read(outstanding, SliceBuffer()))
        else:
            assert not app.call(lambda: endpoint.write(outstanding, SliceBuffer([bytes(16 << 20)])))
        start_connect(app, on_done, endpoint, timeout=3600.0)
        assert str(on_done.result()) == (
            f"FAILED_PRECONDITION: the TLS handshake: a {operation} is outstanding on this endpoint; "
            "wait for its callback"
        )
        assert outstanding.result().code is StatusCode.CANCELLED


def test_a_server_s_handshake_while_a_read_is_outstanding_is_refused_and_the_read_goes_on(
    app: Application,
) -> None:
    with below(app, "server") as (endpoint, connection):
        buffer, on_read, never = SliceBuffer(), Callback[Status](app.ledger), Callback[Any](app.ledger, times=0)
        assert not app.call(lambda: endpoint.read(on_read, buffer))
        with pytest.raises(BusyResourceError, match="a read is outstanding"):
            start_accept(app, never, endpoint)
        connection.sendall(b"still there")
        assert on_read.result().ok
        assert bytes(buffer) == b"still there"[: len(buffer)]


# Many.


def _abandon(app: Application, endpoint: Endpoint, role: str, chance: random.Random) -> Callback[Any]:
    """A handshake that is left to itself, cancelled, or given little time; the end of it is closed."""
    on_done = Callback[Any](app.ledger)

    def close(result: Any) -> None:
        if not isinstance(result, Status):
            result.close()
        on_done(result)

    start = start_connect if role == "client" else start_accept
    way = chance.randrange(4)
    handshake = start(app, close, endpoint, timeout=chance.choice((0.0, 0.002, 0.01)) if way == 0 else TIMEOUT)
    if way == 1:
        on_done.times = 0 if handshake.cancel() else 1
    elif way == 2:

        def cancel() -> None:
            on_done.times = 0 if handshake.cancel() else 1

        app.engine.run_after(chance.random() * 0.005, cancel)
    return on_done


def _peer(connection: socket.socket, role: str, seed: int) -> None:
    """The other side of a handshake, which hangs up or falls silent after a random number of bytes."""
    chance = random.Random(seed)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    if role == "client":
        mine = certificates().server_context().wrap_bio(incoming, outgoing, server_side=True)
    else:
        mine = certificates().client_context().wrap_bio(incoming, outgoing, server_hostname=HOST)
    left = chance.choice((0, 1, 5, 100, 600, 1500, 1 << 20))
    with connection, suppress(OSError):
        while left > 0:
            try:
                mine.do_handshake()
                data = outgoing.read() or b"x"
            except ssl.SSLWantReadError:
                data = outgoing.read()
            connection.sendall(data[:left])
            left -= len(data)
            if left <= 0:
                break
            received = connection.recv(1 << 16)
            if not received:
                return
            incoming.write(received)
        if chance.random() < 0.3:
            reset(connection)


@pytest.mark.parametrize("role", ["client", "server"])
def test_five_hundred_abandoned_handshakes_leave_nothing(app: Application, role: str) -> None:
    """A thousand with both roles, on each engine. The fixtures find no byte, descriptor or warning left."""
    chance = random.Random(11)
    ended: list[Callback[Any]] = []
    with ThreadPoolExecutor(4) as threads, ExitStack() as stack:
        peers = []
        if role == "client":
            server = stack.enter_context(OracleServer(backlog=512))
        else:
            accepting = app.listen()
        for n in range(500):
            if role == "client":
                endpoint = app.connect(server.address)
                connection = server.accept()
            else:
                connection = connect(accepting.address)
                endpoint = accepting.next()
            peers.append(threads.submit(_peer, connection, role, n))
            ended.append(_abandon(app, endpoint, role, chance))
        for peer in peers:
            peer.result(TIMEOUT)
        if role == "server":
            accepting.close()
    for on_done in ended:
        if on_done.times:
            on_done.result()
    app.engine.close()
    assert app.quota.memory.used == 0


def test_threads_that_read_write_and_close_at_once_lose_no_callback(app: Application, ledger: Ledger) -> None:
    def until_closed(
        start: Callable[[Callback[Status]], bool], together: threading.Barrier, begun: threading.Semaphore
    ) -> None:
        def start_one(callback: Callback[Status]) -> bool:
            done = start(callback)
            begun.release()
            return done

        together.wait(TIMEOUT)
        status = repeat_until_closed(ledger, start_one)
        assert status.code in (StatusCode.CANCELLED, StatusCode.UNAVAILABLE, StatusCode.OUT_OF_RANGE)

    for n in range(10):
        with paired(app, "client" if n % 2 else "server") as (endpoint, oracle), ThreadPoolExecutor(4) as threads:
            together, begun = threading.Barrier(4), threading.Semaphore(0)
            oracle.sendall(pattern(100_000))
            read = partial(endpoint.read, buffer=SliceBuffer())
            write = partial(_write_some, endpoint)
            running = [
                threads.submit(until_closed, read, together, begun),
                threads.submit(until_closed, write, together, begun),
                threads.submit(lambda: (together.wait(TIMEOUT), [secured(endpoint).session for _ in range(20)])),  # noqa: B023
            ]
            together.wait(TIMEOUT)
            for _ in range(5 * n):  # the close comes after so many reads and writes have begun
                assert begun.acquire(timeout=TIMEOUT)
            endpoint.close()
            for thread in running:
                thread.result(TIMEOUT)
            with suppress(OSError):
                receive_all(oracle)


def _write_some(endpoint: Endpoint, callback: Callback[Status]) -> bool:
    return endpoint.write(callback, SliceBuffer([b"x" * 1000]))


def test_an_endpoint_that_is_collected_is_closed_with_a_warning(app: Application) -> None:
    with below(app, "server") as (endpoint, connection), ThreadPoolExecutor(1) as threads:
        shaking = threads.submit(oracle_client, connection)
        held = queue.SimpleQueue[Any]()
        start_accept(app, held.put, endpoint)
        secure = [held.get(timeout=TIMEOUT)]
        app.on_loop(lambda: None)  # the callback has returned
        with shaking.result(TIMEOUT) as oracle:
            with pytest.warns(ResourceWarning, match="was never closed"):
                secure.clear()
            with pytest.raises(ssl.SSLEOFError):  # an unclean end: nobody said that all was written
                receive_all(oracle)


class Sink:
    requested_events = frozenset(WriteEvent)

    def __init__(self) -> None:
        self.told: list[WriteEvent] = []

    def on_event(self, event: WriteEvent, time: float, metrics: Mapping[str, float]) -> None:
        self.told.append(event)


def test_a_sink_is_told_once_that_the_connection_was_closed_over_a_write_of_many_records() -> None:
    quota, sink, statuses, done = ResourceQuota("a sink"), Sink(), list[Status](), list[Any]()
    with (
        ThreadPoolExecutor(1) as threads,
        hand_turned() as (engine, host),
        connected(engine, host, quota) as (beneath, peer),
        closing(quota.create_memory_allocator("tls")) as allocator,
    ):
        shaking = threads.submit(oracle_client, peer)
        context = certificates().server_context()
        tls.accept(engine, done.append, beneath, context, memory_allocator=allocator, timeout=TIMEOUT)
        host.until(lambda: done)
        with shaking.result(TIMEOUT), closing(done.pop()) as endpoint:
            assert not endpoint.write(statuses.append, SliceBuffer([bytes(32 << 20)]), sink=sink)
            host.settle()
            assert (sink.told, statuses) == ([], [])
            endpoint.close()
            host.settle()
            assert sink.told == [WriteEvent.CLOSED]
            assert [status.code for status in statuses] == [StatusCode.CANCELLED]


def test_what_is_no_sink_is_refused_and_leaves_the_endpoint_as_it_was(app: Application) -> None:
    with paired(app, "server") as (endpoint, oracle):
        not_one: Any = object()
        for size in (3, 1 << 20):
            with pytest.raises(TypeError, match="sink must be a WriteEventSink, with on_event, not object"):
                endpoint.write(Callback[Status](app.ledger, times=0), SliceBuffer([bytes(size)]), sink=not_one)
        assert app.write(endpoint, b"as before").ok
        assert receive(oracle, 9) == b"as before"


@pytest.mark.parametrize("turn", [0.0, TIMEOUT])
def test_plaintext_that_was_put_aside_comes_before_what_came_after_it(
    monkeypatch: pytest.MonkeyPatch, turn: float
) -> None:
    """As after a renegotiation, or a `close_write` while the quota was full; in one turn, and in several."""
    monkeypatch.setattr(decrypting, "TURN", turn)
    client, server = TLSEnd(certificates().client_context(), HOST), TLSEnd(certificates().server_context())
    while not all([client.shakes(server), server.shakes(client)]):
        pass
    decrypter = decrypting.Decrypter(server.tls, server.incoming, MemoryQuota())
    decrypter.put_aside(SliceBuffer([b"first"]))
    for word in (b", second", b", third", b", fourth"):
        client.tls.write(word)
    parts = [memoryview(bytearray(client.outgoing.read()))]
    nobody_reads, buffer = SliceBuffer(), SliceBuffer()
    decrypter.take(parts, nobody_reads)
    decrypter.put_aside(nobody_reads)
    assert decrypter.is_tired == (not turn)
    while decrypter.is_tired:
        decrypter.rest()
        decrypter.take(parts, buffer)
        decrypter.give(buffer)
    decrypter.give(buffer)
    assert bytes(buffer) == b"first, second, third, fourth"


def test_a_block_that_brings_no_plaintext_goes_back_to_its_pool() -> None:
    """Or the end of each connection would cost the next one a new block."""
    client, server = TLSEnd(certificates().client_context(), HOST), TLSEnd(certificates().server_context())
    while not all([client.shakes(server), server.shakes(client)]):
        pass
    memory = MemoryQuota()
    decrypter = decrypting.Decrypter(server.tls, server.incoming, memory)
    with suppress(ssl.SSLWantReadError):
        client.tls.unwrap()
    ending = client.outgoing.read()
    block = memory.try_block(8192)
    assert block is not None
    block[: len(ending)] = ending
    parts = [memoryview(block)[: len(ending)]]
    del block
    assert decrypter.take(parts, SliceBuffer())
    assert decrypter.end is not None
    assert (len(memory.pools[8192]), memory.used) == (1, 0)


class TLSEnd:
    def __init__(self, context: ssl.SSLContext, host: str | None = None) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, host is None, host)

    def shakes(self, peer: TLSEnd) -> bool:
        """A step of the handshake; whether it is done."""
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        finally:
            peer.incoming.write(self.outgoing.read())
        return True


# Turned by hand, so that the test says what comes after what.


class Tapped(Endpoint):
    """Another endpoint, somebody looks at whose bytes; `on_write` is called within each write."""

    def __init__(self, inner: Endpoint) -> None:
        self.inner = inner
        self.seen: list[memoryview] = []
        self.on_write: Callable[[], object] = int

    def read(self, on_read: Callable[[Status], object], buffer: SliceBuffer, *, read_hint_bytes: int = 1) -> bool:
        def have_read(status: Status) -> None:
            self._look_at(buffer)
            on_read(status)

        done = self.inner.read(have_read, buffer, read_hint_bytes=read_hint_bytes)
        if done:
            self._look_at(buffer)
        return done

    def _look_at(self, buffer: SliceBuffer) -> None:
        """Each read comes in pieces, all of which are kept."""
        pieces = [each.view[n : n + 5000] for each in buffer.slices for n in range(0, len(each), 5000)]
        buffer.clear()
        for piece in pieces:
            buffer.append(piece)
        self.seen += pieces

    def write(self, on_writable: Callable[[Status], object], data: SliceBuffer, **more: Any) -> bool:
        self.on_write()
        return self.inner.write(on_writable, data, **more)

    def telemetry_info(self) -> None:
        return None

    def close(self) -> None:
        self.inner.close()

    @property
    def peer_address(self) -> ResolvedAddress:
        return self.inner.peer_address

    local_address = peer_address


class ByHand:
    """A server's endpoint on an engine that is turned by hand, and its client, in the same thread."""

    def __init__(
        self, engine: HostedEventEngine, host: HandTurnedHost, below: Endpoint, oracle: socket.socket
    ) -> None:
        self.engine, self.host, self.oracle = engine, host, oracle
        self.quota = ResourceQuota(memory=1 << 20)
        self.filler = self.quota.create_memory_allocator("whatever else there is")
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._client = (
            certificates().client_context().wrap_bio(self._incoming, self._outgoing, server_hostname=HOST)
        )
        context = certificates().server_context()
        context.num_tickets = 0
        made: list[Any] = []
        allocator = self.quota.create_memory_allocator("tls")
        tls.accept(engine, made.append, below, context, memory_allocator=allocator, timeout=TIMEOUT)
        while not made:
            with suppress(ssl.SSLWantReadError):
                self._client.do_handshake()
            oracle.sendall(self._outgoing.read())
            host.until(lambda: made or self._hears())
            if self._hears():
                self._incoming.write(oracle.recv(1 << 16))
        self.endpoint: Endpoint = made[0]

    def _hears(self) -> bool:
        return bool(select.select([self.oracle], [], [], 0)[0])

    def encrypted(self, data: bytes) -> bytes:
        assert self._client.write(data) == len(data)
        return self._outgoing.read()

    def end(self) -> bytes:
        with suppress(ssl.SSLWantReadError):
            self._client.unwrap()
        return self._outgoing.read()

    def heard(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                data += self._client.read(size - len(data))
            except ssl.SSLWantReadError:
                self.host.until(self._hears)
                self._incoming.write(self.oracle.recv(1 << 16))
        return data

    def read(self, buffer: SliceBuffer) -> list[Status]:
        """What becomes of a read, when it does."""
        outcome: list[Status] = []
        if self.endpoint.read(outcome.append, buffer):
            outcome.append(Status.OK)
        return outcome

    def fill_quota(self) -> None:
        self.filler.reserve(MemoryRequest(1 << 20))

    def empty_quota(self) -> None:
        self.filler.release(1 << 20)


@contextmanager
def by_hand(*, tapped: bool = False) -> Iterator[ByHand]:
    with hand_turned() as (engine, host), connected(engine, host) as (below, oracle):
        hand = ByHand(engine, host, Tapped(below) if tapped else below, oracle)
        yield hand
        hand.endpoint.close()
        host.settle()
        assert hand.quota.memory.used == 0


@contextmanager
def waiting_for_room() -> Iterator[tuple[ByHand, SliceBuffer, list[Status], bytes]]:
    """A read for whose plaintext, the rest of a record, there is no room; and what it is going to bring."""
    with by_hand() as hand:
        data = pattern(16_000)
        ciphertext = hand.encrypted(data)
        buffer = SliceBuffer()
        outcome = hand.read(buffer)
        hand.oracle.sendall(ciphertext[:9000])
        hand.host.settle()
        assert outcome == []
        hand.fill_quota()
        hand.oracle.sendall(ciphertext[9000:])
        hand.host.until(lambda: outcome)
        rest = data[len(buffer) :]
        assert rest
        outcome = hand.read(buffer)
        hand.host.settle()
        assert outcome == []
        yield hand, buffer, outcome, rest
        buffer.clear()


def test_plaintext_that_has_no_room_waits_in_the_quota_s_line() -> None:
    """Woken in vain it keeps its place; and what comes from below meanwhile is for the next read."""
    with waiting_for_room() as (hand, buffer, outcome, rest):
        hand.empty_quota()
        hand.fill_quota()  # by somebody who was faster
        hand.host.settle()
        assert outcome == []
        hand.empty_quota()
        hand.host.until(lambda: outcome)
        assert (outcome, bytes(buffer)) == ([Status.OK], rest)
        hand.oracle.sendall(hand.encrypted(b"the next"))
        hand.host.settle()
        second = hand.read(buffer)
        hand.host.until(lambda: second)
        assert (second, bytes(buffer)) == ([Status.OK], b"the next")


def test_plaintext_that_has_no_room_is_given_out_all_the_same_before_the_end() -> None:
    with waiting_for_room() as (hand, buffer, outcome, rest):
        reset(hand.oracle)
        hand.host.until(lambda: outcome)
        assert (outcome, bytes(buffer)) == ([Status.OK], rest)
        second = hand.read(buffer)
        hand.host.settle()
        assert [status.code for status in second] == [StatusCode.UNAVAILABLE]
        hand.empty_quota()


def test_room_that_comes_while_a_read_enlists_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    with waiting_for_room() as (hand, buffer, outcome, rest):
        hand.empty_quota()
        enlist = MemoryQuota.add_waiter

        def find_room_just_now(memory: MemoryQuota, waiter: Callable[[], bool]) -> None:
            enlist(memory, waiter)
            hand.empty_quota()

        hand.fill_quota()
        monkeypatch.setattr(MemoryQuota, "add_waiter", find_room_just_now)
        hand.host.until(lambda: outcome)
        assert (outcome, bytes(buffer)) == ([Status.OK], rest)


def test_ciphertext_that_somebody_else_sees_is_not_overwritten() -> None:
    """And what comes after the end of the stream is dropped."""
    data = pattern(40_000)
    with by_hand(tapped=True) as hand:
        tapped = hand.endpoint._below  # type: ignore[attr-defined]
        tapped.seen.clear()
        ciphertext = hand.encrypted(data) + hand.end() + bytes(20_000)
        hand.oracle.sendall(ciphertext)
        received, buffer = b"", SliceBuffer()
        while True:
            outcome = hand.read(buffer)
            hand.host.until(lambda: outcome)  # noqa: B023
            if not outcome[0].ok:
                break
            received += bytes(buffer)
        assert (received, outcome[0].code) == (data, StatusCode.OUT_OF_RANGE)
        seen = b"".join(tapped.seen)
        assert seen == ciphertext[: len(seen)]


def test_a_finalizer_that_reads_in_the_midst_of_a_write_is_served_after_it() -> None:
    """Garbage is collected at any point, in any thread that has something to do with the endpoint."""
    with by_hand(tapped=True) as hand:
        outcomes: list[list[Status]] = []
        buffer = SliceBuffer()
        hand.endpoint._below.on_write = lambda: outcomes or outcomes.append(hand.read(buffer))  # type: ignore[attr-defined]
        hand.oracle.sendall(hand.encrypted(b"data"))
        hand.host.settle()
        assert hand.endpoint.write(lambda _: None, SliceBuffer([b"written"]))
        assert hand.heard(7) == b"written"
        hand.host.until(lambda: outcomes[0])
        assert (outcomes, bytes(buffer)) == ([[Status.OK]], b"data")
        buffer.clear()


@pytest.mark.parametrize("operation", ["read", "write"])
def test_an_endpoint_whose_engine_was_closed_is_closed_too(operation: str) -> None:
    with by_hand() as hand:
        hand.engine.close()
        hand.host.settle()
        with pytest.raises(ClosedResourceError):
            getattr(hand.endpoint, operation)(pytest.fail, SliceBuffer([b"x"]))


def test_an_endpoint_whose_engine_was_closed_may_be_dropped() -> None:
    with by_hand() as hand, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        hand.engine.close()
        hand.host.settle()
        dropped = weakref.ref(hand.endpoint)
        hand.endpoint = hand.endpoint._below  # type: ignore[attr-defined]
        assert (dropped(), warned) == (None, [])


def test_a_handshake_that_cannot_begin_leaves_the_connection_to_its_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine is closed by another thread just when it has taken the timer."""

    def refuse(engine: EventEngine, closure: object) -> None:
        raise ClosedResourceError("the engine was closed")

    with hand_turned() as (engine, host), connected(engine, host) as (endpoint, oracle):
        allocator = ResourceQuota().create_memory_allocator("tls")
        begin = partial(tls.connect, server_hostname=HOST, memory_allocator=allocator, timeout=TIMEOUT)
        with monkeypatch.context() as patched:
            patched.setattr(HostedEventEngine, "run", refuse)
            with pytest.raises(ClosedResourceError):
                begin(engine, pytest.fail, endpoint, certificates().client_context())
        host.now += 2 * TIMEOUT
        host.fire()  # which would end the handshake
        host.settle()
        assert endpoint.write(lambda _: None, SliceBuffer([b"still there"]))
        assert receive(oracle, 11) == b"still there"


@pytest.mark.parametrize("what", ["broken-before", "closed-between-two-parts"])
def test_a_sink_is_told_that_the_connection_was_closed_also_where_nothing_of_its_write_is_below(
    monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    quota, statuses, done = ResourceQuota("a sink"), list[Status](), list[Any]()
    with (
        ThreadPoolExecutor(1) as threads,
        hand_turned() as (engine, host),
        connected(engine, host, quota) as (beneath, peer),
        closing(quota.create_memory_allocator("tls")) as allocator,
    ):
        shaking = threads.submit(oracle_client, peer)
        context = certificates().server_context()
        tls.accept(engine, done.append, beneath, context, memory_allocator=allocator, timeout=TIMEOUT)
        host.until(lambda: done)
        with shaking.result(TIMEOUT) as oracle, closing(done.pop()) as endpoint:

            def close_before_the_turn(self: Any, status: Status) -> None:
                """As from another thread just then."""
                assert status.ok
                self._sent = status
                self.close()

            sinks = [Sink()]
            if what == "broken-before":
                sinks += [Sink(), Sink()]
                oracle.close()
            else:
                monkeypatch.setattr(type(endpoint), "_on_sent", close_before_the_turn)
                threads.submit(receive_all, oracle)
            for told, sink in enumerate(sinks, 1):
                assert not endpoint.write(statuses.append, SliceBuffer([bytes(8 << 20)]), sink=sink)
                assert sink.told == []
                host.until(lambda told=told: len(statuses) == told)
            assert [sink.told for sink in sinks] == [[WriteEvent.CLOSED]] * len(sinks)
            assert not any(status.ok for status in statuses)
