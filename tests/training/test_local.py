"""The one training loop against plain loops: PyTorch's own, and SGD written out in float64 over naive formulas."""

from __future__ import annotations

import math
from typing import Any

import formulas
import numpy as np
import pytest
import torch
from torch import Tensor

from fedvlm.clip import FrozenCLIP
from fedvlm.errors import FedvlmError
from fedvlm.methods.base import Config, Method
from fedvlm.streams import torch_stream
from fedvlm.tensors import digest
from fedvlm.testing import tiny
from fedvlm.training.device import Device
from fedvlm.training.local import epoch_batches, schedule_factor, train
from fedvlm.training.optimizers import make_optimizer

NAMES = ["red fox", "green_frog", "blue jay"]


@pytest.fixture(scope="module")
def clip() -> FrozenCLIP:
    return tiny.clip()


def data(
    clip: FrozenCLIP, entry: int, steps: int = 5
) -> tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
    """The same batches as pixels and as activations; the last is smaller."""
    draw = torch_stream(0, "batches")
    pixels = [(torch.randn(4 if n < steps - 1 else 1, 3, 16, 16, generator=draw)) for n in range(steps)]
    labels = [torch.randint(0, 3, (len(x),), generator=draw) for x in pixels]
    return list(zip(pixels, labels, strict=True)), [
        (clip.visual.hidden(x, entry), y) for x, y in zip(pixels, labels, strict=True)
    ]


def settings(method: Method) -> Any:
    return method.config


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adapters_learn_as_written_out(clip: FrozenCLIP, decay: float) -> None:
    """The rate acts as rate / scale and the decay as decay x scale (pfedmma.md 2.2), biases decay too."""
    method = tiny.method("pfedmma", weight_decay=decay, lr=0.002)
    tuner = method.tuner(clip, NAMES, "a photo of a {}.")
    start = tuner.init(torch_stream(0, "init"))
    pixels, batches = data(clip, tuner.entry)
    done = train(method, tuner, start, {}, batches, tiny.CPU)
    w = formulas.weights(clip)

    def loss(tensors: Any, batch: Any) -> Tensor:
        logits = formulas.adapter_logits(clip, w, tensors, NAMES, batch[0], 2, 3, 0.1)
        return formulas.cross_entropy(logits, batch[1])

    expected, losses = formulas.sgd(start, pixels, loss, lambda _: 0.002, 0.9, decay, gain=1 / 0.1)
    assert done.losses == pytest.approx(losses, rel=1e-4)
    for name, tensor in expected.items():
        assert (done.tensors[name] - tensor).abs().max() < 5e-4 * tensor.abs().max(), name
        assert (done.tensors[name] - start[name]).abs().max() > 1e-6


@pytest.mark.parametrize("others", [0, 2])
def test_prompt_and_gate_learn_as_written_out(clip: FrozenCLIP, others: int) -> None:
    """Two rates; without experts the gate is left alone, not even decayed."""
    method = tiny.method("pfedmoap", lr=0.02, gate_lr=0.05, weight_decay=0.01)
    tuner = method.tuner(clip, NAMES, "")
    start = tuner.init(torch_stream(0, "init"))
    prompts = [torch.randn(3, 24, generator=torch_stream(n, "expert")) for n in range(others)]
    received = {f"experts.{n}": prompt for n, prompt in enumerate(prompts)}
    pixels, batches = data(clip, tuner.entry)
    done = train(method, tuner, start, received, batches, tiny.CPU)
    w = formulas.weights(clip)

    def loss(tensors: Any, batch: Any) -> Tensor:
        logits = formulas.mixture_logits(
            clip, w, tensors, [p.double() for p in prompts], NAMES, batch[0], width=8, heads=2, scaling=10.0, weight=0.5
        )
        return formulas.cross_entropy(logits, batch[1])

    expected, losses = formulas.sgd(start, pixels, loss, lambda name: 0.02 if name == "prompt" else 0.05, 0.9, 0.01)
    assert done.losses == pytest.approx(losses, rel=1e-4)
    for name, tensor in expected.items():
        assert (done.tensors[name] - tensor).abs().max() < 2e-4 * tensor.abs().max(), name
        if not others and name != "prompt":
            assert torch.equal(done.tensors[name], start[name])


