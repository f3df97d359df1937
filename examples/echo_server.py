"""An echo server on 127.0.0.1:8007, with 16 MiB for all connections together. Ctrl-C ends it.

For another loop, make `engine` with another line:

    from eventengine.bridges.twisted import TwistedEventEngine;  engine = TwistedEventEngine.in_thread()
    from eventengine.bridges.tornado import TornadoEventEngine;  engine = TornadoEventEngine.in_thread()
    from eventengine.bridges.asyncio import AsyncioEventEngine;  engine = AsyncioEventEngine.in_thread()
"""

import sys
import threading

from eventengine import (
    Endpoint,
    EndpointConfig,
    MemoryAllocator,
    ResolvedAddress,
    ResourceQuota,
    SliceBuffer,
    Status,
    create_event_engine,
)


def echo(endpoint: Endpoint, allocator: MemoryAllocator) -> None:
    buffer = SliceBuffer()

    def on_written(status: Status) -> None:
        while status.ok and endpoint.read(on_read, buffer) and endpoint.write(on_written, buffer):
            pass  # True means done: the callback will not come
        if not status.ok:
            endpoint.close()

    def on_read(status: Status) -> None:
        if not status.ok:
            endpoint.close()
        elif endpoint.write(on_written, buffer):
            on_written(status)

    on_written(Status.OK)


def main(port: int) -> None:
    quota = ResourceQuota(memory="16MiB")
    with create_event_engine() as engine:
        listener = engine.create_listener(echo, print, EndpointConfig(), quota)
        port = listener.bind(ResolvedAddress.tcp("127.0.0.1", port))
        listener.start()
        print(f"echoing on 127.0.0.1:{port}", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            listener.close()
    print(f"at most {quota.memory.peak} bytes were held")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 8007)
