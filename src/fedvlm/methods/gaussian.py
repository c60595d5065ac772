"""A Gaussian discriminant of the client's own images (Wang et al., ICLR 2024), without training.

x a normalised image feature, z the zero-shot logits, mu_c the mean of class c's images, n images in all with mean m:

    logits_c = z_c + weight (mu_c' P x - mu_c' P mu_c / 2)
    P = E ((n - 1) S + tr(S) I)^-1,  S the covariance within classes

The precision is the paper's. A class without images gets mu_c = m + t_c - (mean of the own classes' t), t the text
features: moved from the client's mean image as its text is from theirs (ours). Over class lists that are not the
client's it is zero-shot. Nothing crosses.

Tensors: none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from fedvlm.clip import FrozenCLIP, in_float32
from fedvlm.methods.zero_shot import TemplateConfig, ZeroShot
from fedvlm.tensors import Named
from fedvlm.tuners.base import SupportSet
from fedvlm.tuners.template import Template


class GaussianConfig(TemplateConfig):
    """Weight of the discriminant, the same for all clients."""

    weight: Annotated[float, Field(ge=0)] = 1.0


class Discriminant(Template):
    """Zero-shot and a linear discriminant `slope [K, E]`, `offset [K]`."""

    def __init__(self, clip: FrozenCLIP, classnames: Sequence[str], templates: Sequence[str], weight: float) -> None:
        super().__init__(clip, classnames, *templates)
        self.weight = weight

    def prepare(self, received: Named, support: SupportSet | None = None) -> Named:
        """Means and precision of the client's images, in float64."""
        if support is None:
            return {}
        hidden, labels = support()
        image = F.normalize(hidden, dim=-1).double()
        means = self._means(image, labels)
        inner = image - means[labels]
        scatter, count, width = inner.T @ inner, len(image), image.shape[1]
        covariance = scatter / max(1, count - 1)
        spread = torch.eye(width, dtype=image.dtype, device=image.device) * covariance.trace().clamp(min=1e-12)
        slope = width * torch.linalg.solve(scatter + spread, means.T).T
        offset = -0.5 * (slope * means).sum(-1)
        return {"slope": (self.weight * slope).float(), "offset": (self.weight * offset).float()}

    def _means(self, image: Tensor, labels: Tensor) -> Tensor:
        """`[K, E]`: of the images of each class, or moved by the text features where there are none."""
        held = F.one_hot(labels, len(self.text)).to(image.dtype)
        counts, text = held.sum(0), self.text.to(image.dtype)
        moved = image.mean(0) + text - text[counts > 0].mean(0)
        return torch.where(counts[:, None] > 0, held.T @ image / counts.clamp(min=1)[:, None], moved)

    def logits(self, tensors: Named, classifier: Named, hidden: Tensor) -> Tensor:
        """Image features `[B, E]` to `[B, K]`."""
        logits = super().logits(tensors, classifier, hidden)
        if "slope" not in classifier:
            return logits
        with in_float32(hidden):
            return logits + F.normalize(hidden, dim=-1) @ classifier["slope"].T + classifier["offset"]


class Gaussian(ZeroShot):
    """A Gaussian discriminant of the client's images beside the text classifier."""

    name = "gaussian"
    title = "Gaussian discriminant"
    paper = "Wang et al., ICLR 2024"
    Config = GaussianConfig  # type: ignore[assignment]
    config: GaussianConfig

    def tuner(self, clip: FrozenCLIP, classnames: Sequence[str], template: str) -> Discriminant:
        """The template's text features with the discriminant, for a class list."""
        return Discriminant(clip, classnames, self.config.texts(template), self.config.weight)
