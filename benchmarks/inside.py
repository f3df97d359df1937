"""Timers and hand-over between threads, in a process of their own: `python -m benchmarks.inside HOST CORE ROUNDS`.

HOST is twisted or tornado. Each figure of the engine is taken in turn with that of the host's own calls, on the same
loop. It prints JSON: for each title, the figures of the engine and those of the host, round by round.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import sys
import threading
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

from eventengine import EventEngine

TIMERS = 100_000
LETTERS = 50_000
PINGS = 2_000
PUNCTUAL = 2_000

Measured = dict[str, dict[str, list[float]]]


class Native:
    """The host's own calls, by the names of the engine's."""

    def __init__(self, run: Callable[..., Any], run_after: Callable[..., Any], cancel: Callable[..., Any]) -> None:
        self.run = run
        self.run_after = run_after
        self.cancel = cancel


def call(run: Callable[..., Any], function: Callable[[], Any]) -> Any:
    """Calls `function` on the loop's thread, from another, and waits for what it returns."""
    done = threading.Event()
    result: list[Any] = []
    run(lambda: (result.append(function()), done.set()))
    done.wait()
    return result[0]


def schedule_and_cancel(side: Any, host: Native) -> tuple[float, float]:
    """Timers scheduled and cancelled in a second; and how long the loop's next turn then is, in seconds."""

    def schedule() -> float:
        started = perf_counter()
        run_after, cancel = side.run_after, side.cancel
        for _ in range(TIMERS):
            cancel(run_after(10.0, schedule))
        return TIMERS / (perf_counter() - started)

    done = threading.Event()
    stamps: list[float] = []

    def all_at_once() -> None:
        for handle in [side.run_after(10.0 + n * 1e-6, schedule) for n in range(TIMERS)]:
            side.cancel(handle)
        stamps.append(perf_counter())
        host.run(lambda: host.run(lambda: (stamps.append(perf_counter()), done.set())))

    rate = call(side.run, schedule)
    host.run(all_at_once)
    done.wait()
    return rate, stamps[1] - stamps[0]


def punctuality(side: Any, host: Native) -> list[float]:
    """By how many seconds timers were late, least first."""
    late: list[float] = []
    done = threading.Event()
    source = random.Random(3)

    def schedule() -> None:
        for _ in range(PUNCTUAL):
            delay = source.random()
            side.run_after(delay, partial(come, perf_counter() + delay))

    def come(deadline: float) -> None:
        late.append(perf_counter() - deadline)
        if len(late) == PUNCTUAL:
            done.set()

    host.run(schedule)
    done.wait()
    return sorted(late)


def burst(side: Any) -> float:
    """Closures a second from another thread, from the first call until the last has run."""
    left = [LETTERS]
    done = threading.Event()

    def letter() -> None:
        left[0] -= 1
        if not left[0]:
            done.set()

    started = perf_counter()
    for _ in range(LETTERS):
        side.run(letter)
    done.wait()
    return LETTERS / (perf_counter() - started)


def latency(side: Any) -> float:
    """Seconds from a call in another thread until it runs, the loop being idle: the median."""
    taken: list[float] = []
    for _ in range(PINGS):
        done = threading.Event()
        started = perf_counter()
        side.run(lambda started=started, done=done: (taken.append(perf_counter() - started), done.set()))
        done.wait()
    return sorted(taken)[PINGS // 2]


def measure(engine: EventEngine, host: Native, rounds: int) -> Measured:
    measured: Measured = {}

    def note(title: str, side: Any, figure: float) -> None:
        of = measured.setdefault(title, {"engine": [], "host": []})
        of["engine" if side is engine else "host"].append(figure)

    for turn in range(rounds):
        for side in (engine, host) if turn % 2 == 0 else (host, engine):
            gc.collect()
            rate, pause = schedule_and_cancel(side, host)
            note("schedule and cancel a timer, 1/s", side, rate)
            note("the turn after 100,000 cancels, s", side, pause)
            late = punctuality(side, host)
            note("the earliest of 2,000 timers, s after its deadline", side, late[0])
            note("2,000 timers, p99, s after the deadline", side, late[len(late) * 99 // 100])
            note("hand-over of 50,000 closures, 1/s", side, burst(side))
            note("hand-over of one closure, s", side, latency(side))
    return measured


def on_twisted(rounds: int) -> None:
    from twisted.internet.epollreactor import EPollReactor

    from eventengine.bridges.twisted import TwistedEventEngine

    reactor: Any = EPollReactor()
    engine = TwistedEventEngine(reactor)
    host = Native(reactor.callFromThread, reactor.callLater, lambda timer: timer.cancel())
    _in_thread(engine, host, rounds, lambda: reactor.callFromThread(reactor.stop))
    reactor.run()
    engine.close()


def on_tornado(rounds: int) -> None:
    from tornado.ioloop import IOLoop

    from eventengine.bridges.tornado import TornadoEventEngine

    async def main() -> None:
        loop = IOLoop.current()
        ended = asyncio.Event()
        with TornadoEventEngine(loop) as engine:
            host = Native(loop.add_callback, loop.call_later, loop.remove_timeout)
            _in_thread(engine, host, rounds, lambda: loop.add_callback(ended.set))
            await ended.wait()

    asyncio.run(main())


def _in_thread(engine: EventEngine, host: Native, rounds: int, stop: Callable[[], object]) -> None:
    def run() -> None:
        print(json.dumps(measure(engine, host, rounds)), flush=True)
        stop()

    threading.Thread(target=run).start()


if __name__ == "__main__":
    _, name, core, rounds = sys.argv
    os.sched_setaffinity(0, {int(core)})
    {"twisted": on_twisted, "tornado": on_tornado}[name](int(rounds))
