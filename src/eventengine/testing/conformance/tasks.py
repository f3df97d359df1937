"""`run`, `run_after`, `cancel`, `is_worker_thread`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from eventengine.engine import EventEngine, TaskHandle
from eventengine.status import ClosedResourceError
from eventengine.testing.application import Application, Callback, Ledger
from eventengine.testing.capabilities import lacking
from eventengine.testing.oracle import TIMEOUT

FAR_AWAY = 1e6


@pytest.mark.parametrize("call", ["run", "run_after"])
def test_a_closure_never_runs_before_the_call_has_returned(app: Application, ledger: Ledger, call: str) -> None:
    ran_in: list[bool] = []
    inside = threading.local()
    done = Callback[None](ledger)

    def closure() -> None:
        ran_in.append(getattr(inside, "call", False))
        done(None)

    def schedule() -> None:
        inside.call = True
        app.engine.run(closure) if call == "run" else app.engine.run_after(0.0, closure)
        inside.call = False

    app.on_loop(schedule)
    done.result()
    assert ran_in == [False]


@pytest.mark.parametrize("call", ["run", "run_after"])
def test_a_closure_runs_exactly_once(anywhere: Application, ledger: Ledger, call: str) -> None:
    engine = anywhere.engine
    done = Callback[None](ledger)
    if call == "run":
        anywhere.call(lambda: engine.run(lambda: done(None)))
    else:
        anywhere.call(lambda: engine.run_after(0.0, lambda: done(None)))
    done.result()
    anywhere.on_loop(lambda: None)
    ledger.check()


def test_closures_of_one_thread_run_in_their_order(engine: EventEngine, anywhere: Application) -> None:
    ran: list[int] = []
    appended = threading.Semaphore(0)

    def append(n: int) -> Callable[[], None]:
        def closure() -> None:
            ran.append(n)
            appended.release()

        return closure

    anywhere.call(lambda: [engine.run(append(n)) for n in range(1000)])
    for _ in range(1000):
        assert appended.acquire(timeout=TIMEOUT)
    if engine.callbacks_block_polling:  # on a pool they run at the same time
        assert ran == list(range(1000))
    assert sorted(ran) == list(range(1000))


def test_a_closure_may_schedule_the_next_without_end(app: Application, ledger: Ledger) -> None:
    done = Callback[None](ledger)
    left = [2000]

    def again() -> None:
        left[0] -= 1
        if left[0]:
            app.engine.run(again) if left[0] % 2 else app.engine.run_after(0.0, again)
        else:
            done(None)

    app.engine.run(again)
    done.result()
    assert left == [0]


def test_is_worker_thread_is_true_in_callbacks_only(app: Application) -> None:
    assert app.on_loop(app.engine.is_worker_thread)
    assert not app.engine.is_worker_thread()


def test_callbacks_run_on_one_thread_or_beside_the_loop_as_callbacks_block_polling_says(app: Application) -> None:
    """A callback that blocks stops timers and I/O exactly where the engine says so."""
    released, running = threading.Event(), threading.Event()
    timer = threading.Event()

    def block() -> None:
        running.set()
        released.wait(TIMEOUT)

    app.engine.run(block)
    assert running.wait(TIMEOUT)
    app.engine.run_after(0.0, timer.set)
    try:
        if app.engine.callbacks_block_polling:
            assert not timer.wait(0.05)
        else:
            assert timer.wait(TIMEOUT)
    finally:
        released.set()
    assert timer.wait(TIMEOUT)


@pytest.mark.parametrize("delay", [0, 0.0, 0.001, 0.02, 0.1])
def test_a_timer_is_never_early(anywhere: Application, ledger: Ledger, delay: float) -> None:
    done = Callback[float](ledger)
    started = time.monotonic()
    anywhere.call(lambda: anywhere.engine.run_after(delay, lambda: done(time.monotonic())))
    assert done.result() - started >= delay


def test_timers_run_in_the_order_of_their_deadlines(engine: EventEngine, anywhere: Application) -> None:
    if not engine.callbacks_block_polling:
        lacking("serial-callbacks", "on a pool, closures that are due run at the same time")
    ran: list[int] = []
    done = threading.Event()

    def schedule() -> None:
        for n in (4, 2, 0, 3, 1):
            engine.run_after(0.02 + n * 0.01, lambda n=n: ran.append(n))  # type: ignore[misc]
        engine.run_after(0.08, done.set)

    anywhere.call(schedule)
    assert done.wait(TIMEOUT)
    assert ran == [0, 1, 2, 3, 4]


def test_timers_of_one_thread_with_equal_delays_run_first_in_first_out(
    engine: EventEngine, anywhere: Application
) -> None:
    if not engine.callbacks_block_polling:
        lacking("serial-callbacks", "on a pool, closures that are due run at the same time")
    ran: list[int] = []
    done = threading.Event()

    def schedule() -> None:
        for n in range(1000):
            engine.run_after(0.0, lambda n=n: ran.append(n))  # type: ignore[misc]
        engine.run_after(0.0, done.set)

    anywhere.call(schedule)
    assert done.wait(TIMEOUT)
    assert ran == list(range(1000))


def test_a_timer_that_was_the_earliest_is_not_forgotten_for_a_nearer_one(app: Application) -> None:
    far, near = threading.Event(), threading.Event()
    app.engine.run_after(0.05, far.set)
    app.engine.run_after(0.01, near.set)
    assert near.wait(TIMEOUT)
    assert far.wait(TIMEOUT)


def test_a_cancelled_timer_never_runs_and_is_unknown_after(anywhere: Application, ledger: Ledger) -> None:
    engine = anywhere.engine
    never = Callback[None](ledger, times=0)

    def schedule_and_cancel() -> tuple[bool, bool]:
        handle = engine.run_after(0.01, lambda: never(None))
        return engine.cancel(handle), engine.cancel(handle)

    assert anywhere.call(schedule_and_cancel) == (True, False)
    after = Callback[None](ledger)
    engine.run_after(0.03, lambda: after(None))
    after.result()


def test_a_timer_that_is_far_away_is_cancelled_and_leaves_nothing(anywhere: Application) -> None:
    engine = anywhere.engine
    handles = anywhere.call(lambda: [engine.run_after(FAR_AWAY, lambda: None) for _ in range(1000)])
    assert anywhere.call(lambda: all(engine.cancel(handle) for handle in handles))


def test_a_timer_that_ran_or_runs_cannot_be_cancelled(app: Application, ledger: Ledger) -> None:
    during = Callback[bool](ledger)
    handles: list[TaskHandle] = []
    scheduled = threading.Event()

    def closure() -> None:
        scheduled.wait(TIMEOUT)
        during(app.engine.cancel(handles[0]))

    handles.append(app.engine.run_after(0.0, closure))
    scheduled.set()
    assert during.result() is False
    assert app.engine.cancel(handles[0]) is False


def test_an_unknown_handle_cannot_be_cancelled(app: Application) -> None:
    assert app.engine.cancel(TaskHandle(-1)) is False


def test_a_timer_may_cancel_others_that_are_due_at_once(app: Application, ledger: Ledger) -> None:
    engine = app.engine
    results = Callback[list[bool]](ledger)
    ran = threading.Semaphore(0)
    handles: list[TaskHandle] = []
    scheduled = threading.Event()

    def cancel() -> None:
        if not engine.callbacks_block_polling:
            scheduled.wait(TIMEOUT)
        results([engine.cancel(handle) for handle in handles])

    def schedule() -> None:
        engine.run_after(0.0, cancel)
        handles.extend(engine.run_after(0.0, ran.release) for _ in range(100))
        scheduled.set()

    app.on_loop(schedule)
    cancelled = results.result()
    assert len(cancelled) == 100
    for _ in range(cancelled.count(False)):
        assert ran.acquire(timeout=TIMEOUT)
    after = Callback[None](ledger)
    engine.run_after(0.02, lambda: after(None))
    after.result()
    assert not ran.acquire(blocking=False)
    if engine.callbacks_block_polling:
        assert all(cancelled)


def test_ten_threads_with_a_hundred_timers_each_none_early_and_all_run(app: Application, ledger: Ledger) -> None:
    callbacks: list[tuple[float, Callback[float]]] = []

    def schedule(thread: int) -> None:
        for n in range(100):
            delay = (n * 37 + thread * 11) % 100 / 250
            done = Callback[float](ledger)
            callbacks.append((time.monotonic() + delay, done))
            app.engine.run_after(delay, lambda done=done: done(time.monotonic()))  # type: ignore[misc]

    with ThreadPoolExecutor(10) as threads:
        list(threads.map(schedule, range(10)))
    assert len(callbacks) == 1000
    assert all(done.result() >= deadline for deadline, done in callbacks)


def test_a_cancel_raced_from_another_thread_says_whether_the_closure_runs(app: Application) -> None:
    """10,000 timers, which run from first to last while another thread cancels them from last to first."""
    engine = app.engine
    blocks, size = 100, 100
    ran = bytearray(blocks * size)
    cancelled = bytearray(blocks * size)
    finished = threading.Semaphore(0)

    def closure(n: int) -> Callable[[], None]:
        def run() -> None:
            ran[n] += 1
            finished.release()

        return run

    for block in range(0, blocks * size, size):
        handles = [engine.run_after(0.0001, closure(n)) for n in range(block, block + size)]
        for n in reversed(range(size)):
            if engine.cancel(handles[n]):
                cancelled[block + n] = 1
                finished.release()
    for n in range(blocks * size):
        assert finished.acquire(timeout=TIMEOUT), f"{n} of {blocks * size} closures ran or were cancelled"
    engine.close()
    assert [a + b for a, b in zip(ran, cancelled, strict=True)] == [1] * (blocks * size)


def test_twenty_thousand_cancels_leave_an_engine_that_goes_on(app: Application) -> None:
    engine = app.engine
    for handle in [engine.run_after(1000.0 + n * 1e-6, lambda: None) for n in range(20_000)]:
        assert engine.cancel(handle)
    assert app.on_loop(lambda: "still there") == "still there"


@pytest.mark.parametrize("delay", [-1, -0.001, float("nan"), float("inf"), float("-inf")])
def test_a_delay_that_is_none_is_told_at_the_caller(anywhere: Application, delay: float) -> None:
    with pytest.raises(ValueError, match=r"delay is .*finite number of seconds, 0 or more"):
        anywhere.call(lambda: anywhere.engine.run_after(delay, lambda: None))


def test_a_closed_engine_takes_no_task(app: Application) -> None:
    app.engine.close()
    with pytest.raises(ClosedResourceError, match="engine was closed"):
        app.engine.run(lambda: None)
    with pytest.raises(ClosedResourceError, match="engine was closed"):
        app.engine.run_after(0.0, lambda: None)
