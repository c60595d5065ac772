"""Failed points and their descriptions. A method that fails does not stop the other methods."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from fedvlm.errors import DivergenceError, FedvlmError, StorageError, listed


@dataclass(frozen=True)
class Failure:
    """Why one method with one seed has no result."""

    message: str
    diverged: bool
    """Whether its training diverged; False for any other error."""


Failures = dict[str, dict[int, Failure]]
"""Failures by method and seed."""


def describe(failures: Mapping[int, Failure], seeds: int) -> str:
    """The text in a table in the place of numbers, such as `diverged (2 of 11 seeds)`."""
    what = "diverged" if all(one.diverged for one in failures.values()) else "failed"
    return f"{what} ({len(failures)} of {seeds} seed{'s' * (seeds > 1)})"


def describe_all(failures: Failures, seeds: int) -> dict[str, str]:
    """`describe` by method."""
    return {name: describe(by_seed, seeds) for name, by_seed in failures.items()}


def reason(failures: Failures, name: str) -> str:
    """The reason why a method has no numbers, in one line."""
    every = list(failures[name].values())
    if len({one.message for one in every}) == 1 and not every[0].diverged:
        return every[0].message  # a method that cannot run with these settings fails with every seed alike
    return listed(failure_lines({name: failures[name]}), 3)


def failure_lines(failures: Failures) -> list[str]:
    """One line for every failed point."""
    return [f"seed {seed} {name}: {one.message}" for name, by_seed in failures.items()
            for seed, one in by_seed.items()]  # fmt: skip


Result = TypeVar("Result")


def attempt(work: Callable[[], Result]) -> Result | Failure:
    """The result of `work`, or a `Failure` if it raises an error, so that other methods can go on.

    Raises `StorageError`, after which no result could be stored.
    """
    try:
        return work()
    except StorageError:
        raise
    except FedvlmError as error:
        return Failure(str(error), isinstance(error, DivergenceError))
    except Exception as error:
        traceback.print_exc()
        return Failure(f"{type(error).__name__}: {error}", False)
