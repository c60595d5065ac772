"""The files in a run folder that fedvlm has written, so that `--overwrite` deletes these and no others."""

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
    r"|compare\.(json|csv|md|tex)|report\.html"
    r"|track/(tensorboard|mlflow|wandb)/.+"
    r"|seed--?\d+/(partition\.(json|png)|[^/]+/(point\.json|result\.json|ledger\.jsonl|\.lock"
    r"|checkpoint/(checkpoint\.json|(server|clients)-\w+\.safetensors)))"
)
"""Paths below a run folder that fedvlm writes."""
_UNFINISHED = re.compile(r"(.*/)?\.(?P<name>[^/]+)\.\w{6,12}")
"""Temporary files of these paths, left by a killed process."""


def check(folder: Path) -> list[str]:
    """The files of a run that `clear` would delete; an empty list if there is no run.

    Raises `FedvlmError` if the folder holds no run of fedvlm, or files that fedvlm did not write.
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
    """Delete the files of a run except its lock; `experiment.json`, which marks the folder as a run, is deleted last.

    Hidden files of others stay, with the folders that hold them. If `check` raises an error, nothing is deleted.
    """
    own = check(folder)
    for path in sorted(own, key=lambda path: path == "experiment.json"):
        (folder / path).unlink()
    places = {place for path in own for place in Path(path).parents if place != Path()}
    for place in sorted(places, key=lambda place: -len(place.parts)):
        with contextlib.suppress(OSError):  # the folder holds files of others
            (folder / place).rmdir()


def _files(folder: Path) -> Iterator[str]:
    """All files and links below `folder`, as relative paths with forward slashes."""
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
