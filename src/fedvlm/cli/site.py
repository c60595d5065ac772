"""Verbs of a site: init, check, approve, serve, status, export, forget, carry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedvlm.cli.answers import told
from fedvlm.cli.app import AsJson, app, print_json, print_tables, print_text
from fedvlm.cli.personal import Folds, Merged, Onnx, write_model
from fedvlm.errors import FedvlmError, listed

if TYPE_CHECKING:
    from fedvlm.experiment import Experiment
    from fedvlm.network.site.check import Checked
    from fedvlm.network.site.settings import SiteSettings

site_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(site_app, name="site", help="A data holder's process in a federation between machines.")

SiteFile = Annotated[Path, typer.Option("--site", help="The site's settings.")]
DEFAULT = Path("site.toml")


@site_app.command()
def init(
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="Folder of class folders, or a CSV file.")],
    folder: Annotated[Path, typer.Option("--out", help="Folder of the site.")] = Path("site"),
    name: Annotated[str, typer.Option(help="How the others know this site.")] = "site",
    experiment: Annotated[Path | None, typer.Option(help="The experiment's file, to match class names.")] = None,
    user: Annotated[str, typer.Option(help="Operating-system user of the site, in its service.")] = "",
    carrier_user: Annotated[str, typer.Option(help="Operating-system user of the carrier.")] = "",
    key: Annotated[Path | None, typer.Option(help="File with the key that the coordinator has given.")] = None,
) -> None:
    """Look at photographs, and write a commented site.toml and services for the site and its carrier."""
    from fedvlm.network.site import init as begin
    from fedvlm.network.site.place import read_experiment

    chosen = read_experiment(experiment) if experiment else None
    files = begin.write(folder, images, name, chosen, user, carrier_user, key)
    print_text((folder / "site.toml").read_text())
    print_text("written: " + ", ".join(map(str, files)))
    print_text(f"next: read it, then  fedvlm site check EXPERIMENT --site {folder / 'site.toml'}")


@site_app.command(epilog=told("site check"))
def check(
    experiment: Annotated[Path, typer.Argument(metavar="EXPERIMENT", help="The experiment's file.")],
    site: SiteFile = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Read the photographs as the experiment uses them, and print exactly what would leave. Nothing is sent.

    Exit code 1: the experiment is not approved, or the policy forbids what a method sends.
    """
    from fedvlm.network.site.place import read_experiment

    found, own = _checked(read_experiment(experiment), site)
    if as_json:
        print_json(found.as_json() | {"site": own.name})
    else:
        _print_check(found, own)
    if not (as_json or found.approved):
        print_text(f"to take part: fedvlm site approve {experiment} --site {site}")
    raise typer.Exit(0 if found.approved and found.allowed else 1)


