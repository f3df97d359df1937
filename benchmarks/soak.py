"""Random traffic over all engines at once, in one process: connections by the thousand that end in every way, quotas
that are resized, callbacks that raise, engines and listeners that come and go. Nothing grows, and nothing is lost.

    python -m benchmarks.soak [--seconds 600] [--seed N] [--connections 1000]

Every now and then no more is begun, and when all has ended it looks: every callback was called once, every byte has
come, `used` of each quota is 0, and there are as many descriptors, threads and tasks as at the first look. Resident
memory and Python's blocks, which are only then to be compared, are not to be more than at the looks of the first third.
It prints a line each time, and ends with status 1 and a text when something is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import gc
import importlib.util
import itertools
import logging
import os
import queue
import random
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

from benchmarks.soak_traffic import DOOMED, Client, Ledger, Once, Plan, SoakError, accepting
from eventengine import (
    Endpoint,
    EndpointConfig,
    Listener,
    ResolvedAddress,
    ResourceQuota,
    Status,
    StatusCode,
    create_event_engine,
)
from eventengine.core.hosted import HostedEventEngine

LOOPBACK = ResolvedAddress.tcp("127.0.0.1", 0)
PATIENCE = 120.0
KIB, MIB = 1 << 10, 1 << 20
WARM = 4
"""As many looks at least are for what pools and caches come to hold."""
SLACK_MEMORY = 12 * MIB
SLACK_BLOCKS = 30_000

Make = Callable[[], HostedEventEngine]


def kinds(pool: ThreadPoolExecutor) -> dict[str, Make]:
    """All engines whose frameworks are installed, with both pollers, and with callbacks on a pool."""
    from eventengine.bridges.asyncio import AsyncioEventEngine

    bridges: dict[str, Callable[..., HostedEventEngine]] = {"asyncio": AsyncioEventEngine.in_thread}
    if importlib.util.find_spec("uvloop"):
        import uvloop

        bridges["uvloop"] = partial(AsyncioEventEngine.in_thread, loop_factory=uvloop.new_event_loop)
    if importlib.util.find_spec("tornado"):
        from eventengine.bridges.tornado import TornadoEventEngine

        bridges["tornado"] = TornadoEventEngine.in_thread
    if importlib.util.find_spec("twisted.internet"):
        from eventengine.bridges.twisted import TwistedEventEngine

        bridges["twisted"] = TwistedEventEngine.in_thread
    made: dict[str, Make] = {
        "default": create_event_engine,
        "default, pool": partial(create_event_engine, callback_executor=pool),
    }
    for name, make in bridges.items():
        made[f"{name}, one epoll"] = partial(make, private_poller=True)
        made[f"{name}, each fd"] = partial(make, private_poller=False)
        made[f"{name}, pool"] = partial(make, callback_executor=pool)
    return made


class Logged(logging.Handler):
    """Counts what callbacks have raised on purpose; all else that is logged is wrong."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(logging.WARNING)
        self._ledger = ledger
        logging.getLogger().handlers = [self]
        if importlib.util.find_spec("twisted.internet"):
            from twisted.logger import globalLogBeginner

            globalLogBeginner.beginLoggingTo([self.observe], redirectStandardIO=False)

    def emit(self, record: logging.LogRecord) -> None:
        self._look(record.exc_info[1] if record.exc_info else None, record.getMessage())

    def observe(self, event: dict[str, Any]) -> None:
        if "log_failure" in event:
            self._look(event["log_failure"].value, str(event.get("log_format")))

    def _look(self, error: BaseException | None, text: str) -> None:
        if isinstance(error, SoakError):
            self._ledger.count("logged")
        else:
            self._ledger.fail(f"it logged {text!r}: {error!r}")


class Party:
    """An engine that takes part, with its quotas: clients have one of their own, or each might wait for the other."""

    def __init__(
        self, name: str, engine: HostedEventEngine, serving: ResourceQuota, asking: ResourceQuota
    ) -> None:
        self.name = name
        self.engine = engine
        self.serving = serving
        self.allocator = asking.create_memory_allocator(name)
        self.address = LOOPBACK
        self.listener: Listener
        self.on_shutdown: Once


