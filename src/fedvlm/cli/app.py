"""Shared by all verbs: arguments, settings as `key=value` words, printing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, RenderableType
from typer.core import TyperGroup

if TYPE_CHECKING:
    from fedvlm.experiment import Experiment

ORDER = (
    "init", "check", "copy", "schema", "run", "watch", "partition", "compare", "sweep", "reproduce", "audit", "report",
    "export", "predict", "federation", "site", "methods", "presets", "doctor", "cache", "verify", "bench",
    "random-clip",
)  # fmt: skip
"""The verbs as they are listed: as people come to them."""


class Verbs(TyperGroup):
    """The verbs in their order."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of the verbs."""
        return sorted(super().list_commands(ctx), key=lambda name: ORDER.index(name))


app = typer.Typer(
    name="fedvlm",
    cls=Verbs,
    help="Personalised federated fine-tuning of vision-language models.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

What = Annotated[str, typer.Argument(metavar="PRESET_OR_FILE", help="A preset's name or a TOML file.")]
Words = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, such as rounds=20 seeds=0,1,2.")
]
Processes = Annotated[int, typer.Option(min=1, help="Points that run at the same time.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Only the final tables.")]
Against = Annotated[str, typer.Option(help="Method that the others are compared with.")]


def load_experiment(what: str, words: Sequence[str] | None) -> Experiment:
    """The experiment that a verb's arguments describe."""
    from fedvlm import experiment

    return experiment.load(what, words or ())


def print_tables(*tables: RenderableType) -> None:
    """Print tables with empty lines between them."""
    for place, table in enumerate(tables):
        _console().print(*(["", table] if place else [table]), sep="\n")


def print_text(text: str = "", *, wrapped: bool = False, style: str | None = None) -> None:
    """Print text without markup, because paths and names may hold brackets."""
    _console().print(text, style=style, highlight=False, markup=False, soft_wrap=not wrapped)


def print_written(folder: Path, *files: str) -> None:
    """Print the names of written files."""
    print_text(f"\nwritten: {folder / files[0]}" + "".join(f", {file}" for file in files[1:]))


def _console() -> Console:
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 120  # files and pipes have no width
    return console
