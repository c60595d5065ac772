"""Grey images of more than 8 bits, as hospitals have them: scaled by the range that the data set uses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from fake_data import photo

from fedvlm.data import Source, load_source
from fedvlm.data.sources.folder import FolderData
from fedvlm.errors import FedvlmError

Levels = dict[str, tuple[int, ...]]


def greys(root: Path, levels: Levels, kind: type = np.uint16, suffix: str = "png") -> Path:
    """Images of one row with these grey values."""
    for name, values in levels.items():
        path = root / f"{name}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(np.array([values], kind)).save(path)
    return root


def folder_of(root: Path, **settings: Any) -> Source:
    return load_source(FolderData(source="folder", path=str(root), **settings), 0)


def shown(source: Source) -> dict[str, list[int]]:
    """Decoded values by file."""
    return {Path(r.image.key).stem: np.asarray(r.image.open())[0, :, 1].tolist() for r in source.records}


CASES: dict[str, tuple[Levels, dict[str, list[int]], str]] = {
    "8 bits": ({"cat/a": (0, 7, 255)}, {"a": [0, 7, 255]}, "1 image has 8-bit grey values in wider files: they are taken as they are"),
    "12 bits": ({"cat/a": (0, 16, 4095), "cat/b": (160, 32, 900)}, {"a": [0, 1, 255], "b": [10, 2, 56]},
                "2 images have 12-bit grey values in wider files: they are scaled to 8 bits"),
    "16 bits": ({"cat/a": (0, 256, 65535), "cat/b": (0, 4095, 512)}, {"a": [0, 1, 255], "b": [0, 15, 2]},
                "2 images have 16-bit grey values in wider files: they are scaled to 8 bits"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("kind", "suffix"), [(np.uint16, "png"), (np.uint16, "tiff"), (np.int32, "tiff")])
def test_the_least_range_that_holds_all_values_is_taken(tmp_path: Path, case: str, kind: type, suffix: str) -> None:
    levels, expected, note = CASES[case]
    source = folder_of(greys(tmp_path, levels, kind, suffix))
    assert shown(source) == expected
    assert source.warnings[0] == f"{note} (data.grey_bits)"


def test_the_range_can_be_set_and_ten_bits_are_not_guessed(tmp_path: Path) -> None:
    greys(tmp_path, {"cat/a": (0, 4, 1023)})
    assert shown(folder_of(tmp_path)) == {"a": [0, 0, 63]}
    assert shown(folder_of(tmp_path, grey_bits=10)) == {"a": [0, 1, 255]}
    assert shown(folder_of(tmp_path, grey_bits=16)) == {"a": [0, 0, 3]}


def test_a_range_that_is_too_small_names_the_image(tmp_path: Path) -> None:
    greys(tmp_path, {"cat/a": (0, 1023), "cat/b": (0, 1024)})
    with pytest.raises(
        FedvlmError, match=r"cat/b\.png has grey values up to 1024, but data\.grey_bits = 10 ends at 1023"
    ):
        folder_of(tmp_path, grey_bits=10)


def test_images_of_eight_bits_are_not_scaled(tmp_path: Path) -> None:
    greys(tmp_path, {"cat/a": (0, 4095)})
    greys(tmp_path, {"cat/b": (3, 200)}, np.uint8)
    assert shown(folder_of(tmp_path)) == {"a": [0, 255], "b": [3, 200]}


def test_another_scale_is_another_image_for_what_is_remembered(tmp_path: Path) -> None:
    """And 8-bit images, and those that are scaled as ever, keep the digests of earlier versions: of the file's bytes."""
    greys(tmp_path, {"cat/a": (0, 4095)})
    photo(tmp_path / "dog" / "b.png")
    digests = {bits: [r.image.digest() for r in folder_of(tmp_path, grey_bits=bits).records] for bits in (None, 12, 16)}  # type: ignore[attr-defined]
    assert digests[None] == digests[12]
    assert digests[12][0] == digests[16][0] + "/grey12"
    assert digests[12][1] == digests[16][1]
    assert folder_of(tmp_path).content != folder_of(tmp_path, grey_bits=16).content


def test_images_all_but_black_are_told(tmp_path: Path) -> None:
    """Such as 12-bit colour in 16-bit files, which Pillow scales itself."""
    greys(tmp_path, {"cat/a": (0, 15, 8), "cat/b": (0, 16, 8), "dog/c": (240, 255, 250)}, np.uint8)
    greys(tmp_path, {"cat/d": (0, 240, 160), "cat/e": (0, 4095, 8)})
    assert folder_of(tmp_path).warnings[1:] == (
        "3 images have fewer than 16 of 256 levels: cat/a.png, cat/d.png, dog/c.png",
    )
