from __future__ import annotations

import gc
import json
from typing import Any

import numpy as np
import pytest
import small
import torch

from fedvlm.clip import FrozenCLIP
from fedvlm.clip.config import ClipConfig, Text, Transformer, ViT
from fedvlm.data import Source
from fedvlm.streams import stream
from fedvlm.training.activations import CHUNK, Activations


@pytest.fixture(scope="module")
def clip() -> FrozenCLIP:
    return small.clip()


@pytest.fixture
def source() -> Source:
    return small.source(each=12)


def opened(source: Source) -> int:
    return sum(len(record.image.opened) for record in source.records)  # type: ignore[attr-defined]


def directly(clip: FrozenCLIP, source: Source, indices: list[int], entry: int) -> torch.Tensor:
    pixels = torch.stack([clip.preprocess.test(source.records[i].image.open()) for i in indices])
    return clip.visual.hidden(clip.preprocess.normalise(pixels), entry)


def size(clip: FrozenCLIP, entry: int) -> int:
    return 16 * 4 if entry == clip.visual.depth + 1 else 5 * 32 * 4


@pytest.mark.parametrize("entry", [1, 2, 3, 4])
@pytest.mark.parametrize("limit", [0, 1000, 1 << 30])
def test_activations_are_those_of_the_encoder(clip: FrozenCLIP, source: Source, entry: int, limit: int) -> None:
    store = Activations(clip, source.records, small.CPU, limit)
    for indices in ([5, 3, 80, 3], [3, 4, 5], [80], list(range(84))):
        out = store.get(indices, entry)
        expected = directly(clip, source, indices, entry)
        assert out.shape == expected.shape
        assert out.dtype == torch.float32
        assert not out.requires_grad
        assert (out - expected).abs().max() < 1e-5
        assert store.used_bytes <= limit
        assert store.used_bytes == len(store.rows) * size(clip, entry)


def test_what_is_remembered_is_not_read_again(clip: FrozenCLIP, source: Source) -> None:
    store = Activations(clip, source.records, small.CPU, 1 << 30)
    first = store.get([1, 2, 3, 2], 2)
    assert opened(source) == 3
    again = store.get([3, 2, 1], 2)
    assert opened(source) == 3
    assert torch.equal(again, first[[2, 1, 0]])
    store.get([3, 4], 2)
    assert opened(source) == 4
    store.get([3], 3)
    assert opened(source) == 5


def test_what_does_not_fit_is_computed_again(clip: FrozenCLIP, source: Source) -> None:
    """First come, first kept: a scan over more than fits still finds the first rows."""
    store = Activations(clip, source.records, small.CPU, 3 * size(clip, 2))
    for _ in range(3):
        store.get(list(range(10)), 2)
    assert {index for index, _ in store.rows} == {0, 1, 2}
    assert opened(source) == 10 + 7 + 7


def test_a_batch_is_the_callers_own(clip: FrozenCLIP, source: Source) -> None:
    store = Activations(clip, source.records, small.CPU, 1 << 30)
    first = store.get([1, 2], 2)
    kept = first.clone()
    first.zero_()
    assert torch.equal(store.get([1, 2], 2), kept)


def test_forgetting_other_entries(clip: FrozenCLIP, source: Source) -> None:
    store = Activations(clip, source.records, small.CPU, 1 << 30)
    store.get([1, 2], 2)
    store.get([1, 2, 3], 4)
    store.keep_only(4)
    assert set(store.rows) == {(1, 4), (2, 4), (3, 4)}
    assert store.used_bytes == 3 * size(clip, 4)
    store.keep_only(1)
    assert (store.rows, store.used_bytes) == ({}, 0)


def test_memory_is_bounded_by_the_limit_and_one_chunk(clip: FrozenCLIP) -> None:
    """Rows are kept as rows: none keeps the chunk alive that it was computed in."""
    source = small.source(each=60)
    store = Activations(clip, source.records, small.CPU, 10 * size(clip, 2))
    store.get(list(range(5 * CHUNK)), 2)
    gc.collect()
    held = {row.untyped_storage().data_ptr(): row.untyped_storage().nbytes() for row in store.rows.values()}
    assert sum(held.values()) == store.used_bytes == 10 * size(clip, 2)


