"""Named experiments that ship with the package, one TOML file each, headed by the command that runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedvlm import experiment
from fedvlm.errors import FedvlmError, nearest

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """All presets in alphabetical order."""
    return sorted(file.stem for file in FOLDER.glob("*.toml"))


def about(name: str) -> str:
    """The comment at the head of a preset's file."""
    lines = (FOLDER / f"{name}.toml").read_text().splitlines()
    head = [
        line.removeprefix("#").strip()
        for line in lines[: next(i for i, s in enumerate(lines) if not s.startswith("#"))]
    ]
    return "\n".join(head)


def settings(name: str) -> dict[str, Any]:
    """The plain settings of a preset or of a TOML file; a file given by its path is named after itself."""
    path = Path(name)
    if path.suffix == ".toml" or path.is_file():
        return {"name": path.stem} | experiment.read(path)
    if name not in names():
        raise FedvlmError(
            f"no preset '{name}'{nearest(name, names())}; presets: {', '.join(names())}; or give a .toml file"
        )
    return {"name": name} | experiment.read(FOLDER / f"{name}.toml")
