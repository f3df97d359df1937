"""The default engine: made with the standard library alone, with an I/O thread of its own.

`_default` holds the engine that the process shares, under its lock. A child process forgets the one of its parent.
"""

from __future__ import annotations

import atexit
import os
import threading
from concurrent.futures import Executor

from eventengine.core.hosted import HostedEventEngine
from eventengine.core.threaded import LoopThread, ThreadHost
from eventengine.engine import EventEngine
from eventengine.resolvers import ResolverName, choose

__all__ = [
    "create_event_engine",
    "get_default_event_engine",
    "set_default_event_engine",
    "shutdown_default_event_engine",
]


class _Default:
    """The process's shared engine."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.lock = threading.Lock()
        self.engine: EventEngine | None = None


_default = _Default()


def create_event_engine(
    *, callback_executor: Executor | None = None, resolver: ResolverName | None = None
) -> HostedEventEngine:
    """Makes an engine with an I/O thread of its own, to be closed by the caller.

    Callbacks run on that thread, where one that blocks stops all I/O (`callbacks_block_polling` is True); with a
    `callback_executor` they run on its threads, concurrently, and do not. Closing the engine ends the thread.

    Args:
        callback_executor: As from `ResourceQuota.create_executor`. The engine never shuts it down.
        resolver: What looks names up, `"c-ares"` or `"system"`, see docs/names.md; None: c-ares where pycares is
            installed, else the system's `getaddrinfo`.

    Raises TypeError for what is not an Executor, ValueError for a resolver that there is not, ImportError for c-ares
    without pycares. May be called from any thread.
    """
    source_factory = choose(resolver)
    host = ThreadHost()
    thread = LoopThread(host.run, host.stop, "eventengine")
    try:
        return HostedEventEngine(
            host,
            callback_executor=callback_executor,
            private_poller=True,
            thread=thread,
            source_factory=source_factory,
        )
    except BaseException:
        host.close()
        raise


def get_default_event_engine() -> EventEngine:
    """The engine that the whole process shares: the one that was set, else one that is made now.

    It belongs to everybody: do not close it, nor use it in a `with`. In place of one that was closed a new one is made.

    May be called from any thread.
    """
    with _default.lock:
        engine = _default.engine
        if engine is None or (isinstance(engine, HostedEventEngine) and engine.is_closed):
            engine = _default.engine = create_event_engine()
        return engine


def set_default_event_engine(engine: EventEngine | None) -> None:
    """Has `get_default_event_engine` return `engine`; None: the next call makes a new one.

    The one that was set before is not closed. Raises TypeError for what is no EventEngine. May be called from any
    thread.
    """
    if engine is not None and not isinstance(engine, EventEngine):
        raise TypeError(f"the default must be an EventEngine or None, not {type(engine).__name__}")
    with _default.lock:
        _default.engine = engine


def shutdown_default_event_engine() -> None:
    """Closes the default engine, if there is one; the next `get_default_event_engine` makes a new one.

    May be called from any thread.
    """
    with _default.lock:
        engine, _default.engine = _default.engine, None
    if engine is not None:
        engine.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_default.forget)
atexit.register(shutdown_default_event_engine)
