"""The base class of faults: a description, and changes of a federation or of a simulation.

No code outside this folder depends on a fault. A fault changes the federation (data), or a `Simulation`: its method, or
its `Procedure`, which it wraps.

Every run of one method with one seed has a new procedure. State that a fault passes from client to client (momentum, a
gate, a counter) is in the procedure and is not stored: an interrupted run with faults starts from its first round.
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

from fedvlm.data import Federation
from fedvlm.experiment import Experiment
from fedvlm.federation.simulation import Simulation
from fedvlm.methods import Method

M = TypeVar("M", bound=Method)


class Fault:
    """One fault of released code."""

    name: ClassVar[str]
    title: ClassVar[str]
    """Effect of the fault, in one sentence."""
    code: ClassVar[str]
    """The published code that has the fault."""
    where: ClassVar[str]
    """Files and lines of the published code."""
    methods: ClassVar[tuple[str, ...]] = ()
    """The methods whose published code has the fault."""
    data: ClassVar[bool] = False
    """Whether it is a fault of data, which all methods trained on these data have."""

    @classmethod
    def applies(cls, method: Method, experiment: Experiment) -> bool:
        """Whether a method's published code has the fault (faults of data: every method), and it has an effect here."""
        return cls.data or method.name in cls.methods

    def federation(self, federation: Federation, seed: int) -> Federation:
        """The federation with the fault."""
        return federation

    def simulation(self, run: Simulation) -> Simulation:
        """The run with the fault."""
        return run


def replace_method(run: Simulation, method: Method, **changes: Any) -> Simulation:
    """The run with another method, and with changed fields of its `RunSpec`."""
    return replace(run, spec=replace(run.spec, method=method, **changes))


def subclass_method(method: M, kind: type[Method], **state: Any) -> M:
    """A copy of a method whose class inherits from `kind` first, so that `super()` in `kind` calls the method."""
    result = copy(method)
    result.__class__ = type(kind.__name__, (kind, type(method)), {})
    for name, value in state.items():
        setattr(result, name, value)
    return result
