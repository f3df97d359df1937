"""A Twisted reactor as a host, over `IReactorFDSet`, `IReactorTime` and `IReactorThreads`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol, cast

from twisted.internet.interfaces import IReactorFDSet, IReactorThreads, IReactorTime, IReadWriteDescriptor
from twisted.logger import Logger
from twisted.python import threadable
from twisted.python.failure import Failure
from zope.interface import classImplements  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

from eventengine.core.host import READ, WRITE, Host
from eventengine.core.threaded import Gate

__all__ = ["TwistedHost"]

_log: Final = Logger("eventengine")


class _Interface(Protocol):
    __name__: str

    def providedBy(self, candidate: object) -> bool: ...


_NEEDED: Final = cast("tuple[_Interface, ...]", (IReactorFDSet, IReactorTime, IReactorThreads))


class _DelayedCall(Protocol):
    def cancel(self) -> None: ...


class _Reactor(Protocol):
    """What is used of a reactor; zope's interfaces say nothing to a type checker."""

    running: bool

    def seconds(self) -> float: ...
    def callLater(self, delay: float, callable: Callable[[], object]) -> _DelayedCall: ...
    def callFromThread(self, callable: Callable[[], object]) -> None: ...
    def addReader(self, reader: object) -> None: ...
    def removeReader(self, reader: object) -> None: ...
    def addWriter(self, writer: object) -> None: ...
    def removeWriter(self, writer: object) -> None: ...


class _Descriptor:
    """One watched descriptor."""

    __slots__ = ("_host", "events", "fd", "on_ready")

    def __init__(self, host: TwistedHost, fd: int, on_ready: Callable[[int], object]) -> None:
        self._host = host
        self.fd = fd
        self.events = 0
        self.on_ready: Callable[[int], object] | None = on_ready

    def fileno(self) -> int:
        return self.fd

    def logPrefix(self) -> str:
        return "eventengine"

    def doRead(self) -> None:
        if self.on_ready is not None:
            self.on_ready(READ)

    def doWrite(self) -> None:
        if self.on_ready is not None:
            self.on_ready(WRITE)

    def connectionLost(self, reason: Failure) -> None:
        """The reactor saw a hang-up or an error and dropped this descriptor: that is readiness, see `Host.watch`."""
        if self.on_ready is not None:
            self._host.forget(self)
            self.on_ready(READ | WRITE)


# Not its decorator: zope has no types, and the class would lose its own.
classImplements(_Descriptor, IReadWriteDescriptor)


class TwistedHost(Host):
    """A reactor as a host."""

    __slots__ = ("_gate", "_reactor", "_watched")

    def __init__(self, reactor: object, gate: Gate | None = None) -> None:
        """`gate` is for a reactor of the engine's own, and closed when that has ended."""
        missing = [interface.__name__ for interface in _NEEDED if not interface.providedBy(reactor)]
        if missing:
            raise TypeError(
                f"{type(reactor).__name__} does not provide {' and '.join(missing)}; an engine needs a reactor that "
                "watches file descriptors, such as the epoll, poll, select or asyncio reactor"
            )
        self._reactor = cast("_Reactor", reactor)
        self._watched: dict[int, _Descriptor] = {}
        self._gate = gate

    @property
    def reactor(self) -> object:
        return self._reactor

    @property
    def time(self) -> Callable[[], float]:
        return self._reactor.seconds

    def call_later(self, delay: float, function: Callable[[], object]) -> object:
        return self._reactor.callLater(delay, function)

    def cancel(self, handle: object) -> None:
        cast("_DelayedCall", handle).cancel()

    def wake(self, function: Callable[[], object]) -> None:
        if self._gate is None:
            self._reactor.callFromThread(function)
        else:
            with self._gate:
                self._reactor.callFromThread(function)

    def watch(self, fd: int, events: int, on_ready: Callable[[int], object]) -> None:
        descriptor = self._watched.get(fd)
        if descriptor is None:
            descriptor = _Descriptor(self, fd, on_ready)
            self._watched[fd] = descriptor
        have, descriptor.events = descriptor.events, events
        if events & READ & ~have:
            self._reactor.addReader(descriptor)
        elif have & READ & ~events:
            self._reactor.removeReader(descriptor)
        if events & WRITE & ~have:
            self._reactor.addWriter(descriptor)
        elif have & WRITE & ~events:
            self._reactor.removeWriter(descriptor)

    def unwatch(self, fd: int) -> None:
        descriptor = self._watched.pop(fd, None)
        if descriptor is not None:
            descriptor.on_ready = None
            self._reactor.removeReader(descriptor)
            self._reactor.removeWriter(descriptor)

    def forget(self, descriptor: _Descriptor) -> None:
        """The reactor has dropped `descriptor`; a later `watch` makes a new one."""
        if self._watched.get(descriptor.fd) is descriptor:
            del self._watched[descriptor.fd]

    def log_exception(self, message: str, error: BaseException) -> None:
        _log.failure("{what}", failure=Failure(error), what=message)  # `message` is a key of the legacy log's own

    def is_here(self) -> bool:
        # A reactor does not say which thread runs it; Twisted knows the one that was started last.
        return self._reactor.running and threadable.isInIOThread()

    @property
    def is_running(self) -> bool:
        return self._reactor.running

    @property
    def is_closed(self) -> bool:
        return self._gate is not None and self._gate.is_closed
