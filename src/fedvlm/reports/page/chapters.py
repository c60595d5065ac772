"""From folders to the chapters of a report, which depends on nothing but these folders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from fedvlm import durable
from fedvlm.errors import FedvlmError, listed
from fedvlm.reports.page import run, study
from fedvlm.reports.page.content import Chapter


def chapters(folders: Sequence[Path], against: str = "", *, with_clients: bool = True) -> list[Chapter]:
    """The chapters of these folders. Raises `FedvlmError` for a folder without anything to report."""
    found = [one for folder in folders for one in _of(folder, against, with_clients=with_clients)]
    if not found:
        raise FedvlmError(f"{listed(map(str, folders))}: no run, comparison, sweep, audit or federation is here")
    return found


def _of(folder: Path, against: str, *, with_clients: bool, inside: bool = False) -> Iterator[Chapter]:
    """The chapters of a folder; of a folder of folders, those of each."""
    if not folder.is_dir():
        raise FedvlmError(f"{folder} is no folder")
    if (folder / "sweep.json").exists():
        yield study.sweep(folder)
    elif (folder / "audit.json").exists():
        yield study.audit(folder)
    elif (folder / "experiment.json").exists() and _is_run(folder):
        yield run.chapter(folder, against, with_clients=with_clients)
    elif (folder / "federation.toml").exists():
        if not (folder / "run" / "experiment.json").exists():
            raise FedvlmError(f"{folder} holds a federation that has not begun: fedvlm federation run {folder}")
        yield run.chapter(folder / "run", against, with_clients=with_clients)
    elif not inside:
        for below in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
            yield from _of(below, against, with_clients=with_clients, inside=True)


def _is_run(folder: Path) -> bool:
    saved = durable.read_json(folder / "experiment.json")
    return isinstance(saved, dict) and "experiment" in saved and "versions" in saved
