"""The picture and the table of a partition show what the partition holds."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from fake_data import classes, experiment_of, source_of

from fedvlm.data import Federation, federate
from fedvlm.data.picture import class_counts, draw_partition, partition_figure, partition_table
from fedvlm.errors import FedvlmError


def dealt(count: int, clients: int, kind: str = "pathological") -> Federation:
    source = source_of(classes(2 * count, 6), classes(2 * count, 2))
    partition = {"kind": kind, "clients": clients, "alpha": 0.3, "order": "paper"}
    return federate(source, experiment_of({}, partition), 0)


def test_the_table_counts_images() -> None:
    source = source_of({"cat": 5, "dog": 3}, {"cat": 2, "dog": 1}, domains=("day", "night"))
    federation = federate(source, experiment_of({"novel": "none"}, {"kind": "domain"}), 0)
    rows = partition_table(federation)
    assert [(row.client, row.domain, row.train, row.local, row.classes) for row in rows] == [
        ("day", "day", 8, 3, 2),
        ("night", "night", 8, 3, 2),
    ]
    assert rows[0].names == "cat 5, dog 3"


def test_counts_are_those_of_the_records() -> None:
    federation = dealt(6, 4, "dirichlet")
    for client, row in zip(federation.clients, class_counts(federation), strict=True):
        names = [federation.source.records[i].name for i in client.train]
        assert row.tolist() == [names.count(name) for name in federation.base_names]


def test_disjoint_classes_make_a_diagonal() -> None:
    figure = partition_figure(dealt(12, 4))
    grid = figure.axes[0]
    held = np.ma.getdata(grid.get_images()[0].get_array())
    assert held.tolist() == np.kron(np.eye(4), np.full(3, 6)).tolist()
    labels = [label.get_text() for label in grid.get_xticklabels()]
    assert sorted(labels) == [f"class {label:03d}" for label in range(12)]
    assert "12 novel classes" in figure.get_suptitle()


@pytest.mark.parametrize(("count", "clients"), [(10, 10), (1, 1), (120, 100)])
def test_nothing_overlaps_however_many_clients(count: int, clients: int) -> None:
    """Names of clients and classes stand clear of each other, and the picture stays of a printable size."""
    figure = partition_figure(dealt(count, clients, "iid" if count == 1 else "pathological"))
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels() if label.get_text()]
    for upper, lower in itertools.pairwise(sorted(boxes, key=lambda box: -box.y0)):
        assert upper.y0 >= lower.y1 - 2
    assert max(figure.get_size_inches()) <= 30


def test_png_and_svg(tmp_path: Path) -> None:
    federation = dealt(10, 5)
    draw_partition(federation, tmp_path / "p.png")
    draw_partition(federation, tmp_path / "p.svg")
    assert PIL.Image.open(tmp_path / "p.png").size[0] > 500
    assert "<svg" in (tmp_path / "p.svg").read_text()
    with pytest.raises(FedvlmError, match=r"p\.pdf: .* \.png or \.svg"):
        draw_partition(federation, tmp_path / "p.pdf")


def test_names_that_are_formulas_or_novels() -> None:
    source = source_of({"a $x_1$ b": 2, "y" * 300: 2}, {"a $x_1$ b": 1, "y" * 300: 1})
    federation = federate(source, experiment_of({"novel": "none"}, {"kind": "iid", "clients": 2}), 0)
    figure = partition_figure(federation)
    figure.draw_without_rendering()
    assert figure.get_size_inches()[1] < 5
