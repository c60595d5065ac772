"""Damage is found before anything is trained: also where Pillow fills up what is missing without a word."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from fake_data import photo, problem_of

from fedvlm.data import load_source
from fedvlm.data.files import EncodedImage
from fedvlm.data.sources.folder import FolderData


def encoded(kind: str, side: int = 64, mode: str = "RGB", **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


JPEGS: dict[str, dict[str, Any]] = {
    "one pass": {}, "progressive": {"progressive": True}, "grey": {"mode": "L"}, "CMYK": {"mode": "CMYK"},
    "restarts": {"restart_marker_rows": 1}, "no subsampling": {"subsampling": 0}, "optimised": {"optimize": True},
}  # fmt: skip


def detail(data: bytes) -> str | None:
    problem = problem_of(EncodedImage("a", data))
    return problem.detail if problem else None


@pytest.mark.parametrize("how", JPEGS)
def test_a_jpeg_that_was_cut_and_closed_is_found(how: str) -> None:
    data = encoded("JPEG", **JPEGS[how])
    assert detail(data) is None
    assert detail(data + b"from the camera \xff\xd8\xff\xd9") is None
    for share in (40, 70, 90):
        assert detail(data[: len(data) * share // 100] + b"\xff\xd9") is not None, share


def test_a_jpeg_of_one_grey_is_whole() -> None:
    """The colour of what is missing."""
    file = io.BytesIO()
    PIL.Image.new("RGB", (50, 30), (128, 128, 128)).save(file, "JPEG")
    assert detail(file.getvalue()) is None


def test_a_jpeg_with_a_small_picture_in_its_head_is_whole() -> None:
    exif = PIL.Image.Exif()
    exif[0x010E] = "x\xff\xda".encode("latin-1").decode("latin-1")
    small = encoded("JPEG", side=16)
    head = b"Exif\0\0" + exif.tobytes() + small
    data = encoded("JPEG")
    assert detail(data[:2] + b"\xff\xe1" + struct.pack(">H", len(head) + 2) + head + data[2:]) is None


def png(rows: int, *, width: int = 40, height: int = 40, interlaced: bool = False, idats: int = 1) -> bytes:
    """A PNG with valid checksums that says `height` and holds so many rows."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    raw = np.random.default_rng(0).integers(0, 256, (rows, 1 + 3 * width), dtype=np.uint8)
    raw[:, 0] = 0
    packed = zlib.compress(raw.tobytes())
    pieces = [packed[i * len(packed) // idats : (i + 1) * len(packed) // idats] for i in range(idats)]
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, interlaced)
    parts = [chunk(b"IHDR", header), *(chunk(b"IDAT", piece) for piece in pieces), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("rows", [1, 10, 39])
def test_a_png_with_too_few_rows_is_found(rows: int) -> None:
    assert detail(png(40, idats=3)) is None
    assert detail(png(rows)) == detail(png(rows, idats=3)) == "its pixels end before the picture does"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("size", [(1, 1), (7, 3), (33, 21), (64, 64)])
def test_every_png_of_pillow_is_whole(mode: str, size: tuple[int, int]) -> None:
    file = io.BytesIO()
    PIL.Image.new(mode, size).save(file, "PNG")
    assert detail(file.getvalue()) is None


def test_the_length_of_an_interlaced_png() -> None:
    """Seven passes of 5 x 5: 1 + 0 + 1 + 2 + 2 ... rows by the specification, each with a byte for its filter."""
    sizes = [(1, 1), (1, 1), (2, 1), (1, 2), (3, 1), (2, 3), (5, 2)]
    need = sum(rows * (1 + 3 * columns) for columns, rows in sizes)

    def made(count: int) -> bytes:
        header = b"IHDR" + struct.pack(">IIBBBBB", 5, 5, 8, 2, 0, 0, 1)
        content = b"IDAT" + zlib.compress(bytes(count))
        parts = [header, content, b"IEND"]
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts
        )

    assert detail(made(need)) is None
    assert detail(made(need - 1)) is not None


def test_a_png_that_decompresses_without_end_is_not_followed() -> None:
    data = png(40)
    place = data.index(b"IDAT")
    content = b"IDAT" + zlib.compress(bytes(300 * 2**20), 9)
    bomb = data[: place - 4] + struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    assert detail(bomb + data[data.index(b"IEND") - 4 :]) is None


def test_a_jpeg_that_cannot_be_decoded_is_left_out_and_counted(tmp_path: Path) -> None:
    """Garbage in the middle; its last bytes are those of a whole JPEG."""
    for number in range(4):
        photo(tmp_path / "cat" / f"{number}.png", (number * 40, 200, 90))
    data = bytearray(encoded("JPEG"))
    data[len(data) // 2 : len(data) // 2 + 200] = b"\xff\x3a" * 100
    (tmp_path / "cat" / "bad.jpg").write_bytes(bytes(data))
    source = load_source(FolderData(source="folder", path=str(tmp_path)), 0)
    assert len(source) == 4
    assert source.warnings[0].startswith("left out: 1 image is unreadable: cat/bad.jpg (")
    for record in source.records:
        record.image.open()
