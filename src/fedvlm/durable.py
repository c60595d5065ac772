"""The one module that writes durable files: whole files appear atomically, logs grow by whole lines."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

from fedvlm.errors import FedvlmError, StorageError

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_END = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC


def _mode(private: bool) -> int:
    """Permissions of a new file: for its owner only, or those of the umask."""
    return 0o600 if private else 0o666


def write_bytes(path: Path, data: bytes, *, private: bool = False) -> None:
    """Replace `path` by `data` atomically: a temporary file in the same folder, fsync, rename, fsync of the folder.

    `private`: for data of clients; only the owner can read the file, whatever the umask.
    """
    temporary = path.parent / f".{path.name}.{secrets.token_hex(6)}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(temporary, _NEW, _mode(private))
    except OSError as error:
        raise _explain(path, error) from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _explain(path, error) from error
        raise


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Replace `path` by UTF-8 `text` atomically."""
    write_bytes(path, text.encode(), private=private)


def write_json(path: Path, value: Any, *, private: bool = False) -> None:
    """Replace `path` by indented JSON atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", private=private)


def make_folder(path: Path) -> None:
    """Create a folder with its parents."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _explain(path, error) from error


def read_json(path: Path) -> Any:
    """The JSON value of a file that fedvlm has written. Raises `FedvlmError` naming a damaged file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FedvlmError(f"{path} is damaged ({error}): start the run again with --overwrite") from error


def json_digest(value: Any) -> str:
    """SHA-256 of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def append_line(path: Path, value: Any, *, sync: bool = True, private: bool = False) -> int:
    """Append one JSON line, durable on return with `sync`; returns the file's new length in bytes.

    A line that a full disk or a power cut has left unfinished is ended first, so that it takes no other line with it.
    """
    line = json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, _END, _mode(private)), "ab") as file:
            if private:
                os.fchmod(file.fileno(), _mode(private))  # an existing file may be readable by others
            file.write((line if _ends_whole(path) else "\n" + line).encode())
            file.flush()
            if sync:
                os.fsync(file.fileno())
            return file.tell()
    except OSError as error:
        raise _explain(path, error) from error


def _ends_whole(path: Path) -> bool:
    """Whether a file is empty or ends with the end of a line."""
    with path.open("rb") as file:
        return not file.seek(0, os.SEEK_END) or (file.seek(-1, os.SEEK_END), file.read(1))[1] == b"\n"


def truncate(path: Path, length: int) -> None:
    """Cut `path` back to `length` bytes (a missing file counts as empty).

    Raises `FedvlmError` if the file is shorter, because then durable lines are missing.
    """
    try:
        found = path.stat().st_size if path.exists() else 0
        if found > length:
            with path.open("rb+") as file:
                file.truncate(length)
                os.fsync(file.fileno())
    except OSError as error:
        raise _explain(path, error) from error
    if found < length:
        raise FedvlmError(
            f"{path} has {found:,} bytes, but {length:,} were written: lines are missing. Put the file back as it was, "
            f"or delete {path.parent} to run this point again"
        )


def is_locked(path: Path) -> bool:
    """Whether a process holds a lock file."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def keep_private(path: Path) -> None:
    """Restrict an existing file to its owner, if possible."""
    with contextlib.suppress(OSError):
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _explain(path: Path, error: OSError) -> StorageError:
    advice = {
        errno.ENOSPC: "the disk is full: free some space, then continue (runs: with --resume)",
        errno.EACCES: "no permission to write there: choose another folder",
        errno.EROFS: "the file system is read-only: choose another folder",
        errno.ENOTDIR: "a part of the path is a file, not a folder: choose another folder",
        errno.EEXIST: "a file stands where a folder is needed: choose another folder",
    }
    why = advice.get(error.errno or 0, error.strerror or str(error))
    return StorageError(f"cannot write {path}: {why}")
