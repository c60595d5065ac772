"""The one module that makes bytes durable: whole files appear at once or not at all, logs grow by whole lines."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from fedvlm.errors import FedvlmError


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data` atomically: a temporary file in the same folder, fsync, rename, fsync of the folder."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise _explained(path, error) from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _explained(path, error) from error
        raise


def write_text(path: Path, text: str) -> None:
    """Replace `path` by UTF-8 `text` atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by indented JSON atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def make_folder(path: Path) -> None:
    """Create a folder with its parents."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _explained(path, error) from error


def read_json(path: Path) -> Any:
    """The JSON value of a file of ours; a damaged file ends in a `FedvlmError` that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FedvlmError(f"{path} is damaged ({error}): start the run again with --overwrite") from error


def json_digest(value: Any) -> str:
    """SHA-256 of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def append_line(path: Path, value: Any, *, sync: bool = True) -> int:
    """Append one JSON line, with `sync` durable on return; gives the file's new length in bytes."""
    line = json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(line.encode())
            file.flush()
            if sync:
                os.fsync(file.fileno())
            return file.tell()
    except OSError as error:
        raise _explained(path, error) from error


def truncate(path: Path, length: int) -> None:
    """Cut `path` back to `length` bytes (a missing file counts as empty)."""
    try:
        if path.exists() and path.stat().st_size > length:
            with path.open("rb+") as file:
                file.truncate(length)
                os.fsync(file.fileno())
    except OSError as error:
        raise _explained(path, error) from error


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _explained(path: Path, error: OSError) -> FedvlmError:
    advice = {
        errno.ENOSPC: "the disk is full: free some space, then continue with --resume",
        errno.EACCES: "no permission to write there: choose another folder with --out",
        errno.EROFS: "the file system is read-only: choose another folder with --out",
        errno.ENOTDIR: "a part of the path is a file, not a folder: choose another folder with --out",
        errno.EEXIST: "a file stands where a folder is needed: choose another folder with --out",
    }
    why = advice.get(error.errno or 0, error.strerror or str(error))
    return FedvlmError(f"cannot write {path}: {why}")
