"""How well a CLIP names drawn scenes it has never seen: zero-shot accuracies per style.

    python recipes/score.py embedded
    python recipes/score.py DIR --card DIR/CARD.md
    python recipes/score.py embedded --strengths 0.2,0.4,0.6,0.8,1.0

The last command shows how strong a style may be: the 20-way accuracy of fill and shape at several strengths, on
images of which no score is reported.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import card
import numpy as np
import torch
from torch.nn import functional as F

from fedvlm import clip
from fedvlm.data.scenes import FILLS, NEUTRAL, SHAPES, STYLES, SceneSpec, render
from fedvlm.reports import grid
from fedvlm.streams import key, stream

Table = dict[str, dict[str, float]]

GROUPS = 20
"""Random sets of 20 classes that the 20-way accuracy is averaged over."""


def table(model: clip.FrozenCLIP, *, images: int = 1200, seed: int = 2, styles: Sequence[str] = ()) -> Table:
    """Accuracies 0..1 by style: of 20 shapes, of all 120 fill+shape classes, and of 20 of these."""
    strengths = {**NEUTRAL, **STYLES}
    return {style: _accuracies(model, style, strengths[style], images, seed) for style in styles or strengths}


def by_strength(model: clip.FrozenCLIP, strengths: Sequence[float], *, images: int = 400) -> str:
    """20-way accuracies of fill and shape of every style at several strengths, as a table in Markdown."""
    rows = []
    for style in STYLES:
        found = [_accuracies(model, style, strength, images, 3)["fill+shape 20-way"] for strength in strengths]
        rows.append([style, *(f"{100 * value:.1f}" for value in found)])
    return grid.markdown(["style", *(f"{strength:g}" for strength in strengths)], rows)


def _accuracies(model: clip.FrozenCLIP, style: str, strength: float, images: int, seed: int) -> dict[str, float]:
    draw = stream(seed, "scoring", style)
    shape, fill = draw.integers(len(SHAPES), size=images), draw.integers(len(FILLS), size=images)
    start = key(seed, "scoring scenes", style) & (2**63 - 1)
    specs = [SceneSpec(start + i, SHAPES[shape[i]], FILLS[fill[i]], None, style, strength) for i in range(images)]
    features = _features(model, specs)
    classes = [f"{name} {form}" for name in FILLS for form in SHAPES]
    logits = features @ F.normalize(model.classifier(classes), dim=-1).T
    truth = torch.from_numpy(fill * len(SHAPES) + shape)
    shapes = features @ F.normalize(model.classifier(SHAPES), dim=-1).T
    return {
        "shape 20-way": float((shapes.argmax(1) == torch.from_numpy(shape)).float().mean()),
        "fill+shape 120-way": float((logits.argmax(1) == truth).float().mean()),
        "fill+shape 20-way": _twenty(logits, truth, stream(seed, "scoring groups")),
    }


@torch.no_grad()
def _features(model: clip.FrozenCLIP, specs: Sequence[SceneSpec]) -> torch.Tensor:
    parts = []
    for first in range(0, len(specs), 200):
        pixels = torch.from_numpy(render(specs[first : first + 200])).permute(0, 3, 1, 2)
        parts.append(F.normalize(model.encode_image(model.preprocess.normalise(pixels)), dim=-1))
    return torch.cat(parts)


def _twenty(logits: torch.Tensor, truth: torch.Tensor, draw: np.random.Generator) -> float:
    """Mean accuracy over random sets of 20 classes, each on the images of its classes."""
    right, count = 0, 0
    for _ in range(GROUPS):
        chosen = torch.from_numpy(draw.permutation(logits.shape[1])[:20])
        rows = torch.isin(truth, chosen)
        right += int((chosen[logits[rows][:, chosen].argmax(1)] == truth[rows]).sum())
        count += int(rows.sum())
    return right / count


def text(scores: Table) -> str:
    """The table in Markdown, per cent."""
    columns = list(next(iter(scores.values())))
    rows = []
    for style, row in scores.items():
        strength = STYLES.get(style)
        name = style if strength is None else f"{style}:{strength:g}"
        rows.append([name, *(f"{100 * row[column]:.1f}" for column in columns)])
    return grid.markdown(["style", *columns], rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="embedded, or a model directory")
    parser.add_argument("--images", type=int, default=1200, help="images per style")
    parser.add_argument("--card", type=Path, help="a model card into which the table is put")
    parser.add_argument("--strengths", help="of the federation's styles, such as 0.5,1.0")
    arguments = parser.parse_args()
    if arguments.strengths:
        print(by_strength(clip.load(arguments.model), [float(each) for each in arguments.strengths.split(",")]))
        raise SystemExit
    said = text(table(clip.load(arguments.model), images=arguments.images))
    if arguments.card:
        card.replace_section(arguments.card, card.BY_STYLE, said)
    print(said)
