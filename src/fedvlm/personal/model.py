"""A personal model: a frozen CLIP with what one client has trained, and its predictions of images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import PIL.Image
import torch
from pydantic import Field
from torch import Tensor

from fedvlm import methods
from fedvlm.clip import FrozenCLIP
from fedvlm.config import Section
from fedvlm.data.decode import GREY_BITS, describe_error, upright
from fedvlm.data.files import SUFFIXES, FileImage, is_shown, read_text
from fedvlm.data.record import Image, Record
from fedvlm.errors import FedvlmError, listed
from fedvlm.methods.base import Method
from fedvlm.tensors import Named
from fedvlm.training.activations import Activations
from fedvlm.training.device import Device
from fedvlm.tuners.base import Tuner, predict

CHUNK = 64
"""Number of images that are read and predicted at a time."""
MOST_LABELS = 100_000
"""Most classes of one prediction."""


class Base(Section):
    """The frozen CLIP that a personal model needs."""

    name: str
    """As in `model.name`: `embedded`, a hub id, or a directory."""
    revision: str | None = None
    weights: str
    """SHA-256 of its weight files."""
    digest: str
    """SHA-256 of weights, configuration, tokenizer and preprocessing."""
    transform: Literal["clip", "cifar10", "cifar100"] = "clip"


class Calibrated(Section):
    """What the client's training images have said of the model's confidence (`folds`)."""

    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Logits are divided by it."""
    none_below: Annotated[float, Field(ge=0, le=1)] | None = None
    """A highest probability below this is "none of these"; None without calibration."""
    images: int = 0
    """Number of predictions that were used."""
    folds: int = 0
    held_out: bool = True
    """Whether each was made by a model that was trained without its image."""
    before: float | None = None
    """Mean negative log-likelihood of these in nats, without the temperature."""
    after: float | None = None
    kept: float | None = None
    """Share of them whose highest probability is at least `none_below`."""
    why_not: str = ""
    """Why there is no calibration."""


