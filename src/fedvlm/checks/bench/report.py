"""`fedvlm bench`: measures both sides of every protocol in separate processes, and compares them."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fedvlm import durable, tensors
from fedvlm.checks.bench import protocols
from fedvlm.checks.bench.side import Sizes, Timings
from fedvlm.clip.make import make
from fedvlm.errors import FedvlmError
from fedvlm.tensors import Named


@dataclass(frozen=True)
class BenchRow:
    """Results of one protocol: timings and memory of both sides, ratios, and differences of their tensors."""

    protocol: str
    title: str
    naive: Timings
    exact: Timings
    kept_step_s: float
    """Seconds of a step of the released procedure with the allocator settings of the other side."""
    difference: dict[str, float]
    """Largest difference over the largest value, of trained tensors and of logits, after a shortened round."""
    target_ratios: dict[str, float | None]
    """Target ratios `whole` and `warm` (`asked` in files)."""

    @property
    def seconds(self) -> tuple[dict[str, float], dict[str, float]]:
        """Seconds of a round with cached activations, by `training`, `experts` and `evaluation`: naive, exact."""
        return _round_seconds(self.naive, shares_experts=False), _round_seconds(self.exact, shares_experts=True)

    @property
    def rounds(self) -> tuple[float, float]:
        """Seconds of a round with cached activations: naive, exact."""
        slow, fast = self.seconds
        return sum(slow.values()), sum(fast.values())

    @property
    def runs(self) -> tuple[float, float]:
        """Seconds of the whole run, including the encoding of activations: naive, exact."""
        rounds = self.naive.counts["rounds"]
        return rounds * self.rounds[0], rounds * self.rounds[1] + self.exact.remember_s

    @property
    def ratios(self) -> dict[str, float]:
        """Ratios of speed: a round (warm), the whole run, a step, a step with the same allocator settings."""
        step = self.exact.step_s
        return {"warm": self.rounds[0] / self.rounds[1], "whole": self.runs[0] / self.runs[1],
                "step": self.naive.step_s / step, "step, same allocator": self.kept_step_s / step}  # fmt: skip

    @property
    def over_floor(self) -> float:
        """Time of a step over the time of its multiply-adds at the machine's rate."""
        return self.exact.step_s / (self.exact.step_gflop / self.exact.matmul_gflops)


def _round_seconds(parts: Timings, *, shares_experts: bool) -> dict[str, float]:
    if parts.round is not None:
        return parts.round
    counts = parts.counts
    experts = counts["prompts per round" if shares_experts else "experts per round"]
    return {
        "training": counts["steps per round"] * parts.step_s,
        "experts": experts * parts.expert_s,
        "evaluation": counts["clients"] * counts["evaluations"] / counts["rounds"] * parts.test_s,
    }


def bench(
    names: Sequence[str], data: Path, models: Path, tokenizer: str, sizes: Sizes, log: Callable[[str], None]
) -> Iterator[BenchRow]:
    """Measure protocols one after another; yields each row when it is complete.

    Each side runs in a new process, with its own memory and caches.
    """
    for protocol in [protocols.find_protocol(name) for name in names]:
        model = None if protocol.model is None else str(_model(protocol.model, models, tokenizer, log))
        settings = protocols.protocol_experiment(protocol, data, model)
        with tempfile.TemporaryDirectory() as place:
            order = Path(place) / "order.json"
            task = {"experiment": settings.resolved(), "sizes": asdict(sizes), "cache": f"{place}/cache"}
            durable.write_json(order, task)
            found: dict[str, Timings] = {}
            for side in ("naive", "exact"):
                log(f"{protocol.name}: {side}")
                found[side] = _measure(order, side)
            log(f"{protocol.name}: naive with the other allocator settings")
            apart = _largest_differences(*(tensors.load(order.with_suffix(f".{side}.safetensors")) for side in found))
            kept = _measure(order, "naive", "step", FEDVLM_BENCH_ALLOCATOR="kept").step_s
        targets = {"whole": protocol.whole, "warm": protocol.warm}
        yield BenchRow(protocol.name, protocol.title, found["naive"], found["exact"], kept, apart, targets)


def _model(architecture: str, models: Path, tokenizer: str, log: Callable[[str], None]) -> Path:
    folder = models / architecture.replace("/", "-").lower()
    if not (folder / "preprocessor_config.json").exists():  # written last
        log(f"{architecture}: random weights in {folder}")
        make(architecture, folder, tokenizer=tokenizer)
    return folder


