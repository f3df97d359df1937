"""Endpoints over transports that a framework made. `port` is what a bridge implements; the rules are in `endpoint`."""

from eventengine.core.borrowed.endpoint import BorrowedEndpoint, borrow, check_is_here
from eventengine.core.borrowed.port import PushTransport

__all__ = ["BorrowedEndpoint", "PushTransport", "borrow", "check_is_here"]