@pytest.mark.parametrize("factor", [1.0, 0.25, 0.0])
def test_the_factor_multiplies_every_rate(clip: FrozenCLIP, factor: float) -> None:
    method = tiny.method("pfedmoap", lr=0.4, gate_lr=0.8)
    leaves = {"prompt": torch.zeros(1, requires_grad=True), "gating.q.bias": torch.zeros(1, requires_grad=True)}
    made = make_optimizer(method, leaves, factor)
    assert made.rates == {"prompt": 0.4 * factor, "gating.q.bias": 0.8 * factor}
    assert made.leaves == leaves
    # That there is neither dampening nor Nesterov's step is in test_optimizers, against torch's classes.
    assert (made.config.momentum, made.config.weight_decay) == (0.9, 5e-4)
    tuner = tiny.method("promptfl").tuner(clip, NAMES, "")
    start = tuner.init(torch_stream(0, "init"))
    _, batches = data(clip, tuner.entry)
    done = train(tiny.method("promptfl"), tuner, start, {}, batches, tiny.CPU, factor)
    assert torch.equal(done.tensors["prompt"], start["prompt"]) == (factor == 0)


def test_every_visit_has_its_own_optimizer_and_touches_nothing_passed_in(clip: FrozenCLIP) -> None:
    method = tiny.method("pfedmma")
    tuner = method.tuner(clip, NAMES, "a photo of a {}.")
    start = tuner.init(torch_stream(0, "init"))
    received = {"shared.2.weight": start["shared.2.weight"]}
    _, batches = data(clip, tuner.entry)
    before = digest(start), digest(received), digest({str(n): b[0] for n, b in enumerate(batches)})
    first = train(method, tuner, start, received, batches, tiny.CPU)
    second = train(method, tuner, start, received, batches, tiny.CPU)
    assert digest(first.tensors) == digest(second.tensors)
    assert first.losses == second.losses
    assert (digest(start), digest(received), digest({str(n): b[0] for n, b in enumerate(batches)})) == before
    assert not any(tensor.requires_grad or tensor.grad_fn for tensor in first.tensors.values())


def test_a_visit_without_batches_changes_nothing(clip: FrozenCLIP) -> None:
    method = tiny.method("promptfl")
    tuner = method.tuner(clip, NAMES, "")
    start = tuner.init(torch_stream(0, "init"))
    done = train(method, tuner, start, {}, [], tiny.CPU)
    assert done.losses == []
    assert torch.equal(done.tensors["prompt"], start["prompt"])


def test_the_loss_sees_what_was_received(clip: FrozenCLIP) -> None:
    """FedProx is one line in a method's file: the gradient of (mu/2)|p - p_g|^2 is mu (p - p_g) (baselines.md 23)."""
    method = tiny.method("promptfl", momentum=0.0, weight_decay=0.0, lr=0.1)
    method.loss = lambda step: 0.5 * 3.0 * (step.trained["prompt"] - step.received["prompt"]).square().sum()  # type: ignore[method-assign]
    tuner = method.tuner(clip, NAMES, "")
    start = tuner.init(torch_stream(0, "init"))
    anchor = {"prompt": torch.ones(3, 24)}
    _, batches = data(clip, tuner.entry, steps=1)
    done = train(method, tuner, start, anchor, batches, tiny.CPU)
    expected = start["prompt"] - 0.1 * 3.0 * (start["prompt"] - 1)
    assert (done.tensors["prompt"] - expected).abs().max() < 1e-6


def test_a_loss_that_is_no_number_is_told(clip: FrozenCLIP) -> None:
    method = tiny.method("promptfl", lr=1e30)
    tuner = method.tuner(clip, NAMES, "")
    _, batches = data(clip, tuner.entry)
    with pytest.raises(FedvlmError, match=r"promptfl.*no longer finite.*learning rate"):
        train(method, tuner, tuner.init(torch_stream(0, "init")), {}, batches, tiny.CPU)


