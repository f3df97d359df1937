"""c-ares, by way of pycares: asks DNS servers itself, with its sockets on the engine's own poller and no thread.

Rules; all of it is the loop's thread's:

1. A `CaresSource` has one pycares channel, made when it is first asked. The channel tells by `_on_socket` which of its
   sockets wait for what; it has them open only while something is under way.
2. What c-ares finds it tells within a call of ours into it: `_found` keeps the answers, and `_deliver` reads them and
   gives them out when that call has returned. So no callback of the application runs within c-ares, where what it
   raises would be printed and lost, and where a close would have the ground go. Over TCP many answers may come at
   once, each of 4,000 addresses, which take us 15 ms to read: after TURN seconds others have their turn.
3. c-ares asks again and gives up by its own timers, whose earliest is one timer of ours. There is none while nothing is
   under way.
4. `close` has c-ares give up on all, here, which closes its sockets here, too. pycares then frees the channel in a
   thread that it has for this, one for the process; nothing is left then for that thread to call us about.

Addresses: c-ares looks into /etc/hosts first, and asks for A and AAAA records in two queries; it answers when both are,
with what either found. Once one has found something, the other is not asked again. localhost never leaves the machine.
"""

from __future__ import annotations

import contextlib
import select
import socket
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Final, Protocol, TypeVar, cast

from eventengine.address import ResolvedAddress, Sockaddr
from eventengine.core.address_order import in_order
from eventengine.core.handles import next_handle
from eventengine.core.host import READ, WRITE
from eventengine.core.resolver import Addresses, Answer, Names, NameSource, Question
from eventengine.engine import SRVRecord, StatusOr, TaskHandle
from eventengine.status import ClosedResourceError, StatusCode

try:
    import pycares

    if int(pycares.__version__.partition(".")[0]) < 5:
        raise ImportError(f"pycares {pycares.__version__} is installed, which is older than 5")
except ImportError as error:
    raise ImportError(f'c-ares needs pycares; pip install "eventengine[dns]" brings it ({error})') from error

if TYPE_CHECKING:
    from eventengine.core.loop import Loop

__all__ = ["CaresSource", "cares_source"]

R = TypeVar("R")
T = TypeVar("T")

_NO_SORT: Final = 1 << 7  # ARES_AI_NOSORT of ares.h, which pycares does not name: `in_order` sorts, for all alike
_NO_SOCKET: Final = -1
_SRV, _TXT = 33, 16  # RFC 2782, RFC 1035
TURN: Final = 0.01
"""Seconds of one turn in which answers are read and given out."""
_SHORTEST: Final = 0.01  # of our timer: c-ares counts in milliseconds, and may find that nothing is due yet

_CODES: Final = {
    "ARES_ENODATA": StatusCode.NOT_FOUND,
    "ARES_ENOTFOUND": StatusCode.NOT_FOUND,
    "ARES_ETIMEOUT": StatusCode.DEADLINE_EXCEEDED,
    "ARES_ENOMEM": StatusCode.RESOURCE_EXHAUSTED,
    "ARES_EBADNAME": StatusCode.INVALID_ARGUMENT,
}
"""What is not here is UNAVAILABLE: a server that refused, failed, or said what makes no sense; a socket of no use."""


class _Errors(Protocol):
    errorcode: dict[int, str]

    def strerror(self, code: int) -> str | bytes: ...


_errors: Final = cast("_Errors", pycares.errno)


class _Node(Protocol):
    addr: tuple[bytes, int] | tuple[bytes, int, int, int]
    family: int


class _AddrInfo(Protocol):
    nodes: Sequence[_Node]


class _Record(Protocol):
    data: object


class _Records(Protocol):
    answer: Sequence[_Record]


