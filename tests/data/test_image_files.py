"""Image files: decoded as they should look, refused when they cannot be, never read outside their folder."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from fake_data import photo, problem_of

from fedvlm.data.files import EncodedImage, FileImage, existing_folder, read_text, resolve_inside
from fedvlm.errors import FedvlmError


def encoded(image: PIL.Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(width: int = 40, height: int = 30) -> PIL.Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def test_pixels_come_back_exactly() -> None:
    image = noise()
    opened = EncodedImage("a", encoded(image, "PNG")).open()
    assert opened.mode == "RGB"
    assert np.array_equal(np.asarray(opened), np.asarray(image))


def test_orientation_is_followed() -> None:
    image = PIL.Image.new("RGB", (2, 1))
    image.putpixel((0, 0), (255, 0, 0))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees clockwise
    opened = EncodedImage("a", encoded(image, "PNG", exif=exif)).open()
    assert opened.size == (1, 2)
    assert opened.getpixel((0, 0)) == (255, 0, 0)
    assert opened.getpixel((0, 1)) == (0, 0, 0)


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    levels = np.array([[0, 256, 32768, 65535]], np.uint16)
    opened = EncodedImage("a", encoded(PIL.Image.fromarray(levels), "PNG")).open()
    assert np.asarray(opened)[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16", "I"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = PIL.Image.new(mode, (5, 4))
    found = EncodedImage("a", encoded(image, "TIFF"))
    assert problem_of(found) is None
    opened = found.open()
    assert (opened.mode, opened.size) == ("RGB", (5, 4))


def test_palette_with_transparency_does_not_warn(recwarn: pytest.WarningsRecorder) -> None:
    image = PIL.Image.new("P", (4, 4))
    image.info["transparency"] = bytes([0, 128])
    EncodedImage("a", encoded(image, "PNG", transparency=bytes([0, 128]))).open()
    assert not recwarn.list


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_of_unknown_range_are_refused(mode: str) -> None:
    image = PIL.Image.new(mode, (4, 4), 100000)
    problem = problem_of(EncodedImage("a", encoded(image, "TIFF")))
    assert problem is not None
    assert "convert it to 8 or 16 bits" in problem.detail


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.97])
def test_a_cut_file_is_found_up_front_and_named_when_opened(tmp_path: Path, kind: str, kept: float) -> None:
    data = encoded(noise(), kind)
    image = FileImage(tmp_path, f"cut.{kind.lower()}")
    (tmp_path / image.path).write_bytes(data)
    assert problem_of(image) is None
    (tmp_path / image.path).write_bytes(data[: int(kept * len(data))])
    problem = problem_of(image)
    assert problem is not None
    assert problem.kind == "unreadable"
    with pytest.raises(FedvlmError, match=rf"cut\.{kind.lower()} cannot be read"):
        image.open()


def test_bytes_after_the_end_of_a_jpeg_do_no_harm() -> None:
    assert problem_of(EncodedImage("a", encoded(noise(), "JPEG") + b"from the camera")) is None


def test_a_flipped_bit_in_a_png_is_found() -> None:
    data = bytearray(encoded(noise(), "PNG"))
    data[len(data) // 2] ^= 1
    problem = problem_of(EncodedImage("a", bytes(data)))
    assert problem is not None
    assert problem.kind == "unreadable"


@pytest.mark.parametrize("side", [7100, 60000])
def test_a_bomb_is_refused_before_it_is_decoded(side: int) -> None:
    """A PNG header that promises 50 (3600) megapixels, with no pixels behind it."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    image = EncodedImage("bomb.png", b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + b"\0" * 4)
    problem = problem_of(image)
    assert problem is not None
    assert problem.kind == "too large"
    with pytest.raises(FedvlmError, match=r"bomb\.png"):
        image.open()


