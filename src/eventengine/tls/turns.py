"""`Turns`: who works on an endpoint over TLS, when, and who calls the callbacks. The rules are in `endpoint`."""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Callable
from typing import Final, TypeVar

from eventengine.core.mailbox import forked
from eventengine.engine import Endpoint, EventEngine
from eventengine.memory_quota import MemoryQuota
from eventengine.status import ClosedResourceError, ForkedProcessError, Status
from eventengine.tls.steps import ReadRequest, Steps, WriteRequest

__all__ = ["Turns"]

R = TypeVar("R")

_FROM_BELOW: Final = object()
"""Instead of a request: the turn is taken by a callback from below."""

_this_process: Final = [object()]
"""Another object in each process."""


class Turns(Steps):
    __slots__ = ("_again", "_in_turn", "_process", "_read_idle", "_strand", "_write_idle")

    def __init__(
        self,
        engine: EventEngine,
        below: Endpoint,
        tls: ssl.SSLObject,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        memory: MemoryQuota,
    ) -> None:
        super().__init__(engine, below, tls, incoming, outgoing, memory)
        self._strand = threading.RLock()
        self._in_turn = self._again = False
        self._process = _this_process[0]
        self._read_idle = self._write_idle = None

    @property
    def _is_forked(self) -> bool:
        return self._process is not _this_process[0]

    def _misused(self, error: Exception) -> Exception:
        return forked() if self._is_forked else error

    def _turn(self, caller: object) -> Status | None:
        """Rules 2 and 4. What ended the request `caller`, if it was ended in a turn that was taken here."""
        strand = self._strand
        read: tuple[ReadRequest, Status] | None = None
        written: tuple[WriteRequest, Status] | None = None
        while True:
            self._again = True
            if not strand.acquire(blocking=False):
                break
            if self._in_turn:
                strand.release()
                break
            self._in_turn = True
            try:
                while self._again:
                    self._again = False
                    self._step()
                # Each at most once, for its token comes back only when it was told.
                if self._read_ended is not None:
                    read, self._read_ended = self._read_ended, None
                if self._write_finished is not None:
                    written, self._write_finished = self._write_finished, None
            finally:
                self._in_turn = False
                strand.release()
            if not self._again:
                break
        if read is None and (written is None or written[0] is caller):  # as a rule, of a call that writes
            return None if written is None else written[1]
        outcome: Status | None = None
        if read is not None and read[0] is caller:
            outcome = read[1]
            read = None
        if written is not None and written[0] is caller:
            outcome = written[1]
            written = None
        directly = caller is _FROM_BELOW
        if written is not None and (read is not None or not directly):
            self._tell_later(self._tell_written, *written)
            written = None
        if read is not None and not directly:
            self._tell_later(self._tell_read, *read)
        elif read is not None:
            on_done, status = read[0][0], read[1]
            read = None  # logs may keep this frame, and with it what was read, if the callback raises
            self._read_idle = None
            on_done(status)
        elif written is not None:
            self._tell_written(*written)
        return outcome

    def _write_at_once(self, request: WriteRequest) -> bool:
        """A turn in which nothing is done but to write: most are, and this takes fewer steps. False: the whole, or
        what is left of it, is for a turn proper."""
        strand = self._strand
        if self._again or not strand.acquire(blocking=False):
            self._to_write = request
            return False
        if self._in_turn or self._closed or self._writes_below or self._unwritable is not None:
            self._to_write = request
            strand.release()
            return False
        self._in_turn = True
        try:
            self._writing = request
            encrypter = self._encrypter
            encrypter.take(request[1], request[2])
            self._encrypt()
            if self._writes_below or self._unwritable is not None or encrypter.has_plaintext:
                return False
            self._writing = None
        finally:
            self._in_turn = False
            strand.release()
        if self._again:  # somebody left news meanwhile, to us
            self._turn(None)
        return True

    def _tell_later(self, tell: Callable[[R, Status], None], request: R, status: Status) -> None:
        requests = [request]
        del request

        def tell_it() -> None:
            tell(
                requests.pop(), status
            )  # logs may keep this closure, and with it what was read, if the callback raises

        try:
            self._engine.run(tell_it)
        except ClosedResourceError:  # the engine ended just now; nobody else will do it
            tell_it()

    def _tell_read(self, request: ReadRequest, status: Status) -> None:
        on_read = request[0]
        del request  # logs may keep this frame, and with it what was read
        self._read_idle = None
        on_read(status)

    def _tell_written(self, request: WriteRequest, status: Status) -> None:
        if not self._write_ended:
            self._write_idle = None
        request[0](status)

    # What comes from elsewhere.

    def _on_arrived(self, status: Status) -> None:
        self._arrived = status
        self._is_rested = True
        self._turn(_FROM_BELOW)

    def _on_sent(self, status: Status) -> None:
        self._sent = status
        self._is_rested = True
        self._turn(_FROM_BELOW)

    def _go_on(self) -> None:
        self._goes_on = False
        self._is_rested = True
        self._turn(_FROM_BELOW)

    def _on_room(self) -> bool:
        """The quota has room. Any thread, and takes no lock; True passes the news on."""
        try:
            self._engine.run(self._look_for_room)
        except (ClosedResourceError, ForkedProcessError):
            return True
        return False

    def _look_for_room(self) -> None:
        self._is_rested = True
        self._turn(_FROM_BELOW)
        self._memory.wake_next_waiter()


def _after_fork_in_child() -> None:
    _this_process[0] = object()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
