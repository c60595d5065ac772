"""Faults of released code as named switches on the right implementation: `faults=stale_text` in an experiment.

Every fault is a class in a file of this folder, and is found there. Faults are off by default. A run with faults lists
them in its contract, and labels of methods name their faults, in folders, tables, figures and results.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import replace
from functools import cache

from fedvlm.data import Federation
from fedvlm.errors import FedvlmError, listed, nearest
from fedvlm.experiment import Experiment
from fedvlm.faults.base import Fault
from fedvlm.federation.simulation import Simulation
from fedvlm.methods import Method

__all__ = [
    "ALL",
    "ALL_BUT_DATA",
    "Fault",
    "FaultSet",
    "all_faults",
    "applicable_faults",
    "check",
    "method_label",
    "select_faults",
]

ALL, ALL_BUT_DATA = "all", "all_but_data"
_WORDS = {ALL: "all faults", ALL_BUT_DATA: "all faults but data"}


@cache
def all_faults() -> dict[str, type[Fault]]:
    """Every fault by name, in alphabetical order."""
    modules = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    classes = [value for module in modules for value in vars(module).values() if isinstance(value, type)]
    faults = {c.name: c for c in classes if issubclass(c, Fault) and "name" in vars(c)}
    return dict(sorted(faults.items()))


def check(experiment: Experiment) -> None:
    """Raise `FedvlmError` unless every name is that of a fault or of a group of faults."""
    for name in experiment.faults:
        if name not in all_faults() and name not in _WORDS:
            words = [*all_faults(), *_WORDS]
            raise FedvlmError(f"unknown fault '{name}'{nearest(name, words)}; known: {', '.join(words)}")


def applicable_faults(method: Method, experiment: Experiment) -> list[type[Fault]]:
    """The faults of a method's published code that change something under these settings."""
    return [fault for fault in all_faults().values() if fault.applies(method, experiment)]


def select_faults(method: Method, experiment: Experiment) -> list[type[Fault]]:
    """The experiment's faults of one method. Raises `FedvlmError` for a named fault that does not apply to it."""
    possible = applicable_faults(method, experiment)
    chosen = set()
    for name in experiment.faults:
        group = [fault for fault in possible if name == ALL or (name == ALL_BUT_DATA and not fault.data)]
        if name not in _WORDS and all_faults()[name] not in possible:
            names = listed((fault.name for fault in possible), 20) or "none"
            raise FedvlmError(
                f"fault '{name}' is not one of {method.name}'s released code, or changes nothing under these settings; "
                f"faults of {method.name}: {names}"
            )
        chosen |= {*group, *([all_faults()[name]] if name not in _WORDS else [])}
    return [fault for fault in all_faults().values() if fault in chosen]


def method_label(name: str, method: Method, experiment: Experiment) -> str:
    """A method's name with its faults, such as `pfedmma [stale_text]`; without faults the name alone."""
    faults = select_faults(method, experiment)
    if not faults:
        return name
    words = next((word for key, word in _WORDS.items() if key in experiment.faults), None)
    return f"{name} [{words or ', '.join(fault.name for fault in faults)}]"


class FaultSet:
    """The faults of a method's run with one seed, as new objects."""

    def __init__(self, method: Method, experiment: Experiment) -> None:
        self.requested = experiment.faults
        self.faults = [fault() for fault in select_faults(method, experiment)]

    def federation(self, federation: Federation, seed: int) -> Federation:
        """The federation with the faults of data; the same object if there are none.

        Raises `FedvlmError` if a fault named explicitly does not fit these data; a fault of a group is left out.
        """
        for fault in list(self.faults):
            try:
                federation = fault.federation(federation, seed)
            except FedvlmError:
                if fault.name in self.requested:
                    raise
                self.faults.remove(fault)
        return federation

    def simulation(self, run: Simulation) -> Simulation:
        """The run with its faults, with clients one after another and no validation; the same object without faults."""
        if not self.faults:
            return run
        schedule = replace(run.schedule, clients_per_step=1)
        run = replace(run, schedule=schedule, validation=None, faults=tuple(fault.name for fault in self.faults))
        for fault in self.faults:
            run = fault.simulation(run)
        return run
