"""What was found sound is remembered, by the bytes alone, where the user's cache may be written."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from fake_data import photo, photos
from typer.testing import CliRunner

from fedvlm.cli import app
from fedvlm.data import Source, decode, decode_cache, load_source
from fedvlm.data.sources.folder import FolderData

NAMES = [f"{name}/{number}.png" for name in ("cat", "dog") for number in range(3)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDVLM_CACHE", str(tmp_path / "above" / "cache"))
    return tmp_path / "above" / "cache" / "images"


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Grows by one with every full decode of an image that is looked at."""
    seen: list[Any] = []
    real = decode.integrity.check
    monkeypatch.setattr(decode.integrity, "check", lambda *given: (seen.append(given), real(*given))[1])
    return seen


def folder_of(root: Path, **settings: Any) -> Source:
    return load_source(FolderData(source="folder", path=str(root), **settings), 0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return photos(tmp_path / "pets", *NAMES)


def test_every_image_is_decoded_once(root: Path, decodes: list[Any]) -> None:
    first = folder_of(root)
    assert len(decodes) == 6
    again = folder_of(root)
    assert len(decodes) == 6
    assert (again, again.content) == (first, first.content)
    photo(root / NAMES[0], (3, 3, 250))
    (root / "cat" / "moved.png").write_bytes((root / NAMES[1]).read_bytes())
    (root / NAMES[1]).unlink()
    folder_of(root)
    assert len(decodes) == 7, "the changed one; another name is no other image"


def test_damaged_images_are_looked_at_again(root: Path, decodes: list[Any]) -> None:
    (root / NAMES[0]).write_bytes((root / NAMES[0]).read_bytes()[:60])
    told = folder_of(root).warnings
    assert "1 image is unreadable: cat/0.png" in told[0]
    assert folder_of(root).warnings == told


def test_bounds_hold_for_remembered_images_too(root: Path) -> None:
    photo(root / "dog" / "large.png", size=(1001, 1000))
    assert len(folder_of(root)) == 7
    (note,) = folder_of(root, max_megapixels=1.0).warnings
    assert note.startswith("left out: 1 image is too large: dog/large.png (1001 x 1000 = 1.0 megapixels")


def test_it_is_readable_by_its_owner_alone(root: Path, cache: Path) -> None:
    folder_of(root)
    (file,) = cache.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert {stat.S_IMODE(path.stat().st_mode) for path in (cache, cache.parent, cache.parent.parent)} == {0o700}
    assert not [name for name in NAMES if name.split("/")[1] in file.read_text()], "it holds digests, no names"


def test_damaged_lines_are_ignored(root: Path, cache: Path, decodes: list[Any]) -> None:
    whole = folder_of(root)
    (file,) = cache.iterdir()
    lines = file.read_bytes().split(b"\n")
    lines[1] = lines[1].replace(b" 8 ", b" 9 ")
    lines[2] = lines[2][:50]
    lines[3] = b"\xff\x00" + lines[3]
    file.write_bytes(b"\n".join(lines)[:-30])  # and the last one is cut, without an end of line
    assert folder_of(root) == whole
    assert len(decodes) == 6 + 4
    assert folder_of(root) == whole
    assert len(decodes) == 10


@pytest.mark.parametrize("how", ["a file in its place", "a folder in its place", "read-only"])
def test_without_a_cache_nothing_is_remembered_and_nothing_fails(
    root: Path, cache: Path, how: str, decodes: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.parent.mkdir(parents=True)
    if how == "a file in its place":
        cache.write_text("")
    elif how == "a folder in its place":
        (cache / f"pillow-{PIL.__version__}-decoder-{decode.DECODER}.txt").mkdir(parents=True)
    else:
        monkeypatch.setattr(decode_cache.os, "open", refused)
    assert len(folder_of(root)) == len(folder_of(root)) == 6
    assert len(decodes) == 12


def refused(*_: Any) -> int:
    raise OSError(30, "Read-only file system")


def test_nothing_is_kept_where_nothing_may_be(root: Path, cache: Path, decodes: list[Any]) -> None:
    config = FolderData(source="folder", path=str(root))
    for _ in range(2):
        load_source(config, 0, use_cache=False)
    assert len(decodes) == 12
    assert not cache.exists()


def test_another_decoder_looks_again(root: Path, decodes: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(root)
    monkeypatch.setattr(decode_cache, "DECODER", decode.DECODER + 1)
    folder_of(root)
    monkeypatch.setattr(decode_cache.PIL, "__version__", "0.1")
    folder_of(root)
    assert len(decodes) == 18


def test_too_long_a_file_is_begun_anew(
    root: Path, cache: Path, decodes: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_of(root)
    monkeypatch.setattr(decode_cache, "MAX_BYTES", 10)
    folder_of(root)
    assert len(decodes) == 12


def test_the_command_shows_and_clears_it(root: Path, cache: Path) -> None:
    folder_of(root)
    shown = CliRunner().invoke(app, ["cache"])
    assert f"{cache}: which images were found sound" in shown.output
    CliRunner().invoke(app, ["cache", "--clear", "--only", "openai"])
    assert list(cache.iterdir())
    CliRunner().invoke(app, ["cache", "--clear"])
    assert not list(cache.iterdir())
