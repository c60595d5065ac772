"""Damage that Pillow decodes without a word: pixels that end before the picture does.

Pillow fills what is missing with black (PNG) or grey (JPEG). Other formats' decoders tell. What nothing tells are wrong
bytes in the middle of a JPEG that still decode to some picture.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator, Sequence

import PIL.Image

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Samples a pixel by PNG's colour type."""
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Of an interlaced PNG: first column, first row, step of columns, step of rows."""
_PIECE = 2**20
"""Bytes that are decompressed at a time."""
_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
"""What ends a JPEG's scan: a marker other than a restart."""
_JUNK = bytes(value * 37 % 251 for value in range(1, 250))
"""Any data for the decoder to go on with; without the byte that begins a marker."""


def check(image: PIL.Image.Image, data: bytes) -> None:
    """Raise ValueError if `image`, loaded from `data` and not changed since, is not whole."""
    if image.format == "PNG":
        _check_png(data)
    elif image.format in ("JPEG", "MPO"):
        scans = _scan_ends(data)
        if scans and _may_be_cut(image, scans) and _is_cut(image, data, scans[-1]):
            raise ValueError("its pixels end before the picture does")


def _check_png(data: bytes) -> None:
    """All checksums, and as many decompressed bytes as the header's width, height and depth need."""
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
    """Bytes of all rows, each with the byte that names its filter (PNG specification, sections 7.2 and 8)."""
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    passes = _PASSES if interlaced else ((0, 0, 1, 1),)
    bits = depth * _CHANNELS[colour]
    sizes = ((-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in passes)
    return sum(rows * (1 + -(-columns * bits // 8)) for columns, rows in sizes if columns > 0 and rows > 0)


def _may_be_cut(image: PIL.Image.Image, scans: Sequence[int]) -> bool:
    """Whether a JPEG has to be decoded a second time: not if one pass over the blocks reached the last of them.

    libjpeg leaves the blocks that it has no data for at zero, which is a grey of 128.
    """
    if len(scans) > 1 or image.info.get("progressive") or image.mode not in ("L", "RGB"):
        return True
    last = image.crop((image.width - 1, image.height - 1, image.width, image.height)).convert("L")
    return abs(last.tobytes()[0] - 128) < 4


def _is_cut(image: PIL.Image.Image, data: bytes, end: int) -> bool:
    """Whether a JPEG's decoder wanted more data than the last scan has: then more data change the pixels."""
    try:
        with PIL.Image.open(io.BytesIO(data[:end] + _JUNK + data[end:])) as longer:
            return longer.tobytes() != image.tobytes()
    except Exception:  # it stumbled over what follows, which says nothing of the pixels
        return False


def _scan_ends(data: bytes) -> list[int]:
    """Where the data of each scan end. None are told of arithmetic coding, in which zeros at the end are left out."""
    place, ends = 2, []
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != 0xD9:
        kind = data[place + 1]
        if kind == 0xFF:  # a marker may have any number of these before it
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
