"""`QuotaSite`: a twisted.web Site whose request bodies in memory are charged to a quota.

Twisted spools a body of 100,000 bytes and more, or of a length that is not known, to a temporary file, and holds
smaller ones in memory: 1,500 clients that send 96 kB each and then stall cost 144 MiB. Here a small one goes to a file,
too, while more than 0.8 of the quota are used, so no body waits, and the rest is left to what is written. Who has sent
nothing of a body for two seconds while others wait for memory is cut, with a 408 (see `admission`).

What Twisted makes of a form or a long query takes up to 75 times as much. It is charged until the request is done or,
where its client has left, forgotten by who handles it; without room for it there is a 413. What a head takes is charged
by `heads`.

`Request.gotLength` is where Twisted chooses, before the first byte of the body was received.
"""

# Most of Twisted's own transports and of its web server has no types, so what is called on them has none.
# mypy: allow-untyped-calls
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from twisted.logger import Logger
from twisted.web.http import HTTPChannel
from twisted.web.server import Request, Site

from eventengine.bridges.twisted.bound import Bound
from eventengine.bridges.twisted.heads import FREE, Heads, QuotaChannel
from eventengine.memory import Reservation
from eventengine.quota import as_quota
from eventengine.tally import Tally, number_of
from eventengine.upload import Upload

if TYPE_CHECKING:
    from twisted.python.failure import Failure
    from twisted.web.resource import IResource

    from eventengine.quota import ResourceQuota

__all__ = ["QuotaSite"]

_SPOOLED: Final = 100_000
"""Bytes from which on Twisted spools."""

_FORMS: Final = (b"multipart/form-data", b"application/x-www-form-urlencoded")
_log: Final = Logger()
_FORM: Final = 12
"""As many times the memory of a form or a query takes what Twisted makes of it."""

_MARK: Final = 200
"""Bytes that it takes besides for each mark that parts it: 191 for an argument, 213 for a percent sign, of which three
bytes are then one, and 206 for a line of a part's headers, less what is counted by the length."""

_MARKS: Final = (b"&", b";", b"%")
_LITTLE: Final = 65536
"""Of so much a fifth of the quota need not be left for others."""

_LATE: Final = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_TOO_LARGE: Final = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class _QuotaRequest(Request):
    """It becomes an `_UploadRequest` when it has a body, so that one without is handled as stock ones are. But what
    takes a body, Twisted looks up before it says whether there is one."""

    _upload: Any = None
    _marks: tuple[bytes, ...] = ()
    _counted = 0  # marks
    head: int | None = None  # what its head takes, when that was counted
    kept: Reservation | None = None  # for that, where its client has left

    def gotLength(self, length: int | None) -> None:
        if length == 0:
            super().gotLength(length)
        else:
            self._become_upload()
            cast("_UploadRequest", self).begin(length)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        if len(path) * _MARK > FREE and (len(path) * _FORM > FREE or _marks_in(path) * _MARK > FREE):
            self._become_upload()
            self.requestReceived(command, path, version)
        else:
            super().requestReceived(command, path, version)

    def handleContentChunk(self, data: bytes) -> None:
        if self._upload is not None:
            self._upload.moved()
        for mark in self._marks:
            self._counted += data.count(mark)
        super().handleContentChunk(data)

    def _become_upload(self) -> None:
        upload: Any = self
        upload.__class__ = _UploadRequest
        upload.expect()


class _UploadRequest(_QuotaRequest):
    """Its methods are those by which Twisted's channel tells it what comes."""

    _is_parsed = False

    def expect(self) -> None:
        site: QuotaSite = cast("Any", self.channel).site
        self._upload = Upload(site.admission, self._cut)

    def begin(self, length: int | None) -> None:
        kind = self._kind
        if kind.startswith(_FORMS):
            self._marks = (b"\n",) if kind.startswith(_FORMS[0]) else _MARKS
        is_held = self._upload.try_ask(length if length is not None and length < _SPOOLED else 0)
        Request.gotLength(self, length if is_held else None)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        if self._upload.is_complete:  # it was cut: over TLS, more comes after that
            return
        room = len(path) * _FORM + _marks_in(path) * _MARK
        if command == b"POST" and self._marks:
            room += cast("Any", self.content).tell() * _FORM + self._counted * _MARK
        if room > FREE and not self._take(room):
            self._refuse(_TOO_LARGE)
            return
        self._is_parsed = room > FREE
        self._upload.complete()
        Request.requestReceived(self, command, path, version)

    def finish(self) -> None:
        super().finish()
        self._upload.end()

    def connectionLost(self, reason: Failure) -> None:
        super().connectionLost(reason)
        if self._is_parsed:
            self._upload.complete()  # it holds its room until it is forgotten
        else:
            self._upload.end()

    @property
    def _kind(self) -> bytes:
        types: Any = self.requestHeaders.getRawHeaders(b"content-type", [b""])
        return bytes(types[0].lower())

    def _take(self, room: int) -> bool:
        upload, memory = self._upload, cast("Any", self.channel).site.quota.memory
        if upload.try_ask(room):
            return True
        if room > _LITTLE or not memory.try_take(room):
            return False
        upload.held += room
        return True

    def _cut(self) -> None:
        self._refuse(_LATE)

    def _refuse(self, answer: bytes) -> None:
        channel: Any = self.channel
        channel.site.cut.add()
        if getattr(channel, "transport", None) is None:  # a stream of HTTP/2: it is reset, and the others go on
            channel.abortConnection()
            self._upload.end()
            return
        channel.transport.write(answer)
        channel.loseConnection()
        abort_later = getattr(channel.transport, "abort_later", None)
        if abort_later is not None:  # it is one of ours
            abort_later()


def _marks_in(path: bytes) -> int:
    return sum(map(path.count, _MARKS))


def _make_channel(make: Callable[[], Any]) -> Any:
    """Twisted's, which is where only private functions reach, and may become one of HTTP/2."""
    made = make()
    if type(getattr(made, "_channel", None)) is HTTPChannel:
        made._channel = QuotaChannel()
    return made


class QuotaSite(Site):
    """A Site whose request bodies are charged to `quota` while they are in memory, and go to files when it is short.

    What connections have written and not sent is charged where they are listened for: by QuotaServerEndpoint, or under
    the reactor "eventengine".

    Args:
        resource: The root of the site.
        quota: A ResourceQuota, which others may share; or its memory alone, as in "64MiB".
        **options: As for Site, but for `requestFactory`.

    Raises TypeError or ValueError for what is no quota, and for one of less than 128 KiB.
    """

    def __init__(self, resource: IResource, *, quota: ResourceQuota | str | int, **options: Any) -> None:
        self.quota = as_quota(quota, "twisted.web")
        self.cut = Tally(
            lambda n: _log.warn(
                "{quota!r} is full: {number} cut or refused",
                quota=self.quota,
                number=number_of(n, "request was", "requests were"),
            )
        )
        super().__init__(resource, _QuotaRequest, **options)
        untyped: Any = self
        reactor = getattr(self, "reactor", None) or untyped._reactor  # older Twisted has it as a private name
        self._bound = Bound.of(self.quota, reactor)
        self.admission = self._bound.admission
        self.heads = Heads(self.quota.memory, self.cut.add)
        untyped.protocol = partial(_make_channel, untyped.protocol)

    def startFactory(self) -> None:
        super().startFactory()
        self._bound.tell()
