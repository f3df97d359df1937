"""`Simulation`: virtual time, and all that happens in it, one thing after another.

Rules:

1. Time passes only when nothing is left to do at the present moment: then it jumps to the next event. An event is a
   timer of an engine, or something of the network that arrives. Events at the same time happen in the order of their
   making.
2. A *turn* is what a loop does in one round: first what was handed over (`wake`), then the sockets that are ready, each
   once, as `Host.watch` says. Which sockets are ready is looked up for those that were touched since.
3. One thread turns; it is the loop's thread of each engine. The others may call engines and sockets all the same:
   `changed` is the lock of all that is simulated, and tells who waits for a change. No callback runs under it.
4. What a callback raises is raised by who turns, once the turn is over, or a failed assertion in a callback would pass
   for a success.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from heapq import heappop, heappush
from itertools import count
from typing import Final

from eventengine.core.timers import check_seconds
from eventengine.testing.simulated.conditions import CALM, Conditions
from eventengine.testing.simulated.network import SimulatedNetwork
from eventengine.testing.simulated.trace import Draws, Line, Trace

__all__ = ["Event", "Simulation"]

MOST_STEPS: Final = 1_000_000
"""Steps without time passing, after which something must be going round in a circle."""

_log: Final = logging.getLogger("eventengine")


class Event:
    """Something that is to happen; without a function, it was cancelled."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[[], object]) -> None:
        self.function: Callable[[], object] | None = function

    def cancel(self) -> None:
        self.function = None


