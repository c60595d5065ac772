from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import CLIPImageProcessorPil

from fedvlm.clip import preprocess
from fedvlm.clip.preprocess import Preprocess
from fedvlm.testing import tiny

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def photo(width: int, height: int, seed: int = 0) -> PIL.Image.Image:
    """Smooth and rough together, so that resampling filters differ visibly."""
    y, x = np.mgrid[:height, :width]
    draw = np.random.default_rng(seed)
    waves = np.stack([np.sin(x / (3 + c)) * np.cos(y / (5 - c)) for c in range(3)], -1) * 80 + 128
    return PIL.Image.fromarray(np.clip(waves + draw.normal(0, 30, waves.shape), 0, 255).astype(np.uint8))


SIDES = [(48, 48), (32, 32), (100, 64), (64, 100), (33, 47), (500, 200), (31, 90), (20, 20), (17, 32), (32, 36)]


@pytest.mark.parametrize("side", SIDES)
def test_the_test_transform_is_that_of_transformers(side: tuple[int, int]) -> None:
    """Within half a grey level; where the spare pixels are odd in number the two published crops differ by one."""
    size = 32
    image = photo(*side)
    scaled = [int(size * s / min(side)) for s in side]
    if any((s - size) % 4 == 3 for s in scaled):
        pytest.skip("transformers rounds the crop's corner down, torchvision (CLIP's own) to even")
    processor = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    theirs = torch.as_tensor(np.array(processor(image, return_tensors="np")["pixel_values"]))
    own = Preprocess(size)
    ours = own.normalise(own.test(image)[None])
    assert ours.shape == (1, 3, size, size)
    assert (ours - theirs).abs().max() < 0.5 / 255 / min(STD)


@pytest.mark.parametrize("side", SIDES)
def test_the_test_transform_by_its_formula(side: tuple[int, int]) -> None:
    """torchvision's Resize(S, bicubic) and CenterCrop(S) as documented: long side int(S long / short), corner int(round(spare / 2))."""
    size, image = 32, photo(*side)
    short = min(side)
    wide, high = (size if s == short else int(size * s / short) for s in side)
    resized = image.resize((wide, high), PIL.Image.Resampling.BICUBIC)
    top, left = int(round((high - size) / 2.0)), int(round((wide - size) / 2.0))  # noqa: RUF046
    expected = np.asarray(resized)[top : top + size, left : left + size]
    ours = Preprocess(size).test(image)
    assert ours.dtype == torch.uint8
    assert np.array_equal(ours.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "I;16", "LA"])
def test_any_mode_becomes_rgb(mode: str) -> None:
    image = photo(40, 40)
    image = image.convert("L").convert("I").convert("I;16") if mode == "I;16" else image.convert(mode)
    pixels = Preprocess(16).test(image)
    assert pixels.shape == (3, 16, 16)
    assert torch.equal(pixels, Preprocess(16).test(image.convert("RGB")))
    assert Preprocess(16).augment(image, tiny.draws()).shape == (3, 16, 16)


def test_normalisation_by_hand() -> None:
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8)[:, None, None].expand(3, 2, 2)[None]
    out = Preprocess(2).normalise(pixels)
    expected = [(value / 255 - m) / s for value, m, s in zip((0, 51, 255), MEAN, STD, strict=True)]
    assert out.dtype == torch.float32
    assert out[0, :, 1, 1].tolist() == pytest.approx(expected, rel=1e-6)


def test_the_identity_tells_transforms_apart() -> None:
    every = [Preprocess(32), Preprocess(33), Preprocess(32, mean=(0.5, 0.5, 0.5)), Preprocess(32, std=(0.5, 0.5, 0.5))]
    assert len({one.identity for one in every}) == 4
    assert Preprocess(32).identity == every[0].identity


def test_means_are_read_from_either_file(tmp_path: Path) -> None:
    assert preprocess.load(tmp_path, 32) == Preprocess(32, MEAN, STD)
    assert preprocess.load(tmp_path, 32, {"mean": [1, 2, 3], "std": [4, 5, 6]}) == Preprocess(32, (1, 2, 3), (4, 5, 6))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    assert preprocess.load(tmp_path, 32) == Preprocess(32, (0.5,) * 3, (0.25,) * 3)


