"""How mutants are tried: what each test reaches on the sound source, a process for every mutant (see `mutate.py`)."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from mutants import Mutant, digest

SETUP = "(setup)"
"""Context of fixtures: any test of their file may notice what they do."""
TIME_OUT, BROKEN = 75, 70
MEMORY_BYTES = 8 << 30
PATIENCE_S = 10.0
"""Beside ten times what it took on the sound source, what a test may take."""
FIRST = 20
"""So many of the quickest tests run before all others."""

Task = Callable[[int], tuple[int, float, Callable[[int], None]]]
"""Starts a child in a slot; gives its process id, the seconds it may take and what to do with its exit code."""


@dataclass(frozen=True)
class Place:
    """A repository: its root, the package below `src/`, where results are kept."""

    root: Path
    package: str

    @property
    def work(self) -> Path:
        """Results, measurements, copies of the package."""
        return self.root / "build" / "mutate"

    @property
    def results(self) -> Path:
        """One line of JSON for each mutant that was tried."""
        return self.work / "results.jsonl"

    def files(self, below: Iterable[str]) -> list[str]:
        """Python files of folders and files, as paths from the root."""
        paths = [self.root / one for one in below]
        found = [file for path in paths for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]
        return [str(file.relative_to(self.root)) for file in dict.fromkeys(found)]


@dataclass
class Measured:
    """What one test file does on the sound source."""

    seconds: dict[str, float]
    """By test."""
    lines: dict[str, dict[str, list[str]]]
    """Tests that reach a line, by path and line; `SETUP` stands for all of the file's tests."""
    failed: list[str] = field(default_factory=list)

    def at(self, path: str, lines: Iterable[int] | None) -> set[str]:
        """Tests that reach one of these lines (any line where None)."""
        reached = self.lines.get(path, {})
        names = {name for line in (reached if lines is None else map(str, lines)) for name in reached.get(line, [])}
        return set(self.seconds) if SETUP in names else names


class Watch:
    """A pytest plugin that measures: seconds of every test, and under whose name lines are reached."""

    def __init__(self, switch: Callable[[str], object]) -> None:
        self.switch, self.seconds, self.failed = switch, defaultdict[str, float](float), list[str]()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Fixtures are made under a common name."""
        self.switch(SETUP)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> None:
        """The test itself under its own."""
        self.switch(item.nodeid)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        """As the fixtures were made."""
        self.switch(SETUP)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Adds up setup, call and teardown."""
        self.seconds[report.nodeid] += report.duration
        if report.failed:
            self.failed.append(report.nodeid)


class Trial:
    """A pytest plugin that runs the chosen tests in their order and ends the process when one takes too long."""

    def __init__(self, order: Sequence[str], known: Mapping[str, float], note: Path) -> None:
        self.order, self.known, self.note = {name: place for place, name in enumerate(order)}, known, note

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Tests under names that the sound source does not have are kept: a mistake may rename them."""
        kept = [item for item in items if item.nodeid in self.order or item.nodeid not in self.known]
        items[:] = sorted(kept, key=lambda item: self.order.get(item.nodeid, len(self.order)))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        """Ends a test that takes far longer than before."""
        self.note.write_text(item.nodeid)
        signal.signal(signal.SIGALRM, lambda *_: os._exit(TIME_OUT))
        signal.setitimer(signal.ITIMER_REAL, PATIENCE_S + 10 * self.known.get(item.nodeid, PATIENCE_S))
        try:
            return (yield)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


def fork(source: Path, slot: Path, place: Place, task: Callable[[], int]) -> int:
    """Do a task in a child that imports the package from `source`; gives the child's process id."""
    slot.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if child:
        return child
    code = BROKEN
    try:
        os.setsid()
        os.chdir(place.root)
        log = os.open(slot / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1), os.dup2(log, 2)
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
        os.environ |= {"PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1", "COVERAGE_CORE": "ctrace"}
        sys.dont_write_bytecode = True
        sys.path[:0] = [str(source)]
        code = task()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def tested(place: Place, slot: Path, files: Iterable[str], plugin: object, *more: str) -> int:
    """Run pytest in this process."""
    with contextlib.suppress(ImportError):
        from hypothesis import settings

        # The examples that one mutant failed on must not wait for the next one.
        settings.register_profile("mutate", database=None, derandomize=True, deadline=None)
        settings.load_profile("mutate")
    options = ["-q", "-p", "no:cacheprovider", f"--rootdir={place.root}", f"--basetemp={slot / 'tmp'}"]
    return int(pytest.main([*options, *more, *files], plugins=[plugin]))


