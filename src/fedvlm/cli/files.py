"""Verbs of experiment files: check, copy, schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fedvlm import durable, presets
from fedvlm.cli.app import What, Words, app, load_experiment, print_text
from fedvlm.errors import FedvlmError


@app.command()
def check(what: What, words: Words = None) -> None:
    """Do all that a run does before it trains: settings, model, images, clients, and what would leave them."""
    from fedvlm.runs import runner
    from fedvlm.studies import study

    chosen = load_experiment(what, words)
    text, notes = runner.preview(chosen, study.single_plan(chosen).folder)
    print_text(text)
    for note in notes:
        print_text(f"warning: {note}", style="yellow")
    print_text(f"\nsound: {len(chosen.methods)} methods, {len(chosen.seeds)} seeds; nothing was trained or written")


@app.command()
def copy(
    preset: Annotated[str, typer.Argument(metavar="PRESET", help="A preset's name.")],
    out: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="Default: PRESET.toml here.")] = None,
) -> None:
    """Copy a preset's file, to change it."""
    file = out or Path(f"{preset}.toml")
    text = presets.text(preset)
    if file.exists():
        raise FedvlmError(f"{file} is there already: name another file")
    durable.write_text(file, text)
    print_text(f"written: {file}\nnext: fedvlm check {file}")


@app.command()
def schema(
    out: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="File to write; default: print it.")] = None,
) -> None:
    """The JSON schema of experiment files, with which editors complete them (#:schema FILE in its first line)."""
    from fedvlm.reports import schema as schemas

    text = json.dumps(schemas.experiment_schema(), indent=1, ensure_ascii=False) + "\n"
    if out is None:
        print(text, end="")
        return
    durable.write_text(out, text)
    print_text(f"written: {out}\nfirst line of an experiment file: #:schema {out}")
