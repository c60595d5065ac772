"""Weights & Biases, offline: a folder for each series, which `wandb sync` sends when its owner says so."""

from __future__ import annotations

import hashlib
import shutil
import time
from pathlib import Path

import wandb

from fedvlm.reports.track.base import Scalars, Series

HINT = "wandb sync {folder}/offline-run-*"

_PAUSES_S = (0.2, 0.5, 1.0, 2.0, 4.0)


class _Log:
    def __init__(self, run: wandb.Run) -> None:
        self.run = run

    def round(self, step: int, time_s: float, values: Scalars) -> None:
        """The numbers of a round."""
        self.run.log(dict(values), step=step, commit=True)

    def end(self, final: Scalars | None) -> None:
        """Close the folder; results stand in its summary."""
        self.run.summary.update(dict(final or {}))
        self.run.finish(exit_code=1 if final is None else 0)


class WeightsAndBiases:
    """Writes offline runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()

    def begin(self, series: Series, time_s: float) -> _Log:
        """Open a series; its earlier folder is deleted."""
        own = run_id(series)
        for earlier in self.folder.glob(f"offline-run-*-{own}"):
            shutil.rmtree(earlier)
        return _Log(self._open(series, own))

    def _open(self, series: Series, own: str) -> wandb.Run:
        """An offline run. One that is begun anew may have to wait until wandb has let go of it."""
        settings = wandb.Settings(
            mode="offline", silent=True, console="off", save_code=False, disable_code=True, disable_git=True,
            x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True,
        )  # fmt: skip
        for pause in (*_PAUSES_S, None):
            try:
                # wandb makes the folder `wandb` in `dir` itself.
                return wandb.init(
                    project="fedvlm", dir=self.folder.parent, id=own, name=f"{series.method} seed {series.seed}",
                    group=f"{series.run} {series.digest[:8]}", job_type=series.method, config=dict(series.settings),
                    settings=settings, reinit="create_new",
                )  # fmt: skip
            except Exception as error:
                if "in use" not in str(error) or pause is None:
                    raise
                time.sleep(pause)
        raise RuntimeError("unreachable")


def run_id(series: Series) -> str:
    """The same for the same series of the same experiment, so that sending it twice makes one run."""
    return hashlib.sha256(f"{series.digest}/{series.path}".encode()).hexdigest()[:16]


def open_tracker(folder: Path) -> WeightsAndBiases:
    """The writer."""
    return WeightsAndBiases(folder)
