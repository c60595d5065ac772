"""What all verbs share: arguments, settings, printing. Settings are `key=value` words."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, RenderableType

if TYPE_CHECKING:
    from fedvlm.experiment import Experiment

app = typer.Typer(
    name="fedvlm",
    help="Personalised federated fine-tuning of vision-language models.",
    no_args_is_help=True,
    add_completion=False,
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
    """Print tables, an empty line between them."""
    for place, table in enumerate(tables):
        _console().print(*(["", table] if place else [table]), sep="\n")


def print_text(text: str = "", *, wrapped: bool = False, style: str | None = None) -> None:
    """Print words as they are: brackets in paths and names are no markup."""
    _console().print(text, style=style, highlight=False, markup=False, soft_wrap=not wrapped)


def print_written(folder: Path, *files: str) -> None:
    """Say what was written."""
    print_text(f"\nwritten: {folder / files[0]}" + "".join(f", {file}" for file in files[1:]))


def _console() -> Console:
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 120  # a file or a pipe has no width of its own
    return console
