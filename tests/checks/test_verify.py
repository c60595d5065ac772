"""`verify` on the published reference outputs, on outputs of another shape from `formulas`, and on wrong ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import reference_outputs
import safetensors.torch
import torch
from torch import Tensor

from fedvlm.checks import verify as reference
from fedvlm.checks.bench.released import ReleasedEncoders, ReleasedPath
from fedvlm.checks.verify import PATHS, verify
from fedvlm.errors import FedvlmError
from fedvlm.training.disk_cache import CacheTable


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    clip = reference_outputs.write_clip(folder / "other-clip")
    reference_outputs.write_adapter(folder, clip)
    reference_outputs.write_mixture(folder, clip)
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    shutil.copytree(written, tmp_path / "reference")
    return tmp_path / "reference"


def inputs(name: str) -> bool:
    """Named here once more, so that an output nobody compares is seen."""
    return name in ("images", "labels", "experts") or name.startswith("init/") or name.endswith(("/images", "/labels"))


def compared(folder: Path) -> dict[str, int]:
    """Outputs in each file."""
    files = {file.stem: safetensors.torch.load_file(file) for file in folder.glob("*.safetensors")}
    return {stem: sum(not inputs(name) for name in table) for stem, table in files.items()}


EVERY = PATHS | {"released": ReleasedPath()}


@pytest.mark.parametrize("path", EVERY)
def test_the_published_reference_outputs(golden: Path, path: str) -> None:
    groups = verify(golden, EVERY[path])
    assert all(group.passed for group in groups), [group for group in groups if not group.passed]
    found: dict[str, int] = {}
    for group in groups:
        found[group.fixture] = found.get(group.fixture, 0) + group.tensors
        assert group.ratio < 1e-4
    assert found == compared(golden)
    assert len(found) == 3
    assert sum(found.values()) == 331


@pytest.mark.parametrize("path", EVERY)
def test_outputs_of_another_shape_from_the_formulas(written: Path, path: str) -> None:
    groups = verify(written, EVERY[path])
    assert all(group.passed for group in groups), [group for group in groups if not group.passed]
    found: dict[str, int] = {}
    for group in groups:
        found[group.fixture] = found.get(group.fixture, 0) + group.tensors
    assert found == compared(written)


def spoil(folder: Path, fixture: str, name: str, change: Callable[[Tensor], Tensor]) -> None:
    file = folder / f"{fixture}.safetensors"
    table = safetensors.torch.load_file(file)
    table[name] = change(table[name])
    safetensors.torch.save_file(table, file)


def failed(folder: Path, fixture: str) -> set[str]:
    return {group.name for group in verify(folder, draws=1) if not group.passed and group.fixture == fixture}


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
    ("adapter", {"adapter": reference_outputs.ADAPTER | {"scale": 0.021}}, "logits"), ("adapter", {"federated": reference_outputs.ROUNDS | {"weight_decay": 0.0}}, "federated/final/shared"),
    ("adapter", {"federated": reference_outputs.ROUNDS | {"momentum": 0.9}}, "federated/losses"), ("mixture", {"local_logits_weight": 0.5}, "mixture/logits"),
    ("mixture", {"gating": reference_outputs.GATING | {"heads": 4}}, "mixture/logits"), ("mixture", {"gating": reference_outputs.GATING | {"scaling": 0.5}}, "mixture/logits"),
    ("mixture", {"suffix": "{}"}, "local_only/logits"), ("mixture", {"training": reference_outputs.TRAINING | {"gating_lr": 0.05}}, "trained/gating"),
    ("mixture", {"classnames": reference_outputs.NAMES[::-1]}, "mixture/logits"),
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
    reset(folder, "mixture", gating=reference_outputs.GATING | {"feature_stride": 4})
    refused(folder, "feature_stride")


def test_the_class_token_elsewhere(folder: Path) -> None:
    """The reference stands at the end: another place is computed, and does not agree."""
    reset(folder, "mixture", class_token_position="middle")
    assert not all(group.passed for group in verify(folder, draws=0) if group.fixture == "mixture")
    reset(folder, "mixture", class_token_position="side")
    refused(folder, "'side'")


@pytest.mark.long
def test_every_way_is_its_own(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault that only one way has is found by that way only."""
    plain = {name: {(g.fixture, g.name): g.difference for g in verify(written, way)} for name, way in EVERY.items()}
    assert plain["alone"] != plain["together"]
    assert plain["alone"] != plain["released"]
    assert plain["alone"] == plain["stored"], "what comes back from disk is what was put there"

    def broken(module: object, name: str) -> dict[str, bool]:
        inner = getattr(module, name)
        with monkeypatch.context() as patch:
            patch.setattr(module, name, lambda *a, **k: wrong(inner(*a, **k)))
            return {path: all(g.passed for g in verify(written, way, draws=0)) for path, way in EVERY.items()}

    def wrong(found: Any) -> Any:
        if isinstance(found, list):
            return [replace(one, tensors={n: t + 0.01 for n, t in one.tensors.items()}) for one in found]
        return {n: t + 0.01 for n, t in found.items()} if isinstance(found, dict) else found + 0.01

    assert broken(reference, "train_together") == {"alone": True, "together": False, "stored": True, "released": True}
    assert broken(CacheTable, "read") == {"alone": True, "together": True, "stored": False, "released": True}
    assert broken(ReleasedEncoders, "text") == {"alone": True, "together": True, "stored": True, "released": False}


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
