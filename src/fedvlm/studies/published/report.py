"""A plan and what came of it as lines: paper, ours, difference, reasons; for a terminal, as Markdown and JSON."""

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
    """One cell. Numbers are in the table's unit (per cent, or images)."""

    row: str
    column: str
    paper: PublishedNumber
    read: str
    mean: float | None
    std: float | None
    seeds: int
    difference: float | None
    """Ours minus the paper's; None where they must not be compared."""
    void: bool
    reasons: tuple[str, ...]
    """Names of known reasons, of the whole table too."""
    own_reasons: tuple[str, ...]
    """Those of this row and column."""
    missing: tuple[str, ...]
    """Kinds of obstacles, or what failed."""
    caveats: tuple[str, ...]
    """Why our number is not what the paper measured."""


@dataclass(frozen=True)
class Report:
    """A table's lines and everything that must be said with them."""

    plan: ReproductionPlan
    lines: tuple[ReproductionRow, ...]
    failures: tuple[str, ...]
    jobs: tuple[Job, ...]
    """What was run, and what could not be."""

    @property
    def complete(self) -> bool:
        """Whether every asked cell has a number of ours."""
        return all(line.mean is not None for line in self.lines)


def build_report(plan: ReproductionPlan, results: JobResults) -> Report:
    """Lines in the table's order."""
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
    """What stands above every result: the table, where it was read, weights, settings that were changed."""
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
    """Every obstacle once, with the number of cells it is in the way of, and every failure."""
    counts = Counter(obstacle for obstacles in report.plan.cells.values() for obstacle in obstacles)
    order = sorted(counts, key=lambda obstacle: ORDER.index(obstacle.kind))
    return [f"{o.kind} ({_count_cells(counts[o])}): {o.text}" for o in order] + list(report.failures)


def _count_cells(count: int) -> str:
    return f"{count} cell{'s' if count != 1 else ''}"


def reasons(rows: Sequence[ReproductionRow]) -> dict[str, str]:
    """Texts of the reasons that lines name."""
    named = dict.fromkeys(name for row in rows for name in row.reasons)
    return {name: library.reasons()[name] for name in named}


def commands(jobs: Sequence[Job]) -> list[str]:
    """What to type for each run."""
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
    """For a terminal of 120 columns."""
    return grid.terminal(HEADINGS, [_row_cells(line, report.plan) for line in report.lines], left=(0, 1, 2, 3, 4, -1))


def footer(report: Report) -> list[str]:
    """What stands below: what is missing, reasons, commands."""
    blocks = [("missing", missing(report)), ("for every cell", _table_reasons(report)),
              ("known reasons", [f"{name}: {text}" for name, text in reasons(report.lines).items()]),
              ("made by", commands(report.jobs))]  # fmt: skip
    return [line for title, lines in blocks if lines for line in ("", f"{title}:", *(f"  {text}" for text in lines))]


def _table_reasons(report: Report) -> list[str]:
    table = report.plan.table
    return [", ".join(table.reasons)] if table.reasons else []


def as_markdown(report: Report) -> str:
    """The same as a page."""
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
    """Write a table's page and its numbers."""
    durable.write_json(folder / "reproduce.json", as_json(report))
    durable.write_text(folder / "reproduce.md", as_markdown(report))


def as_json(report: Report) -> dict[str, object]:
    """Everything, for other programs."""
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
