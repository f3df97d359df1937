"""What went wrong, and whose fault it was.

Errors are told apart by fault:

* *The world's* (a peer that reset, a port where nobody listens, a deadline): a `Status`, given to the
  operation's callback, or raised at once as `StatusError` by the few calls that answer synchronously.
* *The caller's* (a second read while one is outstanding, use after close): an exception of its own type, raised
  at the caller; nothing is lost and the engine goes on.

The codes are the canonical seventeen of gRPC (`grpc/status.h`, "Statuses and their use in gRPC").
"""

from __future__ import annotations

import errno as _errno
import os
from enum import IntEnum
from typing import ClassVar, NoReturn

__all__ = [
    "BusyResourceError",
    "ClosedResourceError",
    "EmptyBufferError",
    "ForkedProcessError",
    "Status",
    "StatusCode",
    "StatusError",
]


class StatusCode(IntEnum):
    """The canonical status codes; the numbers are those that gRPC sends on the wire."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class Status:
    """The outcome of an operation: a code, a sentence for a person, and the system's errno where there was one.

    Immutable. Two statuses are equal when code, message and errno are. A status has no truth value: ask `ok`.
    """

    # Plain slots, closed by `__setattr__`: `ok` is asked in every callback, and a property costs a call.
    __slots__ = ("code", "errno", "message", "ok")

    OK: ClassVar[Status]

    code: StatusCode
    message: str
    errno: int | None
    """The system call's error number (`errno.ECONNREFUSED`, ...), or None where no system call failed."""
    ok: bool

    def __init__(self, code: StatusCode = StatusCode.OK, message: str = "", errno: int | None = None) -> None:
        for name, value in (
            ("code", StatusCode(code)),
            ("message", message),
            ("errno", errno),
            ("ok", code == StatusCode.OK),
        ):
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a Status does not change; cannot set {name}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a Status does not change; cannot delete {name}")

    @classmethod
    def from_errno(cls, errno: int, doing: str) -> Status:
        """The status for a failed system call: `doing` says what was tried, in a few words.

        Running out of descriptors, buffers, memory or space is RESOURCE_EXHAUSTED, a lack of rights PERMISSION_DENIED,
        an address that is no use here INVALID_ARGUMENT, ETIMEDOUT and all that peers and networks do UNAVAILABLE.
        """
        name = _errno.errorcode.get(errno, str(errno))
        code = _CODE_OF_ERRNO.get(errno, StatusCode.UNAVAILABLE)
        return cls(code, f"{doing}: {os.strerror(errno)} ({name})", errno)

    def __reduce__(self) -> tuple[type[Status], tuple[StatusCode, str, int | None]]:
        return Status, (self.code, self.message, self.errno)

    def __bool__(self) -> bool:
        raise TypeError("a Status has no truth value; ask status.ok")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Status):
            return NotImplemented
        return (self.code, self.message, self.errno) == (other.code, other.message, other.errno)

    def __hash__(self) -> int:
        return hash((self.code, self.message, self.errno))

    def __repr__(self) -> str:
        errno = "" if self.errno is None else f", errno={self.errno}"
        return f"Status({self.code.name}, {self.message!r}{errno})" if not self.ok else "Status.OK"

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}" if self.message else self.code.name


Status.OK = Status()

_CODE_OF_ERRNO = {
    _errno.EMFILE: StatusCode.RESOURCE_EXHAUSTED,
    _errno.ENFILE: StatusCode.RESOURCE_EXHAUSTED,
    _errno.ENOBUFS: StatusCode.RESOURCE_EXHAUSTED,
    _errno.ENOMEM: StatusCode.RESOURCE_EXHAUSTED,
    _errno.ENOSPC: StatusCode.RESOURCE_EXHAUSTED,  # epoll_ctl's, for more descriptors than one user may watch
    _errno.EACCES: StatusCode.PERMISSION_DENIED,
    _errno.EPERM: StatusCode.PERMISSION_DENIED,
    _errno.EINVAL: StatusCode.INVALID_ARGUMENT,
    _errno.EAFNOSUPPORT: StatusCode.INVALID_ARGUMENT,
    _errno.EPROTONOSUPPORT: StatusCode.INVALID_ARGUMENT,
    _errno.ENAMETOOLONG: StatusCode.INVALID_ARGUMENT,
}


class StatusError(Exception):
    """Raised where a call fails at once for a reason that lies outside the program; `status` says why."""

    def __init__(self, status: Status) -> None:
        super().__init__(status)
        self.status = status


class BusyResourceError(RuntimeError):
    """A read was asked for while one is outstanding, or a write while one is outstanding."""


class ClosedResourceError(RuntimeError):
    """An engine, endpoint, listener, resolver, allocator or the host's loop was used after it was closed."""


class EmptyBufferError(IndexError):
    """A slice, or more bytes than there are, was taken from a `SliceBuffer`."""


class ForkedProcessError(RuntimeError):
    """An engine, or something of its, was used in a child process though it was made before the fork."""
