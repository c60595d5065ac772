"""`fedvlm sweep`: one setting at several values, the methods compared at each of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedvlm import durable, experiment, methods, plain
from fedvlm.errors import FedvlmError, listed
from fedvlm.experiment import Experiment
from fedvlm.results import compare as comparing
from fedvlm.results import comparison_text, figure, grid
from fedvlm.results import statistics as stats
from fedvlm.results.comparison import Comparison, Difference
from fedvlm.results.grid import Cells
from fedvlm.results.progress import Reporter

SHOWN = ("hm", "local", "base", "novel", "tuned")
"""What is tabled, in this order."""
TESTED = ("hm", "local")
FIXED = ("methods", "seeds", "name", "compute", "faults")
"""What is not swept: all values have these in common, or they change no result."""


@dataclass(frozen=True)
class Plan:
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
    found: list[Comparison]

    def __iter__(self) -> Iterator[tuple[str, Comparison]]:
        """Values as they are written, and what was found at them."""
        return zip(map(plain.text, self.values), self.found, strict=True)

    def corrected(self, metric: str) -> dict[tuple[str, str], float | None]:
        """p by value and method, corrected for all of them together (Holm)."""
        raw = {(value, row.method): row.differences[metric].p
               for value, one in self for row in one.rows if metric in row.differences}  # fmt: skip
        return stats.holm(raw)

    def as_json(self) -> dict[str, Any]:
        """Everything, per value and seed; `corrected` in a comparison is for its own methods only."""
        parts = [{"value": value} | one.as_json() for value, one in zip(self.values, self.found, strict=True)]
        tested = {
            metric: [
                {"value": value, "method": method, "p": p} for (value, method), p in self.corrected(metric).items()
            ]
            for metric in TESTED
        }
        return {"name": self.name, "key": self.key, "comparisons": parts, "corrected": tested}


def plan(settings: dict[str, Any], words: Sequence[str], over: str = "") -> Plan:
    """The sweep that `over` (`key=a,b,c`) asks for, or else the settings' own table `[sweep]`.

    Raises `FedvlmError` if there is none or more than one, for fewer than two values, and for a value that is invalid.
    """
    settings = dict(settings)
    own = settings.pop("sweep", {})
    if over:
        own = dict([plain.several(over)])
    if not isinstance(own, dict) or len(own) != 1:
        raise FedvlmError(
            'one setting with its values is swept: --over data.shots=1,2,4, or a table [sweep] with "data.shots" = '
            f"[1, 2, 4]; here is {listed(own) if isinstance(own, dict) and own else 'none'}"
        )
    ((key, values),) = own.items()
    texts = [plain.text(value) for value in values] if isinstance(values, list) else []
    if len(texts) < 2 or len(set(texts)) < len(texts):
        raise FedvlmError(f"a sweep needs two or more different values of '{key}', not {values}")
    if key.split(".")[0] in FIXED:
        raise FedvlmError(f"'{key}' cannot be swept: it is the same for all values of a sweep")
    if any(word.partition("=")[0].strip() == key for word in words):
        raise FedvlmError(f"'{key}' is swept and set besides: leave one of them out")
    if len({_folder(key, text) for text in texts}) < len(texts):
        raise FedvlmError(f"two of {values} would have the same folder, {_folder(key, texts[0])}")
    planned = []
    for value in values:
        varied = plain.override(settings, words)
        plain.put(varied, key, value)
        planned.append(methods.written_out(experiment.parse(varied)))
        methods.check(planned[-1].method)
    return Plan(planned[0].name, key, values, planned)


def sweep(
    planned: Plan,
    folder: Path,
    *,
    against: str | None = None,
    processes: int = 1,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> Sweep:
    """Play what is missing, a folder for each value, and write the tables and the picture of all.

    Raises `FedvlmError` after the last value if any of them failed; the others are finished and tabled then.
    """
    values, found, failed = [], [], []
    for value, chosen in zip(planned.values, planned.experiments, strict=True):
        shown = f"{planned.key}={plain.text(value)}"
        place = folder / _folder(planned.key, plain.text(value))
        named = chosen.model_copy(update={"name": f"{chosen.name} {shown}"})
        try:
            done = comparing.compare(named, place, against=against, processes=processes, overwrite=overwrite,
                                     reporter=reporter)  # fmt: skip
        except FedvlmError as error:
            failed.append(f"{shown}: {error}")
            continue
        values.append(value)
        found.append(done)
        _write(Sweep(planned.name, planned.key, values, found), folder)
    if failed:
        raise FedvlmError("\n".join(failed))
    return Sweep(planned.name, planned.key, values, found)


def _folder(key: str, value: str) -> str:
    return re.sub(r"[^A-Za-z0-9._=+-]", "-", f"{key}={value}")


def _write(swept: Sweep, folder: Path) -> None:
    tables = tabled(swept)
    text = [f"# {swept.name}: {swept.key}", "", *(f"{title}\n\n{grid.markdown(*t)}\n" for title, t in tables.items())]
    durable.write_text(folder / "sweep.md", "\n".join([*text, *notes(swept)]) + "\n")
    latex = [f"% {title}\n{grid.latex(*table)}\n" for title, table in tables.items()]
    durable.write_text(folder / "sweep.tex", "\n".join(latex))
    records = [{swept.key: value} | record for value, one in swept for record in comparison_text.records(one)]
    durable.write_text(folder / "sweep.csv", comparison_text.lines_of(records))
    durable.write_json(folder / "sweep.json", swept.as_json())
    figure.sweep(swept.key, dict(swept), swept.name, folder)


def tabled(swept: Sweep, *, short: bool = False) -> dict[str, tuple[Cells, list[Cells]]]:
    """Heads and rows by title: a metric's accuracies, methods by values, then the differences from the reference.

    `short`: only the corrected p.
    """
    known = dict.fromkeys(row.method for one in swept.found for row in one.rows)
    by_value = {value: {row.method: row for row in one.rows} for value, one in swept}
    heads = [swept.key, *by_value]
    tables: dict[str, tuple[Cells, list[Cells]]] = {}
    for metric in SHOWN:
        if any(metric in row.values for rows in by_value.values() for row in rows.values()):
            cells = [[m, *(comparison_text.accuracy(metric, rows[m].estimate(metric)) for rows in by_value.values())]
                     for m in known]  # fmt: skip
            tables[comparison_text.HEADINGS[metric]] = heads, cells
    against = swept.found[0].against
    for metric in TESTED if len(known) > 1 else ():
        corrected = swept.corrected(metric)
        cells = [[m, *(_difference(rows[m].differences[metric], corrected[value, m], short=short)
                       for value, rows in by_value.items())] for m in known if m != against]  # fmt: skip
        title = f"{comparison_text.HEADINGS[metric]} less that of {against}, in brackets p"
        tables[title + (" corrected" if short else " and p corrected")] = heads, cells
    return tables


def _difference(one: Difference, corrected: float | None, *, short: bool) -> str:
    words, _ = comparison_text.difference(one)
    return (
        words if corrected is None else words + (f" ({corrected:.2g})" if short else f" ({one.p:.2g}; {corrected:.2g})")
    )


def notes(swept: Sweep) -> list[str]:
    """What a reader has to know: how to read the tables, and what the data said at which value."""
    seeds = len(swept.found[0].seeds)
    text = [f"- {seeds} {'seed' if seeds == 1 else 'seeds'}; ± is half a 95 % interval (Student's t over seeds)."]
    tested = sum(len(one.rows) - 1 for one in swept.found)
    if seeds > 1 and tested:
        least = stats.least_p(seeds)
        text.append(
            f"- p: two-sided, by flipping the signs of whole seeds; with {seeds} seeds it cannot be below {least:.2g}. "
            f"Corrected for the {tested} differences of a table together (Holm) it cannot be below "
            f"{min(1.0, tested * least):.2g}."
        )
    if any(row.state == "after_training" for one in swept.found for row in one.rows):
        after = dict.fromkeys(r.method for one in swept.found for r in one.rows if r.state == "after_training")
        text.append(
            f"- Measured after local training, as published: {listed(after, 40)}; the others after aggregation."
        )
    by_note: dict[str, list[str]] = {}
    for value, one in swept:
        for note in one.notes:
            by_note.setdefault(note, []).append(value)
    for note, values in by_note.items():
        text.append(f"- {note}" if len(values) == len(swept.found) else f"- At {', '.join(values)}: {note}")
    return text
