"""SSH channels as endpoints: a server of twisted.conch's, whose peers are OpenSSH's `ssh` and conch's client."""

from __future__ import annotations

import shutil
import subprocess
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from eventengine import Endpoint, HalfCloseable, ResourceQuota, SliceBuffer, Status, StatusCode
from eventengine.testing.application import Application, Callback
from eventengine.testing.conformance.fixtures import *
from eventengine.testing.oracle import TIMEOUT, pattern

pytest.importorskip("twisted.internet", reason="needs the extra twisted")
pytest.importorskip("bcrypt", reason="twisted.conch needs it")
pytest.importorskip("cryptography", reason="twisted.conch needs it")

from twisted.conch.avatar import ConchUser
from twisted.conch.interfaces import ISession
from twisted.cred.portal import Portal
from twisted.internet.endpoints import connectProtocol
from twisted.python.components import registerAdapter
from twisted.python.filepath import FilePath
from zope.interface import implementer

from borrowed_stages import STAGES, TwistedStage
from eventengine.bridges.twisted import EndpointProtocol

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of spwd, and of ciphers, which are UserWarnings
    from twisted.conch.checkers import InMemorySSHKeyDB, SSHPublicKeyChecker
    from twisted.conch.client.knownhosts import KnownHostsFile
    from twisted.conch.endpoints import SSHCommandClientEndpoint
    from twisted.conch.ssh.factory import SSHFactory
    from twisted.conch.ssh.keys import Key
    from twisted.conch.ssh.session import SSHSession, wrapProtocol

WINDOW = 131072
MIB = 1 << 20


@pytest.fixture
def stage(quota: ResourceQuota) -> Iterator[TwistedStage]:
    with STAGES["twisted"][1]() as stage:
        yield stage


@pytest.fixture
def engine(stage: TwistedStage) -> Any:
    return stage.engine


class User(ConchUser):
    def __init__(self, server: Server) -> None:
        super().__init__()
        self.server = server
        self.channelLookup[b"session"] = SSHSession


@implementer(ISession)
class Session:
    """What comes on a command's channel is an endpoint."""

    def __init__(self, user: User) -> None:
        self.server = user.server

    def execCommand(self, process: Any, command: bytes) -> None:  # noqa: N802
        protocol = self.server.protocol()
        protocol.makeConnection(process)
        self.ends = wrapProtocol(protocol)
        process.makeConnection(self.ends)

    def eofReceived(self) -> None:  # noqa: N802
        pass

    def closed(self) -> None:
        self.ends.loseConnection()  # which Twisted itself calls since 22.4


registerAdapter(Session, User, ISession)


