"""A loop that a test turns by hand, with a clock of its own: what `admission.Scheduler` asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(eq=False)
class Timer:
    loop: Loop
    when: float
    function: Callable[[], object]

    def cancel(self) -> None:
        self.loop.timers.remove(self)


class Loop:
    """Its clock moves when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[Timer] = []
        self.letters: list[Callable[[], object]] = []
        self.is_closed = False

    def call_later(self, delay: float, function: Callable[[], object], /) -> Timer:
        timer = Timer(self, self.now + delay, function)
        self.timers.append(timer)
        return timer

    def call_soon_threadsafe(self, function: Callable[[], object], /) -> object:
        if self.is_closed:
            raise RuntimeError("closed")
        self.letters.append(function)
        return None

    def turn(self) -> None:
        letters, self.letters = self.letters, []
        for letter in letters:
            letter()

    def go(self, seconds: float) -> None:
        """Lets time pass, in steps of the timers."""
        end = self.now + seconds
        while self.timers and (timer := min(self.timers, key=lambda timer: timer.when)).when <= end:
            timer.cancel()
            self.now = max(self.now, timer.when)
            timer.function()
            self.turn()
        self.now = end
