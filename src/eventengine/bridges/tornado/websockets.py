"""What the reader of a websocket keeps: the fragments of a message until its last has come.

Tornado collects them where nobody else can look. But it reads each frame in the same steps (RFC 6455, section 5.2): two
bytes, a longer length if these say so, the mask if they say so, the payload. So what was handed to it tells.

They are charged twice: they lie in one piece that grows with each, and that leaves a hole as large as it was when it
moves to where it has room. 200 clients with 6 MiB in fragments took 148 MiB of a process with a quota of 64.
"""

from __future__ import annotations

__all__ = ["Message"]

_FINAL = 0x80
_CONTROL = 0x08
_MASKED = 0x80
_LENGTH = 0x7F
_LONGER = 126


class Message:
    """The one that is being received.

    Attributes:
        peer: Whose it is.
        size: The bytes that are charged for what its reader keeps.
    """

    __slots__ = ("_first", "_steps", "peer", "size")

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.size = 0
        self._first = 0
        self._steps = 0  # left of the frame

    @property
    def is_last(self) -> bool:
        """Whether the frame that is read is the message's last."""
        return bool(self._first & _FINAL)

    def read(self, data: bytes) -> int:
        """Its reader has got `data`, one step; returns how much less is to be charged, which may be more."""
        if not self._steps:
            if len(data) != 2:  # it is none of Tornado's, which reads otherwise
                return len(data)
            self._first, second = data
            self._steps = 1 + bool(second & _MASKED) + (second & _LENGTH >= _LONGER)
            return len(data)
        self._steps -= 1
        if self._steps or self._first & _CONTROL:
            return len(data)
        if not self._first & _FINAL:
            self.size += 2 * len(data)
            return -len(data)
        kept, self.size = self.size, 0
        return kept + len(data)