def test_the_same_stream_gives_the_same_view_and_another_another() -> None:
    image, own = photo(60, 50), Preprocess(32)
    views = [own.augment(image, tiny.draws(name)) for name in ("a", "a", "b")]
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])


def boxes(width: int, height: int, count: int) -> np.ndarray:
    """Left, top, width, height of `count` crops and whether they were flipped, read off images that show coordinates.

    Red grows along x and green along y; a linear fit over the crop's inner pixels gives its corner and extent.
    """
    size = 32
    y, x = np.mgrid[:height, :width]
    image = PIL.Image.fromarray(np.stack([x * 250 / width, y * 250 / height, 0 * x], -1).round().astype(np.uint8))
    place, found = np.arange(4, size - 4) + 0.5, []
    for number in range(count):
        view = Preprocess(size).augment(image, tiny.draws("crop", number)).numpy().astype(float)
        rising, start = np.polyfit(place, view[0].mean(0)[4:-4] * width / 250, 1)
        down, top = np.polyfit(place, view[1].mean(1)[4:-4] * height / 250, 1)
        wide = abs(rising) * size
        left = start if rising > 0 else start - wide
        found.append((left, top, wide, down * size, rising < 0))
    return np.array(found)


def test_crops_have_the_published_areas_and_aspects() -> None:
    """Area 0.08..1 of the image, uniform where all of it fits; aspect 3/4..4/3, log-uniform; half are flipped."""
    found = boxes(240, 240, 400)
    area, aspect = found[:, 2] * found[:, 3] / 240**2, found[:, 2] / found[:, 3]
    assert area.min() > 0.08 * 0.95
    assert area.min() < 0.12
    assert area.max() < 1.04
    assert area.max() > 0.93
    small_ones = area < 0.7  # below 3/4 of the image no try is refused, so areas are uniform there
    assert abs(np.median(area[small_ones]) - (0.08 + 0.7) / 2) < 5 * 0.62 / 2 / small_ones.sum() ** 0.5
    assert aspect.min() > 0.75 * 0.97
    assert aspect.max() < 4 / 3 * 1.03
    assert aspect.min() < 0.80
    assert aspect.max() > 1.25
    assert abs(np.median(np.log(aspect))) < 5 * np.log(4 / 3) / 400**0.5
    assert abs(found[:, 4].mean() - 0.5) < 5 * 0.5 / 400**0.5


def test_crops_stay_inside_and_reach_every_corner() -> None:
    found = boxes(200, 120, 300)
    left, top, wide, high = found[:, :4].T
    assert left.min() > -3
    assert top.min() > -3
    assert (left + wide).max() < 203
    assert (top + high).max() < 123
    room = 200 - wide > 40
    relative = left[room] / (200 - wide[room])
    assert abs(relative.mean() - 0.5) < 5 * 12**-0.5 / room.sum() ** 0.5
    assert relative.min() < 0.05
    assert relative.max() > 0.95


@pytest.mark.parametrize(("width", "height", "crop"), [(400, 20, 27), (20, 400, 27)])
def test_an_image_too_long_for_any_crop_is_cut_in_its_middle(width: int, height: int, crop: int) -> None:
    """Ten tries all fail for area >= 0.08; then the largest crop of aspect 4/3 (3/4), centred: 20 x 4/3 = 27 pixels."""
    found = boxes(width, height, 5)
    place, extent = (found[:, 0], found[:, 2]) if width > height else (found[:, 1], found[:, 3])
    assert abs(extent - crop).max() < 1.5
    assert abs(place + extent / 2 - 200).max() < 2


def test_augmentation_is_bicubic() -> None:
    """An image in which nothing can be cropped but everything: one pixel a side."""
    image = PIL.Image.fromarray(np.array([[[10, 200, 30]]], np.uint8))
    assert Preprocess(4).augment(image, tiny.draws()).flatten(1).T.unique(dim=0).tolist() == [[10, 200, 30]]
