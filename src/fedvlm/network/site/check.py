"""`fedvlm site check`: the photographs as the experiment uses them, and exactly what would leave, before it does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from fedvlm import tensors
from fedvlm.data import Federation
from fedvlm.experiment import Experiment
from fedvlm.federation import messages
from fedvlm.federation.exchange import Contract
from fedvlm.network.site.place import Experimented
from fedvlm.network.site.service import most_visits
from fedvlm.network.site.settings import SiteSettings


@dataclass(frozen=True)
class Leaving:
    """What would leave the site for one method with one seed."""

    method: str
    tensors: dict[str, tuple[list[int], int]]
    """Shape and bytes by name, of a round."""
    private: int
    """Number of trained values that stay."""
    rounds: int
    total_bytes: int
    """Bytes of tensors in all rounds together, at most."""
    most: int
    """Most visits that the policy allows; each may carry the bytes of a round."""
    trained: int
    """Number of trainings."""
    refused: list[str]
    """What the policy forbids; the method cannot take part then."""


@dataclass(frozen=True)
class Checked:
    """The findings of a check."""

    experiment: str
    """Its name."""
    seed: int
    """With which the images are dealt here."""
    digest: str
    approved: bool
    classes: list[tuple[str, int, int, int]]
    """Name, training, validation and test images; of the base classes, then of the novel ones."""
    missing: list[str]
    """Classes of the experiment without an image here."""
    notes: list[str]
    leaving: list[Leaving]
    metrics: list[str]
    """Metrics that may leave."""

    @property
    def allowed(self) -> bool:
        """Whether the policy allows all that the methods send."""
        return not any(one.refused for one in self.leaving)

    def as_json(self) -> dict[str, object]:
        """Plain values; images by class, tensors by name with shape and bytes."""
        classes = [
            {"class": name, "training_images": train, "validation_images": validation, "test_images": test}
            for name, train, validation, test in self.classes
        ]
        leaving = [
            asdict(one) | {"tensors": [{"tensor": name, "shape": shape, "bytes": size}
                                       for name, (shape, size) in one.tensors.items()]}
            for one in self.leaving
        ]  # fmt: skip
        return asdict(self) | {"classes": classes, "leaving": leaving, "allowed": self.allowed}


def check(settings: Experiment, site: SiteSettings) -> Checked:
    """Read the site's photographs for an experiment. Raises `FedvlmError` for what cannot be used."""
    running = Experimented.load(settings, site)
    seed = settings.seeds[0]
    dealt = running.loaded.seed(seed)
    rows = _classes(dealt.federation, dealt.validation)
    contracts = [running.contract(label, seed, 2) for label in settings.methods]
    leaving = [_leaving(contract, site) for contract in contracts]
    names = [metric.name for metric in contracts[0].spec.metrics]
    allowed = {"all": names, "none": []}.get(str(site.policy.metrics), site.policy.metrics)
    return Checked(
        settings.name, seed, settings.digest(), settings.digest() in site.policy.experiments, rows,
        [name for name, *counts in rows if not any(counts)], list(dealt.federation.notes), leaving,
        [name for name in names if name in allowed],
    )  # fmt: skip


def _classes(federation: Federation, validation: Federation | None) -> list[tuple[str, int, int, int]]:
    (client,) = federation.clients
    source = federation.source

    def counted(images: Sequence[int]) -> Counter[str]:
        return Counter(source.records[image].name for image in images)

    tests = counted([image for images in federation.tests.values() for image in images])
    held_out = counted([image for images in (validation.tests if validation else {}).values() for image in images])
    train = counted(client.train)
    return [(name, train[name], held_out[name], tests[name]) for name in source.classnames]


def _leaving(contract: Contract, site: SiteSettings) -> Leaving:
    spec, policy = contract.spec, site.policy
    sent = spec.may_cross
    rounds = spec.rounds if sent else 0
    size = tensors.nbytes(sent)
    refused = [f"{name}: policy.may_leave" for name in sent if not tensors.matches(name, policy.may_leave)]
    if size > policy.max_bytes:
        refused.append(f"{size:,} bytes a round: policy.max_bytes = {policy.max_bytes:,}")
    trained = spec.last_round if spec.method.trains else 0
    if (most := most_visits(policy, spec)) < spec.last_round + 1:
        refused.append(f"{spec.last_round + 1} visits: policy.visits = {most}")
    return Leaving(
        contract.label,
        {name: (list(tensor.shape), tensors.nbytes({name: tensor})) for name, tensor in sent.items()},
        tensors.count(messages.private_tensors(spec.method, spec.initial)), rounds, size * rounds, most, trained,
        refused,
    )  # fmt: skip
