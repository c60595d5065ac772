"""Activations on disk: found again by other runs, never trusted, never too many."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import resource
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import PIL
import PIL.Image
import pytest
import torch

from fedvlm import clip as clips
from fedvlm.clip import FEATURE, FrozenCLIP
from fedvlm.data import Record
from fedvlm.data.files import FileImage
from fedvlm.streams import stream
from fedvlm.testing import tiny
from fedvlm.training import activations
from fedvlm.training.activations import TEST, Activations
from fedvlm.training.device import Device
from fedvlm.training.disk_cache import DiskCache, folder

MANY = 1 << 30
KEYS = [(index, view) for index in range(5) for view in (TEST, 0, 1)]


@pytest.fixture(scope="module")
def clip() -> FrozenCLIP:
    return tiny.clip()


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    """Five photographs in files."""
    found = []
    for number in range(5):
        pixels = stream(number, "photo").integers(0, 256, size=(20 + number, 24, 3)).astype("uint8")
        PIL.Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        found.append(Record(FileImage(tmp_path, f"{number}.png"), 0, "cat"))
    return found


@pytest.fixture
def encoded(clip: FrozenCLIP, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that the encoder got."""
    sizes: list[int] = []
    real = clip.visual.hidden
    monkeypatch.setattr(
        clip.visual, "hidden", lambda pixels, entry: [sizes.append(len(pixels)), real(pixels, entry)][1]
    )
    return sizes


def new(clip: FrozenCLIP, records: list[Record], root: Path, limit: int = MANY, **more: Any) -> Activations:
    """As a new process would make it."""
    return Activations(clip, records, tiny.CPU, more.pop("memory", MANY), DiskCache(root, limit), **more)


def rows(made: Activations, entry: int = 2) -> torch.Tensor:
    return made.get([index for index, _ in KEYS], entry, [view for _, view in KEYS])


@pytest.mark.parametrize("memory", [MANY, 0])
def test_a_later_run_encodes_nothing(
    clip: FrozenCLIP, records: list[Record], tmp_path: Path, encoded: list[int], memory: int
) -> None:
    first = new(clip, records, tmp_path / "c")
    first.prepare(KEYS, 2)
    kept, done = rows(first), len(encoded)
    later = new(clip, records, tmp_path / "c", memory=memory)
    later.prepare(KEYS, 2)
    assert torch.equal(rows(later), kept)
    assert len(encoded) == done
    assert later.used_bytes == (first.used_bytes if memory else 0)


def test_what_memory_cannot_hold_goes_to_disk(
    clip: FrozenCLIP, records: list[Record], tmp_path: Path, encoded: list[int]
) -> None:
    made = new(clip, records, tmp_path / "c", memory=2000)
    made.prepare(KEYS, 2)
    assert made.used_bytes <= 2000
    done = len(encoded)
    assert torch.equal(rows(made), rows(new(clip, records, tmp_path / "d")))
    assert len(encoded) == done + 2  # the other one's: 15 rows, 8 at a time


def test_views_of_the_bank(clip: FrozenCLIP, records: list[Record], tmp_path: Path) -> None:
    """Two views of an image differ, and are the same for a copy of the image elsewhere and with any seed."""
    made = new(clip, records, tmp_path / "c")
    one, two, test = made.get([0, 0, 0], 2, [0, 1, TEST])
    assert min((one - two).abs().max(), (one - test).abs().max()) > 1e-3
    pixels = clip.preprocess.augment(records[0].image.open(), stream(1, "bank", records[0].image.digest()))  # type: ignore[attr-defined]
    expected = clip.visual.hidden(clip.preprocess.normalise(pixels[None]), 2)[0]
    assert (two - expected).abs().max() < 1e-5


