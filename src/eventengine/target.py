"""`Target`: what a client connects to, as text. Either the addresses themselves, or a name to look up.

    [dns:[//server[:port]/]]host[:port]
    ipv4:address[:port][,address[:port]...]     ipv6:address[:port][,...], where an address with a port is in brackets
    unix:path    unix:///absolute/path    unix-abstract:name    vsock:cid:port

Rules:

1. A text that begins with none of these schemes is a `dns` one, whatever its own beginning looks like.
2. A literal is its own address, under `dns` too: no server is asked, the one that the target names included.
3. Nothing is percent-decoded, so that each path and zone is written as everywhere else: here it departs from URIs.
4. The port is in the target once it is parsed, and `str` writes it: what was written is read as the same target,
   whatever the default port is then.

Source: `doc/naming.md` of gRPC.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from eventengine.address import ResolvedAddress
from eventengine.names import split_host_port, to_port_number
from eventengine.status import StatusError

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Target"]

_SCHEMES: Final = ("dns", "ipv4", "ipv6", "unix", "unix-abstract", "vsock")
_FORMS: Final = (
    '"host:port", "dns://server/host:port", "ipv4:127.0.0.1:80,127.0.0.2:80", "ipv6:[::1]:80", "unix:/path", '
    '"unix-abstract:name" or "vsock:cid:port"'
)
_FAMILIES: Final = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}
_DNS_PORT: Final = "53"


@dataclass(frozen=True, slots=True)
class Target:
    """What to connect to. Made by `parse` and `of`; immutable, hashable, and equal when all its parts are.

    Attributes:
        scheme: `dns`, `ipv4`, `ipv6`, `unix`, `unix-abstract` or `vsock`.
        addresses: Where to connect to, in the order in which to try; empty when `name` must be looked up first.
        name: `host:port` of a `dns` target, as `DNSResolver.lookup_hostname` takes it; else empty.
        dns_server: The server to ask for the name, as `EventEngine.get_dns_resolver` takes it; None: as the system is
            set up.
    """

    scheme: str
    addresses: tuple[ResolvedAddress, ...] = ()
    name: str = ""
    dns_server: str | None = None

    @classmethod
    def parse(cls, text: str, default_port: str = "443") -> Self:
        """Reads a target in one of the forms above.

        Args:
            text: The target.
            default_port: For hosts and IP addresses that are written without; a number, or the name of a service.
                gRPC's, unless you say otherwise; empty: a port must be written.

        Raises ValueError with the text that was given and what is wrong with it.
        """
        for name, value in ("a target", text), ("a default port", default_port):
            if not isinstance(value, str):
                raise TypeError(f"{name} must be str, not {type(value).__name__}")
        scheme, colon, rest = text.partition(":")
        try:
            if not colon or scheme not in _SCHEMES:
                if rest.startswith("//"):
                    raise ValueError(f"{scheme!r} is not a scheme of targets")
                return cls._dns(text, None, default_port)
            if scheme == "dns":
                return cls._dns(*_split_server(rest), default_port)
            if scheme in _FAMILIES:
                return cls(scheme, tuple(_read(scheme, part, default_port) for part in rest.split(",")))
            if scheme == "unix" and rest.startswith("//"):
                if not rest.startswith("///"):
                    raise ValueError("after unix:// the path is absolute, as in unix:///path")
                text_of_address = f"unix:{rest[2:]}"
            else:
                text_of_address = text
            return cls(scheme, (ResolvedAddress.parse(text_of_address),))
        except StatusError as error:
            why = error.status.message
        except ValueError as error:
            why = str(error)
        if not why.startswith(repr(text)):
            why = f"{text!r}: {why}"
        raise ValueError(f"{why}; a target is {_FORMS}")

    @classmethod
    def of(cls, address: ResolvedAddress) -> Self:
        """The target that is this address alone."""
        if not isinstance(address, ResolvedAddress):
            raise TypeError(f"a target is made of a ResolvedAddress, not of {type(address).__name__}")
        text = str(address)
        if address.family in _FAMILIES.values():
            return cls("dns", (address,), text)
        return cls(text.partition(":")[0], (address,))

    @classmethod
    def _dns(cls, name: str, server: str | None, default_port: str) -> Self:
        host, port = split_host_port(name, default_port)
        number = to_port_number(name, port)
        try:
            address = ResolvedAddress.tcp(host, number)
        except ValueError:
            return cls("dns", (), f"{host}:{number}", server)
        return cls("dns", (address,), str(address), server)

    def __str__(self) -> str:
        """The shortest form that `parse` reads as this target."""
        if self.scheme == "dns":
            if self.dns_server is not None:
                return f"dns://{self.dns_server}/{self.name}"
            return f"dns:{self.name}" if self.name.partition(":")[0] in _SCHEMES else self.name
        if self.scheme in _FAMILIES:
            return f"{self.scheme}:{','.join(map(str, self.addresses))}"
        text = str(self.addresses[0])
        return f"unix://{text[5:]}" if text.startswith("unix://") else text


def _split_server(rest: str) -> tuple[str, str | None]:
    """The host and the server of what follows `dns:`."""
    if not rest.startswith("//"):
        return rest, None
    server, slash, name = rest[2:].partition("/")
    if not slash:
        raise ValueError("dns:// is followed by a server, or none, and a slash, as in dns:///host:port")
    if not server:
        return name, None
    host, port = split_host_port(server, _DNS_PORT)
    number = to_port_number(server, port)
    return name, f"[{host}]:{number}" if ":" in host else f"{host}:{number}"


def _read(scheme: str, part: str, default_port: str) -> ResolvedAddress:
    """One address of a list."""
    host, port = split_host_port(part, default_port)
    number = to_port_number(part, port)
    try:
        address = ResolvedAddress.tcp(host, number)
    except ValueError:  # a name
        address = None
    if address is None or address.family != _FAMILIES[scheme]:
        raise ValueError(f"{part!r} is not an {'IPv4' if scheme == 'ipv4' else 'IPv6'} address")
    return address
