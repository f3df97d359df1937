"""What Twisted's plugin system finds: the reactor named "eventengine", and the endpoint strings that begin "quota:"."""

from twisted.application.reactors import Reactor

from eventengine.bridges.twisted.endpoints import QuotaClientStringParser, QuotaServerStringParser

eventengine = Reactor(
    "eventengine",
    "eventengine.bridges.twisted.reactor",
    "The platform's reactor, whose connections are bounded by a memory quota (EVENTENGINE_MEMORY=64MiB).",
)
server = QuotaServerStringParser()
client = QuotaClientStringParser()
