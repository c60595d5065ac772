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
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import captions
import numpy as np
import objective
import publish
import score
import torch
import vocabulary
from pool import Pool, batch, draw_pool
from torch import Tensor

from fedvlm import clip, durable, tensors
from fedvlm.clip.config import ClipConfig, Text, Transformer, ViT
from fedvlm.clip.preprocess import Preprocess
from fedvlm.clip.tokenizer import Tokenizer
from fedvlm.streams import stream, torch_stream

ENVIRONMENT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**33), "MALLOC_TOP_PAD_": str(2**26),
             "MALLOC_ARENA_MAX": "2", "OMP_NUM_THREADS": "1"}  # fmt: skip
"""By default glibc may hand every large tensor back to the system and fetch it again, which can cost more than the
arithmetic. It reads these settings when a process starts. Operations use one thread each (`objective.step` has its own
threads)."""


@dataclass(frozen=True)
class Settings:
    """Everything the result depends on, beside the processor and the versions of the libraries."""

    seed: int = 0
    images: int = 200_000
    """Scenes in the pool."""
    steps: int = 12_000
    batch: int = 128
    rate: float = 1.5e-3
    """Peak learning rate."""
    warmup: int = 300
    """Steps of linear warm-up; a cosine to 1 % of the peak follows."""
    decay: float = 0.1
    """Weight decay of matrices (not of embeddings, gains and biases)."""
    filters: float = 0.3
    """Share of the steps until pictures have all their filters; the first ones have none."""
    attributes: float = 1.0
    """Weight of the loss that reads the attributes from the image's feature."""


@dataclass
class Job:
    """A training run: the model, its optimiser, and where it stands."""

    settings: Settings
    model: clip.FrozenCLIP
    heads: objective.Heads
    """Reads attributes from image features; thrown away at the end."""
    optimizer: torch.optim.AdamW
    step: int = 0
    seconds: float = 0.0


def main() -> None:
    """Train (or go on training), then score and write the model directory."""
    if not ENVIRONMENT.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ENVIRONMENT})
    arguments = _arguments()
    names = Settings.__dataclass_fields__
    settings = Settings(**{name: getattr(arguments, name) for name in names})
    job = start(settings)
    work = arguments.out.with_name(arguments.out.name + ".training")
    resume(job, work)
    log(f"{sum(p.numel() for p in job.model.parameters()):,} weights; {asdict(settings)}; from step {job.step}")
    if job.step < settings.steps:
        train(job, draw_pool(settings.images, settings.seed), work, arguments.out, arguments.every)
    publish.export(job.model, arguments.out)
    table = score.table(clip.load(str(arguments.out)), images=arguments.score)
    facts = publish.Facts(asdict(settings), settings.steps * settings.batch, job.seconds)
    durable.write_text(arguments.out / "CARD.md", publish.card(job.model, facts, table))
    log(score.text(table))


def start(settings: Settings) -> Job:
    """The untrained model and its optimiser."""
    inner = vocabulary.build(captions.vocabulary())
    tower = Transformer(width=128, layers=6, heads=4, mlp=512)
    shape = ClipConfig(ViT(48, 12, tower), Text(captions.CONTEXT, inner.get_vocab_size(), tower), 128)
    model = clip.FrozenCLIP(shape, Tokenizer(inner, captions.CONTEXT), Preprocess(48), "embedded", "")
    clip.initialise(model, torch_stream(settings.seed, "pretraining weights"))
    model.requires_grad_(True)
    heads = objective.Heads(shape)
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, parameter in objective.named(model, heads).items():
        groups[parameter.ndim >= 2 and "embedding" not in name].append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": groups[True], "weight_decay": settings.decay}, {"params": groups[False], "weight_decay": 0.0}],
        lr=settings.rate,
        betas=(0.9, 0.98),
        eps=1e-6,
    )
    return Job(settings, model, heads, optimizer)


def train(job: Job, pool: Pool, work: Path, out: Path, every: int) -> None:
    """All remaining steps; every so many of them the state is kept and the model exported."""
    begun, before, losses = time.monotonic(), job.seconds, []
    first = job.step
    while job.step < job.settings.steps:
        losses.append(advance(job, pool))
        job.seconds = before + time.monotonic() - begun
        if job.step % 50 == 0:
            rate = (job.step - first) * job.settings.batch / (job.seconds - before)
            log(f"step {job.step} loss {np.mean(losses[-50:]):.3f} {rate:.0f} pairs/s {job.seconds:.0f} s")
        if job.step % every == 0:
            keep(job, work)
            publish.export(job.model, out)
            log(score.text(score.table(job.model, images=200, seed=1, styles=("photo", "drawing", "neon"))))


def advance(job: Job, pool: Pool) -> float:
    """One optimiser step on a fresh batch; the loss before it."""
    draw = stream(job.settings.seed, "pretraining batch", job.step)
    images = batch(pool, job.settings.batch, draw, ramp(job.settings, job.step))
    captioned = captions.describe(images, draw, captions.Habits())
    for group in job.optimizer.param_groups:
        group["lr"] = rate(job.settings, job.step)
    job.optimizer.zero_grad(set_to_none=True)
    loss = objective.step(job.model, job.heads, images, captioned, job.settings.attributes)
    torch.nn.utils.clip_grad_norm_(job.model.parameters(), 1.0)
    job.optimizer.step()
    with torch.no_grad():
        job.model.logit_scale.clamp_(max=math.log(100))
    job.step += 1
    return loss


def rate(settings: Settings, step: int) -> float:
    """Learning rate of a step: a linear warm-up, then a cosine to 1 % of the peak."""
    if step < settings.warmup:
        return settings.rate * (step + 1) / settings.warmup
    share = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))


def ramp(settings: Settings, step: int) -> float:
    """How far the filters have come at a step: 0 at first, 1 from the share `filters` of all steps on."""
    return min(1.0, step / max(1.0, settings.filters * settings.steps))


def keep(job: Job, work: Path) -> None:
    """Keep what is needed to go on: weights, both moments of the optimiser, and the count of steps."""
    work.mkdir(parents=True, exist_ok=True)
    state: tensors.Named = {}
    for name, parameter in objective.named(job.model, job.heads).items():
        moments = job.optimizer.state[parameter]
        state |= {name: parameter.data, f"{name}#1": moments["exp_avg"], f"{name}#2": moments["exp_avg_sq"]}
    tensors.save(work / f"{job.step}.safetensors", state)
    progress = {"step": job.step, "seconds": job.seconds, "settings": asdict(job.settings)}
    durable.write_json(work / "progress.json", progress)
    for old in work.glob("*.safetensors"):
        if old.stem != str(job.step):
            old.unlink()


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
    for name, parameter in objective.named(job.model, job.heads).items():
        parameter.data.copy_(state[name])
        job.optimizer.state[parameter] = {
            "step": torch.tensor(float(job.step)), "exp_avg": state[f"{name}#1"], "exp_avg_sq": state[f"{name}#2"],
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
