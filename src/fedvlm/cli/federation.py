"""Verbs of a coordinator: init, run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedvlm.cli.answers import told
from fedvlm.cli.app import (
    AsJson,
    Quiet,
    Track,
    What,
    Words,
    app,
    beside,
    print_hints,
    print_json,
    print_tables,
    print_text,
    reporter,
)

federation_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(federation_app, name="federation", help="The coordinator of a federation between machines.")

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The federation's folder.")]


@federation_app.command()
def init(
    folder: Folder,
    what: What,
    words: Words = None,
    sites: Annotated[str, typer.Option(help="Names of the sites: north,south.")] = "",
    carrier: Annotated[str, typer.Option(help="folder, flower, nvflare or flower_simulation.")] = "folder",
    example: Annotated[
        bool, typer.Option("--example", help="Draw the images of three sites, to try it on one machine.")
    ] = False,
) -> None:
    """Write all that a coordinator hands out: the experiment, the carrier, a README with the exact commands."""
    from fedvlm.errors import FedvlmError, listed
    from fedvlm.network.coordinator import init as begin
    from fedvlm.network.coordinator.settings import CARRIERS

    if carrier not in CARRIERS:
        raise FedvlmError(f"--carrier {carrier} is none of: {listed(CARRIERS)}")
    chosen, images = begin.prepare(what, words or [], folder, carrier, drawn=example)
    names = [name.strip() for name in sites.split(",") if name.strip()] or list(images)
    files = begin.write(folder, chosen, names, carrier, images)
    print_text("written: " + ", ".join(map(str, files)))
    for name, path in images.items():
        print_text(f"drawn images of {name}: {path}")
    print_text(f"digest {chosen.digest()}\nnext: {folder / 'README.md'}")


@federation_app.command(epilog=told("federation run"))
def run(
    folder: Folder,
    resume: Annotated[bool, typer.Option("--resume", help="Continue at the unfinished round.")] = False,
    track: Track = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Play the rounds. Killed at any moment, it continues with --resume, and no reply is lost."""
    from fedvlm.network.coordinator import start
    from fedvlm.network.coordinator.table import Table
    from fedvlm.reports.table import as_rich, results_as_json
    from fedvlm.runs.results import Results

    settings = start.read(folder)
    coordinator = start.load(folder, settings)
    table = Table(settings.sites, reporter(quiet=quiet, as_json=as_json).console, quiet=quiet)
    following = beside(track)
    carrier = start.carrier(folder, settings, coordinator, table.say)
    try:
        with table:
            points = coordinator.run(carrier, table, resume=resume, beside=following)
    finally:
        carrier.close()
    results = Results(coordinator.experiment, coordinator.folder.path, points, {}, "", {m: m for m in points})
    if as_json:
        print_json(results_as_json(results))
        return
    print_text()
    print_tables(as_rich(results.rows, f"{coordinator.experiment.name}: accuracy in %, mean over sites"))
    print_text(f"\nrun folder: {coordinator.folder.path}\nthe personal models are at the sites")
    print_hints(coordinator.folder.path, track)
