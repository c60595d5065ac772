"""A pump whose program runs inside a network's server, to which the coordinator submits it.

Neither Flower nor NVFlare continues a run after its server or job process has died. They need not: the state is the
coordinator's, and the program submitted again fetches the messages that wait.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedvlm.network.carriers.pump import PumpCarrier

PAUSE = 2.0
"""Seconds before the program is submitted again."""


@dataclass
class SubmittedCarrier:
    """Submits a program with a command that lasts as long as the program, and again whenever it ends too early."""

    pump: PumpCarrier
    what: str
    """Name of the network, for messages."""
    command: Sequence[str]
    environment: Mapping[str, str]
    tell: Callable[[str], None]
    server: subprocess.Popen[bytes] | None = None
    """The network's server, if it is this carrier's own (`kept`)."""

    def __post_init__(self) -> None:
        """Submit the program."""
        self.ended = threading.Event()
        self.process: subprocess.Popen[str] | None = None
        self.roster, self.send, self.receive = self.pump.roster, self.pump.send, self.pump.receive
        threading.Thread(target=self._submit, daemon=True).start()

    def close(self) -> None:
        """Let the program end by itself, and then the command."""
        self.ended.set()
        self.pump.close()
        if self.process is not None:
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
        if self.server is not None:
            self.server.communicate()  # closes its input

    def _submit(self) -> None:
        said = ""
        while not self.ended.is_set():
            try:
                self.process = subprocess.Popen(
                    self.command,
                    env=dict(self.environment),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            except OSError as error:
                self.tell(f"{self.what}: {self.command[0]} cannot be started: {error.strerror or error}")
                return
            assert self.process.stdout is not None
            last = ""
            for line in self.process.stdout:
                last = line.strip(" \n│") if any(map(str.isalnum, line)) else last  # not the frame around it
            self.process.wait()
            if self.ended.is_set():
                return
            if last != said:
                said = last
                words = last[:200] or "without a word"
                self.tell(f"{self.what}'s run has ended ({words}): submitted again until it stays")
            time.sleep(PAUSE)


def kept(command: Sequence[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a command that ends with this process, however this one ends: closing its input ends it."""
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-c", _KEEPER, *command], env=dict(environment), stdin=subprocess.PIPE, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


_KEEPER = """
import os, signal, subprocess, sys, time
process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
sys.stdin.read()
process.terminate()
try:
    process.wait(20)
except subprocess.TimeoutExpired:
    pass
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.killpg(0, signal.SIGTERM)
time.sleep(1)
os.killpg(0, signal.SIGKILL)
"""
"""Waits until the other end of its input is closed, and ends the command and what that has started."""
