"""`python -m eventengine` as a user runs it, in a process of its own."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from eventengine.cli import demo
from eventengine.cli.demo import ProxyProcess
from eventengine.cli.engines import ENGINES, load_engine
from eventengine.testing.scenes import port_without_listener
from name_servers import twisted_server
from proxying import ended_stream

TIMEOUT = 60.0
MIB = 1 << 20
PROXY = ("proxy", "--listen", "127.0.0.1:0", "--to", "127.0.0.1:1")

WITHOUT_DNS_SERVERS = """
from eventengine import Status, StatusCode, StatusError
from eventengine.core.hosted import HostedEventEngine

def get_dns_resolver(self, *, dns_server=None):
    raise StatusError(Status(StatusCode.UNIMPLEMENTED, f"cannot ask {dns_server}"))

HostedEventEngine.get_dns_resolver = get_dns_resolver
"""


def run(*arguments: str, code: str = "") -> subprocess.CompletedProcess[str]:
    """The outcome of `python -m eventengine` with these arguments, after `code`."""
    start = ("-c", f"{code}\nimport runpy; runpy.run_module('eventengine', run_name='__main__', alter_sys=True)")
    command = [sys.executable, *(start if code else ("-m", "eventengine")), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT, stdin=subprocess.DEVNULL, check=False
    )


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """The name of an engine that is installed."""
    name: str = request.param
    try:
        load_engine(name)
    except ImportError as error:
        pytest.skip(str(error))
    return name


def test_the_version_is_that_which_is_installed() -> None:
    outcome = run("--version")
    assert (outcome.returncode, outcome.stderr) == (0, "")
    assert outcome.stdout == f"eventengine {importlib.metadata.version('eventengine')}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "proxy|demo"),
        (("porxy",), "'porxy'"),
        (("proxy",), "--listen, --to"),
        (
            (*PROXY, "--to", "nonsense"),
            "argument --to: 'nonsense' has no port, and there is no default one; a target",
        ),
        (
            (*PROXY, "--to", "10.0.0.300:80"),
            "argument --to: '10.0.0.300:80': '10.0.0.300' is neither an IP address",
        ),
        (
            (*PROXY, "--dns-server", "localhost"),
            "argument --dns-server: 'localhost' is not the address of a DNS server",
        ),
        ((*PROXY, "--to", "localhost:0"), "a number from 1 to 65535"),
        ((*PROXY, "--to", "ipv4:127.0.0.1:80,127.0.0.2:0"), "a number from 1 to 65535"),
        ((*PROXY, "--to", "localhost:65536"), "65536 is out of range"),
        ((*PROXY, "--to", "127.0.0.1:65536"), "65536 is out of range"),
        ((*PROXY, "--to", "localhost"), "'localhost' has no port"),
        ((*PROXY, "--to", "http://localhost:80"), "'http' is not a scheme of targets"),
        ((*PROXY, "--to", "dns://192.0.2.1"), "'dns://192.0.2.1': dns:// is followed by a server"),
        ((*PROXY, "--to", "ipv4:localhost:80"), "'localhost:80' is not an IPv4 address"),
        ((*PROXY, "--listen", "localhost:80"), "give the IP address to listen on"),
        ((*PROXY, "--listen", "[::1:80"), "'[::1:80' is not an address"),
        ((*PROXY, "--listen", "unix:"), "has 1 to"),
        ((*PROXY, "--memory", "12XiB"), "argument --memory: '12XiB' is not a size; write"),
        ((*PROXY, "--memory", "1KiB"), "give 64KiB or more"),
        ((*PROXY, "--engine", "trio"), "'trio'"),
        ((*PROXY, "--idle-timeout", "soon"), "'soon' is not a time"),
        ((*PROXY, "--idle-timeout", "0"), "'0' is not a time"),
        ((*PROXY, "--idle-timeout", "nan"), "'nan' is not a time"),
        ((*PROXY, "--idle-timeout=-1"), "'-1' is not a time"),
        ((*PROXY, "--max-connections", "0"), "'0' is not a number of connections"),
        ((*PROXY, "--max-connections", "many"), "'many' is not a number of connections"),
        ((*PROXY, "and", "more"), "and more"),
        ((*PROXY, "--no-such\noption"), "--no-such option"),
        (("demo", "fast"), "fast"),
    ],
    ids=lambda part: " ".join(part).removeprefix(" ".join(PROXY)).strip() if isinstance(part, tuple) else "",
)
def test_a_wrong_command_is_told_in_one_line_with_status_2(arguments: tuple[str, ...], said: str) -> None:
    outcome = run(*arguments)
    assert (outcome.returncode, outcome.stdout) == (2, "")
    assert re.fullmatch(r"eventengine( proxy| demo)?: error: .+\n", outcome.stderr)
    assert said in outcome.stderr


def test_help_names_both_commands_and_every_option() -> None:
    outcome = run("--help")
    assert outcome.returncode == 0
    assert all(command in outcome.stdout for command in ("proxy", "demo"))
    options = re.findall(r"--[a-z-]+", run("proxy", "--help").stdout)
    assert {"--listen", "--to", "--engine", "--memory", "--idle-timeout", "--max-connections", "--log"} <= {
        *options
    }


def test_a_port_that_is_taken_is_told_in_one_line_with_status_1(engine: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        outcome = run("proxy", "--listen", address, "--to", "127.0.0.1:1", "--engine", engine)
    assert (outcome.returncode, outcome.stdout) == (1, "")
    assert outcome.stderr == f"eventengine proxy: error: {address} is taken\n"


def test_an_idle_connection_is_closed_and_gives_its_place_to_the_next() -> None:
    with socket.create_server(("127.0.0.1", 0)) as target:
        to = f"127.0.0.1:{target.getsockname()[1]}"
        proxy = ProxyProcess("--to", to, "--engine", "default", "--idle-timeout", "0.05", "--max-connections", "1")
        try:
            for _ in range(2):
                with socket.create_connection(proxy.address, TIMEOUT) as client:
                    assert ended_stream(client)
        finally:
            proxy.stop()


def test_a_port_that_another_proxy_has_is_taken_too(engine: str) -> None:
    first = ProxyProcess("--to", "127.0.0.1:1", "--engine", engine)
    host, port = first.address
    try:
        outcome = run("proxy", "--listen", f"{host}:{port}", "--to", "127.0.0.1:1")
    finally:
        first.stop()
    assert outcome.returncode == 1
    assert outcome.stderr.endswith("is taken\n")


def test_an_address_that_the_system_refuses_is_told_in_one_line_with_status_1(tmp_path: Path) -> None:
    outcome = run("proxy", "--listen", f"unix:{tmp_path}/no/such/folder", "--to", "127.0.0.1:1")
    assert outcome.returncode == 1
    assert re.fullmatch(r"eventengine proxy: error: cannot listen on unix:.+\n", outcome.stderr)


def test_a_dns_server_that_the_engine_cannot_ask_is_told_in_one_line_with_status_1() -> None:
    outcome = run(*PROXY, "--to", "dns://192.0.2.1/localhost:80", code=WITHOUT_DNS_SERVERS)
    assert (outcome.returncode, outcome.stdout) == (1, "")
    why = "cannot connect to dns://192.0.2.1:53/localhost:80: cannot ask 192.0.2.1:53"
    assert outcome.stderr == f"eventengine proxy: error: {why}\n"


@pytest.mark.parametrize("framework", ["twisted", "tornado"])
def test_a_framework_that_is_missing_is_told_with_its_extra_and_status_1(framework: str) -> None:
    outcome = run(*PROXY, "--engine", framework, code=f"import sys; sys.modules[{framework!r}] = None")
    assert (outcome.returncode, outcome.stdout) == (1, "")
    assert re.fullmatch(r"eventengine proxy: error: .+\n", outcome.stderr)
    assert f"eventengine[{framework}]" in outcome.stderr


class OneConnection:
    """A server of one connection, which `handler` has in a thread."""

    def __init__(self, handler: Callable[[socket.socket], object]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(TIMEOUT)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, args=(handler,))
        self._thread.start()

    def _serve(self, handler: Callable[[socket.socket], object]) -> None:
        connection, _ = self._listener.accept()
        with connection:
            connection.settimeout(TIMEOUT)
            handler(connection)

    def __enter__(self) -> OneConnection:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        self._listener.close()


def answer(connection: socket.socket) -> None:
    while data := connection.recv(1 << 16):
        connection.sendall(data * 2)


def assert_reset(client: socket.socket) -> None:
    with pytest.raises(ConnectionResetError):
        client.recv(1)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_the_proxy_says_where_it_listens_logs_and_ends_with_a_summary(engine: str, stop: signal.Signals) -> None:
    command = [sys.executable, "-m", "eventengine", *PROXY[:3], "--engine", engine, "--memory", "1MiB", "--log"]
    with OneConnection(answer) as target:
        process = subprocess.Popen(
            [*command, "--to", target.address], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            first = process.stdout.readline()
            heard = re.fullmatch(
                rf"listening on 127\.0\.0\.1:(\d+), to {target.address}, on the {engine} engine\n", first
            )
            assert heard
            with socket.create_connection(("127.0.0.1", int(heard[1])), TIMEOUT) as client:
                client.sendall(b"hello")
                client.shutdown(socket.SHUT_WR)
                assert client.makefile("rb").read() == b"hellohello"
                peer = f"127.0.0.1:{client.getsockname()[1]}"
            assert process.stderr is not None
            logged = process.stderr.readline()
            assert re.fullmatch(
                rf"{peer} -> {target.address}: 5 bytes up, 10 down, \d+\.\d{{3}} s: both sides ended\n", logged
            )
            process.send_signal(stop)
            out, err = process.communicate(timeout=TIMEOUT)
        finally:
            process.kill()
            process.communicate()
    assert (process.returncode, err) == (0, "")
    assert re.fullmatch(r"1 connection; 5 bytes up, 10 down; peak memory \d+ of 1048576 bytes\n", out)


def test_a_target_that_is_not_reached_is_told_without_the_log_once_and_counted() -> None:
    with port_without_listener() as target:
        command = [sys.executable, "-m", "eventengine", *PROXY[:3], "--to", str(target)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            heard = re.search(r"listening on 127\.0\.0\.1:(\d+)", process.stdout.readline())
            assert heard
            for _ in range(3):
                with socket.create_connection(("127.0.0.1", int(heard[1])), TIMEOUT) as client:
                    assert client.recv(1) == b""
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=TIMEOUT)
        finally:
            process.kill()
            process.communicate()
    assert re.fullmatch(r"connecting failed: .+refused.+ \(further ones are told with --log\)\n", err)
    assert out.startswith("3 connections, 3 of them without the target; 0 bytes up")


@pytest.mark.skipif(sys.platform != "linux", reason="abstract unix names are Linux's")
def test_a_peer_s_name_breaks_no_line_of_the_log(tmp_path: Path) -> None:
    with OneConnection(answer) as target:
        command = [sys.executable, "-m", "eventengine", "proxy", "--listen", f"unix:{tmp_path}/proxy", "--log"]
        process = subprocess.Popen(
            [*command, "--to", target.address], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("listening")
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(TIMEOUT)
                client.bind(f"\0{os.getpid()}\n\x1b[2Jforged")
                client.connect(f"{tmp_path}/proxy")
                client.shutdown(socket.SHUT_WR)
                assert client.recv(1) == b""
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=TIMEOUT)
        finally:
            process.kill()
            process.communicate()
    assert err.startswith(f"unix-abstract:{os.getpid()}\\n\\x1b[2Jforged -> ")
    assert err.count("\n") == 1


def test_a_signal_ends_connections_that_are_open(engine: str) -> None:
    with OneConnection(lambda c: c.sendall(c.recv(5)) or assert_reset(c)) as target:
        proxy = ProxyProcess("--to", target.address, "--engine", engine)
        try:
            with socket.create_connection(proxy.address, TIMEOUT) as client:
                client.sendall(b"hello")
                assert client.recv(5) == b"hello"
                proxy.process.send_signal(signal.SIGINT)
                assert_reset(client)
        finally:
            peak = proxy.stop()
    assert 0 < peak <= 64 * MIB


def test_a_name_is_asked_of_the_server_that_is_given(engine: str, tmp_path: Path) -> None:
    pytest.importorskip("pycares", reason="the extra dns is not installed")
    with twisted_server(tmp_path) as server, OneConnection(lambda c: c.sendall(c.recv(5))) as target:
        port = target.address.rpartition(":")[2]
        to = ("--to", f"home.test:{port}", "--dns-server", server.text)
        proxy = ProxyProcess(*to, "--engine", engine)
        try:
            with socket.create_connection(proxy.address, TIMEOUT) as client:
                client.sendall(b"hello")
                assert client.recv(5) == b"hello"
        finally:
            proxy.stop()
        assert server.queries("home.test") == ["udp A", "udp AAAA"]


def test_a_server_that_cannot_be_asked_is_told_with_what_it_takes() -> None:
    done = run(*PROXY, "--dns-server", "127.0.0.1", code="import sys; sys.modules['pycares'] = None")
    assert (done.returncode, done.stdout) == (1, "")
    assert "cannot ask the DNS server 127.0.0.1:53: " in done.stderr
    assert 'pip install "eventengine[dns]"' in done.stderr


def test_a_further_signal_ends_a_process_that_waits_for_a_look_up() -> None:
    hanging = (
        "import socket, sys, threading\n"
        "sys.modules['pycares'] = None\n"  # it waits without a thread
        "socket.getaddrinfo = lambda *_, **__: print('looking up', flush=True) or threading.Event().wait()\n"
        "from eventengine.cli import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", hanging, *PROXY[:3], "--to", "a-name:80"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        heard = re.search(r"listening on 127\.0\.0\.1:(\d+)", process.stdout.readline())
        assert heard
        with socket.create_connection(("127.0.0.1", int(heard[1])), TIMEOUT) as client:
            assert process.stdout.readline() == "looking up\n"
            process.send_signal(signal.SIGINT)
            assert client.recv(1) == b""
            assert process.stdout.readline().startswith("1 connection, 1 of them without the target")
            while process.poll() is None:
                process.send_signal(signal.SIGINT)
        assert process.returncode == -signal.SIGINT
    finally:
        process.kill()
        process.communicate()


def resident(pid: int, field: str) -> int:
    """Bytes from /proc/PID/status: VmRSS is what is resident, VmHWM the most that was."""
    match = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match
    return int(match[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
@pytest.mark.parametrize("slow", [False, True], ids=["fast reader", "slow reader"])
def test_64_mib_pass_unchanged_in_8_mib(engine: str, slow: bool) -> None:
    block = os.urandom(MIB)
    sent, received = hashlib.sha256(), hashlib.sha256()

    def send(connection: socket.socket) -> None:
        for number in range(64):
            part = number.to_bytes(8) + block[8:]
            sent.update(part)
            connection.sendall(part)

    with OneConnection(send) as target:
        proxy = ProxyProcess("--to", target.address, "--engine", engine, "--memory", "8MiB")
        try:
            before = resident(proxy.process.pid, "VmRSS")
            with socket.create_connection(proxy.address, TIMEOUT) as client:
                small = 2000 if slow else 0
                while part := client.recv(1024 if small > 0 else 1 << 18):
                    received.update(part)
                    small -= 1
            grown = resident(proxy.process.pid, "VmHWM") - before
        finally:
            peak = proxy.stop()
    assert received.hexdigest() == sent.hexdigest()
    assert 0 < peak <= 8 * MIB
    assert grown <= 40 * MIB


@pytest.fixture
def without_sites(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo shows the engines alone; the sites are tested in test_demo_sites.py."""
    monkeypatch.setattr(demo.sites, "run", lambda plot: True)


