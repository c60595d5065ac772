"""Settings of published model files that fedvlm does not implement are refused by name, never ignored.

A model whose file asks for something else would load and be measured below its published accuracy, unnoticed. Every key
of such a file is one of four: read; fixed to what fedvlm does; without effect on a frozen model's outputs; or unknown,
which is refused. The keys are those of transformers 4.16 to 5 (`CLIPConfig`, `CLIPImageProcessor`) and of open_clip 3.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedvlm.errors import FedvlmError

Fixed = Mapping[str, tuple[tuple[Any, ...], str]]
"""By key: the values that ask for nothing else (the first is the format's default), and what fedvlm does."""


@dataclass(frozen=True)
class Keys:
    """The keys of one table of a file."""

    read: frozenset[str]
    harmless: frozenset[str] = frozenset()
    fixed: Fixed = field(default_factory=dict)


def check(table: Mapping[str, Any], keys: Keys, where: str) -> None:
    """Raises `FedvlmError` for the first key of the table that asks for something else, `where`: its file and table.

    A key without a value (null) asks for nothing.
    """
    for key, value in table.items():
        if value is None:
            continue
        if key in keys.fixed:
            allowed, instead = keys.fixed[key]
            if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed):
                raise not_implemented(key, value, where, instead)
        elif key not in keys.read and key not in keys.harmless:
            raise not_implemented(key, value, where, "it does not know this key, which may change what the model does")


def not_implemented(key: str, value: Any, where: str, instead: str) -> FedvlmError:
    """The error for a key whose value fedvlm does not implement."""
    said = json.dumps(value)
    said = said if len(said) <= 60 else f"{said[:57]}..."
    return FedvlmError(f"fedvlm does not implement {key} = {said} of {where}: {instead}")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_BASE = _words(
    """_attn_implementation _attn_implementation_autoset _attn_implementation_internal _commit_hash _name_or_path
    add_cross_attention architectures attention_dropout attn_implementation bad_words_ids begin_suppress_tokens
    bos_token_id chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample
    dropout dtype early_stopping encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty
    finetuning_task forced_bos_token_id forced_eos_token_id gradient_checkpointing id2label initializer_factor
    initializer_range is_decoder is_encoder_decoder label2id length_penalty max_length min_length no_repeat_ngram_size
    num_beam_groups num_beams num_return_sequences output_attentions output_hidden_states output_scores pad_token_id
    prefix problem_type projection_dim remove_invalid_values repetition_penalty return_dict return_dict_in_generate
    sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder
    tie_word_embeddings tokenizer_class top_k top_p torch_dtype torchscript transformers_version typical_p
    use_bfloat16 use_cache"""
)
"""What transformers writes into every configuration: training, generating, labels. Dropout is off in a frozen model.
The towers' own `projection_dim` belongs to their models without the other tower; the end of text is the tokenizer's."""
_ALL: Fixed = {
    "pruned_heads": (({}, None), "it has every head"),
    "quantization_config": ((None,), "it reads weights as floating-point numbers"),
    "auto_map": ((None, {}), "it runs no code that comes with a model"),
}
_TOWER = _words("hidden_size intermediate_size num_hidden_layers num_attention_heads hidden_act layer_norm_eps")
HUGGINGFACE = Keys(
    _words("model_type projection_dim text_config vision_config text_config_dict vision_config_dict"),
    _BASE | {"logit_scale_init_value"},
    _ALL,
)
HUGGINGFACE_TEXT = Keys(
    _TOWER | _words("max_position_embeddings vocab_size"),
    _BASE,
    {**_ALL, "model_type": (("clip_text_model", "clip"), "its text encoder is CLIP's")},
)
HUGGINGFACE_VISION = Keys(
    _TOWER | _words("image_size patch_size"),
    _BASE,
    {
        **_ALL,
        "model_type": (("clip_vision_model", "clip"), "its image encoders are CLIP's"),
        "num_channels": ((3,), "images are RGB"),
    },
)

