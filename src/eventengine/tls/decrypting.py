"""`Decrypter`: what comes in over TLS, through OpenSSL.

Rules:

1. One thread at a time, in this and the `Encrypter` together: they share an `SSLObject`. Who sees to that is
   `endpoint`.
2. Plaintext takes the place of its ciphertext. A read below brought a block that is charged to the quota; OpenSSL is
   given a piece of it, and what it makes of that goes to where the piece was. So decrypting takes no second block, and
   a quota that is full of ciphertext cannot come to a standstill over it. It needs that nobody else can see the block,
   which is asked (`is_unshared`), and that no byte is overwritten which OpenSSL has not got: `done <= fed` below.
3. OpenSSL is given little at a time, for its memory BIOs keep the room of the most that was ever in them: a whole
   record and a piece, some 45 KiB of room, once a connection has read in bulk. A whole record ahead spares asking in
   vain, which costs as much as a third of a record.
4. Between two calls OpenSSL holds at most one record of ciphertext, whose rest is to come, and one of plaintext, for
   which there was no room. They are not charged: charged parts of records might fill a quota, and then none of them
   would ever be whole.
5. Records that carry little take as long as others, new keys twenty times that, and a peer may send as many as it
   likes. So a turn that has decrypted such for TURN seconds leaves the rest for another (`is_tired`): the block that it
   was at stays as it is, charged, with the plaintext that is in it by then.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from time import monotonic
from typing import Final, cast

from eventengine.memory_quota import LARGEST_POOLED_BLOCK, SMALLEST_BLOCK, MemoryQuota
from eventengine.slices import SliceBuffer, is_unshared, recycle_last
from eventengine.status import Status
from eventengine.tls.encrypting import RECORD
from eventengine.tls.statuses import CLEAN_END, status_of

__all__ = ["Decrypter"]

_LONGEST_RECORD: Final = 5 + RECORD + 2048
TURN: Final = 0.01
"""Seconds that one turn decrypts short records; of full ones it gets no more than a read below brings."""
_SHORT: Final = 4096


class Decrypter:
    __slots__ = (
        "_aside",
        "_incoming",
        "_may_have_more",
        "_memory",
        "_tls",
        "_under_way",
        "_until",
        "end",
        "is_tired",
    )

    def __init__(self, tls: ssl.SSLObject, incoming: ssl.MemoryBIO, memory: MemoryQuota) -> None:
        self._tls = tls
        self._incoming = incoming
        self._memory = memory
        self._may_have_more = False
        self._aside: list[memoryview] = []
        self._under_way: tuple[memoryview, int, int] | None = None  # a block of which a part is left, by rule 5
        self.end: Status | None = None
        """What ended the stream, once all that came before was given out."""
        self.is_tired = False
        """Whether what is left is for another turn: rule 5."""
        self._until = 0.0  # of this turn, once it has begun to decrypt

    @property
    def has_more(self) -> bool:
        """Whether there is plaintext for which there was no room."""
        return self._may_have_more or bool(self._aside)

    def rest(self) -> None:
        """Another turn begins."""
        self.is_tired = False
        self._until = 0.0

    @property
    def is_in_the_way(self) -> bool:
        """Whether OpenSSL holds plaintext, behind which the peer's part of a handshake may wait."""
        return self._may_have_more and self.end is None

    def take(self, ciphertext: list[memoryview], buffer: SliceBuffer) -> bool:
        """Decrypts what came from below, in this order, to the end of `buffer`. False: it is tired, and what is left
        is to be given again."""
        if self.is_tired and self.end is None:
            return False
        self._give_aside(buffer)
        if self._under_way is not None:
            (room, fed, done), self._under_way = self._under_way, None
            rooms = [room]
            del room
            self._decrypt(rooms, fed, done, buffer, stays=True)
        ciphertext.reverse()
        while ciphertext and self.end is None and not self.is_tired:
            if self._may_have_more:  # which comes first
                self.give(buffer)
                if self.is_tired:
                    break
            part = ciphertext.pop()
            is_ours = is_unshared(part)
            parts = [part]
            del part
            if is_ours:
                if self._may_have_more:  # and does not fit in
                    self._decrypt(parts, self._incoming.write(parts[0]), 0, buffer)
                else:
                    self._decrypt(parts, 0, 0, buffer, stays=True)
            else:
                self._incoming.write(parts[0])
                recycle_last(parts)
                self._may_have_more = True
                self.give(buffer)
        if self.end is None and (ciphertext or self._under_way is not None):
            ciphertext.reverse()
            return False
        while ciphertext:
            recycle_last(ciphertext)
        return True

    def give(self, buffer: SliceBuffer, *, whatever_the_quota_says: bool = False) -> None:
        """Moves the plaintext that there was no room for to the end of `buffer`, as far as there is room now."""
        self._give_aside(buffer)
        while self._may_have_more and self.end is None and not self.is_tired:
            waiting = self._tls.pending() + self._incoming.pending
            if not waiting:
                self._may_have_more = False
                return
            size = min(max(SMALLEST_BLOCK, 1 << (waiting - 1).bit_length()), LARGEST_POOLED_BLOCK)
            block = self._memory.try_block(size)
            if block is None:
                if not whatever_the_quota_says:
                    return
                block = self._memory.make_block(SMALLEST_BLOCK, size)
            rooms = [memoryview(block)]
            del block
            self._decrypt(rooms, len(rooms[0]), 0, buffer)

    def _give_aside(self, buffer: SliceBuffer) -> None:
        if self._aside:
            buffer._parts += self._aside
            buffer._length += sum(map(len, self._aside))
            self._aside = []

    def set_aside(self) -> None:
        """Takes out of OpenSSL what it holds of plaintext, whatever the quota says: it is going to be asked to end
        our stream, and then would drop it."""
        self.rest()
        buffer = SliceBuffer()
        self.give(buffer, whatever_the_quota_says=True)
        self._aside = buffer._parts

    def put_aside(self, plaintext: SliceBuffer) -> None:
        """Keeps plaintext that nobody has asked for yet."""
        self._aside += plaintext._parts

    def _decrypt(
        self, rooms: list[memoryview], fed: int, done: int, buffer: SliceBuffer, *, stays: bool = False
    ) -> None:
        """Takes the one room out of `rooms`, which nobody else holds, or it could not go back to its pool; fills it
        with plaintext from `done` on, and gives OpenSSL what is in it from `fed` on. If tired, a room that `stays` is
        left as it is."""
        room = rooms.pop()
        incoming = self._incoming
        read = cast("Callable[[int, memoryview], int]", self._tls.read)
        size = len(room)
        goes_on, more = self.end is None, False
        try:
            while goes_on:
                if fed < size and (done == fed or incoming.pending < _LONGEST_RECORD):
                    fed += incoming.write(room[fed : fed + RECORD])
                try:
                    n = read(fed - done, room[done:fed])
                except ssl.SSLWantReadError:
                    self._look_at_the_clock()
                    if fed == size:
                        break
                else:
                    if not n:
                        self.end = CLEAN_END
                        break
                    done += n
                    if done == size:
                        more = True
                        break
                    if n < _SHORT:
                        self._look_at_the_clock()
                    if fed == size and not incoming.pending and done < fed:
                        break
                    if n >= _SHORT:
                        continue
                if self.is_tired and done < fed:  # so OpenSSL has given all of its record
                    if stays:
                        self._under_way = room, fed, done
                        return
                    more = True
                    break
        except ssl.SSLZeroReturnError:
            self.end = CLEAN_END
        except ssl.SSLError as error:
            self.end = status_of(error, "reading")
        self._may_have_more = more
        if done:
            buffer._parts.append(room if done == size else room[:done])
            buffer._length += done
        else:
            rooms.append(room)
            del room
            recycle_last(rooms)

    def _look_at_the_clock(self) -> None:
        now = monotonic()
        if not self._until:
            self._until = now + TURN
        elif now >= self._until:
            self.is_tired = True

    def drop(self) -> None:
        """Forgets a block that was not decrypted to its end."""
        if self._under_way is not None:
            parts = [self._under_way[0]]
            self._under_way = None
            recycle_last(parts)
