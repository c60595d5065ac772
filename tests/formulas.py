"""CLIP, adapters, prompts and the gate again, slowly: straight from the papers' formulas, in float64, sharing no code.

Weights are a plain dictionary under OpenAI's names (`visual.*`; the text encoder's below `text.*`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedvlm.clip.config import ClipConfig, Transformer

Weights = dict[str, Tensor]
Branch = Callable[[Tensor], Tensor]


def weights(clip: torch.nn.Module) -> Weights:
    return {name: tensor.double() for name, tensor in clip.state_dict().items()}


def doubled(named: Mapping[str, Tensor], *, train: bool = False) -> Weights:
    return {name: tensor.detach().double().clone().requires_grad_(train) for name, tensor in named.items()}


def layer_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-5) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + eps) * scale + shift


def attention(x: Tensor, w: Weights, name: str, heads: int, causal: bool) -> Tensor:
    """Multi-head self-attention head by head. `[B, L, D]`."""
    length, width = x.shape[1:]
    rows, bias = w[f"{name}.in_proj_weight"], w[f"{name}.in_proj_bias"]
    q, k, v = (x @ rows[i * width : (i + 1) * width].T + bias[i * width : (i + 1) * width] for i in range(3))
    size, out = width // heads, []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(size)
        if causal:
            later = torch.ones(length, length, dtype=torch.bool).triu(1)
            scores = scores.masked_fill(later, float("-inf"))
        out.append(torch.exp(scores - scores.logsumexp(-1, keepdim=True)) @ v[..., part])
    return torch.cat(out, -1) @ w[f"{name}.out_proj.weight"].T + w[f"{name}.out_proj.bias"]


def activation(name: str, x: Tensor) -> Tensor:
    if name == "quick_gelu":
        return x / (1 + torch.exp(-1.702 * x))
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def mlp(x: Tensor, w: Weights, name: str, kind: str) -> Tensor:
    h = activation(kind, x @ w[f"{name}.c_fc.weight"].T + w[f"{name}.c_fc.bias"])
    return h @ w[f"{name}.c_proj.weight"].T + w[f"{name}.c_proj.bias"]


def blocks(
    x: Tensor, w: Weights, where: str, tower: Transformer, causal: bool, branches: Mapping[int, Branch] | None = None,
    inputs: Mapping[int, Branch] | None = None,
) -> list[Tensor]:  # fmt: skip
    """The input of every block, and the last block's output: item j-1 is what enters block j."""
    stream = [x]
    for number in range(1, tower.layers + 1):
        name = f"{where}.transformer.resblocks.{number - 1}"
        if inputs and number in inputs:
            x = inputs[number](x)
        h = layer_norm(x, w[f"{name}.ln_1.weight"], w[f"{name}.ln_1.bias"], tower.eps)
        u = x + attention(h, w, f"{name}.attn", tower.heads, causal)
        after = u + mlp(
            layer_norm(u, w[f"{name}.ln_2.weight"], w[f"{name}.ln_2.bias"], tower.eps),
            w,
            f"{name}.mlp",
            tower.activation,
        )
        x = after + branches[number](h) if branches and number in branches else after
        stream.append(x)
    return stream


def image_tokens(pixels: Tensor, w: Weights, config: ClipConfig) -> Tensor:
    """`[B, P+1, D]`: patches row by row, each the sum of its pixels times the kernel."""
    size, side = config.vision.patch, config.vision.image // config.vision.patch
    kernel = w["visual.conv1.weight"].reshape(-1, 3 * size * size)
    cut = [
        pixels[:, :, r * size : (r + 1) * size, c * size : (c + 1) * size].reshape(len(pixels), -1) @ kernel.T
        for r in range(side)
        for c in range(side)
    ]
    first = w["visual.class_embedding"].expand(len(pixels), -1)
    x = torch.stack([first, *cut], 1) + w["visual.positional_embedding"]
    return layer_norm(x, w["visual.ln_pre.weight"], w["visual.ln_pre.bias"], config.vision.tower.eps)


def image_stream(pixels: Tensor, w: Weights, config: ClipConfig, **more: Any) -> list[Tensor]:
    return blocks(image_tokens(pixels.double(), w, config), w, "visual", config.vision.tower, False, **more)


def project_image(x: Tensor, w: Weights, config: ClipConfig) -> Tensor:
    return (
        layer_norm(x, w["visual.ln_post.weight"], w["visual.ln_post.bias"], config.vision.tower.eps) @ w["visual.proj"]
    )


def image_features(pixels: Tensor, w: Weights, config: ClipConfig, **more: Any) -> Tensor:
    return project_image(image_stream(pixels, w, config, **more)[-1][:, 0], w, config)


