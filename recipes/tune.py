"""Choose learning rates of a preset on validation images: one run per candidate, `evaluation.split = "val"`.

    python recipes/tune.py quickstart --seeds 100,101 --processes 2 --out tune-quickstart.json

The seeds differ from those that are reported, and with them classes, images and partition. A candidate is chosen once
for each goal: the harmonic mean of Local, Base and Novel, and Local, which is what a method's authors look at who care
for the client's own classes. Candidates within a point of the best are equals, and the harmonic mean decides. Every
method starts with a grid of the same kind (`--near`: with the values that the preset has, a third and three times of
them). While the best candidate of a goal lies at an end of its grid, the grid gets a further value there; `edge` marks
a winner that still lies at one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fedvlm
from fedvlm import presets
from fedvlm.runs.folder import RunFolder

FOR_LOCAL = "_for_local"
"""Ending of the name of a method at the rates chosen for Local, where these are others."""


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


def near(
    table: Mapping[str, Any], other: Mapping[str, Any], grid: Sequence[Mapping[str, float]], ratio: float = 3.0
) -> list[dict[str, float]]:
    """The values of a method's table and of its table for Local, and those a ratio below and above.

    One setting moves at a time; one that has a single value in `grid` stays.
    """
    found: list[dict[str, float]] = []
    moving = [key for key in grid[0] if len({point[key] for point in grid}) > 1]
    for rates in ({key: float(one[key]) for key in grid[0]} for one in (table, other)):
        moved = [rates | {key: float(f"{rates[key] * by:.1g}")} for key in moving for by in (1 / ratio, ratio)]
        found += [point for point in [rates, *moved] if point not in found]
    return found


Row = dict[str, Any]
"""The rates of a candidate, and its accuracies if it has any."""
Found = dict[str, list[Row]]
"""Candidates by method, in the order in which they were tried."""
SHOWN = ("local", "base", "novel", "hm")
WIDENINGS = 4
"""How often a grid may grow."""


TIE = 1.0
"""Candidates as many points from the best count as equal to it: about a standard error over the validation images."""


def best(rows: Sequence[Row], goal: str) -> Row:
    """The candidate with the highest accuracy; those without results (diverged) come last.

    Among equals the harmonic mean decides: where Local is near 100 % at many rates, the highest of them buys a last
    tenth with everything else.
    """
    top = max(row.get(goal, -1.0) for row in rows)
    return max((row for row in rows if row.get(goal, -1.0) >= top - TIE), key=lambda row: row.get("hm", -1.0))


def at_ends(rows: Sequence[Row], winner: Row) -> list[str]:
    """Settings of the winner that lie at an end of their grid, each as `key`."""
    values = {key: sorted({row["rates"][key] for row in rows}) for key in winner["rates"]}
    return [key for key, all_ in values.items() if len(all_) > 1 and winner["rates"][key] in (all_[0], all_[-1])]


def wider(rows: Sequence[Row], goals: Sequence[str]) -> list[dict[str, float]]:
    """The candidates next to the winners that lie at an end: the same ratio further, other settings as the winner's."""
    new: list[dict[str, float]] = []
    for winner in (best(rows, goal) for goal in goals):
        for key in at_ends(rows, winner):
            values = sorted({row["rates"][key] for row in rows})
            low = winner["rates"][key] == values[0]
            ratio = values[0] / values[1] if low else values[-1] / values[-2]
            rates = winner["rates"] | {key: float(f"{winner['rates'][key] * ratio:.1g}")}
            if rates not in new and all(rates != row["rates"] for row in rows):
                new.append(rates)
    return new


def tune(
    preset: str, seeds: Sequence[int], grids: dict[str, list[Row]], folder: Path, goals: Sequence[str],
    processes: int = 1,
) -> Found:  # fmt: skip
    """All candidates with their validation accuracies; all candidates of a seed share its clients.

    The run in `folder` is taken up where it stands.
    """
    for _ in range(WIDENINGS + 1):
        found = evaluate(preset, seeds, grids, folder, processes)
        new = {method: wider(rows, goals) for method, rows in found.items()}
        if not any(new.values()):
            break
        grids = {method: [*rates, *new[method]] for method, rates in grids.items()}
    return found


def label(method: str, rates: Mapping[str, float]) -> str:
    """The name of a candidate in the run folder, the same in every grid that has it."""
    return "__".join([method, *(f"{key}_{value:g}" for key, value in rates.items())])


