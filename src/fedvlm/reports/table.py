"""The tables of a run: one row per method, mean and standard deviation over seeds; JSON, CSV, Markdown, terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from rich.table import Table
from rich.text import Text

from fedvlm import durable
from fedvlm.reports import grid
from fedvlm.reports.charts import accuracy, plot
from fedvlm.reports.columns import columns
from fedvlm.reports.grid import Cells, Record
from fedvlm.runs.results import ResultRow, Results, Value
from fedvlm.training.metrics import Metric, Place, Unit

Failures = Mapping[str, str]
"""Text in the place of numbers by failed method, such as `diverged (2 of 11 seeds)`."""
NO_FAILURES: Failures = MappingProxyType({})
NEWCOMERS_TITLE = "Clients that joined after the last round, mean over them; the tables above are without them:"
SCALE: dict[Unit, int] = {"%": 100, "nats": 1, "weight": 1}
"""Factor of displayed values by unit."""


def write(results: Results) -> Results:
    """Write the tables and the picture of a run into its folder; returns the results."""
    rows, newcomers, failed, folder = results.rows, results.newcomers, results.failures, results.folder
    durable.write_json(folder / "table.json", as_json([*rows, *newcomers], failed))
    durable.write_text(folder / "table.csv", as_csv([*rows, *newcomers], failed))
    durable.write_text(folder / "table.md", as_markdown(rows, newcomers, failed))
    curves = {name: [point.curve for point in by_seed.values()] for name, by_seed in results.complete.items()}
    chart = accuracy.rounds(curves, results.experiment.rounds, f"{results.experiment.name}: accuracy per round")
    plot.write(chart, folder, ("png", "svg"))
    return results


def as_json(table: Sequence[ResultRow], failed: Failures = NO_FAILURES) -> list[dict[str, object]]:
    """Plain values, accuracies in 0..1."""
    whole: list[dict[str, object]] = [
        {"method": r.method, "state": r.state, "reported": r.reported, "seeds": r.seeds,
         "metrics": {n: {"mean": v.mean, "std": v.std} for n, v in r.metrics.items()},
         "up_bytes": r.up_bytes, "down_bytes": r.down_bytes, "train_s": r.train_s}
        for r in table
    ]  # fmt: skip
    return whole + [{"method": method, "failed": words} for method, words in failed.items()]


def results_as_json(results: Results) -> dict[str, object]:
    """A run's whole answer: its rows as in `table.json`, newcomers and failures apart."""
    return {
        "name": results.experiment.name,
        "digest": results.experiment.digest(),
        "folder": str(results.folder),
        "seeds": list(results.experiment.seeds),
        "rows": as_json(results.rows),
        "newcomers": as_json(results.newcomers),
        "failed": {name: {str(seed): one.message for seed, one in by_seed.items()}
                   for name, by_seed in results.failed.items()},
    }  # fmt: skip


def as_csv(table: Sequence[ResultRow], failed: Failures = NO_FAILURES) -> str:
    """One line per row; accuracies in per cent, loss in nats. A failed method has its failure in the column `state`."""
    records: list[Record] = [
        {"method": r.method, "state": r.state, "reported": r.reported, "seeds": r.seeds}
        | {key: text for metric in columns("run") for key, text in _numbers(metric, r.metrics.get(metric.name)).items()}
        | {"up_bytes": round(r.up_bytes), "down_bytes": round(r.down_bytes), "train_s": f"{r.train_s:.2f}"}
        for r in table
    ]
    records += [{"method": method, "state": words, "reported": False} for method, words in failed.items()]
    return grid.csv(records)


def _numbers(metric: Metric, v: Value | None) -> dict[str, str]:
    """The cells of a metric in the CSV: mean and standard deviation."""
    mean, std = (None, None) if v is None else (v.mean, v.std)
    return {name: "" if number is None else f"{number * SCALE[metric.unit]:.4f}"
            for name, number in ((metric.name, mean), (f"{metric.name}_std", std))}  # fmt: skip


