"""The setting `share`: which tensors cross, and what is told where it cannot be met."""

from __future__ import annotations

from typing import Any

import pytest

from fedvlm import tensors
from fedvlm.clip import FrozenCLIP
from fedvlm.data import Federation
from fedvlm.errors import FedvlmError
from fedvlm.federation import messages, simulation
from fedvlm.methods import build, known
from fedvlm.methods.base import Method
from fedvlm.testing import tiny

PARTS = {
    "text": (["text.*"], 2 * (24 * 4 + 4 + 4 * 24 + 24)),
    "vision": (["vision.*"], 2 * (32 * 4 + 4 + 4 * 32 + 32)),
    "up": (["*.up.*"], 2 * (4 * 24 + 24 + 4 * 32 + 32)),
    "down": (["*.down.*"], 2 * (24 * 4 + 4 + 32 * 4 + 4)),
    "bridge": (["shared.*"], 2 * (4 * 4 + 4)),
    "two": (["shared.*", "text.*"], 2 * (4 * 4 + 4 + 24 * 4 + 4 + 4 * 24 + 24)),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_the_adapters_is_what_crosses(part: str, clip: FrozenCLIP, fed: Federation) -> None:
    """Widths 24 and 32, rank 4, two blocks. What is not named stays, and differs from client to client."""
    patterns, numbers = PARTS[part]
    task = tiny.simulation(tiny.method("pfedmma", share=patterns), clip, fed, rounds=2, every=100)
    assert tensors.count(messages.uplink_template(task.spec.method, task.spec.initial)) == numbers
    state, _ = tiny.run(task)
    assert state.server.keys() == tensors.select(task.spec.initial, patterns).keys()
    one, other = (state.personal[client.name] for client in fed.clients[:2])
    for name in task.spec.initial.keys() - state.server.keys():
        assert not one[name].equal(other[name])


@pytest.mark.parametrize(("share", "pattern"), [(["txt.*"], "txt.*"), (["shared.*", "bridge"], "bridge")])
def test_a_pattern_that_matches_nothing_is_refused(
    share: list[str], pattern: str, clip: FrozenCLIP, fed: Federation
) -> None:
    with pytest.raises(FedvlmError) as error:
        tiny.simulation(tiny.method("pfedmma", share=share), clip, fed)
    words = str(error.value)
    assert f"'{pattern}' matches no trained tensor" in words
    assert all(name in words for name in ("text.*.down.weight", "vision.*.up.bias", "shared.*.weight"))


@pytest.mark.parametrize("name", [name for name, kind in known().items() if not kind.shareable])
def test_a_method_that_makes_its_messages_itself_takes_no_share(name: str) -> None:
    with pytest.raises(FedvlmError, match=rf"method\.{name}\.share.*makes its messages itself"):
        build(name, {name: {"share": ["*"]}})
    with pytest.raises(FedvlmError, match=r"method\.mine\.share"):
        build("mine", {"mine": {"method": name, "share": []}})


def test_who_overrides_the_uplink_says_so() -> None:
    """A method with an uplink of its own would ignore the setting, which must not be silent."""
    own = {name for name, kind in known().items() if kind.uplink is not Method.uplink}
    assert own <= {name for name, kind in known().items() if not kind.shareable}


@pytest.mark.parametrize("name", [n for n, kind in known().items() if kind.trains and kind.shareable])
@pytest.mark.parametrize("share", [[], ["*"]], ids=["nothing", "everything"])
def test_nothing_or_everything_may_be_shared(name: str, share: list[str], clip: FrozenCLIP, fed: Federation) -> None:
    settings: dict[str, Any] = {"share": share} | ({"select": "none"} if name == "pfedmoap" else {})
    task = tiny.simulation(tiny.method(name, **settings), clip, fed, rounds=2, every=100)
    start = simulation.start(task)
    state, records = tiny.run(task, start)
    assert all(bool(visit.up_bytes) == bool(share) for visit in records[0].visits)
    assert task.spec.initial.keys() <= state.server.keys() if share else state.server == {}
