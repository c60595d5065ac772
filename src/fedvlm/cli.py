"""The verbs. Settings are `key=value` words; a user's mistake ends in one message and exit code 2."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedvlm import experiment, methods, plain, presets
from fedvlm.errors import FedvlmError

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
Out = Annotated[Path | None, typer.Option(help="Folder to write; default: runs/NAME-DIGEST.")]


@app.command()
def run(
    what: What,
    words: Words = None,
    out: Out = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run that is there.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Only the final table.")] = False,
) -> None:
    """Run an experiment: contract, progress, table, run folder. Exit code 1: a method has no result with some seed."""
    from fedvlm.results import failure
    from fedvlm.results.progress import Reporter
    from fedvlm.results.runner import run as play
    from fedvlm.results.table import as_rich, late_as_rich

    chosen = _experiment(what, words)
    results = play(chosen, out, resume=resume, overwrite=overwrite, reporter=Reporter(quiet=quiet))
    console = _console()
    seeds = f"mean ± standard deviation over {len(chosen.seeds)} seeds" if len(chosen.seeds) > 1 else "one seed"
    console.print()
    console.print(as_rich(results.rows, f"{chosen.name}: accuracy in %, mean over clients, {seeds}"))
    if any(row.reported and row.state == "after_training" for row in results.rows):
        console.print("* measured after local training, as published; the other state is in table.md", highlight=False)
    if results.late:
        console.print()
        console.print(late_as_rich(results.late))
    _say(console, "\n".join(["", *failure.told(results.failed), f"run folder: {results.folder}"]))
    raise typer.Exit(1 if results.failed else 0)


@app.command()
def compare(
    what: What,
    words: Words = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; default: runs/compare-NAME-DIGEST.")] = None,
    against: Annotated[str, typer.Option(help="Method that the others are compared with.")] = "",
    processes: Annotated[int, typer.Option(min=1, help="Points played at the same time.")] = 1,
    reach: Annotated[str, typer.Option(help="An accuracy to count rounds and bytes to, such as local=80.")] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a comparison that is there.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Only the final table.")] = False,
) -> None:
    """Compare methods over seeds: intervals, trade-offs, paired tests. Started again, it goes on where it was.

    Methods and seeds may be added to a comparison: what is finished is not played again. Exit code 1: a method has no
    result with some seed.
    """
    from fedvlm.results import compare as comparing
    from fedvlm.results.comparison_text import as_rich, notes
    from fedvlm.results.progress import Reporter

    chosen, target = _experiment(what, words), comparing.target(reach)
    folder = out or Path("runs") / f"compare-{chosen.name}-{chosen.basis()[:8]}"
    found = comparing.compare(
        chosen, folder, against=against or None, target=target, processes=processes, overwrite=overwrite,
        reporter=Reporter(quiet=quiet),
    )  # fmt: skip
    console = _console()
    for shown in as_rich(found):
        console.print()
        console.print(shown)
    console.print("\n" + "\n".join(notes(found)), highlight=False, markup=False)
    _say(console, f"\nwritten: {folder}/compare.md, .csv, .tex, .json, tradeoff.png")
    raise typer.Exit(1 if found.failed else 0)


@app.command()
def sweep(
    what: What,
    words: Words = None,
    over: Annotated[str, typer.Option(help="The setting and its values, such as data.shots=1,2,4.")] = "",
    out: Annotated[Path | None, typer.Option(help="Folder to write; default: runs/sweep-NAME-SETTING.")] = None,
    against: Annotated[str, typer.Option(help="Method that the others are compared with.")] = "",
    processes: Annotated[int, typer.Option(min=1, help="Points played at the same time.")] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the values that are there.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Only the final tables.")] = False,
) -> None:
    """Compare methods at several values of one setting: shots, clients, participation, a method's rank.

    Started again, it goes on where it was; values, methods and seeds may be added. Exit code 1: a value or a method
    failed.
    """
    from fedvlm.results import grid
    from fedvlm.results import sweep as sweeping
    from fedvlm.results.progress import Reporter

    planned = sweeping.plan(presets.settings(what), words or [], over)
    folder = out or Path("runs") / f"sweep-{planned.name}-{planned.key}"
    swept = sweeping.sweep(planned, folder, against=against or None, processes=processes, overwrite=overwrite,
                           reporter=Reporter(quiet=quiet))  # fmt: skip
    console = _console()
    for title, (heads, rows) in sweeping.tabled(swept, short=True).items():
        console.print()
        console.print(grid.terminal(heads, rows, title))
    console.print("\n" + "\n".join(f"- {note}" for note in sweeping.notes(swept)), highlight=False, markup=False)
    _say(console, f"\nwritten: {folder}/sweep.md, .csv, .tex, .json, .png")
    raise typer.Exit(0 if swept.complete else 1)


@app.command("methods")
def methods_(
    name: Annotated[str | None, typer.Argument(metavar="[METHOD]", help="One method, with all its settings.")] = None,
) -> None:
    """The methods and what each shares; with a name, its mathematics, tensors and settings."""
    from fedvlm.results import listing

    console = _console()
    if name is None:
        console.print(listing.methods_table())
        console.print("\nfedvlm methods NAME shows a method's tensors and settings", highlight=False)
        return
    words, settings = listing.method_page(name)
    _say(console, words + "\n")
    console.print(settings)


@app.command("presets")
def presets_() -> None:
    """The experiments that ship with the package."""
    for name in presets.names():
        _console().print(
            f"{name}\n  " + presets.about(name).replace("\n", "\n  "), highlight=False, markup=False, soft_wrap=True
        )


@app.command()
def partition(
    what: What,
    words: Words = None,
    out: Annotated[Path, typer.Option(help="Picture to write (.png or .svg).")] = Path("partition.png"),
) -> None:
    """How the classes are dealt to the clients: a table and a picture, nothing trained."""
    from fedvlm.data import federate, load_source
    from fedvlm.data.picture import draw_partition, partition_table

    chosen = _experiment(what, words)
    seed = chosen.seeds[0]
    federation = federate(load_source(chosen.data, seed, is_kept=chosen.compute.disk_gib > 0), chosen, seed)
    console = _console()
    shown = Table("client", "domain", "train", "test", "classes", "most of", box=None, pad_edge=False)
    for row in partition_table(federation):
        shown.add_row(
            escape(row.client), escape(row.domain), f"{row.train}", f"{row.local}", f"{row.classes}", escape(row.names)
        )
    console.print(shown)
    for note in federation.notes:
        console.print(f"warning: {note}", style="yellow", highlight=False, markup=False)
    draw_partition(federation, out)
    _say(console, f"digest {federation.digest()}\npicture {out}")


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Reference outputs.")],
    path: Annotated[
        str, typer.Option(help="Way through the code: alone, together, stored, released, or all of them.")
    ] = "alone",
    device: Annotated[str, typer.Option(help="As compute.device.")] = "cpu",
) -> None:
    """Recompute a directory of reference outputs and compare; exit code 1 if any tensor differs too much.

    alone: every client by itself. together: clients in one batched computation. stored: with activations that come
    back from disk. released: the released procedure, which `fedvlm bench` compares with.

    What differs is computed again with noise at the level of rounding. ILL-CONDITIONED: a unit stands on the edge of
    its ReLU, and with some noise everything agrees; it passes. FAIL: with no noise everything agrees.
    """
    from fedvlm.bench.naive import Released
    from fedvlm.results import verify as reference
    from fedvlm.results.agreement import as_rich
    from fedvlm.training import device as devices

    ways = reference.WAYS | {"released": Released()}
    if path != "all" and path not in ways:
        raise FedvlmError(f"--path '{path}' is not a way through the code; known: {', '.join(ways)}, all")
    place = devices.choose(experiment.ComputeSection(device=device))
    devices.configure_process(place)
    console, failed = _console(), 0
    for name in ways if path == "all" else [path]:
        groups = reference.verify(folder, ways[name], place)
        bad, edges = (sum(g.result == result for g in groups) for result in ("FAIL", "ILL-CONDITIONED"))
        console.print(as_rich(groups, name))
        console.print(f"{name}: {sum(g.tensors for g in groups)} tensors in {len(groups)} groups, {bad} groups failed"
                      + (f", {edges} ill-conditioned" if edges else ""), highlight=False)  # fmt: skip
        failed += bad
    raise typer.Exit(1 if failed else 0)


@app.command()
def doctor(out: Annotated[Path, typer.Option(help="Run folder to test.")] = Path("runs")) -> None:
    """Versions, devices, threads, weights; what is missing and the command that gets it."""
    from fedvlm.results.doctor import examine

    findings = examine(out)
    console = _console()
    for f in findings:
        mark = "ok  " if f.good else "FIX "
        console.print(f"{mark} {f.what:24} {f.found}", highlight=False, markup=False, soft_wrap=True)
        if f.advice:
            console.print(f"     {'':24} -> {f.advice}", highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(0 if all(f.good for f in findings) else 1)


@app.command()
def bench(
    names: Annotated[list[str] | None, typer.Argument(metavar="[PROTOCOL]...", help="Default: all.")] = None,
    data: Annotated[Path, typer.Option(help="Folder that holds caltech-101 in CoOp's layout.")] = Path("data"),
    models: Annotated[Path, typer.Option(help="Where random CLIPs are, or will be made.")] = Path("models"),
    tokenizer: Annotated[str, typer.Option(help="Model whose tokenizer random CLIPs take.")] = "embedded",
    out: Annotated[Path, typer.Option(help="JSON to write; the table goes beside it.")] = Path("bench.json"),
    steps: Annotated[int, typer.Option(help="Training steps to time.")] = 2,
    images: Annotated[int, typer.Option(help="Test images to time.")] = 100,
    list_: Annotated[bool, typer.Option("--list", help="Only list the protocols.")] = False,
) -> None:
    """Time the released procedure and this package side by side, and compare their results."""
    from fedvlm import durable
    from fedvlm.bench import protocols, report
    from fedvlm.bench.side import Sizes

    console = _console()
    chosen = names or list(protocols.PROTOCOLS)
    if list_:
        for protocol in map(protocols.named, chosen):
            console.print(f"{protocol.name:20} {protocol.title}", highlight=False)
        return
    rows: list[report.Row] = []
    for row in report.bench(chosen, data, models, tokenizer, Sizes(steps, images), console.print):
        rows.append(row)
        console.print(f"{row.protocol}: a warm round {row.ratios['warm']:.1f} times faster", highlight=False)
        durable.write_json(out, report.as_json(rows))
        durable.write_text(out.with_suffix(".md"), report.as_markdown(rows))
    console.print(report.as_markdown(rows), highlight=False, soft_wrap=True)
    _say(console, f"columns without a name: this package; before them the released procedure. Written: {out}")


@app.command()
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
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Make a published table again: paper, ours, difference, known reasons, what is missing and how to get it.

    Exit code 1 if any cell that was asked for has no number of ours.
    """
    from fedvlm.published import show

    asked = show.ask(data, model, rows, columns, seeds, words or [], offline=dry_run)
    if table is None:
        show.tables(_console(), asked)
        return
    folder = out or Path("runs") / f"reproduce-{table}"
    complete = show.table(_console(), table, asked, None if dry_run else folder, quiet=quiet)
    raise typer.Exit(0 if complete else 1)


