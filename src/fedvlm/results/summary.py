"""A finished point's result, from its ledger and its last state."""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from typing import Any

from fedvlm import tensors
from fedvlm.federation.simulation import FederationState, Simulation
from fedvlm.results.folder import Point

Line = Mapping[str, Any]


def result(point: Point, run: Simulation, state: FederationState) -> dict[str, Any]:
    """What is published of a point; nothing in it depends on the clock."""
    late = {client.name for client in run.site.federation.late}
    rounds, visits = point.lines("round"), [v for v in point.lines("visit") if v["client"] not in late]
    evaluated = [line for line in rounds if line["means"]]
    own = [line["means"][run.spec.reported] for line in evaluated]
    kept = evaluated[run.procedure.result(own)]
    curve = {m: [[line["round"], means[m]] for line, means in zip(evaluated, own, strict=True)] for m in own[-1]}
    found = {
        "state": run.spec.reported,
        "final": kept["means"],
        "mean_of_last_five_evaluations": {m: _last_five(line) for m, line in curve.items()},
        "best_round_on_test": _best(curve["local"]) if "local" in curve else None,
        "curve": curve,
        "clients": kept["clients"],
        "tradeoff": evaluated[-1]["curves"],
        "tensors": {
            "server": tensors.digest(state.server),
            "clients": {name: tensors.digest(state.personal[name]) for name in sorted(state.personal)},
        },
        "bytes_by_round": _by_round(visits),
        "up_bytes_per_visit": _per_visit(visits, "up_bytes"),
        "down_bytes_per_visit": _per_visit(visits, "down_bytes"),
    }
    if late:
        found["late"] = {moment: one for line in rounds for moment, one in line["late"].items()}
    if run.faults:
        found |= {"faults": list(run.faults), "round": kept["round"]}
    return found


def clock(point: Point) -> dict[str, float]:
    """`CLOCK`: seconds of training and of evaluation, and the memory of the whole process so far in bytes."""
    rounds = point.lines("round")
    return {
        "train_s": sum(line["train_s"] for line in rounds),
        "evaluate_s": sum(line["evaluate_s"] for line in rounds),
        # ru_maxrss is in KiB on Linux.
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _last_five(curve: Sequence[Sequence[float]]) -> float:
    return sum(value for _, value in curve[-5:]) / len(curve[-5:])


def _best(curve: Sequence[Sequence[float]]) -> float:
    """The first of the rounds with the highest accuracy."""
    return max(curve, key=lambda pair: (pair[1], -pair[0]))[0]


def _by_round(visits: Sequence[Line]) -> list[list[int]]:
    """Bytes of all clients in both directions, `[round, bytes]`."""
    sizes: dict[int, int] = {}
    for visit in visits:
        both = sum(visit["up_bytes"].values()) + sum(visit["down_bytes"].values())
        sizes[visit["round"]] = sizes.get(visit["round"], 0) + both
    return [[round_, size] for round_, size in sorted(sizes.items())]


def _per_visit(visits: Sequence[Line], key: str) -> float:
    return sum(sum(visit[key].values()) for visit in visits) / len(visits) if visits else 0.0
