"""A comparison as Markdown, CSV and LaTeX, and for the terminal. Accuracies are printed in per cent."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Sequence

from rich.markup import escape
from rich.table import Table

from fedvlm.results.comparison import TESTED, Comparison, Difference, Row
from fedvlm.results.statistics import Estimate, least_p

HEADINGS = {
    "local": "Local", "base": "Base", "novel": "Novel", "hm": "HM", "worst_tenth": "Worst 10%", "ece": "ECE",
    "tuned": "HM tuned", "weight": "weight", "area": "Area",
}  # fmt: skip
PLAIN = ("weight",)
"""Values that are no per cents."""

Cells = list[str]


def as_markdown(found: Comparison) -> str:
    """Accuracies, differences from the reference, and what the columns mean."""
    lines = [f"# {found.name}", "", *_grid(*_accuracies(found)), ""]
    if len(found.rows) > 1:
        lines += [f"Differences from `{found.against}`, paired within seeds:", "", *_grid(*_differences(found)), ""]
    return "\n".join([*lines, *notes(found)]) + "\n"


def notes(found: Comparison) -> list[str]:
    """What a reader has to know."""
    count, least = len(found.seeds), least_p(len(found.seeds))
    text = [
        f"- {count} {'seed' if count == 1 else 'seeds'}; ± is half a 95 % interval (Student's t over seeds). All "
        "methods of a seed share its clients, shots and test images.",
        f"- Reached: Local of {found.target.value:.1%}"
        if found.target.metric == "local"
        else f"- Reached: {found.target.metric} of {found.target.value:.1%}",
    ]
    text[1] += ", in evaluated rounds; bytes of all clients in both directions until then."
    text.append(
        "- Area: the share of all pairs (Local, mean of Base and Novel) that the method reaches in both by moving its "
        "logits towards zero-shot's (controls: by the weight of the class prior); never below zero-shot's own."
    )
    if any(row.state == "after_training" for row in found.rows):
        text.append("- *: measured after local training, as published; the others after the server's aggregation.")
    if found.tuned:
        text.append(
            "- HM tuned: the harmonic mean at the weight of zero-shot's logits that was best on validation images."
        )
    others = len(found.rows) - 1
    if count > 1 and others:
        floor = min(1.0, others * least)
        text.append(
            f"- p: two-sided, by flipping the signs of whole seeds; with {count} seeds it cannot be below {least:.2g}. "
            f"In brackets: corrected for {others} methods column by column (Holm); it cannot be below {floor:.2g}."
        )
    return [*text, *(f"- {note}" for note in found.notes)]


def as_latex(found: Comparison) -> str:
    """Two `tabular` environments (booktabs)."""
    parts = [_tabular(*_accuracies(found))]
    if len(found.rows) > 1:
        parts.append(f"% differences from {found.against}\n" + _tabular(*_differences(found)))
    return "\n\n".join([*parts, "\n".join(f"% {note}" for note in found.notes)]) + "\n"


def as_csv(found: Comparison) -> str:
    """One line per method and seed, plain numbers; accuracies in per cent."""
    names = list(dict.fromkeys(name for row in found.rows for name in row.values))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["method", "state", "seed", *names, "rounds_to_target", "bytes_to_target"])
    for row in found.rows:
        for place, seed in enumerate(found.seeds):
            cells = [_number(name, row.values[name][place]) if name in row.values else "" for name in names]
            reached = [_blank(row.rounds[place]), _blank(row.total_bytes[place])]
            writer.writerow([row.method, row.state, seed, *cells, *reached])
    return out.getvalue()


def as_rich(found: Comparison) -> list[Table]:
    """Accuracies and, of several methods, differences, for a terminal of 120 columns."""
    tables = [_rich(*_accuracies(found, short=True))]
    if len(found.rows) > 1:
        title = f"differences from {escape(found.against)}, paired within seeds; p corrected (Holm)"
        tables.append(_rich(*_differences(found, short=True), title))
    return tables


def _rich(heads: Cells, rows: Sequence[Cells], title: str | None = None) -> Table:
    shown = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left")
    for place, head in enumerate(heads):
        shown.add_column(head, justify="right" if place else "left", overflow="fold")
    for cells in rows:
        shown.add_row(*map(escape, cells))
    return shown


def _accuracies(found: Comparison, *, short: bool = False) -> tuple[Cells, list[Cells]]:
    names = [name for name in HEADINGS if any(name in row.values for row in found.rows)]
    if short:
        names = [name for name in names if name not in ("worst_tenth", "ece", "weight")]
    heads = ["method", *(HEADINGS[name] for name in names), "reached", "up B"]
    heads += [] if short else ["bytes", "train s"]
    return heads, [_accuracy(row, names, short=short) for row in found.rows]


def _accuracy(row: Row, names: Sequence[str], *, short: bool) -> Cells:
    mark = "*" if row.state == "after_training" else ""
    cells = [row.method + mark, *(_estimate(name, row.estimate(name)) for name in names)]
    rounds = [r for r in row.rounds if r is not None]
    often = "" if len(rounds) == len(row.rounds) else f" ({len(rounds)} of {len(row.rounds)})"
    cells.append(f"{statistics.fmean(rounds):.3g}{often}" if rounds else "never")
    cells.append(f"{statistics.fmean(row.values['up_bytes']):,.0f}")
    if short:
        return cells
    sizes = [size for size in row.total_bytes if size is not None]
    return [*cells, f"{statistics.fmean(sizes):,.0f}" if sizes else "-",
            f"{statistics.fmean(row.values['train_s']):.1f}"]  # fmt: skip


def _differences(found: Comparison, *, short: bool = False) -> tuple[Cells, list[Cells]]:
    names = [name for name in TESTED if any(name in row.differences for row in found.rows)]
    heads = ["method", *(cell for name in names for cell in (HEADINGS[name], "p"))]
    rows = [row for row in found.rows if row.method != found.against]
    return heads, [
        [row.method, *(cell for name in names for cell in _difference(row.differences.get(name), short=short))]
        for row in rows
    ]


def _difference(one: Difference | None, *, short: bool) -> Cells:
    if one is None:
        return ["-", "-"]
    half = "" if one.estimate.half is None else f" ± {one.estimate.half * 100:.1f}"
    p = "-"
    if one.p is not None and one.corrected is not None:
        p = f"{one.corrected:.2g}" if short else f"{one.p:.2g} ({one.corrected:.2g})"
    return [f"{one.estimate.mean * 100:+.1f}{half}", p]


def _estimate(name: str, one: Estimate | None) -> str:
    if one is None:
        return "-"
    if name in PLAIN:
        return f"{one.mean:.2g}"
    return f"{one.mean * 100:.1f}" + ("" if one.half is None else f" ± {one.half * 100:.1f}")


def _number(name: str, value: float) -> str:
    plain = name in PLAIN or name.endswith(("_s", "_bytes"))
    return _blank(value) if plain else f"{value * 100:.4f}"


def _blank(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}".rstrip("0").rstrip(".")


def _grid(heads: Cells, rows: Sequence[Cells]) -> Cells:
    return [_line(heads), "|" + "---|" * len(heads), *map(_line, rows)]


def _line(cells: Cells) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _tabular(heads: Cells, rows: Sequence[Cells]) -> str:
    body = [" & ".join(map(_tex, cells)) + r" \\" for cells in rows]
    top = " & ".join(map(_tex, heads)) + r" \\"
    columns = "l" + "r" * (len(heads) - 1)
    return "\n".join([rf"\begin{{tabular}}{{{columns}}}", r"\toprule", top, r"\midrule", *body, r"\bottomrule",
                      r"\end{tabular}"])  # fmt: skip


def _tex(cell: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in cell)


_TEX = {letter: f"\\{letter}" for letter in "_%&#${}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
}  # fmt: skip


FORMATS: dict[str, Callable[[Comparison], str]] = {"md": as_markdown, "csv": as_csv, "tex": as_latex}
