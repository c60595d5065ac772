"""Small copies of published data sets, made in the layouts of their authors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import PIL.Image

from fedvlm.data.scenes import SceneSpec, render

# Fill and shape: what the embedded CLIP can tell apart without training.
DRAWN = ["striped_fish", "solid_star", "dotted_heart", "checked_house", "outlined_tree", "gradient_circle",
         "solid_crown", "striped_cup", "dotted_mushroom", "outlined_arrow"]  # fmt: skip
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
DOMAINNET = [
    "bird",
    "feather",
    "headphones",
    "ice_cream",
    "teapot",
    "tiger",
    "whale",
    "windmill",
    "wine_glass",
    "zebra",
]
DOMAINS = {
    "domainnet": ["clipart", "infograph", "painting", "quickdraw", "real", "sketch"],
    "office": ["amazon", "caltech", "dslr", "webcam"],
    "pacs": ["art_painting", "cartoon", "photo", "sketch"],
}
PACS = ["dog", "elephant", "giraffe", "guitar", "horse", "house", "person"]

Pictures = Sequence[PIL.Image.Image]


def drawing(name: str, number: int, side: int = 48) -> PIL.Image.Image:
    """A drawing of one of `DRAWN`; another one for every number."""
    fill, shape = name.split("_")
    pixels = render([SceneSpec(7000 + 100 * DRAWN.index(name) + number, shape, fill, None, "drawing", 1.0)])[0]
    return PIL.Image.fromarray(pixels).resize((side, side), PIL.Image.Resampling.BICUBIC)


def flat(*channels: int, side: int = 32) -> PIL.Image.Image:
    """An image of one colour, by which it is known again."""
    return PIL.Image.new("RGB", (side, side), channels)


def record(labels: Sequence[int], image: PIL.Image.Image) -> bytes:
    """Label bytes, then 1,024 bytes each of red, green and blue, row by row."""
    pixels = np.asarray(image)
    return bytes(labels) + b"".join(pixels[:, :, channel].tobytes() for channel in range(3))


def cifar10(root: Path, images: Mapping[str, Sequence[tuple[int, PIL.Image.Image]]], names: Sequence[str]) -> Path:
    """`images` by file name (`data_batch_1` to `5`, `test_batch`), each with its label."""
    root.mkdir(parents=True, exist_ok=True)
    for file, members in images.items():
        (root / f"{file}.bin").write_bytes(b"".join(record([label], image) for label, image in members))
    (root / "batches.meta.txt").write_text("\n".join(names) + "\n\n")
    return root


def cifar100(root: Path, images: Mapping[str, Sequence[tuple[int, PIL.Image.Image]]], coarse: Sequence[int],
             names: Sequence[str] | None = None) -> Path:  # fmt: skip
    """`images` by file name (`train`, `test`); `coarse`: the super-class of each of the 100 classes."""
    root.mkdir(parents=True, exist_ok=True)
    for file, members in images.items():
        content = b"".join(record([coarse[label], label], image) for label, image in members)
        (root / f"{file}.bin").write_bytes(content)
    (root / "fine_label_names.txt").write_text(
        "".join(f"{name}\n" for name in names or map("fine {:02d}".format, range(100)))
    )
    (root / "coarse_label_names.txt").write_text("".join(f"coarse {i:02d}\n" for i in range(20)))
    return root


def coop(root: Path, classes: Mapping[str, Pictures], train: int) -> Path:
    """`images/class/NNN.png` and `split_zhou_Drawings.json`, label ids against the alphabet."""
    lists: dict[str, list[list[str | int]]] = {"train": [], "val": [], "test": []}
    for label, name in enumerate(sorted(classes, reverse=True)):
        (root / "images" / name).mkdir(parents=True)
        for number, picture in enumerate(classes[name]):
            picture.save(root / "images" / name / f"{number:03d}.png")
            lists["train" if number < train else "test"].append([f"{name}/{number:03d}.png", label, name])
    (root / "split_zhou_Drawings.json").write_text(json.dumps(lists))
    return root


def by_domain(root: Path, domains: Sequence[str], classes: Mapping[str, Pictures]) -> Path:
    """`domain/class/pic_NNN.png`, the same pictures in every domain but for their last pixel."""
    for place, domain in enumerate(domains):
        for name, pictures in classes.items():
            (root / domain / name).mkdir(parents=True)
            for number, picture in enumerate(pictures):
                marked = picture.copy()
                if place:
                    marked.putpixel((picture.width - 1, picture.height - 1), (place, 0, 0))
                marked.save(root / domain / name / f"pic_{number:03d}.png")
    return root


def write_lists(
    root: Path, pattern: str, labels: Mapping[str, int], numbers: Sequence[int], domains: Sequence[str]
) -> None:
    """A list for each domain, `pattern` with `{domain}`, of these pictures of every class."""
    for domain in domains:
        path = root / pattern.format(domain=domain)
        path.parent.mkdir(exist_ok=True)
        lines = [f"{domain}/{name}/pic_{n:03d}.png {label}\n" for name, label in labels.items() for n in numbers]
        path.write_text("".join(lines))
