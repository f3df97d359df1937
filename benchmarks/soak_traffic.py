"""The connections of a soak: what each is to do is drawn from the seed and its number, and every byte of it is known.

A client sends its number, its length and then a part of PATTERN; the server sends back what it gets. Both keep a digest
of what has come, and compare it in the end with that of what was to come: all of it, or, where either has cut the
connection, a beginning of it. What is counted in a `Ledger` is looked at when all is quiet.
"""

from __future__ import annotations

import random
import socket
import struct
import threading
from collections.abc import Callable
from hashlib import sha256
from typing import Any

from eventengine import ClosedResourceError, Endpoint, MemoryAllocator, SliceBuffer, Status, StatusCode
from eventengine.engine import EventEngine, HalfCloseable, SupportsFileDescriptor

PATTERN = random.Random(0).randbytes(1 << 20)
HEAD = struct.Struct("!QQ")
LONGEST = 512 << 10
DOOMED = 1 << 40
"""Connections with this number or a higher one are of an engine that is closed among them."""


class SoakError(Exception):
    """Raised by callbacks, on purpose."""


class Ledger:
    """What was begun and must end once, and what was found wrong."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.outstanding: set[Once] = set()
        self.wrong: list[str] = []
        self.counts: dict[str, int] = {}
        self.received: dict[int, dict[str, int]] = {}

    def count(self, name: str, amount: int = 1) -> None:
        with self._lock:
            self.counts[name] = self.counts.get(name, 0) + amount

    def fail(self, text: str) -> None:
        self.wrong.append(text)

    def ended(self, side: str, number: int, size: int) -> None:
        """So many bytes of this connection have come to this side."""
        with self._lock:
            self.received.setdefault(number, {})[side] = size


class Once:
    """A callback that must be called exactly once, unless its call said that it never will be (`settle`)."""

    __slots__ = ("_ledger", "_name", "_settled", "_then")

    def __init__(self, ledger: Ledger, name: str, then: Callable[..., object]) -> None:
        self._ledger = ledger
        self._name = name
        self._then = then
        self._settled = False
        ledger.outstanding.add(self)

    def settle(self) -> None:
        if self._settled:
            self._ledger.fail(f"{self._name} was called, though it was said that it never would be")
        self._settled = True
        self._ledger.outstanding.discard(self)

    def __call__(self, *arguments: Any) -> None:
        if self._settled:
            self._ledger.fail(f"{self._name} was called once too often, with {arguments}")
        self._settled = True
        self._ledger.outstanding.discard(self)
        self._ledger.count("callbacks")
        self._then(*arguments)

    def __repr__(self) -> str:
        return self._name


class Plan:
    """What one connection is to do."""

    __slots__ = ("chance", "cut", "ending", "number", "offset", "raises", "server_cut", "size", "slow")

    ENDINGS = ("whole",) * 12 + ("close", "close elsewhere", "reset", "cancel", "refused", "no time")

    def __init__(self, seed: int, number: int) -> None:
        self.number = number
        self.chance = chance = random.Random(f"{seed}, {number}")
        self.size = HEAD.size + int(LONGEST * chance.random() ** 6)
        self.offset = chance.randrange(len(PATTERN) - LONGEST)
        self.ending = chance.choice(self.ENDINGS)
        self.cut = chance.randrange(self.size) if self.ending in ("close", "close elsewhere", "reset") else None
        self.server_cut = chance.randrange(HEAD.size, self.size + 1) if chance.random() < 0.05 else None
        # An engine that is closed drops its timers, and its loop may end before it logs what a thread of the pool says.
        self.raises = chance.random() < 0.1 and number < DOOMED
        self.slow = chance.random() < 0.1 and number < DOOMED

    @property
    def is_whole(self) -> bool:
        return self.ending == "whole" and self.server_cut is None and self.number < DOOMED

    def piece(self, start: int, size: int) -> bytes | memoryview:
        if start == 0:
            return HEAD.pack(self.number, self.size)
        start += self.offset - HEAD.size
        return memoryview(PATTERN)[start : start + size]

    def digest(self, size: int) -> bytes:
        """Of the first bytes of what the client sends."""
        known = sha256(self.piece(0, 0)[:size])
        if size > HEAD.size:
            known.update(self.piece(HEAD.size, size - HEAD.size))
        return known.digest()


class Side:
    """One end of a connection."""

    name = ""

    def __init__(self, ledger: Ledger, endpoint: Endpoint, on_end: Callable[[], object], chains: int) -> None:
        self.ledger = ledger
        self.endpoint = endpoint
        self.plan: Plan | None = None
        self.buffer = SliceBuffer()
        self.digest = sha256()
        self.size = 0
        self._on_end = on_end
        self._chains = chains
        self._lock = threading.Lock()

    def begin(self, name: str, call: Callable[[Any], bool], then: Callable[[Status], object]) -> bool:
        """True: it was done at once. False: `then` is called later."""

        def and_raise(status: Status) -> None:
            then(status)
            if self.plan is not None and self.plan.raises:
                self.ledger.count("raised")
                raise SoakError

        once = Once(self.ledger, f"{self.name}'s {name}", and_raise)
        try:
            done = call(once)
        except ClosedResourceError:
            once.settle()
            raise
        if done:
            once.settle()
        return done

    def take(self) -> None:
        """What was read."""
        for piece in self.buffer.slices:
            self.digest.update(piece.view)
        self.size += len(self.buffer)
        self.ledger.count("bytes", len(self.buffer))

    def chain_ends(self) -> None:
        with self._lock:
            self._chains -= 1
            last = not self._chains
        if last:
            self.endpoint.close()
            self.buffer.clear()
            self.check()
            self._on_end()

    def check(self) -> None:
        plan = self.plan
        if plan is None:
            return
        self.ledger.ended(self.name, plan.number, self.size)
        if self.size > plan.size or self.digest.digest() != plan.digest(self.size):
            self.ledger.fail(
                f"connection {plan.number}: {self.name} got {self.size} bytes that are not what was sent"
            )
        elif plan.is_whole and self.size != plan.size:
            self.ledger.fail(f"connection {plan.number}: {self.name} got {self.size} bytes of {plan.size}")


class Server(Side):
    """Sends back what it reads."""

    name = "server"

    def __init__(self, ledger: Ledger, endpoint: Endpoint, on_end: Callable[[], object], seed: int) -> None:
        super().__init__(ledger, endpoint, on_end, 1)
        self._seed = seed
        self._head = b""

    def start(self) -> None:
        self._go_on("write", Status.OK)

    def _go_on(self, done: str, status: Status) -> None:
        """After a read or a write."""
        try:
            while status.ok:
                if done == "read":
                    self._look_at_the_head()
                    self.take()
                    if (
                        self.plan is not None
                        and self.plan.server_cut is not None
                        and self.size > self.plan.server_cut
                    ):
                        break
                done = "read" if done == "write" else "write"
                if not self._begin_next(done):
                    return
        except ClosedResourceError:
            pass
        self.chain_ends()

    def _begin_next(self, what: str) -> bool:
        if what == "read":
            call: Callable[[Any], bool] = lambda once: self.endpoint.read(once, self.buffer)  # noqa: E731
        else:
            call = lambda once: self.endpoint.write(once, self.buffer)  # noqa: E731
        return self.begin(what, call, lambda status: self._go_on(what, status))

    def _look_at_the_head(self) -> None:
        if self.plan is None:
            self._head += bytes(self.buffer)[: HEAD.size]
            if len(self._head) >= HEAD.size:
                self.plan = Plan(self._seed, HEAD.unpack(self._head[: HEAD.size])[0])


class Client(Side):
    """Sends what its plan says and reads it back, both at a time."""

    name = "client"

    def __init__(
        self,
        ledger: Ledger,
        endpoint: Endpoint,
        on_end: Callable[[], object],
        plan: Plan,
        engine: EventEngine,
        elsewhere: Callable[[Callable[[], object]], object],
    ) -> None:
        super().__init__(ledger, endpoint, on_end, 2)
        self.plan = self._plan = plan
        self._engine = engine
        self._elsewhere = elsewhere
        self._sent = 0

    def start(self) -> None:
        self._write_on(Status.OK)
        self._read()

    def _write_on(self, status: Status) -> None:
        plan = self._plan
        try:
            while status.ok and self._sent < plan.size:
                piece = plan.piece(
                    self._sent, min(plan.chance.choice((100, 5000, 70_000)), plan.size - self._sent)
                )
                self._sent += len(piece)
                data = SliceBuffer([piece])
                if not self.begin(
                    "write", lambda once, data=data: self.endpoint.write(once, data), self._write_on
                ):  # type: ignore[misc]
                    return
            if status.ok:
                closable = self.endpoint.query_extension(HalfCloseable)
                assert closable is not None
                closable.close_write()
        except ClosedResourceError:
            pass
        self.chain_ends()

    def _read(self) -> None:
        try:
            while self.begin("read", lambda once: self.endpoint.read(once, self.buffer), self._read_on):
                if not self._took():
                    return
        except ClosedResourceError:
            self.chain_ends()

    def _read_on(self, status: Status) -> None:
        if not status.ok:
            if status.code not in (StatusCode.OUT_OF_RANGE, StatusCode.UNAVAILABLE, StatusCode.CANCELLED):
                self.ledger.fail(f"a read ended with {status}")
            self.chain_ends()
        elif self._took():
            self._read()

    def _took(self) -> bool:
        """Whether to read on at once."""
        self.take()
        plan = self._plan
        if plan.cut is not None and self.size >= plan.cut:
            plan.cut = None
            self._cut(plan.ending)
        if not plan.slow:
            return True
        again = Once(self.ledger, "timer", self._read)
        try:
            self._engine.run_after(plan.chance.random() / 50, again)
        except ClosedResourceError:
            again.settle()
            return True  # and find the endpoint closed
        return False

    def _cut(self, ending: str) -> None:
        if ending == "close":
            self.endpoint.close()
        elif ending == "close elsewhere":
            self._elsewhere(self.endpoint.close)
        else:
            released = self.endpoint.query_extension(SupportsFileDescriptor)
            assert released is not None
            try:
                sock = socket.socket(fileno=released.release())
            except ClosedResourceError:
                return
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()


def accepting(
    ledger: Ledger, seed: int, began: Callable[[], object], on_end: Callable[[], object]
) -> Callable[[Endpoint, MemoryAllocator], None]:
    """An `on_accept` that serves each connection."""

    def on_accept(endpoint: Endpoint, allocator: MemoryAllocator) -> None:
        began()
        ledger.count("accepted")
        Server(ledger, endpoint, on_end, seed).start()

    return on_accept
