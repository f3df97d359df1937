"""Which resolver an engine takes, and what it says when that cannot be had."""

from __future__ import annotations

import asyncio
import errno
import importlib.util
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest

from engines import LOOPS
from eventengine import EventEngine, ResolvedAddress, StatusCode, create_event_engine
from eventengine.bridges.asyncio import AsyncioEventEngine
from eventengine.core.handles import next_handle
from eventengine.core.resolver import HostedResolver, Question
from eventengine.status import ClosedResourceError, StatusError
from eventengine.testing.oracle import TIMEOUT

HAS_PYCARES = importlib.util.find_spec("pycares") is not None


def test_c_ares_is_the_default_where_it_is_installed() -> None:
    with create_event_engine() as engine, closing(engine.get_dns_resolver()) as resolver:
        assert resolver.kind == ("c-ares" if HAS_PYCARES else "system")


@pytest.mark.parametrize("wanted", ["cares", "", "twisted.names", 5])
def test_a_resolver_that_there_is_not_is_told_at_the_caller_with_those_that_there_are(wanted: Any) -> None:
    with pytest.raises(ValueError, match=f"resolver must be 'c-ares', 'system' or None, not {wanted!r}$"):
        create_event_engine(resolver=wanted)
    loop = asyncio.new_event_loop()
    with closing(loop), pytest.raises(ValueError, match="resolver must be 'c-ares', 'system' or None"):
        AsyncioEventEngine(loop, resolver=wanted)


@pytest.mark.parametrize(
    ("loop", "names"),
    [("tornado", "'c-ares', 'system', 'tornado'"), ("twisted", "'c-ares', 'system', 'twisted.names', 'reactor'")],
)
def test_a_bridge_names_those_of_its_framework(loop: str, names: str) -> None:
    pytest.importorskip("twisted.internet" if loop == "twisted" else loop, reason=f"{loop} is not installed")
    with (
        LOOPS[loop][1]() as make,
        pytest.raises(ValueError, match=f"resolver must be {names} or None, not 'none'"),
    ):
        make(private_poller=True, resolver="none")


