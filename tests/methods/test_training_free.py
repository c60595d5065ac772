"""Methods without training against their formulas, image by image."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fedvlm.clip import FrozenCLIP
from fedvlm.data import Federation
from fedvlm.methods import build
from fedvlm.methods.zero_shot_prior import Prior
from fedvlm.testing import tiny
from fedvlm.training.evaluation import compute_outputs

TEMPLATE = "a photo of a {}."
LABELS = [0, 0, 2, 0, 2, 2, 2]
"""Of the client's own images: three of class 0, four of class 2, none of 1 and 3."""


@pytest.fixture(scope="module")
def text(clip: FrozenCLIP, fed: Federation) -> np.ndarray:
    return F.normalize(clip.classifier(fed.base_names, TEMPLATE), dim=-1).double().numpy()


def features(count: int, seed: int) -> Tensor:
    return torch.randn(count, 16, generator=torch.Generator().manual_seed(seed))


def unit(x: Tensor) -> np.ndarray:
    values = x.double().numpy()
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def logits(name: str, clip: FrozenCLIP, fed: Federation, labels: list[int] = LABELS, **settings: Any) -> np.ndarray:
    """Of five images, for a client whose own images have these labels."""
    method = tiny.method(name, **settings)
    tuner = method.tuner(clip, fed.base_names, TEMPLATE)
    own = features(len(labels), 1), torch.tensor(labels)
    start = tiny.simulation(method, clip, fed).spec.initial
    classifier = tuner.classifier(start, tuner.prepare({}, lambda: own))
    return tuner.logits(start, classifier, features(5, 2)).double().numpy()


def zero(text: np.ndarray) -> np.ndarray:
    return 20 * unit(features(5, 2)) @ text.T


