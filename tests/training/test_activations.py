from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedvlm import clip as clips
from fedvlm.clip import FEATURE, Entry, FrozenCLIP, ParallelTo
from fedvlm.clip.config import ClipConfig, Text, Transformer, ViT
from fedvlm.data import Record, Source
from fedvlm.streams import stream
from fedvlm.testing import tiny
from fedvlm.training.activations import CHUNK, TEST, Activations, Key
from fedvlm.training.disk_cache import DiskCache


@pytest.fixture(scope="module")
def clip() -> FrozenCLIP:
    return tiny.clip()


@pytest.fixture
def source() -> Source:
    return tiny.source(each=12)


def opened(source: Source) -> int:
    return sum(len(record.image.opened) for record in source.records)  # type: ignore[attr-defined]


def directly(clip: FrozenCLIP, source: Source, indices: list[int], entry: Entry) -> torch.Tensor:
    pixels = torch.stack([clip.preprocess.test(source.records[i].image.open()) for i in indices])
    return clip.visual.hidden(clip.preprocess.normalise(pixels), entry)


def size(clip: FrozenCLIP, entry: Entry) -> int:
    if isinstance(entry, ParallelTo):
        return 2 * (1 if entry.block == clip.visual.depth else 5) * 32 * 4
    return 16 * 4 if entry == FEATURE else 5 * 32 * 4


def plain(indices: Iterable[int]) -> list[Key]:
    return [(index, TEST) for index in indices]


def remembered(store: Activations) -> set[tuple[int, int]]:
    return {(index, entry) for entry, memory in store.memory.items() for index, _ in memory.places}


@pytest.mark.parametrize("entry", [1, 2, 3, FEATURE, ParallelTo(1), ParallelTo(3)])
@pytest.mark.parametrize("limit", [0, 7000, 1 << 30])
def test_activations_are_those_of_the_encoder(clip: FrozenCLIP, source: Source, entry: Entry, limit: int) -> None:
    store = Activations(clip, source.records, tiny.CPU, limit)
    store.prepare(plain([80, 3, 5, 3]), entry)
    for indices in ([5, 3, 80, 3], [3, 4, 5], [80], list(range(84))):
        out = store.get(indices, entry)
        expected = directly(clip, source, indices, entry)
        assert out.shape == expected.shape
        assert out.dtype == torch.float32
        assert not out.requires_grad
        assert (out - expected).abs().max() < 1e-5
    assert store.used_bytes == len(remembered(store)) * size(clip, entry) <= limit
    assert remembered(store) == ({(i, entry) for i in (3, 5, 80)} if limit else set())


def test_what_is_remembered_is_not_read_again(clip: FrozenCLIP, source: Source) -> None:
    store = Activations(clip, source.records, tiny.CPU, 1 << 30)
    store.prepare(plain([1, 2, 3, 2]), 2)
    assert opened(source) == 3
    first = store.get([1, 2, 3], 2)
    assert torch.equal(store.get([3, 2, 1], 2), first.flip(0))
    store.prepare(plain([3, 2, 1]), 2)
    assert opened(source) == 3
    store.get([3, 4], 2)
    assert opened(source) == 4
    store.get([3], 3)
    assert opened(source) == 5


def test_what_was_asked_for_first_does_not_decide_what_is_remembered(clip: FrozenCLIP) -> None:
    """Two chunks fit: the first two in rising order, whatever the order of the request."""
    source = tiny.source(each=60)
    store = Activations(clip, source.records, tiny.CPU, 2 * CHUNK * size(clip, 2))
    store.prepare(plain(reversed(range(3 * CHUNK))), 2)
    assert remembered(store) == {(i, 2) for i in range(2 * CHUNK)}
    assert store.used_bytes == store.limit_bytes


def test_a_batch_is_the_callers_own(clip: FrozenCLIP, source: Source) -> None:
    store = Activations(clip, source.records, tiny.CPU, 1 << 30)
    store.prepare(plain([1, 2]), 2)
    first = store.get([1, 2], 2)
    kept = first.clone()
    first.zero_()
    assert torch.equal(store.get([1, 2], 2), kept)


