"""Default settings against the papers and their released code, value by value.

Sources: the paper or the released code, as read; the numbers behind the names are sections of the notes of this
project on pFedMMA (MMA), pFedMoAP (MOAP) and the other methods (B).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from fedvlm.config import Section
from fedvlm.methods import build, known
from fedvlm.methods.base import Config

NOT_GIVEN = "not given"
SAME = object()


class Row(NamedTuple):
    """One setting: what was published, where it was read, and what is the default here if that is something else."""

    methods: str
    setting: str
    published: Any
    source: str
    ours: Any = SAME
    why: str = ""


ADAPTERS, LORAS = "pfedmma fedmma local_mma", "local_lora fedlora ffa_lora fedsa_lora"
PROMPTS = "coop promptfl promptfl_ft promptfl_prox fedper fedamp pfedprompt fedotp pfedmoap"
ONE_RATE = "pFedMoAP's comparison trains every prompt alike: rate 0.002, 5 epochs, batch 16, 16 tokens"

TABLE = [
    Row(ADAPTERS, "optimizer", "sgd", "code, MMA 3"),
    Row(ADAPTERS, "lr", 1e-3, "code, MMA 3"),
    Row(ADAPTERS, "schedule", "constant", "code: single step of factor 1, MMA 3"),
    Row(ADAPTERS, "momentum", 0.9, "code, MMA 3"),
    Row(ADAPTERS, "weight_decay", 5e-4, "code, MMA 3"),
    Row(ADAPTERS, "epochs", 2, "paper: 50 rounds of 2, MMA 3"),
    Row(ADAPTERS, "batch", 32, "code, command line of the script that runs, MMA 3"),
    Row(ADAPTERS, "first_block", 5, "code, counted from 1, MMA 2.3"),
    Row(ADAPTERS, "last_block", 12, "code, both ends adapted, MMA 2.3"),
    Row(ADAPTERS, "rank", 32, "paper and code, MMA 2.5"),
    Row(ADAPTERS, "scale", 1e-3, "code, MMA 2.2"),
    Row(ADAPTERS, "drop_last", True, "code, MMA 3", False, "16 of 80 images an epoch would go unused; a setting"),
    Row("pfedmoap", "lr", 0.002, "paper and code, MOAP 3.3"),
    Row("pfedmoap", "gate_lr", 0.01, "paper and code, MOAP 3.3"),
    Row("pfedmoap", "optimizer", "sgd", "paper, MOAP 3.3"),
    Row("pfedmoap", "momentum", 0.9, "code, MOAP 3.3"),
    Row("pfedmoap", "weight_decay", 5e-4, "code, MOAP 3.3"),
    Row("pfedmoap", "schedule", "cosine over local epochs, stepped by every client", "code, MOAP 3.3", "constant",
        "released, clients take turns at high and low rates"),
    Row("pfedmoap", "experts", 10, "code, MOAP 3.2"),
    Row("pfedmoap", "select", "nearest", "paper, MOAP 3.1"),
    Row("pfedmoap", "gate", "attention", "paper, MOAP 2.3"),
    Row("pfedmoap", "gate_width", 128, "paper, MOAP 2.2"),
    Row("pfedmoap", "pooling", "stride", "code, MOAP 2.2"),
    Row("pfedmoap", "heads", 8, "code, MOAP 2.3"),
    Row("pfedmoap", "scaling", 10.0, "code, MOAP 2.3"),
    Row("pfedmoap", "local_weight", 0.5, "paper, MOAP 2.4"),
    Row(PROMPTS, "tokens", 16, "paper and code, MOAP 2.1; B 4, 8, 13, 14"),
    Row(PROMPTS, "init_text", None, "code: N(0, 0.02^2), MOAP 2.1; B 4"),
    Row(PROMPTS, "class_position", "end", "code, MOAP 2.1; B 4"),
    Row(PROMPTS, "epochs", 5, "paper, MOAP 3.3; B 13"),
    Row(PROMPTS, "batch", 16, "code: the number of shots, MOAP 3.3; B 8, 13"),
    Row("promptfolio", "tokens", 8, "code, B 15", 16, ONE_RATE),
    Row("promptfolio", "epochs", 5, "code, B 15"),
    Row("promptfolio", "batch", NOT_GIVEN, "B 15", 16, ONE_RATE),
    Row("fedpgp", "tokens", 16, "code, B 14"),
    Row("fedpgp", "epochs", 2, "code, B 14", 5, ONE_RATE),
    Row("fedpgp", "batch", 16, "code: the number of shots, 8 or 16, B 14"),
    Row("cocoop kgcoop", "epochs", "10 and 100, of central training", "code, B 5, 7", 5, ONE_RATE),
    Row("cocoop kgcoop", "batch", "1 and 128, of central training", "code, B 5, 7", 16, ONE_RATE),
    Row("coop promptfl promptfl_ft promptfl_prox fedper promptfolio", "lr", 0.002, "paper, MOAP 3.3; B 1, 15"),
    Row("promptfl_prox", "mu", 0.5, "code of pFedMoAP and FedOTP, B 9"),
    Row("promptfl_ft", "fine_tune", NOT_GIVEN, "B 10", 1, "one more visit, from which nothing is sent"),
    Row("fedper", "common", 8, "code of PromptFolio: half of the tokens, B 11"),
    Row("fedamp", "attraction", NOT_GIVEN, "B 11", 0.9, "below 1, so that twins keep something of their own"),
    Row("fedamp", "decay", NOT_GIVEN, "B 11", 1.0, "the pull as it stands in the formula"),
    Row("pfedprompt tip_adapter", "weight", 1.0, "Tip-Adapter, B 12"),
    Row("pfedprompt tip_adapter", "sharpness", 5.5, "Tip-Adapter, B 12"),
    Row("cocoop kgcoop", "lr", 0.002, "code, B 5, 7"),
    Row("cocoop kgcoop", "tokens", 4, "code, B 5, 7"),
    Row("cocoop kgcoop", "init_text", "a photo of a", "code, B 5, 7"),
    Row("kgcoop", "weight", 8.0, "code, B 7"),
    Row("kgcoop", "anchor", "the data set's own template", "code, B 7", None, "the experiment's one template"),
    Row("maple", "lr", 0.0035, "code, B 6"),
    Row("maple", "length", 2, "code, B 6"),
    Row("maple", "start", "a photo", "code: the first two tokens of 'a photo of a', B 6"),
    Row("maple", "suffix", "of a {}.", "code: 'of a' stays as text, B 6"),
    Row("maple", "depth", 9, "code, B 6"),
    Row("fedotp", "mass", 0.8, "code, B 13"),
    Row("fedotp", "smoothing", 0.01, "code, few-shot; 0.1 for CIFAR, B 13", 0.1, "the few-shot value underflows there"),
    Row("fedotp", "steps", 100, "code: at most, B 13", 20, "enough for the limit at this mass, tests/tuners"),
    Row("fedotp fedpgp", "lr", 0.001, "code, B 13, 14", 0.002, ONE_RATE),
    Row("fedpgp", "product_rank", 8, "code, B 14"),
    Row("fedpgp", "mu", 0.5, "code, script, B 14"),
    Row("fedpgp", "temperature", 0.5, "code and paper, B 14"),
    Row("fedpgp", "spread", 0.02, "code: N(0, 0.02^2), B 14"),
    Row("promptfolio", "theta", 0.4, "code, example, B 15"),
    Row("fedtpg", "lr", 0.003, "code, B 16"),
    Row("fedtpg", "schedule", "cosine", "code, by round, B 16"),
    Row("fedtpg", "momentum", 0.9, "code, B 16"),
    Row("fedtpg", "weight_decay", 1e-5, "code, B 16"),
    Row("fedtpg", "epochs", 1, "code: one pass a round, B 16"),
    Row("fedtpg", "tokens", 4, "code, B 16"),
    Row("fedtpg", "heads", 4, "code, B 16"),
    Row("fedclip", "lr", 5e-5, "code, B 17"),
    Row("fedclip", "optimizer", "adam", "code, B 17"),
    Row("fedclip", "momentum", 0.9, "code: first beta, B 17"),
    Row("fedclip", "second_momentum", 0.98, "code: second beta, B 17"),
    Row("fedclip", "weight_decay", 0.2, "code, B 17"),
    Row("fedclip", "batch", 32, "code, B 17"),
    Row("fedclip", "epochs", 1, "code: 200 rounds of 1, B 17"),
    Row("fedclip", "template", "a picture of a {}", "code, B 17"),
    Row("fedclip", "objective", "contrastive", "code, B 17"),
    Row(LORAS, "lr", 2e-4, "code of CLIP-LoRA, B 19"),
    Row(LORAS, "optimizer", "adamw", "code of CLIP-LoRA, B 19"),
    Row(LORAS, "momentum", 0.9, "torch's first beta; CLIP-LoRA names no other"),
    Row(LORAS, "second_momentum", 0.999, "torch's second beta; CLIP-LoRA names no other"),
    Row(LORAS, "weight_decay", 0.01, "code of CLIP-LoRA, B 19"),
    Row(LORAS, "batch", 32, "code of CLIP-LoRA, B 19"),
    Row(LORAS, "lora_rank", 2, "code of CLIP-LoRA, B 19"),
    Row(LORAS, "alpha", 1.0, "code of CLIP-LoRA, B 19"),
    Row(LORAS, "projections", "qkv", "code of CLIP-LoRA, B 19"),
    Row(LORAS, "first_block", 1, "code of CLIP-LoRA: all blocks, B 19"),
    Row(LORAS, "last_block", None, "code of CLIP-LoRA: all blocks, B 19"),
    Row("fedmgp", "lr", 0.001, "paper and code, B 21"),
    Row("fedmgp", "epochs", 2, "paper and code, B 21"),
    Row("fedmgp", "batch", 8, "paper and code, B 21"),
    Row("fedmgp", "groups", 5, "paper and code, B 21"),
    Row("fedmgp", "sent", 2, "paper and code, B 21"),
    Row("fedmgp", "length", 2, "paper and code, B 21"),
    Row("fedmgp", "diversity", 1.0, "paper and code, B 21"),
    Row("fedmgp", "temperature", 1.0, "paper: a plain softmax of cosines, B 21"),
    Row("fedmgp", "noise", NOT_GIVEN, "-", 0.01, "half of N(0, 0.02^2): groups start apart, near their words"),
    Row("gaussian", "weight", NOT_GIVEN, "chosen for each data set in the paper", 1.0, "the sum as it stands"),
    Row("zero_shot_prior", "weight", NOT_GIVEN, "a control of ours", 1.4, "4 logits for 16 images of 2 of 20 classes"),
]  # fmt: skip


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.methods.split()[0]}-{row.setting}")
def test_a_default_is_what_was_published_or_says_why_not(row: Row) -> None:
    expected = row.published if row.ours is SAME else row.ours
    for name in row.methods.split():
        assert getattr(build(name).config, row.setting) == expected, name  # type: ignore[attr-defined]
    assert row.source
    assert bool(row.why) == (row.ours is not SAME)


def test_every_number_that_a_method_brings_is_in_the_table() -> None:
    """A new setting needs its row."""
    listed = {(known()[name].Config, row.setting) for row in TABLE for name in row.methods.split()}
    derived = {"common": "shared_tokens", "steps": "iterations"}
    listed |= {(config, derived[setting]) for config, setting in listed if setting in derived}
    for name, kind in known().items():
        for setting, described in kind.Config.model_fields.items():
            number = isinstance(described.default, (int, float))
            brought = setting not in Config.model_fields or described.default != Config.model_fields[setting].default
            assert not number or not brought or (kind.Config, setting) in listed, f"{name}.{setting}"


@pytest.mark.parametrize("name", list(known()))
def test_defaults_lie_within_their_own_bounds(name: str) -> None:
    """Pydantic checks what is given, not what is the default."""
    config: Section = build(name).config  # type: ignore[attr-defined]
    build(name, {name: config.model_dump()})
