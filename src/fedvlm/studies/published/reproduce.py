"""Carry out a plan: each run in its own folder, which is resumed, and our number for every cell."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field, replace
from pathlib import Path

from fedvlm import durable
from fedvlm.data import federate
from fedvlm.errors import FedvlmError
from fedvlm.runs import failure
from fedvlm.runs.result import PointResult
from fedvlm.runs.results import Value, mean_and_std
from fedvlm.studies import study
from fedvlm.studies.published.plan import Job, ReproductionPlan
from fedvlm.studies.published.schema import PublishedColumn
from fedvlm.studies.study import Options


@dataclass(frozen=True)
class OurNumber:
    """Our number for a cell: an accuracy in 0..1 or a count, with the number of seeds."""

    value: Value
    seeds: int


@dataclass
class JobResults:
    """Results of the jobs of a plan, by run and row."""

    points: dict[tuple[str, str], dict[int, PointResult]] = field(default_factory=dict)
    """Points by seed."""
    domains: dict[tuple[str, str], dict[int, dict[str, str]]] = field(default_factory=dict)
    """Domain of each client, by seed."""
    counts: dict[tuple[str, str], dict[str, int]] = field(default_factory=dict)
    failures: dict[tuple[str, str], str] = field(default_factory=dict)
    jobs: list[Job] = field(default_factory=list)
    """The jobs as they were carried out."""


def run_jobs(plan: ReproductionPlan, out: Path, options: Options | None = None) -> JobResults:
    """Carry out all possible jobs; a failed job is an entry in `failures` and does not stop the others."""
    results = JobResults()
    for job in plan.jobs:
        if job.ready:
            results.jobs += _count(job, results) if job.counts else _run(job, out, results, options or Options())
    return results


def _run(job: Job, out: Path, results: JobResults, options: Options) -> list[Job]:
    """Run a job; returns it, or a job for each row if the rows could not run together."""
    chosen = job.experiment()
    folder = out / f"{job.run}-{chosen.digest()[:8]}"
    outcome = study.attempt(study.Plan(chosen, folder), options)
    found = outcome.results
    for row in job.rows:
        label = found.labels[row]
        if label in found.failed:
            results.failures[job.run, row] = failure.reason(found.failed, label)
        else:
            results.points[job.run, row] = found.points[label]
            results.domains[job.run, row] = {seed: _domains(folder, seed) for seed in chosen.seeds}
    return [replace(job, rows={row: words}) for row, words in job.rows.items()] if outcome.apart else [job]


def _domains(folder: Path, seed: int) -> dict[str, str]:
    """The domain of each client that takes part in rounds, from the saved partition."""
    saved = durable.read_json(folder / f"seed-{seed}" / "partition.json")
    return {client["name"]: client["domain"] for client in saved["clients"] if not client.get("late")}


def _count(job: Job, results: JobResults) -> list[Job]:
    """Count training images and local test images of all clients together."""
    try:
        chosen = job.experiment()
        seed = chosen.seeds[0]
        clients = federate(chosen.load_source(seed), chosen, seed).clients
    except FedvlmError as error:
        results.failures |= {(job.run, row): str(error) for row in job.rows}
        return [job]
    counted = {"train": sum(len(client.train) for client in clients),
               "test": sum(len(client.local) for client in clients)}  # fmt: skip
    results.counts |= {(job.run, row): counted for row in job.rows}
    return [job]


def our_number(plan: ReproductionPlan, results: JobResults, row: str, column: str) -> OurNumber | str | None:
    """Our number for a cell, or the text of a failure, or None if nothing was run."""
    shape = plan.table.columns[column]
    keys = [(run, row) for run in shape.runs]
    failed = [results.failures[key] for key in keys if key in results.failures]
    if failed:
        return failed[0]
    if not keys or not all(key in results.points or key in results.counts for key in keys):
        return None
    count = plan.table.rows[row].count
    if count is not None:
        return OurNumber(Value(sum(results.counts[key][count] for key in keys), None), 1)
    seeds = list(results.points[keys[0]])
    try:
        means = [statistics.fmean(_accuracy(results, key, seed, shape) for key in keys) for seed in seeds]
    except LookupError as error:
        return f"the run has no {error.args[0]}"
    return OurNumber(mean_and_std(means), len(seeds))


def _accuracy(results: JobResults, key: tuple[str, str], seed: int, column: PublishedColumn) -> float:
    """The column's metric of one run with one seed, in the reported state of the method."""
    point = results.points[key][seed]
    if column.domain is None:
        if column.metric not in point.reported:
            raise LookupError(f"accuracy '{column.metric}'")
        return point.reported[column.metric]
    members = [name for name, domain in results.domains[key][seed].items() if domain == column.domain]
    values = [point.clients[point.state][name] for name in members]
    if not any(column.metric in metrics for metrics in values):
        raise LookupError(f"client of domain '{column.domain}' with accuracy '{column.metric}'")
    return statistics.fmean(metrics[column.metric] for metrics in values if column.metric in metrics)
