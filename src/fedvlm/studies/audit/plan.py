"""The runs of an audit, all with the same settings: without faults, with each fault, and with all faults together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedvlm import faults, methods
from fedvlm.errors import FedvlmError
from fedvlm.experiment import Experiment
from fedvlm.methods import Method

RIGHT = "right"


@dataclass(frozen=True)
class Variant:
    """One run of an audit: all methods that have a fault (or a group of faults), with all seeds."""

    name: str
    """`right`, or the name of a fault or group."""
    experiment: Experiment
    labels: Mapping[str, str]
    """Labels of the methods in the run, by name."""


def variants(experiment: Experiment) -> list[Variant]:
    """The runs in the order of the table's rows. Raises `FedvlmError` if the experiment has faults already.

    Clients train one after another in all runs, so that runs differ by their faults only, and not by the rounding of
    batched steps.
    """
    if experiment.faults:
        raise FedvlmError("an audit chooses the faults itself: leave out faults=, or use fedvlm run")
    built = {name: methods.build(name, experiment.method) for name in experiment.methods}
    apart = experiment.model_copy(update={"compute": experiment.compute.model_copy(update={"clients_per_step": 1})})
    found = [_variant(RIGHT, apart, built)]
    for key, members in _members(apart, built).items():
        if members:
            found.append(_variant(key, apart, members))
    return found


def _members(experiment: Experiment, built: Mapping[str, Method]) -> dict[str, dict[str, Method]]:
    """Methods by fault or group; a group has the methods with several of its faults."""
    applying = {name: faults.applicable_faults(method, experiment) for name, method in built.items()}
    found = {
        fault.name: {name: method for name, method in built.items() if fault in applying[name]}
        for fault in faults.all_faults().values()
    }
    code = {name: [fault for fault in each if not fault.data] for name, each in applying.items()}
    for group, sizes in ((faults.ALL_BUT_DATA, code), (faults.ALL, applying)):
        found[group] = {name: method for name, method in built.items() if len(sizes[name]) > 1}
    return found


def _variant(key: str, experiment: Experiment, members: Mapping[str, Method]) -> Variant:
    update = {"methods": list(members), "faults": [] if key == RIGHT else [key]}
    chosen = experiment.model_copy(update=update | {"name": f"{experiment.name} {key}"})
    return Variant(key, chosen, {name: faults.method_label(name, method, chosen) for name, method in members.items()})
