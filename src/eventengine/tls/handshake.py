"""`connect` and `accept`: the handshake of TLS on an endpoint, and its end.

Rules:

1. A handshake is one chain: each step is begun by the end of the one before, and at most one operation is outstanding
   below. So one thread at a time is in it, and nothing is locked. It starts with a closure of the engine's, or with the
   end of a read that was not done at once, so that it never calls back within `connect`.
2. `_open` is a token. Deleting it is atomic, and settles from any thread who ends the handshake: the chain, the
   deadline, or a cancel. Only who has it calls `on_done`, or, for a cancel, sees that nobody does.
3. The endpoint below is closed by whoever ends the handshake without success. The chain, if it is under way then, finds
   that out by its next operation.
4. What OpenSSL has to say is sent before anything else: also the alert that tells the peer why it is refused. Only a
   server's tickets, which follow the handshake of TLS 1.3, are left to the new endpoint (rule 4 of `steps`).
5. A server begins by reading: before it has heard the client, OpenSSL has nothing to do.
6. What the peer sends is charged until the handshake ends, though OpenSSL has it: up to 100 KiB of a message that is
   never whole, from a peer that nobody knows yet. Who ends the handshake gives back what is in `_fed`, and so does the
   chain, when it adds to that and finds that the end came first.
7. OpenSSL takes room for as much as a message says that it will have. So a server's does not see a ClientHello before
   that is whole: see `hello`. Certificates are not kept from it, for with TLS 1.3 they are encrypted.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable
from inspect import iscoroutinefunction
from typing import Final

from eventengine.core.timers import check_seconds
from eventengine.engine import Endpoint, EventEngine, StatusOr, TaskHandle
from eventengine.memory import MemoryAllocator
from eventengine.slices import SliceBuffer
from eventengine.status import BusyResourceError, ClosedResourceError, ForkedProcessError, Status, StatusCode
from eventengine.tls.endpoint import TLSEndpoint
from eventengine.tls.hello import REFUSAL, ClientHello
from eventengine.tls.session import Session
from eventengine.tls.statuses import status_of, unexpected_end

__all__ = ["Handshake", "accept", "connect"]

OnDone = Callable[[StatusOr[Endpoint]], object]

_OK: Final = Status.OK
_DOING: Final = "the TLS handshake"
_FIRST: Final = 16
"""Bytes of the peer's first message that are kept, to tell what it speaks."""


def connect(
    engine: EventEngine,
    on_done: OnDone,
    endpoint: Endpoint,
    context: ssl.SSLContext,
    *,
    server_hostname: str | None,
    memory_allocator: MemoryAllocator,
    timeout: float,
    session: Session | None = None,
) -> Handshake:
    """Makes TLS's client of a connection: does the handshake, and gives the endpoint that encrypts.

    `endpoint` belongs to the handshake from now on, and later to the new endpoint; it is closed with it, or when the
    handshake does not succeed. Nothing may be outstanding on it. No thread waits for the handshake.

    Args:
        engine: The engine of `endpoint`.
        on_done: Called exactly once, never before this returns, unless `Handshake.cancel` returned True. Gets the
            endpoint, which is then the callback's to close; UNAUTHENTICATED when one side did not accept the other's
            certificate (the text says why: another host, expired, self-signed, an unknown authority, ...);
            UNAVAILABLE when the peer hung up, does not speak TLS, or has nothing in common with us, and when the
            connection broke; DEADLINE_EXCEEDED after `timeout`; CANCELLED when the engine or `endpoint` was closed;
            FAILED_PRECONDITION when a read or a write was outstanding on `endpoint`.
        context: What is allowed, and whom to trust: `ssl.create_default_context()`, as a rule.
        server_hostname: The host that the peer's certificate must be for, a name or an IP address; a name is sent, too
            (SNI). None only with a context whose `check_hostname` is False.
        memory_allocator: What the new endpoint's buffers are counted on.
        timeout: Seconds for the handshake.
        session: One of an earlier connection to the same host with the same context, `Secured.session`, to go on with.
            No certificate is sent then, and so none is checked again.

    Raises:
        TypeError, ValueError: An argument is not what it must be, as a session of another host or context is not;
            `endpoint` stays the caller's.
        ClosedResourceError: The engine was closed; likewise.

    Not promised: that the server has accepted our certificate. With TLS 1.3 it may refuse it after the handshake, and
    the first read tells so.

    Source: RFC 8446, RFC 6066 (SNI), RFC 7301 (ALPN). May be called from any thread.
    """
    _check(engine, on_done, endpoint, context, memory_allocator, timeout)
    if context.protocol is ssl.PROTOCOL_TLS_SERVER:
        raise ValueError(
            "connect needs a client's context, as ssl.create_default_context() makes; this is a server's"
        )
    if server_hostname is not None and not isinstance(server_hostname, str):
        raise TypeError(f"server_hostname must be a str or None, not {type(server_hostname).__name__}")
    if server_hostname is None and context.check_hostname:
        raise ValueError(
            "server_hostname is None and the context checks host names; say whom the certificate must be for"
        )
    if session is not None and not isinstance(session, Session):
        raise TypeError(f"session must be one of Secured.session or None, not {type(session).__name__}")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=server_hostname)
    if session is not None:
        session.put_into(tls)
    return Handshake(engine, on_done, endpoint, tls, incoming, outgoing, memory_allocator)._start(timeout)


