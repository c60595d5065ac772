"""The chapters of a sweep and of an audit."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedvlm import durable
from fedvlm.errors import FedvlmError
from fedvlm.reports import text
from fedvlm.reports.charts import accuracy, looks
from fedvlm.reports.charts.chart import Axis, Chart, Dot, Panel, file_name
from fedvlm.reports.columns import columns
from fedvlm.reports.comparison import Comparison
from fedvlm.reports.page import run
from fedvlm.reports.page.content import Chapter, Table


def sweep(folder: Path) -> Chapter:
    """The chapter of a sweep, from the comparisons in its folders."""
    saved = durable.read_json(folder / "sweep.json")
    key, found = saved["key"], dict[str, Comparison]()
    below = {
        read.folder.name: read for read in map(run.read_run, sorted(p.parent for p in folder.glob("*/experiment.json")))
    }
    for part in saved["comparisons"]:
        name = re.sub(r"[^A-Za-z0-9._=+-]", "-", f"{key}={part['value']}")
        if name in below and below[name].whole:
            found[part["value"]] = run.compared(below[name], part["against"])
    if not found:
        raise FedvlmError(f"{folder} holds a sweep without a finished value")
    tables = []
    for metric in columns("sweep", {name for one in found.values() for row in one.rows for name in row.values}):
        methods = list(dict.fromkeys(row.method for one in found.values() for row in one.rows))
        by_value = [
            {row.method: text.format_accuracy(metric, row.estimate(metric.name)) for row in one.rows}
            for one in found.values()
        ]
        rows = [[method, *(own.get(method, "-") for own in by_value)] for method in methods]
        tables.append(Table(metric.heading, [key, *found], rows, name=metric.name))
    first = next(iter(found.values()))
    failed = [f"{key}={value} failed: {why}" for value, why in saved.get("failed", {}).items()]
    sizes = [(first.rows, "method"), (found, "value"), (first.seeds, "seed")]
    each = [run.many(len(one), word) for one, word in sizes]
    lead = [f"{each[0]} at {each[1]} of {key}, {each[2]}."]
    style = looks.in_order([row.method for row in first.rows])
    settings = next(iter(below.values()))
    return Chapter(
        f"{saved['name']}: {key}",
        str(folder),
        lead,
        failed,
        tables,
        [accuracy.sweep(key, found, "Accuracy by value")],
        style,
        run.facts(settings),
        run.toml(settings.experiment),
    )


def audit(folder: Path) -> Chapter:
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
                row["failed"] or row["code"],
            ]
            for row in rows
        ]
        tables.append(Table(method, heads, cells, [saved["reading"]], f"audit-{method}", methods=False, words=True))
        charts.append(
            _fault_chart(method, rows, [metric.name for metric in shown], [metric.heading for metric in shown])
        )
    faults = len(saved["rows"]) // max(1, len(tables)) - 1
    lead = [f"{run.many(len(tables), 'method')}, each with {run.many(faults, 'fault')} of released code."]
    return Chapter(f"Audit of {saved['experiment']['name']}", str(folder), lead, (), tables, charts)


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
                        "half interval": f"{half:.3f}",
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
        "Points of accuracy, with 95 % intervals over seeds.",
        tuple(panels),
        (),
        data,
        "dots",
    )
