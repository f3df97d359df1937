"""What any engine must do: tests for pytest, to be run against an engine of yours.

    pytest --pyargs eventengine.testing.conformance --engine my.module:make_engine

or, in a test file, with one fixture to fill in:

    import pytest
    from eventengine.testing.conformance import *

    @pytest.fixture
    def make_engine():
        return MyEventEngine.in_thread

`make_engine` is a function without arguments that makes an engine which runs, as a rule in a thread. Each test closes
the engines that it made. What the fixture itself has to take down, a loop that it lent to the engine, say, goes after
a `yield`. Give the fixture `params` to run all tests on several engines.

The engine must implement `EventEngine` and count its memory on the `ResourceQuota` that it is given; what it may be
without is in `eventengine.testing.capabilities`. The peers of its connections are plain blocking sockets
(`eventengine.testing.oracle`).
"""

try:
    import pytest
except ImportError as error:
    raise ImportError(
        "the conformance suite runs in pytest, which is not installed; pip install pytest"
    ) from error

_MODULES = (
    "tasks",
    "soaking",
    "robustness",
    "options",
    "names",
    "misuse",
    "listening",
    "limits",
    "forking",
    "ending",
    "connecting",
    "cancelling",
    "accepting",
    "churn",
    "closing",
    "collecting",
    "endpoints",
    "exchange",
    "extensions",
    "reading",
    "telemetry",
    "waiting",
    "writing",
)

pytest.register_assert_rewrite(*(f"{__name__}.{name}" for name in ("fixtures", "pairs", *_MODULES)))

from eventengine.testing.conformance.accepting import *
from eventengine.testing.conformance.cancelling import *
from eventengine.testing.conformance.churn import *
from eventengine.testing.conformance.closing import *
from eventengine.testing.conformance.collecting import *
from eventengine.testing.conformance.connecting import *
from eventengine.testing.conformance.ending import *
from eventengine.testing.conformance.endpoints import *
from eventengine.testing.conformance.exchange import *
from eventengine.testing.conformance.extensions import *
from eventengine.testing.conformance.fixtures import *
from eventengine.testing.conformance.forking import *
from eventengine.testing.conformance.limits import *
from eventengine.testing.conformance.listening import *
from eventengine.testing.conformance.misuse import *
from eventengine.testing.conformance.names import *
from eventengine.testing.conformance.options import *
from eventengine.testing.conformance.pairs import *
from eventengine.testing.conformance.reading import *
from eventengine.testing.conformance.robustness import *
from eventengine.testing.conformance.soaking import *
from eventengine.testing.conformance.tasks import *
from eventengine.testing.conformance.telemetry import *
from eventengine.testing.conformance.waiting import *
from eventengine.testing.conformance.writing import *