class _Channel(Protocol):
    """What is used of `pycares.Channel`, which is typed only in part."""

    def getaddrinfo(
        self,
        host: str,
        port: int,
        *,
        family: int,
        type: int,  # noqa: A002  # pycares' name
        flags: int,
        callback: Callable[[_AddrInfo | None, int | None], None],
    ) -> None: ...
    def query(
        self, name: str, query_type: int, *, callback: Callable[[_Records | None, int | None], None]
    ) -> None: ...
    def process_read_fd(self, read_fd: int) -> None: ...
    def process_write_fd(self, write_fd: int) -> None: ...
    def timeout(self) -> float: ...
    def cancel(self) -> None: ...
    def close(self) -> None: ...


def cares_source(names: Names, server: ResolvedAddress | None) -> NameSource:
    """A `SourceFactory`."""
    return CaresSource(names.loop, server)


class _Socket:
    """One of c-ares' sockets, as the poller's owner of it."""

    __slots__ = ("_fd", "_source")

    def __init__(self, source: CaresSource, fd: int) -> None:
        self._source = source
        self._fd = fd

    def on_readable(self) -> None:
        self._source.process_read(self._fd)

    def on_writable(self) -> None:
        self._source.process_write(self._fd)

    def on_unwatchable(self, error: OSError) -> None:
        self._source.fail(error)


