"""`Encrypter`: what goes out over TLS, through OpenSSL.

Rules:

1. One thread at a time, in this and the `Decrypter` together.
2. What is written is taken from the application's slices as records: long slices piece by piece where they lie, short
   ones joined, so that many small slices cost few records, and one write below.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable
from typing import Final

from eventengine.slices import SliceBuffer, recycle_last

__all__ = ["RECORD", "Encrypter"]

RECORD: Final = 16384
"""The most plaintext of one record: RFC 8446, 5.1."""
_PIECE: Final = 2 * RECORD
"""Bytes that OpenSSL is given at a time. Its memory BIO keeps the room of the most that was ever in it, so that only
who writes much at a time has it given more."""
BATCH: Final = 3 * _PIECE
"""Bytes that are encrypted for one write below; more wait for its end. With 128 KiB glibc gives the memory back to the
system with each, and takes it anew page by page; and a peer runs dry meanwhile, and has to be woken each time."""
_LONG: Final = 2 * BATCH
"""Bytes of a write of which OpenSSL is given a whole batch at a time: an eighth less of CPU."""
_RECORDS: Final = 1024
"""And records, of frames that the application wants small: one system call takes no more parts."""


class Encrypter:
    __slots__ = ("_again", "_outgoing", "_piece", "_plain", "_tls", "waits_for_the_peer")

    def __init__(self, tls: ssl.SSLObject, outgoing: ssl.MemoryBIO) -> None:
        self._tls = tls
        self._outgoing = outgoing
        self._plain: list[memoryview] = []  # last to first, as in `core.writing`
        self._piece = _PIECE
        self._again = b""
        self.waits_for_the_peer = False
        """Whether OpenSSL renegotiates, and encrypts nothing before it has heard of the peer."""

    @property
    def has_plaintext(self) -> bool:
        return bool(self._plain or self._again)

    @property
    def output(self) -> int:
        """Bytes that OpenSSL has to say itself: an answer to the peer, an alert."""
        return self._outgoing.pending

    def take(self, data: SliceBuffer, max_frame_size: int) -> None:
        """Takes the content of `data` over, to be encrypted."""
        plain = self._plain = data._parts
        length = data._length
        data._parts = []
        data._length = 0
        if len(plain) > 1:
            plain.reverse()
        self._piece = max_frame_size if max_frame_size < RECORD else _PIECE if length < _LONG else BATCH

    def drop(self) -> None:
        """Forgets what was not encrypted yet."""
        self._again = b""
        while self._plain:
            recycle_last(self._plain)

    def encrypt(
        self,
        write_below: Callable[[list[memoryview], bool], bool],
        send: Callable[[memoryview], int] | None = None,
    ) -> None:
        """Gives to `write_below` what OpenSSL has to say itself, and the plaintext as ciphertext, for BATCH bytes of it
        at a time, and whether there is more, until all was given, or that says no. With `send`, what is one part is
        given to that first, which says how much of it was taken.

        Raises ssl.SSLError when nothing can be written any more.
        """
        # With as few steps as can be for each piece: at these rates Python's are a fifth of the whole.
        plain, piece, outgoing = self._plain, self._piece, self._outgoing
        write, read = self._tls.write, outgoing.read
        parts: list[memoryview] = []
        left = batch = min(BATCH, _RECORDS * piece)
        self.waits_for_the_peer = False
        if outgoing.pending:
            parts.append(memoryview(read()))
        try:
            while plain or self._again:
                if self._again:
                    write(self._again)
                    parts.append(memoryview(read()))
                    left -= len(self._again)
                    self._again = b""
                elif (size := len(first := plain[-1])) >= RECORD or len(plain) == 1:
                    done = 0
                    try:
                        while done < size:
                            step = min(left, piece)
                            write(first[done : done + step])
                            part = memoryview(read())
                            done += step
                            left -= step
                            if (
                                send is not None
                                and not parts
                                and (left <= 0 or (done >= size and len(plain) == 1))
                            ):
                                n = send(part)
                                if n == len(part):
                                    left = batch
                                    continue
                                part = part[n:]
                            parts.append(part)
                            if left <= 0:
                                if not write_below(parts, done < size or len(plain) > 1):
                                    return
                                parts = []
                                left = batch
                    finally:
                        if done < size:
                            plain[-1] = first[done:]
                            del first
                        else:
                            del first
                            recycle_last(plain)
                else:
                    del first
                    # Kept, for OpenSSL wants the very same bytes when it has to be asked again.
                    self._again = self._join(min(piece, RECORD))
                    continue
                if left <= 0:
                    if not write_below(parts, bool(plain)):
                        return
                    parts = []
                    left = batch
        except (ssl.SSLWantReadError, ssl.SSLEOFError):  # the latter where there is plaintext to be read before
            self.waits_for_the_peer = True
            if outgoing.pending:
                parts.append(memoryview(read()))
        if parts:
            write_below(parts, self.waits_for_the_peer)

    def end(self, incoming: ssl.MemoryBIO) -> bytes:
        """Ends our stream: what is to be sent. The peer's goes on, if what there is of it was set aside."""
        unread = incoming.read()  # or OpenSSL, which looks for the peer's close_notify, would drop it
        with contextlib.suppress(ssl.SSLError):  # the peer's end is still to come, or the connection is broken
            self._tls.unwrap()
        if unread:
            incoming.write(unread)
        return self._outgoing.read()

    def _join(self, size: int) -> bytes:
        """Takes the next `size` bytes, or all, out of the short slices that they are in."""
        plain = self._plain
        parts: list[memoryview] = []
        while plain and size:
            part = plain[-1]
            if len(part) > size:
                parts.append(part[:size])
                plain[-1] = part[size:]
                break
            parts.append(plain.pop())
            size -= len(part)
            del part
        joined = b"".join(parts)
        while parts:
            recycle_last(parts)
        return joined
