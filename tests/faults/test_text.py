"""Text features that were computed once."""

from __future__ import annotations

import torch

from fedvlm import faults
from fedvlm.data import Client
from fedvlm.experiment import Experiment
from fedvlm.federation.simulation import FederationState, Simulation, client_outputs, run_rounds, start
from fedvlm.tensors import Named
from fedvlm.testing import tiny
from fedvlm.tuners.base import Tuner


def logits(task: Simulation, tuner: Tuner, image: Named, text: Named, images: tuple[int, ...]) -> torch.Tensor:
    """The image tower under one client's tensors, the text tower under another's."""
    hidden = task.site.activations.get(images, tuner.entry)
    with torch.no_grad():
        return tuner.logits(image, tuner.classifier(text, {}), hidden)


def test_local_uses_client_0s_first_text_and_base_and_novel_its_last() -> None:
    right = tiny.simulation(tiny.method("pfedmma"), tiny.clip(), tiny.federation(), rounds=3)
    wrong = faults.FaultSet(right.spec.method, Experiment(faults=["stale_text"])).simulation(right)
    states: list[FederationState] = [start(wrong), *(state for state, _ in run_rounds(wrong, start(wrong)))]
    first = states[1].personal["site-0"]
    before, after = states[2], states[3]
    clients = wrong.site.federation.clients

    def mixed(client: Client) -> Named:
        return wrong.spec.assemble(
            after.personal[client.name], wrong.procedure.downlink(wrong.spec, after, client.name)
        )

    last = mixed(clients[0])
    client_outputs(
        wrong, wrong.site, before, after, clients[0], "after_aggregation"
    )  # as a simulation does, client 0 first
    for client in clients:
        found = client_outputs(wrong, wrong.site, before, after, client, "after_aggregation")
        own, bench = mixed(client), wrong.site
        assert found.local is not None
        assert found.novel is not None
        assert bench.novel is not None
        torch.testing.assert_close(found.local.logits, logits(wrong, bench.base, own, first, client.local))
        torch.testing.assert_close(
            found.base.logits, logits(wrong, bench.base, own, last, bench.federation.tests["base"])
        )
        torch.testing.assert_close(
            found.novel.logits, logits(wrong, bench.novel, own, last, bench.federation.tests["novel"])
        )
        live = client_outputs(right, right.site, before, after, client, "after_aggregation")
        assert live.local is not None
        assert not torch.allclose(live.local.logits, found.local.logits, atol=1e-3)


def test_training_is_untouched() -> None:
    right = tiny.simulation(tiny.method("pfedmma"), tiny.clip(), tiny.federation(), rounds=2)
    wrong = faults.FaultSet(right.spec.method, Experiment(faults=["stale_text"])).simulation(right)
    assert tiny.fingerprint(tiny.run(right)[0]) == tiny.fingerprint(tiny.run(wrong)[0])
