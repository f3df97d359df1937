"""Callbacks that nobody may lose or run twice: those that raise, and those on a pool that fails."""

from __future__ import annotations

import logging
import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from eventengine import Status, StatusCode, create_event_engine
from eventengine.core.loop import Loop
from eventengine.core.mailbox import Mailbox
from eventengine.core.threaded import ThreadHost
from hand_turned import TIMEOUT, elsewhere, hand_turned
from manual_host import ManualHost
from together import run_together


class Unnamable:
    """A callback that raises, as its repr does."""

    def __call__(self) -> None:
        raise RuntimeError("the callback")

    def __repr__(self) -> str:
        raise ValueError("the repr")


# What raises


def test_a_callback_whose_repr_raises_is_logged_and_counted() -> None:
    with hand_turned() as (engine, host):
        ran: list[str] = []
        engine.run(Unnamable())
        engine.run(lambda: ran.append("behind"))
        host.settle()
        assert [str(error) for error in host.logged] == ["the callback"]
        assert (engine.callback_errors, ran) == (1, ["behind"])


def test_what_raises_in_a_thread_host_s_turn_is_logged_and_those_behind_it_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    host = ThreadHost()
    loop = Loop(host, callback_executor=None, private_poller=True, own_thread=True)
    ran: list[str] = []

    def fault() -> None:
        raise ZeroDivisionError

    host.wake(fault)
    host.wake(lambda: ran.append("behind"))
    host.wake(host.stop)
    with caplog.at_level(logging.ERROR, "eventengine"):
        elsewhere(host.run)
    loop.poller.close()
    assert ran == ["behind"]
    assert [record.exc_info and record.exc_info[0] for record in caplog.records] == [ZeroDivisionError]


def test_a_letter_that_raises_while_the_mailbox_is_closed_does_not_lose_those_behind_it() -> None:
    host = ManualHost()
    box = Mailbox(host, lambda: None)
    ran: list[str] = []

    def fault() -> None:
        raise ZeroDivisionError

    box.post(fault)
    box.post(lambda: ran.append("behind"))
    with pytest.raises(ZeroDivisionError):
        box.close()
    assert ran == ["behind"]


# Pools


def refuse_threads(monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    """The system has no more threads for pools of this name."""
    start = threading.Thread.start

    def refusing(self: threading.Thread) -> None:
        if self.name.startswith(prefix):
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refusing)


def occupy(pool: ThreadPoolExecutor) -> threading.Event:
    """Has a thread of the pool busy until the event is set."""
    begun, release = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        assert release.wait(TIMEOUT)

    pool.submit(wait)
    assert begun.wait(TIMEOUT)
    return release


def test_a_callback_runs_once_on_a_pool_that_cannot_start_its_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadPoolExecutor(2, "narrow") as pool, hand_turned(callback_executor=pool) as (engine, host):
        release = occupy(pool)
        refuse_threads(monkeypatch, "narrow")
        ran: list[threading.Thread] = []
        engine.run(lambda: ran.append(threading.current_thread()))
        host.turn()
        release.set()
        pool.shutdown()  # and so whatever the pool has queued was run
        assert ran == [threading.current_thread()]
        assert [str(error) for error in host.logged] == ["can't start new thread"]


class LockedPool(ThreadPoolExecutor):
    """Cancels as a ThreadPoolExecutor does, with its lock held, and says so where that one would hang for ever."""

    _cancelling: threading.Thread | None = None
    hangs = False

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        if self._cancelling is threading.current_thread():
            self.hangs = True
            raise AssertionError("a submit within the shutdown waits for its lock")
        return super().submit(*args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._cancelling = threading.current_thread()
        try:
            super().shutdown(wait=False, cancel_futures=cancel_futures)
        finally:
            self._cancelling = None
        super().shutdown(wait)


def test_a_pool_that_is_shut_down_with_cancel_futures_loses_no_callback() -> None:
    with LockedPool(1, "cancelled") as pool, hand_turned(callback_executor=pool) as (engine, host):
        release = occupy(pool)
        ran: list[tuple[int, threading.Thread]] = []
        for n in range(5):
            engine.run(lambda n=n: ran.append((n, threading.current_thread())))
        host.settle()
        pool.shutdown(wait=False, cancel_futures=True)
        assert ran == []  # never within another's call
        host.settle()
        release.set()
        assert ran == [(n, threading.current_thread()) for n in range(5)]
        assert [type(error) for error in host.logged] == [RuntimeError] * 5
        assert engine.callback_errors == 5


def test_a_pool_that_is_shut_down_with_cancel_futures_after_the_engine_loses_no_callback() -> None:
    with LockedPool(1, "cancelled") as pool:
        release = occupy(pool)
        ran: queue.Queue[int] = queue.Queue()
        with create_event_engine(callback_executor=pool) as engine:
            for n in range(5):
                engine.run(lambda n=n: ran.put(n))
        try:
            pool.shutdown(wait=False, cancel_futures=True)
            assert not pool.hangs
            assert sorted(ran.get(timeout=TIMEOUT) for _ in range(5)) == list(range(5))
        finally:
            release.set()


@pytest.mark.parametrize("round_", range(5))
def test_each_callback_runs_once_however_the_shutdown_meets_the_calls(round_: int) -> None:
    with ThreadPoolExecutor(2, "raced") as pool, hand_turned(callback_executor=pool) as (engine, host):
        releases = [occupy(pool), occupy(pool)]
        ran: list[int] = []

        def call(numbers: range) -> None:
            for n in numbers:
                engine._loop.run_callback(ran.append, n)

        call(range(100))

        def shut_down() -> None:
            for release in releases:
                release.set()
            pool.shutdown(cancel_futures=True)

        run_together(lambda: call(range(100, 400)), shut_down)
        host.settle()
        assert sorted(ran) == list(range(400))


def test_a_lookup_for_which_there_is_no_thread_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    with hand_turned() as (engine, host):
        refuse_threads(monkeypatch, "eventengine-getaddrinfo")
        got: list[Any] = []
        resolver = engine.get_dns_resolver()
        resolver.lookup_hostname(got.append, "localhost:80")
        host.settle()
        resolver.close()
        host.settle()
        (status,) = got
        assert isinstance(status, Status)
        assert (status.code, "can't start new thread" in str(status)) == (StatusCode.UNAVAILABLE, True)


def test_what_is_logged_of_a_callback_begins_with_the_callback_s_own_frame() -> None:
    """A log may keep the traceback, and with each frame its variables: what they hold would live as long."""

    def raising() -> None:
        raise ValueError("on purpose")

    with hand_turned() as (engine, host):
        engine.run(raising)
        engine.run_after(0.0, raising)
        host.settle()
        host.fire()
        traces = [error.__traceback__ for error in host.logged]
        assert [trace.tb_frame.f_code for trace in traces if trace] == [raising.__code__] * 2


def test_a_lookup_that_raises_what_nobody_expects_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an import within getaddrinfo does when no descriptor is left."""

    def getaddrinfo(*_: object, **__: object) -> None:
        raise LookupError("unknown encoding: idna")

    monkeypatch.setattr("eventengine.core.getaddrinfo.socket.getaddrinfo", getaddrinfo)
    found: queue.Queue[Any] = queue.Queue()
    with create_event_engine(resolver="system") as engine:
        resolver = engine.get_dns_resolver()
        resolver.lookup_hostname(found.put, "localhost:80")
        status = found.get(timeout=TIMEOUT)
        resolver.close()
    assert status.code is StatusCode.INTERNAL
    assert "localhost:80" in status.message
