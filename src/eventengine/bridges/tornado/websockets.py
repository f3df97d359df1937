"""What the reader of a websocket keeps: the fragments of a message until its last has come.

Tornado collects them where nobody else can look. But it reads each frame in the same steps (RFC 6455, section 5.2): two
bytes, a longer length if these say so, the mask if they say so, the payload. So what was handed to it tells.
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
        size: The bytes that its reader keeps.
    """

    __slots__ = ("_first", "_steps", "size")

    def __init__(self) -> None:
        self.size = 0
        self._first = 0
        self._steps = 0  # left of the frame

    def read(self, data: bytes) -> int:
        """Its reader has got `data`, one step; returns how many bytes it keeps less than before and these together."""
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
            self.size += len(data)
            return 0
        kept, self.size = self.size, 0
        return kept + len(data)
