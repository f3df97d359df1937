"""What is closed while something else happens: a loop that ends, a collection, a fork, the interpreter's exit."""

from __future__ import annotations

import gc
import socket
import threading
import weakref
from collections import deque
from typing import Any

import pytest

import hand_turned
from eventengine import Endpoint, EventEngine, ResourceQuota, SliceBuffer, Status, StatusCode, create_event_engine
from eventengine.cli.proxy import Proxy
from eventengine.cli.relay import Relay
from eventengine.core.mailbox import Mailbox
from eventengine.status import ClosedResourceError
from hand_turned import LOOPBACK, TIMEOUT, elsewhere, listen
from manual_host import ManualHost
from together import run_script


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_a_close_whose_letter_died_with_the_loop_is_done_by_the_next_one(where: str) -> None:
    with hand_turned.hand_turned() as (engine, host):
        shut_down: list[Status] = []
        sockets: list[socket.socket] = []
        listener, _ = listen(engine, print, None, shut_down.append, socket_hook=sockets.append)
        elsewhere(engine.close)
        host.close()  # and the letter was not read
        assert (shut_down, sockets[0].fileno() >= 0) == ([], True)
        if where == "here":
            engine.close()
        else:
            elsewhere(engine.close)
        assert (shut_down, sockets[0].fileno()) == ([Status.OK], -1)
        listener.close()


def test_an_endpoint_that_is_collected_after_the_end_of_its_loop_gives_its_place_back() -> None:
    quota = ResourceQuota(connections=1)
    with hand_turned.hand_turned() as (engine, host):
        accepted: list[Endpoint] = []
        _, where = listen(engine, accepted.append, quota)
        with socket.create_connection(where, TIMEOUT):
            host.until(lambda: accepted)
            host.close()
            assert quota.connections.used == 1
            with pytest.warns(ResourceWarning, match="an endpoint to .* was never closed"):
                accepted.clear()
            assert quota.connections.used == 0


def test_an_engine_lives_as_long_as_a_listener_of_it() -> None:
    accepted: list[str] = []
    done = threading.Event()

    def on_accept(endpoint: Endpoint) -> None:
        accepted.append("accepted")
        endpoint.close()
        done.set()

    engine = create_event_engine()
    listener, where = listen(engine, on_accept)
    reference = weakref.ref(engine)
    del engine
    gc.collect()
    with socket.create_connection(where, TIMEOUT):
        assert done.wait(TIMEOUT)
    engine = reference()
    assert engine is not None
    engine.close()
    listener.close()
    del engine
    gc.collect()
    assert reference() is None


@pytest.mark.parametrize("private_poller", [False, True])
def test_an_endpoint_whose_close_meets_the_engine_s_is_closed_once_and_neither_fails(
    monkeypatch: pytest.MonkeyPatch, private_poller: bool
) -> None:
    with (
        hand_turned.hand_turned(private_poller=private_poller) as (engine, host),
        hand_turned.connected(engine, host) as (endpoint, peer),
    ):
        claimed: Any = endpoint
        got: list[Status] = []
        endpoint.read(got.append, SliceBuffer())
        poller = type(engine._loop.poller)
        change = poller._change

        def overtaken(self: Any, fd: int, have: int, events: int) -> None:
            monkeypatch.undo()
            elsewhere(claimed._close)  # which finds the mailbox closed
            change(self, fd, have, events)

        del claimed._open  # another thread is within `close`
        monkeypatch.setattr(poller, "_change", overtaken)
        engine.close()
        assert [status.code for status in got] == [StatusCode.CANCELLED]
        peer.settimeout(TIMEOUT)
        assert peer.recv(1) == b""


def test_a_mailbox_that_two_threads_close_runs_each_letter_once_and_neither_fails() -> None:
    box = Mailbox(ManualHost(), lambda: None)
    main = threading.current_thread()
    ran: list[int] = []

    class Contested(deque[Any]):
        """Another thread closes the mailbox between the look at the queue and the pop."""

        def popleft(self) -> Any:
            if threading.current_thread() is main and len(self) == 1:
                elsewhere(box.close)
            return super().popleft()

    box._queue = Contested()
    for n in range(3):
        box.post(lambda n=n: ran.append(n))
    box.close()
    assert ran == [0, 1, 2]


