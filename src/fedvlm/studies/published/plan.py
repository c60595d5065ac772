"""The plan to reproduce a published table: obstacles of every cell, and runs for the possible cells."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from fedvlm import experiment, methods, overrides, presets
from fedvlm.clip import ModelSection
from fedvlm.errors import FedvlmError, nearest
from fedvlm.experiment import Experiment
from fedvlm.studies.published import inventory, library
from fedvlm.studies.published.inventory import DatasetLocation, Weights
from fedvlm.studies.published.schema import PublishedRow, PublishedTable, Value
from fedvlm.training.device import ComputeSection

_OURS = {"methods": "--rows", "seeds": "--seeds", "data": "--data", "data.path": "--data", "data.source": "--data",
         "model": "--model", "model.name": "--model"}  # fmt: skip
_HARMLESS = {
    "evaluation.every", "evaluation.batch", "model.offline", "name",
    *(f"compute.{key}" for key in (*ComputeSection.model_fields, *ComputeSection.renamed().values())),
} - {"compute.dtype", "compute.cache_dtype", "compute.kept_as"}  # fmt: skip
"""Settings that change no result."""


@dataclass(frozen=True)
class Request:
    """A request to reproduce a table; None: everything, or the value of the table."""

    data: Path = Path("data")
    model: str | None = None
    rows: Sequence[str] | None = None
    columns: Sequence[str] | None = None
    seeds: Sequence[int] | None = None
    words: Sequence[str] = ()
    offline: bool = False
    """Do not download anything."""

    @property
    def changed(self) -> list[str]:
        """`key=value` words that depart from the published protocol."""
        return [word for word in self.words if _key(word) not in _HARMLESS]


@dataclass(frozen=True)
class Obstacle:
    """A reason why a cell cannot be reproduced here."""

    kind: Literal["not here", "method", "preset", "settings", "data", "weights"]
    text: str

    @property
    def fixable(self) -> bool:
        """Whether only data or weights are missing."""
        return self.kind in ("data", "weights")


Cells = Mapping[tuple[str, str], tuple[Obstacle, ...]]
"""Obstacles of each cell, by row and column."""


@dataclass(frozen=True)
class Job:
    """One run, for all rows with the same settings."""

    run: str
    preset: str
    head: tuple[str, ...]
    """Settings that precede those of the rows."""
    rows: Mapping[str, tuple[str, ...]]
    """Settings of each row's method."""
    tail: tuple[str, ...]
    """Requested settings, which come last."""
    counts: bool = False
    """Whether images are only counted, without training."""
    ready: bool = True
    """Whether the run gives a cell whose data and weights are all available."""

    @property
    def words(self) -> tuple[str, ...]:
        """All settings in addition to the preset."""
        named = () if self.counts else (f"methods={','.join(self.rows)}",)
        return (*self.head, *named, *(word for words in self.rows.values() for word in words), *self.tail)

    def experiment(self) -> Experiment:
        """The experiment of the command."""
        return experiment.load(self.preset, self.words)

    @property
    def command(self) -> str:
        """The command line of the run."""
        return shlex.join(["fedvlm", "partition" if self.counts else "run", self.preset, *self.words])


@dataclass(frozen=True)
class ReproductionPlan:
    """A table with a request: obstacles of each cell, and runs."""

    name: str
    table: PublishedTable
    request: Request
    weights: Weights | None
    """The weights; None if no cell needs any."""
    cells: Cells
    jobs: tuple[Job, ...]

    @property
    def possible(self) -> list[tuple[str, str]]:
        """Cells without obstacles."""
        return [cell for cell, obstacles in self.cells.items() if not obstacles]

    @property
    def comparable(self) -> bool:
        """Whether our numbers are comparable: no weights are needed, or they are the published ones."""
        return self.weights is None or self.weights.published


def plan(name: str, request: Request) -> ReproductionPlan:
    """Plan a table. Raises FedvlmError for a mistake in the request; missing data and weights are obstacles."""
    table = library.table(name)
    _check(request)
    rows, columns = _check_names("row", request.rows, table.rows), _columns(table, request.columns)
    requested = [(row, column) for row, column in table.cells if row in rows and column in columns]
    planner = _Planner(table, request)
    cells, weights = planner.check_weights({(row, column): planner.obstacles(row, column) for row, column in requested})
    return ReproductionPlan(name, table, request, weights, cells, tuple(planner.jobs(cells)))


def _key(word: str) -> str:
    return word.partition("=")[0].strip()


def _check(request: Request) -> None:
    for word in request.words:
        key = _key(word)
        if key in _OURS:
            raise FedvlmError(f"'{word}': the table's runs set {key} themselves: use {_OURS[key]}")


def _check_names(what: str, requested: Sequence[str] | None, known: Mapping[str, object]) -> list[str]:
    for name in requested or ():
        if name not in known:
            raise FedvlmError(f"the table has no {what} '{name}'{nearest(name, known)}; {what}s: {', '.join(known)}")
    return list(known) if requested is None else list(requested)


def _columns(table: PublishedTable, requested: Sequence[str] | None) -> list[str]:
    """Names of requested columns, which may be requested by the name of a run that they need."""
    if requested is None:
        return list(table.columns)
    known = {**dict.fromkeys(table.columns), **dict.fromkeys(table.runs)}
    chosen = _check_names("column", requested, known)
    return [name for name, column in table.columns.items() if name in chosen or set(chosen) & set(column.runs)]


