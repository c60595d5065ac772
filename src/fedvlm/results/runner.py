"""Running an experiment: every method with every seed on the same clients, into one run folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fedvlm import clip as clips
from fedvlm import durable, faults, methods
from fedvlm.clip import FrozenCLIP, preprocess
from fedvlm.data import Federation, Source, federate, load_source, validated
from fedvlm.data.picture import draw_partition
from fedvlm.errors import FedvlmError, listed
from fedvlm.experiment import Experiment, ScenesData
from fedvlm.federation import engine
from fedvlm.federation.client import Task
from fedvlm.methods import Method
from fedvlm.methods.zero_shot import ZeroShot
from fedvlm.results import chance, contract, failure, figure, machine, summary, table, workers
from fedvlm.results.failure import Failure, Failures, attempt, enough_memory
from fedvlm.results.folder import Point, RunFolder, results
from fedvlm.results.machine import Machine
from fedvlm.results.progress import Reporter
from fedvlm.streams import torch_stream
from fedvlm.training import device as devices
from fedvlm.training.activations import TEST, Activations, Key
from fedvlm.training.device import Device
from fedvlm.training.evaluation import Bench, Tuners
from fedvlm.training.store import DTYPES, Store, folder

GIB = 2**30


@dataclass(frozen=True)
class Results:
    """What `fedvlm.run` gives back: the folder, the rows of the table, every finished point's result.

    A method of which a seed failed has no row; `failed` says why. `late`: the rows of the clients that joined after the
    last round. `contract`: what was said before training (also `contract.txt` in the folder).
    """

    folder: Path
    rows: list[table.Row]
    points: dict[str, dict[int, dict[str, Any]]]
    late: list[table.Row]
    failed: Failures
    contract: str

    @property
    def complete(self) -> dict[str, dict[int, dict[str, Any]]]:
        """The points of the methods that have a result with every seed."""
        return {name: by_seed for name, by_seed in self.points.items() if name not in self.failed}


@dataclass
class _Scene:
    """What all points of one seed share."""

    seed: int
    federation: Federation
    validation: Federation | None
    """The same clients with validation images to be evaluated on."""
    activations: Activations
    zero: Tuners


@dataclass
class _Run:
    experiment: Experiment
    folder: RunFolder
    reporter: Reporter
    clip: FrozenCLIP
    device: Device
    methods: dict[str, Method]
    machine: Machine = field(init=False)
    source: Source | None = None
    dealt: dict[int, Federation] = field(default_factory=dict)
    """By seed."""
    activations: Activations | None = None
    scene: _Scene | None = None
    """Of the seed that was played last."""
    failed: Failures = field(default_factory=dict)

    def compute(self, machine: Machine) -> None:
        """Compute as it says from here on."""
        self.machine = machine
        torch.set_num_threads(machine.threads)


def run(
    experiment: Experiment,
    out: Path | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
    processes: int = 1,
) -> Results:
    """Run (or with `resume` finish) an experiment and write its folder; the same settings give the same bytes.

    Points (a method with a seed) may be played by several processes at once. One that fails costs no other. Raises
    `FedvlmError` for settings, data or weights that cannot be used, before anything is trained, and if no method has a
    result with every seed.
    """
    folder = RunFolder(out or Path("runs") / f"{experiment.name}-{experiment.digest()[:8]}")
    with ExitStack() as stack:
        begun = {} if overwrite else folder.machine()
        opened = _opened(experiment, folder, reporter or Reporter(quiet=True))
        opened.compute(machine.decide(experiment.compute, opened.device, opened.clip.text.width, begun, processes))
        stack.enter_context(folder.locked())
        folder.check(experiment, opened.clip, resume=resume, overwrite=overwrite)
        for seed in () if overwrite else experiment.seeds:
            for name in opened.methods:
                _claim(opened, seed, name, write=False)
        # Before anything is deleted or trained: data that can be dealt with every seed, methods that fit the CLIP.
        for seed in experiment.seeds:
            _federation(opened, seed)
        said, terms = _contract(opened, _scene(opened, experiment.seeds[0]))
        changed = folder.open(experiment, opened.clip, opened.machine, resume=resume, overwrite=overwrite)
        for seed in experiment.seeds:
            _save(opened, seed, _federation(opened, seed))
        stack.enter_context(opened.reporter)
        if changed:
            what = listed(changed)
            opened.reporter.warn(f"the run was begun elsewhere or with other versions ({what}): results may differ")
        if crowded := machine.crowded(opened.machine, processes):
            opened.reporter.warn(crowded)
        _announce(opened, said, terms)
        return _written(opened, _play(opened, processes), said)


def _opened(experiment: Experiment, folder: RunFolder, reporter: Reporter) -> _Run:
    """Everything that is loaded once in a process."""
    for what, given in (("methods", experiment.methods), ("seeds", experiment.seeds)):
        twice = [each for place, each in enumerate(given) if each in given[:place]]
        if twice:
            raise FedvlmError(f"setting '{what}' names {listed(twice)} twice")
    methods.check(experiment.method)
    faults.check(experiment)
    made = {name: methods.build(name, experiment.method) for name in experiment.methods}
    # A method with faults has them in its name from here on: in folders, tables, figures and results.
    chosen = {faults.label(name, method, experiment): method for name, method in made.items()}
    place = devices.choose(experiment.compute)
    model = experiment.model
    clip = clips.load(model.name, revision=model.revision, offline=model.offline).to(place.device)
    if not isinstance(experiment.data, ScenesData):
        clip.preprocess = preprocess.chosen(clip.preprocess, experiment.data.preprocess)
    return _Run(experiment, folder, reporter, clip, place, chosen)


def _play(run: _Run, processes: int) -> dict[str, dict[int, dict[str, Any]]]:
    """Every finished point's result, by method and seed."""
    seeds, names = run.experiment.seeds, list(run.methods)
    left = {seed: [name for name in names if run.folder.point(seed, name).result() is None] for seed in seeds}
    if processes > 1 and any(left.values()):
        todo = workers.chunks(left, processes)
        run.failed = workers.play(run.experiment, run.folder.path, todo, run.reporter, processes, run.machine)
    points: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in names}
    # Seed by seed: a seed's images are drawn and encoded once for all methods.
    for seed in seeds:
        for name in names:
            if seed not in run.failed.get(name, {}) and (found := _tried(run, seed, name)):
                points[name][seed] = found
    if run.failed.keys() == points.keys():
        raise FedvlmError("\n".join(["no method has a result with every seed:", *failure.told(run.failed)]))
    return points


