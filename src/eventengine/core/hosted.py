"""`HostedEventEngine`: the interface over any `Host`. It checks arguments, and wires the other files of `core`.

Closing, in this order: no call is taken any more (`Loop.is_open`); then, on the loop's thread, connects, lookups,
listeners and endpoints are ended, timers dropped, the mailbox emptied (with the closures of `run` that wait, and each
CANCELLED), the poller taken off the host, and a thread of the engine's own ended. `_open` is a token: who deletes it
closes, once.

The engine holds the loop, and nothing of the loop holds the engine: one that is dropped is closed when collected.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import warnings
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from inspect import iscoroutinefunction
from math import inf
from types import BuiltinFunctionType, FunctionType, MethodType

from eventengine.address import ResolvedAddress
from eventengine.config import EndpointConfig
from eventengine.core.connector import Connector
from eventengine.core.endpoint import SocketEndpoint
from eventengine.core.getaddrinfo import system_source
from eventengine.core.host import Host
from eventengine.core.inherited import take_connection
from eventengine.core.listener import Acceptor, OnAccept, SocketListener
from eventengine.core.loop import Loop, loops
from eventengine.core.resolver import HostedResolver, Names, SourceFactory, parse_dns_server
from eventengine.core.sockets import set_options
from eventengine.core.threaded import LoopThread
from eventengine.core.timers import check_seconds
from eventengine.engine import (
    ConnectionHandle,
    DNSResolver,
    Endpoint,
    EventEngine,
    Listener,
    StatusOr,
    TaskHandle,
)
from eventengine.memory import MemoryAllocator, MemoryAllocatorFactory
from eventengine.status import ClosedResourceError, ForkedProcessError, Status, StatusCode, StatusError

__all__ = ["HostedEventEngine", "check_allocator", "check_factory", "check_protocol"]

_PLAIN = frozenset({FunctionType, MethodType, BuiltinFunctionType, partial})
"""What may be a letter by itself: the mailbox compares letters, and these are equal to none but their own like."""


class HostedEventEngine(EventEngine):
    """An engine on a host's loop.

    Args:
        host: The loop, by way of its bridge.
        callback_executor: A pool for the callbacks; None: they run on the loop's thread. The engine never shuts it
            down.
        private_poller: True: sockets are watched by an epoll of the engine's own, which the host watches as one
            descriptor; False: each socket by the host; None: the former where both system and host can.
        thread: The thread that runs the loop, if it is the engine's own to end.
        source_factory: What looks names up; None: the system's `getaddrinfo`.
    """

    __slots__ = (
        "__weakref__",
        "_cancel",
        "_connector",
        "_loop",
        "_names",
        "_open",
        "_schedule",
        "_source",
        "_thread",
    )

    def __init__(
        self,
        host: Host,
        *,
        callback_executor: Executor | None = None,
        private_poller: bool | None = None,
        thread: LoopThread | None = None,
        source_factory: SourceFactory | None = None,
    ) -> None:
        if not isinstance(host, Host):
            raise TypeError(
                f"host must be a Host, not {type(host).__name__}; a bridge's engine makes one of its loop"
            )
        if host.is_closed:
            raise ClosedResourceError("the loop was closed; an engine needs one that runs or will run")
        if callback_executor is not None and not isinstance(callback_executor, Executor):
            raise TypeError(
                f"callback_executor must be a concurrent.futures.Executor, not {type(callback_executor).__name__}"
            )
        loop = Loop(
            host,
            callback_executor=callback_executor,
            private_poller=private_poller,
            own_thread=thread is not None,
        )
        self._loop = loop
        self._schedule = loop.timers.schedule
        self._cancel = loop.timers.cancel
        self._connector = Connector(loop)
        self._names = Names(loop)
        self._source = source_factory or system_source
        self._thread = thread
        self._open = None
        if thread is not None:
            thread.start()

    @property
    def callbacks_block_polling(self) -> bool:
        return self._loop.callbacks.block_polling

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return not self._loop.is_open

    @property
    def callback_errors(self) -> int:
        """How many callbacks have raised; each was logged."""
        return self._loop.callbacks.errors

    def run(self, closure: Callable[[], object]) -> None:
        if not callable(closure):
            raise _not_callable("closure", closure)
        loop = self._loop
        if not loop.is_open:
            raise self._why_closed()
        if loop.calls_back_here and type(closure) in _PLAIN:
            loop.post(closure)
        else:
            loop.post(partial(loop.run_callback, closure))

    def run_after(self, delay: float, closure: Callable[[], object]) -> TaskHandle:
        if not callable(closure):
            raise _not_callable("closure", closure)
        if type(delay) is not float or not 0.0 <= delay < inf:
            check_seconds("delay", delay)
        if not self._loop.is_open:
            raise self._why_closed()
        return self._schedule(delay, closure)

    def cancel(self, handle: TaskHandle) -> bool:
        if self._loop.is_forked:
            raise self._why_closed()
        return self._cancel(handle)

    def connect(
        self,
        on_connect: Callable[[StatusOr[Endpoint]], object],
        address: ResolvedAddress,
        config: EndpointConfig,
        memory_allocator: MemoryAllocator,
        timeout: float,
    ) -> ConnectionHandle:
        _check_callable("on_connect", on_connect)
        _check_type("address", address, ResolvedAddress)
        _check_type("config", config, EndpointConfig)
        check_allocator(memory_allocator)
        check_seconds("timeout", timeout)
        self._check_open()
        return self._connector.connect(on_connect, address, config, memory_allocator, timeout)

    def cancel_connect(self, handle: ConnectionHandle) -> bool:
        self._check_not_forked()
        return self._connector.cancel(handle)

    def create_listener(
        self,
        on_accept: OnAccept,
        on_shutdown: Callable[[Status], object],
        config: EndpointConfig,
        memory_allocator_factory: MemoryAllocatorFactory,
    ) -> Listener:
        check_factory(on_accept, memory_allocator_factory)
        _check_callable("on_shutdown", on_shutdown)
        _check_type("config", config, EndpointConfig)
        self._check_open()
        acceptor = Acceptor(self._loop, on_accept, on_shutdown, config, memory_allocator_factory)
        if not self._loop.is_open:  # closed just now, perhaps by one who did not see the acceptor yet
            acceptor.close()
        return SocketListener(acceptor, self)

    def endpoint_from_socket(
        self, sock: socket.socket, memory_allocator: MemoryAllocator, config: EndpointConfig | None = None
    ) -> Endpoint:
        """A connected stream socket as an endpoint. The socket is then the endpoint's; `sock` is left without one.

        It is made non-blocking and is not inherited by other programs.

        Args:
            sock: Of TCP, unix or vsock, by whomever it was made and connected. Bytes that were read from it already are
                not read again.
            memory_allocator: What the endpoint draws its memory from.
            config: Options to set on it; None: it keeps those that it has.

        Raises TypeError or ValueError, with `sock` as it was, for what is no connected stream socket; StatusError when
        its connection has ended, or an option cannot be set; ClosedResourceError after close. May be called from any
        thread.

        Source: `EventEngineSupportsFdExtension` in `grpc/event_engine/extensions/supports_fd.h`.
        """
        _check_type("sock", sock, socket.socket)
        return self._take_over(sock, memory_allocator, config)

    def endpoint_from_fd(
        self, fd: int, memory_allocator: MemoryAllocator, config: EndpointConfig | None = None
    ) -> Endpoint:
        """As `endpoint_from_socket`, for its descriptor, which the endpoint closes in the end; ValueError for one that
        an endpoint of any engine has already. May be called from any thread.
        """
        if isinstance(fd, bool) or not isinstance(fd, int):
            raise TypeError(f"fd must be an int, not {type(fd).__name__}")
        for loop in loops():
            known = None if loop.is_forked else loop.endpoints.get(fd)
            endpoint = None if known is None else known()
            if (
                endpoint is not None and not endpoint._closed
            ):  # else it would be closed twice, and be another's by then
                of = "this engine" if loop is self._loop else "another engine"
                raise ValueError(f"descriptor {fd} is that of an endpoint of {of} already")
        return self._take_over(fd, memory_allocator, config)

    def _take_over(
        self, given: socket.socket | int, memory_allocator: MemoryAllocator, config: EndpointConfig | None
    ) -> Endpoint:
        check_allocator(memory_allocator)
        if config is not None:
            _check_type("config", config, EndpointConfig)
        self._check_open()
        if not self._loop.host.has_system_sockets:
            raise StatusError(Status(StatusCode.UNIMPLEMENTED, "the sockets of this engine have no descriptors"))
        sock, peer = take_connection(given)
        try:
            if config is not None:
                set_options(sock, config)
            endpoint = SocketEndpoint(self._loop, sock, peer.sockaddr, None, memory_allocator.memory, None)
        except OSError as error:
            sock.close()
            raise StatusError(Status.from_errno(error.errno or errno.EIO, f"taking over {peer}")) from None
        except BaseException:
            sock.close()
            raise
        if not self._loop.is_open:  # closed just now, perhaps by one who did not see the endpoint yet
            endpoint.close()
        return endpoint

    def get_dns_resolver(self, *, dns_server: str | None = None) -> DNSResolver:
        server = None if dns_server is None else parse_dns_server(dns_server)
        self._check_open()
        return HostedResolver(self._names, self._source(self._names, server))

    def is_worker_thread(self) -> bool:
        self._check_not_forked()
        return self._loop.callbacks.runs_here(self._loop.is_here())

    def close(self) -> None:
        loop = self._loop
        try:
            del self._open
        except AttributeError:
            self._check_not_forked()
            if self._thread is None and loop.host.is_closed:  # the loop may have ended before our letter came
                self._shut_down()
        else:
            loop.is_open = False
            host = loop.host
            if loop.is_here() or (self._thread is None and not host.is_running):
                self._shut_down()
            else:
                try:
                    loop.post_first(self._shut_down)  # at the next turn, however many letters wait
                except ClosedResourceError:  # the host's loop was closed under us; nobody else will do it
                    self._shut_down()
        if self._thread is not None and not loop.is_here():
            self._thread.join()

    def __del__(self) -> None:
        try:
            del self._open
        except AttributeError:
            return
        # By a letter that does not hold this object: it may be collected in any thread, at any point.
        shut_down = partial(_shut_down, self._loop, self._connector, self._names, self._thread)
        with contextlib.suppress(ClosedResourceError, ForkedProcessError):
            self._loop.post(shut_down)
        warnings.warn("an event engine was never closed", ResourceWarning, stacklevel=1, source=self)

    def _shut_down(self) -> None:
        _shut_down(self._loop, self._connector, self._names, self._thread)

    def _check_open(self) -> None:
        if not self._loop.is_open:
            raise self._why_closed()

    def _check_not_forked(self) -> None:
        if self._loop.is_forked:
            raise self._why_closed()

    def _why_closed(self) -> Exception:
        return self._loop.misused(ClosedResourceError("the engine was closed"))


def _shut_down(loop: Loop, connector: Connector, names: Names, thread: LoopThread | None) -> None:
    """On the loop's thread, or while the loop does not run."""
    try:
        loop.close([connector.cancel_all, names.close])
    finally:
        if thread is not None:
            thread.stop()


