"""Verbs on one run: carry it out, or show its partition."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedvlm.cli.app import Processes, Quiet, What, Words, app, load_experiment, print_tables, print_text


@app.command()
def run(
    what: What,
    words: Words = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; default: runs/NAME-DIGEST.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run that is there.")] = False,
    processes: Processes = 1,
    quiet: Quiet = False,
) -> None:
    """Run an experiment: contract, progress, table, run folder. Exit code 1: a method has no result with some seed."""
    from fedvlm.reports.table import as_rich, newcomers_as_rich
    from fedvlm.runs import failure
    from fedvlm.runs.progress import Reporter
    from fedvlm.studies import study
    from fedvlm.studies.study import Options

    chosen = load_experiment(what, words)
    options = Options(resume=resume, overwrite=overwrite, processes=processes, reporter=Reporter(quiet=quiet))
    results = study.run(study.single_plan(chosen, out), options)
    seeds = f"mean ± standard deviation over {len(chosen.seeds)} seeds" if len(chosen.seeds) > 1 else "one seed"
    print_text()
    print_tables(as_rich(results.rows, f"{chosen.name}: accuracy in %, mean over clients, {seeds}"))
    if any(row.reported and row.state == "after_training" for row in results.rows):
        print_text("* measured after local training, as published; the other state is in table.md")
    if results.newcomers:
        print_text()
        print_tables(newcomers_as_rich(results.newcomers))
    print_text("\n".join(["", *failure.failure_lines(results.failed), f"run folder: {results.folder}"]))
    print_text(f"a client's own model, to use: fedvlm export {results.folder} FOLDER --client NAME --method METHOD")
    raise typer.Exit(1 if results.failed else 0)


@app.command()
def partition(
    what: What,
    words: Words = None,
    out: Annotated[Path, typer.Option(help="Picture to write (.png or .svg).")] = Path("partition.png"),
) -> None:
    """How the classes are dealt to the clients: a table and a picture, nothing trained."""
    from fedvlm.data import federate
    from fedvlm.data.picture import draw_partition, partition_table
    from fedvlm.reports import grid

    chosen = load_experiment(what, words)
    seed = chosen.seeds[0]
    federation = federate(chosen.load_source(seed), chosen, seed)
    rows = [[row.client, row.domain, f"{row.train}", f"{row.local}", f"{row.classes}", row.names]
            for row in partition_table(federation)]  # fmt: skip
    print_tables(grid.terminal(["client", "domain", "train", "test", "classes", "most of"], rows, left=(0, 1, -1)))
    for note in federation.notes:
        print_text(f"warning: {note}", style="yellow")
    draw_partition(federation, out)
    print_text(f"digest {federation.digest()}\npicture {out}")
