"""`Mailbox`: work handed over to the loop's thread, from any thread.

Rules:

1. `post` appends first and looks at `_woken` after; `drain` clears `_woken` first and looks at the queue after. So a
   letter is either seen by the drain that runs, or wakes the host for the next: none is left lying. Two threads may
   both find `_woken` clear and both wake; the second drain finds nothing, which does no harm.
2. One wake-up brings one batch, at most LIMIT letters, so that the host has its turn; what is left wakes it again.
   During a turn of the engine no wake-up is needed (`hold`): the turn ends with a drain.
3. After `close` nothing is lost either: `post` appends first and looks at `_closed` after; `close` sets it first and
   empties the queue after. A poster that finds it set takes its letter back, and says so at the caller; if the letter
   is gone, `close` has run it.
4. What a letter raises, which may be a closure of the application's, goes to `failed`. What this raises in its turn
   (KeyboardInterrupt and SystemExit, see `callbacks`) ends the batch; the rest wakes anew.

`post` takes no lock: it is also called when a garbage collection finds what was never closed.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from typing import Final, NoReturn

from eventengine.core.host import Host
from eventengine.status import ClosedResourceError, ForkedProcessError

__all__ = ["Mailbox", "forked"]

LIMIT: Final = 256


def _raise(letter: object, error: BaseException) -> NoReturn:
    raise error


class Mailbox:
    __slots__ = ("_closed", "_failed", "_forked", "_host", "_on_wake", "_queue", "_woken")

    def __init__(
        self,
        host: Host,
        on_wake: Callable[[], object],
        failed: Callable[[object, BaseException], object] = _raise,
    ) -> None:
        """`on_wake` is what the host is to call: a turn of the engine, which ends with `drain`."""
        self._failed = failed
        self._host = host
        self._on_wake = on_wake
        self._queue: deque[Callable[[], object]] = deque()
        self._woken = False
        self._closed = False
        self._forked = False

    def post(self, letter: Callable[[], object]) -> None:
        """Has `letter` called on the loop's thread, soon. Any thread.

        Raises ClosedResourceError after `close` and when the host's loop was closed, ForkedProcessError in a child.
        """
        self._queue.append(letter)
        if self._closed:
            self._take_back(letter, forked() if self._forked else ClosedResourceError("the engine was closed"))
        elif not self._woken:
            self._woken = True
            try:
                self._host.wake(self._on_wake)
            except ClosedResourceError as error:
                self._woken = False
                self._take_back(letter, error)

    def post_first(self, letter: Callable[[], object]) -> None:
        """As `post`, but ahead of all that waits: the next batch begins with it. Any thread."""
        self._queue.appendleft(letter)
        try:
            self.post(_nothing)
        except (ClosedResourceError, ForkedProcessError) as error:
            self._take_back(letter, error)

    def hold(self) -> None:
        """A turn begins: until its drain no wake-up is needed."""
        self._woken = True

    def drain(self) -> None:
        """Runs one batch, on the loop's thread."""
        self._woken = False
        queue = self._queue
        if not queue:
            return
        letter: Callable[[], object] | None = None
        try:
            for _ in range(min(len(queue), LIMIT)):
                if not queue:  # a letter closed the engine
                    break
                letter = queue.popleft()
                try:
                    letter()
                except BaseException as error:
                    self._failed(letter, error)
        finally:
            letter = None  # a log may keep this frame, as the caller of what raised
            if queue and not self._woken:
                self._woken = True
                with contextlib.suppress(ClosedResourceError):
                    self._host.wake(self._on_wake)

    def close(self) -> None:
        """Runs all that is there, and what that posts; nothing is taken any more."""
        self._closed = True
        interrupt: BaseException | None = None
        while True:
            try:
                letter = self._queue.popleft()
            except IndexError:  # also when another thread closes, too
                break
            try:
                try:
                    letter()
                except BaseException as error:
                    self._failed(letter, error)
            except BaseException as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt

    def abandon(self) -> None:
        """In a child process: the thread that would drain is not there."""
        self._closed = self._forked = True
        self._queue.clear()

    def _take_back(self, letter: Callable[[], object], error: Exception) -> None:
        try:
            self._queue.remove(letter)
        except ValueError:
            return
        raise error


def forked(what: str = "engine") -> ForkedProcessError:
    return ForkedProcessError(f"this {what} was made before the fork; make a new one in the child process")


def _nothing() -> None:
    pass
