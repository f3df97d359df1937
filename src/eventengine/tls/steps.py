"""`Steps`: what is done within a turn of an endpoint over TLS. What a turn is, and who may touch what, says `endpoint`.

What goes on below, and why one thing is done before another:

1. First what has come of a write below, then close or writing, then reading, then what OpenSSL has to say to what was
   read. A turn goes on for as long as things are done at once, which the endpoint below has a budget for.
2. Plaintext that is in hand is given out before anything is read below; bytes before the end come first, with OK.
3. A read for whose plaintext the quota has no room stands in the quota's line, and has a read outstanding below all the
   same: so it hears of the end, and what that read brings is room, too.
4. What OpenSSL answers to what was read (new keys, no renegotiation) waits in its memory BIO, uncharged, while a write
   is below. A peer that has us answer and does not take the answers is cut at UNTAKEN bytes.
   What a server says after the handshake of TLS 1.3, tickets for new sessions, is in no hurry: where the first read is
   served at once, it goes with what is written then, or is the first that the next turn sends. One system call less
   wakes the peer once less.
5. OpenSSL renegotiates (TLS 1.2) within reads and writes, and then encrypts nothing until it has heard of the peer: a
   write has a read below, then, and what that brings of plaintext is put aside for the next read. So is, whatever the
   quota says, what OpenSSL holds for want of room: within a write it passes none over.
6. Decrypting that takes long goes on in another turn, by a closure of the engine's. Until then what a read below has
   brought counts as just arriving.
"""

from __future__ import annotations

import contextlib
import ssl
from abc import abstractmethod
from collections.abc import Callable
from typing import Final

from eventengine.core.endpoint import SocketEndpoint
from eventengine.core.operations import CLOSED
from eventengine.core.telemetry import Telling
from eventengine.engine import Endpoint, EventEngine, TaskHandle, WriteEvent, WriteEventSink
from eventengine.memory_quota import MemoryQuota
from eventengine.slices import SliceBuffer
from eventengine.status import ClosedResourceError, ForkedProcessError, Status, StatusCode
from eventengine.tls.decrypting import Decrypter
from eventengine.tls.encrypting import Encrypter
from eventengine.tls.statuses import UNCLEAN_END, status_of

__all__ = ["OnDone", "ReadRequest", "Steps", "WriteRequest"]

LINGER: Final = 1.0
"""Seconds that a close waits, at most, for a peer that does not take the close_notify."""

UNTAKEN: Final = 1 << 16
"""Bytes of OpenSSL's own answers that a peer may leave untaken: the new keys that it asked for 2,400 times."""

_OK: Final = Status.OK
_TAKES_NO_ANSWERS: Final = Status(
    StatusCode.UNAVAILABLE, "reading: the peer has TLS answer it again and again, and does not take the answers"
)

_CLOSED_ONLY: Final = frozenset({WriteEvent.CLOSED})

OnDone = Callable[[Status], object]
ReadRequest = tuple[OnDone, SliceBuffer, int]
WriteRequest = tuple[OnDone, SliceBuffer, int, WriteEventSink | None]


class _OfAPart:
    """The sink of what is not the last of a write: its end is no news, but that of the connection is."""

    __slots__ = ("_sink", "on_event")

    def __init__(self, sink: WriteEventSink) -> None:
        self._sink = sink
        self.on_event = sink.on_event

    @property
    def requested_events(self) -> frozenset[WriteEvent]:
        return self._sink.requested_events & _CLOSED_ONLY


