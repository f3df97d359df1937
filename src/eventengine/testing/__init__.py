"""For testing what implements the interface, and what is written on it. Nothing in the package imports this."""

from eventengine.testing.simulated import (
    CALM,
    ROUGH,
    Conditions,
    SimulatedEventEngine,
    SimulatedNetwork,
    Simulation,
    Trace,
)

__all__ = [
    "CALM",
    "ROUGH",
    "Conditions",
    "SimulatedEventEngine",
    "SimulatedNetwork",
    "Simulation",
    "Trace",
]
