"""The multi-modal adapter against its formulas (formulas.adapter: x + ... + scale up(relu(shared(relu(down(LN1 x))))))."""

from __future__ import annotations

import formulas
import pytest
import torch
from torch import Tensor

from fedvlm.clip import FrozenCLIP, ParallelTo
from fedvlm.clip.packed import pack
from fedvlm.errors import FedvlmError
from fedvlm.streams import torch_stream
from fedvlm.testing import tiny
from fedvlm.tuners.adapter import Adapter, AdapterShape, branch

NAMES = ["red fox", "green_frog", "blue jay"]
TEMPLATE = "a photo of a {}."


@pytest.fixture(scope="module")
def clip() -> FrozenCLIP:
    return tiny.clip(tiny.vit_config(vision=(32, 5, 2, 64), text=(24, 4, 3, 48), patch=4))


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(2))


LABELS = torch.tensor([0, 2, 1, 1])


def random(adapter: Adapter, seed: int = 0) -> dict[str, Tensor]:
    """Biases not zero."""
    draw = torch_stream(seed, "adapter")
    return {name: 0.3 * torch.randn(tensor.shape, generator=draw) for name, tensor in adapter.init(draw).items()}


def logits(adapter: Adapter, tensors: dict[str, Tensor], pixels: Tensor) -> Tensor:
    return adapter.logits(
        tensors, adapter.classifier(tensors, adapter.prepare({})), adapter.clip.visual.hidden(pixels, adapter.entry)
    )


@pytest.mark.parametrize(("first", "last", "scale"), [(1, 4, 0.5), (2, 3, 1.0), (4, 4, 2.0), (1, 1, 1e-3)])
def test_logits_and_gradients_follow_the_formulas(
    clip: FrozenCLIP, pixels: Tensor, first: int, last: int, scale: float
) -> None:
    """Every parameter's gradient is the true one divided by scale (pfedmma.md 2.2), through all blocks above."""
    adapter = Adapter(clip, NAMES, AdapterShape(first, last, 4, scale), TEMPLATE)
    start = random(adapter)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    ours = logits(adapter, leaves, pixels)
    true = formulas.doubled(start, train=True)
    theirs = formulas.adapter_logits(clip, formulas.weights(clip), true, NAMES, pixels, first, last, scale)
    assert (ours - theirs).abs().max() < 2e-5 * theirs.abs().max()
    formulas.cross_entropy(theirs, LABELS).backward()
    torch.nn.functional.cross_entropy(ours, LABELS).backward()
    for name, leaf in leaves.items():
        expected = true[name].grad / scale
        assert (leaf.grad - expected).abs().max() < 2e-4 * expected.abs().max() + 1e-7, name


def test_the_adapter_is_live_in_both_encoders(clip: FrozenCLIP, pixels: Tensor) -> None:
    adapter = Adapter(clip, NAMES, AdapterShape(2, 3, 4, 1.0), TEMPLATE)
    start = random(adapter)
    plain = logits(adapter, start, pixels)
    for name in start:
        other = start | {name: start[name] + torch.linspace(-1, 1, start[name].numel()).view_as(start[name])}
        assert (logits(adapter, other, pixels) - plain).abs().max() > 1e-4, name


