"""Small data for the tests of this room: photographs of one colour, and sources without files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import PIL.Image

from fedvlm.data.decode import Problem
from fedvlm.data.files import EncodedImage
from fedvlm.data.record import Record, Source
from fedvlm.data.rows import InspectableImage
from fedvlm.experiment import Experiment, parse

# pFedMMA's official code, class ids of clients 0..9 for B base classes (recorded from CPython's `random`)
PAPER = {
    19: [[2, 7], [3, 0], [16, 6], [13, 8], [4, 11], [1, 15], [5, 17], [9, 10], [18, 14], [12]],
    24: [[21, 9], [7, 6], [0, 5], [1, 15], [2, 13], [20, 8], [11, 4], [17, 16], [3, 19], [18, 10, 23, 14, 22, 12]],
    50: [[23, 42, 45, 12, 5], [29, 25, 18, 3, 9], [46, 0, 13, 48, 8], [27, 47, 16, 10, 17], [43, 15, 26, 30, 31],
         [22, 4, 35, 2, 32], [41, 1, 37, 14, 11], [38, 33, 34, 19, 7], [6, 40, 21, 36, 39], [20, 49, 28, 44, 24]],
    51: [[23, 43, 46, 12, 5], [30, 26, 18, 3, 9], [47, 0, 31, 42, 8], [48, 29, 16, 10, 17], [38, 15, 27, 41, 32],
         [25, 22, 4, 49, 2], [37, 13, 1, 35, 14], [11, 45, 33, 34, 19], [7, 6, 40, 21, 36], [39, 20, 50, 28, 44, 24]],
}  # fmt: skip


def photo(path: Path, colour: tuple[int, int, int] = (200, 30, 90), size: tuple[int, int] = (8, 6)) -> Path:
    """An image file of one colour; the format follows the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", size, colour).save(path)
    return path


def photos(root: Path, *paths: str) -> Path:
    """Image files below `root`, each of another colour."""
    for number, path in enumerate(paths):
        photo(root / path, (number * 7 % 256, number * 31 % 256, 90))
    return root


def problem_of(image: InspectableImage) -> Problem | None:
    """What is wrong with an image of which nothing is known."""
    found = image.inspect(lambda digest: None)
    return found if isinstance(found, Problem) else None


def source_of(
    train: dict[str, int],
    test: dict[str, int] | None = None,
    *,
    domains: tuple[str | None, ...] = (None,),
    clients: tuple[str | None, ...] = (None,),
    superclasses: tuple[str, ...] = (),
) -> Source:
    """A source without files: so many images of each class, in every domain, for every client.

    Without `test` the records have no split of their own.
    """
    names = tuple(train)
    parts = [("train" if test is not None else None, train), ("test", test or {})]
    records = [
        Record(EncodedImage(f"{split}/{domain}/{client}/{name}/{number}", b""), label, name, domain, client, split)
        for split, counts in parts
        for domain in domains
        for client in clients
        for label, name in enumerate(names)
        for number in range(counts.get(name, 0))
    ]
    return Source("sample", names, tuple(records), superclasses=superclasses)


def classes(count: int, images: int) -> dict[str, int]:
    """`count` classes with `images` images each."""
    return {f"class {label:03d}": images for label in range(count)}


def experiment_of(
    data: dict[str, Any] | None = None,
    partition: dict[str, Any] | None = None,
    evaluation: dict[str, Any] | None = None,
) -> Experiment:
    """An experiment on a folder of photographs."""
    data = {"source": "folder", "path": "nowhere"} | (data or {})
    return parse({"data": data, "partition": partition or {}, "evaluation": evaluation or {}})
