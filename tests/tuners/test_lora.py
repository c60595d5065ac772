"""LoRA against the plain CLIP with merged weights W + (alpha / sqrt R) B A, in float64 and by naive formulas."""

from __future__ import annotations

import copy

import formulas
import pytest
import torch
from torch import Tensor

from fedvlm.clip import FrozenCLIP
from fedvlm.errors import FedvlmError
from fedvlm.streams import torch_stream
from fedvlm.testing import tiny
from fedvlm.tuners.lora import LoRA, LoRAShape

NAMES = ["red fox", "green_frog", "blue jay"]
TEMPLATE = "a photo of a {}."
LABELS = torch.tensor([0, 2, 1, 1])


def random(tuner: LoRA, seed: int = 0) -> dict[str, Tensor]:
    return tiny.random(tuner, 0.2, torch_stream(seed, "lora"))


def logits(tuner: LoRA, tensors: dict[str, Tensor], pixels: Tensor) -> Tensor:
    hidden = tuner.clip.visual.hidden(pixels.flatten(0, -4), tuner.entry).unflatten(0, pixels.shape[:-3])
    return tuner.logits(tensors, tuner.classifier(tensors, {}), hidden)


SHAPES = [
    LoRAShape(1, None, 2, 1.0, "qkv"),
    LoRAShape(1, None, 3, 2.0, "qv"),
    LoRAShape(2, 3, 1, 1.0, "k"),
    LoRAShape(3, 3, 4, 0.5, "kv"),
    LoRAShape(2, None, 2, 1.0, "qkv", frozen_a=0),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_logits_and_gradients_are_those_of_merged_weights(clip: FrozenCLIP, pixels: Tensor, shape: LoRAShape) -> None:
    tuner = LoRA(clip, NAMES, shape, TEMPLATE)
    start = random(tuner)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    ours = logits(tuner, leaves, pixels)
    true = formulas.doubled(start, train=True)
    w = formulas.merged(
        formulas.weights(clip), formulas.doubled(tuner.fixed) | true, shape.alpha / shape.rank**0.5, shape.projections
    )
    theirs = formulas.plain_logits(clip, w, NAMES, pixels)
    assert (theirs - formulas.plain_logits(clip, formulas.weights(clip), NAMES, pixels)).abs().max() > 0.1
    assert (ours - theirs).abs().max() < 2e-5 * theirs.abs().max()
    formulas.cross_entropy(theirs, LABELS).backward()
    torch.nn.functional.cross_entropy(ours, LABELS).backward()
    for name, leaf in leaves.items():
        expected = true[name].grad
        assert (leaf.grad - expected).abs().max() < 2e-4 * expected.abs().max() + 1e-6, name  # type: ignore[operator,union-attr]


def test_the_merged_clip_itself_says_the_same(clip: FrozenCLIP, pixels: Tensor) -> None:
    """The way a LoRA would be exported: the plain encoders, untouched, with other weights."""
    shape = LoRAShape(1, None, 2, 1.0, "qv")
    tuner = LoRA(clip, NAMES, shape, TEMPLATE)
    start = random(tuner)
    other = copy.deepcopy(clip)
    w = formulas.merged(formulas.weights(clip), start, 0.5**0.5, "qv")
    other.load_state_dict({name: tensor.float() for name, tensor in w.items()})
    theirs = other.logits(other.encode_image(pixels), other.classifier(NAMES, TEMPLATE))
    assert (logits(tuner, start, pixels) - theirs).abs().max() < 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[4]], ids=str)
def test_clients_side_by_side_are_clients_alone(clip: FrozenCLIP, pixels: Tensor, shape: LoRAShape) -> None:
    tuner = LoRA(clip, NAMES, shape, TEMPLATE)
    each = [random(tuner, seed) for seed in range(3)]
    images = torch.stack([pixels, pixels.flip(0), pixels + 1])
    stacked = {name: torch.stack([one[name] for one in each]) for name in each[0]}
    together = logits(tuner, stacked, images)
    for one, own, row in zip(each, images, together, strict=True):
        alone = logits(tuner, one, own)
        assert (row - alone).abs().max() < 1e-5 * alone.abs().max()


def test_it_starts_as_clip_and_is_drawn_as_kaiming_uniform(clip: FrozenCLIP, pixels: Tensor) -> None:
    """Kaiming uniform with a = sqrt 5 over D inputs: a bound of sqrt(6 / (6 D))."""
    tuner = LoRA(clip, NAMES, LoRAShape(rank=20), TEMPLATE)
    start = tuner.init(torch_stream(0, "init"))
    plain = formulas.plain_logits(clip, formulas.weights(clip), NAMES, pixels)
    assert (logits(tuner, start, pixels) - plain).abs().max() < 2e-5 * plain.abs().max()
    for name, tensor in start.items():
        if name.endswith(".b"):
            assert not tensor.any()
        else:
            bound = (6 / (6 * tensor.shape[-1])) ** 0.5
            assert 0.95 * bound < tensor.abs().max() <= bound
            assert float(tensor.var()) == pytest.approx(bound**2 / 3, rel=0.1)


def test_the_frozen_a_is_the_same_everywhere_and_not_trained(clip: FrozenCLIP) -> None:
    one, other = (LoRA(clip, names, LoRAShape(frozen_a=0), TEMPLATE) for names in (NAMES, ["cat"]))
    assert all(name.endswith(".b") for name in one.init(torch_stream(0, "init")))
    assert one.fixed.keys() == other.fixed.keys()
    assert all(torch.equal(one.fixed[name], other.fixed[name]) for name in one.fixed)


@pytest.mark.parametrize("blocks", [(0, 2), (2, 4), (4, None)])
def test_blocks_that_are_not_there_are_refused(clip: FrozenCLIP, blocks: tuple[int, int | None]) -> None:
    with pytest.raises(FedvlmError, match=r"LoRA blocks .* do not fit an encoder with blocks 1\.\.[34]"):
        LoRA(clip, NAMES, LoRAShape(*blocks), TEMPLATE)
    with pytest.raises(FedvlmError, match="ResNet"):
        LoRA(tiny.clip(tiny.resnet_config()), NAMES, LoRAShape(), TEMPLATE)
