"""Clients that train together get what each would have got alone, up to rounding."""

from __future__ import annotations

from typing import Any

import pytest
import small
import torch

from fedvlm.clip import FrozenCLIP
from fedvlm.errors import FedvlmError
from fedvlm.methods import known

TRAINED = [name for name, method in known().items() if method.trains]


@pytest.fixture(scope="module")
def clip() -> FrozenCLIP:
    return small.clip()


@pytest.mark.parametrize("together", [2, 3, 4])
@pytest.mark.parametrize("how", [{}, {"views": "online"}, {"participation": 0.5}], ids=["plain", "online", "partial"])
@pytest.mark.parametrize("name", TRAINED)
def test_a_run_is_the_same(name: str, how: dict[str, Any], together: int, clip: FrozenCLIP) -> None:
    """Clients of 11, 6, 3 and 9 images in batches of 4: steps of four sizes, visits of four lengths."""
    fed = small.federation()
    alone, records = small.run(small.task(small.method(name), clip, fed, rounds=3, **how))
    other, grouped = small.run(small.task(small.method(name), clip, fed, rounds=3, together=together, **how))
    for mine, theirs in (
        (alone.server, other.server),
        *((alone.personal[c], other.personal[c]) for c in alone.personal),
    ):
        assert mine.keys() == theirs.keys()
        for key, tensor in mine.items():
            assert torch.allclose(tensor, theirs[key], rtol=1e-4, atol=1e-5), key
    for one, two in zip(records, grouped, strict=True):
        assert [visit.client for visit in one.visits] == [visit.client for visit in two.visits]
        for a, b in zip(one.visits, two.visits, strict=True):
            assert a.losses == pytest.approx(b.losses, rel=1e-4)
            assert (a.up_bytes, a.down_bytes, a.images) == (b.up_bytes, b.down_bytes, b.images)
        for state, means in one.means.items():
            assert means == pytest.approx(two.means[state], abs=1e-4)


def test_one_clients_numbers_do_not_reach_another(clip: FrozenCLIP) -> None:
    """A client that diverges stops the run by its name; what the others had computed has no part in it."""
    fed = small.federation()
    wild = small.method("pfedmma", lr=1e30)
    with pytest.raises(FedvlmError, match="no longer finite"):
        small.run(small.task(wild, clip, fed, together=4))
