"""`Trace`: what happened in a simulation, to be printed and replayed; `Draws`: what is left to chance.

Rules:

1. A draw is named by its subject (`#3>`, what the client of connection 3 sends), by what is drawn, and by its number
   among those of the same name. Its value is a hash of the seed and that name. So a draw does not depend on how many
   others there were: one more connection leaves the others their fate.
2. A trace has a line for each draw whose value is not what it would be on a calm network. To replay it is to take the
   values from its lines, and the calm ones where there is no line. So a line that is taken out is a fault that does not
   happen, which is how to find out which of them matter.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from random import Random
from typing import NamedTuple

__all__ = ["Draws", "Line", "Trace"]

_LINE = re.compile(r" *(\d+\.\d+)  (\S+) +(.*)")
_DRAW = re.compile(r"(\w+) \[(\d+)\] = (.+)")


class Line(NamedTuple):
    """Something that happened, at a time (seconds), to a subject."""

    time: float
    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.time:12.6f}  {self.subject:8} {self.text}"


class Trace:
    """What happened, in its order. `str` gives it as text, which `parse` reads."""

    def __init__(self, lines: Iterable[Line] = ()) -> None:
        self._lines = list(lines)

    def add(self, line: Line) -> None:
        self._lines.append(line)

    @classmethod
    def parse(cls, text: str) -> Trace:
        """Reads what `str` gave; lines may have been taken out. Raises ValueError for a line that is none."""
        lines: list[Line] = []
        for line in text.splitlines():
            if line.strip():
                match = _LINE.fullmatch(line.rstrip())
                if match is None:
                    raise ValueError(f"{line!r} is no line of a trace")
                lines.append(Line(float(match[1]), match[2], match[3]))
        return cls(lines)

    def __iter__(self) -> Iterator[Line]:
        return iter(self._lines)

    def __len__(self) -> int:
        return len(self._lines)

    def __str__(self) -> str:
        return "\n".join(map(str, self._lines))


class Draws:
    """All that is drawn in one simulation; see the rules."""

    def __init__(self, seed: int, replayed: Trace | None, note: Callable[[str, str], None]) -> None:
        self._seed = seed
        self._note = note
        self._counts: Counter[tuple[str, str]] = Counter()
        self._given: dict[tuple[str, str, int], str] | None = None
        if replayed is not None:
            self._given = {}
            for line in replayed:
                match = _DRAW.fullmatch(line.text)
                if match is not None:
                    self._given[line.subject, match[1], int(match[2])] = match[3]

    def happens(self, subject: str, what: str, chance: float) -> bool:
        """Whether something happens that does not on a calm network."""
        return self._draw(subject, what, "no", lambda share: "yes" if share < chance else "no") == "yes"

    def seconds(self, subject: str, what: str, low: float, high: float) -> float:
        """A duration; none on a calm network."""
        return float(self._draw(subject, what, "0.0", lambda share: str(round(low + share * (high - low), 6))))

    def size(self, subject: str, what: str, low: int, high: int, calm: int) -> int:
        """A number from `low` to `high`."""
        return int(self._draw(subject, what, str(calm), lambda share: str(low + int(share * (high - low + 1)))))

    def order(self, subject: str, what: str, count: int, *, shuffle: bool) -> list[int]:
        """The numbers below `count`; as they are on a calm network."""
        calm = list(range(count))

        def drawn(share: float) -> str:
            drawn = calm[:]
            if shuffle:
                Random(share).shuffle(drawn)
            return ",".join(map(str, drawn))

        order = [int(n) for n in self._draw(subject, what, ",".join(map(str, calm)), drawn).split(",")]
        return order if sorted(order) == calm else calm  # a trace that was shortened may have another count

    def _draw(self, subject: str, what: str, calm: str, value: Callable[[float], str]) -> str:
        self._counts[subject, what] += 1
        number = self._counts[subject, what]
        if self._given is not None:
            drawn = self._given.get((subject, what, number), calm)
        else:
            name = f"{self._seed}/{subject}/{what}/{number}".encode()
            drawn = value(int.from_bytes(blake2b(name, digest_size=6).digest(), "big") / (1 << 48))
        if drawn != calm:
            self._note(subject, f"{what} [{number}] = {drawn}")
        return drawn
