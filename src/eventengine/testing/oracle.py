"""The oracle: a peer on plain blocking sockets, which shares no code with any engine, so that two wrongs cannot agree.

Every call has a timeout, so that a test of an engine that hangs fails instead of hanging.
"""

from __future__ import annotations

import random
import socket
import struct
from functools import lru_cache
from types import TracebackType
from typing import TYPE_CHECKING

from eventengine.address import ResolvedAddress

if TYPE_CHECKING:
    from typing import Self

__all__ = ["TIMEOUT", "OracleServer", "connect", "pattern", "receive", "receive_all", "reset", "somewhere"]

TIMEOUT = 30.0
"""Seconds after which a test gives up: what takes so long hangs."""


def somewhere() -> ResolvedAddress:
    """Where one listens who was not told where: a free port of 127.0.0.1."""
    return ResolvedAddress.tcp("127.0.0.1", 0)


class OracleServer:
    """Listens at `address`, or `somewhere`; `accept` gives the next connection."""

    def __init__(self, address: ResolvedAddress | None = None, *, backlog: int = 128) -> None:
        where = somewhere() if address is None else address
        self.socket = socket.socket(where.family, socket.SOCK_STREAM)
        try:
            self.socket.settimeout(TIMEOUT)
            self.socket.bind(where.sockaddr)
            self.socket.listen(backlog)
        except BaseException:
            self.socket.close()
            raise
        self.address: ResolvedAddress = ResolvedAddress.from_sockaddr(where.family, self.socket.getsockname())

    def accept(self) -> socket.socket:
        connection, _ = self.socket.accept()
        connection.settimeout(TIMEOUT)
        return connection

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def connect(address: ResolvedAddress, *, receive_buffer_size: int | None = None) -> socket.socket:
    """A blocking connection to `address`; a small receive buffer, in bytes, makes a reader that holds its peer back."""
    connection = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        connection.settimeout(TIMEOUT)
        if receive_buffer_size is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_size)
        connection.connect(address.sockaddr)
    except BaseException:
        connection.close()
        raise
    return connection


def receive(connection: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes; AssertionError when the stream ends before."""
    data = bytearray(size)
    with memoryview(data) as view:
        done = 0
        while done < size:
            count = connection.recv_into(view[done:])
            if not count:
                raise AssertionError(f"the stream ended after {done} of {size} bytes")
            done += count
    return bytes(data)


def receive_all(connection: socket.socket) -> bytes:
    """All bytes until the end of the stream."""
    data = bytearray()
    while part := connection.recv(1 << 18):
        data += part
    return bytes(data)


def reset(connection: socket.socket) -> None:
    """Closes with a reset instead of an end of the stream, whatever was not read or sent (SO_LINGER of 0 s)."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def pattern(size: int, seed: int = 0) -> bytes:
    """Bytes of which no part is like another, the same for each `seed`."""
    return _kept_pattern(size, seed) if size <= 1 << 21 else random.Random(seed).randbytes(size)


@lru_cache(maxsize=16)
def _kept_pattern(size: int, seed: int) -> bytes:
    """Many tests want the same one, and a mebibyte takes longer to make than most of them take."""
    return random.Random(seed).randbytes(size)