@pytest.mark.usefixtures("without_sites")
def test_the_demo_shows_every_engine_and_ends_with_0(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "FILE_SIZE", 8 * MIB)
    assert demo.run() == 0
    out = capsys.readouterr().out
    for name in ENGINES:
        row = re.search(rf"^{name} .*$", out, re.MULTILINE)
        assert row
        try:
            load_engine(name)
        except ImportError:
            assert f"eventengine[{name}]" in row[0]
        else:
            assert re.fullmatch(rf"{name} +\d+  \d\.\d\d of 8MiB +8  equal", row[0])


@pytest.mark.usefixtures("without_sites")
def test_the_demo_ends_with_1_when_what_arrives_differs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "FILE_SIZE", MIB)
    monkeypatch.setattr(demo, "ENGINES", ("default",))
    monkeypatch.setattr(demo, "_write_file", lambda file: file.write(bytes(MIB)) and "another digest")
    assert demo.run() == 1
    assert "DIFFERENT" in capsys.readouterr().out


@pytest.mark.parametrize("framework", ["twisted", "tornado"])
def test_the_demo_names_the_extra_of_a_framework_that_is_missing(framework: str) -> None:
    small = (
        "from eventengine.cli import demo; demo.sites.run = lambda plot: True; "
        f"demo.FILE_SIZE = 1 << 20; demo.ENGINES = {('default', framework)}"
    )
    outcome = run("demo", code=f"import sys; sys.modules[{framework!r}] = None\n{small}")
    assert (outcome.returncode, outcome.stderr) == (0, "")
    assert re.search(rf"^{framework} .*eventengine\[{framework}\]", outcome.stdout, re.MULTILINE)


def test_the_examples_talk_to_each_other() -> None:
    examples = Path(__file__).parent.parent / "examples"
    command = [sys.executable, str(examples / "echo_server.py"), "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        heard = re.fullmatch(r"echoing on 127\.0\.0\.1:(\d+)\n", server.stdout.readline())
        assert heard
        client = [sys.executable, str(examples / "client.py"), f"127.0.0.1:{heard[1]}"]
        said = subprocess.run(client, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        assert (said.stdout, said.stderr) == ("b'hello'\n", "")
        server.send_signal(signal.SIGINT)
        out, err = server.communicate(timeout=TIMEOUT)
    finally:
        server.kill()
        server.communicate()
    assert (server.returncode, err) == (0, "")
    assert "bytes were held" in out
