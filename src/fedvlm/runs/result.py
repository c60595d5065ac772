"""The result of a point (one method with one seed): as an object, and in `result.json`."""

from __future__ import annotations

import resource
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from fedvlm import durable, tensors
from fedvlm.errors import FedvlmError
from fedvlm.federation.procedure import Procedure
from fedvlm.federation.records import KEYS, ClientRecord, Moment, NewcomerRecord, RoundRecord
from fedvlm.federation.simulation import FederationState, Simulation
from fedvlm.methods.base import EvalPoint
from fedvlm.training.metrics import Metrics

Curve = list[tuple[int, float]]
"""A metric over rounds: pairs of an evaluated round and the value after it."""
CLOCK = ("train_s", "evaluate_s", "peak_memory_bytes")
"""Fields that depend on the clock and the load of the machine; the digest of a result does not cover them."""
_OPTIONAL = ("newcomers", "faults", "round")
"""Fields that `result.json` omits if they are empty."""


@dataclass(frozen=True)
class Digests:
    """SHA-256 of the final tensors."""

    server: str
    clients: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class PointResult:
    """The published result of a point. Accuracies are in 0..1; names of fields are a file format (see
    `records.KEYS`)."""

    state: EvalPoint
    """The reported state of the method."""
    final: dict[EvalPoint, Metrics]
    """The federation's metrics by state, after the last round, or the round that a fault has chosen."""
    mean_of_last_five_evaluations: Metrics
    best_round_on_test: int | None
    """The first round with the highest Local; for information only."""
    curve: dict[str, Curve]
    """Values over rounds in the reported state, by metric."""
    clients: dict[EvalPoint, dict[str, Metrics]]
    """Metrics of each client by state, of the same round as `final`."""
    tradeoff: dict[str, list[Metrics]] = field(default_factory=dict)
    """On `test` and `val` images: the metrics at every `weight` of zero-shot's logits."""
    tensors: Digests
    bytes_by_round: list[tuple[int, int]] = field(default_factory=list)
    """Pairs of a round and its bytes, of all clients in both directions."""
    up_bytes_per_visit: float
    """Mean number of bytes that a client sends in a round."""
    down_bytes_per_visit: float
    newcomers: dict[Moment, NewcomerRecord] = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    """Names of the built-in faults of released code."""
    round: int | None = None
    """With faults, the round whose evaluation is published."""
    digest: str = ""
    """SHA-256 of all other fields except `CLOCK`."""
    train_s: float = 0.0
    evaluate_s: float = 0.0
    peak_memory_bytes: int = 0
    """Peak memory of the process at the end of the point."""

    @property
    def reported(self) -> Metrics:
        """The federation's metrics in the reported state."""
        return self.final[self.state]

    def as_json(self) -> dict[str, object]:
        """The content of `result.json`."""
        return {
            KEYS.get(name, name): value
            for name, value in asdict(self).items()
            if name not in _OPTIONAL or value not in (None, (), {})
        }


_RESULT = TypeAdapter(PointResult)


def summarise(run: Simulation, state: FederationState, ledger: Sequence[RoundRecord]) -> PointResult:
    """The result of a finished run, from the records of all rounds and the last state."""
    digests = Digests(tensors.digest(state.server), _digests(state))
    newcomers = {client.name for client in run.site.federation.newcomers}
    return summarise_ledger(run.spec.reported, ledger, digests, run.procedure, newcomers, run.faults)


def summarise_ledger(
    reported: EvalPoint, ledger: Sequence[RoundRecord], digests: Digests, procedure: Procedure,
    newcomers: Collection[str] = (), faults: tuple[str, ...] = (),
) -> PointResult:  # fmt: skip
    """The result of a run, from the records of all rounds and the digests of the last tensors that are known here."""
    visits = [(record.round, visit) for record in ledger for visit in record.visits if visit.client not in newcomers]
    evaluated = [record for record in ledger if record.means.get(reported)]
    own = [record.means[reported] for record in evaluated]
    kept = evaluated[procedure.result(own)]
    lines = [(record.round, means) for record, means in zip(evaluated, own, strict=True)]
    # Between sites a round may lack a metric, because those that tell it were away.
    curve = {m: [(round_, means[m]) for round_, means in lines if m in means] for m in own[-1]}
    sent, received = ([visit.up_bytes for _, visit in visits], [visit.down_bytes for _, visit in visits])
    return PointResult(
        state=reported,
        final=kept.means,
        mean_of_last_five_evaluations={m: _mean_of_last_five(line) for m, line in curve.items()},
        best_round_on_test=_best_round(curve["local"]) if "local" in curve else None,
        curve=curve,
        clients=kept.clients,
        tensors=digests,
        up_bytes_per_visit=_per_visit(sent),
        down_bytes_per_visit=_per_visit(received),
        tradeoff=evaluated[-1].curves,
        bytes_by_round=_bytes_by_round(visits),
        newcomers={moment: one for record in ledger for moment, one in record.newcomers.items()},
        faults=faults,
        round=kept.round if faults else None,
        train_s=sum(record.train_s for record in ledger),
        evaluate_s=sum(record.evaluate_s for record in ledger),
        # ru_maxrss is in KiB on Linux.
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def write(file: Path, result: PointResult) -> PointResult:
    """Write a result with its digest; returns the result with the digest."""
    table = result.as_json()
    table["digest"] = _digest(table)
    durable.write_json(file, table, private=True)
    return _parse(table)


def read(file: Path) -> PointResult:
    """A finished result. Raises `FedvlmError` if the file was changed, or is of another version."""
    table = durable.read_json(file)
    again = f"put it back as it was, or delete {file.parent} to run this point again"
    if not isinstance(table, dict) or table.get("digest") != _digest(table):
        raise FedvlmError(f"{file} was changed after it was written (its digest does not fit): {again}")
    try:
        return _parse(table)
    except ValidationError as error:
        raise FedvlmError(f"{file} is no result of this version ({error.errors()[0]['msg']}): {again}") from error


def _parse(table: Mapping[str, object]) -> PointResult:
    names = {key: name for name, key in KEYS.items()}
    return _RESULT.validate_python({names.get(key, key): value for key, value in table.items()})


def _digest(table: Mapping[str, object]) -> str:
    return durable.json_digest({key: value for key, value in table.items() if key not in ("digest", *CLOCK)})


def _digests(state: FederationState) -> dict[str, str]:
    return {name: tensors.digest(state.personal[name]) for name in sorted(state.personal)}


def _mean_of_last_five(curve: Curve) -> float:
    return sum(value for _, value in curve[-5:]) / len(curve[-5:])


def _best_round(curve: Curve) -> int:
    """The first round with the highest accuracy."""
    return max(curve, key=lambda pair: (pair[1], -pair[0]))[0]


def _bytes_by_round(visits: Sequence[tuple[int, ClientRecord]]) -> list[tuple[int, int]]:
    sizes: dict[int, int] = {}
    for round_, visit in visits:
        both = sum(visit.up_bytes.values()) + sum(visit.down_bytes.values())
        sizes[round_] = sizes.get(round_, 0) + both
    return sorted(sizes.items())


def _per_visit(messages: Sequence[Mapping[str, int]]) -> float:
    return sum(sum(sizes.values()) for sizes in messages) / len(messages) if messages else 0.0
