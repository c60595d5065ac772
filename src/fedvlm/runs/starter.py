"""A first experiment on somebody's photographs: a commented file that runs as it is, and drawn photographs to try."""

from __future__ import annotations

import json
from pathlib import Path

from fedvlm import durable, presets
from fedvlm.data.decode_cache import DecodeCache
from fedvlm.data.files import write_images
from fedvlm.data.look import Looked
from fedvlm.data.sources.scenes import ScenesData
from fedvlm.errors import FedvlmError

EXAMPLE_CLASSES, EXAMPLE_IMAGES = 5, 40
PUBLISHED = "openai/clip-vit-base-patch16"
TEXT = """\
# {said}.
{oddities}# check it: fedvlm check {file}      who gets what: fedvlm partition {file}      run it: fedvlm run {file}
name = {name}
methods = {methods}   # fedvlm methods lists thirty
rounds = 10
seeds = [0]                    # more seeds give intervals: fedvlm compare {file} seeds=0,1,2,3,4

[model]
name = {model}
{hint}
[data]
{data}novel = "none"                 # all classes are trained; "half": the second half of the list is trained by nobody
shots = 16                     # training images of each class, at most
test_fraction = 0.3            # share of the images held out for testing, where there is no test split

[partition]
{partition}
{settings}"""
CHOSEN = ("zero_shot", "tip_adapter", "promptfl", "pfedmma", "pfedmoap")
PLAIN = """\
[method.all]
epochs = 2                     # local epochs of a round
"""
SMALL = """\
# Shapes and rates for the embedded model, as in the preset quickstart. A published CLIP has defaults of its own: take
# all that follows away then.
"""


def experiment_toml(looked: Looked, file: Path, model: str) -> str:
    """The text of an experiment on what was found."""
    hint = (
        f"# The model inside the package knows drawn shapes only. For photographs: name = {json.dumps(PUBLISHED)}\n"
        if model == "embedded" else ""
    )  # fmt: skip
    return TEXT.format(
        said=looked.said, oddities="".join(f"# look: {one}\n" for one in looked.oddities), file=file.name,
        name=json.dumps(file.stem.lstrip(".") or "photographs"), model=json.dumps(model), hint=hint, data=looked.toml,
        partition=_partition(looked), methods=json.dumps(CHOSEN),
        settings=_small() if model == "embedded" else PLAIN,
    )  # fmt: skip


def _small() -> str:
    """The tables of the chosen methods for the embedded model."""
    tables = presets.settings("quickstart")["method"]
    parts = [
        f"[method.{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in tables[name].items())
        for name in ("all", *CHOSEN) if name in tables
    ]  # fmt: skip
    return SMALL + "\n".join(parts)


def _partition(looked: Looked) -> str:
    if looked.above == "client":
        return (
            'kind = "natural"               # the clients that the data name\nclients = "none"               # all of '
            "them\nmin_images = 4                 # clients with fewer images are left out\n"
        )
    if looked.above == "domain":
        return 'kind = "domain"                # one client for each domain\n'
    clients = min(5, max(2, looked.images // 20))
    return (
        'kind = "dirichlet"             # nobody owns these images yet: dealt unevenly over classes\n'
        f"clients = {clients}\nalpha = 0.5                    # smaller: more uneven\nmin_images = 4\n"
    )


def check_free(file: Path) -> None:
    """Raise `FedvlmError` if the file exists."""
    if file.exists():
        raise FedvlmError(f"{file} is there already: name another with --out")


def write(looked: Looked, file: Path, model: str) -> None:
    """Write the experiment's file. Raises `FedvlmError` if there is one."""
    check_free(file)
    durable.write_text(file, experiment_toml(looked, file, model))


def draw_example(folder: Path, seed: int = 0) -> Path:
    """Write 200 drawn photographs, `FOLDER/CLASS/NUMBER.png`, in five classes. Raises `FedvlmError`."""
    if folder.exists() and any(folder.iterdir()):
        raise FedvlmError(f"{folder} is not empty: name another folder")
    scenes = ScenesData(
        styles=["photo"], base_classes=EXAMPLE_CLASSES, novel_classes=0, shots=EXAMPLE_IMAGES - 1, val_per_class=0,
        test_per_class=1,
    )  # fmt: skip
    write_images(scenes.load(seed, DecodeCache()).records, lambda one: folder / one.name, folder)
    return folder