class Soak:
    def __init__(self, seed: int, most: int) -> None:
        self.seed = seed
        self.most = most
        self.ledger = Ledger()
        self.looks: list[dict[str, int]] = []
        self._chance = random.Random(seed)
        self._logged = Logged(self.ledger)
        self._pool = ThreadPoolExecutor(4, "callbacks")
        self._kinds = kinds(self._pool)
        self._numbers = itertools.count(1)
        self._open = 0
        self._opened = threading.Condition()
        self._elsewhere: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._bounded = [ResourceQuota("small", memory=MIB), ResourceQuota("few", memory="8MiB", connections=100)]
        self._asking = [ResourceQuota("asking", memory="2MiB"), ResourceQuota("asking without limit")]
        self.quotas = [*self._bounded, ResourceQuota("without limit"), *self._asking]
        self.parties = [self._join(n, name, make) for n, (name, make) in enumerate(self._kinds.items())]
        self._dead = socket.socket()
        self._dead.bind(("127.0.0.1", 0))
        self._nobody = ResolvedAddress.from_sockaddr(socket.AF_INET, self._dead.getsockname())

    def _join(self, n: int, name: str, make: Make) -> Party:
        party = Party(name, make(), self.quotas[n % 3], self._asking[n % 2])
        on_accept = accepting(self.ledger, self.seed, self._begin, self._end)
        party.on_shutdown = Once(self.ledger, "on_shutdown", lambda status: None)
        self.ledger.outstanding.discard(party.on_shutdown)  # it is not to come before the end
        party.listener = party.engine.create_listener(
            on_accept, party.on_shutdown, EndpointConfig(), party.serving
        )
        party.address = LOOPBACK.with_port(party.listener.bind(LOOPBACK))
        party.listener.start()
        return party

    def _begin(self) -> None:
        with self._opened:
            self._open += 1

    def _end(self) -> None:
        with self._opened:
            self._open -= 1
            self._opened.notify_all()

    def run(self, seconds: float) -> None:
        began = time.monotonic()
        until = began + seconds
        rest = max(seconds / 20, 1.0)
        print(f"seed {self.seed}, {len(self.parties)} engines, {self.most} connections at once", flush=True)
        while (now := time.monotonic()) < until:
            self._rage(min(now + rest, until))
            self._look(time.monotonic() - began)

    def close(self) -> None:
        for party in self.parties:
            self.ledger.outstanding.add(party.on_shutdown)
            party.engine.close()
        self._pool.shutdown()
        if self.ledger.outstanding:
            raise SystemExit(f"{len(self.ledger.outstanding)} listeners were not told of the engine's end")
        self._dead.close()

    def _rage(self, until: float) -> None:
        actions: list[Callable[[], object]] = [self._connect] * 200
        actions += [self._time, self._run, self._resolve, self._listen, self._resize] * 4
        actions += [self._come_and_go]
        while time.monotonic() < until:
            while not self._elsewhere.empty():
                self._elsewhere.get()()
            with self._opened:
                if self._open >= 2 * self.most:
                    self._opened.wait(0.01)
                    continue
            self._chance.choice(actions)()

    # What it does.

    def _connect(self, doomed: Party | None = None) -> None:
        plan = Plan(self.seed, next(self._numbers) + (DOOMED if doomed else 0))
        party = doomed or self._chance.choice(self.parties)
        address = self._nobody if plan.ending == "refused" else self._chance.choice(self.parties).address
        self._begin()

        def on_connect(result: Endpoint | Status) -> None:
            self.ledger.count("connects")
            if isinstance(result, Status):
                wanted = {"refused": StatusCode.UNAVAILABLE, "no time": StatusCode.DEADLINE_EXCEEDED}
                if result.code not in (wanted.get(plan.ending), StatusCode.CANCELLED):
                    self.ledger.fail(f"connection {plan.number}, {plan.ending}: {result}")
                self._end()
                return
            Client(self.ledger, result, self._end, plan, party.engine, self._elsewhere.put).start()
            if plan.raises:
                self.ledger.count("raised")
                raise SoakError

        once = Once(self.ledger, "on_connect", on_connect)
        timeout = 0.0 if plan.ending == "no time" else PATIENCE
        handle = party.engine.connect(once, address, EndpointConfig(), party.allocator, timeout)
        if plan.ending == "cancel":
            plan.ending = "whole"  # if it comes too late
            if party.engine.cancel_connect(handle):
                once.settle()
                self.ledger.count("cancelled")
                self._end()

    def _time(self) -> None:
        engine = self._chance.choice(self.parties).engine
        once = Once(self.ledger, "timer", lambda: None)
        handle = engine.run_after(self._chance.random() / 20, once)
        if self._chance.random() < 0.5 and engine.cancel(handle):
            once.settle()

    def _run(self) -> None:
        def closure() -> None:
            self.ledger.count("raised")
            raise SoakError

        self._chance.choice(self.parties).engine.run(Once(self.ledger, "closure", closure))

    def _resolve(self) -> None:
        resolver = self._chance.choice(self.parties).engine.get_dns_resolver()
        resolver.lookup_hostname(Once(self.ledger, "on_resolve", lambda result: resolver.close()), "localhost:80")
        if self._chance.random() < 0.5:
            resolver.close()

    def _listen(self) -> None:
        engine = self._chance.choice(self.parties).engine
        on_shutdown = Once(self.ledger, "on_shutdown", lambda status: None)
        listener = engine.create_listener(
            lambda endpoint, allocator: endpoint.close(), on_shutdown, EndpointConfig(), self.quotas[0]
        )
        listener.bind(LOOPBACK)
        listener.start()
        listener.close()

    def _resize(self) -> None:
        self._chance.choice(self._bounded).memory.resize(self._chance.choice((256 * KIB, MIB, 4 * MIB, 16 * MIB)))

    def _come_and_go(self) -> None:
        """An engine that is made, and closed among its own traffic."""
        name = self._chance.choice(list(self._kinds))
        party = self._join(self._chance.randrange(6), name, self._kinds[name])
        self.parties.append(party)
        for _ in range(20):
            self._connect(party)
        self.parties.pop()
        with self._opened:
            self._opened.wait(self._chance.random() / 20)
        self.ledger.outstanding.add(party.on_shutdown)
        party.engine.close()
        self.ledger.count("engines")

    # What it looks at.

    def _look(self, seconds: float) -> None:
        deadline = time.monotonic() + PATIENCE
        while self._open or self.ledger.outstanding:
            with suppress(queue.Empty):
                self._elsewhere.get(timeout=0.01)()
            if time.monotonic() > deadline:
                faulthandler.dump_traceback()
                waiting = sorted(map(repr, self.ledger.outstanding))
                wrong = f"{self._open} sides of connections have not ended; outstanding: {waiting[:40]}"
                raise SystemExit("\n".join([wrong, *self.ledger.wrong[:40]]))
        self._settle()
        self._check_ends()
        look = self._measure()
        self.looks.append(look)
        counts = self.ledger.counts
        print(
            f"{seconds:6.0f} s {counts.get('connects', 0):8} connects {counts.get('bytes', 0) / MIB:9.0f} MiB "
            f"{counts.get('callbacks', 0):9} callbacks {counts.get('raised', 0):7} raised  "
            + "  ".join(f"{name} {value}" for name, value in look.items()),
            flush=True,
        )
        self._compare(look)
        if self.ledger.wrong:
            raise SystemExit("\n".join(self.ledger.wrong[:40]))

    def _settle(self) -> None:
        """Waits for what engines do after the last callback."""
        for _ in range(3):
            for party in self.parties:
                turned = threading.Event()
                party.engine.run(turned.set)
                if not turned.wait(PATIENCE):
                    raise SystemExit(f"the engine {party.name} does not run a closure")
        deadline = time.monotonic() + PATIENCE
        counts = self.ledger.counts
        while counts.get("logged", 0) < counts.get("raised", 0) and time.monotonic() < deadline:
            time.sleep(0.001)  # a thread of the pool is about to
        gc.collect()

    def _check_ends(self) -> None:
        counts = self.ledger.counts
        logged, raised = counts.get("logged", 0), counts.get("raised", 0)
        if logged != raised:
            self.ledger.fail(f"callbacks have raised {raised} times, and {logged} were logged")
        for number, sizes in self.ledger.received.items():
            if sizes.get("client", 0) > sizes.get("server", 0):
                self.ledger.fail(f"connection {number}: more came back than was sent: {sizes}")
        self.ledger.received.clear()
        for quota in self.quotas:
            if quota.memory.used or quota.connections.used:
                self.ledger.fail(f"the quota has not got everything back: {quota!r}")

    def _measure(self) -> dict[str, int]:
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[1])
        tasks = 0
        for party in self.parties:
            loop = getattr(party.engine._loop.host, "_loop", None)
            if isinstance(loop, asyncio.AbstractEventLoop):
                tasks += len(asyncio.all_tasks(loop))
        return {
            "KiB": pages * (resource.getpagesize() // KIB),
            "blocks": sys.getallocatedblocks(),
            "fds": len(os.listdir("/proc/self/fd")) - 1,
            # A pool for `getaddrinfo` begins its threads as lookups come together.
            "threads": sum(not each.name.startswith("eventengine-getaddrinfo") for each in threading.enumerate()),
            "tasks": tasks,
        }

    def _compare(self, look: dict[str, int]) -> None:
        first, early = self.looks[0], self.looks[: max(len(self.looks) // 3, WARM)]
        for name in ("fds", "threads", "tasks"):
            if look[name] != first[name]:
                self.ledger.fail(f"there are {look[name]} {name}, and there were {first[name]}")
        for name, slack in (("KiB", SLACK_MEMORY // KIB), ("blocks", SLACK_BLOCKS)):
            before = max(each[name] for each in early)
            if look[name] > before + slack:
                self.ledger.fail(f"{name} grew from {before} to {look[name]}")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--seconds", type=float, default=600.0, help="how long (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=random.randrange(1 << 32), help="default: by chance, and printed"
    )
    parser.add_argument("--connections", type=int, default=1000, help="how many at once (default: %(default)s)")
    options = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * options.connections + 1000
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
    soak = Soak(options.seed, options.connections)
    soak.run(options.seconds)
    soak.close()
    counts = ", ".join(f"{value} {name}" for name, value in sorted(soak.ledger.counts.items()))
    print(f"all is well: {counts}")


if __name__ == "__main__":
    main()
