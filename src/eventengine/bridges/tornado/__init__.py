"""The bridge to Tornado: `TornadoEventEngine` on an IOLoop, `QuotaHTTPServer` for a site whose uploads are bounded."""

try:
    import tornado as _tornado
except ImportError as error:
    raise ImportError('Tornado is not installed; pip install "eventengine[tornado]" brings it') from error

from eventengine.bridges.tornado.host import TornadoEventEngine
from eventengine.bridges.tornado.httpserver import QuotaHTTPServer

del _tornado

__all__ = ["QuotaHTTPServer", "TornadoEventEngine"]
