"""What is trained, shared and sent, at the published sizes: weightless CLIPs of ViT-B/16 and RN50 (baselines.md 2)."""

from __future__ import annotations

import importlib
import itertools
import math
import pkgutil
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from fedvlm import methods, tensors
from fedvlm.clip import FrozenCLIP
from fedvlm.clip.config import standard
from fedvlm.clip.preprocess import Preprocess
from fedvlm.federation import messages
from fedvlm.methods.base import Method, Uplink
from fedvlm.streams import stream, torch_stream
from fedvlm.tensors import Named
from fedvlm.testing import tiny


def weightless(name: str) -> FrozenCLIP:
    with torch.device("meta"):
        return FrozenCLIP(standard(name), tiny.tokenizer(77), Preprocess(224), name, "")


@pytest.fixture(scope="module", params=["ViT-B/16", "RN50"])
def clip(request: pytest.FixtureRequest) -> FrozenCLIP:
    return weightless(request.param)


@pytest.fixture(scope="module")
def vit() -> FrozenCLIP:
    return weightless("ViT-B/16")


def initial(clip: FrozenCLIP, method: Method) -> Named:
    return method.tuner(clip, ["cat", "dog"], "a photo of a {}.").init(torch_stream(0, "init"))


COUNTS = [  # method, settings, trained, shared
    ("zero_shot", {}, 0, 0),
    ("promptfl", {}, 8_192, 8_192), ("promptfl", {"tokens": 4}, 2_048, 2_048), ("coop", {}, 8_192, 0),
    ("pfedmoap", {}, 8_192 + 66_048, 8_192), ("pfedmoap", {"gate_width": 32}, 8_192 + 4_224, 8_192),
    ("pfedmoap", {"gate_width": 64}, 8_192 + 16_640, 8_192), ("pfedmoap", {"gate_width": 256}, 8_192 + 263_168, 8_192),
    ("pfedmoap", {"gate_width": 512}, 8_192 + 1_050_624, 8_192),
    ("promptfl_ft", {}, 8_192, 8_192), ("promptfl_prox", {}, 8_192, 8_192), ("fedamp", {}, 8_192, 8_192),
    ("pfedprompt", {}, 8_192, 8_192), ("fedper", {}, 8_192, 4_096), ("fedper", {"shared_tokens": 16}, 8_192, 8_192),
    ("kgcoop", {"init_text": None}, 2_048, 2_048), ("fedotp", {}, 16_384, 8_192), ("fedotp", {"tokens": 4}, 4_096, 2_048),
    ("promptfolio", {}, 16_384, 8_192), ("fedpgp", {}, 12_416, 8_192), ("tip_adapter", {}, 0, 0), ("gaussian", {}, 0, 0),
    ("zero_shot_prior", {}, 0, 0), ("zero_shot_own", {}, 0, 0), ("majority", {}, 0, 0),
]  # fmt: skip


@pytest.mark.parametrize(("name", "settings", "trained", "shared"), COUNTS)
def test_numbers_trained_and_shared(
    clip: FrozenCLIP, name: str, settings: dict[str, Any], trained: int, shared: int
) -> None:
    method = methods.known()[name](settings)
    start = initial(clip, method)
    assert tensors.count(start) == trained
    assert tensors.count(messages.uplink_template(method, start)) == shared
    assert tensors.nbytes(messages.uplink_template(method, start)) == 4 * shared
    if name != "fedmgp":  # any of whose groups may be drawn
        assert tensors.count(messages.private_tensors(method, start)) == trained - shared


ADAPTERS = [
    ("pfedmma", {}, 674_560, 8_448), ("fedmma", {}, 674_560, 674_560), ("local_mma", {}, 674_560, 0),
    *(("pfedmma", {"first_block": first}, total, (13 - first) * 1_056)
      for first, total in ((1, 1_011_840), (3, 843_200), (7, 505_920), (9, 337_280), (11, 168_640))),
    ("cocoop", {"init_text": None}, 35_360, 35_360), ("cocoop", {"init_text": None, "tokens": 16}, 41_504, 41_504),
    ("maple", {"start": None}, 3_555_072, 3_555_072), ("fedtpg", {}, 4_206_080, 4_206_080),
    ("fedclip", {}, 525_312, 525_312), ("local_lora", {}, 184_320, 0), ("fedlora", {}, 184_320, 184_320),
    ("fedlora", {"lora_rank": 4}, 368_640, 368_640), ("fedlora", {"lora_rank": 4, "projections": "qv"}, 245_760, 245_760),
    ("ffa_lora", {}, 92_160, 92_160), ("fedsa_lora", {}, 184_320, 92_160), ("fedmgp", {"start": None}, 12_800, 5_120),
]  # fmt: skip


@pytest.mark.parametrize(("joint", "hidden"), [(16, 1), (8, 1), (64, 4)])
def test_cocoops_hidden_layer_has_a_sixteenth_of_the_joint_width_and_one_unit_at_least(joint: int, hidden: int) -> None:
    clip = tiny.clip(tiny.vit_config(embed=joint))
    assert initial(clip, tiny.method("cocoop"))["meta.down.weight"].shape == (hidden, joint)


def test_fedclip_on_the_wider_features_of_rn50() -> None:
    assert tensors.count(initial(weightless("RN50"), methods.known()["fedclip"]({}))) == 2_099_200


@pytest.mark.parametrize(("name", "settings", "trained", "shared"), ADAPTERS)
def test_numbers_of_adapters(vit: FrozenCLIP, name: str, settings: dict[str, Any], trained: int, shared: int) -> None:
    test_numbers_trained_and_shared(vit, name, settings, trained, shared)


