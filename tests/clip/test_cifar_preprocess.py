"""The released CIFAR transform against independent computations, and apart from the CLIP's own."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
import torch
from torch.nn import functional as F

from fedvlm.clip.preprocess import CifarPreprocess, Preprocess, select
from fedvlm.errors import FedvlmError
from fedvlm.testing import tiny

# pFedMoAP and FedOTP, Dassl/dassl/data/data_manager.py, class DatasetCifar100
MEAN = {"cifar10": (0.4914, 0.4822, 0.4465), "cifar100": (0.5071, 0.4865, 0.4409)}
STD = {"cifar10": (0.2023, 0.1994, 0.2010), "cifar100": (0.2673, 0.2564, 0.2762)}


def photo(side: int = 32) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(3).integers(0, 256, (side, side, 3)).astype(np.uint8))


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
@pytest.mark.parametrize("antialias", [False, True])
def test_values_are_those_of_torch(kind: str, antialias: bool) -> None:
    """ToTensor, Normalise, Resize of the tensor. Older torchvision did not antialias tensors, newer does: for enlarging
    both are the same to rounding."""
    image = photo()
    tensor = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float().div(255)
    mean, std = (torch.tensor(values[kind])[:, None, None] for values in (MEAN, STD))
    expected = F.interpolate(
        ((tensor - mean) / std)[None], (224, 224), mode="bilinear", align_corners=False, antialias=antialias
    )
    own = select(Preprocess(224), kind)
    found = own.normalise(own.test(image)[None])
    assert found.shape == (1, 3, 224, 224)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < (1e-5 if antialias else 1e-7)


def test_values_by_hand() -> None:
    """Pixel i of 224 lies at (i + 1/2) / 7 - 1/2 of 32, held inside: a weighted mean of its two neighbours."""
    image = photo()
    own = select(Preprocess(224), "cifar10")
    found = own.normalise(own.test(image)[None])[0].double().numpy()
    plain = (np.asarray(image) / 255 - MEAN["cifar10"]) / STD["cifar10"]
    for row, column in ((0, 0), (223, 5), (100, 101), (17, 223)):
        places = [min(max((at + 0.5) / 7 - 0.5, 0), 31) for at in (row, column)]
        (top, left), (down, right) = [int(p) for p in places], [p - int(p) for p in places]
        corners = plain[top : top + 2, left : left + 2]
        weights = np.outer([1 - down, down][: len(corners)], [1 - right, right][: corners.shape[1]])
        expected = np.einsum("ab,abc->c", weights, corners)
        assert np.allclose(found[:, row, column], expected, atol=1e-5)


def test_it_differs_from_the_clip_s_own() -> None:
    image, own = photo(), Preprocess(224)
    other = select(own, "cifar10")
    assert (own.normalise(own.test(image)[None]) - other.normalise(other.test(image)[None])).abs().max() > 0.3


def test_activations_are_kept_apart() -> None:
    every = [select(Preprocess(size), kind) for size in (48, 224) for kind in ("clip", "cifar10", "cifar100")]
    # Even with the same means and deviations it is another transform.
    every.append(Preprocess(224, MEAN["cifar10"], STD["cifar10"]))
    assert len({one.identity for one in every}) == 7
    assert select(every[0], "clip") is every[0]


def test_other_images_and_augmentation_are_refused() -> None:
    own = CifarPreprocess(48)
    with pytest.raises(FedvlmError, match=r'32 x 32.*one has 40 x 40.*data\.preprocess = "clip"'):
        own.test(photo(40))
    with pytest.raises(FedvlmError, match='no augmentation: set views = "none"'):
        own.augment(photo(), tiny.draws())