def near(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(abs(one - other).max() < 1e-4 * max(1.0, abs(other).max()))


@pytest.mark.parametrize(("weight", "sharpness"), [(1.0, 5.5), (0.3, 1.0), (2.0, 20.0)])
@pytest.mark.parametrize("name", ["tip_adapter", "pfedprompt"])
def test_the_memory_by_a_loop(
    name: str, weight: float, sharpness: float, clip: FrozenCLIP, fed: Federation, text: np.ndarray
) -> None:
    """weight sum_i exp(-sharpness (1 - cos)) over the remembered images of each class, beside the text's logits."""
    known, images = unit(features(7, 1)), unit(features(5, 2))
    if name == "pfedprompt":
        method = tiny.method(name)
        prompt = tiny.simulation(method, clip, fed).spec.initial
        text = method.tuner(clip, fed.base_names, "").classifier(prompt, {})["text"].double().numpy()
    expected = zero(text)
    for b, image in enumerate(images):
        for other, label in zip(known, LABELS, strict=True):
            expected[b, label] += weight * math.exp(-sharpness * (1 - image @ other))
    assert near(logits(name, clip, fed, weight=weight, sharpness=sharpness), expected)


@pytest.mark.parametrize("weight", [1.4, 0.5])
def test_the_prior_by_hand(weight: float, clip: FrozenCLIP, fed: Federation, text: np.ndarray) -> None:
    """(3 + 1, 0 + 1, 4 + 1, 0 + 1) of 11."""
    bonus = np.log(np.array([4, 1, 5, 1]) / 5)
    assert near(logits("zero_shot_prior", clip, fed, weight=weight), zero(text) + weight * bonus)
    assert near(logits("majority", clip, fed), np.broadcast_to(bonus, (5, 4)))


@pytest.mark.parametrize("images", [4, 2])
def test_the_prior_of_as_many_images_as_classes_and_of_fewer(images: int, clip: FrozenCLIP, fed: Federation) -> None:
    """All of class 2: (0 + 1, 0 + 1, n + 1, 0 + 1), divided by the largest."""
    bonus = -np.log(images + 1) * np.array([1, 1, 0, 1])
    assert near(logits("majority", clip, fed, [2] * images), np.broadcast_to(bonus, (5, 4)))


def test_the_documented_bonus() -> None:
    """2 of 20 classes with 16 images of each: the default weight puts own classes 1.4 log 17 = 4 above the others."""
    weight = build("zero_shot_prior").config.weight  # type: ignore[attr-defined]
    bonus = weight * Prior.prior(torch.tensor([16.0] * 2 + [0.0] * 18))
    assert (bonus[:2, None] - bonus[None, 2:]).numpy() == pytest.approx(4, abs=0.05)


def test_large_weights(clip: FrozenCLIP, fed: Federation, text: np.ndarray) -> None:
    """Own classes only where they are equally frequent; the most frequent class where one is."""
    own = logits("zero_shot_own", clip, fed)
    expected = zero(text)[:, [0, 2]].argmax(1) * 2
    assert own.argmax(1).tolist() == expected.tolist()
    even, odd = [0, 2, 0, 2], LABELS
    assert logits("zero_shot_prior", clip, fed, even, weight=1e3).argmax(1).tolist() == expected.tolist()
    assert logits("zero_shot_prior", clip, fed, odd, weight=1e3).argmax(1).tolist() == [2] * 5
    assert logits("majority", clip, fed).argmax(1).tolist() == [2] * 5
    assert logits("majority", clip, fed, even).argmax(1).tolist() == [0] * 5


@pytest.mark.parametrize("held", [LABELS, [0, 2, 2, 2, 2, 2, 2]], ids=["several of each", "one of a class"])
@pytest.mark.parametrize("weight", [1.0, 0.2])
def test_the_discriminant_by_numpy(
    weight: float, held: list[int], clip: FrozenCLIP, fed: Federation, text: np.ndarray
) -> None:
    """mu' P x - mu' P mu / 2 with P = E ((n - 1) S + tr(S) I)^-1; S by numpy's covariance of the centred images."""
    known, images, labels = unit(features(7, 1)), unit(features(5, 2)), np.array(held)
    means = np.stack([known[labels == k].mean(0) if k in held else known.mean(0) + text[k] - text[[0, 2]].mean(0)
                      for k in range(4)])  # fmt: skip
    covariance = np.cov((known - means[labels]).T)
    precision = 16 * np.linalg.inv(6 * covariance + np.trace(covariance) * np.eye(16))
    expected = zero(text)
    for b, image in enumerate(images):
        for k, mean in enumerate(means):
            expected[b, k] += weight * (mean @ precision @ image - mean @ precision @ mean / 2)
    assert near(logits("gaussian", clip, fed, held, weight=weight), expected)


def test_the_discriminant_of_one_image_of_each_class_is_finite(clip: FrozenCLIP, fed: Federation) -> None:
    assert np.isfinite(logits("gaussian", clip, fed, [0, 2])).all()
    assert np.isfinite(logits("gaussian", clip, fed, [1])).all()


@pytest.mark.parametrize("name", ["tip_adapter", "gaussian", "zero_shot_prior", "pfedprompt"])
def test_a_client_is_measured_with_its_own_images(name: str, clip: FrozenCLIP, fed: Federation) -> None:
    """Two clients of one method differ though nothing was trained, and each by its own training images alone."""
    task = tiny.simulation(tiny.method(name), clip, fed)
    one, other = (compute_outputs(task.site, fed.clients[n], task.spec.initial, {}).base.logits for n in (0, 2))
    assert (one - other).abs().max() > 1e-3
    tuner, client = task.site.base, fed.clients[2]
    own = task.site.activations.get(client.train, tuner.entry), task.site.labels(client.train)
    hidden = task.site.activations.get(fed.tests["base"], tuner.entry)
    expected = tuner.logits(
        task.spec.initial, tuner.classifier(task.spec.initial, tuner.prepare({}, lambda: own)), hidden
    )
    assert (other - expected).abs().max() < 1e-5


def test_templates_are_averaged_after_and_before_normalising(clip: FrozenCLIP, fed: Federation) -> None:
    """Radford et al., section 3.1.4: the mean of normalised text features, normalised again."""
    templates = ["a photo of a {}.", "the {}", "a drawing of {}, small"]
    mean = sum(unit(clip.classifier(fed.base_names, template)) for template in templates) / 3
    text = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    for name in ("zero_shot", "zero_shot_own", "tip_adapter"):
        tuner = tiny.method(name, templates=templates).tuner(clip, fed.base_names, TEMPLATE)
        assert near(tuner.text.double().numpy(), text)  # type: ignore[attr-defined]
