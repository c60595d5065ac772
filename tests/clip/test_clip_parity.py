"""The same numbers as `transformers.CLIPModel` on random weights, whatever the sizes, and back again through files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers import CLIPConfig, CLIPModel

from fedvlm import clip as clips
from fedvlm.clip import FrozenCLIP, Patches, save
from fedvlm.errors import FedvlmError
from fedvlm.testing import tiny

TEXTS = ["a photo of a cat.", "dog", "it's 2 photos of the red, green & blue fox!"]
SHAPES: dict[str, dict[str, Any]] = {
    "equal": {},
    "gelu": {"act": "gelu"},
    "wide vision": {"vision": (48, 3, 4, 96), "embed": 20},
    "deep text": {"vision": (32, 1, 2, 64), "text": (24, 6, 2, 48)},
    "one block each": {"vision": (32, 1, 1, 32), "text": (24, 1, 1, 24)},
    "many patches": {"patch": 2, "image": 18},
    "patch of one pixel": {"patch": 1, "image": 4},
    "one patch": {"patch": 16},
    "patches that leave a rest": {"patch": 7, "image": 16},
    "other eps": {"eps": 1e-2},
}


def huggingface(
    *, vision: tuple[int, ...] = (32, 3, 2, 64), text: tuple[int, ...] = (24, 2, 3, 48), embed: int = 16, image: int = 16,
    patch: int = 8, act: str = "quick_gelu", eps: float = 1e-5,
) -> CLIPModel:  # fmt: skip
    def tower(sizes: tuple[int, ...]) -> dict[str, Any]:
        width, layers, heads, mlp = sizes
        return {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": mlp,
                "hidden_act": act, "layer_norm_eps": eps}  # fmt: skip

    last = len(tiny.vocabulary()) - 1
    words = {
        "max_position_embeddings": 60,
        "vocab_size": last + 1,
        "bos_token_id": last - 1,
        "eos_token_id": last,
        "pad_token_id": last,
    }
    config = CLIPConfig(
        text_config=tower(text) | words,
        vision_config=tower(vision) | {"image_size": image, "patch_size": patch},
        projection_dim=embed,
    )
    model = CLIPModel(config).eval().requires_grad_(False)
    draw = torch.Generator().manual_seed(3)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and name != "logit_scale":
            scale = tensor[0].numel() ** -0.5 if tensor.ndim > 1 else 0.2
            tensor.copy_(
                scale * torch.randn(tensor.shape, generator=draw)
                + (1.0 if "norm" in name and "weight" in name else 0.0)
            )
    return model


def written(model: CLIPModel, folder: Path, **how: Any) -> Path:
    model.save_pretrained(folder, **how)
    (folder / "tokenizer.json").write_text(tiny.byte_pairs().to_str())
    return folder


def pixels(side: int) -> torch.Tensor:
    return torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1))


def same(model: CLIPModel, clip: FrozenCLIP, tolerance: float = 2e-6) -> None:
    """Features and logits, text padded to the full context on one side and truncated on the other."""
    images = pixels(clip.config.vision.image)
    ids, eot = clip.tokenizer(TEXTS)
    padded = torch.full((len(TEXTS), clip.config.text.context), clip.tokenizer.eot)
    padded[:, : ids.shape[1]] = ids
    with torch.no_grad():
        theirs = model(input_ids=padded, pixel_values=images)
        image, text = clip.encode_image(images), clip.encode_text(ids, eot)
        logits = clip.logits(image, text)
    image, text = (feature / feature.norm(dim=-1, keepdim=True) for feature in (image, text))
    assert (image - theirs.image_embeds).abs().max() < tolerance
    assert (text - theirs.text_embeds).abs().max() < tolerance
    assert (logits - theirs.logits_per_image).abs().max() < tolerance * float(clip.logit_scale.exp()) * 4


@pytest.mark.parametrize("shape", SHAPES)
def test_features_and_logits_are_those_of_transformers(tmp_path: Path, shape: str) -> None:
    model = huggingface(**SHAPES[shape])
    same(model, clips.load(str(written(model, tmp_path))))


@pytest.mark.parametrize("shape", ["equal", "gelu", "many patches", "one patch"])
def test_patch_features_are_those_of_transformers(tmp_path: Path, shape: str) -> None:
    """Its last LayerNorm and projection on every token but the first."""
    model = huggingface(**SHAPES[shape])
    clip = clips.load(str(written(model, tmp_path)))
    images = pixels(clip.config.vision.image)
    with torch.no_grad():
        tokens = model.vision_model(pixel_values=images).last_hidden_state[:, 1:]
        theirs = model.visual_projection(model.vision_model.post_layernorm(tokens))
        ours = clip.visual.hidden(images, Patches())
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("shape", ["equal", "gelu", "deep text", "other eps"])
def test_what_we_save_transformers_loads(tmp_path: Path, shape: str) -> None:
    model = huggingface(**SHAPES[shape])
    clip = clips.load(str(written(model, tmp_path / "a")))
    save(clip, tmp_path / "b")
    back = CLIPModel.from_pretrained(tmp_path / "b")
    assert back.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
    again = clips.load(str(tmp_path / "b"))
    for name, tensor in clip.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    same(back.eval(), again)
    assert again.config == clip.config
    assert again.tokenizer.words(TEXTS[2]) == clip.tokenizer.words(TEXTS[2])
    assert again.preprocess == clip.preprocess


def test_half_precision_files_are_computed_in_single(tmp_path: Path) -> None:
    model = huggingface()
    clip = clips.load(str(written(model.half(), tmp_path / "a")))
    assert {tensor.dtype for tensor in clip.state_dict().values()} == {torch.float32}
    same(model.float(), clip)
    save(clip, tmp_path / "b", half=True)
    stored = safetensors.torch.load_file(tmp_path / "b" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    same(model, clips.load(str(tmp_path / "b")))


def test_shards(tmp_path: Path) -> None:
    model = huggingface()
    folder = written(model, tmp_path, max_shard_size="20KB")
    assert not (folder / "model.safetensors").exists()
    assert len(list(folder.glob("*.safetensors"))) > 2
    same(model, clips.load(str(folder)))


def openai(model: CLIPModel) -> dict[str, torch.Tensor]:
    """A `CLIPModel`'s weights under OpenAI's names, converted here by hand."""
    theirs = model.state_dict()
    out = {"logit_scale": theirs["logit_scale"], "text_projection": theirs["text_projection.weight"].T.contiguous(),
           "visual.proj": theirs["visual_projection.weight"].T.contiguous()}  # fmt: skip
    v, t = "vision_model.", "text_model."
    out |= {
        "visual.class_embedding": theirs[f"{v}embeddings.class_embedding"],
        "visual.conv1.weight": theirs[f"{v}embeddings.patch_embedding.weight"],
        "visual.positional_embedding": theirs[f"{v}embeddings.position_embedding.weight"],
        "positional_embedding": theirs[f"{t}embeddings.position_embedding.weight"],
        "token_embedding.weight": theirs[f"{t}embeddings.token_embedding.weight"],
    }
    for kind in ("weight", "bias"):
        out |= {f"visual.ln_pre.{kind}": theirs[f"{v}pre_layrnorm.{kind}"], f"visual.ln_post.{kind}": theirs[f"{v}post_layernorm.{kind}"],
                f"ln_final.{kind}": theirs[f"{t}final_layer_norm.{kind}"]}  # fmt: skip
        for old, new, layers in ((v, "visual.", model.config.vision_config), (t, "", model.config.text_config)):
            for n in range(layers.num_hidden_layers):
                a, b = f"{old}encoder.layers.{n}", f"{new}transformer.resblocks.{n}"
                out[f"{b}.attn.in_proj_{kind}"] = torch.cat([theirs[f"{a}.self_attn.{p}_proj.{kind}"] for p in "qkv"])
                out[f"{b}.attn.out_proj.{kind}"] = theirs[f"{a}.self_attn.out_proj.{kind}"]
                out[f"{b}.ln_1.{kind}"], out[f"{b}.ln_2.{kind}"] = (
                    theirs[f"{a}.layer_norm1.{kind}"],
                    theirs[f"{a}.layer_norm2.{kind}"],
                )
                out[f"{b}.mlp.c_fc.{kind}"], out[f"{b}.mlp.c_proj.{kind}"] = (
                    theirs[f"{a}.mlp.fc1.{kind}"],
                    theirs[f"{a}.mlp.fc2.{kind}"],
                )
    return out


def open_clip_folder(folder: Path, weights: dict[str, torch.Tensor], quick: bool) -> Path:
    folder.mkdir(exist_ok=True)
    table = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "layers": 3, "head_width": 16, "mlp_ratio": 2.0},
        "text_cfg": {"context_length": 60, "vocab_size": len(tiny.vocabulary()), "width": 24, "heads": 3, "layers": 2},
    }
    config = {
        "model_cfg": table | ({"quick_gelu": True} if quick else {}),
        "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3]},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(weights, folder / "open_clip_model.safetensors")
    (folder / "tokenizer.json").write_text(tiny.byte_pairs().to_str())
    return folder


@pytest.mark.parametrize("quick", [True, False])
def test_open_clip_folders(tmp_path: Path, quick: bool) -> None:
    """open_clip's text encoder has an MLP of four times its width."""
    model = huggingface(text=(24, 2, 3, 96), act="quick_gelu" if quick else "gelu")
    weights = openai(model) | {"attn_mask": torch.zeros(60, 60)}
    clip = clips.load(str(open_clip_folder(tmp_path, weights, quick)))
    same(model, clip)
    assert clip.preprocess.mean == (0.5, 0.4, 0.3)
    assert clip.preprocess.std == (0.1, 0.2, 0.3)


