"""Reference outputs of another shape than the published ones, from the formulas of `formulas` in float64."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import formulas
import safetensors.torch
import torch
from torch import Tensor

from fedvlm.clip import FrozenCLIP
from fedvlm.streams import torch_stream
from fedvlm.testing import tiny

NAMES = ["cat", "red_fox", "it's", "dog 7", "blue jay", "x"]
CONFIG = tiny.vit_config(vision=(48, 5, 3, 192), text=(32, 6, 2, 128), embed=24, image=20, patch=5)


def draw(*shape: int, name: str, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch_stream(0, name))


def write_clip(folder: Path) -> FrozenCLIP:
    """An open_clip directory: OpenAI's names are ours without the text encoder's prefix."""
    clip = tiny.clip(CONFIG, seed=4)
    folder.mkdir(parents=True)
    stored = {name.removeprefix("text."): tensor.contiguous() for name, tensor in clip.state_dict().items()}
    safetensors.torch.save_file(stored, folder / "open_clip_model.safetensors")
    vision = {"image_size": 20, "patch_size": 5, "width": 48, "layers": 5, "head_width": 16}
    text = {"context_length": 40, "vocab_size": len(tiny.vocabulary()), "width": 32, "heads": 2, "layers": 6}
    table = {"embed_dim": 24, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": table}))
    (folder / "tokenizer.json").write_text(tiny.byte_pairs().to_str())
    return clip


def write(folder: Path, name: str, settings: dict[str, Any], outputs: dict[str, Tensor]) -> None:
    (folder / f"{name}.json").write_text(json.dumps(settings))
    plain = {key: (t if t.dtype == torch.int64 else t.detach().float()).contiguous() for key, t in outputs.items()}
    safetensors.torch.save_file(plain, folder / f"{name}.safetensors")


def gradients(
    loss: Callable[[formulas.Weights], Tensor], start: formulas.Weights, gain: float = 1.0
) -> tuple[float, formulas.Weights]:
    leaves = formulas.doubled(start, train=True)
    value = loss(leaves)
    found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    return value.item(), {name: gain * g for name, g in zip(leaves, found, strict=True) if g is not None}


ADAPTER = {"first_block": 2, "last_block": 4, "bottleneck": 6, "scale": 0.02}
ROUNDS = {
    "client_sizes": [5, 2, 3],
    "rounds": 3,
    "local_epochs": 1,
    "batch_size": 2,
    "lr": 0.01,
    "momentum": 0.8,
    "weight_decay": 0.01,
}


def adapter_start() -> formulas.Weights:
    start = {}
    for block in (2, 3, 4):
        for tower, width in (("text", 32), ("vision", 48)):
            for part, (rows, columns) in {"down": (6, width), "up": (width, 6)}.items():
                start[f"{tower}.{block}.{part}.weight"] = draw(
                    rows, columns, name=f"{tower}{block}{part}w", scale=(2 / rows) ** 0.5
                )
                start[f"{tower}.{block}.{part}.bias"] = draw(rows, name=f"{tower}{block}{part}b", scale=0.1)
        start[f"shared.{block}.weight"] = draw(6, 6, name=f"s{block}w", scale=0.6)
        start[f"shared.{block}.bias"] = draw(6, name=f"s{block}b", scale=0.1)
    return start


def adapter_step(clip: FrozenCLIP, start: formulas.Weights, truth: formulas.Weights) -> dict[str, Tensor]:
    """Logits, loss and gradients for the tensors `truth`, stored as if they belonged to `start`."""
    w, scale = formulas.weights(clip), ADAPTER["scale"]
    images, labels = draw(7, 3, 20, 20, name="images"), torch.tensor([0, 5, 3, 1, 2, 4, 4])

    def logits(tensors: formulas.Weights) -> Tensor:
        return formulas.adapter_logits(clip, w, tensors, NAMES, images, 2, 4, scale, "this is {}!")

    value, found = gradients(lambda t: formulas.cross_entropy(logits(t), labels), truth, 1 / scale)
    out = {"images": images, "labels": labels, "logits": logits(formulas.doubled(truth)), "loss": torch.tensor([value])}
    return out | {f"init/{name}": t for name, t in start.items()} | {f"grad/{name}": g for name, g in found.items()}


def write_adapter(folder: Path, clip: FrozenCLIP) -> None:
    """pfedmma.md 2 and 3 in float64: true gradients divided by the scale, three clients, three rounds."""
    w, start, scale = formulas.weights(clip), adapter_start(), ADAPTER["scale"]
    images = draw(7, 3, 20, 20, name="images")
    out = adapter_step(clip, start, start)

    def logits(tensors: formulas.Weights, pixels: Tensor) -> Tensor:
        return formulas.adapter_logits(clip, w, tensors, NAMES, pixels, 2, 4, scale, "this is {}!")

    data = [(draw(n, 3, 20, 20, name=f"images{i}"), torch.arange(n) % 6) for i, n in enumerate(ROUNDS["client_sizes"])]
    own, shared, losses = (
        [formulas.doubled(start) for _ in data],
        {n: t.double() for n, t in start.items() if n.startswith("shared.")},
        [],
    )
    for _ in range(ROUNDS["rounds"]):
        for i, (pixels, names) in enumerate(data):
            batches = list(zip(pixels.split(2), names.split(2), strict=True))
            own[i], seen = formulas.sgd(
                own[i] | shared,
                batches,
                lambda t, b: formulas.cross_entropy(logits(t, b[0]), b[1]),
                lambda _: 0.01,
                0.8,
                0.01,
                1 / scale,
            )
            losses += seen
        shared = {n: sum(len(d[1]) * o[n] for d, o in zip(data, own, strict=True)) / 10 for n in shared}
    out |= {"federated/losses": torch.tensor(losses)} | {f"federated/final/{n}": t for n, t in shared.items()}
    for i, (pixels, names) in enumerate(data):
        last = own[i] | shared
        out |= {f"federated/client{i}/images": pixels, f"federated/client{i}/labels": names}
        out |= {f"federated/final/client{i}/{n}": t for n, t in last.items() if n not in shared}
        out[f"federated/client{i}/final_logits"] = logits(last, images)
    settings = {
        "clip": "other-clip",
        "classnames": NAMES,
        "prompt": "this is {}!",
        "adapter": ADAPTER,
        "federated": ROUNDS,
    }
    write(folder, "adapter", settings, out)


GATING = {"heads": 3, "width": 12, "scaling": 3.0, "feature_stride": 2}
TRAINING = {"steps": 5, "batch_size": 2, "prompt_lr": 0.05, "gating_lr": 0.1, "momentum": 0.7, "weight_decay": 0.02}


def write_mixture(folder: Path, clip: FrozenCLIP) -> None:
    """pfedmoap.md 2 in float64: local alone, with two experts, and after five steps on three windows in turn."""
    w = formulas.weights(clip)
    start = {"prompt": draw(4, 32, name="prompt", scale=0.3)}
    for part in "qkvo":
        start |= {
            f"gating.{part}.weight": draw(12, 12, name=f"{part}w", scale=0.3),
            f"gating.{part}.bias": draw(12, name=f"{part}b", scale=0.2),
        }
    experts, images, labels = (
        draw(2, 4, 32, name="experts", scale=0.3),
        draw(6, 3, 20, 20, name="images"),
        torch.tensor([0, 5, 3, 1, 2, 4]),
    )

    def logits(tensors: formulas.Weights, pixels: Tensor, prompts: list[Tensor]) -> Tensor:
        how = {"width": 12, "heads": 3, "scaling": 3.0, "weight": 0.3, "suffix": "{} ."}
        return formulas.mixture_logits(clip, w, tensors, prompts, NAMES, pixels, **how)

    out = {"images": images, "labels": labels, "experts": experts} | {f"init/{name}": t for name, t in start.items()}
    others = list(experts.double())
    for part, prompts in (("local_only", []), ("mixture", others)):
        value, found = gradients(lambda t, p=prompts: formulas.cross_entropy(logits(t, images, p), labels), start)
        out |= {
            f"{part}/logits": logits(formulas.doubled(start), images, prompts),
            f"{part}/loss": torch.tensor([value]),
        }
        out |= {f"{part}/grad/{name}": g for name, g in found.items()}
    windows = list(zip(images.split(2), labels.split(2), strict=True))
    trained, losses = formulas.sgd(
        start, [windows[i % 3] for i in range(5)], lambda t, b: formulas.cross_entropy(logits(t, b[0], others), b[1]),
        lambda name: 0.05 if name == "prompt" else 0.1, 0.7, 0.02,
    )  # fmt: skip
    out |= {f"trained/{name}": t for name, t in trained.items()}
    out |= {"trained/losses": torch.tensor(losses), "trained/logits": logits(trained, images, others)}
    out["image_features"] = formulas.image_features(images, w, clip.config)
    template = formulas.token_rows([f"an {name.replace('_', ' ')}" for name in NAMES], clip)
    words = w["text.token_embedding.weight"][torch.tensor(template[0])]
    out["zero_shot/logits"] = 20.0 * formulas.cosines(
        out["image_features"], formulas.text_features(words, template[1], w, clip.config)
    )
    settings = {"clip": "other-clip", "classnames": NAMES, "context_tokens": 4, "class_token_position": "end", "suffix": "{} .",
                "zero_shot_prompt": "an {}", "gating": GATING, "local_logits_weight": 0.3, "experts": 2, "training": TRAINING}  # fmt: skip
    write(folder, "mixture", settings, out)
