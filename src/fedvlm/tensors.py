"""Dictionaries of named tensors: the form in which state is trained, sent, averaged and stored."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from fedvlm import durable
from fedvlm.errors import FedvlmError

Named = dict[str, Tensor]


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a tensor name matches one of the shell patterns (`shared.*`)."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def select(tensors: Named, patterns: Iterable[str]) -> Named:
    """The tensors whose names match, in their order."""
    patterns = tuple(patterns)
    return {name: tensor for name, tensor in tensors.items() if matches(name, patterns)}


def equal(one: Named, other: Named) -> bool:
    """Whether both hold the same names with the same numbers (NaN equals nothing)."""
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def weighted_mean(parts: Sequence[Named], weights: Sequence[float]) -> Named:
    """sum_i w_i x_i / sum_i w_i per name, accumulated in float64, returned in the dtype of the first part.

    The parts must agree in names and shapes; a part of weight zero has no influence, not even by NaN.
    """
    if not all(0 <= weight < math.inf for weight in weights):
        raise ValueError(f"weights must be finite and not negative: {list(weights)}")
    kept = [(part, float(weight)) for part, weight in zip(parts, weights, strict=True) if weight]
    if not kept:
        raise ValueError("a weighted mean needs a positive total weight")
    total = math.fsum(weight for _, weight in kept)
    first = kept[0][0]
    for part, _ in kept[1:]:
        if part.keys() != first.keys():
            raise ValueError(f"tensor names differ: {sorted(part.keys() ^ first.keys())}")
    return {name: _mean([(part[name], weight) for part, weight in kept], total) for name in first}


def _mean(terms: list[tuple[Tensor, float]], total: float) -> Tensor:
    first = terms[0][0]
    result = torch.zeros(first.shape, dtype=torch.float64, device=first.device)
    for tensor, weight in terms:
        if tensor.shape != first.shape:
            raise ValueError(f"shapes differ: {tuple(tensor.shape)} and {tuple(first.shape)}")
        result += weight * tensor.double()
    # One division at the end: with whole numbers of images the sum is nearly always exact, whatever the order.
    return (result / total).to(first.dtype)


def count(tensors: Named) -> int:
    """Number of elements of all tensors."""
    return sum(tensor.numel() for tensor in tensors.values())


def nbytes(tensors: Named) -> int:
    """Number of bytes of all tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def norm(tensors: Named) -> float:
    """Euclidean norm over all tensors together."""
    return float(sum(tensor.double().square().sum() for tensor in tensors.values())) ** 0.5


def clone(tensors: Named) -> Named:
    """Detached copies that share no memory with the originals."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def digest(tensors: Named) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in the order of names."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        sha.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def save(path: Path, tensors: Named, *, private: bool = False) -> None:
    """Write a safetensors file atomically; `private`: readable by its owner only."""
    # Clones: the format refuses two names for the same memory.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    durable.write_bytes(path, safetensors.torch.save(plain), private=private)


def load(path: Path, max_bytes: int | None = None) -> Named:
    """Read a safetensors file. Raises `FedvlmError` naming a missing, damaged or too large file."""
    try:
        size = path.stat().st_size
        if max_bytes is not None and size > max_bytes:
            raise FedvlmError(f"{path} has {size:,} bytes, more than the {max_bytes:,} expected")
        # Copies: a file's tensors may be unaligned, and products of unaligned matrices round differently.
        return {name: tensor.clone() for name, tensor in safetensors.torch.load_file(path).items()}
    except FileNotFoundError as error:
        raise FedvlmError(f"no such file: {path}") from error
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise FedvlmError(f"{path} is not a readable safetensors file: {error}") from error
