"""The bridge to Twisted: `TwistedEventEngine` on a reactor."""

try:
    import twisted as _twisted
except ImportError as error:
    raise ImportError('Twisted is not installed; pip install "eventengine[twisted]" brings it') from error

from eventengine.bridges.twisted.engine import TwistedEventEngine

del _twisted

__all__ = ["TwistedEventEngine"]
