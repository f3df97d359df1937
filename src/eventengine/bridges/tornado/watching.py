"""What stands for the IOLoop before a stream that may wait for room: meanwhile READ is masked, or it would spin."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tornado.ioloop import IOLoop

if TYPE_CHECKING:
    from eventengine.bridges.tornado.reads import Bounded

__all__ = ["Watch"]


class Watch:
    """Stands for the IOLoop before one stream."""

    __slots__ = ("_events", "_find_stream", "_handler", "_io_loop", "reads")

    def __init__(self, io_loop: IOLoop, stream: Bounded) -> None:
        self._io_loop = io_loop
        self._find_stream = weakref.ref(stream)
        self._handler: Callable[[Any, int], None] | None = None
        self._events = 0
        self.reads = False  # the event that is being handled is one for reading

    def add_handler(self, fd: Any, handler: Callable[[Any, int], None], events: int) -> None:
        self._handler = handler
        self._events = events
        self._io_loop.add_handler(fd, self._on_events, self._masked())

    def update_handler(self, fd: Any, events: int) -> None:
        self._events = events
        self._io_loop.update_handler(fd, self._masked())

    def remove_handler(self, fd: Any) -> None:
        self._handler = None
        self._io_loop.remove_handler(fd)

    def mask(self) -> None:
        """The stream waits for room."""
        stream = self._find_stream()
        if self._handler is not None and stream is not None:
            self._io_loop.update_handler(stream.fileno(), self._masked())

    def go_on(self) -> None:
        """It waits no more, and has an event that was held back."""
        stream = self._find_stream()
        if self._handler is not None and stream is not None:
            self.mask()
            self._on_events(stream.fileno(), self._events & IOLoop.READ)

    def _masked(self) -> int:
        stream = self._find_stream()
        return self._events & ~IOLoop.READ if stream is not None and stream.waits else self._events

    def _on_events(self, fd: Any, events: int) -> None:
        handler, stream = self._handler, self._find_stream()
        if handler is None or stream is None:
            return
        self.reads = bool(events & IOLoop.READ)
        try:
            handler(fd, events)
        finally:
            self.reads = False
            stream.settle()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._io_loop, name)
