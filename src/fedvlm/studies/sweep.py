"""`fedvlm sweep`: comparisons of methods at several values of one setting."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedvlm import durable, experiment, methods, overrides
from fedvlm.errors import FedvlmError, listed
from fedvlm.experiment import Experiment
from fedvlm.reports import grid
from fedvlm.reports import statistics as stats
from fedvlm.reports import text as comparison_text
from fedvlm.reports.charts import accuracy, plot
from fedvlm.reports.columns import columns
from fedvlm.reports.comparison import Comparison
from fedvlm.reports.grid import Cells
from fedvlm.reports.statistics import Difference
from fedvlm.studies import compare as comparing
from fedvlm.studies import study
from fedvlm.studies.study import Options, Plan

FIXED = ("methods", "seeds", "name", "compute")
"""Settings that cannot be swept: they are the same for all values, or change no result."""

Tables = dict[str, tuple[Cells, list[Cells]]]
"""Headings and rows by title."""


@dataclass(frozen=True)
class SweepPlan:
    """The experiments of a sweep, one for each value."""

    name: str
    key: str
    values: list[Any]
    experiments: list[Experiment]


@dataclass(frozen=True)
class Sweep:
    """Finished comparisons, one for each value."""

    name: str
    key: str
    values: list[Any]
    comparisons: list[Comparison]
    failed: dict[str, str] = field(default_factory=dict)
    """The reason of a failure by value (as text), for values without a comparison."""

    @property
    def complete(self) -> bool:
        """Whether every method has numbers at every value."""
        return not self.failed and not any(one.failed for one in self.comparisons)

    @property
    def methods(self) -> list[str]:
        """Methods that have numbers at some value, in the order of the rows."""
        return list(dict.fromkeys(row.method for one in self.comparisons for row in one.rows))

    def __iter__(self) -> Iterator[tuple[str, Comparison]]:
        """Pairs of a value (as text) and its comparison."""
        return zip(map(overrides.format_value, self.values), self.comparisons, strict=True)

    def corrected(self, metric: str) -> dict[tuple[str, str], float | None]:
        """p by value and method, corrected for all values and methods together (Holm)."""
        raw = {(value, row.method): row.differences[metric].p
               for value, one in self for row in one.rows if metric in row.differences}  # fmt: skip
        return stats.holm(raw)

    def as_json(self) -> dict[str, object]:
        """All results per value and seed; `corrected` is for one value, `corrected_over_values` for all values."""
        over_all = {
            metric: [
                {"value": value, "method": method, "p": p} for (value, method), p in self.corrected(metric).items()
            ]
            for metric in (m.name for m in columns("subtracted"))
        }
        parts = [{"value": value} | one.as_json() for value, one in self]
        return {"name": self.name, "key": self.key, "comparisons": parts, "corrected_over_values": over_all,
                "failed": self.failed}  # fmt: skip


def plan(settings: Mapping[str, Any], words: Sequence[str], over: str = "") -> SweepPlan:
    """The sweep of `over` (`key=a,b,c`), or of the table `[sweep]` in the settings.

    Raises `FedvlmError` unless exactly one setting is swept, for fewer than two values, for an invalid value, and for
    values that make no difference to these methods.
    """
    key, values = overrides.parse_values(over) if over else _single_setting(settings.get("sweep", {}))
    values = [value if isinstance(value, list) or key not in overrides.LIST_SETTINGS else [value] for value in values]
    if key.split(".")[0] in FIXED:
        raise FedvlmError(f"'{key}' cannot be swept: it is the same for all values of a sweep")
    base = overrides.apply_words({**settings, "sweep": {key: values}}, words)
    if "sweep" not in base:
        raise FedvlmError(f"'{key}' is both swept and set: leave one of them out")
    del base["sweep"]
    experiment.warn_renamed(base)
    if len(values) < 2:
        raise FedvlmError(f"a sweep needs two or more values of '{key}', not {values}")
    planned: list[Experiment] = []
    for value in values:
        varied = copy.deepcopy(base)
        overrides.set_value(varied, key, value)
        planned.append(experiment.parse(varied))
    if planned[0].faults or key == "faults":
        raise FedvlmError("a sweep is of right runs only: fedvlm audit says what faults are worth")
    _check_distinct(key, [overrides.format_value(value) for value in values], planned)
    return SweepPlan(planned[0].name, key, values, planned)


def _single_setting(table: Any) -> tuple[str, list[Any]]:
    """The setting and the values of a table `[sweep]`. Raises `FedvlmError` unless it has one setting."""
    if not isinstance(table, dict) or len(table) != 1 or not isinstance(next(iter(table.values())), list):
        raise FedvlmError(
            "one setting with its values is swept: --over data.shots=1,2,4, or a table [sweep] with data.shots = "
            f"[1, 2, 4]; here is {listed(table) if isinstance(table, dict) and table else 'none'}"
        )
    ((key, values),) = table.items()
    return key, values


def _check_distinct(key: str, texts: Sequence[str], planned: Sequence[Experiment]) -> None:
    """Raise `FedvlmError` for values that give these methods the same experiment, or the same folder."""
    seen: dict[tuple[object, ...], str] = {}
    for text, one in zip(texts, planned, strict=True):
        built = [methods.build(name, one.method) for name in one.methods]
        each = (one.basis(), *((method.name, method.config.model_dump_json()) for method in built))
        if each in seen:
            raise FedvlmError(f"'{key}': {seen[each]} and {text} make no difference to {listed(one.methods)}")
        seen[each] = text
    if len({overrides.folder_name(key, text) for text in texts}) < len(texts):
        raise FedvlmError(f"'{key}': two of {', '.join(texts)} would have the same folder")


def sweep(
    planned: SweepPlan,
    folder: Path,
    *,
    against: str | None = None,
    options: Options | None = None,
) -> Sweep:
    """Run all unfinished values in one folder each, then write the tables and the picture.

    A failed value or method does not stop the others. Raises `FedvlmError` if all values fail, or if another setting
    was swept in `folder`.
    """
    chosen = comparing.reference(planned.experiments[0], against)
    before = durable.read_json(folder / "sweep.json") if (folder / "sweep.json").exists() else {"key": planned.key}
    if before["key"] != planned.key:
        raise FedvlmError(f"{folder} holds a sweep of '{before['key']}': choose another --out for '{planned.key}'")
    swept = Sweep(planned.name, planned.key, [], [])
    for value, one in zip(planned.values, planned.experiments, strict=True):
        text = overrides.format_value(value)
        named = one.model_copy(update={"name": f"{one.name} {planned.key}={text}"})
        outcome = study.attempt(Plan(named, folder / overrides.folder_name(planned.key, text)), options or Options())
        if outcome.error:
            swept.failed[text] = outcome.error
            continue
        swept.values.append(value)
        swept.comparisons.append(comparing.write(outcome.results, chosen))
    if not swept.comparisons:
        raise FedvlmError("\n".join(f"{planned.key}={text}: {error}" for text, error in swept.failed.items()))
    _write(swept, folder)
    return swept


def _write(swept: Sweep, folder: Path) -> None:
    tables, lines = sweep_tables(swept), reading_notes(swept)
    text = [f"# {swept.name}: {swept.key}", "", *(f"{title}\n\n{grid.markdown(*t)}\n" for title, t in tables.items())]
    durable.write_text(folder / "sweep.md", "\n".join([*text, *(f"- {note}" for note in lines)]) + "\n")
    latex = [f"% {title}\n{grid.latex(*table)}\n" for title, table in tables.items()]
    durable.write_text(folder / "sweep.tex", "\n".join([*latex, *(f"% {note}" for note in lines)]) + "\n")
    records = [{swept.key: value, **record} for value, one in swept for record in comparison_text.records(one)]
    durable.write_text(folder / "sweep.csv", grid.csv(records, comparison_text.REACHED))
    durable.write_json(folder / "sweep.json", swept.as_json())
    plot.write(accuracy.sweep(swept.key, dict(swept), swept.name), folder, ("png", "svg"))


def sweep_tables(swept: Sweep, *, short: bool = False) -> Tables:
    """Tables of methods by values: accuracies, and differences from the reference; `short`: without corrected p."""
    by_value = {value: {row.method: row for row in one.rows} for value, one in swept}
    failed = {value: one.failed for value, one in swept}
    first = swept.comparisons[0]
    heads = [swept.key, *by_value]
    tables: Tables = {}
    for metric in columns("sweep", {name for one in swept.comparisons for row in one.rows for name in row.values}):
        tables[metric.heading] = heads, [
            [method, *(comparison_text.format_accuracy(metric, rows[method].estimate(metric.name)) if method in rows
                       else failed[value][method] for value, rows in by_value.items())]
            for method in swept.methods
        ]  # fmt: skip
    if len(swept.methods) < 2:
        return tables
    brackets = "" if len(first.seeds) == 1 else ", in brackets p" if short else ", in brackets p; corrected"
    for metric in columns("subtracted"):
        name, over_all = metric.name, swept.corrected(metric.name)
        tables[f"{metric.heading} less that of {first.against}{brackets}"] = heads, [
            [method, *(_format_difference(rows[method].differences[name], None if short else over_all[value, method])
                       if method in rows and name in rows[method].differences else "-"
                       for value, rows in by_value.items())]
            for method in swept.methods if method != first.against
        ]  # fmt: skip
    return tables


def _format_difference(one: Difference, corrected: float | None) -> str:
    words, _ = comparison_text.format_difference(one)
    if one.p is None:
        return words
    return f"{words} ({one.p:.2g})" if corrected is None else f"{words} ({one.p:.2g}; {corrected:.2g})"


def reading_notes(swept: Sweep) -> list[str]:
    """Notes on how to read the tables, and on the data at each value."""
    rows = [row for one in swept.comparisons for row in one.rows]
    seeds, tested = len(swept.comparisons[0].seeds), len(swept.corrected(columns("subtracted")[0].name))
    text = [f"{swept.key}={value} failed: {error}" for value, error in swept.failed.items()]
    text += [f"{swept.key}={value}, {method}: {words}; no mean over the other seeds."
             for value, one in swept for method, words in one.failed.items()]  # fmt: skip
    if seeds == 1:
        text.append("One seed: no intervals, no tests.")
    else:
        text.append(f"{seeds} seeds; ± is half a 95 % interval (Student's t over seeds).")
    if seeds > 1 and tested:
        least = stats.least_p(seeds)
        text.append(
            f"p: two-sided, by flipping the signs of whole seeds; with {seeds} seeds it cannot be below {least:.2g}, "
            f"and corrected for the {tested} differences of a table together (Holm) not below "
            f"{min(1.0, tested * least):.2g}."
        )
    if len({tuple(name for name in stats.SCORED if name in row.values) for row in rows}) > 1:
        text.append("HM is of those of Local, Base and Novel that a value has: not the same for all values here.")
    after = dict.fromkeys(row.method for row in rows if row.state == "after_training")
    if after:
        text.append(f"Measured after local training, as published: {listed(after, 40)}; the others after aggregation.")
    by_note: dict[str, list[str]] = {}
    for value, one in swept:
        for note in one.notes:
            by_note.setdefault(note, []).append(value)
    for note, values in by_note.items():
        text.append(note if len(values) == len(swept.comparisons) else f"At {', '.join(values)}: {note}")
    return text
