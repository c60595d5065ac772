from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fedvlm import durable
from fedvlm.errors import FedvlmError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def failing(code: int) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def test_writing_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file"
    durable.write_bytes(path, b"a" * 100)
    durable.write_bytes(path, b"b")
    assert path.read_bytes() == b"b"
    assert names(path.parent) == ["file"]


@pytest.mark.parametrize(("private", "umask", "mode"), [(False, 0o022, 0o644), (False, 0o027, 0o640), (False, 0o077, 0o600),
                                                        (True, 0o000, 0o600), (True, 0o022, 0o600)])  # fmt: skip
def test_who_can_read_a_file(tmp_path: Path, private: bool, umask: int, mode: int) -> None:
    """The umask decides, but for what belongs to clients."""
    (tmp_path / "replaced").write_text("readable by all")
    before = os.umask(umask)
    try:
        durable.write_bytes(tmp_path / "file", b"x", private=private)
        durable.write_bytes(tmp_path / "replaced", b"x", private=private)
        durable.append_line(tmp_path / "log", 1, private=private)
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {mode}


@pytest.mark.parametrize("step", ["replace", "fsync"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int
) -> None:
    path = tmp_path / "file"
    durable.write_bytes(path, b"old")
    monkeypatch.setattr(os, step, failing(code))
    with pytest.raises(FedvlmError, match=str(path)):
        durable.write_bytes(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_full_disk_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))
    with pytest.raises(FedvlmError, match=r"disk is full.*--resume"):
        durable.write_bytes(tmp_path / "file", b"x")
    with pytest.raises(FedvlmError, match="disk is full"):
        durable.append_line(tmp_path / "log", 1)


def test_the_new_name_appears_only_after_its_bytes_are_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsync of the file, then rename, then fsync of the folder: any other order can lose the file in a power cut."""
    steps: list[str] = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(handle: int) -> None:
        steps.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")  # noqa: PTH112
        real_sync(handle)

    def replace(old: str, new: Path) -> None:
        steps.append("rename")
        assert Path(old).read_bytes() == b"x"
        real_replace(old, new)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    durable.write_bytes(tmp_path / "file", b"x")
    assert steps == ["file", "rename", "folder"]


def test_a_file_where_a_folder_is_needed(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    for write in (durable.write_json, durable.append_line):
        with pytest.raises(FedvlmError, match=r"(folder|not a folder).*another folder"):
            write(tmp_path / "run" / "ledger", {})


def test_a_folder_where_a_file_is_needed(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(FedvlmError, match="cannot write"):
        durable.write_text(tmp_path / "file", "x")
    assert names(tmp_path) == ["file"]


def test_json_is_readable_unicode_and_never_nan(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    durable.write_json(path, {"klinik": "Tübingen", "x": [1, None, 0.1]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"klinik": "Tübingen", "x": [1, None, 0.1]}
    assert "Tübingen" in path.read_text(encoding="utf-8")
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            durable.write_json(path, value)
        with pytest.raises(ValueError, match="JSON"):
            durable.append_line(path, value)
    assert json.loads(path.read_text(encoding="utf-8"))["x"] == [1, None, 0.1]


def test_appending_grows_by_whole_lines_and_tells_the_length(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "ledger.jsonl"
    lengths = [durable.append_line(path, {"round": number, "name": "é\n"}) for number in range(3)]
    lines = path.read_bytes().split(b"\n")
    assert lines.pop() == b""
    assert [json.loads(line)["round"] for line in lines] == [0, 1, 2]
    assert lengths == [sum(len(line) + 1 for line in lines[: n + 1]) for n in range(3)]


def test_truncating_goes_back_to_an_earlier_length(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    length = durable.append_line(path, 1)
    durable.append_line(path, 2)
    with path.open("ab") as file:
        file.write(b'{"half a li')
    durable.truncate(path, length)
    assert path.read_bytes() == b"1\n"
    durable.truncate(path, length)
    assert path.read_bytes() == b"1\n"
    with pytest.raises(FedvlmError, match="has 2 bytes, but 100 were written"):
        durable.truncate(path, 100)
    assert path.read_bytes() == b"1\n"
    durable.truncate(path, 0)
    assert path.read_bytes() == b""
    durable.truncate(tmp_path / "missing", 0)
    assert names(tmp_path) == ["ledger"]


def test_truncating_what_cannot_be_cut_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger"
    durable.append_line(path, 1)
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(FedvlmError, match="ledger"):
        durable.truncate(path, 0)


def test_a_killed_process_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "file"
    durable.write_bytes(path, b"old")
    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        durable.write_bytes(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    durable.write_bytes(path, b"new")
    assert path.read_bytes() == b"new"


def test_an_interrupted_write_leaves_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        durable.write_bytes(tmp_path / "file", b"new")
    monkeypatch.undo()
    assert names(tmp_path) == []
