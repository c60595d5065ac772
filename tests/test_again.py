"""A run that dies says in its last line how to take it up again, and that line works. Real processes, real signals."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from called import call, hear_interrupts

from fedvlm import durable
from fedvlm.cli import again

SMALL = ["data.shots=2", "data.val_per_class=1", "data.test_per_class=2", "data.base_classes=4", "data.novel_classes=2",
         "partition.clients=2", "rounds=300", "methods=pfedmma", "method.all.epochs=1"]  # fmt: skip
SHORT = [word.replace("rounds=300", "rounds=3") for word in SMALL]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "120"}
FEDVLM = [sys.executable, "-m", "fedvlm"]


class Running:
    """`fedvlm WORDS` in a folder, as a process of its own, like one that a shell starts."""

    def __init__(self, words: Sequence[str], folder: Path, program: Sequence[str] = FEDVLM) -> None:
        self.folder, self.error = folder, (folder / "stderr").open("w+")
        self.process = subprocess.Popen(
            [*program, *words], cwd=folder, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=self.error,
            start_new_session=True, preexec_fn=hear_interrupts,
        )  # fmt: skip

    def wait_for_rounds(self, count: int = 2) -> None:
        """Until the ledgers hold that many rounds."""
        begun = time.monotonic()
        while self.process.poll() is None and self.rounds() < count:
            assert time.monotonic() - begun < 240
            time.sleep(0.01)
        assert self.process.poll() is None, self.lines()

    def rounds(self) -> int:
        ledgers = self.folder.rglob("ledger.jsonl")
        return sum(file.read_bytes().count(b'"kind": "round"') for file in ledgers)

    def ended(self) -> int:
        return self.process.wait(timeout=240)

    def lines(self) -> list[str]:
        self.error.seek(0)
        return self.error.read().splitlines()


def taken_up(line: str, folder: Path, rounds: int) -> dict[str, str]:
    """Play what a last line says to the end; returns the digests of results."""
    words = shlex.split(line)
    assert words[:3] == FEDVLM
    done = subprocess.run(words, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = {str(file.relative_to(folder)): json.loads(file.read_text()) for file in folder.rglob("result.json")}
    assert all(len(one["bytes_by_round"]) == rounds for one in results.values())
    return {name: one["digest"] for name, one in results.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of the run that is never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "r"
    assert call("run", "quickstart", *SHORT, "--out", str(folder)).returncode == 0
    digest: str = json.loads((folder / "seed-0/pfedmma/result.json").read_text())["digest"]
    return digest


@pytest.mark.parametrize(("number", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_signal(number: signal.Signals, word: str, processes: int, tmp_path: Path) -> None:
    words = ["run", "quickstart", *SMALL, "seeds=0,1", "--processes", str(processes), "--overwrite", "--out", "a b"]
    running = Running(words, tmp_path)
    running.wait_for_rounds()
    os.killpg(running.process.pid, number)  # as a terminal does with Ctrl-C, and a batch system with SIGTERM
    assert running.ended() == 128 + number
    expected = [f"fedvlm: {word}", "to continue:",
                shlex.join([*FEDVLM, *(one for one in words if one != "--overwrite"), "--resume"])]  # fmt: skip
    assert running.lines() == expected
    played = running.rounds()
    second = Running(shlex.split(expected[-1])[3:], tmp_path)
    second.wait_for_rounds(played + 1)  # what was played is still there
    second.process.kill()
    second.ended()


def test_the_last_line_ends_where_the_uninterrupted_run_does(tmp_path: Path, whole: str) -> None:
    """Stopped by Ctrl-C after the first of three slow rounds."""
    program = [sys.executable, "-c", SLOW]
    running = Running(["run", "quickstart", *SHORT, "--out", "r"], tmp_path, program)
    running.wait_for_rounds(1)
    running.process.send_signal(signal.SIGINT)
    assert running.ended() == 130
    assert running.rounds() < 3
    assert taken_up(running.lines()[-1], tmp_path, 3) == {"r/seed-0/pfedmma/result.json": whole}


SLOW = """
import sys, time
import fedvlm
from fedvlm import cli
from fedvlm.federation import simulation
plain = simulation._evaluate
def slow(*words):
    time.sleep(1.5)
    return plain(*words)
simulation._evaluate = slow
sys.argv[0] = fedvlm.__path__[0] + "/__main__.py"
cli.main()
"""
BROKEN = """
import sys
import fedvlm
from fedvlm import cli
from fedvlm.runs import chance
def fail(*words):
    raise {error}
