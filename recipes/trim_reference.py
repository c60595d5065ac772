"""`python recipes/trim_reference.py FULL OUT`: reference outputs without what is not needed to check them.

Every compared number stays as it is. What goes: embedding rows of tokens and positions that no text has, and with
them the vocabulary; inputs and weights that are draws of PyTorch's generator: each is looked up in the numbers
of a few seeds and goes only where the draw gives it back bit for bit (`fedvlm.checks.drawn_tensors`); half of every
float32 that a float16 holds exactly.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from torch import Tensor

from fedvlm import durable, tensors
from fedvlm.checks import agreement, drawn_tensors
from fedvlm.checks.drawn_tensors import Draws
from fedvlm.clip.tokenizer import EOT, SOT
from fedvlm.tensors import Named

SEEDS = {0: 19 << 20, 5: 16 << 20} | dict.fromkeys((1, 6, 7, 11, 21, 111, 121), 1 << 19)
"""Seeds that the modules and inputs were made with, and how many of each one's numbers are looked through."""
INPUTS = (16, 27, 32, 64, 72, 128, 144, 192, 256, 288, 512, 576, 1152)
UNIFORM = [math.sqrt(3) * math.sqrt(2 / 6) / math.sqrt(inputs) for inputs in INPUTS]
UNIFORM += [math.sqrt(6 / (128 + 3 * 128)), 0.5]
"""PyTorch's bounds for linear layers and convolutions of so many inputs, and for attention; running variances."""
NORMAL = [1.0, 0.3, 0.25, 0.125, 0.1, 0.05, 0.02, 128**-0.5, 256**-0.5, 512**-0.5, 1024**-0.5]
NORMAL += [128**-0.5 * (2 * layers) ** -0.5 for layers in (12, 4)]
"""Standard deviations: of the modules' initialisation, of perturbed norms, biases and prompts, of adapters."""
EMBEDDING = ("text_model.embeddings.token_embedding.weight", "token_embedding.weight")
POSITIONS = ("text_model.embeddings.position_embedding.weight", "positional_embedding")


class Finder:
    """Looks numbers up in the first numbers of the seeds."""

    def __init__(self) -> None:
        self.streams = {}
        for seed, count in SEEDS.items():
            stream = torch.rand(count, generator=torch.Generator().manual_seed(seed))
            self.streams[seed] = stream, *stream[:-16].sort()

    def found(self, name: str, tensor: Tensor) -> Draws | None:
        """The draw that is this tensor, bit for bit."""
        if tensor.dtype != torch.float32 or tensor.numel() < 64 or tensor.numel() % 16:
            return None
        half = torch.equal(tensor, tensor.half().float())
        for transposed in (False, True) if tensor.dim() == 2 else (False,):
            for law, scale, mean, uniform in _laws(tensor.T if transposed else tensor):
                for seed, place in self._places(uniform, 2e-3 if half else 1e-4):
                    one = Draws(seed=seed, law=law, scale=scale, mean=mean, half=half, transposed=transposed,
                                tensors={name: [place, *tensor.shape]})  # fmt: skip
                    if torch.equal(drawn_tensors.draw([one])[name], tensor):
                        return one
        return None

    def _places(self, uniform: Tensor, near: float) -> Iterator[tuple[int, int]]:
        """Where 16 numbers stand in the streams, about."""
        for seed, (stream, ordered, order) in self.streams.items():
            low, high = torch.searchsorted(ordered, torch.stack([uniform[0] - near, uniform[0] + near])).tolist()
            places = order[low:high]
            for step in range(1, 16):
                places = places[(stream[places + step] - uniform[step]).abs() < near]
            yield from ((seed, int(place)) for place in places)


def _laws(tensor: Tensor) -> Iterator[tuple[Any, float, float, Tensor]]:
    """Laws that may have given a tensor, each with the 16 uniform numbers that its first 16 come from."""
    first = tensor.flatten()[:16].double()
    mean = float(round(float(tensor.mean())))
    largest, spread = float((tensor - mean).abs().max()), float((tensor - mean).std())
    for bound in UNIFORM:
        if 0.8 * bound < largest <= bound * 1.001:
            yield "uniform", bound, mean, (((first - mean) / bound + 1) / 2).float()
    for scale in NORMAL:
        if abs(spread / scale - 1) < 0.3:
            # Box and Muller: numbers j and j + 8 are sqrt(-2 ln(1 - u_j)) times cosine and sine of 2 pi u_(j+8).
            x, y = ((first - mean) / scale).split(8)
            radius, angle = 1 - torch.exp(-(x * x + y * y) / 2), (torch.atan2(y, x) / (2 * math.pi)) % 1.0
            yield "normal", scale, mean, torch.cat([radius, angle]).float()


def split(table: Named, finder: Finder) -> tuple[Named, list[Draws]]:
    """What must be stored, and what is a draw."""
    stored, groups = Named(), dict[str, Draws]()
    for name, tensor in table.items():
        if one := finder.found(name, tensor):
            key = one.model_dump_json(exclude={"tensors"})
            groups.setdefault(key, one).tensors.update(one.tensors)
        else:
            stored[name] = tensor
    return stored, list(groups.values())


