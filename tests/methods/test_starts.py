"""From which distributions tensors start, against the papers and their released code, not by way of our own draws.

`N(s)` is normal with mean 0 and deviation s, `U(b)` uniform in -b..b. Widths of the tiny CLIP: text 24, image 32,
joint 16; the tiny settings have rank 4 and a gate of width 8.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fedvlm.clip import FrozenCLIP
from fedvlm.methods import known
from fedvlm.streams import torch_stream
from fedvlm.tensors import matches
from fedvlm.testing import tiny

TEXT, IMAGE, JOINT, RANK, GATE = 24, 32, 16, 4, 8
DRAWN = {"tokens": 8, "init_text": None, "start": None}
"""No start at words."""

STARTS: list[tuple[str, dict[str, Any], str, str, float]] = [
    *((name, {}, "*", "N", 0.02) for name in ("coop", "promptfl", "kgcoop", "fedamp", "fedper", "fedotp", "promptfolio")),
    ("fedpgp", {"product_rank": 4}, "sigma", "N", 0.02),
    ("fedpgp", {"product_rank": 4}, "[uv]", "N", 0.02),
    ("fedpgp", {"spread": 0.1}, "[uv]", "N", 0.1),
    ("pfedmoap", {}, "prompt", "N", 0.02),
    ("pfedmoap", {}, "gating.*", "U", GATE**-0.5),
    ("pfedmoap", {"gate": "linear"}, "gating.*", "U", GATE**-0.5),
    ("cocoop", {}, "prompt", "N", 0.02),
    ("cocoop", {}, "meta.down.*", "U", JOINT**-0.5),
    ("fedclip", {}, "gate.*", "U", JOINT**-0.5),
    ("maple", {"length": 4, "depth": 3}, "text.*", "N", 0.02),
    ("maple", {"length": 4, "depth": 3}, "projection.*", "U", TEXT**-0.5),
    ("fedtpg", {}, "query", "N", 0.02),
    ("fedtpg", {}, "attention.q.weight", "U", (6 / (TEXT + TEXT)) ** 0.5),
    ("fedtpg", {}, "attention.[kv].weight", "U", (6 / (JOINT + TEXT)) ** 0.5),
    ("fedtpg", {}, "attention.o.weight", "U", TEXT**-0.5),
    ("fedtpg", {}, "attention.*.bias", "U", 0.0),
    ("fedtpg", {}, "norm.*.bias", "U", 0.0),
    ("fedtpg", {}, "hidden.in.*", "U", TEXT**-0.5),
    ("fedtpg", {}, "hidden.out.*", "U", (4 * TEXT) ** -0.5),
    ("fedmgp", {"noise": 0.0}, "text.*", "N", 0.02),
    ("fedmgp", {"noise": 0.03}, "text.*", "N", (0.02**2 + 0.03**2) ** 0.5),
    ("fedmgp", {}, "vision.*", "N", 0.02),
    ("fedlora", {}, "text.*.a", "U", TEXT**-0.5),
    ("fedlora", {}, "vision.*.a", "U", IMAGE**-0.5),
    ("fedlora", {}, "*.b", "U", 0.0),
    ("pfedmma", {}, "*.down.weight", "N", (2 / RANK) ** 0.5),
    ("pfedmma", {}, "shared.*.weight", "N", (2 / RANK) ** 0.5),
    ("pfedmma", {}, "text.*.up.weight", "N", (2 / TEXT) ** 0.5),
    ("pfedmma", {}, "vision.*.up.weight", "N", (2 / IMAGE) ** 0.5),
    ("pfedmma", {}, "*.bias", "U", 0.0),
]  # fmt: skip


def drawn(clip: FrozenCLIP, name: str, settings: dict[str, Any], pattern: str) -> Tensor:
    """Every number of these tensors, of forty starts."""
    known_settings = known()[name].Config.model_fields
    made = tiny.method(name, **{key: value for key, value in DRAWN.items() if key in known_settings} | settings)
    tuner = made.tuner(clip, ["red fox", "blue jay"], "a photo of a {}.")
    starts = [tuner.init(torch_stream(seed, "init")) for seed in range(40)]
    parts = [tensor.flatten() for start in starts for key, tensor in start.items() if matches(key, [pattern])]
    return torch.cat(parts).double()


@pytest.mark.parametrize(("name", "settings", "pattern", "kind", "size"), STARTS)
def test_tensors_start_from_the_published_distribution(
    clip: FrozenCLIP, name: str, settings: dict[str, Any], pattern: str, kind: str, size: float
) -> None:
    values = drawn(clip, name, settings, pattern)
    if not size:
        assert not values.any()
        return
    spread = size if kind == "N" else size / 3**0.5
    count = len(values)
    assert count > 500
    # Five standard errors of a mean and of a deviation.
    assert abs(float(values.mean())) < 5 * spread / count**0.5
    assert float(values.std()) == pytest.approx(spread, rel=5 / (2 * count) ** 0.5)
    if kind == "U":
        assert 0.97 * size < float(values.abs().max()) <= size
    else:
        assert float(values.abs().max()) > 2.5 * size


def test_fedtpgs_attention_starts_as_torchs_where_all_widths_are_equal() -> None:
    """`nn.MultiheadAttention` then draws q, k and v as one matrix `[3 D, D]`: Xavier's bound is (6 / 4 D)^(1/2)."""
    clip = tiny.clip(tiny.vit_config(embed=TEXT))
    theirs = torch.nn.MultiheadAttention(TEXT, 2).in_proj_weight.detach()
    for part in "qkv":
        values = drawn(clip, "fedtpg", {}, f"attention.{part}.weight")
        assert values.abs().max() == pytest.approx(float(theirs.abs().max()), rel=0.02)
        assert values.abs().max() <= (6 / (4 * TEXT)) ** 0.5
