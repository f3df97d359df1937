"""A host that a test turns by hand: its clock moves when told to, and nothing happens unless asked for."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor

from eventengine.core.host import Host
from eventengine.core.loop import Loop


class ManualHost(Host):
    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: dict[object, tuple[float, Callable[[], object]]] = {}
        self.delays: list[float] = []
        self.woken: list[Callable[[], object]] = []
        self.watched: dict[int, int] = {}
        self.logged: list[BaseException] = []

    @property
    def time(self) -> Callable[[], float]:
        return lambda: self.now

    def call_later(self, delay: float, function: Callable[[], object]) -> object:
        handle = object()
        self.delays.append(delay)
        self.timers[handle] = (self.now + delay, function)
        return handle

    def cancel(self, handle: object) -> None:
        if not self.is_closed:
            del self.timers[
                handle
            ]  # it must be there: some frameworks raise for one that was called or taken back

    def wake(self, function: Callable[[], object]) -> None:
        self.woken.append(function)

    def watch(self, fd: int, events: int, on_ready: Callable[[int], object]) -> None:
        self.watched[fd] = events

    def unwatch(self, fd: int) -> None:
        self.watched.pop(fd, None)

    def log_exception(self, message: str, error: BaseException) -> None:
        self.logged.append(error)

    is_running = True
    is_closed = False

    def fire(self, early: float = 0.0) -> int:
        """Calls the timers that are due, or will be within `early` seconds; returns how many."""
        due = [handle for handle, (when, _) in self.timers.items() if when <= self.now + early]
        functions = [self.timers.pop(handle)[1] for handle in due]
        for function in functions:
            function()
        return len(functions)

    def turn(self) -> None:
        """Calls what `wake` brought."""
        woken, self.woken = self.woken, []
        for function in woken:
            function()


def make_loop(host: Host, callback_executor: Executor | None = None) -> Loop:
    loop = Loop(host, callback_executor=callback_executor, private_poller=False, own_thread=False)
    with loop:  # a turn, so that this thread is the loop's
        pass
    return loop


def letters_of(loop: Loop) -> list[Callable[[], object]]:
    """What is posted to the loop from now on."""
    letters: list[Callable[[], object]] = []
    post = loop.post

    def counted(letter: Callable[[], object]) -> None:
        letters.append(letter)
        post(letter)

    loop.post = counted
    return letters
