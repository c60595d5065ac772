"""Packed rows of texts: only what can matter is computed, and the result is the one of every text alone."""

from __future__ import annotations

import formulas
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedvlm.clip import packed as packing
from fedvlm.clip.packed import pack
from fedvlm.testing import tiny

CLIP = tiny.clip(tiny.vit_config(text=(24, 3, 3, 48)))
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
    for row, end in zip(rows, packed.end.tolist(), strict=True):
        own = len(row) - common
        assert packed.ids[:common].tolist() + packed.ids[end + 1 - own : end + 1].tolist() == row
        assert packed.position[end + 1 - own : end + 1].tolist() == list(range(common, len(row)))


@given(sentences(), st.integers(1, 9))
def test_every_token_attends_to_what_precedes_it_in_its_text(rows: Rows, size: int) -> None:
    """In bins of any size: exactly its own text's tokens up to itself, each once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "BIN", size)
        packed = pack(*padded(rows))
    common = packed.common
    starts = [end + 1 - (len(row) - common) for row, end in zip(rows, packed.end.tolist(), strict=True)]
    texts = {
        place: [*range(common), *range(start, place + 1)]
        for start, end in zip(starts, packed.end.tolist(), strict=True)
        for place in range(start, end + 1)
    }
    texts |= {place: list(range(place + 1)) for place in range(common)}
    for bins, queries in ((packed.tokens, range(len(packed.ids))), (packed.ends, packed.end.tolist())):
        seen = [
            packed.keys[row][bins.reach[row, 0, column]].tolist()
            for row in range(len(bins.grid))
            for column in range(bins.grid.shape[1])
        ]
        assert [seen[cell] for cell in bins.cells.tolist()] == [texts[query] for query in queries]
        assert all(seen), "a cell without keys would be undefined"
        values = torch.arange(2 * len(queries)).view(2, -1, 1)
        assert torch.equal(bins.collect(bins.spread(values)), values)


@settings(max_examples=30, deadline=None)
@given(sentences())
def test_features_are_those_of_every_text_alone(rows: Rows) -> None:
    w = formulas.weights(CLIP)
    table = w["text.token_embedding.weight"]
    expected = [
        formulas.text_features(table[torch.tensor(row)][None], [len(row) - 1], w, CLIP.config)[0] for row in rows
    ]
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
    packed, w = pack(*padded(rows)), formulas.weights(CLIP)
    table = w["text.token_embedding.weight"]
    leaf = CLIP.text.embed(packed.ids)[None].requires_grad_()
    CLIP.text.feature(CLIP.text.hidden(leaf, packed, 1), packed).sum().backward()
    token = table[3:4].clone().requires_grad_()
    for row in rows:
        sequence = torch.cat([table[row[:1]], token, table[row[2:]]])
        formulas.text_features(sequence[None], [len(row) - 1], w, CLIP.config).sum().backward()
    assert leaf.grad is not None
    assert token.grad is not None
    assert (leaf.grad[0, 1] - token.grad[0]).abs().max() < 1e-4 * token.grad.abs().max()
