"""What a personal model says of its client's own test images: for people who may see them."""

from __future__ import annotations

from dataclasses import dataclass, field

import PIL.Image

from fedvlm.personal.export import Origin
from fedvlm.personal.model import PersonalModel

CHUNK = 32
"""Images that are held whole at a time."""


@dataclass(frozen=True)
class Judged:
    """One test image: small, its class, the model's answer with its probability."""

    image: PIL.Image.Image
    label: str
    guess: str
    probability: float


@dataclass
class Judgement:
    """The surest right and the surest wrong answers, and the numbers of all."""

    right: list[Judged] = field(default_factory=list)
    wrong: list[Judged] = field(default_factory=list)
    count_right: int = 0
    count_wrong: int = 0


def judge(model: PersonalModel, origin: Origin, side: int, keep: int = 12) -> Judgement:
    """The model's answers on all of the client's own test images; `keep` of each kind, at most `side` pixels long."""
    federation, found = origin.site.federation, Judgement()
    local = origin.client.local
    for first in range(0, len(local), CHUNK):
        indices = local[first : first + CHUNK]
        images = [federation.source.records[index].image.open() for index in indices]
        labels = [federation.base_names[place] for place in federation.labels(indices)]
        for image, label, said in zip(images, labels, model.predict(images, top=1, none_below=0.0), strict=True):
            image.thumbnail((side, side))
            one = Judged(image, label, said.labels[0], said.probabilities[0])
            hit = label == one.guess
            found.count_right, found.count_wrong = found.count_right + hit, found.count_wrong + (not hit)
            (found.right if hit else found.wrong).append(one)
        for kept in (found.right, found.wrong):
            kept.sort(key=lambda one: -one.probability)
            del kept[keep:]
    return found
