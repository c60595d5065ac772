"""The command line: verbs by what they are about, each in a few lines over the rooms below.

app.py      what all verbs share: arguments, printing
runs.py     run, partition
studies.py  compare, sweep, audit, reproduce
lists.py    methods, presets, cache
checks.py   verify, doctor, bench, random-clip
"""

from __future__ import annotations

import sys

from rich.console import Console

from fedvlm.cli import checks, lists, runs, studies
from fedvlm.cli.app import app
from fedvlm.errors import FedvlmError

__all__ = ["app", "checks", "lists", "main", "runs", "studies"]


def main() -> None:
    """Entry point: a user's mistake ends in one message on standard error and exit code 2."""
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
