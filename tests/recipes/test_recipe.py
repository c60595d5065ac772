"""The recipe of the embedded model: tokenizer, captions, loss targets, and a run of a few steps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

RECIPES = Path(__file__).parents[2] / "recipes"
sys.path.insert(0, str(RECIPES))

import captions  # noqa: E402
import conditions  # noqa: E402
import image_stage  # noqa: E402
import objective  # noqa: E402
import pretrain  # noqa: E402
import text_stage  # noqa: E402
import vocabulary  # noqa: E402
from pool import Pool, batch, draw_pool  # noqa: E402

from fedvlm import clip  # noqa: E402
from fedvlm.clip.load import EMBEDDED  # noqa: E402
from fedvlm.data.scenes import COLOURS, FILLS, SHAPES, STYLES  # noqa: E402
from fedvlm.data.scenes.words import HOMONYMS, PLACES  # noqa: E402

PRINTABLE = "".join(chr(code) for code in range(33, 127))


def test_every_class_word_is_one_token() -> None:
    inner = vocabulary.build(captions.vocabulary())
    for word in [*SHAPES, *FILLS, *COLOURS, *HOMONYMS, "photo", "of", "a"]:
        assert len(inner.encode(word, add_special_tokens=False).ids) == 1


def test_printable_characters_survive_in_both_forms() -> None:
    inner = vocabulary.build(captions.vocabulary())
    entries = inner.get_vocab()
    for character in PRINTABLE:
        assert character in entries
        assert character + "</w>" in entries
    ids = inner.encode(" ".join(PRINTABLE), add_special_tokens=False).ids
    back = inner.decode(ids).replace("</w>", "").replace(" ", "")
    assert back == PRINTABLE.lower()
    assert inner.token_to_id("<|endoftext|>") == len(entries) - 1 != 2


def test_merges_are_the_same_every_time_and_never_disturb_earlier_words() -> None:
    words = ["low", "lower", "lowest", "slow", "owl"]
    pairs = vocabulary.merges(words)
    assert pairs[:2] == [("l", "o"), ("lo", "w</w>")]
    ranks = {pair: rank for rank, pair in enumerate(pairs)}
    assert [vocabulary.split(word, ranks) for word in words] == [[word + "</w>"] for word in words]


def test_tokenizer_agrees_with_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    own = clip.load("embedded").tokenizer
    theirs = transformers.CLIPTokenizer.from_pretrained(EMBEDDED)
    for text in ("a photo of a striped fish.", "A  Gray RING!", "it's 12 odd wörds & %x"):
        assert theirs(text)["input_ids"] == own([text])[0][0].tolist()


def pictures(count: int, seed: int = 0) -> Pool:
    """A batch under filters."""
    return batch(draw_pool(count, seed), count, np.random.default_rng(seed))


def words(text: str) -> set[str]:
    """The words of a caption."""
    return set("".join(c if c.isalpha() else " " for c in text).split())


@pytest.mark.parametrize("habits", [captions.Habits(), captions.Habits(1.0, 1.0, 1.0, 1.0, 1.0)])
def test_captions_name_what_they_are_said_to_name(habits: captions.Habits) -> None:
    images, draw = pictures(300), np.random.default_rng(0)
    said = captions.choose(images, draw, habits)
    assert not (said.conditions & ~images.conditions).any()
    assert said.fits(images).diagonal().all()
    for index, text in enumerate(captions.worded(said, draw, habits)):
        read = words(text)
        for names, named in ((FILLS, said.fill), (tuple(COLOURS), said.colour)):
            for position, name in enumerate(names):
                mentioned = bool(read & {name, *captions.SYNONYMS.get(name, ())})
                assert mentioned == (position == named[index]), text
        own = SHAPES[int(said.shape[index])]
        homonyms = [word for word, one in HOMONYMS.items() if own in (one.first, one.second)]
        assert read & {own, *captions.SYNONYMS.get(own, ()), *homonyms}, text
        for position, condition in enumerate(conditions.CONDITIONS.values()):
            ways = [*(f"{word} " for word in condition.before), *condition.behind]
            assert any(way in text for way in ways) == said.conditions[index, position], text


def test_a_place_decides_what_a_word_of_two_meanings_means() -> None:
    def captioned(habits: captions.Habits) -> list[tuple[str, str]]:
        draw = np.random.default_rng(0)
        said = captions.choose(pictures(400), draw, habits)
        return [
            (text, SHAPES[shape])
            for text, shape in zip(captions.worded(said, draw, habits), said.shape.tolist(), strict=True)
        ]

    seen = set()
    for text, shape in captioned(captions.Habits(place=1.0, homonym=1.0)):
        place = next(name for name, phrases in PLACES.items() if any(phrase in text for phrase in phrases))
        for word in words(text) & set(HOMONYMS):
            assert HOMONYMS[word].meaning(place) == shape, text
            seen.add(word)
    assert seen == set(HOMONYMS)
    free = captioned(captions.Habits(place=0.0, homonym=1.0))
    firsts = [HOMONYMS[word].first == shape for text, shape in free for word in words(text) & set(HOMONYMS)]
    assert len(firsts) == 400
    assert 0.68 < np.mean(firsts) < 0.82


def test_the_federation_s_styles_are_not_in_captions() -> None:
    assert not set(captions.vocabulary()) & set(STYLES)


def test_a_caption_is_true_only_where_all_that_it_says_is() -> None:
    number, flags = np.array([0, 0, 1]), np.zeros((3, len(conditions.NAMES)), dtype=bool)
    flags[0, 3] = True
    images = Pool(np.zeros((3, 1, 1, 3), np.uint8), number, np.array([2, 3, 2]), np.array([5, -1, 5]), flags, number)
    said = captions.Said(number, np.array([2, -1, -1]), np.array([-1, -1, 4]), np.zeros_like(flags))
    assert said.fits(images).tolist() == [[True, True, False], [False, True, False], [False, False, False]]
    said.conditions[1, 3] = True
    assert said.fits(images)[:, 1].tolist() == [True, False, False]
    coloured = captions.Said(number, said.shape * 0 - 1, np.array([5, 5, 5]), np.zeros_like(flags))
    assert coloured.fits(images)[1].tolist() == [False, False, False]  # its colour is hidden


def test_filters_do_what_their_names_say() -> None:
    plain = draw_pool(60, 1).pixels
    before = plain.astype(float)
    for name in conditions.FILTERS:
        one = conditions.CONDITIONS[name].filter
        assert one is not None
        after = 255 * np.clip(one(plain.astype(np.float32) / 255, np.random.default_rng(0)), 0, 1).astype(float)
        change = {
            "dark": before.mean() - after.mean(), "bright": after.mean() - before.mean(),
            "misty": before.std() - after.std(), "harsh": after.std() - before.std(),
            "gray": 1 - np.ptp(after, axis=-1).max(), "negative": 1 - np.abs(before + after - 255).max(),
            "reddish": (after[..., 0] - before[..., 0]).mean() - (after[..., 2] - before[..., 2]).mean(),
            "greenish": (after[..., 1] - before[..., 1]).mean() - (after[..., 0] - before[..., 0]).mean(),
            "bluish": (after[..., 2] - before[..., 2]).mean() - (after[..., 0] - before[..., 0]).mean(),
            "blurry": detail(before) - detail(after), "noisy": detail(after) - detail(before),
            "pixelated": 1 - np.abs(after[:, ::4] - after[:, 1::4]).max(),
            "torn": float(np.allclose(np.sort(after, 2), np.sort(before, 2), atol=0.01)) - float(np.allclose(before, after)),
        }[name]  # fmt: skip
        assert change > 0, name


def detail(pictures: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float:
    """Mean difference of neighbours."""
    return float(np.abs(np.diff(pictures, axis=2)).mean())


def test_a_batch_is_moved_with_its_outlines() -> None:
    clean = batch(draw_pool(40, 2), 200, np.random.default_rng(5), filters=0.0)
    solid = np.flatnonzero(clean.fill == FILLS.index("solid"))
    inside = clean.inside()[solid]
    spread = [
        (picture[mask].std(0).mean(), picture.reshape(-1, 3).std(0).mean())
        for picture, mask in zip(clean.pixels[solid].astype(float), inside, strict=True)
    ]
    assert len(spread) > 10
    assert inside.any(axis=(1, 2)).all()
    assert np.mean([own < 0.6 * whole for own, whole in spread]) > 0.9  # one colour, on another


def test_a_batch_says_how_it_is_filtered() -> None:
    columns = [conditions.NAMES.index(name) for name in conditions.FILTERS if name != "gray"]
    pool = draw_pool(40, 2)
    clean = batch(pool, 400, np.random.default_rng(3), filters=0.0)
    assert not clean.conditions[:, columns].any()
    count = batch(pool, 3000, np.random.default_rng(3)).conditions[:, columns].sum(axis=1)
    assert count.max() == 2
    assert abs((count == 0).mean() - 0.43) < 0.05  # 0.4, and those under the filter that is not counted


def test_rate_rises_and_falls() -> None:
    shares = [pretrain.schedule(step, 210, 10) for step in range(210)]
    assert shares[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert shares[10:] == sorted(shares[10:], reverse=True)
    assert shares[110] == pytest.approx(0.01 + 0.99 / 2)  # half way down the cosine
    assert 0.01 < shares[-1] < 0.011


def test_filters_come_in_slowly() -> None:
    settings = pretrain.Settings(image_steps=100, filters=0.5)
    assert [pretrain.ramp(settings, step) for step in (0, 25, 50, 99)] == [0, 0.5, 1, 1]


def test_pool_is_reproducible_and_names_black_and_white_pictures_gray() -> None:
    pool = draw_pool(64, seed=3)
    assert np.array_equal(pool.pixels, draw_pool(64, seed=3).pixels)
    flat = np.abs(np.diff(pool.pixels.astype(int), axis=-1)).max(axis=(1, 2, 3)) <= 1
    assert (pool.colour[flat] == list(COLOURS).index("gray")).all()


@pytest.mark.parametrize(
    ("image_steps", "text_steps", "every"),
    [
        pytest.param(5, 1, 4, id="kept in the first stage", marks=pytest.mark.long),
        pytest.param(4, 3, 4, id="kept between the stages"),
        pytest.param(3, 3, 5, id="kept in the second stage", marks=pytest.mark.long),
    ],
)
def test_a_few_steps_make_a_model_that_loads_and_goes_on(
    image_steps: int, text_steps: int, every: int, tmp_path: Path
) -> None:
    command = [sys.executable, str(RECIPES / "pretrain.py"), "--images", "48", "--score", "16", "--image_batch", "8"]
    command += ["--image_steps", str(image_steps), "--text_steps", str(text_steps), "--text_batch", "8"]
    command += ["--out", str(tmp_path / "model"), "--every", str(every)]
    first = subprocess.run(command, capture_output=True, text=True, check=True)
    weights = (tmp_path / "model" / "model.safetensors").read_bytes()
    assert json.loads((tmp_path / "model.training" / "progress.json").read_text())["step"] == every
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "from step 0" in first.stdout
    assert f"from step {every}" in again.stdout
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == weights  # as if it had never been interrupted
    model = clip.load(str(tmp_path / "model"))
    features = model.classifier(["striped fish", "solid star"])
    assert features.shape == (2, 128)
    assert torch.isfinite(features).all()
    assert "python recipes/pretrain.py" in (tmp_path / "model" / "CARD.md").read_text()


def test_a_batch_in_parts_has_the_gradients_of_the_whole_batch() -> None:
    """Of the text encoder; the first stage's parts are batches of their own, whose losses are averaged."""
    job = pretrain.start(pretrain.Settings())
    remembered = text_stage.remember(job.model, draw_pool(500, 0), 0)
    assert remembered.features.norm(dim=-1).sub(1).abs().max() < 1e-5
    trained = text_stage.trained(job.model)
    found = text_stage.step(job.model, remembered, 24, np.random.default_rng(1))
    parts = {name: parameter.grad for name, parameter in trained.items()}
    draw, habits = np.random.default_rng(1), captions.Habits()
    rows = draw.integers(500, size=24)
    said = captions.choose(remembered.images.rows(rows), draw, habits)
    texts = job.model.encode_text(*text_stage.encode(job.model, captions.worded(said, draw, habits)))
    true = said.fits(remembered.images.rows(rows))
    loss = objective.contrastive(job.model.logits(remembered.features[rows], texts), true)
    gradients = torch.autograd.grad(loss, list(trained.values()))
    assert found == pytest.approx(loss.item(), rel=1e-5)
    for (name, part), gradient in zip(parts.items(), gradients, strict=True):
        assert part is not None
        assert (part - gradient).norm() <= 1e-4 * gradient.norm() + 1e-8, name


def test_the_first_stage_learns_what_is_in_few_pictures() -> None:
    job = pretrain.start(pretrain.Settings())
    pool = draw_pool(16, 0)
    losses = []
    for step in range(40):
        draws = [np.random.default_rng((step, part)) for part in range(2)]
        job.optimizer.zero_grad(set_to_none=True)
        losses.append(image_stage.step(job.model, job.scaffold, pool, 16, draws, 0.0))
        for group in job.optimizer.param_groups:
            group["lr"] = 1e-3
        pretrain.update(job)
    assert losses[-1] < 0.6 * losses[0]
    assert {name for name, value in image_stage.trained(job.model, job.scaffold).items() if value.grad is None} == set()
