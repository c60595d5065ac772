"""Make the embedded model: a small CLIP trained from scratch on drawn scenes. No data, no network.

    python recipes/pretrain.py --out src/fedvlm/clip/embedded --seed 0

The result is a Hugging Face CLIPModel directory with its model card. An interrupted run goes on where it was when
the same command is given again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import captions
import image_stage
import numpy as np
import publish
import score
import text_stage
import torch
import vocabulary
from pool import Pool, draw_pool
from torch import Tensor

from fedvlm import clip, durable, tensors
from fedvlm.clip.config import ClipConfig, Text, Transformer, ViT
from fedvlm.clip.preprocess import Preprocess
from fedvlm.clip.tokenizer import Tokenizer
from fedvlm.streams import stream, torch_stream
from fedvlm.tensors import Named

ENVIRONMENT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**33), "MALLOC_TOP_PAD_": str(2**26),
             "MALLOC_ARENA_MAX": "2", "OMP_NUM_THREADS": "1"}  # fmt: skip
"""By default glibc may hand every large tensor back to the system and fetch it again, which can cost more than the
arithmetic. It reads these settings when a process starts. Operations use one thread each (`objective.THREADS`)."""


@dataclass(frozen=True)
class Settings:
    """Everything the result depends on, beside the processor and the versions of the libraries."""

    seed: int = 0
    images: int = 200_000
    """Scenes in the pool."""
    image_steps: int = 8000
    image_batch: int = 128
    image_rate: float = 1.5e-3
    """Peak learning rate of the first stage."""
    text_steps: int = 6000
    text_batch: int = 256
    text_rate: float = 1e-3
    """Peak learning rate of the second stage."""
    warmup: int = 300
    """Steps of linear warm-up in each stage; a cosine to 1 % of the peak follows."""
    decay: float = 0.1
    """Weight decay of matrices (not of embeddings, gains and biases)."""
    filters: float = 0.3
    """Share of the first stage until pictures have all their filters; the first ones have none."""

    @property
    def steps(self) -> int:
        """Steps of both stages."""
        return self.image_steps + self.text_steps

    @property
    def pairs(self) -> int:
        """Images with a caption that were seen."""
        return self.image_steps * self.image_batch + self.text_steps * self.text_batch


@dataclass
class Job:
    """A training run: the model, what stands around it, and where it stands."""

    settings: Settings
    model: clip.FrozenCLIP
    scaffold: image_stage.Scaffold
    step: int = 0
    seconds: float = 0.0
    optimizer: torch.optim.AdamW = field(init=False)
    """Of the stage that the run is in."""

    @property
    def reads(self) -> bool:
        """Whether the run is in its second stage."""
        return self.step >= self.settings.image_steps

    def trained(self) -> Named:
        """What the present stage trains."""
        return text_stage.trained(self.model) if self.reads else image_stage.trained(self.model, self.scaffold)

    def enter(self) -> None:
        """Begin (or take up) the present stage with an optimiser of its own."""
        groups: dict[bool, list[Tensor]] = {True: [], False: []}
        for name, parameter in self.trained().items():
            groups[parameter.ndim >= 2 and "embedding" not in name].append(parameter)
        decay = self.settings.decay
        self.optimizer = torch.optim.AdamW(
            [{"params": groups[True], "weight_decay": decay}, {"params": groups[False], "weight_decay": 0.0}],
            betas=(0.9, 0.98),
            eps=1e-6,
        )


def main() -> None:
    """Train (or go on training), then score and write the model directory."""
    if not ENVIRONMENT.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ENVIRONMENT})
    arguments = _arguments()
    settings = Settings(**{name: getattr(arguments, name) for name in Settings.__dataclass_fields__})
    job = start(settings)
    work = arguments.out.with_name(arguments.out.name + ".training")
    resume(job, work)
    log(f"{sum(p.numel() for p in job.model.parameters()):,} weights; {asdict(settings)}; from step {job.step}")
    if job.step < settings.steps:
        train(job, draw_pool(settings.images, settings.seed), work, arguments.every)
    publish.export(job.model, arguments.out)
    table = score.table(clip.load(str(arguments.out)), images=arguments.score)
    facts = publish.Facts(asdict(settings), settings.pairs, job.seconds)
    durable.write_text(arguments.out / "CARD.md", publish.card(job.model, facts, table))
    log(score.text(table))


def start(settings: Settings) -> Job:
    """The untrained model."""
    inner = vocabulary.build(captions.vocabulary())
    tower = Transformer(width=128, layers=6, heads=4, mlp=512)
    shape = ClipConfig(ViT(48, 12, tower), Text(captions.CONTEXT, inner.get_vocab_size(), tower), 128)
    model = clip.FrozenCLIP(shape, Tokenizer(inner, captions.CONTEXT), Preprocess(48), "embedded", "")
    clip.initialise(model, torch_stream(settings.seed, "pretraining weights"))
    model.requires_grad_(True)
    scaffold = image_stage.Scaffold(shape)
    scaffold.initialise(torch_stream(settings.seed, "pretraining scaffold"))
    job = Job(settings, model, scaffold)
    job.enter()
    return job


def train(job: Job, pool: Pool, work: Path, every: int) -> None:
    """All remaining steps of both stages; every so many of them the state is kept and told."""
    while job.step < job.settings.steps:
        stage(job, pool, work, every)


def stage(job: Job, pool: Pool, work: Path, every: int) -> None:
    """The remaining steps of the present stage."""
    settings, reads = job.settings, job.reads
    first, last = (settings.image_steps, settings.steps) if reads else (0, settings.image_steps)
    peak, size = (settings.text_rate, settings.text_batch) if reads else (settings.image_rate, settings.image_batch)
    begun, before, losses = time.monotonic(), job.seconds, deque[float](maxlen=50)
    remembered = text_stage.remember(job.model, pool, settings.seed) if reads else None
    while job.step < last:
        for group in job.optimizer.param_groups:
            group["lr"] = peak * schedule(job.step - first, last - first, settings.warmup)
        job.optimizer.zero_grad(set_to_none=True)
        if remembered:
            draw = stream(settings.seed, "pretraining captions", job.step)
            losses.append(text_stage.step(job.model, remembered, size, draw))
        else:
            draws = [stream(settings.seed, "pretraining images", job.step, part) for part in range(2)]
            losses.append(image_stage.step(job.model, job.scaffold, pool, size, draws, ramp(settings, job.step)))
        update(job)
        if job.step == last:
            job.enter()
        job.seconds = before + time.monotonic() - begun
        if job.step % 50 == 0:
            log(f"step {job.step} loss {np.mean(losses):.3f} {job.seconds:.0f} s")
        if job.step % every == 0:
            keep(job, work)
            if reads:
                log(score.text(score.table(job.model, images=200, seed=1, styles=("photo", "drawing", "neon"))))


def update(job: Job) -> None:
    """One step of the optimiser, with gradients of at most norm 1 and a logit scale of at most 100."""
    torch.nn.utils.clip_grad_norm_(job.trained().values(), 1.0)
    job.optimizer.step()
    with torch.no_grad():
        job.model.logit_scale.clamp_(max=math.log(100))
    job.step += 1


def schedule(step: int, steps: int, warmup: int) -> float:
    """Share of the peak learning rate at a step: a linear warm-up, then a cosine to 1 %."""
    if step < warmup:
        return (step + 1) / warmup
    share = (step - warmup) / max(1, steps - warmup)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share))


def ramp(settings: Settings, step: int) -> float:
    """How far the filters have come at a step: 0 at first, 1 from the share `filters` of the first stage on."""
    return min(1.0, step / max(1.0, settings.filters * settings.image_steps))


def keep(job: Job, work: Path) -> None:
    """Keep what is needed to go on: all weights, both moments of the stage's optimiser, and the count of steps."""
    work.mkdir(parents=True, exist_ok=True)
    state: tensors.Named = {name: value.data for name, value in weights(job).items()}
    for name, parameter in job.trained().items():
        if moments := job.optimizer.state.get(parameter):
            state |= {f"{name}#1": moments["exp_avg"], f"{name}#2": moments["exp_avg_sq"]}
    tensors.save(work / f"{job.step}.safetensors", state)
    progress = {"step": job.step, "seconds": job.seconds, "settings": asdict(job.settings)}
    durable.write_json(work / "progress.json", progress)
    for old in work.glob("*.safetensors"):
        if old.stem != str(job.step):
            old.unlink()


