"""From folders to the chapters of a report, which depends on nothing but these folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedvlm import durable
from fedvlm.errors import FedvlmError, listed
from fedvlm.reports.page import run, study
from fedvlm.reports.page.content import Chapter


def chapters(folders: Sequence[Path], against: str = "", *, with_clients: bool = True) -> list[Chapter]:
    """The chapters of these folders; of a folder of folders, those of each. Raises `FedvlmError`.

    `with_clients`: whether clients, sites and places may be named.
    """
    found: list[Chapter] = []
    for folder in folders:
        if not folder.is_dir():
            raise FedvlmError(f"{folder} is no folder")
        one = _of(folder, against, with_clients=with_clients)
        found += [one] if one is not None else _below(folder, against, with_clients=with_clients)
    if not found:
        raise FedvlmError(f"{listed(map(str, folders))}: no run, comparison, sweep, audit or federation is here")
    return found


def _below(folder: Path, against: str, *, with_clients: bool) -> list[Chapter]:
    """The chapters of the folders in a folder. One that cannot be read says why; the others are told."""
    found = []
    for below in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        try:
            one = _of(below, against, with_clients=with_clients)
        except FedvlmError as error:
            why = str(error) if with_clients else "It cannot be read."
            one = Chapter(below.name, str(below) if with_clients else "", [], [why])
        found += [] if one is None else [one]
    return found


def _of(folder: Path, against: str, *, with_clients: bool) -> Chapter | None:
    """The chapter of a folder; None if nothing of ours is in it."""
    if (folder / "sweep.json").exists():
        return study.sweep(folder, against, with_clients=with_clients)
    if (folder / "audit.json").exists():
        return study.audit(folder, with_clients=with_clients)
    if (folder / "experiment.json").exists() and _is_run(folder):
        return run.chapter(folder, against, with_clients=with_clients)
    if (folder / "federation.toml").exists():
        if not (folder / "run" / "experiment.json").exists():
            raise FedvlmError(f"{folder} holds a federation that has not begun: fedvlm federation run {folder}")
        return run.chapter(folder / "run", against, with_clients=with_clients)
    return None


def _is_run(folder: Path) -> bool:
    saved = durable.read_json(folder / "experiment.json")
    return isinstance(saved, dict) and "experiment" in saved and "versions" in saved
