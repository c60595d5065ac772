"""Random numbers that depend only on an image's seed and the name of the draw, computed for many images at once.

A counter-based hash (SplitMix64, Steele et al. 2014) takes the place of a generator object per image: it is a
few integer operations on arrays, so that a batch is fast and an image never depends on its neighbours.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from fedvlm.streams import key

Floats = npt.NDArray[np.float32]
Seeds = npt.NDArray[np.uint64]

_GOLDEN = 0x9E3779B97F4A7C15


def draws(seeds: Seeds, purpose: str, count: int) -> Floats:
    """Uniform numbers in [0, 1): `[B, count]` from seeds `[B]`; another purpose gives independent numbers."""
    start = _mix(seeds ^ np.uint64(_salt(purpose)))
    return (_mix(start[:, None] + _counters(count)) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


@functools.cache
def _salt(purpose: str) -> int:
    return key(0, "scenes", purpose) & (2**64 - 1)


@functools.cache
def _counters(count: int) -> Seeds:
    steps = [((index + 1) * _GOLDEN) & (2**64 - 1) for index in range(count)]
    return np.array(steps, dtype=np.uint64)


def _mix(x: Seeds) -> Seeds:
    """SplitMix64's finaliser (unsigned arithmetic wraps)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
