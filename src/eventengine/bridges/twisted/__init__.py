"""The bridge to Twisted: `TwistedEventEngine` on a reactor; endpoints and a reactor whose connections are bounded."""

try:
    import twisted.internet as _twisted  # `twisted` alone may be the folder with our plugin
except ImportError as error:
    raise ImportError('Twisted is not installed; pip install "eventengine[twisted]" brings it') from error

from eventengine.bridges.twisted.endpoints import QuotaClientEndpoint, QuotaServerEndpoint
from eventengine.bridges.twisted.engine import TwistedEventEngine
from eventengine.bridges.twisted.processes import EndpointProcessProtocol
from eventengine.bridges.twisted.protocols import EndpointFactory, EndpointProtocol

del _twisted

__all__ = [
    "EndpointFactory",
    "EndpointProcessProtocol",
    "EndpointProtocol",
    "QuotaClientEndpoint",
    "QuotaServerEndpoint",
    "TwistedEventEngine",
]
