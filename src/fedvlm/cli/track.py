"""The verb that writes finished and growing runs for other programs: track."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedvlm.cli.app import app, print_hints, print_text
from fedvlm.errors import FedvlmError


@app.command()
def track(
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, of comparisons, or of sweeps.")
    ],
    to: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="tensorboard, mlflow or wandb; may be repeated.")
    ] = None,
) -> None:
    """Write runs for TensorBoard, MLflow or Weights & Biases (offline), below the run folder. Nothing is sent.

    Accuracies of rounds (0..1), bytes, seconds, settings, results; of all clients together. Finished methods that were
    written before stay as they are.
    """
    from fedvlm.reports import track as tracking
    from fedvlm.reports.track import follow, series

    if not to:
        raise FedvlmError(f"--to names the writer: {', '.join(tracking.NEEDS)}")
    names = tracking.check(to)
    for run in [run for folder in folders for run in series.runs_in(folder)]:
        for name in names:
            lines, rounds = follow.write(run, name)
            print_text(f"{tracking.place(run.path, name)}: {lines} methods and seeds, {rounds} rounds written")
        print_hints(run.path, names)
