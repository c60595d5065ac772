"""Prompts that depend on the image (CoCoOp) or are made from the class names (FedTPG), against loops and torch.nn."""

from __future__ import annotations

import formulas
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedvlm.clip import FrozenCLIP, Patches
from fedvlm.data import Federation
from fedvlm.streams import torch_stream
from fedvlm.testing import tiny
from fedvlm.tuners.base import Tuner

LABELS = torch.tensor([0, 2, 1, 1, 3])


def random(tuner: Tuner, seed: int = 0) -> dict[str, Tensor]:
    draw = torch_stream(seed, "generator")
    return {name: 0.3 * torch.randn(tensor.shape, generator=draw) for name, tensor in tuner.init(draw).items()}


def cocoop_logits(clip: FrozenCLIP, fed: Federation, own: dict[str, Tensor], images: Tensor) -> Tensor:
    """Image by image: its own prompt, every class encoded anew."""
    w, rows = formulas.weights(clip), []
    for image in images.double():
        unit = image / image.pow(2).sum().sqrt()
        inner = (own["meta.down.weight"] @ unit + own["meta.down.bias"]).clamp(min=0)
        shift = own["meta.up.weight"] @ inner + own["meta.up.bias"]
        rows.append(20.0 * formulas.prompt_features(clip, w, own["prompt"] + shift, fed.base_names) @ unit)
    return torch.stack(rows)


def test_cocoop_is_a_loop_over_images(clip: FrozenCLIP, fed: Federation) -> None:
    tuner = tiny.method("cocoop").tuner(clip, fed.base_names, "")
    start, images = random(tuner), torch.randn(5, 16, generator=torch_stream(0, "images"))
    leaves, true = ({n: t.clone().requires_grad_() for n, t in start.items()}, formulas.doubled(start, train=True))
    ours, theirs = tuner.logits(leaves, {}, images), cocoop_logits(clip, fed, true, images)
    assert (ours - theirs).abs().max() < 2e-5 * theirs.abs().max()
    F.cross_entropy(ours, LABELS).backward()
    formulas.cross_entropy(theirs, LABELS).backward()
    for name, leaf in leaves.items():
        assert (leaf.grad - true[name].grad).abs().max() < 2e-4 * true[name].grad.abs().max() + 1e-6, name  # type: ignore[operator,union-attr]


@pytest.mark.parametrize("count", [1, 32, 70])
def test_cocoop_in_evaluation_takes_images_in_parts(count: int, clip: FrozenCLIP, fed: Federation) -> None:
    tuner = tiny.method("cocoop").tuner(clip, fed.base_names, "")
    start, images = random(tuner), torch.randn(count, 16, generator=torch_stream(0, "images"))
    with torch.no_grad():
        parts = tuner.logits(start, {}, images)
    assert parts.shape == (count, 4)
    assert (parts - tuner.logits({n: t.requires_grad_() for n, t in start.items()}, {}, images)).abs().max() < 1e-4


def test_cocoop_evaluates_clients_side_by_side_in_parts_too(clip: FrozenCLIP, fed: Federation) -> None:
    tuner = tiny.method("cocoop").tuner(clip, fed.base_names, "")
    starts = [random(tuner, seed) for seed in range(2)]
    images = torch.randn(2, 40, 16, generator=torch_stream(0, "images"))
    with torch.no_grad():
        together = tuner.logits({n: torch.stack([start[n] for start in starts]) for n in starts[0]}, {}, images)
        alone = [tuner.logits(start, {}, own) for start, own in zip(starts, images, strict=True)]
    assert (together - torch.stack(alone)).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["cocoop", "fedtpg", "fedotp", "fedpgp", "promptfolio", "fedper", "fedclip"])
def test_clients_side_by_side_are_clients_alone(name: str, clip: FrozenCLIP, fed: Federation) -> None:
    tuner = tiny.method(name).tuner(clip, fed.base_names, "a photo of a {}.")
    each = [random(tuner, seed) for seed in range(3)]
    images = torch.randn(
        3, 5, *((4,) if isinstance(tuner.entry, Patches) else ()), 16, generator=torch_stream(0, "images")
    )
    stacked = {key: torch.stack([one[key] for one in each]) for key in each[0]}
    together = tuner.logits(stacked, tuner.classifier(stacked, {}), images)
    for one, own, row in zip(each, images, together, strict=True):
        alone = tuner.logits(one, tuner.classifier(one, {}), own)
        assert (row - alone).abs().max() < 1e-4 * alone.abs().max()


