"""The run folder: the files of an experiment, from which an interrupted run is continued.

experiment.json   every setting, its digest; the model's digest; versions and machine. Methods and seeds may be added
contract.txt      the contract that was printed before training
seed-0/partition.json, partition.png
seed-0/pfedmma/point.json       the method and its settings, which are checked when the run is resumed
seed-0/pfedmma/ledger.jsonl     a line for every client's training ("visit") and for every round
seed-0/pfedmma/checkpoint/      the server's and every client's tensors
seed-0/pfedmma/result.json      accuracies and digests, written last: marks the point as finished
track/NAME/                     what writers for other programs have written (fedvlm.reports.track)
table.{json,csv,md}, rounds.{png,svg}; compare.{json,csv,md,tex}, tradeoff.{png,svg} of a comparison

Files about single clients (partition, ledger, checkpoint, result) can be read by the folder's owner alone.
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
from fedvlm.data import Federation
from fedvlm.errors import FedvlmError
from fedvlm.experiment import Experiment, parse
from fedvlm.federation.checkpoint import Checkpoint
from fedvlm.federation.records import RoundRecord, from_json
from fedvlm.runs import owned_files, result
from fedvlm.runs.machine import Machine, differences, versions
from fedvlm.runs.owned_files import LOCK
from fedvlm.runs.result import PointResult

RESULTS_VERSION = 3
"""Version of results. It is raised when the same settings give other results, so that older points are not reused."""
UNCHANGED_VERSION = 2
"""Version of experiments whose results have not changed since (`results_version`)."""


ANEW = "--overwrite starts it again, --out names another folder"


@dataclass(frozen=True)
class Point:
    """The folder of one method with one seed."""

    folder: Path
    anew: str = ANEW
    """As in `RunFolder`."""

    @property
    def ledger(self) -> Path:
        """JSON lines: `{"kind": "visit" | "round", ...}`."""
        return self.folder / "ledger.jsonl"

    def checkpoint(self, limit_bytes: int) -> Checkpoint:
        """The checkpoint, which keeps up to `limit_bytes` of client tensors in memory."""
        return Checkpoint(self.folder / "checkpoint", limit_bytes)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the point for one process; others wait."""
        durable.make_folder(self.folder)
        with (self.folder / LOCK).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # Earlier versions created these files with the permissions of the umask.
            for own in (self.ledger, self.folder / "result.json", *self.folder.glob("checkpoint/*")):
                durable.keep_private(own)
            yield

    def check_settings(
        self, method: str, settings: dict[str, Any], results_version: int = RESULTS_VERSION, *, write: bool = True
    ) -> None:
        """Store the point's method and settings, or raise `FedvlmError` if the stored ones differ."""
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
                f'([method.NAME] method = "..."), or: {self.anew}'
            )

    def result(self) -> PointResult | None:
        """The finished result, or None. Raises `FedvlmError` if the file was changed."""
        file = self.folder / "result.json"
        return result.read(file) if file.exists() else None

    def finish(self, point_result: PointResult) -> PointResult:
        """Write the result, which marks the point as finished."""
        return result.write(self.folder / "result.json", point_result)

    def log(self, record: RoundRecord) -> int:
        """Append a line for every client's training and one for the round; returns the ledger's length in bytes."""
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
    """The version of the results of an experiment.

    Changes with version 3: rows of a published CLIP are one thread's work, the last product of half precision is in
    float32, grey photographs are scaled, and clients of domains, by whose names streams are drawn, have other names.
    """
    plain_scenes = experiment.data.source == "scenes" and experiment.model.name == "embedded"
    unchanged = plain_scenes and experiment.compute.dtype == "float32" and experiment.partition.kind != "domain"
    return UNCHANGED_VERSION if unchanged else RESULTS_VERSION


