"""Which small mistakes in the source would no test notice? A mutation run, started by hand.

    python recipes/mutate.py --sample 400 --jobs 2              # a sample of the rooms that carry trust
    python recipes/mutate.py src/fedvlm/tuners/gate.py          # every mutant of one file
    python recipes/mutate.py --again --seconds 900              # the survivors once more, with more of their tests
    python recipes/mutate.py --report docs/mutation.md          # no run: write what is known between the page's marks
    python recipes/mutate.py --stubs                            # no run: open survivors, as equivalent.toml takes them

Every mutant (`mutants.py` says which there are) is a copy of the package with one mistake. First every test runs once
on the sound source, and coverage.py notes which lines it reaches. Then each mutant meets the tests that reach its line,
quick ones first, until one fails. A mistake in what only runs at import (a default, a constant) meets the tests that
reach anything in its file, and those of its file's mirror in `tests/`. A test that takes ten times as long as before
has noticed too. Each mutant runs in a process forked from this one, which has imported torch and the like but not the
package, on a copy of the package that its own child processes see as well.

Results are lines of JSON in `build/mutate/results.jsonl`: a run that was stopped goes on, and a file's lines are void
once it changes. `equivalent.toml` holds the survivors that no test can kill, with reasons.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import signal
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

from mutants import Mutant, mutants
from trials import Place, attempt, baseline, pool

ROOMS = ("methods", "tuners", "federation", "training", "reports/statistics.py", "reports/comparison.py", "tensors.py")
TESTS = (
    "tests/methods",
    "tests/tuners",
    "tests/federation",
    "tests/training",
    "tests/runs",
    "tests/reports",
    "tests/studies",
    "tests/test_tensors.py",
)
LOADED = ("torch", "numpy", "scipy.stats", "pydantic", "hypothesis", "tokenizers", "safetensors.torch", "PIL.Image",
          "huggingface_hub", "transformers", "matplotlib.figure", "rich.console", "typer")  # fmt: skip
"""What children find imported."""
BEGIN, END = "<!-- mutants: written by recipes/mutate.py -->", "<!-- end -->"


def sample(every: Sequence[Mutant], count: int | None, seed: int) -> list[Mutant]:
    """About `count` mutants, of every file its share, in random order. A larger sample contains the smaller one."""
    ranked = sorted(
        every, key=lambda one: hashlib.sha256(f"{seed}:{one.path}:{one.start}:{one.end}:{one.after}".encode()).digest()
    )
    if count is None:
        return ranked
    sizes, taken, chosen = Counter(one.path for one in every), Counter[str](), []
    for one in ranked:
        if taken[one.path] < ceil(count * sizes[one.path] / len(every)):
            taken[one.path] += 1
            chosen.append(one)
    return chosen


def read(place: Place) -> dict[str, dict[str, Any]]:
    """What is known of mutants, by id; the last line counts. A survivor with a reason is `equivalent`."""
    found, why = dict[str, dict[str, Any]](), reasons(place)
    for line in place.results.read_text().splitlines() if place.results.exists() else []:
        # A line that was cut off is passed over.
        with contextlib.suppress(json.JSONDecodeError):
            row = json.loads(line)
            row["why"] = why.get(tuple(row[key] for key in FACTS), "")
            if row["outcome"] == "survived" and row["why"]:
                row["outcome"] = "equivalent"
            found[row["id"]] = row
    return found


FACTS = ("path", "text", "before", "after")
"""What `equivalent.toml` knows a mutant by."""


def reasons(place: Place) -> dict[tuple[str, ...], str]:
    """Why a mutant cannot be killed."""
    path = place.root / "recipes" / "equivalent.toml"
    rows = tomllib.loads(path.read_text())["mutant"] if path.exists() else []
    return {tuple(row[key] for key in FACTS): row["why"] for row in rows}


def report(place: Place, rows: Sequence[Mapping[str, Any]], every: int) -> str:
    """Markdown: how many of all mutants were tried, killed by room, every survivor with its reason."""
    rooms, lines = dict[str, Counter[str]](), list[str]()
    for row in sorted(rows, key=lambda row: (row["path"], row["line"])):
        inside = Path(row["path"]).relative_to(f"src/{place.package}")
        rooms.setdefault(inside.parts[0] if len(inside.parts) > 1 else str(inside), Counter())[row["outcome"]] += 1
        if row["outcome"] != "killed":
            less = f" ({row['left_out']} tests not run)" if row["left_out"] else ""
            cells = (f"`{inside}:{row['line']}`", f"`{row['before']}` -> `{row['after']}`", row["why"] or f"open{less}")
            lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    table = ["| room | mutants | killed | equivalent | open | killed of the others |", "|---|---|---|---|---|---|"]
    for name, count in [*rooms.items(), ("together", sum(rooms.values(), Counter[str]()))]:
        killed, same, left = (count[key] for key in ("killed", "equivalent", "survived"))
        share = f"{100 * killed / (killed + left):.1f} %" if killed + left else "-"
        table.append(f"| {name} | {killed + same + left} | {killed} | {same} | {left} | {share} |")
    return "\n".join(
        [
            f"{len(rows)} of {every} mutants were tried.",
            "",
            *table,
            "",
            "| survivor | change | why |",
            "|---|---|---|",
            *lines,
        ]
    )


def stubs(rows: Sequence[Mapping[str, Any]]) -> str:
    """Survivors without a reason, as `equivalent.toml` takes them."""
    blocks = []
    for row in sorted(rows, key=lambda row: (row["path"], row["line"])):
        if row["outcome"] == "survived":
            lines = [f"{key} = {json.dumps(row[key], ensure_ascii=False)}" for key in (*FACTS, "why")]
            blocks.append("\n".join(["[[mutant]]", *lines]))
    return "\n\n".join(dict.fromkeys(blocks))


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", help="files or folders to change; by default the rooms that carry trust")
    parser.add_argument("--tests", action="append", help="a test file or folder; may be given several times")
    parser.add_argument("--sample", type=int, help="about so many mutants, of every file its share")
    parser.add_argument("--seed", type=int, default=0, help="another seed is another sample")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--seconds", type=float, default=60, help="of tests that one mutant meets at most")
    parser.add_argument("--minutes", type=float, help="begin no mutant after so long")
    parser.add_argument("--again", action="store_true", help="try open survivors again")
    parser.add_argument("--report", type=Path, help="write the tables into this page and run nothing")
    parser.add_argument("--stubs", action="store_true", help="print open survivors as lines for equivalent.toml")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--package", default="fedvlm")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is asked for and print the report, or print or write what is known."""
    given = options(arguments)
    place = Place(given.root.resolve(), given.package)
    paths = given.paths or [f"src/{place.package}/{room}" for room in ROOMS]
    every = [one for file in place.files(paths) for one in mutants(file, (place.root / file).read_bytes())]
    chosen = every if given.report or given.stubs else sample(every, given.sample, given.seed)
    if not (given.report or given.stubs):
        run(place, chosen, given)
    known, wanted = read(place), {one.id for one in chosen}
    rows = [row for name, row in known.items() if name in wanted]
    if given.stubs:
        print(stubs(rows))
    elif given.report is None:
        print(report(place, rows, len(every)))
    else:
        before, _, rest = given.report.read_text().partition(BEGIN)
        given.report.write_text(f"{before}{BEGIN}\n{report(place, rows, len(every))}\n{END}{rest.partition(END)[2]}")


