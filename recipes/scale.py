"""How many clients? Seconds of a round and memory, in one process and by Flower's simulation.

    python recipes/scale.py --clients 100,1000 --participation 0.1 --out scale
    python recipes/scale.py --clients 10000 --participation 0.01 --only run --shots 1000 --no-last --out scale

Drawn images, the same for any number of clients, dealt evenly; pFedMMA. The last round measures all clients, the others
none; `--no-last` stops before it. Memory: the highest sum of proportional set sizes (PSS) of the command and of all
that it has started, looked at four times a second; Linux only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

from fedvlm.network.coordinator.settings import SIMULATED
from fedvlm.reports import grid
from fedvlm.runs.folder import RunFolder

FEDVLM = (sys.executable, "-m", "fedvlm")
GIB = 2**30


@dataclass(frozen=True)
class Measured:
    """One run."""

    how: str
    clients: int
    trained: int
    """Clients that train in a round."""
    round_s: float
    """Median seconds between the ends of two rounds that measure nothing."""
    train_s: float
    """Median seconds that clients train in such a round, together."""
    last_s: float | None
    """Seconds of the last round, in which all clients are measured; None if it was not played."""
    start_s: float
    """Seconds until the first round has ended."""
    memory: int
    disk: int
    """Bytes of the clients' tensors."""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", default="100,1000")
    parser.add_argument("--participation", type=float, default=0.1)
    parser.add_argument(
        "--shots", type=int, default=100, help="training images of each of 20 classes in each of ten styles"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("run", "flower"))
    parser.add_argument("--workers", type=int, default=2, help="of Flower's simulation")
    parser.add_argument("--no-last", action="store_true", help="stop before the round that measures all (run only)")
    parser.add_argument("--out", type=Path, default=Path("scale"))
    arguments = parser.parse_args()
    if arguments.out.exists():
        raise SystemExit(f"{arguments.out} is there already: delete it, or name another folder with --out")
    found = []
    for clients in map(int, arguments.clients.split(",")):
        words = [
            "quickstart", "methods=pfedmma", "partition.kind=iid", f"partition.clients={clients}",
            f"participation={arguments.participation}", f"data.shots={arguments.shots}", "data.test_per_class=2",
            f"rounds={arguments.rounds}", f"evaluation.every={arguments.rounds}", "compute.client_cache_gib=0",
        ]  # fmt: skip
        for how in ("run", "flower"):
            if arguments.only in (None, how):
                folder = arguments.out / f"{how}-{clients}"
                until = arguments.rounds - 1 if arguments.no_last else 1 << 30
                found.append(by_run(folder, words, until) if how == "run" else by_flower(folder, words))
                print(text(found[-1:]), flush=True)
    print(text(found))


def by_run(folder: Path, words: Sequence[str], until: int) -> Measured:
    """`fedvlm run`, up to the end of this round."""
    command = [*FEDVLM, "run", *words, "--overwrite", "--quiet", "--out", str(folder)]
    memory, seconds = watched(command, folder, until)
    return measured("one process", folder, folder / "seed-0" / "pfedmma" / "checkpoint", memory, seconds)


def by_flower(folder: Path, words: Sequence[str]) -> Measured:
    """`fedvlm federation run` with Flower's simulation."""
    place = folder / "federation"
    subprocess.run([*FEDVLM, "federation", "init", str(place), *words, "--carrier", SIMULATED], check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    memory, seconds = watched([*FEDVLM, "federation", "run", str(place), "--quiet"], place / "run")
    return measured("Flower's simulation", place / "run", place / "state", memory, seconds)


def watched(command: Sequence[str], run: Path, until: int = 1 << 30) -> tuple[int, list[float]]:
    """Run a command, and stop it when this round has ended.

    Returns the highest memory of its processes, and the seconds at which rounds ended.
    """
    begun, ended, highest, ends = time.monotonic(), threading.Event(), [0], list[float]()
    process = subprocess.Popen(command)
    ledger = run / "seed-0" / "pfedmma" / "ledger.jsonl"

    def look() -> None:
        while not ended.wait(0.25):
            highest[0] = max(highest[0], sum(map(pss, family(process.pid))))
            rounds = ledger.read_bytes().count(b'{"kind": "round"') if ledger.exists() else 0
            ends.extend([time.monotonic() - begun] * (rounds - len(ends)))
            if len(ends) >= until:
                process.terminate()
                return

    watcher = threading.Thread(target=look)
    watcher.start()
    code = process.wait()
    ended.set()
    watcher.join()
    if code and len(ends) < until:
        raise SystemExit(f"{' '.join(command)} ended with {code}")
    return highest[0], ends


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found = [pid]
    for one in found:
        for path in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                found += [int(child) for child in path.read_text().split()]
            except OSError:
                continue  # ended meanwhile
    return found


def pss(pid: int) -> int:
    """Proportional set size in bytes; 0 if the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


def measured(how: str, run: Path, tensors: Path, memory: int, ends: Sequence[float]) -> Measured:
    """The figures of a run."""
    settings = json.loads((run / "experiment.json").read_text())["experiment"]
    records = RunFolder(run).point(0, "pfedmma").records()
    gaps = [after - before for before, after in pairwise(ends)]
    # The last round has the measuring of all clients.
    whole = len(ends) == settings["rounds"]
    plain, last = (gaps[:-1], gaps[-1]) if whole else (gaps, None)
    disk = sum(path.stat().st_size for path in tensors.rglob("*") if path.is_file())
    trained = median(sum(visit.seconds for visit in record.visits) for record in records[1 : len(plain) + 1])
    return Measured(how, settings["partition"]["clients"], len(records[0].visits), median(plain), trained, last,
                    ends[0], memory, disk)  # fmt: skip


def text(found: Sequence[Measured]) -> str:
    """The figures in Markdown."""
    heads = ["", "clients", "train", "s a round", "of it training", "s the last round (all measured)",
             "s to the end of the first", "memory", "clients' tensors"]  # fmt: skip
    rows = [
        [one.how, f"{one.clients:,}", f"{one.trained:,}", f"{one.round_s:.1f}", f"{one.train_s:.1f}",
         "-" if one.last_s is None else f"{one.last_s:.0f}", f"{one.start_s:.0f}",
         f"{one.memory / GIB:.2f} GiB", f"{one.disk / 2**20:.0f} MiB"]
        for one in found
    ]  # fmt: skip
    return grid.markdown(heads, rows)


if __name__ == "__main__":
    main()
