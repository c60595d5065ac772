"""The report of a reproduction: paper, ours, difference, reasons; for a terminal, as Markdown and JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from fedvlm import durable
from fedvlm.reports import grid
from fedvlm.studies.published import library
from fedvlm.studies.published.plan import Job, ReproductionPlan
from fedvlm.studies.published.reproduce import JobResults, OurNumber, our_number
from fedvlm.studies.published.schema import MEANING, PublishedNumber

HEADINGS = ("row", "column", "paper", "ours", "difference", "known reason; comparable?")
OTHER = "other weights: not comparable"
ORDER = ("weights", "data", "method", "preset", "settings", "not here")


@dataclass(frozen=True)
class ReproductionRow:
    """One cell of the published table. Numbers are in the table's unit (per cent, or images)."""

    row: str
    column: str
    paper: PublishedNumber
    read: str
    mean: float | None
    std: float | None
    seeds: int
    difference: float | None
    """Our number minus the paper's; None if the two are not comparable."""
    void: bool
    reasons: tuple[str, ...]
    """Names of known reasons, including those of the whole table."""
    own_reasons: tuple[str, ...]
    """Names of the known reasons of this row and column."""
    missing: tuple[str, ...]
    """Kinds of obstacles, or `failed`."""
    caveats: tuple[str, ...]
    """Reasons why our number does not measure the same as the paper's."""


@dataclass(frozen=True)
class Report:
    """The rows of a report, with failures and runs."""

    plan: ReproductionPlan
    lines: tuple[ReproductionRow, ...]
    failures: tuple[str, ...]
    jobs: tuple[Job, ...]
    """Runs that were carried out, and runs that were not possible."""

    @property
    def complete(self) -> bool:
        """Whether every requested cell has our number."""
        return all(line.mean is not None for line in self.lines)


def build_report(plan: ReproductionPlan, results: JobResults) -> Report:
    """The report of a plan and its results, in the order of the table."""
    lines = tuple(_row(plan, results, row, column) for row, column in plan.cells)
    failures = tuple(f"failed ({run}, {row}): {text}" for (run, row), text in results.failures.items())
    idle = [job for job in plan.jobs if not job.ready] if results.jobs else plan.jobs
    return Report(plan, lines, failures, (*results.jobs, *idle))


def _row(plan: ReproductionPlan, results: JobResults, row: str, column: str) -> ReproductionRow:
    table, found = plan.table, our_number(plan, results, row, column)
    paper = table.number(row, column)
    assert paper is not None
    scale = 100 if table.unit == "%" else 1
    own = found if isinstance(found, OurNumber) else None
    mean = own.value.mean * scale if own else None
    std = own.value.std * scale if own and own.value.std is not None else None
    known, whole = table.reasons_for(row, column), {*table.reasons}
    return ReproductionRow(
        row, column, paper, table.read_at(column), mean, std, own.seeds if own else 0,
        mean - paper.mean if mean is not None and plan.comparable else None,
        table.void_for(row, column) is not None, tuple(known), tuple(name for name in known if name not in whole),
        _missing(plan, (row, column), found), _caveats(plan),
    )  # fmt: skip


def _missing(plan: ReproductionPlan, cell: tuple[str, str], found: OurNumber | str | None) -> tuple[str, ...]:
    if isinstance(found, str):
        return ("failed",)
    return tuple(dict.fromkeys(obstacle.kind for obstacle in plan.cells[cell]))


def _caveats(plan: ReproductionPlan) -> tuple[str, ...]:
    other = () if plan.comparable else (OTHER,)
    return (*other, *(("other settings",) if plan.request.changed else ()))


def heading(plan: ReproductionPlan) -> list[str]:
    """Lines above every result: the table, where its numbers were read, weights, changed settings."""
    table = plan.table
    at = f"{table.paper} ({table.venue}{f', arXiv {table.arxiv}' if table.arxiv else ''}), {table.place}"
    lines = [
        f"{plan.name}: {table.title}. {at}",
        f"numbers read in: {table.source} [{table.read}: {MEANING[table.read]}]",
    ]
    if plan.weights is not None:
        lines.append(plan.weights.description)
    if plan.request.changed:
        lines.append(f"other settings: not the published protocol ({' '.join(plan.request.changed)})")
    return lines


def missing(report: Report) -> list[str]:
    """Every obstacle once, with its number of cells, and every failure."""
    counts = Counter(obstacle for obstacles in report.plan.cells.values() for obstacle in obstacles)
    order = sorted(counts, key=lambda obstacle: ORDER.index(obstacle.kind))
    return [f"{o.kind} ({_count_cells(counts[o])}): {o.text}" for o in order] + list(report.failures)


