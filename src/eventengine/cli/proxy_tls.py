"""TLS on either side of the proxy: what its options ask for, read before anything listens, and the two handshakes."""

from __future__ import annotations

import fcntl
import re
import ssl
import termios
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from socket import AF_INET, AF_INET6

from eventengine import Endpoint, EventEngine, MemoryAllocator, StatusOr, SupportsFileDescriptor, Target, tls
from eventengine.status import ClosedResourceError

__all__ = ["ProxyTLS", "client_context", "server_context", "server_name_for", "unsent"]

HANDSHAKE_TIMEOUT = 10.0

_IP_FAMILIES = (AF_INET, AF_INET6)
_HOST = re.compile(r"[\w-]+(?:\.[\w-]+)*")


@dataclass(frozen=True)
class ProxyTLS:
    """Which sides of a proxy are over TLS, and how.

    Attributes:
        from_clients: The server's context with which clients are accepted; None: they are plain.
        to_target: The client's context with which the target is connected to; None: it is plain.
        server_name: Whom the target's certificate must be for; None: the IP address that was connected to.
    """

    from_clients: ssl.SSLContext | None = None
    to_target: ssl.SSLContext | None = None
    server_name: str | None = None

    def accept(
        self,
        engine: EventEngine,
        on_done: Callable[[StatusOr[Endpoint]], object],
        client: Endpoint,
        allocator: MemoryAllocator,
    ) -> tls.Handshake | None:
        """Begins the handshake with a client; None: there is none to do."""
        if self.from_clients is None:
            return None
        return tls.accept(
            engine, on_done, client, self.from_clients, memory_allocator=allocator, timeout=HANDSHAKE_TIMEOUT
        )

    def connect(
        self,
        engine: EventEngine,
        on_done: Callable[[StatusOr[Endpoint]], object],
        server: Endpoint,
        allocator: MemoryAllocator,
    ) -> tls.Handshake | None:
        """Begins the handshake with the target; None: there is none to do."""
        if self.to_target is None:
            return None
        return tls.connect(
            engine,
            on_done,
            server,
            self.to_target,
            server_hostname=self.server_name or server.peer_address.host.partition("%")[0],
            memory_allocator=allocator,
            timeout=HANDSHAKE_TIMEOUT,
        )


def server_context(certificate: Path, key: Path | None) -> ssl.SSLContext:
    """What clients are accepted with. Raises ValueError, in one line, where these files do not do for that.

    Args:
        certificate: A file (PEM) with the certificate and those of the authorities between it and the clients' own.
        key: A file with its private key; None: that is in `certificate`, too.
    """

    def refuse_to_ask() -> str:
        raise ValueError(f"the private key in {key or certificate} is encrypted; give one without a passphrase")

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key, refuse_to_ask)
    except OSError as error:  # ssl.SSLError is one, too
        for path in (certificate, key or certificate):
            _check_readable(path)
        raise ValueError(_why_no_chain(error, certificate, key)) from None
    return context


def client_context(authorities: Path | None) -> ssl.SSLContext:
    """What the target is connected to with; it must have a certificate of one of `authorities` (a file, PEM), or of
    those that the system trusts. Raises ValueError, in one line, where the file does not do for that."""
    try:
        return ssl.create_default_context(cafile=authorities)
    except OSError:
        if authorities is None:
            raise
        _check_readable(authorities)
        raise ValueError(f"{authorities} has no certificate (PEM)") from None


def server_name_for(target: Target, given: str | None) -> str | None:
    """Whom the target's certificate must be for: `given`, or the target's host; None: the address that is reached.

    Raises ValueError, in one line, where that is no host.
    """
    name = target.name.rpartition(":")[0] if given is None else given
    if given is None and target.addresses:
        if all(address.family in _IP_FAMILIES for address in target.addresses):
            return None
        raise ValueError(f"{target} has no host that its certificate could be for; give --to-server-name")
    name = name.removesuffix(".")
    try:
        if not _HOST.fullmatch(name):
            ip_address(name)
        ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=name)
    except ValueError:
        raise ValueError(f"{name!r} is no host that a certificate could be for, as in example.org") from None
    return name


def unsent(endpoint: Endpoint) -> int:
    """Bytes that were written and that the peer's system has not taken yet; 0 where nobody knows. On the loop."""
    descriptor = endpoint.query_extension(SupportsFileDescriptor)
    if descriptor is None or endpoint.peer_address.family not in _IP_FAMILIES:
        return 0
    count = array("i", [0])
    try:
        fcntl.ioctl(descriptor.fileno(), termios.TIOCOUTQ, count)
    except (OSError, ClosedResourceError):
        return 0
    return count[0]


def _check_readable(path: Path) -> None:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


def _why_no_chain(error: OSError, certificate: Path, key: Path | None) -> str:
    if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
        return f"the private key in {key or certificate} is not that of the certificate in {certificate}"
    if "-----BEGIN CERTIFICATE-----" not in certificate.read_text("latin-1"):
        return f"{certificate} has no certificate (PEM)"
    if "PRIVATE KEY-----" not in (key or certificate).read_text("latin-1"):
        where = "; give its file with --tls-key" if key is None else ""
        return f"{key or certificate} has no private key (PEM){where}"
    why = error.reason if isinstance(error, ssl.SSLError) else error.strerror
    return f"{certificate} cannot be used: {(why or str(error)).lower().replace('_', ' ')}"
