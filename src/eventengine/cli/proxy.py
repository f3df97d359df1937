"""A proxy written on the interface alone: it runs unchanged on any engine.

What it does with a connection, and the rules of that, are in `relay`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from socket import AF_UNIX

from eventengine import (
    DNSResolver,
    Endpoint,
    EndpointConfig,
    EventEngine,
    Listener,
    MemoryAllocator,
    ResolvedAddress,
    ResourceQuota,
    Status,
    Target,
)
from eventengine.cli.proxy_tls import ProxyTLS
from eventengine.cli.relay import Relay

__all__ = ["Proxy"]


def _resolver_for(engine: EventEngine, target: Target, dns_server: str | None) -> DNSResolver | None:
    """None: the target is no name. The server that a target names goes before another."""
    if not target.name:
        return None
    return engine.get_dns_resolver(dns_server=target.dns_server or dns_server)


class Proxy:
    """Passes each connection that is made to it on to `target`.

    Args:
        engine: Its callbacks must be serial (rule 4 of `relay`).
        up: Bounds what is held on its way from clients; a limit on connections goes here too.
        down: Bounds what is held on its way to clients.
        target: What to connect to, as text with its port. A name is looked up for each connection.
        idle_timeout: Seconds after which a connection on which nothing was passed on, either way, is closed. What is
            passed on is counted in whole reads, and the kernel buffers some MiB: give a slow reader the time for those.
        dns_server: Who is asked for `target`, unless that names one; None: as the engine's resolver is set up.
        tls: Which sides are over TLS; none, unless you say so.
        on_end: Called on the loop's thread with each relay that has ended.

    Raises StatusError where the engine cannot ask the DNS server, see `EventEngine.get_dns_resolver`, ValueError for a
    target that does not parse.

    Attributes:
        connections: How many were accepted.
        unconnected: How many of them ended because the target was not reached.
        bytes_up, bytes_down: What the relays that have ended passed on.
    """

    def __init__(
        self,
        engine: EventEngine,
        up: ResourceQuota,
        down: ResourceQuota,
        target: Target | ResolvedAddress | str,
        *,
        idle_timeout: float | None = None,
        dns_server: str | None = None,
        tls: ProxyTLS | None = None,
        on_end: Callable[[Relay], object] | None = None,
    ) -> None:
        self.engine = engine
        self.up = up
        self.down = down
        if isinstance(target, str):
            target = Target.parse(target, default_port="")
        elif isinstance(target, ResolvedAddress):
            target = Target.of(target)
        self.target = target
        self.resolver = _resolver_for(engine, target, dns_server)  # one for all connections
        self.idle_timeout = idle_timeout
        self.tls = tls or ProxyTLS()
        self.connections = 0
        self.unconnected = 0
        self.bytes_up = 0
        self.bytes_down = 0
        self._on_end = on_end
        self._relays: set[Relay] = set()
        self._stopped = threading.Event()
        self._listener: Listener | None = None

    def listen(self, address: ResolvedAddress) -> ResolvedAddress:
        """Begins to accept on `address` and returns it, port 0 replaced by the one that was taken. Call it once.

        Raises StatusError when the system refuses the address. A port is not shared with another process: one that
        is taken is refused.
        """
        listener = self.engine.create_listener(
            self._on_accept, self._on_shutdown, EndpointConfig(reuse_port=False), self.up
        )
        try:
            port = listener.bind(address)
            listener.start()
        except BaseException:
            listener.close()
            raise
        self._listener = listener
        return address if address.family == AF_UNIX else address.with_port(port)

    def close(self) -> None:
        """Stops accepting, closes every relay, and returns when all have ended. Not for the loop's own thread."""
        if self._listener is not None:
            self._listener.close()
            self._stopped.wait()
        if self.resolver is not None:
            self.resolver.close()

    def on_relay_end(self, relay: Relay) -> None:
        self._relays.discard(relay)
        self.unconnected += relay.up is None
        self.bytes_up += relay.bytes_up
        self.bytes_down += relay.bytes_down
        if self._on_end is not None:
            self._on_end(relay)

    def _on_accept(self, client: Endpoint, allocator: MemoryAllocator) -> None:
        self.connections += 1
        relay = Relay(self, client, allocator)
        self._relays.add(relay)
        relay.start()

    def _on_shutdown(self, status: Status) -> None:
        # Every `_on_accept` has returned, so no relay is added from here on.
        try:
            for relay in tuple(self._relays):
                relay.end("the proxy was stopped")
        finally:
            self._stopped.set()