def measure(place: Place, slot: Path, file: str, into: Path) -> int:
    """Run one test file on the sound source and write its `Measured`."""
    import coverage

    source = place.root / "src"
    cover = coverage.Coverage(data_file=None, include=[f"{source / place.package}/*"], config_file=False)
    cover.start()
    watch = Watch(cover.switch_context)
    code = tested(place, slot, [file], watch)
    cover.stop()
    data, lines = cover.get_data(), dict[str, dict[str, list[str]]]()
    for name in data.measured_files():
        reached = {str(line): [c for c in found if c] for line, found in data.contexts_by_lineno(name).items()}
        lines[str(Path(name).relative_to(place.root))] = {line: found for line, found in reached.items() if found}
    if code in (0, 1, 5):
        into.write_text(json.dumps({"seconds": watch.seconds, "lines": lines, "failed": watch.failed}))
    return 0 if code in (0, 1, 5) else code


@dataclass
class Child:
    """A process at work in a slot, until `deadline`; `done` gets its exit code."""

    slot: int
    deadline: float
    done: Callable[[int], None]


def pool(jobs: int, tasks: Iterable[Task]) -> None:
    """Keep `jobs` children busy. A task is given a free slot, starts a child there and says how long it may take."""
    waiting, busy, free = iter(tasks), dict[int, Child](), list(range(jobs))
    try:
        while True:
            while free and (task := next(waiting, None)) is not None:
                slot = free.pop()
                child, seconds, done = task(slot)
                busy[child] = Child(slot, time.monotonic() + seconds, done)
            if not busy:
                return
            for child, code in _ended(busy):
                about = busy.pop(child)
                free.append(about.slot)
                about.done(code)
            time.sleep(0.02)
    finally:
        for child in busy:
            _end(child)


def _ended(busy: Mapping[int, Child]) -> list[tuple[int, int]]:
    """Children that are done or late, with their exit codes."""
    found = []
    for child, about in busy.items():
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended or time.monotonic() > about.deadline:
            _end(child)
            found.append((child, os.waitstatus_to_exitcode(status) if ended else TIME_OUT))
    return found


def _end(child: int) -> None:
    """End a child and what it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(child, 0)


def baseline(place: Place, folders: Sequence[str], jobs: int) -> dict[str, Measured]:
    """Every test file's measurement, taken again where the file, the source or what tests share has changed."""
    files = place.files(folders)
    tests = [file for file in files if Path(file).name.startswith("test_")]
    common = [*place.files([f"src/{place.package}"]),
              *(file for file in place.files(["tests"]) if not Path(file).name.startswith("test_"))]  # fmt: skip
    state = hashlib.sha256(b"".join((place.root / file).read_bytes() for file in common))
    paths, broken = {}, list[str]()
    for file in tests:
        name = digest(state.digest() + file.encode() + (place.root / file).read_bytes())
        paths[file] = place.work / "baseline" / f"{name}.json"
    missing = [file for file in tests if not paths[file].exists()]

    def task(file: str) -> Task:
        def begin(number: int) -> tuple[int, float, Callable[[int], None]]:
            print(f"measure {file}", flush=True)
            slot = place.work / f"slot-{number}"
            child = fork(place.root / "src", slot, place, lambda: measure(place, slot, file, paths[file]))
            return child, 3600, lambda code: broken.append(f"{file} ({slot / 'log.txt'})") if code else None

        return begin

    (place.work / "baseline").mkdir(parents=True, exist_ok=True)
    pool(jobs, map(task, missing))
    if broken:
        sys.exit(f"these cannot be run on the sound source: {', '.join(broken)}")
    known = {file: Measured(**json.loads(path.read_text())) for file, path in paths.items()}
    for name in (name for one in known.values() for name in one.failed):
        print(f"left out, as it fails on the sound source: {name}")
    return known


