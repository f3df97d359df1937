"""`Conditions`: what a simulated network does to those who use it, by chance."""

from __future__ import annotations

from dataclasses import dataclass, fields

__all__ = ["CALM", "ROUGH", "Conditions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """How a simulated network behaves. What lies within a range, or happens with a chance, is drawn from the seed.

    A *piece* is what arrives of a connection at a time: what was sent, cut at borders that are drawn.

    Attributes:
        latency: Seconds that a piece, a connect and a lookup take, from and to. Pieces of one connection keep their
            order; those of different ones overtake each other.
        piece: Bytes of a piece, from and to; None: as they were sent.
        buffer: Bytes that a connection holds in each direction, unless `EndpointConfig` says otherwise.
        short_write: The chance that a send takes only a part of what there is room for.
        shuffle: Whether connections that are ready at the same time have their turns in an order that is drawn.
        reset: The chance that a piece is lost and the connection reset at both ends.
        cut: The chance that a piece is lost and the connection half-open from then on: nothing arrives any more, and
            nobody is told.
        refuse: The chance that a connect is refused.
        hang: The chance that a connect is never answered.
        fail_accept: The chance that an accept fails: for want of a descriptor, or since the connection broke.
        fail_lookup: The chance that a lookup fails: by the server, or since it keeps silent.
        fill_quota: The chance that with the arrival of a piece the quotas of the engines' connections are full, for so
            many seconds as `latency` gives and at least one.
    """

    latency: tuple[float, float] = (0.0, 0.0)
    piece: tuple[int, int] | None = None
    buffer: int = 256 * 1024
    short_write: float = 0.0
    shuffle: bool = False
    reset: float = 0.0
    cut: float = 0.0
    refuse: float = 0.0
    hang: float = 0.0
    fail_accept: float = 0.0
    fail_lookup: float = 0.0
    fill_quota: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.latency
        if not 0 <= low <= high < float("inf"):
            raise ValueError(
                f"latency is {self.latency}; it must be two numbers of seconds, the smaller one first"
            )
        if self.piece is not None and not 1 <= self.piece[0] <= self.piece[1]:
            raise ValueError(
                f"piece is {self.piece}; it must be two numbers of bytes, 1 or more, the smaller one first"
            )
        if self.buffer < 1:
            raise ValueError(f"buffer is {self.buffer}; it must be a number of bytes, 1 or more")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, float) and not (isinstance(value, int | float) and 0 <= value <= 1):
                raise ValueError(f"{field.name} is {value!r}; a chance is a number from 0 to 1")


CALM = Conditions()
"""All arrives at once and whole."""

ROUGH = Conditions(
    latency=(0.0, 0.1),
    piece=(1, 2000),
    short_write=0.1,
    shuffle=True,
    reset=0.01,
    cut=0.002,
    refuse=0.05,
    hang=0.02,
    fail_accept=0.05,
    fail_lookup=0.05,
    fill_quota=0.01,
)
"""All that can happen does, now and then."""
