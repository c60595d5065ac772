"""A method under test, and the promises that it has to keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from fedvlm.clip import FrozenCLIP
from fedvlm.data import Federation
from fedvlm.federation.simulation import Simulation
from fedvlm.methods.base import Method
from fedvlm.testing import tiny


@cache
def usual_clip() -> FrozenCLIP:
    """The default CLIP of cases."""
    return tiny.clip()


@cache
def usual_federation() -> Federation:
    """The default federation of cases."""
    return tiny.federation()


@dataclass(frozen=True)
class Case:
    """A method under test: its class, settings in addition to the small defaults, CLIP and federation."""

    kind: type[Method]
    settings: Mapping[str, Any] = field(default_factory=dict)
    clip: FrozenCLIP = field(default_factory=usual_clip)
    federation: Federation = field(default_factory=usual_federation)

    def method(self, **settings: Any) -> Method:
        """A new object of the method with its settings."""
        return tiny.method(self.kind, **{**self.settings, **settings})

    def brief(self, **settings: Any) -> Method:
        """The method with one local epoch, which is enough for most promises."""
        return self.method(**({"epochs": 1} | settings if self.kind.trains and not self.kind.gathers else settings))

    def simulation(self, method: Method | None = None, federation: Federation | None = None, **how: Any) -> Simulation:
        """A new simulation of the method, by default of `brief()`."""
        return tiny.simulation(method or self.brief(), self.clip, federation or self.federation, **how)


Scope = Literal["all", "trained", "descends", "shared"]


@dataclass(frozen=True)
class Promise:
    """One promise, and the methods that have to keep it (`scope`)."""

    name: str
    scope: Scope
    function: Callable[[Case], None]

    def applies(self, kind: type[Method]) -> bool:
        """Whether a method has to keep the promise.

        Scopes are all methods, those with tensors (trained, or statistics), those that train by gradient steps, and
        those that share tensors.
        """
        asked = {"trained": True, "descends": not kind.gathers, "shared": bool(kind.shared)}
        return self.scope == "all" or (kind.trains and asked[self.scope])

    def check(self, case: Case) -> None:
        """Raise `AssertionError` if the method does not keep the promise."""
        if self.applies(case.kind):
            self.function(case)

    @property
    def about(self) -> str:
        """The promise in one sentence: the first line of its function's docstring."""
        return (self.function.__doc__ or "").strip().split("\n")[0]

    def __str__(self) -> str:
        return self.name


PROMISES: list[Promise] = []
"""All promises, in the order of their files."""


def promise(scope: Scope) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    """Decorator that adds a function to the promises that methods of a scope have to keep."""

    def add(function: Callable[[Case], None]) -> Callable[[Case], None]:
        PROMISES.append(Promise(function.__name__, scope, function))
        return function

    return add
