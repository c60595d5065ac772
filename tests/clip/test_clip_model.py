"""The encoders against a slow second writing of them (`formulas`), and against published sizes."""

from __future__ import annotations

import math

import formulas
import pytest
import torch
from torch import Tensor

from fedvlm.clip import CLIP, FEATURE, FrozenCLIP, Insertions, ParallelTo, Patches, initialise
from fedvlm.clip.config import ClipConfig, from_open_clip, standard
from fedvlm.clip.packed import pack
from fedvlm.errors import FedvlmError
from fedvlm.testing import tiny

DEEP = tiny.vit_config(vision=(32, 5, 2, 64), text=(24, 3, 3, 48), patch=4)


@pytest.fixture(scope="module")
def clip() -> FrozenCLIP:
    return tiny.clip(DEEP)


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(2))


def near(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    assert a.shape == b.shape
    assert (a.double() - b.double()).abs().max() <= tolerance * b.abs().max()


@pytest.mark.parametrize(
    ("name", "count"),
    [("ViT-B/16", 149_620_737), ("ViT-B/32", 151_277_313), ("ViT-L/14", 427_616_513), ("RN50", 102_007_137)],
)
def test_published_parameter_counts(name: str, count: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in CLIP(standard(name)).parameters()) == count


def test_an_unknown_architecture_is_named() -> None:
    with pytest.raises(FedvlmError, match=r"ViT-H/14.*ViT-B/16"):
        standard("ViT-H/14")


def test_the_published_open_clip_configuration_of_rn50() -> None:
    vision = {"image_size": 224, "layers": [3, 4, 6, 3], "width": 64, "patch_size": None}
    text = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
    read = from_open_clip(
        {"model_cfg": {"embed_dim": 1024, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}}
    )
    assert read == standard("RN50")


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_features_are_those_of_the_naive_encoder(activation: str, pixels: Tensor) -> None:
    clip = tiny.clip(tiny.vit_config(patch=4, activation=activation))
    w = formulas.weights(clip)
    near(clip.encode_image(pixels), formulas.image_features(pixels, w, clip.config))
    rows, ends = formulas.token_rows(["cat", "a photo of a dog.", "x"], clip)
    ids, eot = clip.tokenizer(["cat", "a photo of a dog.", "x"])
    words = w["text.token_embedding.weight"][torch.tensor(rows)]
    near(clip.encode_text(ids, eot), formulas.text_features(words, ends, w, clip.config))


def test_what_stands_after_the_end_of_text_does_not_matter(clip: FrozenCLIP) -> None:
    ids, eot = clip.tokenizer(["cat", "a photo of a dog."])
    full = torch.randint(0, 500, (2, 40), generator=torch.Generator().manual_seed(0))
    full[:, : ids.shape[1]] = torch.where(torch.arange(ids.shape[1]) <= eot[:, None], ids, full[:, : ids.shape[1]])
    assert ids.shape[1] == int(eot.max()) + 1 < 40
    near(clip.encode_text(full, eot), clip.encode_text(ids, eot), 1e-6)


def test_entering_at_any_image_block_gives_the_same_feature(clip: FrozenCLIP, pixels: Tensor) -> None:
    w = formulas.weights(clip)
    stream = formulas.image_stream(pixels, w, clip.config)
    whole = clip.encode_image(pixels)
    for entry in range(1, clip.visual.depth + 1):
        hidden = clip.visual.hidden(pixels, entry)
        near(hidden, stream[entry - 1])
        near(clip.visual.feature(hidden, entry), whole, 1e-6)
    assert torch.equal(clip.visual.hidden(pixels, FEATURE), whole)
    assert torch.equal(clip.visual.feature(whole, FEATURE), whole)


def test_entering_at_any_text_block_gives_the_same_feature(clip: FrozenCLIP) -> None:
    ids, eot = clip.tokenizer(["cat", "a photo of a dog."])
    whole, texts = clip.encode_text(ids, eot), pack(ids, eot)
    words = clip.text.embed(texts.ids)[None]
    for entry in range(1, clip.text.depth + 1):
        near(clip.text.feature(clip.text.hidden(words, texts, entry), texts, entry)[0], whole, 1e-6)


def test_patch_features(clip: FrozenCLIP, pixels: Tensor) -> None:
    w = formulas.weights(clip)
    expected = formulas.project_image(formulas.image_stream(pixels, w, clip.config)[-1][:, 1:], w, clip.config)
    assert expected.shape == (3, 16, 16)
    for entry in (1, 3, clip.visual.depth):
        near(clip.visual.patches(clip.visual.hidden(pixels, entry), entry), expected)


def test_patch_features_of_a_resnet() -> None:
    """Every position queries the pool; position p of the published pool is the same attention with another query."""
    clip = tiny.clip(tiny.resnet_config())
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert clip.visual.hidden(images, Patches()).shape == (2, 1, 32)  # type: ignore[operator,call-arg]
    pool = clip.visual.attnpool
    grid = torch.randn(2, 512, 2, 2, generator=torch.Generator().manual_seed(1))
    pool.positional_embedding = torch.nn.Parameter(torch.randn(5, 512, generator=torch.Generator().manual_seed(2)))
    tokens = torch.cat([grid.mean((2, 3))[:, None], grid.flatten(2).mT], 1) + pool.positional_embedding
    layer = torch.nn.functional.multi_head_attention_forward(
        tokens.transpose(0, 1), tokens.transpose(0, 1), tokens.transpose(0, 1), 512, pool.heads, None,
        torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]), None, None, False, 0.0, pool.c_proj.weight, pool.c_proj.bias,
        training=False, need_weights=False, use_separate_proj_weight=True, q_proj_weight=pool.q_proj.weight,
        k_proj_weight=pool.k_proj.weight, v_proj_weight=pool.v_proj.weight,
    )[0].transpose(0, 1)  # fmt: skip
    near(pool(grid), layer[:, 0])
    near(pool(grid, read_all=True), layer[:, 1:])


