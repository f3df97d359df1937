"""The engines by the names that the command line gives them, each with a thread of its own."""

from __future__ import annotations

from collections.abc import Callable

from eventengine import EventEngine, create_event_engine

__all__ = ["ENGINES", "load_engine"]


def _default() -> Callable[[], EventEngine]:
    return create_event_engine


def _twisted() -> Callable[[], EventEngine]:
    from eventengine.bridges.twisted import TwistedEventEngine

    return TwistedEventEngine.in_thread


def _tornado() -> Callable[[], EventEngine]:
    from eventengine.bridges.tornado import TornadoEventEngine

    return TornadoEventEngine.in_thread


def _asyncio() -> Callable[[], EventEngine]:
    from eventengine.bridges.asyncio import AsyncioEventEngine

    return AsyncioEventEngine.in_thread


_LOADERS = {"default": _default, "twisted": _twisted, "tornado": _tornado, "asyncio": _asyncio}

ENGINES = tuple(_LOADERS)
"""The names."""


def load_engine(name: str) -> Callable[[], EventEngine]:
    """What makes an engine of that name. Raises ImportError, naming the extra, where its framework is missing."""
    return _LOADERS[name]()
