"""Running an experiment: every method with every seed on the same clients, into one run folder."""

from __future__ import annotations

import math
import resource
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedvlm import clip as clips
from fedvlm import durable, faults, methods, tensors
from fedvlm.clip import FrozenCLIP, preprocess
from fedvlm.data import Federation, Source, federate, load_source, validated
from fedvlm.data.picture import draw_partition
from fedvlm.errors import FedvlmError, listed
from fedvlm.experiment import Experiment, ScenesData
from fedvlm.federation import engine
from fedvlm.federation.client import Task
from fedvlm.federation.engine import State
from fedvlm.methods import Method
from fedvlm.methods.zero_shot import ZeroShot
from fedvlm.results import contract, figure, table, workers
from fedvlm.results.folder import Point, RunFolder
from fedvlm.results.progress import Reporter
from fedvlm.streams import stream, torch_stream
from fedvlm.training import device as devices
from fedvlm.training.activations import TEST, Activations, Key
from fedvlm.training.device import Device
from fedvlm.training.evaluation import Bench, Tuners
from fedvlm.training.store import DTYPES, Store, folder

GIB = 2**30


@dataclass(frozen=True)
class Results:
    """What `fedvlm.run` gives back: the folder, the rows of the table, every point's result by method and seed.

    `late`: the rows of the clients that joined after the last round.
    """

    folder: Path
    rows: list[table.Row]
    points: dict[str, dict[int, dict[str, Any]]]
    late: list[table.Row]


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
    source: Source | None = None
    activations: Activations | None = None
    scene: _Scene | None = None
    """Of the seed that was played last."""


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

    Points (a method with a seed) may be played by several processes at once. Raises `FedvlmError` for settings, data
    or weights that cannot be used, before anything is trained.
    """
    folder = RunFolder(out or Path("runs") / f"{experiment.name}-{experiment.digest()[:8]}")
    with ExitStack() as stack:
        opened = _opened(experiment, folder, reporter or Reporter(quiet=True))
        stack.enter_context(folder.locked())
        for seed in () if overwrite else experiment.seeds:
            for name in opened.methods:
                _claim(opened, seed, name, write=False)
        changed = folder.open(experiment, opened.clip.digest, resume=resume, overwrite=overwrite)
        stack.enter_context(opened.reporter)
        if changed:
            opened.reporter.warn(f"the run was begun with other versions ({listed(changed)}): results may differ")
        return _play(opened, processes)


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
    devices.set_threads(experiment.compute, clip.text.width)
    return _Run(experiment, folder, reporter, clip, place, chosen)


def _play(run: _Run, processes: int) -> Results:
    seeds, names = run.experiment.seeds, list(run.methods)
    _announce(run, _scene(run, seeds[0]))
    left = {seed: [name for name in names if run.folder.point(seed, name).result() is None] for seed in seeds}
    if processes > 1 and any(left.values()):
        workers.play(run.experiment, run.folder.path, workers.chunks(left, processes), run.reporter, processes)
    results: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in names}
    # Seed by seed: a seed's images are drawn and encoded once for all methods.
    for seed in seeds:
        for name in names:
            results[name][seed] = _point(run, seed, name)
    points = {name: list(by_seed.values()) for name, by_seed in results.items()}
    found, late = table.rows(points), table.late_rows(points)
    _write(run, found, late, points)
    return Results(run.folder.path, found, results, late)


def work(experiment: Experiment, folder: Path, reporter: Reporter) -> Callable[[int, str], None]:
    """What another process does with its points of a run whose folder is open: play them one after another."""
    opened = _opened(experiment, RunFolder(folder), reporter)
    return lambda seed, name: (_point(opened, seed, name), None)[1]


def _scene(run: _Run, seed: int) -> _Scene:
    """The seed's federation, saved with its picture, or read back and compared where the run is taken up again."""
    if run.scene is not None and run.scene.seed == seed:
        return run.scene
    settings = run.experiment
    if run.source is None or isinstance(settings.data, ScenesData):
        run.source = load_source(settings.data, seed, is_kept=settings.compute.disk_gib > 0)
        run.activations = _activations(run.clip, run.source, run.device, settings)
    assert run.activations is not None
    federation = federate(run.source, settings, seed)
    folder = run.folder.path / f"seed-{seed}"
    saved = folder / "partition.json"
    if not saved.exists():
        draw_partition(federation, folder / "partition.png")
        durable.write_json(saved, federation.to_json())
    elif Federation.from_json(run.source, durable.read_json(saved)).digest() != federation.digest():
        raise FedvlmError(f"{saved} is not the partition these settings and versions give: start with --overwrite")
    validation = validated(run.source, settings, seed)
    run.scene = _Scene(seed, federation, validation, run.activations, _tuners(run, ZeroShot(), federation))
    return run.scene