def test_a_resnet_answers_like_a_transformer_of_no_blocks() -> None:
    clip = tiny.clip(tiny.resnet_config())
    images = torch.randn(2, 3, 32, 32)
    hidden = clip.visual.hidden(images, FEATURE)
    assert torch.equal(clip.visual.feature(hidden, FEATURE), clip.encode_image(images))


class Module:
    """A branch and an input edit with random numbers, in both precisions."""

    def __init__(self, width: int, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.a = torch.randn(width, width, generator=draw) / width
        self.tokens = torch.randn(2, width, generator=draw)

    def branch(self, h: Tensor) -> Tensor:
        return torch.tanh(h @ self.a.to(h.dtype))

    def replace(self, x: Tensor) -> Tensor:
        """Tokens 1 and 2 become others, as deep prompts do."""
        return torch.cat([x[:, :1], self.tokens.to(x.dtype).expand(len(x), -1, -1), x[:, 3:]], 1)

    def append(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.tokens.to(x.dtype).expand(len(x), -1, -1)], 1)


@pytest.mark.parametrize("block", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", ["branch", "replace", "append"])
def test_insertions_into_image_blocks(clip: FrozenCLIP, pixels: Tensor, block: int, kind: str) -> None:
    inserted = getattr(Module(32, block), kind)
    where = {"branches" if kind == "branch" else "inputs": {block: inserted}}
    w = formulas.weights(clip)
    expected = formulas.image_features(pixels, w, clip.config, **where)
    plain = clip.encode_image(pixels)
    for entry in {1, block, ParallelTo(block) if kind == "branch" else 1}:
        out = clip.visual.feature(clip.visual.hidden(pixels, entry), entry, Insertions(**where))
        near(out, expected)
        assert (out - plain).abs().max() > 1e-3
    last = formulas.image_stream(pixels, w, clip.config, **where)[-1]
    near(
        clip.visual.patches(clip.visual.hidden(pixels, 1), 1, Insertions(**where)),
        formulas.project_image(last[:, 1:], w, clip.config),
    )


@pytest.mark.parametrize("block", [1, 2, 3])
@pytest.mark.parametrize("kind", ["branch", "replace"])
def test_insertions_into_text_blocks(clip: FrozenCLIP, block: int, kind: str) -> None:
    inserted = getattr(Module(24, block), kind)
    where = {"branches" if kind == "branch" else "inputs": {block: inserted}}
    w = formulas.weights(clip)
    texts = ["a photo of a cat", "a photo of a black dog.", "a photo of an x"]
    rows, ends = formulas.token_rows(texts, clip)
    expected = formulas.text_features(
        w["text.token_embedding.weight"][torch.tensor(rows)], ends, w, clip.config, **where
    )
    packed = pack(*clip.tokenizer(texts))
    for entry in {1, block, ParallelTo(block) if kind == "branch" else 1}:
        hidden = clip.text.hidden(clip.text.embed(packed.ids)[None], packed, entry)
        near(clip.text.feature(hidden, packed, entry, Insertions(**where))[0], expected)


def test_beside_a_block_nothing_of_it_is_computed_again(clip: FrozenCLIP, pixels: Tensor) -> None:
    """LN1 of its input and its own output; of the last block only what is read. The block's weights are not needed."""
    tokens = clip.visual.tokens(pixels)
    for number in range(1, clip.visual.depth + 1):
        hidden = clip.visual.hidden(pixels, ParallelTo(number))
        x = clip.visual.transformer(tokens, stop=number)
        block = clip.visual.transformer.resblocks[number - 1]
        read = slice(0, 1) if number == clip.visual.depth else slice(None)
        near(hidden[:, 0], block.ln_1(x)[:, read])
        near(hidden[:, 1], block(x)[:, read])
        other = tiny.clip(clip.config, seed=5)
        other.load_state_dict(clip.state_dict())
        for parameter in other.visual.transformer.resblocks[number - 1].parameters():
            parameter.fill_(torch.nan)
        near(other.visual.feature(hidden, ParallelTo(number)), clip.encode_image(pixels))
    with pytest.raises(AssertionError, match="unchanged block"):
        clip.visual.feature(hidden, ParallelTo(number), Insertions(inputs={number: lambda x: x}))


def test_several_insertions_at_once_and_those_below_the_entry(clip: FrozenCLIP, pixels: Tensor) -> None:
    branches = {number: Module(32, number).branch for number in (1, 3, 4)}
    inputs = {2: Module(32, 9).append, 5: Module(32, 8).replace}
    w = formulas.weights(clip)
    expected = formulas.image_features(pixels, w, clip.config, branches=branches, inputs=inputs)
    near(clip.visual.feature(clip.visual.hidden(pixels, 1), 1, Insertions(inputs, branches)), expected)
    upper = formulas.image_features(
        pixels, w, clip.config, branches={n: branches[n] for n in (3, 4)}, inputs={5: inputs[5]}
    )
    near(clip.visual.feature(clip.visual.hidden(pixels, 3), 3, Insertions(inputs, branches)), upper)


def test_a_branch_that_gives_nothing_changes_nothing(clip: FrozenCLIP, pixels: Tensor) -> None:
    nothing = Insertions(branches={2: torch.zeros_like}, inputs={3: lambda x: x})
    near(clip.visual.feature(clip.visual.hidden(pixels, 1), 1, nothing), clip.encode_image(pixels), 1e-6)


def test_gradients_reach_insertions_and_nothing_else(clip: FrozenCLIP, pixels: Tensor) -> None:
    leaf = torch.zeros(32, requires_grad=True)
    clip.visual.feature(clip.visual.hidden(pixels, 4), 4, Insertions(branches={4: lambda h: h * leaf})).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in clip.parameters())


