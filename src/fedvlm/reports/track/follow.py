"""Reads run folders, finished or growing, and tells a writer what is new.

The ledger is the only source. A writer of an earlier process may have been killed at any moment, so a series that is
not finished is written anew from its first round; finished ones are noted in `written.json`, and are left as they are.
A resumed run cuts its ledger back to the last checkpoint; the series is begun anew then too.
"""

from __future__ import annotations

import fcntl
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fedvlm import durable
from fedvlm.errors import FedvlmError
from fedvlm.federation.records import RoundRecord, from_json
from fedvlm.reports import track
from fedvlm.reports.track import series as contents
from fedvlm.reports.track.base import Log, Tracker
from fedvlm.runs.folder import Point, RunFolder
from fedvlm.runs.owned_files import LOCK

WRITTEN = "written.json"
EVERY_S = 1.0
"""Seconds between two looks at a growing run."""
PATIENCE_S = 30.0
"""Seconds that a run waits for its writers at the end."""


class _RewrittenError(Exception):
    """A ledger no longer holds what was read of it."""


@dataclass
class Tail:
    """The lines of a ledger that have not been read yet."""

    ledger: Path
    offset: int = 0
    last: bytes = b""
    """The line before `offset`."""
    visits: list[dict[str, object]] = field(default_factory=list)

    def read(self) -> list[RoundRecord]:
        """Rounds that are complete now. Raises `_RewrittenError` if lines that were read are not there any more."""
        found: list[RoundRecord] = []
        if not self.ledger.exists():
            return found
        with self.ledger.open("rb") as file:
            file.seek(self.offset - len(self.last))
            if file.read(len(self.last)) != self.last:
                raise _RewrittenError
            for line in file:
                if not line.endswith(b"\n"):
                    break  # it is being written
                self.offset, self.last = self.offset + len(line), line
                table = json.loads(line)
                if table["kind"] == "visit":
                    self.visits.append(table)
                else:
                    found.append(from_json(table | {"visits": self.visits}))
                    self.visits = []
        return found


@dataclass
class _Line:
    """A series under way."""

    point: Point
    tail: Tail
    log: Log
    time_s: float
    """When it began, plus the seconds of computing so far."""
    total_bytes: int = 0

    def tell(self, record: RoundRecord) -> None:
        """Write a round."""
        values = contents.round_values(record)
        self.time_s += record.train_s + record.evaluate_s
        self.total_bytes += int(values["bytes/up_bytes"] + values["bytes/down_bytes"])
        self.log.round(record.round, self.time_s, values | {"bytes/total_bytes": self.total_bytes})


class Follower:
    """Tells one writer of one run."""

    def __init__(self, run: RunFolder, name: str) -> None:
        self.run, self.place = run, track.place(run.path, name)
        self.tracker: Tracker = track.open_tracker(name, self.place)
        file = self.place / WRITTEN
        self.written: dict[str, str] = dict(durable.read_json(file)) if file.exists() else {}
        self.lines: dict[Path, _Line] = {}
        self.seen: dict[Path, int] = {}
        """Results that were told, by their times."""
        self.rounds = 0

    def look(self) -> None:
        """Tell what is new in the run folder."""
        for point in contents.points(self.run):
            file = point.folder / "result.json"
            seen = file.stat().st_mtime_ns if file.exists() else 0
            if seen and self.seen.get(file) == seen:
                continue  # results of thousands of clients are long to read, and a look is taken every second
            digest = durable.read_json(file)["digest"] if seen else ""
            if not (seen and self.written.get(_key(point)) == digest):
                self._look_at(point, digest)
            self.seen[file] = seen

    def _look_at(self, point: Point, digest: str) -> None:
        line = self.lines.get(point.folder) or self._begin(point)
        try:
            records = line.tail.read()
        except _RewrittenError:
            line.log.end(None)
            line = self._begin(point)
            records = line.tail.read()
        for record in records:
            line.tell(record)
            self.rounds += 1
        result = point.result() if digest else None
        if result is not None:
            line.log.end(contents.final_values(result))
            self.written[_key(point)] = digest
            durable.write_json(self.place / WRITTEN, self.written)
            del self.lines[point.folder]

    def _begin(self, point: Point) -> _Line:
        _, saved = self.run.begun()
        begun = contents.begun_s(point)
        log = self.tracker.begin(contents.describe(saved, point), begun)
        self.lines[point.folder] = _Line(point, Tail(point.ledger), log, begun)
        return self.lines[point.folder]

    def close(self) -> None:
        """Close what is not finished."""
        for line in self.lines.values():
            line.log.end(None)
        self.lines.clear()


def _key(point: Point) -> str:
    return f"{point.folder.parent.name}/{point.folder.name}"


@contextmanager
def opened(run: RunFolder, name: str) -> Iterator[Follower]:
    """A follower, which alone writes its folder. Raises `FedvlmError` if another process does."""
    place = track.place(run.path, name)
    durable.make_folder(place)
    with (place / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise FedvlmError(f"another process is writing {place}: wait for it") from None
        follower = Follower(run, name)
        try:
            yield follower
        finally:
            follower.close()


def write(run: RunFolder, name: str) -> tuple[int, int]:
    """Write a run as it is now; returns the numbers of series and of rounds that a writer has been told now."""
    with opened(run, name) as follower:
        before = len(follower.written)
        follower.look()
        return len(follower.written) - before + len(follower.lines), follower.rounds


@contextmanager
def following(folder: Path, names: Sequence[str], warn: Callable[[str], None]) -> Iterator[None]:
    """Write a run while it is made, each writer in a thread of its own. One that fails is told to `warn`, once."""
    stop = threading.Event()
    team = {
        name: threading.Thread(target=_follow, args=(RunFolder(folder), name, warn, stop), daemon=True)
        for name in names
    }
    for thread in team.values():
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for name, thread in team.items():
            thread.join(PATIENCE_S)
            if thread.is_alive():
                warn(_without(name, folder, f"has not ended within {PATIENCE_S:.0f} s"))


def _follow(run: RunFolder, name: str, warn: Callable[[str], None], stop: threading.Event) -> None:
    try:
        with opened(run, name) as follower:
            while not stop.wait(EVERY_S):
                follower.look()
            follower.look()
    except (Exception, SystemExit) as error:
        warn(_without(name, run.path, f"{type(error).__name__}: {error}"))


def _without(name: str, folder: Path, why: str) -> str:
    first = " ".join(why.split())
    return f"{name} {first}; the run goes on without it (afterwards: fedvlm track {folder} --to {name})"
