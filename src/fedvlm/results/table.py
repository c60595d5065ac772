"""The final table: one row per method, mean and standard deviation over seeds; JSON, CSV, Markdown, terminal."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from rich.markup import escape
from rich.table import Table as RichTable

from fedvlm.results import grid

ACCURACIES = {
    "local": "Local", "base": "Base", "novel": "Novel", "hm": "HM", "worst_tenth": "Worst 10%",
    "local_own": "Own only", "macro_f1": "Macro-F1",
}  # fmt: skip
"""Metrics shown in per cent, by their column heading."""


_FEW = ("local", "base", "novel", "hm")
"""What is shown of late clients, who are few."""


@dataclass(frozen=True)
class Value:
    """Mean and standard deviation over seeds (n - 1; None with one seed)."""

    mean: float
    std: float | None


@dataclass(frozen=True)
class Row:
    """A method in one evaluated state. Bytes are means per client visit; seconds are of the whole training.

    The state of late clients is the moment at which they were measured; their bytes down are those of their arrival.
    """

    method: str
    state: str
    reported: bool
    """Whether this is the state that heads the table."""
    seeds: int
    metrics: dict[str, Value]
    up_bytes: float
    down_bytes: float
    train_s: float


def rows(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Row]:
    """Rows from the finished results of every method (one per seed), the reported state of each first."""
    found = []
    for method, points in results.items():
        states = dict.fromkeys(state for point in points for state in point["final"])
        own = points[0]["state"]
        for state in sorted(states, key=lambda name: name != own):
            found.append(_row(method, state, state == own, [p for p in points if state in p["final"]]))
    return sorted(found, key=lambda row: not row.reported)


def _row(method: str, state: str, reported: bool, points: Sequence[Mapping[str, Any]]) -> Row:
    names = dict.fromkeys(name for point in points for name in point["final"][state])
    metrics = {n: value([p["final"][state][n] for p in points if n in p["final"][state]]) for n in names}
    up, down, seconds = (
        statistics.fmean(p[key] for p in points) for key in ("up_bytes_per_visit", "down_bytes_per_visit", "train_s")
    )
    return Row(method, state, reported, len(points), metrics, up, down, seconds)


def late_rows(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Row]:
    """Rows of the clients that joined after the last round: every method on their arrival, then after their visits."""
    moments = dict.fromkeys(moment for points in results.values() for p in points for moment in p.get("late", {}))
    return [
        _late_row(method, moment, [p["late"][moment] for p in points if moment in p.get("late", {})])
        for moment in moments
        for method, points in results.items()
        if any(moment in p.get("late", {}) for p in points)
    ]


def _late_row(method: str, moment: str, points: Sequence[Mapping[str, Any]]) -> Row:
    names = dict.fromkeys(name for point in points for name in point["means"])
    metrics = {n: value([p["means"][n] for p in points if n in p["means"]]) for n in names}
    down = [sum(sizes.values()) for point in points for sizes in point["down_bytes"].values()]
    return Row(method, moment, False, len(points), metrics, 0.0, statistics.fmean(down), 0.0)


def value(numbers: Sequence[float]) -> Value:
    """Mean and sample standard deviation."""
    return Value(statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else None)


Failed = Mapping[str, str]
"""What stands in the place of numbers by method, such as `diverged (2 of 11 seeds)`."""


def as_json(table: Sequence[Row], failed: Failed = MappingProxyType({})) -> list[dict[str, Any]]:
    """Plain values, accuracies in 0..1."""
    return [
        {"method": r.method, "state": r.state, "reported": r.reported, "seeds": r.seeds,
         "metrics": {n: {"mean": v.mean, "std": v.std} for n, v in r.metrics.items()},
         "up_bytes": r.up_bytes, "down_bytes": r.down_bytes, "train_s": r.train_s}
        for r in table
    ] + [{"method": method, "failed": words} for method, words in failed.items()]  # fmt: skip


def as_csv(table: Sequence[Row], failed: Failed = MappingProxyType({})) -> str:
    """One line per row; accuracies in per cent, loss in nats. In a failed method's line the state says so."""
    names = [*ACCURACIES, "loss"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    spread = [heading for name in names for heading in (name, f"{name}_std")]
    writer.writerow(["method", "state", "reported", "seeds", *spread, "up_bytes", "down_bytes", "train_s"])
    for r in table:
        cells: list[object] = []
        for name in names:
            v, factor = r.metrics.get(name), 1 if name == "loss" else 100
            cells += (
                ["", ""] if v is None else [f"{v.mean * factor:.4f}", "" if v.std is None else f"{v.std * factor:.4f}"]
            )
        tail = [round(r.up_bytes), round(r.down_bytes), f"{r.train_s:.2f}"]
        writer.writerow([r.method, r.state, r.reported, r.seeds, *cells, *tail])
    blank = [""] * (len(spread) + 3)
    writer.writerows([method, words, False, "", *blank] for method, words in failed.items())
    return out.getvalue()


def as_markdown(table: Sequence[Row], late: Sequence[Row] = (), failed: Failed = MappingProxyType({})) -> str:
    """A Markdown table of the reported states, then of the others, then of late clients."""
    text = [_markdown([r for r in table if r.reported], failed)]
    others = [r for r in table if not r.reported]
    if others:
        text += ["", "The same runs in the other state:", "", _markdown(others)]
    if late:
        text += ["", LATE, "", _late_markdown(late)]
    return "\n".join(text) + "\n"


def _markdown(table: Sequence[Row], failed: Failed = MappingProxyType({})) -> str:
    names = [n for n in ACCURACIES if any(n in r.metrics for r in table)]
    headings = ["method", *(ACCURACIES[n] for n in names), "loss", "up B", "down B", "train s", "state"]
    rows = [
        [r.method, *(percent(r.metrics.get(n)) for n in names), nats(r.metrics.get("loss")),
         f"{r.up_bytes:,.0f}", f"{r.down_bytes:,.0f}", f"{r.train_s:.1f}", r.state.replace("_", " ")]
        for r in table
    ]  # fmt: skip
    return grid.markdown(
        headings, rows + [grid.filled([method], len(headings), words) for method, words in failed.items()]
    )


LATE = "Clients that joined after the last round, mean over them; the tables above are without them:"


def _late_markdown(late: Sequence[Row]) -> str:
    names = [n for n in _FEW if any(n in r.metrics for r in late)]
    headings = ["method", "moment", *(ACCURACIES[n] for n in names), "loss", "down B"]
    return grid.markdown(headings, [
        [r.method, r.state.replace("_", " "), *(percent(r.metrics.get(n)) for n in names),
         nats(r.metrics.get("loss")), f"{r.down_bytes:,.0f}"]
        for r in late
    ])  # fmt: skip


def late_as_rich(late: Sequence[Row]) -> RichTable:
    """Late clients for a terminal: a row for each method and moment."""
    names = [n for n in _FEW if any(n in r.metrics for r in late)]
    shown = RichTable(
        title="clients that joined after the last round, mean over them",
        title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False,
    )  # fmt: skip
    for heading in ("method", "moment"):
        shown.add_column(heading, no_wrap=True)
    for heading in [*(ACCURACIES[n] for n in names), "down B"]:
        shown.add_column(heading, justify="right", no_wrap=True)
    for r in late:
        cells = [percent(r.metrics.get(n)).replace(" ", "") for n in names]
        shown.add_row(escape(r.method), r.state.replace("_", " "), *cells, f"{r.down_bytes:,.0f}")
    return shown


def as_rich(table: Sequence[Row], title: str) -> RichTable:
    """The reported states for a terminal of 100 columns."""
    names = [n for n in list(ACCURACIES)[:5] if any(n in r.metrics for r in table)]
    shown = RichTable(
        title=escape(title), title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False
    )
    shown.add_column("method", no_wrap=True)
    for heading in [*(ACCURACIES[n] for n in names), "up B", "down B", "train s"]:
        shown.add_column(heading, justify="right", no_wrap=True)
    best = {n: max(r.metrics[n].mean for r in table if r.reported and n in r.metrics) for n in names}
    for r in (row for row in table if row.reported):
        cells = [
            _marked(percent(r.metrics.get(n)).replace(" ", ""), n in r.metrics and r.metrics[n].mean == best[n])
            for n in names
        ]
        mark = "*" if r.state == "after_training" else ""
        shown.add_row(escape(r.method + mark), *cells, f"{r.up_bytes:,.0f}", f"{r.down_bytes:,.0f}", f"{r.train_s:.1f}")
    return shown


def percent(v: Value | None) -> str:
    """`87.2 ± 1.3`, `87.2` with one seed, `-` where the metric does not exist."""
    if v is None:
        return "-"
    return f"{v.mean * 100:.1f}" + ("" if v.std is None else f" ± {v.std * 100:.1f}")


def nats(v: Value | None) -> str:
    """Loss with three digits."""
    return "-" if v is None else f"{v.mean:.3f}"


def _marked(text: str, best: bool) -> str:
    return f"[bold]{text}[/bold]" if best else text