def evaluate(
    preset: str, seeds: Sequence[int], grids: Mapping[str, Sequence[dict[str, float]]], folder: Path, processes: int
) -> Found:
    """The accuracies of these candidates, means over seeds."""
    tables = {label(method, rates): {"method": method, **rates} for method, grid in grids.items() for rates in grid}
    fedvlm.run(
        preset, "evaluation.split=val", "evaluation.every=1000", methods=list(tables), method=tables, seeds=list(seeds),
        out=folder, resume=True, quiet=False, processes=processes,
    )  # fmt: skip
    found: Found = {method: [] for method in grids}
    for name, table in tables.items():
        results = [result for seed in seeds if (result := RunFolder(folder).point(seed, name).result())]
        row: Row = {"rates": {key: value for key, value in table.items() if key != "method"}}
        if len(results) == len(seeds):
            finals = [result.reported for result in results]
            row |= {key: round(100 * sum(f[key] for f in finals) / len(finals), 2) for key in SHOWN if key in finals[0]}
        found[str(table["method"])].append(row)
    return found


def written(preset: str, found: Found) -> str:
    """The text of a preset with the chosen values: those for the harmonic mean in `[method.NAME]`.

    Where those for Local are others, they stand behind it in `[method.NAME_for_local]`, and also where the preset that
    this one is like has such a table, which would hold here too. All else stays as it is.
    """
    like = tomllib.loads(preset).get("like")
    above = presets.settings(like)["method"] if like else {}
    parts = re.split(r"(?m)^(?=(?:#.*\n)*\[)", preset)  # comments before a table go with it
    heads = [re.match(r"\[method\.(\w+)\]", part) for part in parts]
    names = [head.group(1) if head else "" for head in heads]
    if missing := [method for method in found if method not in names]:
        raise SystemExit(f"the preset has no table [method.{missing[0]}]")
    kept = [
        _with_values(part, best(found[name], "hm")["rates"])
        + _for_local(name, found[name], always=name + FOR_LOCAL in above)
        if name in found
        else part
        for part, name in zip(parts, names, strict=True)
        if not (name.endswith(FOR_LOCAL) and name.removesuffix(FOR_LOCAL) in found)
    ]
    return "".join(kept)


def _with_values(part: str, rates: Mapping[str, float]) -> str:
    for key, value in rates.items():
        part, count = re.subn(rf"(?m)^{key} = \S+", f"{key} = {value}", part)
        if not count:
            head, _, rest = part.partition("\n")
            part = f"{head}\n{key} = {value}\n{rest}"
    return part


def _for_local(method: str, rows: Sequence[Row], *, always: bool) -> str:
    rates = best(rows, "local")["rates"]
    if rates == best(rows, "hm")["rates"] and not always:
        return ""
    values = "".join(f"{key} = {value}\n" for key, value in rates.items())
    return f'[method.{method}{FOR_LOCAL}]\nmethod = "{method}"\n{values}\n'


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("--seeds", default="100,101")
    parser.add_argument("--methods", default=",".join(RATES))
    parser.add_argument("--goals", default="hm,local")
    parser.add_argument("--near", action="store_true", help="grids around the values that the preset has already")
    parser.add_argument("--out", type=Path, default=Path("tune.json"))
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--into", type=Path, help="a preset's file, into which the chosen values are written")
    args = parser.parse_args()
    seeds = [int(seed) for seed in args.seeds.split(",")]
    methods, goals = args.methods.split(","), args.goals.split(",")
    grids = {method: list(RATES[method]) for method in methods}
    if args.near:
        tables = presets.settings(args.preset)["method"]
        for name, grid in grids.items():
            grids[name] = near(tables[name], tables.get(name + FOR_LOCAL, tables[name]), grid)
    found = tune(args.preset, seeds, grids, args.out.with_suffix(""), goals, args.processes)
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    if args.into:
        args.into.write_text(written(args.into.read_text(), found))
    for method, rows in found.items():
        winners = {goal: best(rows, goal) for goal in goals}
        print(method + "".join(f"  {goal}: {row['rates']}" for goal, row in winners.items()))
        for row in sorted(rows, key=lambda row: list(row["rates"].values())):
            marks = [goal for goal, winner in winners.items() if winner is row]
            marks += [f"edge: {', '.join(ends)}"] if marks and (ends := at_ends(rows, row)) else []
            print(f"  {row['rates']}", "/".join(str(row.get(name, "no result")) for name in SHOWN), *marks)


if __name__ == "__main__":
    main()
