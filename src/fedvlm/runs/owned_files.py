"""Which files of a run folder are fedvlm's own, so that starting again deletes these and nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

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


def check(folder: Path) -> list[str]:
    """The files of a run that `clear` would delete; none where there is no run.

    Raises `FedvlmError` if what is there is no run of fedvlm's, or holds files that fedvlm did not write.
    """
    file = folder / "experiment.json"
    if not file.exists():
        return []
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FedvlmError(
            f"{file} cannot be read ({error}): delete {folder} yourself, or name another with --out"
        ) from error
    versions = known.get("versions") if isinstance(known, dict) else None
    if not (isinstance(versions, dict) and "fedvlm" in versions and "digest" in known):
        raise FedvlmError(f"{file} was not written by fedvlm: name another folder with --out")
    there = sorted(_files(folder))
    others = [path for path in there if not _is_ours(path) and not path.rpartition("/")[2].startswith(".")]
    if others:
        raise FedvlmError(
            f"{folder} holds files that fedvlm did not write ({listed(others)}): nothing was deleted. Move them away, "
            "or name another folder with --out"
        )
    return [path for path in there if _is_ours(path)]


def clear(folder: Path) -> None:
    """Delete a run with all that it wrote, but not its lock; last what says that a run is here.

    Hidden files of others stay, and folders that they lie in. Raises what `check` does, and then deletes nothing.
    """
    own = check(folder)
    for path in sorted(own, key=lambda path: path == "experiment.json"):
        (folder / path).unlink()
    places = {place for path in own for place in Path(path).parents if place != Path()}
    for place in sorted(places, key=lambda place: -len(place.parts)):
        with contextlib.suppress(OSError):  # what is not ours lies in it
            (folder / place).rmdir()


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
