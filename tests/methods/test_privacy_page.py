"""The table of `docs/privacy.md`: what leaves for every method, from the methods themselves."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_counts import initial, weightless

from fedvlm import methods, tensors
from fedvlm.clip import FrozenCLIP
from fedvlm.federation import messages
from fedvlm.methods import base

PAGE = (Path(__file__).parents[2] / "docs" / "privacy.md").read_text()
TABLE = PAGE[PAGE.index("## What each method sends") : PAGE.index("## What else is in a message")]
ROWS = [
    (name, *cells)
    for line in TABLE.splitlines()
    if line.startswith("|") and not line.startswith(("| method", "|---"))
    for names, *cells in [[cell.strip() for cell in line.strip("|").split("|")]]
    for name in names.split(", ")
]
WORDLESS = {
    "cocoop": {"init_text": None},
    "kgcoop": {"init_text": None},
    "maple": {"start": None},
    "fedmgp": {"start": None},
}
"""Settings that need no weights of words."""
SEEN = {"mean": base.MEAN, "a mixture of all prompts, made for this client": "mixtures of all clients' tensors",
        "the mean, and **whole prompts of single clients**, without their names": "whole prompts of single clients"}  # fmt: skip


@pytest.fixture(scope="module")
def vit() -> FrozenCLIP:
    return weightless("ViT-B/16")


def test_every_method_has_a_row() -> None:
    assert sorted(name for name, *_ in ROWS) == list(methods.known())


@pytest.mark.parametrize(("name", "leaves", "size", "stays", "seen"), ROWS)
def test_a_row(name: str, leaves: str, size: str, stays: str, seen: str, vit: FrozenCLIP) -> None:
    method = methods.known()[name](WORDLESS.get(name, {}))
    start = initial(vit, method)
    sent = {one.removeprefix("global."): tensor for one, tensor in messages.uplink_template(method, start).items()}
    assert tensors.nbytes(sent) == int(size.replace(",", ""))
    kept = messages.private_tensors(method, start)
    for cell, named in ((leaves, sent), (stays, kept)):
        patterns = re.findall(r"`([^`]+)`", cell)
        assert all(tensors.select(named, [pattern]) for pattern in patterns)
        assert tensors.select(named, patterns).keys() == named.keys() or not patterns
    if sent:
        assert "`" in leaves
        assert SEEN[seen] in method.exposes
    else:
        assert (leaves, seen) == ("nothing", "nothing")
    if not kept:
        assert "`" not in stays