class Facts(Section):
    """What a personal model is, besides its tensors: the content of `model.json`."""

    version: Literal[1] = 1
    package: str
    """Version of fedvlm."""
    method: str
    """Name of the method, or `package.module:Class`."""
    label: str
    """Its name in the experiment."""
    title: str
    settings: dict[str, Any]
    """The method's settings."""
    template: str
    classes: list[str]
    """The trained classes, in the order of the labels."""
    own: dict[str, int]
    """The client's training images by class."""
    novel: list[str] = Field(default=[])
    """Classes on which the model was measured and nobody trained."""
    base: Base
    dtype: Literal["float32", "tf32", "bfloat16", "float16"] = "float32"
    experiment: str
    """Digest of the experiment."""
    experiment_name: str
    changed: dict[str, Any] = Field(default={})
    """The experiment's settings that are not the defaults."""
    client: str
    seed: int
    rounds: int
    """Number of rounds that are over."""
    all_rounds: int
    """Number of rounds of the whole run."""
    trainings: int
    """Number of times that the client has trained."""
    local_rounds: int = 0
    """Number of last rounds in which clients train for themselves and send nothing."""
    state: str
    """The evaluated state (`EvalPoint`)."""
    metrics: dict[str, float] = Field(default={})
    """Of this client's model, on test images; in 0..1."""
    zero_shot: dict[str, float] = Field(default={})
    """The same of the CLIP as it was, if that was measured."""
    shared: dict[str, list[int]] = Field(default={})
    """Shapes of the tensors that crossed the network."""
    private: dict[str, list[int]] = Field(default={})
    """Shapes of the tensors that did not."""
    received: dict[str, list[int]] = Field(default={})
    """Shapes of what the client has of others, and predictions need."""
    support: int = 0
    """Number of the client's training images whose features or labels predictions need."""
    grey_bits: Annotated[int, Field(ge=8, le=16)] = 16
    """Range of grey values of more than 8 bits, as in training."""
    max_megapixels: Annotated[float, Field(gt=0)] = 40.0
    calibrated: Calibrated = Calibrated()


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image."""

    image: str
    labels: list[str]
    """The likeliest classes, the likeliest first; empty if the image could not be read."""
    probabilities: list[float]
    none: bool = False
    """Whether the highest probability is below the threshold: none of these classes."""
    problem: str = ""
    """Why the image could not be read."""

    @property
    def label(self) -> str | None:
        """The likeliest class; None for "none of these", and for an image that could not be read."""
        return None if self.none or self.problem else self.labels[0]


@dataclass(frozen=True, slots=True)
class HeldImage:
    """An image in memory."""

    key: str
    image: PIL.Image.Image
    bits: int = GREY_BITS

    def open(self) -> PIL.Image.Image:
        """The image in RGB, upright, as if it were read from a file. Raises `FedvlmError`."""
        try:
            return upright(self.image.copy(), self.bits)
        except (ValueError, OSError) as error:
            raise FedvlmError(f"{self.key}: {describe_error(error)}") from None


@dataclass(frozen=True)
class PersonalModel:
    """One client's model. N images, K classes, E width of a feature."""

    facts: Facts
    clip: FrozenCLIP
    device: Device
    tensors: Named
    """The client's tensors in the evaluated state."""
    received: Named
    """What the client had received with them, such as experts."""
    support: tuple[Tensor, Tensor] | None = None
    """Activations of the client's training images `[n, ...]` and their labels `[n]`, for methods that remember them."""
    _tuners: dict[tuple[str, ...], tuple[Tuner, Named, Named]] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def method(self) -> Method:
        """The configured method."""
        return methods.find(self.facts.method)(self.facts.settings)

    def predict(
        self,
        images: str | Path | PIL.Image.Image | Sequence[str | Path | PIL.Image.Image],
        labels: Sequence[str] | None = None,
        *,
        trained: bool | None = None,
        top: int = 5,
        none_below: float | None = None,
    ) -> list[Prediction]:
        """The likeliest classes of each image, with probabilities.

        `images`: files or images, one or several. `labels`: other classes than the trained ones; with `trained` the
        trained ones too. `none_below`: a threshold in the place of the calibrated one, which holds for the trained
        classes only; 0 for none. An image that cannot be read has a `problem`. Raises `FedvlmError`.
        """
        several = [images] if isinstance(images, str | Path | PIL.Image.Image | np.ndarray) else list(images)
        given = [self._image(one, place) for place, one in enumerate(several)]
        names = self.class_list(labels, trained)
        known = self.facts.calibrated.none_below if labels is None else None
        threshold = known if none_below is None else none_below
        self.ready(names)  # what is wrong with the classes is no image's problem
        chunks = [given[start : start + CHUNK] for start in range(0, len(given), CHUNK)]
        return [one for chunk in chunks for one in self._chunk(chunk, names, max(1, top), threshold or 0.0)]

    def logits(self, images: Sequence[Image], names: Sequence[str]) -> Tensor:
        """Logits `[N, K]` float32 on the CPU over these class names, as they are: not divided by the temperature.

        Raises `FedvlmError` naming an image that cannot be read.
        """
        tuner, on_device, classifier = self.ready(names)
        records = tuple(Record(image, 0, "") for image in images)
        seen = Activations(self.clip, records, self.device, 0)
        with torch.no_grad(), self.device.autocast():
            found = predict(tuner, on_device, classifier, seen.get(range(len(records)), tuner.entry))[0]
        return (found if found.ndim == 2 else found.mean(1)).cpu()

    def class_list(self, labels: Sequence[str] | None = None, trained: bool | None = None) -> list[str]:
        """The classes of a prediction: the trained ones, or `labels`, or both. Raises `FedvlmError`."""
        if isinstance(labels, str):
            raise FedvlmError(f"labels: a list of class names, not the text '{labels}'")
        new = [label.strip() for label in labels or ()]
        if labels is not None and (not new or "" in new):
            raise FedvlmError("labels: a class needs a name")
        both = labels is None if trained is None else trained
        names = list(dict.fromkeys([*(self.facts.classes if both else ()), *new]))
        if not names:
            raise FedvlmError("no class to choose from: give labels, or take the trained ones")
        if len(names) > MOST_LABELS:
            raise FedvlmError(f"{len(names):,} classes are more than {MOST_LABELS:,}")
        return names

    def _chunk(self, images: Sequence[Image], names: list[str], top: int, threshold: float) -> Iterator[Prediction]:
        try:
            rows: list[Tensor | str] = list(self.logits(images, names))
        except FedvlmError:
            rows = [self._alone(one, names) for one in images]
        for image, row in zip(images, rows, strict=True):
            if not isinstance(row, str) and not bool(row.isfinite().all()):
                row = "the model gives no finite value for it"
            if isinstance(row, str):
                yield Prediction(image.key, [], [], problem=row)
                continue
            chances = torch.softmax(row.double() / self.facts.calibrated.temperature, 0)
            best = chances.topk(min(top, len(names)))
            kept = best.values.tolist()
            yield Prediction(image.key, [names[place] for place in best.indices.tolist()], kept, kept[0] < threshold)

    def _image(self, one: Any, place: int) -> Image:
        bits = self.facts.grey_bits
        if isinstance(one, PIL.Image.Image):
            return HeldImage(f"image {place + 1}", one, bits)
        if isinstance(one, np.ndarray) and one.dtype == np.uint8 and one.ndim == 3 and one.shape[2] == 3:
            return HeldImage(f"image {place + 1}", PIL.Image.fromarray(one), bits)
        if isinstance(one, str | Path):
            path = Path(one).expanduser()
            real = path.resolve()  # whoever names a link means what it leads to
            return _File(real.parent, real.name, self.facts.max_megapixels, bits=bits, shown=shown(one))
        what = f"an array {one.shape} of {one.dtype}" if isinstance(one, np.ndarray) else type(one).__name__
        raise FedvlmError(f"{what} is no image: give a path, a PIL image or an array [H, W, 3] of uint8")

    def _alone(self, image: Image, names: list[str]) -> Tensor | str:
        try:
            return self.logits([image], names)[0]
        except FedvlmError as error:
            return str(error)

    def ready(self, names: Sequence[str]) -> tuple[Tuner, Named, Named]:
        """The tuner for a class list, with the client's tensors and the classifier; the last few are kept."""
        key = tuple(names)
        if key not in self._tuners:
            while len(self._tuners) >= 4:
                self._tuners.pop(next(iter(self._tuners)))
            self._tuners[key] = self._made(key)
        return self._tuners[key]

    def _made(self, names: tuple[str, ...]) -> tuple[Tuner, Named, Named]:
        tuner = self.method.tuner(self.clip, list(names), self.facts.template)
        tensors, received = (
            {n: self.device.send(t) for n, t in part.items()} for part in (self.tensors, self.received)
        )
        # The client's labels are places in the trained classes, so its images say something where these come first.
        ours = list(names[: len(self.facts.classes)]) == self.facts.classes
        support = None if self.support is None or not ours else self._support
        with torch.no_grad(), self.device.autocast():
            return tuner, tensors, tuner.classifier(tensors, tuner.prepare(received, support))

    def _support(self) -> tuple[Tensor, Tensor]:
        assert self.support is not None
        hidden, labels = self.support
        return self.device.send(hidden), self.device.send(labels)


