"""Names by the system's `getaddrinfo`, on a small pool of threads of the engine's own.

Rules:

1. `_pending` holds the callbacks. Taking one out is atomic, and settles who answers it: the result, or the close.
2. A lookup under way cannot be stopped, only its answer be dropped. The pool is made when it is first needed; the
   engine's close ends its threads as they become idle.
3. Callbacks are called by way of the loop's thread, never within `lookup_...`.
"""

from __future__ import annotations

import contextlib
import encodings.idna
import socket
import warnings
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar, cast

from eventengine.address import ResolvedAddress, Sockaddr
from eventengine.core.handles import next_handle
from eventengine.engine import DNSResolver, SRVRecord, StatusOr
from eventengine.names import split_host_port
from eventengine.status import ClosedResourceError, ForkedProcessError, Status, StatusCode

if TYPE_CHECKING:
    from eventengine.core.loop import Loop

# What getaddrinfo would import itself: in vain when no descriptor is left just then, which Python remembers for good.
_IDNA: Final = encodings.idna.getregentry

__all__ = ["LookupPool", "SystemResolver"]

THREADS: Final = 4

T = TypeVar("T")
Callback: TypeAlias = Callable[[StatusOr[T]], object]
Addresses: TypeAlias = list[ResolvedAddress]


class LookupPool:
    """The threads in which an engine's lookups wait."""

    __slots__ = ("_executor", "resolvers")

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self.resolvers: dict[int, weakref.ref[SystemResolver]] = {}  # by handles; any thread adds and removes

    def submit(self, function: Callable[[], object]) -> None:
        """On the loop's thread."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="eventengine-getaddrinfo")
        self._executor.submit(function)

    def close(self) -> None:
        """On the loop's thread: closes the resolvers; lookups that wait for a thread are dropped."""
        for reference in list(self.resolvers.values()):
            resolver = reference()
            if resolver is not None:
                resolver.close()
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)


class SystemResolver(DNSResolver):
    __slots__ = ("__weakref__", "_closed", "_handle", "_loop", "_pending", "_pool")

    def __init__(self, loop: Loop, pool: LookupPool) -> None:
        self._loop = loop
        self._pool = pool
        self._closed = False
        self._pending: dict[int, Callable[[Status], object]] = {}
        self._handle = next_handle()
        pool.resolvers[self._handle] = weakref.ref(self)

    def lookup_hostname(self, on_resolve: Callback[Addresses], name: str, default_port: str = "") -> None:
        if not isinstance(name, str) or not isinstance(default_port, str):
            raise TypeError("a name and a default port must be str")
        query = self._begin(on_resolve)
        try:
            host, port = split_host_port(name, default_port)
        except ValueError as error:
            status = Status(StatusCode.INVALID_ARGUMENT, str(error))
            self._post(query, partial(self._answer, query, on_resolve, status))
            return
        try:
            literal = ResolvedAddress.tcp(host, int(port))
        except ValueError:  # a name, or a port by name
            self._post(query, partial(self._look_up, query, on_resolve, name, host, port))
        else:
            self._post(query, partial(self._answer, query, on_resolve, [literal]))

    def lookup_srv(self, on_resolve: Callback[list[SRVRecord]], name: str) -> None:
        self._refuse(on_resolve, name, "SRV")

    def lookup_txt(self, on_resolve: Callback[list[str]], name: str) -> None:
        self._refuse(on_resolve, name, "TXT")

    def close(self) -> None:
        self._closed = True
        self._pool.resolvers.pop(self._handle, None)
        status = Status(StatusCode.CANCELLED, "the resolver was closed")
        for query in list(self._pending):
            on_resolve = self._pending.pop(query, None)
            if on_resolve is not None:
                self._loop.post_callback(on_resolve, status)

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self._pool.resolvers.pop(self._handle, None)
            warnings.warn("a DNS resolver was never closed", ResourceWarning, stacklevel=1, source=self)

    def _begin(self, on_resolve: Callback[T]) -> int:
        if not callable(on_resolve):
            raise TypeError(f"on_resolve must be callable, not {type(on_resolve).__name__}")
        if self._closed:
            raise ClosedResourceError("the resolver was closed")
        query = next_handle()
        self._pending[query] = on_resolve
        return query

    def _refuse(self, on_resolve: Callback[T], name: str, kind: str) -> None:
        query = self._begin(on_resolve)
        status = Status(StatusCode.UNIMPLEMENTED, f"{name}: the system's resolver has no {kind} lookups")
        self._post(query, partial(self._answer, query, on_resolve, status))

    def _post(self, query: int, letter: Callable[[], object]) -> None:
        try:
            self._loop.post(letter)
        except BaseException:
            if self._pending.pop(query, None) is not None:
                raise  # else the engine's close has it, and answers

    def _answer(self, query: int, on_resolve: Callback[T], result: T | Status) -> None:
        """On the loop's thread."""
        if self._pending.pop(query, None) is not None:
            self._loop.run_callback(on_resolve, result)

    def _look_up(self, query: int, on_resolve: Callback[Addresses], name: str, host: str, port: str) -> None:
        """On the loop's thread."""
        if query in self._pending:
            try:
                self._pool.submit(partial(self._look_up_and_answer, query, on_resolve, name, host, port))
            except RuntimeError as error:  # no thread to be had, or the interpreter ends
                self._answer(query, on_resolve, Status(StatusCode.UNAVAILABLE, f"looking up {name!r}: {error}"))

    def _look_up_and_answer(
        self, query: int, on_resolve: Callback[Addresses], name: str, host: str, port: str
    ) -> None:
        """On a thread of the pool."""
        try:
            result = _getaddrinfo(name, host, port)
        except Exception as error:  # each query is answered
            result = Status(StatusCode.INTERNAL, f"looking up {name!r}: {error!r}")
        with contextlib.suppress(
            ClosedResourceError, ForkedProcessError
        ):  # the engine was closed, and has answered
            self._loop.post(partial(self._answer, query, on_resolve, result))


_CODES = {
    socket.EAI_NONAME: StatusCode.NOT_FOUND,
    getattr(socket, "EAI_NODATA", socket.EAI_NONAME): StatusCode.NOT_FOUND,
    socket.EAI_SERVICE: StatusCode.INVALID_ARGUMENT,
    socket.EAI_MEMORY: StatusCode.RESOURCE_EXHAUSTED,
}


def _getaddrinfo(name: str, host: str, port: str) -> Addresses | Status:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        return Status(_CODES.get(error.errno, StatusCode.UNAVAILABLE), f"looking up {name!r}: {error.strerror}")
    except OSError as error:
        return Status.from_errno(error.errno or 0, f"looking up {name!r}")
    except ValueError as error:  # UnicodeError too: a label that is too long, or empty
        return Status(StatusCode.INVALID_ARGUMENT, f"looking up {name!r}: {error}")
    addresses = [ResolvedAddress(family, cast("Sockaddr", sockaddr)) for family, _, _, _, sockaddr in found]
    return list(dict.fromkeys(addresses)) or Status(StatusCode.NOT_FOUND, f"looking up {name!r}: no address")
