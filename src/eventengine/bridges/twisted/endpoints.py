"""Twisted endpoints whose connections are charged to a quota, as objects and as strings.

They are Twisted's own endpoints on a `BoundedReactor`; names are looked up as HostnameEndpoint does.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, Final, cast

from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ServerEndpoint,
    TCP6ServerEndpoint,
    UNIXClientEndpoint,
    UNIXServerEndpoint,
)
from twisted.internet.interfaces import (
    IStreamClientEndpoint,
    IStreamClientEndpointStringParserWithReactor,
    IStreamServerEndpoint,
    IStreamServerEndpointStringParser,
)
from twisted.plugin import IPlugin
from zope.interface import classImplements  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

from eventengine.address import ResolvedAddress
from eventengine.bridges.twisted.reactor import BoundedReactor
from eventengine.quota import ResourceQuota, check_served_size

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IListeningPort, IProtocol, IProtocolFactory

__all__ = ["QuotaClientEndpoint", "QuotaClientStringParser", "QuotaServerEndpoint", "QuotaServerStringParser"]

_BACKLOG: Final = 50  # Twisted's
_TIMEOUT: Final = 30.0  # Twisted's


class QuotaServerEndpoint:
    """Listens at `address`; what its connections hold is bounded, all together, by `quota`.

    What a protocol writes and its peer does not read is charged. While the quota is full nothing is read; TCP holds
    the peers back. When a write takes more than there is, connections are aborted, first those that hold most and have
    taken least.

    Args:
        reactor: Any reactor with Twisted's own TCP, such as that of epoll, select or asyncio.
        address: `"127.0.0.1:8080"`, `"[::1]:8080"` or `"unix:/path"`, or a ResolvedAddress.
        quota: A ResourceQuota, which others may share; or its memory alone, as in "64MiB"; 128 KiB at least.
        backlog: How many connections may wait to be accepted.

    Raises ValueError or TypeError for what is no address or no quota, before anything listens.
    """

    def __init__(
        self,
        reactor: object,
        address: ResolvedAddress | str,
        *,
        quota: ResourceQuota | str | int,
        backlog: int = _BACKLOG,
    ) -> None:
        where = ResolvedAddress.parse(address) if isinstance(address, str) else address
        if not isinstance(where, ResolvedAddress):
            raise TypeError(f"address must be a str or a ResolvedAddress, not {type(address).__name__}")
        bounded = BoundedReactor(reactor, quota)
        self.quota = bounded.bound.quota
        self._endpoint: Any
        if where.family == socket.AF_UNIX:
            self._endpoint = UNIXServerEndpoint(bounded, where.sockaddr, backlog)
        elif where.family == socket.AF_INET6:
            self._endpoint = TCP6ServerEndpoint(bounded, where.port, backlog, where.host)
        elif where.family == socket.AF_INET:
            self._endpoint = TCP4ServerEndpoint(bounded, where.port, backlog, where.host)
        else:
            raise ValueError(f"Twisted cannot listen at {where}; an address of TCP or a unix socket is needed")

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        """A Deferred of the port, as IStreamServerEndpoint has it."""
        return self._endpoint.listen(protocolFactory)  # type: ignore[no-any-return]


class QuotaClientEndpoint:
    """Connects to `address`; what the connection holds is charged to `quota`, as for QuotaServerEndpoint.

    Args:
        reactor: As for QuotaServerEndpoint.
        address: `"host:port"`, the host as a name, an IPv4 address or an IPv6 one in brackets, or `"unix:/path"`.
        quota: As for QuotaServerEndpoint.
        timeout: Seconds for the attempt.
        bind_address: The IP address of this machine that it comes from; None: as the system chooses.

    Raises ValueError or TypeError for what is no address or no quota.
    """

    def __init__(
        self,
        reactor: object,
        address: str,
        *,
        quota: ResourceQuota | str | int,
        timeout: float = _TIMEOUT,
        bind_address: str | None = None,
    ) -> None:
        if not isinstance(address, str):
            raise TypeError(f"address must be a str, not {type(address).__name__}")
        bounded = BoundedReactor(reactor, quota)
        self.quota = bounded.bound.quota
        self._endpoint: Any
        if address.startswith("unix:"):
            if bind_address is not None:
                raise ValueError(f"{address} has no bind_address; only what is connected by TCP comes from one")
            self._endpoint = UNIXClientEndpoint(
                bounded, ResolvedAddress.parse(address).sockaddr, cast("int", timeout)
            )
        else:
            host, port = _split(address)
            come_from = None if bind_address is None else (bind_address, 0)
            self._endpoint = HostnameEndpoint(bounded, host, port, timeout, come_from)

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """A Deferred of the protocol, as IStreamClientEndpoint has it."""
        return self._endpoint.connect(protocolFactory)  # type: ignore[no-any-return]


def _split(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not (colon and bare and port.isascii() and port.isdigit() and int(port) < 65536) or (":" in host) != (
        host != bare
    ):
        raise ValueError(
            f'{address!r} is not an address; "host:port", "[::1]:port" or "unix:/path" is allowed, '
            "with a port from 0 to 65535"
        )
    return bare, int(port)


# Those that may be given without their names come first, in the order of Twisted's "tcp:".
_SERVER_OPTIONS: Final = ("port", "interface", "backlog", "memory", "connections")
_CLIENT_OPTIONS: Final = ("host", "port", "timeout", "bindAddress", "memory")


class QuotaServerStringParser:
    """`quota:8080:interface=127.0.0.1:memory=64MiB`, with `connections=` and `backlog=`, for `serverFromString`.

    What Twisted's `tcp:` takes is taken here, by name or in its order: `port`, `interface`, `backlog`.
    """

    prefix = "quota"

    def parseStreamServer(self, reactor: object, *args: object, **kwargs: object) -> QuotaServerEndpoint:
        options = _options("quota:PORT", args, 3, kwargs, _SERVER_OPTIONS, ("port", "memory"))
        port = options["port"]
        if not (port.isascii() and port.isdigit()):
            raise ValueError(
                f"port is {port!r}: a number is needed, as in quota:8080; a colon of an IPv6 address is written \\:, "
                "and at a unix socket a QuotaServerEndpoint listens, but no string"
            )
        interface = options.get("interface") or "0.0.0.0"
        host = f"[{interface}]" if ":" in interface else interface
        quota = ResourceQuota(
            "twisted",
            memory=_memory(options["memory"]),
            connections=_number("connections", options["connections"]) if "connections" in options else None,
        )
        backlog = _number("backlog", options.get("backlog", str(_BACKLOG)))
        return QuotaServerEndpoint(reactor, f"{host}:{port}", quota=quota, backlog=backlog)


class QuotaClientStringParser:
    """`quota:host=example.org:port=80:memory=64MiB`, with `timeout=` and `bindAddress=`, for `clientFromString`.

    As for Twisted's `tcp:`, the host and the port may be given without their names, in this order.
    """

    prefix = "quota"

    def parseStreamClient(self, reactor: object, *args: object, **kwargs: object) -> QuotaClientEndpoint:
        options = _options("quota:HOST:PORT", args, 2, kwargs, _CLIENT_OPTIONS, ("host", "port", "memory"))
        host = f"[{options['host']}]" if ":" in options["host"] else options["host"]
        timeout = _number("timeout", options.get("timeout", str(int(_TIMEOUT))))
        return QuotaClientEndpoint(
            reactor,
            f"{host}:{options['port']}",
            quota=_memory(options["memory"]),
            timeout=float(timeout),
            bind_address=options.get("bindAddress"),
        )


for _class, *_interfaces in (
    (QuotaServerEndpoint, IStreamServerEndpoint),
    (QuotaClientEndpoint, IStreamClientEndpoint),
    (QuotaServerStringParser, IPlugin, IStreamServerEndpointStringParser),
    (QuotaClientStringParser, IPlugin, IStreamClientEndpointStringParserWithReactor),
):
    classImplements(_class, *_interfaces)


def _options(
    form: str,
    args: tuple[object, ...],
    nameless: int,
    kwargs: dict[str, object],
    allowed: tuple[str, ...],
    needed: tuple[str, ...],
) -> dict[str, str]:
    """By their names; a value without one is the first of the `nameless` first options that no other value is for."""
    for name in kwargs:
        if name not in allowed:
            raise ValueError(f"{form} has no option {name!r}; {', '.join(allowed)} are allowed")
    free = [name for name in allowed[:nameless] if name not in kwargs]
    if len(args) > len(free):
        without = ", ".join(repr(value) for value in args[len(free) :])
        raise ValueError(f"{form} has a value too many: {without}; {', '.join(allowed)} are allowed")
    options = {name: str(value) for name, value in (*zip(free, args, strict=False), *kwargs.items())}
    for name in needed:
        if name not in options:
            raise ValueError(f"{form} needs {name}={', as in memory=64MiB' if name == 'memory' else ''}")
    return options


def _memory(text: str) -> int:
    try:
        return check_served_size(text)
    except ValueError as error:
        raise ValueError(f"memory is {text!r}: {error}") from None


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{name} is {text!r}; a whole number without a sign is needed")
    return int(text)
