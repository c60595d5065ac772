"""A check whether the CLIP fits the images and class names: zero-shot accuracy on a sample, against chance."""

from __future__ import annotations

import math

from fedvlm.clip import FrozenCLIP
from fedvlm.data import Federation
from fedvlm.experiment import Experiment
from fedvlm.methods.zero_shot import ZeroShot
from fedvlm.streams import stream
from fedvlm.training import device as devices
from fedvlm.training.activations import Activations
from fedvlm.training.site import Site

AT_CHANCE = (
    "zero-shot is at chance: these weights know nothing of these images and class names, so Base and Novel say nothing "
    "here (random weights? wrong labels?)"
)


def zero_shot_check(
    clip: FrozenCLIP, federation: Federation, activations: Activations, experiment: Experiment, most: int = 256
) -> tuple[float, int, int]:
    """Zero-shot accuracy on a sample of the base test images, the sample's size, the number of classes.

    Every class has the same number of images in the sample, if there are enough, so that always answering with one
    class is no better than guessing.
    """
    sample = balanced_sample(federation, most)
    tuner = ZeroShot().tuner(clip, federation.base_names, experiment.evaluation.template)
    batch = devices.evaluation_batch(experiment.evaluation.batch, activations.device)
    site = Site(tuner, None, federation, activations, batch)
    logits, labels = site.logits(tuner, {}, {}, sample), site.labels(sample)
    return float((logits.argmax(-1) == labels).double().mean()), len(sample), len(federation.base)


def balanced_sample(federation: Federation, most: int) -> list[int]:
    """About `most` base test images in rising order, the same number of each class if there are enough."""
    indices = sorted({index for client in federation.clients for index in federation.tests[client.base]})
    by_class: dict[int, list[int]] = {}
    for index in stream(0, "zero-shot check").permutation(indices).tolist():
        by_class.setdefault(federation.source.records[index].label, []).append(index)
    each = max(1, most // len(by_class))
    return sorted(index for members in by_class.values() for index in members[:each])


def chance_threshold(count: int, classes: int) -> float:
    """The accuracy that guessing exceeds with a probability of about 0.001 (normal approximation, 3.1 sigma)."""
    chance = 1 / classes
    return chance + 3.1 * math.sqrt(chance * (1 - chance) / count)
