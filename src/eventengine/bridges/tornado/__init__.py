"""The bridge to Tornado: `TornadoEventEngine` on an IOLoop."""

try:
    import tornado as _tornado
except ImportError as error:
    raise ImportError('Tornado is not installed; pip install "eventengine[tornado]" brings it') from error

from eventengine.bridges.tornado.host import TornadoEventEngine

del _tornado

__all__ = ["TornadoEventEngine"]