def _count_cells(count: int) -> str:
    return f"{count} cell{'s' if count != 1 else ''}"


def reasons(rows: Sequence[ReproductionRow]) -> dict[str, str]:
    """Texts of the reasons that rows name, by name."""
    named = dict.fromkeys(name for row in rows for name in row.reasons)
    return {name: library.reasons()[name] for name in named}


def commands(jobs: Sequence[Job]) -> list[str]:
    """The command line of each run."""
    return [f"{job.command}{'' if job.ready else '   # data or weights are missing'}" for job in jobs]


def _row_cells(line: ReproductionRow, plan: ReproductionPlan) -> tuple[str, ...]:
    table = plan.table
    digits = 2 if table.unit == "%" else 0
    number = "-" if line.mean is None else f"{line.mean:.{digits}f}"
    if line.std is not None:
        number += f"±{line.std:.{digits}f}"
    if line.mean is not None and table.unit == "%":
        number += f" ({line.seeds} seed{'s' if line.seeds > 1 else ''})"
    difference = "-" if line.difference is None else f"{line.difference:+.{digits}f}"
    lacks = (f"missing: {', '.join(line.missing)}",) if line.missing else ()
    void = ("VOID",) if line.void else ()
    notes = "; ".join((*lacks, *line.caveats, *void, ", ".join(line.own_reasons))).rstrip("; ")
    return (
        table.rows[line.row].title, table.columns[line.column].title, f"{line.paper.text} [{line.read}]",
        number, difference, notes,
    )  # fmt: skip


def as_rich(report: Report) -> Table:
    """The rows for a terminal of 120 columns."""
    return grid.terminal(HEADINGS, [_row_cells(line, report.plan) for line in report.lines], left=(0, 1, 2, 3, 4, -1))


def footer(report: Report) -> list[str]:
    """Lines below the table: missing data and weights, reasons, commands."""
    blocks = [("missing", missing(report)), ("for every cell", _table_reasons(report)),
              ("known reasons", [f"{name}: {text}" for name, text in reasons(report.lines).items()]),
              ("made by", commands(report.jobs))]  # fmt: skip
    return [line for title, lines in blocks if lines for line in ("", f"{title}:", *(f"  {text}" for text in lines))]


def _table_reasons(report: Report) -> list[str]:
    table = report.plan.table
    return [", ".join(table.reasons)] if table.reasons else []


def as_markdown(report: Report) -> str:
    """The report as a page."""
    head, *others = heading(report.plan)
    rows = [_row_cells(line, report.plan) for line in report.lines]
    text = [f"# {head}", "", *(f"{line}  " for line in others), "", grid.markdown(HEADINGS, rows)]
    for title, lines in (
        ("Missing", missing(report)),
        ("Reasons for every cell", _table_reasons(report)),
        ("Known reasons", [f"**{name}**: {text}" for name, text in reasons(report.lines).items()]),
    ):
        text += ["", f"## {title}", "", *(f"- {line}" for line in lines)] if lines else []
    if report.jobs:
        text += ["", "## Commands", "", "```console", *(f"$ {line}" for line in commands(report.jobs)), "```"]
    return "\n".join(text) + "\n"


def write(report: Report, folder: Path) -> None:
    """Write the page (`reproduce.md`) and the numbers (`reproduce.json`) of a report."""
    durable.write_json(folder / "reproduce.json", as_json(report))
    durable.write_text(folder / "reproduce.md", as_markdown(report))


def as_json(report: Report) -> dict[str, object]:
    """The whole report as JSON."""
    plan, weights = report.plan, report.plan.weights
    return {
        "table": plan.name,
        "heading": heading(plan),
        "protocol": plan.table.protocol.model_dump(),
        "unit": plan.table.unit,
        "weights": None if weights is None else {
            "name": weights.name, "sha256": weights.digest, "published": weights.published, "ids": list(weights.ids)
        },
        "changed": plan.request.changed,
        "complete": report.complete,
        "cells": [_row_json(line) for line in report.lines],
        "missing": missing(report),
        "reasons": reasons(report.lines),
        "runs": [{"run": job.run, "rows": list(job.rows), "ready": job.ready, "command": job.command}
                 for job in report.jobs],
    }  # fmt: skip


def _row_json(line: ReproductionRow) -> dict[str, object]:
    own = None if line.mean is None else {"mean": line.mean, "std": line.std, "seeds": line.seeds}
    paper = {"mean": line.paper.mean, "std": line.paper.std, "read": line.read}
    return {"row": line.row, "column": line.column, "paper": paper, "ours": own, "difference": line.difference,
            "void": line.void, "reasons": list(line.reasons), "missing": list(line.missing),
            "caveats": list(line.caveats)}  # fmt: skip
