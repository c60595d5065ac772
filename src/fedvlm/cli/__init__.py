"""The command line: every verb calls the rooms below in a few lines.

app.py      shared by all verbs: arguments, printing
runs.py     run, partition, watch
studies.py  compare, sweep, audit, reproduce
files.py    init, check, copy, schema
lists.py    methods, presets, cache
checks.py   verify, doctor, bench, random-clip
personal.py export, predict
report.py   report
site.py     site init, check, serve, status, carry
federation.py  federation init, run
"""

from __future__ import annotations

import sys
import warnings
from typing import TextIO

from rich.console import Console

from fedvlm.cli import checks, federation, files, lists, personal, report, runs, site, studies
from fedvlm.cli.app import app
from fedvlm.errors import FedvlmError

__all__ = ["app", "checks", "federation", "files", "lists", "main", "personal", "report", "runs", "site", "studies"]


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print warnings of fedvlm for users in one line, and other warnings as Python does."""
    own = issubclass(category, FutureWarning) and "fedvlm" in filename
    text = f"fedvlm: {message}" if own else warnings.formatwarning(message, category, filename, lineno).rstrip()
    Console(stderr=True).print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    """Entry point. A user's mistake gives one message on standard error and exit code 2."""
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