def test_logits_are_scaled_cosines(clip: FrozenCLIP) -> None:
    image, text = torch.randn(2, 16), torch.randn(3, 16)
    expected = 20.0 * formulas.cosines(image.double(), text.double())
    near(clip.logits(image, text), expected)
    near(clip.logits(image * 7, text * 0.1), expected)


def test_the_zero_shot_classifier_keeps_the_order_of_names(clip: FrozenCLIP) -> None:
    names = ["red_fox", "dog", "cat", "pig"]
    table = clip.classifier(names, "an x of {}!")
    for row, name in zip(table, ["red fox", "dog", "cat", "pig"], strict=True):
        ids, eot = clip.tokenizer([f"an x of {name}!"])
        near(row[None], clip.encode_text(ids, eot), 1e-5)
    assert not table.requires_grad


def test_an_unsupported_activation_is_named() -> None:
    with pytest.raises(FedvlmError, match=r"relu.*quick_gelu"):
        CLIP(tiny.vit_config(activation="relu"))


WIDE = ClipConfig(
    tiny.vit_config(vision=(64, 2, 4, 256), patch=4).vision, tiny.vit_config(text=(96, 3, 4, 384)).text, 32
)


@pytest.mark.parametrize(
    ("name", "std"),
    [("text.token_embedding.weight", 0.02), ("text.positional_embedding", 0.01), ("visual.positional_embedding", 64**-0.5),
     ("visual.proj", 64**-0.5), ("text.transformer.resblocks.1.attn.in_proj_weight", 96**-0.5),
     ("text.transformer.resblocks.1.attn.out_proj.weight", 96**-0.5 * 6**-0.5),
     ("text.transformer.resblocks.1.mlp.c_fc.weight", (2 * 96) ** -0.5),
     ("text.transformer.resblocks.1.mlp.c_proj.weight", 96**-0.5 * 6**-0.5),
     pytest.param("text.text_projection", 96**-0.5)],
)  # fmt: skip
def test_initial_weights_are_drawn_as_published(name: str, std: float) -> None:
    """CLIP's released `initialize_parameters`, text and joint parts."""
    clip = CLIP(WIDE)
    initialise(clip, torch.Generator().manual_seed(0))
    values = clip.state_dict()[name]
    assert float(values.std()) == pytest.approx(std, rel=5 / math.sqrt(2 * values.numel()))
    assert abs(float(values.mean())) < 5 * std / math.sqrt(values.numel())


def test_initial_weights_come_from_the_generator_alone() -> None:
    first, again, other = CLIP(WIDE), CLIP(WIDE), CLIP(WIDE)
    for clip, seed in ((first, 0), (again, 0), (other, 1)):
        initialise(clip, torch.Generator().manual_seed(seed))
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    assert not torch.equal(first.visual.proj, other.visual.proj)  # type: ignore[arg-type,union-attr]
    assert first.logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    assert all(float(tensor.abs().max()) == 0 for name, tensor in first.state_dict().items() if name.endswith("bias"))


def test_a_second_derivative_of_the_frozen_mlp_is_refused_and_not_wrong(clip: FrozenCLIP) -> None:
    x = torch.randn(1, 2, clip.config.text.tower.width, requires_grad=True)
    (first,) = torch.autograd.grad(clip.text.transformer.resblocks[0].mlp(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        first.sum().backward()
