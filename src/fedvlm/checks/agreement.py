"""Agreement of computed tensors with reference outputs, and analysis of differences.

Tensors are compared by max|a-b| <= t max|ref| + 1e-6, t = 1e-4, or 1e-5 for trained parameters; gradients that are
zero in exact arithmetic (key, value and output bias of the gate) by |a| < 1e-6.

A ReLU has no derivative at zero. If a unit's input is zero up to rounding, two correct computations may be on different
sides of zero, and their gradients differ by much more than rounding. Such places are found by disturbing the
computation at the level of rounding: see `judge`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from rich.markup import escape
from rich.table import Table
from torch import Tensor

from fedvlm import tensors
from fedvlm.errors import FedvlmError
from fedvlm.tensors import Named

_ZERO = ("grad/gating.k.bias", "grad/gating.v.bias", "grad/gating.o.bias")
_INPUTS = ("images", "labels", "experts", "init/*", "federated/client*/images", "federated/client*/labels")


@dataclass(frozen=True)
class Group:
    """The comparison of the tensors that share a prefix."""

    fixture: str
    name: str
    tensors: int
    difference: float
    """Largest absolute difference."""
    ratio: float
    """The largest difference over the largest reference value of its tensor."""
    agrees: bool
    """Whether the undisturbed computation is within the tolerances."""
    draws: int = 0
    """Number of disturbed computations; 0 if the whole fixture agrees."""
    agreed: int = 0
    """Number of disturbed computations in which this group agrees."""
    best: float = math.nan
    """Largest absolute difference in the disturbed computation that is nearest to the reference."""
    together: bool = False
    """Whether one disturbed computation agrees with the reference in every group of the fixture."""

    @property
    def passed(self) -> bool:
        """Whether the group agrees, or differs only where rounding decides."""
        return self.agrees or self.together

    @property
    def result(self) -> str:
        """`pass`, `ILL-CONDITIONED` or `FAIL`."""
        return "pass" if self.agrees else "ILL-CONDITIONED" if self.together else "FAIL"


def compare(fixture: str, computed: Named, reference: Named) -> list[Group]:
    """Differences of all stored outputs, by prefix. Raises `FedvlmError` if an output was not computed."""
    expected = {name: tensor for name, tensor in reference.items() if not is_input(name)}
    if not expected:
        raise FedvlmError(f"{fixture}: there is nothing to compare, only inputs")
    if missing := expected.keys() - computed.keys():
        raise FedvlmError(f"{fixture}: no computation gives {', '.join(sorted(missing)[:4])}")
    groups: dict[str, list[tuple[float, float, bool]]] = {}
    for name, tensor in expected.items():
        groups.setdefault(_group(name), []).append(_difference(name, computed[name], tensor))
    return [
        Group(fixture, name, len(rows), max(r[0] for r in rows), max(r[1] for r in rows), all(r[2] for r in rows))
        for name, rows in groups.items()
    ]


def judge(plain: Sequence[Group], disturbed: Sequence[Sequence[Group]]) -> list[Group]:
    """Judge the differing groups of a fixture by disturbed computations of the whole fixture.

    A difference is ill-conditioned, and passes, if all groups agree in one and the same draw: then one computation
    within rounding of ours gives the whole reference. It is not enough that each group agrees in some draw, because the
    tensors come from connected computations, and two draws are two different computations. Otherwise it fails.

    Could a fault pass this way? Noise of 1e-7 moves a differentiable result by some hundredths of the tolerance. A
    difference well above the tolerance therefore remains in every draw, and a fault below it passes with or without
    noise. At an edge this test cannot decide which side is right: the derivative at zero is not tested.
    """
    whole = [draw for draw in disturbed if all(group.agrees for group in draw)]
    return [group if group.agrees else _judge_group(group, [draw[place] for draw in disturbed],
                                                   [draw[place] for draw in whole])
            for place, group in enumerate(plain)]  # fmt: skip


def _judge_group(group: Group, draws: Sequence[Group], whole: Sequence[Group]) -> Group:
    nearest = min((one.difference for one in whole or draws), default=math.nan)
    return replace(group, draws=len(draws), agreed=sum(one.agrees for one in draws), best=nearest, together=bool(whole))


def _difference(name: str, computed: Tensor, reference: Tensor) -> tuple[float, float, bool]:
    if computed.shape != reference.shape:
        raise FedvlmError(f"'{name}' has shape {tuple(computed.shape)}, the reference {tuple(reference.shape)}")
    if not bool(reference.isfinite().all()):
        return math.inf, math.inf, False
    if name.endswith(_ZERO):
        size = float(computed.abs().max())
        return size, 0.0, size < 1e-6
    difference = float((computed.double() - reference.double()).abs().max())
    largest = float(reference.abs().max())
    return difference, difference / max(largest, 1e-30), difference <= _tolerance(name) * largest + 1e-6


def _tolerance(name: str) -> float:
    trained = name.startswith(("federated/final/", "trained/")) and not name.endswith(("logits", "losses"))
    return 1e-5 if trained else 1e-4


def is_input(name: str) -> bool:
    """Whether a stored tensor is an input of the computation, and so is not compared."""
    return tensors.matches(name, _INPUTS)


def _group(name: str) -> str:
    """`grad/text.5.up.bias` belongs to `grad/text`, `federated/final/client0/...` to `federated/final/client0`."""
    *folders, last = name.split("/")
    return "/".join([*folders, last.split(".")[0]])


def as_json_lines(groups: Sequence[Group]) -> list[dict[str, object]]:
    """The comparison as plain values."""
    return [asdict(group) | {"result": group.result} for group in groups]


_COLOURS = {"pass": "green", "ILL-CONDITIONED": "yellow", "FAIL": "red"}


def as_rich(groups: Sequence[Group], title: str) -> Table:
    """The comparison for the terminal; of disturbed groups, the number of agreeing draws and the nearest difference."""
    shown = Table("fixture", "tensors", "", "largest |a-b|", "/ max |ref|", "", box=None, pad_edge=False, title=title)
    if any(g.draws for g in groups):
        shown.add_column("disturbed")
    for g in groups:
        again = f"agrees in {g.agreed} of {g.draws} draws, nearest {g.best:.1e}" if g.draws else ""
        shown.add_row(escape(g.fixture), escape(g.name), str(g.tensors), f"{g.difference:.1e}", f"{g.ratio:.1e}",
                      f"[{_COLOURS[g.result]}]{g.result}[/]", *([again] if len(shown.columns) > 6 else []))  # fmt: skip
    return shown