class _Planner:
    """Finds each run's data and each row's method once."""

    def __init__(self, table: PublishedTable, request: Request) -> None:
        self.table, self.request = table, request
        self.found: dict[str, DatasetLocation] = {
            name: inventory.find_dataset(library.catalogue().data[run.data], request.data)
            for name, run in table.runs.items()
        }
        self.known: dict[tuple[str, str], Obstacle | None] = {}

    @property
    def model(self) -> ModelSection:
        """The requested model, or the first of the published ids."""
        name = self.request.model or next(iter(self.ids), "embedded")
        words = [word for word in self.request.words if _key(word).startswith("model.")]
        settings = overrides.apply_words({"model": {"name": name}}, words)
        if self.request.offline:
            settings["model"]["offline"] = True
        return experiment.parse(settings).model

    @property
    def ids(self) -> tuple[str, ...]:
        """Hub ids of the published weights."""
        backbone = self.table.protocol.backbone
        return () if backbone == "not noted" else tuple(library.catalogue().weights[backbone].ids)

    def obstacles(self, row: str, column: str) -> tuple[Obstacle, ...]:
        """All obstacles of a cell except weights."""
        absent = [why for why in (self.table.rows[row].absent, self.table.columns[column].absent) if why]
        if absent:
            return tuple(Obstacle("not here", why) for why in dict.fromkeys(absent))
        found: dict[Obstacle, None] = {}
        for run in self.table.columns[column].runs:
            for obstacle in (self.obstacle(run, row), self.missing(run)):
                if obstacle is not None:
                    found[obstacle] = None
        return tuple(found)

    def missing(self, run: str) -> Obstacle | None:
        """The obstacle of missing data, or None."""
        text = self.found[run].missing
        return None if text is None else Obstacle("data", text)

    def obstacle(self, run: str, row: str) -> Obstacle | None:
        """The obstacle of a method, preset or setting that this version does not have, or None."""
        if (run, row) not in self.known:
            self.known[run, row] = self._obstacle(run, row)
        return self.known[run, row]

    def _obstacle(self, run: str, row: str) -> Obstacle | None:
        method, preset = self.table.rows[row].method, self.preset(run)
        if method is not None and method not in methods.known():
            return Obstacle("method", f"this fedvlm has no method '{method}'")
        if preset not in presets.names():
            return Obstacle("preset", f"this fedvlm has no preset '{preset}'")
        try:
            self.job(run, [row]).experiment()
        except FedvlmError as error:
            plain = _Planner(self.table, replace(self.request, words=()))
            if self.request.words and plain._obstacle(run, row) is None:
                raise  # the requested words are invalid
            return Obstacle("settings", str(error))
        return None

    def preset(self, run: str) -> str:
        """The preset of the run, or of the table."""
        return self.table.runs[run].preset or self.table.preset or ""

    def check_weights(self, cells: Cells) -> tuple[Cells, Weights | None]:
        """Cells with obstacles of missing weights, and the weights; None if no possible cell needs any."""
        need = {cell for cell, found in cells.items() if self._trains(cell[0]) and all(o.fixable for o in found)}
        if not need:
            return cells, None
        model = self.model
        if all(cells[cell] for cell in need):  # nothing would run: check the weights, but do not download them
            model = model.model_copy(update={"offline": True})
        weights = inventory.load_weights(model, self.ids)
        lacking = () if weights.missing is None else (Obstacle("weights", weights.missing),)
        return {cell: (*found, *lacking) if cell in need else found for cell, found in cells.items()}, weights

    def _trains(self, row: str) -> bool:
        return self.table.rows[row].method is not None

    def jobs(self, cells: Cells) -> list[Job]:
        """A run for every group of rows with the same settings, also if only data or weights are missing."""
        ready: dict[tuple[str, str], bool] = {}
        for (row, column), obstacles in cells.items():
            for run in self.table.columns[column].runs if all(o.fixable for o in obstacles) else ():
                ready[run, row] = ready.get((run, row), False) or not obstacles
        groups: dict[tuple[str, tuple[str, ...], bool], list[str]] = {}
        for (run, row), can in sorted(ready.items(), key=lambda item: list(self.table.runs).index(item[0][0])):
            groups.setdefault((run, tuple(self.table.rows[row].run), can), []).append(row)
        return [replace(self.job(run, rows), ready=can) for (run, _, can), rows in groups.items()]

    def job(self, run: str, rows: Sequence[str]) -> Job:
        """The run of some rows; requested settings follow those of the table."""
        first = self.table.rows[rows[0]]
        head = [*self.table.settings, *self.table.runs[run].settings, f"data.path={self.found[run].path}", *first.run]
        counts = first.count is not None
        if not counts:
            head.append(f"model.name={self.model.name}")
        seeds = [] if self.request.seeds is None else [f"seeds={','.join(map(str, self.request.seeds))}"]
        variants = {name: _variant(name, self.table.rows[name]) for name in rows}
        return Job(run, self.preset(run), tuple(head), variants, (*seeds, *self.request.words), counts)


def _variant(name: str, row: PublishedRow) -> tuple[str, ...]:
    """`key=value` words that define the method of a row as a variant of another method."""
    named = [f"method.{name}.method={row.method}"] if row.method not in (None, name) else []
    return (*named, *(f"method.{name}.{key}={_format_setting(value)}" for key, value in row.settings.items()))


def _format_setting(value: Value) -> str:
    return value if isinstance(value, str) else json.dumps(value)
