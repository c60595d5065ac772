"""Tiny random CLIPs and federations made in memory: no file, no network, milliseconds per step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import PIL.Image
import tokenizers
import torch
from tokenizers import Regex, models, normalizers, pre_tokenizers

from fedvlm import tensors
from fedvlm.clip import CLIP, FrozenCLIP
from fedvlm.clip.config import ClipConfig, ResNet, Text, Transformer, ViT
from fedvlm.clip.preprocess import Preprocess
from fedvlm.clip.tokenizer import Tokenizer
from fedvlm.data import Client, Federation, Record, Source
from fedvlm.federation.records import RoundRecord
from fedvlm.federation.setup import site_keys
from fedvlm.federation.simulation import FederationState, Schedule, Simulation, run_rounds, start
from fedvlm.federation.spec import RunSpec
from fedvlm.methods import find
from fedvlm.methods.base import EvalPoint, Method
from fedvlm.streams import stream, torch_stream
from fedvlm.tensors import Named
from fedvlm.training.activations import Activations
from fedvlm.training.device import Device
from fedvlm.training.site import Site
from fedvlm.tuners.base import Tuner

CPU = Device(torch.device("cpu"))
MERGES = [
    ("p", "h"),
    ("c", "a"),
    ("ca", "t</w>"),
    ("o", "f</w>"),
    ("d", "o"),
    ("do", "g</w>"),
    ("t", "o</w>"),
    ("ph", "o"),
]
BASE = ("red fox", "green_frog", "blue jay", "white owl's")
NOVEL = ("black cat", "grey dog", "pink pig")
SIZES = (11, 6, 3, 9)

SETTINGS: dict[str, Any] = {
    "all": {
        "lr": 0.05, "gate_lr": 0.05, "epochs": 2, "batch": 4, "first_block": 2, "last_block": 3, "rank": 4,
        "scale": 0.1, "tokens": 3, "gate_width": 8, "heads": 2, "experts": 3, "init_text": None, "start": None,
        "depth": 2,
    },
    # Methods whose rates are of another order.
    "fedclip": {"lr": 0.02, "objective": "classes"}, "fedmgp": {"diversity": 0.1},
}  # fmt: skip
"""Settings that reduce the trainable part of every method to the size of `clip()`."""


def bytes_alphabet() -> list[str]:
    """CLIP's 256 printable stand-ins for bytes, in the order of its vocabulary (GPT-2's published table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + place) for place in range(len(others))]


def vocabulary() -> dict[str, int]:
    """Token ids of the 512 letters, eight merges, start and end of text."""
    letters = bytes_alphabet()
    words = letters + [f"{letter}</w>" for letter in letters] + [a + b for a, b in MERGES]
    return {word: place for place, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}


