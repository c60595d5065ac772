"""What `compute.dtype` may not touch: the last product before the softmax is in float32 for every method."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fedvlm import methods
from fedvlm.errors import FedvlmError
from fedvlm.methods.base import Step
from fedvlm.testing import tiny
from fedvlm.training.device import Device
from fedvlm.training.evaluation import compute_outputs

HALF = Device(torch.device("cpu"), torch.bfloat16, "bfloat16")
BLIND = ("majority",)
"""It looks at no image."""


def in_bfloat16(logits: torch.Tensor) -> float:
    """Share of logits that bfloat16 can hold as they are."""
    return float((logits.bfloat16().float() == logits).float().mean())


@pytest.mark.parametrize("name", [name for name in methods.known() if name not in BLIND])
def test_logits_are_not_rounded_to_half_precision(name: str) -> None:
    """Between 16 and 32 bfloat16 has steps of 0.125. Two rounds, so that experts and groups have a say."""
    frozen, fed = tiny.clip(), tiny.federation()
    task = tiny.simulation(tiny.method(name), frozen, fed, rounds=2, device=HALF)
    state, _ = tiny.run(task)
    client = fed.clients[0]
    received = task.spec.method.downlink(state.server, client.name, tiny.draws("downlink"))
    own = state.personal.get(client.name) or task.spec.initial
    found = compute_outputs(task.site, client, task.spec.method.assemble(own, received), received)
    assert in_bfloat16(found.base.logits) < 0.1
    assert found.novel is not None
    assert in_bfloat16(found.novel.logits) < 0.1


@pytest.mark.parametrize(("name", "keys"), [("fedmgp", ("text", "images")), ("fedpgp", ("general", "text"))])
def test_terms_of_a_loss_are_computed_in_float32(name: str, keys: tuple[str, ...]) -> None:
    """Cosines of what the encoders gave in half precision are sums of many products: rounded once, not in every one."""
    draw = torch.Generator().manual_seed(0)
    method = tiny.method(name, **({"mu": 1.0} if name == "fedpgp" else {"diversity": 1.0}))
    groups = method.config.groups if name == "fedmgp" else 0
    shape = (groups, 4, 16) if groups else (4, 16)
    made = {key: F.normalize(torch.randn(shape, generator=draw), dim=-1).bfloat16() for key in keys}
    anchor = F.normalize(torch.randn(4, 16, generator=draw), dim=-1)
    logits = torch.randn((4, groups, 4) if groups else (4, 4), generator=draw)
    half, full = (
        method.loss(Step(logits, torch.arange(4), {}, {}, features | {"anchor": anchor}, features))
        for features in (made, {key: value.float() for key, value in made.items()})
    )
    assert half.dtype == torch.float32
    assert torch.equal(half, full)


def test_classes_do_not_tie_at_the_top() -> None:
    """Cosines of 0.3 times exp(logit_scale) = 100: two classes whose logits differ by 0.05."""
    frozen = tiny.clip()
    frozen.logit_scale.fill_(torch.tensor(100.0).log())
    image = F.normalize(torch.randn(1000, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    text = F.normalize(image[:1] * 0.3 + F.normalize(torch.ones(20, 16), dim=-1), dim=-1)
    text = F.normalize(text + 1e-3 * torch.randn(20, 16, generator=torch.Generator().manual_seed(1)), dim=-1)
    with HALF.autocast():
        logits = frozen.similarity(image, text)
    best = logits.topk(2).values
    assert logits.dtype == torch.float32
    assert ((best[:, 0] - best[:, 1]) == 0).sum() == 0
    assert torch.equal(logits, frozen.similarity(image, text))


def test_the_gradient_of_confident_images_is_that_of_float32() -> None:
    """One minus the probability of the right class is the gradient: of 1 % of it nothing is left in bfloat16."""
    frozen, draw = tiny.clip(), torch.Generator().manual_seed(0)
    frozen.logit_scale.fill_(torch.tensor(100.0).log())
    text = F.normalize(torch.randn(20, 16, generator=draw), dim=-1).bfloat16().float()
    labels = torch.arange(64) % 20
    image = F.normalize(text[labels] + 0.25 * torch.randn(64, 16, generator=draw), dim=-1).bfloat16().float()
    found = []
    for device in (tiny.CPU, HALF):
        leaf = text.clone().requires_grad_()
        tuner = tiny.method("zero_shot").tuner(frozen, tiny.BASE, "{}")
        with device.autocast():
            logits = tuner.logits({}, {"text": leaf}, image)
        F.cross_entropy(logits.float(), labels).backward()
        assert leaf.grad is not None
        found.append(leaf.grad)
    assert float((found[1] - found[0]).norm() / found[0].norm()) < 1e-3


@pytest.mark.parametrize("name", ["promptfl", "pfedmma", "fedclip"])
def test_training_in_float16_is_refused(name: str) -> None:
    """Its small gradients are zero, and nothing scales the loss; evaluating what is not trained may use it."""
    half = Device(torch.device("cpu"), torch.float16, "float16")
    frozen, fed = tiny.clip(), tiny.federation()
    with pytest.raises(FedvlmError, match=rf"compute.dtype = 'float16' cannot train {name}.*'bfloat16' or 'float32'"):
        tiny.simulation(tiny.method(name), frozen, fed, device=half)
    tiny.simulation(tiny.method("zero_shot"), frozen, fed, device=half)