def test_another_entry_makes_room_when_it_must(clip: FrozenCLIP, source: Source) -> None:
    store = Activations(clip, source.records, tiny.CPU, 4 * size(clip, 2))
    store.prepare(plain([1, 2]), FEATURE)
    store.prepare(plain([1, 2]), 2)
    assert remembered(store) == {(1, FEATURE), (2, FEATURE), (1, 2), (2, 2)}
    store.prepare(plain([3, 5]), 2)
    assert remembered(store) == {(i, 2) for i in (1, 2, 3, 5)}
    assert store.used_bytes == 4 * size(clip, 2)


def test_memory_is_bounded_by_the_limit(clip: FrozenCLIP) -> None:
    """Rows are kept as rows: none keeps the chunk alive that it was computed in."""
    source = tiny.source(each=60)
    store = Activations(clip, source.records, tiny.CPU, 200 * size(clip, 2))
    store.prepare(plain(range(3 * CHUNK)), 2)
    held = [block.untyped_storage().nbytes() for memory in store.memory.values() for block in memory.blocks]
    assert sum(held) == store.used_bytes == 200 * size(clip, 2)


def test_every_batch_has_the_same_number_of_images(clip: FrozenCLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny.source(each=60)
    store, batches, real = Activations(clip, source.records, tiny.CPU, 0), [], clip.visual.hidden
    monkeypatch.setattr(clip.visual, "hidden", lambda pixels, entry: batches.append(len(pixels)) or real(pixels, entry))  # type: ignore[func-returns-value]
    store.get(list(range(2 * CHUNK + 5)), 2)
    assert batches == [8] * (2 * CHUNK // 8 + 1)
    assert tiny.CPU.batch_rows == 8


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of threads."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def models() -> dict[str, tuple[FrozenCLIP, Source]]:
    return {"embedded": (clips.load(), tiny.source(each=16, side=48)),
            "wide": (tiny.clip(WIDE), tiny.source(each=16, side=32)),
            "resnet": (tiny.clip(tiny.resnet_config()), tiny.source(each=16, side=32))}  # fmt: skip


@pytest.mark.parametrize("model", ["embedded", "wide", "resnet"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_row_does_not_depend_on_what_was_held_or_on_threads(
    models: dict[str, tuple[FrozenCLIP, Source]], threads: Callable[[int], None], tmp_path: Path, model: str, count: int
) -> None:
    """A cold cache against one that held 10 of 100 images; memory without bounds against none; one thread."""
    clip, source = models[model]
    records = [Record(StoredImage(record.image.key, record.image.pixels), 0, "a") for record in source.records]  # type: ignore[attr-defined]
    for entry in (FEATURE, *([clip.visual.depth // 2 + 1] if clip.visual.depth else [])):
        threads(1)
        expected = Activations(clip, records, tiny.CPU, 1 << 30).get(range(100), entry)
        threads(count)
        cold, warm = (Activations(clip, records, tiny.CPU, 1 << 30, DiskCache(tmp_path / f"{entry}{name}", 1 << 30))
                      for name in ("cold", "warm"))  # fmt: skip
        Activations(clip, records, tiny.CPU, 0, warm.disk_cache).prepare(plain(range(5, 105, 10)), entry)
        for one in (cold, warm):
            one.prepare(plain(range(100)), entry)
            assert torch.equal(one.get(range(100), entry), expected)
        bounded = Activations(clip, records, tiny.CPU, 0)
        parts = [bounded.get(range(start, min(start + 7, 100)), entry) for start in range(0, 100, 7)]
        assert torch.equal(torch.cat(parts), expected)
        assert torch.get_num_threads() == count


def test_an_error_in_a_batch_leaves_the_threads_as_they_were(
    clip: FrozenCLIP, source: Source, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads(3)
    monkeypatch.setattr(clip.visual, "hidden", lambda pixels, entry: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Activations(clip, source.records, tiny.CPU, 0).get(range(40), 2)
    assert torch.get_num_threads() == 3


class StoredImage(tiny.ArrayImage):
    """An image that has bytes of its own to be known by."""

    def digest(self) -> str:
        return self.key


WIDE = ClipConfig(
    ViT(32, 8, Transformer(128, 2, 2, 512)), Text(40, len(tiny.vocabulary()), Transformer(24, 1, 2, 48)), 128
)


@pytest.mark.parametrize("entry", [1, 2, FEATURE])
def test_a_prepared_row_does_not_depend_on_who_asks(entry: Entry) -> None:
    """Bit for bit: or else what a run computes depends on what it was asked before it was stopped (house.md: resume).

    A product's last bits depend on the batch's size: width 128 shows it for up to five images, smaller ones hide it.
    """
    clip, source = tiny.clip(WIDE), tiny.source(each=12)
    store = Activations(clip, source.records, tiny.CPU, 1 << 30)
    store.prepare(plain(range(84)), entry)
    whole = store.get(range(84), entry)
    for count in (1, 2, 3, 5, 8):
        again = Activations(clip, source.records, tiny.CPU, 1 << 30)
        again.get([7, 3, 70], entry)
        again.prepare(plain(reversed(range(84))), entry)
        parts = [again.get(range(start, min(84, start + count)), entry) for start in range(0, 84, count)]
        assert torch.equal(torch.cat(parts), whole), count


CHUNKS = (
    "prepare() chunks what is missing, so an earlier seed's rows shift the chunks of a later one, and after a restart "
    "finished seeds are not prepared. Encode fixed groups of records (index // CHUNK) instead"
)


def test_a_prepared_row_does_not_depend_on_what_was_prepared_before() -> None:
    """Seeds of one experiment share the store. Rows 0..128 for one and 0..139 for the next, or the next alone."""
    clip, source = tiny.clip(WIDE), tiny.source(each=20)
    long, fresh = (Activations(clip, source.records, tiny.CPU, 1 << 30) for _ in range(2))
    long.prepare(plain(range(CHUNK + 1)), FEATURE)
    long.prepare(plain(range(140)), FEATURE)
    fresh.prepare(plain(range(140)), FEATURE)
    assert torch.equal(long.get(range(140), FEATURE), fresh.get(range(140), FEATURE))


ROOM = "rows of the same entry that nobody needs any more are kept, and newly needed ones find no room"


def test_what_is_kept_depends_on_the_request_alone(clip: FrozenCLIP) -> None:
    """As prepare()'s docstring promises."""
    source = tiny.source(each=60)
    store = Activations(clip, source.records, tiny.CPU, CHUNK * size(clip, 2))
    store.prepare(plain(range(CHUNK)), 2)
    store.prepare(plain(range(CHUNK, 2 * CHUNK)), 2)
    assert remembered(store) == {(i, 2) for i in range(CHUNK, 2 * CHUNK)}


def test_augmented_views_come_from_the_named_streams(clip: FrozenCLIP, source: Source) -> None:
    store = Activations(clip, source.records, tiny.CPU, 1 << 30)
    names: tuple[Any, ...] = (7, "view", "site-1", 2, 0)
    out = store.get_online([4, 9, 4], 2, *names)
    views = [clip.preprocess.augment(source.records[i].image.open(), stream(*names, i)) for i in (4, 9, 4)]
    expected = clip.visual.hidden(clip.preprocess.normalise(torch.stack(views)), 2)
    assert (out - expected).abs().max() < 1e-5
    assert torch.equal(out[0], out[2])
    assert store.used_bytes == 0


def test_augmented_views_differ_by_every_name(clip: FrozenCLIP, source: Source) -> None:
    store = Activations(clip, source.records, tiny.CPU, 0)
    base = store.get_online([4], 2, 7, "view", "site-1", 2, 0)
    others = [
        (8, "view", "site-1", 2, 0),
        (7, "view", "site-2", 2, 0),
        (7, "view", "site-1", 3, 0),
        (7, "view", "site-1", 2, 1),
    ]
    assert all(not torch.equal(store.get_online([4], 2, *names), base) for names in others)
    assert torch.equal(
        store.get_online([9, 4], 2, 7, "view", "site-1", 2, 0)[1:].round(decimals=4), base.round(decimals=4)
    )


def test_images_of_different_sizes_meet_in_one_batch(clip: FrozenCLIP) -> None:
    draw = np.random.default_rng(0)
    images = [
        tiny.ArrayImage(str(n), draw.integers(0, 255, (20 + 3 * n, 50 - n, 3)).astype(np.uint8)) for n in range(4)
    ]
    records = [tiny.Record(image, 0, "a") for image in images]
    store = Activations(clip, records, tiny.CPU, 0)
    assert store.get([0, 1, 2, 3], 1).shape == (4, 5, 32)
    assert store.get_online([0, 1, 2, 3], FEATURE, 0, "a").shape == (4, 16)


def test_the_transform_has_an_identity(clip: FrozenCLIP) -> None:
    assert json.loads(clip.preprocess.identity)[0] == 16
