"""A folder with a mailbox for each site, and the site's part: fetch a message, ask the site's socket, put the answer.

    FOLDER/SITE/to/KEY.msg      from the coordinator; KEY is the beginning of the SHA-256 of the bytes
    FOLDER/SITE/from/KEY.msg    the answer to the message of that name

Files appear whole: they are written under another name, which begins with a dot, and renamed. Whoever has no line
between the machines carries the files by hand. This module imports Python's own packages only.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
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


def deliver(mailbox: Path, socket: Path, limit: int = frames.LIMIT) -> int:
    """Carry every message that has no answer yet to the site's socket, and its answer back; returns their number."""
    count = 0
    for path in messages(mailbox / INBOX):
        answer = mailbox / OUTBOX / path.name
        if answer.exists():
            continue
        try:
            data = path.read_bytes()
        except FileNotFoundError:  # taken back by the coordinator
            continue
        if len(data) > limit or key(data) != path.name:
            continue  # not whole yet, or damaged on the way
        put(answer, frames.ask(socket, data))
        count += 1
    return count


def watch(mailbox: Path, socket: Path, pause: float = PAUSE) -> None:
    """Deliver until the process ends; a site that does not answer is asked again."""
    said = ""
    while True:
        try:
            deliver(mailbox, socket)
            said = ""
        except (OSError, frames.BrokenFrameError) as error:
            if str(error) != said:
                said = str(error)
                print(f"the site does not answer ({error}): asked again until it does", file=sys.stderr, flush=True)
            time.sleep(1)
        time.sleep(pause)


if __name__ == "__main__":
    watch(Path(sys.argv[1]), Path(sys.argv[2]))