def as_markdown(table: Sequence[ResultRow], newcomers: Sequence[ResultRow] = (), failed: Failures = NO_FAILURES) -> str:
    """Markdown tables of the reported states, of the other states, and of newcomers."""
    text = [_markdown([r for r in table if r.reported], failed)]
    others = [r for r in table if not r.reported]
    if others:
        text += ["", "The same runs in the other state:", "", _markdown(others)]
    if newcomers:
        text += ["", NEWCOMERS_TITLE, "", grid.markdown(*newcomers_cells(newcomers, [*columns("core"), *_losses()]))]
    return "\n".join(text) + "\n"


def cells(table: Sequence[ResultRow]) -> tuple[Cells, list[Cells]]:
    """Heads and rows of a table of results."""
    shown = _shown_metrics("run", table)
    heads = ["method", *(metric.heading for metric in shown), "up B", "down B", "train s", "state"]
    return heads, [[r.method, *_cells(shown, r), *_sizes(r), r.state.replace("_", " ")] for r in table]


def _markdown(table: Sequence[ResultRow], failed: Failures = NO_FAILURES) -> str:
    heads, rows = cells(table)
    return grid.markdown(heads, rows + [grid.pad_row([method], len(heads), words) for method, words in failed.items()])


def _cells(shown: Sequence[Metric], row: ResultRow) -> Cells:
    return [format_cell(metric, row.metrics.get(metric.name)) for metric in shown]


def _shown_metrics(place: Place, table: Sequence[ResultRow]) -> list[Metric]:
    """Metrics shown at a place: accuracies that a row has, and losses."""
    return [m for m in columns(place) if m.unit != "%" or any(m.name in r.metrics for r in table)]


def _losses() -> list[Metric]:
    return [metric for metric in columns("run") if metric.unit == "nats"]


def _sizes(row: ResultRow) -> Cells:
    return [f"{row.up_bytes:,.0f}", f"{row.down_bytes:,.0f}", f"{row.train_s:.1f}"]


def newcomers_cells(newcomers: Sequence[ResultRow], metrics: Sequence[Metric]) -> tuple[Cells, list[Cells]]:
    """Heads and rows of the table of newcomers."""
    shown = [m for m in metrics if m.unit != "%" or any(m.name in r.metrics for r in newcomers)]
    heads = ["method", "moment", *(metric.heading for metric in shown), "down B"]
    rows = [[r.method, r.state.replace("_", " "), *_cells(shown, r), f"{r.down_bytes:,.0f}"] for r in newcomers]
    return heads, rows


def newcomers_as_rich(newcomers: Sequence[ResultRow]) -> Table:
    """Newcomers for a terminal: a row for each method and moment."""
    heads, rows = newcomers_cells(newcomers, columns("core"))
    narrow = [[name, moment, *(text.replace(" ", "") for text in cells)] for name, moment, *cells in rows]
    return grid.terminal(heads, narrow, "clients that joined after the last round, mean over them", left=(0, 1))


def as_rich(table: Sequence[ResultRow], title: str) -> Table:
    """The reported states for a terminal of 100 columns; best values are bold."""
    reported = [row for row in table if row.reported]
    shown = [metric for metric in columns("terminal") if any(metric.name in r.metrics for r in table)]
    best = {m.name: max(r.metrics[m.name].mean for r in reported if m.name in r.metrics) for m in shown}

    def text(metric: Metric, v: Value | None) -> Text:
        narrow = format_cell(metric, v).replace(" ", "")
        return Text(narrow, style="bold" if v is not None and v.mean == best[metric.name] else "")

    heads = ["method", *(metric.heading for metric in shown), "up B", "down B", "train s"]
    rows: list[list[str | Text]] = []
    for r in reported:
        name = r.method + "*" * (r.state == "after_training")
        rows.append([name, *(text(metric, r.metrics.get(metric.name)) for metric in shown), *_sizes(r)])
    return grid.terminal(heads, rows, title)


def format_cell(metric: Metric, v: Value | None) -> str:
    """`87.2 ± 1.3`, `87.2` with one seed, `-` if the metric does not exist; a loss with three digits."""
    if v is None:
        return "-"
    if metric.unit == "nats":
        return f"{v.mean:.3f}"
    scale = SCALE[metric.unit]
    return f"{v.mean * scale:.1f}" + ("" if v.std is None else f" ± {v.std * scale:.1f}")
