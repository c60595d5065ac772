"""Controls that know a client's classes and nothing else, without training.

With n_c of the client's n training images in class c, of K classes, z the zero-shot logits:

    pi_c = (n_c + 1) / (n + K)
    logits_c = z_c + weight log(pi_c / max pi)          zero_shot_prior: Bayes' rule with the client's class frequencies
    logits_c = z_c, or -10^4 where n_c = 0              zero_shot_own: only own classes are ever answered
    logits_c = log(pi_c / max pi)                       majority: the image is not looked at

zero_shot_own is the limit of a large weight where a client's classes are equally frequent, majority its limit where one
is most frequent. Over other class lists (novel classes) the first two are zero-shot and the third is a guess. For a
client with 2 of 20 classes and 16 images of each, weight 1.4 adds 4 to the logits of its own classes.

Nothing crosses; a client's class counts stay with it.

Tensors: none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedvlm.clip import FrozenCLIP
from fedvlm.methods.zero_shot import TemplateConfig, ZeroShot
from fedvlm.tensors import Named
from fedvlm.tuners.base import SupportSet
from fedvlm.tuners.template import Template

NEVER = -1e4


class PriorConfig(TemplateConfig):
    """Weight of the class prior, the same for all clients."""

    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.4
    """Factor on the logarithm of the class frequencies; 1 would be Bayes' rule if CLIP's logits were calibrated."""


class Prior(Template):
    """Zero-shot logits, and a bonus for each class, `bonus [K]`, made from the client's counts."""

    def __init__(
        self, clip: FrozenCLIP, classnames: Sequence[str], templates: Sequence[str], weight: float = 1.0
    ) -> None:
        super().__init__(clip, classnames, *templates)
        self.weight = weight

    def prepare(self, received: Named, support: SupportSet | None = None) -> Named:
        """`bonus [K]`; nothing for a class list that is not the client's."""
        if support is None:
            return {}
        counts = torch.bincount(support()[1], minlength=len(self.text))
        return {"bonus": self.bonus(counts.float())}

    def bonus(self, counts: Tensor) -> Tensor:
        """weight log(pi / max pi) of class counts `[K]`."""
        return self.weight * self.prior(counts)

    @staticmethod
    def prior(counts: Tensor) -> Tensor:
        """log(pi / max pi) of class counts `[K]`."""
        frequency = (counts + 1) / (counts.sum() + len(counts))
        return (frequency / frequency.max()).log()

    def logits(self, tensors: Named, classifier: Named, hidden: Tensor) -> Tensor:
        """Image features `[B, E]` to `[B, K]`."""
        return super().logits(tensors, classifier, hidden) + classifier.get("bonus", 0.0)


class Restricted(Prior):
    """Zero-shot logits that are never highest for a class the client has no image of."""

    def bonus(self, counts: Tensor) -> Tensor:
        """0 for own classes, `NEVER` for the others."""
        return torch.where(counts > 0, 0.0, NEVER)


class Blind(Prior):
    """The class prior alone, whatever its weight."""

    def bonus(self, counts: Tensor) -> Tensor:
        """log(pi / max pi)."""
        return self.prior(counts)

    def logits(self, tensors: Named, classifier: Named, hidden: Tensor) -> Tensor:
        """`[B, K]`, the same for every image."""
        bonus = classifier.get("bonus", hidden.new_zeros(len(self.text)))
        return bonus.expand(len(hidden), -1)


class ZeroShotPrior(ZeroShot):
    """Zero-shot plus the client's class prior; its trade-off is a curve over the prior's weight."""

    name = "zero_shot_prior"
    title = "zero-shot + class prior"
    paper = "control"
    Config = PriorConfig  # type: ignore[assignment]
    config: PriorConfig
    mixing: ClassVar[tuple[float, ...]] = (-4.0, -3.0, -2.0, -1.5, -1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0)

    def tuner(self, clip: FrozenCLIP, classnames: Sequence[str], template: str) -> Prior:
        """The template's text features and the prior."""
        return Prior(clip, classnames, self.config.texts(template), self.config.weight)


class ZeroShotOwn(ZeroShot):
    """Zero-shot among the client's own classes."""

    name = "zero_shot_own"
    title = "zero-shot, own classes only"
    paper = "control"
    kind: ClassVar[type[Prior]] = Restricted
    mixing: ClassVar[tuple[float, ...]] = (0.0, 1.0)

    def tuner(self, clip: FrozenCLIP, classnames: Sequence[str], template: str) -> Prior:
        """The template's text features and what the client's counts say."""
        return self.kind(clip, classnames, self.config.texts(template))


class Majority(ZeroShotOwn):
    """The client's most frequent class, whatever the image (the first by label among equals)."""

    name = "majority"
    title = "majority class"
    kind = Blind
