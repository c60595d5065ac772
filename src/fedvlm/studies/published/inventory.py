"""Data and weights on this machine, and whether the weights are the published ones."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fedvlm import clip as clips
from fedvlm.clip import ModelSection
from fedvlm.errors import FedvlmError
from fedvlm.studies.published.schema import Dataset


@dataclass(frozen=True)
class DatasetLocation:
    """The folder of a data set, or the folder where it was expected."""

    title: str
    path: Path
    """The folder; the first expected folder if the data set is missing."""
    missing: str | None = None
    """The expected folders, and how to get the data set; None if it was found."""


def find_dataset(dataset: Dataset, root: Path) -> DatasetLocation:
    """The first folder of a data set below `root` that holds one of the required files."""
    tried = [root / name for name in dataset.folders]
    for folder in tried:
        if folder.is_dir() and any(next(folder.glob(pattern), None) for pattern in dataset.holds):
            return DatasetLocation(dataset.title, folder)
    looked = f"none of {', '.join(map(str, tried))} holds {' or '.join(dataset.holds)}"
    return DatasetLocation(dataset.title, tried[0], f"{dataset.title}: {looked}. Get it: {dataset.get}")


@dataclass(frozen=True)
class Weights:
    """The CLIP that will be used, and the published one."""

    name: str
    ids: tuple[str, ...]
    """Hub ids of the published weights."""
    digest: str | None = None
    """SHA-256 of the weight files; None if they could not be loaded."""
    missing: str | None = None
    """The reason why the weights could not be loaded, and what to do; else None."""

    @property
    def published(self) -> bool:
        """Whether the weights are known to be the published ones, by hub id or as a folder of the hub's cache."""
        return is_published(self.name, self.ids)

    @property
    def description(self) -> str:
        """A line on the weights, which is printed above every result."""
        sha = f", sha256 {self.digest[:12]}" if self.digest else ", not loaded"
        if self.published:
            return f"published weights{'' if self.digest else ', not loaded'}: {self.name}{sha if self.digest else ''}"
        return f"other weights: not comparable ({self.name}{sha}; the table's are {' or '.join(self.ids)})"


def is_published(name: str, ids: Sequence[str]) -> bool:
    """Whether a name is a published hub id, or a snapshot of one in the hub's cache; other local folders are not."""
    path = Path(name).expanduser()
    if not path.is_dir():
        return name in ids
    parts = path.resolve().parts
    snapshot = [repository for repository, inner in itertools.pairwise(parts) if inner == "snapshots"]
    return any(f"models--{known.replace('/', '--')}" in snapshot for known in ids)


@cache
def load_weights(model: ModelSection, ids: tuple[str, ...]) -> Weights:
    """Load the weights once, to check that they can be used and to get their digest."""
    try:
        clip = clips.load(model.name, revision=model.revision, offline=model.offline)
    except FedvlmError as error:
        return Weights(model.name, ids, missing=str(error) + (_advice(model.name) if model.name in ids else ""))
    return Weights(model.name, ids, clip.weights)


def _advice(name: str) -> str:
    folder = f"models--{name.replace('/', '--')}"
    return (
        f". `--model DIR` takes a local copy; it is known to be the published one only as part of a copied hub cache: "
        f"--model .../{folder}/snapshots/COMMIT"
    )
