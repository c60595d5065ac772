"""The schema of files of published tables. Unknown keys, dangling references and wrong numbers of cells are errors."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from fedvlm.config import Section
from fedvlm.training.metrics import METRICS

ReadIn = Literal["paper", "paper*", "review", "code"]
"""Where a number was read: the paper, a third party that quotes it, a review, or a file of the released code."""

MEANING: dict[ReadIn, str] = {
    "paper": "in the paper itself",
    "paper*": "the paper's number as a third party gives it: check before quoting",
    "review": "in a published review of the paper",
    "code": "in a file of the released code",
}


def _check_metric(name: str) -> str:
    """Raise ValueError unless a metric is measured at clients, or is HM: a column may be of one domain's clients."""
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
        """The mean: the number before `±`."""
        return float(self.text.split("±")[0])

    @property
    def std(self) -> float | None:
        """The standard deviation: the number after `±`; None if none was published."""
        return float(self.text.split("±")[1]) if "±" in self.text else None


class PublishedProtocol(Section):
    """The protocol of the published numbers, as far as it is stated."""

    backbone: Literal["RN50", "ViT-B/16", "not noted"] = "not noted"
    clients: str
    participation: str
    rounds: str
    shots: str
    partition: str
    metric: str
    state: str
    """The state of the clients that was tested."""


class PublishedRun(Section):
    """The `fedvlm run` that gives a column."""

    data: str
    """Name of the data set in the catalogue."""
    preset: str | None = None
    """The preset; by default that of the table."""
    settings: Strings
    """Settings that are laid over those of the table."""


class PublishedColumn(Section):
    """A column: the mean of one metric over its runs."""

    title: str
    runs: Strings
    metric: MetricName = "local"
    domain: str | None = None
    """The domain of the clients that count; None: all clients."""
    absent: str | None = None
    """The reason why no run gives the column; else None."""
    read: ReadIn | None = None
    """Where the column was read; by default where the table was read."""
    void: str | None = None
    reasons: Strings


class PublishedRow(Section):
    """A method's row."""

    title: str
    cells: list[str]
    """Numbers in the order of the columns; `-` if nothing was published."""
    method: str | None = None
    settings: Annotated[dict[str, Value], Field(default_factory=dict)]
    """Settings of the method. A row with settings, or with another name than its method, is a variant of it."""
    run: Strings
    """Settings of the experiment for this row alone."""
    count: Literal["train", "test"] | None = None
    """Instead of a method: the split whose images are counted, without training."""
    absent: str | None = None
    """The reason why no method gives the row; else None."""
    void: str | None = None
    """The fault because of which these numbers cannot be reproduced."""
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
    """Number of the table in the paper."""
    read: ReadIn
    source: str
    """The document that was read."""
    unit: Literal["%", "images"] = "%"
    preset: str | None = None
    settings: Strings
    """Settings that are laid over the preset."""
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
        """The number of a cell; None if nothing was published."""
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
        """The fault that makes a cell void, or None."""
        return self.void or self.rows[row].void or self.columns[column].void

    def reasons_for(self, row: str, column: str) -> list[str]:
        """All known reasons for a difference in a cell; a fault that makes it void comes first."""
        void = self.void_for(row, column)
        found = [*([void] if void else []), *self.rows[row].reasons, *self.columns[column].reasons, *self.reasons]
        return list(dict.fromkeys(found))


class Dataset(Section):
    """A data set of the catalogue."""

    title: str
    folders: Annotated[list[str], Field(min_length=1)]
    """Possible names of the data set in the user's data folder."""
    holds: Annotated[list[str], Field(min_length=1)]
    """Patterns, one of which must match a file in the folder."""
    get: str
    """How to get the data set."""


class PublishedWeights(Section):
    """Published weights."""

    ids: Annotated[list[str], Field(min_length=1)]
    """Hub ids that hold the weights; the first one is used."""


class Catalogue(Section):
    """Data sets and weights by name."""

    data: dict[str, Dataset]
    weights: dict[str, PublishedWeights]
