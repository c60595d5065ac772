"""Many images at once equal the same images one by one, in the order asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fake_data import photo

from fedvlm.data import Image, load_source
from fedvlm.data.files import FileImage
from fedvlm.data.pixels import read_images
from fedvlm.data.sources.scenes import ScenesData
from fedvlm.errors import FedvlmError


@pytest.mark.parametrize("threads", [None, 1, 3])
def test_drawn_and_filed_images_in_order(tmp_path: Path, threads: int | None) -> None:
    config = ScenesData(base_classes=2, novel_classes=0, shots=2, val_per_class=0, test_per_class=1)
    drawn: list[Image] = [record.image for record in load_source(config, 0).records]
    filed: list[Image] = []
    for number in range(5):
        path = photo(tmp_path / f"{number}.png", (number, 0, 255), (3 + number, 2))
        filed.append(FileImage(tmp_path, path.name))
    images = [drawn[0], filed[3], filed[0], drawn[4], drawn[0], filed[4], filed[1], filed[2]]
    found = read_images(images, threads)
    assert [image.shape for image in found[1:3]] == [(2, 6, 3), (2, 3, 3)]
    for image, array in zip(images, found, strict=True):
        assert array.dtype == np.uint8
        assert np.array_equal(array, np.asarray(image.open()))


def test_none_at_all() -> None:
    assert read_images([]) == []


def test_the_broken_file_is_named(tmp_path: Path) -> None:
    images: list[Image] = [FileImage(tmp_path, photo(tmp_path / f"{n}.png").name) for n in range(4)]
    (tmp_path / "2.png").write_bytes(b"no image")
    with pytest.raises(FedvlmError, match=r"2\.png cannot be read"):
        read_images(images)
