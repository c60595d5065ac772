"""Experiments of the package: one TOML file each, whose first comment is the command that runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedvlm import overrides
from fedvlm.errors import FedvlmError, nearest

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """All presets in alphabetical order."""
    return sorted(file.stem for file in FOLDER.glob("*.toml"))


def text(name: str) -> str:
    """A preset's file. Raises `FedvlmError`."""
    if name not in names():
        raise FedvlmError(f"no preset '{name}'{nearest(name, names())}; presets: {', '.join(names())}")
    return (FOLDER / f"{name}.toml").read_text()


def about(name: str) -> str:
    """The comment at the head of a preset's file."""
    lines = text(name).splitlines()
    head = [
        line.removeprefix("#").strip()
        for line in lines[: next(i for i, s in enumerate(lines) if not s.startswith("#"))]
    ]
    return "\n".join(head)


def settings(name: str) -> dict[str, Any]:
    """The plain settings of a preset or of a TOML file; the default name of an experiment is that of its file.

    With `like = "quickstart"`, the settings of a file are laid over those of this preset (or file in the same folder).
    """
    return _read(name, Path(), ())


def _read(name: str, folder: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    path = folder / name
    if not (path.suffix == ".toml" or path.is_file()):
        if name not in names():
            raise FedvlmError(
                f"no preset '{name}'{nearest(name, names())}; presets: {', '.join(names())}; or give a .toml file"
            )
        path = FOLDER / f"{name}.toml"
    if path.resolve() in above:
        raise FedvlmError(f"{path} is like itself: " + " -> ".join(each.name for each in (*above, path)))
    own = {"name": path.stem} | overrides.read_toml(path)
    if isinstance(own.get("sweep"), dict):
        own["sweep"] = overrides.flatten(own["sweep"])  # TOML reads data.shots = [1, 2] as a table in a table
    like = own.pop("like", None)
    if like is None:
        return own
    if not isinstance(like, str):
        raise FedvlmError(f"{path}: like = {like!r} is not the name of a preset or file")
    base = _read(like, path.parent, (*above, path.resolve()))
    if "sweep" in own:
        base.pop("sweep", None)  # only one setting is swept
    return overrides.merge(base, own)
