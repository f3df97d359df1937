"""gRPC's EventEngine for Python: I/O, timers, tasks and names behind one interface, every buffer on a quota.

The engines of the bridges are in `eventengine.bridges.twisted`, `eventengine.bridges.tornado` and
`eventengine.bridges.asyncio`; importing this package imports none of them.
"""

from eventengine.address import ResolvedAddress
from eventengine.config import EndpointConfig
from eventengine.connecting import TargetConnection, connect_target
from eventengine.default import (
    create_event_engine,
    get_default_event_engine,
    set_default_event_engine,
    shutdown_default_event_engine,
)
from eventengine.engine import (
    ConnectionHandle,
    DNSResolver,
    Endpoint,
    EventEngine,
    HalfCloseable,
    Listener,
    ListenerSupportsFileDescriptor,
    SRVRecord,
    StatusOr,
    SupportsFileDescriptor,
    TaskHandle,
    TelemetryInfo,
    WriteEvent,
    WriteEventSink,
)
from eventengine.inherited import InheritedSocket, inherited_sockets
from eventengine.memory import MemoryAllocator, MemoryAllocatorFactory, MemoryRequest, Reservation
from eventengine.quota import ResourceQuota
from eventengine.reclaim import ReclamationPass, ReclamationSweep
from eventengine.slices import Slice, SliceBuffer
from eventengine.status import (
    BusyResourceError,
    ClosedResourceError,
    EmptyBufferError,
    ForkedProcessError,
    Status,
    StatusCode,
    StatusError,
)
from eventengine.target import Target

__all__ = [
    "BusyResourceError",
    "ClosedResourceError",
    "ConnectionHandle",
    "DNSResolver",
    "EmptyBufferError",
    "Endpoint",
    "EndpointConfig",
    "EventEngine",
    "ForkedProcessError",
    "HalfCloseable",
    "InheritedSocket",
    "Listener",
    "ListenerSupportsFileDescriptor",
    "MemoryAllocator",
    "MemoryAllocatorFactory",
    "MemoryRequest",
    "ReclamationPass",
    "ReclamationSweep",
    "Reservation",
    "ResolvedAddress",
    "ResourceQuota",
    "SRVRecord",
    "Slice",
    "SliceBuffer",
    "Status",
    "StatusCode",
    "StatusError",
    "StatusOr",
    "SupportsFileDescriptor",
    "Target",
    "TargetConnection",
    "TaskHandle",
    "TelemetryInfo",
    "WriteEvent",
    "WriteEventSink",
    "connect_target",
    "create_event_engine",
    "get_default_event_engine",
    "inherited_sockets",
    "set_default_event_engine",
    "shutdown_default_event_engine",
]
