"""Files of published CLIPs load; what they ask for and fedvlm does not do is refused by its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedvlm import clip as clips
from fedvlm.clip import preprocess, save
from fedvlm.clip.config import ClipConfig, Text, Transformer, ViT, from_huggingface, from_open_clip, standard
from fedvlm.clip.preprocess import MEAN, STD
from fedvlm.errors import FedvlmError
from fedvlm.testing import tiny

Table = dict[str, Any]
# What transformers 4.16 wrote into both towers of openai/clip-vit-*.
OLD: Table = {
    "_name_or_path": "", "add_cross_attention": False, "architectures": None, "attention_dropout": 0.0,
    "bad_words_ids": None, "chunk_size_feed_forward": 0, "cross_attention_hidden_size": None,
    "decoder_start_token_id": None, "diversity_penalty": 0.0, "do_sample": False, "dropout": 0.0,
    "early_stopping": False, "encoder_no_repeat_ngram_size": 0, "exponential_decay_length_penalty": None,
    "finetuning_task": None, "forced_bos_token_id": None, "forced_eos_token_id": None, "hidden_act": "quick_gelu",
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "initializer_factor": 1.0, "initializer_range": 0.02,
    "is_decoder": False, "is_encoder_decoder": False, "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "layer_norm_eps": 1e-05, "length_penalty": 1.0, "max_length": 20, "min_length": 0, "no_repeat_ngram_size": 0,
    "num_beam_groups": 1, "num_beams": 1, "num_return_sequences": 1, "output_attentions": False,
    "output_hidden_states": False, "output_scores": False, "prefix": None, "problem_type": None, "pruned_heads": {},
    "remove_invalid_values": False, "repetition_penalty": 1.0, "return_dict": True, "return_dict_in_generate": False,
    "sep_token_id": None, "task_specific_params": None, "temperature": 1.0, "tf_legacy_loss": False,
    "tie_encoder_decoder": False, "tie_word_embeddings": True, "tokenizer_class": None, "top_k": 50, "top_p": 1.0,
    "torch_dtype": None, "torchscript": False, "transformers_version": "4.16.0.dev0", "typical_p": 1.0,
    "use_bfloat16": False,
}  # fmt: skip


def openai(width: int = 768, layers: int = 12, patch: int = 16, words: int = 512, joint: int = 512) -> Table:
    text = {"hidden_size": words, "intermediate_size": 4 * words, "num_attention_heads": words // 64,
            "num_hidden_layers": 12}  # fmt: skip
    vision = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 64,
              "num_hidden_layers": layers, "patch_size": patch}  # fmt: skip
    ends = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "max_position_embeddings": 77, "vocab_size": 49408}
    none = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None, "image_size": 224, "num_channels": 3}
    return {
        "_commit_hash": None, "_name_or_path": "openai/clip-vit-base-patch16", "architectures": ["CLIPModel"],
        "initializer_factor": 1.0, "logit_scale_init_value": 2.6592, "model_type": "clip", "projection_dim": joint,
        "text_config": OLD | text | ends | {"model_type": "clip_text_model", "projection_dim": 512},
        "text_config_dict": text, "torch_dtype": "float32", "transformers_version": None,
        "vision_config": OLD | vision | none | {"model_type": "clip_vision_model", "projection_dim": 512},
        "vision_config_dict": vision,
    }  # fmt: skip


LAION_H: Table = {
    "model_cfg": {
        "embed_dim": 1024,
        "vision_cfg": {"image_size": 224, "layers": 32, "width": 1280, "head_width": 80, "patch_size": 14},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 1024, "heads": 16, "layers": 24},
    },
    "preprocess_cfg": {
        "size": 224, "mode": "RGB", "mean": list(MEAN), "std": list(STD), "interpolation": "bicubic",
        "resize_mode": "shortest", "fill_color": 0,
    },
}  # fmt: skip
PROCESSOR: Table = {
    "crop_size": {"height": 224, "width": 224}, "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True,
    "do_rescale": True, "do_resize": True, "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": list(MEAN),
    "image_processor_type": "CLIPImageProcessor", "image_std": list(STD), "resample": 3,
    "rescale_factor": 0.00392156862745098, "size": {"shortest_edge": 224}, "use_square_size": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("table", "name"),
    [(openai(), "ViT-B/16"), (openai(patch=32), "ViT-B/32"), (openai(1024, 24, 14, 768, 768), "ViT-L/14")],
)
def test_openais_files_are_read(table: Table, name: str) -> None:
    assert from_huggingface(table) == standard(name)
    assert from_huggingface(table | {"text_config_dict": None, "vision_config_dict": None}) == standard(name)


def test_what_transformers_writes_today_is_read() -> None:
    transformers = pytest.importorskip("transformers")
    assert from_huggingface(transformers.CLIPConfig().to_dict()) == standard("ViT-B/32")


def test_laions_and_metaclips_files_are_read() -> None:
    """ViT-H/14 has heads of 80; bigG has an MLP of 4.9231 widths; MetaCLIP says quick_gelu."""
    huge = ClipConfig(
        ViT(224, 14, Transformer(1280, 32, 16, 5120, "gelu")),
        Text(77, 49408, Transformer(1024, 24, 16, 4096, "gelu")),
        1024,
    )
    assert from_open_clip(LAION_H) == huge
    cfg = LAION_H["model_cfg"]
    vision = {"image_size": 224, "layers": 48, "width": 1664, "head_width": 104, "mlp_ratio": 4.9231, "patch_size": 14}
    big = from_open_clip({"model_cfg": cfg | {"embed_dim": 1280, "vision_cfg": vision}})
    assert isinstance(big.vision, ViT)
    assert (big.vision.tower.heads, big.vision.tower.mlp) == (16, 8192)
    more = {"quick_gelu": True, "custom_text": True, "init_logit_bias": None}
    assert from_open_clip({"model_cfg": cfg | more}).text.tower.activation == "quick_gelu"


def test_open_clips_defaults_are_read() -> None:
    """`CLIPTextCfg`: 8 heads whatever the width, an MLP of four widths."""
    table = {
        "embed_dim": 64,
        "vision_cfg": LAION_H["model_cfg"]["vision_cfg"],
        "text_cfg": {"width": 1024, "layers": 2},
    }
    assert from_open_clip(table).text.tower == Transformer(1024, 2, 8, 4096, "gelu")
    table["text_cfg"] |= {"mlp_ratio": 2.0, "heads": 16}
    assert from_open_clip(table).text.tower == Transformer(1024, 2, 16, 2048, "gelu")


def check(error: pytest.ExceptionInfo[FedvlmError], *words: str) -> None:
    for word in ("fedvlm does not implement", *words):
        assert word in str(error.value), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [("text_cfg", "no_causal_mask", True), ("text_cfg", "pool_type", "last"), ("text_cfg", "pool_type", "eos"),
     ("text_cfg", "hf_tokenizer_name", "xlm-roberta-base"), ("text_cfg", "hf_model_name", "roberta-base"),
     ("text_cfg", "embed_cls", True), ("text_cfg", "proj_bias", True), ("text_cfg", "proj_type", "none"),
     ("text_cfg", "act_kwargs", {"approximate": "tanh"}), ("text_cfg", "norm_kwargs", {"eps": 1e-6}),
     ("text_cfg", "final_ln_after_pool", True), ("text_cfg", "tokenizer_kwargs", {"clean": "canonicalize"}),
     ("vision_cfg", "pool_type", "avg"), ("vision_cfg", "no_ln_pre", True), ("vision_cfg", "ls_init_value", 1e-5),
     ("vision_cfg", "norm_kwargs", {"eps": 1e-6}), ("vision_cfg", "final_ln_after_pool", True),
     ("vision_cfg", "attentional_pool", True), ("vision_cfg", "input_patchnorm", True),
     ("vision_cfg", "pos_embed_type", "sin_cos_2d"), ("vision_cfg", "qk_norm", True),
     ("vision_cfg", "timm_model_name", "convnext_base"), ("vision_cfg", "something_new", 3),
     ("model_cfg", "multimodal_cfg", {"layers": 12}), ("model_cfg", "init_logit_bias", -10), ("model_cfg", "new", 0)],
)  # fmt: skip
def test_what_open_clip_has_and_fedvlm_has_not(part: str, key: str, value: Any) -> None:
    table = json.loads(json.dumps(LAION_H))
    (table["model_cfg"] if part == "model_cfg" else table["model_cfg"][part])[key] = value
    with pytest.raises(FedvlmError) as error:
        from_open_clip(table, "some/open_clip_config.json")
    check(error, f"{key} = {json.dumps(value)}", "some/open_clip_config.json", *([part] if part != "model_cfg" else []))


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [("vision_config", "num_channels", 4), ("vision_config", "model_type", "siglip_vision_model"),
     ("text_config", "rope_theta", 10000.0), ("text_config", "pruned_heads", {"1": [0]}), ("", "auto_map", {"a": "b"}),
     ("", "quantization_config", {"bits": 4}), ("", "num_hidden_registers", 4),
     ("vision_config_dict", "hidden_size", 1280)],
)  # fmt: skip
def test_what_a_huggingface_file_asks_for_and_fedvlm_does_not(part: str, key: str, value: Any) -> None:
    table = json.loads(json.dumps(openai()))
    (table[part] if part else table)[key] = value
    with pytest.raises(FedvlmError) as error:
        from_huggingface(table, "some/config.json")
    check(error, f"{key} = {json.dumps(value)}", "some/config.json", part)


@pytest.mark.parametrize("size", [{"size": 224, "crop_size": 224}, {"size": {"shortest_edge": 224}}, {}])
def test_a_published_image_processor_is_read(tmp_path: Path, size: Table) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | size | {"do_convert_rgb": False}))
    assert preprocess.load(tmp_path, 224, LAION_H["preprocess_cfg"]) == preprocess.Preprocess(224)


@pytest.mark.parametrize(
    ("key", "value"),
    [("resample", 2), ("do_resize", False), ("do_center_crop", False), ("do_normalize", False), ("do_rescale", False),
     ("rescale_factor", 1 / 127.5), ("rescale_factor", 1.0), ("size", 256), ("size", {"shortest_edge": 256}),
     ("size", {"height": 224, "width": 224}), ("crop_size", {"height": 336, "width": 336}), ("crop_size", 336),
     ("do_pad", True), ("default_to_square", True), ("do_flip_channels", True)],
)  # fmt: skip
def test_another_transform_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(PROCESSOR | {key: value}))
    with pytest.raises(FedvlmError) as error:
        preprocess.load(tmp_path, 224)
    check(error, f"{key} = {json.dumps(value)}"[:50], str(file))


@pytest.mark.parametrize(
    ("key", "value"),
    [("interpolation", "bilinear"), ("resize_mode", "squash"), ("resize_mode", "longest"), ("mode", "L"),
     ("size", 256), ("size", [224, 256]), ("gamma", 2)],
)  # fmt: skip
def test_another_open_clip_transform_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    """Also beside a `preprocessor_config.json` that says nothing of it."""
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    with pytest.raises(FedvlmError) as error:
        preprocess.load(tmp_path, 224, LAION_H["preprocess_cfg"] | {key: value})
    check(error, f"{key} = {json.dumps(value)}", "preprocess_cfg", str(tmp_path))


def test_a_refusal_names_the_file_of_the_model(tmp_path: Path) -> None:
    save(tiny.clip(), tmp_path)
    table = json.loads((tmp_path / "config.json").read_text())
    table["vision_config"]["use_rms_norm"] = True
    (tmp_path / "config.json").write_text(json.dumps(table))
    with pytest.raises(FedvlmError) as error:
        clips.load(str(tmp_path))
    check(error, "use_rms_norm = true", f"vision_config in {tmp_path / 'config.json'}")


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [("vision_cfg", "image_size", [224, 224]), ("vision_cfg", "patch_size", 0), ("vision_cfg", "layers", "12"),
     ("vision_cfg", "mlp_ratio", "four"), ("text_cfg", "heads", True), ("model_cfg", "embed_dim", None)],
)  # fmt: skip
def test_a_value_of_the_wrong_kind_ends_in_one_sentence(tmp_path: Path, part: str, key: str, value: Any) -> None:
    table = json.loads(json.dumps(LAION_H))
    (table["model_cfg"] if part == "model_cfg" else table["model_cfg"][part])[key] = value
    (tmp_path / "open_clip_config.json").write_text(json.dumps(table))
    with pytest.raises(FedvlmError, match=r"open_clip_config.json is not a readable CLIP configuration"):
        clips.load(str(tmp_path))


@pytest.mark.parametrize("table", [{"mean": [0.5]}, {"mean": 0.5}, "bicubic"])
def test_an_unreadable_open_clip_transform_ends_in_one_sentence(tmp_path: Path, table: Any) -> None:
    with pytest.raises(FedvlmError, match=r"preprocess_cfg in .* is not a readable"):
        preprocess.load(tmp_path, 224, table)