def byte_pairs() -> tokenizers.Tokenizer:
    """A CLIP tokenizer with the 512 letters and eight merges."""
    inner = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary(), merges=MERGES, end_of_word_suffix="</w>", unk_token="<|endoftext|>")
    )
    inner.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = Regex(r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+""")
    split = pre_tokenizers.Split(words, behavior="removed", invert=True)
    inner.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    inner.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    return inner


def tokenizer(context: int = 40) -> Tokenizer:
    """A tokenizer for texts of at most `context` tokens."""
    return Tokenizer(byte_pairs(), context)


def vit_config(
    *, vision: Sequence[int] = (32, 3, 2, 64), text: Sequence[int] = (24, 4, 3, 48), embed: int = 16, image: int = 16,
    patch: int = 8, context: int = 40, activation: str = "quick_gelu",
) -> ClipConfig:  # fmt: skip
    """A small ViT CLIP; `vision` and `text` are (width, layers, heads, mlp width)."""

    def tower(width: int, layers: int, heads: int, mlp: int) -> Transformer:
        return Transformer(width, layers, heads, mlp, activation=activation)

    return ClipConfig(
        ViT(image, patch, tower(*vision)),
        Text(context, len(vocabulary()), tower(*text)),
        embed,
    )


def bidirectional_config(
    *, width: int = 32, text: Sequence[int] = (24, 4, 3, 48), embed: int = 32, context: int = 24
) -> ClipConfig:
    """A dual encoder as unlike CLIP as the configuration allows, built as SigLIP's.

    Images without class token and LayerNorm before the blocks, pooled by attention, without projection; texts that
    attend in both directions, with a bias in their projection.
    """
    like = vit_config(vision=(width, 3, 2, 64), text=text, embed=embed, context=context, activation="gelu_pytorch_tanh")
    assert isinstance(like.vision, ViT)
    vision = replace(
        like.vision, class_token=False, pre_norm=False, patch_bias=True, pool="attention", projection=width != embed
    )
    return ClipConfig(vision, replace(like.text, causal=False, projection_bias=True), embed)


def resnet_config(embed: int = 32) -> ClipConfig:
    """A small CLIP with a ResNet of five blocks."""
    return ClipConfig(ResNet(32, (1, 2, 1, 1), 16), Text(40, len(vocabulary()), Transformer(24, 3, 2, 48)), embed)


def randomise(clip: CLIP, seed: int = 0) -> None:
    """Set all weights to random values: no bias is zero and no norm is one, so that a forgotten weight is noticed."""
    draw = torch.Generator().manual_seed(seed)
    for name, tensor in clip.state_dict().items():
        if name == "logit_scale":
            tensor.fill_(float(np.log(20.0)))
        elif "num_batches" in name:
            continue
        elif "running_var" in name:
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=draw))
        elif tensor.ndim >= 2:
            fan = tensor[0].numel() if "proj" not in name.rsplit(".", 1)[-1] or "in_proj" in name else tensor.shape[0]
            tensor.copy_(torch.randn(tensor.shape, generator=draw) * fan**-0.5)
        else:
            tensor.copy_(0.2 * torch.randn(tensor.shape, generator=draw) + (1.0 if name.endswith("weight") else 0.0))


def clip(config: ClipConfig | None = None, seed: int = 0) -> FrozenCLIP:
    """A CLIP of random weights, by default a ViT of three blocks and a text encoder of four."""
    config = config or vit_config()
    return _made(config, tokenizer(config.text.context), seed)


def bidirectional(config: ClipConfig | None = None, seed: int = 0, *, read_padding: bool = True) -> FrozenCLIP:
    """A dual encoder of `bidirectional_config` with random weights.

    Its rows have no start token. With `read_padding` every text is read at the end of the context, as SigLIP's is;
    otherwise it ends at its end token.
    """
    config = config or bidirectional_config()
    words = Tokenizer(byte_pairs(), config.text.context, start=None, pad="<|startoftext|>", read_padding=read_padding)
    made = _made(config, words, seed)
    # Texts that are read behind their padding differ little; such models are trained to scales of 110 and more.
    made.logit_scale.fill_(float(np.log(100.0)))
    return made


def _made(config: ClipConfig, words: Tokenizer, seed: int) -> FrozenCLIP:
    made = FrozenCLIP(config, words, Preprocess(config.vision.image), "small", "none")
    randomise(made, seed)
    return made


@dataclass(frozen=True)
class ArrayImage:
    """An image in memory; `opened` has an entry for every call of `open`."""

    key: str
    pixels: np.ndarray
    opened: list[int] = field(default_factory=list, compare=False)

    def open(self) -> PIL.Image.Image:
        """The pixels as an image."""
        self.opened.append(1)
        return PIL.Image.fromarray(self.pixels)


def source(
    base: Sequence[str] = BASE, novel: Sequence[str] = NOVEL, each: int = 12, side: int = 20, seed: int = 5
) -> Source:
    """`each` images of every class: the class's own colour pattern under noise."""
    draw, records = np.random.default_rng(seed), []
    names = tuple(base) + tuple(novel)
    for label, name in enumerate(names):
        pattern = draw.integers(0, 256, (4, 4, 3)).repeat(side // 4, 0).repeat(side // 4, 1)
        for number in range(each):
            pixels = np.clip(pattern + draw.normal(0, 25, pattern.shape), 0, 255).astype(np.uint8)
            records.append(Record(ArrayImage(f"{label}/{number}", pixels), label, name))
    return Source("small", names, tuple(records))


def federation(sizes: Sequence[int] = SIZES, seed: int = 5) -> Federation:
    """Clients of unequal sizes over four base classes, three novel classes; two test images of each class."""
    data, draw = source(seed=seed), np.random.default_rng(seed + 1)
    of = {label: [i for i, record in enumerate(data.records) if record.label == label] for label in range(7)}
    tests = {"base": tuple(i for label in range(4) for i in of[label][:2]),
             "novel": tuple(i for label in (4, 5, 6) for i in of[label][:2])}  # fmt: skip
    free = draw.permutation([i for label in range(4) for i in of[label][2:]]).tolist()
    clients = []
    for number, size in enumerate(sizes):
        train, free = tuple(sorted(free[:size])), free[size:]
        classes = tuple(sorted({data.records[i].label for i in train}))
        local = tuple(i for i in tests["base"] if data.records[i].label in classes)
        clients.append(Client(f"site-{number}", train, local, "base", "novel", classes, None))
    return Federation(data, (0, 1, 2, 3), (4, 5, 6), tuple(clients), tests)


def method(kind: str | type[Method], **settings: Any) -> Method:
    """A method of ours by name, or any method by its class, reduced to the size of `clip()`."""
    kind = find(kind) if isinstance(kind, str) else kind
    usual = {key: value for key, value in SETTINGS["all"].items() if key in kind.Config.model_fields}
    return kind(usual | SETTINGS.get(kind.name, {}) | settings)


def site(method_: Method, frozen: FrozenCLIP, fed: Federation, *, limit: int = 1 << 30, device: Device = CPU) -> Site:
    """A new site with all clients and empty caches."""
    return Site(
        method_.tuner(frozen, fed.base_names, "a photo of a {}."),
        method_.tuner(frozen, fed.novel_names, "a photo of a {}."),
        fed,
        Activations(frozen, fed.source.records, device, limit),
        256,
    )


def random(tuner: Tuner, scale: float, draw: torch.Generator) -> Named:
    """Random tensors of a tuner's shapes, far from its initial ones."""
    return {name: scale * torch.randn(tensor.shape, generator=draw) for name, tensor in tuner.init(draw).items()}


def simulation(
    method_: Method, frozen: FrozenCLIP, fed: Federation, *, rounds: int = 3, seed: int = 1, limit: int = 1 << 30,
    device: Device = CPU, views: str | int = "none", report: EvalPoint | None = None, participation: float = 1.0,
    every: int = 1, clients_per_step: int = 1, **more: Any,
) -> Simulation:  # fmt: skip
    """A new simulation, as a new process would make it. `more`: fields of `Simulation`."""
    place = site(method_, frozen, fed, limit=limit, device=device)
    place.activations.prepare(site_keys(fed, "none"), place.base.entry)
    spec = RunSpec(method_, place.base.init(torch_stream(seed, "init")), seed, method_.rounds(rounds), views, report)
    return Simulation(spec, place, Schedule(participation, every, clients_per_step), **more)


def run(simulated: Simulation, state: FederationState | None = None) -> tuple[FederationState, list[RoundRecord]]:
    """Run the remaining rounds of a simulation; returns the last state and all records."""
    begun, records = state or start(simulated), []
    last = begun
    for last, record in run_rounds(simulated, begun):  # noqa: B007
        records.append(record)
    return last, records


def fingerprint(state: FederationState) -> dict[str, str]:
    """Digests of all durable tensors of a state."""
    return {"round": str(state.round), "server": tensors.digest(state.server)} | {
        f"client {name}": tensors.digest(own) for name, own in sorted(state.personal.items())
    }


def draws(*names: int | str) -> np.random.Generator:
    """A named stream of test data."""
    return stream(0, "test", *names)
