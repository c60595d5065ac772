"""The gate against loops over classes, images and heads (pfedmoap.md 2.2-2.4)."""

from __future__ import annotations

import formulas
import pytest
import torch
from torch import Tensor

from fedvlm.errors import FedvlmError
from fedvlm.streams import torch_stream
from fedvlm.tuners import gate


def features(*shape: int, seed: int = 0) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch_stream(seed, "features")), dim=-1)


@pytest.mark.parametrize(
    ("width", "heads", "experts", "scaling"), [(16, 4, 3, 10.0), (8, 8, 1, 2.0), (32, 1, 5, 0.25), (16, 2, 2, 40.0)]
)
def test_logits_and_gradients_follow_the_formulas(width: int, heads: int, experts: int, scaling: float) -> None:
    total, step = 32, 32 // width
    image, text = features(5, total), features(experts, 4, total, seed=1)
    start = gate.init(width, torch_stream(0, "gate"))
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    pooled = text[:, :, ::step].transpose(0, 1).clone().requires_grad_()
    assert gate.stride(total, width) == step
    ours = gate.mixture_logits(leaves, image[:, ::step], *gate.keys_values(leaves, pooled, heads), scaling)
    true, double = formulas.doubled(start, train=True), text.double().requires_grad_()
    theirs = formulas.gate_logits(true, image.double(), double, width, heads, scaling)
    assert ours.shape == (5, 4)
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()
    weight = torch.randn(5, 4, generator=torch_stream(0, "weight"))
    (ours * weight).sum().backward()
    (theirs * weight.double()).sum().backward()
    for name, leaf in leaves.items():
        expected = true[name].grad if true[name].grad is not None else torch.zeros(leaf.shape)
        assert (leaf.grad - expected).abs().max() < 1e-4 * expected.abs().max() + 1e-6, name
    expected = double.grad[:, :, ::step].transpose(0, 1)  # type: ignore[index]
    assert (pooled.grad - expected).abs().max() < 1e-4 * expected.abs().max() + 1e-6  # type: ignore[operator]


def test_the_order_of_experts_does_not_matter() -> None:
    tensors = gate.init(16, torch_stream(0, "gate"))
    image, experts = features(3, 16), features(4, 5, 16, seed=1)
    out = [
        gate.mixture_logits(tensors, image, *gate.keys_values(tensors, experts[:, order], 4), 10.0)
        for order in ([0, 1, 2, 3, 4], [4, 2, 0, 1, 3])
    ]
    assert (out[0] - out[1]).abs().max() < 1e-6


def test_a_single_expert_is_read_whole_whatever_the_query() -> None:
    """The softmax over one expert is one: logit = <image, W_o (W_v t + b_v) + b_o>."""
    tensors = gate.init(16, torch_stream(0, "gate"))
    image, experts = features(3, 16), features(4, 1, 16, seed=1)
    out = gate.mixture_logits(tensors, image, *gate.keys_values(tensors, experts, 4), 10.0)
    value = experts[:, 0] @ tensors["gating.v.weight"].T + tensors["gating.v.bias"]
    expected = image @ (value @ tensors["gating.o.weight"].T + tensors["gating.o.bias"]).T
    assert (out - expected).abs().max() < 1e-6
    other = tensors | {"gating.q.weight": tensors["gating.q.weight"] + 1}
    assert (gate.mixture_logits(other, image, *gate.keys_values(other, experts, 4), 10.0) - out).abs().max() < 1e-6


def test_initial_tensors_are_those_of_a_linear_layer() -> None:
    """U(+-1/sqrt(R)): bounded by it, variance 1/(3R), uniform."""
    tensors = gate.init(128, torch_stream(0, "gate"))
    assert list(tensors) == [f"gating.{part}.{kind}" for part in "qkvo" for kind in ("weight", "bias")]
    bound = 128**-0.5
    for name, tensor in tensors.items():
        assert tensor.shape == ((128, 128) if name.endswith("weight") else (128,))
        assert tensor.abs().max() <= bound
        assert float(tensor.var()) == pytest.approx(bound**2 / 3, rel=6 / tensor.numel() ** 0.5)
        assert float(tensor.abs().max()) > bound * 0.95
    assert sum(tensor.numel() for tensor in tensors.values()) == 66_048


@pytest.mark.parametrize(("total", "width"), [(512, 1024), (512, 100), (512, 0 + 511)])
def test_a_width_that_does_not_divide_the_features_is_refused(total: int, width: int) -> None:
    with pytest.raises(FedvlmError, match=rf"{width} does not divide the {total}"):
        gate.stride(total, width)


@pytest.mark.parametrize(("total", "width", "step"), [(1024, 128, 8), (512, 128, 4), (512, 512, 1)])
def test_published_strides(total: int, width: int, step: int) -> None:
    assert gate.stride(total, width) == step


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    tensors = gate.init(16, torch_stream(0, "gate"))
    with pytest.raises(FedvlmError, match="heads"):
        gate.keys_values(tensors, features(2, 1, 16), 3)


@pytest.mark.parametrize("how", ["stride", "average"])
def test_pooling_is_of_channels_whatever_stands_before_them(how: gate.Pooling) -> None:
    """Of one client's features `[B, E]` and of several clients' or experts' `[C, B, E]` alike."""
    features = torch.randn(3, 5, 12, generator=torch_stream(0, "features"))
    expected = torch.stack([gate.pool(one, 4, how) for one in features])
    assert torch.equal(gate.pool(features, 4, how), expected)
    assert expected.shape == (3, 5, 3)
    assert torch.equal(expected[0, 0, 1], features[0, 0, 4] if how == "stride" else features[0, 0, 4:8].mean())


def test_weights_of_the_experts_follow_the_formula() -> None:
    """w_bkhm = softmax_m(scaling <q_bh, k_kmh>), one head after another."""
    heads, scaling = 2, 3.0
    tensors = {name: 3 * tensor for name, tensor in gate.init(8, torch_stream(0, "gate")).items()}
    image, experts = features(3, 8), features(4, 5, 8, seed=1)
    keys, _ = gate.keys_values(tensors, experts, heads)
    ours = gate.attention(tensors, image, keys, scaling)
    assert ours.shape == (3, 4, heads, 5)
    queries = image @ tensors["gating.q.weight"].T + tensors["gating.q.bias"]
    for head in range(heads):
        part = slice(4 * head, 4 * head + 4)
        for k in range(4):
            own = experts[k] @ tensors["gating.k.weight"].T + tensors["gating.k.bias"]
            expected = torch.softmax(scaling * queries[:, part] @ own[:, part].T, dim=-1)
            assert (ours[:, k, head] - expected).abs().max() < 1e-6
    assert ours.std(-1).max() > 0.01, "experts that differ have different weights"
