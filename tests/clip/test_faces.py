"""A dual encoder that is not causal, has no class token and pools by attention: right, whatever calls it."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from fedvlm.clip import FEATURE, Entry, FrozenCLIP, Insertions, ParallelTo, Patches, initialise, save
from fedvlm.clip import packed as packing
from fedvlm.clip.config import ViT, facts, standard, unlike_clip
from fedvlm.clip.packed import pack
from fedvlm.errors import FedvlmError
from fedvlm.methods import known
from fedvlm.streams import torch_stream
from fedvlm.testing import PROMISES, Case, Promise, tiny
from fedvlm.tuners.prompt import Prompt

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")

WORDS = ["cat", "a photo of a dog.", "x"]
FAMILIES = {
    "adapter": "pfedmma", "LoRA": "fedlora", "features": "fedclip", "gate": "pfedmoap", "prompt": "promptfl",
    "pair of prompts": "fedpgp", "patches and prompts": "fedotp", "prompts in both encoders": "maple",
    "groups of prompts": "fedmgp", "a prompt for each image": "cocoop", "a generator of prompts": "fedtpg",
    "templates": "zero_shot", "a memory": "tip_adapter",
}  # fmt: skip
"""A method for every family of tuners."""


@pytest.fixture(scope="module")
def clip() -> FrozenCLIP:
    return tiny.bidirectional()


@pytest.fixture(scope="module")
def oracle(clip: FrozenCLIP) -> transformers.SiglipModel:
    """transformers' SigLIP with the same weights."""
    vision, text = clip.config.vision, clip.config.text
    assert isinstance(vision, ViT)

    def tower(shape: object) -> dict[str, object]:
        return {"hidden_size": shape.width, "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,  # type: ignore[attr-defined]
                "intermediate_size": shape.mlp, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": shape.eps}  # type: ignore[attr-defined]  # fmt: skip

    config = transformers.SiglipConfig(
        text_config={**tower(text.tower), "vocab_size": text.vocabulary, "max_position_embeddings": text.context,
                     "projection_size": clip.config.embed},
        vision_config={**tower(vision.tower), "image_size": vision.image, "patch_size": vision.patch},
    )  # fmt: skip
    model = transformers.SiglipModel(config).eval().requires_grad_(False)
    model.load_state_dict(_siglip_names(clip.state_dict()) | {"logit_bias": torch.tensor([-10.0])})
    return model


def _siglip_names(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our weights under transformers' names, written out here and nowhere else."""
    v, t, width = "vision_model", "text_model", ours["visual.head.probe"].shape[0]
    kernel = ours["visual.conv1.weight"]
    out = {
        f"{v}.embeddings.patch_embedding.weight": kernel, f"{v}.embeddings.patch_embedding.bias": ours["visual.conv1.bias"],
        f"{v}.embeddings.position_embedding.weight": ours["visual.positional_embedding"],
        f"{v}.head.probe": ours["visual.head.probe"].view(1, 1, width),
        f"{v}.head.attention.in_proj_weight": ours["visual.head.attn.in_proj_weight"],
        f"{v}.head.attention.in_proj_bias": ours["visual.head.attn.in_proj_bias"],
        f"{t}.embeddings.token_embedding.weight": ours["text.token_embedding.weight"],
        f"{t}.embeddings.position_embedding.weight": ours["text.positional_embedding"],
        f"{t}.head.weight": ours["text.text_projection"].T, f"{t}.head.bias": ours["text.text_projection_bias"],
        "logit_scale": ours["logit_scale"][None],
    }  # fmt: skip
    for kind in ("weight", "bias"):
        out |= {
            f"{v}.post_layernorm.{kind}": ours[f"visual.ln_post.{kind}"],
            f"{t}.final_layer_norm.{kind}": ours[f"text.ln_final.{kind}"],
            f"{v}.head.attention.out_proj.{kind}": ours[f"visual.head.attn.out_proj.{kind}"],
            f"{v}.head.layernorm.{kind}": ours[f"visual.head.ln.{kind}"],
            f"{v}.head.mlp.fc1.{kind}": ours[f"visual.head.mlp.c_fc.{kind}"],
            f"{v}.head.mlp.fc2.{kind}": ours[f"visual.head.mlp.c_proj.{kind}"],
        }
        for there, here, layers in ((v, "visual", 3), (t, "text", 4)):
            for layer in range(layers):
                to, of = f"{there}.encoder.layers.{layer}", f"{here}.transformer.resblocks.{layer}"
                out |= {f"{to}.self_attn.{name}_proj.{kind}": part
                        for name, part in zip("qkv", ours[f"{of}.attn.in_proj_{kind}"].chunk(3), strict=True)}  # fmt: skip
                out |= {f"{to}.{name}.{kind}": ours[f"{of}.{own}.{kind}"] for name, own in (
                    ("self_attn.out_proj", "attn.out_proj"), ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"),
                    ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"))}  # fmt: skip
    return out


@pytest.fixture
def pixels() -> Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def near(found: Tensor, expected: Tensor, bound: float = 2e-5) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < bound * max(1.0, float(expected.abs().max()))


def test_images_and_texts_are_those_of_transformers(
    clip: FrozenCLIP, oracle: transformers.SiglipModel, pixels: Tensor
) -> None:
    ids, end = clip.tokenizer(WORDS)
    assert ids.shape == (3, clip.config.text.context)
    assert end.unique().tolist() == [ids.shape[1] - 1]
    image, text = oracle.vision_model(pixels).pooler_output, oracle.text_model(ids).pooler_output
    near(clip.encode_image(pixels), image)
    near(clip.encode_text(ids, end), text)
    theirs = oracle(input_ids=ids, pixel_values=pixels).logits_per_image
    near(clip.logits(image, text), theirs + 10.0, 1e-4)


def test_texts_that_end_at_their_end_token_are_those_of_each_alone(oracle: transformers.SiglipModel) -> None:
    """Without padding, of one text at a time, the last position of transformers' model is the end token's."""
    clip = tiny.bidirectional(read_padding=False)
    ids, end = clip.tokenizer(WORDS)
    each = [oracle.text_model(row[None, : stop + 1]).pooler_output[0] for row, stop in zip(ids, end, strict=True)]
    near(clip.encode_text(ids, end), torch.stack(each))


def test_a_patch_is_pooled_as_if_it_were_alone(
    clip: FrozenCLIP, oracle: transformers.SiglipModel, pixels: Tensor
) -> None:
    tokens = oracle.vision_model(pixels).last_hidden_state
    each = [oracle.vision_model.head(tokens[:, place : place + 1]) for place in range(4)]
    near(clip.visual.hidden(pixels, Patches()), torch.stack(each, 1))


@pytest.mark.parametrize("entry", [1, 2, 3, ParallelTo(1), ParallelTo(2), ParallelTo(3), FEATURE])
def test_entering_anywhere_gives_the_same_feature(clip: FrozenCLIP, pixels: Tensor, entry: Entry) -> None:
    whole = clip.encode_image(pixels)
    near(clip.visual.feature(clip.visual.hidden(pixels, entry), entry), whole, 1e-6)
    if entry != FEATURE:
        texts = clip.text.pack(*clip.tokenizer(WORDS))
        hidden = clip.text.hidden(clip.text.embed(texts.ids)[None], texts, entry)
        near(clip.text.feature(hidden, texts, entry)[0], clip.text.encode(texts), 1e-6)


@pytest.mark.parametrize("block", [1, 2, 3])
def test_a_branch_beside_a_block_counts_for_every_token_that_is_pooled(
    clip: FrozenCLIP, pixels: Tensor, block: int
) -> None:
    """The same from the block's input and from beside it, and of the last block for all tokens."""
    scale = 0.3 + torch.arange(32) / 32
    branch = Insertions(branches={block: lambda h: h.tanh() * scale})
    found = clip.visual.feature(clip.visual.hidden(pixels, ParallelTo(block)), ParallelTo(block), branch)
    near(found, clip.visual.feature(clip.visual.hidden(pixels, 1), 1, branch), 1e-6)
    x = clip.visual.tokens(pixels)
    for number, layer in enumerate(clip.visual.transformer.resblocks, 1):
        h, x = layer.ln_1(x), layer(x)
        x = x + h.tanh() * scale if number == block else x
    near(found, clip.visual.head(clip.visual.ln_post(x)))


def test_a_prompt_of_no_effect_leaves_the_published_text(clip: FrozenCLIP, oracle: transformers.SiglipModel) -> None:
    """Learned tokens with the embeddings of words displace padding, as the words would."""
    prompt = Prompt(clip, WORDS[:1], len(clip.tokenizer.words("a photo of a")), "a photo of a")
    ids, _ = clip.tokenizer(["a photo of a cat."])
    expected = F.normalize(oracle.text_model(ids).pooler_output, dim=-1)
    near(prompt.features(prompt.init(torch_stream(0, "none"))["prompt"]), expected)


rows = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=9), min_size=1, max_size=6)


@given(rows, st.integers(1, 12))
def test_every_token_attends_to_its_whole_text_and_to_no_other(found: list[list[int]], size: int) -> None:
    longest = max(map(len, found))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in found])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "BIN", size)
        packed = pack(ids, torch.tensor([len(row) - 1 for row in found]), causal=False)
    assert packed.common == 0
    assert packed.ids.tolist() == [token for row in found for token in row]
    starts = [end + 1 - len(row) for row, end in zip(found, packed.end.tolist(), strict=True)]
    of = {place: range(start, start + len(row)) for row, start in zip(found, starts, strict=True)
          for place in range(start, start + len(row))}  # fmt: skip
    for bins, queries in ((packed.tokens, list(range(len(packed.ids)))), (packed.ends, packed.end.tolist())):
        reach = bins.reach[:, 0].flatten(0, 1)
        for query, cell in zip(queries, bins.cells.tolist(), strict=True):
            keys = packed.keys[cell // bins.grid.shape[1]][reach[cell]]
            assert sorted(keys.tolist()) == list(of[query])


ASKED = [
    (family, promise) for family, name in FAMILIES.items() for promise in PROMISES if promise.applies(known()[name])
]


@pytest.mark.parametrize(("family", "promise"), ASKED, ids=[f"{family}: {promise}" for family, promise in ASKED])
def test_every_family_of_tuners_keeps_every_promise_on_it(family: str, promise: Promise, clip: FrozenCLIP) -> None:
    promise.check(Case(known()[FAMILIES[family]], clip=clip))


def test_no_digest_of_a_clip_moves_because_other_families_exist() -> None:
    """Fields that a CLIP does not use are not in what is digested."""
    plain = {"width": 8, "layers": 1, "heads": 2, "mlp": 4, "activation": "quick_gelu", "eps": 1e-5}
    config = tiny.vit_config(vision=(8, 1, 2, 4), text=(8, 1, 2, 4))
    assert facts(config) == {
        "vision": {"image": 16, "patch": 8, "tower": plain},
        "text": {"context": 40, "vocabulary": config.text.vocabulary, "tower": plain}, "embed": 16,
    }  # fmt: skip
    assert facts(standard("RN50"))["vision"] == {"image": 224, "layers": (3, 4, 6, 3), "width": 64}
    other = replace(config, text=replace(config.text, causal=False))
    assert facts(other)["text"]["causal"] is False
    assert unlike_clip(other) == ["text.causal"]
    assert tiny.clip(other).digest != tiny.clip(config).digest


def test_what_clip_formats_have_no_place_for_is_not_written(clip: FrozenCLIP, tmp_path: object) -> None:
    with pytest.raises(FedvlmError, match="no start token"):
        save(clip, tmp_path)  # type: ignore[arg-type]
    with pytest.raises(FedvlmError, match=r"no place for this dual encoder's vision\.class_token, vision\.pre_norm"):
        save(tiny.clip(tiny.bidirectional_config()), tmp_path)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())  # type: ignore[attr-defined]


def test_shapes_that_cannot_be_are_refused() -> None:
    vision = tiny.bidirectional_config().vision
    assert isinstance(vision, ViT)
    with pytest.raises(FedvlmError, match="cannot pool by it"):
        replace(vision, pool="class_token")
    with pytest.raises(FedvlmError, match="joint width 16, not 32"):
        replace(tiny.bidirectional_config(), embed=16)


def test_random_weights_of_every_part_are_drawn() -> None:
    made = tiny.bidirectional()
    initialise(made, torch_stream(0, "test"))
    for name, tensor in made.named_parameters():
        assert bool(tensor.isfinite().all()), name
        assert float(tensor.std()) > 1e-3 or (tensor.ndim < 2 and not name.endswith("probe")), name
