"""Running a plan: each run in a folder of its own that is taken up again, and our number for every cell."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedvlm import durable
from fedvlm.data import federate, load_source
from fedvlm.errors import FedvlmError
from fedvlm.published.plan import Job, Plan
from fedvlm.published.schema import Column
from fedvlm.results import failure, runner
from fedvlm.results.progress import Reporter
from fedvlm.results.table import Value, value


@dataclass(frozen=True)
class Ours:
    """Our number: an accuracy in 0..1 or a count, over so many seeds."""

    value: Value
    seeds: int


@dataclass
class Made:
    """What the jobs of a plan gave, by run and row."""

    points: dict[tuple[str, str], dict[int, dict[str, Any]]] = field(default_factory=dict)
    """A result by seed; the domain of each client is added under `domains`."""
    counts: dict[tuple[str, str], dict[str, int]] = field(default_factory=dict)
    failures: dict[tuple[str, str], str] = field(default_factory=dict)
    jobs: list[Job] = field(default_factory=list)
    """What was run in the end."""


def make(plan: Plan, out: Path, quiet: bool = True) -> Made:
    """Run what can be run; a run that fails is an entry in `failures`, the others go on."""
    made = Made()
    for job in plan.jobs:
        if job.ready:
            _play(job, out, made, quiet)
    return made


def _play(job: Job, out: Path, made: Made, quiet: bool) -> None:
    """Run all rows of a job together; if that fails each by itself, so that one does not take the others along."""
    try:
        (_count if job.counts else _run)(job, out, made, quiet)
    except FedvlmError as error:
        if len(job.rows) > 1:
            for row, words in job.rows.items():
                _play(replace(job, rows={row: words}), out, made, quiet)
            return
        made.failures[job.run, next(iter(job.rows))] = str(error)
    made.jobs.append(job)


def _run(job: Job, out: Path, made: Made, quiet: bool) -> None:
    chosen = job.experiment()
    folder = out / f"{job.run}-{chosen.digest()[:8]}"
    found = runner.run(chosen, folder, resume=True, reporter=Reporter(quiet=quiet))
    names = found.labels
    for row in (row for row in job.rows if names[row] in found.failed):
        made.failures[job.run, row] = failure.reasons(found.failed, names[row])
    for seed in chosen.seeds:
        saved = durable.read_json(folder / f"seed-{seed}" / "partition.json")
        domains = {c["name"]: c["domain"] for c in saved["clients"] if not c.get("late")}
        for row in (row for row in job.rows if names[row] in found.complete):
            made.points.setdefault((job.run, row), {})[seed] = found.points[names[row]][seed] | {"domains": domains}


def _count(job: Job, out: Path, made: Made, quiet: bool) -> None:
    """Training and own test images of all clients together."""
    chosen = job.experiment()
    seed = chosen.seeds[0]
    clients = federate(load_source(chosen.data, seed, is_kept=chosen.compute.disk_gib > 0), chosen, seed).clients
    for row in job.rows:
        made.counts[job.run, row] = {
            "train": sum(len(client.train) for client in clients),
            "test": sum(len(client.local) for client in clients),
        }


def ours(plan: Plan, made: Made, row: str, column: str) -> Ours | str | None:
    """Our number for a cell; what failed; None where nothing was run."""
    shape = plan.table.columns[column]
    keys = [(run, row) for run in shape.runs]
    failed = [made.failures[key] for key in keys if key in made.failures]
    if failed:
        return failed[0]
    if not keys or not all(key in made.points or key in made.counts for key in keys):
        return None
    count = plan.table.rows[row].count
    if count is not None:
        return Ours(Value(sum(made.counts[key][count] for key in keys), None), 1)
    seeds = list(made.points[keys[0]])
    try:
        means = [statistics.fmean(_accuracy(made.points[key][seed], shape) for key in keys) for seed in seeds]
    except LookupError as error:
        return f"the run has no {error.args[0]}"
    return Ours(value(means), len(seeds))


def _accuracy(point: Mapping[str, Any], column: Column) -> float:
    """The column's metric of one run with one seed, in the state that the method reports."""
    state = point["state"]
    if column.domain is None:
        metrics = point["final"][state]
        if column.metric not in metrics:
            raise LookupError(f"accuracy '{column.metric}'")
        return float(metrics[column.metric])
    members = [name for name, domain in point["domains"].items() if domain == column.domain]
    values = [point["clients"][state][name] for name in members]
    if not any(column.metric in metrics for metrics in values):
        raise LookupError(f"client of domain '{column.domain}' with accuracy '{column.metric}'")
    return statistics.fmean(metrics[column.metric] for metrics in values if column.metric in metrics)
