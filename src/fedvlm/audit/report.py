"""The tables of an audit. Accuracies are shown in per cent, differences in points with 95 % intervals over seeds."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from fedvlm import durable, faults
from fedvlm.audit.plan import variants
from fedvlm.audit.play import METRICS, Cell, Line, play
from fedvlm.experiment import Experiment
from fedvlm.results import grid
from fedvlm.results.statistics import Estimate, least_p

_READING = (
    "difference: with the fault minus right, in points, mean over seeds with its 95 % interval (Student's t); p: "
    "sign-flip test over seeds, two-sided, not corrected for the number of rows"
)


def audit(console: Console, experiment: Experiment, out: Path, *, quiet: bool, processes: int = 1) -> bool:
    """Play an audit into `out`, show it, and say whether every line has numbers."""
    found: list[Line] = []
    planned = variants(experiment)
    for found in play(planned, out, quiet=quiet, processes=processes):
        _write(out, experiment, found)
    console.print()
    for method in experiment.methods:
        console.print(as_rich([line for line in found if line.method == method], method))
        console.print()
    for note in _notes(experiment, found):
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    console.print(f"\nwritten: {out / 'audit.md'}, .csv and .json; run it again to continue", highlight=False,
                  markup=False, soft_wrap=True)  # fmt: skip
    return not any(line.failed for line in found)


def _write(out: Path, experiment: Experiment, found: Sequence[Line]) -> None:
    durable.write_json(out / "audit.json", as_json(experiment, found))
    durable.write_text(out / "audit.md", as_markdown(experiment, found))
    durable.write_text(out / "audit.csv", as_csv(found))


def as_json(experiment: Experiment, found: Sequence[Line]) -> dict[str, Any]:
    """Plain values, accuracies in 0..1, after the settings of the right run."""
    return {
        "experiment": experiment.resolved(),
        "digest": experiment.digest(),
        "reading": _READING,
        "rows": [asdict(line) | {"faults": list(line.faults)} for line in found],
    }


def as_csv(found: Sequence[Line]) -> str:
    """One line per row; accuracies and differences in per cent."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = [f"{m}{part}" for m in METRICS for part in ("", "_half", "_difference", "_difference_half", "_p")]
    writer.writerow(["method", "fault", "faults", "seeds", *columns, "train_s", "code", "failed"])
    for line in found:
        cells = [number for metric in METRICS for number in _numbers(line.cells.get(metric))]
        seeds = next((cell.value.seeds for cell in line.cells.values()), 0)
        seconds = "" if line.train_s is None else f"{line.train_s:.2f}"
        head = [line.label, line.fault, " ".join(line.faults), seeds]
        writer.writerow([*head, *cells, seconds, line.code, line.failed or ""])
    return out.getvalue()


def _numbers(cell: Cell | None) -> list[str]:
    if cell is None:
        return [""] * 5
    gap = cell.difference
    parts = [cell.value.mean, cell.value.half, *((None, None) if gap is None else (gap.mean, gap.half))]
    return [*("" if part is None else f"{100 * part:.4f}" for part in parts), "" if cell.p is None else f"{cell.p:.5f}"]


def as_markdown(experiment: Experiment, found: Sequence[Line]) -> str:
    """A heading and a table for every method."""
    seeds = ", ".join(map(str, experiment.seeds))
    text = [f"# Audit of {experiment.name}", "", f"{experiment.rounds} rounds, seeds {seeds}; {_READING}.", ""]
    for method in experiment.methods:
        rows = [line for line in found if line.method == method]
        names = [m for m in METRICS if any(m in line.cells for line in rows)]
        heads = [head for m in names for head in (METRICS[m], "difference", "p")]
        heads = ["fault", *heads, "train s", "published code it is in"]
        text += [f"## {method}", "", grid.markdown(heads, [_row(line, names) for line in rows]), ""]
    return "\n".join([*text, *_notes(experiment, found), ""])


def _row(line: Line, names: Sequence[str]) -> list[str]:
    cells = [part for name in names for part in _parts(line.cells.get(name))]
    seconds = "-" if line.train_s is None else f"{line.train_s:.1f}"
    return [line.fault, *cells, seconds, line.code]


def _parts(cell: Cell | None) -> tuple[str, str, str]:
    """Value, difference and p as words."""
    if cell is None:
        return "-", "-", "-"
    gap, p = cell.difference, cell.p
    return _words(cell.value), "-" if gap is None else _words(gap, "+"), "-" if p is None else f"{p:.3f}"


def _words(value: Estimate, sign: str = "") -> str:
    half = "" if value.half is None else f" ± {100 * value.half:.1f}"
    return f"{100 * value.mean:{sign}.1f}{half}"


def as_rich(rows: Sequence[Line], title: str) -> RichTable:
    """For a terminal of 120 columns: in every cell the accuracy, below it the difference and p."""
    names = [m for m in METRICS if any(m in line.cells for line in rows)]
    shown = RichTable(title=title, title_justify="left", title_style="bold", header_style="bold", box=None,
                      pad_edge=False)  # fmt: skip
    shown.add_column("fault", no_wrap=True)
    for heading in [*(METRICS[m] for m in names), "train s"]:
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("published code it is in")
    for line in rows:
        cells = [_stacked(line.cells.get(name)) for name in names]
        seconds = "-" if line.train_s is None else f"{line.train_s:.1f}"
        shown.add_row(line.fault, *cells, seconds, escape(line.failed or line.code))
    return shown


def _stacked(cell: Cell | None) -> str:
    value, gap, p = _parts(cell)
    return value + ("" if gap == "-" else f"\n{gap}") + ("" if p == "-" else f"\np {p}")


def _notes(experiment: Experiment, found: Sequence[Line]) -> list[str]:
    """How to read it, what each fault is, what failed."""
    known, seeds = faults.known(), len(experiment.seeds)
    there = dict.fromkeys(line.fault for line in found if line.fault in known)
    power = f"smallest possible p with {seeds} seeds: {least_p(seeds):.3f}" if seeds > 1 else "one seed: no intervals"
    notes = [f"{_READING}; {power}", ""]
    notes += [f"- {name}: {known[name].title}" for name in there]
    return notes + [f"- {line.label} FAILED: {line.failed}" for line in found if line.failed]


def catalogue() -> RichTable:
    """Every fault: what it does, the methods it is in, where it was read."""
    shown = RichTable("fault", "what it does", "methods", "read in", box=None, pad_edge=False, padding=(0, 2, 1, 0))
    for name, fault in faults.known().items():
        own = ", ".join(fault.methods) or ("all, of these data" if fault.data else "all that are trained")
        shown.add_row(name, escape(fault.title), own, escape(f"{fault.code}: {fault.where}"))
    return shown
