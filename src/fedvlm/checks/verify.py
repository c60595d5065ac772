"""`fedvlm verify DIR`: recompute a directory of reference outputs with the code that runs experiments.

A directory holds pairs `NAME.json` (settings) and `NAME.safetensors` (inputs and outputs) and the CLIP directories
they name; random tensors may be stored as draws (`drawn_tensors`). `agreement` decides what agrees.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedvlm import clip as clips
from fedvlm.checks import drawn_tensors
from fedvlm.checks.agreement import Group, compare, judge
from fedvlm.clip import Entry, FrozenCLIP
from fedvlm.errors import FedvlmError
from fedvlm.federation import messages
from fedvlm.methods.base import Method, Uplink
from fedvlm.methods.pfedmma import PFedMMA
from fedvlm.methods.pfedmoap import EXPERT, PFedMoAP, PromptMixture
from fedvlm.streams import torch_stream
from fedvlm.tensors import Named
from fedvlm.training.device import Device
from fedvlm.training.disk_cache import DiskCache
from fedvlm.training.local import Batch, LocalJob, Trained, train, train_together
from fedvlm.tuners.base import Tuner, predict
from fedvlm.tuners.template import Template

CPU = Device(torch.device("cpu"))
DRAWS = 16
"""Number of disturbed computations of a fixture that differs."""


class ExecutionPath:
    """A path of execution. This class is the simplest: clients train alone, activations are not cached."""

    def tuner(self, exact: Tuner, method: Method, clip: FrozenCLIP, names: Sequence[str], template: str) -> Tuner:
        """The tuner that computes logits."""
        return exact

    def initial(self, start: Named) -> Named:
        """Initial tensors."""
        return start

    def hidden(self, clip: FrozenCLIP, images: Tensor, entry: Entry) -> Tensor:
        """Activations at the tuner's entry from normalised pixels."""
        return clip.visual.hidden(images, entry)

    def train(self, method: Method, tuner: Tuner, jobs: Sequence[LocalJob], device: Device) -> list[Trained]:
        """Local training of every client."""
        return [train(method, tuner, one.tensors, one.received, one.batches, device) for one in jobs]


class TogetherPath(ExecutionPath):
    """Clients train in batched steps; a single client trains with a copy of itself."""

    def train(self, method: Method, tuner: Tuner, jobs: Sequence[LocalJob], device: Device) -> list[Trained]:
        """Local training of every client."""
        twins = [*jobs, *jobs] if len(jobs) == 1 else jobs
        return train_together(method, tuner, twins, device)[: len(jobs)]


class StoredPath(ExecutionPath):
    """Activations are written to disk and read back."""

    def hidden(self, clip: FrozenCLIP, images: Tensor, entry: Entry) -> Tensor:
        """Activations at the tuner's entry from normalised pixels."""
        rows = clip.visual.hidden(images, entry)
        names = [str(number) for number in range(len(rows))]
        with tempfile.TemporaryDirectory() as place:
            disk_cache = DiskCache(Path(place), 1 << 40)
            disk_cache.table({"entry": str(entry)}).add(names, rows)
            found = DiskCache(Path(place), 1 << 40).table({"entry": str(entry)})
            held = found.read(sorted(found.find(names)))
        return torch.stack([held[name] for name in names]).to(rows.device)


PATHS: dict[str, ExecutionPath] = {"alone": ExecutionPath(), "together": TogetherPath(), "stored": StoredPath()}


class DisturbedPath(ExecutionPath):
    """Another path with noise at the level of rounding: 1e-7 of the largest number, in activations and initial tensors.

    Apart from the noise nothing is changed, so the results are as exact as the undisturbed float32 results. `draw` is
    the number of the disturbance; in one draw, equal tensors have equal noise.
    """

    def __init__(self, path: ExecutionPath, draw: int) -> None:
        self.path, self.draw = path, draw

    def tuner(self, exact: Tuner, method: Method, clip: FrozenCLIP, names: Sequence[str], template: str) -> Tuner:
        """The tuner that computes logits."""
        return self.path.tuner(exact, method, clip, names, template)

    def initial(self, start: Named) -> Named:
        """Initial tensors with noise: the text encoder, which reads no activations of images, is disturbed by these."""
        return {name: self._noisy(tensor, name) for name, tensor in self.path.initial(start).items()}

    def hidden(self, clip: FrozenCLIP, images: Tensor, entry: Entry) -> Tensor:
        """Activations at the tuner's entry from normalised pixels, with noise."""
        return self._noisy(self.path.hidden(clip, images, entry))

    def train(self, method: Method, tuner: Tuner, jobs: Sequence[LocalJob], device: Device) -> list[Trained]:
        """Local training of every client."""
        return self.path.train(method, tuner, jobs, device)

    def _noisy(self, tensor: Tensor, *names: str) -> Tensor:
        noise = torch.randn(tensor.shape, generator=torch_stream(0, "disturbed", self.draw, *names))
        return tensor + 1e-7 * tensor.abs().max() * noise.to(tensor)