_BLOCKS: Fixed = {
    "ls_init_value": ((None,), "its blocks have no layer scale"),
    "act_kwargs": ((None, {}), "its activations have no settings"),
    "norm_kwargs": ((None, {}, {"eps": 1e-5}), "its normalisations take eps 1e-5 in this format"),
    "block_type": ((None, "default"), "its blocks are CLIP's"),
    **dict.fromkeys(
        ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc"),
        ((False, None), "its blocks are CLIP's"),
    ),
}
_OTHER_ENCODER = (
    "its image encoders are CLIP's own ViT and ResNet; a model of that family needs its image encoder in fedvlm.clip"
)
OPEN_CLIP = Keys(
    _words("embed_dim quick_gelu vision_cfg text_cfg"),
    # `custom_text` only says that the text encoder's tensors are named text.*, as fedvlm names them itself.
    _words("preprocess_cfg custom_text init_logit_scale cast_dtype output_dict"),
    {
        "init_logit_bias": ((None,), "its logits have no bias"),
        "multimodal_cfg": ((None,), "it has no decoder"),
        "nonscalar_logit_scale": ((False, None), "one logit scale is for all"),
    },
)
OPEN_CLIP_VISION = Keys(
    _words("image_size patch_size width layers head_width mlp_ratio"),
    _words(
        """patch_dropout output_tokens attn_pooler_queries attn_pooler_heads n_queries timm_model_pretrained timm_pool
        timm_proj timm_proj_bias timm_drop timm_drop_path"""
    ),
    {
        **_BLOCKS,
        "timm_model_name": ((None, ""), _OTHER_ENCODER),
        "attentional_pool": ((False, None), "it reads the class token"),
        "global_average_pool": ((False, None), "it reads the class token"),
        "pool_type": (("tok",), "it reads the class token"),
        "final_ln_after_pool": ((False, None), "the last LayerNorm comes before the projection of the class token"),
        "no_ln_pre": ((False, None), "it normalises before the first block"),
        "input_patchnorm": ((False, None), "it does not normalise patches"),
        "pos_embed_type": (("learnable",), "its positions are learned"),
    },
)
OPEN_CLIP_TEXT = Keys(
    _words("context_length vocab_size width heads layers mlp_ratio"),
    _words("pad_id eos_id output_tokens hf_model_pretrained hf_proj_type hf_pooler_type"),
    {
        **_BLOCKS,
        "hf_model_name": ((None, ""), "its text encoder is CLIP's"),
        "hf_tokenizer_name": ((None, ""), "its tokenizer is CLIP's, from the files beside the model"),
        "tokenizer_kwargs": ((None, {}), "its tokenizer has no settings"),
        "embed_cls": ((False, None), "it reads the end of text, not a class token"),
        "no_causal_mask": ((False, None), "its text encoder is causal"),
        "pool_type": (("argmax",), "it reads the end of text"),
        "final_ln_after_pool": ((False, None), "the last LayerNorm comes before the projection"),
        "proj_bias": ((False, None), "the projection has no bias"),
        "proj_type": (("linear",), "the projection is linear"),
        "ln_post_emb": ((False, None), "embeddings are not normalised"),
    },
)

_CROP = "it resizes the shorter side to the model's image size and crops the centre"
IMAGE_PROCESSOR = Keys(
    _words("image_mean image_std size crop_size rescale_factor"),
    # Images are made RGB whether or not `do_convert_rgb` asks for it.
    _words(
        """image_processor_type feature_extractor_type processor_class do_convert_rgb _valid_processor_keys
        return_tensors data_format input_data_format device disable_grouping"""
    ),
    {
        "resample": ((3,), "it resizes bicubically (3)"),
        "do_resize": ((True,), _CROP),
        "do_center_crop": ((True,), _CROP),
        "do_rescale": ((True,), "pixels are divided by 255"),
        "do_normalize": ((True,), "means and deviations are applied"),
        "do_pad": ((False, None), "images are not padded"),
        "pad_size": ((None,), "images are not padded"),
        "default_to_square": ((False, None), _CROP),
        "use_square_size": ((False, None), _CROP),
    },
)
OPEN_CLIP_PREPROCESS = Keys(
    _words("size mean std"),
    _words("fill_color"),
    {
        "mode": (("RGB",), "images are RGB"),
        # `random` is drawn in training; its test transform is bicubic.
        "interpolation": (("bicubic", "random"), "it resizes bicubically"),
        "resize_mode": (("shortest",), _CROP),
    },
)
