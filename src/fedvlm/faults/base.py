"""What a fault is: a class that says where it was found and puts itself into the parts a method's run is made of.

Nothing outside of this folder knows any fault. A fault changes the federation (data), or a `Simulation`: its method, or
its `Procedure`, around which it puts one of its own.

A new procedure is made for every run of one method with one seed. What a fault passes from client to client
(momentum, a gate, a counter) lives in it and is not stored: an interrupted run with faults starts from its first round.
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
    """What it does, in one sentence."""
    code: ClassVar[str]
    """The published code it is in."""
    where: ClassVar[str]
    """Files and lines, as read in it."""
    methods: ClassVar[tuple[str, ...]] = ()
    """The methods whose published code has it."""
    data: ClassVar[bool] = False
    """Whether it is a fault of data that every method trained on them has."""

    @classmethod
    def applies(cls, method: Method, experiment: Experiment) -> bool:
        """Whether a method's published code has it (one of data: every method), and it changes anything here."""
        return cls.data or method.name in cls.methods

    def federation(self, federation: Federation, seed: int) -> Federation:
        """The data with the fault."""
        return federation

    def simulation(self, run: Simulation) -> Simulation:
        """The run with the fault."""
        return run


def replace_method(run: Simulation, method: Method, **changes: Any) -> Simulation:
    """A run of another method, and of other fields of its `RunSpec`."""
    return replace(run, spec=replace(run.spec, method=method, **changes))


def subclass_method(method: M, kind: type[Method], **state: Any) -> M:
    """A copy of a method whose class has `kind` in front, so that kind's functions call the method's by `super()`."""
    result = copy(method)
    result.__class__ = type(kind.__name__, (kind, type(method)), {})
    for name, value in state.items():
        setattr(result, name, value)
    return result
