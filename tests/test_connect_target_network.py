"""`connect_target` on a network of its own, where packets to some hosts vanish: what Happy Eyeballs is for.

A pair of virtual Ethernet devices, of which nobody listens at the other end; the silent hosts have a fixed neighbour
entry, so that no error comes back for them.
"""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

TIMEOUT = 60

NETWORK = """
import subprocess
for command in (
    "link set lo up",
    "link add ours type veth peer name theirs",
    "link set ours up",
    "link set theirs up",
    "addr add 192.0.2.1/24 dev ours",
    "addr add 2001:db8::1/64 dev ours nodad",
    "neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev ours",
    "neigh add 2001:db8::9 lladdr 02:00:00:00:00:09 dev ours",
):
    subprocess.run(["ip", *command.split()], check=True)
"""

CONNECT = """
import socket, sys, threading
from eventengine import *
from eventengine.cli.engines import load_engine

class Names(DNSResolver):
    def __init__(self, engine, found):
        self.engine, self.found = engine, found
    def lookup_hostname(self, on_resolve, name, default_port=""):
        self.engine.run(lambda: on_resolve(self.found))
    lookup_srv = lookup_txt = close = None

def outcome(engine, target, timeout, resolver=None):
    done, got = threading.Event(), []
    allocator = ResourceQuota().create_memory_allocator("client")
    connect_target(
        engine, lambda result: (got.append(result), done.set()), target, EndpointConfig(), allocator, timeout,
        resolver=resolver,
    )
    assert done.wait(60)
    if isinstance(got[0], Status):
        return f"{got[0].code.name}: {got[0].message}"
    got[0].close()
    return str(got[0].peer_address)

silent6, silent4 = ResolvedAddress.tcp("2001:db8::9", 80), ResolvedAddress.tcp("192.0.2.9", 80)
with (
    load_engine(sys.argv[1])() as engine,
    socket.create_server(("192.0.2.1", 0)) as server4,
    socket.create_server(("2001:db8::1", 0), family=socket.AF_INET6) as server6,
):
    v4 = ResolvedAddress.from_sockaddr(server4.family, server4.getsockname())
    v6 = ResolvedAddress.from_sockaddr(server6.family, server6.getsockname())
    print(outcome(engine, "name:1", 60, Names(engine, [silent6, v4])) == str(v4))
    print(outcome(engine, "name:1", 60, Names(engine, [silent6, silent4, v6])) == str(v6))
    print(outcome(engine, f"ipv6:{silent6},[2001:db8::1]:{v6.port}", 60) == str(v6))
    print(outcome(engine, "ipv4:198.51.100.1:80,192.0.2.9:80", 3))
"""


@pytest.mark.parametrize("engine", ["default", "asyncio", "tornado", "twisted"])
def test_a_family_whose_packets_vanish_is_overtaken_by_the_other(engine: str) -> None:
    if engine in ("tornado", "twisted"):
        module = "twisted.internet" if engine == "twisted" else engine
        pytest.importorskip(module, reason=f"the extra {engine} is not installed")
    if not (shutil.which("unshare") and shutil.which("ip")):
        pytest.skip("unshare and ip are not installed")
    unshared = ["unshare", "--map-root-user", "--net", sys.executable]
    made = subprocess.run([*unshared, "-c", NETWORK], capture_output=True, text=True, timeout=TIMEOUT, check=False)
    if made.returncode:
        pytest.skip(f"this machine makes no network of one's own: {made.stderr.strip().splitlines()[-1]}")
    done = subprocess.run(
        [*unshared, "-W", "error", "-c", NETWORK + CONNECT, engine],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    *connected, failed = done.stdout.splitlines()
    assert connected == ["True"] * 3
    assert failed == (
        "DEADLINE_EXCEEDED: connecting to ipv4:198.51.100.1:80,192.0.2.9:80: the timeout has passed; "
        "connecting to 198.51.100.1:80: Network is unreachable (ENETUNREACH); 192.0.2.9:80: no answer"
    )
