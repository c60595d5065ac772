"""A folder with a mailbox for each site, and the site's part: fetch a message, ask the site's socket, put the answer.

    FOLDER/SITE/to/KEY.msg      from the coordinator; KEY is the beginning of the SHA-256 of the bytes
    FOLDER/SITE/from/KEY.msg    the answer to the message of that name

Files appear whole: they are written under another name, which begins with a dot, and renamed. Whoever has no line
between the machines carries the files by hand. This module imports Python's own packages only.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import stat
import sys
import time
from pathlib import Path

if __name__ == "__main__":  # a carrier that is started as a file, without the package
    sys.path.insert(0, str(Path(__file__).parent))
    import frames  # type: ignore[import-not-found,unused-ignore]
else:
    from fedvlm.network import frames

INBOX, OUTBOX, ENDING = "to", "from", ".msg"
PAUSE = 0.02
"""Seconds between two looks into a folder."""
_NAME = re.compile(r"[0-9a-f]{32}\.msg")


def key(data: bytes) -> str:
    """Name of the file of a message."""
    return hashlib.sha256(data).hexdigest()[:32] + ENDING


def put(path: Path, data: bytes) -> None:
    """Write a file that appears whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def messages(folder: Path) -> list[Path]:
    """The messages that lie in a folder, by name; other files are overlooked."""
    try:
        return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))
    except FileNotFoundError:
        return []


def read(path: Path, limit: int = frames.LIMIT) -> bytes | None:
    """The bytes of a file; None if it is gone, larger than the limit, or no plain file."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
            return None
        raise
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return None
        data = file.read(limit + 1)
    return data if len(data) <= limit else None


def deliver(mailbox: Path, socket: Path, limit: int = frames.LIMIT, given: dict[str, bytes] | None = None) -> int:
    """Carry every message that has no answer yet to the site's socket, and its answer back; returns their number.

    `given`: answers that could not be put yet, by name of the file; they are kept there until they can.
    """
    count, given = 0, {} if given is None else given
    for path in messages(mailbox / INBOX):
        answer = mailbox / OUTBOX / path.name
        if answer.exists():
            continue
        data = read(path, limit)
        if data is None or key(data) != path.name:
            continue  # taken back by the coordinator, not whole yet, or damaged on the way
        if path.name not in given:
            given.clear()
            given[path.name] = frames.ask(socket, data)
        put(answer, given[path.name])
        given.clear()
        count += 1
    return count


def watch(mailbox: Path, socket: Path, pause: float = PAUSE) -> None:
    """Deliver until the process ends; a site that does not answer is asked again."""
    said, given = "", dict[str, bytes]()
    for old in mailbox.glob(f"{OUTBOX}/.*.msg.*"):  # of a carrier that was killed while it wrote
        old.unlink(missing_ok=True)
    while True:
        try:
            deliver(mailbox, socket, given=given)
            said = ""
        except (OSError, frames.BrokenFrameError) as error:
            who = f"{mailbox} cannot be written" if given else "the site does not answer"
            if str(error) != said:
                said = str(error)
                print(f"{who} ({error}): tried again until it works", file=sys.stderr, flush=True)
            time.sleep(1)
        time.sleep(pause)


if __name__ == "__main__":
    watch(Path(sys.argv[1]), Path(sys.argv[2]))
