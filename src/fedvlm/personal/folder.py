"""A personal model's folder: `model.safetensors` (what was trained), `model.json` (what it is), `README.md` (the card).

The frozen CLIP is not in it; `model.json` names it, with the digest that it must have.
"""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import ValidationError

from fedvlm import clip as clips
from fedvlm import durable, tensors
from fedvlm.config import problems
from fedvlm.errors import FedvlmError, listed
from fedvlm.personal import card
from fedvlm.personal.model import Facts, PersonalModel
from fedvlm.tensors import Named
from fedvlm.training import device as devices
from fedvlm.training.device import ComputeSection

WEIGHTS, FACTS, CARD = "model.safetensors", "model.json", "README.md"
TENSOR, RECEIVED, SUPPORT = "tensor/", "received/", "support/"


def save(model: PersonalModel, folder: Path) -> list[Path]:
    """Write a model's folder, for its owner only; returns the files. Raises `FedvlmError` if it holds anything."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FedvlmError(f"{folder} is not empty: name another folder")
    held = {TENSOR + name: tensor for name, tensor in model.tensors.items()}
    held |= {RECEIVED + name: tensor for name, tensor in model.received.items()}
    if model.support is not None:
        held |= {SUPPORT + name: one for name, one in zip(("hidden", "labels"), model.support, strict=True)}
    durable.make_folder(folder)
    tensors.save(folder / WEIGHTS, held, private=True)
    durable.write_text(folder / CARD, card.text(model, (folder / WEIGHTS).stat().st_size), private=True)
    durable.write_json(folder / FACTS, model.facts.dump(), private=True)
    return [folder / WEIGHTS, folder / FACTS, folder / CARD]


def load(folder: str | Path, *, base: str | None = None, device: str = "auto", trust: bool = False) -> PersonalModel:
    """A personal model from its folder.

    `base`: a directory with the CLIP that it needs, if that is not where `model.json` says. `trust`: whether a method
    of another package may be imported, which runs its code. Raises `FedvlmError` for a missing or damaged file, and for
    another CLIP than the one it was trained with.
    """
    place = Path(folder).expanduser()
    facts = read_facts(place)
    if ":" in facts.method and not trust:
        raise FedvlmError(
            f"{place} names a class of another package, {facts.method}, and loading it runs that package's code: if "
            "you trust whoever made this folder, say so with --trust (in Python trust=True)"
        )
    chosen = devices.choose_device(ComputeSection(device=device, dtype=facts.dtype))
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
    return (part["hidden"], part["labels"]) if part.keys() == {"hidden", "labels"} else None


def _check(model: PersonalModel, place: Path) -> None:
    """Raise `FedvlmError` where the tensors are not those of the method."""
    assert model.method.name  # its settings are valid
    shapes = {name: list(tensor.shape) for name, tensor in model.tensors.items()}
    expected = model.facts.shared | model.facts.private
    wrong = sorted(name for name in shapes.keys() | expected.keys() if shapes.get(name) != expected.get(name))
    if wrong:
        raise FedvlmError(f"{place / WEIGHTS} does not belong to {FACTS}: {listed(wrong)}")
    if not all(bool(tensor.isfinite().all()) for tensor in model.tensors.values() if tensor.is_floating_point()):
        raise FedvlmError(f"{place / WEIGHTS} holds values that are not finite")
