"""TLS as an application asks for it, in blocking calls, for the thread of a test."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from typing import Any

from certificates import HOST, certificates
from eventengine import Endpoint, Status, tls
from eventengine.testing.application import Application, Callback
from eventengine.testing.oracle import TIMEOUT

OnDone = Callable[[Endpoint | Status], object]


def start_connect(
    app: Application,
    on_done: OnDone,
    below: Endpoint,
    context: ssl.SSLContext | None = None,
    *,
    server_hostname: str | None = HOST,
    timeout: float = TIMEOUT,
    session: tls.Session | None = None,
) -> tls.Handshake:
    return tls.connect(
        app.engine,
        on_done,
        below,
        context or certificates().client_context(),
        server_hostname=server_hostname,
        memory_allocator=app.quota.create_memory_allocator("tls"),
        timeout=timeout,
        session=session,
    )


def start_accept(
    app: Application,
    on_done: OnDone,
    below: Endpoint,
    context: ssl.SSLContext | None = None,
    *,
    timeout: float = TIMEOUT,
) -> tls.Handshake:
    return tls.accept(
        app.engine,
        on_done,
        below,
        context or certificates().server_context(),
        memory_allocator=app.quota.create_memory_allocator("tls"),
        timeout=timeout,
    )


def try_connect(app: Application, below: Endpoint, context: ssl.SSLContext | None = None, **more: Any) -> Any:
    """The endpoint, or the status that says why there is none."""
    on_done = Callback[Any](app.ledger)
    app.call(lambda: start_connect(app, on_done, below, context, **more))
    return on_done.result()


def try_accept(app: Application, below: Endpoint, context: ssl.SSLContext | None = None, **more: Any) -> Any:
    on_done = Callback[Any](app.ledger)
    app.call(lambda: start_accept(app, on_done, below, context, **more))
    return on_done.result()


def secured(endpoint: Endpoint) -> tls.Secured:
    found = endpoint.query_extension(tls.Secured)
    assert found is not None
    return found


def oracle_server(connection: socket.socket, context: ssl.SSLContext | None = None) -> ssl.SSLSocket:
    """TLS's server on a blocking connection, which it takes over, after the handshake."""
    return _shake(connection, context or certificates().server_context(), server_side=True)


def oracle_client(
    connection: socket.socket, context: ssl.SSLContext | None = None, server_hostname: str | None = HOST
) -> ssl.SSLSocket:
    return _shake(connection, context or certificates().client_context(), server_hostname=server_hostname)


def shake_by_hand(
    peer: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, connection: socket.socket
) -> None:
    """A handshake whose bytes a test has in its hands; the last of them are left in `outgoing`."""
    while True:
        try:
            peer.do_handshake()
            return
        except ssl.SSLWantReadError:
            connection.sendall(outgoing.read())
            incoming.write(connection.recv(1 << 16))


def _shake(connection: socket.socket, context: ssl.SSLContext, **more: Any) -> ssl.SSLSocket:
    timeout = connection.gettimeout()
    wrapped = context.wrap_socket(connection, do_handshake_on_connect=False, suppress_ragged_eofs=False, **more)
    try:
        wrapped.settimeout(timeout)
        wrapped.do_handshake()
    except BaseException:
        wrapped.close()
        raise
    return wrapped
