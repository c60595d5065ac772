"""The request of `fedvlm reproduce`, and the list of tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.table import Table

from fedvlm.errors import FedvlmError
from fedvlm.reports import grid
from fedvlm.studies.published import library
from fedvlm.studies.published.plan import Request, plan
from fedvlm.studies.published.schema import MEANING


def parse_request(
    data: Path,
    model: str | None,
    rows: str | None,
    columns: str | None,
    seeds: str | None,
    words: Sequence[str],
    *,
    offline: bool,
) -> Request:
    """The request of the command line, with lists written `a,b,c`. Raises `FedvlmError` for invalid seeds."""
    try:
        numbers = None if seeds is None else [int(seed) for seed in _split_list(seeds) or []]
    except ValueError:
        raise FedvlmError(f"--seeds '{seeds}' is not a list of whole numbers such as 0,1,2") from None
    return Request(data, model, _split_list(rows), _split_list(columns), numbers or None, tuple(words), offline)


def _split_list(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


@dataclass(frozen=True)
class TableLine:
    """A published table in the list: where it stands and was read, and its cells (all, void, possible here)."""

    table: str
    title: str
    where: str
    read: str
    cells: int
    void: int
    possible: int


def list_tables(request: Request) -> list[TableLine]:
    """All tables."""
    found = []
    for name in library.names():
        made = plan(name, replace(request, offline=True, rows=None, columns=None, words=()))
        table = made.table
        void = sum(table.void_for(row, column) is not None for row, column in table.cells)
        words = (name, table.title, f"{table.paper}, {table.place}", table.read)
        found.append(TableLine(*words, len(table.cells), void, len(made.possible)))
    return found


def as_rich(lines: Sequence[TableLine]) -> Table:
    """The list for the terminal."""
    heads = ("table", "", "where", "read", "cells", "void", "can run here")
    rows = [[one.table, one.title, one.where, one.read, str(one.cells), str(one.void or ""), str(one.possible)]
            for one in lines]  # fmt: skip
    return grid.terminal(heads, rows, left=range(len(heads)))


def reading_notes(request: Request) -> list[str]:
    """Notes on how to read the list."""
    own = request.model or "each table's own, where they are in the hub cache"
    return [
        f"data looked for in {request.data} (--data); weights: {own} (--model)",
        *(f"[{read}] {meaning}" for read, meaning in MEANING.items()),
        "void: cannot be reproduced; fedvlm reproduce TABLE says why",
    ]