def fixture(file: Path, out: Path, finder: Finder) -> None:
    """Inputs that are draws go; outputs are stored as they are."""
    table = tensors.load(file.with_suffix(".safetensors"))
    stored, draws = split({name: t for name, t in table.items() if agreement.is_input(name)}, finder)
    outputs = {name: tensor for name, tensor in table.items() if not agreement.is_input(name)}
    drawn_tensors.save(out / f"{file.stem}.safetensors", stored | outputs, draws)
    durable.write_text(out / file.name, file.read_text())


def texts(settings: dict[str, Any]) -> Iterator[str]:
    """Every text that a fixture gives to the text encoder."""
    for key in ("prompt", "suffix", "zero_shot_prompt"):
        yield from (settings[key].format(name.replace("_", " ")) for name in settings["classnames"] if key in settings)


def tokens(full: Tokenizer, lines: list[str]) -> tuple[str, list[int]]:
    """A tokenizer that knows only the tokens of these texts, as JSON, and the rows of the vocabulary it keeps."""
    encoded = [full.encode(line, add_special_tokens=False).ids for line in lines]
    ends = [full.token_to_id(SOT), full.token_to_id(EOT)]
    rows = sorted({row for row in itertools.chain(ends, *encoded) if row is not None})
    pieces = {(full.id_to_token(row) or "").removesuffix("</w>"): place for place, row in enumerate(rows)}
    small = Tokenizer.from_str(full.to_str())
    # Longest piece first. Without a token for the unknown, another word is an error and not a wrong number.
    small.model = models.WordPiece(pieces, unk_token="<|no such word|>", continuing_subword_prefix="")
    table = json.loads(small.to_str()) | {"post_processor": None, "decoder": None}
    table["added_tokens"] = [one | {"id": pieces[one["content"]]} for one in table["added_tokens"]]
    text = json.dumps(table, indent=1)
    for line, ids in zip(lines, encoded, strict=True):
        found = Tokenizer.from_str(text).encode(line, add_special_tokens=False).ids
        if [rows[number] for number in found] != ids:
            raise SystemExit(f"'{line}' gets other tokens from the small tokenizer: {found}")
    return text, rows


def clip(folder: Path, out: Path, lines: list[str], prompt: int, finder: Finder) -> None:
    """Configuration, the tokens of the texts, and weights; before each text stand `prompt` more tokens."""
    (weights,) = folder.glob("*.safetensors")
    words, rows = tokens(Tokenizer.from_file(str(folder / "tokenizer.json")), lines)
    small = Tokenizer.from_str(words)
    reach = prompt + 2 + max(len(small.encode(line).ids) for line in lines)
    table = tensors.load(weights)
    embedding = next(name for name in EMBEDDING if name in table)
    stored, draws = split({name: tensor for name, tensor in table.items() if name != embedding}, finder)
    stored[embedding] = table[embedding][rows]
    position = next(name for name in POSITIONS if name in table)
    if position in stored:
        stored[position] = stored[position][:reach]
    exact = {name: t.half() if torch.equal(t, t.half().float()) else t for name, t in stored.items()}
    drawn_tensors.save(out / weights.name, exact, draws)
    durable.write_text(out / "tokenizer.json", words)
    (config,) = [file for file in folder.glob("*config.json") if file.name != "tokenizer_config.json"]
    length = reach if position in stored else len(table[position])
    durable.write_text(out / config.name, _config(config, small, length))


def _config(file: Path, words: Tokenizer, length: int) -> str:
    """The configuration of a CLIP with this vocabulary and so many text positions."""
    shape = json.loads(file.read_text())
    if "model_cfg" in shape:
        shape["model_cfg"]["text_cfg"] |= {"vocab_size": words.get_vocab_size(), "context_length": length}
    else:
        sot, eot = words.token_to_id(SOT), words.token_to_id(EOT)
        shape["text_config"] |= {"vocab_size": words.get_vocab_size(), "max_position_embeddings": length,
                                 "bos_token_id": sot, "eos_token_id": eot, "pad_token_id": eot}  # fmt: skip
    return json.dumps(shape, indent=1) + "\n"


def trim(full: Path, out: Path) -> None:
    """A full directory to a small one."""
    finder, lines, prompts = Finder(), dict[str, list[str]](), dict[str, int]()
    for file in sorted(full.glob("*.json")):
        settings = json.loads(file.read_text())
        durable.make_folder(out / settings["clip"])
        fixture(file, out, finder)
        name = settings["clip"]
        lines.setdefault(name, []).extend(texts(settings))
        prompts[name] = max(prompts.get(name, 0), settings.get("context_tokens", 0))
    for name, found in lines.items():
        clip(full / name, out / name, found, prompts[name], finder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("full", type=Path, help="directory with all reference outputs")
    parser.add_argument("out", type=Path, help="folder to write")
    given = parser.parse_args()
    trim(given.full, given.out)
    print(f"{sum(file.stat().st_size for file in given.out.rglob('*') if file.is_file()):,} bytes in {given.out}")