def run_python(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


WITHOUT = "import sys\nsys.modules['pycares'] = None\n"  # as if it were not installed
TOO_OLD = "import sys, types\nsys.modules['pycares'] = types.SimpleNamespace(__version__='4.11.0')\n"


@pytest.mark.parametrize("missing", [WITHOUT, TOO_OLD], ids=["missing", "too old"])
def test_without_pycares_the_default_is_the_system_and_c_ares_names_the_extra(missing: str) -> None:
    run_python(
        missing + "from eventengine import StatusCode, StatusError, create_event_engine\n"
        "try:\n"
        "    create_event_engine(resolver='c-ares')\n"
        "except ImportError as error:\n"
        """    assert 'pip install "eventengine[dns]"' in str(error), error\n"""
        "else:\n"
        "    raise AssertionError('it was imported')\n"
        "with create_event_engine() as engine:\n"
        "    resolver = engine.get_dns_resolver()\n"
        "    assert resolver.kind == 'system'\n"
        "    resolver.close()\n"
        "    try:\n"
        "        engine.get_dns_resolver(dns_server='127.0.0.1')\n"
        "    except StatusError as error:\n"
        "        assert error.status.code is StatusCode.UNIMPLEMENTED\n"
        """        assert 'pip install "eventengine[dns]"' in error.status.message\n"""
        "    else:\n"
        "        raise AssertionError('it was made')\n"
    )


def test_an_engine_loads_pycares_only_when_it_is_asked_for_a_resolver() -> None:
    run_python(
        "import sys\n"
        "from eventengine import create_event_engine\n"
        "with create_event_engine():\n"
        "    assert 'pycares' not in sys.modules\n"
    )


def resolve(engine: EventEngine, name: str) -> Any:
    found: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with closing(engine.get_dns_resolver()) as resolver:
        resolver.lookup_hostname(found.put, name)
        return found.get(timeout=TIMEOUT)


def test_a_lookup_that_a_close_overtakes_is_refused_and_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look whether the resolver is closed and the noting of the callback, another thread closes it."""
    with create_event_engine() as engine:
        resolver = cast("HostedResolver", engine.get_dns_resolver())
        asked: list[object] = []
        monkeypatch.setattr(type(resolver._source), "find_addresses", lambda source, *args: asked.append(args))

        def close_now() -> int:
            resolver.close()
            return next_handle()

        monkeypatch.setattr("eventengine.core.resolver.next_handle", close_now)
        found: queue.SimpleQueue[Any] = queue.SimpleQueue()
        with pytest.raises(ClosedResourceError):
            resolver.lookup_hostname(found.put, "name.test:80")
        turned = threading.Event()
        engine.run(turned.set)
        assert turned.wait(TIMEOUT)
        assert (asked, found.empty()) == ([], True)


def test_a_name_that_is_too_long_is_refused_before_it_is_encoded() -> None:
    """On the loop's thread: three million letters took it eight seconds."""
    encoded: list[str] = []

    class Name(str):
        __slots__ = ()

        def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
            encoded.append(encoding)
            return super().encode(encoding, errors)

    found: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with create_event_engine() as engine, closing(engine.get_dns_resolver()) as resolver:
        for name in (Name("\xfc" * 3_000_000), Name("\xfc" * 254)):
            resolver.lookup_txt(found.put, name)
            assert found.get(timeout=TIMEOUT).code is StatusCode.INVALID_ARGUMENT
    assert encoded[0] == "idna"
    assert len(encoded) <= 2  # of the second alone


def test_the_reactor_s_own_resolver_is_asked_and_may_be_another_one() -> None:
    pytest.importorskip("twisted.internet", reason="the extra twisted is not installed")
    from twisted.internet.address import IPv4Address, IPv6Address
    from twisted.internet.epollreactor import EPollReactor
    from twisted.internet.interfaces import IHostnameResolver
    from zope.interface import implementer

    from engines import running_reactor
    from eventengine.bridges.twisted import TwistedEventEngine

    @implementer(IHostnameResolver)
    class Fixed:
        def resolveHostName(self, receiver: Any, name: str, port: int, types: Any, semantics: str) -> Any:  # noqa: N802
            receiver.resolutionBegan(None)
            if name == "six.test":
                receiver.addressResolved(IPv6Address("TCP", "2001:db8::1", port, 0, 7))
                receiver.addressResolved(IPv4Address("TCP", "192.0.2.1", port))
            receiver.resolutionComplete()

    with running_reactor(EPollReactor()) as reactor:
        reactor.installNameResolver(Fixed())
        with TwistedEventEngine(reactor, resolver="reactor") as engine:
            assert resolve(engine, "six.test:80") == [
                ResolvedAddress.tcp("2001:db8::1%7", 80),
                ResolvedAddress.tcp("192.0.2.1", 80),
            ]
            status = resolve(engine, "nosuch.test:80")
            assert status.code is StatusCode.NOT_FOUND
            assert "nosuch.test:80" in status.message


def test_tornado_s_resolver_is_the_one_that_was_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tornado", reason="the extra tornado is not installed")
    from tornado.netutil import Resolver

    from eventengine.bridges.tornado import TornadoEventEngine

    closed: list[object] = []

    class Fixed(Resolver):
        def initialize(self) -> None:
            pass

        async def resolve(self, host: str, port: int, family: int = 0) -> Any:
            if host == "odd.test":
                raise LookupError("odd")
            if host != "six.test":
                raise OSError(5, "no such host")
            return [(10, ("2001:db8::1", port, 0, 0)), (2, ("192.0.2.1", port)), (2, ("192.0.2.1", port))]

        def close(self) -> None:
            closed.append(self)

    before: Callable[[], Any] = Resolver._save_configuration
    saved = before()
    try:
        Resolver.configure(Fixed)
        with TornadoEventEngine.in_thread(resolver="tornado") as engine:
            found = resolve(engine, "six.test:80")
            assert [str(each) for each in found] == ["[2001:db8::1]:80", "192.0.2.1:80"]
            assert resolve(engine, "nosuch.test:80").code is StatusCode.UNAVAILABLE
            assert resolve(engine, "odd.test:80").code is StatusCode.INTERNAL
    finally:
        Resolver._restore_configuration(saved)
    assert len(closed) == 3


def test_twisted_names_leaves_the_global_reactor_alone() -> None:
    pytest.importorskip("twisted.internet", reason="the extra twisted is not installed")
    run_python(
        "import queue, sys\n"
        "from eventengine.bridges.twisted import TwistedEventEngine\n"
        "found = queue.SimpleQueue()\n"
        "with TwistedEventEngine.in_thread(resolver='twisted.names') as engine:\n"
        "    resolver = engine.get_dns_resolver(dns_server='127.0.0.1:1')\n"
        "    resolver.lookup_hostname(found.put, 'nosuch.test:80')\n"
        "    resolver.lookup_hostname(found.put, 'localhost:80')\n"
        "    assert isinstance(found.get(timeout=30), list)\n"
        "    resolver.close()\n"
        "assert 'twisted.internet.reactor' not in sys.modules\n"
    )


def test_twisted_names_asks_the_servers_of_resolv_conf_and_else_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("twisted.internet", reason="the extra twisted is not installed")
    from eventengine.bridges.twisted import names

    file = tmp_path / "resolv.conf"
    monkeypatch.setattr(names, "_RESOLV_CONF", file)
    assert names._servers_of_system() == [("127.0.0.1", 53)]
    file.write_text("# of DHCP\nsearch test\nnameserver\nnameserver 192.0.2.1\nnameserver 2001:db8::1 # ours\n")
    assert names._servers_of_system() == [("192.0.2.1", 53), ("2001:db8::1", 53)]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), StatusCode.NOT_FOUND),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), StatusCode.UNAVAILABLE),
        (OSError(errno.EMFILE, "Too many open files"), StatusCode.RESOURCE_EXHAUSTED),
        (UnicodeError("label empty or too long"), StatusCode.INVALID_ARGUMENT),
        (LookupError("of a kind that nobody knows"), StatusCode.INTERNAL),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, Exception) else each.name,
)
def test_what_the_system_s_resolver_raises_has_its_status(
    monkeypatch: pytest.MonkeyPatch, error: Exception, code: StatusCode
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with create_event_engine(resolver="system") as engine:
        status = resolve(engine, "name.test:80")
    assert status.code is code
    assert "name.test:80" in status.message


@pytest.mark.parametrize(("loop", "resolver"), [("tornado", "tornado"), ("twisted", "reactor")])
def test_a_framework_s_own_resolver_asks_no_server_of_one_s_choice_and_is_used_again(
    loop: str, resolver: str
) -> None:
    pytest.importorskip("twisted.internet" if loop == "twisted" else loop, reason=f"{loop} is not installed")
    with LOOPS[loop][1]() as make, make(private_poller=True, resolver=resolver) as engine:
        with pytest.raises(StatusError, match="UNIMPLEMENTED"):
            engine.get_dns_resolver(dns_server="127.0.0.1")
        found: queue.SimpleQueue[Any] = queue.SimpleQueue()
        with closing(engine.get_dns_resolver()) as names:
            for _ in range(2):
                names.lookup_hostname(found.put, "localhost:80")
                assert isinstance(found.get(timeout=TIMEOUT), list)


def test_what_twisted_names_fails_with_has_its_status() -> None:
    pytest.importorskip("twisted.internet", reason="the extra twisted is not installed")
    from twisted.internet.error import CannotListenError

    from eventengine.bridges.twisted import names

    question = Question("name.test:80", "name.test", 80)
    exhausted = names._failed(question, CannotListenError("", 0, OSError(errno.EMFILE, "too many")))
    assert (exhausted.code, exhausted.errno) == (StatusCode.RESOURCE_EXHAUSTED, errno.EMFILE)
    assert names._failed(question, LookupError("odd")).code is StatusCode.INTERNAL
