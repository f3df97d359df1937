"""`SimulatedEventEngine`: an engine on a simulated loop and network. All but these two is the code of every engine."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from threading import get_ident
from types import TracebackType

from eventengine.address import ResolvedAddress
from eventengine.config import EndpointConfig
from eventengine.core.host import Host
from eventengine.core.hosted import HostedEventEngine
from eventengine.core.listener import OnAccept
from eventengine.engine import ConnectionHandle, Endpoint, Listener, StatusOr
from eventengine.memory import MemoryAllocator, MemoryAllocatorFactory
from eventengine.quota import ResourceQuota
from eventengine.status import Status
from eventengine.testing.simulated.conditions import CALM, Conditions
from eventengine.testing.simulated.names import simulated_source
from eventengine.testing.simulated.network import SimulatedNetwork
from eventengine.testing.simulated.simulation import Event, Simulation
from eventengine.testing.simulated.sockets import SimulatedSocket
from eventengine.testing.simulated.trace import Trace

__all__ = ["SimulatedEventEngine"]

_LINES_SHOWN = 30


class _SimulatedHost(Host):
    __slots__ = ("_simulation",)

    has_system_sockets = False
    knows_its_thread = True

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation

    @property
    def time(self) -> Callable[[], float]:
        return self._now

    def _now(self) -> float:
        return self._simulation.now

    def call_later(self, delay: float, function: Callable[[], object]) -> Event:
        return self._simulation.call_at(self._simulation.now + delay, function)

    def cancel(self, handle: object) -> None:
        assert isinstance(handle, Event)
        handle.cancel()

    def wake(self, function: Callable[[], object]) -> None:
        self._simulation.wake(function)

    def watch(self, fd: int, events: int, on_ready: Callable[[int], object]) -> None:
        self._simulation.watch(fd, events, on_ready)

    def unwatch(self, fd: int) -> None:
        self._simulation.unwatch(fd)

    def new_socket(self, family: int, kind: int) -> SimulatedSocket:
        return self._simulation.network.new_socket(family)

    new_listening_socket = new_socket

    def log_exception(self, message: str, error: BaseException) -> None:
        self._simulation.failed(message, error)

    def is_here(self) -> bool:
        return get_ident() == self._simulation.thread

    @property
    def is_running(self) -> bool:
        return self._simulation.is_turning

    @property
    def is_closed(self) -> bool:
        return False


class SimulatedEventEngine(HostedEventEngine):
    """An engine whose time is virtual and whose network is in memory. Everything happens in the thread that lets time
    pass (`advance`, `run_until_idle`, `run_until`), and the same each time that it is made with the same arguments.

    What a callback raises is raised by what lets time pass. An exception that leaves the `with` block of the engine
    gets a note of the seed and of what happened last.

    Args:
        seed: What is left to chance is drawn from it.
        conditions: How the network behaves; `CALM` or `ROUGH`, or some of your own.
        replay: The trace of another simulation, or its text: what was drawn then is drawn again.
        simulation: That of another engine, which then shares its time and its network; instead of the others.
    """

    __slots__ = ("simulation",)

    def __init__(
        self,
        seed: int = 0,
        conditions: Conditions = CALM,
        *,
        replay: Trace | str | None = None,
        simulation: Simulation | None = None,
    ) -> None:
        if not isinstance(simulation, Simulation | None):
            raise TypeError(
                f"simulation must be a Simulation, not {type(simulation).__name__}; "
                "that of another engine is its attribute `simulation`"
            )
        self.simulation = simulation or Simulation(seed, conditions, replay=replay)
        super().__init__(
            _SimulatedHost(self.simulation),
            private_poller=False,
            source_factory=partial(simulated_source, self.simulation),
        )

    @property
    def now(self) -> float:
        """Virtual seconds since the beginning."""
        return self.simulation.now

    @property
    def network(self) -> SimulatedNetwork:
        """Its addresses, names and connections, for a test to meddle with."""
        return self.simulation.network

    @property
    def trace(self) -> Trace:
        """What happened; `str` gives it as text, and `replay` takes it."""
        return self.simulation.trace

    def advance(self, seconds: float) -> None:
        """See `Simulation.advance`."""
        self.simulation.advance(seconds)

    def run_until_idle(self, limit: float = 3600.0) -> None:
        """See `Simulation.run_until_idle`."""
        self.simulation.run_until_idle(limit)

    def run_until(self, happened: Callable[[], object], limit: float = 3600.0) -> None:
        """See `Simulation.run_until`."""
        self.simulation.run_until(happened, limit)

    def connect(
        self,
        on_connect: Callable[[StatusOr[Endpoint]], object],
        address: ResolvedAddress,
        config: EndpointConfig,
        memory_allocator: MemoryAllocator,
        timeout: float,
    ) -> ConnectionHandle:
        handle = super().connect(on_connect, address, config, memory_allocator, timeout)
        self.network.quotas[memory_allocator.memory] = None
        return handle

    def create_listener(
        self,
        on_accept: OnAccept,
        on_shutdown: Callable[[Status], object],
        config: EndpointConfig,
        memory_allocator_factory: MemoryAllocatorFactory,
    ) -> Listener:
        listener = super().create_listener(on_accept, on_shutdown, config, memory_allocator_factory)
        if isinstance(memory_allocator_factory, ResourceQuota):
            self.network.quotas[memory_allocator_factory.memory] = None
        return listener

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            last = "\n".join(map(str, list(self.trace)[-_LINES_SHOWN:]))
            error.add_note(f"seed {self.simulation.seed}; what happened last, of {len(self.trace)} lines:\n{last}")
        super().__exit__(kind, error, trace)