@pytest.mark.parametrize(
    "change",
    [{"weights": 1}, {"entry": 3}, {"image": 1}, {"cache_dtype": torch.float16}, {"size": 1}, {"heads": 4},
     {"activation": "gelu"}, {"eps": 1e-2}, {"encoding": 1}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_anything_a_row_depends_on_gives_another_row(
    records: list[Record], tmp_path: Path, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = tiny.clip()
    new(clip, records, tmp_path / "c").prepare(KEYS, 2)
    entry, more = change.get("entry", 2), {"cache_dtype": change["cache_dtype"]} if "cache_dtype" in change else {}
    if "weights" in change:
        clip.weights = "others"
    if change.keys() & {"heads", "activation", "eps"}:
        vision = clip.config.vision
        tower = replace(vision.tower, **change)  # type: ignore[union-attr]
        clip = tiny.clip(replace(clip.config, vision=replace(vision, tower=tower)))
    if "encoding" in change:
        monkeypatch.setattr(activations, "ENCODING", activations.ENCODING + 1)
    if "size" in change:
        clip.preprocess = type(clip.preprocess)(16, mean=(0.1, 0.2, 0.3))
    if "image" in change:
        PIL.Image.new("RGB", (20, 20), "red").save(tmp_path / "0.png")
    before = len(list((tmp_path / "c").rglob("*.safetensors")))
    made = new(clip, records, tmp_path / "c", **more)
    made.prepare(KEYS, entry)
    assert len(list((tmp_path / "c").rglob("*.safetensors"))) > before
    direct = Activations(clip, records, tiny.CPU, 0)
    tolerance = 1e-2 if more else 1e-5
    assert (rows(made, entry) - rows(direct, entry)).abs().max() < tolerance


def test_another_configuration_of_the_same_weights_does_not_get_the_old_rows(
    records: list[Record], tmp_path: Path
) -> None:
    """The embedded CLIP, its `config.json` edited: activation and number of heads stand in no weight file."""
    clips.save(clips.load(), tmp_path / "model")
    first = clips.load(str(tmp_path / "model"))
    old = new(first, records, tmp_path / "c").get(range(5), FEATURE)
    table = json.loads((tmp_path / "model/config.json").read_text())
    table["vision_config"] |= {"hidden_act": "gelu", "num_attention_heads": 2}
    (tmp_path / "model/config.json").write_text(json.dumps(table))
    second = clips.load(str(tmp_path / "model"))
    assert second.weights == first.weights
    assert second.digest != first.digest
    rows = new(second, records, tmp_path / "c").get(range(5), FEATURE)
    assert torch.equal(rows, Activations(second, records, tiny.CPU, 0).get(range(5), FEATURE))
    assert (rows - old).abs().max() > 0.1


def test_a_change_of_texts_alone_keeps_the_rows(records: list[Record], tmp_path: Path, encoded: list[int]) -> None:
    one, other = tiny.clip(), tiny.clip(tiny.vit_config(context=39))
    new(one, records, tmp_path / "c").prepare(KEYS, 2)
    new(other, records, tmp_path / "c").prepare(KEYS, 2)
    assert one.digest != other.digest
    assert len(list((tmp_path / "c").iterdir())) == 1


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "junk"])
def test_a_damaged_file_is_noticed_and_made_again(
    clip: FrozenCLIP, records: list[Record], tmp_path: Path, damage: str
) -> None:
    first = new(clip, records, tmp_path / "c")
    first.prepare(KEYS, 2)
    (file,) = (tmp_path / "c").rglob("*.safetensors")
    data = file.read_bytes()
    # The rows' bytes are at the end, or just before the checksums: both must be noticed.
    middle = len(data) // 2
    file.write_bytes({
        "cut": data[:middle], "empty": b"", "junk": b"no file of ours",
        "flipped": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
    }[damage])  # fmt: skip
    later = new(clip, records, tmp_path / "c")
    later.prepare(KEYS, 2)
    assert torch.equal(rows(later), rows(first))
    assert not file.exists()
    again = new(clip, records, tmp_path / "c")
    assert len(again._table(2).find([str(again._name(key)) for key in KEYS])) == len(KEYS)  # type: ignore[union-attr]


def test_the_bound_holds_and_the_longest_unused_gives_way(
    clip: FrozenCLIP, records: list[Record], tmp_path: Path
) -> None:
    row = 5 * 32 * 4
    limit = 3 * 5 * row + 3000  # three files of five rows, with their headers
    for view in range(6):
        made = new(clip, records, tmp_path / "c", limit)
        made.prepare([(index, view) for index in range(5)], 2)
        files = list((tmp_path / "c").rglob("*.safetensors"))
        assert sum(file.stat().st_size for file in files) <= limit + 1000
        for age, file in enumerate(sorted(files, key=lambda file: file.stat().st_mtime)):
            os.utime(file, (age + 10 * view, age + 10 * view))
    held = new(clip, records, tmp_path / "c")._table(2)
    assert held is not None
    assert not held.find([str(made._name((0, 0)))])
    assert held.find([str(made._name((0, 5)))])


def test_a_disk_that_cannot_be_written_does_not_end_a_run(
    clip: FrozenCLIP, records: list[Record], tmp_path: Path
) -> None:
    (tmp_path / "c").write_text("a file where the folder should be")
    made = new(clip, records, tmp_path / "c")
    with pytest.warns(UserWarning, match="activations are not kept on disk"):
        made.prepare(KEYS, 2)
    assert torch.equal(rows(made), rows(Activations(clip, records, tiny.CPU, MANY)))


def test_drawn_images_are_not_kept(clip: FrozenCLIP, tmp_path: Path) -> None:
    """Images without bytes of their own are drawn again: nothing is looked up by a name that cannot be trusted."""
    made = new(clip, list(tiny.source(each=2).records), tmp_path / "c")
    made.prepare([(0, TEST), (1, 0)], 2)
    assert not (tmp_path / "c").exists()


def _fill(path: Path, root: Path) -> list[float]:
    records = [Record(FileImage(path, f"{number}.png"), 0, "cat") for number in range(5)]
    made = new(tiny.clip(), records, root)
    made.prepare(KEYS, 2)
    return [float(value) for value in rows(made).sum((1, 2))]


def test_processes_share_it(records: list[Record], tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        found = pool.starmap(_fill, [(tmp_path, tmp_path / "c")] * 6)
    assert all(other == found[0] for other in found)


def test_what_is_held_and_clearing_it(clip: FrozenCLIP, records: list[Record], tmp_path: Path) -> None:
    new(clip, records, tmp_path / "c").prepare(KEYS, 2)
    new(clip, records, tmp_path / "c").prepare(KEYS, 3)
    store = DiskCache(tmp_path / "c", MANY)
    held = store.tables()
    assert sorted(item.facts["entry"] for item in held) == [2, 3]
    assert all(item.files == 1 and item.size > 0 and item.used > 0 for item in held)
    assert store.clear("no such model") == 0
    assert store.clear("SMALL") == sum(item.size for item in held)
    assert store.tables() == []
    assert list((tmp_path / "c").iterdir()) == []


def files_by_entry(root: Path) -> dict[int, list[Path]]:
    """The files of rows by their table's entry."""
    return {held.facts["entry"]: list(held.path.rglob("*.safetensors")) for held in DiskCache(root, MANY).tables()}


@pytest.mark.parametrize("order", [[2, 3], [3, 2]])
def test_the_most_recently_used_table_is_listed_first(
    clip: FrozenCLIP, records: list[Record], tmp_path: Path, order: list[int]
) -> None:
    for entry in (2, 3):
        new(clip, records, tmp_path / "c").prepare(KEYS, entry)
    for age, entry in enumerate(order):
        for file in files_by_entry(tmp_path / "c")[entry]:
            os.utime(file, (1000 - age, 1000 - age))
    held = DiskCache(tmp_path / "c", MANY).tables()
    assert [(item.facts["entry"], item.used) for item in held] == [(order[0], 1000), (order[1], 999)]


def test_a_table_without_rows_is_listed_and_cleared_too(
    clip: FrozenCLIP, records: list[Record], tmp_path: Path
) -> None:
    new(clip, records, tmp_path / "c").prepare(KEYS, 2)
    for file in files_by_entry(tmp_path / "c")[2]:
        file.unlink()
    (held,) = DiskCache(tmp_path / "c", MANY).tables()
    assert (held.files, held.size, held.used) == (0, 0, (held.path / "facts.json").stat().st_mtime)
    DiskCache(tmp_path / "c", MANY).clear()
    assert list((tmp_path / "c").iterdir()) == []


def test_rows_that_are_read_count_as_used(clip: FrozenCLIP, records: list[Record], tmp_path: Path) -> None:
    """Otherwise what every run reads would give way before what one run wrote last."""
    new(clip, records, tmp_path / "c").prepare(KEYS, 2)
    (file,) = files_by_entry(tmp_path / "c")[2]
    os.utime(file, (1000, 1000))
    rows(new(clip, records, tmp_path / "c"))
    assert file.stat().st_mtime > 1000


def test_what_a_killed_process_left_lies_on_the_table_and_is_swept(
    clip: FrozenCLIP, records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it wrote rows: they are not taken for a file, and a later run deletes them when they are old."""
    real = os.replace

    def killed(source: Any, target: Any) -> None:
        if str(target).endswith(".safetensors"):
            raise OSError("killed")
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("fedvlm.training.disk_cache._delete", lambda path: None)  # nobody tidies up after SIGKILL
        patch.setattr(os, "replace", killed)
        with pytest.warns(UserWarning, match="not kept on disk"):
            new(clip, records, tmp_path / "c").prepare(KEYS, 2)
    (held,) = DiskCache(tmp_path / "c", MANY).tables()
    (left,) = (file for file in held.path.iterdir() if file.name != "facts.json")
    assert held.files == 0
    new(clip, records, tmp_path / "c").prepare(KEYS, 2)
    assert left.exists()  # it may be somebody's who is still writing
    os.utime(left, (1000, 1000))
    new(clip, records, tmp_path / "c").prepare([(0, 7)], 2)
    assert not left.exists()


def test_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDVLM_CACHE", "/x")
    assert folder() == Path("/x/activations")
    monkeypatch.delenv("FEDVLM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/y")
    assert folder() == Path("/y/fedvlm/activations")


def names(made: Activations) -> list[str]:
    return [made._name(key) for key in KEYS]


def held(made: Activations) -> int:
    """How many rows are read from disk."""
    table = made._table(2)
    assert table is not None
    return len(table.read(sorted(table.find(names(made)))))


def refuse(*_: Any, **__: Any) -> None:
    raise OSError(errno.EROFS, "Read-only file system")


@pytest.fixture
def filled(clip: FrozenCLIP, records: list[Record], tmp_path: Path) -> Path:
    """The one file of a table."""
    new(clip, records, tmp_path / "c").prepare(KEYS, 2)
    (file,) = (tmp_path / "c").rglob("*.safetensors")
    return file


def test_a_cache_that_may_only_be_read_is_read_and_loses_nothing(
    clip: FrozenCLIP, records: list[Record], filled: Path, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another owner's, or mounted read-only: nothing may be touched, deleted or written."""
    for name in ("utime", "unlink", "replace", "mkdir"):
        monkeypatch.setattr(os, name, refuse)
    later = new(clip, records, filled.parents[1])
    for _ in range(2):
        assert held(later) == len(KEYS)
    later.prepare(KEYS, 2)
    assert filled.exists()
    assert encoded == []


@pytest.fixture
def few_files() -> Iterator[Any]:
    """Sets how many more files this process may open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def more(count: int) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + count, hard))

    yield more
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("known", [True, False])
def test_a_file_that_cannot_be_opened_now_is_read_later(
    clip: FrozenCLIP, records: list[Record], filled: Path, few_files: Any, count: int, known: bool
) -> None:
    """Too many open files, where its keys are known already and where not. Listing a folder takes one, reading two."""
    later = new(clip, records, filled.parents[1])
    wanted = names(later)
    table = later._table(2)
    assert table is not None
    found = table.find(wanted) if known else set()
    few_files(count)
    assert table.read(sorted(found or table.find(wanted))) == {}
    few_files(100)
    assert filled.exists()
    assert held(later) == len(KEYS)


def test_a_damaged_file_that_cannot_be_deleted_is_not_served(
    clip: FrozenCLIP, records: list[Record], filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = rows(Activations(clip, records, tiny.CPU, 0))
    data = bytearray(filled.read_bytes())
    data[len(data) // 2] ^= 1
    filled.write_bytes(data)
    monkeypatch.setattr(Path, "unlink", refuse)
    later = new(clip, records, filled.parents[1])
    assert held(later) == 0
    later.prepare(KEYS, 2)
    assert torch.equal(rows(later), expected)
    assert held(later) == len(KEYS)  # from the file that was written now


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_folders_and_files_belong_to_their_owner_alone(
    clip: FrozenCLIP, records: list[Record], tmp_path: Path, mask: int
) -> None:
    before = os.umask(mask)
    try:
        new(clip, records, tmp_path / "cache/fedvlm/activations").prepare(KEYS, 2)
    finally:
        os.umask(before)
    made = list((tmp_path / "cache").rglob("*"))
    assert len(made) == 5
    for path in [tmp_path / "cache", *made]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_table_is_for_one_device_precision_and_version(
    clip: FrozenCLIP, records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another precision, kind of device, torch or Pillow computes other rows of the same image."""

    def table(device: Device = tiny.CPU) -> Path:
        found = Activations(clip, records, device, MANY, DiskCache(tmp_path, MANY))._table(2)
        assert found is not None
        return found.path

    cpu = torch.device("cpu")
    shelves = [table(), table(Device(cpu, torch.bfloat16, "bfloat16")), table(Device(torch.device("meta")))]
    for module in (torch, PIL):
        with monkeypatch.context() as patch:
            patch.setattr(module, "__version__", "0.0.1")
            shelves.append(table())
    assert len(set(shelves)) == len(shelves) == 5
    assert table() == shelves[0]


def test_rows_of_another_precision_are_not_taken(clip: FrozenCLIP, records: list[Record], tmp_path: Path) -> None:
    half = Device(torch.device("cpu"), torch.bfloat16, "bfloat16")
    rough = Activations(clip, records, half, MANY, DiskCache(tmp_path / "c", MANY))
    rough.prepare(KEYS, 2)
    made = new(clip, records, tmp_path / "c")
    made.prepare(KEYS, 2)
    exact = rows(Activations(clip, records, tiny.CPU, 0))
    assert (rows(made) - exact).abs().max() < 1e-5
    assert (rows(rough) - exact).abs().max() > 1e-4
