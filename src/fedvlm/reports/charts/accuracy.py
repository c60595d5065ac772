"""Figures of accuracies: over rounds, as a trade-off, over the values of a setting, against bytes; calibration, time.

Accuracies are 0..1 in results and per cent in figures.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from statistics import fmean

import numpy as np

from fedvlm.reports import statistics as stats
from fedvlm.reports.charts import looks as styles
from fedvlm.reports.charts.chart import AnyMark, Axis, Band, Bar, Chart, Dot, Guide, Line, Panel, Series, short
from fedvlm.reports.charts.looks import Look, Looks
from fedvlm.reports.columns import columns
from fedvlm.reports.comparison import Comparison, ComparisonRow
from fedvlm.reports.grid import Record
from fedvlm.reports.statistics import general_accuracy
from fedvlm.runs.result import Curve
from fedvlm.training.metrics import Metrics

Curves = Mapping[str, Sequence[Mapping[str, Curve]]]
"""Metrics over rounds, by method and seed."""
Place = tuple[float, float]


def rounds(results: Curves, last: int, title: str, looks: Looks | None = None) -> Chart:
    """A panel for each metric, a line for each method: the mean over seeds.

    With up to four methods the range over seeds is shaded. A method without rounds is a level line up to round `last`.
    """
    looks = looks or styles.in_order(list(results))
    curves = [curve for each in results.values() for curve in each]
    # Local rounds follow the last federated round; level lines reach as far as the other lines.
    last = max([last, *(step for curve in curves for line in curve.values() for step, _ in line)])
    panels, data = [], list[Record]()
    for metric in columns("rounds", {name for curve in curves for name in curve}):
        marks: list[AnyMark] = []
        for method, each in results.items():
            lines = [dict(curve[metric.name]) for curve in each if metric.name in curve]
            steps = sorted(set.intersection(*map(set, lines))) if lines else []
            if not steps:
                continue
            table = 100 * np.array([[line[step] for step in steps] for line in lines])
            data += [
                {"metric": metric.name, "method": method, "round": step, "mean": f"{mean:.3f}", "seeds": len(lines)}
                for step, mean in zip(steps, table.mean(0), strict=True)
            ]
            marks += _round_marks(method, looks[method], steps, table, last, bands=len(results) <= 4)
        values = [y for mark in marks if isinstance(mark, Line) for _, y in mark.points]
        values += [mark.y for mark in marks if isinstance(mark, Dot)]
        values += [y for mark in marks if isinstance(mark, Band) for _, *pair in mark.points for y in pair]
        first = min((x for mark in marks if isinstance(mark, Line) for x, _ in mark.points), default=last - 1)
        x = Axis("round", first, max(last, first + 1), integer=True)
        panels.append(Panel(metric.heading, x, _around(values, "accuracy, %"), tuple(marks)))
    shown = styles.legend(looks, [method for method, each in results.items() if each])
    shaded = any(isinstance(mark, Band) for panel in panels for mark in panel.marks)
    about = "Mean over seeds after every evaluated round." + (" The shade is the range over seeds." if shaded else "")
    return Chart("rounds", title, about, tuple(panels), shown, data)


def _round_marks(
    method: str, look: Look, steps: list[int], table: np.ndarray, last: int, *, bands: bool
) -> list[AnyMark]:
    if steps == [0]:
        steps, table = [1, last], np.repeat(table, 2, axis=1)
    mean, low, high = table.mean(0), table.min(0), table.max(0)
    tip = f"{method}: {mean[-1]:.1f} after round {steps[-1]}"
    line = Line(tuple(zip(steps, mean.tolist(), strict=True)), look.dashes, method=method, colour=look.colour, tip=tip)
    if len(steps) == 1:
        return [Dot(steps[0], float(mean[0]), method=method, colour=look.colour, tip=tip)]
    if bands and len(table) > 1:
        area = tuple(zip(steps, low.tolist(), high.tolist(), strict=True))
        return [Band(area, method=method, colour=look.colour), line]
    return [line]


def _around(values: Sequence[float], label: str) -> Axis:
    """An axis of per cent that fits these values with some room."""
    low, high = (min(values), max(values)) if values else (0.0, 100.0)
    room = 0.06 * (high - low) + 0.5
    return Axis(label, max(low - room, -2.0), min(high + room, 102.0))  # with few seeds intervals exceed 0 to 100


def tradeoff(comparison: Comparison, title: str, looks: Looks | None = None) -> Chart | None:
    """Local against general accuracy along every method's curve, means over seeds; None without such accuracies.

    The first eight looks are coloured; the others are grey and may lie outside of the figure.
    """
    looks = looks or styles.of(comparison)
    drawn = {row.method: row for row in comparison.rows if _has_both(row)}
    if not drawn:
        return None
    curves = {method: _curve(row) for method, row in drawn.items()}
    dots = {method: _dot(row) for method, row in drawn.items()}
    ends = [row.curve[-1] for row in drawn.values() if row.curve and row.curve[-1].get("weight") == 1]
    star = [_coordinates(ends[0])] if ends else []
    general = _general_name(drawn.values())
    x, y = _limits(general, [method for method in drawn if not looks[method].dashes] or list(drawn), curves, dots, star)
    marks: list[AnyMark] = list(_iso_lines(x, y))
    for method, row in drawn.items():
        look, tip = looks[method], _tip(row)
        if len(set(curves[method])) > 1:
            # Methods that train nothing are dashed.
            dashes = 0 if any(row.values["train_s"]) else 1
            marks.append(Line(tuple(curves[method]), dashes, method=method, colour=look.dot, tip=tip))
        half_x, half_y = (100 * (one.half or 0.0) for one in (_general(row), stats.estimate(row.values["local"])))
        marks.append(Dot(*dots[method], half_x, half_y, method=method, colour=look.dot, tip=tip))
    marks += [
        Dot(*place, star=True, colour=7, tip=f"zero-shot: Local {place[1]:.1f}, general {place[0]:.1f}")
        for place in star
    ]
    about = (
        f"Up: better on the client's own images (Local). Right: better on all classes ({general}). "
        f"A dot is a method as trained{_intervals(comparison)}; its line leads to zero-shot (the star), as its "
        "logits are mixed with zero-shot's. Thin lines: equal harmonic mean of the two."
    )
    shown = styles.legend(looks, [method for method in drawn if not looks[method].dashes])
    panel = Panel("", x, y, tuple(marks), (620, 430))
    return Chart("tradeoff", title, about, (panel,), shown, _tradeoff_data(drawn.values()), "plane")


def _intervals(comparison: Comparison) -> str:
    return ", with 95 % intervals over seeds (Student's t)" if len(comparison.seeds) > 1 else ""


def _tradeoff_data(rows: Collection[ComparisonRow]) -> list[Record]:
    """Every point of every curve; the methods as trained where there are no curves."""
    found = [(row.method, point["weight"], _coordinates(point)) for row in rows for point in row.curve]
    found += [(row.method, 0.0, _dot(row)) for row in rows if not row.curve]
    return [{"method": method, "weight of zero-shot": f"{weight:.3g}", "general": f"{x:.3f}", "local": f"{y:.3f}"}
            for method, weight, (x, y) in found]  # fmt: skip


def _general_name(rows: Collection[ComparisonRow]) -> str:
    """What general accuracy is here."""
    names = [name.title() for name in ("base", "novel") if any(name in row.values for row in rows)]
    return names[0] if len(names) == 1 else f"mean of {' and '.join(names)}"


def _has_both(row: ComparisonRow) -> bool:
    return "local" in row.values and ("base" in row.values or "novel" in row.values)


def _general(row: ComparisonRow) -> stats.Estimate:
    parts = [row.values[name] for name in ("base", "novel") if name in row.values]
    return stats.estimate([fmean(each) for each in zip(*parts, strict=True)])


def _dot(row: ComparisonRow) -> Place:
    return 100 * _general(row).mean, 100 * fmean(row.values["local"])


def _curve(row: ComparisonRow) -> list[Place]:
    return [_coordinates(point) for point in sorted(row.curve, key=lambda point: point["weight"]) if "local" in point]


def _coordinates(point: Metrics) -> Place:
    return 100 * general_accuracy(dict(point)), 100 * point.get("local", 0.0)


def _tip(row: ComparisonRow) -> str:
    words = [f"{m.heading} {100 * one.mean:.1f}" for m in columns("core") if (one := row.estimate(m.name))]
    return f"{row.method}: {', '.join(words)}"


def _limits(
    general: str,
    coloured: Sequence[str],
    curves: Mapping[str, list[Place]],
    dots: Mapping[str, Place],
    star: list[Place],
) -> tuple[Axis, Axis]:
    """Axes that fit the methods as trained and zero-shot.

    A control that knows the client's classes, moved so far that it always gives one answer, would squeeze the others
    into a corner.
    """
    trained = [*(dots[method] for method in coloured), *star]
    left = min(trained)[0]
    seen = np.array([*trained, *(place for method in coloured for place in curves[method] if place[0] >= left)])
    low, high = seen.min(0), seen.max(0)
    room = 0.06 * (high - low) + 0.5
    first, second = (low - room).tolist(), (high + room).tolist()
    return Axis(f"{general}, %", first[0], second[0]), Axis("Local, %", first[1], second[1])


def _iso_lines(x: Axis, y: Axis) -> list[Guide]:
    """Lines on which the harmonic mean h of both axes is the same: y = h x / (2 x - h)."""
    found: list[Guide] = []
    low, high = max(1.0, min(x.low, y.low)), max(x.high, y.high)
    if high <= low:
        return found
    across = np.linspace(x.low, x.high, 60)
    for h in Axis("", low, high).ticks(8):
        points = [(float(one), float(h * one / (2 * one - h))) for one in across if 2 * one - h > 1e-6]
        inside = [(one, two) for one, two in points if y.low <= two <= y.high]
        if len(inside) > 1:
            found.append(Guide(tuple(inside), short(h)))
    return found


def sweep(key: str, comparisons: Mapping[str, Comparison], title: str) -> Chart:
    """Accuracy at every value of a setting, means over seeds with 95 % intervals.

    Values have equal distances on the axis. The reference and the methods of largest mean HM are coloured.
    """
    by_value = [{row.method: row for row in one.rows} for one in comparisons.values()]
    against = next(iter(comparisons.values())).against
    drawn = list(dict.fromkeys(method for rows in by_value for method in rows))

    def height(method: str) -> float:
        return fmean(fmean(rows[method].values["hm"]) for rows in by_value if method in rows)

    looks = styles.in_order(sorted(drawn, key=lambda method: (method != against, -height(method))))
    panels, data = [], list[Record]()
    for metric in columns("core", {name for rows in by_value for row in rows.values() for name in row.values}):
        marks: list[AnyMark] = []
        for position, method in enumerate(looks):
            values = [
                (place, one)
                for place, rows in enumerate(by_value)
                if method in rows and (one := rows[method].estimate(metric.name))
            ]
            # Methods stand side by side, so that no interval hides another.
            aside = 0.05 * (position - (min(len(looks), 8) - 1) / 2) if position < 8 else 0.0
            look, named = looks[method], list(comparisons)
            places = [(place + aside, 100 * one.mean) for place, one in values]
            if len(places) > 1:
                marks.append(Line(tuple(places), method=method, colour=look.dot))
            for (x, y), (place, one) in zip(places, values, strict=True):
                tip = f"{method}, {key}={named[place]}: {y:.1f}"
                half = 0.0 if look.dashes else 100 * (one.half or 0.0)
                marks.append(Dot(x, y, half_y=half, method=method, colour=look.dot, tip=tip))
                data.append(
                    {
                        "metric": metric.name,
                        key: named[place],
                        "method": method,
                        "mean": f"{y:.3f}",
                        "half interval": "" if one.half is None else f"{100 * one.half:.3f}",
                    }
                )
        ends = [y for mark in marks if isinstance(mark, Dot) for y in (mark.y - mark.half_y, mark.y + mark.half_y)]
        y_axis = _around(ends, "accuracy, %")
        x_axis = Axis(key, -0.5, len(by_value) - 0.5, names=tuple(comparisons))
        panels.append(Panel(metric.heading, x_axis, y_axis, tuple(marks)))
    about = f"Means over seeds{_intervals(next(iter(comparisons.values())))}."
    shown = styles.legend(looks, [method for method, look in looks.items() if not look.dashes])
    return Chart("sweep", title, about, tuple(panels), shown, data, "dots")


def sizes(comparison: Comparison, looks: Looks) -> Chart | None:
    """Bytes of a client in a round, both directions, against accuracy; None if nothing is sent."""
    total = {row.method: fmean(row.values["up_bytes"]) + fmean(row.values["down_bytes"]) for row in comparison.rows}
    sent = [size for size in total.values() if size > 0]
    if not sent:
        return None
    silent = len(sent) < len(total)
    low = 10 ** (np.floor(np.log10(min(sent))) - (1 if silent else 0))
    x = Axis("bytes of a client in a round, up and down", float(low), float(max(sent) * 1.6), log=True, zero=silent)
    panels, data = [], list[Record]()
    for metric in columns("core", {name for row in comparison.rows for name in row.values}):
        marks: list[AnyMark] = []
        for row in comparison.rows:
            if (one := row.estimate(metric.name)) is None:
                continue
            y, size = 100 * one.mean, total[row.method]
            tip = f"{row.method}: {metric.heading} {y:.1f}, {size:,.0f} bytes"
            marks.append(
                Dot(
                    size or x.low,
                    y,
                    half_y=100 * (one.half or 0.0),
                    method=row.method,
                    colour=looks[row.method].dot,
                    tip=tip,
                )
            )
            data.append({"metric": metric.name, "method": row.method, "bytes": round(size), "mean": f"{y:.3f}"})
        ends = [y for mark in marks if isinstance(mark, Dot) for y in (mark.y - mark.half_y, mark.y + mark.half_y)]
        panels.append(Panel(metric.heading, x, _around(ends, "accuracy, %"), tuple(marks)))
    about = "What crosses the network against what it buys." + (
        " Methods that send nothing stand at the left end." if silent else ""
    )
    shown = styles.legend(looks, [method for method, look in looks.items() if not look.dashes])
    return Chart("bytes", "Bytes against accuracy", about, tuple(panels), shown, data, "dots")


def calibration(comparison: Comparison, looks: Looks) -> Chart | None:
    """Expected calibration error of every method; None where it was not measured."""
    found = [(row.method, one) for row in comparison.rows if (one := row.estimate("ece"))]
    if not found:
        return None
    # A method stands in its own row, so its dot needs no grey.
    marks = tuple(
        Dot(
            100 * one.mean,
            place,
            half_x=100 * (one.half or 0.0),
            method=method,
            colour=looks[method].colour,
            tip=f"{method}: {100 * one.mean:.1f}",
        )
        for place, (method, one) in enumerate(found)
    )
    high = max(mark.x + mark.half_x for mark in marks)
    panel = Panel(
        "",
        Axis("expected calibration error, points", 0, max(1.0, 1.05 * high)),
        _names([m for m, _ in found]),
        marks,
        (620, 60 + 20 * len(found)),
    )
    about = (
        "How far confidence is from accuracy on all clients' own test images together, in 15 bins (Guo et al. 2017); 0 "
        "is perfect. Personal models carry a temperature that lessens it (fedvlm export)."
    )
    data = [
        {
            "method": method,
            "ece": f"{100 * one.mean:.3f}",
            "half interval": "" if one.half is None else f"{100 * one.half:.3f}",
        }
        for method, one in found
    ]
    return Chart("calibration", "Calibration", about, (panel,), (), data, "dots")


def _names(names: Sequence[str]) -> Axis:
    return Axis("", -0.6, len(names) - 0.4, names=tuple(names))


PHASES = ("training", "evaluation")


def times(seconds: Mapping[str, Sequence[tuple[float, float]]]) -> Chart:
    """Seconds of training and evaluation by method and seed, means over seeds."""
    means = {method: [fmean(phase) for phase in zip(*each, strict=True)] for method, each in seconds.items()}
    known = [any(each[place] for each in means.values()) for place in range(len(PHASES))]  # a coordinator sees training
    marks = []
    for place, (method, each) in enumerate(means.items()):
        begin = 0.0
        for colour, (name, took) in enumerate(zip(PHASES, each, strict=True)):
            if not known[colour]:
                continue
            tip = f"{method}: {took:.1f} s {name}"
            marks.append(Bar(place, begin, begin + took, across=True, method=method, colour=(0, 4)[colour], tip=tip))
            begin += took
    longest = max((sum(each) for each in means.values()), default=0.0)
    panel = Panel(
        "",
        Axis("seconds, mean over seeds", 0, max(0.1, 1.05 * longest)),
        _names(list(means)),
        tuple(marks),
        (620, 60 + 20 * len(means)),
    )
    about = "Seconds of all rounds by phase. Points that run beside each other share the machine and take longer."
    data = [
        {
            "method": method,
            **{f"{name}_s": f"{took:.3f}" for name, took, there in zip(PHASES, each, known, strict=True) if there},
        }
        for method, each in means.items()
    ]
    return Chart(
        "time",
        "Time",
        about,
        (panel,),
        tuple(Series(n, c) for n, c, there in zip(PHASES, (0, 4), known, strict=True) if there),
        data,
        "bars",
    )
