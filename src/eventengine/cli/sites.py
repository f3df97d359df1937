"""The demo's second part: a stock site and a bounded one of each framework, while clients attack all of them alike.

1. Each site is a program in a process of its own, and the bounded one is the stock one below the lines that bound it.
   Only there is a framework imported.
2. Clients that attack are sockets on a selector here, and never read; honest ones, which are timed, are threads.
3. A site is measured from outside: by the resident memory that Linux says its process has.
4. A site is killed by its handle whatever happens here, and ends by itself when its standard input does.
"""

from __future__ import annotations

import importlib.util
import itertools
import resource
import selectors
import socket
import subprocess
import sys
import tempfile
from collections import deque
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Final

from eventengine.cli.frameworks import FRAMEWORKS, HELD, MIB, QUOTA, TIMEOUT, Framework
from eventengine.cli.plot import draw

__all__ = ["Attack", "run"]

PROC: Final = Path("/proc")
CONTROL_GROUP: Final = Path("/sys/fs/cgroup")
SLACK: Final = 32  # MiB beyond the quota, for a body that exists twice, and for heap that is free
SAMPLES: Final = 4  # a second, of which one is a row
_CONCLUSION: Final = """
A stock site holds whatever clients make it hold. A bounded one lets uploads in as there is room, and cuts who stalls
when there is none; an honest client may have to wait for that, for a few seconds."""


@dataclass(frozen=True)
class Attack:
    """So many clients attack each site, one after the other within `seconds`; meanwhile so many honest ones come."""

    clients: int = 150
    honest: int = 10
    seconds: float = 8.0
    rest: float = 2.0  # seconds to watch after the last has come


class _Site:
    """The process of a site, and what was seen of it. Raises RuntimeError when it does not come to listen."""

    def __init__(self, framework: Framework, *, bounded: bool) -> None:
        self.framework = framework
        self.bounded = bounded
        self.kind = f"{QUOTA} MiB" if bounded else "stock"
        self.name = f"{framework.name}, {self.kind}"
        self.samples: list[tuple[float, float]] = []  # seconds, MiB
        self.waits: list[float] = []  # seconds, of each honest client that was served
        self.before = 0.0
        self._clients: list[socket.socket] = []
        program = (framework.bound if bounded else "") + framework.program
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  # `close` closes it
        self.process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            start_new_session=True,  # Ctrl-C is for this process alone
        )

    def find_port(self) -> None:
        stdout = self.process.stdout
        assert stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            line = stdout.readline() if selector.select(2 * TIMEOUT) else b""
        if not line:
            self._stderr.seek(0)
            said = self._stderr.read().decode(errors="replace").strip()
            raise RuntimeError(f"{self.name}: it did not begin to listen. {said}")
        self.port = int(line)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self._stderr.close()
        for client in self._clients:
            client.close()

    def resident(self) -> float | None:
        """In MiB. None: it has ended."""
        if self.process.poll() is not None:
            return None
        pages = int((PROC / str(self.process.pid) / "statm").read_text("ascii").split()[1])
        return pages * resource.getpagesize() / MIB

    def sample(self, seconds: float) -> str:
        resident = self.resident()
        if resident is not None:
            self.samples.append((seconds, resident))
        return "ended" if resident is None else f"{resident:.0f}"

    @property
    def grown(self) -> float:
        return max((resident for _, resident in self.samples), default=0.0) - self.before

    def attack(self, selector: selectors.BaseSelector) -> None:
        """One client more."""
        client = socket.socket()
        self._clients.append(client)
        client.setblocking(False)
        for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            client.setsockopt(socket.SOL_SOCKET, buffer, 1 << 16)  # what is not taken is not to lie in the kernel
        client.connect_ex(("127.0.0.1", self.port))
        selector.register(client, selectors.EVENT_WRITE, memoryview(self.framework.request))

    def ask(self) -> None:
        """An honest client. Any thread."""
        started = perf_counter()
        with suppress(OSError):
            if self.framework.ask(self.port):
                self.waits.append(perf_counter() - started)


def run(plot: Path | None = None, attack: Attack | None = None) -> bool:
    """Prints what the sites did, draws it into the file `plot`, and returns whether the bounded ones kept what they
    promise: every honest client served, and no more memory than the quota and some.

    Raises OSError and RuntimeError for what kept it from being tried.
    """
    print(f"\nWeb sites under attack: stock ones, and ones that are bounded to {QUOTA} MiB.\n")
    if not (PROC / "self" / "statm").exists():
        print("Left out: how much memory a site has is read from Linux's /proc, which is not here.")
        return True
    frameworks = [each for each in FRAMEWORKS if _is_installed(each)]
    if not frameworks:
        return True
    attack = _fitting(attack or Attack(), len(frameworks))
    for each in frameworks:
        print(f"{each.name}: {attack.clients} clients {each.does}.")
        print("    Bounded by", *each.bound.splitlines()[-2:], sep="\n        ")
    print(f"{attack.honest} honest clients come to each meanwhile, and check the SHA-256 of what was sent.\n")
    with ThreadPoolExecutor(2 * len(frameworks) * attack.honest) as threads, ExitStack() as stack:
        sites: list[_Site] = []
        for framework in frameworks:
            for bounded in (False, True):
                sites.append(_Site(framework, bounded=bounded))
                stack.callback(sites[-1].close)
        for site in sites:
            site.find_port()
        print("Resident memory of each site, in MiB:")
        _print_row("", [site.framework.name for site in sites])
        _print_row("seconds", [site.kind for site in sites])
        _attack(sites, attack, threads)
        failures = _conclude(sites, attack)
    print(_CONCLUSION)
    if plot is not None:
        plot.write_text(draw({site.name: site.samples for site in sites}, QUOTA), "utf-8")
        print(f"\nThe chart is in {plot}.")
    return not failures