def _tuners(run: _Run, method: Method, federation: Federation) -> Tuners:
    template = run.experiment.evaluation.template
    base = method.tuner(run.clip, federation.base_names, template)
    return base, method.tuner(run.clip, federation.novel_names, template) if federation.novel else None


def _activations(clip: FrozenCLIP, source: Source, device: Device, settings: Experiment) -> Activations:
    compute = settings.compute
    store = Store(folder(), int(compute.disk_gib * GIB)) if compute.disk_gib else None
    return Activations(clip, source.records, device, int(compute.cache_gib * GIB), store, DTYPES[compute.kept_as])


def _announce(run: _Run, scene: _Scene) -> None:
    """Contract, what the data could not satisfy, and whether zero-shot is above chance."""
    tasks = {name: _task(run, scene, method) for name, method in run.methods.items()}
    lines = [contract.terms(name, task) for name, task in tasks.items()]
    text = contract.text(run.experiment, run.clip, scene.federation, lines, _wrong(tasks))
    durable.write_text(run.folder.path / "contract.txt", text + "\n")
    durable.write_json(run.folder.path / "contract.json", [vars(line) for line in lines])
    run.reporter.say(text)
    run.reporter.say()
    for note in scene.federation.notes:
        run.reporter.warn(note)
    found, count, classes = zero_shot_check(run.clip, scene.federation, scene.activations, run.experiment)
    run.reporter.say(f"zero-shot on {count} sampled base images: {found:.1%} (chance {1 / classes:.1%})")
    if found < above_chance(count, classes):
        run.reporter.warn(
            "zero-shot is at chance: these weights know nothing of these images and class names, so Base and Novel "
            "say nothing here (random weights? wrong labels?)"
        )
    run.reporter.say()


def _wrong(tasks: Mapping[str, Task]) -> dict[str, list[str]]:
    """For every method with faults a line for each of them."""
    known = faults.known()
    return {name: [f"{fault}: {known[fault].title}" for fault in t.faults] for name, t in tasks.items() if t.faults}


def zero_shot_check(
    clip: FrozenCLIP, federation: Federation, activations: Activations, experiment: Experiment, most: int = 256
) -> tuple[float, int, int]:
    """Zero-shot accuracy on a sample of the base test images, the sample's size, the number of classes.

    Every class has the same number of images in the sample as far as there are enough, so that answering with the
    most frequent class is no better than guessing.
    """
    sample = _balanced(federation, most)
    tuner = ZeroShot().tuner(clip, federation.base_names, experiment.evaluation.template)
    batch = devices.evaluated(experiment.evaluation.batch, activations.device)
    bench = Bench(tuner, None, federation, activations, batch)
    logits, labels = bench.logits(tuner, {}, {}, sample), bench.labels(sample)
    return float((logits.argmax(-1) == labels).double().mean()), len(sample), len(federation.base)