class Steps(Endpoint):
    __slots__ = (
        "_arrived",
        "_below",
        "_ciphertext",
        "_close_timer",
        "_closed",
        "_closes_below",
        "_decrypter",
        "_encrypter",
        "_end_below",
        "_engine",
        "_goes_on",
        "_has_ended",
        "_has_tickets",
        "_incoming",
        "_is_gone",
        "_is_rested",
        "_memory",
        "_must_end",
        "_outgoing_charge",
        "_read_ended",
        "_reading",
        "_reads_below",
        "_sealed",
        "_send_at_once",
        "_sent",
        "_tls",
        "_to_write",
        "_unwritable",
        "_waits_for_room",
        "_write_ended",
        "_write_finished",
        "_writes_below",
        "_writing",
    )

    def __init__(
        self,
        engine: EventEngine,
        below: Endpoint,
        tls: ssl.SSLObject,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        memory: MemoryQuota,
    ) -> None:
        self._engine = engine
        self._below = below
        self._send_at_once = below.send_at_once if type(below) is SocketEndpoint else None
        self._tls = tls
        self._incoming = incoming
        self._memory = memory
        self._decrypter = Decrypter(tls, incoming, memory)
        self._encrypter = Encrypter(tls, outgoing)
        # What others leave for the next turn.
        self._closed = self._write_ended = self._must_end = False
        self._reading: ReadRequest | None = None
        self._to_write: WriteRequest | None = None
        self._arrived: Status | None = None  # of the read below
        self._sent: Status | None = None  # of the write below
        self._is_rested = False  # this is another turn of the engine
        # What the turns know.
        self._goes_on = False  # another turn will come of itself
        self._writing: WriteRequest | None = None
        self._has_ended = False  # a close_notify was made
        self._has_tickets = bool(outgoing.pending)  # and no turn was taken yet
        self._ciphertext = SliceBuffer()  # what the read below brings
        self._reads_below = self._writes_below = False
        self._sealed = SliceBuffer()  # what is written below
        self._outgoing_charge = 0
        self._end_below: Status | None = None
        self._unwritable: Status | None = None
        self._waits_for_room = False
        self._closes_below = False
        self._close_timer: TaskHandle | None = None
        self._is_gone = False  # what is below was closed, by us or with the engine
        # What a turn ended, to be told after it.
        self._read_ended: tuple[ReadRequest, Status] | None = None
        self._write_finished: tuple[WriteRequest, Status] | None = None
        if incoming.pending:  # came with the last of the handshake; lies in a block from now on, and is charged
            early = incoming.read()
            block = memory.make_block(len(early), len(early))
            block[: len(early)] = early
            self._ciphertext.append(memoryview(block)[: len(early)])
            self._arrived = _OK
            self._reads_below = True

    @abstractmethod
    def _on_arrived(self, status: Status) -> None:
        """The read below has ended."""

    @abstractmethod
    def _on_sent(self, status: Status) -> None:
        """The write below has ended."""

    @abstractmethod
    def _go_on(self) -> None:
        """Another turn, which was asked for."""

    @abstractmethod
    def _on_room(self) -> bool:
        """The quota has room. Any thread, and takes no lock; True passes the news on."""

    def _step(self) -> None:
        if self._is_rested:
            self._is_rested = False
            self._decrypter.rest()
        sent = self._sent
        if sent is not None:
            self._sent = None
            self._take_sent(sent)
        request = self._to_write
        if request is not None:
            self._to_write = None
            self._writing = request
            self._encrypter.take(request[1], request[2])
            if self._unwritable is not None:
                self._tell_of_the_end()
        if self._closed:
            self._go_on_closing()
            return
        self._go_on_writing()
        self._go_on_reading()
        has_tickets, self._has_tickets = self._has_tickets, False
        if self._encrypter.output and not (has_tickets and self._read_ended is not None):
            self._go_on_writing()

    def _tell_of_the_end(self) -> None:
        """Nothing more of the write goes below, where its sink would be told."""
        writing, below = self._writing, self._below
        if writing is not None and (sink := writing[3]) is not None and isinstance(below, SocketEndpoint):
            self._writing = Telling(below, writing[0], sink), writing[1], writing[2], None

    def _go_on_reading(self) -> None:
        while True:
            request = self._reading
            if self._arrived is not None:
                self._take_arrived(self._arrived, request)
                if self._encrypter.waits_for_the_peer:
                    self._go_on_writing()
            if request is not None:
                status = self._look_for_plaintext(request)
                if status is not None:
                    self._end_read(status)
                    request = None
            if (
                self._decrypter.is_tired
                and (request is not None or self._encrypter.waits_for_the_peer)
                and not self._goes_on_later()
            ):
                continue
            if self._reads_below:
                return
            end = self._decrypter.end if self._end_below is None else self._end_below
            if end is not None:
                if self._encrypter.waits_for_the_peer:  # of which nothing will be heard
                    self._unwritable = end if end.code is not StatusCode.OUT_OF_RANGE else UNCLEAN_END
                    self._go_on_writing()
                return
            if request is None and not self._encrypter.waits_for_the_peer:
                return
            self._reads_below = True
            try:
                if not self._below.read(self._on_arrived, self._ciphertext):
                    return
                self._arrived = _OK
            except (ClosedResourceError, ForkedProcessError):
                self._reads_below = False
                self._end_below = CLOSED
                self._is_gone = True

    def _take_arrived(self, status: Status, request: ReadRequest | None) -> None:
        """What the read below brought goes through OpenSSL; without a request, that is only to hear of the peer."""
        if request is None and self._writing is None:
            return  # it stays as it is, until somebody wants it
        if not status.ok:
            self._arrived = None
            self._reads_below = False
            self._end_below = UNCLEAN_END if status.code is StatusCode.OUT_OF_RANGE else status
            self._is_gone = self._is_gone or status.code is StatusCode.CANCELLED
            return
        decrypter = self._decrypter
        ciphertext, self._ciphertext._parts = self._ciphertext._parts, []
        self._ciphertext._length = 0
        plaintext = SliceBuffer() if request is None else request[1]
        is_done = decrypter.take(ciphertext, plaintext)
        if self._writes_below and self._encrypter.output > UNTAKEN:
            decrypter.end = _TAKES_NO_ANSWERS
            is_done = is_done or decrypter.take(ciphertext, plaintext)
        if request is None:
            decrypter.put_aside(plaintext)
        if is_done:
            self._arrived = None
            self._reads_below = False
        else:
            self._ciphertext._parts = ciphertext

    def _look_for_plaintext(self, request: ReadRequest) -> Status | None:
        """OK when there is enough, what ended the stream, or None when one has to wait."""
        decrypter, buffer = self._decrypter, request[1]
        if decrypter.has_more:
            decrypter.give(buffer, whatever_the_quota_says=self._end_below is not None)
            if not buffer._length and decrypter.has_more and not decrypter.is_tired:
                self._wait_for_room(buffer)
        if buffer._length:
            ended = decrypter.end is not None or self._end_below is not None
            full = decrypter.has_more and not decrypter.is_tired
            return _OK if ended or full or buffer._length >= request[2] else None
        if decrypter.end is not None:
            return decrypter.end
        return None if decrypter.has_more else self._end_below

    def _goes_on_later(self) -> bool:
        """Rule 6. False: there will be no other turn."""
        if self._goes_on:
            return True
        self._goes_on = True
        try:
            self._engine.run(self._go_on)
        except (ClosedResourceError, ForkedProcessError):
            self._goes_on = False
            self._decrypter.rest()
            return False
        return True

    def _wait_for_room(self, buffer: SliceBuffer) -> None:
        """Enlists first and tries once more after, so that no wake-up is lost."""
        waited, self._waits_for_room = self._waits_for_room, True
        self._memory.add_waiter(self._on_room)
        self._decrypter.give(buffer)
        if buffer._length:
            self._stop_waiting()
        elif waited:  # woken in vain
            self._memory.keep_place(self._on_room)

    def _stop_waiting(self) -> None:
        if self._waits_for_room:
            self._waits_for_room = False
            self._memory.remove_waiter(self._on_room)

    def _end_read(self, status: Status) -> None:
        request = self._reading
        assert request is not None
        self._stop_waiting()
        self._reading = None
        request[1]._lent = False
        self._read_ended = request, status

    def _go_on_writing(self) -> None:
        """Encrypts and writes below, as long as that is done at once."""
        if self._writes_below:
            return
        if self._must_end:
            self._must_end = False
            self._decrypter.set_aside()
            self._send_close_notify()
            return
        encrypter = self._encrypter
        if self._unwritable is None and (encrypter.has_plaintext or (encrypter.output and not self._has_tickets)):
            self._encrypt()
        if (
            self._writing is not None
            and not self._writes_below
            and (self._unwritable is not None or not encrypter.has_plaintext)
        ):
            encrypter.drop()
            self._end_write(_OK if self._unwritable is None else self._unwritable)

    def _encrypt(self) -> None:
        encrypter, writing = self._encrypter, self._writing
        send = None if writing is None or writing[3] is not None else self._send_at_once
        try:
            encrypter.encrypt(self._write_below, send)
            while encrypter.waits_for_the_peer and self._decrypter.is_in_the_way and not self._writes_below:
                self._decrypter.set_aside()
                encrypter.encrypt(self._write_below, send)
        except ssl.SSLError as error:
            encrypter.drop()
            self._tell_of_the_end()
            encrypter.encrypt(self._write_below)  # the alert
            self._unwritable = status_of(error, "writing")

    def _write_below(self, parts: list[memoryview], is_part: bool) -> bool:
        """Whether that was done at once, and more can be written. `is_part`: more of the same write is to come."""
        writing = self._writing
        ciphertext = self._sealed
        ciphertext._parts = parts
        ciphertext._length = size = sum(map(len, parts))
        try:
            if writing is None or (sink := writing[3]) is None:
                if self._below.write(self._on_sent, ciphertext):
                    return True
            elif self._below.write(self._on_sent, ciphertext, sink=_OfAPart(sink) if is_part else sink):
                return True
        except (ClosedResourceError, ForkedProcessError):
            ciphertext.clear()
            self._tell_of_the_end()
            self._unwritable = CLOSED
            self._is_gone = True
            return False
        self._writes_below = True
        if self._writing is not None:  # else it is a few bytes that the application did not ask for
            self._outgoing_charge = self._memory.take(size, size)
        return False

    def _take_sent(self, status: Status) -> None:
        self._writes_below = False
        self._sealed.clear()
        if not status.ok:
            if not self._outgoing_charge:  # it was nothing of what is being written
                self._tell_of_the_end()
            self._unwritable = status
            self._is_gone = self._is_gone or status.code is StatusCode.CANCELLED
        self._memory.give(self._outgoing_charge)
        self._outgoing_charge = 0

    def _end_write(self, status: Status) -> None:
        request = self._writing
        assert request is not None
        self._writing = None
        self._write_finished = request, status

    def _go_on_closing(self) -> None:
        """Rule 6; and what is outstanding ends as the operations below it do."""
        if not self._closes_below:
            self._closes_below = True
            self._stop_waiting()
            if self._writing is not None or not self._lingers():
                self._close_below()
        elif self._close_timer is not None and not self._writes_below:
            self._engine.cancel(self._close_timer)
            self._close_timer = None
            if not self._lingers():
                self._close_below()
        if self._arrived is not None:
            self._arrived = None
            self._reads_below = False
            self._ciphertext.clear()
            self._decrypter.drop()
        if self._reading is not None and not self._reads_below:
            self._reading[1].clear()
            self._end_read(CLOSED)
        if self._writing is not None and not self._writes_below and not self._reads_below:
            if self._encrypter.has_plaintext and self._unwritable is None:
                self._tell_of_the_end()
            self._encrypter.drop()
            self._end_write(CLOSED)

    def _lingers(self) -> bool:
        """Sends a close_notify, if none was; True: what is below is to be closed when it was taken there."""
        if not self._writes_below and not self._has_ended and not self._is_gone:
            self._send_close_notify()
        if not self._writes_below:
            return False
        try:
            self._close_timer = self._engine.run_after(LINGER, self._below.close)
        except (ClosedResourceError, ForkedProcessError):
            return False
        return True

    def _send_close_notify(self) -> None:
        self._has_ended = True
        ending = self._encrypter.end(self._incoming)
        if ending and self._unwritable is None:
            self._write_below([memoryview(ending)], False)

    def _close_below(self) -> None:
        with contextlib.suppress(ForkedProcessError):
            self._below.close()
