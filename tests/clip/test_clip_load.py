"""What goes wrong with a model directory ends in one sentence that names it and says what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import torch
from huggingface_hub import constants

from fedvlm import clip as clips
from fedvlm.clip import save
from fedvlm.errors import FedvlmError
from fedvlm.testing import tiny

Change = Callable[[dict[str, torch.Tensor]], None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A complete Hugging Face directory."""
    save(tiny.clip(), tmp_path / "model")
    return tmp_path / "model"


def refused(folder: Path | str, *words: str) -> None:
    with pytest.raises(FedvlmError) as error:
        clips.load(str(folder))
    for word in words:
        assert word in str(error.value), str(error.value)


def rewrite(folder: Path, change: Change) -> None:
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    change(stored)
    safetensors.torch.save_file(stored, folder / "model.safetensors")


def test_the_fixture_loads(folder: Path) -> None:
    assert clips.load(str(folder)).config == tiny.vit_config()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt"])
def test_pickled_weights_are_refused_with_advice(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    refused(folder, str(folder), name, "unpickling", "save_pretrained")
    refused(folder / name, name, "unpickling", "save_pretrained")
    refused(f"nowhere/{name}", name, "unpickling")


def test_no_weights_at_all(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refused(folder, str(folder), "no safetensors weights")


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_damaged_weights(folder: Path, length: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    refused(folder, str(file))


def test_a_missing_weight_is_named(folder: Path) -> None:
    rewrite(folder, lambda stored: stored.pop("text_model.final_layer_norm.bias"))
    refused(folder, str(folder), "lacks 1 weights", "text.ln_final.bias")


@pytest.mark.parametrize(
    "part",
    ["q", *(pytest.param(p)
            for p in "kv")],
)  # fmt: skip
def test_a_missing_projection_is_named(folder: Path, part: str) -> None:
    rewrite(folder, lambda stored: stored.pop(f"vision_model.encoder.layers.1.self_attn.{part}_proj.weight"))
    refused(folder, str(folder), "lacks")


def test_a_misshapen_weight_is_named(folder: Path) -> None:
    rewrite(folder, lambda stored: stored.update({"visual_projection.weight": torch.zeros(3, 32)}))
    refused(folder, str(folder), "visual.proj", "(32, 3)", "(32, 16)")


def test_a_model_deeper_than_its_configuration_says(folder: Path) -> None:
    table = json.loads((folder / "config.json").read_text())
    table["vision_config"]["num_hidden_layers"] = 2
    (folder / "config.json").write_text(json.dumps(table))
    refused(folder, "resblocks.2")


def test_buffers_that_old_releases_stored_are_no_mistake(folder: Path) -> None:
    extra = {
        "text_model.embeddings.position_ids": torch.arange(40)[None],
        "vision_model.embeddings.position_ids": torch.arange(5)[None],
    }
    rewrite(folder, lambda stored: stored.update(extra))
    clips.load(str(folder))


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    refused(folder, str(folder), name)


@pytest.mark.parametrize(
    "text",
    ["", "{", "not json", '{"model_type": "siglip"}', "{}", "[]", '{"model_type": "clip", "vision_config": 3}',
     pytest.param('{"model_type": "clip", "text_config": {"hidden_size": "24"}}')],
)  # fmt: skip
def test_an_unreadable_configuration(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    refused(folder, "config.json")


@pytest.mark.parametrize("text", ["", "{", "{}", '{"version": "1.0"}'])
def test_an_unreadable_tokenizer(folder: Path, text: str) -> None:
    (folder / "tokenizer.json").write_text(text)
    refused(folder, str(folder), "tokenizer")


def test_a_tokenizer_of_another_model(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(tiny.byte_pairs().to_str().replace("<|startoftext|>", "<s>"))
    refused(folder, "<|startoftext|>")


def test_a_tokenizer_larger_than_the_vocabulary(folder: Path) -> None:
    inner = tiny.byte_pairs()
    inner.add_tokens(["fundus"])
    (folder / "tokenizer.json").write_text(inner.to_str())
    refused(folder, "tokenizer", "vocabulary")


@pytest.mark.parametrize("text", ["{", '{"image_mean": [0.5]}', '{"image_mean": 0.5}'])
def test_an_unreadable_preprocessor(folder: Path, text: str) -> None:
    (folder / "preprocessor_config.json").write_text(text)
    refused(folder, "preprocessor_config.json")


def shard(folder: Path) -> list[str]:
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(stored)
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in files.items():
        safetensors.torch.save_file({name: stored[name] for name in held}, folder / file)
    table = {"metadata": {}, "weight_map": {name: file for file, held in files.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(table))
    return list(files)


def test_shards_load(folder: Path) -> None:
    whole = clips.load(str(folder)).state_dict()
    shard(folder)
    for name, tensor in clips.load(str(folder)).state_dict().items():
        assert torch.equal(tensor, whole[name])


def test_a_missing_shard_is_named(folder: Path) -> None:
    missing = shard(folder)[1]
    (folder / missing).unlink()
    refused(folder, missing)


@pytest.mark.parametrize("text", ["{", *(t for t in ("{}", "[]", '{"weight_map": 3}'))])
def test_a_damaged_index_is_named(folder: Path, text: str) -> None:
    shard(folder)
    (folder / "model.safetensors.index.json").write_text(text)
    refused(folder, "model.safetensors.index.json")


def test_a_damaged_index_comes_with_advice_that_helps(folder: Path) -> None:
    shard(folder)
    (folder / "model.safetensors.index.json").write_text("{")
    with pytest.raises(FedvlmError) as error:
        clips.load(str(folder))
    assert "--overwrite" not in str(error.value)


def test_a_shard_outside_the_folder_is_not_read(folder: Path) -> None:
    """The index is a file that others made."""
    first = shard(folder)[0]
    (folder / first).rename(folder.parent / first)
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(first, f"../{first}"))
    with pytest.raises((FedvlmError, FileNotFoundError), match=str(folder / first)):
        clips.load(str(folder))


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./nowhere", "~/nowhere-at-all", "a/b/c", "nowhere"])
def test_a_folder_that_does_not_exist(name: str) -> None:
    refused(name, name, "no such model directory")


def test_a_file_instead_of_a_folder(folder: Path) -> None:
    refused(folder / "model.safetensors", "is a file; give the directory")


def test_a_hub_id_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    refused("acme/no-such-clip", "acme/no-such-clip", "offline", "hf download acme/no-such-clip")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with pytest.raises(FedvlmError, match="offline mode is on"):
        clips.load("acme/no-such-clip", offline=True)


def test_a_malformed_hub_id() -> None:
    refused("bad name/x y", "bad name/x y")


def spied(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []

    def download(name: str, **how: Any) -> str:
        calls.append({"name": name} | how)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return calls


def test_what_is_asked_of_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spied(monkeypatch, folder)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    clip = clips.load("acme/clip", revision="abc")
    assert clip.name == "acme/clip"
    (call,) = calls
    assert (call["name"], call["revision"], call["local_files_only"]) == ("acme/clip", "abc", False)
    assert not [pattern for pattern in call["allow_patterns"] if pattern.endswith(("bin", "pt", "pth", "*", "py"))]


def test_offline_mode_switched_off_by_zero(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spied(monkeypatch, folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    clips.load("acme/clip")
    assert calls[0]["local_files_only"] is False


def test_a_hub_model_with_pickled_weights_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "model.safetensors").unlink()
    spied(monkeypatch, folder)
    refused("acme/clip", "acme/clip", "save_pretrained", "revision")


def test_loading_is_quiet_about_gradients(folder: Path) -> None:
    clip = clips.load(str(folder))
    assert not clip.training
    assert not any(parameter.requires_grad for parameter in clip.parameters())


def test_loading_leaves_the_global_generator_alone(folder: Path) -> None:
    before = torch.get_rng_state()
    clips.load(str(folder))
    assert torch.equal(before, torch.get_rng_state())
