"""Named random streams: every draw is a function of (seed, names), and independent of earlier draws.

`stream(7, "order", 3, 0)` gives the same numbers in every process, on every machine and in whatever
order streams are opened; another name gives independent numbers. There is no global random state.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
import torch

Name = str | int


def key(seed: int, *names: Name) -> int:
    """A 128-bit key of the names. `("a", 1)` and `("a", "1")` are different streams."""
    text = json.dumps([seed, *names], separators=(",", ":"), ensure_ascii=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")


def stream(seed: int, *names: Name) -> np.random.Generator:
    """The numpy generator of these names (counter-based Philox)."""
    return np.random.Generator(np.random.Philox(key=key(seed, *names)))


def torch_stream(seed: int, *names: Name) -> torch.Generator:
    """The torch CPU generator of these names (tensors are drawn on the CPU and moved afterwards)."""
    generator = torch.Generator()
    generator.manual_seed(key(seed, *names) & (2**63 - 1))
    return generator