class Reference(nn.Module):
    """baselines.md 16 from torch's modules: pre-LN cross-attention without a residual, then a GEGLU with one."""

    def __init__(self, width: int, joint: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(tokens, width))
        self.norms = nn.ModuleDict(
            {"query": nn.LayerNorm(width), "names": nn.LayerNorm(joint), "hidden": nn.LayerNorm(width)}
        )
        self.attention = nn.MultiheadAttention(width, heads, kdim=joint, vdim=joint, batch_first=True)
        self.rise, self.fall = nn.Linear(width, 8 * width), nn.Linear(4 * width, width)

    def forward(self, names: Tensor) -> Tensor:
        context = self.norms["names"](names)[None]
        mixed = self.attention(self.norms["query"](self.query)[None], context, context, need_weights=False)[0][0]
        value, gate = self.rise(self.norms["hidden"](mixed)).chunk(2, dim=-1)
        return mixed + self.fall(value * F.gelu(gate))

    def load(self, own: dict[str, Tensor]) -> None:
        state = {
            "query": own["query"],
            "attention.out_proj.weight": own["attention.o.weight"],
            "attention.out_proj.bias": own["attention.o.bias"],
        }
        for part in ("weight", "bias"):
            state |= {f"norms.{which}.{part}": own[f"norm.{which}.{part}"] for which in self.norms}
            state |= {f"rise.{part}": own[f"hidden.in.{part}"], f"fall.{part}": own[f"hidden.out.{part}"]}
        state |= {f"attention.{part}_proj_weight": own[f"attention.{part}.weight"] for part in "qkv"}
        state["attention.in_proj_bias"] = torch.cat([own[f"attention.{part}.bias"] for part in "qkv"])
        self.load_state_dict(state)


@pytest.mark.parametrize(("heads", "tokens"), [(4, 4), (2, 1), (1, 3)])
def test_fedtpg_is_made_of_torchs_layers(heads: int, tokens: int, clip: FrozenCLIP, fed: Federation) -> None:
    tuner = tiny.method("fedtpg", heads=heads, tokens=tokens).tuner(clip, fed.base_names, "")
    own = random(tuner)
    reference = Reference(24, 16, heads, tokens).double()
    reference.load({name: tensor.double() for name, tensor in own.items()})
    names = F.normalize(clip.classifier(fed.base_names, "{}"), dim=-1).double()
    leaves = {name: tensor.requires_grad_() for name, tensor in own.items()}
    ours, theirs = tuner.prompt(leaves), reference(names)  # type: ignore[attr-defined]
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()
    weight = torch.randn(ours.shape, generator=torch_stream(0, "weight"))
    (ours * weight).sum().backward()
    (theirs * weight.double()).sum().backward()
    for found, expected in [
        (leaves["query"].grad, reference.query.grad), (leaves["attention.v.weight"].grad, reference.attention.v_proj_weight.grad),
        (leaves["hidden.in.weight"].grad, reference.rise.weight.grad), (leaves["norm.names.bias"].grad, reference.norms["names"].bias.grad),
    ]:  # fmt: skip
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max()  # type: ignore[operator,union-attr]
    images = torch.randn(5, 16, generator=torch_stream(0, "images"))
    text = formulas.prompt_features(clip, formulas.weights(clip), theirs.detach(), fed.base_names)
    logits = tuner.logits(own, tuner.classifier(own, {}), images)
    assert (logits - 20 * formulas.cosines(images.double(), text)).abs().max() < 1e-3


def test_fedtpgs_prompt_follows_the_class_names(clip: FrozenCLIP, fed: Federation) -> None:
    """The base and the novel classes have their own prompts from the same tensors; the order of names is no matter."""
    method = tiny.method("fedtpg")
    base, turned, novel = (
        method.tuner(clip, names, "") for names in (fed.base_names, fed.base_names[::-1], fed.novel_names)
    )
    own = random(base)
    assert (base.prompt(own) - turned.prompt(own)).abs().max() < 1e-5  # type: ignore[attr-defined]
    assert (base.prompt(own) - novel.prompt(own)).abs().max() > 1e-3  # type: ignore[attr-defined]


def test_fedotp_matches_a_loop_over_images_and_classes(clip: FrozenCLIP, fed: Federation) -> None:
    """Scaling in the plain domain, one problem at a time; the gradient is that of <T, S> with T held fixed."""
    tuner = tiny.method("fedotp", mass=0.7, smoothing=0.1, iterations=30).tuner(clip, fed.base_names, "")
    start, w = tuner.init(torch_stream(0, "init")), formulas.weights(clip)
    leaves, true = ({n: t.clone().requires_grad_() for n, t in start.items()}, formulas.doubled(start, train=True))
    hidden = torch.randn(5, 6, 16, generator=torch_stream(0, "patches"))
    texts = [formulas.prompt_features(clip, w, true[f"prompt.{part}"], fed.base_names) for part in ("general", "own")]
    rows = []
    for image in F.normalize(hidden.double(), dim=-1):
        for k in range(4):
            similarity = torch.stack([image @ text[k] for text in texts], 1)
            kernel, v = torch.exp((similarity.detach() - 1) / 0.1), torch.ones(2, dtype=torch.float64)
            for _ in range(30):
                u = (1 / 6 / (kernel @ v)).clamp(max=1)
                v = 0.35 / (kernel.T @ u)
            rows.append(20 * (u[:, None] * kernel * v * similarity).sum())
    theirs = torch.stack(rows).view(5, 4)
    ours = tuner.logits(leaves, tuner.classifier(leaves, {}), hidden)
    assert (ours - theirs).abs().max() < 1e-4
    F.cross_entropy(ours, LABELS).backward()
    formulas.cross_entropy(theirs, LABELS).backward()
    for name, leaf in leaves.items():
        assert (leaf.grad - true[name].grad).abs().max() < 1e-3 * true[name].grad.abs().max(), name  # type: ignore[operator,union-attr]
