"""The proxy with TLS on either side, on every engine that is installed: curl, openssl, Tornado, and plain sockets."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from certificates import HOST, certificates
from engines import running
from eventengine import EventEngine, ResolvedAddress
from eventengine.cli import main, proxy_tls
from eventengine.cli import relay as relay_module
from eventengine.cli.engines import ENGINES
from eventengine.cli.proxy_tls import ProxyTLS, client_context, server_context, server_name_for
from eventengine.target import Target as ParsedTarget
from proxying import MIB, TIMEOUT, Served, Target, echo, ended_stream, made_engine, receive, receive_all, reset
from tls_engine import TLSOracle

PAGE = hashlib.shake_256(b"page").digest(3 * MIB)
CLOSED = (52, 56)
"""curl's status for an answer that is empty: the end came, or, where what it asked was not read, a reset."""


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[EventEngine]:
    yield from made_engine(request.param)


def from_clients(name: str = "server") -> ssl.SSLContext:
    return server_context(certificates().path(name), None)


def to_target(name: str | None = HOST, *, authorities: Path | None = None) -> ProxyTLS:
    return ProxyTLS(None, client_context(authorities or certificates().authority), name)


def both_sides() -> ProxyTLS:
    return ProxyTLS(from_clients(), client_context(certificates().authority), HOST)


def secured(connection: socket.socket, *, server: bool = False) -> ssl.SSLSocket:
    """The connection over TLS, of which an end without close_notify is an `SSLEOFError`."""
    if server:
        return certificates().server_context().wrap_socket(connection, True, suppress_ragged_eofs=False)
    context = certificates().client_context()
    return context.wrap_socket(connection, server_hostname=HOST, suppress_ragged_eofs=False)


def oracle(connection: socket.socket, *, server: bool = False) -> socket.socket:
    """The connection over TLS, of which `shutdown` sends the close_notify."""
    if server:
        made: Any = TLSOracle(connection, certificates().server_context(), server_side=True)
    else:
        made = TLSOracle(connection, certificates().client_context(), server_hostname=HOST)
    made.do_handshake()
    return made  # type: ignore[no-any-return]


def echo_over_tls(connection: socket.socket) -> None:
    with oracle(connection, server=True) as secure:
        echo(secure)


def assert_nothing_is_held(engine: EventEngine, *served: Served) -> None:
    """Once the loop has done what it was doing when the last relay was told of: places are given back after that."""
    done = threading.Event()
    engine.run(lambda: engine.run(done.set))
    assert done.wait(TIMEOUT)
    for each in served:
        assert (each.up.memory.used, each.down.memory.used, each.up.connections.used) == (0, 0, 0)


# With curl.


@contextmanager
def site(context: ssl.SSLContext | None) -> Iterator[ResolvedAddress]:
    """A stock Tornado site: `GET` answers with PAGE, `PUT` with the digest of what came."""
    pytest.importorskip("tornado", reason="the extra tornado is not installed")
    from tornado.httpserver import HTTPServer
    from tornado.netutil import bind_sockets
    from tornado.web import Application, RequestHandler

    class Page(RequestHandler):
        def get(self) -> None:
            self.write(PAGE)

        def put(self) -> None:
            self.write(hashlib.sha256(self.request.body).hexdigest())

    async def serve() -> HTTPServer:
        server = HTTPServer(Application([("/.*", Page)]), ssl_options=context)
        server.add_sockets(sockets)
        return server

    async def stop(server: HTTPServer) -> None:
        server.stop()
        await server.close_all_connections()

    with running(asyncio.new_event_loop()) as loop:
        sockets = bind_sockets(0, "127.0.0.1")
        server = asyncio.run_coroutine_threadsafe(serve(), loop).result(TIMEOUT)
        try:
            yield ResolvedAddress.tcp("127.0.0.1", sockets[0].getsockname()[1])
        finally:
            asyncio.run_coroutine_threadsafe(stop(server), loop).result(TIMEOUT)


