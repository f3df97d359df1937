"""TLS over any endpoint, on any engine, as an endpoint like any other.

`connect` and `accept` do the handshake on a connection that is there already and give back a new endpoint, whose bytes
are encrypted on the way. What was agreed, and with whom, says its extension `Secured`. The standard library's `ssl`
does the cryptography; its `SSLContext` says what is allowed, and whom to trust.

See docs/tls.md.
"""

from eventengine.tls.extension import Secured
from eventengine.tls.handshake import Handshake, accept, connect
from eventengine.tls.session import Session

__all__ = ["Handshake", "Secured", "Session", "accept", "connect"]
