"""`python recipes/fingerprints.py OUT.json`: digests of results of runs, to check that a change affects no number.

    python recipes/fingerprints.py build/before.json                   # before the change
    python recipes/fingerprints.py build/after.json --against build/before.json

Every method on quickstart; some of them on common_style, with cached views, with newcomers, with local rounds after
the last round, with faults, and where `--photographs DIR` names data, on Office-Caltech10; `fedvlm verify --path all`
where `--reference DIR` names reference outputs. Of each point: the final tensors, the ledger without clocks, the result
without clocks; of each run: contract and tables. About half an hour on one core. Exit code 1 where something differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fedvlm

FEW = ("methods=zero_shot,coop,pfedmma,pfedmoap,fedlora,fedmgp", "data.test_per_class=4")
CLOCKS = ("seconds", "train_s", "evaluate_s", "peak_memory_bytes")
SUMS = ("ece",)
"""Sums over clients, whose last digits depend on the order of summation."""


@dataclass(frozen=True)
class RunCase:
    """A run: a preset or file, and settings."""

    what: str
    words: tuple[str, ...]


RUN_CASES = {
    "quickstart": RunCase("quickstart", ("methods=all", "rounds=3")),
    "common_style": RunCase("common_style", (*FEW, "rounds=2")),
    "views": RunCase("quickstart", (*FEW, "rounds=2", "views=2")),
    "late": RunCase("newcomer", (*FEW, "rounds=2", "participation=0.6")),
    "fine_tune": RunCase("quickstart", (*FEW, "rounds=2", "method.all.fine_tune=2", "evaluation.every=1")),
    "faults": RunCase("quickstart", ("methods=pfedmoap,pfedmma,promptfl_prox,coop", "rounds=3", "participation=0.7",
                                  "faults=all", "data.test_per_class=4")),
}  # fmt: skip
OFFICE = "benchmarks/photographs/office.toml"


def sha(value: object) -> str:
    """Digest of bytes, or of a JSON value."""
    data = value if isinstance(value, bytes) else json.dumps(value, sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()[:16]


def without_clocks(value: Any) -> Any:
    """The same tables without timings, and with sums rounded to 12 decimals."""
    if isinstance(value, Mapping):
        kept = {key: each for key, each in value.items() if key not in (*CLOCKS, "digest")}
        return {key: rounded(each) if key in SUMS else without_clocks(each) for key, each in kept.items()}
    return [without_clocks(each) for each in value] if isinstance(value, list) else value


def rounded(value: Any) -> Any:
    """The value with floats rounded to 12 decimals."""
    if isinstance(value, float):
        return round(value, 12)
    if isinstance(value, Mapping):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list) else value


def fingerprints_of(name: str, folder: Path) -> Iterator[tuple[str, str]]:
    """Fingerprints of a run folder."""
    for result in sorted(folder.glob("seed-*/*/result.json")):
        point, place = json.loads(result.read_text()), f"{name}/{result.parent.name}"
        ledger = [json.loads(line) for line in (result.parent / "ledger.jsonl").read_text().splitlines()]
        # The result's digest covers its numbers too, so tensors have a fingerprint of their own.
        yield f"{place}: tensors", sha(point["tensors"])
        yield f"{place}: ledger", sha(without_clocks(ledger))
        yield f"{place}: result", sha(without_clocks(point))
    for partition in sorted(folder.glob("seed-*/partition.json")):
        yield f"{name}: {partition.parent.name} partition", sha(partition.read_bytes())
    yield f"{name}: contract", sha((folder / "contract.txt").read_text().replace(str(folder), "FOLDER"))
    yield f"{name}: table", sha(without_clocks(json.loads((folder / "table.json").read_text())))
    settings = json.loads((folder / "experiment.json").read_text())
    yield f"{name}: settings", sha([settings["experiment"], settings["digest"]])


def verify_fingerprint(reference: Path) -> str:
    """Fingerprint of the output of `fedvlm verify` for all paths."""
    command = [sys.executable, "-m", "fedvlm", "verify", str(reference), "--path", "all"]
    return sha(subprocess.run(command, capture_output=True, check=True).stdout)


def write(out: Path, found: Mapping[str, str]) -> None:
    """Write the fingerprints so far."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    """Run the cases, write their fingerprints, and compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--only", help="names of runs, with commas")
    parser.add_argument("--photographs", type=Path, help="the folder of Office-Caltech10")
    parser.add_argument("--reference", type=Path)
    arguments = parser.parse_args()
    plays = dict(RUN_CASES)
    if arguments.photographs:
        plays["photographs"] = RunCase(OFFICE, (f"data.path={arguments.photographs}", *FEW, "rounds=1"))
    if arguments.only:
        plays = {name: plays[name] for name in arguments.only.split(",")}
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as place:
        for name, play in plays.items():
            print(name, flush=True)
            fedvlm.run(play.what, *play.words, out=Path(place) / name)
            found |= fingerprints_of(name, Path(place) / name)
            write(arguments.out, found)
    if arguments.reference:
        found["verify"] = verify_fingerprint(arguments.reference)
        write(arguments.out, found)
    if arguments.against:
        before = json.loads(arguments.against.read_text())
        compared = {*plays, *(["verify"] if arguments.reference else [])}
        before = {key: value for key, value in before.items() if key.split("/")[0].split(":")[0] in compared}
        apart = [key for key in (before | found) if before.get(key) != found.get(key)]
        print(f"{len(found)} fingerprints, {len(apart)} differ", *apart, sep="\n  ")
        sys.exit(bool(apart))


if __name__ == "__main__":
    main()
