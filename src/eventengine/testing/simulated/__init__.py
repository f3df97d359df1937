"""An engine whose time is virtual and whose network is in memory, the same for the same seed. See `engine`."""

from eventengine.testing.simulated.conditions import CALM, ROUGH, Conditions
from eventengine.testing.simulated.engine import SimulatedEventEngine
from eventengine.testing.simulated.names import Names
from eventengine.testing.simulated.network import SimulatedNetwork
from eventengine.testing.simulated.pipe import Connection
from eventengine.testing.simulated.simulation import Simulation
from eventengine.testing.simulated.trace import Line, Trace

__all__ = [
    "CALM",
    "ROUGH",
    "Conditions",
    "Connection",
    "Line",
    "Names",
    "SimulatedEventEngine",
    "SimulatedNetwork",
    "Simulation",
    "Trace",
]
