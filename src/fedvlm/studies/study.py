"""What all studies have in common: runs in folders of their own, where one failure costs no other.

A study plans runs, carries each out (`run`, or `attempt` where the others are to go on), and makes tables of their
results. Repeated, it goes on where it was: what is finished is not run again.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from fedvlm.errors import FedvlmError, StorageError
from fedvlm.experiment import Experiment
from fedvlm.reports import table
from fedvlm.runs import failure, runner
from fedvlm.runs.failure import Failure
from fedvlm.runs.progress import Reporter
from fedvlm.runs.results import Results


@dataclass(frozen=True)
class Plan:
    """One run of a study."""

    experiment: Experiment
    folder: Path


@dataclass(frozen=True)
class Options:
    """How the runs of a study are carried out; nothing here changes a result."""

    resume: bool = True
    """Go on with runs that are there."""
    overwrite: bool = False
    """Replace runs that are there."""
    processes: int = 1
    """Number of points that run at the same time."""
    reporter: Reporter = field(default_factory=lambda: Reporter(quiet=True))


@dataclass(frozen=True)
class Outcome:
    """What became of a plan."""

    results: Results
    """Of methods that could not be run at all, every seed has failed."""
    error: str = ""
    """Why no method has a result with every seed."""
    apart: bool = False
    """Whether the methods could not be run together and were run one by one."""


def single_plan(experiment: Experiment, folder: Path | None = None) -> Plan:
    """An experiment by itself; its folder is named after it by default."""
    return Plan(experiment, folder or Path("runs") / f"{experiment.name}-{experiment.digest()[:8]}")


def run(plan: Plan, options: Options) -> Results:
    """Carry out a run and write its tables. Raises `FedvlmError` if no method has a result with every seed."""
    found = _run_plan(plan, options)
    if not found.complete:
        raise FedvlmError(_no_results(found))
    return table.write(found)


def attempt(plan: Plan, options: Options) -> Outcome:
    """Carry out a run whatever its methods do: those that cannot be run with these settings cost no other.

    Raises `StorageError`, after which nothing more could be kept.
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
                      reporter=options.reporter, processes=options.processes)  # fmt: skip


def _one_by_one(plan: Plan, options: Options) -> Results:
    """Every method as a run of its own in the same folder."""
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
    """The results of one method that cannot be run."""
    (name,) = plan.experiment.methods
    failed = dict.fromkeys(plan.experiment.seeds, Failure(str(why), False))
    return Results(plan.experiment, plan.folder, {name: {}}, {name: failed}, "", {name: name})


def _no_results(found: Results) -> str:
    return "\n".join(["no method has a result with every seed:", *failure.failure_lines(found.failed)])