@app.command()
def audit(
    what: Annotated[
        str | None, typer.Argument(metavar="[PRESET_OR_FILE]", help="A preset or TOML file; none: list the faults.")
    ] = None,
    words: Words = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; default: runs/audit-NAME.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Points played at the same time.")] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", help="Only the final tables.")] = False,
) -> None:
    """What each fault of the released code is worth: the right run against each of them and against all together.

    Repeat the command and it continues where it stopped. Exit code 1 if a run failed.
    """
    from fedvlm.audit import report

    console = _console()
    if what is None:
        console.print(report.catalogue())
        return
    chosen = _experiment(what, words)
    folder = out or Path("runs") / f"audit-{chosen.name}"
    complete = report.audit(console, chosen, folder, quiet=quiet, processes=processes)
    raise typer.Exit(0 if complete else 1)


@app.command()
def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Delete what is listed.")] = False,
    only: Annotated[str, typer.Option(help="Only what mentions these words, such as a model's name.")] = "",
) -> None:
    """What is kept of photographs for later runs, above all activations; any of it may be deleted at any time."""
    from fedvlm.data import remember
    from fedvlm.results import listing
    from fedvlm.training.store import Store, folder

    store, console = Store(folder(), 0), _console()
    held = [item for item in store.held() if item.mentions(only)]
    console.print(listing.cache_table(held))
    total = sum(item.size for item in held)
    _say(console, f"{total / 2**20:,.0f} MiB in {store.root}")
    if not only:
        size = remember.used_bytes() / 2**20
        _say(console, f"{size:,.1f} MiB in {remember.folder()}: which images were found sound")
    if clear:
        freed = store.clear(only) + (remember.clear() if not only else 0)
        console.print(f"deleted {freed / 2**20:,.0f} MiB", highlight=False)


