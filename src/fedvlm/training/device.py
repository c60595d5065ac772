"""Device and precision of the frozen encoders, number of threads, allocator, and errors about missing memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from fedvlm.config import Count, Section
from fedvlm.errors import FedvlmError

Gib = Annotated[float, Field(ge=0, le=2**20)]


class ComputeSection(Section):
    """Where and how a run is computed. No setting here changes results beyond rounding.

    The run folder records what was used; a resumed run keeps its number of threads and its clients per step.
    """

    device: str = "auto"
    """`auto` (a GPU when present), `cpu`, `cuda`, `cuda:1`, `mps`."""
    dtype: Literal["float32", "tf32", "bfloat16", "float16"] = "float32"
    """Autocast dtype of the forward pass; trained tensors stay float32. `tf32`: float32, but an NVIDIA GPU rounds the
    factors of matrix products to 10 bits."""
    clients_per_step: Count | None = Field(default=None, serialization_alias="together")
    """Number of clients trained in one batched step; by default 8 for a small CLIP or on a GPU, else 1."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """CPU threads; by default as many as the run was begun with, else all cores (shared by `--processes`), but one for
    a CLIP as small as the embedded one."""
    cache_gib: Gib = 2.0
    """Bound of cached activations in memory."""
    client_cache_gib: Gib = Field(default=1.0, serialization_alias="clients_gib")
    """Bound of clients' tensors in memory between their rounds; the others are read from the run folder."""
    disk_gib: Gib = 20.0
    """Bound of activations of image files on disk, for later runs (`fedvlm cache` shows and clears them); 0: none."""
    cache_dtype: Literal["float32", "float16", "bfloat16"] = Field(default="float32", serialization_alias="kept_as")
    """Precision of activations on disk. Half precision halves them, and changes results in the third digit."""


Item = TypeVar("Item")
Result = TypeVar("Result")
DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Device:
    """A torch device with the autocast dtype of the frozen part (float32: no autocast)."""

    device: torch.device
    dtype: torch.dtype = torch.float32
    precision: str = "float32"
    """`compute.dtype`: what activations were computed in."""

    def send(self, tensor: Tensor) -> Tensor:
        """The tensor on this device. To a GPU it is copied from pinned memory, without blocking the program."""
        if self.device.type == "cuda" and tensor.device.type == "cpu":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    @property
    def batch_rows(self) -> int:
        """Number of images per encoded batch: constant, because the last bits of a product depend on its shape."""
        return 8 if self.device.type == "cpu" else 64

    def map(self, work: Callable[[Item], Result], parts: Sequence[Item]) -> list[Result]:
        """Results of `work` for every part, in order. On a CPU each part has one thread, and several parts run at once.

        Threads that share a product cut it into pieces, and a row's last bits depend on its place in a piece. With one
        thread for each part, results are the same with any number of threads.
        """
        threads = torch.get_num_threads()
        at_once = min(threads, len(parts))
        if self.device.type != "cpu" or threads == 1:
            return [work(part) for part in parts]
        torch.set_num_threads(1)
        try:
            if at_once == 1:
                return [work(part) for part in parts]
            with ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                return list(pool.map(work, parts))
        finally:
            torch.set_num_threads(threads)

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Run matrix products of the encoders in `dtype`; trained tensors and their updates stay float32."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)


def choose_device(settings: ComputeSection) -> Device:
    """The configured device; `auto` takes a GPU when present. Raises `FedvlmError` if the device cannot be used."""
    name = settings.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise FedvlmError(f"compute.device = '{name}' cannot be used here: {str(error).splitlines()[0]}") from None
    if settings.dtype == "tf32" and device.type != "cuda":
        raise FedvlmError(f"compute.dtype = 'tf32' needs an NVIDIA GPU; compute.device is '{device}'")
    return Device(device, DTYPES[settings.dtype], settings.dtype)


def configure_process(device: Device, *, keep_freed: bool = True) -> None:
    """Set the options that torch and the C library offer only for a whole process. See `keep_freed_memory`."""
    if keep_freed:
        keep_freed_memory()
    if device.device.type == "cuda":
        # Both switches: by default torch rounds convolutions to TF32, but not matrix products.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = device.precision == "tf32"


SMALL_WIDTH = 256
"""Text widths below this are small: the embedded model has 128, the published ones 512 and 768."""


def default_threads(width: int, processes: int = 1) -> int:
    """Default number of threads: a process's share of the cores for a published CLIP, one for a small CLIP.

    A small model's operations take microseconds. Two threads gain a quarter on an idle machine, and are ten times
    slower as soon as anything else runs, because they wait for each other by spinning.
    """
    return 1 if width < SMALL_WIDTH else max(1, (os.cpu_count() or 1) // processes)


CLIENTS_PER_STEP = 8
"""Default number of clients per step where batching is faster."""


def default_clients_per_step(device: Device, width: int) -> int:
    """Default number of clients trained in one batched step: many small operations become few large ones.

    Batching costs memory, and gains nothing for a large CLIP on a CPU, which one client's step keeps busy.
    """
    return CLIENTS_PER_STEP if width < SMALL_WIDTH or device.device.type != "cpu" else 1


def evaluation_batch(batch: int | None, device: Device) -> int:
    """Number of images evaluated at a time: as set, or the default of the device."""
    return batch or (32 if device.device.type == "cpu" else 256)


def keep_freed_memory() -> None:
    """On glibc, serve large tensors from the heap instead of mapping and unmapping them for every operation.

    By default glibc returns every large block to the kernel, and training on the CPU spends much of its time on
    page faults. Elsewhere this does nothing.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, 2**31 - 1)


@contextlib.contextmanager
def explain_memory_errors(what: str) -> Iterator[None]:
    """Turn errors of allocators about missing memory into a `FedvlmError` that names `what`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error).split("\n", 1)[0]
        known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not (known or "allocate memory" in text or "overflow" in text):
            raise
        raise FedvlmError(f"{what}: there is not enough memory for these settings ({text[:200]})") from error
