"""The command line as tests call it: in this process, and as a process of its own where that is the point."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from unittest.mock import patch

from fedvlm import cli

Done = subprocess.CompletedProcess[str]


def call(*words: str) -> Done:
    """`fedvlm WORDS` without starting Python and importing torch again: exit code and what was printed."""
    out, err = StringIO(), StringIO()
    with (
        patch.dict(os.environ, COLUMNS="120"),
        patch.object(sys, "argv", ["fedvlm", *words]),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            cli.main()
            code: int | str | None = 0
        except SystemExit as stop:
            code = stop.code
    return subprocess.CompletedProcess(words, int(code or 0), out.getvalue(), err.getvalue())


def process(*words: str, **environment: str) -> Done:
    """The same as a process, with changes to its environment."""
    command = [sys.executable, "-m", "fedvlm", *words]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "120"} | environment)


def hear_interrupts() -> None:
    """For a process that a test starts: what runs in the background, such as a CI's job, may be deaf to Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
