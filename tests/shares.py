"""What gRPC grants."""

from __future__ import annotations

import math
from fractions import Fraction


def share_of(low: int, high: int, used: int, size: int) -> int:
    """What gRPC's `GrpcMemoryAllocatorImpl::TryReserve` grants."""
    over = high - low
    pressure = Fraction(used, size)
    if pressure > Fraction(4, 5):
        over = min(over, math.floor(over * max(Fraction(0), 1 - pressure) * 5))
    most = size // 16
    if most < low:
        over = 0
    elif low + over > most:
        over = most - low
    return low + over
