"""Ask a model what is known of CLIP: the table of facts, published and here.

    python recipes/calibrate.py --seeds 1,2,3,4,5 --out calibration
    python recipes/calibrate.py --model DIR --seeds 1,2,3,4,5 --out calibration-of-dir

A small model may stand in for CLIP in a comparison of methods only as far as it shows what is known of CLIP. Each fact
is a number of each seed (mostly a difference of two accuracies), with its sign and its size in the publications; the
table says whether the sign is the same here. The runs are kept in the folder and taken up where they stand.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import card

from fedvlm import durable, experiment, overrides, presets
from fedvlm.reports import grid
from fedvlm.reports.statistics import Estimate, estimate
from fedvlm.runs.result import PointResult
from fedvlm.studies import study, sweep
from fedvlm.studies.study import Options

PRESETS = ("calibration_common", "calibration_styles", "calibration_shots", "calibration_templates", "common_style",
           "quickstart")  # fmt: skip
COMMON, STYLES, SHOTS, TEMPLATES = PRESETS[:4]
METHODS = {"common_style": ["zero_shot", "promptfl"], "quickstart": ["zero_shot", "coop_for_local"]}
"""Of the presets of a federation, these methods only."""

CONDITION = {"sketch": "drawn", "neon": "dark", "blueprint": "bluish", "watercolour": "drawn", "night": "dark",
             "halftone": "colorless", "mosaic": "pixelated", "fog": "misty", "chalk": "drawn",
             "glitch": "torn"}  # fmt: skip
"""The condition, among those that captions name, that is next to each style."""

NOVEL_ORDER = {"local_mma": 76.80, "maple": 75.14, "zero_shot": 74.22, "kgcoop": 73.60, "cocoop": 71.69, "coop": 63.22}
"""Published accuracies on new classes (base-to-new protocol, ViT-B/16, 16 shots, mean of 11 data sets)."""


class Runs:
    """Finished points: by preset, value of a sweep, method and seed."""

    def __init__(self) -> None:
        self.points: dict[tuple[str, str, str], dict[int, PointResult]] = {}

    def values(self, preset: str, method: str, metric: str, value: str = "") -> list[float]:
        """A metric by seed, in per cent, in the reported state."""
        return [100 * point.reported[metric] for point in self.points[preset, value, method].values()]

    def less(self, preset: str, method: str, other: str, metric: str, value: str = "") -> list[float]:
        """Differences of two methods by seed, in points."""
        both = (self.values(preset, name, metric, value) for name in (method, other))
        return [a - b for a, b in zip(*both, strict=True)]


Measure = Callable[[Runs], list[float]]


@dataclass(frozen=True)
class Fact:
    """Something known of CLIP: a sentence, the published number, how it is measured here, and when it holds."""

    name: str
    published: str
    measure: Measure
    holds: Callable[[float], bool]
    """Whether the mean has the published sign (or what stands for it)."""
    source: str
    wanted: str = ""
    """A size that is asked for beyond the sign, such as `>= 8`."""
    sized: Callable[[float], bool] = lambda mean: True


def positive(mean: float) -> bool:
    """Above zero."""
    return mean > 0


def negative(mean: float) -> bool:
    """Below zero."""
    return mean < 0


def minus(method: str, metric: str, other: str = "zero_shot", preset: str = COMMON) -> Measure:
    """The method's accuracy less the other's."""
    return lambda runs: runs.less(preset, method, other, metric)


def more_shots(runs: Runs) -> list[float]:
    """Base of CoOp with 16 images per class, less with 1."""
    few, many = (runs.values(SHOTS, "coop", "base", value) for value in ("1", "16"))
    return [b - a for a, b in zip(few, many, strict=True)]


def more_steps(runs: Runs) -> list[float]:
    """Base of CoOp after all rounds, less after the first evaluated ones (a tenth of them)."""
    curves = [dict(point.curve["base"]) for point in runs.points[COMMON, "", "coop"].values()]
    return [100 * (curve[max(curve)] - curve[min(curve)]) for curve in curves]


def naming_condition(runs: Runs) -> list[float]:
    """Base and Novel of zero-shot with the style's condition in the template, less without, mean over styles."""
    gains = [
        runs.less(TEMPLATES, name, "zero_shot", metric, style)
        for style, name in CONDITION.items() for metric in ("base", "novel")
    ]  # fmt: skip
    return [sum(each) / len(gains) for each in zip(*gains, strict=True)]


