"""`load(name)`: a frozen CLIP from the package, a local directory or the Hugging Face hub. Nothing is unpickled."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from fedvlm import durable, tensors
from fedvlm.clip import config, preprocess, tokenizer, weights
from fedvlm.clip.config import ClipConfig, ResNet
from fedvlm.clip.model import FrozenCLIP
from fedvlm.config import Section
from fedvlm.errors import FedvlmError


class ModelSection(Section):
    """Which frozen CLIP."""

    name: str = "embedded"
    """`embedded`, a local directory, or a hub id such as `openai/clip-vit-base-patch16`."""
    revision: str | None = None
    """Hub revision (commit, tag or branch) to pin."""
    offline: bool = False
    """Use only files that are already in the hub cache."""


EMBEDDED = Path(__file__).parent / "embedded"
_OPEN_CLIP = "open_clip_model.safetensors"
_ON = ("1", "ON", "YES", "TRUE")  # the hub library's own reading of its switches
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_CONVERT = (
    "fedvlm reads safetensors only, because unpickling a file can run any code in it. "
    "Look for a safetensors revision of the model, or convert it once where you trust it: "
    "CLIPModel.from_pretrained(...).save_pretrained(FOLDER)"
)


def load(
    name: str = "embedded", *, revision: str | None = None, offline: bool = False, transform: str = "clip"
) -> FrozenCLIP:
    """A frozen CLIP in float32 on the CPU.

    `name` is `embedded`, a directory with a configuration, safetensors and a tokenizer (Hugging Face or open_clip
    naming), or a hub id such as `openai/clip-vit-base-patch16` (`revision` pins it; `offline` uses cached files
    only). `transform`: of images, the model's own (`clip`) or another one of `preprocess.select`. Raises `FedvlmError`
    when weights are missing, damaged, pickled or do not fit their configuration.
    """
    folder = _folder(name, revision, offline)
    shape, extra = _config(folder)
    files = _weight_files(folder, name)
    words = tokenizer.load(folder, shape.text.context)
    if words.inner.get_vocab_size() > shape.text.vocabulary:
        raise FedvlmError(
            f"the tokenizer in {folder} has {words.inner.get_vocab_size()} tokens, but the model's vocabulary is "
            f"{shape.text.vocabulary}: they do not belong together"
        )
    clip = FrozenCLIP(
        shape,
        words,
        preprocess.select(preprocess.load(folder, shape.vision.image, extra.get("preprocess_cfg")), transform),
        name,
        _digest(files),
    )
    stored: tensors.Named = {}
    for file in files:
        stored |= tensors.load(file)
    weights.fill(clip, stored, str(folder))
    return clip


def _folder(name: str, revision: str | None, offline: bool) -> Path:
    if name == "embedded":
        return EMBEDDED
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.suffix in (".pt", ".bin", ".pth", ".ckpt"):
        raise FedvlmError(f"{name} is a pickled checkpoint. {_CONVERT}")
    if path.exists():
        raise FedvlmError(f"{name} is a file; give the directory that holds config, safetensors and tokenizer")
    if path.is_absolute() or name.startswith(("~", ".")) or name.count("/") != 1:
        raise FedvlmError(f"no such model directory: {name} (a hub id has the form organisation/name)")
    return _download(name, revision, offline)


def _download(name: str, revision: str | None, offline: bool) -> Path:
    offline = offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in _ON
    try:
        folder = huggingface_hub.snapshot_download(
            name,
            revision=revision,
            local_files_only=offline,
            allow_patterns=["*.json", "*.txt", "*.safetensors"],
        )
    except HFValidationError as error:
        raise FedvlmError(f"'{name}' is neither a directory nor a hub id: {error}") from None
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise FedvlmError(f"the hub has no '{name}' at revision {revision or 'main'}: {error}") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        why = "is not in the local hub cache and offline mode is on" if offline else "cannot be fetched from the hub"
        raise FedvlmError(
            f"'{name}' {why}: fetch it where there is a network with `hf download {name}` and copy the cache, "
            f"or give a local directory ({type(error).__name__})"
        ) from error
    return Path(folder)


def _config(folder: Path) -> tuple[ClipConfig, dict[str, Any]]:
    """Shapes and the raw table. Repositories may carry both formats; open_clip's is meant where its weights are."""
    file = folder / ("open_clip_config.json" if _is_open_clip(folder) else "config.json")
    read = config.from_open_clip if _is_open_clip(folder) else config.from_huggingface
    if not file.exists():
        raise FedvlmError(f"{folder} has neither config.json nor open_clip_config.json")
    try:
        table = json.loads(file.read_text())
        return read(table, str(file)), table
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FedvlmError(f"{file} is not a readable CLIP configuration: {error!r}") from error


