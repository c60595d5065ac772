"""A personal model's folder: `model.safetensors` (what was trained), `model.json` (what it is), `README.md` (the card).

The frozen CLIP is not in it; `model.json` names it, with the digest that it must have.
"""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import ValidationError

from fedvlm import clip as clips
from fedvlm import durable, methods, tensors
from fedvlm.config import problems
from fedvlm.errors import FedvlmError, listed
from fedvlm.personal import card
from fedvlm.personal.model import Facts, PersonalModel
from fedvlm.streams import torch_stream
from fedvlm.tensors import Named
from fedvlm.training import device as devices
from fedvlm.training.device import ComputeSection

WEIGHTS, FACTS, CARD = "model.safetensors", "model.json", "README.md"
TENSOR, RECEIVED, SUPPORT = "tensor/", "received/", "support/"


def save(model: PersonalModel, folder: Path) -> list[Path]:
    """Write a model's folder, for its owner only; returns the files. Raises `FedvlmError` if it holds anything."""
    check_free(folder)
    held = {TENSOR + name: tensor for name, tensor in model.tensors.items()}
    held |= {RECEIVED + name: tensor for name, tensor in model.received.items()}
    if model.support is not None:
        held |= {SUPPORT + name: one for name, one in zip(("hidden", "labels"), model.support, strict=True)}
    durable.make_folder(folder)
    tensors.save(folder / WEIGHTS, held, private=True)
    durable.write_text(folder / CARD, card.text(model, (folder / WEIGHTS).stat().st_size), private=True)
    durable.write_json(folder / FACTS, model.facts.dump(), private=True)
    return [folder / WEIGHTS, folder / FACTS, folder / CARD]


def check_free(folder: Path) -> None:
    """Raise `FedvlmError` if a folder holds anything."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FedvlmError(f"{folder} is not empty: name another folder")


def load(folder: str | Path, *, base: str | None = None, device: str = "auto", trust: bool = False) -> PersonalModel:
    """A personal model from its folder.

    `base`: a directory with the CLIP that it needs, if that is not where `model.json` says. `trust`: whether a method
    of another package may be imported, which runs its code. Raises `FedvlmError` for a missing or damaged file, and for
    another CLIP than the one it was trained with.
    """
    place = Path(folder).expanduser()
    facts = read_facts(place)
    if facts.method not in methods.known() and not trust:
        raise FedvlmError(
            f"{place} names a method of another package, {facts.method}, and loading it runs that package's code: if "
            "you trust whoever made this folder, say so with --trust (in Python trust=True)"
        )
    chosen = devices.choose_device(ComputeSection(device=device))
    tf32 = facts.dtype == "tf32" and chosen.device.type != "cuda"  # a rounding that only NVIDIA's have
    chosen = devices.choose_device(ComputeSection(device=device, dtype="float32" if tf32 else facts.dtype))
    devices.configure_process(chosen)
    clip = clips.load(base or facts.base.name, revision=facts.base.revision, transform=facts.base.transform)
    if clip.digest != facts.base.digest:
        what = (
            "other weights" if clip.weights != facts.base.weights else "another configuration, tokenizer or transform"
        )
        raise FedvlmError(
            f"{place} belongs to the CLIP '{facts.base.name}', but {base or facts.base.name} has {what} than it was "
            "trained with: give the directory of that CLIP as the base"
        )
    torch.set_num_threads(devices.default_threads(clip.text.width))
    held = tensors.load(place / WEIGHTS)
    strange = [name for name in held if not name.startswith((TENSOR, RECEIVED, SUPPORT))]
    if strange:
        raise FedvlmError(f"{place / WEIGHTS} holds tensors of no personal model: {listed(strange)}")
    found = PersonalModel(
        facts, clip.to(chosen.device), chosen, _part(held, TENSOR), _part(held, RECEIVED), _support(held)
    )
    _check(found, place)
    return found


def read_facts(folder: Path) -> Facts:
    """`model.json`. Raises `FedvlmError`."""
    file = folder / FACTS
    if not file.is_file():
        raise FedvlmError(f"{folder} holds no {FACTS}: fedvlm export RUN --client NAME {folder} writes one")
    try:
        return Facts.model_validate_json(file.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise FedvlmError(f"{file}: " + "; ".join(problems(error, Facts))) from None
    except (OSError, ValueError) as error:
        raise FedvlmError(f"{file} is damaged: {error}") from None


def _part(held: Named, prefix: str) -> Named:
    return {name.removeprefix(prefix): held[name] for name in sorted(held) if name.startswith(prefix)}


def _support(held: Named) -> tuple[torch.Tensor, torch.Tensor] | None:
    part = _part(held, SUPPORT)
    return (part["hidden"], part["labels"]) if {"hidden", "labels"} <= part.keys() else None


def _check(model: PersonalModel, place: Path) -> None:
    """Raise `FedvlmError` where the tensors are not those of the method, or not those that were written."""
    facts = model.facts
    tuner = model.method.tuner(model.clip, facts.classes, facts.template)
    first = {name: list(tensor.shape) for name, tensor in tuner.init(torch_stream(0, "init")).items()}
    found = [
        ({name: list(tensor.shape) for name, tensor in part.items()}, told)
        for part, told in ((model.tensors, facts.shared | facts.private), (model.received, facts.received))
    ]
    wrong = sorted(
        {name for held, told in found for name in held.keys() | told.keys() if held.get(name) != told.get(name)}
    )
    wrong += sorted(name for name, shape in first.items() if found[0][0].get(name) != shape and name not in wrong)
    count = 0 if model.support is None else len(model.support[0])
    labels = torch.zeros(0) if model.support is None else model.support[1]
    if (
        count != facts.support
        or labels.shape != (count,)
        or (count and not 0 <= labels.min() <= labels.max() < len(facts.classes))
    ):
        wrong.append("the support set")
    if wrong:
        raise FedvlmError(f"{place / WEIGHTS} does not belong to {FACTS}: {listed(wrong)}")
    every = [*model.tensors.values(), *model.received.values(), *(model.support or ())[:1]]
    if not all(bool(tensor.isfinite().all()) for tensor in every if tensor.is_floating_point()):
        raise FedvlmError(f"{place / WEIGHTS} holds values that are not finite")
