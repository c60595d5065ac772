"""Writers for other programs: TensorBoard, MLflow, Weights & Biases (offline).

base.py         what a writer is: it begins a series, is told of rounds, ends
series.py       what a run folder says of a method with a seed, as settings and numbers
follow.py       reads run folders, finished or growing, and tells writers what is new
tensorboard.py, mlflow.py, wandb.py    one writer each

Writers read the run folder and nothing else, so that they can be started at any time, and cannot disturb a run.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module, metadata
from pathlib import Path

from fedvlm.errors import FedvlmError, listed, nearest
from fedvlm.reports.track.base import Tracker

FOLDER = "track"
"""Below the run folder; each writer has a folder of its own in it."""
NEEDS: dict[str, tuple[str, ...]] = {
    "tensorboard": ("tensorboard",),
    "mlflow": ("mlflow-skinny", "sqlalchemy", "alembic"),
    "wandb": ("wandb",),
}
"""Packages that a writer needs, by its name; the extra of the same name installs them."""


_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false"}
"""Environment of the packages, which they read when they are imported: nothing is sent to their makers."""


def check(names: Sequence[str]) -> list[str]:
    """The names without repetitions. Raises `FedvlmError` for an unknown writer, or one whose package is missing."""
    chosen = list(dict.fromkeys(names))
    for name in chosen:
        if name not in NEEDS:
            raise FedvlmError(f"there is no writer '{name}'{nearest(name, NEEDS)}; known: {', '.join(NEEDS)}")
        if lacking := [package for package in NEEDS[name] if not _installed(package)]:
            raise FedvlmError(f"{name} needs {listed(lacking)}: pip install 'fedvlm[{name}]'")
    return chosen


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def place(run: Path, name: str) -> Path:
    """The folder of a writer in a run folder."""
    return run / FOLDER / name


def open_tracker(name: str, folder: Path) -> Tracker:
    """The writer of this name, which writes into `folder`. Its package is imported here."""
    os.environ.update(_QUIET)
    opened: Tracker = import_module(f"fedvlm.reports.track.{name}").open_tracker(folder)
    return opened


def hint(name: str, folder: Path) -> str:
    """The command that shows what was written."""
    shown: str = import_module(f"fedvlm.reports.track.{name}").HINT
    return shown.format(folder=folder)
