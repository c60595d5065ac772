"""Verbs of experiment files: init, check, copy, schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fedvlm import durable, presets
from fedvlm.cli.answers import told
from fedvlm.cli.app import AsJson, What, Words, app, load_experiment, print_json, print_text
from fedvlm.errors import FedvlmError, printable


@app.command(epilog=told("init"))
def init(
    images: Annotated[
        Path, typer.Argument(metavar="IMAGES", help="A folder of class folders, or of client/class folders; or a CSV.")
    ],
    out: Annotated[Path | None, typer.Option(help="Experiment file to write; default: NAME.toml here.")] = None,
    model: Annotated[str, typer.Option(help="embedded, a hub id, or a directory.")] = "embedded",
    example: Annotated[bool, typer.Option("--example", help="Draw 200 photographs into IMAGES first.")] = False,
    as_json: AsJson = False,
) -> None:
    """Look at photographs, say what was found, and write a commented experiment file that runs as it is."""
    from fedvlm.data.look import look
    from fedvlm.runs import starter

    file = out or Path(f"{images.resolve().stem}.toml")
    starter.check_free(file)
    if example:
        starter.draw_example(images)
    found = look(images)
    starter.write(found, file, model)
    if as_json:
        print_json(found.as_json() | {"file": str(file)})
        return
    print_text(f"found: {found.said}")
    for name, count in found.labels.most_common(12):
        print_text(f"  {count:6,}  {printable(name)}")
    if len(found.labels) > 12:
        print_text(f"          and {len(found.labels) - 12} more classes")
    for one in found.oddities:
        print_text(f"look: {one}", style="yellow")
    print_text(f"written: {file}\nnext: fedvlm check {file}")


@app.command(epilog=told("check"))
def check(what: What, words: Words = None, as_json: AsJson = False) -> None:
    """Do all that a run does before it trains: settings, model, images, clients, and what would leave them."""
    from fedvlm.runs import runner
    from fedvlm.studies import study

    chosen = load_experiment(what, words)
    found = runner.preview(chosen, study.single_plan(chosen).folder)
    if as_json:
        facts = {"name": chosen.name, "digest": chosen.digest(), "rounds": chosen.rounds, "seeds": list(chosen.seeds)}
        print_json(facts | {"methods": [vars(one) for one in found.terms], "notes": found.notes})
        return
    print_text(found.text)
    for note in found.notes:
        print_text(f"warning: {note}", style="yellow")
    sizes = [("method", len(chosen.methods)), ("seed", len(chosen.seeds))]
    count = ", ".join(f"{number} {what}{'s' * (number > 1)}" for what, number in sizes)
    print_text(f"\nsound: {count}; nothing was trained or written")


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
    if out.exists() and '"$schema"' not in out.read_text(errors="replace")[:100]:
        raise FedvlmError(f"{out} is there already and no schema: name another file")
    durable.write_text(out, text)
    print_text(f"written: {out}\nfirst line of an experiment file: #:schema {out}")
