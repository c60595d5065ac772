"""The embedded model as a directory: weights, tokenizer files of both kinds, and the model card."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import score
import tokenizers
import torch

from fedvlm import clip, durable
from fedvlm.clip.tokenizer import EOT, SOT

CARD = Path(__file__).with_name("CARD.template.md")
NOT_CALIBRATED = "Not asked yet: `python recipes/calibrate.py --model DIR --card DIR/CARD.md`."


@dataclass(frozen=True)
class Facts:
    """What the card tells about the training run."""

    settings: dict[str, Any]
    pairs: int
    seconds: float


def export(model: clip.FrozenCLIP, out: Path) -> None:
    """Write a Hugging Face directory, with the older pair of tokenizer files beside `tokenizer.json`."""
    out.mkdir(parents=True, exist_ok=True)
    clip.save(model, out, half=True)
    table = json.loads(model.tokenizer.inner.to_str())["model"]
    durable.write_json(out / "vocab.json", table["vocab"])
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in table["merges"]]
    durable.write_text(out / "merges.txt", "\n".join(["#version: 0.2", *pairs, ""]))
    special = {"bos_token": SOT, "eos_token": EOT, "pad_token": EOT, "unk_token": EOT}
    durable.write_json(out / "special_tokens_map.json", special)


def card(model: clip.FrozenCLIP, facts: Facts, table: score.Table) -> str:
    """The model card."""
    return CARD.read_text().format(
        weights=sum(parameter.numel() for parameter in model.parameters()),
        command=f"python recipes/pretrain.py --out DIR --seed {facts.settings['seed']}",
        settings="\n".join(f"| `{name}` | {value} |" for name, value in facts.settings.items()),
        pairs=facts.pairs,
        minutes=facts.seconds / 60,
        speed=facts.pairs / facts.seconds,
        versions=f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}, "
        f"tokenizers {tokenizers.__version__}, {platform.machine()}",
        scores=score.text(table),
        calibration=NOT_CALIBRATED,
    )
