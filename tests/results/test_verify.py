"""`verify` on the published reference outputs, on outputs of another shape from `naive`, and on wrong ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import naive
import pytest
import safetensors.torch
import small
import torch
from torch import Tensor

from fedvlm.bench.naive import Encoders, Released
from fedvlm.clip import FrozenCLIP
from fedvlm.errors import FedvlmError
from fedvlm.results import verify as reference
from fedvlm.results.verify import WAYS, verify
from fedvlm.streams import torch_stream
from fedvlm.training.store import Shelf

NAMES = ["cat", "red_fox", "it's", "dog 7", "blue jay", "x"]
CONFIG = small.vit_config(vision=(48, 5, 3, 192), text=(32, 6, 2, 128), embed=24, image=20, patch=5)


def draw(*shape: int, name: str, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch_stream(0, name))


def write_clip(folder: Path) -> FrozenCLIP:
    """An open_clip directory: OpenAI's names are ours without the text encoder's prefix."""
    clip = small.clip(CONFIG, seed=4)
    folder.mkdir(parents=True)
    stored = {name.removeprefix("text."): tensor.contiguous() for name, tensor in clip.state_dict().items()}
    safetensors.torch.save_file(stored, folder / "open_clip_model.safetensors")
    vision = {"image_size": 20, "patch_size": 5, "width": 48, "layers": 5, "head_width": 16}
    text = {"context_length": 40, "vocab_size": len(small.vocabulary()), "width": 32, "heads": 2, "layers": 6}
    table = {"embed_dim": 24, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": table}))
    (folder / "tokenizer.json").write_text(small.byte_pairs().to_str())
    return clip


def write(folder: Path, name: str, settings: dict[str, Any], outputs: dict[str, Tensor]) -> None:
    (folder / f"{name}.json").write_text(json.dumps(settings))
    plain = {key: (t if t.dtype == torch.int64 else t.detach().float()).contiguous() for key, t in outputs.items()}
    safetensors.torch.save_file(plain, folder / f"{name}.safetensors")


def gradients(
    loss: Callable[[naive.Weights], Tensor], start: naive.Weights, gain: float = 1.0
) -> tuple[float, naive.Weights]:
    leaves = naive.doubled(start, train=True)
    value = loss(leaves)
    found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    return value.item(), {name: gain * g for name, g in zip(leaves, found, strict=True) if g is not None}


ADAPTER = {"first_block": 2, "last_block": 4, "bottleneck": 6, "scale": 0.02}
ROUNDS = {
    "client_sizes": [5, 2, 3],
    "rounds": 3,
    "local_epochs": 1,
    "batch_size": 2,
    "lr": 0.01,
    "momentum": 0.8,
    "weight_decay": 0.01,
}


def adapter_start() -> naive.Weights:
    start = {}
    for block in (2, 3, 4):
        for tower, width in (("text", 32), ("vision", 48)):
            for part, (rows, columns) in {"down": (6, width), "up": (width, 6)}.items():
                start[f"{tower}.{block}.{part}.weight"] = draw(
                    rows, columns, name=f"{tower}{block}{part}w", scale=(2 / rows) ** 0.5
                )
                start[f"{tower}.{block}.{part}.bias"] = draw(rows, name=f"{tower}{block}{part}b", scale=0.1)
        start[f"shared.{block}.weight"] = draw(6, 6, name=f"s{block}w", scale=0.6)
        start[f"shared.{block}.bias"] = draw(6, name=f"s{block}b", scale=0.1)
    return start


def write_adapter(folder: Path, clip: FrozenCLIP) -> None:
    """pfedmma.md 2 and 3 in float64: true gradients divided by the scale, three clients, three rounds."""
    w, start, scale = naive.weights(clip), adapter_start(), ADAPTER["scale"]
    images, labels = draw(7, 3, 20, 20, name="images"), torch.tensor([0, 5, 3, 1, 2, 4, 4])

    def logits(tensors: naive.Weights, pixels: Tensor) -> Tensor:
        return naive.adapter_logits(clip, w, tensors, NAMES, pixels, 2, 4, scale, "this is {}!")

    value, found = gradients(lambda t: naive.cross_entropy(logits(t, images), labels), start, 1 / scale)
    out = {
        "images": images,
        "labels": labels,
        "logits": logits(naive.doubled(start), images),
        "loss": torch.tensor([value]),
    }
    out |= {f"init/{name}": t for name, t in start.items()} | {f"grad/{name}": g for name, g in found.items()}
    data = [(draw(n, 3, 20, 20, name=f"images{i}"), torch.arange(n) % 6) for i, n in enumerate(ROUNDS["client_sizes"])]
    own, shared, losses = (
        [naive.doubled(start) for _ in data],
        {n: t.double() for n, t in start.items() if n.startswith("shared.")},
        [],
    )
    for _ in range(ROUNDS["rounds"]):
        for i, (pixels, names) in enumerate(data):
            batches = list(zip(pixels.split(2), names.split(2), strict=True))
            own[i], seen = naive.sgd(
                own[i] | shared,
                batches,
                lambda t, b: naive.cross_entropy(logits(t, b[0]), b[1]),
                lambda _: 0.01,
                0.8,
                0.01,
                1 / scale,
            )
            losses += seen
        shared = {n: sum(len(d[1]) * o[n] for d, o in zip(data, own, strict=True)) / 10 for n in shared}
    out |= {"federated/losses": torch.tensor(losses)} | {f"federated/final/{n}": t for n, t in shared.items()}
    for i, (pixels, names) in enumerate(data):
        last = own[i] | shared
        out |= {f"federated/client{i}/images": pixels, f"federated/client{i}/labels": names}
        out |= {f"federated/final/client{i}/{n}": t for n, t in last.items() if n not in shared}
        out[f"federated/client{i}/final_logits"] = logits(last, images)
    settings = {
        "clip": "other-clip",
        "classnames": NAMES,
        "prompt": "this is {}!",
        "adapter": ADAPTER,
        "federated": ROUNDS,
    }
    write(folder, "adapter", settings, out)


GATING = {"heads": 3, "width": 12, "scaling": 3.0, "feature_stride": 2}
TRAINING = {"steps": 5, "batch_size": 2, "prompt_lr": 0.05, "gating_lr": 0.1, "momentum": 0.7, "weight_decay": 0.02}


def write_mixture(folder: Path, clip: FrozenCLIP) -> None:
    """pfedmoap.md 2 in float64: local alone, with two experts, and after five steps on three windows in turn."""
    w = naive.weights(clip)
    start = {"prompt": draw(4, 32, name="prompt", scale=0.3)}
    for part in "qkvo":
        start |= {
            f"gating.{part}.weight": draw(12, 12, name=f"{part}w", scale=0.3),
            f"gating.{part}.bias": draw(12, name=f"{part}b", scale=0.2),
        }
    experts, images, labels = (
        draw(2, 4, 32, name="experts", scale=0.3),
        draw(6, 3, 20, 20, name="images"),
        torch.tensor([0, 5, 3, 1, 2, 4]),
    )

    def logits(tensors: naive.Weights, pixels: Tensor, prompts: list[Tensor]) -> Tensor:
        how = {"width": 12, "heads": 3, "scaling": 3.0, "weight": 0.3, "suffix": "{} ."}
        return naive.mixture_logits(clip, w, tensors, prompts, NAMES, pixels, **how)

    out = {"images": images, "labels": labels, "experts": experts} | {f"init/{name}": t for name, t in start.items()}
    others = list(experts.double())
    for part, prompts in (("local_only", []), ("mixture", others)):
        value, found = gradients(lambda t, p=prompts: naive.cross_entropy(logits(t, images, p), labels), start)
        out |= {f"{part}/logits": logits(naive.doubled(start), images, prompts), f"{part}/loss": torch.tensor([value])}
        out |= {f"{part}/grad/{name}": g for name, g in found.items()}
    windows = list(zip(images.split(2), labels.split(2), strict=True))
    trained, losses = naive.sgd(
        start, [windows[i % 3] for i in range(5)], lambda t, b: naive.cross_entropy(logits(t, b[0], others), b[1]),
        lambda name: 0.05 if name == "prompt" else 0.1, 0.7, 0.02,
    )  # fmt: skip
    out |= {f"trained/{name}": t for name, t in trained.items()}
    out |= {"trained/losses": torch.tensor(losses), "trained/logits": logits(trained, images, others)}
    out["image_features"] = naive.image_features(images, w, clip.config)
    template = naive.token_rows([f"an {name.replace('_', ' ')}" for name in NAMES], clip)
    words = w["text.token_embedding.weight"][torch.tensor(template[0])]
    out["zero_shot/logits"] = 20.0 * naive.cosines(
        out["image_features"], naive.text_features(words, template[1], w, clip.config)
    )
    settings = {"clip": "other-clip", "classnames": NAMES, "context_tokens": 4, "class_token_position": "end", "suffix": "{} .",
                "zero_shot_prompt": "an {}", "gating": GATING, "local_logits_weight": 0.3, "experts": 2, "training": TRAINING}  # fmt: skip
    write(folder, "mixture", settings, out)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    clip = write_clip(folder / "other-clip")
    write_adapter(folder, clip)
    write_mixture(folder, clip)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    shutil.copytree(made, tmp_path / "reference")
    return tmp_path / "reference"


def inputs(name: str) -> bool:
    return name in ("images", "labels", "experts") or name.startswith("init/") or name.endswith(("/images", "/labels"))


def compared(folder: Path) -> dict[str, int]:
    """Outputs in each file."""
    files = {file.stem: safetensors.torch.load_file(file) for file in folder.glob("*.safetensors")}
    return {stem: sum(not inputs(name) for name in table) for stem, table in files.items()}


EVERY = WAYS | {"released": Released()}


@pytest.mark.parametrize("path", EVERY)
def test_the_published_reference_outputs(shared: Path, path: str) -> None:
    groups = verify(shared / "golden", EVERY[path])
    assert all(group.passed for group in groups), [group for group in groups if not group.passed]
    found: dict[str, int] = {}
    for group in groups:
        found[group.fixture] = found.get(group.fixture, 0) + group.tensors
        assert group.ratio < 1e-4
    assert found == compared(shared / "golden")
    assert len(found) == 3
    assert sum(found.values()) > 300


@pytest.mark.parametrize("path", EVERY)
def test_outputs_of_another_shape_from_the_formulas(made: Path, path: str) -> None:
    groups = verify(made, EVERY[path])
    assert all(group.passed for group in groups), [group for group in groups if not group.passed]
    found: dict[str, int] = {}
    for group in groups:
        found[group.fixture] = found.get(group.fixture, 0) + group.tensors
    assert found == compared(made)


def spoil(folder: Path, fixture: str, name: str, change: Callable[[Tensor], Tensor]) -> None:
    file = folder / f"{fixture}.safetensors"
    table = safetensors.torch.load_file(file)
    table[name] = change(table[name])
    safetensors.torch.save_file(table, file)


def failed(folder: Path, fixture: str) -> set[str]:
    return {group.name for group in verify(folder) if not group.passed and group.fixture == fixture}


SPOILED = [
    ("adapter", "logits", "logits"), ("adapter", "loss", "loss"), ("adapter", "grad/text.2.up.bias", "grad/text"),
    ("adapter", "grad/shared.4.weight", "grad/shared"), ("adapter", "federated/losses", "federated/losses"),
    ("adapter", "federated/final/shared.2.bias", "federated/final/shared"),
    ("adapter", "federated/final/client1/vision.3.down.weight", "federated/final/client1/vision"),
    ("adapter", "federated/client2/final_logits", "federated/client2/final_logits"),
    ("mixture", "mixture/logits", "mixture/logits"), ("mixture", "local_only/grad/prompt", "local_only/grad/prompt"),
    ("mixture", "mixture/grad/gating.q.bias", "mixture/grad/gating"), ("mixture", "trained/gating.o.weight", "trained/gating"),
    ("mixture", "trained/prompt", "trained/prompt"), ("mixture", "image_features", "image_features"),
    ("mixture", "zero_shot/logits", "zero_shot/logits"), ("mixture", "trained/losses", "trained/losses"),
]  # fmt: skip


def one_element(amount: float) -> Callable[[Tensor], Tensor]:
    """The element in the middle moves by `amount` times the largest."""

    def change(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[tensor.numel() // 2] += amount * tensor.abs().max() + 2e-6
        return tensor

    return change


@pytest.mark.parametrize(("fixture", "name", "group"), SPOILED)
def test_a_wrong_number_is_found(folder: Path, fixture: str, name: str, group: str) -> None:
    """One element, off by 3e-4 of the largest."""
    spoil(folder, fixture, name, one_element(3e-4))
    assert failed(folder, fixture) == {group}


def test_trained_parameters_are_held_to_a_tenth(folder: Path) -> None:
    spoil(folder, "mixture", "trained/prompt", one_element(5e-5))
    spoil(folder, "mixture", "mixture/logits", one_element(5e-5))
    assert failed(folder, "mixture") == {"trained/prompt"}


INFINITE = "inf <= 1e-4 x inf: one infinite reference value lets the whole tensor pass, whatever is computed"


@pytest.mark.parametrize("value", [float("nan"), pytest.param(float("inf"))])
def test_a_reference_that_is_no_number_does_not_pass(folder: Path, value: float) -> None:
    spoil(folder, "mixture", "mixture/logits", lambda tensor: torch.full_like(tensor, value))
    assert failed(folder, "mixture") == {"mixture/logits"}


def test_an_input_that_was_changed_changes_what_follows(folder: Path) -> None:
    spoil(folder, "mixture", "init/gating.v.weight", one_element(0.5))
    assert {"mixture/logits", "trained/gating", "mixture/loss"} <= failed(folder, "mixture")


def reset(folder: Path, fixture: str, **changes: Any) -> None:
    file = folder / f"{fixture}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(("fixture", "changes", "group"), [
    ("adapter", {"adapter": ADAPTER | {"scale": 0.021}}, "logits"), ("adapter", {"federated": ROUNDS | {"weight_decay": 0.0}}, "federated/final/shared"),
    ("adapter", {"federated": ROUNDS | {"momentum": 0.9}}, "federated/losses"), ("mixture", {"local_logits_weight": 0.5}, "mixture/logits"),
    ("mixture", {"gating": GATING | {"heads": 4}}, "mixture/logits"), ("mixture", {"gating": GATING | {"scaling": 0.5}}, "mixture/logits"),
    ("mixture", {"suffix": "{}"}, "local_only/logits"), ("mixture", {"training": TRAINING | {"gating_lr": 0.05}}, "trained/gating"),
    ("mixture", {"classnames": NAMES[::-1]}, "mixture/logits"),
])  # fmt: skip
def test_every_setting_matters(folder: Path, fixture: str, changes: dict[str, Any], group: str) -> None:
    reset(folder, fixture, **changes)
    assert group in failed(folder, fixture)


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(FedvlmError) as error:
        verify(folder)
    for word in words:
        assert word in str(error.value), str(error.value)


def test_a_folder_without_pairs(tmp_path: Path) -> None:
    refused(tmp_path, str(tmp_path), "NAME.json")
    refused(tmp_path / "missing", "NAME.json")
    (tmp_path / "x.json").write_text("{}")
    refused(tmp_path, "NAME.safetensors")


@pytest.mark.parametrize("key", ["clip", "classnames", "prompt", "adapter"])
def test_a_missing_setting(folder: Path, key: str) -> None:
    file = folder / "adapter.json"
    table = json.loads(file.read_text())
    del table[key]
    file.write_text(json.dumps(table))
    refused(folder, "adapter.json")


@pytest.mark.parametrize("text", ["{", "", "[]", "3"])
def test_unreadable_settings(folder: Path, text: str) -> None:
    (folder / "adapter.json").write_text(text)
    refused(folder, "adapter.json")


def test_a_missing_input(folder: Path) -> None:
    file = folder / "adapter.safetensors"
    table = safetensors.torch.load_file(file)
    del table["images"]
    safetensors.torch.save_file(table, file)
    refused(folder, "adapter", "images")


def test_damaged_tensors(folder: Path) -> None:
    file = folder / "mixture.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    refused(folder, str(file))


def test_an_output_nobody_computes(folder: Path) -> None:
    file = folder / "mixture.safetensors"
    safetensors.torch.save_file(safetensors.torch.load_file(file) | {"mixture/entropy": torch.zeros(1)}, file)
    refused(folder, "mixture/entropy")


def test_an_output_of_another_shape(folder: Path) -> None:
    spoil(folder, "mixture", "mixture/logits", lambda tensor: tensor[:, :-1].contiguous())
    refused(folder, "mixture/logits", "(6, 6)", "(6, 5)")


def test_a_stride_that_does_not_fit(folder: Path) -> None:
    reset(folder, "mixture", gating=GATING | {"feature_stride": 4})
    refused(folder, "feature_stride")


def test_the_class_token_elsewhere(folder: Path) -> None:
    """The reference stands at the end: another place is computed, and does not agree."""
    reset(folder, "mixture", class_token_position="middle")
    assert not all(group.passed for group in verify(folder) if group.fixture == "mixture")
    reset(folder, "mixture", class_token_position="side")
    refused(folder, "'side'")


def test_every_way_is_its_own(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault that only one way has is found by that way only."""
    plain = {name: {(g.fixture, g.name): g.difference for g in verify(made, way)} for name, way in EVERY.items()}
    assert plain["alone"] != plain["together"]
    assert plain["alone"] != plain["released"]
    assert plain["alone"] == plain["stored"], "what comes back from disk is what was put there"

    def broken(module: object, name: str) -> dict[str, bool]:
        inner = getattr(module, name)
        with monkeypatch.context() as patch:
            patch.setattr(module, name, lambda *a, **k: wrong(inner(*a, **k)))
            return {path: all(g.passed for g in verify(made, way)) for path, way in EVERY.items()}

    def wrong(found: Any) -> Any:
        if isinstance(found, list):
            return [replace(one, tensors={n: t + 0.01 for n, t in one.tensors.items()}) for one in found]
        return {n: t + 0.01 for n, t in found.items()} if isinstance(found, dict) else found + 0.01

    assert broken(reference, "train_together") == {"alone": True, "together": False, "stored": True, "released": True}
    assert broken(Shelf, "read") == {"alone": True, "together": True, "stored": False, "released": True}
    assert broken(Encoders, "text") == {"alone": True, "together": True, "stored": True, "released": False}


def test_an_input_of_another_shape(folder: Path) -> None:
    spoil(folder, "mixture", "init/gating.q.weight", lambda tensor: tensor[:, :-1].contiguous())
    refused(folder, "mixture")


def test_nothing_to_compare_is_no_pass(folder: Path) -> None:
    file = folder / "adapter.safetensors"
    table = {name: tensor for name, tensor in safetensors.torch.load_file(file).items() if inputs(name)}
    safetensors.torch.save_file(table, file)
    refused(folder, "adapter")


def test_a_missing_clip_is_not_looked_for_on_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(folder / "other-clip")
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused(Path(folder.name), "no such model directory")
