"""Names: what the resolvers of an engine have in common, wherever they look names up.

A `HostedResolver` is what the application holds. A `NameSource` (c-ares, `getaddrinfo`, a framework's) asks, and
decides nothing: what a name is, who answers, when it is too late, and what close means stand here, once.

Rules:

1. `_pending` holds the callbacks. Taking one out is atomic, and settles from any thread who answers it: the source,
   the deadline, or the close.
2. All else is the loop's thread's: a lookup begins with a letter, and callbacks are called by way of that thread, never
   within `lookup_...`.
3. A source is asked for at most AT_ONCE things at a time; further lookups wait here, in their order. So ten thousand
   lookups at once take no more sockets, threads and datagrams in flight than those, and no server drops what it cannot
   hold. A lookup that nobody waits for any more, for its deadline has passed, keeps its place until the source answers.
4. A source knows no resolver, but by the answers that it owes: so a resolver that nobody uses or holds can be
   collected, which warns and has the source closed.
5. A literal is answered without the source. So is what cannot be a name.
"""

from __future__ import annotations

import contextlib
import encodings.idna
import warnings
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple, TypeAlias, TypeVar

from eventengine.address import ResolvedAddress
from eventengine.core.handles import next_handle
from eventengine.engine import DNSResolver, SRVRecord, StatusOr, TaskHandle
from eventengine.names import split_host_port, to_port_number
from eventengine.status import ClosedResourceError, ForkedProcessError, Status, StatusCode, StatusError

if TYPE_CHECKING:
    from eventengine.core.loop import Loop

# What encoding a name would import: in vain when no descriptor is left just then, which Python remembers for good.
_IDNA: Final = encodings.idna.getregentry

__all__ = [
    "Addresses",
    "Answer",
    "HostedResolver",
    "NameSource",
    "Names",
    "Question",
    "SourceFactory",
    "parse_dns_server",
    "refuse_server",
]

AT_ONCE: Final = 64
"""Lookups of one resolver that are under way. What answers them, two datagrams each, fits into a socket's buffer."""

THREADS: Final = 4

DEADLINE: Final = 30.0
"""Seconds after which a lookup without an answer gets DEADLINE_EXCEEDED, whatever the source does about it."""

T = TypeVar("T")
Callback: TypeAlias = Callable[[StatusOr[T]], object]
Answer: TypeAlias = Callable[[StatusOr[T]], None]
Addresses: TypeAlias = list[ResolvedAddress]


def parse_dns_server(text: str) -> ResolvedAddress:
    """`127.0.0.1`, `127.0.0.1:5353`, `::1` or `[::1]:5353` into an address; the port is 53 if missing.

    Raises TypeError for what is no str, ValueError, with the text that was given, for what is no such address.
    """
    if not isinstance(text, str):
        raise TypeError(f"dns_server must be a str or None, not {type(text).__name__}")
    try:
        host, port = split_host_port(text, "53")
        if not (port.isascii() and port.isdigit() and int(port)):
            raise ValueError
        return ResolvedAddress.tcp(host, int(port))
    except ValueError:
        raise ValueError(
            f"{text!r} is not the address of a DNS server; write its IP address, and its port if that is not 53, as "
            'in "192.0.2.53" or "[2001:db8::53]:5353"'
        ) from None


class Question(NamedTuple):
    """What a source is asked for.

    `text` is what the application gave, for messages; `host` the name in ASCII; `port` goes into the addresses.
    """

    text: str
    host: str
    port: int = 0

    def failed(self, code: StatusCode, why: str) -> Status:
        return Status(code, f"looking up {self.text!r}: {why}")


class NameSource(ABC):
    """Looks names up. All is called on the loop's thread.

    What is asked is answered exactly once, on the loop's thread, at once or later; or never, after `close`. Nothing
    raises.
    """

    __slots__ = ()

    kind: ClassVar[str]
    """See `DNSResolver.kind`."""

    @abstractmethod
    def find_addresses(self, question: Question, answer: Answer[Addresses]) -> None:
        """Answers with at least one address, in the order in which to try them, or why there is none."""

    def find_services(self, question: Question, answer: Answer[list[SRVRecord]]) -> None:
        answer(question.failed(StatusCode.UNIMPLEMENTED, f"the resolver {self.kind!r} has no SRV lookups"))

    def find_texts(self, question: Question, answer: Answer[list[str]]) -> None:
        answer(question.failed(StatusCode.UNIMPLEMENTED, f"the resolver {self.kind!r} has no TXT lookups"))

    @abstractmethod
    def close(self) -> None:
        """Ends what is under way, as far as that can be, and leaves nothing on the loop. May be called twice."""


