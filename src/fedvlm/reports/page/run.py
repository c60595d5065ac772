"""The chapter of a run, a comparison or a federation: from its folder alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from fedvlm import durable
from fedvlm.errors import FedvlmError, listed
from fedvlm.experiment import Experiment
from fedvlm.federation.records import ClientRecord, RoundRecord
from fedvlm.reports import comparison, text, watch
from fedvlm.reports import statistics as stats
from fedvlm.reports import table as run_table
from fedvlm.reports.charts import accuracy, clients, looks
from fedvlm.reports.charts.chart import Chart
from fedvlm.reports.charts.looks import Looks
from fedvlm.reports.columns import columns
from fedvlm.reports.comparison import Comparison, Target
from fedvlm.reports.page.content import Chapter, Table
from fedvlm.runs.folder import RunFolder
from fedvlm.runs.result import PointResult
from fedvlm.runs.results import newcomer_rows, result_rows


@dataclass(frozen=True)
class RunRead:
    """What a run folder holds."""

    folder: Path
    experiment: Experiment
    saved: Mapping[str, Any]
    labels: list[str]
    points: dict[str, dict[int, PointResult]]
    """Finished points by method and seed."""
    records: dict[str, dict[int, list[RoundRecord]]]

    @cached_property
    def whole(self) -> dict[str, dict[int, PointResult]]:
        """Methods that have a result with every seed."""
        return {name: each for name, each in self.points.items() if len(each) == len(self.experiment.seeds)}

    @property
    def results(self) -> dict[str, list[PointResult]]:
        """Those of `whole`, in the order of the seeds."""
        return {name: list(each.values()) for name, each in self.whole.items()}

    @cached_property
    def failed(self) -> dict[str, str]:
        """Methods that have failed, as the tables of the run say it."""
        file = self.folder / "table.json"
        lines = durable.read_json(file) if file.exists() else []
        return {one["method"]: one["failed"] for one in lines if "failed" in one and one["method"] not in self.whole}

    def visits(self, label: str) -> list[ClientRecord]:
        """Trainings of all clients in all rounds and seeds."""
        return [visit for records in self.records[label].values() for record in records for visit in record.visits]


def read_run(folder: Path) -> RunRead:
    """Read a run folder. Raises `FedvlmError` if it is none, or a result was changed."""
    run = RunFolder(folder)
    experiment, saved = run.begun()
    labels = watch.labels(folder, experiment)
    points: dict[str, dict[int, PointResult]] = {}
    records: dict[str, dict[int, list[RoundRecord]]] = {}
    for label in labels:
        for seed in experiment.seeds:
            point = run.point(seed, label)
            records.setdefault(label, {})[seed] = watch.records(point)
            if found := point.result():
                points.setdefault(label, {})[seed] = found
    return RunRead(folder, experiment, saved, labels, points, records)


def chapter(folder: Path, against: str, *, with_clients: bool) -> Chapter:
    """The chapter of a run, a comparison or a federation."""
    read = read_run(folder)
    title, place = read.experiment.name, str(folder) if with_clients else ""
    settings, again = toml(read.experiment, with_paths=with_clients), _again(read.experiment)
    if not read.whole:
        lead = ["No method has a result with every seed yet."]
        return Chapter(title, place, lead, _unfinished(read), later=facts(read), settings=settings, again=again)
    found = compared(read, against)
    style = looks.of(found)
    return Chapter(
        title,
        place,
        _lead(found, read),
        _unfinished(read),
        [*_comparison_tables(found), *_newcomers(read)],
        _charts(read, found, style, with_clients),
        style,
        [*_other_states(read), *_contract(read), *(_absent(read) if with_clients else ()), *facts(read)],
        settings,
        again,
    )


def _again(experiment: Experiment) -> str:
    """What the settings are good for."""
    if experiment.data.source == "sites":
        return "what all sites have agreed on"
    return Chapter.again


def compared(read: RunRead, against: str = "", *, usual: str = "") -> Comparison:
    """The finished methods of a run, compared as `fedvlm compare` has done it here, if it has.

    The reference: as asked (`against`), `usual` or as in that comparison, zero-shot, or the first method. Raises
    `FedvlmError` if the one that was asked for has no results.
    """
    if against and against not in read.whole:
        raise FedvlmError(
            f"--against '{against}': {read.folder} has no result of it with every seed, but of {listed(read.whole)}"
        )
    file = read.folder / "compare.json"
    before = durable.read_json(file) if file.exists() else {}
    names = (against, usual, before.get("against"), "zero_shot", next(iter(read.whole)))
    chosen = next(name for name in names if name in read.whole)
    target = Target(**before["target"]) if before else None
    found = comparison.compare(read.experiment.name, read.whole, chosen, target)
    return replace(found, notes=tuple(before.get("notes", ())), failed=read.failed)


def _unfinished(read: RunRead) -> list[str]:
    lines = []
    for label in read.labels:
        missing = [seed for seed in read.experiment.seeds if seed not in read.points.get(label, {})]
        if missing and label not in read.failed:
            rounds = {seed: [record.round for record in read.records[label][seed]] for seed in missing}
            far = [f"seed {seed}: {f'round {own[-1]}' if own else 'not begun'}" for seed, own in rounds.items()]
            lines.append(f"{label} has no result yet ({listed(far)}) and is not in the tables and figures.")
    return lines


def _lead(found: Comparison, read: RunRead) -> list[str]:
    """What a reader wants to know first."""
    rows, seeds = found.rows, len(found.seeds)
    people = {visit.client for label in read.labels for visit in read.visits(label)}
    people |= {
        name for row in rows for point in read.whole[row.method].values() for name in point.clients.get(point.state, {})
    }
    lines = [
        f"{many(len(rows), 'method')}, {many(len(people), 'client')}, {many(seeds, 'seed')}, "
        f"{many(read.experiment.rounds, 'round')}."
    ]
    for metric in columns("core", {name for row in rows for name in row.values}):
        each = [(one, row.method) for row in rows if (one := row.estimate(metric.name))]
        best, method = max(each, key=lambda pair: pair[0].mean)
        parts = [name for name in stats.SCORED if any(name in row.values for row in rows)]
        if len(rows) > 1 and (metric.name == "local" or (metric.name == "hm" and len(parts) > 1)):
            lines.append(f"Best {metric.heading}: {method} with {text.format_accuracy(metric, best)}.")
    if seeds == 1 and read.experiment.data.source != "sites":
        lines.append("One seed: differences may be chance (fedvlm compare with seeds=0,1,2 gives intervals).")
    return lines


def many(count: int, word: str) -> str:
    """A number with its word, such as `3 clients`."""
    return f"{count:,} {word}{'s' * (count != 1)}"


def _comparison_tables(found: Comparison) -> list[Table]:
    notes = ["Bold: the highest mean of its column.", *(one.removeprefix("- ") for one in text.reading_notes(found))]
    tables = [Table("Accuracy", *text.accuracies(found), notes, name="accuracy")]
    if found.compared:
        about = [f"Method less {found.against}, paired within seeds; p in brackets is corrected (Holm)."]
        tables.append(Table(f"Differences from {found.against}", *text.differences(found), about, name="differences"))
    return tables


def _charts(read: RunRead, found: Comparison, style: Looks, with_clients: bool) -> list[Chart]:
    whole = read.whole
    curves = {name: [point.curve for point in each.values()] for name, each in whole.items()}
    seconds = {name: [(point.train_s, point.evaluate_s) for point in each.values()] for name, each in whole.items()}
    charts = [
        accuracy.tradeoff(found, "Personalisation against generalisation", style),
        accuracy.rounds(curves, read.experiment.rounds, "Accuracy per round", style),
        clients.accuracies(_by_client(whole), style, len(found.seeds)) if with_clients else None,
        _partition(read) if with_clients else None,
        accuracy.sizes(found, style),
        accuracy.times(seconds),
        *(_helpers(read) if with_clients else ()),
        accuracy.calibration(found, style),
    ]
    return [chart for chart in charts if chart is not None and chart.panels]


def _by_client(whole: Mapping[str, Mapping[int, PointResult]]) -> clients.Accuracies:
    """Local by method and client, means over seeds."""
    return {
        method: clients.mean_over_seeds(
            [
                {name: one["local"] for name, one in point.clients.get(point.state, {}).items() if "local" in one}
                for point in each.values()
            ]
        )
        for method, each in whole.items()
    }


def _partition(read: RunRead) -> Chart | None:
    seed = read.experiment.seeds[0]
    file = read.folder / f"seed-{seed}" / "partition.json"
    return clients.partition(durable.read_json(file), seed) if file.exists() else None


def _helpers(read: RunRead) -> list[Chart]:
    seed, found = read.experiment.seeds[0], []
    for label in read.whole:
        records = read.records[label][seed]
        if records and (chart := clients.helpers(records[-1].experts, label, seed)):
            found.append(chart)
    return found


def _newcomers(read: RunRead) -> list[Table]:
    """Clients that joined after the last round."""
    rows = newcomer_rows(read.results)
    if not rows:
        return []
    about = ["Means over clients that joined after the last round; all other tables and figures are without them."]
    return [Table("Newcomers", *run_table.newcomers_cells(rows, columns("core")), about)]


def _other_states(read: RunRead) -> list[Table]:
    """The same runs in the state that is not the reported one."""
    rows = [row for row in result_rows(read.results) if not row.reported]
    if not rows:
        return []
    about = ["Mean ± standard deviation over seeds, in the state that the methods do not report."]
    return [Table("The other state", *run_table.cells(rows), about)]


def _contract(read: RunRead) -> list[Table]:
    """What leaves a client: as promised before training; between machines, as recorded."""
    file = read.folder / "contract.json"
    if not file.exists():
        return _sent(read)
    rows = [
        [
            line["method"],
            listed(line["leaves"], 4) or "nothing",
            f"{line['up_bytes']:,}",
            "-".join(f"{size:,}" for size in dict.fromkeys(line["down_bytes"])),
            f"{line['private']:,}",
            line["exposes"] or "nothing",
        ]
        for line in durable.read_json(file)
    ]
    heads = ["method", "tensors that leave a client", "up B", "down B", "numbers that stay", "others see"]
    return [Table("What leaves a client", heads, rows, ["Bytes of one client in one round."], words=True)]


def _sent(read: RunRead) -> list[Table]:
    """Tensors and bytes of all visits, from the ledgers."""
    rows = []
    for label in read.labels:
        visits = read.visits(label)
        names = list(dict.fromkeys(f"{name} ({size:,} B)" for visit in visits for name, size in visit.up_bytes.items()))
        if visits:
            up, down = (
                fmean(sum(sizes.values()) for sizes in each)
                for each in ([visit.up_bytes for visit in visits], [visit.down_bytes for visit in visits])
            )
            rows.append([label, listed(names, 4) or "nothing", f"{up:,.0f}", f"{down:,.0f}"])
    heads = ["method", "tensors that have left a client", "up B", "down B"]
    about = ["As recorded; means over visits. What may leave is in each site's policy (fedvlm site check)."]
    return [Table("What has left a client", heads, rows, about, words=True)] if rows else []


def _absent(read: RunRead) -> list[Table]:
    """Sites that did not reply."""
    rows = [
        [f"{label}, seed {seed}", str(record.round), name, why]
        for label, by_seed in read.records.items()
        for seed, records in by_seed.items()
        for record in records
        for name, why in record.absent.items()
    ]
    heads = ["method", "round", "site", "reason"]
    return [Table("Missing replies", heads, rows, methods=False, words=True)] if rows else []


def facts(read: RunRead) -> list[Table]:
    """Digests, versions and machine."""
    saved = read.saved
    rows = [["experiment's digest", str(saved.get("digest", ""))], ["model's digest", str(saved.get("model", ""))]]
    rows += [
        [name, str(value)] for part in ("versions", "machine") for name, value in dict(saved.get(part, {})).items()
    ]
    for later in saved.get("later", []):
        rows += [
            [f"later: {name}", str(value)]
            for part in ("versions", "machine")
            for name, value in later.get(part, {}).items()
            if value != saved.get(part, {}).get(name)
        ]
    return [Table("Versions and machine", ["", ""], rows, methods=False, words=True)]


def toml(experiment: Experiment, *, with_paths: bool = True) -> str:
    """All settings as a TOML file that runs, by their current names; without the data's path if so asked.

    TOML has no null: `none` stands for it.
    """
    settings = experiment.model_dump(mode="json")
    if not with_paths:
        settings["data"].pop("path", None)
    return "".join(f"{line}\n" for line in _toml_lines(settings, []))


def _toml_lines(table: Mapping[str, Any], path: list[str]) -> Iterator[str]:
    for key, value in table.items():
        here = [*path, key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key)]
        if isinstance(value, Mapping):
            yield from _toml_lines(value, here)
        else:
            yield f"{'.'.join(here)} = {json.dumps('none' if value is None else value, ensure_ascii=False)}"