def order(place: Place, known: Mapping[str, Measured], mutant: Mutant, budget_s: float) -> tuple[list[str], int]:
    """The tests that a mutant meets, in their order, and how many are left out because the budget is spent."""
    lines = range(mutant.first, mutant.last + 1)
    names = set() if mutant.at_import else {n for one in known.values() for n in one.at(mutant.path, lines)}
    if not names:
        mirror = Path("tests", *Path(mutant.path).parts[2:]).with_suffix("")
        near = (f"{mirror.parent}/" if mirror.parent != Path("tests") else f"{mirror.parent}/test_{mirror.name}.py",)
        names = {name for one in known.values() for name in one.at(mutant.path, None)}
        names |= {name for file, one in known.items() if file.startswith(near) for name in one.seconds}
    names -= {name for one in known.values() for name in one.failed}
    seconds = {name: one.seconds[name] for one in known.values() for name in one.seconds if name in names}
    quick = sorted(names, key=lambda name: (seconds[name], name))
    taken, spent = list[str](), 0.0
    for name in quick:
        if taken and spent + seconds[name] > budget_s:
            break
        taken.append(name)
        spent += seconds[name]
    # The quickest ones, then file by file, so that what a file's fixtures make is made once.
    of = {name: name.split("::")[0] for name in taken}
    cost = dict.fromkeys(of.values(), 0.0)
    for name in taken:
        cost[of[name]] += seconds[name]
    first = sorted(taken[:FIRST], key=lambda name: of[name])
    return first + sorted(taken[FIRST:], key=lambda n: (cost[of[n]], of[n], seconds[n])), len(quick) - len(taken)


def met(place: Place, slot: Path, chosen: Sequence[str], seconds: Mapping[str, float], note: Path) -> int:
    """Run a mutant's tests until one fails: the quickest first, so that most need not collect all files."""
    for names in (chosen[:FIRST], chosen[FIRST:]):
        files = list(dict.fromkeys(name.split("::")[0] for name in names))
        code = tested(place, slot, files, Trial(names, seconds, note), "-x") if files else 0
        if code not in (0, 5):
            return code
    return 0


def attempt(
    place: Place,
    known: Mapping[str, Measured],
    mutant: Mutant,
    budget_s: float,
    write: Callable[[dict[str, Any]], None],
) -> Task:
    """A task for `pool`: run a mutant's tests and write its line."""
    chosen, left = order(place, known, mutant, budget_s)
    seconds = {name: spent for one in known.values() for name, spent in one.seconds.items()}
    start = time.monotonic()

    def begin(number: int) -> tuple[int, float, Callable[[int], None]]:
        slot = place.work / f"slot-{number}"
        source = copied(place, slot)
        target, note = slot / mutant.path, slot / "running.txt"
        sound = (place.root / mutant.path).read_bytes()
        target.write_bytes(mutant.applied(sound))
        note.write_text("collection")
        child = fork(source, slot, place, lambda: met(place, slot, chosen, seconds, note))

        def done(code: int) -> None:
            target.write_bytes(sound)
            outcome = "killed" if code else "survived"
            by = "time-out of " * (code == TIME_OUT) + note.read_text() if outcome == "killed" else ""
            text = sound.splitlines()[mutant.line - 1].decode().strip()
            write({"id": mutant.id, "path": mutant.path, "line": mutant.line, "text": text, "before": mutant.before,
                   "after": mutant.after, "outcome": outcome, "by": by, "tests": len(chosen), "left_out": left,
                   "seconds": round(time.monotonic() - start, 1)})  # fmt: skip

        return child, 60 + 5 * sum(seconds[name] for name in chosen), done

    return begin


def copied(place: Place, slot: Path) -> Path:
    """A slot's own copy of the source, compiled once so that children need not."""
    source = slot / "src"
    mark, state = slot / "copied.txt", "".join(digest((place.root / f).read_bytes()) for f in place.files(["src"]))
    if not mark.exists() or mark.read_text() != state:
        shutil.rmtree(source, ignore_errors=True)
        shutil.copytree(place.root / "src", source, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        # By content, as a mutant may have the size and the second of the sound file.
        command = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "checked-hash", str(source)]
        subprocess.run(command, check=True)
        mark.write_text(state)
    return source
