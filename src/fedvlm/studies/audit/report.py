"""The tables of an audit. Accuracies are shown in per cent, differences in points with 95 % intervals over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.markup import escape
from rich.table import Table as RichTable

from fedvlm import durable, faults
from fedvlm.experiment import Experiment
from fedvlm.faults.base import Fault
from fedvlm.reports import grid
from fedvlm.reports.columns import columns
from fedvlm.reports.statistics import Estimate, least_p
from fedvlm.studies.audit.plan import variants
from fedvlm.studies.audit.run import AuditCell, AuditRow, run_variants
from fedvlm.studies.study import Options
from fedvlm.training.metrics import Metric

_READING = (
    "difference: with the fault minus right, in points, mean over seeds with its 95 % interval (Student's t); p: "
    "sign-flip test over seeds, two-sided, not corrected for the number of rows"
)


def audit(experiment: Experiment, out: Path, options: Options) -> list[AuditRow]:
    """Run an audit in the folder `out`; its tables are written after every variant."""
    rows: list[AuditRow] = []
    for rows in run_variants(variants(experiment), out, options):
        _write(out, experiment, rows)
    return rows


def _write(out: Path, experiment: Experiment, rows: Sequence[AuditRow]) -> None:
    durable.write_json(out / "audit.json", as_json(experiment, rows))
    durable.write_text(out / "audit.md", as_markdown(experiment, rows))
    durable.write_text(out / "audit.csv", as_csv(rows))


def as_json(experiment: Experiment, rows: Sequence[AuditRow]) -> dict[str, object]:
    """Settings of the right run, and rows with accuracies in 0..1."""
    return {
        "experiment": experiment.resolved(),
        "digest": experiment.digest(),
        "reading": _READING,
        "rows": [asdict(row) | {"faults": list(row.faults)} for row in rows],
    }


def as_csv(rows: Sequence[AuditRow]) -> str:
    """One line per row; accuracies and differences in per cent."""
    return grid.csv([
        {"method": row.label, "fault": row.fault, "faults": " ".join(row.faults),
         "seeds": next((cell.value.seeds for cell in row.cells.values()), 0)}
        | {f"{m.name}{part}": number for m in columns("core") for part, number in _numbers(row.cells.get(m.name))}
        | {"train_s": "" if row.train_s is None else f"{row.train_s:.2f}", "code": row.code,
           "failed": row.failed or ""}
        for row in rows
    ])  # fmt: skip


def _numbers(cell: AuditCell | None) -> list[tuple[str, str]]:
    """The cells of one metric, by the ending of the column's name."""
    value, gap, p = (None, None, None) if cell is None else (cell.value, cell.difference, cell.p)
    shown = []
    for ending, one in (("", value), ("_difference", gap)):
        for part, number in ((ending, one.mean if one else None), (f"{ending}_half", one.half if one else None)):
            shown.append((part, "" if number is None else f"{100 * number:.4f}"))
    return [*shown, ("_p", "" if p is None else f"{p:.5f}")]


def as_markdown(experiment: Experiment, rows: Sequence[AuditRow]) -> str:
    """A heading and a table for every method."""
    seeds = ", ".join(map(str, experiment.seeds))
    text = [f"# Audit of {experiment.name}", "", f"{experiment.rounds} rounds, seeds {seeds}; {_READING}.", ""]
    for method in experiment.methods:
        own = [row for row in rows if row.method == method]
        shown = columns("core", {name for row in own for name in row.cells})
        heads = [head for m in shown for head in (m.heading, "difference", "p")]
        heads = ["fault", *heads, "train s", "published code it is in"]
        text += [f"## {method}", "", grid.markdown(heads, [_row(row, shown) for row in own]), ""]
    return "\n".join([*text, *reading_notes(experiment, rows), ""])


def _row(row: AuditRow, shown: Sequence[Metric]) -> list[str]:
    cells = [part for metric in shown for part in _format_cell(row.cells.get(metric.name))]
    seconds = "-" if row.train_s is None else f"{row.train_s:.1f}"
    return [row.fault, *cells, seconds, row.code]


def _format_cell(cell: AuditCell | None) -> tuple[str, str, str]:
    """Value, difference and p as text."""
    if cell is None:
        return "-", "-", "-"
    gap, p = cell.difference, cell.p
    return (
        _format_estimate(cell.value),
        "-" if gap is None else _format_estimate(gap, "+"),
        "-" if p is None else f"{p:.3f}",
    )


def _format_estimate(value: Estimate, sign: str = "") -> str:
    half = "" if value.half is None else f" ± {100 * value.half:.1f}"
    return f"{100 * value.mean:{sign}.1f}{half}"


def as_rich(rows: Sequence[AuditRow], title: str) -> RichTable:
    """The rows for a terminal of 120 columns: every cell has the accuracy, and below it the difference and p."""
    metrics = columns("core", {name for row in rows for name in row.cells})
    heads = ["fault", *(metric.heading for metric in metrics), "train s", "published code it is in"]
    cells = [
        [row.fault, *(_stacked(row.cells.get(metric.name)) for metric in metrics),
         "-" if row.train_s is None else f"{row.train_s:.1f}", row.failed or row.code]
        for row in rows
    ]  # fmt: skip
    return grid.terminal(heads, cells, title, left=(0, -1))


def _stacked(cell: AuditCell | None) -> str:
    value, gap, p = _format_cell(cell)
    return value + ("" if gap == "-" else f"\n{gap}") + ("" if p == "-" else f"\np {p}")


def reading_notes(experiment: Experiment, rows: Sequence[AuditRow]) -> list[str]:
    """Notes on how to read the table, on each fault, and on failures."""
    known, seeds = faults.all_faults(), len(experiment.seeds)
    there = dict.fromkeys(row.fault for row in rows if row.fault in known)
    power = f"smallest possible p with {seeds} seeds: {least_p(seeds):.3f}" if seeds > 1 else "one seed: no intervals"
    lines = [f"{_READING}; {power}", ""]
    lines += [f"- {name}: {known[name].title}" for name in there]
    return lines + [f"- {row.label} FAILED: {row.failed}" for row in rows if row.failed]


def catalogue() -> RichTable:
    """A table of all faults: description, methods, and where the released code has it."""
    shown = RichTable("fault", "what it does", "methods", "read in", box=None, pad_edge=False, padding=(0, 2, 1, 0))
    for name, fault in faults.all_faults().items():
        shown.add_row(name, escape(fault.title), _methods(fault), escape(f"{fault.code}: {fault.where}"))
    return shown


def catalogue_json() -> list[dict[str, object]]:
    """The same as plain values."""
    return [
        {"fault": name, "title": fault.title, "methods": _methods(fault), "code": fault.code, "where": fault.where}
        for name, fault in faults.all_faults().items()
    ]


def _methods(fault: type[Fault]) -> str:
    return ", ".join(fault.methods) or ("all, of these data" if fault.data else "all that are trained")