SourceFactory: TypeAlias = "Callable[[Names, ResolvedAddress | None], NameSource]"
"""Makes the source of one resolver, which asks the DNS server at that address, or those that the system is set up with.
Raises StatusError(UNIMPLEMENTED), see `refuse_server`, where no server can be chosen. Any thread."""


def refuse_server(kind: str, server: ResolvedAddress) -> StatusError:
    """What a source factory raises that can ask no server of one's choice."""
    return StatusError(
        Status(
            StatusCode.UNIMPLEMENTED,
            f"cannot ask the DNS server {server}: this engine's resolver is {kind!r}, which asks those that the system "
            'is set up with; resolver="c-ares" asks any, with pip install "eventengine[dns]"',
        )
    )


class Names:
    """What an engine's resolvers share: a pool of threads, for sources that wait in one, and that they can be found."""

    __slots__ = ("_executor", "loop", "resolvers")

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.resolvers: dict[int, weakref.ref[HostedResolver]] = {}  # by handles; any thread adds and removes
        self._executor: ThreadPoolExecutor | None = None

    def submit(self, function: Callable[[], object]) -> None:
        """Calls `function` on a thread of the pool. On the loop's thread. Raises RuntimeError when there is none to be
        had."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="eventengine-getaddrinfo")
        self._executor.submit(function)

    def post_answer(self, answer: Answer[T], result: StatusOr[T]) -> None:
        """Has the engine answer in a turn of its own, unless it was closed, and has answered. Any thread."""
        with contextlib.suppress(ClosedResourceError, ForkedProcessError):
            self.loop.post(partial(answer, result))

    def close(self) -> None:
        """The engine closes, on the loop's thread: so do the resolvers; what waits for a thread is dropped."""
        for reference in list(self.resolvers.values()):
            resolver = reference()
            if resolver is not None:
                resolver.close()
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)


