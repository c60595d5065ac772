"""Inspection of every image before training: whether it is usable, and the range of its grey values."""

from __future__ import annotations

import os
import warnings
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from fedvlm.data.decode import GREY_BITS, ImageFacts, Problem
from fedvlm.data.decode_cache import DecodeCache
from fedvlm.data.notes import counted_note
from fedvlm.data.rows import ImageRow, InspectableImage, InspectedRow
from fedvlm.data.settings import FileData
from fedvlm.errors import FedvlmError

_CHUNK = 128
"""Number of images that a thread inspects before it reports."""
_FLAT = 16
"""Images with a smaller range of their 256 levels are noted: probably their range of grey values is wrong."""


def inspect_rows(
    source: str, rows: Sequence[ImageRow], config: FileData, decode_cache: DecodeCache, notes: list[str]
) -> list[InspectedRow]:
    """The rows with usable images. Others are counted in `notes` by problem, or raise FedvlmError if so configured."""
    inspected = list(zip(rows, _inspect_all([row.image for row in rows], decode_cache), strict=True))
    bad: dict[str, list[str]] = defaultdict(list)
    for row, facts in inspected:
        if isinstance(facts, Problem):
            bad[facts.kind].append(f"{row.image.key} ({facts.detail})")
    sentences = [
        counted_note(v, f"image is {kind}", f"images are {kind}", before="left out: ") for kind, v in bad.items()
    ]
    listed = "; ".join(sentence.removeprefix("left out: ") for sentence in sentences)
    if bad and config.on_unreadable == "error":
        raise FedvlmError(f'{source}: {listed}. Fix them, or set data.on_unreadable = "skip"')
    notes += sentences
    kept = [InspectedRow(row, facts) for row, facts in inspected if isinstance(facts, ImageFacts)]
    if not kept:
        raise FedvlmError(f"no image of {source} can be used: {listed}")
    return kept


def grey_bits(rows: Sequence[InspectedRow], config: FileData, notes: list[str]) -> int:
    """Range, in bits, of grey values that are stored in more than 8: as set, or the least sufficient of 8, 12 and 16.

    Radiographs have 10 to 16 bits, usually 12, in 16-bit files, and no header says how many. Raises FedvlmError naming
    the image that has greater values than the setting allows.
    """
    deep = [item for item in rows if item.facts.depth > 8]
    if not deep:
        return GREY_BITS
    most = max(deep, key=lambda item: item.facts.high)
    bits: int = config.grey_bits or next(bits for bits in (8, 12, 16) if most.facts.high < 1 << bits)
    if most.facts.high >= 1 << bits:
        raise FedvlmError(
            f"{most.row.image.key} has grey values up to {most.facts.high}, but data.grey_bits = {bits} ends at "
            f"{(1 << bits) - 1}: set data.grey_bits to 10, 12, 14 or 16, whichever the images were made with"
        )
    one, many = f"image has {bits}-bit grey values", f"images have {bits}-bit grey values"
    scaled = "are scaled to 8 bits" if bits > 8 else "are taken as they are"
    notes.append(f"{len(deep)} {one if len(deep) == 1 else many} in wider files: they {scaled} (data.grey_bits)")
    return bits


def note_flat(rows: Sequence[InspectedRow], bits: int, notes: list[str]) -> None:
    """Add a note on images whose values hardly differ."""
    flat = []
    for item in rows:
        shift = bits - 8 if item.facts.depth > 8 else 0
        if (item.facts.high >> shift) - (item.facts.low >> shift) < _FLAT:
            flat.append(item.row.image.key)
    if flat:
        range_ = f"fewer than {_FLAT} of 256 levels"
        notes.append(counted_note(flat, f"image has {range_}", f"images have {range_}"))


def _threads() -> int:
    """Number of threads: at least 4 for slow disks, at most 16, else one per core."""
    return max(4, min(16, os.cpu_count() or 1))


def _inspect_all(images: Sequence[InspectableImage], decode_cache: DecodeCache) -> list[ImageFacts | Problem]:
    """Facts or problem of each image. New facts are cached immediately, so that an interrupted run keeps them."""
    pieces = [images[start : start + _CHUNK] for start in range(0, len(images), _CHUNK)]
    found: list[ImageFacts | Problem] = []
    with warnings.catch_warnings(), ThreadPoolExecutor(_threads()) as pool:
        warnings.simplefilter("ignore")  # Pillow warns of files that are counted here
        for piece in pool.map(lambda piece: [image.inspect(decode_cache.get) for image in piece], pieces):
            found += piece
            decode_cache.add(facts for facts in piece if isinstance(facts, ImageFacts))
    return found
