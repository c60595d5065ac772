"""A look at a folder of photographs or a CSV: how they are arranged, without decoding any."""

from __future__ import annotations

import csv
import glob
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Literal

from fedvlm.data.build import parse_split
from fedvlm.data.files import SUFFIXES, is_shown
from fedvlm.errors import FedvlmError, listed, printable

COLUMNS = {
    "image": ("image", "path", "file", "filename", "file_name", "image_path", "filepath"),
    "label": ("label", "class", "category", "target", "diagnosis", "dx"),
    "client": ("client", "client_id", "person", "user", "user_id", "owner", "sender", "sender_id", "patient", "site",
               "hospital", "shop"),
    "domain": ("domain", "style", "camera", "scanner"),
    "split": ("split", "set", "subset"),
}  # fmt: skip
"""Usual names of a CSV's columns."""
NOTHING = ("not sure", "unsure", "unknown", "other", "others", "skip", "none", "n/a", "na", "null", "misc", "unlabeled",
           "unlabelled", "?")  # fmt: skip
"""Labels that people give to what they cannot name."""


@dataclass(frozen=True)
class Looked:
    """What lies in a folder, or in a CSV."""

    settings: dict[str, str]
    """The settings of `[data]` with which it is read."""
    labels: Counter[str]
    """Images by class."""
    clients: Counter[str] = field(default_factory=Counter)
    """Images by client, or by domain, if there are any."""
    above: Literal["", "client", "domain"] = ""
    """What `clients` are."""
    splits: list[str] = field(default_factory=list)
    oddities: list[str] = field(default_factory=list)
    """What is probably not meant so, in sentences."""

    @property
    def images(self) -> int:
        """Number of images."""
        return self.labels.total()

    @property
    def toml(self) -> str:
        """The lines of `[data]`."""
        return "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in self.settings.items())

    @property
    def said(self) -> str:
        """In a sentence."""
        few, many = min(self.labels.values()), max(self.labels.values())
        sizes = f"{few} in each" if few == many else f"{few} to {many} in each"
        owners = f", of {len(self.clients)} {self.above}s" if self.above else ""
        splits = f", split into {printable(listed(self.splits))}" if self.splits else ""
        return f"{self.images:,} images in {len(self.labels)} classes ({sizes}){owners}{splits}"

    def as_json(self) -> dict[str, object]:
        """Plain values: images by class and by owner, `owners` as `above` says."""
        return {
            "found": self.said, "images": self.images, "images_by_class": dict(self.labels),
            "owners": self.above or None, "images_by_owner": dict(self.clients), "splits": self.splits,
            "oddities": self.oddities, "settings": self.settings,
        }  # fmt: skip


def look(path: Path) -> Looked:
    """The layout of a folder (`class/img`, or `client/class/img`, with or without train, val, test above) or of a CSV.

    Raises `FedvlmError` for what is no such layout.
    """
    if path.is_file():
        return _look_at_manifest(path)
    if not path.is_dir():
        raise FedvlmError(f"{path} is no folder and no CSV file: give the folder that holds the class folders")
    every = [one.relative_to(path).parts for one in sorted(path.rglob("*"))
             if one.suffix.lower() in SUFFIXES and one.is_file()]  # fmt: skip
    parts = [each for each in every if all(is_shown(name) for name in each)]
    if not parts:
        raise FedvlmError(f"{path} holds no image ({', '.join(sorted(SUFFIXES))})")
    splits = sorted({each[0] for each in parts if len(each) >= 3 and parse_split(each[0])})
    inner = [each[1:] if splits and each[0] in splits else each for each in parts]
    depth, count = Counter(map(len, inner)).most_common(1)[0]
    if depth not in (2, 3) or count < len(inner) / 2:
        raise FedvlmError(
            f"{path}: most images do not lie in class folders (class/image, or train/class/image), but for example at "
            f"{'/'.join(parts[0])}: move them, or write a CSV with the columns image and label"
        )
    fitting = [each for each in inner if len(each) == depth]
    labels = Counter(each[-2] for each in fitting)
    if len(labels) == 1 and (tables := sorted(path.glob("*.csv"))):
        raise FedvlmError(f"{path} has one folder of images and a table: name the table, {listed(map(str, tables))}")
    above: Literal["", "client"] = "client" if depth == 3 else ""
    owners = Counter(each[0] for each in fitting) if above else Counter[str]()
    settings = {"source": "folder", "path": str(path.resolve()), "layout": above or "class"}
    oddities = [f"{len(inner) - len(fitting)} images lie at another depth"] if len(fitting) < len(inner) else []
    return Looked(settings, labels, owners, above, splits, oddities + _oddities(labels))


