"""Figures of clients: their accuracies, what each holds, and whose prompts help whom."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, TypeVar

from fedvlm.reports.charts.chart import AnyMark, Axis, Bar, Cell, Chart, Panel, Series, file_name
from fedvlm.reports.charts.looks import Looks
from fedvlm.reports.grid import Record

T = TypeVar("T")
Accuracies = Mapping[str, Mapping[str, float]]
"""By method and client, in 0..1."""
NAMED = 40
"""Largest number of clients that are named one by one."""
DRAWN = 400
"""Largest number of clients of whom each has a bar."""


def accuracies(found: Accuracies, looks: Looks, seeds: int) -> Chart | None:
    """A panel for each method, a bar for each client's Local; the worst tenth stands out. None without clients."""
    shown = [method for method in looks if found.get(method)]
    if not shown:
        return None
    panels, data = [], list[Record]()
    for method in shown:
        own = found[method]
        worst = worst_tenth(own)
        # Few clients keep their order, so that panels can be compared; of many the order is that of their accuracy.
        names = list(own) if len(own) <= NAMED else sorted(own, key=lambda name: own[name])
        data += [
            {"method": method, "client": name, "local": f"{100 * own[name]:.3f}", "worst tenth": name in worst}
            for name in names
        ]
        drawn = _spread(names)
        bars = [
            Bar(
                place,
                0,
                100 * own[name],
                across=len(own) <= NAMED,
                client=name,
                marked=name in worst,
                colour=1 if name in worst else 5,
                width=0.8 if len(own) <= NAMED else 1.0,
                tip=f"{name}: {100 * own[name]:.1f}{', worst tenth' if name in worst else ''}",
            )
            for place, name in enumerate(drawn)
        ]
        per_cent = Axis("Local, %", 0, 100)
        if len(own) <= NAMED:
            ends = Axis("", -0.6, len(drawn) - 0.4, names=tuple(drawn))
            panels.append(Panel(method, per_cent, ends, tuple(bars), (300, 50 + 17 * len(drawn))))
        else:
            ends = Axis(f"{len(own):,} clients, sorted", -0.5, len(drawn) - 0.5, names=("",) * len(drawn))
            panels.append(Panel(method, ends, per_cent, tuple(bars), (300, 200)))
    over = f", means over {seeds} seeds by name (a seed deals its own images)" if seeds > 1 else ""
    about = f"Accuracy on every client's own test images{over}. The worst tenth is marked."
    if (most := max(len(found[method]) for method in shown)) > DRAWN:
        about += f" Of {most:,} clients {len(_spread(range(most)))} are drawn, at even ranks; the data has all."
    legend = (Series("worst tenth", 1), Series("the others", 5))
    return Chart("clients", "Clients", about, tuple(panels), legend, data, "bars")


def _spread(names: Sequence[T]) -> Sequence[T]:
    """Up to `DRAWN` of these, at even distances, the first and the last among them."""
    if len(names) <= DRAWN:
        return names
    return [names[round(place * (len(names) - 1) / (DRAWN - 1))] for place in range(DRAWN)]


def worst_tenth(own: Mapping[str, float]) -> set[str]:
    """The ceil(n/10) clients of lowest accuracy."""
    return set(sorted(own, key=lambda name: own[name])[: math.ceil(len(own) / 10)])


CELLS = 4000
"""Largest number of cells of a grid."""


