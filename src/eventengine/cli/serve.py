"""The command `proxy`: a `Proxy` on an engine with its own thread, while the main thread waits for a signal."""

from __future__ import annotations

import contextlib
import errno
import signal
import sys
import threading

from eventengine import ResolvedAddress, ResourceQuota, StatusError, Target
from eventengine.cli.engines import load_engine
from eventengine.cli.proxy import Proxy
from eventengine.cli.proxy_tls import ProxyTLS
from eventengine.cli.relay import Relay
from eventengine.tally import number_of

__all__ = ["run"]

_STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM}


def run(
    listen: ResolvedAddress,
    target: Target,
    *,
    engine: str,
    memory: int,
    idle_timeout: float | None,
    dns_server: str | None,
    max_connections: int | None,
    tls: ProxyTLS,
    log: bool,
) -> int:
    """Runs the proxy until SIGINT or SIGTERM and returns the exit status. For a process's main thread.

    The two signals stay blocked, so that one that comes at any time, also a second one, is waited for and never
    interrupts what is being cleaned up. Once the summary is told, a further one ends the process at once: a look-up
    under way may keep it for seconds.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)  # before there are threads: they inherit it
    up = ResourceQuota("up", memory=memory // 2, connections=max_connections)
    down = ResourceQuota("down", memory=memory - memory // 2)
    try:
        make_engine = load_engine(engine)
    except ImportError as error:
        return _fail(str(error))
    with make_engine() as the_engine:
        on_end = _log if log else _FirstFailure()
        try:
            proxy = Proxy(
                the_engine,
                up,
                down,
                target,
                idle_timeout=idle_timeout,
                dns_server=dns_server,
                tls=tls,
                on_end=on_end,
            )
        except StatusError as error:
            return _fail(f"cannot connect to {target}: {error.status.message}")
        try:
            address = proxy.listen(listen)
        except StatusError as error:
            taken = error.status.errno == errno.EADDRINUSE
            return _fail(f"{listen} is taken" if taken else f"cannot listen on {listen}: {error.status.message}")
        else:
            from_clients = " (TLS)" if tls.from_clients is not None else ""
            to_target = " (TLS)" if tls.to_target is not None else ""
            print(
                f"listening on {address}{from_clients}, to {target}{to_target}, on the {engine} engine", flush=True
            )
            signal.sigwait(_STOP_SIGNALS)
        finally:
            proxy.close()
    failed = f", {proxy.unconnected} of them without the target" if proxy.unconnected else ""
    print(
        f"{number_of(proxy.connections, 'connection', 'connections')}{failed}; "
        f"{proxy.bytes_up} bytes up, {proxy.bytes_down} down; "
        f"peak memory {up.memory.peak + down.memory.peak} of {memory} bytes",
        flush=True,
    )
    if threading.active_count() > 1:
        _let_signals_end_us()
    return 0


def _let_signals_end_us() -> None:
    while signal.sigtimedwait(_STOP_SIGNALS, 0) is not None:
        pass  # those that came meanwhile asked for what was done
    for each in _STOP_SIGNALS:
        signal.signal(each, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)


def _fail(message: str) -> int:
    print(f"eventengine proxy: error: {' '.join(message.split())}", file=sys.stderr)
    return 1


def _tell(line: str) -> None:
    """Writes a line to stderr. A peer may choose the name of its unix socket: what is in it ends no line, and moves no
    terminal's cursor."""
    with contextlib.suppress(OSError):  # who reads may have gone; the connections go on
        shown = "".join([each if each.isprintable() else ascii(each)[1:-1] for each in line])
        print(shown, file=sys.stderr, flush=True)


class _FirstFailure:
    """Tells of the first connection for which the target was not reached, and the first with which TLS failed on either
    side: nobody should have to ask for the log."""

    def __init__(self) -> None:
        self._untold = {"connecting", "TLS with the target", "TLS with the client"}

    def __call__(self, relay: Relay) -> None:
        what, failed, _ = (relay.outcome or "").partition(" failed: ")
        if failed and what in self._untold:
            self._untold.discard(what)
            _tell(f"{relay.outcome} (further ones are told with --log)")


def _log(relay: Relay) -> None:
    _tell(
        f"{relay.peer} -> {relay.target}: {relay.bytes_up} bytes up, {relay.bytes_down} down, "
        f"{relay.seconds:.3f} s: {relay.outcome}"
    )
