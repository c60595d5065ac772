"""Photographs for trying a federation: drawn scenes as image files, a folder for each site."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedvlm.data.decode_cache import DecodeCache
from fedvlm.data.files import write_images
from fedvlm.data.sources.scenes import ScenesData
from fedvlm.errors import FedvlmError


def draw_sites(scenes: ScenesData, seed: int, folder: Path) -> dict[str, Path]:
    """Write `FOLDER/STYLE/SPLIT/CLASS/NUMBER.png`; returns the folder of each style. Raises `FedvlmError`."""
    source = scenes.load(seed, DecodeCache())
    found = {name: folder / name for name in source.domains()}
    write_images(source.records, lambda one: found[str(one.domain)] / str(one.split) / one.name, folder)
    return found


def as_sites(settings: dict[str, Any], scenes: ScenesData, seed: int) -> dict[str, Any]:
    """The plain settings of an experiment on drawn scenes as one between sites, with the classes of this seed."""
    classes = list(scenes.load(seed, DecodeCache()).classnames)
    if scenes.novel_classes not in (0, scenes.base_classes):
        raise FedvlmError("between sites, half of the classes are novel or none: set data.novel_classes accordingly")
    data = {
        "source": "sites", "classes": classes, "novel": "half" if scenes.novel_classes else "none",
    }  # fmt: skip
    evaluation = settings.get("evaluation", {}) | {"general": "own_domain"}
    return settings | {"data": data, "partition": {"kind": "domain"}, "evaluation": evaluation, "seeds": [seed]}
