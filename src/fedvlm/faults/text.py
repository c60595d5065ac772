"""The fault of pFedMMA's tests: text features that are computed once."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fedvlm.data import Client
from fedvlm.faults.base import Fault
from fedvlm.federation.client import ClientInput, ClientUpdate
from fedvlm.federation.procedure import Procedure, ProcedureWrapper
from fedvlm.federation.simulation import Simulation
from fedvlm.federation.spec import RunSpec
from fedvlm.tensors import Named
from fedvlm.training.metrics import Outputs
from fedvlm.training.optimizers import OptimizerFactory
from fedvlm.training.site import Site
from fedvlm.tuners.base import Tuner


class StaleText(Fault):
    """Every client is tested with text features of client 0; its own text adapters are used in training only.

    Local uses the features of the first client after its first training, for all clients and rounds. Base and Novel,
    which the released code measures in another process, use those of the first client's present tensors.
    """

    name = "stale_text"
    title = "all clients are tested with text features of client 0: Local with those of its first visit"
    code = "pFedMMA"
    where = "pFedMMA trainers/pFedMMA.py:173, 202-211 (inherited from MMA, where there is one test)"
    methods = ("fedmma", "local_mma", "pfedmma")

    def simulation(self, run: Simulation) -> Simulation:
        """The run with fixed text features in evaluations."""
        return replace(run, procedure=_StaleText(run.procedure))


class _StaleText(ProcedureWrapper):
    def __init__(self, inner: Procedure) -> None:
        super().__init__(inner)
        self.first: Tensor | None = None
        """Base text features `[K, E]` of the first client after its first training."""
        self.last: tuple[Tensor, Tensor | None] | None = None
        """Base and novel text features of the first client in the present evaluation."""

    def train_one(
        self, spec: RunSpec, site: Site, round_: int, one: ClientInput, factory: OptimizerFactory
    ) -> ClientUpdate:
        """Train correctly, and store the text features of the first client."""
        update = super().train_one(spec, site, round_, one, factory)
        if self.first is None:
            self.first = _text_features(site, site.base, update.personal)
        return update

    def outputs(self, site: Site, client: Client, tensors: Named, received: Named) -> Outputs:
        """Predict with the stored text features."""
        # Clients are measured in order; after a round without evaluation a newcomer may be the first.
        if self.last is None or client.name == site.federation.trained[0].name:
            novel = None if site.novel is None else _text_features(site, site.novel, tensors)
            self.last = _text_features(site, site.base, tensors), novel
        assert self.first is not None
        local = super().outputs(_fix_text(site, self.first, None), client, tensors, received)
        general = super().outputs(_fix_text(site, *self.last), client, tensors, received)
        return replace(general, local=local.local)


@torch.no_grad()
def _text_features(site: Site, tuner: Tuner, tensors: Named) -> Tensor:
    """Normalised text features of a class list under a client's tensors."""
    device = site.activations.device
    with device.autocast():
        return tuner.classifier({name: device.send(tensor) for name, tensor in tensors.items()}, {})["text"]


def _fix_text(site: Site, base: Tensor, novel: Tensor | None) -> Site:
    """The site with fixed text features; without novel features no novel class is evaluated."""
    fixed = None if novel is None or site.novel is None else FixedText(site.novel, novel)
    return replace(site, base=FixedText(site.base, base), novel=fixed)


class FixedText:
    """A tuner with fixed text features."""

    def __init__(self, inner: Tuner, text: Tensor) -> None:
        self.inner, self.text = inner, text
        self.entry, self.init, self.prepare, self.logits = inner.entry, inner.init, inner.prepare, inner.logits

    def classifier(self, tensors: Named, constants: Named) -> Named:
        """The fixed features, `text [K, E]`."""
        return {"text": self.text}
