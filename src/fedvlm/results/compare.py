"""`fedvlm compare`: play what is missing of a comparison, then write its tables and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fedvlm import durable, methods
from fedvlm.errors import FedvlmError, listed
from fedvlm.experiment import Experiment, ScenesData
from fedvlm.results import comparison, figure
from fedvlm.results.comparison import Comparison, Target
from fedvlm.results.comparison_text import FORMATS
from fedvlm.results.progress import Reporter
from fedvlm.results.runner import run

METRICS = ("local", "base", "novel", "hm")


def compare(
    experiment: Experiment,
    folder: Path,
    *,
    against: str | None = None,
    target: Target | None = None,
    processes: int = 1,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> Comparison:
    """The comparison in `folder`, taken up where it stands. `against`: zero-shot, or the first method without it.

    Raises `FedvlmError` for what `run` refuses and for points that failed; those that are finished stay.
    """
    reference = against or ("zero_shot" if "zero_shot" in experiment.methods else experiment.methods[0])
    if reference not in experiment.methods:
        comparison.compare(experiment.name, {name: {} for name in experiment.methods}, reference)
    done = run(experiment, folder, resume=True, overwrite=overwrite, reporter=reporter, processes=processes)
    # With faults a method is called otherwise.
    reference = dict(zip(experiment.methods, done.points, strict=True))[reference]
    found = comparison.compare(experiment.name, done.points, reference, target)
    found = replace(found, notes=(drawn(experiment), *budgets(experiment), *_told(folder, experiment.seeds)))
    for ending, text in FORMATS.items():
        durable.write_text(folder / f"compare.{ending}", text(found))
    durable.write_json(folder / "compare.json", found.as_json())
    figure.tradeoff(found, folder)
    return found


def drawn(experiment: Experiment) -> str:
    """What differs between seeds, which is what the intervals are about."""
    data, partition = experiment.data, experiment.partition
    fixed = partition.order == "paper" or partition.kind == "natural"
    fixed |= partition.kind == "domain" and partition.alpha is None
    what = ["classes and images"] if isinstance(data, ScenesData) else ["shots"] if data.shots is not None else []
    what += [] if fixed else ["which client holds what"]
    return f"A seed draws {', '.join([*what, 'the first tensors'])} and the order of training" + (
        "; the partition is the same for all seeds." if fixed else "."
    )


def budgets(experiment: Experiment) -> list[str]:
    """A warning where methods do not train equally long."""
    by_budget: dict[str, list[str]] = {}
    for name in experiment.methods:
        if budget := methods.build(name, experiment.method).budget:
            by_budget.setdefault(budget, []).append(name)
    if len(by_budget) < 2:
        return []
    told = "; ".join(f"{budget}: {listed(names, 40)}" for budget, names in by_budget.items())
    return [f"Methods do not train equally long (epochs of a visit x images of a batch): {told}."]


def _told(folder: Path, seeds: Sequence[int]) -> list[str]:
    """What the data of each seed could not satisfy."""
    by_note: dict[str, list[int]] = {}
    for seed in seeds:
        for note in durable.read_json(folder / f"seed-{seed}" / "partition.json")["notes"]:
            by_note.setdefault(note, []).append(seed)
    return [f"{'seed' if len(those) == 1 else 'seeds'} {', '.join(map(str, those))}: {note}"
            for note, those in by_note.items()]  # fmt: skip


def target(words: str) -> Target | None:
    """`local=80` as an accuracy to be reached; None for no words."""
    if not words:
        return None
    metric, _, value = words.partition("=")
    try:
        per_cent = float(value)
    except ValueError:
        per_cent = -1.0
    if metric not in METRICS or not 0 < per_cent <= 100:
        raise FedvlmError(f"--reach '{words}' is not an accuracy in per cent, such as local=80 ({', '.join(METRICS)})")
    return Target(metric, per_cent / 100)
