"""What a personal model says of its client's own test images: for people who may see them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import PIL.Image

from fedvlm.personal.export import Origin
from fedvlm.personal.model import PersonalModel


@dataclass(frozen=True)
class Judged:
    """One test image: as it is, its class, the model's answer with its probability."""

    image: PIL.Image.Image
    label: str
    guess: str
    probability: float


def judge(model: PersonalModel, origin: Origin, most: int = 500) -> list[Judged]:
    """The model's answers on the client's own test images, the surest first; on the first `most` of them."""
    federation = origin.site.federation
    indices = origin.client.local[:most]
    images = [federation.source.records[index].image.open() for index in indices]
    labels = [federation.base_names[place] for place in federation.labels(indices)]
    said = model.predict(images, top=1, none_below=0.0)
    found = [Judged(image, label, one.labels[0], one.probabilities[0])
             for image, label, one in zip(images, labels, said, strict=True)]  # fmt: skip
    return sorted(found, key=lambda one: -one.probability)


def split(found: Sequence[Judged], count: int) -> tuple[list[Judged], list[Judged]]:
    """Up to `count` right and up to `count` wrong answers, the surest first."""
    right, wrong = ([one for one in found if (one.label == one.guess) is hit] for hit in (True, False))
    return right[:count], wrong[:count]
