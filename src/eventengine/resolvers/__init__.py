"""Which resolver an engine takes, by name: what every engine can choose from. Bridges add those of their framework."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Literal, TypeAlias

from eventengine.address import ResolvedAddress
from eventengine.core.getaddrinfo import system_source
from eventengine.core.resolver import Names, NameSource, SourceFactory

__all__ = ["Loaders", "ResolverName", "choose"]

ResolverName: TypeAlias = Literal["c-ares", "system"]
"""What looks names up: `"c-ares"` asks DNS servers itself, on the engine's loop, and needs the extra `dns`; `"system"`
is `getaddrinfo` on a few threads, which also knows what the system's name service does (mDNS, LDAP)."""


Loaders: TypeAlias = Mapping[str, Callable[[], SourceFactory]]
"""Names, and what loads the factory of each."""


def choose(resolver: str | None, of_framework: Loaders | None = None) -> SourceFactory:
    """The factory of that name; None: c-ares where pycares is installed, else the system's.

    Args:
        of_framework: What a bridge has besides.

    Raises ValueError for a name that is none, ImportError, naming the extra, where pycares is needed and missing.
    """
    if resolver is None:
        return _default_source
    known = {**_LOADERS, **(of_framework or {})}
    load = known.get(resolver) if isinstance(resolver, str) else None
    if load is None:
        raise ValueError(f"resolver must be {', '.join(map(repr, known))} or None, not {resolver!r}")
    return load()


def _default_source(names: Names, server: ResolvedAddress | None) -> NameSource:
    # Not before a resolver is asked for: importing pycares takes longer than making an engine.
    try:
        factory = _c_ares()
    except ImportError:
        factory = system_source
    return factory(names, server)


def _c_ares() -> SourceFactory:
    from eventengine.resolvers.cares import cares_source  # noqa: PLC0415  # loads pycares

    return cares_source


def _system() -> SourceFactory:
    return system_source


_LOADERS: Final[Loaders] = {"c-ares": _c_ares, "system": _system}