def _tried(run: _Run, seed: int, name: str) -> dict[str, Any] | None:
    """A point's result; None if it failed, which is remembered and told."""
    found = attempt(partial(_point, run, seed, name))
    if not isinstance(found, Failure):
        return found
    run.failed.setdefault(name, {})[seed] = found
    run.reporter.warn(f"seed {seed} {name}: {found.message}")
    return None


def work(experiment: Experiment, folder: Path, machine: Machine) -> Callable[[int, str], None]:
    """What another process does with its points of a run whose folder is open: play them one after another."""
    opened = _opened(experiment, RunFolder(folder), Reporter(quiet=True))
    opened.compute(machine)
    return lambda seed, name: (_point(opened, seed, name), None)[1]


def _scene(run: _Run, seed: int) -> _Scene:
    """What the points of a seed share."""
    if run.scene is not None and run.scene.seed == seed:
        return run.scene
    federation = _federation(run, seed)
    if run.activations is None or run.activations.records is not federation.source.records:
        run.activations = _activations(run.clip, federation.source, run.device, run.experiment)
    validation = validated(federation.source, run.experiment, seed)
    run.scene = _Scene(seed, federation, validation, run.activations, _tuners(run, ZeroShot(), federation))
    return run.scene


def _federation(run: _Run, seed: int) -> Federation:
    """The data dealt with a seed; drawn scenes are others with each."""
    settings = run.experiment
    if seed in run.dealt:
        return run.dealt[seed]
    if run.source is None or isinstance(settings.data, ScenesData):
        with enough_memory("data"):
            run.source = load_source(settings.data, seed, is_kept=settings.compute.disk_gib > 0)
    return run.dealt.setdefault(seed, federate(run.source, settings, seed))


def _save(run: _Run, seed: int, federation: Federation) -> None:
    """Keep who has which images, with a picture; where a run is taken up again, it must be the same."""
    folder = run.folder.path / f"seed-{seed}"
    saved = folder / "partition.json"
    if not saved.exists():
        draw_partition(federation, folder / "partition.png")
        durable.write_json(saved, federation.to_json(), private=True)
        return
    if Federation.from_json(federation.source, durable.read_json(saved)).digest() != federation.digest():
        raise FedvlmError(
            f"{saved} is not the partition these settings and versions give (clients of a domain, for one, are called "
            "after it now): start again in another folder, or with --overwrite"
        )
    for file in (saved, folder / "partition.png"):
        durable.keep_private(file)


def _tuners(run: _Run, method: Method, federation: Federation) -> Tuners:
    template = run.experiment.evaluation.template
    base = method.tuner(run.clip, federation.base_names, template)
    return base, method.tuner(run.clip, federation.novel_names, template) if federation.novel else None


def _activations(clip: FrozenCLIP, source: Source, device: Device, settings: Experiment) -> Activations:
    compute = settings.compute
    store = Store(folder(), int(compute.disk_gib * GIB)) if compute.disk_gib else None
    return Activations(clip, source.records, device, int(compute.cache_gib * GIB), store, DTYPES[compute.kept_as])


def _contract(run: _Run, scene: _Scene) -> tuple[str, list[contract.Terms]]:
    """What is said before training, and each method's line of it."""
    tasks = {name: _task(run, scene, name) for name in run.methods}
    lines = [contract.terms(name, task) for name, task in tasks.items()]
    return contract.text(run.experiment, run.clip, scene.federation, lines, _wrong(tasks), run.folder.path), lines