def text_features(embeddings: Tensor, eot: Sequence[int], w: Weights, config: ClipConfig, **more: Any) -> Tensor:
    """Token embeddings `[K, L, D]` to `[K, E]`."""
    x = embeddings + w["text.positional_embedding"][: embeddings.shape[1]]
    x = blocks(x, w, "text", config.text.tower, True, **more)[-1]
    x = torch.stack([row[place] for row, place in zip(x, eot, strict=True)])
    return (
        layer_norm(x, w["text.ln_final.weight"], w["text.ln_final.bias"], config.text.tower.eps)
        @ w["text.text_projection"]
    )


def token_rows(texts: Sequence[str], clip: Any) -> tuple[list[list[int]], list[int]]:
    """Ids padded with zeros to the whole context, and end-of-text places."""
    rows = [[clip.tokenizer.sot, *clip.tokenizer.words(text), clip.tokenizer.eot] for text in texts]
    ends = [len(row) - 1 for row in rows]
    return [row + [0] * (clip.config.text.context - len(row)) for row in rows], ends


def cosines(image: Tensor, text: Tensor) -> Tensor:
    image = image / image.pow(2).sum(-1, keepdim=True).sqrt()
    text = text / text.pow(2).sum(-1, keepdim=True).sqrt()
    return image @ text.T


def adapter(tensors: Weights, tower: str, block: int, scale: float) -> Branch:
    """pfedmma.md 2.1."""

    def out(h: Tensor) -> Tensor:
        for part in (f"{tower}.{block}.down", f"shared.{block}"):
            h = h @ tensors[f"{part}.weight"].T + tensors[f"{part}.bias"]
            h = h * (h > 0)  # with the subgradient 0 at 0, where whole rows stand while biases are zero
        return scale * (h @ tensors[f"{tower}.{block}.up.weight"].T + tensors[f"{tower}.{block}.up.bias"])

    return out


def adapter_logits(
    clip: Any, w: Weights, tensors: Weights, names: Sequence[str], pixels: Tensor, first: int, last: int, scale: float,
    template: str = "a photo of a {}.",
) -> Tensor:  # fmt: skip
    numbers = range(first, last + 1)
    rows, ends = token_rows([template.format(name.replace("_", " ")) for name in names], clip)
    words = w["text.token_embedding.weight"][torch.tensor(rows)]
    text = text_features(words, ends, w, clip.config, branches={b: adapter(tensors, "text", b, scale) for b in numbers})
    image = image_features(pixels, w, clip.config, branches={b: adapter(tensors, "vision", b, scale) for b in numbers})
    return w["logit_scale"].exp() * cosines(image, text)