def check_allocator(memory_allocator: object) -> None:
    """Raises TypeError for what is none."""
    _check_type("memory_allocator", memory_allocator, MemoryAllocator)


def check_factory(on_accept: object, memory_allocator_factory: object) -> None:
    """Raises TypeError for what nothing can be accepted with."""
    _check_callable("on_accept", on_accept)
    if not callable(getattr(memory_allocator_factory, "create_memory_allocator", None)):
        raise TypeError(
            "memory_allocator_factory must have create_memory_allocator, as a ResourceQuota has, and "
            f"{type(memory_allocator_factory).__name__} has not"
        )


def check_protocol(engine: object, memory_allocator: object, name: str, callback: object) -> None:
    """Raises TypeError for what a protocol cannot make an endpoint with."""
    _check_type("engine", engine, HostedEventEngine)
    check_allocator(memory_allocator)
    _check_callable(name, callback)


def _check_callable(name: str, value: object) -> None:
    if not callable(value):
        raise _not_callable(name, value)
    if iscoroutinefunction(value):
        raise TypeError(f"{name} is a coroutine function; a callback is a plain function, which may start a task")


def _not_callable(name: str, value: object) -> TypeError:
    return TypeError(f"{name} must be callable, not {type(value).__name__}")


def _check_type(name: str, value: object, wanted: type) -> None:
    if not isinstance(value, wanted):
        hint = "; see ResourceQuota.create_memory_allocator" if wanted is MemoryAllocator else ""
        article = "an" if wanted.__name__[0] in "AEIOU" else "a"
        raise TypeError(f"{name} must be {article} {wanted.__name__}, not {type(value).__name__}{hint}")
