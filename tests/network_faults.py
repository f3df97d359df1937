"""What engines of all loops make of a bad network, all at once: `python network_faults.py netem|mirror SEED`.

Run within `unshare --net`; prints what each engine saw, for test_faults_network to compare.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass

from bad_networks import BadNetwork, Mirror, Netem
from engines import KINDS, MAIN, Kind, factory, is_installed
from eventengine import EndpointConfig, ResolvedAddress, ResourceQuota, SliceBuffer, Status
from eventengine.engine import Endpoint
from eventengine.testing.application import Accepting, Application, Callback, Ledger
from eventengine.testing.oracle import pattern

SIZE = 64 << 10
IMPATIENT = EndpointConfig(user_timeout=1.0)
PROBING = EndpointConfig(keepalive=True, keepalive_idle=1, keepalive_interval=1, keepalive_count=2)
PLAIN = EndpointConfig()


@dataclass
class Pair:
    client: Endpoint
    server: Endpoint


class Case:
    """One engine on the network. The steps of all cases are taken together, so that their waits are one."""

    def __init__(self, kind: Kind, stack: ExitStack, network: BadNetwork) -> None:
        self.name = kind.id
        self.quota = ResourceQuota(kind.id)
        self.ledger = Ledger()
        stack.callback(self.check)
        make = stack.enter_context(factory(kind))
        self.app = Application(stack.enter_context(make()), self.quota, self.ledger)
        self._stack = stack
        self._network = network
        self._near = ResolvedAddress.tcp(network.near, 0)

    def check(self) -> None:
        self.ledger.check()
        assert (self.quota.memory.used, self.quota.connections.used) == (0, 0)

    def listen(self, config: EndpointConfig) -> tuple[Accepting, ResolvedAddress]:
        accepting = self.app.listen(self._near, config=config)
        return accepting, ResolvedAddress.tcp(self._network.far, accepting.address.port)

    def pair(self, config: EndpointConfig) -> Pair:
        accepting, address = self.listen(config)
        client = self._stack.enter_context(closing(self.app.connect(address, config)))
        server = self._stack.enter_context(closing(accepting.next()))
        accepting.close()
        return Pair(client, server)

    def exchange(self) -> str:
        """Both ways at a time, on four connections."""
        ways: list[tuple[Endpoint, Endpoint, bytes]] = []
        for n in range(4):
            pair = self.pair(PLAIN)
            ways += [
                (pair.client, pair.server, pattern(SIZE, n)),
                (pair.server, pair.client, pattern(SIZE, n + 9)),
            ]
        writes = [self.app.start_write(source, data) for source, _, data in ways]
        right = all(self.app.receive(target, SIZE) == data for _, target, data in ways)
        return "right" if right and all(write.result().ok for write in writes) else "wrong"

    def before_the_cut(self) -> None:
        self.impatient, self.probing, self.patient = self.pair(IMPATIENT), self.pair(PROBING), self.pair(PLAIN)
        _, self.address = self.listen(PLAIN)
        self.reads = [
            self.app.start_read(endpoint, SliceBuffer())
            for endpoint in (self.impatient.client, self.probing.client, self.probing.server)
        ]

    def write_when_cut(self) -> None:
        self.arrived = SliceBuffer()
        self.on_patient = self.app.start_read(self.patient.server, self.arrived)
        assert self.app.write(self.patient.client, b"patience").ok
        for _ in range(10):
            self.app.on_loop(lambda: None)

    def arrives(self) -> str:
        """What was written into the cut network, when that was mended."""
        status, data = self.on_patient.result(), bytes(self.arrived)
        self.arrived.clear()
        return f"{said(status)} {data.decode()}"

    def when_cut(self) -> None:
        self.since = time.monotonic()
        assert self.app.write(self.impatient.client, b"into the void").ok
        self.on_connect = Callback[Endpoint | Status](self.ledger)
        self.app.start_connect(self.on_connect, self.address, timeout=0.5)

    def ends(self) -> str:
        """What the reads ended with, and that none ended before its time."""
        impatient, *probing = [said(read.result()) for read in self.reads]
        assert time.monotonic() - self.since >= 1.0
        later = said(self.app.write(self.impatient.client, b"later"))
        connect = said(self.on_connect.result())
        return f"user_timeout {impatient}, then {later}; keepalive {', '.join(probing)}; connect {connect}"


def said(result: object) -> str:
    assert isinstance(result, Status), result
    return f"{result.code.name} {result.errno}"


def main() -> None:
    network: BadNetwork = Netem() if sys.argv[1] == "netem" else Mirror(int(sys.argv[2]))
    kinds = [kind for kind in KINDS if kind.loop in MAIN and not kind.pool and all(map(is_installed, kind.needs))]
    with closing(network), ExitStack() as stack:
        cases = [Case(kind, stack, network) for kind in kinds]
        with ThreadPoolExecutor(len(cases)) as threads:

            def all_do(step: Callable[[Case], object]) -> list[object]:
                return list(threads.map(step, cases))

            exchanged = all_do(Case.exchange)
            network.calm()  # or a connection could be given up before it is made
            all_do(Case.before_the_cut)
            network.cut()
            all_do(Case.write_when_cut)
            assert not any(case.on_patient.count for case in cases)
            network.mend()
            arrived = all_do(Case.arrives)
            network.cut()
            all_do(Case.when_cut)
            ended = all_do(Case.ends)
    for case, *found in zip(cases, exchanged, arrived, ended, strict=True):
        print(case.name, *found, sep="; ")


if __name__ == "__main__":
    main()