def _look_at_manifest(path: Path) -> Looked:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FedvlmError(f"{path} is not a readable CSV file: {error}") from None
    if not rows:
        raise FedvlmError(f"{path} has no row below its header")
    columns = list(rows[0])
    found = {key: next((c for c in columns if c and c.strip().lower() in names), None)
             for key, names in COLUMNS.items()}  # fmt: skip
    image, label = found["image"], found["label"]
    if image is None or label is None:
        raise FedvlmError(f"{path} needs a column 'image' and a column 'label'; its columns are {listed(columns)}")
    settings = {"source": "manifest", "path": str(path.resolve().parent), "manifest": path.name}
    settings |= {key: column for key, column in found.items() if column is not None}
    labels = Counter(row[label].strip() for row in rows if (row[label] or "").strip())
    above: Literal["", "client", "domain"] = "client" if found["client"] else "domain" if found["domain"] else ""
    owners = Counter((row[str(found[above])] or "").strip() for row in rows) if above else Counter[str]()
    splits = sorted({row[found["split"]] or "" for row in rows}) if found["split"] else []
    missing = sum(not (row[label] or "").strip() for row in rows)
    if not labels:
        raise FedvlmError(f"{path}: no row has a value in the column '{label}'")
    oddities = [f"{missing} rows have no label"] if missing else []
    pattern = _image_path(path.parent, [row[image] or "" for row in rows])
    if pattern is None:
        oddities.append(
            f"{printable(str(path.parent / (rows[0][image] or '')))} does not exist: set data.image_path to where the "
            "images are, such as images/{}.jpg"
        )
    elif pattern != "{}":
        settings["image_path"] = pattern
    return Looked(settings, labels, owners, above, splits, oddities + _oddities(labels))


def _image_path(folder: Path, names: Sequence[str]) -> str | None:
    """Where the images of these names are, `{}` being a name; None if no one place has most of them."""
    asked = names[:: max(1, len(names) // 20)]

    def fits(pattern: str) -> bool:
        return sum((folder / pattern.replace("{}", name)).is_file() for name in asked) > len(asked) / 2

    if fits("{}"):
        return "{}"
    first = PurePath(asked[0])
    if not asked[0] or first.is_absolute() or ".." in first.parts:
        return None
    # A few levels only: beside the table there may be everything that its owner has.
    found = (path for depth in ("", "*/", "*/*/", "*/*/*/") for path in folder.glob(f"{depth}{glob.escape(asked[0])}*"))
    for path in found:
        place = path.relative_to(folder).as_posix()
        before, name, after = place.rpartition(asked[0])
        if name and "{}" not in before + after and fits(f"{before}{{}}{after}"):
            return f"{before}{{}}{after}"
    return None


def _oddities(labels: Counter[str]) -> list[str]:
    found = [f"{listed(few)}: fewer than 4 images" for few in [[name for name, n in labels.items() if n < 4]] if few]
    alike: dict[str, list[str]] = {}
    for name in labels:
        alike.setdefault("".join(letter for letter in name.casefold() if letter.isalnum()), []).append(name)
    found += [f"{listed(names)}: probably one class" for names in alike.values() if len(names) > 1]
    if nothing := [name for name in labels if name.strip().casefold() in NOTHING]:
        found.append(f"{listed(nothing)}: a label that says nothing about an image? data.exclude leaves classes out")
    return [printable(one) for one in found]