def _is_installed(framework: Framework) -> bool:
    try:
        found = importlib.util.find_spec(framework.module) is not None
    except ImportError:
        found = False
    if not found:
        extra = framework.module.partition(".")[0]
        print(f'{framework.name}: left out: it is not installed; pip install "eventengine[{extra}]" brings it')
    return found


def _fitting(attack: Attack, stock_sites: int) -> Attack:
    """`attack`, or as much of it as half the free memory and the file descriptors allow."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    most = min(attack.clients, _free_memory() // 2 // (HELD * stock_sites))
    if soft != resource.RLIM_INFINITY:
        most = min(most, (soft - 100) // (2 * stock_sites))
    clients = max(most, 1)
    if clients < attack.clients:
        print(f"This machine has room for {clients} clients that attack each site, not for {attack.clients}.")
    return replace(attack, clients=clients)


def _free_memory() -> int:
    """What the machine has available, or what the control group of a container leaves, in bytes."""
    lines = (PROC / "meminfo").read_text("ascii").splitlines()
    free = [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
    with suppress(OSError, ValueError):  # there is no group, or its bound is "max"
        most, used = (int((CONTROL_GROUP / f"memory.{name}").read_text("ascii")) for name in ("max", "current"))
        free.append(most - used)
    return min(free, default=0)


def _attack(sites: list[_Site], attack: Attack, threads: Executor) -> None:
    for site in sites:
        site.ask()  # what a first request takes is not the attack's
        site.waits.clear()
        site.before = site.resident() or 0.0
    to_attack = deque((attack.seconds * i / attack.clients, site) for i in range(attack.clients) for site in sites)
    to_ask = deque(
        (attack.seconds * (i + 1) / attack.honest, site) for i in range(attack.honest) for site in sites
    )
    asked: list[Future[None]] = []
    started = perf_counter()
    with selectors.DefaultSelector() as selector:
        for number in itertools.count():
            while (left := number / SAMPLES - (perf_counter() - started)) > 0:
                for key, _ in selector.select(min(left, attack.seconds / attack.clients)):
                    _send(selector, key)
                while to_attack and to_attack[0][0] <= perf_counter() - started:
                    to_attack.popleft()[1].attack(selector)
                while to_ask and to_ask[0][0] <= perf_counter() - started:
                    asked.append(threads.submit(to_ask.popleft()[1].ask))
            cells = [site.sample(perf_counter() - started) for site in sites]
            if number % SAMPLES == 0:
                _print_row(str(number // SAMPLES), cells)
            is_over = number >= SAMPLES * (attack.seconds + attack.rest) and not to_ask
            if is_over and all(each.done() for each in asked):
                return


def _send(selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
    """Sends some of what the client has left."""
    client, left = key.fileobj, key.data
    assert isinstance(client, socket.socket)
    try:
        left = left[client.send(left) :]
    except BlockingIOError:
        return
    except OSError:  # the site cut it
        left = b""
    if left:
        selector.modify(client, selectors.EVENT_WRITE, left)
    else:
        selector.unregister(client)


def _conclude(sites: list[_Site], attack: Attack) -> list[str]:
    """Prints the last rows, and returns what went wrong with a bounded site."""
    _print_row("grown by", [f"{site.grown:.0f}" for site in sites])
    _print_row("honest served", [f"{len(site.waits)} of {attack.honest}" for site in sites])
    _print_row("within at most", [f"{max(site.waits):.2f} s" if site.waits else "-" for site in sites])
    bounded = [site for site in sites if site.bounded]
    failures = [
        f"{site.name}: it grew by {site.grown:.0f} MiB, more than {QUOTA + SLACK}"
        for site in bounded
        if site.grown > QUOTA + SLACK
    ]
    failures += [
        f"{site.name}: of {attack.honest} honest clients it served {len(site.waits)}"
        for site in bounded
        if len(site.waits) < attack.honest
    ]
    failures += [f"{site.name}: its process ended" for site in bounded if site.resident() is None]
    for failure in failures:
        print(f"failed: {failure}")
    return failures


def _print_row(head: str, cells: list[str]) -> None:
    print(f"{head:<14}" + "".join(f" {cell:>13}" for cell in cells), flush=True)
