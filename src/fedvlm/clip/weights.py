"""Weights between files and modules: Hugging Face names, OpenAI/open_clip names, and ours (OpenAI's, `text.` added)."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from fedvlm.clip.model import CLIP
from fedvlm.errors import FedvlmError, listed
from fedvlm.tensors import Named

_TEXT = ("token_embedding.", "positional_embedding", "transformer.", "ln_final.", "text_projection")
_BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_PLAIN = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
    "text_model.embeddings.token_embedding.weight": "text.token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "text.positional_embedding",
    "text_model.final_layer_norm.weight": "text.ln_final.weight",
    "text_model.final_layer_norm.bias": "text.ln_final.bias",
    "logit_scale": "logit_scale",
}
_TRANSPOSED = {"visual_projection.weight": "visual.proj", "text_projection.weight": "text.text_projection"}
_EXTRAS = ("position_ids", "attn_mask", "input_resolution", "context_length", "vocab_size", "num_batches_tracked")
"""Stored besides weights by some versions of the published formats."""
_LAYER = re.compile(r"(vision|text)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")


def fill(clip: CLIP, stored: Named, where: str) -> None:
    """Copy stored weights (either naming, any float dtype) into the module; missing or misshapen ones are errors."""
    known = from_huggingface if any(name.startswith("vision_model.") for name in stored) else _openai
    try:
        found = known(stored)
    except KeyError as error:
        raise FedvlmError(f"{where} lacks the weight {error}") from None
    own = clip.state_dict()
    spare = sorted(name for name in found.keys() - own.keys() if not name.endswith(_EXTRAS))
    if spare:
        raise FedvlmError(
            f"{where} has {len(spare)} weights that its configuration has no place for: {listed(spare, 4)}"
        )
    missing = sorted(name for name in own.keys() - found.keys() if not name.endswith("num_batches_tracked"))
    if missing:
        raise FedvlmError(f"{where} lacks {len(missing)} weights of this architecture: {listed(missing, 4)}")
    for name, tensor in own.items():
        if name not in found:
            continue  # batch norm's counter, which evaluation does not use
        if found[name].shape != tensor.shape:
            raise FedvlmError(
                f"{where}: '{name}' has shape {tuple(found[name].shape)}, its configuration says {tuple(tensor.shape)}"
            )
        tensor.copy_(found[name])


def from_huggingface(stored: Named) -> Named:
    """`CLIPModel` names to ours: queries, keys and values packed, projections as `x @ P`."""
    result: Named = {}
    for name, tensor in stored.items():
        if name in _PLAIN:
            result[_PLAIN[name]] = tensor
        elif name in _TRANSPOSED:
            result[_TRANSPOSED[name]] = tensor.T
        elif (match := _LAYER.fullmatch(name)) and match[3] in _BLOCK:
            result[f"{_tower(match[1])}.{match[2]}.{_BLOCK[match[3]]}.{match[4]}"] = tensor
        elif match and match[3] == "self_attn.q_proj":
            parts = [stored[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            result[f"{_tower(match[1])}.{match[2]}.attn.in_proj_{match[4]}"] = torch.cat(parts)
        elif not (match and match[3] in ("self_attn.k_proj", "self_attn.v_proj")):
            result[name] = tensor
    return result


def to_huggingface(own: Named) -> Named:
    """Our names to those of a ViT `CLIPModel`: the inverse of `from_huggingface`."""
    plain = {ours: theirs for theirs, ours in _PLAIN.items()}
    transposed = {ours: theirs for theirs, ours in _TRANSPOSED.items()}
    block = {ours: theirs for theirs, ours in _BLOCK.items()}
    result: Named = {}
    for name, tensor in own.items():
        if name in plain:
            result[plain[name]] = tensor
        elif name in transposed:
            result[transposed[name]] = tensor.T.contiguous()
        else:
            tower, number, part, kind = _parts(name)
            layer = f"{tower}_model.encoder.layers.{number}"
            if part == "attn":
                for letter, piece in zip("qkv", tensor.chunk(3), strict=True):
                    result[f"{layer}.self_attn.{letter}_proj.{kind}"] = piece.contiguous()
            else:
                result[f"{layer}.{block[part]}.{kind}"] = tensor
    return result


def _parts(name: str) -> tuple[str, str, str, str]:
    match = re.fullmatch(r"(visual|text)\.transformer\.resblocks\.(\d+)\.(.+?)\.(?:in_proj_)?(weight|bias)", name)
    if match is None:
        raise FedvlmError(f"'{name}' has no place in the Hugging Face CLIP format")
    return "vision" if match[1] == "visual" else "text", match[2], match[3], match[4]


def _tower(name: str) -> str:
    return "visual.transformer.resblocks" if name == "vision" else "text.transformer.resblocks"


def _openai(stored: dict[str, Tensor]) -> Named:
    """OpenAI's and open_clip's names: the text encoder's tensors stand at the top level."""
    return {(f"text.{name}" if name.startswith(_TEXT) else name): tensor for name, tensor in stored.items()}


def to_openai(own: Named) -> Named:
    """Our names to OpenAI's and open_clip's."""
    return {name.removeprefix("text."): tensor for name, tensor in own.items()}
