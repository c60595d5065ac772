"""The chapters of a sweep and of an audit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedvlm import durable, overrides
from fedvlm.errors import FedvlmError
from fedvlm.experiment import Experiment
from fedvlm.reports import text
from fedvlm.reports.charts import accuracy, looks
from fedvlm.reports.charts.chart import Axis, Chart, Dot, Panel, file_name
from fedvlm.reports.columns import columns
from fedvlm.reports.comparison import Comparison
from fedvlm.reports.page import run
from fedvlm.reports.page.content import Chapter, Table


def sweep(folder: Path, against: str = "", *, with_clients: bool = True) -> Chapter:
    """The chapter of a sweep, from the comparisons in its folders."""
    saved = durable.read_json(folder / "sweep.json")
    key, found = saved["key"], dict[str, Comparison]()
    reads = [run.read_run(one.parent) for one in sorted(folder.glob("*/experiment.json"))]
    below = {read.folder.name: read for read in reads}
    for part in saved["comparisons"]:
        name = overrides.folder_name(key, part["value"])
        if name in below and below[name].whole:
            found[part["value"]] = run.compared(below[name], against, usual=part["against"])
    if not found:
        raise FedvlmError(f"{folder} holds a sweep without a finished value")
    first = next(iter(found.values()))
    failed = [f"{key}={value} failed" + (f": {why}" if with_clients else "") for value, why in saved["failed"].items()]
    sizes = [(first.rows, "method"), (found, "value"), (first.seeds, "seed")]
    each = [run.many(len(one), word) for one, word in sizes]
    return Chapter(
        f"{saved['name']}: {key}",
        str(folder) if with_clients else "",
        [f"{each[0]} at {each[1]} of {key}, {each[2]}."],
        failed,
        _sweep_tables(key, found),
        [accuracy.sweep(key, found, "Accuracy by value")],
        looks.in_order([row.method for row in first.rows]),
        run.facts(reads[0]),
        _sweep_settings(reads[0].experiment, saved["name"], key, list(found), with_paths=with_clients),
        "fedvlm sweep settings.toml makes it again",
    )


def _sweep_tables(key: str, found: Mapping[str, Comparison]) -> list[Table]:
    """A table for each metric: methods by values."""
    tables = []
    methods = list(dict.fromkeys(row.method for one in found.values() for row in one.rows))
    for metric in columns("sweep", {name for one in found.values() for row in one.rows for name in row.values}):
        by_value = [
            one.failed | {row.method: text.format_accuracy(metric, row.estimate(metric.name)) for row in one.rows}
            for one in found.values()
        ]
        rows = [[method, *(own.get(method, "-") for own in by_value)] for method in methods]
        tables.append(Table(metric.heading, [key, *found], rows, name=metric.name))
    return tables


def _sweep_settings(first: Experiment, name: str, key: str, values: list[str], *, with_paths: bool) -> str:
    """The settings of a sweep: those of its first value, with all values in their place."""
    lines = run.toml(first.model_copy(update={"name": name}), with_paths=with_paths).splitlines()
    read = [overrides.parse_values(f"{key}={value}")[1] for value in values]
    listed = [one[0] if len(one) == 1 else one for one in read]
    kept = [line for line in lines if not line.startswith(f"{key} = ")]
    return "\n".join([*kept, f"sweep.{key} = {json.dumps(listed)}"]) + "\n"


def audit(folder: Path, *, with_clients: bool = True) -> Chapter:
    """The chapter of an audit: what each fault is worth."""
    saved = durable.read_json(folder / "audit.json")
    shown = columns("core", {name for row in saved["rows"] for name in row["cells"]})
    tables, charts = [], []
    for method in dict.fromkeys(row["method"] for row in saved["rows"]):
        rows = [row for row in saved["rows"] if row["method"] == method]
        heads = ["fault", *(head for metric in shown for head in (metric.heading, "difference", "p")), "published code"]
        cells = [
            [
                row["fault"],
                *(one for metric in shown for one in _audit_cells(row["cells"].get(metric.name))),
                (row["failed"] if with_clients else "failed") if row["failed"] else row["code"],
            ]
            for row in rows
        ]
        tables.append(Table(method, heads, cells, [saved["reading"]], methods=False, words=True))
        charts.append(
            _fault_chart(method, rows, [metric.name for metric in shown], [metric.heading for metric in shown])
        )
    faults = {row["faults"][0] for row in saved["rows"] if len(row["faults"]) == 1}
    lead = [f"{run.many(len(tables), 'method')}, {run.many(len(faults), 'fault')} of released code."]
    return Chapter(
        f"Audit of {saved['experiment']['name']}", str(folder) if with_clients else "", lead, (), tables, charts
    )


def _audit_cells(cell: Mapping[str, Any] | None) -> list[str]:
    if cell is None:
        return ["-", "-", "-"]
    value, gap = cell["value"], cell["difference"]
    shown = [
        f"{100 * value['mean']:.1f}{_half(value)}",
        "-" if gap is None else f"{100 * gap['mean']:+.1f}{_half(gap)}",
    ]
    return [*shown, "-" if cell["p"] is None else f"{cell['p']:.3f}"]


def _half(estimate: Mapping[str, Any]) -> str:
    return "" if estimate["half"] is None else f" ± {100 * estimate['half']:.1f}"


def _fault_chart(method: str, rows: Sequence[Mapping[str, Any]], metrics: Sequence[str], heads: Sequence[str]) -> Chart:
    """Differences from the right run by fault, with intervals: a panel for each metric."""
    panels, data = [], []
    named = [row for row in rows if any(cell["difference"] for cell in row["cells"].values())]
    for metric, head in zip(metrics, heads, strict=True):
        marks = []
        for place, row in enumerate(named):
            gap = row["cells"].get(metric, {}).get("difference")
            if gap:
                mean, half = 100 * gap["mean"], 100 * (gap["half"] or 0.0)
                marks.append(Dot(mean, place, half_x=half, tip=f"{row['fault']}: {mean:+.1f}"))
                data.append(
                    {
                        "method": method,
                        "metric": metric,
                        "fault": row["fault"],
                        "difference": f"{mean:.3f}",
                        "half interval": "" if gap["half"] is None else f"{half:.3f}",
                    }
                )
        ends = [0.0, *(end for mark in marks for end in (mark.x - mark.half_x, mark.x + mark.half_x))]
        room = 0.05 * (max(ends) - min(ends)) + 0.5
        x = Axis("with the fault less right, points", min(ends) - room, max(ends) + room)
        y = Axis("", -0.6, len(named) - 0.4, names=tuple(row["fault"] for row in named))
        panels.append(Panel(head, x, y, tuple(marks), (420, 60 + 20 * len(named))))
    return Chart(
        f"faults-{file_name(method)}",
        f"{method}: what each fault is worth",
        "Points of accuracy; lines are 95 % intervals over seeds, where there are several.",
        tuple(panels),
        (),
        data,
        "dots",
    )
