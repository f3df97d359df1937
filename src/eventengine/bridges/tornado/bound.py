"""One quota on one loop: what servers, clients and streams share, so that each can make room for another."""

from __future__ import annotations

import asyncio
import threading
from typing import Final
from weakref import WeakValueDictionary

from tornado.log import gen_log

from eventengine.admission import Admission
from eventengine.memory_quota import check_quota_size
from eventengine.quota import ResourceQuota
from eventengine.tally import Tally

__all__ = ["Bound", "as_quota"]

_bounds: WeakValueDictionary[tuple[int, int], Bound] = WeakValueDictionary()
_bounds_lock: Final = threading.Lock()


class Bound:
    """The loop's thread's."""

    def __init__(self, quota: ResourceQuota, loop: asyncio.AbstractEventLoop) -> None:
        self.quota = quota
        self.loop = loop
        self.admission = Admission(quota.memory, loop)
        self.cut = Tally(lambda n: gen_log.warning("%r is full: %d clients were cut that did not read", quota, n))

    @classmethod
    def of(cls, quota: ResourceQuota, loop: asyncio.AbstractEventLoop) -> Bound:
        """The same for all who ask for the two."""
        with _bounds_lock:
            found = _bounds.get((id(quota), id(loop)))
            if found is None:
                found = _bounds[id(quota), id(loop)] = cls(quota, loop)
            return found


def as_quota(quota: ResourceQuota | str | int, name: str) -> ResourceQuota:
    """`quota`, or one with as much memory. Raises TypeError or ValueError for what is no quota."""
    if isinstance(quota, ResourceQuota):
        return quota
    if isinstance(quota, bool) or not isinstance(quota, str | int):
        raise TypeError(
            f'quota must be a ResourceQuota, bytes or text such as "64MiB", not {type(quota).__name__}'
        )
    return ResourceQuota(name, memory=check_quota_size(quota))