def accept(
    engine: EventEngine,
    on_done: OnDone,
    endpoint: Endpoint,
    context: ssl.SSLContext,
    *,
    memory_allocator: MemoryAllocator,
    timeout: float,
) -> Handshake:
    """Makes TLS's server of a connection, as `connect` makes the client.

    `context` has the certificate (`load_cert_chain`); with `verify_mode` CERT_REQUIRED and `load_verify_locations` it
    asks the client for one, too. Its `sni_callback` is told the host that the client asks for, and may choose another
    context. Everything else, and what is raised, as `connect` has it; and BusyResourceError when a read is outstanding
    on `endpoint`, which stays the caller's.

    May be called from any thread.
    """
    _check(engine, on_done, endpoint, context, memory_allocator, timeout)
    if context.protocol is ssl.PROTOCOL_TLS_CLIENT:
        raise ValueError(
            "accept needs a server's context, as ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER); this is a client's"
        )
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_side=True)
    return Handshake(engine, on_done, endpoint, tls, incoming, outgoing, memory_allocator)._start(timeout)


class Handshake:
    """A handshake under way, made by `connect` or `accept`. It goes on whether or not this object is kept."""

    __slots__ = (
        "_anything_came",
        "_below",
        "_charge",
        "_ciphertext",
        "_engine",
        "_fed",
        "_first",
        "_hello",
        "_incoming",
        "_memory",
        "_on_done",
        "_open",
        "_outcome",
        "_outgoing",
        "_timer",
        "_tls",
    )

    def __init__(
        self,
        engine: EventEngine,
        on_done: OnDone,
        below: Endpoint,
        tls: ssl.SSLObject,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        memory_allocator: MemoryAllocator,
    ) -> None:
        self._engine = engine
        self._on_done = on_done
        self._below = below
        self._tls = tls
        self._incoming = incoming
        self._outgoing = outgoing
        self._memory = memory_allocator.memory
        self._ciphertext = SliceBuffer()
        self._charge = 0
        self._fed: list[int] = []
        self._first = b""
        self._hello: ClientHello | None = None
        if tls.server_side:
            self._hello = ClientHello(asks_for_certificates=tls.context.verify_mode is not ssl.CERT_NONE)
        self._outcome: Status | None = None
        self._timer: TaskHandle | None = None
        self._open = None

    def cancel(self) -> bool:
        """True: `on_done` will never be called, and the endpoint that was given is closed. False: it was or will be.

        May be called from any thread.
        """
        if not self._claim():
            return False
        self._below.close()
        return True

    def _claim(self) -> bool:
        """Rule 2. Any thread."""
        try:
            del self._open
        except AttributeError:
            return False
        if self._timer is not None:
            with contextlib.suppress(ForkedProcessError):
                self._engine.cancel(self._timer)
        self._give_back_fed()
        return True

    def _give_back_fed(self) -> None:
        """Rule 6. Any thread."""
        with contextlib.suppress(IndexError):
            while True:
                self._memory.give(self._fed.pop())

    def _start(self, timeout: float) -> Handshake:
        self._timer = self._engine.run_after(timeout, self._time_out)
        try:
            if not self._tls.server_side:
                self._engine.run(self._go_on)
            elif self._begin_to_read():
                self._engine.run(self._have_read)
        except BaseException:
            self._engine.cancel(self._timer)
            raise
        return self

    def _begin_to_read(self) -> bool:
        """Rule 5. True: the chain begins with a closure, which finds what has come, or why nothing will."""
        try:
            return self._below.read(self._on_arrived, self._ciphertext)
        except ClosedResourceError:
            return True

    def _have_read(self) -> None:
        self._on_arrived(_OK)

    def _time_out(self) -> None:
        self._end(Status(StatusCode.DEADLINE_EXCEEDED, f"{_DOING}: the timeout has passed"))

    def _end(self, status: Status) -> None:
        if self._claim():
            self._below.close()
            self._on_done(status)

    # The chain.

    def _go_on(self) -> None:
        """Goes on as long as things are done at once."""
        while not self._step():
            pass

    def _step(self) -> bool:
        """True: the end of what is outstanding below goes on from here, or this was the end."""
        if self._outcome is None and self._has_news():
            try:
                self._tls.do_handshake()
                self._outcome = _OK
            except ssl.SSLWantReadError:
                pass
            except Exception as error:  # of `ssl`, or of a callback that the context has
                host = self._tls.server_hostname
                self._outcome = status_of(error, _DOING, host=host, first=self._first)
        try:
            if self._outgoing.pending and not self._leaves_tickets and not self._send():
                return True
            if self._outcome is not None:
                self._finish(self._outcome)
                return True
            if not self._below.read(self._on_arrived, self._ciphertext):
                return True
        except (ClosedResourceError, ForkedProcessError):
            self._end(Status(StatusCode.CANCELLED, f"{_DOING}: the endpoint was closed"))
            return True
        except BusyResourceError as error:  # the caller's fault, of whom only the callback can be told any more
            self._end(Status(StatusCode.FAILED_PRECONDITION, f"{_DOING}: {error}"))
            return True
        return self._take(_OK)

    def _has_news(self) -> bool:
        """Rule 7. Whether there is anything for OpenSSL to do."""
        if self._hello is None:
            return True
        passed = self._hello.passed()
        if self._hello.is_over:
            self._hello = None
        if isinstance(passed, Status):
            self._outgoing.write(REFUSAL)
            self._outcome = passed
            return False
        self._incoming.write(passed)
        return bool(passed)

    @property
    def _leaves_tickets(self) -> bool:
        return self._outcome is _OK and self._tls.server_side and self._tls.version() == "TLSv1.3"

    def _send(self) -> bool:
        data = self._outgoing.read()
        if self._hello is not None:
            self._incoming.write(self._hello.answered(data))
            if self._hello.is_over:
                self._hello = None
        self._charge = self._memory.take(len(data), len(data))
        done = False
        try:
            done = self._below.write(self._on_sent, SliceBuffer([data]))
        except BaseException:
            done = True
            raise
        finally:
            if done:
                self._give_back()
        return done

    def _on_sent(self, status: Status) -> None:
        self._give_back()
        if status.ok:
            self._go_on()
        elif self._outcome is not None and not self._outcome.ok:
            self._finish(self._outcome)  # the alert did not get through
        else:
            self._end(unexpected_end(status, _DOING, anything_came=bool(self._first)))

    def _give_back(self) -> None:
        charge, self._charge = self._charge, 0
        self._memory.give(charge)

    def _on_arrived(self, status: Status) -> None:
        if not self._take(status):
            self._go_on()

    def _take(self, status: Status) -> bool:
        """Gives OpenSSL what was read; True: that was the end."""
        if not status.ok:
            self._end(unexpected_end(status, _DOING, anything_came=bool(self._first)))
            return True
        for part in self._ciphertext._parts:
            if len(self._first) < _FIRST:
                self._first += bytes(part[: _FIRST - len(self._first)])
            if self._hello is None:
                self._incoming.write(part)
            else:
                self._hello.take(part)
            del part  # or its block would not go back to the pool
        size = len(self._ciphertext)
        self._ciphertext.clear()
        charge = self._memory.take(size, size)
        with contextlib.suppress(
            IndexError
        ):  # one number, or a peer that sends bytes one by one would make it many
            charge += self._fed.pop()
        self._fed.append(charge)
        if not hasattr(self, "_open"):
            self._give_back_fed()
        return False

    def _finish(self, status: Status) -> None:
        if not status.ok:
            self._end(status)
        elif self._claim():
            self._on_done(
                TLSEndpoint(self._engine, self._below, self._tls, self._incoming, self._outgoing, self._memory)
            )


def _check(
    engine: object, on_done: object, endpoint: object, context: object, memory_allocator: object, timeout: float
) -> None:
    if not isinstance(engine, EventEngine):
        raise TypeError(f"engine must be an EventEngine, not {type(engine).__name__}")
    if not callable(on_done):
        raise TypeError(f"on_done must be callable, not {type(on_done).__name__}")
    if iscoroutinefunction(on_done):
        raise TypeError("on_done is a coroutine function; a callback is a plain function, which may start a task")
    if not isinstance(endpoint, Endpoint):
        raise TypeError(f"endpoint must be an Endpoint, not {type(endpoint).__name__}")
    if not isinstance(context, ssl.SSLContext):
        raise TypeError(f"context must be an ssl.SSLContext, not {type(context).__name__}")
    if not isinstance(memory_allocator, MemoryAllocator):
        raise TypeError(
            f"memory_allocator must be a MemoryAllocator, not {type(memory_allocator).__name__}; see "
            "ResourceQuota.create_memory_allocator"
        )
    check_seconds("timeout", timeout)