def _balanced(federation: Federation, most: int) -> list[int]:
    indices = sorted({index for client in federation.clients for index in federation.tests[client.base]})
    by_class: dict[int, list[int]] = {}
    for index in stream(0, "zero-shot check").permutation(indices).tolist():
        by_class.setdefault(federation.source.records[index].label, []).append(index)
    each = max(1, most // len(by_class))
    return sorted(index for members in by_class.values() for index in members[:each])


def above_chance(count: int, classes: int) -> float:
    """The accuracy that guessing would exceed about once in a thousand times (normal approximation, 3.1 sigma)."""
    chance = 1 / classes
    return chance + 3.1 * math.sqrt(chance * (1 - chance) / count)


def _task(run: _Run, scene: _Scene, method: Method) -> Task:
    settings = run.experiment
    built = faults.Built(method, settings)
    dealt = built.federation(scene.federation, scene.seed)
    base, novel = _tuners(run, method, dealt)
    batch = devices.evaluated(settings.evaluation.batch, run.device)
    zero = scene.zero if dealt is scene.federation else _tuners(run, ZeroShot(), dealt)

    def bench(federation: Federation) -> Bench:
        return Bench(base, novel, federation, scene.activations, batch, zero)

    right = Task(
        method=method,
        bench=bench(dealt),
        # The same draws for all methods: those of a family start from the same tensors, and differences between them
        # are of what they do.
        initial=base.init(torch_stream(scene.seed, "init")),
        seed=scene.seed,
        rounds=settings.rounds,
        participation=settings.participation,
        views=settings.views,
        together=devices.together(settings.compute, run.device, run.clip.text.width),
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
        return point.result() or _played(run, _scene(run, seed), name, point)


def _claim(run: _Run, seed: int, name: str, *, write: bool) -> None:
    """Refuse a point that was made with other settings of its method."""
    method = run.methods[name]
    wrong = [fault.name for fault in faults.of(method, run.experiment)]
    settings = method.config.model_dump(mode="json") | ({"faults": wrong} if wrong else {})
    run.folder.point(seed, name).claim(method.name, settings, write=write)


def _played(run: _Run, scene: _Scene, name: str, point: Point) -> dict[str, Any]:
    method = run.methods[name]
    task = _task(run, scene, method)
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
    for state, record in engine.play(task, state):  # noqa: B020
        checkpoint.save(state, point.log(record))
        progress.round(record)
    progress.close()
    result = _result(point, task, state)
    point.finish(result)
    return result


def needed(federation: Federation, views: str | int) -> set[Key]:
    """What will be asked for: the test view of evaluated images, and what training sees unless that is always new."""
    tested = [*federation.tests.values(), *(client.local for client in federation.clients)]
    needed = {(index, TEST) for indices in tested for index in indices}
    if views != "online":
        seen = [TEST] if isinstance(views, str) else range(views)
        needed |= {(index, view) for client in federation.clients for index in client.train for view in seen}
    return needed


def _result(point: Point, task: Task, state: State) -> dict[str, Any]:
    """The point's summary from its ledger. `digest` covers everything that does not depend on the clock."""
    late = {client.name for client in task.bench.federation.late}
    rounds, visits = point.lines("round"), [v for v in point.lines("visit") if v["client"] not in late]
    evaluated = [line for line in rounds if line["means"]]
    own = [line["means"][task.reported] for line in evaluated]
    kept = evaluated[task.conduct.result(own)]
    metrics = {m: [[line["round"], means[m]] for line, means in zip(evaluated, own, strict=True)] for m in own[-1]}
    result = {
        "state": task.reported,
        "final": kept["means"],
        "mean_of_last_five_evaluations": {
            m: sum(v for _, v in curve[-5:]) / len(curve[-5:]) for m, curve in metrics.items()
        },
        "best_round_on_test": max(metrics["local"], key=lambda pair: (pair[1], -pair[0]))[0]
        if "local" in metrics
        else None,
        "curve": metrics,
        "clients": kept["clients"],
        "tradeoff": evaluated[-1]["curves"],
        "tensors": {
            "server": tensors.digest(state.server),
            "clients": {name: tensors.digest(state.personal[name]) for name in sorted(state.personal)},
        },
        "bytes_by_round": _by_round(visits),
        "up_bytes_per_visit": _per_visit(visits, "up_bytes"),
        "down_bytes_per_visit": _per_visit(visits, "down_bytes"),
    }
    if late:
        result["late"] = {moment: found for line in rounds for moment, found in line["late"].items()}
    if task.faults:
        result |= {"faults": list(task.faults), "round": kept["round"]}
    clock = {
        "train_s": sum(line["train_s"] for line in rounds),
        "evaluate_s": sum(line["evaluate_s"] for line in rounds),
        # ru_maxrss is in KiB on Linux; of the whole process so far.
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    return result | {"digest": durable.json_digest(result)} | clock


def _by_round(visits: list[dict[str, Any]]) -> list[list[int]]:
    """Bytes of all clients in both directions, `[round, bytes]`."""
    sizes: dict[int, int] = {}
    for visit in visits:
        both = sum(visit["up_bytes"].values()) + sum(visit["down_bytes"].values())
        sizes[visit["round"]] = sizes.get(visit["round"], 0) + both
    return [[round_, size] for round_, size in sorted(sizes.items())]


def _per_visit(visits: list[dict[str, Any]], key: str) -> float:
    return sum(sum(visit[key].values()) for visit in visits) / len(visits) if visits else 0.0


def _write(
    run: _Run, found: list[table.Row], late: list[table.Row], points: Mapping[str, list[dict[str, Any]]]
) -> None:
    folder, name = run.folder.path, run.experiment.name
    durable.write_json(folder / "table.json", table.as_json(found + late))
    durable.write_text(folder / "table.csv", table.as_csv(found + late))
    durable.write_text(folder / "table.md", table.as_markdown(found, late))
    figure.draw(points, run.experiment.rounds, f"{name}: accuracy per round", folder)