class HostedResolver(DNSResolver):
    __slots__ = (
        "__weakref__",
        "_asked",
        "_asking",
        "_closed",
        "_handle",
        "_loop",
        "_names",
        "_pending",
        "_source",
        "_timers",
        "_waiting",
    )

    def __init__(self, names: Names, source: NameSource) -> None:
        self._loop = names.loop
        self._names = names
        self._source = source
        self._closed = False
        self._pending: dict[int, Callable[[Status], object]] = {}
        self._timers: dict[int, TaskHandle] = {}
        self._waiting: deque[tuple[int, Callable[[], None]]] = deque()
        self._asked: set[int] = set()
        self._asking = False
        self._handle = next_handle()
        names.resolvers[self._handle] = weakref.ref(self)

    @property
    def kind(self) -> str:
        return self._source.kind

    def __repr__(self) -> str:
        return f"<DNS resolver {self.kind!r}{', closed' if self._closed else ''}>"

    def lookup_hostname(self, on_resolve: Callback[Addresses], name: str, default_port: str = "") -> None:
        for what, value in ("a name", name), ("a default port", default_port):
            if not isinstance(value, str):
                raise TypeError(f"{what} must be str, not {type(value).__name__}")
        query = self._begin(on_resolve)
        self._post(query, partial(self._find_addresses, query, on_resolve, name, default_port))

    def lookup_srv(self, on_resolve: Callback[list[SRVRecord]], name: str) -> None:
        self._look_up(on_resolve, name, self._source.find_services)

    def lookup_txt(self, on_resolve: Callback[list[str]], name: str) -> None:
        self._look_up(on_resolve, name, self._source.find_texts)

    def close(self) -> None:
        self._closed = True
        self._names.resolvers.pop(self._handle, None)
        status = Status(StatusCode.CANCELLED, "the resolver was closed")
        for query in list(self._pending):
            on_resolve = self._pending.pop(query, None)
            if on_resolve is not None:
                self._loop.post_callback(on_resolve, status)
        try:
            self._loop.run_here(self._shut)
        except ClosedResourceError:  # nobody else will do it
            self._shut()
        except ForkedProcessError:  # what is open is the parent's
            pass

    def __del__(self) -> None:
        if getattr(self, "_closed", True):
            return
        self._names.resolvers.pop(self._handle, None)
        with contextlib.suppress(ClosedResourceError, ForkedProcessError):
            self._loop.post(self._source.close)
        warnings.warn("a DNS resolver was never closed", ResourceWarning, stacklevel=1, source=self)

    def _begin(self, on_resolve: Callback[T]) -> int:
        if not callable(on_resolve):
            raise TypeError(f"on_resolve must be callable, not {type(on_resolve).__name__}")
        if self._closed:
            raise ClosedResourceError("the resolver was closed")
        query = next_handle()
        self._pending[query] = on_resolve
        if self._closed and self._pending.pop(query, None) is not None:  # closed just now; else the close answers
            raise ClosedResourceError("the resolver was closed")
        return query

    def _post(self, query: int, letter: Callable[[], object]) -> None:
        try:
            self._loop.post(letter)
        except BaseException:
            if self._pending.pop(query, None) is not None:
                raise  # else the close has it, and answers

    def _look_up(self, on_resolve: Callback[T], name: str, find: Callable[[Question, Answer[T]], None]) -> None:
        if not isinstance(name, str):
            raise TypeError("a name must be str")
        query = self._begin(on_resolve)
        self._post(query, partial(self._find_records, query, on_resolve, name, find))

    # From here on, all is the loop's thread's.

    def _find_addresses(self, query: int, on_resolve: Callback[Addresses], name: str, default_port: str) -> None:
        try:
            host, port = split_host_port(name, default_port)
            number = to_port_number(name, port)
            try:
                literal = ResolvedAddress.tcp(host, number)
            except ValueError as error:
                if ":" in host:
                    raise ValueError(f"{name!r}: {error}") from None
                question = Question(name, _to_ascii(name, host), number)
            else:
                self._answer(query, on_resolve, [literal])
                return
        except ValueError as error:
            self._answer(query, on_resolve, Status(StatusCode.INVALID_ARGUMENT, str(error)))
        except StatusError as error:
            self._answer(query, on_resolve, error.status)
        else:
            self._ask(query, on_resolve, question, self._source.find_addresses)

    def _find_records(
        self, query: int, on_resolve: Callback[T], name: str, find: Callable[[Question, Answer[T]], None]
    ) -> None:
        try:
            question = Question(name, _to_ascii(name, name))
        except ValueError as error:
            self._answer(query, on_resolve, Status(StatusCode.INVALID_ARGUMENT, str(error)))
        else:
            self._ask(query, on_resolve, question, find)

    def _ask(
        self, query: int, on_resolve: Callback[T], question: Question, find: Callable[[Question, Answer[T]], None]
    ) -> None:
        """Rule 3."""
        if query in self._pending:
            late = partial(self._time_out, query, on_resolve, question)
            self._timers[query] = self._loop.timers.schedule_own(DEADLINE, late)
            self._waiting.append((query, partial(self._find, find, question, query, on_resolve)))
            self._ask_next()

    def _ask_next(self) -> None:
        if self._asking:  # an answer came at once: who asked goes on
            return
        self._asking = True
        try:
            while self._waiting and len(self._asked) < AT_ONCE:
                query, find = self._waiting.popleft()
                if query in self._pending:
                    self._asked.add(query)
                    find()
        finally:
            self._asking = False

    def _find(
        self, find: Callable[[Question, Answer[T]], None], question: Question, query: int, on_resolve: Callback[T]
    ) -> None:
        answer = partial(self._on_answer, query, on_resolve)
        try:
            find(question, answer)
        except Exception as error:  # a fault of the source, or of what it is made of; each lookup is answered
            answer(question.failed(StatusCode.INTERNAL, repr(error)))

    def _on_answer(self, query: int, on_resolve: Callback[T], result: StatusOr[T]) -> None:
        self._asked.discard(query)
        try:
            self._answer(query, on_resolve, result)
        finally:
            self._ask_next()

    def _time_out(self, query: int, on_resolve: Callback[T], question: Question) -> None:
        late = question.failed(StatusCode.DEADLINE_EXCEEDED, f"no answer within {DEADLINE:g} s")
        self._answer(query, on_resolve, late)

    def _answer(self, query: int, on_resolve: Callback[T], result: StatusOr[T]) -> None:
        timer = self._timers.pop(query, None)
        if timer is not None:
            self._loop.timers.cancel(timer)
        if self._pending.pop(query, None) is not None:
            self._loop.run_callback(on_resolve, result)

    def _shut(self) -> None:
        for timer in self._timers.values():
            self._loop.timers.cancel(timer)
        self._timers.clear()
        self._waiting.clear()
        self._source.close()


def _to_ascii(text: str, host: str) -> str:
    """The name as it is asked for. Raises ValueError, with the text that was given, for what cannot be one."""
    try:
        # What is refused for its length is not encoded before: that might take seconds.
        name = host if host.isascii() or len(host) > 254 else host.encode("idna").decode("ascii")
    except ValueError as error:
        raise ValueError(f"{text!r} is not a name: {error}") from None
    bare = name.removesuffix(".")
    # c-ares, as zone files do, takes a backslash for the beginning of an escape.
    if (
        len(bare) > 253
        or "\0" in bare
        or "\\" in bare
        or not all(0 < len(label) < 64 for label in bare.split("."))
    ):
        raise ValueError(
            f"{text!r} is not a name: it has 1 to 253 characters, with 1 to 63 between two dots, and neither NUL nor "
            "backslash"
        )
    if f".{bare.lower()}".endswith(".localhost"):  # which c-ares does not know by its full name
        return bare
    return name
