"""`PushTransport`: a framework's transport, as an endpoint sees it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from eventengine.core.borrowed.endpoint import BorrowedEndpoint
    from eventengine.engine import Endpoint

__all__ = ["PushTransport"]


class PushTransport(ABC):
    """A framework's transport, as an endpoint sees it: the port that a bridge implements.

    All of it is the loop's thread's. The bridge's part is above `data`; from there on it is what the bridge calls.
    None of the bridge's methods raises, and all may be called when the transport has gone.
    """

    __slots__ = ("_endpoint", "kept")

    can_half_close: bool = False

    def __init__(self) -> None:
        self._endpoint: Callable[[], BorrowedEndpoint | None] = _nobody
        self.kept: Endpoint | None = None

    @abstractmethod
    def resume(self) -> None:
        """Delivers what comes by `data`, until `pause`; a chunk that comes after that does no harm."""

    @abstractmethod
    def pause(self) -> None:
        """Delivers no more. A transport is paused when it is borrowed."""

    @abstractmethod
    def write(self, piece: bytes) -> bool:
        """Takes a piece to write. True: it has handed everything over. False: `drained` will be called, or the
        transport breaks; a `drained` within this call counts for nothing. Not called again before."""

    @abstractmethod
    def close_write(self) -> None:
        """Ends the outgoing stream. Only called where `can_half_close`, with nothing left to write."""

    @abstractmethod
    def close(self) -> None:
        """Closes, after what was written; nothing that comes is of interest any more."""

    @abstractmethod
    def abort(self) -> None:
        """Closes, and drops what was not handed over yet."""

    def forget_endpoint(self) -> None:
        """Tells nobody any more."""
        self._endpoint = _nobody
        self.kept = None

    def data(self, chunk: Buffer) -> None:
        """Bytes have come."""
        endpoint = self._endpoint()
        if endpoint is not None:
            endpoint._turn(endpoint._on_data, chunk)

    def end(self) -> None:
        """The peer has ended its stream."""
        endpoint = self._endpoint()
        if endpoint is not None:
            endpoint._turn(endpoint._on_end)

    def drained(self) -> None:
        """What was written has been handed over."""
        endpoint = self._endpoint()
        if endpoint is not None:
            endpoint._turn(endpoint._on_drained)

    def unwritable(self, number: int) -> None:
        """Nothing can be written any more, for this errno; reading goes on."""
        endpoint = self._endpoint()
        if endpoint is not None:
            endpoint._turn(endpoint._on_unwritable, number)

    def broken(self, number: int) -> None:
        """The transport has gone, for this errno; after `end` reads go on to say that."""
        endpoint = self._endpoint()
        if endpoint is not None:
            endpoint._turn(endpoint._on_broken, number)


def _nobody() -> None:
    return None