@site_app.command()
def approve(
    experiment: Annotated[Path, typer.Argument(metavar="EXPERIMENT", help="The experiment's file.")],
    site: SiteFile = DEFAULT,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Print what `check` prints, ask, and add the experiment to those that the site takes part in.

    A site that is running reads its settings when it is started again.
    """
    from fedvlm.network.site import approval
    from fedvlm.network.site.place import read_experiment

    chosen = read_experiment(experiment)
    found, own = _checked(chosen, site)
    _print_check(found, own)
    if found.approved:
        return
    if not yes and not typer.confirm("May this leave?"):
        raise typer.Exit(1)
    digest, file = approval.approve(chosen, site)
    print_text(f"approved: {digest}, in {site} and as {file}")


def _checked(chosen: Experiment, site: Path) -> tuple[Checked, SiteSettings]:
    from fedvlm.network.site import check as checking
    from fedvlm.network.site import settings

    own = settings.read(site)
    return checking.check(chosen, own), own


def _print_check(found: Checked, own: SiteSettings) -> None:
    from fedvlm.reports import grid

    heads = ["class", "training", "validation", "test"]
    rows = [[name, *(str(count) if count else "-" for count in counts)] for name, *counts in found.classes]
    print_tables(grid.terminal(heads, rows, f"{own.name}: images of {found.experiment}, seed {found.seed}"))
    if found.missing:
        print_text(f"no image here of {len(found.missing)} of {len(found.classes)} classes: {listed(found.missing)}")
    for note in found.notes:
        print_text(f"note: {note}")
    for one in found.leaving:
        what = f"\n{one.method}: {one.trained} trainings; {one.private:,} trained values stay here"
        print_text(what + ("" if one.tensors else "; no tensor leaves"))
        if one.tensors:
            lines = [[name, str(shape), f"{size:,}"] for name, (shape, size) in one.tensors.items()]
            total = sum(size for _, size in one.tensors.values())
            lines.append(["together, a round", "", f"{total:,}"])
            lines.append([f"in {one.rounds} rounds", "", f"{one.total_bytes:,}"])
            lines.append([f"at most, in {one.most} visits", "", f"{one.most * total:,}"])
            print_tables(grid.terminal(["leaves", "shape", "bytes"], lines, left=(0, 1)))
        for why in one.refused:
            print_text(f"not sent: {why}", style="red")
    print_text()
    print_tables(grid.terminal(["besides tensors", ""], _besides(own, found.metrics), left=(0, 1)))
    if found.approved:
        print_text(f"approved: {found.digest}")
    else:
        print_text(f"not approved yet: {found.digest}", style="yellow")


def _besides(own: SiteSettings, metrics: list[str]) -> list[list[str]]:
    """What leaves besides tensors, in words."""
    policy = own.policy
    how = "" if policy.decimals is None else f", rounded to {policy.decimals} decimals"
    curve = "; after the last round also on the way from there to zero-shot"
    return [
        ["metrics", listed(metrics, 20) + how + curve if metrics else "none"],
        ["losses", ("of every step" if policy.count_images else "their mean") + how if policy.losses else "none"],
        ["numbers of images", "for training and test" if policy.count_images else "none"],
        ["seconds", "of each training" if policy.seconds else "none"],
        ["name", own.name],
    ]


@site_app.command()
def serve(site: SiteFile = DEFAULT) -> None:
    """Answer the carrier until the process is stopped. Stopped at any moment, it continues where it was."""
    from fedvlm.network.site import serve as serving
    from fedvlm.network.site import settings
    from fedvlm.network.site.service import Service

    own = settings.read(site)
    service = Service(own, lambda line: print_text(line))
    service.read_experiments()
    lacking = [digest[:12] for digest in own.policy.experiments if digest not in service.experiments]
    if lacking:
        print_text(f"warning: {own.experiments} has no file of {listed(lacking)}", style="yellow")
    serving.serve(
        service,
        lambda: print_text(
            f"{own.name}: approved and at hand: {listed(digest[:12] for digest in service.experiments) or 'nothing'}; "
            f"socket {own.socket}"
        ),
    )


@site_app.command(epilog=told("site status"))
def status(site: SiteFile = DEFAULT, as_json: AsJson = False) -> None:
    """What has left the site, by method; what was refused last."""
    from fedvlm.network.site import settings
    from fedvlm.network.site import status as told
    from fedvlm.reports import grid

    own = settings.read(site)
    found = told.summary(Path(own.state))
    if as_json:
        print_json(found.as_json())
        return
    heads = ["experiment", "method", "seed", "messages", "again", "tensors", "last round", "bytes", "last"]
    rows = [
        [one.experiment[:12], one.method, str(one.seed), str(one.messages), str(one.again), listed(one.names, 4) or "-",
         str(one.last_round), f"{one.bytes:,}", one.last]
        for one in found.lines
    ]  # fmt: skip
    print_tables(grid.terminal(heads, rows, f"{own.name}: what has left", left=(0, 1, 5)))
    print_text(f"\n{'running' if found.running else 'not running'}; {found.refusals} refusals")
    for line in found.last_refusals:
        print_text(f"{line['time']}  {line['word']}: {line['why']}")


@site_app.command()
def export(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the personal model.")],
    experiment: Annotated[str | None, typer.Option(help="The beginning of the experiment's digest.")] = None,
    method: Annotated[str | None, typer.Option(help="Of which method, if there are several.")] = None,
    seed: Annotated[int | None, typer.Option(help="With which seed, if there are several.")] = None,
    folds: Folds = 5,
    merged: Merged = False,
    onnx: Onnx = False,
    site: SiteFile = DEFAULT,
) -> None:
    """Write the site's personal model: tensors, classes, model card. Nothing is sent."""
    from fedvlm.network.site import export as exporting
    from fedvlm.network.site import settings

    own = settings.read(site)
    write_model(lambda: exporting.origin(own, experiment, method, seed), out, folds, merged=merged, onnx=onnx)


@site_app.command()
def forget(
    experiment: Annotated[str, typer.Argument(metavar="DIGEST", help="The beginning of the experiment's digest.")],
    site: SiteFile = DEFAULT,
) -> None:
    """Put the private tensors of an experiment aside, so that it may begin anew. Nothing is deleted."""
    from fedvlm.network.site import settings
    from fedvlm.network.site.state import StateFolder

    state = StateFolder(Path(settings.read(site).state))
    state.open()
    with state.locked():
        for path in state.forget(experiment):
            print_text(f"put aside: {path}")


@site_app.command()
def carry(
    mailbox: Annotated[Path, typer.Argument(metavar="MAILBOX", help="The site's folder in the exchange.")],
    socket: Annotated[Path, typer.Option(help="The site's socket.")] = Path("carrier/site.sock"),
    once: Annotated[bool, typer.Option("--once", help="Carry what is there, and end.")] = False,
) -> None:
    """Carry messages between a folder that both sides can reach and the site. Runs as a user of its own."""
    from fedvlm.network.carriers import mailbox as carrier
    from fedvlm.network.frames import BrokenFrameError

    if not mailbox.is_dir():
        raise FedvlmError(f"{mailbox} is no folder: name the site's mailbox in the exchange")
    if not once:
        carrier.watch(mailbox, socket)
    try:
        count = carrier.deliver(mailbox, socket)
    except (OSError, BrokenFrameError) as error:
        raise FedvlmError(f"the site at {socket} does not answer: {error}") from None
    print_text(f"{count} messages carried")