def curl(scheme: str, served: Served, *options: str) -> subprocess.CompletedProcess[bytes]:
    """What curl gets of the site, whose name leads to the proxy."""
    if shutil.which("curl") is None:
        pytest.skip("there is no curl command")
    port = served.address.port
    command = [
        *("curl", "--silent", "--show-error", "--noproxy", "*", "--max-time", str(int(TIMEOUT))),
        *("--resolve", f"{HOST}:{port}:127.0.0.1", "--cacert", str(certificates().authority)),
        *(*options, f"{scheme}://{HOST}:{port}/"),
    ]
    return subprocess.run(command, capture_output=True, timeout=TIMEOUT, check=False)


def assert_served(engine: EventEngine, scheme: str, served: Served) -> None:
    """curl downloads and uploads through the proxy, in one connection each."""
    got = curl(scheme, served)
    assert (got.returncode, got.stderr) == (0, b"")
    assert got.stdout == PAGE
    put = curl(scheme, served, "--upload-file", str(page_file()))
    assert (put.returncode, put.stderr) == (0, b"")
    assert put.stdout == hashlib.sha256(PAGE).hexdigest().encode()
    assert len(served.wait_for_ended(2)) == 2
    assert_nothing_is_held(engine, served)


def page_file() -> Path:
    path = certificates().folder / "page"
    if not path.exists():
        path.write_bytes(PAGE)
    return path


def test_curl_reaches_an_https_site_through_a_plain_proxy(engine: EventEngine) -> None:
    with site(certificates().server_context()) as target, Served(engine, target) as served:
        assert_served(engine, "https", served)


def test_curl_speaks_tls_with_the_proxy_and_the_site_is_plain(engine: EventEngine) -> None:
    with site(None) as target, Served(engine, target, tls=ProxyTLS(from_clients())) as served:
        assert_served(engine, "https", served)


def test_curl_is_plain_and_the_proxy_speaks_tls_with_the_site(engine: EventEngine) -> None:
    with site(certificates().server_context()) as target, Served(engine, target, tls=to_target()) as served:
        assert_served(engine, "http", served)


def test_tls_on_both_sides_is_two_connections(engine: EventEngine) -> None:
    with site(certificates().server_context()) as target, Served(engine, target, tls=both_sides()) as served:
        assert_served(engine, "https", served)


def test_curl_is_plain_and_the_target_is_openssl(engine: EventEngine) -> None:
    port = free_port()
    key = str(certificates().path("server"))
    command = ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-cert", key, "-key", key, "-www"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        assert process.stdout is not None
        assert any(line.startswith(b"ACCEPT") for line in process.stdout)
        with Served(engine, f"localhost:{port}", tls=to_target("localhost")) as served:
            got = curl("http", served)
            assert got.returncode == 0
            assert b"TLSv1.3" in got.stdout
            served.wait_for_ended(1)
    finally:
        process.kill()
        process.communicate()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def test_curl_refuses_a_proxy_of_another_authority_and_the_relay_says_why(engine: EventEngine) -> None:
    with (
        Target(echo) as target,
        Served(engine, target.address, tls=ProxyTLS(from_clients("of a stranger"))) as served,
    ):
        assert curl("https", served).returncode == 60
        outcome = served.wait_for_ended(1)[0].outcome
        assert re.fullmatch(
            r"TLS with the client failed: UNAUTHENTICATED: .* does not trust the authority.*", outcome
        )
        assert target.accepted == 0


# Who the target is.


@pytest.mark.parametrize(
    ("certificate", "name", "said"),
    [
        ("server", "another.example", "UNAUTHENTICATED: .* is for another host than 'another.example'"),
        ("server", "127.0.0.2", "UNAUTHENTICATED: .* is for another host than '127.0.0.2'"),
        ("self-signed", HOST, "UNAUTHENTICATED: .* is self-signed"),
        ("expired", HOST, "UNAUTHENTICATED: .* has expired"),
        ("of a stranger", HOST, "UNAUTHENTICATED: .* was issued by an authority that is not trusted here"),
    ],
    ids=lambda part: str(part),
)
def test_a_target_that_is_not_who_it_must_be_is_refused_and_the_relay_says_why(
    engine: EventEngine, certificate: str, name: str, said: str
) -> None:
    with (
        site(certificates().server_context(certificate)) as target,
        Served(engine, target, tls=to_target(name)) as served,
    ):
        assert curl("http", served).returncode in CLOSED
        assert re.search(f"^TLS with the target failed: {said}", served.wait_for_ended(1)[0].outcome or "")
        assert_nothing_is_held(engine, served)
        assert served.proxy.unconnected == 1


