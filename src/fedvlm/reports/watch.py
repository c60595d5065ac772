"""How far a run is: what its folder says while it is written, by this process or any other."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from rich.table import Table

from fedvlm import durable, methods
from fedvlm.errors import FedvlmError
from fedvlm.experiment import Experiment
from fedvlm.federation.records import RoundRecord
from fedvlm.reports import grid
from fedvlm.runs.folder import Point, RunFolder
from fedvlm.runs.owned_files import LOCK

SHOWN = ("local", "base", "novel")


@dataclass(frozen=True)
class Standing:
    """How far one method with one seed is."""

    method: str
    seed: int
    state: str
    """`waits`, `begun` or `done`."""
    round: int
    rounds: int
    """Of all; 0 where nothing is trained."""
    loss: float | None
    """Mean over the last round's steps, in nats."""
    metrics: dict[str, float]
    """Of the last evaluated round, in 0..1."""
    seconds: float
    """Training and evaluation so far."""


@dataclass(frozen=True)
class Snapshot:
    """A run folder at one moment."""

    name: str
    points: list[Standing]
    running: bool
    """Whether a process is writing the folder."""

    @property
    def finished(self) -> bool:
        """Whether all points are done."""
        return all(point.state == "done" for point in self.points)

    @property
    def left(self) -> float | None:
        """Seconds that the rest takes at the pace so far, one point after another; None before the first round."""
        played = [(point.round / max(1, point.rounds), point.seconds) for point in self.points if point.round]
        if not played:
            return None
        share, seconds = (sum(each) for each in zip(*played, strict=True))
        return seconds / share * len(self.points) - seconds if share else None


def snapshot(folder: Path) -> Snapshot:
    """What a run folder says now. Raises `FedvlmError` if it is none."""
    run = RunFolder(folder)
    chosen, _ = run.begun()
    points = []
    for seed in chosen.seeds:
        for label, name in zip(labels(folder, chosen), chosen.methods, strict=True):
            method = methods.build(name, chosen.method)
            last = method.rounds(chosen.rounds) + method.local_rounds if method.trains else 0
            points.append(_standing(run, label, seed, last))
    return Snapshot(chosen.name, points, durable.is_locked(folder / LOCK))


def labels(folder: Path, chosen: Experiment) -> list[str]:
    """Methods by the names of their folders, which tell built-in faults, in the order of the experiment."""
    file = folder / "contract.json"
    named = [line["method"] for line in durable.read_json(file)] if file.exists() else []
    return named if len(named) == len(chosen.methods) else list(chosen.methods)


def _standing(run: RunFolder, label: str, seed: int, last: int) -> Standing:
    point = run.point(seed, label)
    found = records(point)
    losses = [loss for visit in found[-1].visits for loss in visit.losses] if found else []
    means = next((next(iter(record.means.values())) for record in reversed(found) if record.means), {})
    done = (point.folder / "result.json").exists()
    return Standing(
        label, seed, "done" if done else "begun" if found else "waits", found[-1].round if found else 0, last,
        fmean(losses) if losses else None, {name: means[name] for name in SHOWN if name in means},
        sum(record.train_s + record.evaluate_s for record in found),
    )  # fmt: skip


def records(point: Point) -> list[RoundRecord]:
    """The rounds of a ledger to which another process may be adding a line just now. Raises `FedvlmError`."""
    for _ in range(20):
        try:
            return point.records()
        except ValueError:
            time.sleep(0.05)
    raise FedvlmError(f"{point.ledger} has a line that is no record: was the disk full, or the file changed?")


def as_json(found: Snapshot) -> dict[str, object]:
    """Plain values; `left_s` is null before the first round."""
    return asdict(found) | {"finished": found.finished, "left_s": found.left}


def table(found: Snapshot) -> Table:
    """The points of a snapshot: one row each."""
    heads = ["method", "seed", "state", "round", "loss", *(name.capitalize() for name in SHOWN), "s"]
    rows = [
        [one.method, str(one.seed), one.state, f"{one.round}/{one.rounds}" if one.rounds else "-",
         "-" if one.loss is None else f"{one.loss:.3f}",
         *(f"{one.metrics[name] * 100:.1f}" if name in one.metrics else "-" for name in SHOWN), f"{one.seconds:.0f}"]
        for one in found.points
    ]  # fmt: skip
    return grid.terminal(heads, rows, f"{found.name}: {said(found)}", left=(0, 2))


def said(found: Snapshot) -> str:
    """The state of a run in a few words."""
    done = sum(one.state == "done" for one in found.points)
    if found.finished:
        return f"finished, {done} of {done}"
    if not found.running:
        return f"{done} of {len(found.points)} done; nobody is at it: --resume continues"
    left = "" if found.left is None else f", about {found.left / 60:.0f} min of computing left"
    return f"{done} of {len(found.points)} done{left}"
