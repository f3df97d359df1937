"""`ClientHello`: a client's first message, kept from OpenSSL until it is whole.

Rules:

1. OpenSSL takes room for as much as a message says that it will have, up to 128 KiB, as soon as it sees the first four
   bytes of it: 44 bytes from anybody made it take 150 KiB, of which it takes 33 for any byte at all. So it sees nothing
   of a ClientHello that is not whole, or says that it will be longer than one may be. What is kept is charged, as all
   that came.
2. Whole records alone are looked at, each once. What can be no record of TLS, or no ClientHello, OpenSSL gets at once:
   it refuses it by the first bytes, or knows it (a ClientHello in the format of SSL 2, which says no more than it has).
3. Records of other types are passed on in their order: an alert, a change_cipher_spec, early data.
4. A ClientHello ends with its record, for a client has nothing to say in plaintext before it has heard the server. So
   nothing passes along with one that was not looked at. After a HelloRetryRequest (RFC 8446, 4.1.4) comes a second one.
"""

from __future__ import annotations

from typing import Final

from eventengine.status import Status, StatusCode

__all__ = ["REFUSAL", "ClientHello"]

_LONGEST: Final = 16 << 10
"""The most that a ClientHello may have, for which OpenSSL takes no more room than for any. BoringSSL's limit; with the
keys of hybrid key agreement they have 2 KiB."""
_LONGEST_WITH_CERTIFICATES: Final = 128 << 10
"""Where clients have certificates, which may have 100 KiB, and are in the tickets by which sessions go on."""

REFUSAL: Final = b"\x15\x03\x03\x00\x02\x02\x2f"
"""The alert that OpenSSL has for one that is too long: illegal_parameter."""

_HEADER: Final = 5  # of a record
_TYPES: Final = range(20, 25)
_VERSION: Final = b"\x03"
_HANDSHAKE: Final = 22
_MESSAGE_HEADER: Final = 4
_CLIENT_HELLO: Final = 1
_SERVER_HELLO: Final = 2
_RETRY: Final = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
"""The `random` by which a ServerHello is a HelloRetryRequest: RFC 8446, 4.1.3."""


class ClientHello:
    __slots__ = ("_head", "_kept", "_length", "_longest", "_looked_at", "is_over")

    def __init__(self, *, asks_for_certificates: bool) -> None:
        self._longest = _LONGEST_WITH_CERTIFICATES if asks_for_certificates else _LONGEST
        self._kept = bytearray()
        self._looked_at = 0  # bytes of that
        self._head = b""  # the message's, as far as it is in those
        self._length = 0  # of the message, likewise
        self.is_over = False
        """Whether nothing is kept any more: OpenSSL has it, or what is none."""

    def take(self, data: memoryview) -> None:
        self._kept += data

    def passed(self) -> bytes | Status:
        """Takes out what OpenSSL may see now, up to the end of a ClientHello at most; or why it is refused."""
        kept, at = self._kept, self._looked_at
        while at < len(kept):
            if kept[at] not in _TYPES or not _VERSION.startswith(kept[at + 1 : at + 2]):
                return self._rest()
            body = at + _HEADER
            end = body + int.from_bytes(kept[at + 3 : body], "big")
            if len(kept) < body or len(kept) < end:
                break
            if kept[at] == _HANDSHAKE and end > body:
                self._head += kept[body : min(end, body + _MESSAGE_HEADER - len(self._head))]
                self._length += end - body
                if self._head[0] != _CLIENT_HELLO:
                    return self._rest()
                if len(self._head) == _MESSAGE_HEADER:
                    size = _MESSAGE_HEADER + int.from_bytes(self._head[1:], "big")
                    if size > self._longest:
                        return _refused(f"is too long, it has {size} bytes")
                    if self._length > size:
                        return _refused("does not end with its record")
                    if self._length == size:
                        at = end
                        self._head, self._length = b"", 0
                        break
            at = end
        passed = b""
        if not self._head:
            passed = bytes(kept[:at])
            del kept[:at]
            at = 0
        self._looked_at = at
        if not passed and len(kept) > 2 * self._longest:
            return _refused("comes in too many pieces")
        return passed

    def answered(self, sent: bytes) -> bytes:
        """Hears what the server has sent; what OpenSSL may see of what came behind the ClientHello."""
        is_server_hello = sent[:1] == bytes([_HANDSHAKE]) and sent[5:6] == bytes([_SERVER_HELLO])
        return self._rest() if is_server_hello and sent[11:43] != _RETRY else b""

    def _rest(self) -> bytes:
        self.is_over = True
        rest, self._kept = bytes(self._kept), bytearray()
        return rest


def _refused(why: str) -> Status:
    return Status(StatusCode.UNAVAILABLE, f"the TLS handshake: the peer's ClientHello {why}")
