"""A folder that both sides can reach: a directory, a mounted bucket, or a disk that is carried by hand."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from fedvlm.errors import FedvlmError
from fedvlm.network.carriers import mailbox
from fedvlm.network.carriers.mailbox import INBOX, OUTBOX


class FolderCarrier:
    """The coordinator's part of `mailbox`."""

    def __init__(self, folder: Path, sites: Sequence[str], limit: int = 1 << 30) -> None:
        self.folder, self.sites, self.limit = folder, list(sites), limit
        self.asked: dict[str, str] = {}
        """Name of the file of the message that waits, by site."""

    def roster(self) -> list[str]:
        """The sites that have a mailbox."""
        return [name for name in self.sites if (self.folder / name).is_dir()]

    def send(self, messages: Mapping[str, bytes]) -> None:
        """Put a message into each mailbox, in the place of those that lie there. Raises `FedvlmError`."""
        for name in self.asked.keys() - messages.keys():
            with suppress(OSError):
                (self.folder / name / INBOX / self.asked[name]).unlink(missing_ok=True)
            del self.asked[name]
        for name, data in messages.items():
            box, name_of = self.folder / name, mailbox.key(data)
            try:
                for old in (*mailbox.messages(box / INBOX), *mailbox.messages(box / OUTBOX)):
                    if old.name != name_of:
                        old.unlink(missing_ok=True)
                mailbox.put(box / INBOX / name_of, data)
            except OSError as error:
                raise FedvlmError(f"the mailbox {box} cannot be written: {error.strerror or error}") from None
            self.asked[name] = name_of

    def receive(self, seconds: float) -> list[tuple[str, bytes]]:
        """Answers to the messages that were sent."""
        end = time.monotonic() + seconds
        while True:
            found = [(name, data) for name in list(self.asked) if (data := self._take(name)) is not None]
            if found or time.monotonic() >= end:
                return found
            time.sleep(min(mailbox.PAUSE, max(end - time.monotonic(), 0)))

    def _take(self, name: str) -> bytes | None:
        """A site's answer; both files are removed, the question first, so that it is not answered again."""
        box, file = self.folder / name, self.asked[name]
        try:
            answer = box / OUTBOX / file
            if not answer.is_symlink() and not answer.exists():
                return None
            # An answer that is too large, or no plain file, is refused as broken.
            data = mailbox.read(answer, self.limit) or b""
            (box / INBOX / file).unlink(missing_ok=True)
            (box / OUTBOX / file).unlink(missing_ok=True)
        except OSError as error:
            raise FedvlmError(f"the mailbox {box} cannot be read: {error.strerror or error}") from None
        del self.asked[name]
        return data

    def close(self) -> None:
        """Take back the messages that wait."""
        for name, file in self.asked.items():
            with suppress(OSError):
                (self.folder / name / INBOX / file).unlink(missing_ok=True)
        self.asked.clear()
