"""Run an experiment: every method with every seed, on the same clients, in one run folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from fedvlm import durable, faults, methods
from fedvlm.data import Federation
from fedvlm.data.picture import draw_partition
from fedvlm.errors import listed
from fedvlm.experiment import Experiment
from fedvlm.federation import setup, simulation
from fedvlm.federation.setup import Loaded, SeedSetup
from fedvlm.federation.simulation import Simulation
from fedvlm.methods import Method
from fedvlm.runs import chance, contract, machine, workers
from fedvlm.runs.failure import Failure, Failures, attempt
from fedvlm.runs.folder import Point, RunFolder, results_version
from fedvlm.runs.machine import Machine
from fedvlm.runs.progress import Reporter
from fedvlm.runs.result import PointResult, summarise
from fedvlm.runs.results import Points, Results
from fedvlm.training.device import explain_memory_errors

Beside = Callable[[Path], AbstractContextManager[object]]
"""What goes on beside a run: entered with the run folder when that is open, left when the run has ended or died."""


@dataclass
class _Run:
    loaded: Loaded
    folder: RunFolder
    reporter: Reporter
    methods: dict[str, Method]
    """By label."""
    labels: dict[str, str]
    machine: Machine = field(init=False)
    failed: Failures = field(default_factory=dict)

    @property
    def experiment(self) -> Experiment:
        """The settings of the run."""
        return self.loaded.experiment

    def compute(self, machine: Machine) -> None:
        """Use the threads and clients per step of `machine` from now on."""
        self.machine = machine
        torch.set_num_threads(machine.threads)


def run(
    experiment: Experiment,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
    processes: int = 1,
    beside: Beside = nullcontext,
) -> Results:
    """Run (or with `resume` continue) an experiment in its folder; the same settings give the same bytes.

    Points (a method with a seed) may run in several processes at once; a point that fails does not stop the others.
    Raises `FedvlmError` for settings, data or weights that cannot be used, before any training.
    """
    folder = RunFolder(out)
    with ExitStack() as stack:
        begun = {} if overwrite else folder.machine()
        opened = _open(experiment, folder, reporter or Reporter(quiet=True))
        clip = opened.loaded.clip
        opened.compute(
            machine.choose_machine(experiment.compute, opened.loaded.device, clip.text.width, begun, processes)
        )
        stack.enter_context(folder.locked())
        folder.check(experiment, clip, resume=resume, overwrite=overwrite)
        for seed in () if overwrite else experiment.seeds:
            for name in opened.methods:
                _check_settings(opened, seed, name, write=False)
        # Deal the data of every seed, and build all methods, before anything is deleted or trained.
        for seed in experiment.seeds:
            opened.loaded.federation(seed)
        said, terms = _contract(opened, opened.loaded.seed(experiment.seeds[0]))
        changed = folder.open(experiment, clip, opened.machine, resume=resume, overwrite=overwrite)
        stack.enter_context(beside(folder.path))
        for seed in experiment.seeds:
            _save_partition(opened, seed, opened.loaded.federation(seed))
        stack.enter_context(opened.reporter)
        if changed:
            what = listed(changed)
            opened.reporter.warn(f"the run was begun elsewhere or with other versions ({what}): results may differ")
        if crowded := machine.crowding_warning(opened.machine, processes):
            opened.reporter.warn(crowded)
        _announce(opened, said, terms)
        points = _run_points(opened, processes)
        return Results(experiment, folder.path, points, opened.failed, said, opened.labels)


@dataclass(frozen=True)
class Preview:
    """The contract of a run, as text and by method, and notes on its data."""

    text: str
    terms: list[contract.MethodTerms]
    notes: list[str]


def preview(experiment: Experiment, out: Path) -> Preview:
    """What a run in this folder would be. All is loaded and dealt, and nothing is written.

    Raises `FedvlmError` as `run` does before it trains.
    """
    opened = _open(experiment, RunFolder(out), Reporter(quiet=True))
    opened.compute(machine.choose_machine(experiment.compute, opened.loaded.device, opened.loaded.clip.text.width))
    for seed in experiment.seeds:
        opened.loaded.federation(seed)
    first = opened.loaded.seed(experiment.seeds[0])
    return Preview(*_contract(opened, first), list(first.federation.notes))


def _open(experiment: Experiment, folder: RunFolder, reporter: Reporter) -> _Run:
    """Load everything that a process needs once."""
    faults.check(experiment)
    made = {name: methods.build(name, experiment.method) for name in experiment.methods}
    # From here on a method with faults is called by its label, in folders, tables, figures and results.
    labels = {name: faults.method_label(name, method, experiment) for name, method in made.items()}
    by_label = {labels[name]: method for name, method in made.items()}
    return _Run(setup.load(experiment), folder, reporter, by_label, labels)


def _run_points(run: _Run, processes: int) -> Points:
    """Run all unfinished points; returns the results by method and seed."""
    seeds, names = run.experiment.seeds, list(run.methods)
    left = {seed: [name for name in names if run.folder.point(seed, name).result() is None] for seed in seeds}
    if processes > 1 and any(left.values()):
        todo = workers.chunks(left, processes)
        run.failed = workers.run_points(
            run.experiment, run.folder.path, todo, run.reporter, processes, run.machine, open_worker
        )
    points: Points = {name: {} for name in names}
    # Seed by seed, because a seed's images are drawn and encoded once for all methods.
    for seed in seeds:
        for name in names:
            if seed not in run.failed.get(name, {}) and (found := _attempt_point(run, seed, name)):
                points[name][seed] = found
    return points


def _attempt_point(run: _Run, seed: int, name: str) -> PointResult | None:
    """Run a point; returns None if it failed, after recording and printing the failure."""
    found = attempt(partial(_finish_point, run, seed, name))
    if not isinstance(found, Failure):
        return found
    run.failed.setdefault(name, {})[seed] = found
    run.reporter.warn(f"seed {seed} {name}: {found.message}")
    return None


def open_worker(
    experiment: Experiment, folder: Path, machine: Machine, reporter: Reporter
) -> Callable[[int, str], None]:
    """Open a run in a worker process; returns the function that runs one of its points."""
    opened = _open(experiment, RunFolder(folder), reporter)
    opened.compute(machine)
    return lambda seed, name: (_finish_point(opened, seed, name), None)[1]


def _save_partition(run: _Run, seed: int, federation: Federation) -> None:
    """Save the partition and its picture. Raises `FedvlmError` if a resumed run has another partition."""
    folder = run.folder.path / f"seed-{seed}"
    saved = folder / "partition.json"
    if not saved.exists():
        draw_partition(federation, folder / "partition.png")
        durable.write_json(saved, federation.to_json(), private=True)
        return
    run.folder.check_partition(seed, federation)
    for file in (saved, folder / "partition.png"):
        durable.keep_private(file)


def _contract(run: _Run, seed: SeedSetup) -> tuple[str, list[contract.MethodTerms]]:
    """The text of the contract, and the contract of each method."""
    runs = {name: _simulation(run, seed, name) for name in run.methods}
    lines = [contract.method_terms(name, each) for name, each in runs.items()]
    place, clip = run.folder.path, run.loaded.clip
    return contract.contract_text(run.experiment, clip, seed.federation, lines, _fault_lines(runs), place), lines


def _announce(run: _Run, text: str, lines: Sequence[contract.MethodTerms]) -> None:
    """Print and store the contract; print notes on the data, and whether zero-shot is above chance."""
    seed = run.loaded.seed(run.experiment.seeds[0])
    durable.write_text(run.folder.path / "contract.txt", text + "\n")
    durable.write_json(run.folder.path / "contract.json", [vars(line) for line in lines])
    run.reporter.info(text)
    run.reporter.info()
    for note in seed.federation.notes:
        run.reporter.warn(note)
    found, count, classes = chance.zero_shot_check(run.loaded.clip, seed.federation, seed.activations, run.experiment)
    run.reporter.info(f"zero-shot on {count} sampled base images: {found:.1%} (chance {1 / classes:.1%})")
    if found < chance.chance_threshold(count, classes):
        run.reporter.warn(chance.AT_CHANCE)
    run.reporter.info()


def _fault_lines(runs: Mapping[str, Simulation]) -> dict[str, list[str]]:
    """Descriptions of the faults of every method that has any."""
    known = faults.all_faults()
    return {name: [f"{fault}: {known[fault].title}" for fault in r.faults] for name, r in runs.items() if r.faults}


def _simulation(run: _Run, seed: SeedSetup, name: str) -> Simulation:
    """The simulation of a method with a seed, with its faults."""
    method = run.methods[name]
    built = faults.FaultSet(method, run.experiment)
    dealt = built.federation(seed.federation, seed.seed)
    right = setup.simulation(run.loaded, seed, method, federation=dealt, clients_per_step=run.machine.clients_per_step)
    return built.simulation(right)


def _finish_point(run: _Run, seed: int, name: str) -> PointResult:
    """Run or continue one method with one seed; every round is logged and stored."""
    point = run.folder.point(seed, name)
    with point.locked():
        _check_settings(run, seed, name, write=True)
        with explain_memory_errors(name):
            return point.result() or _run_point(run, run.loaded.seed(seed), name, point)


def _check_settings(run: _Run, seed: int, name: str, *, write: bool) -> None:
    """Raise `FedvlmError` if the point was made with other settings of its method."""
    method = run.methods[name]
    wrong = [fault.name for fault in faults.select_faults(method, run.experiment)]
    settings = method.config.dump() | ({"faults": wrong} if wrong else {})
    run.folder.point(seed, name).check_settings(method.name, settings, results_version(run.experiment), write=write)


def _run_point(run: _Run, seed: SeedSetup, name: str, point: Point) -> PointResult:
    made = _simulation(run, seed, name)
    seed.activations.prepare(setup.prefetch_keys(made), made.site.base.entry)
    checkpoint = point.checkpoint(int(run.experiment.compute.client_cache_gib * setup.GIB))
    # State that faults pass from client to client is not stored, so such a point starts from its first round.
    saved = None if made.faults else checkpoint.load()
    state, length = saved or (simulation.start(made, checkpoint.empty_clients()), 0)
    durable.truncate(point.ledger, length)
    progress = run.reporter.point(name, seed.seed, made.spec.last_round, state.round)
    try:
        for state, record in simulation.run_rounds(made, state):  # noqa: B020
            checkpoint.save(state, point.log(record))
            progress.round(record)
    finally:
        progress.close()
    return point.finish(summarise(made, state, point.records()))