def run(place: Place, chosen: Sequence[Mutant], given: argparse.Namespace) -> None:
    """Try the mutants that nothing is known of (with `--again` also of open survivors)."""
    place.work.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in LOADED if given.package == "fedvlm" else ():
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    before, until = read(place), time.monotonic() + 60 * (given.minutes or 1e9)
    known = baseline(place, given.tests or TESTS, given.jobs)
    rest = [one for one in chosen if one.id not in before
            or (given.again and before[one.id]["outcome"] == "survived")]  # fmt: skip
    print(f"{len(chosen)} mutants, {len(rest)} to try", flush=True)
    done = Counter[str]()
    if place.results.exists() and not place.results.read_bytes().endswith(b"\n"):
        # The last line of a run that was killed is not the beginning of the next one.
        place.results.write_bytes(place.results.read_bytes() + b"\n")

    def write(row: dict[str, Any]) -> None:
        done[row["outcome"]] += 1
        if row["outcome"] == "survived":
            print(
                f"{sum(done.values())}: {row['path']}:{row['line']} {row['before']!r} -> {row['after']!r}", flush=True
            )
        with place.results.open("a") as file:
            file.write(json.dumps(row) + "\n")

    pool(
        given.jobs,
        (attempt(place, known, one, given.seconds, write) for one in rest if time.monotonic() < until),
    )


if __name__ == "__main__":
    # So that children end with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    main()