def verify(folder: Path, path: ExecutionPath = PATHS["alone"], device: Device = CPU, draws: int = DRAWS) -> list[Group]:
    """Compare all fixtures of a directory. Raises `FedvlmError` for missing or malformed files.

    A fixture that differs is computed `draws` times more with noise (see `agreement.judge`).
    """
    folder = folder.resolve()
    fixtures = [file for file in sorted(folder.glob("*.json")) if file.with_suffix(".safetensors").exists()]
    if not fixtures:
        raise FedvlmError(f"{folder} holds no reference outputs: expected pairs NAME.json and NAME.safetensors")
    return [group for file in fixtures for group in _fixture(file, path, device, draws)]


def _fixture(file: Path, path: ExecutionPath, device: Device, draws: int) -> list[Group]:
    reference = drawn_tensors.load(file.with_suffix(".safetensors"))
    try:
        settings = json.loads(file.read_text())
        with drawn_tensors.completed_folder(file.parent / settings["clip"]) as place:
            clip = clips.load(str(place)).to(device.device)
        recompute = _recompute_adapter if "adapter" in settings else _recompute_mixture
        given = {name: tensor.to(device.device) for name, tensor in reference.items()}

        def compared(path: ExecutionPath) -> list[Group]:
            computed = recompute(_Fixture(clip, settings, given, path, device))
            return compare(file.stem, {name: tensor.cpu() for name, tensor in computed.items()}, reference)

        plain = compared(path)
        if all(group.passed for group in plain):
            return plain
        return judge(plain, [compared(DisturbedPath(path, draw)) for draw in range(draws)])
    except torch.OutOfMemoryError:
        raise
    except (KeyError, ValueError, TypeError, RuntimeError, IndexError) as error:
        raise FedvlmError(f"{file} and its tensors do not have the expected form: {error!r}") from error


@dataclass(frozen=True)
class _Fixture:
    """A fixture: CLIP, settings, stored tensors, and the path of execution."""

    clip: FrozenCLIP
    settings: dict[str, Any]
    reference: Named
    path: ExecutionPath
    device: Device

    @property
    def initial(self) -> Named:
        """Initial tensors."""
        return self.path.initial(_strip_prefix(self.reference, "init/"))

    def hidden(self, name: str, tuner: Tuner) -> Tensor:
        """Activations of stored images at a tuner's entry."""
        with torch.no_grad():
            return self.path.hidden(self.clip, self.reference[name], tuner.entry)


def _recompute_adapter(fixture: _Fixture) -> Named:
    shape, rounds = fixture.settings["adapter"], fixture.settings.get("federated")
    config: dict[str, Any] = {"first_block": shape["first_block"], "last_block": shape["last_block"]}
    config |= {"rank": shape["bottleneck"], "scale": shape["scale"]}
    if rounds:
        config |= {"lr": rounds["lr"], "momentum": rounds["momentum"], "weight_decay": rounds["weight_decay"]}
    method, names, template = PFedMMA(config), fixture.settings["classnames"], fixture.settings["prompt"]
    tuner = fixture.path.tuner(method.tuner(fixture.clip, names, template), method, fixture.clip, names, template)
    hidden = fixture.hidden("images", tuner)
    logits, loss, gradients = _step(lambda t: predict(tuner, t, tuner.classifier(t, {}), hidden)[0], fixture)
    result = {"logits": logits, "loss": loss} | {f"grad/{name}": tensor for name, tensor in gradients.items()}
    return result | (_federated(fixture, method, tuner) if rounds else {})


