"""One side of a comparison, measured in a separate process: timings of parts of a run, and resulting tensors."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Sequence
from copy import copy
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, count, islice
from pathlib import Path
from typing import Literal

import torch
from torch.utils.flop_counter import FlopCounterMode

from fedvlm import clip as clips
from fedvlm import durable, methods, tensors
from fedvlm.checks.bench.released import UncachedPixels, released_tuner
from fedvlm.clip import templates
from fedvlm.data import Client, federate
from fedvlm.experiment import Experiment, parse
from fedvlm.federation import setup
from fedvlm.federation.client import local_batches, train_client
from fedvlm.federation.setup import GIB, Loaded, SeedSetup, prefetch_keys
from fedvlm.federation.simulation import Simulation, run_rounds, sample_clients, start
from fedvlm.methods.base import Config, Uplink
from fedvlm.methods.pfedmoap import EXPERT, POOL, PFedMoAP
from fedvlm.methods.zero_shot import ZeroShot
from fedvlm.streams import stream, torch_stream
from fedvlm.tensors import Named
from fedvlm.training import device as devices
from fedvlm.training.activations import TEST, Activations
from fedvlm.training.disk_cache import DiskCache
from fedvlm.training.local import epoch_batches, train
from fedvlm.training.site import Site

Kind = Literal["naive", "exact"]
COMPARED_CLIENTS = 2
"""Number of clients in the round whose tensors are compared."""


@dataclass
class Sizes:
    """Size of the measured parts of a run; timings are extrapolated from these."""

    steps: int = 2
    """Number of timed training steps, and of each client's steps in the round whose results are compared."""
    images: int = 100
    """Number of test images, and of images that are encoded."""


@dataclass
class Timings:
    """Seconds of the parts of a run, counts of these parts, memory, and multiply-adds."""

    step_s: float = 0.0
    """One training step: fetching the batch, forward, backward, update."""
    expert_s: float = 0.0
    """Encoding one received prompt."""
    test_s: float = 0.0
    """Evaluating one client on all its test images, once per evaluation."""
    remember_s: float = 0.0
    """Encoding all cached activations, once per run without a disk cache."""
    round: dict[str, float] | None = None
    """Training and evaluation of a whole round, for models small enough to run one; else None."""
    peak_bytes: int = 0
    step_gflop: float = 0.0
    matmul_gflops: float = 0.0
    """Rate of the machine in a large product of float32 matrices, in giga-operations per second."""
    counts: dict[str, float] = field(default_factory=dict)


def main() -> None:
    """`python -m fedvlm.checks.bench.side KIND ORDER.json [step]`: measure, write `ORDER.KIND.json` and `.safetensors`.

    With `step`, only the training step is measured.
    """
    kind, order = sys.argv[1], Path(sys.argv[2])
    task = json.loads(order.read_text())
    side = MeasuredSide(kind, parse(task["experiment"]), Sizes(**task["sizes"]), Path(task["cache"]))  # type: ignore[arg-type]
    if sys.argv[3:] == ["step"]:
        durable.write_json(order.with_suffix(f".{kind}.json"), asdict(Timings(step_s=side.step()[0])))
        return
    durable.write_json(order.with_suffix(f".{kind}.json"), asdict(side.measure()))
    tensors.save(order.with_suffix(f".{kind}.safetensors"), side.outcome())


