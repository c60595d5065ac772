"""What is on this machine: folders of photographs, weights, and whether these weights are the published ones."""

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
    """A data set's folder, or where it was looked for."""

    title: str
    path: Path
    """Where it is; where it would be looked for first if it is not there."""
    missing: str | None = None
    """What was tried and how to get it."""


def find_dataset(dataset: Dataset, root: Path) -> DatasetLocation:
    """The first folder of a data set below `root` that holds what it must."""
    tried = [root / name for name in dataset.folders]
    for folder in tried:
        if folder.is_dir() and any(next(folder.glob(pattern), None) for pattern in dataset.holds):
            return DatasetLocation(dataset.title, folder)
    looked = f"none of {', '.join(map(str, tried))} holds {' or '.join(dataset.holds)}"
    return DatasetLocation(dataset.title, tried[0], f"{dataset.title}: {looked}. Get it: {dataset.get}")


@dataclass(frozen=True)
class Weights:
    """The CLIP that will be used, beside the published one."""

    name: str
    ids: tuple[str, ...]
    """Hub ids of the published weights."""
    digest: str | None = None
    """SHA-256 of the weight files; None where they could not be loaded."""
    missing: str | None = None
    """Why they could not, and what to do."""

    @property
    def published(self) -> bool:
        """Whether they are known to be the published ones: by their hub id, or as a folder of the hub's cache."""
        return is_published(self.name, self.ids)

    @property
    def description(self) -> str:
        """One line that stands above every result."""
        sha = f", sha256 {self.digest[:12]}" if self.digest else ", not loaded"
        if self.published:
            return f"published weights{'' if self.digest else ', not loaded'}: {self.name}{sha if self.digest else ''}"
        return f"other weights: not comparable ({self.name}{sha}; the table's are {' or '.join(self.ids)})"


def is_published(name: str, ids: Sequence[str]) -> bool:
    """Hub ids are taken at their word, but not for a local folder of that name; a cache's snapshot names its id."""
    path = Path(name).expanduser()
    if not path.is_dir():
        return name in ids
    parts = path.resolve().parts
    snapshot = [repository for repository, inner in itertools.pairwise(parts) if inner == "snapshots"]
    return any(f"models--{known.replace('/', '--')}" in snapshot for known in ids)


@cache
def load_weights(model: ModelSection, ids: tuple[str, ...]) -> Weights:
    """Load the weights once to see that they can be used, and which they are."""
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
