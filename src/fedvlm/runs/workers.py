"""Worker processes that run the points of a run; each has its own CLIP and its own activations.

Workers end when their parent is killed, and a worker locks the point that it runs. A resumed run therefore finds every
finished point, and no other process at work.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from queue import Empty
from typing import Any

from fedvlm.errors import FedvlmError, StorageError
from fedvlm.experiment import Experiment, parse
from fedvlm.runs.failure import Failure, Failures, attempt
from fedvlm.runs.machine import Machine
from fedvlm.runs.progress import PointReporter, Reporter, Shown

Chunk = tuple[int, list[str]]
"""A seed and names of methods, which one process runs one after another."""


def chunks(left: Mapping[int, Sequence[str]], processes: int) -> list[Chunk]:
    """Whole seeds as long as there are enough for every process; the remaining seeds are split evenly.

    Every process that runs a point of a seed draws and encodes the images of that seed.
    """
    seeds = [seed for seed, names in left.items() if names]
    whole = len(seeds) - len(seeds) % processes
    result = [(seed, list(left[seed])) for seed in seeds[:whole]]
    for seed in seeds[whole:]:
        parts = [list(left[seed][start::processes]) for start in range(processes)]
        result += [(seed, part) for part in parts if part]
    return result


PointKey = tuple[int, str]
"""A seed and a method's name."""
News = tuple[PointKey | None, Shown | Failure | None]
"""A point's finished round; a finished point and its failure, if any; without a point, why a worker has ended."""


Work = Callable[[Experiment, Path, Machine, Reporter], Callable[[int, str], None]]
"""Opens a run in a worker process; returns the function that runs one of its points."""


class _Relay(Reporter):
    """A worker's reporter: its parent tells of the rounds."""

    def __init__(self, news: Any) -> None:
        super().__init__(quiet=True)
        self.news = news

    def point(self, method: str, seed: int, rounds: int, done: int) -> PointReporter:
        """The reporter of one method and seed."""
        return _RelayedPoint(self, (seed, method), rounds, done)


class _RelayedPoint(PointReporter):
    def __init__(self, relay: _Relay, place: PointKey, rounds: int, done: int) -> None:
        super().__init__(relay, "", rounds, done)
        self.place, self.news = place, relay.news

    def show(self, shown: Shown) -> None:
        """Send the news to the parent."""
        self.news.put((self.place, shown))


def run_points(
    experiment: Experiment, folder: Path, todo: Sequence[Chunk], reporter: Reporter, processes: int, machine: Machine,
    work: Work,
) -> Failures:  # fmt: skip
    """Run all chunks in worker processes; returns the failures.

    All processes use the threads of `machine`, because other numbers of threads would give other bytes. `work` must be
    a function of a module, because processes import it by name.
    """
    context = multiprocessing.get_context("spawn")
    waiting, news = context.Queue(), context.Queue()
    for chunk in todo:
        waiting.put(chunk)
    arguments = (work, experiment.resolved(), str(folder), machine, waiting, news, os.getpid())
    team = [context.Process(target=_worker, args=arguments, daemon=True) for _ in range(min(processes, len(todo)))]
    try:
        with _without_interrupts():
            for worker in team:
                worker.start()
        return _await(team, news, reporter, sum(len(names) for _, names in todo))
    finally:
        for worker in team:
            if worker.pid is not None:
                worker.terminate()
                worker.join()


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Hold Ctrl-C back: processes started here inherit that, or they would answer it while they still import torch."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _await(team: Sequence[Any], news: Any, reporter: Reporter, points: int) -> Failures:
    failed, begun, idle, over = Failures(), time.monotonic(), list[str](), 0
    bars: dict[PointKey, PointReporter] = {}
    last: dict[PointKey, str] = {}
    while over < points:
        try:
            place, what = news.get(timeout=1)
        except Empty:
            if not any(worker.is_alive() for worker in team):
                why = "".join(f"\n{words}" for words in idle)
                raise FedvlmError(f"all workers ended before their points: run again to continue{why}") from None
            continue
        if place is None:
            idle.append(what.message)
            reporter.warn(f"a worker ended: {what.message}")
            continue
        seed, name = place
        if isinstance(what, Shown):
            last[place] = what.news
            if reporter.moving:  # elsewhere the lines of several points would be mixed
                if place not in bars:
                    bars[place] = reporter.point(name, seed, what.rounds, 0)
                bars[place].show(what)
            continue
        over += 1
        if place in bars:
            bars.pop(place).drop()
        if what is None:
            spent = f"({over}/{points}, {time.monotonic() - begun:,.0f} s)"
            reporter.info(f"seed {seed} {name} done {spent}  {last.pop(place, '')}".rstrip())
        else:
            failed.setdefault(name, {})[seed] = what
            reporter.warn(f"seed {seed} {name}: {what.message}")
    return failed


def _worker(
    work: Work, settings: dict[str, Any], folder: str, machine: Machine, waiting: Any, news: Any, parent: int
) -> None:
    """Run chunks until none is left. The worker ends when its parent has ended for any reason."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles interrupts
    try:
        point = work(parse(settings), Path(folder), machine, _Relay(news))
    except Exception as error:  # other workers run its points
        news.put((None, Failure(f"{type(error).__name__}: {error}", False)))
        return
    while True:
        try:
            seed, names = waiting.get(timeout=1)
        except Empty:
            return
        for name in names:
            try:
                news.put(((seed, name), attempt(partial(point, seed, name))))
            except StorageError as error:  # no result can be stored: the run ends when all workers have ended
                news.put((None, Failure(str(error), False)))
                return


def _end_with(parent: int) -> None:
    """End this process when its parent has ended: a killed parent cannot end its children."""
    while os.getppid() == parent:
        time.sleep(0.3)
    os._exit(1)
