"""Points of a run played by several processes; each has its own CLIP and its own activations.

A process that is killed takes its workers with it, and a point is locked by who plays it, so that a run that is taken
up again finds every finished point and nobody else at work.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from queue import Empty
from typing import Any

from fedvlm.errors import FedvlmError, StorageError
from fedvlm.experiment import Experiment, parse
from fedvlm.runs.failure import Failure, Failures, attempt
from fedvlm.runs.machine import Machine
from fedvlm.runs.progress import Reporter

Chunk = tuple[int, list[str]]
"""A seed and names of methods to be played with it, one after another, in one process."""


def chunks(left: Mapping[int, Sequence[str]], processes: int) -> list[Chunk]:
    """Whole seeds for as long as they keep every process busy; the rest are split evenly.

    A seed's images are drawn and encoded by every process that plays any of its points.
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
News = tuple[PointKey | None, Failure | None]
"""A point that is over, failed or not; without a place, why a worker could not begin or nothing more can be kept."""


Work = Callable[[Experiment, Path, Machine], Callable[[int, str], None]]
"""Opens a run in a process of its own, and gives what runs one of its points."""


def run_points(
    experiment: Experiment, folder: Path, todo: Sequence[Chunk], reporter: Reporter, processes: int, machine: Machine,
    work: Work,
) -> Failures:  # fmt: skip
    """Run all chunks, and give what failed, after all others have been run.

    All processes compute as `machine` says: with other threads they would give other bytes. `work` is a function of a
    module, as processes find it by its name.
    """
    context = multiprocessing.get_context("spawn")
    waiting, news = context.Queue(), context.Queue()
    for chunk in todo:
        waiting.put(chunk)
    arguments = (work, experiment.resolved(), str(folder), machine, waiting, news, os.getpid())
    team = [context.Process(target=_worker, args=arguments, daemon=True) for _ in range(min(processes, len(todo)))]
    for worker in team:
        worker.start()
    try:
        return _await(team, news, reporter, sum(len(names) for _, names in todo))
    finally:
        for worker in team:
            worker.terminate()
            worker.join()


def _await(team: Sequence[Any], news: Any, reporter: Reporter, points: int) -> Failures:
    failed, begun, idle, over = Failures(), time.monotonic(), list[str](), 0
    while over < points:
        try:
            place, failure = news.get(timeout=1)
        except Empty:
            if not any(worker.is_alive() for worker in team):
                why = "".join(f"\n{words}" for words in idle)
                raise FedvlmError(f"all workers ended before their points: run again to continue{why}") from None
            continue
        if place is None:
            idle.append(failure.message)
            reporter.warn(f"a worker ended: {failure.message}")
            continue
        seed, name = place
        over += 1
        if failure is None:
            reporter.info(f"seed {seed} {name} done ({over}/{points}, {time.monotonic() - begun:,.0f} s)")
        else:
            failed.setdefault(name, {})[seed] = failure
            reporter.warn(f"seed {seed} {name}: {failure.message}")
    return failed


def _worker(
    work: Work, settings: dict[str, Any], folder: str, machine: Machine, waiting: Any, news: Any, parent: int
) -> None:
    """Run chunks until there are none. Ends when the parent does, however that ended."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's to tell
    try:
        point = work(parse(settings), Path(folder), machine)
    except Exception as error:  # the others take its points
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
            except StorageError as error:  # nobody can keep anything: the run ends when all have found out
                news.put((None, Failure(str(error), False)))
                return


def _end_with(parent: int) -> None:
    """A killed parent cannot end its children: they look after it themselves."""
    while os.getppid() == parent:
        time.sleep(0.3)
    os._exit(1)
