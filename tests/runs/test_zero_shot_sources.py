"""Zero-shot is far above chance on every data source: images, labels and class names stay together end to end."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch

from fedvlm import clip as clips
from fedvlm import experiment
from fedvlm.data import federate, load_source
from fedvlm.data.scenes import SceneSpec, render
from fedvlm.runs.chance import chance_threshold, zero_shot_check
from fedvlm.training.activations import Activations
from fedvlm.training.device import Device

CLASSES = [("striped", "fish"), ("solid", "star"), ("dotted", "heart"), ("checked", "house"), ("outlined", "tree"),
           ("gradient", "circle"), ("solid", "crown"), ("striped", "cup"), ("dotted", "mushroom"), ("outlined", "arrow")]  # fmt: skip
EACH = 12
Images = dict[str, list[PIL.Image.Image]]


@pytest.fixture(scope="module")
def images() -> Images:
    """Drawings in a style of the pre-training, by class name with an underscore."""
    found: Images = {}
    for k, (fill, shape) in enumerate(CLASSES):
        specs = [SceneSpec(9000 + 100 * k + i, shape, fill, None, "drawing", 1.0) for i in range(EACH)]
        found[f"{fill}_{shape}"] = [PIL.Image.fromarray(array) for array in render(specs)]
    return found


def folder(root: Path, images: Images, above: Callable[[int], str] = lambda i: "") -> None:
    for name, members in images.items():
        for i, image in enumerate(members):
            path = root / above(i) / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)


def as_classes(root: Path, images: Images) -> dict[str, Any]:
    folder(root, images)
    return {"data": {"source": "folder", "path": str(root)}, "partition": {"kind": "iid", "clients": 2}}


def as_clients(root: Path, images: Images) -> dict[str, Any]:
    folder(root, images, lambda i: f"person{i % 3}")
    data = {"source": "folder", "layout": "client", "path": str(root)}
    return {"data": data, "partition": {"kind": "natural"}}


def as_domains(root: Path, images: Images) -> dict[str, Any]:
    folder(root, images, lambda i: f"{['train', 'test'][i % 2]}/camera{i // 6}")
    data = {"source": "folder", "layout": "domain", "path": str(root)}
    return {"data": data, "partition": {"kind": "domain"}}


def as_manifest(root: Path, images: Images) -> dict[str, Any]:
    folder(root, images)
    with (root / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["what", "where", "who"])
        writer.writerows([name, f"{name}/{i}.png", f"p{i % 2}"] for name in images for i in range(EACH))
    data = {
        "source": "manifest",
        "path": str(root),
        "manifest": "list.csv",
        "image": "where",
        "label": "what",
        "client": "who",
    }
    return {"data": data, "partition": {"kind": "natural"}}


def as_coop(root: Path, images: Images) -> dict[str, Any]:
    folder(root / "pictures", images)
    # Label ids against the alphabet: names must follow the ids.
    order = sorted(images, reverse=True)
    rows = [[f"{name}/{i}.png", order.index(name), name] for name in images for i in range(EACH)]
    split = {"train": rows[::2], "val": [], "test": rows[1::2]}
    (root / "split_zhou_Drawings.json").write_text(json.dumps(split))
    return {"data": {"source": "coop", "path": str(root)}, "partition": {"clients": 2}}


def as_hub(root: Path, images: Images) -> dict[str, Any]:
    datasets = pytest.importorskip("datasets")
    names = sorted(images, reverse=True)
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    parts = {}
    for split, chosen in (("train", range(0, EACH, 2)), ("test", range(1, EACH, 2))):
        rows = {
            "img": [images[n][i] for n in names for i in chosen],
            "label": [names.index(n) for n in names for _ in chosen],
        }
        parts[split] = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(parts).save_to_disk(str(root / "saved"))
    data = {"source": "huggingface", "path": str(root / "saved")}
    return {"data": data, "partition": {"kind": "dirichlet", "clients": 2, "alpha": 1.0}}


def as_scenes(root: Path, images: Images) -> dict[str, Any]:
    data = {"source": "scenes", "styles": ["watercolour", "mosaic"], "base_classes": 10, "novel_classes": 0, "shots": 2}
    return {"data": data, "partition": {"clients": 2, "one_domain_each": True}}


SOURCES = [as_classes, as_clients, as_domains, as_manifest, as_coop, as_hub, as_scenes]


@pytest.mark.parametrize("make", SOURCES)
def test_zero_shot_is_far_above_chance(make: Callable[..., dict[str, Any]], images: Images, tmp_path: Path) -> None:
    settings = make(tmp_path, images)
    if "novel_classes" not in settings["data"]:
        settings["data"]["novel"] = "none"
    chosen = experiment.parse(settings)
    clip, device = clips.load(), Device(torch.device("cpu"))
    federation = federate(load_source(chosen.data, 0), chosen, 0)
    activations = Activations(clip, federation.source.records, device, 2**28)
    found, count, classes = zero_shot_check(clip, federation, activations, chosen)
    assert classes == 10
    assert count >= 20
    assert found > max(0.5, chance_threshold(count, classes))
