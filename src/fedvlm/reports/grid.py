"""Tables of strings as Markdown, LaTeX, CSV and for the terminal: headings, and rows whose first cell is a name."""

from __future__ import annotations

import csv as _csv
import io
from collections.abc import Iterable, Mapping, Sequence

from rich.markup import escape
from rich.table import Table
from rich.text import Text

Cells = list[str]
Record = Mapping[str, object]
"""A line of a CSV file by column."""


def pad_row(cells: Sequence[str], width: int, words: str) -> Cells:
    """A row of `width` cells for a method without numbers: its name, then `words`, then `-`."""
    return [*cells, words, *["-"] * (width - len(cells) - 1)]


def csv(records: Sequence[Record], last: Iterable[str] = ()) -> str:
    """Text of a CSV file, with a column for every key of any record; the columns of `last` are at the end."""
    ending = list(last)
    names = dict.fromkeys(name for record in records for name in record)
    out = io.StringIO()
    writer = _csv.DictWriter(out, [*(n for n in names if n not in ending), *(n for n in ending if n in names)],
                             restval="", lineterminator="\n")  # fmt: skip
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lines of a Markdown table, bars in cells escaped."""
    return "\n".join([_line(heads), "|" + "---|" * len(heads), *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def latex(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A `tabular` environment (booktabs)."""
    top, *body = (" & ".join(map(_escape_tex, cells)) + r" \\" for cells in (heads, *rows))
    columns = "l" + "r" * (len(heads) - 1)
    return "\n".join([rf"\begin{{tabular}}{{{columns}}}", r"\toprule", top, r"\midrule", *body, r"\bottomrule",
                      r"\end{tabular}"])  # fmt: skip


def _escape_tex(cell: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in cell)


_TEX = {letter: f"\\{letter}" for letter in "_%&#${}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
}  # fmt: skip


def terminal(
    heads: Sequence[str], rows: Sequence[Sequence[str | Text]], title: str | None = None, left: Sequence[int] = (0,)
) -> Table:
    """A table without lines; long names are folded rather than cut.

    `left`: positions of left-aligned columns. If the last column is one of them, it wraps and numbers do not.
    """
    words = {place % len(heads) for place in left}
    shown = Table(box=None, pad_edge=False, header_style="bold", title=title and escape(title), title_justify="left",
                  title_style="bold")  # fmt: skip
    for place, head in enumerate(heads):
        whole = len(heads) - 1 in words and place not in words
        shown.add_column(escape(head), justify="left" if place in words else "right", overflow="fold", no_wrap=whole)
    for cells in rows:
        shown.add_row(*(escape(cell) if isinstance(cell, str) else cell for cell in cells))
    return shown
