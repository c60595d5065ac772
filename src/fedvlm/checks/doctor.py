"""`fedvlm doctor`: state of the installation, missing parts, and commands that install them."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import torch

from fedvlm import clip as clips
from fedvlm import durable
from fedvlm.errors import FedvlmError
from fedvlm.runs.machine import versions


@dataclass(frozen=True)
class Finding:
    """One line: the checked item, the finding, whether it is in order, and how to fix it."""

    what: str
    found: str
    good: bool = True
    advice: str = ""


def examine(out: Path = Path("runs")) -> list[Finding]:
    """Findings on versions, devices, threads, weights, optional extras and the run folder."""
    return [*_machine(), *_weights(), *_extras(), *_disk(out)]


def _machine() -> Iterator[Finding]:
    for name, version in versions().items():
        yield Finding(name, version)
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    good = threads <= cores
    yield Finding("threads", f"{threads} of {cores} cores", good, "" if good else f"set compute.threads={cores}")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield Finding("GPU", ", ".join(names) or "none: runs on the CPU")


def _weights() -> Iterator[Finding]:
    try:
        clip = clips.load("embedded")
        clip.encode_text(*clip.tokenizer(["a photo of a solid circle."]))
        yield Finding("embedded CLIP", f"sha256 {clip.weights[:12]}")
    except FedvlmError as error:
        yield Finding("embedded CLIP", str(error), False, "install fedvlm again: its weights are part of the package")
    cached = list(_cached())
    advice = "hf download openai/clip-vit-base-patch16   (needs a network; only for real photographs)"
    yield Finding("CLIPs in the hub cache", ", ".join(cached) or "none", True, "" if cached else advice)


def _cached() -> Iterator[str]:
    try:
        cache = huggingface_hub.scan_cache_dir()
    except Exception:  # no cache folder yet, or one of another layout
        return
    for repository in cache.repos:
        if "clip" in repository.repo_id.lower():
            yield repository.repo_id


def _extras() -> Iterator[Finding]:
    found = importlib.util.find_spec("datasets") is not None
    yield Finding(
        "datasets (extra hub)",
        "installed" if found else "not installed",
        True,
        "" if found else "pip install 'fedvlm[hub]'",
    )


def _disk(out: Path) -> Iterator[Finding]:
    there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    try:
        probe = there / f".fedvlm-{os.getpid()}"
        durable.write_bytes(probe, b"")
        probe.unlink()
        yield Finding(
            f"run folder {out}",
            f"writable, {free / 2**30:.1f} GiB free",
            free > 2**28,
            "" if free > 2**28 else "free some space",
        )
    except FedvlmError as error:
        yield Finding(f"run folder {out}", str(error), False, "choose another with --out")
