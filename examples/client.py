"""Says hello to a server and prints what it answers: `python examples/client.py 127.0.0.1:8007`.

Shows the ways of a client: a target connected to within a timeout, a write, a read, and the end. The callbacks run on
the engine's thread; the main thread waits for the one result that it wants.
"""

import sys
from concurrent.futures import Future

from eventengine import (
    Endpoint,
    EndpointConfig,
    EventEngine,
    ResourceQuota,
    SliceBuffer,
    Status,
    StatusError,
    StatusOr,
    connect_target,
    create_event_engine,
)


def ask(engine: EventEngine, server: str, question: bytes) -> bytes:
    """Sends `question` and returns the first bytes of the answer. Raises StatusError."""
    answer: Future[bytes] = Future()
    allocator = ResourceQuota(memory="1MiB").create_memory_allocator("client")
    received = SliceBuffer()

    def on_connect(connected: StatusOr[Endpoint]) -> None:
        if isinstance(connected, Status):
            answer.set_exception(StatusError(connected))
            return
        endpoint = connected

        def on_written(status: Status) -> None:
            if not status.ok or endpoint.read(on_read, received):
                on_read(status)

        def on_read(status: Status) -> None:
            endpoint.close()
            if status.ok:
                answer.set_result(bytes(received))
            else:
                answer.set_exception(StatusError(status))

        if endpoint.write(on_written, SliceBuffer([question])):
            on_written(Status.OK)

    connect_target(engine, on_connect, server, EndpointConfig(), allocator, timeout=10.0)
    return answer.result()


if __name__ == "__main__":
    with create_event_engine() as engine:
        print(ask(engine, sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8007", b"hello"))