def _is_open_clip(folder: Path) -> bool:
    there = (folder / "open_clip_config.json").exists()
    return there and ((folder / _OPEN_CLIP).exists() or not (folder / "config.json").exists())


def _weight_files(folder: Path, name: str) -> list[Path]:
    for file in (_OPEN_CLIP,) if (folder / _OPEN_CLIP).exists() and _is_open_clip(folder) else ("model.safetensors",):
        if (folder / file).exists():
            return [folder / file]
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return _shards(index)
    pickles = [file.name for pattern in _PICKLES for file in folder.glob(pattern)]
    if pickles:
        raise FedvlmError(f"{folder} holds only pickled weights ({', '.join(pickles)}). {_CONVERT}")
    hub = (
        ""
        if Path(name).is_dir()
        else f". If '{name}' has them in a pull request, set model.revision=refs/pr/N. {_CONVERT}"
    )
    raise FedvlmError(f"{folder} has no safetensors weights (model.safetensors or {_OPEN_CLIP}){hub}")


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        shards = [index.parent / Path(name).name for name in names]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FedvlmError(f"{index} is not a readable index of weight files: {error!r}") from None
    if missing := [str(shard) for shard in shards if not shard.exists()]:
        raise FedvlmError(f"{', '.join(missing)} is missing, though {index.name} names it: fetch the model again")
    return shards


def _digest(files: list[Path]) -> str:
    """SHA-256 of the weight files, in the order of their names."""
    sha = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 22):
                sha.update(chunk)
    return sha.hexdigest()


def save(clip: FrozenCLIP, folder: Path, *, half: bool = False, private: bool = False) -> None:
    """Write a CLIP with its tokenizer and preprocessor, as Hugging Face does; one with a ResNet as open_clip does.

    `private`: its weights can be read by their owner only.
    """
    words, own = clip.tokenizer, clip.state_dict()
    if words.sot is None or words.read_padding or words.pad != words.eot:
        raise FedvlmError(
            "the CLIP formats have no place for this tokenizer's rows (no start token, or padding is read)"
        )
    own = {name: tensor.half() for name, tensor in own.items()} if half else own
    if isinstance(clip.config.vision, ResNet):
        table = config.to_open_clip(clip.config)
        tensors.save(folder / _OPEN_CLIP, weights.to_openai(own), private=private)
        durable.write_json(folder / "open_clip_config.json", table)
    else:
        table = config.to_huggingface(clip.config, sot=words.sot, eot=words.eot)
        tensors.save(folder / "model.safetensors", weights.to_huggingface(own), private=private)
        durable.write_json(folder / "config.json", table)
    durable.write_text(folder / "tokenizer.json", words.inner.to_str())
    durable.write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "CLIPTokenizer", "bos_token": tokenizer.SOT, "eos_token": tokenizer.EOT,
         "pad_token": tokenizer.EOT, "unk_token": tokenizer.EOT, "model_max_length": words.context},
    )  # fmt: skip
    size = clip.preprocess.size
    durable.write_json(
        folder / "preprocessor_config.json",
        {"image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": size},
         "resample": 3, "do_center_crop": True, "crop_size": {"height": size, "width": size}, "do_rescale": True,
         "do_normalize": True, "do_convert_rgb": True, "image_mean": list(clip.preprocess.mean),
         "image_std": list(clip.preprocess.std)},
    )  # fmt: skip