def _measure(order: Path, side: str, *only: str, **environment: str) -> Timings:
    command = [sys.executable, "-m", "fedvlm.checks.bench.side", side, str(order), *only]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    if done.returncode:
        raise FedvlmError(f"the {side} side failed:\n{done.stderr.strip()[-2000:]}")
    return Timings(**json.loads(order.with_suffix(f".{side}.json").read_text()))


def _largest_differences(naive: Named, exact: Named) -> dict[str, float]:
    """Largest absolute difference over the largest absolute value of its tensor, by kind."""
    if naive.keys() != exact.keys():
        raise FedvlmError(f"the two sides made different tensors: {sorted(naive.keys() ^ exact.keys())}")
    worst = {"logits": 0.0, "tensors": 0.0}
    for name, reference in naive.items():
        kind = "logits" if name.endswith("/logits") else "tensors"
        ratio = (exact[name] - reference).abs().max() / reference.abs().max().clamp(min=1e-12)
        worst[kind] = max(worst[kind], float(ratio))
    return worst


def machine() -> dict[str, Any]:
    """Properties of the machine on which the timings depend."""
    return {
        "processor": platform.processor() or platform.machine(), "cores": os.cpu_count(),
        "python": platform.python_version(), "torch": torch.__version__, "device": _device(),
    }  # fmt: skip


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def as_json(rows: Sequence[BenchRow]) -> dict[str, Any]:
    """All measurements and ratios as JSON."""
    return {"machine": machine(), "rows": [
        _as_table(row) | {"seconds_of_a_round": row.seconds, "run_s": row.runs, "over_floor": row.over_floor,
                          "ratios": row.ratios}
        for row in rows
    ], "quickstart_ratio": quickstart_ratio(rows)}  # fmt: skip


def _as_table(row: BenchRow) -> dict[str, Any]:
    """The fields of a row by the keys of the file, in which the target ratios are `asked`."""
    return {{"target_ratios": "asked"}.get(name, name): value for name, value in asdict(row).items()}


def quickstart_ratio(rows: Sequence[BenchRow]) -> float | None:
    """Ratio of speed of a round of all quickstart methods together; None if fewer than two were measured."""
    parts = [row.rounds for row in rows if row.title.endswith(protocols.QUICKSTART)]
    return sum(slow for slow, _ in parts) / sum(fast for _, fast in parts) if len(parts) > 1 else None


HEADER = ("protocol", "step s", "", "ratio", "same alloc.", "training s", "", "experts s", "", "evaluation s", "",
          "warm", "asked", "whole", "asked", "diff", "GiB", "", "GFLOP", "GFLOP/s", "over floor")  # fmt: skip


def _format_number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def row_cells(row: BenchRow) -> list[str]:
    """The cells of a row; in pairs naive, then exact."""
    slow, fast = row.naive, row.exact
    ratios = {name: f"{value:.1f}x" for name, value in row.ratios.items()}
    targets = [f"{value:g}x" if value else "" for value in (row.target_ratios["warm"], row.target_ratios["whole"])]
    return [
        row.protocol, _format_number(slow.step_s), _format_number(fast.step_s), ratios["step"],
        ratios["step, same allocator"],
        *(_format_number(side.get(part, 0)) for part in ("training", "experts", "evaluation") for side in row.seconds),
        ratios["warm"], targets[0], ratios["whole"], targets[1],
        f"{max(row.difference.values()):.0e}", f"{slow.peak_bytes / 2**30:.1f}", f"{fast.peak_bytes / 2**30:.1f}",
        _format_number(fast.step_gflop), _format_number(fast.matmul_gflops), f"{row.over_floor:.2f}",
    ]  # fmt: skip


def as_markdown(rows: Sequence[BenchRow]) -> str:
    """The table as Markdown; an unnamed column is of this package, the one before it of the released procedure."""
    lines = ["| " + " | ".join(HEADER) + " |", "|---" * len(HEADER) + "|"]
    lines += ["| " + " | ".join(row_cells(row)) + " |" for row in rows]
    if (together := quickstart_ratio(rows)) is not None:
        lines += ["", f"Quickstart, these methods one after another: {together:.1f}x"]
    return "\n".join(lines) + "\n"
