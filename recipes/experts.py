"""How far clients' prompts lie apart, and what pFedMoAP's gate and experts do with them.

    python recipes/experts.py quickstart --seeds 1,2,3 --out experts-quickstart.json
    python recipes/experts.py quickstart method.pfedmoap.lr=1 --seeds 1,2,3 --out experts-quickstart-local.json

Trains a federation and asks, over all pairs of clients after the last local training:
- text features: 1 - cosine of the same class under two clients' prompts, beside that of two classes under one prompt
  and that between a trained prompt and the template;
- predictions: the share of base test images on which two clients' prompts name different classes;
- exchange: accuracy on a client's local test images with its own prompt, with another client's, and with none.
And of every client's model: the accuracy with its gate as trained, with the gate's weights drawn anew, with its experts
replaced by copies of its own prompt, and without gate (its prompt's own logits).
What experts are worth in a comparison, with intervals, is the preset ablation_mixture.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from fedvlm import durable, experiment, methods, overrides, presets
from fedvlm.federation import setup, simulation
from fedvlm.federation.client import evaluation_tensors
from fedvlm.federation.simulation import FederationState, Simulation
from fedvlm.methods.pfedmoap import EXPERT, PromptMixture
from fedvlm.reports.statistics import estimate
from fedvlm.streams import torch_stream
from fedvlm.tensors import Named, select

Numbers = dict[str, float]
GATES = 3
"""Random gates that are averaged."""


def study(settings: experiment.Experiment, method: str, seed: int) -> Numbers:
    """All numbers of one seed."""
    loaded = setup.load(settings)
    made = setup.simulation(loaded, loaded.seed(seed), methods.build(method, settings.method))
    before, state = trained(made)
    return distances(made, state) | gates(made, before, state)


def trained(made: Simulation) -> tuple[FederationState, FederationState]:
    """The states before and after the last round."""
    before = after = simulation.start(made)
    for state, _ in simulation.run_rounds(made, after):
        before, after = after, state
    return before, after


def tuner(made: Simulation) -> PromptMixture:
    """The method's tuner for the base classes."""
    found = made.site.base
    assert isinstance(found, PromptMixture)
    return found


@torch.no_grad()
def distances(made: Simulation, state: FederationState) -> Numbers:
    """Between clients' prompts: text features, predictions, and accuracies when they are exchanged."""
    mixture, site = tuner(made), made.site
    clients = [client for client in site.federation.trained if client.name in state.personal]
    texts = [F.normalize(mixture.prompt.features(state.personal[one.name]["prompt"]), dim=-1) for one in clients]
    plain = F.normalize(site.zero_shot[0].classifier({}, {})["text"], dim=-1) if site.zero_shot else texts[0]
    pairs = list(itertools.combinations(range(len(clients)), 2))
    apart = [(1 - (texts[i] * texts[j]).sum(-1)).mean() for i, j in pairs]
    moved = [(1 - (text * plain).sum(-1)).mean() for text in texts]
    between = [(1 - text @ text.T).sum() / (len(text) * (len(text) - 1)) for text in texts]

    def named(text: Tensor, images: Sequence[int]) -> Tensor:
        return (F.normalize(site.activations.get(images, mixture.entry).float(), dim=-1) @ text.T).argmax(-1)

    tests = sorted({image for client in clients for image in site.federation.tests[client.base]})
    guesses = [named(text, tests) for text in texts]
    differ = [(guesses[i] != guesses[j]).float().mean() for i, j in pairs]
    own, other, none = [], [], []
    for i, client in enumerate(clients):
        truth = site.labels(client.local)
        right = [(named(text, client.local) == truth).float().mean() for text in texts]
        own.append(right[i])
        other.append(torch.stack([one for j, one in enumerate(right) if j != i]).mean())
        none.append((named(plain, client.local) == truth).float().mean())
    return {
        "text: two clients, one class": mean(apart), "text: trained and template": mean(moved),
        "text: two classes, one prompt": mean(between), "predictions that differ (%)": 100 * mean(differ),
        "Local with the own prompt": 100 * mean(own), "Local with another client's": 100 * mean(other),
        "Local with the template": 100 * mean(none),
    }  # fmt: skip


def gates(made: Simulation, before: FederationState, state: FederationState) -> Numbers:
    """Local accuracy of the clients' models as they are, and with other gates and experts."""
    mixture = tuner(made)

    def accuracy(change: Callable[[Named, Named], tuple[Named, Named]]) -> float:
        found = []
        for client in made.site.federation.trained:
            received = made.procedure.downlink(made.spec, before, client.name)
            own = evaluation_tensors(made.spec, "after_training", state.personal.get(client.name), received)
            logits = made.site.logits(mixture, *change(own, received), client.local)
            found.append((logits.argmax(-1) == made.site.labels(client.local)).float().mean())
        return 100 * mean(found)

    def drawn(number: int) -> Callable[[Named, Named], tuple[Named, Named]]:
        fresh = mixture.config.start(torch_stream(made.spec.seed, "another gate", number))
        return lambda own, received: (own | fresh, received)

    def copies(own: Named, received: Named) -> tuple[Named, Named]:
        return own, received | dict.fromkeys(select(received, [f"{EXPERT}*"]), own["prompt"])

    def bare(own: Named, received: Named) -> tuple[Named, Named]:
        return own, {name: value for name, value in received.items() if not name.startswith(EXPERT)}

    return {
        "Local, gate as trained": accuracy(lambda own, received: (own, received)),
        "Local, gate drawn anew": sum(accuracy(drawn(number)) for number in range(GATES)) / GATES,
        "Local, experts are copies of the own prompt": accuracy(copies),
        "Local, no experts": accuracy(bare),
    }


def mean(values: Sequence[Tensor]) -> float:
    """As a number."""
    return float(torch.stack([value.double() for value in values]).mean())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("words", nargs="*", help="settings, as key=value")
    parser.add_argument("--method", default="pfedmoap", help="a method of the preset that is pFedMoAP")
    parser.add_argument("--seeds", default="1,2,3,4,5")
    parser.add_argument("--out", type=Path, default=Path("experts.json"))
    arguments = parser.parse_args()
    settings = experiment.parse(overrides.apply_words(presets.settings(arguments.preset), arguments.words))
    torch.set_num_threads(1)
    by_seed = {seed: study(settings, arguments.method, int(seed)) for seed in arguments.seeds.split(",")}
    durable.write_json(arguments.out, by_seed)
    for name in next(iter(by_seed.values())):
        found = estimate([numbers[name] for numbers in by_seed.values()])
        half = "" if found.half is None else f" ± {found.half:.3g}"
        print(f"{name:45} {found.mean:.3g}{half}")


if __name__ == "__main__":
    main()
