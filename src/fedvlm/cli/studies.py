"""Verbs of studies: compare, sweep, audit, reproduce."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedvlm import presets
from fedvlm.cli.answers import told
from fedvlm.cli.app import (
    Against,
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
    print_written,
    reporter,
)

if TYPE_CHECKING:
    from fedvlm.studies.published.plan import Request


@app.command(epilog=told("compare"))
def compare(
    what: What,
    words: Words = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; default: runs/compare-NAME-DIGEST.")] = None,
    against: Against = "",
    processes: Processes = 1,
    reach: Annotated[str, typer.Option(help="An accuracy to count rounds and bytes to, such as local=80.")] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a comparison that is there.")] = False,
    track: Track = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Compare methods over seeds: intervals, trade-offs, paired tests. Started again, it continues.

    Methods and seeds may be added to a comparison: what is finished is not run again. Exit code 1: a method has no
    result with some seed.
    """
    from fedvlm.reports.text import as_rich, reading_notes
    from fedvlm.studies import compare as comparing
    from fedvlm.studies.study import Options

    chosen, target = load_experiment(what, words), comparing.parse_target(reach)
    folder = out or Path("runs") / f"compare-{chosen.name}-{chosen.basis()[:8]}"
    options = Options(True, overwrite, processes, reporter(quiet=quiet, as_json=as_json), beside(track))
    found = comparing.compare(chosen, folder, against=against or None, target=target, options=options)
    if as_json:
        print_json(found.as_json() | {"folder": str(folder)})
        raise typer.Exit(1 if found.failed else 0)
    print_text()
    print_tables(*as_rich(found))
    print_text("\n" + "\n".join(reading_notes(found)), wrapped=True)
    print_written(folder, "compare.md", ".csv", ".tex", ".json", "tradeoff.png")
    print_text(f"all of it as a page: fedvlm report {shlex.quote(str(folder))}")
    print_hints(folder, track)
    raise typer.Exit(1 if found.failed else 0)


@app.command(epilog=told("sweep"))
def sweep(
    what: What,
    words: Words = None,
    over: Annotated[str, typer.Option(help="The setting and its values, such as data.shots=1,2,4.")] = "",
    out: Annotated[Path | None, typer.Option(help="Folder to write; default: runs/sweep-NAME-SETTING.")] = None,
    against: Against = "",
    processes: Processes = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the values that are there.")] = False,
    track: Track = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Compare methods at several values of one setting: shots, clients, participation, a method's rank.

    Started again, it continues; values, methods and seeds may be added. Exit code 1: a value or a method
    failed.
    """
    from fedvlm.reports import grid
    from fedvlm.studies import sweep as sweeping
    from fedvlm.studies.study import Options

    planned = sweeping.plan(presets.settings(what), words or [], over)
    folder = out or Path("runs") / f"sweep-{planned.name}-{planned.key}"
    options = Options(True, overwrite, processes, reporter(quiet=quiet, as_json=as_json), beside(track))
    swept = sweeping.sweep(planned, folder, against=against or None, options=options)
    if as_json:
        print_json(swept.as_json() | {"folder": str(folder)})
        raise typer.Exit(0 if swept.complete else 1)
    tables = sweeping.sweep_tables(swept, short=True)
    print_text()
    print_tables(*(grid.terminal(heads, rows, title) for title, (heads, rows) in tables.items()))
    print_text("\n" + "\n".join(f"- {note}" for note in sweeping.reading_notes(swept)), wrapped=True)
    print_written(folder, "sweep.md", ".csv", ".tex", ".json", ".png")
    raise typer.Exit(0 if swept.complete else 1)


@app.command(epilog=told("audit"))
def audit(
    what: Annotated[
        str | None, typer.Argument(metavar="[PRESET_OR_FILE]", help="A preset or TOML file; none: list the faults.")
    ] = None,
    words: Words = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; default: runs/audit-NAME.")] = None,
    processes: Processes = 1,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """The effect of each fault of the released code: the right run against runs with each fault, and with all.

    Repeat the command to continue. Exit code 1 if a run failed.
    """
    from fedvlm.studies.audit import report
    from fedvlm.studies.study import Options

    if what is None:
        if as_json:
            print_json({"faults": report.catalogue_json()})
        else:
            print_tables(report.catalogue())
        return
    chosen = load_experiment(what, words)
    folder = out or Path("runs") / f"audit-{chosen.name}"
    options = Options(processes=processes, reporter=reporter(quiet=quiet, as_json=as_json), beside=beside(None))
    found = report.audit(chosen, folder, options)
    if as_json:
        print_json(report.as_json(chosen, found) | {"folder": str(folder)})
        raise typer.Exit(1 if any(line.failed for line in found) else 0)
    print_text()
    print_tables(
        *(report.as_rich([line for line in found if line.method == method], method) for method in chosen.methods)
    )
    print_text("\n" + "\n".join(report.reading_notes(chosen, found)))
    print_written(folder, "audit.md", ".csv and .json; run it again to continue")
    raise typer.Exit(1 if any(line.failed for line in found) else 0)


@app.command(epilog=told("reproduce"))
def reproduce(
    table: Annotated[str | None, typer.Argument(metavar="[TABLE]", help="A published table; none: list them.")] = None,
    words: Words = None,
    data: Annotated[Path, typer.Option(help="Folder that holds the data sets' folders.")] = Path("data"),
    model: Annotated[str | None, typer.Option(help="Other weights: hub id, directory or embedded.")] = None,
    rows: Annotated[str | None, typer.Option(help="Only these rows: a,b.")] = None,
    columns: Annotated[str | None, typer.Option(help="Only these columns, or those of these runs: x,y.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Such as 0,1,2; default: the preset's.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; default: runs/reproduce-TABLE.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what can run and what is missing.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Reproduce a published table: paper, ours, difference, known reasons, what is missing and how to get it.

    Exit code 1 if a requested cell has no number of ours.
    """
    from fedvlm.studies.published import plan, report, reproduce, request
    from fedvlm.studies.study import Options

    wanted = request.parse_request(data, model, rows, columns, seeds, words or [], offline=dry_run)
    if table is None:
        _list_tables(wanted, as_json=as_json)
        return
    chosen = plan.plan(table, wanted)
    if not as_json:
        count = f"{len(chosen.possible)} of {len(chosen.cells)} cells can be made here"
        print_text("\n".join([*report.heading(chosen), count, ""]))
    folder = out or Path("runs") / f"reproduce-{table}"
    options = Options(reporter=reporter(quiet=quiet, as_json=as_json), beside=beside(None))
    found = report.build_report(
        chosen, reproduce.JobResults() if dry_run else reproduce.run_jobs(chosen, folder, options)
    )
    if not dry_run:
        report.write(found, folder)
    if as_json:
        print_json(report.as_json(found) | {"folder": None if dry_run else str(folder)})
    else:
        print_tables(report.as_rich(found))
        print_text("\n".join(report.footer(found)))
        if not dry_run:
            print_written(folder, "reproduce.md", ".json; runs are continued when the command is repeated")
    raise typer.Exit(0 if (len(chosen.possible) == len(chosen.cells) if dry_run else found.complete) else 1)


def _list_tables(wanted: Request, *, as_json: bool) -> None:
    from fedvlm.studies.published import request

    found = request.list_tables(wanted)
    if as_json:
        print_json({"tables": [asdict(one) for one in found], "notes": request.reading_notes(wanted)})
        return
    print_tables(request.as_rich(found))
    print_text("\n".join(["", *request.reading_notes(wanted)]))