class Simulation:
    """A world of its own: time, a network, chance, and a trace of what happened.

    Args:
        seed: What is left to chance is drawn from it: the same seed, the same course.
        conditions: How the network behaves.
        replay: A trace, or its text: what was drawn then is drawn now, and `seed` and `conditions` do not matter.

    Raises TypeError for a seed that is no int, and conditions that are none: the network would be calm.
    """

    def __init__(self, seed: int = 0, conditions: Conditions = CALM, *, replay: Trace | str | None = None) -> None:
        if not isinstance(seed, int):
            hint = "; write conditions=" if isinstance(seed, Conditions) else ""
            raise TypeError(f"seed must be an int, not {type(seed).__name__}{hint}")
        if not isinstance(conditions, Conditions):
            raise TypeError(f"conditions must be Conditions, not {type(conditions).__name__}")
        self.seed = seed
        self.conditions = conditions
        self.now = 0.0
        self.trace = Trace()
        self.errors: list[BaseException] = []
        self.changed = threading.Condition(threading.RLock())
        self.thread = threading.get_ident()
        self.is_turning = False
        self.poke: Callable[[], object] | None = None
        self.draws = Draws(seed, Trace.parse(replay) if isinstance(replay, str) else replay, self.note)
        self.network = SimulatedNetwork(self)
        self._events: list[tuple[float, int, Event]] = []
        self._numbers = count()
        self._mail: deque[Callable[[], object]] = deque()
        self._watched: dict[int, tuple[int, Callable[[int], object]]] = {}
        self._touched: dict[int, None] = {}

    # What a test does.

    def advance(self, seconds: float) -> None:
        """Lets so much time pass, and all happen that does within it. Raises what a callback raised."""
        check_seconds("seconds", seconds)
        until = self.now + seconds
        self._run(until, lambda: False)
        self.now = until

    def run_until_idle(self, limit: float = 3600.0) -> None:
        """Lets time pass until nothing is under way any more: no closure, no timer, nothing on the network.

        Raises what a callback raised; AssertionError when there is still something after `limit` seconds.
        """
        if not self._run(self.now + limit, lambda: False):
            raise AssertionError(f"something is still to come after {limit} s; a timer that sets itself anew?")

    def run_until(self, happened: Callable[[], object], limit: float = 3600.0) -> None:
        """Lets time pass until `happened` returns something true.

        Raises what a callback raised; AssertionError when it does not happen within `limit` seconds, or cannot happen
        any more.
        """
        idle = self._run(self.now + limit, happened)
        if not happened():
            why = "nothing is under way any more" if idle else f"{limit} s have passed"
            raise AssertionError(f"it did not happen, and {why}")

    def _run(self, until: float, happened: Callable[[], object]) -> bool:
        """Whether nothing is left to happen, at any time."""
        with self.turning():
            steps, then = 0, self.now
            while not happened():
                if not self.step(until):
                    return not self._events
                if self.errors:
                    raise self.errors.pop(0)
                steps = steps + 1 if self.now == then else 0
                then = self.now
                if steps > MOST_STEPS:
                    raise AssertionError(
                        f"{MOST_STEPS} steps, and time stands still; a closure that runs itself anew?"
                    )
        return False

    # What the engines' hosts and the network do.

    @contextmanager
    def turning(self) -> Generator[None]:
        """This thread turns."""
        if self.is_turning:
            raise RuntimeError("time is passing already; a callback cannot let it pass, too")
        self.is_turning = True
        self.thread = threading.get_ident()
        try:
            yield
        finally:
            self.is_turning = False

    def step(self, until: float) -> bool:
        """One turn, or the next event if it comes `until` then; whether there was any."""
        if self._turn():
            return True
        with self.changed:
            event = self._next_event()
            if event is None or self._events[0][0] > until:
                return False
            self.now = max(self.now, heappop(self._events)[0])
            function, event.function = event.function, None
        if function is not None:
            function()
        return True

    @property
    def next_time(self) -> float | None:
        """When the next event comes; None: there is none."""
        with self.changed:
            return None if self._next_event() is None else self._events[0][0]

    def _next_event(self) -> Event | None:
        while self._events:
            event = self._events[0][2]
            if event.function is not None:
                return event
            heappop(self._events)
        return None

    def _turn(self) -> bool:
        letters = len(self._mail)
        for _ in range(letters):
            self._mail.popleft()()
        ready = [fd for fd in list(self._touched) if self._is_ready(fd)]
        shuffle = self.conditions.shuffle
        for n in (
            self.draws.order("turn", "order", len(ready), shuffle=shuffle) if len(ready) > 1 else range(len(ready))
        ):
            watched = self._watched.get(ready[n])
            if watched is not None:
                events = self.network.readiness(ready[n]) & watched[0]
                if events:
                    watched[1](events)
        return bool(letters or ready)

    def _is_ready(self, fd: int) -> bool:
        self._touched.pop(fd, None)  # first, for another thread may touch it just now
        watched = self._watched.get(fd)
        if watched is None or not self.network.readiness(fd) & watched[0]:
            return False
        self._touched[fd] = None
        return True

    def note(self, subject: str, text: str) -> None:
        self.trace.add(Line(self.now, subject, text))

    def call_at(self, when: float, function: Callable[[], object]) -> Event:
        """Has `function` called by who turns, at that time. Any thread."""
        event = Event(function)
        with self.changed:
            heappush(self._events, (when, next(self._numbers), event))
        self._poke()
        return event

    def wake(self, function: Callable[[], object]) -> None:
        """Has `function` called in the next turn. Any thread, and takes no lock."""
        self._mail.append(function)
        self._poke()

    def watch(self, fd: int, events: int, on_ready: Callable[[int], object]) -> None:
        self._watched[fd] = (events, on_ready)
        self._touched[fd] = None

    def unwatch(self, fd: int) -> None:
        self._watched.pop(fd, None)

    def touch(self, fd: int) -> None:
        """A socket has changed. With the lock held."""
        self._touched[fd] = None
        self.changed.notify_all()
        self._poke()

    def _poke(self) -> None:
        if self.poke is not None and threading.get_ident() != self.thread:
            self.poke()

    def failed(self, message: str, error: BaseException) -> None:
        """A callback raised: rule 4."""
        self.errors.append(error)
        _log.error(message, exc_info=error)