chance.zero_shot_check = fail
sys.argv[0] = fedvlm.__path__[0] + "/__main__.py"
cli.main()
"""


@pytest.mark.parametrize(
    "verb", ["run", "compare", *(pytest.param(one, marks=pytest.mark.long) for one in ("sweep", "audit"))]
)
def test_an_exception(verb: str, tmp_path: Path, whole: str) -> None:
    """Nobody's mistake: the traceback, and then the last line."""
    over = {"sweep": ["--over", "method.pfedmma.lr=0.001,0.002"]}.get(verb, [])
    words = [verb, "quickstart", *SHORT, *over, "--out", "r"]
    running = Running(words, tmp_path, [sys.executable, "-c", BROKEN.format(error='RuntimeError("a fault of ours")')])
    assert running.ended() == 1
    *above, said, last = running.lines()
    assert "RuntimeError: a fault of ours" in above
    assert said == "to continue:"
    assert last == shlex.join([*FEDVLM, *words, *(["--resume"] if verb == "run" else [])])
    if verb == "run":
        assert taken_up(last, tmp_path, 3) == {"r/seed-0/pfedmma/result.json": whole}
    else:
        done = subprocess.run(shlex.split(last), cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_a_full_disk(tmp_path: Path, whole: str) -> None:
    error = 'fedvlm.FedvlmError("cannot write r/x: the disk is full: free some space")'
    running = Running(["run", "quickstart", *SHORT, "--out", "r"], tmp_path,
                      [sys.executable, "-c", BROKEN.format(error=error)])  # fmt: skip
    assert running.ended() == 2
    first, said, last = running.lines()
    assert first == "fedvlm: cannot write r/x: the disk is full: free some space"
    assert said == "to continue:"
    assert taken_up(last, tmp_path, 3) == {"r/seed-0/pfedmma/result.json": whole}


def children(process: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == process and b"spawn_main" in (stat.parent / "cmdline").read_bytes():
            found.append(int(stat.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.long
def test_killed_workers(tmp_path: Path) -> None:
    """What the kernel does to workers when memory is short."""
    words = ["run", "quickstart", *SMALL, "seeds=0,1", "--processes", "2", "--out", "r"]
    running = Running(words, tmp_path)
    running.wait_for_rounds()
    workers = children(running.process.pid)
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    assert running.ended() == 2
    first, said, last = running.lines()
    assert first.startswith("fedvlm: all workers ended before their points")
    assert (said, last) == ("to continue:", shlex.join([*FEDVLM, *words, "--resume"]))


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_a_coordinator(number: signal.Signals, tmp_path: Path) -> None:
    """It waits for sites that are not there; stopped twice, it says twice how to go on."""
    drawn = [word for word in SHORT if not word.startswith(("partition", "data.novel"))] + ["data.novel_classes=4"]
    begin = ["federation", "init", "trial", "quickstart", "--example", *drawn, 'data.styles=["sketch","neon"]']
    subprocess.run([*FEDVLM, *begin], cwd=tmp_path, env=ENVIRONMENT, check=True, capture_output=True)
    words, last = ["federation", "run", "trial"], shlex.join([*FEDVLM, "federation", "run", "trial", "--resume"])
    for _ in range(2):
        running = Running(words, tmp_path)
        begun = time.monotonic()
        while not durable.is_locked(tmp_path / "trial" / "run" / ".lock"):
            assert time.monotonic() - begun < 240
            time.sleep(0.05)
        time.sleep(1)
        running.process.send_signal(number)
        assert running.ended() == 128 + number
        assert running.lines()[1:] == ["to continue:", last]
        words = shlex.split(last)[3:]


def test_a_mistake_before_anything_is_begun_has_no_such_line(tmp_path: Path) -> None:
    for words in (["run", "quickstart", "roundz=3"], ["run", "quickstart", "data.styles=neonn"]):
        done = call(*words, "--out", str(tmp_path / "r"))
        assert done.returncode == 2
        assert "to continue" not in done.stderr
    assert call("run", "quickstart", *SHORT, "--out", str(tmp_path / "r")).returncode == 0
    done = call("run", "quickstart", *SHORT, "--out", str(tmp_path / "r"))
    assert "already holds a run: --resume continues it" in done.stderr
    assert "to continue:" not in done.stderr


def test_a_run_whose_methods_all_fail_has_not_died(tmp_path: Path) -> None:
    done = call("run", "quickstart", *SHORT, "method.pfedmma.lr=1e30", "--out", str(tmp_path / "r"))
    assert done.returncode == 2
    assert "no method has a result with every seed" in done.stderr
    assert "to continue:" not in done.stderr


def test_interrupted_before_anything_is_begun(tmp_path: Path) -> None:
    early = BROKEN.format(error="KeyboardInterrupt").replace("chance", "runner").replace("zero_shot_check", "_open")
    running = Running(["run", "quickstart", *SMALL, "--out", "r"], tmp_path, [sys.executable, "-c", early])
    assert running.ended() == 130
    assert running.lines() == ["fedvlm: interrupted"]
    assert not (tmp_path / "r" / "experiment.json").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["fedvlm", "run", "a b.toml", "--overwrite"], "fedvlm run 'a b.toml' --resume"),
        (["fedvlm", "run", "x", "--resume", "--out", "r"], "fedvlm run x --resume --out r"),
        (["fedvlm", "run", "--", "x"], "fedvlm run --resume -- x"),
        (["fedvlm", "federation", "run", "trial"], "fedvlm federation run trial --resume"),
        (["fedvlm", "compare", "x", "seeds=0,1"], "fedvlm compare x seeds=0,1"),
        (["fedvlm", "compare", "x", "--overwrite"], "fedvlm compare x"),
    ],
)
def test_the_command(words: list[str], line: str) -> None:
    found = again.command(words)
    assert found == line
