"""Settings that cannot be: what is just too much is refused in words, what just fits is accepted."""

from __future__ import annotations

from typing import Any

import pytest

from fedvlm.clip import FrozenCLIP
from fedvlm.errors import FedvlmError
from fedvlm.testing import tiny

NAMES = ["red fox", "blue jay"]
TEMPLATE = "a photo of a {}."


@pytest.mark.parametrize(("name", "fits", "too_much", "words"), [
    ("pfedmma", {"first_block": 3, "last_block": 3}, {"first_block": 3, "last_block": 2}, "first_block 3 comes after last_block 2"),
    ("fedlora", {"first_block": 3, "last_block": 3}, {"first_block": 3, "last_block": 2}, "first_block 3 comes after last_block 2"),
    ("fedper", {"tokens": 4, "shared_tokens": 4}, {"tokens": 4, "shared_tokens": 5}, "shared_tokens 5 is more than tokens 4"),
    ("fedmgp", {"groups": 3, "sent": 3}, {"groups": 3, "sent": 4}, "sent 4 is more than groups 3"),
    ("pfedmoap", {"gate_width": 16, "heads": 16}, {"gate_width": 16, "heads": 5}, "gate_width 16 is not a multiple of heads 5"),
    ("pfedmoap", {"gate_width": 16, "heads": 5, "gate": "linear"}, {"gate_width": 16, "heads": 5}, "not a multiple"),
])  # fmt: skip
def test_settings_that_do_not_go_together(
    name: str, fits: dict[str, Any], too_much: dict[str, Any], words: str
) -> None:
    tiny.method(name, **fits)
    with pytest.raises(FedvlmError, match=words):
        tiny.method(name, **too_much)


@pytest.mark.parametrize(("name", "fits", "too_much", "words"), [
    # The image encoder has 3 blocks, the text encoder 4 and width 24.
    ("maple", {"depth": 3}, {"depth": 4}, r"depth 4, but both encoders have blocks 1\.\.3"),
    ("pfedmma", {"first_block": 1, "last_block": 3}, {"first_block": 1, "last_block": 4}, r"blocks 1\.\.4"),
    ("fedlora", {"first_block": 1, "last_block": 3}, {"first_block": 1, "last_block": 4}, r"blocks 1\.\.4 do not fit"),
    ("fedtpg", {"heads": 8}, {"heads": 5}, "5 heads do not divide the text width 24"),
    ("pfedmoap", {"gate_width": 16}, {"gate_width": 32}, "gate width 32 does not divide the 16 channels"),
    ("pfedmoap", {"gate_width": 4}, {"gate_width": 6}, "gate width 6 does not divide the 16 channels"),
    ("promptfl", {"init_text": "cat of dog", "tokens": 3}, {"init_text": "cat of dog", "tokens": 4}, "'cat of dog', which is 3 tokens, but has 4"),
    ("maple", {"start": "cat of", "length": 2}, {"start": "cat", "length": 2}, "'cat', which is 1 tokens, but has 2"),
])  # fmt: skip
def test_settings_that_do_not_fit_the_model(
    clip: FrozenCLIP, name: str, fits: dict[str, Any], too_much: dict[str, Any], words: str
) -> None:
    tiny.method(name, **fits).tuner(clip, NAMES, TEMPLATE)
    with pytest.raises(FedvlmError, match=words):
        tiny.method(name, **too_much).tuner(clip, NAMES, TEMPLATE)


@pytest.mark.parametrize("name", ["pfedmma", "fedlora", "maple", "fedmgp"])
def test_what_changes_blocks_needs_them(name: str) -> None:
    with pytest.raises(FedvlmError, match="transformer blocks in both encoders; this CLIP's image encoder is a ResNet"):
        tiny.method(name).tuner(tiny.clip(tiny.resnet_config()), NAMES, TEMPLATE)


def test_a_tensor_without_a_rate_is_a_mistake() -> None:
    """Every trained tensor has its rate by the first pattern that matches."""
    method = tiny.method("pfedmoap", lr=0.3, gate_lr=0.7)
    assert (method.rate("gating.q.bias"), method.rate("prompt")) == (0.7, 0.3)
    method.rates = {"gating.*": "gate_lr"}  # type: ignore[misc]
    with pytest.raises(KeyError, match="prompt"):
        method.rate("prompt")
