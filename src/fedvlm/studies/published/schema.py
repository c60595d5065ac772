"""What a file of a published table may hold. Unknown keys, references to nothing and miscounted cells are errors."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from fedvlm.config import Section
from fedvlm.training.metrics import METRICS

ReadIn = Literal["paper", "paper*", "review", "code"]
"""Where a number was read: the paper; a third party's account of it; a review of it; a file in its repository."""

MEANING: dict[ReadIn, str] = {
    "paper": "in the paper itself",
    "paper*": "the paper's number as a third party gives it: check before quoting",
    "review": "in a published review of the paper",
    "code": "in a file of the released code",
}


def _check_metric(name: str) -> str:
    """Columns may hold one domain's clients only, so their metric is one that clients are measured by, or HM."""
    known = [metric.name for metric in METRICS if metric.unit == "%" and (metric.measure or metric.name == "hm")]
    if name not in known:
        raise ValueError(f"no such metric; known: {', '.join(known)}")
    return name


MetricName = Annotated[str, AfterValidator(_check_metric)]
Identifier = Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
Value = bool | int | float | str | list[str]
Strings = Annotated[list[str], Field(default_factory=list)]

_NUMBER = re.compile(r"(\d+(?:\.\d+)?)(?:±(\d+(?:\.\d+)?))?")


@dataclass(frozen=True)
class PublishedNumber:
    """A published number as it is printed, such as `98.41±0.04`: accuracies in per cent."""

    text: str

    @property
    def mean(self) -> float:
        """Before the sign."""
        return float(self.text.split("±")[0])

    @property
    def std(self) -> float | None:
        """After it; None where none was published."""
        return float(self.text.split("±")[1]) if "±" in self.text else None


class PublishedProtocol(Section):
    """How the published numbers were made, as far as it is stated."""

    backbone: Literal["RN50", "ViT-B/16", "not noted"] = "not noted"
    clients: str
    participation: str
    rounds: str
    shots: str
    partition: str
    metric: str
    state: str
    """The clients' state that was tested."""


class PublishedRun(Section):
    """The `fedvlm run` that makes a column."""

    data: str
    """Of the catalogue."""
    preset: str | None = None
    """The table's where not given."""
    settings: Strings
    """Laid over the table's."""


class PublishedColumn(Section):
    """A column, the mean over its runs of one metric."""

    title: str
    runs: Strings
    metric: MetricName = "local"
    domain: str | None = None
    """Only clients of this domain."""
    absent: str | None = None
    """Why no run here gives it."""
    read: ReadIn | None = None
    """Where it was read, unless where the table was."""
    void: str | None = None
    reasons: Strings


class PublishedRow(Section):
    """A method's row."""

    title: str
    cells: list[str]
    """In the order of the columns; `-` where nothing was published."""
    method: str | None = None
    settings: Annotated[dict[str, Value], Field(default_factory=dict)]
    """Of the method. A row that has some, or is not named like its method, is a variant of it."""
    run: Strings
    """Settings of the experiment for this row alone."""
    count: Literal["train", "test"] | None = None
    """Instead of a method: images are counted, nothing is trained."""
    absent: str | None = None
    """Why nothing here makes it."""
    void: str | None = None
    """The fault for which these numbers cannot be reproduced."""
    reasons: Strings

    @model_validator(mode="after")
    def _one_way(self) -> PublishedRow:
        if sum(way is not None for way in (self.method, self.count, self.absent)) != 1:
            raise ValueError(f"row '{self.title}' needs exactly one of method, count and absent")
        wrong = [cell for cell in self.cells if cell != "-" and not _NUMBER.fullmatch(cell)]
        if wrong:
            raise ValueError(f"row '{self.title}' has cells that are no numbers: {wrong}")
        return self


class PublishedTable(Section):
    """One published table."""

    title: str
    paper: str
    venue: str
    arxiv: str | None = None
    place: str
    """Which table of the paper."""
    read: ReadIn
    source: str
    """What exactly was read."""
    unit: Literal["%", "images"] = "%"
    preset: str | None = None
    settings: Strings
    """Laid over the preset."""
    void: str | None = None
    reasons: Strings
    protocol: PublishedProtocol
    runs: Annotated[dict[Identifier, PublishedRun], Field(default_factory=dict)]
    columns: Annotated[dict[Identifier, PublishedColumn], Field(min_length=1)]
    rows: Annotated[dict[Identifier, PublishedRow], Field(min_length=1)]

    @model_validator(mode="after")
    def _fits(self) -> PublishedTable:
        for name, column in self.columns.items():
            if bool(column.runs) == (column.absent is not None):
                raise ValueError(f"column '{name}' needs either runs or a reason why it is absent")
            if unknown := set(column.runs) - self.runs.keys():
                raise ValueError(f"column '{name}' names runs that are not there: {sorted(unknown)}")
        for name, row in self.rows.items():
            if len(row.cells) != len(self.columns):
                raise ValueError(f"row '{name}' has {len(row.cells)} cells for {len(self.columns)} columns")
            if row.method == name and row.settings:
                raise ValueError(f"row '{name}' has settings: name it otherwise, or variants would inherit them")
        if spare := self.runs.keys() - {run for column in self.columns.values() for run in column.runs}:
            raise ValueError(f"no column uses the runs {sorted(spare)}")
        if bare := [name for name, run in self.runs.items() if not (run.preset or self.preset)]:
            raise ValueError(f"no preset for the runs {bare}")
        if self.runs and self.unit == "%" and self.protocol.backbone == "not noted":
            raise ValueError("what is run needs a backbone")
        return self

    def number(self, row: str, column: str) -> PublishedNumber | None:
        """A cell; None where nothing was published."""
        text = self.rows[row].cells[list(self.columns).index(column)]
        return None if text == "-" else PublishedNumber(text)

    @cached_property
    def cells(self) -> list[tuple[str, str]]:
        """Row and column of every published number."""
        return [(r, c) for r in self.rows for c in self.columns if self.number(r, c) is not None]

    def read_at(self, column: str) -> ReadIn:
        """Where a column's numbers were read."""
        return self.columns[column].read or self.read

    def void_for(self, row: str, column: str) -> str | None:
        """The fault that makes a cell void, if any."""
        return self.void or self.rows[row].void or self.columns[column].void

    def reasons_for(self, row: str, column: str) -> list[str]:
        """All known reasons for a gap in a cell, the one that makes it void first."""
        void = self.void_for(row, column)
        found = [*([void] if void else []), *self.rows[row].reasons, *self.columns[column].reasons, *self.reasons]
        return list(dict.fromkeys(found))


class Dataset(Section):
    """A data set of the catalogue."""

    title: str
    folders: Annotated[list[str], Field(min_length=1)]
    """Names it may have in the user's data folder."""
    holds: Annotated[list[str], Field(min_length=1)]
    """Patterns, one of which something in the folder must meet."""
    get: str
    """Where it is to be had."""


class PublishedWeights(Section):
    """Published weights."""

    ids: Annotated[list[str], Field(min_length=1)]
    """Hub ids that hold them; the first one is used."""


class Catalogue(Section):
    """Data sets and weights by name."""

    data: dict[str, Dataset]
    weights: dict[str, PublishedWeights]
