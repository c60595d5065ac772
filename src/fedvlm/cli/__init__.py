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
track.py    track: writers for TensorBoard, MLflow, Weights & Biases
again.py    what a run that dies says last
answers.py  what verbs answer with --json
"""

from __future__ import annotations

import sys
import traceback
import warnings
from typing import TextIO

from fedvlm.cli import again, checks, federation, files, lists, personal, report, runs, site, studies, track
from fedvlm.cli.app import app, print_aside
from fedvlm.errors import FedvlmError

__all__ = [
    "app", "checks", "federation", "files", "lists", "main", "personal", "report", "runs", "site", "studies", "track",
]  # fmt: skip


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
    print_aside(text, "yellow")


def main() -> None:
    """Entry point. A user's mistake gives one message on standard error and exit code 2.

    What dies after a run has begun says in its last line how to take it up again.
    """
    warnings.showwarning = _warn
    warnings.simplefilter("default", FutureWarning)
    with again.watched() as called:
        try:
            app()
        except (Exception, again.StoppedError) as error:
            left_over = called.left_over(error)
            code = _tell(error, left_over=left_over)
            if left_over:
                print_aside(f"to continue:\n{again.command(sys.argv)}")
            sys.exit(code)


def _tell(error: BaseException, *, left_over: bool) -> int:
    """Print an error; returns the exit code. Raises an unexpected one, if nothing is to be said after it."""
    if isinstance(error, FedvlmError | OSError):
        print_aside(f"fedvlm: {error}", "red")
        return 2
    if isinstance(error, again.StoppedError):
        print_aside(f"fedvlm: {error}")
        return error.code
    if not left_over:
        raise error
    traceback.print_exception(error)
    return 1