def partition(saved: Mapping[str, Any], seed: int) -> Chart | None:
    """Training images by client and class, from a saved partition; None if there are too many cells for a figure."""
    clients, base = saved["clients"], saved["base"]
    counts = {client["name"]: _counts(saved, client) for client in clients}
    if not clients or len(clients) * len(base) > CELLS:
        return None
    holder = {
        label: max(range(len(clients)), key=lambda place: counts[clients[place]["name"]].get(label, 0))
        for label in base
    }
    labels = sorted(base, key=lambda label: (holder[label], int(label)))  # classes of one client stand side by side
    most = max((n for own in counts.values() for n in own.values()), default=1)
    whole = "counts" in saved
    marks: list[AnyMark] = []
    for row, client in enumerate(clients):
        for column, label in enumerate(labels):
            if number := counts[client["name"]].get(label, 0):
                tip = f"{client['name']}: {base[label]}" + (f", {number} training images" if whole else "")
                marks.append(
                    Cell(
                        column,
                        row,
                        math.sqrt(number / most),
                        str(number) if whole else "",
                        client=client["name"],
                        tip=tip,
                    )
                )
    titles = tuple(
        f"{c['name']} ({c['domain']})" if c["domain"] and c["domain"] != c["name"] else c["name"] for c in clients
    )
    panel = Panel(
        "",
        Axis("base class", -0.5, len(labels) - 0.5, names=tuple(base[label] for label in labels)),
        Axis("", -0.5, len(clients) - 0.5, names=titles),
        tuple(marks),
        (max(400, min(1000, 150 + 17 * len(labels))), 150 + 17 * len(clients)),
    )
    novel = f" {len(saved['novel'])} novel classes are trained on by nobody." if saved["novel"] else ""
    about = f"Training images of each client and base class with seed {seed}.{novel}"
    if not whole:
        about = f"Base classes of each client with seed {seed} (a run of an earlier version: without numbers).{novel}"
    data: list[Record] = [
        {"client": c["name"], "domain": c["domain"] or "", "class": base[label], "images": number if whole else ""}
        for c in clients
        for label, number in counts[c["name"]].items()
    ]
    return Chart("partition", "Who holds what", about, (panel,), (), data, "cells")


def _counts(saved: Mapping[str, Any], client: Mapping[str, Any]) -> Mapping[str, int]:
    """Training images by label; 1 for every class of a client where the numbers were not saved."""
    known = saved.get("counts")
    return known[client["name"]] if known else {str(label): 1 for label in client["classes"]}


def helpers(found: Mapping[str, Mapping[str, float]], method: str, seed: int) -> Chart | None:
    """Weights of other clients' tensors in a client's predictions, by receiver and giver; None without any."""
    clients = list(found)
    givers = sorted({name for own in found.values() for name in own})
    if not givers or len(clients) * len(givers) > CELLS:
        return None
    highest = max(value for own in found.values() for value in own.values())
    marks = tuple(
        Cell(
            givers.index(giver),
            row,
            value / highest if highest else 0.0,
            f"{100 * value:.0f}",
            client=client,
            tip=f"{client} gives {100 * value:.1f} % of its weight to {'itself' if giver == client else giver}",
        )
        for row, client in enumerate(clients)
        for giver, value in found[client].items()
    )
    panel = Panel(
        method,
        Axis("whose prompt", -0.5, len(givers) - 0.5, names=tuple(givers)),
        Axis("", -0.5, len(clients) - 0.5, names=tuple(clients)),
        marks,
        (max(400, min(1000, 150 + 30 * len(givers))), 150 + 19 * len(clients)),
    )
    own = fmean(values.get(client, 0.0) for client, values in found.items())
    even = fmean(1 / len(values) for values in found.values())
    about = (
        "Share of the gate's weights that a client (row) gives to a client's prompt (column), in per cent, mean over "
        f"its own test images (and over heads and classes), last round, seed {seed}. Own prompts get "
        f"{100 * own:.1f} % on average; even shares would be {100 * even:.1f} %. The client's own plain logits, which "
        "the method adds to the gate's, are not counted. Weights say what is mixed, not that it helps: a comparison "
        "with fewer experts says that."
    )
    data = [
        {"method": method, "client": client, "expert": giver, "share": f"{value:.5f}"}
        for client, values in found.items()
        for giver, value in values.items()
    ]
    return Chart(f"helpers-{file_name(method)}", "Who helps whom", about, (panel,), (), data, "cells")


def mean_over_seeds(each: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means by client, over the seeds that have the client."""
    names = dict.fromkeys(name for one in each for name in one)
    return {name: fmean(one[name] for one in each if name in one) for name in names}
