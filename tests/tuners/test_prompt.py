"""A prompt before the class name, against class-by-class sequences put together by hand."""

from __future__ import annotations

import formulas
import pytest
import torch

from fedvlm.clip import FEATURE, FrozenCLIP
from fedvlm.errors import FedvlmError
from fedvlm.streams import torch_stream
from fedvlm.testing import tiny
from fedvlm.tuners.prompt import ClassPosition, Prompt
from fedvlm.tuners.prompt_pair import PromptPair

NAMES = ["red fox", "green_frog", "it"]


@pytest.mark.parametrize("tokens", [1, 3, 16])
@pytest.mark.parametrize("suffix", ["{}.", "{}"])
@pytest.mark.parametrize("place", ["end", "middle", "front"])
def test_features_logits_and_gradients(clip: FrozenCLIP, tokens: int, suffix: str, place: ClassPosition) -> None:
    tuner = Prompt(clip, NAMES, tokens, suffix=suffix, class_position=place)
    start = torch.randn(tokens, 24, generator=torch_stream(0, "prompt"))
    w = formulas.weights(clip)
    images = torch.randn(5, 16, generator=torch_stream(0, "image"))
    leaf, true = start.clone().requires_grad_(), start.double().requires_grad_()
    ours = tuner.logits({"prompt": leaf}, tuner.classifier({"prompt": leaf}, {}), images)
    text = formulas.prompt_features(clip, w, true, NAMES, suffix, place)
    theirs = 20.0 * formulas.cosines(images.double(), text)
    assert (tuner.features(start) - text).abs().max() < 1e-5
    assert (ours - theirs).abs().max() < 1e-4
    labels = torch.tensor([0, 1, 2, 1, 0])
    torch.nn.functional.cross_entropy(ours, labels).backward()
    formulas.cross_entropy(theirs, labels).backward()
    assert (leaf.grad - true.grad).abs().max() < 1e-4 * true.grad.abs().max()  # type: ignore[operator,union-attr]


def test_the_end_of_text_moves_with_the_prompt(clip: FrozenCLIP) -> None:
    ids, eot = clip.tokenizer(["red fox.", "green frog.", "it."])
    tuner = Prompt(clip, NAMES, 5)
    texts = tuner.texts
    assert torch.equal(texts.position[texts.end], eot + 5)
    assert texts.common == 6
    assert len(texts.ids) == 6 + int(eot.sum())
    assert texts.ids[:6].tolist() == [clip.tokenizer.sot, -1, -2, -3, -4, -5]
    assert (texts.ids[texts.end] == clip.tokenizer.eot).all()
    assert ids[0, 1] in texts.ids


def test_a_prompt_of_the_templates_words_is_zero_shot_clip(clip: FrozenCLIP) -> None:
    """CoOp's own check: "a photo of a" in place of the prompt gives the template's features."""
    words = "a photo of a"
    tokens = len(clip.tokenizer.words(words))
    tuner = Prompt(clip, NAMES, tokens, words)
    start = tuner.init(torch_stream(0, "init"))
    table = clip.text.token_embedding.weight[torch.tensor(clip.tokenizer.words(words))]
    assert torch.equal(start["prompt"], table)
    plain = torch.nn.functional.normalize(clip.classifier(NAMES, "a photo of a {}."), dim=-1)
    assert (tuner.features(start["prompt"]) - plain).abs().max() < 1e-6
    start["prompt"].zero_()
    assert torch.equal(tuner.init(torch_stream(0, "init"))["prompt"], table)
    assert table.abs().max() > 0


def test_words_of_another_length_are_refused(clip: FrozenCLIP) -> None:
    count = len(clip.tokenizer.words("a photo of a"))
    with pytest.raises(FedvlmError, match=rf"'a photo of a', which is {count} tokens, but has 16"):
        Prompt(clip, NAMES, 16, "a photo of a")


def test_random_prompts_are_drawn_as_published(clip: FrozenCLIP) -> None:
    """N(0, 0.02^2) from the generator, the same for every class list."""
    values = Prompt(clip, NAMES, 28).init(torch_stream(0, "init"))["prompt"]
    assert values.shape == (28, 24)
    assert float(values.std()) == pytest.approx(0.02, rel=5 / (2 * 672) ** 0.5)
    assert abs(float(values.mean())) < 5 * 0.02 / 672**0.5
    assert torch.equal(values, Prompt(clip, ["cat"], 28).init(torch_stream(0, "init"))["prompt"])
    assert values.dtype == torch.float32


def test_no_room_for_the_prompt(clip: FrozenCLIP) -> None:
    with pytest.raises(FedvlmError, match=r"'green frog\.'.*beside 30 prompt tokens.*40 positions"):
        Prompt(clip, NAMES, 30)


def test_the_prompt_leaves_the_image_encoder_alone(clip: FrozenCLIP) -> None:
    assert Prompt(clip, NAMES, 3).entry == FEATURE
    assert Prompt(tiny.clip(tiny.resnet_config()), NAMES, 3).entry == FEATURE


def test_two_prompts_that_start_at_words_differ() -> None:
    """Equal ones would have equal gradients; the general one starts as PromptFL's does."""
    clip = tiny.clip()
    words = "a cat"
    count = len(clip.tokenizer.words(words))
    start = PromptPair(clip, ["red fox"], count, words).init(torch.Generator().manual_seed(0))
    plain = Prompt(clip, ["red fox"], count, words).init(torch.Generator().manual_seed(0))
    assert torch.equal(start["prompt.general"], plain["prompt"])
    assert (start["prompt.general"] - start["prompt.own"]).abs().max() > 1e-3