def test_a_whole_image_that_is_too_large_is_refused_when_opened() -> None:
    """41.6 megapixels of black and white, a file of some kilobytes: valid, so that nothing but its size is wrong."""
    data = encoded(PIL.Image.new("1", (8000, 5200)), "PNG")
    with pytest.raises(
        FedvlmError, match=r"a cannot be read: 8000 x 5200 = 41\.6 megapixels, over data.max_megapixels = 40"
    ):
        EncodedImage("a", data).open()
    assert EncodedImage("a", data, max_megapixels=42).open().size == (8000, 5200)


def test_a_huge_file_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedvlm.data.files.MAX_IMAGE_BYTES", 2**20)
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(2**40)
    problem = problem_of(FileImage(tmp_path, "a.png"))
    assert problem is not None
    assert (problem.kind, problem.detail) == ("too large", "over 1 MiB")


def test_megapixels_are_told_with_the_setting() -> None:
    problem = problem_of(EncodedImage("a", encoded(noise(2000, 1000), "PNG"), max_megapixels=1.5))
    assert problem is not None
    assert problem.detail == "2000 x 1000 = 2.0 megapixels, over data.max_megapixels = 1.5"


def test_a_thread_of_pixels_is_refused() -> None:
    """Resized to 224 on the short side, 10000 x 1 pixels would fill 1.5 GB."""
    problem = problem_of(EncodedImage("a", encoded(noise(10000, 1), "PNG")))
    assert problem is not None
    assert problem.kind == "too narrow"


def test_a_file_that_vanishes_is_named(tmp_path: Path) -> None:
    image = FileImage(tmp_path, "gone.png")
    problem = problem_of(image)
    assert problem is not None
    assert problem.kind == "missing"
    with pytest.raises(FedvlmError, match=r"gone\.png"):
        image.open()


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    problem = problem_of(FileImage(tmp_path, "a.png"))
    assert problem is not None
    assert problem.kind == "missing"


@pytest.mark.parametrize(
    "path", ["../secret.png", "a/../../secret.png", "{outside}/secret.png", "link.png", "linked/secret.png"]
)
def test_no_path_leads_out_of_the_folder(tmp_path: Path, path: str) -> None:
    outside, root = tmp_path / "outside", tmp_path / "outside" / "root"
    photo(outside / "secret.png")
    root.mkdir()
    (root / "link.png").symlink_to(outside / "secret.png")
    (root / "linked").symlink_to(outside)
    image = FileImage(root, path.format(outside=outside))
    for use in (lambda: problem_of(image), image.open):
        with pytest.raises(FedvlmError, match="leads out of the data folder"):
            use()


def test_a_sibling_with_the_same_beginning_is_outside(tmp_path: Path) -> None:
    photo(tmp_path / "root2" / "a.png")
    (tmp_path / "root").mkdir()
    with pytest.raises(FedvlmError, match="leads out"):
        resolve_inside(tmp_path / "root", "../root2/a.png")


def test_links_inside_the_folder_and_to_the_folder_are_fine(tmp_path: Path) -> None:
    photo(tmp_path / "root" / "a.png")
    (tmp_path / "root" / "b.png").symlink_to(tmp_path / "root" / "a.png")
    (tmp_path / "door").symlink_to(tmp_path / "root")
    assert FileImage(tmp_path / "door", "b.png").open().size == (8, 6)
    assert FileImage(existing_folder(tmp_path / "door"), "x/../b.png").path == "x/../b.png"


def test_a_list_of_images_is_bounded_and_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "list").write_bytes("\ufeffimage,label".encode())
    assert read_text(tmp_path / "list") == "image,label"
    (tmp_path / "latin").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(FedvlmError, match="latin is not a readable UTF-8"):
        read_text(tmp_path / "latin")
    monkeypatch.setattr("fedvlm.data.files.MAX_TEXT_BYTES", 3)
    with pytest.raises(FedvlmError, match="larger than 3 bytes"):
        read_text(tmp_path / "list")
