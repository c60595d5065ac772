"""A run that dies says in its last line how to take it up again.

`beside` is told by a verb's run that its folder is open: from then on there is something to take up. `main` asks at the
end. SIGTERM is an exception from then on too, so that workers and writers are ended and the last line is printed;
before, it ends the process as it does everywhere.
"""

from __future__ import annotations

import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from fedvlm.errors import FedvlmError, StorageError

RESUMED = (("run",), ("federation", "run"))
"""Verbs that continue with --resume; all others continue when they are repeated."""


class StoppedError(BaseException):
    """Ctrl-C or SIGTERM. It is no `Exception`, so that nobody takes it for the failure of a method.

    `code`: the exit code.
    """

    def __init__(self, word: str, code: int) -> None:
        super().__init__(word)
        self.code = code


class _Command:
    """What this process was called for."""

    def __init__(self) -> None:
        self.begun = False
        self.broken = False
        """Whether a run ended by an error, and not only without results."""

    def left_over(self, error: BaseException) -> bool:
        """Whether there is something to take up after this error."""
        told = isinstance(error, FedvlmError) and not isinstance(error, StorageError)
        stopped = isinstance(error, StoppedError) and "--resume" in sys.argv  # while it was loading
        return stopped or (self.begun and (self.broken or not told))


_current = _Command()


@contextmanager
def watched() -> Iterator[_Command]:
    """Around the whole command."""
    global _current
    _current, before = _Command(), signal.getsignal(signal.SIGTERM)
    try:
        yield _current
    finally:
        if _current.begun and _in_main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def beside() -> Iterator[None]:
    """Around the time in which a run's folder is written."""
    _current.begun = True
    if _in_main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except FedvlmError:
        _current.broken = True
        raise


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the end is on its way
    raise StoppedError("terminated", 128 + signal.SIGTERM)


def command(words: Sequence[str]) -> str:
    """The command line that continues what `words` (`sys.argv`) began."""
    program, *rest = words
    rest = [word for word in rest if word != "--overwrite"]
    verb = next((verb for verb in RESUMED if tuple(rest[: len(verb)]) == verb), None)
    if verb is not None and "--resume" not in rest:
        rest.insert(len(verb) if "--" in rest else len(rest), "--resume")
    return shlex.join([*_program(program), *rest])


def _program(called: str) -> list[str]:
    """How this program was called, as it can be typed."""
    if Path(called).name == "__main__.py":
        return [sys.executable, "-m", "fedvlm"]
    found = shutil.which(Path(called).name)
    return [Path(called).name if found is not None and Path(found).resolve() == Path(called).resolve() else called]
