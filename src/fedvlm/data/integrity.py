"""Detection of damage that Pillow ignores: truncated pixel data.

Pillow fills missing pixels with black (PNG) or grey (JPEG); decoders of other formats raise an error. Wrong bytes in
the middle of a JPEG that still decode to some picture cannot be detected.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator, Sequence

import PIL.Image

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Samples per pixel by PNG's colour type."""
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Passes of an interlaced PNG: first column, first row, step of columns, step of rows."""
_PIECE = 2**20
"""Number of bytes decompressed at a time."""
_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
"""The end of a JPEG's scan: a marker other than a restart."""
_JUNK = bytes(value * 37 % 251 for value in range(1, 250))
"""Arbitrary data with which the decoder can continue, without the byte that begins a marker."""


def check(image: PIL.Image.Image, data: bytes) -> None:
    """Raise ValueError if `image`, loaded from `data` and unchanged since, is truncated."""
    if image.format == "PNG":
        _check_png(data)
    elif image.format in ("JPEG", "MPO"):
        scans = _scan_ends(data)
        if scans and _may_be_cut(image, scans) and _is_cut(image, data, scans[-1]):
            raise ValueError("its pixels end before the picture does")


def _check_png(data: bytes) -> None:
    """Raise ValueError if a checksum is wrong, or fewer bytes are decompressed than the header requires."""
    left, inflate = -1, zlib.decompressobj()
    for kind, content in _chunks(data):
        if kind == b"IHDR":
            left = _png_bytes(content)
        elif kind == b"IDAT":
            while content and left > 0:
                left -= len(inflate.decompress(content, _PIECE))
                content = inflate.unconsumed_tail
    while left > 0 and (rest := inflate.decompress(inflate.unconsumed_tail, _PIECE)):
        left -= len(rest)
    if left > 0:
        raise ValueError("its pixels end before the picture does")


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of every chunk up to the last one, `IEND`."""
    place, kind = 8, b""
    while kind != b"IEND":
        if place + 12 > len(data):
            raise ValueError("it is cut off")
        length, kind = struct.unpack_from(">I4s", data, place)
        content = data[place + 8 : place + 8 + length]
        if data[place + 8 + length : place + 12 + length] != struct.pack(">I", zlib.crc32(kind + content)):
            raise ValueError("a checksum in it is wrong, or it is cut off")
        yield kind, content
        place += 12 + length


def _png_bytes(header: bytes) -> int:
    """Bytes of all rows, each with one byte for its filter (PNG specification, sections 7.2 and 8)."""
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    passes = _PASSES if interlaced else ((0, 0, 1, 1),)
    bits = depth * _CHANNELS[colour]
    sizes = ((-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in passes)
    return sum(rows * (1 + -(-columns * bits // 8)) for columns, rows in sizes if columns > 0 and rows > 0)


def _may_be_cut(image: PIL.Image.Image, scans: Sequence[int]) -> bool:
    """Whether a JPEG must be decoded a second time; False if a single scan has reached the last block.

    libjpeg leaves blocks without data at zero, which is a grey of 128.
    """
    if len(scans) > 1 or image.info.get("progressive") or image.mode not in ("L", "RGB"):
        return True
    last = image.crop((image.width - 1, image.height - 1, image.width, image.height)).convert("L")
    return abs(last.tobytes()[0] - 128) < 4


def _is_cut(image: PIL.Image.Image, data: bytes, end: int) -> bool:
    """Whether the last scan of a JPEG lacks data: then additional data change the pixels."""
    try:
        with PIL.Image.open(io.BytesIO(data[:end] + _JUNK + data[end:])) as longer:
            return longer.tobytes() != image.tobytes()
    except Exception:  # the error is in the data that follow, not in the pixels
        return False


def _scan_ends(data: bytes) -> list[int]:
    """End of the data of each scan. Empty for arithmetic coding, in which trailing zeros are left out."""
    place, ends = 2, []
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != 0xD9:
        kind = data[place + 1]
        if kind == 0xFF:  # fill bytes may precede a marker
            place += 1
            continue
        if 0xC9 <= kind <= 0xCF and kind != 0xCC:
            return []
        place += 2 + int.from_bytes(data[place + 2 : place + 4])
        if kind == 0xDA:
            found = _MARKER.search(data, place)
            place = found.start() if found else len(data)
            ends.append(place)
    return ends
