"""A dual encoder as data: shapes, pooling, causality, biases.

Read from a Hugging Face `config.json` or an open_clip `open_clip_config.json`. The defaults are CLIP's; everything that
another family does otherwise is a field here, and no tuner asks for it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from fedvlm.clip import strict
from fedvlm.errors import FedvlmError


@dataclass(frozen=True)
class Transformer:
    """A stack of pre-norm residual blocks."""

    width: int
    layers: int
    heads: int
    mlp: int
    activation: str = "quick_gelu"
    eps: float = 1e-5


@dataclass(frozen=True)
class ViT:
    """Vision transformer: `image` pixels a side cut into patches of `patch` pixels."""

    image: int
    patch: int
    tower: Transformer
    class_token: bool = True
    """A learned token stands before the patches, at a position of its own."""
    pre_norm: bool = True
    """A LayerNorm stands before the first block."""
    patch_bias: bool = False
    """The projection of patches has a bias."""
    pool: Literal["class_token", "attention"] = "class_token"
    """The image feature is made of the class token, or of all tokens by `pooling.AttentionPooling`."""
    projection: bool = True
    """A matrix maps the pooled token to the joint width; without it the tower's width is the joint width."""

    def __post_init__(self) -> None:
        if self.pool == "class_token" and not self.class_token:
            raise FedvlmError("an image encoder without a class token cannot pool by it; set pool to 'attention'")


@dataclass(frozen=True)
class ResNet:
    """CLIP's modified ResNet: three-convolution stem, anti-aliased strides, attention pool."""

    image: int
    layers: tuple[int, int, int, int]
    width: int

    @property
    def heads(self) -> int:
        """Heads of the attention pool, each 64 wide."""
        return self.width * 32 // 64


@dataclass(frozen=True)
class Text:
    """Text transformer over `context` positions, read at the token where the tokenizer says that a text ends."""

    context: int
    vocabulary: int
    tower: Transformer
    causal: bool = True
    """Tokens attend to what precedes them; otherwise to all of their text."""
    projection_bias: bool = False
    """The projection to the joint width has a bias."""


@dataclass(frozen=True)
class ClipConfig:
    """A dual encoder with joint width E = `embed`."""

    vision: ViT | ResNet
    text: Text
    embed: int

    def __post_init__(self) -> None:
        if isinstance(self.vision, ViT) and not self.vision.projection and self.vision.tower.width != self.embed:
            raise FedvlmError(
                f"an image encoder without projection has the joint width {self.embed}, not {self.vision.tower.width}"
            )


def facts(config: ClipConfig | ViT | ResNet | Text) -> dict[str, Any]:
    """The configuration as plain tables, for digests and caches; fields of other families only where they are used.

    So what was digested before such a field existed keeps its digest.
    """
    return {
        field.name: facts(value) if isinstance(value, ViT | ResNet | Text) else _plain(value)
        for field in dataclasses.fields(config)
        for value in (getattr(config, field.name),)
        if field.default is dataclasses.MISSING or value != field.default
    }


def unlike_clip(config: ClipConfig) -> list[str]:
    """Names of the fields in which a dual encoder differs from every CLIP, such as `text.causal`."""
    return [
        f"{part}.{field.name}"
        for part, encoder in (("vision", config.vision), ("text", config.text))
        for field in dataclasses.fields(encoder)
        if field.default is not dataclasses.MISSING and getattr(encoder, field.name) != field.default
    ]


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if isinstance(value, Transformer) else value


def standard(name: str, *, context: int = 77, vocabulary: int = 49408) -> ClipConfig:
    """The published architectures: `ViT-B/32`, `ViT-B/16`, `ViT-L/14`, `RN50`, and a small one for tests, `ViT-T/8`."""
    sizes: dict[str, tuple[ViT | ResNet, int, int, int]] = {
        "ViT-B/32": (_vit(224, 32, 768, 12), 512, 12, 512),
        "ViT-B/16": (_vit(224, 16, 768, 12), 512, 12, 512),
        "ViT-L/14": (_vit(224, 14, 1024, 24), 768, 12, 768),
        "RN50": (ResNet(224, (3, 4, 6, 3), 64), 512, 12, 1024),
        "ViT-T/8": (_vit(32, 8, 128, 4), 128, 4, 128),
    }
    if name not in sizes:
        raise FedvlmError(f"unknown architecture '{name}'; known: {', '.join(sizes)}")
    vision, width, layers, embed = sizes[name]
    return ClipConfig(vision, Text(context, vocabulary, _tower(width, layers)), embed)


