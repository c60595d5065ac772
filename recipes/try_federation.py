"""A whole federation on this machine: one server, three sites with drawn images, everything in processes of its own.

    python recipes/try_federation.py flower --out trial
    python recipes/try_federation.py folder --out trial

Writes what a coordinator hands out (`fedvlm federation init --example`), sets up three sites (`fedvlm site init`),
starts their processes and the carrier between them, plays pFedMMA and pFedMoAP for three rounds each, and prints where
the personal models lie and what the time was spent on. Flower: TLS, registered node keys. Everything that was started
is stopped at the end.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedvlm import tensors
from fedvlm.federation.records import RoundRecord
from fedvlm.federation.visits import Reply, Visit
from fedvlm.network.carriers.base import Carrier
from fedvlm.network.carriers.local import LocalCarrier
from fedvlm.network.coordinator import start
from fedvlm.network.coordinator.run import Coordinator
from fedvlm.network.coordinator.table import Table
from fedvlm.network.site import settings as site_settings
from fedvlm.network.site.service import Service
from fedvlm.network.site.state import StateFolder
from fedvlm.network.trial import FEDVLM, Trial
from fedvlm.runs.result import PointResult

STYLES = ("sketch", "neon", "fog")
WORDS = (
    f"data.styles={list(STYLES)}".replace("'", '"'), "data.base_classes=6", "data.novel_classes=6", "data.shots=8",
    "data.test_per_class=4", "data.val_per_class=2", "methods=pfedmma,pfedmoap", "rounds=3", "evaluation.every=1",
    "compute.clients_per_step=1",
)  # fmt: skip


class Timed(Table):
    """The table, with the seconds of every round."""

    def __init__(self, sites: list[str], *, quiet: bool = False) -> None:
        super().__init__(sites, quiet=quiet)
        self.began: list[float] = []
        self.trained: list[float] = []

    def round(self, label: str, seed: int, round_: int, last: int, asked: Mapping[str, Visit]) -> None:
        """A round begins."""
        self.began.append(time.perf_counter())
        self.trained.append(0.0)
        super().round(label, seed, round_, last, asked)

    def replied(self, site: str, reply: Reply, bytes_: int) -> None:
        """A site's reply is accepted."""
        self.trained[-1] = max(self.trained[-1], reply.seconds)
        super().replied(site, reply, bytes_)

    def finished(self, record: RoundRecord) -> None:
        """A round's record is complete."""
        super().finished(record)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("carrier", choices=("folder", "flower", "nvflare"))
    parser.add_argument("--out", type=Path, default=Path("trial"))
    parser.add_argument("--port", type=int, default=9393, help="of Flower's SuperLink")
    arguments = parser.parse_args()
    folder = arguments.out.resolve()
    if folder.exists():
        raise SystemExit(f"{folder} is there already: delete it, or name another folder with --out")
    begun = time.perf_counter()
    trial = Trial(folder, STYLES, arguments.carrier, arguments.port)
    prepare(trial)
    try:
        trial.begin()
        settings = start.read(trial.federation)
        coordinator = start.load(trial.federation, settings)
        ready = time.perf_counter() - begun
        whole = carried(folder, coordinator)
    finally:
        trial.stop()
    told(folder, arguments.carrier, ready, whole, in_process(folder))


def prepare(trial: Trial) -> None:
    """What the coordinator hands out, and the folders of the sites."""
    trial.run(*FEDVLM, "federation", "init", "federation", "quickstart", *WORDS, "--example", "--carrier",
              trial.carrier)  # fmt: skip
    experiment = trial.federation / "experiment.json"
    for name in STYLES:
        images = trial.federation / "example" / name
        key = trial.federation / "keys" / f"{name}.key"
        trial.run(*FEDVLM, "site", "init", str(images), "--out", name, "--name", name, "--key", str(key),
                  "--experiment", str(experiment))  # fmt: skip
        trial.run(*FEDVLM, "site", "approve", str(experiment), "--site", f"{name}/site.toml", "--yes")


