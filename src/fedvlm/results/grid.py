"""Tables of words as Markdown, LaTeX and for the terminal: headings, and rows whose first cell is a name."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

Cells = list[str]


def filled(cells: Sequence[str], width: int, words: str) -> Cells:
    """A row of `width` cells for what has no numbers: its name, then `words`, then nothing."""
    return [*cells, words, *["-"] * (width - len(cells) - 1)]


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lines of a Markdown table, bars in cells escaped."""
    return "\n".join([_line(heads), "|" + "---|" * len(heads), *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def latex(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A `tabular` environment (booktabs)."""
    top, *body = (" & ".join(map(_tex, cells)) + r" \\" for cells in (heads, *rows))
    columns = "l" + "r" * (len(heads) - 1)
    return "\n".join([rf"\begin{{tabular}}{{{columns}}}", r"\toprule", top, r"\midrule", *body, r"\bottomrule",
                      r"\end{tabular}"])  # fmt: skip


def _tex(cell: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in cell)


_TEX = {letter: f"\\{letter}" for letter in "_%&#${}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
}  # fmt: skip


def terminal(heads: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> Table:
    """A table without lines; long names are folded rather than cut."""
    shown = Table(box=None, pad_edge=False, header_style="bold", title=title and escape(title), title_justify="left")
    for place, head in enumerate(heads):
        shown.add_column(escape(head), justify="right" if place else "left", overflow="fold")
    for cells in rows:
        shown.add_row(*map(escape, cells))
    return shown
