"""Verbs of personal models: export, predict."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedvlm import durable
from fedvlm.cli.app import app, print_tables, print_text
from fedvlm.errors import FedvlmError

if TYPE_CHECKING:
    from fedvlm.personal.export import Origin
    from fedvlm.personal.model import PersonalModel, Prediction

NONE = "none of these"

Folds = Annotated[int, typer.Option(min=0, help="Folds of training images for calibration; 0: none.")]
Merged = Annotated[bool, typer.Option("--merged", help="Also a plain CLIP, for transformers (LoRA methods).")]
Onnx = Annotated[bool, typer.Option("--onnx", help="Also an ONNX graph of images to the trained classes.")]


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the personal model.")],
    client: Annotated[str, typer.Option(help="Whose model.")],
    method: Annotated[str | None, typer.Option(help="Of which method, if the run has several.")] = None,
    seed: Annotated[int | None, typer.Option(help="With which seed, if the run has several.")] = None,
    folds: Folds = 5,
    merged: Merged = False,
    onnx: Onnx = False,
    device: Annotated[str | None, typer.Option(help="Instead of the run's: cpu, cuda, mps.")] = None,
) -> None:
    """Write the personal model of a client: tensors, classes, model card."""
    from fedvlm.personal import export as exporting

    write_model(lambda: exporting.of_run(run, client, method, seed, device), out, folds, merged=merged, onnx=onnx)


def write_model(origin: Callable[[], Origin], out: Path, folds: int, *, merged: bool, onnx: bool) -> None:
    """Make and write a personal model, and what else is asked for. What cannot be is said before folds are trained."""
    from fedvlm.personal import export as exporting
    from fedvlm.personal import folder, merge
    from fedvlm.personal import onnx as graphs

    folder.check_free(out)
    if onnx:
        graphs.check()
    found = origin()
    model = exporting.make(found)
    plain = merge.merge(model) if merged else None
    model = exporting.calibrate(model, found, folds)
    graph = graphs.make(model) if onnx else None
    files = folder.save(model, out)
    if plain is not None:
        merge.save(plain, out / "merged")
        files.append(out / "merged")
    if graph is not None:
        durable.write_bytes(out / graphs.FILE, graph, private=True)
        files.append(out / graphs.FILE)
    _print_model(model, files, out)


def _print_model(model: PersonalModel, files: list[Path], out: Path) -> None:
    facts, sure = model.facts, model.facts.calibrated
    print_text(f"{facts.title}, client {facts.client}, seed {facts.seed}: {len(facts.classes)} classes")
    if facts.rounds < facts.all_rounds:
        print_text(f"warning: unfinished, {facts.rounds} of {facts.all_rounds} rounds are over", style="yellow")
    if sure.none_below is not None:
        which = "held-out training images" if sure.held_out else "training images, which it has seen"
        print_text(f"temperature {sure.temperature:.3g}, none of these below {sure.none_below:.2f} "
                   f"(from {sure.images} {which})")  # fmt: skip
    else:
        print_text(f"not calibrated: {sure.why_not}")
    print_text("written: " + ", ".join(map(str, files)))
    print_text(f"next: fedvlm predict {out} PHOTOGRAPHS")


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of a personal model.")],
    source: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="Image files, folders, or @LIST of paths.")],
    labels: Annotated[str, typer.Option(help="Other classes than the trained ones: red fox,grey wolf.")] = "",
    trained: Annotated[bool, typer.Option("--trained", help="With --labels: the trained classes too.")] = False,
    top: Annotated[int, typer.Option(min=1, help="Number of classes shown.")] = 3,
    none_below: Annotated[
        float | None, typer.Option(min=0, max=1, help="Threshold of none of these; 0: never.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON line for each image.")] = False,
    csv: Annotated[Path | None, typer.Option(help="Write a CSV file.")] = None,
    sort_into: Annotated[Path | None, typer.Option(help="Copy each image into DIR/CLASS.")] = None,
    base: Annotated[str | None, typer.Option(help="Directory of the CLIP, if it is elsewhere now.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps.")] = "auto",
    trust: Annotated[
        bool, typer.Option("--trust", help="Import a method of another package, which runs its code.")
    ] = False,
) -> None:
    """What a personal model says of images: classes with probabilities."""
    from fedvlm.personal import folder
    from fedvlm.personal.model import CHUNK, sources

    paths = sources(source, without=sort_into)
    if csv is not None and csv.exists():
        raise FedvlmError(f"{csv} is there already: name another file")
    loaded = folder.load(model, base=base, device=device, trust=trust)
    names = [name for name in labels.split(",") if name.strip()] if labels else None
    told: list[Prediction] = []
    for start in range(0, len(paths), CHUNK):  # lines appear as images are predicted
        some = loaded.predict(
            paths[start : start + CHUNK], names, trained=trained if names else None, top=top, none_below=none_below
        )
        told += some
        for one in some if as_json else ():
            print(json.dumps(asdict(one) | {"label": one.label}, ensure_ascii=False), flush=True)
    if not as_json:
        _print(told, top)
    if csv is not None:
        _write_csv(told, csv)
    if sort_into is not None:
        _sort(list(zip(paths, told, strict=True)), sort_into)
    if not as_json and (csv or sort_into):
        print_text(f"\nwritten: {', '.join(str(one) for one in (csv, sort_into) if one)}")
    if any(one.problem for one in told):
        raise typer.Exit(1)


def _print(found: list[Prediction], top: int) -> None:
    from fedvlm.reports import grid

    rows = []
    for one in found:
        if one.problem:
            rows.append([one.image, "cannot be read", "", one.problem])
            continue
        others = [f"{name} {chance:.0%}" for name, chance in zip(one.labels, one.probabilities, strict=True)]
        rest = others if one.none else others[1:]
        rows.append([one.image, one.label or NONE, "" if one.none else f"{one.probabilities[0]:.0%}", ", ".join(rest)])
    heads = ["image", "class", "probability", "then" if top > 1 else ""]
    print_tables(grid.terminal(heads, rows, left=(0, 1, 3)))


def _write_csv(found: list[Prediction], file: Path) -> None:
    from fedvlm.reports import grid

    records = []
    for one in found:
        record: dict[str, object] = {"image": one.image, "class": one.label or ("" if one.problem else NONE)}
        for place, (name, chance) in enumerate(zip(one.labels, one.probabilities, strict=True), 1):
            record |= {f"class {place}": name, f"probability {place}": f"{chance:.6f}"}
        records.append(record | {"problem": one.problem})
    durable.write_text(file, grid.csv(records, ["problem"]), private=True)


def _sort(found: list[tuple[Path, Prediction]], folder: Path) -> None:
    """Copy images, with their permissions, into folders of their classes, which are their owner's only.

    A file that is there already is not replaced.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for source, one in found:
        if one.problem:
            continue
        place = folder / _folder_name(one.label or NONE)
        place.mkdir(mode=0o700, exist_ok=True)
        for number in count(1):
            target = place / (source.name if number == 1 else f"{source.stem}-{number}{source.suffix}")
            try:
                with source.open("rb") as here, os.fdopen(_new(target), "wb") as there:
                    shutil.copyfileobj(here, there)
            except FileExistsError:
                continue
            shutil.copymode(source, target)
            break


def _new(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)


def _folder_name(label: str) -> str:
    """A class name as the name of one folder."""
    name = "".join(letter if letter.isprintable() else "_" for letter in label).replace("%", "%25").replace("/", "%2F")
    return f"_{name}" if name.startswith(".") else name[:200]
