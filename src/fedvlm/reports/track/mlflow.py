"""MLflow: one SQLite file, in which every series is a run. No server is asked, and no telemetry sent."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

from fedvlm.reports.track.base import Scalars, Series

FILE = "mlflow.db"
HINT = "mlflow ui --backend-store-uri sqlite:///{folder}/" + FILE
SERIES = "fedvlm.series"
"""Tag that names a series."""
_NOT_ALLOWED = re.compile(r"[^\w\-. :/]")
"""What MLflow takes in no name."""
_MOST = 100
"""Parameters of one request."""


class _Log:
    def __init__(self, client: MlflowClient, run: str, time_s: float) -> None:
        self.client, self.run, self.step, self.time_s = client, run, 0, time_s

    def round(self, step: int, time_s: float, values: Scalars) -> None:
        """The numbers of a round."""
        self.step, self.time_s = step, time_s
        at = int(time_s * 1000)
        self.client.log_batch(self.run, metrics=[Metric(key, value, at, step) for key, value in values.items()])

    def end(self, final: Scalars | None) -> None:
        """Close the run; results stand at the last round."""
        if final is not None:
            self.round(self.step, self.time_s, final)
        self.client.set_terminated(self.run, "FINISHED" if final is not None else "KILLED", int(self.time_s * 1000))


class MLflow:
    """Writes runs of one experiment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self._create(self.folder / FILE)
        self.client = MlflowClient(tracking_uri=f"sqlite:///{self.folder / FILE}")

    @staticmethod
    def _create(file: Path) -> None:
        """Make the database under another name: killed in the middle of its migrations, it could not be used again."""
        if file.exists():
            return
        new = file.with_name("new.db")
        for left in file.parent.glob("new.db*"):
            left.unlink()
        MlflowClient(tracking_uri=f"sqlite:///{new}").search_experiments(max_results=1)
        new.rename(file)

    def begin(self, series: Series, time_s: float) -> _Log:
        """Open a run; an earlier one of the same series is deleted."""
        experiment = self._experiment(f"{series.run} {series.digest[:8]}")
        for earlier in self.client.search_runs([experiment], max_results=10_000):
            if earlier.data.tags.get(SERIES) == series.path:
                self.client.delete_run(earlier.info.run_id)
        tags = {SERIES: series.path, "fedvlm.digest": series.digest}
        name = f"{series.method} seed {series.seed}"
        run = self.client.create_run(experiment, int(time_s * 1000), tags, name).info.run_id
        settings = [Param(_NOT_ALLOWED.sub("_", key), str(value)) for key, value in series.settings.items()]
        for first in range(0, len(settings), _MOST):
            self.client.log_batch(run, params=settings[first : first + _MOST])
        return _Log(self.client, run, time_s)

    def _experiment(self, name: str) -> str:
        there = self.client.get_experiment_by_name(name)
        if there is not None:
            return str(there.experiment_id)
        artifacts = (self.folder / "artifacts").as_uri()
        return str(self.client.create_experiment(name, artifact_location=artifacts))


def open_tracker(folder: Path) -> MLflow:
    """The writer."""
    return MLflow(folder)