def _federated(fixture: _Fixture, method: PFedMMA, tuner: Tuner) -> Named:
    """Federated rounds of the stored clients, with the ordinary local training and aggregation."""
    rounds, result, losses = fixture.settings["federated"], Named(), list[float]()
    clients = [f"client{i}" for i in range(len(rounds["client_sizes"]))]
    own, server = dict.fromkeys(clients, fixture.initial), method.server(fixture.initial)
    images = {c: fixture.hidden(f"federated/{c}/images", tuner) for c in clients}
    labels = {c: fixture.reference[f"federated/{c}/labels"] for c in clients}
    for _ in range(rounds["rounds"]):
        jobs = []
        for c in clients:
            epochs = [batch for _ in range(rounds["local_epochs"])
                      for batch in _split_batches(images[c], labels[c], rounds["batch_size"])]  # fmt: skip
            jobs.append(LocalJob(own[c] | server, server, epochs))
        uplinks = []
        for c, done in zip(clients, fixture.path.train(method, tuner, jobs, fixture.device), strict=True):
            own[c], losses = done.tensors, losses + done.losses
            uplinks.append(Uplink(c, len(labels[c]), messages.shared_tensors(method, done.tensors)))
        server = method.aggregate(server, uplinks)
    result["federated/losses"] = torch.tensor(losses)
    result |= {f"federated/final/{name}": tensor for name, tensor in server.items()}
    hidden = fixture.hidden("images", tuner)
    for c in clients:
        last = own[c] | server
        result |= {f"federated/final/{c}/{n}": t for n, t in messages.private_tensors(method, last).items()}
        with torch.no_grad():
            result[f"federated/{c}/final_logits"] = predict(tuner, last, tuner.classifier(last, {}), hidden)[0]
    return result


def _recompute_mixture(fixture: _Fixture) -> Named:
    settings = fixture.settings
    gating, training = settings["gating"], settings.get("training")
    config: dict[str, Any] = {"tokens": settings["context_tokens"], "gate_width": gating["width"]}
    config |= {"place": settings["class_token_position"]}
    config |= {"heads": gating["heads"], "scaling": gating["scaling"], "local_weight": settings["local_logits_weight"]}
    if training:
        config |= {"lr": training["prompt_lr"], "gate_lr": training["gating_lr"]}
        config |= {"momentum": training["momentum"], "weight_decay": training["weight_decay"]}
    method, names = PFedMoAP(config), settings["classnames"]
    exact = PromptMixture(fixture.clip, names, method.config, settings["suffix"])
    if exact.stride != gating.get("feature_stride", exact.stride):
        raise FedvlmError(
            f"gating.feature_stride is {gating['feature_stride']}, features and width give {exact.stride}"
        )
    received = {f"{EXPERT}{i:04d}": prompt for i, prompt in enumerate(fixture.reference["experts"])}
    tuner = fixture.path.tuner(exact, method, fixture.clip, names, settings["suffix"])
    return _mixture_outputs(fixture, method, tuner, received)


def _mixture_outputs(fixture: _Fixture, method: PFedMoAP, tuner: Tuner, received: Named) -> Named:
    settings, reference = fixture.settings, fixture.reference
    features, hidden = fixture.clip.encode_image(reference["images"]), fixture.hidden("images", tuner)
    constants, result = tuner.prepare(received), {"image_features": features}
    for part, known in (("local_only", Named()), ("mixture", constants)):
        logits, loss, gradients = _step(
            lambda t, known=known: predict(tuner, t, tuner.classifier(t, known), hidden)[0],  # type: ignore[misc]
            fixture,
        )
        result |= {f"{part}/logits": logits, f"{part}/loss": loss}
        result |= {f"{part}/grad/{name}": tensor for name, tensor in gradients.items()}
    if "zero_shot_prompt" in settings:
        template = Template(fixture.clip, settings["classnames"], settings["zero_shot_prompt"])
        result["zero_shot/logits"] = template.logits({}, {"text": template.text}, features)
    if training := settings.get("training"):
        windows = _split_batches(hidden, reference["labels"], training["batch_size"])
        batches = [windows[step % len(windows)] for step in range(training["steps"])]
        (done,) = fixture.path.train(method, tuner, [LocalJob(fixture.initial, received, batches)], fixture.device)
        result |= {f"trained/{name}": tensor for name, tensor in done.tensors.items()}
        result["trained/losses"] = torch.tensor(done.losses)
        with torch.no_grad():
            classifier = tuner.classifier(done.tensors, constants)
            result["trained/logits"] = predict(tuner, done.tensors, classifier, hidden)[0]
    return result


def _step(logits: Callable[[Named], Tensor], fixture: _Fixture) -> tuple[Tensor, Tensor, Named]:
    """Logits, loss `[1]` and all gradients of the mean cross-entropy at the initial tensors."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in fixture.initial.items()}
    values = logits(leaves)
    loss = torch.nn.functional.cross_entropy(values, fixture.reference["labels"])
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    gradients = {name: g for name, g in zip(leaves, found, strict=True) if g is not None}
    return values.detach(), loss.detach()[None], gradients


def _split_batches(hidden: Tensor, labels: Tensor, size: int) -> list[Batch]:
    return list(zip(hidden.split(size), labels.split(size), strict=True))


def _strip_prefix(reference: Named, prefix: str) -> Named:
    return {name[len(prefix) :]: tensor for name, tensor in reference.items() if name.startswith(prefix)}
