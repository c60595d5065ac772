"""A partition as a table for the terminal, and as a picture of clients x classes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedvlm import durable
from fedvlm.data.federation import Client, Federation
from fedvlm.data.splits import Ints
from fedvlm.errors import FedvlmError, listed

_COLOURS = LinearSegmentedColormap.from_list("held", ["#e8f1f8", "#6aaed6", "#2070b4", "#08306b"])
_WRITTEN = 400
"""Largest number of cells for which numbers are written into the cells."""
_NAMED = 110
"""Largest number of rows or columns that are named one by one."""


@dataclass(frozen=True, slots=True)
class ClientRow:
    """A client in the partition's table."""

    client: str
    domain: str
    train: int
    """Number of training images."""
    local: int
    """Number of local evaluation images."""
    classes: int
    """Number of base classes among the training images."""
    held: dict[str, int]
    """Training images by class, most first."""

    @property
    def names(self) -> str:
        """The classes with most training images, with their numbers."""
        return listed((f"{name} {count}" for name, count in self.held.items()), limit=4)


def partition_table(federation: Federation) -> list[ClientRow]:
    """One row per client, in the federation's order."""
    rows = []
    for client, held in zip(federation.clients, class_counts(federation), strict=True):
        largest = [place for place in np.argsort(-held, kind="stable").tolist() if held[place]]
        by_class = {federation.base_names[place]: int(held[place]) for place in largest}
        sizes = len(client.train), len(client.local), len(client.classes)
        rows.append(ClientRow(_client_title(client), client.domain or "", *sizes, by_class))
    return rows


def partition_json(federation: Federation, rows: Sequence[ClientRow]) -> dict[str, object]:
    """The table as plain values."""
    clients = [
        {"client": row.client, "domain": row.domain or None, "training_images": row.train,
         "local_test_images": row.local, "classes": row.classes, "training_images_by_class": row.held}
        for row in rows
    ]  # fmt: skip
    return {"digest": federation.digest(), "clients": clients, "notes": list(federation.notes)}


def _client_title(client: Client) -> str:
    return f"{client.name} (late)" if client.is_newcomer else client.name


def class_counts(federation: Federation) -> Ints:
    """Training images of each client and base class `[N, K]`."""
    found = np.zeros((len(federation.clients), len(federation.base)), np.int64)
    for row, client in zip(found, federation.clients, strict=True):
        np.add.at(row, federation.labels(client.train), 1)
    return found


def draw_partition(federation: Federation, path: Path) -> None:
    """Write the picture as PNG or SVG, by the file's suffix: base classes across, grouped by who holds most of them."""
    if path.suffix.lower() not in (".png", ".svg"):
        raise FedvlmError(f"{path}: the picture of a partition is written as .png or .svg")
    file = io.BytesIO()
    figure = partition_figure(federation)
    figure.savefig(file, format=path.suffix[1:].lower(), dpi=150, metadata={"Date": None} if _is_svg(path) else None)
    durable.write_bytes(path, file.getvalue(), private=True)  # it names clients


def _is_svg(path: Path) -> bool:
    return path.suffix.lower() == ".svg"


@rc_context({"text.parse_math": False})  # a dollar sign in a folder's name must not start a formula
def partition_figure(federation: Federation) -> Figure:
    """A grid of clients x base classes, darker for more training images, beside bars of each client's images."""
    held = class_counts(federation)
    order = np.lexsort((np.arange(held.shape[1]), held.argmax(axis=0)))  # classes of the same client stand side by side
    high, wide = held.shape
    size = (min(4.5 + 0.28 * wide, 30), min(2.4 + 0.22 * high, 30))
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    grid, bars = figure.subplots(1, 2, width_ratios=[max(size[0] - 3, 2), 1.5], sharey=True)
    _draw_grid(figure, grid, federation, held[:, order], [federation.base_names[place] for place in order])
    _draw_bars(bars, federation)
    figure.suptitle(_title(federation), fontsize=10)
    return figure


def _draw_grid(figure: Figure, axes: Axes, federation: Federation, held: Ints, names: list[str]) -> None:
    shown = np.ma.masked_equal(held, 0)  # empty cells are not drawn
    norm = PowerNorm(0.5, vmin=0, vmax=held.max())  # so that one image is visible beside hundreds
    image = axes.imshow(shown, cmap=_COLOURS, norm=norm, aspect="auto", interpolation="nearest")
    titles = [(_client_title(client), client.domain) for client in federation.clients]
    labels = [f"{title}  {domain}" if domain else title for title, domain in titles]
    _name_ticks(axes, labels, names)
    axes.set_xlabel("base class" + ("" if len(names) <= _NAMED else f" ({len(names)}, grouped by largest holder)"))
    axes.set_ylabel("client")
    if max(held.shape) <= _NAMED:
        axes.set_xticks(np.arange(len(names) + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(len(labels) + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="0.88", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    slim = max(20, 1.5 * len(labels))  # constant width for any number of clients
    figure.colorbar(image, ax=axes, label="training images", pad=0.01, aspect=slim, ticks=MaxNLocator(5, integer=True))
    if held.size <= _WRITTEN:
        for row, column in np.argwhere(held):
            colour = "white" if held[row, column] > 0.4 * held.max() else "black"
            axes.text(column, row, str(held[row, column]), ha="center", va="center", fontsize=6, color=colour)


def _name_ticks(axes: Axes, clients: list[str], names: list[str]) -> None:
    if len(names) <= _NAMED:
        axes.set_xticks(range(len(names)), [_short(name) for name in names], rotation=90, fontsize=7)
    if len(clients) <= _NAMED:
        axes.set_yticks(range(len(clients)), [_short(name) for name in clients], fontsize=7)


def _short(name: str) -> str:
    """A name as a label; dollar signs would start a formula."""
    return (name if len(name) <= 24 else name[:23] + "…").replace("$", r"\$")


def _draw_bars(axes: Axes, federation: Federation) -> None:
    """Bars of each client's training images and local evaluation images."""
    places = np.arange(len(federation.clients))
    train = [len(client.train) for client in federation.clients]
    local = [len(client.local) for client in federation.clients]
    colours = {"training": "#225ea8", "own test": "#a1a1a1"}
    for side, (label, sizes) in zip((-0.2, 0.2), (("training", train), ("own test", local)), strict=True):
        if len(places) <= _NAMED:
            axes.barh(places + side, sizes, 0.4, label=label, color=colours[label])
        else:  # one shape for all: a bar of its own for each of thousands takes a minute and a gigabyte
            axes.fill_betweenx(places, sizes, step="mid", label=label, color=colours[label], alpha=0.7, linewidth=0)
    axes.tick_params(labelleft=False, labelsize=7)
    axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    axes.set_xlabel("images")
    axes.legend(fontsize=6, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)


def _title(federation: Federation) -> str:
    total = sum(len(client.train) for client in federation.clients)
    novel = f", {len(federation.novel)} novel classes trained on by nobody" if federation.novel else ""
    return f"{federation.source.name}: {len(federation.clients)} clients, {total} training images{novel}"
