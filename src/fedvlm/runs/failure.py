"""Points that gave no result, and how they are told: one method that diverges costs no other its row."""

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
    """Its training left the numbers; otherwise something else went wrong."""


Failures = dict[str, dict[int, Failure]]
"""By method and seed, of those that failed."""


def describe(failures: Mapping[int, Failure], seeds: int) -> str:
    """What stands in a table in the place of numbers, such as `diverged (2 of 11 seeds)`."""
    what = "diverged" if all(one.diverged for one in failures.values()) else "failed"
    return f"{what} ({len(failures)} of {seeds} seed{'s' * (seeds > 1)})"


def describe_all(failures: Failures, seeds: int) -> dict[str, str]:
    """`describe` by method."""
    return {name: describe(by_seed, seeds) for name, by_seed in failures.items()}


def reason(failures: Failures, name: str) -> str:
    """Why one method has no numbers, in one line."""
    every = list(failures[name].values())
    if len({one.message for one in every}) == 1 and not every[0].diverged:
        return every[0].message  # what cannot be run with these settings cannot with any seed
    return listed(failure_lines({name: failures[name]}), 3)


def failure_lines(failures: Failures) -> list[str]:
    """A line for every failed point."""
    return [f"seed {seed} {name}: {one.message}" for name, by_seed in failures.items()
            for seed, one in by_seed.items()]  # fmt: skip


Result = TypeVar("Result")


def attempt(work: Callable[[], Result]) -> Result | Failure:
    """What `work` gives, or what it failed with: a fault of one method is no reason to stop the others.

    Raises `StorageError`, after which nothing more could be kept.
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
