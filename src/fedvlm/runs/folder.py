"""The run folder: what an experiment leaves behind, and how an interrupted one is taken up again.

experiment.json   every setting, its digest; the model's digest; versions and machine. Methods and seeds may be added
contract.txt      what was said before training
seed-0/partition.json, partition.png
seed-0/pfedmma/point.json       the method and its settings, by which the point is known again
seed-0/pfedmma/ledger.jsonl     a line per visit and per round
seed-0/pfedmma/checkpoint/      the server's and every client's tensors
seed-0/pfedmma/result.json      accuracies and digests, written last: its presence says the point is finished
table.{json,csv,md}, rounds.{png,svg}; compare.{json,csv,md,tex}, tradeoff.{png,svg} of a comparison

What tells of single clients (partition, ledger, checkpoint, result) can be read by the folder's owner alone.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedvlm import durable, overrides
from fedvlm.clip import FrozenCLIP
from fedvlm.errors import FedvlmError
from fedvlm.experiment import Experiment
from fedvlm.federation.checkpoint import Checkpoint
from fedvlm.federation.records import RoundRecord, from_json
from fedvlm.runs import owned_files, result
from fedvlm.runs.machine import Machine, differences, versions
from fedvlm.runs.owned_files import LOCK
from fedvlm.runs.result import PointResult

RESULTS_VERSION = 3
"""Raised whenever the same settings give other results than before: older points are then not taken for new ones."""
UNCHANGED_VERSION = 2
"""The number of experiments whose results are still those of that version (`results_version`)."""


@dataclass(frozen=True)
class Point:
    """The place of one method with one seed."""

    folder: Path

    @property
    def ledger(self) -> Path:
        """JSON lines: `{"kind": "visit" | "round", ...}`."""
        return self.folder / "ledger.jsonl"

    def checkpoint(self, limit_bytes: int) -> Checkpoint:
        """Durable state. Keeps up to `limit_bytes` of clients' tensors in memory besides."""
        return Checkpoint(self.folder / "checkpoint", limit_bytes)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Only one process plays a point; another one waits."""
        durable.make_folder(self.folder)
        with (self.folder / LOCK).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # Points of an earlier version left what is told of clients to the umask.
            for own in (self.ledger, self.folder / "result.json", *self.folder.glob("checkpoint/*")):
                durable.keep_private(own)
            yield

    def check_settings(
        self, method: str, settings: dict[str, Any], results_version: int = RESULTS_VERSION, *, write: bool = True
    ) -> None:
        """Write down whose point this is, or refuse the one that is there if it is another's."""
        file, own = self.folder / "point.json", {"method": method, "settings": settings, "results": results_version}
        if not file.exists():
            if write:
                durable.write_json(file, own)
            return
        before, now = overrides.flatten(dict(durable.read_json(file))), overrides.flatten(own)
        keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        if keys:
            changes = ", ".join(f"{key}: {before.get(key)} then, {now.get(key)} now" for key in keys[:5])
            raise FedvlmError(
                f"{self.folder} was made with other settings ({changes}): give the variant a name of its own "
                '([method.NAME] method = "..."), another --out, or --overwrite'
            )

    def result(self) -> PointResult | None:
        """The finished result, or None. Raises `FedvlmError` if it is not what was written."""
        file = self.folder / "result.json"
        return result.read(file) if file.exists() else None

    def finish(self, point_result: PointResult) -> PointResult:
        """Write the result, which marks the point finished."""
        return result.write(self.folder / "result.json", point_result)

    def log(self, record: RoundRecord) -> int:
        """Append a round: a line per visit, then the round's line. Gives the ledger's length in bytes."""
        for visit in record.visits:
            line = {"kind": "visit", "round": record.round, **asdict(visit)}
            durable.append_line(self.ledger, line, sync=False, private=True)
        line = {key: value for key, value in record.as_json().items() if key != "visits"}
        return durable.append_line(self.ledger, {"kind": "round", **line}, private=True)

    def records(self) -> list[RoundRecord]:
        """The rounds of the ledger, in order."""
        found: list[RoundRecord] = []
        visits: list[dict[str, Any]] = []
        for line in map(json.loads, self.ledger.read_text().splitlines() if self.ledger.exists() else ()):
            if line["kind"] == "visit":
                visits.append(line)
            else:
                found.append(from_json(line | {"visits": visits}))
                visits = []
        return found


