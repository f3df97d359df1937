"""The bridge to Tornado: `TornadoEventEngine` on an IOLoop; `QuotaHTTPServer`, `QuotaTCPServer` and `QuotaTCPClient`,
which are Tornado's own within a bound."""

try:
    import tornado as _tornado
except ImportError as error:
    raise ImportError('Tornado is not installed; pip install "eventengine[tornado]" brings it') from error

from eventengine.bridges.tornado.host import TornadoEventEngine
from eventengine.bridges.tornado.httpserver import QuotaHTTPServer
from eventengine.bridges.tornado.tcpclient import QuotaTCPClient
from eventengine.bridges.tornado.tcpserver import QuotaTCPServer

del _tornado

__all__ = ["QuotaHTTPServer", "QuotaTCPClient", "QuotaTCPServer", "TornadoEventEngine"]
