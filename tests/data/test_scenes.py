"""Drawn scenes: the same pixels whatever the batch, classes and records as promised."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest

from fedvlm.data.scenes import COLOURS, FILLS, NEUTRAL, SHAPES, SIZE, STYLES, SceneSpec, render
from fedvlm.data.scenes.draws import draws
from fedvlm.data.scenes.shapes import REACH, TABLE, distance_tables
from fedvlm.data.sources.scenes import ScenesData, choose_classes, read_styles, scenes_source
from fedvlm.errors import FedvlmError


def specs(count: int, first: int = 0) -> list[SceneSpec]:
    styles, colours = [*NEUTRAL, *STYLES], [None, *COLOURS]
    return [
        SceneSpec(
            first + i, SHAPES[i * 7 % 20], FILLS[i % 6], colours[i % 10], styles[i % len(styles)], (1.0, 0.6)[i % 2]
        )
        for i in range(count)
    ]


def test_pixels_do_not_depend_on_the_batch() -> None:
    wanted = specs(120)
    whole = render(wanted)
    order = np.random.default_rng(0).permutation(120)
    assert np.array_equal(render([wanted[i] for i in order]), whole[order])
    assert np.array_equal(np.concatenate([render(wanted[:1]), render(wanted[1:50]), render(wanted[50:])]), whole)
    assert np.array_equal(np.concatenate([render([spec]) for spec in wanted[:36]]), whole[:36])


def test_pixels_do_not_depend_on_the_process() -> None:
    code = (
        "import hashlib; from fedvlm.data.scenes import *;"
        "print(hashlib.sha256(render([SceneSpec(i, SHAPES[i % 20], FILLS[i % 6], None, s)"
        " for i, s in enumerate(STYLES)]).tobytes()).hexdigest())"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(2)]
    assert runs[0].stdout == runs[1].stdout != ""


def test_render_gives_bytes_of_the_promised_shape() -> None:
    pixels = render(specs(5))
    assert pixels.shape == (5, SIZE, SIZE, 3)
    assert pixels.dtype == np.uint8
    assert render([]).shape == (0, SIZE, SIZE, 3)


def test_seeds_shapes_fills_and_styles_all_show() -> None:
    first = SceneSpec(3, "fish", "striped", "red")
    others = [
        SceneSpec(4, "fish", "striped", "red"),
        SceneSpec(3, "star", "striped", "red"),
        SceneSpec(3, "fish", "dotted", "red"),
        SceneSpec(3, "fish", "striped", "blue"),
        *(SceneSpec(3, "fish", "striped", "red", style) for style in STYLES),
    ]
    pixels = render([first, *others]).astype(float)
    differences = np.abs(pixels[1:] - pixels[0]).mean(axis=(1, 2, 3))
    assert differences.min() > 2


def test_styles_differ_from_each_other_more_than_by_noise() -> None:
    scenes = [
        render([SceneSpec(seed, "heart", "checked", None, style) for seed in range(8)]).astype(float)
        for style in [*NEUTRAL, *STYLES]
    ]
    for index, one in enumerate(scenes):
        for other in scenes[:index]:
            assert np.abs(one - other).mean() > 8


def test_strength_zero_is_the_neutral_photo_and_half_lies_between() -> None:
    base = render([SceneSpec(9, "cup", "solid", "green")])
    for style in STYLES:
        none, half, full = (
            render([SceneSpec(9, "cup", "solid", "green", style, s)]).astype(float) for s in (0, 0.5, 1)
        )
        assert np.array_equal(none, base)
        assert np.abs(half - (base + full) / 2).max() <= 1


def test_colour_is_what_the_word_says() -> None:
    for word in ("red", "green", "blue"):
        pixels = render([SceneSpec(seed, "square", "solid", word, "drawing") for seed in range(40)]).astype(float)
        middle = np.median(pixels, axis=0).mean(axis=(0, 1))
        assert ("red", "green", "blue")[int(middle.argmax())] == word


@pytest.mark.parametrize(("name", "radius"), [("circle", 0.92), ("ring", 0.98)])
def test_distance_tables_are_distances(name: str, radius: float) -> None:
    axis = np.linspace(-REACH, REACH, TABLE)
    x, y = np.meshgrid(axis, axis)
    table = distance_tables()[SHAPES.index(name)]
    outside = np.hypot(x, y) > radius
    assert np.allclose(table[outside], (np.hypot(x, y) - radius)[outside], atol=1e-5)
    assert table.shape == (TABLE, TABLE)


def test_square_and_triangle_distances_have_the_right_sign_and_size() -> None:
    axis = np.linspace(-REACH, REACH, TABLE)
    x, y = np.meshgrid(axis, axis)
    square = distance_tables()[SHAPES.index("square")]
    beyond = np.maximum(np.abs(x) - 0.8, np.abs(y) - 0.8)
    assert np.allclose(square[beyond < 0], beyond[beyond < 0], atol=1e-5)
    assert (np.sign(square) == np.sign(beyond)).all()


def test_draws_are_uniform_independent_and_named() -> None:
    seeds = np.arange(20_000, dtype=np.uint64)
    numbers = draws(seeds, "test", 3)
    assert ((numbers >= 0) & (numbers < 1)).all()
    assert np.allclose(numbers.mean(axis=0), 0.5, atol=5 / np.sqrt(12 * 20_000))
    assert np.allclose(np.corrcoef(numbers.T), np.eye(3), atol=5 / np.sqrt(20_000))
    assert np.array_equal(draws(seeds[5:6], "test", 3)[0], numbers[5])
    assert not np.array_equal(draws(seeds, "other", 3), numbers)


def test_rendering_is_quick() -> None:
    wanted = specs(512)
    render(wanted[:32])
    start = time.perf_counter()
    render(wanted)
    assert time.perf_counter() - start < 10  # about 0.3 s on an idle core


CONFIG = ScenesData(
    styles=["sketch", "neon:0.5"], base_classes=6, novel_classes=5, shots=3, val_per_class=1, test_per_class=2
)


def test_source_holds_every_style_class_and_split() -> None:
    source = scenes_source(CONFIG, seed=4)
    assert len(source.classnames) == len(set(source.classnames)) == 11
    assert len(source.records) == 2 * 11 * (3 + 1 + 2)
    assert {record.domain for record in source.records} == {"sketch", "neon"}
    for record in source.records:
        fill, shape = record.name.split()
        assert record.name == source.classnames[record.label]
        assert (record.image.spec.fill, record.image.spec.shape) == (fill, shape)  # type: ignore[attr-defined]
        assert record.image.spec.style == record.domain  # type: ignore[attr-defined]
    counts = [sum(r.split == split for r in source.records) for split in ("train", "val", "test")]
    assert counts == [66, 22, 44]
    assert {r.image.spec.strength for r in source.records if r.domain == "neon"} == {0.5}  # type: ignore[attr-defined]


def test_keys_are_unique_and_images_open_as_rendered() -> None:
    records = scenes_source(CONFIG, seed=4).records
    assert len({record.image.key for record in records}) == len(records)
    assert len({record.image.spec.seed for record in records}) == len(records)  # type: ignore[attr-defined]
    image = records[7].image.open()
    assert (image.mode, image.size) == ("RGB", (SIZE, SIZE))
    assert np.array_equal(np.asarray(image), render([records[7].image.spec])[0])  # type: ignore[attr-defined]


def test_images_depend_on_the_seed_but_not_on_how_many_there_are() -> None:
    more = CONFIG.model_copy(update={"shots": 5, "test_per_class": 4, "styles": ["fog", *CONFIG.styles]})
    few, many = scenes_source(CONFIG, seed=4), scenes_source(more, seed=4)
    other = scenes_source(CONFIG, seed=5)
    assert few.classnames == many.classnames
    assert {record.image.key for record in few.records} < {record.image.key for record in many.records}
    assert not {record.image.key for record in few.records} & {record.image.key for record in other.records}


def test_base_and_novel_classes_share_shapes_and_fills() -> None:
    for seed in range(5):
        classes = choose_classes(20, 20, seed)
        base, novel = classes[:20], classes[20:]
        assert len(set(classes)) == 40
        assert len({shape for _, shape in novel} & {shape for _, shape in base}) >= 6
        assert len({fill for fill, _ in base}) >= 5
    assert len(set(choose_classes(60, 60, 0))) == 120


def test_mistakes_in_the_configuration_are_told() -> None:
    with pytest.raises(FedvlmError, match="did you mean 'sketch'"):
        read_styles(["sketsh"])
    with pytest.raises(FedvlmError, match="strength"):
        read_styles(["neon:2"])
    with pytest.raises(FedvlmError, match="twice"):
        read_styles(["neon", "neon"])
    with pytest.raises(FedvlmError, match="120"):
        choose_classes(100, 21, 0)
    assert read_styles(["neon:0.25", "neon:1"]) == {"neon:0.25": ("neon", 0.25), "neon:1": ("neon", 1.0)}


@pytest.mark.parametrize("key", ["shots", "val_per_class", "test_per_class"])
def test_more_scenes_than_memory_holds_are_refused_at_once(key: str) -> None:
    with pytest.raises(
        FedvlmError, match=r"would be 4,000,00\d,\d{3} images \(1 styles x 40 classes x .*: lower data\.shots"
    ):
        scenes_source(ScenesData.model_validate({key: 100_000_000}), 0)