def results_version(experiment: Experiment) -> int:
    """The number that a point's results are known by.

    What changed with 3: rows of a published CLIP are one thread's work, the last product of half precision is in
    float32, grey photographs are scaled, and clients of domains, by whose names streams are drawn, have other names.
    """
    plain_scenes = experiment.data.source == "scenes" and experiment.model.name == "embedded"
    unchanged = plain_scenes and experiment.compute.dtype == "float32" and experiment.partition.kind != "domain"
    return UNCHANGED_VERSION if unchanged else RESULTS_VERSION


@dataclass(frozen=True)
class RunFolder:
    """One experiment's folder."""

    path: Path

    def point(self, seed: int, method: str) -> Point:
        """Where a method's run with a seed lives."""
        return Point(self.path / f"seed-{seed}" / method)

    def machine(self) -> dict[str, str]:
        """The machine that the run was begun on; empty where there is no run, or one that does not tell."""
        return dict(self._saved_settings().get("machine", {}))

    def _saved_settings(self) -> dict[str, Any]:
        """What is written of the run that is there; empty without one. Raises `FedvlmError` for a damaged file."""
        file = self.path / "experiment.json"
        found = durable.read_json(file) if file.exists() else {}
        if not isinstance(found, dict):
            raise FedvlmError(f"{file} was not written by fedvlm: name another folder with --out")
        return found

    def check(self, experiment: Experiment, clip: FrozenCLIP, *, resume: bool, overwrite: bool) -> None:
        """Refuse a folder that `open` would refuse; nothing is changed."""
        file = self.path / "experiment.json"
        if overwrite and file.exists():
            owned_files.check(self.path)
        elif file.exists():
            self._refuse(self._saved_settings(), experiment, clip, resume=resume)
        elif any(not there.name.startswith(".") for there in self.path.iterdir()):
            raise FedvlmError(f"{self.path} is not empty and holds no run: name another folder with --out")

    def open(
        self, experiment: Experiment, clip: FrozenCLIP, machine: Machine, *, resume: bool, overwrite: bool
    ) -> list[str]:
        """Create the folder, or take up the one that is there if it holds the same experiment.

        Gives what was of another version, or on another machine, when it was begun.
        """
        self.check(experiment, clip, resume=resume, overwrite=overwrite)
        if overwrite:
            owned_files.clear(self.path)
        found, here = self._saved_settings(), {"versions": versions(), "machine": machine.as_json()}
        # What an older run does not tell is from now on what it goes on with.
        begun: dict[str, Any] = {key: now | found.get(key, {}) for key, now in here.items()}
        changed = [line for key, now in here.items() for line in differences(begun[key], now)]
        later = list(found.get("later", []))
        later += [here] if changed and here not in later else []
        known = {"digest": experiment.digest(), "basis": experiment.basis(), "model": clip.digest,
                 "weights": clip.weights, **begun, **({"later": later} if later else {}),
                 "experiment": experiment.resolved()}  # fmt: skip
        if known != found:
            durable.write_json(self.path / "experiment.json", known)
        return changed

    def _refuse(self, saved: dict[str, Any], experiment: Experiment, clip: FrozenCLIP, *, resume: bool) -> None:
        """Refuse a run that is there and is not to be continued, or is of other settings or another model."""
        if not resume:
            raise FedvlmError(
                f"{self.path} already holds a run: --resume continues it, --overwrite starts it again, "
                "--out names another folder"
            )
        if "basis" not in saved:
            raise FedvlmError(f"{self.path} holds a run of an earlier version: --overwrite starts it again")
        if saved["basis"] != experiment.basis():
            raise FedvlmError(f"{self.path} holds a run with other settings: {_changed_settings(saved, experiment)}")
        if saved.get("weights") != clip.weights:
            raise FedvlmError(f"{self.path} holds a run with other weights: name another folder with --out")
        # Older runs tell their weights alone.
        if saved.get("model", clip.digest) != clip.digest:
            raise FedvlmError(
                f"{self.path} holds a run with the same weights in another model: its configuration, tokenizer or "
                "preprocessing was another one. Put it back as it was, or name another folder with --out"
            )

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


def _changed_settings(saved: dict[str, Any], experiment: Experiment) -> str:
    before, now = overrides.flatten(saved.get("experiment", {})), overrides.flatten(experiment.resolved())
    keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    keys = [key for key in keys if key not in ("name", "methods", "seeds") and not key.startswith("method.")]
    return ", ".join(f"{key}: {before.get(key)} then, {now.get(key)} now" for key in keys[:5])
