"""A comparison as Markdown, CSV and LaTeX, and for the terminal. Accuracies are printed in per cent."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from rich.table import Table

from fedvlm.reports import grid
from fedvlm.reports.columns import all_metrics, columns
from fedvlm.reports.comparison import Comparison, ComparisonRow
from fedvlm.reports.grid import Cells, Record
from fedvlm.reports.statistics import Difference, Estimate, least_p
from fedvlm.training.metrics import Metric

REACHED = ("rounds_to_target", "bytes_to_target")
"""The last columns of the CSV."""


def as_markdown(comparison: Comparison) -> str:
    """Accuracies, differences from the reference, and notes on the columns."""
    lines = [f"# {comparison.name}", "", grid.markdown(*accuracies(comparison)), ""]
    if comparison.compared:
        words = f"Differences from `{comparison.against}`, paired within seeds:"
        lines += [words, "", grid.markdown(*differences(comparison)), ""]
    return "\n".join([*lines, *reading_notes(comparison)]) + "\n"


def reading_notes(comparison: Comparison) -> list[str]:
    """Notes on how to read the tables, and on the data."""
    count, least = len(comparison.seeds), least_p(len(comparison.seeds))
    text = [
        f"- {count} {'seed' if count == 1 else 'seeds'}; ± is half a 95 % interval (Student's t over seeds). All "
        "methods of a seed share its clients, shots and test images.",
        f"- Reached: Local of {comparison.target.value:.1%}"
        if comparison.target.metric == "local"
        else f"- Reached: {comparison.target.metric} of {comparison.target.value:.1%}",
    ]
    text[1] += ", in evaluated rounds; bytes of all clients in both directions until then."
    text.append(
        "- Area: the share of all pairs (Local, mean of Base and Novel) that the method reaches in both by moving its "
        "logits towards zero-shot's (controls: by the weight of the class prior); never below zero-shot's own."
    )
    if any(row.state == "after_training" for row in comparison.rows):
        text.append("- *: measured after local training, as published; the others after the server's aggregation.")
    if comparison.tuned:
        text.append(
            "- HM tuned: the harmonic mean at the weight of zero-shot's logits that was best on validation images. "
            "Those of novel classes are among them, with labels that no client has."
        )
    text += [f"- {method}: {words}; no mean over the other seeds." for method, words in comparison.failed.items()]
    if comparison.against in comparison.failed:
        text.append(f"- No differences: {comparison.against} has no result with every seed.")
    others = len(comparison.rows) - 1
    if count > 1 and comparison.compared:
        floor = min(1.0, others * least)
        text.append(
            f"- p: two-sided, by flipping the signs of whole seeds; with {count} seeds it cannot be below {least:.2g}. "
            f"In brackets: corrected for {others} methods column by column (Holm); it cannot be below {floor:.2g}."
        )
    return [*text, *(f"- {note}" for note in comparison.notes)]


def as_latex(comparison: Comparison) -> str:
    """Two `tabular` environments (booktabs)."""
    parts = [grid.latex(*accuracies(comparison))]
    if comparison.compared:
        parts.append(f"% differences from {comparison.against}\n" + grid.latex(*differences(comparison)))
    return "\n\n".join([*parts, "\n".join(f"% {note}" for note in comparison.notes)]) + "\n"


def as_csv(comparison: Comparison) -> str:
    """One line per method and seed; accuracies in per cent. Of a failed method, `state` holds the failure."""
    return grid.csv(records(comparison), REACHED)


def records(comparison: Comparison) -> Sequence[Record]:
    """The cells of `as_csv` by column."""
    return [
        {"method": row.method, "state": row.state, "seed": str(seed)}
        | {name: _format_value(name, each[place]) for name, each in row.values.items()}
        | dict(zip(REACHED, [_format_number(row.rounds[place]), _format_number(row.total_bytes[place])], strict=True))
        for row in comparison.rows
        for place, seed in enumerate(comparison.seeds)
    ] + [{"method": method, "state": words, "seed": ""} for method, words in comparison.failed.items()]


def as_rich(comparison: Comparison) -> list[Table]:
    """Accuracies, and differences if there are several methods, for a terminal of 120 columns."""
    tables = [grid.terminal(*accuracies(comparison, short=True))]
    if comparison.compared:
        title = f"differences from {comparison.against}, paired within seeds; p corrected (Holm)"
        tables.append(grid.terminal(*differences(comparison, short=True), title))
    return tables


def accuracies(comparison: Comparison, *, short: bool = False) -> tuple[Cells, list[Cells]]:
    """Heads and rows of the table of accuracies, failed methods last; `short`: for a terminal."""
    there = {name for row in comparison.rows for name in row.values}
    shown = columns("compare terminal" if short else "compare", there)
    heads = ["method", *(metric.heading for metric in shown), "reached", "up B"]
    heads += [] if short else ["bytes", "train s"]
    rows = [_accuracy_row(row, shown, short=short) for row in comparison.rows]
    return heads, rows + [grid.pad_row([method], len(heads), words) for method, words in comparison.failed.items()]


def _accuracy_row(row: ComparisonRow, shown: Sequence[Metric], *, short: bool) -> Cells:
    mark = "*" if row.state == "after_training" else ""
    cells = [row.method + mark, *(format_accuracy(metric, row.estimate(metric.name)) for metric in shown)]
    rounds = [r for r in row.rounds if r is not None]
    often = "" if len(rounds) == len(row.rounds) else f" ({len(rounds)} of {len(row.rounds)})"
    cells.append(f"{statistics.fmean(rounds):.3g}{often}" if rounds else "never")
    cells.append(f"{statistics.fmean(row.values['up_bytes']):,.0f}")
    if short:
        return cells
    sizes = [size for size in row.total_bytes if size is not None]
    return [*cells, f"{statistics.fmean(sizes):,.0f}" if sizes else "-",
            f"{statistics.fmean(row.values['train_s']):.1f}"]  # fmt: skip


def differences(comparison: Comparison, *, short: bool = False) -> tuple[Cells, list[Cells]]:
    """Heads and rows of the table of differences from the reference; `short`: for a terminal."""
    shown = columns("tested", {name for row in comparison.rows for name in row.differences})
    heads = ["method", *(cell for metric in shown for cell in (metric.heading, "p"))]
    rows = [row for row in comparison.rows if row.method != comparison.against]
    return heads, [
        [row.method, *(cell for m in shown for cell in format_difference(row.differences.get(m.name), short=short))]
        for row in rows
    ]


def format_difference(one: Difference | None, *, short: bool = False) -> Cells:
    """The difference in points with its interval, and p with the corrected one; `short`: only the corrected one."""
    if one is None:
        return ["-", "-"]
    half = "" if one.estimate.half is None else f" ± {one.estimate.half * 100:.1f}"
    p = "-"
    if one.p is not None and one.corrected is not None:
        p = f"{one.corrected:.2g}" if short else f"{one.p:.2g} ({one.corrected:.2g})"
    return [f"{one.estimate.mean * 100:+.1f}{half}", p]


def format_accuracy(metric: Metric, one: Estimate | None) -> str:
    """`73.1 ± 1.4`, without an interval for one seed; `-` without an estimate."""
    if one is None:
        return "-"
    if metric.unit != "%":
        return f"{one.mean:.2g}"
    return f"{one.mean * 100:.1f}" + ("" if one.half is None else f" ± {one.half * 100:.1f}")


def _format_value(name: str, value: float) -> str:
    plain = name.endswith(("_s", "_bytes")) or any(
        metric.name == name and metric.unit != "%" for metric in all_metrics()
    )
    return _format_number(value) if plain else f"{value * 100:.4f}"


def _format_number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}".rstrip("0").rstrip(".")


FORMATS: dict[str, Callable[[Comparison], str]] = {"md": as_markdown, "csv": as_csv, "tex": as_latex}
