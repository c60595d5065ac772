"""Faults of the released data code: unordered class names, labels of other images, a missing client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

from fedvlm.data import Federation
from fedvlm.errors import FedvlmError
from fedvlm.experiment import Experiment
from fedvlm.faults.base import Fault
from fedvlm.methods import Method
from fedvlm.streams import stream

DROPPED_CLIENT = 5
"""Position of the missing client."""


@dataclass(frozen=True)
class Mislabelled(Federation):
    """A federation whose prompts or labels do not belong to its images."""

    order: Mapping[int, int] = field(default_factory=dict)
    """By source label id: the id whose name replaces its name."""
    lender: Mapping[int, int] = field(default_factory=dict)
    """By image: the image whose label it has."""

    @property
    def base_names(self) -> list[str]:
        """Class names as the prompts get them."""
        return [self.source.classnames[self.order.get(label, label)] for label in self.base]

    @property
    def novel_names(self) -> list[str]:
        """Class names as the prompts get them."""
        return [self.source.classnames[self.order.get(label, label)] for label in self.novel]

    def labels(self, images: Sequence[int]) -> list[int]:
        """Labels of the images, with the fault."""
        return super().labels([self.lender.get(image, image) for image in images])


def mislabel(federation: Federation) -> Mislabelled:
    """The same federation as a `Mislabelled`, without any fault yet."""
    return Mislabelled(**{part.name: getattr(federation, part.name) for part in fields(federation)})


class PermutedNames(Fault):
    """Prompt k does not belong to label k: base names and novel names are permuted, with a draw for each seed.

    Released, the order is that of a Python set and changes with every process.
    """

    name = "permuted_names"
    title = "class names in random order, so that prompt k is not of label k"
    code = "pFedMMA, pFedMoAP, FedOTP, FedPGP, FedMGP, PromptFolio, DP-FPL (DomainNet, Office-Caltech10)"
    where = "pFedMMA data_utils.py:645, 696, 1137, 1188; pFedMoAP utils/data_utils.py:446, 497, 705, 756"
    data = True

    def federation(self, federation: Federation, seed: int) -> Federation:
        """The federation with permuted names."""
        order: dict[int, int] = {}
        for part, labels in (("base", federation.base), ("novel", federation.novel)):
            order |= zip(labels, stream(seed, "fault", self.name, part).permutation(labels).tolist(), strict=True)
        return replace(mislabel(federation), order=order)


class DetachedLabels(Fault):
    """A client's labels belong to other images of the same domain, in training and in tests.

    Released, a client has its own labels, but its images are the first ones of the domain's file, the same for all
    clients of the domain. Here each image is dealt once: a random permutation of the domain's training images
    (of base classes), and of its test images, each time among base or novel classes. A client keeps its list of labels;
    label and image agree as often as by chance.
    """

    name = "detached_labels"
    title = "labels go with other images of the same domain, in training and tests"
    code = "pFedMMA, pFedMoAP, FedOTP, FedPGP (DomainNet, Office-Caltech10)"
    where = "pFedMoAP utils/data_utils.py:707, 721, 758, 772; pFedMMA data_utils.py:1138-1210"
    data = True

    def federation(self, federation: Federation, seed: int) -> Federation:
        """The federation with exchanged images; clients keep their labels."""
        to: dict[int, int] = {}
        for number, group in enumerate(_exchange_groups(federation)):
            moved = stream(seed, "fault", self.name, number).permutation(group).tolist()
            to |= zip(group, moved, strict=True)

        def exchanged(images: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(sorted(to[image] for image in images))

        clients = tuple(replace(client, train=exchanged(client.train), local=exchanged(client.local))
                        for client in federation.clients)  # fmt: skip
        tests = {name: exchanged(images) for name, images in federation.tests.items()}
        wrong = mislabel(federation)
        lender = {image: wrong.lender.get(origin, origin) for origin, image in to.items()}
        return replace(wrong, clients=clients, tests=tests, lender=lender)


def _exchange_groups(federation: Federation) -> list[list[int]]:
    """Groups of images that are exchanged: of one domain and split, all of base or all of novel classes."""
    records, base = federation.source.records, set(federation.base)
    trained = {image for client in federation.clients for image in client.train}
    tested = {image for client in federation.clients for image in client.local}
    tested |= {image for images in federation.tests.values() for image in images}
    splits = {records[image].split for image in trained}
    groups: dict[tuple[str | None, bool, bool], list[int]] = {}
    for image, record in enumerate(records):
        spare = record.label in base and record.split in splits
        if image in tested or image in trained or spare:
            groups.setdefault((record.domain, image in tested, record.label in base), []).append(image)
    return list(groups.values())


class MissingClient(Fault):
    """Client 5 (counted from 0) is neither trained nor tested."""

    name = "missing_client"
    title = "client 5 is left out of training and tests"
    code = "FedPGP, pFedMMA (their PromptFL and local rows)"
    where = "pFedMMA federated_main.py:314, 366: idxs_users.pop(5)"
    methods = ("coop", "promptfl")

    @classmethod
    def applies(cls, method: Method, experiment: Experiment) -> bool:
        """Whether there may be enough clients, as far as the settings tell."""
        known = None if experiment.partition.kind == "domain" else experiment.partition.clients
        return method.name in cls.methods and (known is None or known > DROPPED_CLIENT)

    def federation(self, federation: Federation, seed: int) -> Federation:
        """The federation without client 5."""
        trained = federation.trained
        if len(trained) <= DROPPED_CLIENT:
            raise FedvlmError(
                f"fault '{self.name}' needs {DROPPED_CLIENT + 1} clients, here are {len(trained)}: leave it out"
            )
        return replace(federation, clients=tuple(c for c in federation.clients if c is not trained[DROPPED_CLIENT]))
