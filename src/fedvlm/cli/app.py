"""Shared by all verbs: arguments, settings as `key=value` words, printing."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, RenderableType
from typer.core import TyperGroup

from fedvlm.cli import again

if TYPE_CHECKING:
    from fedvlm.experiment import Experiment
    from fedvlm.runs.progress import Reporter
    from fedvlm.runs.runner import Beside

ORDER = (
    "init", "check", "copy", "schema", "run", "watch", "track", "partition", "compare", "sweep", "reproduce", "audit",
    "report", "export", "predict", "federation", "site", "methods", "presets", "doctor", "cache", "verify", "bench",
    "random-clip",
)  # fmt: skip
"""The verbs as they are listed: as people come to them."""


class Verbs(TyperGroup):
    """The verbs in their order."""

    def invoke(self, ctx: Any) -> Any:
        """Run a verb. Typer would answer Ctrl-C itself, in silence."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise again.StoppedError("interrupted", 128 + signal.SIGINT) from None

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


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        print_text(f"fedvlm {metadata.version('fedvlm')}")
        raise typer.Exit


@app.callback()
def start(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Personalised federated fine-tuning of vision-language models."""


What = Annotated[str, typer.Argument(metavar="PRESET_OR_FILE", help="A preset's name or a TOML file.")]
Words = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, such as rounds=20 seeds=0,1,2.")
]
Processes = Annotated[int, typer.Option(min=1, help="Points that run at the same time.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Only the final tables.")]
Against = Annotated[str, typer.Option(help="Method that the others are compared with.")]


AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output; all else on standard error.")]
Track = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Also write for tensorboard, mlflow or wandb (offline); may be repeated."),
]


def reporter(*, quiet: bool, as_json: bool) -> Reporter:
    """Progress on standard output; on standard error beside JSON."""
    from fedvlm.runs.progress import Reporter

    return Reporter(Console(stderr=True) if as_json else None, quiet=quiet)


def beside(names: Sequence[str] | None) -> Beside:
    """What goes on beside a run: these writers; and should it die, it can be taken up again.

    Raises `FedvlmError` for a writer that is not there.
    """
    from fedvlm.reports import track
    from fedvlm.reports.track import follow

    trackers = track.check(names or [])

    @contextmanager
    def both(folder: Path) -> Iterator[None]:
        with again.beside(), follow.following(folder, trackers, _print_warning):
            yield

    return both


def print_hints(folder: Path, names: Sequence[str] | None) -> None:
    """Print the commands that show what writers have written of a run."""
    from fedvlm.reports import track

    for name in dict.fromkeys(names or ()):
        print_text(f"{name}: {track.hint(name, track.place(folder, name))}")


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


def print_json(value: object) -> None:
    """Print the answer of a verb with `--json`. Numbers that JSON does not have are null."""
    print(json.dumps(_finite(value), indent=1, ensure_ascii=False, allow_nan=False), flush=True)


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def print_aside(text: str, style: str | None = None) -> None:
    """Print on standard error what is not part of an answer."""
    Console(stderr=True).print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _print_warning(text: str) -> None:
    print_aside(f"warning: {text}", "yellow")


def print_written(folder: Path, *files: str) -> None:
    """Print the names of written files."""
    print_text(f"\nwritten: {folder / files[0]}" + "".join(f", {file}" for file in files[1:]))


def _console() -> Console:
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 120  # files and pipes have no width
    return console
