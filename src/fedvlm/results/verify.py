"""`fedvlm verify DIR`: recompute a directory of reference outputs with the code that runs experiments.

A directory holds pairs `NAME.json` (settings) and `NAME.safetensors` (inputs and outputs) and the CLIP directories
they name. Tensors are compared by max|a-b| <= t max|ref| + 1e-6, t = 1e-4, or 1e-5 for trained parameters; gradients
that are zero in exact arithmetic (key, value and output bias of the gate) by |a| < 1e-6.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedvlm import clip as clips
from fedvlm import tensors
from fedvlm.clip import FrozenCLIP
from fedvlm.errors import FedvlmError
from fedvlm.federation import wire
from fedvlm.methods.base import Uplink
from fedvlm.methods.pfedmma import PFedMMA
from fedvlm.methods.pfedmoap import EXPERT, Mixture, PFedMoAP
from fedvlm.methods.zero_shot import Template
from fedvlm.tensors import Named
from fedvlm.training.device import Device
from fedvlm.training.local import Batch, train

CPU = Device(torch.device("cpu"))
_ZERO = ("grad/gating.k.bias", "grad/gating.v.bias", "grad/gating.o.bias")
_INPUTS = ("images", "labels", "experts", "init/*", "federated/client*/images", "federated/client*/labels")


@dataclass(frozen=True)
class Group:
    """The comparison of the tensors that share a prefix."""

    fixture: str
    name: str
    tensors: int
    difference: float
    """Largest absolute difference."""
    ratio: float
    """The same over the largest reference value of the tensor where it occurs."""
    passed: bool


def verify(folder: Path) -> list[Group]:
    """Compare every fixture of a directory; raises `FedvlmError` where files are missing or cannot be understood."""
    folder = folder.resolve()
    fixtures = [file for file in sorted(folder.glob("*.json")) if file.with_suffix(".safetensors").exists()]
    if not fixtures:
        raise FedvlmError(f"{folder} holds no reference outputs: expected pairs NAME.json and NAME.safetensors")
    return [group for file in fixtures for group in _fixture(file)]


def _fixture(file: Path) -> list[Group]:
    reference = tensors.load(file.with_suffix(".safetensors"))
    try:
        settings = json.loads(file.read_text())
        clip = clips.load(str(file.parent / settings["clip"]))
        recompute = _adapter if "adapter" in settings else _mixture
        computed = recompute(clip, settings, reference)
    except (KeyError, ValueError, TypeError, RuntimeError, IndexError) as error:
        raise FedvlmError(f"{file} and its tensors do not have the expected form: {error!r}") from error
    return _compare(file.stem, computed, reference)


def _compare(fixture: str, computed: Named, reference: Named) -> list[Group]:
    expected = {name: tensor for name, tensor in reference.items() if not _is_input(name)}
    if not expected:
        raise FedvlmError(f"{fixture}: there is nothing to compare, only inputs")
    if missing := expected.keys() - computed.keys():
        raise FedvlmError(f"{fixture}: no computation gives {', '.join(sorted(missing)[:4])}")
    groups: dict[str, list[tuple[float, float, bool]]] = {}
    for name, tensor in expected.items():
        groups.setdefault(_group(name), []).append(_difference(name, computed[name], tensor))
    return [
        Group(fixture, name, len(rows), max(r[0] for r in rows), max(r[1] for r in rows), all(r[2] for r in rows))
        for name, rows in groups.items()
    ]


def _difference(name: str, computed: Tensor, reference: Tensor) -> tuple[float, float, bool]:
    if computed.shape != reference.shape:
        raise FedvlmError(f"'{name}' has shape {tuple(computed.shape)}, the reference {tuple(reference.shape)}")
    if not bool(reference.isfinite().all()):
        return math.inf, math.inf, False
    if name.endswith(_ZERO):
        size = float(computed.abs().max())
        return size, 0.0, size < 1e-6
    difference = float((computed.double() - reference.double()).abs().max())
    largest = float(reference.abs().max())
    return difference, difference / max(largest, 1e-30), difference <= _tolerance(name) * largest + 1e-6


def _tolerance(name: str) -> float:
    trained = name.startswith(("federated/final/", "trained/")) and not name.endswith(("logits", "losses"))
    return 1e-5 if trained else 1e-4


def _is_input(name: str) -> bool:
    return tensors.matches(name, _INPUTS)


def _group(name: str) -> str:
    """`grad/text.5.up.bias` belongs to `grad/text`, `federated/final/client0/...` to `federated/final/client0`."""
    *folders, last = name.split("/")
    return "/".join([*folders, last.split(".")[0]])


def _adapter(clip: FrozenCLIP, settings: dict[str, Any], reference: Named) -> Named:
    shape = settings["adapter"]
    rounds = settings.get("federated")
    config: dict[str, Any] = {"first_block": shape["first_block"], "last_block": shape["last_block"]}
    config |= {"rank": shape["bottleneck"], "scale": shape["scale"]}
    if rounds:
        config |= {"lr": rounds["lr"], "momentum": rounds["momentum"], "weight_decay": rounds["weight_decay"]}
    method = PFedMMA(config)
    tuner = method.tuner(clip, settings["classnames"], settings["prompt"])
    initial = _under(reference, "init/")
    hidden = clip.visual.hidden(reference["images"], tuner.entry)
    logits, loss, gradients = _step(lambda t: tuner.logits(t, tuner.classifier(t, {}), hidden), initial, reference)
    result = {"logits": logits, "loss": loss} | {f"grad/{name}": tensor for name, tensor in gradients.items()}
    return result | (_federated(method, clip, settings, reference) if rounds else {})


def _federated(method: PFedMMA, clip: FrozenCLIP, settings: dict[str, Any], reference: Named) -> Named:
    """Rounds over the stored clients, in stored order, through the ordinary local training and aggregation."""
    rounds, tuner = settings["federated"], method.tuner(clip, settings["classnames"], settings["prompt"])
    initial, result, losses = _under(reference, "init/"), Named(), list[float]()
    clients = [f"client{i}" for i in range(len(rounds["client_sizes"]))]
    own, server = dict.fromkeys(clients, initial), method.server(initial)
    images = {c: clip.visual.hidden(reference[f"federated/{c}/images"], tuner.entry) for c in clients}
    for _ in range(rounds["rounds"]):
        uplinks = []
        for client in clients:
            data = images[client], reference[f"federated/{client}/labels"]
            epochs = [batch for _ in range(rounds["local_epochs"]) for batch in _cut(*data, rounds["batch_size"])]
            done = train(method, tuner, own[client] | server, server, epochs, CPU)
            own[client], losses = done.tensors, losses + done.losses
            uplinks.append(Uplink(client, len(data[1]), wire.shared(method, done.tensors)))
        server = method.aggregate(server, uplinks)
    result["federated/losses"] = torch.tensor(losses)
    result |= {f"federated/final/{name}": tensor for name, tensor in server.items()}
    hidden = clip.visual.hidden(reference["images"], tuner.entry)
    for client in clients:
        last = own[client] | server
        result |= {f"federated/final/{client}/{n}": t for n, t in wire.private(method, last).items()}
        with torch.no_grad():
            result[f"federated/{client}/final_logits"] = tuner.logits(last, tuner.classifier(last, {}), hidden)
    return result


def _mixture(clip: FrozenCLIP, settings: dict[str, Any], reference: Named) -> Named:
    gating, training = settings["gating"], settings.get("training")
    config: dict[str, Any] = {"tokens": settings["context_tokens"], "gate_width": gating["width"]}
    config |= {"place": settings["class_token_position"]}
    config |= {"heads": gating["heads"], "scaling": gating["scaling"], "local_weight": settings["local_logits_weight"]}
    if training:
        config |= {"lr": training["prompt_lr"], "gate_lr": training["gating_lr"]}
        config |= {"momentum": training["momentum"], "weight_decay": training["weight_decay"]}
    method = PFedMoAP(config)
    tuner = Mixture(clip, settings["classnames"], method.config, settings["suffix"])
    if tuner.stride != gating.get("feature_stride", tuner.stride):
        raise FedvlmError(
            f"gating.feature_stride is {gating['feature_stride']}, features and width give {tuner.stride}"
        )
    received = {f"{EXPERT}{i:04d}": prompt for i, prompt in enumerate(reference["experts"])}
    return _mixture_outputs(clip, settings, reference, method, tuner, received)


def _mixture_outputs(
    clip: FrozenCLIP, settings: dict[str, Any], reference: Named, method: PFedMoAP, tuner: Mixture, received: Named
) -> Named:
    initial, hidden = _under(reference, "init/"), clip.encode_image(reference["images"])
    constants, result = tuner.prepare(received), {"image_features": hidden}
    for part, known in (("local_only", Named()), ("mixture", constants)):
        logits, loss, gradients = _step(
            lambda t, known=known: tuner.logits(t, tuner.classifier(t, known), hidden),  # type: ignore[misc]
            initial,
            reference,
        )
        result |= {f"{part}/logits": logits, f"{part}/loss": loss}
        result |= {f"{part}/grad/{name}": tensor for name, tensor in gradients.items()}
    if "zero_shot_prompt" in settings:
        template = Template(clip, settings["classnames"], settings["zero_shot_prompt"])
        result["zero_shot/logits"] = template.logits({}, {"text": template.text}, hidden)
    if training := settings.get("training"):
        windows = _cut(hidden, reference["labels"], training["batch_size"])
        batches = [windows[step % len(windows)] for step in range(training["steps"])]
        done = train(method, tuner, initial, received, batches, CPU)
        result |= {f"trained/{name}": tensor for name, tensor in done.tensors.items()}
        result["trained/losses"] = torch.tensor(done.losses)
        with torch.no_grad():
            result["trained/logits"] = tuner.logits(done.tensors, tuner.classifier(done.tensors, constants), hidden)
    return result


def _step(logits: Callable[[Named], Tensor], start: Named, reference: Named) -> tuple[Tensor, Tensor, Named]:
    """Logits, loss `[1]` and every gradient of the mean cross-entropy at `start`."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    values = logits(leaves)
    loss = torch.nn.functional.cross_entropy(values, reference["labels"])
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    gradients = {name: g for name, g in zip(leaves, found, strict=True) if g is not None}
    return values.detach(), loss.detach()[None], gradients


def _cut(hidden: Tensor, labels: Tensor, size: int) -> list[Batch]:
    return list(zip(hidden.split(size), labels.split(size), strict=True))


def _under(reference: Named, prefix: str) -> Named:
    return {name[len(prefix) :]: tensor for name, tensor in reference.items() if name.startswith(prefix)}