def order_of_novel(runs: Runs) -> list[float]:
    """Per cent of all pairs of methods that differ by more than a point in the publications and are ordered alike."""
    pairs = [(a, b) for a, b in combinations(NOVEL_ORDER, 2) if NOVEL_ORDER[a] - NOVEL_ORDER[b] > 1]
    each = [runs.less(COMMON, a, b, "novel") for a, b in pairs]
    return [100 * sum(gap > 0 for gap in seed) / len(seed) for seed in zip(*each, strict=True)]


COOP, COCOOP = "CoOp, Zhou et al., IJCV 2022", "CoCoOp, Zhou et al., CVPR 2022"
KGCOOP, MAPLE, MMA = "Yao et al., CVPR 2023", "Khattak et al., CVPR 2023", "Yang et al., CVPR 2024"
FACTS = (
    Fact("CoOp lifts Base", "+13.4", minus("coop", "base"), positive, COCOOP, ">= 8", lambda mean: mean >= 8),
    Fact("CoOp lowers Novel", "-11.0", minus("coop", "novel"), negative, COCOOP),
    Fact("CoCoOp lifts Base", "+11.1", minus("cocoop", "base"), positive, COCOOP),
    Fact("CoCoOp's Novel is above CoOp's", "+8.5", minus("cocoop", "novel", "coop"), positive, COCOOP),
    Fact("KgCoOp lifts Base", "+11.4", minus("kgcoop", "base"), positive, KGCOOP),
    Fact("KgCoOp's Novel is above CoOp's", "+10.4", minus("kgcoop", "novel", "coop"), positive, KGCOOP),
    Fact("MaPLe lifts Base", "+12.9", minus("maple", "base"), positive, MAPLE),
    Fact("MaPLe's Novel is above CoOp's", "+11.9", minus("maple", "novel", "coop"), positive, MAPLE),
    Fact("MMA lifts Base", "+13.9", minus("local_mma", "base"), positive, MMA, ">= 10", lambda mean: mean >= 10),
    Fact("MMA does not lower Novel", "+2.6", minus("local_mma", "novel"), lambda mean: mean >= 0, MMA),
    Fact("order of six methods in Novel, pairs (%)", "100", order_of_novel, lambda mean: mean > 50, MMA),
    Fact("Tip-Adapter lifts Base without training", "about +10", minus("tip_adapter", "base"), positive,
         "Zhang et al., ECCV 2022"),
    Fact("CoOp's Base rises with images (1 to 16 a class)", "about +14", more_shots, positive, COOP),
    Fact("CoOp's Base rises with steps", "rises", more_steps, positive, COOP),
    Fact("CoOp from random tokens, less from words (Base)", "about 0", minus("coop_random", "base", "coop"),
         lambda mean: abs(mean) <= 3, COOP, "within 3"),
    Fact("CoOp with 16 random tokens lifts Base", "+13", minus("coop_16", "base"), positive, COOP),
    Fact("a template that names the picture's condition helps", "several points", naming_condition, positive,
         "Radford et al., ICML 2021"),
    Fact("averaging templates helps", "+1 to +5", minus("zero_shot_templates", "base"), positive,
         "Radford et al., ICML 2021"),
    Fact("own styles: CoOp lifts Base", "+13.4", minus("coop", "base", preset=STYLES), positive, COCOOP),
    Fact("own styles: CoOp lowers Novel", "-11.0", minus("coop", "novel", preset=STYLES), negative, COCOOP),
    Fact("own styles: KgCoOp's Novel is above CoOp's", "+10.4", minus("kgcoop", "novel", "coop", STYLES), positive,
         KGCOOP),
    Fact("own styles: MMA lifts Base", "+13.9", minus("local_mma", "base", preset=STYLES), positive, MMA),
    Fact("own styles: MMA does not lower Novel", "+2.6", minus("local_mma", "novel", preset=STYLES),
         lambda mean: mean >= 0, MMA),
    Fact("federated, common style: PromptFL lifts Base", "+12.1", minus("promptfl", "base", preset="common_style"),
         positive, "arXiv 2507.05394, main table"),
    Fact("federated, own styles: CoOp lifts Local (rate for Local)", "+20",
         minus("coop_for_local", "local", preset="quickstart"), positive,
         "arXiv 2507.05394, main table", ">= 8", lambda mean: mean >= 8),
)  # fmt: skip


