"""Seals: messages between a site and its coordinator that nothing in between can forge.

A site and its coordinator share a key. Whoever carries the messages can read and lose them, but not make one: each ends
with an HMAC-SHA256 of its bytes and its direction (RFC 2104). This module imports Python's own packages only.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from pathlib import Path
from typing import Literal

Direction = Literal["to", "from"]
"""To the site, or from it."""
SIZE = 32
"""Bytes of a key, and of a seal."""


def new_key() -> str:
    """A new key, in hexadecimal digits."""
    return secrets.token_hex(SIZE)


def read_key(path: str | Path | None) -> bytes | None:
    """The key of a file; None without one. Raises `ValueError` or `OSError`."""
    if path is None:
        return None
    key = bytes.fromhex(Path(path).read_text(encoding="ascii").strip())
    if len(key) != SIZE:
        raise ValueError(f"{len(key)} bytes instead of {SIZE}")
    return key


def close(data: bytes, direction: Direction, key: bytes | None) -> bytes:
    """The message with its seal; without a key the message itself."""
    return data if key is None else data + _mark(data, direction, key)


def open_(data: bytes, direction: Direction, key: bytes | None) -> bytes | None:
    """The message without its seal; None if the seal is not of this key. Without a key the message itself."""
    if key is None:
        return data
    body, mark = data[:-SIZE], data[-SIZE:]
    return body if hmac.compare_digest(_mark(body, direction, key), mark) else None


def _mark(data: bytes, direction: Direction, key: bytes) -> bytes:
    return hmac.digest(key, direction.encode() + b"\n" + data, hashlib.sha256)