class CaresSource(NameSource):
    __slots__ = ("_armed_at", "_channel", "_found", "_loop", "_server", "_sockets", "_timer", "_under_way")

    kind = "c-ares"

    def __init__(self, loop: Loop, server: ResolvedAddress | None) -> None:
        self._loop = loop
        self._server = server
        self._channel: _Channel | None = None
        self._sockets: dict[int, _Socket] = {}
        self._found: deque[Callable[[], None]] = deque()
        self._under_way: set[int] = set()
        self._timer: TaskHandle | None = None
        self._armed_at = 0.0

    def find_addresses(self, question: Question, answer: Answer[Addresses]) -> None:
        def ask(channel: _Channel, query: int) -> None:
            channel.getaddrinfo(
                question.host,
                question.port,
                family=socket.AF_UNSPEC,
                type=socket.SOCK_STREAM,
                flags=_NO_SORT,
                callback=partial(self._on_found, query, question, answer, _addresses),
            )

        self._ask(ask)

    def find_services(self, question: Question, answer: Answer[list[SRVRecord]]) -> None:
        self._query(question, _SRV, answer, _services)

    def find_texts(self, question: Question, answer: Answer[list[str]]) -> None:
        self._query(question, _TXT, answer, _texts)

    def close(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.cancel()  # rule 4
            channel.close()
        self._found.clear()
        self._set_timer()

    def _query(
        self, question: Question, record: int, answer: Answer[list[T]], read: Callable[[_Records], list[T]]
    ) -> None:
        def ask(channel: _Channel, query: int) -> None:
            channel.query(question.host, record, callback=partial(self._on_found, query, question, answer, read))

        self._ask(ask)

    def _ask(self, ask: Callable[[_Channel, int], None]) -> None:
        if self._channel is None:
            self._channel = _make_channel(self._server, self._on_socket)
        query = next_handle()
        self._under_way.add(query)
        try:
            ask(self._channel, query)
        except Exception:
            if query in self._under_way:  # else c-ares has answered besides, as for what it takes for no name
                self._under_way.discard(query)
                raise
        finally:
            self._deliver()

    def _on_found(
        self,
        query: int,
        question: Question,
        answer: Answer[list[T]],
        read: Callable[[R], list[T]],
        result: R | None,
        error: int | None,
    ) -> None:
        """Within c-ares: rule 2."""
        self._under_way.discard(query)
        self._found.append(partial(_give, question, answer, read, result, error))

    def _deliver(self) -> None:
        self._set_timer()
        until = monotonic() + TURN
        while self._found:
            self._found.popleft()()
            if self._found and monotonic() >= until:
                with contextlib.suppress(ClosedResourceError):  # else nobody has a turn any more
                    self._loop.post(self._deliver)
                    return

    def _on_socket(self, fd: int, readable: bool, writable: bool) -> None:
        """Within c-ares: a socket of its waits for these, or for neither, and is closed right after this."""
        poller = self._loop.poller
        if not readable and not writable:
            self._sockets.pop(fd, None)
            poller.forget(fd)
            return
        owner = self._sockets.get(fd)
        if owner is None:
            owner = self._sockets[fd] = _Socket(self, fd)
        wanted = (READ if readable else 0) | (WRITE if writable else 0)
        poller.arm(fd, wanted, owner)
        poller.disarm(fd, (READ | WRITE) & ~wanted)

    def process_read(self, fd: int) -> None:
        if self._channel is not None:
            self._channel.process_read_fd(fd)
            self._deliver()

    def process_write(self, fd: int) -> None:
        if self._channel is not None:
            self._channel.process_write_fd(fd)
            self._deliver()

    def fail(self, error: OSError) -> None:
        """A socket cannot be watched: all that is under way is given up, and answered."""
        if self._channel is not None:
            self._channel.cancel()
            self._deliver()

    def _set_timer(self) -> None:
        """Rule 3."""
        channel = self._channel
        if channel is None or not self._under_way:
            if self._timer is not None:
                self._loop.timers.cancel(self._timer)
                self._timer = None
            return
        delay = max(channel.timeout(), _SHORTEST)
        at = monotonic() + delay
        if self._timer is not None:
            if self._armed_at <= at + _SHORTEST:  # it comes early enough, and looks again
                return
            self._loop.timers.cancel(self._timer)
        self._armed_at = at
        self._timer = self._loop.timers.schedule_own(delay, self._on_timer)

    def _on_timer(self) -> None:
        """What has come is read first: the loop may have stood still, and c-ares would take it for late."""
        self._timer = None
        poll = select.poll()
        for fd in self._sockets:
            poll.register(fd, select.POLLIN)
        for fd, _ in poll.poll(0):
            self.process_read(fd)
        self.process_read(_NO_SOCKET)


def _give(
    question: Question, answer: Answer[list[T]], read: Callable[[R], list[T]], result: R | None, error: int | None
) -> None:
    found: StatusOr[list[T]]
    if result is None:
        code = _CODES.get(_errors.errorcode.get(error or 0, ""), StatusCode.UNAVAILABLE)
        found = question.failed(code, str(_errors.strerror(error or 0)))
    else:
        found = read(result) or question.failed(StatusCode.NOT_FOUND, "there is no such record")
    answer(found)


def _make_channel(server: ResolvedAddress | None, on_socket: Callable[[int, bool, bool], None]) -> _Channel:
    servers = None if server is None else [str(server)]
    # No `lookups`, `domains` or `resolvconf_path`: pycares 5.2 frees these texts before c-ares reads them, which then
    # asks whom it likes. So nsswitch.conf says whether /etc/hosts comes first.
    return cast("_Channel", pycares.Channel(servers=servers, sock_state_cb=on_socket))


def _addresses(found: _AddrInfo) -> Addresses:
    sockaddrs = [(node.family, (node.addr[0].decode("ascii"), *node.addr[1:])) for node in found.nodes]
    return in_order(ResolvedAddress(family, cast("Sockaddr", sockaddr)) for family, sockaddr in sockaddrs)


def _services(found: _Records) -> list[SRVRecord]:
    """A target of "." says that there is no such service (RFC 2782)."""
    records = [each.data for each in found.answer]
    return [
        SRVRecord(each.target, each.port, each.priority, each.weight)
        for each in records
        if isinstance(each, pycares.SRVRecordData) and each.target not in ("", ".")
    ]


def _texts(found: _Records) -> list[str]:
    records = [each.data for each in found.answer]
    return [
        each.data.decode("utf-8", "surrogateescape") for each in records if isinstance(each, pycares.TXTRecordData)
    ]