def _announce(run: _Run, text: str, lines: Sequence[contract.Terms]) -> None:
    """Say and keep the contract, tell what the data could not satisfy, and whether zero-shot is above chance."""
    scene = _scene(run, run.experiment.seeds[0])
    durable.write_text(run.folder.path / "contract.txt", text + "\n")
    durable.write_json(run.folder.path / "contract.json", [vars(line) for line in lines])
    run.reporter.say(text)
    run.reporter.say()
    for note in scene.federation.notes:
        run.reporter.warn(note)
    found, count, classes = chance.zero_shot_check(run.clip, scene.federation, scene.activations, run.experiment)
    run.reporter.say(f"zero-shot on {count} sampled base images: {found:.1%} (chance {1 / classes:.1%})")
    if found < chance.above_chance(count, classes):
        run.reporter.warn(chance.AT_CHANCE)
    run.reporter.say()


def _wrong(tasks: Mapping[str, Task]) -> dict[str, list[str]]:
    """For every method with faults a line for each of them."""
    known = faults.known()
    return {name: [f"{fault}: {known[fault].title}" for fault in t.faults] for name, t in tasks.items() if t.faults}


def _task(run: _Run, scene: _Scene, name: str) -> Task:
    settings, method = run.experiment, run.methods[name]
    built = faults.Built(method, settings)
    dealt = built.federation(scene.federation, scene.seed)
    batch = devices.evaluated(settings.evaluation.batch, run.device)
    zero = scene.zero if dealt is scene.federation else _tuners(run, ZeroShot(), dealt)
    with enough_memory(name):
        base, novel = _tuners(run, method, dealt)
        # The same draws for all methods: those of a family start from the same tensors, and differences between them
        # are of what they do.
        initial = base.init(torch_stream(scene.seed, "init"))

    def bench(federation: Federation) -> Bench:
        return Bench(base, novel, federation, scene.activations, batch, zero)

    right = Task(
        method=method,
        bench=bench(dealt),
        initial=initial,
        seed=scene.seed,
        rounds=settings.rounds,
        participation=settings.participation,
        views=settings.views,
        together=run.machine.together,
        every=settings.evaluation.every,
        state=settings.evaluation.state,
        validation=bench(scene.validation) if scene.validation else None,
    )
    return built.task(right)


def _point(run: _Run, seed: int, name: str) -> dict[str, Any]:
    """One method with one seed: taken up where it stands, logged and made durable after every round."""
    point = run.folder.point(seed, name)
    with point.locked():
        _claim(run, seed, name, write=True)
        with enough_memory(name):
            return point.result() or _played(run, _scene(run, seed), name, point)


def _claim(run: _Run, seed: int, name: str, *, write: bool) -> None:
    """Refuse a point that was made with other settings of its method."""
    method = run.methods[name]
    wrong = [fault.name for fault in faults.of(method, run.experiment)]
    settings = method.config.model_dump(mode="json") | ({"faults": wrong} if wrong else {})
    run.folder.point(seed, name).claim(method.name, settings, results(run.experiment), write=write)


def _played(run: _Run, scene: _Scene, name: str, point: Point) -> dict[str, Any]:
    task = _task(run, scene, name)
    wanted = needed(task.bench.federation, run.experiment.views)
    if task.validation:
        wanted |= needed(task.validation.federation, run.experiment.views)
    scene.activations.prepare(wanted, task.bench.base.entry)
    checkpoint = point.checkpoint(int(run.experiment.compute.clients_gib * GIB))
    # What faults pass from client to client is stored nowhere: such a point starts from its first round.
    saved = None if task.faults else checkpoint.load()
    state, length = saved or (engine.start(task, checkpoint.clients()), 0)
    durable.truncate(point.ledger, length)
    progress = run.reporter.point(name, scene.seed, task.visits, state.round)
    try:
        for state, record in engine.play(task, state):  # noqa: B020
            checkpoint.save(state, point.log(record))
            progress.round(record)
    finally:
        progress.close()
    return point.finish(summary.result(point, task, state), summary.clock(point))


def needed(federation: Federation, views: str | int) -> set[Key]:
    """What will be asked for: the test view of evaluated images, and what training sees unless that is always new."""
    tested = [*federation.tests.values(), *(client.local for client in federation.clients)]
    needed = {(index, TEST) for indices in tested for index in indices}
    if views != "online":
        seen = [TEST] if isinstance(views, str) else range(views)
        needed |= {(index, view) for client in federation.clients for index in client.train for view in seen}
    return needed


def _written(run: _Run, points: dict[str, dict[int, dict[str, Any]]], said: str) -> Results:
    """The tables and the picture of the methods that have a result with every seed; the others are told in words."""
    folder, name = run.folder.path, run.experiment.name
    whole = {method: list(by_seed.values()) for method, by_seed in points.items() if method not in run.failed}
    failed = failure.in_words(run.failed, len(run.experiment.seeds))
    found, late = table.rows(whole), table.late_rows(whole)
    durable.write_json(folder / "table.json", table.as_json(found + late, failed))
    durable.write_text(folder / "table.csv", table.as_csv(found + late, failed))
    durable.write_text(folder / "table.md", table.as_markdown(found, late, failed))
    figure.draw(whole, run.experiment.rounds, f"{name}: accuracy per round", folder)
    return Results(folder, found, points, late, run.failed, said)
