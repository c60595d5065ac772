"""`fedvlm compare`: play what is missing of a comparison, then write its tables and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedvlm import durable, methods
from fedvlm.errors import FedvlmError, listed, nearest
from fedvlm.experiment import Experiment
from fedvlm.results import comparison, failure, figure
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

    A method of which a seed failed has words in the place of numbers. Raises `FedvlmError` for what `run` refuses.
    """
    chosen = reference(experiment, against)
    done = run(experiment, folder, resume=True, overwrite=overwrite, reporter=reporter, processes=processes)
    found = comparison.compare(experiment.name, done.complete, done.labels[chosen], target)
    partitions = {seed: durable.read_json(folder / f"seed-{seed}" / "partition.json") for seed in experiment.seeds}
    notes = *drawn(list(partitions.values()), experiment.participation), *budgets(experiment), *told(partitions)
    found = replace(found, notes=notes, failed=failure.in_words(done.failed, len(experiment.seeds)))
    for ending, text in FORMATS.items():
        durable.write_text(folder / f"compare.{ending}", text(found))
    durable.write_json(folder / "compare.json", found.as_json())
    figure.tradeoff(found, folder)
    return found


def reference(experiment: Experiment, against: str | None) -> str:
    """The method that the others are compared with. Raises `FedvlmError` if it is not among them."""
    names = experiment.methods
    chosen = against or ("zero_shot" if "zero_shot" in names else names[0])
    if chosen not in names:
        raise FedvlmError(f"--against '{chosen}' is not compared{nearest(chosen, names)}: {', '.join(names)}")
    return chosen


def drawn(partitions: Sequence[Mapping[str, Any]], participation: float) -> list[str]:
    """What differs between seeds, which is what the intervals are about, from their saved partitions."""
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


def budgets(experiment: Experiment) -> list[str]:
    """A warning where methods do not train alike."""
    by_budget: dict[str, list[str]] = {}
    for name in experiment.methods:
        if budget := methods.build(name, experiment.method).budget:
            by_budget.setdefault(budget, []).append(name)
    if len(by_budget) < 2:
        return []
    told = "; ".join(f"{budget}: {listed(names, 40)}" for budget, names in by_budget.items())
    return [f"Clients do not train alike (epochs of a round x images of a batch): {told}."]


def told(partitions: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """What the data of each seed could not satisfy."""
    by_note: dict[str, list[int]] = {}
    for seed, saved in partitions.items():
        for note in saved["notes"]:
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
