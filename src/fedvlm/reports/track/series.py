"""What a run folder says of a method with a seed: settings, numbers of a round, results. No client is named."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from fedvlm import durable, overrides
from fedvlm.federation.records import RoundRecord
from fedvlm.reports.track.base import Series, Setting
from fedvlm.runs.folder import Point, RunFolder
from fedvlm.runs.result import PointResult

LONGEST = 500
"""Characters of a setting; lists of many classes are cut."""
_OF_THE_RUN = ("name", "methods", "seeds", "method")
"""Settings of the experiment that are no hyper-parameters of one series."""


def points(run: RunFolder) -> list[Point]:
    """The points that have begun, in order."""
    return [Point(file.parent) for file in sorted(run.path.glob("seed-*/*/point.json"))]


def describe(saved: Mapping[str, Any], point: Point) -> Series:
    """The series of a point. `saved`: the content of the run's `experiment.json`."""
    own, whole = durable.read_json(point.folder / "point.json"), dict(saved["experiment"])
    general = {key: value for key, value in whole.items() if key not in _OF_THE_RUN}
    seed = int(point.folder.parent.name.removeprefix("seed-"))
    settings = {"method": point.folder.name, "method.kind": own["method"], "seed": seed}
    settings |= {f"method.{key}": value for key, value in overrides.flatten(own["settings"]).items()}
    settings |= overrides.flatten(general)
    settings |= {f"versions.{name}": version for name, version in saved.get("versions", {}).items()}
    plain = {key: _setting(value) for key, value in settings.items()}
    return Series(whole["name"], saved["digest"], point.folder.name, seed, plain)


def _setting(value: Any) -> Setting:
    if isinstance(value, bool | int | float):
        return value
    text = value if isinstance(value, str) else "none" if value is None else overrides.format_value(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def round_values(record: RoundRecord) -> dict[str, float]:
    """The numbers of a round, of all clients together.

    `reported/*`: metrics in the state that the method reports; `after_training/*` or `after_aggregation/*`: in the
    other state, after the last round.
    """
    found: dict[str, float] = {}
    for place, (state, means) in enumerate(record.means.items()):
        found |= {f"{state if place else 'reported'}/{name}": value for name, value in means.items()}
    for moment, one in record.newcomers.items():
        found |= {f"newcomers_{moment}/{name}": value for name, value in one.means.items()}
    if losses := [loss for visit in record.visits for loss in visit.losses]:
        found["training/loss_nats"] = fmean(losses)
    if record.visits:
        found["training/clients"] = len(record.visits)
    if record.absent:
        found["training/absent_clients"] = len(record.absent)
    found["bytes/up_bytes"] = sum(sum(visit.up_bytes.values()) for visit in record.visits)
    found["bytes/down_bytes"] = sum(sum(visit.down_bytes.values()) for visit in record.visits)
    return found | {"seconds/train_s": record.train_s, "seconds/evaluate_s": record.evaluate_s}


def final_values(result: PointResult) -> dict[str, float]:
    """The results of a point, as they stand in its table."""
    found = {f"final/{name}": value for name, value in result.reported.items()}
    found |= {f"mean_of_last_five/{name}": value for name, value in result.mean_of_last_five_evaluations.items()}
    return found | {
        "final/up_bytes_per_visit": result.up_bytes_per_visit,
        "final/down_bytes_per_visit": result.down_bytes_per_visit,
        "final/total_bytes": sum(size for _, size in result.bytes_by_round),
        "final/train_s": result.train_s,
        "final/evaluate_s": result.evaluate_s,
        "final/peak_memory_bytes": result.peak_memory_bytes,
    }


def begun_s(point: Point) -> float:
    """When a point was begun, in Unix time."""
    return (point.folder / "point.json").stat().st_mtime


def runs_in(folder: Path) -> list[RunFolder]:
    """The run that a folder is, or those that lie in it (a sweep, an audit). Raises `FedvlmError` if there is none."""
    if not (folder / "experiment.json").exists():
        inner = [file.parent for file in sorted(folder.glob("*/experiment.json"))]
        if inner:
            return [RunFolder(one) for one in inner]
    run = RunFolder(folder)
    run.begun()
    return [run]
