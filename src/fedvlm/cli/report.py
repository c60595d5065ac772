"""The verb report: run folders as one page, and its figures as files."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import PIL.Image
import typer

from fedvlm import durable
from fedvlm.cli.app import app, print_text
from fedvlm.errors import FedvlmError

if TYPE_CHECKING:
    from fedvlm.personal.judged import Judged, Judgement
    from fedvlm.reports.page.content import Chapter, Example, Examples

SIDE = 96
"""Pixels of a shown image's side."""


@app.command()
def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER...", help="Runs, comparisons, sweeps, audits, federations.")
    ],
    out: Annotated[Path | None, typer.Option(help="Page to write; default: FOLDER/report.html.")] = None,
    against: Annotated[str, typer.Option(help="Method that the others are compared with.")] = "",
    figures: Annotated[Path | None, typer.Option(help="Also write each figure into this folder.")] = None,
    formats: Annotated[str, typer.Option("--format", help="Of these files.")] = "svg,png,pdf",
    clients: Annotated[bool, typer.Option(help="Figures that name clients.")] = True,
    images: Annotated[
        str, typer.Option(metavar="CLIENT", help="Also test images of this client. Who gets the page sees them.")
    ] = "",
    method: Annotated[str | None, typer.Option(help="Of the model that judges these images.")] = None,
) -> None:
    """Write one HTML page about finished runs: tables, figures, settings. It works offline and fetches nothing."""
    import shlex

    from fedvlm.federation.exchange import PACKAGE
    from fedvlm.reports.charts import plot
    from fedvlm.reports.page import chapters, html

    kinds = plot.formats(formats)
    if images and not clients:
        raise FedvlmError("--images shows a client's photographs, --no-clients names nobody: leave one of them out")
    if method and not images:
        raise FedvlmError("--method says whose model judges the images of --images: name a client there")
    found = chapters.chapters(folders, against, with_clients=clients)
    if images:
        found = _with_images(found, folders, images, method)
    place = out or (folders[0] / "report.html" if len(folders) == 1 else Path("report.html"))
    options = [
        *(["--against", against] if against else []),
        *([] if clients else ["--no-clients"]),
        *(["--images", images] if images else []),
        *(["--method", method] if method else []),
    ]
    where = map(str, folders) if clients else ()  # where a run lies may name people
    command = shlex.join(["fedvlm", "report", *where, *options])
    durable.write_text(place, html.page(found, PACKAGE, command), private=True)
    print_text(f"page: {place} ({place.stat().st_size / 1e6:.2f} MB)")
    if figures is None:
        return
    files = 0
    for number, chapter in enumerate(found):
        folder = figures if len(found) == 1 else figures / f"{number:02d}"
        durable.make_folder(folder)
        files += sum(len(plot.write(chart, folder, kinds, private=True)) for chart in chapter.charts)
    print_text(f"figures: {files} files in {figures}")


def _with_images(found: list[Chapter], folders: Sequence[Path], client: str, method: str | None) -> list[Chapter]:
    """The one chapter, with images of a client."""
    from fedvlm.personal import export, judged
    from fedvlm.runs.folder import RunFolder

    if len(found) != 1 or len(folders) != 1:
        raise FedvlmError("--images shows a client of one run: name one run folder")
    seed = RunFolder(folders[0]).begun()[0].seeds[0]
    origin = export.of_run(folders[0], client, method, seed)
    answers = judged.judge(export.make(origin), origin, 2 * SIDE)
    return [replace(found[0], examples=_examples(client, f"{origin.label}, seed {seed}", answers))]


def _examples(client: str, method: str, answers: Judgement) -> Examples:
    from fedvlm.reports.page.content import Example, Examples

    def made(one: Judged) -> Example:
        return Example(_address(one.image), one.label, one.guess, one.probability)

    counts = (answers.count_right, answers.count_wrong)
    return Examples(client, method, [made(one) for one in answers.right], [made(one) for one in answers.wrong], counts)


def _address(image: PIL.Image.Image) -> str:
    """A JPEG as a `data:` address, of the pixels alone: a copied image would keep comments of the photograph."""
    plain, file = PIL.Image.new("RGB", image.size), io.BytesIO()
    plain.paste(image.convert("RGB"))
    plain.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