@pytest.mark.parametrize("name", ["localhost:80", "127.0.0.1:80", "no name", "srv", "txt"])
def test_a_lookup_that_is_refused_is_not_reported_as_well(name: str) -> None:
    with hand_turned.hand_turned() as (engine, host):
        got: list[Any] = []
        resolver = engine.get_dns_resolver()
        lookups = {"srv": resolver.lookup_srv, "txt": resolver.lookup_txt}
        host.close()
        with pytest.raises(ClosedResourceError, match="the loop was closed"):
            lookups.get(name, resolver.lookup_hostname)(got.append, name)
        resolver.close()
        engine.close()
        assert got == []


# Forks


FORK = """
import os, signal, socket, threading, warnings
from eventengine import *

warnings.simplefilter("ignore", DeprecationWarning)  # that a fork with threads is dangerous is what this is about

engine = create_event_engine()
within, leave = threading.Event(), threading.Event()

def hook(sock):
    if within.is_set():
        return
    within.set()
    leave.wait()

sockets = []
loopback = ResolvedAddress.parse("127.0.0.1:0")
def listener_with(hook):
    return engine.create_listener(print, lambda _: None, EndpointConfig(socket_hook=hook), ResourceQuota())

idle = listener_with(sockets.append)
idle.bind(loopback)
busy = listener_with(hook)
thread = threading.Thread(target=busy.bind, args=(loopback,))
thread.start()
within.wait()  # a thread that the child does not have holds this listener's lock
pid = os.fork()
if not pid:
    status = 9
    try:
        signal.alarm({hangs_after})
        {child}
    finally:
        os._exit(status)
_, status = os.waitpid(pid, 0)
leave.set()
thread.join()
engine.close()
assert status == 0, f"the child ended with {{status}}"
"""


@pytest.mark.parametrize("call", ["bind(loopback)", "start()", "close()"])
@pytest.mark.parametrize("which", ["idle", "busy"])
def test_a_listener_of_the_parent_says_so_in_the_child_and_does_not_hang(which: str, call: str) -> None:
    child = f"""
        try:
            {which}.{call}
        except ForkedProcessError:
            status = 0
        if "{which}.{call}" == "idle.close()" and sockets[0].fileno() != -1:
            status = 1
"""
    run_script(FORK.format(hangs_after=int(TIMEOUT), child=child.strip()), hangs_after=2 * TIMEOUT)


# The end of the interpreter


def test_a_lookup_at_the_exit_of_the_interpreter_is_answered_and_the_exit_does_not_hang() -> None:
    run_script(
        """
import atexit, threading
from eventengine import StatusCode, create_event_engine, get_default_event_engine, set_default_event_engine

set_default_event_engine(create_event_engine(resolver="system"))  # which then has no thread to begin
resolver = get_default_event_engine().get_dns_resolver()
got, answered = [], threading.Event()

@atexit.register
def last_words():
    resolver.lookup_hostname(lambda result: (got.append(result), answered.set()), "localhost:80")
    assert answered.wait(30)
    assert got[0].code is StatusCode.UNAVAILABLE, got
    resolver.close()
""",
        hangs_after=TIMEOUT,
    )


# The proxy


class SlowNames:
    """An engine whose lookups are answered when its resolver is closed, and not before."""

    def __init__(self, engine: EventEngine) -> None:
        self._engine = engine
        self._waiting: list[Any] = []
        self.asked = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def get_dns_resolver(self, *, dns_server: str | None) -> SlowNames:
        return self

    def lookup_hostname(self, on_resolve: Any, name: str) -> None:
        self._waiting.append(on_resolve)
        self.asked.set()

    def close(self) -> None:
        for on_resolve in self._waiting:
            on_resolve(Status(StatusCode.CANCELLED, "the resolver was closed"))


def test_a_proxy_that_is_closed_ends_its_relays_before_its_resolver() -> None:
    ended: list[Relay] = []
    with create_event_engine() as engine:
        names: Any = SlowNames(engine)
        proxy = Proxy(names, ResourceQuota(), ResourceQuota(), "slow:1", on_end=ended.append)
        address = proxy.listen(LOOPBACK)
        with socket.create_connection((address.host, address.port), TIMEOUT) as client:
            client.settimeout(TIMEOUT)
            assert names.asked.wait(TIMEOUT)
            proxy.close()
            assert [relay.outcome for relay in ended] == ["the proxy was stopped"]
            assert client.recv(1) == b""
        assert engine.callback_errors == 0