def pieces(seed: int = 0, width: int = 6, rank: int = 3) -> dict[str, tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    sizes = {"down": (rank, width), "shared": (rank, rank), "up": (width, rank)}
    return {
        name: (
            torch.randn(size, generator=draw, dtype=torch.float64),
            torch.randn(size[0], generator=draw, dtype=torch.float64),
        )
        for name, size in sizes.items()
    }


@pytest.mark.parametrize("scale", [1e-3, 1.0, 3.0])
def test_the_gradient_that_flows_on_is_exact(scale: float) -> None:
    """Against central differences of the branch, in float64."""
    parts = pieces()
    h = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight = torch.randn(5, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def value(x: Tensor) -> Tensor:
        return (branch(x, **parts, scale=scale) * weight).sum()

    leaf = h.clone().requires_grad_()
    value(leaf).backward()
    numeric, step = torch.zeros_like(h), 1e-6
    for place in range(h.numel()):
        shift = torch.zeros(h.numel(), dtype=torch.float64)
        shift[place] = step
        shift = shift.view_as(h)
        numeric.view(-1)[place] = (value(h + shift) - value(h - shift)) / (2 * step)
    assert (leaf.grad - numeric).abs().max() < 1e-7 * scale


@pytest.mark.parametrize("scale", [1e-3, 3.0])
def test_parameter_gradients_are_those_of_scale_one(scale: float) -> None:
    """Central differences with respect to every parameter, divided by scale."""
    parts = pieces()
    h = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def value(given: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
        return branch(h, **given, scale=scale).pow(2).sum() / scale

    leaves = {name: (w.clone().requires_grad_(), b.clone().requires_grad_()) for name, (w, b) in parts.items()}
    value(leaves).backward()
    for name, pair in leaves.items():
        for which, leaf in enumerate(pair):
            place, step = leaf.numel() // 2, 1e-6
            shift = torch.zeros(leaf.numel(), dtype=torch.float64)
            shift[place] = step
            moved = [
                parts
                | {name: tuple(t + sign * shift.view_as(t) if i == which else t for i, t in enumerate(parts[name]))}
                for sign in (1, -1)
            ]
            numeric = float(value(moved[0]) - value(moved[1])) / (2 * step)  # type: ignore[arg-type]
            assert float(leaf.grad.view(-1)[place]) == pytest.approx(numeric / scale, rel=1e-5, abs=1e-9)  # type: ignore[union-attr]


def test_the_forward_deviation_from_clip_grows_with_scale(clip: FrozenCLIP, pixels: Tensor) -> None:
    """baselines.md 23: O(scale), and the adapters' gradient does not depend on it to first order."""
    plain = clip.logits(clip.encode_image(pixels), clip.classifier(NAMES, TEMPLATE))
    deviations, gradients = [], []
    for scale in (1e-4, 1e-3):
        adapter = Adapter(clip, NAMES, AdapterShape(1, 4, 4, scale), TEMPLATE)
        leaves = {name: tensor.requires_grad_() for name, tensor in random(adapter).items()}
        out = logits(adapter, leaves, pixels)
        deviations.append(float((out - plain).detach().abs().max()))
        gradients.append(torch.autograd.grad(torch.nn.functional.cross_entropy(out, LABELS), list(leaves.values())))
    assert 7 < deviations[1] / deviations[0] < 13
    for a, b in zip(*gradients, strict=True):
        assert (a - b).abs().max() < 0.05 * b.abs().max() + 1e-6


def test_initial_tensors_are_drawn_as_released(clip: FrozenCLIP) -> None:
    """Kaiming normal, fan_out, ReLU gain: std = sqrt(2 / outputs); biases zero (pfedmma.md 2.4)."""
    large = Adapter(clip, NAMES, AdapterShape(1, 4, 64, 1e-3), TEMPLATE)
    start = large.init(torch_stream(0, "init"))
    assert len(start) == 4 * 10
    for part, outputs in (
        ("text.{}.down", 64),
        ("text.{}.up", 24),
        ("vision.{}.down", 64),
        ("vision.{}.up", 32),
        ("shared.{}", 64),
    ):
        values = torch.cat([start[f"{part.format(block)}.weight"].flatten() for block in range(1, 5)])
        assert float(values.std()) == pytest.approx((2 / outputs) ** 0.5, rel=5 / (2 * len(values)) ** 0.5)
        assert abs(float(values.mean())) < 5 * (2 / outputs / len(values)) ** 0.5
        assert all(float(start[f"{part.format(block)}.bias"].abs().sum()) == 0 for block in range(1, 5))
    assert all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in start.values())
    again = large.init(torch_stream(0, "init"))
    assert all(torch.equal(tensor, again[name]) for name, tensor in start.items())
    assert not torch.equal(start["shared.1.weight"], start["shared.2.weight"])


def test_the_class_list_does_not_change_the_start(clip: FrozenCLIP) -> None:
    shape = AdapterShape(2, 3, 4, 0.1)
    first, second = (Adapter(clip, names, shape, TEMPLATE).init(torch_stream(0, "init")) for names in (NAMES, ["cat"]))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_the_remembered_text_is_what_the_first_block_gets_and_gives(clip: FrozenCLIP) -> None:
    adapter = Adapter(clip, NAMES, AdapterShape(3, 4, 4, 0.1), TEMPLATE)
    ids, eot = clip.tokenizer(["a photo of a red fox.", "a photo of a green frog.", "a photo of a blue jay."])
    texts = pack(ids, eot)
    assert torch.equal(adapter.words, clip.text.hidden(clip.text.embed(texts.ids)[None], texts, ParallelTo(3)))
    assert torch.equal(adapter.texts.position[adapter.texts.end], eot)
    assert not adapter.words.requires_grad
    zero = {name: torch.zeros_like(tensor) for name, tensor in random(adapter).items()}
    plain = torch.nn.functional.normalize(clip.classifier(NAMES, TEMPLATE), dim=-1)
    assert (adapter.classifier(zero, {})["text"] - plain).abs().max() < 1e-6


def test_names_of_other_clients_tensors_are_not_needed(clip: FrozenCLIP, pixels: Tensor) -> None:
    """A tuner holds frozen things only: two clients' tensors through one tuner do not meet."""
    adapter = Adapter(clip, NAMES, AdapterShape(2, 3, 4, 1.0), TEMPLATE)
    one, two = random(adapter, 1), random(adapter, 2)
    first = logits(adapter, one, pixels)
    logits(adapter, two, pixels)
    assert torch.equal(logits(adapter, one, pixels), first)


@pytest.mark.parametrize(("first", "last"), [(0, 2), (3, 2), (1, 5), (5, 5)])
def test_blocks_that_are_not_in_both_encoders_are_refused(clip: FrozenCLIP, first: int, last: int) -> None:
    with pytest.raises(FedvlmError, match=rf"{first}\.\.{last} do not fit.*1\.\.4.*first_block.*last_block"):
        Adapter(clip, NAMES, AdapterShape(first, last, 4, 0.1), TEMPLATE)


def test_a_resnet_has_no_blocks() -> None:
    with pytest.raises(FedvlmError, match="ResNet"):
        Adapter(tiny.clip(tiny.resnet_config()), NAMES, AdapterShape(1, 1, 4, 0.1), TEMPLATE)


def test_a_class_name_too_long_for_the_template(clip: FrozenCLIP) -> None:
    with pytest.raises(FedvlmError, match="40 positions"):
        Adapter(clip, ["x" * 60], AdapterShape(1, 1, 4, 0.1), TEMPLATE)