class MeasuredSide:
    """The run of an experiment's only method, as released or with this package."""

    def __init__(self, kind: Kind, settings: Experiment, sizes: Sizes, cache: Path) -> None:
        self.kind, self.settings, self.sizes = kind, settings, sizes
        allocator = os.environ.get("FEDVLM_BENCH_ALLOCATOR")
        self.device = devices.choose_device(settings.compute)
        devices.configure_process(self.device, keep_freed=kind == "exact" or allocator == "kept")
        clip = clips.load(settings.model.name).to(self.device.device)
        torch.set_num_threads(settings.compute.threads or devices.default_threads(clip.text.width))
        self.clip = clip
        source = settings.load_source(settings.seeds[0])
        self.federation = federate(source, settings, settings.seeds[0])
        limit = int(settings.compute.cache_gib * GIB)
        disk_cache = DiskCache(cache, 100 * GIB)
        self.activations: Activations = (
            Activations(clip, source.records, self.device, limit, disk_cache)
            if kind == "exact"
            else UncachedPixels(clip, source.records, self.device, 0)
        )
        self.run = self._simulation()
        self.short = _shorten(self.run, sizes.steps)
        self.entry = self.run.site.base.entry

    def _simulation(self) -> Simulation:
        (name,) = self.settings.methods
        method, loaded = methods.build(name, self.settings.method), Loaded(self.settings, self.clip, self.device)
        zero = loaded.tuners(ZeroShot(), self.federation)
        seed = SeedSetup(self.settings.seeds[0], self.federation, None, self.activations, zero)
        exact = setup.simulation(loaded, seed, method)
        return exact if self.kind == "exact" else self._released(exact)

    def _released(self, exact: Simulation) -> Simulation:
        """The run as released: released tuners, clients one after another, tests in batches of 100."""
        method, template = exact.spec.method, templates.template(self.settings.evaluation.template)
        base, novel = (
            released_tuner(method, self.clip, names, template) if names else None
            for names in (self.federation.base_names, self.federation.novel_names)
        )
        assert base is not None
        return replace(
            exact,
            spec=setup.run_spec(self.settings, method, base, exact.spec.seed),
            site=Site(base, novel, self.federation, self.activations, 100),
            schedule=replace(exact.schedule, clients_per_step=1),
        )

    def _clock(self) -> float:
        """Time in seconds, after a GPU has finished its work."""
        if self.device.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _peak(self) -> int:
        if self.device.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def measure(self) -> Timings:
        """Measure all parts, in the order of a run."""
        parts = Timings(matmul_gflops=_matmul_rate(self.device.device))
        client = self.federation.clients[0]
        if self.kind == "exact":
            parts.remember_s = self._remember()
        parts.step_s, parts.step_gflop = self.step()
        parts.expert_s = self._expert()
        parts.test_s = self._test(client)
        parts.counts = self._counts()
        if self.clip.text.width < devices.SMALL_WIDTH:
            parts.round = self._round()
        parts.peak_bytes = self._peak()
        return parts

    def outcome(self) -> Named:
        """Tensors of two clients after a few steps with experts, their aggregate, and logits on test images."""
        result: Named = {}
        received, uplinks = self._received(2), []
        for client in self.short.site.federation.clients[:COMPARED_CLIENTS]:
            done = train_client(self.short.spec, self.short.site, 0, client, None, received)
            uplinks.append(Uplink(client.name, 1.0, done.uplink.tensors))
            result |= {f"{client.name}/{name}": tensor for name, tensor in done.personal.items()}
            with torch.no_grad():
                images = list(self.federation.tests[client.base])[:8]
                result[f"{client.name}/logits"] = self.run.site.logits(
                    self.run.site.base, done.personal, received, images
                ).cpu()
        server = self.run.spec.method.aggregate(start(self.run).server, uplinks)
        return result | {f"server/{name}": tensor for name, tensor in server.items()}

    def _remember(self) -> float:
        """Seconds to encode all activations of a run, from a sample; then encode those that the measurement needs."""
        wanted = sorted(prefetch_keys(self.run))
        sample = wanted[:: max(1, len(wanted) // self.sizes.images)][: self.sizes.images]
        alone = Activations(self.clip, self.federation.source.records, self.device, 1 << 40)
        alone.prepare(sample[:8], self.entry)
        begun = self._clock()
        alone.prepare(sample, self.entry)
        per_view = (self._clock() - begun) / max(1, len(sample) - 8)
        self.activations.prepare(self._used(), self.entry)
        return per_view * len(wanted)

    def _used(self) -> set[tuple[int, int]]:
        """Keys of the activations that the measurement needs; encoding all takes long and changes no timing."""
        client = self.federation.clients[0]
        found = {(index, TEST) for index in self._tested(client)[: self.sizes.images]}
        for one in self.short.site.federation.clients[:COMPARED_CLIENTS]:
            found |= {(index, TEST) for index in list(self.federation.tests[one.base])[:8]}
            if self.settings.views != "online":
                views = [TEST] if isinstance(self.settings.views, str) else range(self.settings.views)
                found |= {(index, view) for index in one.train for view in views}
        return found

    def step(self) -> tuple[float, float]:
        """Seconds of a step with experts, and giga-operations of the exact step (a multiply-add counts as 2)."""
        client = self.short.site.federation.clients[0]
        supply = chain.from_iterable(
            local_batches(self.short.spec, self.short.site, round_, client) for round_ in count()
        )
        received, steps = self._received(2), self.sizes.steps
        train(self.run.spec.method, self.run.site.base, self.run.spec.initial, received, [next(supply)], self.device)
        begun = self._clock()
        first = [next(supply)]
        train(self.run.spec.method, self.run.site.base, self.run.spec.initial, received, first, self.device)
        once = self._clock() - begun
        begun = self._clock()
        train(self.run.spec.method, self.run.site.base, self.run.spec.initial, received,
              (next(supply) for _ in range(steps + 1)), self.device)  # fmt: skip
        several = self._clock() - begun
        if self.kind == "naive":
            return (several - once) / steps, 0.0
        with FlopCounterMode(display=False) as one:
            train(self.run.spec.method, self.run.site.base, self.run.spec.initial, {}, [next(supply)], self.device)
        return (several - once) / steps, one.get_total_flops() / 1e9

    def _expert(self) -> float:
        experts = tensors.select(self._received(2), [f"{EXPERT}*"])
        if not experts:
            return 0.0
        changed = {name: tensor + 1e-4 for name, tensor in experts.items()}
        begun = self._clock()
        self.run.site.base.prepare(changed)
        return (self._clock() - begun) / len(experts)

    def _tested(self, client: Client) -> list[int]:
        """A client's test images: the local ones, and the base set if there are novel classes."""
        base = self.federation.tests[client.base] if self.federation.novel else ()
        return list(dict.fromkeys([*client.local, *base]))

    def _test(self, client: Client) -> float:
        """Seconds to evaluate one client, from a sample of its test images."""
        site, received = self.run.site, self._received(2)
        tested = self._tested(client)
        everything = len(tested) + (len(self.federation.tests[client.novel]) if client.novel is not None else 0)
        sample = tested[: self.sizes.images]
        with torch.no_grad():
            constants = site.base.prepare(received)

            def answer(images: Sequence[int]) -> None:
                classifier = site.base.classifier(self.run.spec.initial, constants)
                site.predict(site.base, self.run.spec.initial, classifier, images)

            answer(sample[:2])
            begun = self._clock()
            answer(sample)
        return (self._clock() - begun) * everything / len(sample)

    def _round(self) -> dict[str, float]:
        """Seconds of the third round of a simulation, before which all clients have trained."""
        if self.kind == "exact":
            self.activations.prepare(prefetch_keys(self.run), self.entry)
        # The last round would evaluate a second state.
        *_, (_, third) = islice(
            run_rounds(replace(self.run, spec=replace(self.run.spec, rounds=4)), start(self.run)), 3
        )
        return {"training": third.train_s, "evaluation": third.evaluate_s}

    def _received(self, experts: int) -> Named:
        """Tensors that a client receives in a later round: the shared ones, and for pFedMoAP some experts."""
        server = start(self.run).server
        draw = stream(0, "bench experts")
        if isinstance(self.run.spec.method, PFedMoAP):
            pool = {f"{POOL}client-{i}": server["prompt"] + 0.01 * torch.from_numpy(
                draw.standard_normal(server["prompt"].shape, dtype="float32")) for i in range(experts + 1)}  # fmt: skip
            server = server | pool
        received = self.run.spec.method.downlink(server, "client-0", draw)
        return dict(list(received.items())[: experts + 1]) if isinstance(self.run.spec.method, PFedMoAP) else received

    def _counts(self) -> dict[str, float]:
        """Numbers of steps, experts and evaluations of a whole run."""
        config, settings, clients = self.run.spec.method.config, self.settings, self.federation.clients
        assert isinstance(config, Config)
        draw = stream(0, "bench counts")
        epoch = [len(epoch_batches(len(c.train), config.batch, config.drop_last, draw)) for c in clients]
        trained = len(sample_clients(self.run, 0))
        experts = min(int(getattr(config, "experts", 1)), len(clients)) - 1
        return {
            "rounds": settings.rounds,
            "steps per round": config.epochs * sum(epoch) * trained / len(clients),
            "experts per round": trained * max(0, experts),
            # Only prompts that were trained in the round before are new.
            "prompts per round": trained if experts > 0 else 0,
            "clients": len(clients),
            "evaluations": -(-settings.rounds // settings.evaluation.every),
        }


def _shorten(run: Simulation, steps: int) -> Simulation:
    """The run with one epoch and at most this many full batches of training images for each client."""
    config = run.spec.method.config
    assert isinstance(config, Config)
    clients = tuple(replace(c, train=c.train[: steps * config.batch]) for c in run.site.federation.clients)
    method = copy(run.spec.method)
    method.config = config.model_copy(update={"epochs": 1})
    site = replace(run.site, federation=replace(run.site.federation, clients=clients))
    return replace(run, spec=replace(run.spec, method=method), site=site)


def _matmul_rate(device: torch.device) -> float:
    """Best of ten products of 2048 x 2048 matrices."""
    draw = torch_stream(0, "bench rate")
    a, b = (torch.empty(2048, 2048).normal_(generator=draw).to(device) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        begun = time.perf_counter()
        (a @ b).sum().item()
        best = min(best, time.perf_counter() - begun)
    return float(2 * 2048**3 / best / 1e9)


if __name__ == "__main__":
    main()