def from_huggingface(config: dict[str, Any], where: str = "config.json") -> ClipConfig:
    """Read a `CLIPModel` configuration. Missing keys take the published defaults of that format.

    Raises `FedvlmError` for what fedvlm does not implement; `where` names the file.
    """
    if config.get("model_type") != "clip":
        raise FedvlmError(f"{where} describes a '{config.get('model_type')}' model, expected model_type 'clip'")
    strict.check(config, strict.HUGGINGFACE, where)
    vision = _part(config, "vision_config", strict.HUGGINGFACE_VISION, where)
    text = _part(config, "text_config", strict.HUGGINGFACE_TEXT, where)
    return ClipConfig(
        ViT(
            image=_count(vision, "image_size", 224),
            patch=_count(vision, "patch_size", 32),
            tower=_hf_tower(vision, width=768, layers=12, heads=12, mlp=3072),
        ),
        Text(
            context=_count(text, "max_position_embeddings", 77),
            vocabulary=_count(text, "vocab_size", 49408),
            tower=_hf_tower(text, width=512, layers=12, heads=8, mlp=2048),
        ),
        embed=_count(config, "projection_dim", 512),
    )


def _part(config: dict[str, Any], name: str, keys: strict.Keys, where: str) -> dict[str, Any]:
    """One encoder's table. Old files repeat parts of it in `NAME_dict`, which wins in transformers."""
    table: dict[str, Any] = config.get(name) or {}
    strict.check(table, keys, f"{name} in {where}")
    for key, value in (config.get(f"{name}_dict") or {}).items():
        if key in keys.read and key in table and table[key] != value:
            raise strict.not_implemented(key, value, f"{name}_dict in {where}", f"{name} says {table[key]!r}")
    return table


def to_huggingface(config: ClipConfig, *, sot: int, eot: int) -> dict[str, Any]:
    """The `CLIPModel` configuration of a ViT CLIP (a ResNet has no such format, nor has another family)."""
    if not isinstance(config.vision, ViT):
        raise FedvlmError("the Hugging Face CLIP format has no ResNet image encoder")
    if other := unlike_clip(config):
        raise FedvlmError(f"the Hugging Face CLIP format has no place for this dual encoder's {', '.join(other)}")
    vision = _to_hf_tower(config.vision.tower) | {
        "model_type": "clip_vision_model",
        "image_size": config.vision.image,
        "patch_size": config.vision.patch,
        "projection_dim": config.embed,
    }
    text = _to_hf_tower(config.text.tower) | {
        "model_type": "clip_text_model",
        "max_position_embeddings": config.text.context,
        "vocab_size": config.text.vocabulary,
        "projection_dim": config.embed,
        "bos_token_id": sot,
        "eos_token_id": eot,
        "pad_token_id": eot,
    }
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.embed,
        "vision_config": vision,
        "text_config": text,
    }


