"""How well a CLIP names drawn scenes it has never seen: zero-shot accuracies per style.

    python recipes/score.py embedded
    python recipes/score.py DIR --card DIR/CARD.md
    python recipes/score.py embedded --strengths 0.2,0.4,0.6,0.8,1.0
    python recipes/score.py embedded --conditions

`--strengths` shows how strong a style may be: the 20-way accuracy of fill and shape at several strengths, on images of
which no score is reported. `--conditions`: of pictures in the conditions that captions of the pre-training name (dark,
blurry, ..), how often the model picks the right one, and what a template that names it does for the object's name.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import card
import numpy as np
import numpy.typing as npt
import torch
from conditions import CONDITIONS, FILTERS
from torch.nn import functional as F

from fedvlm import clip
from fedvlm.data.scenes import FILLS, NEUTRAL, SHAPES, STYLES, SceneSpec, render
from fedvlm.reports import grid
from fedvlm.streams import key, stream

Table = dict[str, dict[str, float]]

CLASSES = [f"{name} {form}" for name in FILLS for form in SHAPES]
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
    start = key(seed, "scoring scenes", style)
    specs, shape, truth = _scenes(stream(seed, "scoring", style), start, images, style, strength)
    features = _features(model, specs)
    logits = features @ F.normalize(model.classifier(CLASSES), dim=-1).T
    shapes = features @ F.normalize(model.classifier(SHAPES), dim=-1).T
    return {
        "shape 20-way": float((shapes.argmax(1) == shape).float().mean()),
        "fill+shape 120-way": float((logits.argmax(1) == truth).float().mean()),
        "fill+shape 20-way": _twenty(logits, truth, stream(seed, "scoring groups")),
    }


def _scenes(
    draw: np.random.Generator, start: int, images: int, style: str, strength: float
) -> tuple[list[SceneSpec], torch.Tensor, torch.Tensor]:
    """Scenes of random shapes and fills; their shapes, and their places among `CLASSES`."""
    shape, fill = draw.integers(len(SHAPES), size=images), draw.integers(len(FILLS), size=images)
    first = start & (2**63 - 1)
    specs = [SceneSpec(first + i, SHAPES[shape[i]], FILLS[fill[i]], None, style, strength) for i in range(images)]
    return specs, torch.from_numpy(shape), torch.from_numpy(fill * len(SHAPES) + shape)


def _features(model: clip.FrozenCLIP, specs: Sequence[SceneSpec]) -> torch.Tensor:
    return torch.cat([_encoded(model, render(specs[first : first + 200])) for first in range(0, len(specs), 200)])


@torch.no_grad()
def _encoded(model: clip.FrozenCLIP, pixels: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Features of pixels `[B, S, S, 3]`, uint8."""
    return F.normalize(
        model.encode_image(model.preprocess.normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2))), dim=-1
    )


@torch.no_grad()
def by_condition(model: clip.FrozenCLIP, *, images: int = 600) -> str:
    """Pictures in each condition: accuracies in per cent, as a table in Markdown.

    Of the condition, among all of them, with the object's own name in the text; and of the object among all fills and
    shapes, with the plain template and with one that names the condition.
    """
    draw = stream(4, "scoring conditions")
    specs, _, truth = _scenes(draw, key(4, "scoring conditions"), images, "photo", 1.0)
    pixels = render(specs)

    def right(found: torch.Tensor, wanted: torch.Tensor | int) -> float:
        return 100 * float((found.argmax(1) == wanted).float().mean())

    plain = F.normalize(model.classifier(CLASSES, "a photo of a {}."), dim=-1)
    words = {name: f"a {CONDITIONS[name].before[0]} photo of a {{}}." for name in FILTERS}
    named = {name: F.normalize(model.classifier(CLASSES, template), dim=-1) for name, template in words.items()}
    rows, sums = [], np.zeros(3)
    for place, name in enumerate(FILTERS):
        change = CONDITIONS[name].filter
        assert change is not None
        changed = np.clip(change(pixels.astype(np.float32) / np.float32(255), draw), 0, 1)
        features = _encoded(model, (255 * changed).round().astype(np.uint8))
        conditions = torch.stack([(features * texts[truth]).sum(-1) for texts in named.values()], dim=1)
        found = right(conditions, place), right(features @ plain.T, truth), right(features @ named[name].T, truth)
        sums += found
        rows.append([name, *(f"{value:.1f}" for value in found)])
    rows.append(["mean", *(f"{value:.1f}" for value in sums / len(FILTERS))])
    heads = ["condition", "condition named rightly", "object, plain template", "object, condition in the template"]
    return grid.markdown(heads, rows)


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
    parser.add_argument("--conditions", action="store_true", help="pictures in conditions that captions name")
    arguments = parser.parse_args()
    if arguments.conditions:
        print(by_condition(clip.load(arguments.model)))
        raise SystemExit
    if arguments.strengths:
        print(by_strength(clip.load(arguments.model), [float(each) for each in arguments.strengths.split(",")]))
        raise SystemExit
    said = text(table(clip.load(arguments.model), images=arguments.images))
    if arguments.card:
        card.replace_section(arguments.card, card.BY_STYLE, said)
    print(said)
