"""`QuotaSite`: a twisted.web Site whose request bodies in memory are charged to a quota.

Twisted spools a body of 100,000 bytes and more, or of a length that is not known, to a temporary file, and holds
smaller ones in memory: 1,500 clients that send 96 kB each and then stall cost 144 MiB. Here a small one goes to a file,
too, while more than 0.8 of the quota are used, so nobody waits, and the rest is left to what is written.

`Request.gotLength` is where Twisted chooses, before the first byte of the body was received.
"""

# Most of Twisted's own transports and of its web server has no types, so what is called on them has none.
# mypy: allow-untyped-calls
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Final, cast

from twisted.web.server import Request, Site

from eventengine.bridges.twisted.reactor import as_quota

if TYPE_CHECKING:
    from twisted.web.resource import IResource

    from eventengine.memory_quota import MemoryQuota
    from eventengine.quota import ResourceQuota

__all__ = ["QuotaSite"]

_SPOOLED: Final = 100_000
"""Bytes from which on Twisted spools."""


class _Body(io.BytesIO):
    """A body in memory, charged until it is closed or collected."""

    def __init__(self, memory: MemoryQuota, size: int) -> None:
        super().__init__()
        self._memory = memory
        self._charged = size

    def close(self) -> None:
        super().close()
        charged, self._charged = self._charged, 0
        if charged:
            self._memory.give(charged)

    def __del__(self) -> None:
        self.close()


class _QuotaRequest(Request):
    def gotLength(self, length: int | None) -> None:
        site: QuotaSite = cast("Any", self.channel).site
        memory = site.quota.memory
        if not length or length >= _SPOOLED:
            super().gotLength(length)
        elif not memory.is_tight and memory.try_take(length):
            self.content = _Body(memory, length)
        else:
            super().gotLength(None)


class QuotaSite(Site):
    """A Site whose request bodies are charged to `quota` while they are in memory, and go to files when it is short.

    What connections have written and not sent is charged where they are listened for: by QuotaServerEndpoint, or under
    the reactor "eventengine".

    Args:
        resource: The root of the site.
        quota: A ResourceQuota, which others may share; or its memory alone, as in "64MiB".
        **options: As for Site, but for `requestFactory`.

    Raises TypeError or ValueError for what is no quota.
    """

    def __init__(self, resource: IResource, *, quota: ResourceQuota | str | int, **options: Any) -> None:
        self.quota = as_quota(quota)
        super().__init__(resource, _QuotaRequest, **options)