def from_open_clip(config: dict[str, Any], where: str = "open_clip_config.json") -> ClipConfig:
    """Read an open_clip configuration (`{"model_cfg": ...}`), ViT or modified ResNet.

    Raises `FedvlmError` for what fedvlm does not implement; `where` names the file.
    """
    model = config.get("model_cfg", config)
    vision, text = model["vision_cfg"], model["text_cfg"]
    strict.check(model, strict.OPEN_CLIP, where)
    strict.check(vision, strict.OPEN_CLIP_VISION, f"vision_cfg in {where}")
    strict.check(text, strict.OPEN_CLIP_TEXT, f"text_cfg in {where}")
    activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
    words = Text(
        context=_count(text, "context_length", 77),
        vocabulary=_count(text, "vocab_size", 49408),
        tower=_open_clip_tower(text, _count(text, "heads", 8), activation, width=512),
    )
    image, embed = _count(vision, "image_size", 224), _count(model, "embed_dim")
    if isinstance(vision.get("layers", 12), list):
        a, b, c, d = vision["layers"]
        if vision.get("head_width", 64) != 64:
            raise strict.not_implemented(
                "head_width", vision["head_width"], f"vision_cfg in {where}", "heads of its ResNet are 64 wide"
            )
        return ClipConfig(ResNet(image, (a, b, c, d), _count(vision, "width", 64)), words, embed)
    heads = _count(vision, "width", 768) // _count(vision, "head_width", 64)
    tower = _open_clip_tower(vision, heads, activation, width=768)
    return ClipConfig(ViT(image, _count(vision, "patch_size", 16), tower), words, embed)


def _open_clip_tower(table: dict[str, Any], heads: int, activation: str, *, width: int) -> Transformer:
    return _tower(
        _count(table, "width", width), _count(table, "layers", 12), heads, activation, float(table.get("mlp_ratio", 4))
    )


def to_open_clip(config: ClipConfig) -> dict[str, Any]:
    """The open_clip configuration of a CLIP with a modified ResNet, and the usual text encoder."""
    if not isinstance(config.vision, ResNet):
        raise FedvlmError("ViT CLIPs are written in the Hugging Face format")
    if other := unlike_clip(config):
        raise FedvlmError(f"the open_clip format of a ResNet CLIP has no place for {', '.join(other)}")
    text, vision = config.text, config.vision
    if text.tower != _tower(text.tower.width, text.tower.layers, text.tower.heads, text.tower.activation):
        raise FedvlmError("the open_clip format has no place for this text encoder's MLP width or epsilon")
    return {
        "model_cfg": {
            "embed_dim": config.embed,
            "quick_gelu": text.tower.activation == "quick_gelu",
            "vision_cfg": {"image_size": vision.image, "layers": list(vision.layers), "width": vision.width},
            "text_cfg": {"context_length": text.context, "vocab_size": text.vocabulary, "width": text.tower.width,
                         "heads": text.tower.heads, "layers": text.tower.layers},
        }
    }  # fmt: skip


def _vit(image: int, patch: int, width: int, layers: int) -> ViT:
    return ViT(image, patch, _tower(width, layers))


def _tower(
    width: int, layers: int, heads: int | None = None, activation: str = "quick_gelu", ratio: float = 4
) -> Transformer:
    return Transformer(width, layers, heads or width // 64, int(width * ratio), activation)


def _hf_tower(table: dict[str, Any], *, width: int, layers: int, heads: int, mlp: int) -> Transformer:
    activation, eps = table.get("hidden_act", "quick_gelu"), table.get("layer_norm_eps", 1e-5)
    if not isinstance(activation, str):
        raise ValueError(f"hidden_act is {activation!r}, expected a name")
    if type(eps) not in (int, float) or not 0 < eps < 1:
        raise ValueError(f"layer_norm_eps is {eps!r}, expected a number between 0 and 1")
    tower = Transformer(
        width=_count(table, "hidden_size", width),
        layers=_count(table, "num_hidden_layers", layers),
        heads=_count(table, "num_attention_heads", heads),
        mlp=_count(table, "intermediate_size", mlp),
        activation=activation,
        eps=float(eps),
    )
    if tower.width % tower.heads:
        raise ValueError(f"hidden_size {tower.width} cannot be shared by {tower.heads} attention heads")
    return tower


def _count(table: dict[str, Any], key: str, default: int | None = None) -> int:
    value = table.get(key, default)
    if type(value) is not int or value < 1:
        raise ValueError(f"{key} is {value!r}, expected a positive whole number")
    return value


def _to_hf_tower(tower: Transformer) -> dict[str, Any]:
    return {
        "hidden_size": tower.width,
        "num_hidden_layers": tower.layers,
        "num_attention_heads": tower.heads,
        "intermediate_size": tower.mlp,
        "hidden_act": tower.activation,
        "layer_norm_eps": tower.eps,
    }
