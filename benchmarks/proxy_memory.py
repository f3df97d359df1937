"""What the proxy holds while a long stream passes through it, on each engine.

    python benchmarks/proxy_memory.py [--gib 1] [--memory 8MiB] [--engine NAME ...] [--reader fast|slow ...]

For each engine it starts `python -m eventengine proxy --memory 8MiB`, sends 1 GiB through it, and prints the rate,
the peak of the quota, by how much the proxy's process grew (the most that was ever resident, VmHWM, less what was
resident when it began to listen, VmRSS) and whether the SHA-256 of what arrived is that of what was sent. The slow
reader takes 1 MiB a second of the first 10 MiB, and then goes full speed. Linux only: it reads /proc.

Exit status: 0 if every digest is equal, every peak within the quota and no growth above 40 MiB.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import re
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from eventengine.cli.demo import ProxyProcess
from eventengine.cli.engines import ENGINES, load_engine
from eventengine.memory_quota import parse_size

MIB = 1 << 20
TIMEOUT = 60.0
GROWTH_ALLOWED = 40 * MIB
SLOW_BYTES = 10 * MIB
SLOW_RATE = MIB


def send(listener: socket.socket, mebibytes: int) -> bytes:
    """Sends so many MiB, no two alike, to the first who connects, and returns their digest."""
    block = random.Random(1).randbytes(MIB)
    digest = hashlib.sha256()
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(TIMEOUT)
        for number in range(mebibytes):
            part = number.to_bytes(8, "big") + block[8:]
            digest.update(part)
            connection.sendall(part)
    return digest.digest()


def receive(address: tuple[str, int], slow: bool) -> bytes:
    """Receives to the end and returns the digest."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(MIB))
    done = 0
    with socket.create_connection(address, TIMEOUT) as connection:
        started = time.monotonic()
        while count := connection.recv_into(buffer[:65536] if slow and done < SLOW_BYTES else buffer):
            digest.update(buffer[:count])
            done += count
            if slow and done <= SLOW_BYTES:
                time.sleep(max(0.0, started + done / SLOW_RATE - time.monotonic()))
    return digest.digest()


def resident(pid: int, field: str) -> int:
    match = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    if match is None:
        raise RuntimeError(f"/proc/{pid}/status has no {field}")
    return int(match[1]) * 1024


def measure(engine: str, memory: str, mebibytes: int, slow: bool) -> bool:
    """Measures once, prints a row, and says whether all was as it must be."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as thread:
        listener.settimeout(TIMEOUT)
        sent = thread.submit(send, listener, mebibytes)
        proxy = ProxyProcess(
            "--to", f"127.0.0.1:{listener.getsockname()[1]}", "--engine", engine, "--memory", memory
        )  # fmt: skip
        try:
            before = resident(proxy.process.pid, "VmRSS")
            started = time.monotonic()
            received = receive(proxy.address, slow)
            seconds = time.monotonic() - started
            grown = resident(proxy.process.pid, "VmHWM") - before
        finally:
            peak = proxy.stop()
        equal = received == sent.result()
    print(
        f"{engine:<8} {'slow' if slow else 'fast':<6} {mebibytes * MIB / seconds / 1e6:>7.0f} {peak / MIB:>15.2f} "
        f"{grown / MIB:>10.1f}  {'equal' if equal else 'DIFFERENT'}",
        flush=True,
    )
    return equal and peak <= parse_size(memory) and grown <= GROWTH_ALLOWED


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--memory", default="8MiB")
    parser.add_argument("--engine", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--reader", nargs="+", choices=("fast", "slow"), default=("fast", "slow"))
    options = parser.parse_args()
    good = True
    print(f"{'engine':<8} {'reader':<6} {'MB/s':>7} {'quota peak, MiB':>15} {'grown, MiB':>10}  SHA-256")
    for engine in options.engine:
        try:
            load_engine(engine)
        except ImportError as error:
            print(f"{engine:<8} left out: {error}")
            continue
        for reader in options.reader:
            good &= measure(engine, options.memory, max(1, round(options.gib * 1024)), reader == "slow")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
