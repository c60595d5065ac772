"""The released procedure and ours give the same federated run, number by number."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from fedvlm.checks.bench.released import UncachedPixels, released_tuner
from fedvlm.clip import FrozenCLIP
from fedvlm.data import Federation
from fedvlm.errors import FedvlmError
from fedvlm.federation.simulation import Simulation
from fedvlm.methods import build
from fedvlm.testing import tiny

TEMPLATE = "a photo of a {}."
CLIPS = {"vit": tiny.vit_config(), "resnet": tiny.resnet_config()}


@pytest.fixture(scope="module", params=CLIPS)
def clip(request: pytest.FixtureRequest) -> FrozenCLIP:
    return tiny.clip(CLIPS[request.param])


@pytest.fixture
def fed() -> Federation:
    return tiny.federation()


def slow(task: Simulation, clip: FrozenCLIP) -> Simulation:
    """The same task in the released procedure."""
    federation = task.site.federation
    site = replace(
        task.site,
        base=released_tuner(task.spec.method, clip, federation.base_names, TEMPLATE),
        novel=released_tuner(task.spec.method, clip, federation.novel_names, TEMPLATE),
        activations=UncachedPixels(clip, federation.source.records, tiny.CPU, 0),
    )
    return replace(task, site=site)


@pytest.mark.parametrize("views", ["none", 2, "online"])
@pytest.mark.parametrize("name", ["zero_shot", "coop", "promptfl", "local_mma", "fedmma", "pfedmma", "pfedmoap"])
def test_a_federated_run_is_the_same(name: str, views: Any, clip: FrozenCLIP, fed: Federation) -> None:
    if name.endswith("mma") and clip.config == CLIPS["resnet"]:
        pytest.skip("adapters need a transformer")
    ours = tiny.simulation(tiny.method(name), clip, fed, rounds=2, views=views)
    fast, records = tiny.run(ours)
    other, expected = tiny.run(slow(ours, clip))
    for mine, theirs in ((fast.server, other.server), *((fast.personal[c], other.personal[c]) for c in fast.personal)):
        assert mine.keys() == theirs.keys()
        for key, tensor in mine.items():
            assert (tensor - theirs[key]).abs().max() <= 1e-4 * max(1e-3, float(theirs[key].abs().max())), key
    for one, two in zip(records, expected, strict=True):
        losses = [torch.tensor([loss for visit in record.visits for loss in visit.losses]) for record in (one, two)]
        assert torch.allclose(*losses, rtol=1e-4)
        for state, means in one.means.items():
            assert means == pytest.approx(two.means[state], abs=1e-4)


def test_what_is_not_written_out_is_refused(clip: FrozenCLIP) -> None:
    with pytest.raises(FedvlmError, match="before the class name only"):
        released_tuner(build("coop", {"coop": {"place": "front", "tokens": 3}}), clip, ["a"], TEMPLATE)
