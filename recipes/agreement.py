"""Do methods differ here as they do in the two papers' tables? Signs of all published differences above two points.

    python recipes/agreement.py runs/compare-quickstart runs/compare-common_style
    python recipes/agreement.py --for-local runs/compare-quickstart runs/compare-common_style

Reads folders of `fedvlm run` or `fedvlm compare`. For every pair of methods that a folder and a table share: the
published difference, ours with its 95 % interval over seeds, and whether the signs agree. `unclear`: the interval holds
zero. `--for-local`: methods at the rates that were chosen for Local (NAME_for_local in the place of NAME, where the
folder has it).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from calibrate import format_estimate
from tune import FOR_LOCAL

from fedvlm.reports import grid
from fedvlm.reports.statistics import Estimate, estimate
from fedvlm.runs.folder import RunFolder
from fedvlm.runs.result import PointResult
from fedvlm.studies.published import library
from fedvlm.studies.published.schema import PublishedTable

TABLES = ("pfedmma-main", "pfedmoap-1")
LEAST = 2.0
"""Published differences in points that count."""

Results = dict[str, list[PointResult]]
"""By method, one for each seed."""


@dataclass(frozen=True)
class Pair:
    """A published difference and ours, in points."""

    table: str
    metric: str
    first: str
    second: str
    published: float
    ours: Estimate

    @property
    def agrees(self) -> bool:
        """Whether the signs are the same."""
        return self.published * self.ours.mean > 0

    @property
    def clear(self) -> bool:
        """Whether our interval leaves zero out."""
        return self.ours.half is not None and abs(self.ours.mean) > self.ours.half


def results(folder: Path, for_local: bool = False) -> Results:
    """The finished points of the methods that have all seeds; `for_local`: at the rates chosen for Local."""
    settings = json.loads((folder / "experiment.json").read_text())["experiment"]
    found: Results = {}
    for method in settings["methods"]:
        points = [RunFolder(folder).point(seed, method).result() for seed in settings["seeds"]]
        if all(points):
            found[method] = [point for point in points if point]
    return at_rates(found, for_local)


def at_rates(found: Results, for_local: bool) -> Results:
    """Each method once: at the rates chosen for Local, where there are others, or at those of its own table."""
    other = {method.removesuffix(FOR_LOCAL): points for method, points in found.items() if method.endswith(FOR_LOCAL)}
    own = {method: points for method, points in found.items() if not method.endswith(FOR_LOCAL)}
    return own | (other if for_local else {})


def published(table: PublishedTable) -> dict[str, dict[str, float]]:
    """Means by metric and method: over the data sets, where a table has several columns of one metric."""
    found: dict[str, dict[str, float]] = {}
    for metric in dict.fromkeys(column.metric for column in table.columns.values()):
        columns = [name for name, column in table.columns.items() if column.metric == metric]
        for row, entry in table.rows.items():
            numbers = [number for name in columns if (number := table.number(row, name))]
            if row == entry.method and len(numbers) == len(columns):
                found.setdefault(metric, {})[row] = sum(number.mean for number in numbers) / len(numbers)
    return found


def pairs(ours: Results, name: str) -> Iterator[Pair]:
    """All pairs of one table."""
    for metric, values in published(library.table(name)).items():
        for first, second in combinations([method for method in values if method in ours], 2):
            if abs(gap := values[first] - values[second]) <= LEAST:
                continue
            both = ([100 * point.reported[metric] for point in ours[method]] for method in (first, second))
            yield Pair(name, metric, first, second, gap, estimate([a - b for a, b in zip(*both, strict=True)]))


def text(found: list[Pair]) -> str:
    """The pairs in Markdown, disagreements first, and the counts."""
    rows = []
    for pair in sorted(found, key=lambda pair: (pair.agrees, not pair.clear)):
        same = ("yes" if pair.agrees else "**no**") + ("" if pair.clear else ", unclear")
        methods, here = f"{pair.first} - {pair.second}", format_estimate(pair.ours)
        rows.append([pair.table, pair.metric, methods, f"{pair.published:+.1f}", here, same])
    lines = [grid.markdown(["table", "metric", "methods", "published", "here", "same sign?"], rows)]
    for name in dict.fromkeys(pair.table for pair in found):
        mine = [pair for pair in found if pair.table == name]
        right, clear = [pair for pair in mine if pair.agrees], [pair for pair in mine if pair.clear]
        wrong = sum(not pair.agrees for pair in clear)
        lines += ["", f"{name}: {len(right)} of {len(mine)} signs agree; {wrong} of {len(clear)} clear ones do not."]
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="folders of finished runs")
    parser.add_argument("--for-local", action="store_true", help="methods at the rates chosen for Local")
    parser.add_argument("--without", default="", help="methods to leave out: a,b,..")
    arguments = parser.parse_args()
    left_out = {name for name in arguments.without.split(",") if name}
    for folder in arguments.folders:
        found = results(folder, arguments.for_local)
        if unknown := left_out - found.keys():
            parser.error(f"--without {','.join(sorted(unknown))}: not among the methods of {folder}")
        ours = {method: points for method, points in found.items() if method not in left_out}
        print(f"## {folder.name}\n\n{text([pair for table in TABLES for pair in pairs(ours, table)])}\n")


if __name__ == "__main__":
    main()
