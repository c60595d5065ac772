"""The data files of this folder, read once and checked against each other."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from fedvlm import config, overrides
from fedvlm.config import Section
from fedvlm.errors import FedvlmError, nearest
from fedvlm.studies.published.schema import Catalogue, PublishedTable

FOLDER = Path(__file__).parent
S = TypeVar("S", bound=Section)


def names() -> list[str]:
    """Names of all tables; those of the two papers come first."""
    found = [file.stem for file in (FOLDER / "tables").glob("*.toml")]
    return sorted(found, key=lambda name: (name.startswith("others"), name))


def table(name: str) -> PublishedTable:
    """A published table by its name. Raises `FedvlmError` for an unknown name."""
    if name not in names():
        raise FedvlmError(f"no published table '{name}'{nearest(name, names())}; tables: {', '.join(names())}")
    return _table(name)


@cache
def _table(name: str) -> PublishedTable:
    return read(FOLDER / "tables" / f"{name}.toml")


def read(file: Path) -> PublishedTable:
    """The table of a file. Raises FedvlmError if it is inconsistent, or names unknown reasons, data or weights."""
    found = _parse(file, PublishedTable)
    used = {*found.reasons, found.void}
    for row in found.rows.values():
        used |= {*row.reasons, row.void}
    for column in found.columns.values():
        used |= {*column.reasons, column.void}
    data, weights = {run.data for run in found.runs.values()}, {found.protocol.backbone}
    for what, named, known in (
        ("reasons", used - {None}, reasons().keys()),
        ("data sets", data, catalogue().data.keys()),
        ("weights", weights - {"not noted"}, catalogue().weights.keys()),
    ):
        if unknown := sorted(str(name) for name in named - known):
            raise FedvlmError(f"{file.name} names {what} that are not described: {', '.join(unknown)}")
    return found


@cache
def reasons() -> dict[str, str]:
    """Reasons why a correct run may give another number than the published one, by name."""
    return {name: str(text) for name, text in overrides.read_toml(FOLDER / "reasons.toml").items()}


@cache
def catalogue() -> Catalogue:
    """The catalogue of data sets and weights."""
    return _parse(FOLDER / "catalogue.toml", Catalogue)


def _parse(file: Path, kind: type[S]) -> S:
    try:
        return kind.model_validate(overrides.read_toml(file))
    except ValidationError as error:
        raise FedvlmError(f"{file.name}: " + "; ".join(config.problems(error, kind))) from None