def collect(model: str, seeds: Sequence[int], folder: Path, processes: int) -> Runs:
    """Run what is missing of all presets, and read the points."""
    runs = Runs()
    for preset in PRESETS:
        words = [f"model.name={model}"]
        settings = {**presets.settings(preset), "seeds": list(seeds)}
        if preset in METHODS:
            settings["methods"] = METHODS[preset]
        for place, (value, one) in enumerate(_experiments(settings, words).items()):
            out = folder / (f"{preset}-{place}" if value else preset)
            results = study.run(study.single_plan(one, out), Options(resume=True, processes=processes))
            if results.failures:
                raise SystemExit("\n".join(f"{preset}: {name}: {why}" for name, why in results.failures.items()))
            runs.points |= {(preset, value, method): by_seed for method, by_seed in results.points.items()}
    return runs


def _experiments(settings: dict[str, object], words: list[str]) -> dict[str, experiment.Experiment]:
    """One experiment, or those of a sweep by value."""
    if "sweep" not in settings:
        return {"": experiment.parse(overrides.apply_words(settings, words))}
    planned = sweep.plan(settings, words)
    return dict(zip(map(overrides.format_value, planned.values), planned.experiments, strict=True))


def table(runs: Runs) -> list[dict[str, object]]:
    """One row for each fact."""
    rows = []
    for fact in FACTS:
        values = fact.measure(runs)
        found = estimate(values)
        rows.append(
            {"fact": fact.name, "published": fact.published, "source": fact.source, "mean": found.mean,
             "half": found.half, "values": values, "same": fact.holds(found.mean), "wanted": fact.wanted,
             "sized": fact.sized(found.mean)}
        )  # fmt: skip
    return rows


def text(rows: list[dict[str, object]], seeds: int) -> str:
    """The table in Markdown."""
    heads = ["fact", "published", f"here, mean and 95 % interval over {seeds} seeds", "same sign or order?"]
    cells = []
    for row in rows:
        here = format_estimate(Estimate(float(row["mean"]), row["half"], seeds))  # type: ignore[arg-type]
        same = "yes" if row["same"] else "**no**"
        size = f"; wanted {row['wanted']}: {'yes' if row['sized'] else '**no**'}" if row["wanted"] else ""
        cells.append([str(row["fact"]), str(row["published"]), here, same + size])
    right = sum(bool(row["same"]) for row in rows)
    return f"{grid.markdown(heads, cells)}\n\n{right} of {len(rows)} as published."


def format_estimate(found: Estimate) -> str:
    """Mean with the half width of the interval, in points."""
    return f"{found.mean:+.1f}" + ("" if found.half is None else f" ± {found.half:.1f}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="embedded, or a model directory")
    parser.add_argument("--seeds", default="1,2,3,4,5")
    parser.add_argument("--out", type=Path, default=Path("calibration"))
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--card", type=Path, help="a model card into which the table is put")
    arguments = parser.parse_args()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    rows = table(collect(arguments.model, seeds, arguments.out, arguments.processes))
    said = text(rows, len(seeds))
    if arguments.card:
        card.replace_section(arguments.card, card.CALIBRATION, said)
    durable.write_text(arguments.out / "calibration.json", json.dumps(rows, indent=1) + "\n")
    durable.write_text(arguments.out / "calibration.md", said + "\n")
    print(said)


if __name__ == "__main__":
    main()
