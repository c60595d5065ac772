"""`fedvlm compare`: methods on the same seeds, compared with a reference method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedvlm import durable, methods
from fedvlm.errors import FedvlmError, listed, nearest
from fedvlm.experiment import Experiment
from fedvlm.reports import comparison
from fedvlm.reports.charts import accuracy, plot
from fedvlm.reports.columns import columns
from fedvlm.reports.comparison import Comparison, Target
from fedvlm.reports.text import FORMATS
from fedvlm.runs.results import Results
from fedvlm.studies import study
from fedvlm.studies.study import Options, Plan


def compare(
    experiment: Experiment,
    folder: Path,
    *,
    against: str | None = None,
    target: Target | None = None,
    options: Options | None = None,
) -> Comparison:
    """Run or continue a comparison in `folder`. `against`: by default zero-shot, or the first method without it.

    A method with a failed seed has text in the place of numbers. Raises `FedvlmError` as `study.run` does.
    """
    chosen = reference(experiment, against)
    return write(study.run(Plan(experiment, folder), options or Options()), chosen, target)


def write(done: Results, against: str, target: Target | None = None) -> Comparison:
    """Compare the methods of a run with `against`, and write the tables and the picture into its folder."""
    experiment, folder = done.experiment, done.folder
    found = comparison.compare(experiment.name, done.complete, done.labels[against], target)
    partitions = {seed: durable.read_json(folder / f"seed-{seed}" / "partition.json") for seed in experiment.seeds}
    notes = (
        *seed_differences(list(partitions.values()), experiment.participation),
        *budget_notes(experiment),
        *data_notes(partitions),
    )
    found = replace(found, notes=notes, failed=done.failures)
    for ending, text in FORMATS.items():
        durable.write_text(folder / f"compare.{ending}", text(found))
    durable.write_json(folder / "compare.json", found.as_json())
    if chart := accuracy.tradeoff(found, f"{found.name}: moved towards zero-shot"):
        plot.write(chart, folder, ("png", "svg"))
    return found


def reference(experiment: Experiment, against: str | None) -> str:
    """The reference method. Raises `FedvlmError` if it is not in the experiment."""
    names = experiment.methods
    chosen = against or ("zero_shot" if "zero_shot" in names else names[0])
    if chosen not in names:
        raise FedvlmError(f"--against '{chosen}' is not compared{nearest(chosen, names)}: {', '.join(names)}")
    return chosen


def seed_differences(partitions: Sequence[Mapping[str, Any]], participation: float) -> list[str]:
    """A note on what differs between seeds, from their saved partitions; the intervals cover these differences."""
    if len(partitions) < 2:
        return []
    facts: dict[str, list[Any]] = {
        "images": [saved["images"] for saved in partitions],
        "clients' training images": [[(c["name"], c["train"]) for c in saved["clients"]] for saved in partitions],
        "test images": [[saved["tests"], [c["local"] for c in saved["clients"]]] for saved in partitions],
    }
    changed = [name for name, each in facts.items() if any(one != each[0] for one in each)]
    if "images" in changed:
        changed, facts = ["images", "partition"], {}
    same = [name for name in facts if name not in changed]
    changed += ["who takes part in a round"] if participation < 1 else []
    ending = f"; they have the same {listed(same)}." if same else "."
    return [f"Seeds differ in {', '.join([*changed, 'first tensors'])} and the order of training{ending}"]


def budget_notes(experiment: Experiment) -> list[str]:
    """A warning if methods have different training budgets."""
    by_budget: dict[str, list[str]] = {}
    for name in experiment.methods:
        if budget := methods.build(name, experiment.method).budget:
            by_budget.setdefault(budget, []).append(name)
    if len(by_budget) < 2:
        return []
    texts = "; ".join(f"{budget}: {listed(names, 40)}" for budget, names in by_budget.items())
    return [f"Clients do not train alike (epochs of a round x images of a batch): {texts}."]


def data_notes(partitions: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """Notes on the data, with the seeds that have them."""
    by_note: dict[str, list[int]] = {}
    for seed, saved in partitions.items():
        for note in saved["notes"]:
            by_note.setdefault(note, []).append(seed)
    return [f"{'seed' if len(those) == 1 else 'seeds'} {', '.join(map(str, those))}: {note}"
            for note, those in by_note.items()]  # fmt: skip


def parse_target(words: str) -> Target | None:
    """The target accuracy of `local=80`; None for an empty string. Raises `FedvlmError` for other text."""
    if not words:
        return None
    metric, _, value = words.partition("=")
    try:
        per_cent = float(value)
    except ValueError:
        per_cent = -1.0
    known = [metric.name for metric in columns("core")]
    if metric not in known or not 0 < per_cent <= 100:
        raise FedvlmError(f"--reach '{words}' is not an accuracy in per cent, such as local=80 ({', '.join(known)})")
    return Target(metric, per_cent / 100)
