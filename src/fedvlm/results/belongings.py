"""Which files of a run folder are fedvlm's own, so that starting again deletes these and nothing else."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from fedvlm import durable
from fedvlm.errors import FedvlmError, listed

LOCK = ".lock"
_WRITTEN = re.compile(
    r"experiment\.json|contract\.(txt|json)|table\.(json|csv|md)|(rounds|tradeoff)\.(png|svg)"
    r"|compare\.(json|csv|md|tex)"
    r"|seed--?\d+/(partition\.(json|png)|[^/]+/(point\.json|result\.json|ledger\.jsonl|\.lock"
    r"|checkpoint/(checkpoint\.json|(server|clients)-\w+\.safetensors)))"
)
"""Paths below a run folder that a run writes."""
_UNFINISHED = re.compile(r"(.*/)?\.(?P<name>[^/]+)\.\w{6,12}")
"""The temporary file beside one of them, left by a process that was killed."""


def clear(folder: Path) -> None:
    """Delete a run with all that it wrote, but not its lock; last what says that a run is here.

    Hidden files of others stay. Raises `FedvlmError`, and deletes nothing, if the folder holds no run of fedvlm's, or
    files that fedvlm did not write.
    """
    known = durable.read_json(folder / "experiment.json")
    if not (isinstance(known, dict) and "digest" in known and "fedvlm" in known.get("versions", {})):
        raise FedvlmError(f"{folder}/experiment.json was not written by fedvlm: name another folder with --out")
    there = sorted(_files(folder))
    others = [path for path in there if not _is_ours(path) and not path.rpartition("/")[2].startswith(".")]
    if others:
        raise FedvlmError(
            f"{folder} holds files that fedvlm did not write ({listed(others)}): nothing was deleted. Move them away, "
            "or name another folder with --out"
        )
    for path in sorted(there, key=lambda path: path == "experiment.json"):
        if _is_ours(path):
            (folder / path).unlink()
    for place, _, _ in os.walk(folder, topdown=False):
        if Path(place) != folder:
            with contextlib.suppress(OSError):  # what is not ours lies in it
                Path(place).rmdir()


def _files(folder: Path) -> Iterator[str]:
    """Everything that is no folder, links to folders included, relative to `folder` with forward slashes."""
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        for name in (*files, *links):
            path = (Path(place) / name).relative_to(folder).as_posix()
            if path != LOCK:
                yield path


def _is_ours(path: str) -> bool:
    if _WRITTEN.fullmatch(path):
        return True
    found = _UNFINISHED.fullmatch(path)
    return found is not None and _WRITTEN.fullmatch((found[1] or "") + found["name"]) is not None
