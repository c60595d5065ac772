"""Basis of all studies: runs in separate folders, where a failure does not stop the others.

A study plans runs, carries out each (`run`, or `attempt` if others should go on after a failure), and makes tables of
their results. A repeated study continues: finished runs are not repeated.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from fedvlm.errors import FedvlmError, StorageError
from fedvlm.experiment import Experiment
from fedvlm.reports import table
from fedvlm.runs import failure, runner
from fedvlm.runs.failure import Failure
from fedvlm.runs.progress import Reporter
from fedvlm.runs.results import Results
from fedvlm.runs.runner import Beside


@dataclass(frozen=True)
class Plan:
    """One run of a study."""

    experiment: Experiment
    folder: Path


@dataclass(frozen=True)
class Options:
    """Options for carrying out runs. They do not change results."""

    resume: bool = True
    """Continue existing runs."""
    overwrite: bool = False
    """Replace existing runs."""
    processes: int = 1
    """Number of points that run at the same time."""
    reporter: Reporter = field(default_factory=lambda: Reporter(quiet=True))
    beside: Beside = nullcontext
    """What goes on beside each run, such as writers that follow it."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a plan."""

    results: Results
    """Results. Of a method that could not run at all, every seed has failed."""
    error: str = ""
    """The reason if no method has a result with every seed; else empty."""
    apart: bool = False
    """Whether the methods could not be run together and were run one by one."""


def single_plan(experiment: Experiment, folder: Path | None = None) -> Plan:
    """The plan of a single experiment; by default its folder is `runs/NAME-DIGEST`."""
    return Plan(experiment, folder or Path("runs") / f"{experiment.name}-{experiment.digest()[:8]}")


def run(plan: Plan, options: Options) -> Results:
    """Carry out a run and write its tables. Raises `FedvlmError` if no method has a result with every seed."""
    found = _run_plan(plan, options)
    if not found.complete:
        raise FedvlmError(_no_results(found))
    return table.write(found)


def attempt(plan: Plan, options: Options) -> Outcome:
    """Carry out a run; methods that fail, or cannot run with these settings, do not stop the others.

    Raises `StorageError`, after which no result could be stored.
    """
    error, apart = "", False
    try:
        found = _run_plan(plan, options)
    except StorageError:
        raise
    except FedvlmError as why:
        error, apart = str(why), len(plan.experiment.methods) > 1
        found = _one_by_one(plan, options) if apart else _refused(plan, why)
    if not found.complete:
        return Outcome(found, error or _no_results(found), apart)
    return Outcome(table.write(found), "", apart)


def _run_plan(plan: Plan, options: Options) -> Results:
    return runner.run(plan.experiment, plan.folder, resume=options.resume, overwrite=options.overwrite,
                      reporter=options.reporter, processes=options.processes, beside=options.beside)  # fmt: skip


def _one_by_one(plan: Plan, options: Options) -> Results:
    """Run every method separately in the same folder."""
    parts: list[Results] = []
    for name in plan.experiment.methods:
        alone = replace(plan, experiment=plan.experiment.model_copy(update={"methods": [name]}))
        try:
            parts.append(_run_plan(alone, options))
        except StorageError:
            raise
        except FedvlmError as why:
            parts.append(_refused(alone, why))
        options = replace(options, resume=True, overwrite=False)
    contract = "\n\n".join(part.contract for part in parts if part.contract)
    whole = Results(plan.experiment, plan.folder, {}, {}, contract, {})
    for part in parts:
        whole.points.update(part.points)
        whole.failed.update(part.failed)
        whole.labels.update(part.labels)
    return whole


def _refused(plan: Plan, why: FedvlmError) -> Results:
    """Results of one method that cannot run: every seed has failed."""
    (name,) = plan.experiment.methods
    failed = dict.fromkeys(plan.experiment.seeds, Failure(str(why), False))
    return Results(plan.experiment, plan.folder, {name: {}}, {name: failed}, "", {name: name})


def _no_results(found: Results) -> str:
    return "\n".join(["no method has a result with every seed:", *failure.failure_lines(found.failed)])