@pytest.mark.parametrize(("rank", "size"), [(8, 2_304), (16, 8_704), (32, 33_792), (64, 133_120), (128, 528_384)])
def test_bytes_shared_by_rank(vit: FrozenCLIP, rank: int, size: int) -> None:
    method = methods.known()["pfedmma"]({"rank": rank})
    assert tensors.nbytes(messages.shared_tensors(method, initial(vit, method))) == size


def test_adapters_beside_the_first_twelve_blocks_of_vit_l() -> None:
    method = methods.known()["pfedmma"]({})
    assert tensors.count(initial(weightless("ViT-L/14"), method)) == 940_800


def test_the_parts_of_pfedmma(vit: FrozenCLIP) -> None:
    start = initial(vit, methods.known()["pfedmma"]({}))
    assert len(start) == 80
    parts = {part: tensors.count(tensors.select(start, [f"{part}.*"])) for part in ("text", "vision", "shared")}
    assert parts == {"text": 266_496, "vision": 399_616, "shared": 8_448}


@pytest.mark.parametrize("experts", [1, 2, 10, 20])
def test_bytes_down_of_pfedmoap(clip: FrozenCLIP, experts: int) -> None:
    """(1 + K) prompts of 32,768 bytes; at the first participation one."""
    method = methods.known()["pfedmoap"]({"experts": experts})
    start = initial(clip, method)
    server = method.server(start)
    assert tensors.nbytes(method.downlink(server, "a0", stream(0, "d"))) == 32_768
    server = method.aggregate(server, [Uplink(f"a{i}", 3.0, {"prompt": start["prompt"]}) for i in range(25)])
    assert tensors.nbytes(method.downlink(server, "a0", stream(0, "d"))) == experts * 32_768


# The tables in the methods' docstrings.

CELL = re.compile(r"`([^`]+)`")


def expanded(name: str) -> list[str]:
    """`gating.{q,k}.weight` to both names."""
    pieces = re.split(r"\{([^}]*)\}", name)
    choices = [piece.split(",") if place % 2 else [piece] for place, piece in enumerate(pieces)]
    return ["".join(choice) for choice in itertools.product(*choices)]


def rows(doc: str) -> Iterator[tuple[list[list[str]], list[tuple[int, ...]], dict[str, str], int]]:
    """Per table row: names (groups of alternatives), shapes, what each method does with them, bytes."""
    heading: list[str] = []
    for line in doc.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.strip().startswith("| tensor"):
            heading = cells[2:]
        if not line.strip().startswith("| `") or len(cells) < 3:
            continue
        names = CELL.findall(cells[0])
        full = [names[0]] + [names[0].rsplit(".", 1)[0] + name for name in names[1:]]
        shapes = [tuple(int(n) for n in shape.strip("[]").split(",")) for shape in CELL.findall(cells[1])]
        fate = dict(zip(heading, cells[2:], strict=True))
        fate.pop("bytes", None)
        (said, *_) = re.findall(r"([\d,]*\d{3})", " ".join(cells[2:]))
        yield [expanded(name) for name in full], shapes, fate, int(said.replace(",", ""))


def modules() -> list[Any]:
    found = [importlib.import_module(f"fedvlm.methods.{m.name}") for m in pkgutil.iter_modules(methods.__path__)]
    return [module for module in found if any(c.__module__ == module.__name__ for c in methods.known().values())]


def generic(start: Named) -> dict[str, list[str]]:
    """Tensors by their name with `b` for a number."""
    found: dict[str, list[str]] = {}
    for name in start:
        found.setdefault(re.sub(r"\.\d+(?=\.|$)", ".b", name), []).append(name)
    return found


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.__name__.rsplit(".", 1)[-1])
def test_the_docstrings_table_is_the_truth(module: Any, vit: FrozenCLIP) -> None:
    """Names, shapes, shared or private, and bytes; every trained tensor stands in exactly one row."""
    table = list(rows(module.__doc__))
    own = [c.name for c in methods.known().values() if c.__module__ == module.__name__]
    told = {name for _, _, fate, _ in table for name in fate}
    assert told <= set(own)
    assert module.__name__.rsplit(".", 1)[-1] in told or "Tensors: none." in module.__doc__
    for name in told:
        check(methods.known()[name], name, table, vit)


def check(kind: type[Method], name: str, table: list[Any], vit: FrozenCLIP) -> None:
    method = kind({key: None for key in ("init_text", "start") if key in kind.Config.model_fields})
    start = initial(vit, method)
    actual, seen = generic(start), []
    for groups, shapes, fate, size in table:
        if fate[name] == "-":
            assert not any(each in actual for names in groups for each in names)
            continue
        found = 0
        for names, shape in zip(groups, shapes, strict=True):
            seen += names
            found += 4 * math.prod(shape) * len(names)
            for real in (real for each in names for real in actual[each]):
                assert tuple(start[real].shape) == shape, real
                is_shared = tensors.matches(real, method.shared)
                assert fate[name].startswith("shared" if is_shared else "private"), real
        assert found == size, groups
    assert sorted(seen) == sorted(actual)


def test_the_sums_in_the_docstrings(vit: FrozenCLIP) -> None:
    method = methods.known()["pfedmma"]({})
    start = initial(vit, method)
    doc = importlib.import_module("fedvlm.methods.pfedmma").__doc__ or ""
    shared = messages.shared_tensors(method, start)
    for number in (tensors.count(start), tensors.count(shared), tensors.nbytes(shared)):
        assert f"{number:,}" in doc


def test_methods_that_leave_out_what_they_share_say_so() -> None:
    """Each file says in words what leaves a client (a table alone does not tell a hospital's data officer)."""
    for module in modules():
        assert re.search(r"leaves|crosses|see each client", module.__doc__), module.__name__
