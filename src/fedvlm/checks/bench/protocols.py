"""Protocols of `fedvlm bench`: published ones at real size, and quickstart on the embedded CLIP."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedvlm import experiment, overrides, presets
from fedvlm.errors import FedvlmError, nearest
from fedvlm.experiment import Experiment


@dataclass(frozen=True)
class BenchProtocol:
    """One protocol: an experiment of one method, and its target ratios of speed."""

    name: str
    title: str
    preset: str
    method: str
    words: tuple[str, ...] = ()
    model: str | None = None
    """Architecture of a CLIP with random weights; None: the preset's own."""
    data: str | None = None
    """Folder below the data folder."""
    whole: float | None = None
    """Target ratio of the whole run, including the encoding of activations."""
    warm: float | None = None
    """Target ratio of one round with cached activations."""


QUICKSTART = "quickstart on the embedded CLIP"
_MOAP = "10 clients, 100 classes, 16 shots, E=5, batch 16"
_MMA = "10 clients, 50 base classes, 16 shots, E=2, batch 32"

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        BenchProtocol("moap", f"pFedMoAP, ViT-B/16, {_MOAP}, bank of 4", "few_shot", "pfedmoap", ("views=4",),
                 "ViT-B/16", "caltech-101", whole=15, warm=25),
        BenchProtocol("moap-online", f"pFedMoAP, ViT-B/16, {_MOAP}, online", "few_shot", "pfedmoap", (),
                 "ViT-B/16", "caltech-101", warm=4),
        BenchProtocol("moap-rn50", f"pFedMoAP, RN50, {_MOAP}, bank of 4", "few_shot", "pfedmoap", ("views=4",),
                 "RN50", "caltech-101", warm=15),
        BenchProtocol("moap-cifar",
                 "pFedMoAP, RN50, 10 of 100 clients a round, 100 classes, 500 images each, E=5, batch 16",
                 "few_shot", "pfedmoap",
                 ("data.source=scenes", "data.base_classes=100", "data.novel_classes=0", "data.shots=500",
                  "data.test_per_class=100", "data.val_per_class=0", "partition.kind=dirichlet",
                  "partition.alpha=0.5", "partition.clients=100", "participation=0.1", "views=none"),
                 "RN50", None, warm=20),
        BenchProtocol("mma", f"pFedMMA, ViT-B/16, {_MMA}, bank of 4", "base_to_novel", "pfedmma",
                 ("views=4",), "ViT-B/16", "caltech-101", warm=2),
        BenchProtocol("mma-online", f"pFedMMA, ViT-B/16, {_MMA}, online", "base_to_novel", "pfedmma", (),
                 "ViT-B/16", "caltech-101", warm=1.5),
        BenchProtocol("promptfl", f"PromptFL, ViT-B/16, {_MOAP}, bank of 4", "few_shot", "promptfl", ("views=4",),
                 "ViT-B/16", "caltech-101", warm=12),
        BenchProtocol("coop", f"CoOp, ViT-B/16, {_MOAP}, bank of 4", "few_shot", "coop", ("views=4",),
                 "ViT-B/16", "caltech-101", warm=12),
        *(BenchProtocol(f"quickstart-{method}", f"{method}, {QUICKSTART}", "quickstart", method, (),
                   warm=4)
          for method in ("coop", "promptfl", "local_mma", "fedmma", "pfedmma", "pfedmoap")),
    )
}  # fmt: skip


def find_protocol(name: str) -> BenchProtocol:
    """A protocol by its name. Raises FedvlmError with the nearest name if there is none."""
    if name not in PROTOCOLS:
        raise FedvlmError(f"no bench protocol '{name}'{nearest(name, PROTOCOLS)}; known: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def protocol_experiment(protocol: BenchProtocol, data: Path, model: str | None) -> Experiment:
    """The protocol's experiment on local data and a local model."""
    words = ["evaluation.every=1", *protocol.words, f"methods={protocol.method}", "seeds=0"]
    words += [f"data.path={data / protocol.data}"] if protocol.data else []
    words += [f"model.name={model}"] if model else []
    base = presets.settings(protocol.preset)
    if protocol.model and not protocol.data:
        # Drawn images in the place of the preset's, whose tables of data and partition are dropped.
        base = {key: value for key, value in base.items() if key not in ("data", "partition")}
    return experiment.parse(overrides.apply_words(base, words))
