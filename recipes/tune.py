"""Choose learning rates of a preset on validation images: one run per candidate, `evaluation.split = "val"`.

    python recipes/tune.py quickstart --seeds 100,101 --processes 2 --out tune-quickstart.json

The seeds differ from those that are reported, and with them classes, images and partition. The candidate with the
highest harmonic mean of Local, Base and Novel wins; `edge` marks a winner at the end of its grid, where a better value
may lie outside.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fedvlm
from fedvlm.runs.folder import RunFolder


def grid(**values: Sequence[float]) -> list[dict[str, float]]:
    """Every combination of the values, as settings of a method."""
    return [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]


RATES: dict[str, list[dict[str, float]]] = {
    "zero_shot_prior": grid(weight=(0.7, 1.4, 2.1, 2.8)),
    "tip_adapter": grid(weight=(0.5, 1.0, 2.0, 4.0)),
    "gaussian": grid(weight=(0.01, 0.03, 0.1, 0.3, 1.0)),
    "coop": grid(lr=(0.03, 0.1, 0.3, 1.0)),
    "promptfl": grid(lr=(0.1, 0.3, 1.0, 3.0)),
    "promptfl_prox": grid(lr=(0.1, 0.3, 1.0, 3.0), mu=(0.1,)),
    "promptfl_ft": grid(lr=(0.1, 0.3, 1.0, 3.0)),
    "fedper": grid(lr=(0.1, 0.3, 1.0)),
    "fedamp": grid(lr=(0.03, 0.1, 0.3, 1.0)),
    "pfedprompt": grid(lr=(0.1, 0.3, 1.0), weight=(1.0, 2.0, 4.0)),
    "promptfolio": grid(lr=(0.1, 0.3, 1.0, 3.0)),
    "fedpgp": grid(lr=(0.03, 0.1, 0.3, 1.0)),
    "fedotp": grid(lr=(0.1, 0.3, 1.0, 3.0, 10.0)),
    "kgcoop": grid(lr=(0.3, 1.0, 3.0, 10.0)),
    "fedtpg": grid(lr=(0.03, 0.1, 0.3, 1.0)),
    "fedclip": grid(lr=(1e-4, 3e-4, 1e-3, 3e-3, 0.01)),
    "local_lora": grid(lr=(1e-3, 2e-3, 4e-3)),
    "fedsa_lora": grid(lr=(1e-3, 2e-3, 4e-3)),
    "fedlora": grid(lr=(2e-3, 5e-3, 0.01, 0.02, 0.04)),
    "ffa_lora": grid(lr=(0.01, 0.03, 0.1, 0.2)),
    "local_mma": grid(lr=(0.003, 0.007, 0.015)),
    "fedmma": grid(lr=(0.03, 0.06, 0.12)),
    "pfedmma": grid(lr=(0.003, 0.007, 0.015)),
    "pfedmoap": grid(lr=(0.1, 0.3, 1.0, 3.0), gate_lr=(0.002, 0.005, 0.01)),
    "maple": grid(lr=(0.03, 0.1, 0.3, 1.0)),
    "cocoop": grid(lr=(0.1, 0.3, 1.0, 3.0, 10.0)),
    "fedmgp": grid(lr=(0.01, 0.03, 0.1)),
}


Found = dict[str, list[dict[str, Any]]]
SHOWN = ("local", "base", "novel", "hm")


def edge(method: str, winner: Mapping[str, float]) -> str:
    """Settings of the winner that lie at an end of their grid, marked for the printed table."""
    ends = [
        key
        for key, value in winner.items()
        if len(values := {rates[key] for rates in RATES[method]}) > 1 and value in (min(values), max(values))
    ]
    return f"  edge: {', '.join(ends)}" if ends else ""


def tune(preset: str, seeds: Sequence[int], methods: Sequence[str], folder: Path, processes: int = 1) -> Found:
    """Every candidate's validation accuracies by method, best first; all candidates of a seed share its clients.

    The run in `folder` is taken up where it stands. Candidates without results (diverged) come last.
    """
    tables = {f"{m}__{i}": {"method": m, **rate} for m in methods for i, rate in enumerate(RATES[m])}
    words = [f"method.{name}.{key}={value}" for name, table in tables.items() for key, value in table.items()]
    words += ["evaluation.split=val", "evaluation.every=1000"]
    try:
        fedvlm.run(
            preset, *words, methods=list(tables), seeds=list(seeds), out=folder, resume=True, quiet=False,
            processes=processes,
        )  # fmt: skip
    except fedvlm.FedvlmError as error:
        print(error)
    found: Found = {m: [] for m in methods}
    for name, table in tables.items():
        results = [result for seed in seeds if (result := RunFolder(folder).point(seed, name).result())]
        row: dict[str, Any] = {"rates": {key: value for key, value in table.items() if key != "method"}}
        if len(results) == len(seeds):
            finals = [result.reported for result in results]
            row |= {key: round(100 * sum(f[key] for f in finals) / len(finals), 2) for key in SHOWN if key in finals[0]}
        found[str(table["method"])].append(row)
    return {method: sorted(rows, key=lambda row: -row.get("hm", -1.0)) for method, rows in found.items()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("--seeds", default="100,101")
    parser.add_argument("--methods", default=",".join(RATES))
    parser.add_argument("--out", type=Path, default=Path("tune.json"))
    parser.add_argument("--processes", type=int, default=1)
    args = parser.parse_args()
    seeds, methods = [int(seed) for seed in args.seeds.split(",")], args.methods.split(",")
    found = tune(args.preset, seeds, methods, args.out.with_suffix(""), args.processes)
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    for method, rows in found.items():
        print(method + edge(method, rows[0]["rates"]))
        for row in rows:
            print(f"  {row['rates']}", "/".join(str(row.get(name, "no result")) for name in SHOWN))


if __name__ == "__main__":
    main()
