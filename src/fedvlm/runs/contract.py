"""The contract printed before training: clients, trained and private tensors, messages, evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedvlm import cache, tensors
from fedvlm.clip import FrozenCLIP
from fedvlm.data import Client, Federation
from fedvlm.errors import listed
from fedvlm.experiment import Experiment
from fedvlm.federation import messages
from fedvlm.federation.server import round_size
from fedvlm.federation.simulation import Simulation
from fedvlm.methods.base import MEAN


@dataclass(frozen=True)
class MethodTerms:
    """The contract of one method. Counts are of float32 numbers, bytes are per client and round."""

    method: str
    title: str
    trained: int
    private: int
    shared: int
    up_bytes: int
    down_bytes: tuple[int, int]
    """Smallest and largest number of bytes."""
    evaluated: str
    leaves: list[str]
    """Every tensor that leaves a client, with its shape."""
    budget: str
    """A client's training budget (`Method.budget`); empty without training."""
    exposes: str
    """What other clients see of a client's uplink; empty if nothing leaves."""


def method_terms(name: str, run: Simulation) -> MethodTerms:
    """The contract of a method, computed from its tensors."""
    method, initial = run.spec.method, run.spec.initial
    up = run.spec.may_cross
    return MethodTerms(
        name,
        method.title,
        tensors.count(initial),
        tensors.count(messages.private_tensors(method, initial)),
        tensors.count(up),
        tensors.nbytes(up),
        method.downlink_bytes(tensors.nbytes(up), len(run.site.federation.trained)),
        run.spec.reported.replace("_", " "),
        [f"{tensor} {list(value.shape)}" for tensor, value in up.items()],
        method.budget,
        method.exposes if up else "",
    )


def contract_text(
    experiment: Experiment,
    clip: FrozenCLIP,
    federation: Federation,
    lines: Sequence[MethodTerms],
    faults: Mapping[str, Sequence[str]] | None = None,
    place: Path | None = None,
) -> str:
    """The contract as it is printed and stored.

    `faults`: descriptions of the faults that are built in, by method. `place`: the run folder.
    """
    share = f"{experiment.participation:.0%}"
    head = [
        f"experiment  {experiment.name}, digest {experiment.digest()[:12]}, seeds {_seeds(experiment.seeds)}",
        f"model       {clip.name}, sha256 {clip.digest[:12]}, weights {clip.weights[:12]}, all frozen",
        f"clients     {_clients(federation.trained)}{_seed_note(experiment.seeds)}",
        *(
            [f"late        {_newcomers(federation.newcomers, experiment.partition.kind)}"]
            if federation.newcomers
            else []
        ),
        f"classes     {len(federation.base)} base, {len(federation.novel)} novel (trained by nobody)",
        f"rounds      {experiment.rounds}, {share} of the clients in each; last evaluation reported",
    ]
    head += _storage_lines(experiment, place)
    rows = ["", *_columns([_HEADS, *map(_cells, lines)])]
    sent = ["", "what leaves a client, per round, besides its number of images:"]
    sent += [f"  {t.method}: {_brief(t.leaves)}" for t in lines]
    count = round_size(experiment.participation, len(federation.trained))
    return "\n".join(_fault_lines(faults or {}) + head + rows + sent + _exposure_lines(lines, count))


def _storage_lines(experiment: Experiment, place: Path | None) -> list[str]:
    """Lines on the data that are stored on this machine, and where."""
    lines = []
    if place is not None:
        lines.append(
            f"kept here   in {place}/seed-*: every client's tensors (checkpoint), losses and accuracies (ledger, "
            "result) and lists of images (partition), readable by your user alone"
        )
    if experiment.compute.disk_gib and experiment.data.on_disk:
        lines.append(
            f"kept here   in {cache.folder('')}: activations of the images, and which of them can be decoded "
            "(compute.disk_gib=0: nothing)"
        )
    return lines


def _seed_note(seeds: Sequence[int]) -> str:
    """A remark that numbers of images are those of the first seed, if there are several."""
    return f" (seed {seeds[0]}; each seed deals anew)" if len(seeds) > 1 else ""


def _exposure_lines(lines: Sequence[MethodTerms], count: int) -> list[str]:
    """Lines on who sees the uplinks, for `count` clients in a round."""
    kinds: dict[str, list[str]] = {}
    for line in lines:
        if line.exposes:
            kinds.setdefault(line.exposes, []).append(line.method)
    if not kinds:
        return []
    text = ["", "the server sees what each client sends; other clients see:"]
    text += [f"  {kind}: {listed(names, 40)}" for kind, names in kinds.items()]
    if count <= 2 and any(kind.startswith(MEAN) for kind in kinds):
        why = "is that client's own tensors" if count == 1 else "tells each client the other's tensors"
        text.append(f"  with {count} in a round the mean {why}")
    return text


def _fault_lines(faults: Mapping[str, Sequence[str]]) -> list[str]:
    if not faults:
        return []
    lines = [line for name, each in faults.items() for line in (f"  {name}", *(f"    {fault}" for fault in each))]
    return ["!!! FAULTS OF RELEASED CODE ARE BUILT INTO THIS RUN: ITS RESULTS ARE WRONG ON PURPOSE !!!", *lines, ""]


_HEADS = ("method", "trained", "private", "shared", "up B", "down B", "local training", "evaluated")


def _cells(t: MethodTerms) -> tuple[str, ...]:
    counts = (f"{count:,}" for count in (t.trained, t.private, t.shared, t.up_bytes))
    return (t.method, *counts, _range(t.down_bytes), t.budget, t.evaluated)


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Cells two spaces apart, numbers to the right."""
    wide = [max(len(row[place]) for row in rows) for place in range(len(_HEADS))]
    return ["  ".join(f"{cell:{'>' if 0 < place < 6 else '<'}{wide[place]}}" for place, cell in enumerate(row)).rstrip()
            for row in rows]  # fmt: skip


def _seeds(seeds: Sequence[int]) -> str:
    return ", ".join(str(seed) for seed in seeds)


def _clients(clients: Sequence[Client]) -> str:
    images, classes = [len(c.train) for c in clients], [len(c.classes) for c in clients]
    return f"{len(clients)}, each with {_value_range(images)} training images of {_value_range(classes)} classes"


def _newcomers(clients: Sequence[Client], kind: str) -> str:
    """The line on newcomers, without names of natural clients, who are people or sites."""
    # The name of a domain's client begins with the domain.
    labels = [f"{c.name} ({c.domain})" if c.domain and not c.name.startswith(c.domain) else c.name for c in clients]
    names = "" if kind == "natural" else f": {listed(labels)}"
    do = (
        "joins after the last round, sends nothing and is"
        if len(clients) == 1
        else ("join after the last round, send nothing and are")
    )
    return f"{len(clients)} {do} measured apart{names}"


def _value_range(values: Sequence[int]) -> str:
    return _range((min(values), max(values)))


def _range(ends: tuple[int, int]) -> str:
    low, high = ends
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _brief(leaves: Sequence[str], limit: int = 4) -> str:
    if not leaves:
        return "nothing"
    more = f" and {len(leaves) - limit} more (all in contract.json)" if len(leaves) > limit else ""
    return ", ".join(leaves[:limit]) + more
