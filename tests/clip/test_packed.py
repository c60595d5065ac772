"""Packed rows of texts: only what can matter is computed, and the result is the one of every text alone."""

from __future__ import annotations

import naive
import pytest
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedvlm.clip.packed import pack

CLIP = small.clip(small.vit_config(text=(24, 3, 3, 48)))
Rows = list[list[int]]


@st.composite
def sentences(draw: st.DrawFn) -> Rows:
    """Some token rows, the end-of-text token last, with a common beginning of any length."""
    begin = draw(st.lists(st.integers(1, 9), max_size=5))
    rest = st.lists(st.integers(1, 9), max_size=6)
    return [[500, *begin, *row, 501] for row in draw(st.lists(rest, min_size=1, max_size=5))]


def padded(rows: Rows) -> tuple[Tensor, Tensor]:
    longest = max(map(len, rows))
    return torch.tensor([row + [7] * (longest - len(row)) for row in rows]), torch.tensor([len(r) - 1 for r in rows])


@given(sentences())
def test_a_row_holds_every_token_once(rows: Rows) -> None:
    packed = pack(*padded(rows))
    common = next(
        i for i in range(99) if len({tuple(row[: i + 1]) for row in rows}) > 1 or i + 1 == min(map(len, rows))
    )
    assert packed.common == common
    assert len(packed.ids) == common + sum(len(row) - common for row in rows)
    own = packed.spread(packed.ids[None])[0]
    for row, cells, end in zip(rows, own.tolist(), packed.end.tolist(), strict=True):
        assert packed.ids[:common].tolist() + cells[: len(row) - common] == row
        assert packed.ids[end] == 501
        assert packed.position[end] == len(row) - 1
    assert torch.equal(packed.collect(packed.spread(packed.ids[None])), packed.ids[None, common:])


@settings(max_examples=30, deadline=None)
@given(sentences())
def test_features_are_those_of_every_text_alone(rows: Rows) -> None:
    w = naive.weights(CLIP)
    table = w["text.token_embedding.weight"]
    expected = [naive.text_features(table[torch.tensor(row)][None], [len(row) - 1], w, CLIP.config)[0] for row in rows]
    found = CLIP.encode_text(*padded(rows))
    assert (found - torch.stack(expected)).abs().max() < 1e-5


@pytest.mark.parametrize("rows", [[[500, 1, 2, 501]], [[500, 501], [500, 3, 501]], [[500, 1, 501], [500, 2, 501]]])
def test_several_versions_at_once(rows: Rows) -> None:
    """Rows of one layout in a batch are computed as if each came alone."""
    packed = pack(*padded(rows))
    versions = torch.randn(4, len(packed.ids), 24, generator=torch.Generator().manual_seed(0))
    together = CLIP.text.feature(CLIP.text.hidden(versions, packed, 2), packed, 2)
    for version, features in zip(versions, together, strict=True):
        alone = CLIP.text.feature(CLIP.text.hidden(version[None], packed, 2), packed, 2)[0]
        assert (alone - features).abs().max() < 1e-5


def test_gradients_reach_a_common_token_through_every_text() -> None:
    rows = [[500, 3, 4, 1, 501], [500, 3, 4, 2, 2, 501]]
    packed, w = pack(*padded(rows)), naive.weights(CLIP)
    table = w["text.token_embedding.weight"]
    leaf = CLIP.text.embed(packed.ids)[None].requires_grad_()
    CLIP.text.feature(CLIP.text.hidden(leaf, packed, 1), packed).sum().backward()
    token = table[3:4].clone().requires_grad_()
    for row in rows:
        sequence = torch.cat([table[row[:1]], token, table[row[2:]]])
        naive.text_features(sequence[None], [len(row) - 1], w, CLIP.config).sum().backward()
    assert leaf.grad is not None
    assert token.grad is not None
    assert (leaf.grad[0, 1] - token.grad[0]).abs().max() < 1e-4 * token.grad.abs().max()