@dataclass(frozen=True)
class RunFolder:
    """One experiment's folder."""

    path: Path
    anew: str = ANEW
    """How its owner begins anew where the folder cannot be continued: the end of error messages."""

    def point(self, seed: int, method: str) -> Point:
        """The folder of a method with a seed."""
        return Point(self.path / f"seed-{seed}" / method, self.anew)

    def begun(self) -> tuple[Experiment, dict[str, Any]]:
        """The experiment of the run that is here, and all of `experiment.json`. Raises `FedvlmError` without a run."""
        saved = self._saved_settings()
        if "experiment" not in saved:
            raise FedvlmError(f"{self.path} is no run folder: it holds no experiment.json of fedvlm")
        return parse(saved["experiment"]), saved

    def check_partition(self, seed: int, federation: Federation) -> None:
        """Raise `FedvlmError` if the run's clients were dealt otherwise: other images, settings or versions."""
        saved = self.path / f"seed-{seed}" / "partition.json"
        if Federation.from_json(federation.source, durable.read_json(saved)).digest() != federation.digest():
            raise FedvlmError(
                f"{saved} is not the partition that these images, settings and versions give (were images added or "
                f"taken away? Clients of a domain, for one, are called after it now): {self.anew}"
            )

    def machine(self) -> dict[str, str]:
        """The machine on which the run was begun; empty if there is no run, or an old one without this record."""
        return dict(self._saved_settings().get("machine", {}))

    def _saved_settings(self) -> dict[str, Any]:
        """The content of `experiment.json`; empty without a run. Raises `FedvlmError` for a damaged file."""
        file = self.path / "experiment.json"
        found = durable.read_json(file) if file.exists() else {}
        if not isinstance(found, dict):
            raise FedvlmError(f"{file} was not written by fedvlm: {self.anew}")
        return found

    def check(self, experiment: Experiment, clip: FrozenCLIP, *, resume: bool, overwrite: bool) -> None:
        """Raise the errors of `open` without changing anything."""
        file = self.path / "experiment.json"
        if overwrite and file.exists():
            owned_files.check(self.path)
        elif file.exists():
            self._refuse(self._saved_settings(), experiment, clip, resume=resume)
        elif any(not there.name.startswith(".") for there in self.path.iterdir()):
            raise FedvlmError(f"{self.path} is not empty and holds no run: {self.anew}")

    def open(
        self, experiment: Experiment, clip: FrozenCLIP, machine: Machine, *, resume: bool, overwrite: bool
    ) -> list[str]:
        """Create the folder, or continue the run in it if it has the same settings.

        Returns the versions and properties of the machine that differ from those at the begin of the run.
        """
        self.check(experiment, clip, resume=resume, overwrite=overwrite)
        if overwrite:
            owned_files.clear(self.path)
        found, here = self._saved_settings(), {"versions": versions(), "machine": machine.as_json()}
        # Values that an older run does not record are recorded now.
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
        """Raise `FedvlmError` if the run is not to be continued, or has other settings or another model."""
        if not resume:
            raise FedvlmError(f"{self.path} already holds a run: --resume continues it, {self.anew}")
        if "basis" not in saved:
            raise FedvlmError(f"{self.path} holds a run of an earlier version: {self.anew}")
        if saved["basis"] != experiment.basis():
            raise FedvlmError(f"{self.path} holds a run with other settings: {_changed_settings(saved, experiment)}")
        if saved.get("weights") != clip.weights:
            raise FedvlmError(f"{self.path} holds a run with other weights: {self.anew}")
        # Older runs record their weights only.
        if saved.get("model", clip.digest) != clip.digest:
            raise FedvlmError(
                f"{self.path} holds a run with the same weights in another model: its configuration, tokenizer or "
                f"preprocessing was another one. Put it back as it was, or: {self.anew}"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder for one process. Raises `FedvlmError` if another process holds the lock."""
        durable.make_folder(self.path)
        with (self.path / LOCK).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise FedvlmError(
                    f"another process is writing {self.path}: wait for it, or take another folder"
                ) from None
            yield


def _changed_settings(saved: dict[str, Any], experiment: Experiment) -> str:
    before, now = overrides.flatten(saved.get("experiment", {})), overrides.flatten(experiment.resolved())
    keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    keys = [key for key in keys if key not in ("name", "methods", "seeds") and not key.startswith("method.")]
    return ", ".join(f"{key}: {before.get(key)} then, {now.get(key)} now" for key in keys[:5])
