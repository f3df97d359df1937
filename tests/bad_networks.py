"""Networks that lose, delay, double and reorder packets, and that can be cut: each in a network namespace of its own.

`Netem` is the loopback device with the kernel's netem, where it has that. `Mirror` needs nothing but a TUN device: it
sends each packet back with its two addresses swapped, so that who connects to MIRRORED reaches a listener at OURS, and
each of the two is the other's peer; no checksum changes by that. Both are set up within `unshare --net`.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import threading
import time
from abc import ABC, abstractmethod

OURS, MIRRORED = "192.0.2.1", "192.0.2.2"
LOSS, DELAY, JITTER, DOUBLED = 0.02, 0.004, 0.004, 0.01


class BadNetwork(ABC):
    """`near` is where one listens, `far` where one then connects to."""

    near: str
    far: str

    @abstractmethod
    def cut(self) -> None:
        """From now on no packet arrives."""

    @abstractmethod
    def mend(self) -> None:
        """Packets arrive again, as at first."""

    @abstractmethod
    def calm(self) -> None:
        """No packet is lost, until `cut` or `mend`."""

    @abstractmethod
    def close(self) -> None: ...


def run(command: str) -> None:
    subprocess.run(command.split(), check=True)


class Netem(BadNetwork):
    near = far = "127.0.0.1"

    def __init__(self) -> None:
        run("ip link set lo up mtu 1500")
        self._have("add", LOSS)

    def _have(self, how: str, loss: float) -> None:
        run(
            f"tc qdisc {how} dev lo root netem delay {DELAY * 1e3:.0f}ms {JITTER * 1e3:.0f}ms "
            f"loss {loss * 100:.0f}% duplicate {DOUBLED * 100:.0f}%"
        )

    def cut(self) -> None:
        self._have("change", 1.0)

    def mend(self) -> None:
        self._have("change", LOSS)

    def calm(self) -> None:
        self._have("change", 0.0)

    def close(self) -> None:
        run("tc qdisc del dev lo root")


class Mirror(BadNetwork):
    near, far = OURS, MIRRORED

    def __init__(self, seed: int) -> None:
        run("ip link set lo up")
        self._tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        set_up, is_tun, without_header = 0x400454CA, 0x0001, 0x1000  # linux/if_tun.h
        fcntl.ioctl(self._tun, set_up, struct.pack("16sH22x", b"mirror", is_tun | without_header))
        run(f"ip addr add {OURS}/24 dev mirror")
        run("ip link set mirror up")
        self._chance = random.Random(seed)
        self._is_over = False
        self._loss = LOSS
        self._late: list[tuple[float, int, bytes]] = []
        self._count = 0
        self._thread = threading.Thread(target=self._mirror)
        self._thread.start()

    def cut(self) -> None:
        self._loss = 1.0

    def mend(self) -> None:
        self._loss = LOSS

    def calm(self) -> None:
        self._loss = 0.0

    def close(self) -> None:
        self._is_over = True
        self._thread.join()
        os.close(self._tun)

    def _mirror(self) -> None:
        while not self._is_over:
            wait = self._late[0][0] - time.monotonic() if self._late else 0.1
            if select.select([self._tun], [], [], min(max(wait, 0.0), 0.1))[0]:
                self._take(os.read(self._tun, 65536))
            while self._late and self._late[0][0] <= time.monotonic():
                packet = heapq.heappop(self._late)[2]
                if self._loss < 1.0:
                    os.write(self._tun, packet)

    def _take(self, packet: bytes) -> None:
        if packet[0] >> 4 != 4 or self._chance.random() < self._loss:
            return
        for _ in range(2 if self._chance.random() < DOUBLED else 1):
            self._count += 1
            due = time.monotonic() + DELAY + JITTER * self._chance.random()
            back = packet[:12] + packet[16:20] + packet[12:16] + packet[20:]
            heapq.heappush(self._late, (due, self._count, back))