@dataclass(frozen=True, slots=True)
class _File(FileImage):
    """An image file, called as it was given."""

    shown: str = ""

    @property
    def key(self) -> str:
        """The path as it was given."""
        return self.shown


def shown(path: str | Path) -> str:
    """A path as text that every file and terminal takes."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def sources(words: Sequence[str | Path], without: Path | None = None) -> list[Path]:
    """The image files that words name: files, folders (all images below), and `@LIST`, a text file of such words.

    Relative paths in a list start from its folder. Images below the folder `without` are left out. Raises `FedvlmError`
    for what does not exist, and if no image is left.
    """
    found: list[Path] = []
    for word in words:
        if str(word).startswith("@"):
            file = Path(str(word)[1:]).expanduser()
            for line in filter(None, map(str.strip, read_text(file).splitlines())):
                found += _below(file.parent / Path(line).expanduser())
        else:
            found += _below(Path(word).expanduser())
    apart = None if without is None else without.resolve()
    kept = [one for one in found if apart is None or not one.resolve().is_relative_to(apart)]
    if not kept:
        raise FedvlmError(f"no image in {listed(map(shown, words))}")
    return kept


def _below(path: Path) -> list[Path]:
    if path.is_dir():
        below = sorted(one for one in path.rglob("*") if one.suffix.lower() in SUFFIXES and one.is_file())
        kept = [one for one in below if all(is_shown(part) for part in one.relative_to(path).parts)]
        if not kept:
            raise FedvlmError(f"{shown(path)} holds no image ({listed(sorted(SUFFIXES), 20)})")
        return kept
    if not path.exists():
        raise FedvlmError(f"no such file or folder: {shown(path)}")
    return [path]