def weights(job: Job) -> tensors.Named:
    """All weights of both stages."""
    return image_stage.trained(job.model, job.scaffold) | text_stage.trained(job.model)


def resume(job: Job, work: Path) -> None:
    """Go on from kept state, if there is one of these very settings."""
    file = work / "progress.json"
    if not file.exists():
        return
    progress = json.loads(file.read_text())
    if progress["settings"] != asdict(job.settings):
        sys.exit(f"{work} belongs to a run with other settings: remove it or give another --out")
    job.step, job.seconds = progress["step"], progress["seconds"]
    state = tensors.load(work / f"{job.step}.safetensors")
    for name, parameter in weights(job).items():
        parameter.data.copy_(state[name])
    job.enter()
    begun = job.settings.image_steps if job.reads else 0
    for name, parameter in job.trained().items():
        if f"{name}#1" in state:
            job.optimizer.state[parameter] = {
                "step": torch.tensor(float(job.step - begun)),
                "exp_avg": state[f"{name}#1"], "exp_avg_sq": state[f"{name}#2"],
            }  # fmt: skip


def log(text: str) -> None:
    """One line (or table) of the log."""
    print(text, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory of the model")
    parser.add_argument("--score", type=int, default=1200, help="images per style in the final scores")
    parser.add_argument("--every", type=int, default=1000, help="steps between kept states")
    for name, value in _defaults():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    return parser.parse_args()


def _defaults() -> Iterator[tuple[str, int | float]]:
    yield from asdict(Settings()).items()


if __name__ == "__main__":
    main()
