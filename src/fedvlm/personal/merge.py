"""A personal model as a plain CLIP, where its changes are linear in the CLIP's weights and can be added to them."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import torch

from fedvlm import clip as clips
from fedvlm.clip import FrozenCLIP
from fedvlm.errors import FedvlmError
from fedvlm.personal.model import PersonalModel
from fedvlm.tuners.lora import LoRA


def merge(model: PersonalModel) -> FrozenCLIP:
    """The CLIP with the client's changes added to its weights, in float32.

    Raises `FedvlmError` for a method whose changes are no changes of weights.
    """
    tuner, tensors, _ = model.ready(model.class_list())
    if not isinstance(tuner, LoRA):
        raise FedvlmError(
            f"{model.facts.title} is no change of the CLIP's weights (prompts, adapters, gates and memories are parts "
            "of their own), so it cannot be merged: LoRA methods can"
        )
    merged = deepcopy(model.clip)
    received = {name: model.device.send(tensor) for name, tensor in model.received.items()}
    with torch.no_grad():
        for name, weight in tuner.merged(tensors, tuner.prepare(received)).items():
            merged.get_parameter(name).copy_(weight)
    return merged


def save(merged: FrozenCLIP, folder: Path) -> None:
    """Write a merged CLIP as Hugging Face does, for its owner only. Raises `FedvlmError`."""
    clips.save(merged.cpu(), folder, private=True)
