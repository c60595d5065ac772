"""Frames of bytes over a stream socket: a length of eight bytes, little endian, then the bytes.

Carriers that a network delivers need nothing else of fedvlm: this module imports Python's own packages only.
"""

from __future__ import annotations

import socket
import struct
import time
from pathlib import Path

LENGTH = 8
LIMIT = 1 << 30
"""Largest frame that is read by default, in bytes."""


class BrokenFrameError(Exception):
    """The other side ended in the middle of a frame."""


class LargeFrameError(BrokenFrameError):
    """The other side announced too large a frame, of `size` bytes."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"a frame of {size:,} bytes, more than {limit:,}")
        self.size = size


def send(connection: socket.socket, data: bytes) -> None:
    """Send one frame."""
    connection.sendall(len(data).to_bytes(LENGTH, "little") + data)


def receive(connection: socket.socket, limit: int = LIMIT) -> bytes | None:
    """Receive one frame; None if the other side has ended. Raises `BrokenFrameError`.

    The timeout of the connection is that of the whole frame, once it has begun.
    """
    head = _exactly(connection, LENGTH)
    if not head:
        return None
    size = int.from_bytes(head, "little")
    if len(head) < LENGTH:
        raise BrokenFrameError("cut short")
    if size > limit:
        raise LargeFrameError(size, limit)
    data = _exactly(connection, size)
    if len(data) < size:
        raise BrokenFrameError(f"{len(data):,} of {size:,} bytes came")
    return data


def _exactly(connection: socket.socket, size: int) -> bytes:
    """So many bytes, or fewer at the end. Memory grows with what has come, not with what was announced."""
    parts, left, timeout = [], size, connection.gettimeout()
    end = None if timeout is None else time.monotonic() + timeout
    try:
        while left and (part := connection.recv(min(left, 1 << 20))):
            parts.append(part)
            left -= len(part)
            if end is not None:  # a byte now and then must not hold the connection for ever
                connection.settimeout(max(end - time.monotonic(), 0.001))
    finally:
        connection.settimeout(timeout)
    return b"".join(parts)


def ask(path: str | Path, data: bytes, timeout: float | None = None, limit: int = LIMIT) -> bytes:
    """The answer of the process behind a Unix socket. Raises `OSError` or `BrokenFrameError`."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout)
        connection.connect(str(path))
        send(connection, data)
        answer = receive(connection, limit)
    if answer is None:
        raise BrokenFrameError("the other side ended without an answer")
    return answer


def peer_user(connection: socket.socket) -> int:
    """The numeric user of the process at the other end of a Unix socket, as the kernel says."""
    size = struct.calcsize("3i")
    _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return int(user)
