"""What one method is worth against another on the same seeds: mean paired difference and its standard error.

python benchmarks/paired.py runs/quickstart-... pfedmma local_mma
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path


def difference(run: Path, one: str, other: str) -> dict[str, tuple[float, float, int]]:
    """Mean of `one` minus `other` in points, its standard error, and the number of seeds, by metric."""
    pairs = [[_final(seed / name / "result.json") for name in (one, other)] for seed in sorted(run.glob("seed-*"))]
    found = {}
    for metric in ("local", "base", "novel", "hm", "worst_tenth"):
        gaps = [100 * (a[metric] - b[metric]) for a, b in pairs if metric in a and metric in b]
        if len(gaps) > 1:
            found[metric] = statistics.fmean(gaps), statistics.stdev(gaps) / len(gaps) ** 0.5, len(gaps)
    return found


def _final(file: Path) -> dict[str, float]:
    point = json.loads(file.read_text())
    return dict(point["final"][point["state"]])


if __name__ == "__main__":
    folder, first, second = sys.argv[1:4]
    for metric, (mean, error, seeds) in difference(Path(folder), first, second).items():
        print(f"{metric:12} {first} - {second}: {mean:+.2f} ± {error:.2f} points (standard error, {seeds} seeds)")
