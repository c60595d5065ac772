"""The run folder: what an experiment leaves behind, and how an interrupted one is taken up again.

experiment.json   every setting, its digest; versions; the weights' digest. Methods and seeds may be added later
contract.txt      what was said before training
seed-0/partition.json, partition.png
seed-0/pfedmma/point.json       the method and its settings, by which the point is known again
seed-0/pfedmma/ledger.jsonl     a line per visit and per round
seed-0/pfedmma/checkpoint/      the server's and every client's tensors
seed-0/pfedmma/result.json      accuracies and digests, written last: its presence says the point is finished
table.{json,csv,md}, rounds.{png,svg}; compare.{json,csv,md,tex}, tradeoff.{png,svg} of a comparison
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from fedvlm import durable
from fedvlm.errors import FedvlmError
from fedvlm.experiment import Experiment
from fedvlm.federation.checkpoint import Checkpoint
from fedvlm.federation.engine import RoundRecord

LOCK = ".lock"
RESULTS = 2
"""Raised whenever the same settings give other results than before: older points are then not taken for new ones."""
_PACKAGES = ("fedvlm", "torch", "numpy", "pillow", "safetensors", "tokenizers")


@dataclass(frozen=True)
class Point:
    """The place of one method with one seed."""

    folder: Path

    @property
    def ledger(self) -> Path:
        """JSON lines: `{"kind": "visit" | "round", ...}`."""
        return self.folder / "ledger.jsonl"

    def checkpoint(self, limit_bytes: int) -> Checkpoint:
        """Durable state, of which so many bytes of clients' tensors stay in memory too."""
        return Checkpoint(self.folder / "checkpoint", limit_bytes)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Only one process plays a point; another one waits."""
        durable.make_folder(self.folder)
        with (self.folder / LOCK).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def claim(self, method: str, settings: dict[str, Any], *, write: bool = True) -> None:
        """Write down whose point this is, or refuse the one that is there if it is another's."""
        file, own = self.folder / "point.json", {"method": method, "settings": settings, "results": RESULTS}
        if not file.exists():
            if write:
                durable.write_json(file, own)
            return
        before, now = _flat(dict(durable.read_json(file))), _flat(own)
        keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        if keys:
            changes = ", ".join(f"{key}: {before.get(key)} then, {now.get(key)} now" for key in keys[:5])
            raise FedvlmError(
                f"{self.folder} was made with other settings ({changes}): give the variant a name of its own "
                '([method.NAME] method = "..."), another --out, or --overwrite'
            )

    def result(self) -> dict[str, Any] | None:
        """The finished result, or None."""
        file = self.folder / "result.json"
        return dict(durable.read_json(file)) if file.exists() else None

    def finish(self, result: dict[str, Any]) -> None:
        """Write the result, which marks the point finished."""
        durable.write_json(self.folder / "result.json", result)

    def log(self, record: RoundRecord) -> int:
        """Append a round: a line per visit, then the round's line. Gives the ledger's length in bytes."""
        for visit in record.visits:
            durable.append_line(self.ledger, {"kind": "visit", "round": record.round, **asdict(visit)}, sync=False)
        line = {key: value for key, value in asdict(record).items() if key != "visits"}
        return durable.append_line(self.ledger, {"kind": "round", **line})

    def lines(self, kind: Literal["visit", "round"]) -> list[dict[str, Any]]:
        """The ledger's lines of one kind, in order."""
        text = self.ledger.read_text() if self.ledger.exists() else ""
        return [line for line in map(json.loads, text.splitlines()) if line["kind"] == kind]


@dataclass(frozen=True)
class RunFolder:
    """One experiment's folder."""

    path: Path

    def point(self, seed: int, method: str) -> Point:
        """Where a method's run with a seed lives."""
        return Point(self.path / f"seed-{seed}" / method)

    def open(self, experiment: Experiment, weights: str, *, resume: bool, overwrite: bool) -> list[str]:
        """Create the folder, or take up the one that is there if it holds the same experiment.

        Gives what was of another version when it was begun.
        """
        changed, current = list[str](), versions()
        file = self.path / "experiment.json"
        if overwrite and file.exists():
            self._clear()
        if file.exists():
            found = durable.read_json(file)
            if not resume:
                raise FedvlmError(
                    f"{self.path} already holds a run: --resume continues it, --overwrite starts it again, "
                    "--out names another folder"
                )
            if "basis" not in found:
                raise FedvlmError(f"{self.path} holds a run of an earlier version: --overwrite starts it again")
            if (found["basis"], found.get("weights")) != (experiment.basis(), weights):
                raise FedvlmError(
                    f"{self.path} holds a run with other settings or weights: {_changes(found, experiment)}"
                )
            before = found.get("versions", {})
            changed = [f"{name} {before[name]} then, {now} now" for name, now in current.items()
                       if name in before and before[name] != now]  # fmt: skip
            if found.get("digest") == experiment.digest():
                return changed
        elif any(not there.name.startswith(".") for there in self.path.iterdir()):
            raise FedvlmError(f"{self.path} is not empty and holds no run: name another folder with --out")
        durable.write_json(
            file,
            {
                "digest": experiment.digest(),
                "basis": experiment.basis(),
                "weights": weights,
                "versions": current,
                "experiment": experiment.resolved(),
            },
        )
        return changed

    def _clear(self) -> None:
        """Remove everything but the lock, which this process holds; last what says that a run is here."""
        for there in sorted(self.path.iterdir(), key=lambda there: there.name == "experiment.json"):
            if there.is_dir():
                shutil.rmtree(there)
            elif there.name != LOCK:
                there.unlink()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Only one process writes a run folder at a time."""
        durable.make_folder(self.path)
        with (self.path / LOCK).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise FedvlmError(
                    f"another process is writing {self.path}: wait for it or name another --out"
                ) from None
            yield


def versions() -> dict[str, str]:
    """Versions that results may depend on."""
    found = {name: metadata.version(name) for name in _PACKAGES}
    return found | {"python": platform.python_version(), "machine": platform.machine(), "cores": str(os.cpu_count())}


def _changes(found: dict[str, Any], experiment: Experiment) -> str:
    before, now = _flat(found.get("experiment", {})), _flat(experiment.resolved())
    keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    keys = [key for key in keys if key not in ("name", "methods", "seeds") and not key.startswith("method.")]
    return ", ".join(f"{key}: {before.get(key)} then, {now.get(key)} now" for key in keys[:5]) or "the weights differ"


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in table.items():
        result |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return result
