"""The recipe of the embedded model: tokenizer, captions, loss targets, and a run of a few steps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

RECIPES = Path(__file__).parents[2] / "recipes"
sys.path.insert(0, str(RECIPES))

import captions  # noqa: E402
import pretrain  # noqa: E402
import vocabulary  # noqa: E402
from pool import Pool, draw_pool  # noqa: E402

from fedvlm import clip  # noqa: E402
from fedvlm.clip.load import EMBEDDED  # noqa: E402
from fedvlm.data.scenes import COLOURS, FILLS, SHAPES  # noqa: E402

PRINTABLE = "".join(chr(code) for code in range(33, 127))


def test_every_class_word_is_one_token() -> None:
    inner = vocabulary.build(captions.vocabulary())
    for word in [*SHAPES, *FILLS, *COLOURS, "photo", "of", "a"]:
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


def test_captions_say_nothing_false() -> None:
    draw = np.random.default_rng(0)
    shape, fill, colour = draw.integers(20, size=300), draw.integers(6, size=300), draw.integers(9, size=300)
    for long in (False, True):
        told = captions.describe(shape, fill, colour, draw.random(300) < 0.5, draw, long=long)
        for index, text in enumerate(told.texts):
            words = set(text.replace(".", " ").replace(",", " ").replace("!", " ").split())
            for names, said in ((SHAPES, told.shape), (FILLS, told.fill), (tuple(COLOURS), told.colour)):
                for position, name in enumerate(names):
                    mentioned = bool(words & {name, *captions.SYNONYMS.get(name, ())})
                    assert mentioned == (position == said[index]), text


def test_positives_are_the_captions_that_are_true() -> None:
    number = np.array([0, 0, 1])
    images = Pool(np.zeros((3, 1, 1, 3), np.uint8), number, np.array([2, 3, 2]), np.array([5, 5, 5]), number > 9)
    told = captions.Captioned(["", "", ""], number, np.array([2, -1, -1]), np.array([-1, -1, 4]))
    assert pretrain.fits(images, told).tolist() == [[True, True, False], [False, True, False], [False, False, False]]


def test_rate_rises_and_falls() -> None:
    settings = pretrain.Settings(steps=210, warmup=10, rate=1.0)
    rates = [pretrain.rate(settings, step) for step in range(settings.steps)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[110] == pytest.approx(0.01 + 0.99 / 2)  # half way down the cosine
    assert 0.01 < rates[-1] < 0.011


def test_pool_is_reproducible_and_names_black_and_white_pictures_gray() -> None:
    pool = draw_pool(64, seed=3)
    assert np.array_equal(pool.pixels, draw_pool(64, seed=3).pixels)
    flat = np.abs(np.diff(pool.pixels.astype(int), axis=-1)).max(axis=(1, 2, 3)) <= 1
    assert (pool.colour[flat] == list(COLOURS).index("gray")).all()


def test_a_few_steps_make_a_model_that_loads_and_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, str(RECIPES / "pretrain.py"), "--out", str(tmp_path / "model"), "--images", "48"]
    command += ["--steps", "3", "--batch", "8", "--every", "2", "--threads", "1", "--score", "16"]
    first = subprocess.run(command, capture_output=True, text=True, check=True)
    weights = (tmp_path / "model" / "model.safetensors").read_bytes()
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "from step 0" in first.stdout
    assert "from step 2" in again.stdout
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == weights  # as if it had never been interrupted
    model = clip.load(str(tmp_path / "model"))
    features = model.classifier(["striped fish", "solid star"])
    assert features.shape == (2, 128)
    assert torch.isfinite(features).all()
    assert "python recipes/pretrain.py" in (tmp_path / "model" / "CARD.md").read_text()