def prompt_features(
    clip: Any, w: Weights, prompt: Tensor, names: Sequence[str], suffix: str = "{}.", place: str = "end", **more: Any
) -> Tensor:
    """Normalised text features of `[SOT] prompt name . [EOT]`, class by class, each alone."""
    before = {"end": len(prompt), "middle": len(prompt) // 2, "front": 0}[place]
    table, out = w["text.token_embedding.weight"], []
    for name in names:
        ids = clip.tokenizer.words(suffix.format(name.replace("_", " ")))
        length = len(clip.tokenizer.words(name.replace("_", " ")))
        middle = [prompt[:before], table[ids[:length]], prompt[before:], table[ids[length:]]]
        sequence = torch.cat([table[[clip.tokenizer.sot]], *middle, table[[clip.tokenizer.eot]]])
        out.append(text_features(sequence[None], [len(sequence) - 1], w, clip.config, **more)[0])
    text = torch.stack(out)
    return text / text.pow(2).sum(-1, keepdim=True).sqrt()


def gate_logits(
    gate: Weights, image: Tensor, experts: Tensor, width: int, heads: int, scaling: float
) -> Tensor:  # fmt: skip
    """pfedmoap.md 2.2-2.4, loops over classes, images, heads. Normalised features `[B, E]` and `[M, K, E]`."""
    step = image.shape[-1] // width
    image, experts, size = image[:, ::step], experts[:, :, ::step], width // heads

    def linear(part: str, x: Tensor) -> Tensor:
        return x @ gate[f"gating.{part}.weight"].T + gate[f"gating.{part}.bias"]

    rows = []
    for pixel in image:
        row = []
        for k in range(experts.shape[1]):
            q, keys, values = linear("q", pixel), linear("k", experts[:, k]), linear("v", experts[:, k])
            mixed = []
            for head in range(heads):
                part = slice(head * size, (head + 1) * size)
                scores = keys[:, part] @ q[part] * scaling
                share = torch.exp(scores - scores.max())
                mixed.append((share / share.sum()) @ values[:, part])
            row.append(pixel @ linear("o", torch.cat(mixed)))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def mixture_logits(
    clip: Any, w: Weights, tensors: Weights, prompts: Sequence[Tensor], names: Sequence[str], pixels: Tensor,
    *, width: int, heads: int, scaling: float, weight: float, suffix: str = "{}.",
) -> Tensor:  # fmt: skip
    """Equation 10; without experts plain CLIP logits."""
    image = image_features(pixels, w, clip.config)
    image = image / image.pow(2).sum(-1, keepdim=True).sqrt()
    text = prompt_features(clip, w, tensors["prompt"], names, suffix)
    scale = w["logit_scale"].exp()
    own = scale * image @ text.T
    if not prompts:
        return own
    others = [prompt_features(clip, w, prompt, names, suffix).detach() for prompt in prompts]
    return scale * gate_logits(tensors, image, torch.stack([text, *others]), width, heads, scaling) + weight * own


def replaced(place: int, prompt: Tensor) -> Branch:
    """What enters a block, with the tokens from `place` on (counted from the end if negative) replaced by a prompt."""

    def edit(x: Tensor) -> Tensor:
        first = place % x.shape[1]
        wide = prompt.expand(len(x), -1, -1)
        return torch.cat([x[:, :first], wide, x[:, first + len(prompt) :]], 1)

    return edit


def prompted_image(clip: Any, w: Weights, pixels: Tensor, prompts: Sequence[Tensor]) -> Tensor:
    """MaPLe's image side: prompts after the patches and through the first LayerNorm, replaced in later blocks."""
    eps = clip.config.vision.tower.eps
    first = layer_norm(prompts[0], w["visual.ln_pre.weight"], w["visual.ln_pre.bias"], eps)
    x = torch.cat([image_tokens(pixels.double(), w, clip.config), first.expand(len(pixels), -1, -1)], 1)
    later = {block: replaced(-len(prompt), prompt) for block, prompt in enumerate(prompts[1:], 2)}
    out = blocks(x, w, "visual", clip.config.vision.tower, False, inputs=later)[-1][:, 0]
    out = project_image(out, w, clip.config)
    return out / out.pow(2).sum(-1, keepdim=True).sqrt()


def merged(w: Weights, tensors: Mapping[str, Tensor], scale: float, chosen: str) -> Weights:
    """LoRA's weights: W + scale B A in the rows of the chosen projections."""
    result = dict(w)
    for name in tensors:
        tower, block, part = name.split(".")
        if part == "b":
            a, b = tensors[f"{tower}.{block}.a"].double(), tensors[name].double()
            key = f"{'visual' if tower == 'vision' else 'text'}.transformer.resblocks.{int(block) - 1}.attn.in_proj_weight"
            q, k, v = w[key].chunk(3)
            rows = {"q": q, "k": k, "v": v}
            for place, which in enumerate(chosen):
                rows[which] = rows[which] + scale * b[place] @ a[place]
            result[key] = torch.cat([rows["q"], rows["k"], rows["v"]])
    return result


def plain_logits(
    clip: Any, w: Weights, names: Sequence[str], pixels: Tensor, template: str = "a photo of a {}."
) -> Tensor:
    """CLIP's own logits under these weights."""
    rows, ends = token_rows([template.format(name.replace("_", " ")) for name in names], clip)
    text = text_features(w["text.token_embedding.weight"][torch.tensor(rows)], ends, w, clip.config)
    return w["logit_scale"].exp() * cosines(image_features(pixels, w, clip.config), text)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.logsumexp(-1) - logits[torch.arange(len(labels)), labels]).mean()


def sgd(
    start: Weights, batches: Sequence[Any], loss: Callable[[Weights, Any], Tensor], rate: Callable[[str], float],
    momentum: float, decay: float, gain: float = 1.0,
) -> tuple[Weights, list[float]]:  # fmt: skip
    """PyTorch's SGD written out: v <- m v + (g + decay p), first v = g + decay p; p <- p - lr v. `gain` multiplies g.

    A tensor the loss does not depend on is left alone.
    """
    now, speed, losses = doubled(start), {}, []
    for batch in batches:
        leaves = doubled(now, train=True)
        value = loss(leaves, batch)
        found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        losses.append(value.item())
        for name, gradient in zip(leaves, found, strict=True):
            if gradient is not None:
                step = gain * gradient + decay * now[name]
                speed[name] = momentum * speed[name] + step if name in speed else step
                now[name] = now[name] - rate(name) * speed[name]
    return now, losses
