"""The load of the TLS benchmark: `python benchmarks/tls_load.py PORT WHAT CONNECTIONS SECONDS CORE`.

Plain blocking sockets of `ssl`, each connection in a process of its own, and none of our code. WHAT is `download`,
`upload`, `full` or `resumed`: bytes, or handshakes with one byte of an answer each. Prints how many in all, how many
after the first fifth of the time, the seconds of those, what the processes used of the CPU, and the cipher suite.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import ssl
import sys
from time import monotonic

PIECE = bytes(1 << 18)


class Load:
    def __init__(self, port: int, seconds: float) -> None:
        self.port = port
        self.seconds = seconds
        self.context = ssl.create_default_context()
        self.context.check_hostname = False
        self.context.verify_mode = ssl.CERT_NONE
        self.session: ssl.SSLSession | None = None
        self.total = self.counted = 0
        self.cipher = ""

    def connect(self, what: bytes) -> ssl.SSLSocket:
        sock = socket.create_connection(("127.0.0.1", self.port), 60)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        secure = self.context.wrap_socket(sock, session=self.session)
        secure.sendall(what)
        return secure

    def run(self, what: str) -> None:
        turn = getattr(self, what)
        if what in ("download", "upload"):
            self.connection = self.connect(what[:1].encode())
            self.cipher = self.connection.cipher()[0]  # type: ignore[index]
        self.buffer = bytearray(1 << 18)
        started = monotonic()
        begun = started + self.seconds / 5
        end = begun + self.seconds
        while (now := monotonic()) < end:
            n = turn()
            self.total += n
            if now >= begun:
                self.counted += n

    def download(self) -> int:
        n = self.connection.recv_into(self.buffer)
        if not n:
            raise RuntimeError("the server has ended")
        return n

    def upload(self) -> int:
        self.connection.sendall(PIECE)
        return len(PIECE)

    def full(self) -> int:
        connection = self.connect(b"h")
        if connection.recv(1) != b"h" or connection.session_reused is not (self.session is not None):
            raise RuntimeError("not what was asked for")
        self.cipher = connection.cipher()[0]  # type: ignore[index]
        self.last = connection.session
        with contextlib.suppress(OSError, ValueError):
            connection.unwrap()  # the server's close_notify, where it sends one
        connection.close()
        return 1

    def resumed(self) -> int:
        """The first is a full one."""
        self.full()
        self.session = self.last
        return 1


def main() -> None:
    port, what, connections, seconds, core = sys.argv[1:]
    os.sched_setaffinity(0, {int(core)})
    readers = []
    for _ in range(int(connections)):
        reader, writer = os.pipe()
        if not os.fork():
            load = Load(int(port), float(seconds))
            try:
                load.run(what)
                os.write(writer, json.dumps([load.total, load.counted, load.cipher]).encode())
            finally:
                os._exit(0)
        os.close(writer)
        readers.append(reader)
    answers = []
    for reader in readers:
        with open(reader, "rb") as pipe:
            answers.append(json.loads(pipe.read()))
        os.wait()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime
    total, counted = (sum(answer[n] for answer in answers) for n in (0, 1))
    print(total, counted, seconds, cpu, answers[0][2])


if __name__ == "__main__":
    main()