def test_a_folder_with_both_configurations_is_read_by_the_weights_it_has(tmp_path: Path) -> None:
    model = huggingface(text=(24, 2, 3, 96))
    written(model, tmp_path)
    open_clip_folder(tmp_path, openai(model), quick=False)
    (tmp_path / "open_clip_model.safetensors").unlink()
    same(model, clips.load(str(tmp_path)))


def test_a_resnet_is_written_as_open_clip_does(tmp_path: Path) -> None:
    config = replace(tiny.resnet_config(), text=tiny.vit_config(text=(64, 2, 1, 256)).text)
    clip = tiny.clip(config)
    save(clip, tmp_path)
    stored = safetensors.torch.load_file(tmp_path / "open_clip_model.safetensors")
    assert {"visual.conv1.weight", "token_embedding.weight", "transformer.resblocks.0.ln_1.bias"} <= stored.keys()
    back = clips.load(str(tmp_path))
    assert back.config == clip.config
    assert back.preprocess == clip.preprocess
    for name, tensor in clip.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
    assert back.tokenizer.words(TEXTS[2]) == clip.tokenizer.words(TEXTS[2])


def test_a_text_encoder_without_a_place_in_the_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FedvlmError, match="MLP width"):
        save(tiny.clip(tiny.resnet_config()), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_digest_is_that_of_the_weights(tmp_path: Path) -> None:
    model = huggingface()
    first = clips.load(str(written(model, tmp_path / "a")))
    again = clips.load(str(written(model, tmp_path / "b")))
    model.logit_scale.fill_(1.0)
    other = clips.load(str(written(model, tmp_path / "c")))
    assert first.digest == again.digest != other.digest
    assert len(first.digest) == 64