@dataclass
class Played:
    """A whole run: its results, the seconds of each round and of its longest training, digests of private tensors."""

    results: dict[str, dict[int, PointResult]]
    rounds: list[tuple[float, float]]
    private: dict[str, str]

    def same_bytes(self, other: Played) -> bool:
        """Whether shared tensors, metrics and private tensors are equal bit for bit."""

        def seen(one: Played) -> list[Any]:
            points = [point for by_seed in one.results.values() for point in by_seed.values()]
            return [(point.tensors.server, point.final, point.clients, point.tradeoff) for point in points]

        return seen(self) == seen(other) and self.private == other.private


def played(coordinator: Coordinator, carrier: Carrier, states: Mapping[str, Path], *, quiet: bool = False) -> Played:
    """Play all rounds."""
    table = Timed(coordinator.settings.sites, quiet=quiet)
    with table:
        results = coordinator.run(carrier, table)
    ends = [*table.began[1:], time.perf_counter()]
    experiment, private = coordinator.experiment, {}
    for name, state in states.items():
        for label in experiment.methods:
            stored = StateFolder(state).load(experiment.digest(), label, experiment.seeds[0])
            assert stored is not None
            private[f"{name} {label}"] = tensors.digest(stored.after or {})
    took = [(end - begun, trained) for begun, end, trained in zip(table.began, ends, table.trained, strict=True)]
    return Played(results, took, private)


def carried(folder: Path, coordinator: Coordinator) -> Played:
    """Play all rounds with the carrier."""
    carrier = start.carrier(folder / "federation", coordinator.settings, coordinator, print)
    try:
        return played(coordinator, carrier, {name: folder / name / "state" for name in STYLES})
    finally:
        carrier.close()


def in_process(folder: Path) -> Played:
    """The same rounds with the sites in this process, from the beginning."""
    settings = start.read(folder / "federation")
    loaded = start.load(folder / "federation", settings)
    coordinator = Coordinator.load(loaded.experiment, settings, folder / "in-process")
    services, states = {}, {name: folder / "in-process-state" / name for name in STYLES}
    for name, state in states.items():
        own = site_settings.read(folder / name / "site.toml")
        services[name] = Service(own.model_copy(update={"state": str(state)}), lambda _: None)
        services[name].read_experiments()
    carrier = LocalCarrier({name: service.answer for name, service in services.items()})
    return played(coordinator, carrier, states, quiet=True)


def told(folder: Path, carrier: str, ready: float, whole: Played, alone: Played) -> None:
    """Print where things lie, and what the time was spent on."""
    pairs = list(zip(whole.rounds, alone.rounds, strict=True))
    training = sum(trained for _, trained in whole.rounds)
    all_rounds = sum(took for took, _ in whole.rounds)
    print(f"\n{ready + all_rounds:.1f} s: {ready:.1f} until everything ran, {training:.1f} training, "
          f"{all_rounds - training:.1f} loading, measuring and carrying")  # fmt: skip
    more = statistics.median(took - inside for (took, _), (inside, _) in pairs)
    print(f"a round by {carrier} takes {more:.2f} s more than in one process (median)")
    print("round   carried   in process   longest training")
    for place, ((took, trained), (inside, _)) in enumerate(pairs):
        print(f"{place:5} {took:9.2f} {inside:12.2f} {trained:18.2f}")
    print("(the first visit of a method loads what is not loaded yet: CLIP, photographs, activations)")
    for name in STYLES:
        for file in sorted((folder / name / "state").glob("*/*.safetensors")):
            print(f"personal model of {name}: {file}")
    print(f"run folder: {folder / 'federation' / 'run'}")
    if not whole.same_bytes(alone):
        raise SystemExit(f"by {carrier} and in one process the numbers DIFFER")
    print(f"shared tensors, private tensors and metrics: bit for bit the same by {carrier} and in one process")


if __name__ == "__main__":
    main()