@app.command("random-clip")
def random_clip(
    architecture: Annotated[str, typer.Argument(help="ViT-B/32, ViT-B/16, ViT-L/14 or RN50.")],
    folder: Annotated[Path, typer.Argument(help="Directory to write.")],
    tokenizer: Annotated[str, typer.Option(help="Model directory or hub id whose tokenizer to take.")] = "embedded",
    seed: Annotated[int, typer.Option(help="Seed of the weights.")] = 0,
) -> None:
    """Write a CLIP of a published size with random weights, to measure time and memory without downloading one."""
    from fedvlm.clip.make import make

    clip = make(architecture, folder, tokenizer=tokenizer, seed=seed)
    numbers = sum(parameter.numel() for parameter in clip.parameters())
    _say(_console(), f"{folder}: {architecture}, {numbers:,} random weights")


def _experiment(what: str, words: list[str] | None) -> experiment.Experiment:
    return methods.written_out(experiment.parse(plain.override(presets.settings(what), words or [])))


def _say(console: Console, text: str) -> None:
    """Words that hold a path or a name, as they are: brackets in them are no markup."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _console() -> Console:
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 120  # a file or a pipe has no width of its own
    return console


def main() -> None:
    """Entry point: errors of the user as one message on standard error."""
    try:
        app()
    except FedvlmError as error:
        Console(stderr=True).print(f"fedvlm: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except OSError as error:
        Console(stderr=True).print(f"fedvlm: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        Console(stderr=True).print(
            "fedvlm: interrupted; --resume continues (audit, compare, reproduce, sweep: run it again)", highlight=False
        )
        sys.exit(130)