def test_images_are_encoded_a_chunk_at_a_time(clip: FrozenCLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    source = small.source(each=60)
    store, batches, real = Activations(clip, source.records, small.CPU, 0), [], clip.visual.hidden
    monkeypatch.setattr(clip.visual, "hidden", lambda pixels, entry: batches.append(len(pixels)) or real(pixels, entry))  # type: ignore[func-returns-value]
    store.get(list(range(2 * CHUNK + 5)), 2)
    assert batches == [CHUNK, CHUNK, 5]


WIDE = ClipConfig(ViT(32, 8, Transformer(128, 2, 2, 512)), Text(40, len(small.vocabulary()), Transformer(24, 1, 2, 48)), 128)


BITS = "rows are encoded in whatever batch asks for them first, and a product's last bits depend on the batch's size"


@pytest.mark.parametrize("entry", [1, 2, pytest.param(3, marks=pytest.mark.xfail(strict=True, reason=BITS))])
def test_a_row_does_not_depend_on_the_batch_that_asked_for_it(entry: int) -> None:
    """Bit for bit: or else what a run computes depends on what it was asked before it was stopped (house.md: resume).

    The small width of the other tests hides it; ViT-B shows it for batches of up to five images.
    """
    clip, source = small.clip(WIDE), small.source(each=12)
    whole = Activations(clip, source.records, small.CPU, 1 << 30).get(list(range(64)), entry)
    for count in (1, 2, 3, 5, 8):
        store = Activations(clip, source.records, small.CPU, 1 << 30)
        parts = torch.cat([store.get(list(range(start, min(64, start + count))), entry) for start in range(0, 64, count)])
        assert torch.equal(parts, whole), count


def test_augmented_views_come_from_the_named_streams(clip: FrozenCLIP, source: Source) -> None:
    store = Activations(clip, source.records, small.CPU, 1 << 30)
    names: tuple[Any, ...] = (7, "view", "site-1", 2, 0)
    out = store.augmented([4, 9, 4], 2, *names)
    views = [clip.preprocess.augment(source.records[i].image.open(), stream(*names, i)) for i in (4, 9, 4)]
    expected = clip.visual.hidden(clip.preprocess.normalise(torch.stack(views)), 2)
    assert (out - expected).abs().max() < 1e-5
    assert torch.equal(out[0], out[2])
    assert (store.rows, store.used_bytes) == ({}, 0)


def test_augmented_views_differ_by_every_name(clip: FrozenCLIP, source: Source) -> None:
    store = Activations(clip, source.records, small.CPU, 0)
    base = store.augmented([4], 2, 7, "view", "site-1", 2, 0)
    others = [(8, "view", "site-1", 2, 0), (7, "view", "site-2", 2, 0), (7, "view", "site-1", 3, 0), (7, "view", "site-1", 2, 1)]
    assert all(not torch.equal(store.augmented([4], 2, *names), base) for names in others)
    assert torch.equal(store.augmented([9, 4], 2, 7, "view", "site-1", 2, 0)[1:].round(decimals=4), base.round(decimals=4))


def test_images_of_different_sizes_meet_in_one_batch(clip: FrozenCLIP) -> None:
    draw = np.random.default_rng(0)
    images = [small.ArrayImage(str(n), draw.integers(0, 255, (20 + 3 * n, 50 - n, 3)).astype(np.uint8)) for n in range(4)]
    records = [small.Record(image, 0, "a") for image in images]
    store = Activations(clip, records, small.CPU, 0)
    assert store.get([0, 1, 2, 3], 1).shape == (4, 5, 32)
    assert store.augmented([0, 1, 2, 3], 4, 0, "a").shape == (4, 16)


def test_the_transform_has_an_identity(clip: FrozenCLIP) -> None:
    assert json.loads(clip.preprocess.identity)[0] == 16