def test_a_last_step_that_ends_in_no_number_is_told(clip: FrozenCLIP) -> None:
    method = tiny.method("coop", lr=1e38, weight_decay=0.5, momentum=0.0)
    tuner = method.tuner(clip, NAMES, "")
    start = {"prompt": torch.full((3, 24), 1e3)}
    _, batches = data(clip, tuner.entry, steps=1)
    with pytest.raises(FedvlmError, match="no longer"):
        train(method, tuner, start, {}, batches, tiny.CPU)


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_reduced_precision_is_for_the_frozen_part_only(clip: FrozenCLIP, dtype: torch.dtype) -> None:
    for name in ("pfedmma", "pfedmoap", "promptfl"):
        method = tiny.method(name)
        tuner = method.tuner(clip, NAMES, "a photo of a {}.")
        start = tuner.init(torch_stream(0, "init"))
        _, batches = data(clip, tuner.entry)
        full = train(method, tuner, start, {}, batches, tiny.CPU)
        low = train(method, tuner, start, {}, batches, Device(torch.device("cpu"), dtype))
        assert {tensor.dtype for tensor in low.tensors.values()} == {torch.float32}
        assert low.losses[0] == pytest.approx(full.losses[0], rel=0.05)
        assert low.losses != full.losses


@pytest.mark.parametrize(("images", "batch", "drop", "sizes"), [
    (10, 4, False, [4, 4, 2]), (10, 4, True, [4, 4]), (8, 4, True, [4, 4]), (3, 4, True, [3]), (4, 4, True, [4]), (3, 4, False, [3]),
    (5, 1, True, [1] * 5), (0, 4, False, []), (0, 4, True, []),
])  # fmt: skip
def test_batches_of_an_epoch(images: int, batch: int, drop: bool, sizes: list[int]) -> None:
    """An incomplete last batch is left out on request, where there is a full one (pfedmma.md 3, drop_last)."""
    cut = epoch_batches(images, batch, drop, tiny.draws("order"))
    assert [len(part) for part in cut] == sizes
    places = [place for part in cut for place in part]
    assert len(set(places)) == len(places)
    assert set(places) <= set(range(images))
    if not drop:
        assert sorted(places) == list(range(images))


def test_every_order_is_as_likely() -> None:
    counts = np.zeros((5, 5))
    for number in range(2000):
        images = [image for batch in epoch_batches(5, 2, False, tiny.draws("order", number)) for image in batch]
        counts[range(5), images] += 1
    assert abs(counts - 400).max() < 5 * (2000 * 0.2 * 0.8) ** 0.5


def test_the_cosine_schedule_by_hand() -> None:
    """4 rounds: 1, (1 + sqrt(1/2))/2, 1/2, (1 - sqrt(1/2))/2: the first full, the one after the last would be zero."""
    cosine, constant = Config(schedule="cosine"), Config()
    values = [schedule_factor(cosine, round_, 4) for round_ in range(4)]
    assert values == pytest.approx([1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2])
    assert schedule_factor(cosine, 0, 1) == 1.0
    assert {schedule_factor(constant, round_, 4) for round_ in range(4)} == {1.0}


def test_a_tensor_that_is_no_longer_finite_is_named(clip: FrozenCLIP) -> None:
    method = tiny.method("pfedmoap")
    tuner = method.tuner(clip, NAMES, "")
    start = tuner.init(torch_stream(0, "init"))
    _, batches = data(clip, tuner.entry)
    broken = start | {"gating.q.bias": torch.full_like(start["gating.q.bias"], torch.nan)}
    with pytest.raises(FedvlmError, match=r"'gating.q.bias' is no longer finite"):
        train(method, tuner, broken, {}, batches, tiny.CPU)


def test_a_loss_that_is_no_number_although_every_tensor_is(clip: FrozenCLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    method = tiny.method("promptfl")
    tuner = method.tuner(clip, NAMES, "")
    monkeypatch.setattr(method, "loss", lambda step: (step.logits * 0).sum() + torch.inf)
    with pytest.raises(FedvlmError, match="promptfl: its loss is no longer finite"):
        train(method, tuner, tuner.init(torch_stream(0, "init")), {}, data(clip, tuner.entry)[1], tiny.CPU)
