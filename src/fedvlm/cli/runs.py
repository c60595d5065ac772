"""Verbs on one run: carry it out, watch it, or show its partition."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from fedvlm.cli.answers import told
from fedvlm.cli.app import (
    AsJson,
    Processes,
    Quiet,
    Track,
    What,
    Words,
    app,
    beside,
    load_experiment,
    print_hints,
    print_json,
    print_tables,
    print_text,
    reporter,
)


@app.command(epilog=told("run"))
def run(
    what: What,
    words: Words = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; default: runs/NAME-DIGEST.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run that is there.")] = False,
    processes: Processes = 1,
    track: Track = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Run an experiment: contract, progress, table, run folder. Exit code 1: a method has no result with some seed."""
    from fedvlm.reports.table import as_rich, newcomers_as_rich, results_as_json
    from fedvlm.runs import failure
    from fedvlm.studies import study
    from fedvlm.studies.study import Options

    chosen = load_experiment(what, words)
    options = Options(resume, overwrite, processes, reporter(quiet=quiet, as_json=as_json), beside(track))
    results = study.run(study.single_plan(chosen, out), options)
    if as_json:
        print_json(results_as_json(results))
        raise typer.Exit(1 if results.failed else 0)
    seeds = f"mean ± standard deviation over {len(chosen.seeds)} seeds" if len(chosen.seeds) > 1 else "one seed"
    print_text()
    print_tables(as_rich(results.rows, f"{chosen.name}: accuracy in %, mean over clients, {seeds}"))
    if any(row.reported and row.state == "after_training" for row in results.rows):
        print_text("* measured after local training, as published; the other state is in table.md")
    if results.newcomers:
        print_text()
        print_tables(newcomers_as_rich(results.newcomers))
    print_text("\n".join(["", *failure.failure_lines(results.failed), f"run folder: {results.folder}"]))
    print_hints(results.folder, track)
    place = shlex.quote(str(results.folder))
    print_text(f"all of it as a page: fedvlm report {place}")
    print_text(f"a client's own model, to use: fedvlm export {place} FOLDER --client NAME --method METHOD")
    raise typer.Exit(1 if results.failed else 0)


@app.command(epilog=told("partition"))
def partition(
    what: What,
    words: Words = None,
    out: Annotated[Path, typer.Option(help="Picture to write (.png or .svg).")] = Path("partition.png"),
    as_json: AsJson = False,
) -> None:
    """How the classes are dealt to the clients: a table and a picture, nothing trained."""
    from fedvlm.data import federate
    from fedvlm.data.picture import draw_partition, partition_json, partition_table
    from fedvlm.reports import grid

    chosen = load_experiment(what, words)
    seed = chosen.seeds[0]
    federation = federate(chosen.load_source(seed), chosen, seed)
    table = partition_table(federation)
    if as_json:
        draw_partition(federation, out)
        print_json(partition_json(federation, table) | {"picture": str(out)})
        return
    rows = [[row.client, row.domain, f"{row.train}", f"{row.local}", f"{row.classes}", row.names] for row in table]
    print_tables(grid.terminal(["client", "domain", "train", "test", "classes", "most of"], rows, left=(0, 1, -1)))
    for note in federation.notes:
        print_text(f"warning: {note}", style="yellow")
    draw_partition(federation, out)
    print_text(f"digest {federation.digest()}\npicture {out}")


@app.command(epilog=told("watch"))
def watch(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, a comparison or a federation's run.")],
    every: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Show it and end.")] = False,
    as_json: AsJson = False,
) -> None:
    """How far a run is, while another process is at it. Ends with the run."""
    import time

    from rich.live import Live

    from fedvlm.reports import watch as watching

    found = watching.snapshot(folder)
    if as_json:
        print_json(watching.as_json(found))
        return
    if once or found.finished or not found.running:
        print_tables(watching.table(found))
        return
    with Live(watching.table(found), auto_refresh=False) as live:
        while found.running and not found.finished:
            time.sleep(every)
            found = watching.snapshot(folder)
            live.update(watching.table(found), refresh=True)
