"""Prompts in both encoders (MaPLe, FedMGP) against a written-out forward: every token through every block."""

from __future__ import annotations

from typing import Any

import formulas
import pytest
import torch
from torch import Tensor

from fedvlm.clip import FrozenCLIP
from fedvlm.methods.base import Step
from fedvlm.streams import torch_stream
from fedvlm.testing import tiny
from fedvlm.tuners.base import Tuner, predict

NAMES = ["red fox", "green_frog", "blue jay"]
LABELS = torch.tensor([0, 2, 1, 1])
SUFFIX = "of a {}."


def random(tuner: Tuner, seed: int = 0) -> dict[str, Tensor]:
    return tiny.random(tuner, 0.3, torch_stream(seed, "deep"))


def logits(
    tuner: Any, tensors: dict[str, Tensor], pixels: Tensor
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    hidden = tuner.clip.visual.hidden(pixels.flatten(0, -4), tuner.entry).unflatten(0, pixels.shape[:-3])
    classifier = tuner.classifier(tensors, {})
    found, beside = predict(tuner, tensors, classifier, hidden)
    return found, classifier, beside


def maple_logits(clip: FrozenCLIP, tensors: dict[str, Tensor], pixels: Tensor, depth: int) -> Tensor:
    """baselines.md 6: text positions 1..T, replaced before blocks 2..J; the image's prompts are their projections."""
    w, prompts = formulas.weights(clip), [tensors[f"text.{block}"] for block in range(1, depth + 1)]
    edits = {block: formulas.replaced(1, prompt) for block, prompt in enumerate(prompts[1:], 2)}
    text = formulas.prompt_features(clip, w, prompts[0], NAMES, SUFFIX, inputs=edits)
    vision = [prompt @ tensors[f"projection.{block}.weight"].T + tensors[f"projection.{block}.bias"]
              for block, prompt in enumerate(prompts, 1)]  # fmt: skip
    return w["logit_scale"].exp() * formulas.prompted_image(clip, w, pixels, vision) @ text.T


@pytest.mark.parametrize(("depth", "tokens"), [(1, 2), (2, 1), (3, 3)])
def test_maple(clip: FrozenCLIP, pixels: Tensor, depth: int, tokens: int) -> None:
    tuner = tiny.method("maple", depth=depth, length=tokens, start=None).tuner(clip, NAMES, "")
    start = random(tuner)
    leaves, true = ({n: t.clone().requires_grad_() for n, t in start.items()}, formulas.doubled(start, train=True))
    ours, *_ = logits(tuner, leaves, pixels)
    theirs = maple_logits(clip, true, pixels, depth)
    assert (ours - theirs).abs().max() < 2e-5 * theirs.abs().max()
    torch.nn.functional.cross_entropy(ours, LABELS).backward()
    formulas.cross_entropy(theirs, LABELS).backward()
    for name, leaf in leaves.items():
        assert (leaf.grad - true[name].grad).abs().max() < 2e-4 * true[name].grad.abs().max() + 1e-6, name  # type: ignore[operator,union-attr]
        assert true[name].grad.abs().max() > 1e-6  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["maple", "fedmgp"])
def test_clients_side_by_side_are_clients_alone(name: str, clip: FrozenCLIP, pixels: Tensor) -> None:
    tuner = tiny.method(name).tuner(clip, NAMES, "")
    each = [random(tuner, seed) for seed in range(3)]
    images = torch.stack([pixels, pixels.flip(0), pixels + 1])
    stacked = {key: torch.stack([one[key] for one in each]) for key in each[0]}
    together, *_ = logits(tuner, stacked, images)
    for one, own, row in zip(each, images, together, strict=True):
        alone, *_ = logits(tuner, one, own)
        assert (row - alone).abs().max() < 1e-5 * alone.abs().max()


def test_maple_starts_as_published(clip: FrozenCLIP) -> None:
    """The first prompt from the words, the deeper ones drawn, one projection for all deeper blocks and another first."""
    words = "a photo"
    tokens = len(clip.tokenizer.words(words))
    start = tiny.method("maple", depth=3, length=tokens, start=words).tuner(clip, NAMES, "").init(torch_stream(0, "i"))
    assert torch.equal(start["text.1"], clip.text.token_embedding.weight[clip.tokenizer.words(words)])
    assert start["text.2"].std() < 0.04
    assert not torch.equal(start["text.2"], start["text.3"])
    assert torch.equal(start["projection.2.weight"], start["projection.3.weight"])
    assert not torch.equal(start["projection.1.weight"], start["projection.2.weight"])


def fedmgp_logits(
    clip: FrozenCLIP, tensors: dict[str, Tensor], pixels: Tensor, groups: int
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Group by group: its logits, its text features, its image features."""
    w = formulas.weights(clip)
    text = [formulas.prompt_features(clip, w, tensors[f"text.{j}"], NAMES, SUFFIX) for j in range(groups)]
    image = [formulas.prompted_image(clip, w, pixels, [tensors[f"vision.{j}"]]) for j in range(groups)]
    scale = w["logit_scale"].exp()
    return [scale * f @ t.T for f, t in zip(image, text, strict=True)], torch.stack(text), torch.stack(image)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_fedmgp(clip: FrozenCLIP, pixels: Tensor, groups: int) -> None:
    """Logits of every group, and loss = mean_j CE_j + diversity mean_{j<k} (text cosine + image cosine) / 2."""
    method = tiny.method("fedmgp", groups=groups, sent=1, diversity=0.7)
    tuner = method.tuner(clip, NAMES, "")
    start = random(tuner)
    leaves, true = ({n: t.clone().requires_grad_() for n, t in start.items()}, formulas.doubled(start, train=True))
    ours, classifier, beside = logits(tuner, leaves, pixels)
    each, text, image = fedmgp_logits(clip, true, pixels, groups)
    assert ours.shape == (4, groups, 3)
    for j, expected in enumerate(each):
        assert (ours[:, j] - expected).abs().max() < 2e-5 * expected.abs().max()
    loss = method.loss(Step(ours, LABELS, leaves, {}, classifier, beside))
    alike = [(text[j] @ text[k].T).diagonal().mean() / 2 + (image[j] @ image[k].T).diagonal().mean() / 2
             for j in range(groups) for k in range(j)]  # fmt: skip
    expected_loss = torch.stack([formulas.cross_entropy(one, LABELS) for one in each]).mean()
    expected_loss = expected_loss + (0.7 * torch.stack(alike).mean() if alike else 0.0)
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-5)
    loss.backward()
    expected_loss.backward()
    for name, leaf in leaves.items():
        assert (leaf.grad - true[name].grad).abs().max() < 2e-4 * true[name].grad.abs().max() + 1e-6, name  # type: ignore[operator,union-attr]