class Server:
    """Listens with a key of its own, for whoever has the other; `next` gives each channel."""

    def __init__(self, stage: TwistedStage, app: Application, folder: Path) -> None:
        self.stage = stage
        self.app = app
        self.key = folder / "key"
        for name in ("host", "key"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(command, check=True, timeout=TIMEOUT)
        self.accepted = Callback[Endpoint](app.ledger)
        users = InMemorySSHKeyDB({b"user": [Key.fromFile(str(folder / "key.pub"))]})
        host = Key.fromFile(str(folder / "host"))

        factory = SSHFactory()
        factory.portal = Portal(self, [SSHPublicKeyChecker(users)])
        factory.publicKeys = {b"ssh-ed25519": host.public()}
        factory.privateKeys = {b"ssh-ed25519": host}
        self.port = stage.call(lambda: stage.reactor.listenTCP(0, factory, interface="127.0.0.1"))
        self.number: int = self.port.getHost().port

    def requestAvatar(self, name: bytes, mind: object, *interfaces: Any) -> Any:  # noqa: N802
        return interfaces[0], User(self), lambda: None

    def protocol(self) -> EndpointProtocol:
        allocator = self.app.quota.create_memory_allocator("channel")
        return EndpointProtocol(self.stage.engine, allocator, self.accepted)

    def close(self) -> None:
        self.stage.call(self.port.stopListening)


@pytest.fixture
def server(stage: TwistedStage, app: Application, unix_folder: Path) -> Iterator[Server]:
    with closing(Server(stage, app, unix_folder)) as server:
        yield server


@pytest.fixture
def ssh(server: Server) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Runs OpenSSH's client."""
    if shutil.which("ssh") is None:
        pytest.skip("OpenSSH's client is not installed")
    begun: list[subprocess.Popen[bytes]] = []

    def begin() -> subprocess.Popen[bytes]:
        options = [
            "BatchMode=yes",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "IdentitiesOnly=yes",
        ]
        command = ["ssh", "-F", "none", "-q", "-T", "-i", str(server.key), "-p", str(server.number)]
        command += [part for option in options for part in ("-o", option)]
        pipe = subprocess.PIPE
        process = subprocess.Popen([*command, "user@127.0.0.1", "run"], stdin=pipe, stdout=pipe, bufsize=0)
        begun.append(process)
        return process

    yield begin
    for process in begun:
        process.kill()
        process.wait(TIMEOUT)
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


@contextmanager
def meanwhile(function: Callable[[], bytes]) -> Iterator[list[Future[bytes]]]:
    with ThreadPoolExecutor(1) as pool:
        yield [pool.submit(function)]


def communicate(process: subprocess.Popen[bytes], data: bytes) -> bytes:
    return process.communicate(data, timeout=TIMEOUT)[0]


def wait_until_it_stands_still(app: Application) -> None:
    """Nothing more has come in a number of turns."""
    before, same = -1, 0
    while same < 200:
        app.on_loop(lambda: None)
        now = app.quota.memory.used
        same = same + 1 if now == before else 0
        before = now


def test_what_ssh_sends_comes_whole_and_then_the_end_and_what_is_written_arrives(
    app: Application, server: Server, ssh: Callable[[], subprocess.Popen[bytes]]
) -> None:
    process = ssh()
    endpoint = server.accepted.result()
    data = pattern(2 * MIB)
    with meanwhile(lambda: communicate(process, data)) as [came]:
        received, status = app.receive_all(endpoint)
        assert received == data
        assert status.code is StatusCode.OUT_OF_RANGE
        assert app.write(endpoint, data[::-1]).ok
        endpoint.close()
        assert came.result(TIMEOUT) == data[::-1]
    assert endpoint.peer_address.host == "127.0.0.1"


def test_a_peer_that_nobody_reads_is_held_back(
    app: Application, server: Server, ssh: Callable[[], subprocess.Popen[bytes]]
) -> None:
    process = ssh()
    endpoint = server.accepted.result()
    data = pattern(16 * MIB)
    with meanwhile(lambda: communicate(process, data)) as [came]:
        buffer = SliceBuffer()
        assert app.read(endpoint, buffer).ok
        first = bytes(buffer)
        buffer.clear()
        wait_until_it_stands_still(app)
        assert app.quota.memory.used <= 2 * WINDOW
        rest, _ = app.receive_all(endpoint)
        assert first + rest == data
        endpoint.close()
        came.result(TIMEOUT)


def test_a_write_is_done_when_the_peer_had_room_for_it(
    app: Application, server: Server, ssh: Callable[[], subprocess.Popen[bytes]]
) -> None:
    process = ssh()
    endpoint = server.accepted.result()
    data = pattern(32 * MIB)
    on_writable = app.start_write(endpoint, data)
    for _ in range(1000):  # turns, in each of which a transport that is not full takes a piece
        app.on_loop(lambda: None)
    assert on_writable.count == 0
    assert process.stdout is not None
    received = bytearray()
    while len(received) < len(data):
        received += process.stdout.read(1 << 16)
    assert received == data
    assert on_writable.result().ok
    endpoint.close()


def test_a_peer_that_is_killed_ends_a_read_and_a_write(
    app: Application, server: Server, ssh: Callable[[], subprocess.Popen[bytes]]
) -> None:
    process = ssh()
    endpoint = server.accepted.result()
    on_read = app.start_read(endpoint, SliceBuffer())
    on_writable = app.start_write(endpoint, pattern(32 * MIB))
    process.kill()
    assert on_writable.result().code is StatusCode.UNAVAILABLE
    assert not on_read.result().ok
    endpoint.close()


def test_a_command_s_channel_is_an_endpoint_at_both_ends(
    app: Application, stage: TwistedStage, server: Server
) -> None:
    connected = Callback[Endpoint | Status](app.ledger)
    allocator = app.quota.create_memory_allocator("client")

    known = server.key.with_name("known")
    known.write_text(f"127.0.0.1 {server.key.with_name('host.pub').read_text()}")

    def begin() -> None:
        protocol = EndpointProtocol(stage.engine, allocator, connected)
        key = Key.fromFile(str(server.key))
        known_hosts = KnownHostsFile.fromPath(FilePath(str(known)))
        where = SSHCommandClientEndpoint.newConnection(
            stage.reactor, b"run", b"user", "127.0.0.1", server.number, keys=[key], knownHosts=known_hosts
        )
        connectProtocol(where, protocol)

    stage.call(begin)
    client, accepted = connected.result(), server.accepted.result()
    assert not isinstance(client, Status)
    assert client.query_extension(HalfCloseable) is None
    data = pattern(4 * MIB)
    for one, other in ((client, accepted), (accepted, client)):
        on_writable = app.start_write(one, data)
        assert app.receive(other, len(data)) == data
        assert on_writable.result().ok
    client.close()
    assert app.read(accepted, SliceBuffer()).code is StatusCode.OUT_OF_RANGE
    accepted.close()