def test_a_target_that_does_not_speak_tls_is_told_by_how_it_begins(engine: EventEngine) -> None:
    def greet(connection: socket.socket) -> None:
        connection.sendall(b"220 mail.example ESMTP")
        ended_stream(connection)

    with Target(greet) as target, Served(engine, target.address, tls=to_target()) as served:
        with served.connect() as client:
            assert ended_stream(client)
        assert re.fullmatch(
            r"TLS with the target failed: UNAVAILABLE: .* does not speak TLS, it began with b'220 mail.+'",
            served.wait_for_ended(1)[0].outcome or "",
        )


def test_the_authorities_of_the_system_are_trusted_unless_others_are_given(
    engine: EventEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_DIR", str(certificates().folder / "none"))
    for file, works in ((certificates().authority, True), (certificates().folder / "stranger.crt", False)):
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        tls = ProxyTLS(None, client_context(None), HOST)
        with (
            Target(echo_over_tls) as target,
            Served(engine, target.address, tls=tls) as served,
        ):
            with served.connect() as client:
                if works:
                    client.sendall(b"x")
                    assert receive(client, 1) == b"x"
                else:
                    assert ended_stream(client)
            served.wait_for_ended(1)


def test_the_host_of_a_target_is_whom_its_certificate_must_be_for() -> None:
    def name(target: str, given: str | None = None) -> str | None:
        return server_name_for(ParsedTarget.parse(target), given)

    assert name("localhost:443") == name("dns://192.0.2.1/localhost.:443") == "localhost"
    assert name("localhost:443", HOST) == name("unix:/path", HOST + ".") == HOST
    assert name("127.0.0.1:443") is name("ipv6:[::1]:443,[::2]:443") is None
    for bad in ("", ".", "a b", "a:443", "[::1]", "a..b", "x" * 64 + ".org", "\0"):
        with pytest.raises(ValueError, match=r"is no host that a certificate could be for|: no host"):
            name("localhost:443", bad)
    for target in ("unix:/path", "vsock:2:443"):
        with pytest.raises(ValueError, match=f"{target} has no host .*; give --to-server-name"):
            name(target)


@pytest.mark.parametrize("target", ["127.0.0.1", "localhost"])
def test_a_target_without_a_server_name_is_verified_as_the_address_or_name_that_it_is(
    engine: EventEngine, target: str
) -> None:
    with Target(echo_over_tls) as there:
        to = f"{target}:{there.address.port}"
        tls = to_target(server_name_for(ParsedTarget.parse(to), None))
        with Served(engine, to, tls=tls) as served, served.connect() as client:
            client.sendall(b"who")
            assert receive(client, 3) == b"who"


# Handshakes that come to nothing.


def test_a_client_that_never_shakes_hands_is_closed_and_holds_nothing(
    engine: EventEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy_tls, "HANDSHAKE_TIMEOUT", 0.05)
    tls = ProxyTLS(from_clients())
    with Target(echo) as target, Served(engine, target.address, tls=tls, connections=1) as served:
        with served.connect() as silent, served.connect() as next_one:
            assert ended_stream(silent)
            assert ended_stream(next_one)
        assert {relay.outcome for relay in served.wait_for_ended(2)} == {
            "TLS with the client failed: DEADLINE_EXCEEDED: the TLS handshake: the timeout has passed"
        }
        assert_nothing_is_held(engine, served)
        assert target.accepted == 0


def test_a_target_that_never_shakes_hands_is_given_up(
    engine: EventEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy_tls, "HANDSHAKE_TIMEOUT", 0.05)
    with Target(receive_all) as target, Served(engine, target.address, tls=to_target()) as served:
        with served.connect() as client:
            assert ended_stream(client)
        outcome = served.wait_for_ended(1)[0].outcome
        assert (
            outcome == "TLS with the target failed: DEADLINE_EXCEEDED: the TLS handshake: the timeout has passed"
        )


def test_a_client_that_does_not_speak_tls_costs_the_target_nothing(engine: EventEngine) -> None:
    with Target(echo) as target, Served(engine, target.address, tls=ProxyTLS(from_clients())) as served:
        assert curl("http", served).returncode != 0
        outcome = served.wait_for_ended(1)[0].outcome
        assert outcome is not None
        assert "TLS with the client failed: UNAVAILABLE: the TLS handshake: the peer does not speak TLS" in outcome
        assert target.accepted == 0


class Begins(ProxyTLS):
    """Says when it begins to shake hands with a client."""

    begun: threading.Event

    def accept(self, *arguments: Any) -> Any:
        handshake = super().accept(*arguments)
        self.begun.set()
        return handshake


def test_closing_cancels_handshakes_that_are_under_way(
    engine: EventEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()
    monkeypatch.setattr(Begins, "begun", threading.Event(), raising=False)

    def wait(connection: socket.socket) -> None:
        connection.recv(1)
        begun.set()
        ended_stream(connection)

    with Target(wait) as target:
        with Served(engine, target.address, tls=to_target()) as served, served.connect() as client:
            assert begun.wait(TIMEOUT)
            served.proxy.close()
            assert ended_stream(client)
        with Served(engine, target.address, tls=Begins(from_clients())) as waiting, waiting.connect() as silent:
            silent.sendall(b"\x16\x03\x01")
            assert Begins.begun.wait(TIMEOUT)
            waiting.proxy.close()
            assert ended_stream(silent)
        assert [relay.outcome for relay in served.ended + waiting.ended] == ["the proxy was stopped"] * 2
        assert_nothing_is_held(engine, served, waiting)


# Streams and their ends.


def test_megabytes_cross_in_both_directions_at_once_unchanged(engine: EventEngine) -> None:
    there, back = os.urandom(6 * MIB), os.urandom(6 * MIB)

    def swap(connection: socket.socket, data: bytes) -> str:
        with ThreadPoolExecutor(1) as thread:
            sent = thread.submit(connection.sendall, data)
            received = receive(connection, len(data))
            sent.result()
        return hashlib.sha256(received).hexdigest()

    def swap_back(connection: socket.socket) -> str:
        with oracle(connection, server=True) as secure:
            return swap(secure, back)

    with Target(swap_back) as target, Served(engine, target.address, memory=MIB, tls=both_sides()) as served:
        with oracle(served.connect()) as client:
            assert swap(client, there) == hashlib.sha256(back).hexdigest()
        relay = served.wait_for_ended(1)[0]
        assert target.results[0].result(TIMEOUT) == hashlib.sha256(there).hexdigest()
        assert relay.outcome == "both sides ended"
        assert (relay.bytes_up, relay.bytes_down) == (len(there), len(back))
        assert max(served.up.memory.peak, served.down.memory.peak) <= MIB


@pytest.mark.parametrize("sides", ["client", "target", "both"])
def test_a_close_notify_passes_the_end_of_one_stream_on_and_the_other_goes_on(
    engine: EventEngine, sides: str
) -> None:
    question = os.urandom(2 * MIB)
    tls = {"client": ProxyTLS(from_clients()), "target": to_target(), "both": both_sides()}[sides]

    def answer(connection: socket.socket) -> None:
        with connection if sides == "client" else oracle(connection, server=True) as end:
            end.sendall(hashlib.sha256(receive_all(end)).digest() * MIB)

    with Target(answer) as target, Served(engine, target.address, tls=tls) as served:
        with served.connect() if sides == "target" else oracle(served.connect()) as client:
            client.sendall(question)
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client) == hashlib.sha256(question).digest() * MIB
        assert served.wait_for_ended(1)[0].outcome == "both sides ended"


def test_an_end_without_close_notify_is_no_end_but_what_came_before_is_delivered(engine: EventEngine) -> None:
    answer = os.urandom(3 * MIB)
    hung_up = threading.Event()

    def answer_and_hang_up(connection: socket.socket) -> None:
        secure = secured(connection, server=True)
        secure.sendall(answer)
        secure.close()  # as Tornado's streams, no close_notify
        hung_up.set()

    with Target(answer_and_hang_up) as target, Served(engine, target.address, tls=to_target()) as served:
        with served.connect() as client:
            assert hung_up.wait(TIMEOUT)  # all is on its way, in the proxy and in kernels
            assert receive(client, len(answer)) == answer
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        outcome = served.wait_for_ended(1)[0].outcome
        assert outcome is not None
        assert outcome.startswith(
            "reading down failed: UNAVAILABLE: the connection ended without the end of the TLS"
        )


def test_who_takes_nothing_of_a_stream_that_was_cut_off_is_reset_in_the_end(
    engine: EventEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "DELIVERY_TIMEOUT", 0.1)

    def answer_and_hang_up(connection: socket.socket) -> None:
        secure = secured(connection, server=True)
        secure.sendall(bytes(2 * MIB))
        secure.close()

    with Target(answer_and_hang_up) as target, Served(engine, target.address, tls=to_target()) as served:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        client.connect(served.address.sockaddr)
        with client:
            relay = served.wait_for_ended(1)[0]
        assert "without the end of the TLS stream" in (relay.outcome or "")


def test_a_client_over_tls_takes_no_half_for_the_whole(engine: EventEngine) -> None:
    def greet_and_reset(connection: socket.socket) -> None:
        connection.sendall(b"half of it")
        connection.recv(1)
        reset(connection)

    with Target(greet_and_reset) as target, Served(engine, target.address, tls=ProxyTLS(from_clients())) as served:
        with secured(served.connect()) as client:
            assert receive(client, 10) == b"half of it"
            client.sendall(b"x")
            with pytest.raises((ConnectionResetError, ssl.SSLEOFError)):
                client.recv(1)
        assert "reading down failed" in (served.wait_for_ended(1)[0].outcome or "")


def test_a_target_over_tls_takes_no_half_for_the_whole(engine: EventEngine) -> None:
    def listen(connection: socket.socket) -> bytes:
        with secured(connection, server=True) as secure:
            secure.sendall(b"ready")
            return receive_all(secure)

    with Target(listen) as target, Served(engine, target.address, tls=to_target()) as served:
        client = served.connect()
        assert receive(client, 5) == b"ready"
        client.sendall(b"half of it")
        reset(client)
        served.wait_for_ended(1)
        with pytest.raises((ConnectionResetError, ssl.SSLEOFError)):
            target.results[0].result(TIMEOUT)


def test_nothing_is_left_of_connections_over_tls(engine: EventEngine) -> None:
    def greet(connection: socket.socket) -> None:
        with oracle(connection, server=True) as secure:
            secure.sendall(receive(secure, 1))

    with Target(greet) as target, Served(engine, target.address, tls=both_sides()) as served:
        before = None
        for each in range(30):
            with served.connect() as client:
                if each % 3 == 1:
                    client.sendall(b"GET / HTTP/1.1\r\n\r\n")
                    assert ended_stream(client)
                elif each % 3 == 2:
                    secured(client).close()
                else:
                    with oracle(client) as secure:
                        secure.sendall(b"x")
                        assert receive(secure, 1) == b"x"
            served.wait_for_ended(each + 1)
            if each == 5:
                before = descriptors(target)
        assert descriptors(target) == before
        assert_nothing_is_held(engine, served)


def descriptors(target: Target) -> int:
    for result in target.results:
        result.exception(TIMEOUT)
    return len(os.listdir("/dev/fd"))


# The command.

PLAIN = ("proxy", "--listen", "127.0.0.1:0", "--to", "127.0.0.1:1")


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that tells why a command is wrong; nothing listens."""
    with pytest.raises(SystemExit) as ended:
        main([*PLAIN, *map(str, arguments)])
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert re.fullmatch(r"eventengine proxy: error: .+\n", err)
    return err


def test_wrong_options_are_told_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    server, client, folder = certificates().path("server"), certificates().path("client"), certificates().folder
    missing, empty, locked = tmp_path / "missing.pem", tmp_path / "empty.pem", tmp_path / "locked.pem"
    empty.write_text("")
    lock = ["openssl", "pkey", "-in", server, "-aes256", "-passout", "pass:secret", "-out", locked]
    subprocess.run(lock, check=True, capture_output=True)
    assert f"{missing} cannot be read: No such file" in refusal(capsys, "--tls-cert", missing)
    assert f"{missing} cannot be read: No such file" in refusal(capsys, "--tls-cert", server, "--tls-key", missing)
    assert f"{tmp_path} cannot be read: Is a directory" in refusal(capsys, "--tls-cert", tmp_path)
    assert f"{empty} has no certificate (PEM)" in refusal(capsys, "--tls-cert", empty)
    without_key = folder / "server.crt"
    assert "has no private key (PEM); give its file with --tls-key" in refusal(capsys, "--tls-cert", without_key)
    assert f"{empty} has no private key (PEM)\n" in refusal(capsys, "--tls-cert", server, "--tls-key", empty)
    assert f"{client} is not that of the certificate in {server}" in refusal(
        capsys, "--tls-cert", server, "--tls-key", client
    )
    assert f"{locked} is encrypted" in refusal(capsys, "--tls-cert", server, "--tls-key", locked)
    assert "there is no --tls-cert" in refusal(capsys, "--tls-key", server)
    for option in ("--to-ca", "--to-server-name"):
        assert f"argument {option}: the target is spoken to without TLS" in refusal(capsys, option, server)
    assert f"{missing} cannot be read: No such file" in refusal(capsys, "--to-tls", "--to-ca", missing)
    assert f"{empty} has no certificate (PEM)" in refusal(capsys, "--to-tls", "--to-ca", empty)
    assert "'a b' is no host" in refusal(capsys, "--to-tls", "--to-server-name", "a b")
    assert "unix:/path has no host" in refusal(capsys, "--to-tls", "--to", "unix:/path")


def test_the_command_speaks_tls_on_both_sides_and_logs_a_line_for_each_connection() -> None:
    key, authority = certificates().path("server"), certificates().authority
    with Target(echo_over_tls) as target:
        options = (
            "--tls-cert",
            certificates().folder / "server.crt",
            "--tls-key",
            key,
            "--to-tls",
            "--to-ca",
            authority,
        )
        command = [
            sys.executable,
            "-m",
            "eventengine",
            *PLAIN[:3],
            "--to",
            str(target.address),
            *map(str, options),
        ]
        process = subprocess.Popen([*command, "--log"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            heard = re.fullmatch(
                rf"listening on 127\.0\.0\.1:(\d+) \(TLS\), to {target.address} \(TLS\), on the default engine\n",
                process.stdout.readline(),
            )
            assert heard
            where = ("127.0.0.1", int(heard[1]))
            with oracle(socket.create_connection(where, TIMEOUT)) as client:
                client.sendall(b"hello")
                assert receive(client, 5) == b"hello"
            assert process.stderr is not None
            assert process.stderr.readline().endswith(" s: both sides ended\n")
            with socket.create_connection(where, TIMEOUT) as plain:
                plain.sendall(b"hello, is anybody there?")
                assert ended_stream(plain)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=TIMEOUT)
        finally:
            process.kill()
            process.communicate()
    assert re.fullmatch(
        r".* -> .*: 0 bytes up, 0 down, .* s: TLS with the client failed: .* does not speak TLS.*\n", err
    )


def test_without_the_log_the_first_failure_of_each_kind_is_told() -> None:
    with Target(lambda c: oracle(c, server=True)) as target:
        options = ("--tls-cert", certificates().path("server"), "--to-tls")
        command = [
            sys.executable,
            "-m",
            "eventengine",
            *PLAIN[:3],
            "--to",
            str(target.address),
            *map(str, options),
        ]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            heard = re.search(r"listening on 127\.0\.0\.1:(\d+)", process.stdout.readline())
            assert heard
            where = ("127.0.0.1", int(heard[1]))
            for _ in range(2):
                with oracle(socket.create_connection(where, TIMEOUT)) as client:
                    assert ended_stream(client)
                with socket.create_connection(where, TIMEOUT) as plain:
                    plain.sendall(b"hello, is anybody there?")
                    assert ended_stream(plain)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=TIMEOUT)
        finally:
            process.kill()
            process.communicate()
    assert out.startswith("4 connections, 4 of them without the target;")
    first, second = err.splitlines()
    assert re.fullmatch(r"TLS with the target failed: .+ authority .+ \(further ones are told with --log\)", first)
    assert re.fullmatch(r"TLS with the client failed: .+ speak TLS.+ \(further ones are told with --log\)", second)
