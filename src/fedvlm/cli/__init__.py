"""The command line: verbs by what they are about, each in a few lines over the rooms below.

app.py      what all verbs share: arguments, printing
runs.py     run, partition
studies.py  compare, sweep, audit, reproduce
lists.py    methods, presets, cache
checks.py   verify, doctor, bench, random-clip
"""

from __future__ import annotations

import sys
import warnings
from typing import TextIO

from rich.console import Console

from fedvlm.cli import checks, lists, runs, studies
from fedvlm.cli.app import app
from fedvlm.errors import FedvlmError

__all__ = ["app", "checks", "lists", "main", "runs", "studies"]


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """What users can do something about, in a line; the rest as Python shows it."""
    own = issubclass(category, FutureWarning) and "fedvlm" in filename
    text = f"fedvlm: {message}" if own else warnings.formatwarning(message, category, filename, lineno).rstrip()
    Console(stderr=True).print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    """Entry point: a user's mistake ends in one message on standard error and exit code 2."""
    warnings.showwarning = _warn
    warnings.simplefilter("default", FutureWarning)
    try:
        app()
    except (FedvlmError, OSError) as error:
        Console(stderr=True).print(f"fedvlm: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        Console(stderr=True).print(
            "fedvlm: interrupted; --resume continues (audit, compare, reproduce, sweep: run it again)", highlight=False
        )
        sys.exit(130)
