"""Every image looked at before anything is trained: can it be used, and how are its grey values to be read?"""

from __future__ import annotations

import os
import warnings
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from fedvlm.data.decode import GREY_BITS, Problem, Seen
from fedvlm.data.notes import counted
from fedvlm.data.remember import Remembered
from fedvlm.data.rows import Found, Row, Usable
from fedvlm.data.settings import FileData
from fedvlm.errors import FedvlmError

_PIECE = 128
"""Images that a thread looks at before it reports."""
_FLAT = 16
"""An image whose values, of 256, lie closer together than this is told: probably its range was misunderstood."""


def usable(
    source: str, rows: Sequence[Row], config: FileData, remembered: Remembered, notes: list[str]
) -> list[Usable]:
    """The rows whose images can be used; the others counted by what is wrong with them, or an error."""
    found = list(zip(rows, _looked_at([row.image for row in rows], remembered), strict=True))
    bad: dict[str, list[str]] = defaultdict(list)
    for row, seen in found:
        if isinstance(seen, Problem):
            bad[seen.kind].append(f"{row.image.key} ({seen.detail})")
    told = [counted(v, f"image is {kind}", f"images are {kind}", before="left out: ") for kind, v in bad.items()]
    listed = "; ".join(sentence.removeprefix("left out: ") for sentence in told)
    if bad and config.on_unreadable == "error":
        raise FedvlmError(f'{source}: {listed}. Mend them, or set data.on_unreadable = "skip"')
    notes += told
    kept = [Usable(row, seen) for row, seen in found if isinstance(seen, Seen)]
    if not kept:
        raise FedvlmError(f"no image of {source} can be used: {listed}")
    return kept


def grey_bits(found: Sequence[Usable], config: FileData, notes: list[str]) -> int:
    """The range, in bits, of grey values that are stored in more than 8: as set, or the least of 8, 12 and 16 for all.

    Radiographs have 10 to 16 bits, usually 12, in 16-bit files, and no header says how many. Raises FedvlmError naming
    the image that has greater values than the setting allows.
    """
    deep = [item for item in found if item.seen.depth > 8]
    if not deep:
        return GREY_BITS
    most = max(deep, key=lambda item: item.seen.high)
    bits: int = config.grey_bits or next(bits for bits in (8, 12, 16) if most.seen.high < 1 << bits)
    if most.seen.high >= 1 << bits:
        raise FedvlmError(
            f"{most.row.image.key} has grey values up to {most.seen.high}, but data.grey_bits = {bits} ends at "
            f"{(1 << bits) - 1}: set data.grey_bits to 10, 12, 14 or 16, whichever the images were made with"
        )
    one, many = f"image has {bits}-bit grey values", f"images have {bits}-bit grey values"
    scaled = "are scaled to 8 bits" if bits > 8 else "are taken as they are"
    notes.append(f"{len(deep)} {one if len(deep) == 1 else many} in wider files: they {scaled} (data.grey_bits)")
    return bits


def tell_flat(found: Sequence[Usable], bits: int, notes: list[str]) -> None:
    """A note on images that are all but of one value."""
    flat = []
    for item in found:
        shift = bits - 8 if item.seen.depth > 8 else 0
        if (item.seen.high >> shift) - (item.seen.low >> shift) < _FLAT:
            flat.append(item.row.image.key)
    if flat:
        range_ = f"fewer than {_FLAT} of 256 levels"
        notes.append(counted(flat, f"image has {range_}", f"images have {range_}"))


def _threads() -> int:
    """At least some for disks that are slow to answer, and one for each core that can decode."""
    return max(4, min(16, os.cpu_count() or 1))


def _looked_at(images: Sequence[Found], remembered: Remembered) -> list[Seen | Problem]:
    """What is seen in each image. What is new is remembered as it comes, so that a run that is stopped keeps it."""
    pieces = [images[start : start + _PIECE] for start in range(0, len(images), _PIECE)]
    found: list[Seen | Problem] = []
    with warnings.catch_warnings(), ThreadPoolExecutor(_threads()) as pool:
        warnings.simplefilter("ignore")  # Pillow's, about files that are counted here
        for piece in pool.map(lambda piece: [image.look(remembered.get) for image in piece], pieces):
            found += piece
            remembered.add(seen for seen in piece if isinstance(seen, Seen))
    return found
