"""Tensors that are stored as random draws: `NAME.drawn.json` beside `NAME.safetensors`.

Random inputs and weights need no storage: PyTorch's generator on the CPU is a Mersenne twister, whose numbers depend on
the seed only. The file lists tensors by distribution, each with its position (32-bit numbers drawn before it) and its
shape, and the Euclidean norm of all tensors:

    {"norm": 213.4, "draws": [{"seed": 111, "law": "normal", "scale": 1.0, "tensors": {"images": [0, 8, 3, 32, 32]}}]}

The logarithm in a normal draw may differ by a rounding between processors; `norm` guards against another generator.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import pydantic
import torch
from pydantic import Field
from torch import Tensor

from fedvlm import durable, tensors
from fedvlm.errors import FedvlmError, listed
from fedvlm.tensors import Named

SUFFIX = ".drawn.json"
_LIMIT = 1 << 27
"""Maximum of position and size of a tensor, so that a file cannot require hours of drawing."""
_CHUNK = 1 << 20
_Finite = Annotated[float, Field(allow_inf_nan=False)]


class Law(pydantic.BaseModel):
    """Distribution of a tensor. `normal`: mean + scale z. `uniform`: mean + a number between -scale and scale."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)

    seed: Annotated[int, Field(ge=0, lt=1 << 63)]
    law: Literal["normal", "uniform"]
    scale: Annotated[_Finite, Field(gt=0)]
    mean: _Finite = 0.0
    half: bool = False
    """Whether numbers are rounded to float16."""
    transposed: bool = False
    """Whether matrices were drawn with exchanged axes."""

    def draw_tensor(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Draw a tensor of a shape, from a generator at the position of the tensor."""
        empty = torch.empty(tuple(reversed(shape)) if self.transposed else tuple(shape))
        if self.law == "normal":
            found = self.mean + self.scale * empty.normal_(generator=generator)
        else:
            found = self.mean + empty.uniform_(-self.scale, self.scale, generator=generator)
        found = found.half().float() if self.half else found
        return found.T.contiguous() if self.transposed else found


class Draws(Law):
    """Tensors of one distribution: position and shape by name."""

    tensors: dict[str, Annotated[list[Annotated[int, Field(ge=0, le=_LIMIT)]], Field(min_length=2, max_length=5)]]

    @pydantic.model_validator(mode="after")
    def _possible(self) -> Draws:
        for name, (position, *shape) in self.tensors.items():
            count = math.prod(shape)
            if position + count > _LIMIT:
                raise ValueError(f"'{name}': position and size together are above {_LIMIT:,}")
            # A normal draw of another size takes more numbers than it gives.
            if not count or count % 16 or (self.transposed and len(shape) != 2):
                raise ValueError(f"'{name}': the size must be a multiple of 16, and a transposed tensor a matrix")
        return self


class DrawTable(pydantic.BaseModel):
    """The content of a `NAME.drawn.json`."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)

    norm: _Finite
    draws: list[Draws]


def draw(groups: Sequence[Draws]) -> Named:
    """Draw all tensors, in the order of seeds and positions, so that few numbers are drawn twice."""
    entries = [(group.seed, place, name, shape, group)
               for group in groups for name, (place, *shape) in group.tensors.items()]  # fmt: skip
    found, generator, at = Named(), torch.Generator(), (-1, 0)
    for seed, place, name, shape, group in sorted(entries, key=lambda entry: entry[:3]):
        if at[0] != seed or at[1] > place:
            generator.manual_seed(seed)
            at = seed, 0
        _skip(generator, place - at[1])
        found[name], at = group.draw_tensor(shape, generator), (seed, place + math.prod(shape))
    return found


def _skip(generator: torch.Generator, count: int) -> None:
    """Advance the generator by `count` numbers."""
    while count > 0:
        torch.rand(min(count, _CHUNK), generator=generator)
        count -= _CHUNK


def load(file: Path) -> Named:
    """The tensors of a safetensors file and of the draws beside it. Raises `FedvlmError` for an unreadable file."""
    beside = file.with_suffix(SUFFIX)
    stored = tensors.load(file)
    if not beside.exists():
        return stored
    table = read(beside)
    found = draw(table.draws)
    if both := found.keys() & stored.keys():
        raise FedvlmError(f"{beside} draws what {file.name} holds: {listed(sorted(both), 4)}")
    if not math.isclose(norm := tensors.norm(found), table.norm, rel_tol=1e-6):
        raise FedvlmError(
            f"{beside}: the draws have norm {norm:.9g}, not {table.norm:.9g}: the generator of PyTorch "
            f"{torch.__version__} gives other numbers. Use the full reference outputs"
        )
    return stored | found


def read(file: Path) -> DrawTable:
    """The content of a `NAME.drawn.json`. Raises `FedvlmError` for an unreadable file."""
    try:
        return DrawTable.model_validate_json(file.read_bytes())
    except (OSError, pydantic.ValidationError) as error:
        raise FedvlmError(f"{file} is not a readable table of draws: {error}") from None


def save(file: Path, stored: Named, groups: Sequence[Draws]) -> None:
    """Write both files."""
    tensors.save(file, stored)
    lines = []
    for group in groups:
        law = group.model_dump_json(exclude_defaults=True, exclude={"tensors"})[:-1]
        names = ",\n".join(f"  {json.dumps(name)}: {json.dumps(place)}" for name, place in group.tensors.items())
        lines.append(f'{law},"tensors":{{\n{names}}}}}')
    text = f'{{"norm": {tensors.norm(draw(groups))!r}, "draws": [\n' + ",\n".join(lines) + "\n]}\n"
    durable.write_text(file.with_suffix(SUFFIX), text)


@contextmanager
def completed_folder(folder: Path) -> Iterator[Path]:
    """A CLIP directory with all weights: the directory itself, or a temporary copy if some weights are draws."""
    if not any(folder.glob(f"*{SUFFIX}")):
        yield folder
        return
    with tempfile.TemporaryDirectory() as place:
        for file in sorted(folder.iterdir()):
            if file.suffix == ".safetensors":
                tensors.save(Path(place) / file.name, load(file))
            elif file.suffix in (".json", ".txt") and not file.name.endswith(SUFFIX):
                shutil.copy(file, place)
        yield Path(place)
