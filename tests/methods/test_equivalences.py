"""Methods that must coincide in the limits of their settings (baselines.md 23), and hand-written visits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fedvlm import tensors
from fedvlm.clip import FrozenCLIP
from fedvlm.data import Federation
from fedvlm.federation import server
from fedvlm.federation.simulation import FederationState
from fedvlm.methods import known
from fedvlm.methods.base import Step
from fedvlm.streams import stream, torch_stream
from fedvlm.testing import tiny
from fedvlm.training.evaluation import compute_outputs, mix_outputs
from fedvlm.training.local import LocalJob, train_together

TEMPLATE = "a photo of a {}."


def final(name: str, clip: FrozenCLIP, fed: Federation, *, rounds: int = 2, **settings: Any) -> FederationState:
    """The state after all rounds."""
    return tiny.run(tiny.simulation(tiny.method(name, **settings), clip, fed, rounds=rounds, every=100))[0]


def near(one: Tensor, other: Tensor, tolerance: float = 1e-5) -> bool:
    return (one - other).abs().max().item() < tolerance * max(1.0, other.abs().max().item())


@pytest.fixture(scope="module")
def alone() -> Federation:
    return tiny.federation(sizes=(11,))


@pytest.fixture(scope="module")
def promptfl(clip: FrozenCLIP, fed: Federation) -> FederationState:
    return final("promptfl", clip, fed)


@pytest.mark.parametrize(
    ("federated", "local"), [("promptfl", "coop"), ("fedmma", "local_mma"), ("fedlora", "local_lora")]
)
def test_one_client_that_shares_everything_trains_alone(
    federated: str, local: str, clip: FrozenCLIP, alone: Federation
) -> None:
    """The average of one is that one, bit for bit."""
    one, other = (final(name, clip, alone, rounds=3) for name in (federated, local))
    assert tensors.digest(one.server) == tensors.digest(other.personal["site-0"])


def test_fedper_with_every_token_shared_is_promptfl(
    clip: FrozenCLIP, fed: Federation, promptfl: FederationState
) -> None:
    assert torch.equal(final("fedper", clip, fed, shared_tokens=3).server["prompt.shared"], promptfl.server["prompt"])


def test_fedper_without_a_shared_token_is_coop(clip: FrozenCLIP, fed: Federation) -> None:
    split, coop = final("fedper", clip, fed, shared_tokens=0), final("coop", clip, fed)
    assert not split.server
    for name, own in coop.personal.items():
        assert torch.equal(split.personal[name]["prompt.private"], own["prompt"])


def test_fedpers_first_round_is_promptfls_with_the_first_tokens_averaged(clip: FrozenCLIP, fed: Federation) -> None:
    split, whole = (
        final(name, clip, fed, rounds=1, **how) for name, how in (("fedper", {"shared_tokens": 2}), ("promptfl", {}))
    )
    assert torch.equal(split.server["prompt.shared"], whole.server["prompt"][:2])
    for name, own in whole.personal.items():
        assert torch.equal(split.personal[name]["prompt.private"], own["prompt"][2:])


def test_promptfolio_with_theta_zero_is_promptfl(clip: FrozenCLIP, fed: Federation, promptfl: FederationState) -> None:
    found = final("promptfolio", clip, fed, theta=0.0)
    assert near(found.server["prompt.general"], promptfl.server["prompt"])


@pytest.mark.parametrize(("theta", "which"), [(0.0, "prompt.general"), (1.0, "prompt.own")])
def test_promptfolio_at_both_ends_predicts_with_one_prompt(
    theta: float, which: str, clip: FrozenCLIP, fed: Federation
) -> None:
    tuner = tiny.method("promptfolio", theta=theta).tuner(clip, fed.base_names, "")
    plain = tiny.method("promptfl").tuner(clip, fed.base_names, "")
    start, hidden = tuner.init(torch_stream(0, "init")), torch.randn(5, 16, generator=torch_stream(0, "hidden"))
    own = {"prompt": start[which]}
    assert near(
        tuner.logits(start, tuner.classifier(start, {}), hidden), plain.logits(own, plain.classifier(own, {}), hidden)
    )


def test_promptfolio_mixes_normalised_features_without_normalising_again(clip: FrozenCLIP, fed: Federation) -> None:
    tuner = tiny.method("promptfolio", theta=0.25).tuner(clip, fed.base_names, "")
    plain = tiny.method("promptfl").tuner(clip, fed.base_names, "")
    start, hidden = tuner.init(torch_stream(0, "init")), torch.randn(5, 16, generator=torch_stream(0, "hidden"))
    each = [
        plain.logits({}, plain.classifier({"prompt": start[f"prompt.{part}"]}, {}), hidden)
        for part in ("general", "own")
    ]
    assert near(tuner.logits(start, tuner.classifier(start, {}), hidden), 0.75 * each[0] + 0.25 * each[1])


def test_fedpgp_without_contrast_and_product_is_promptfl(
    clip: FrozenCLIP, fed: Federation, promptfl: FederationState
) -> None:
    found = final("fedpgp", clip, fed, mu=0.0, spread=0.0)
    assert near(found.server["sigma"], promptfl.server["prompt"])
    for own in found.personal.values():
        assert not own["u"].any()
        assert not own["v"].any()


@pytest.mark.parametrize(
    ("name", "setting"),
    [("kgcoop", "weight"), ("pfedprompt", "weight"), ("promptfl_prox", "mu"), ("promptfl_ft", "fine_tune")],
)
def test_without_its_addition_it_is_promptfl(
    name: str, setting: str, clip: FrozenCLIP, fed: Federation, promptfl: FederationState
) -> None:
    found = final(name, clip, fed, **{setting: 0 if setting == "fine_tune" else 0.0})
    assert tensors.digest(found.server) == tensors.digest(promptfl.server)
    assert tiny.fingerprint(found) == tiny.fingerprint(promptfl)


def test_pfedprompts_prompt_is_promptfls_whatever_the_memorys_weight(
    clip: FrozenCLIP, fed: Federation, promptfl: FederationState
) -> None:
    """The prompt is trained on the text branch alone."""
    assert tiny.fingerprint(final("pfedprompt", clip, fed, weight=3.0)) == tiny.fingerprint(promptfl)


def test_fedamp_without_a_pull_is_coop(clip: FrozenCLIP, fed: Federation) -> None:
    found, coop = final("fedamp", clip, fed, decay=0.0), final("coop", clip, fed)
    for name, own in coop.personal.items():
        assert torch.equal(found.personal[name]["prompt"], own["prompt"])


@pytest.mark.parametrize(("share", "same"), [(["*"], "fedmma"), ([], "local_mma"), (["shared.*"], "pfedmma")])
@pytest.mark.parametrize("name", ["pfedmma", "fedmma", "local_mma"])
def test_the_three_mma_differ_in_what_they_share_only(
    name: str, share: list[str], same: str, clip: FrozenCLIP, fed: Federation
) -> None:
    """Bit for bit."""
    one, other = final(name, clip, fed, share=share), final(same, clip, fed)
    assert tiny.fingerprint(one) == tiny.fingerprint(other)


def test_fine_tuning_is_one_plain_visit_more(clip: FrozenCLIP, fed: Federation, promptfl: FederationState) -> None:
    """Every client from the final prompt, on its own images, by torch's own SGD; nothing is sent."""
    task = tiny.simulation(tiny.method("promptfl_ft"), clip, fed, rounds=2, every=100)
    state, records = tiny.run(task)
    assert torch.equal(state.server["prompt"], promptfl.server["prompt"])
    assert records[-1].round == 3
    tuner = task.site.base
    for client in fed.clients:
        prompt = torch.nn.Parameter(promptfl.server["prompt"].clone())
        hidden = task.site.activations.get(client.train, tuner.entry)
        labels = task.site.labels(client.train)
        sgd = torch.optim.SGD([prompt], lr=0.05, momentum=0.9, weight_decay=5e-4)
        for epoch in range(2):
            order = stream(1, "order", client.name, 2, epoch).permutation(len(labels))
            for rows in torch.from_numpy(order).split(4):
                loss = F.cross_entropy(20 * F.normalize(hidden[rows], dim=-1) @ tuner.features(prompt).T, labels[rows])
                sgd.zero_grad()
                loss.backward()
                sgd.step()
        assert near(state.personal[client.name]["prompt"], prompt.detach())
        assert not near(prompt.detach(), promptfl.server["prompt"], 1e-3)


def step(task: Any, trained: dict[str, Tensor], received: dict[str, Tensor]) -> Step:
    hidden, labels = torch.randn(6, 16, generator=torch_stream(0, "hidden")), torch.tensor([0, 1, 2, 3, 1, 0])
    tuner = task.site.base
    classifier = tuner.classifier(trained, {})
    return Step(tuner.logits(trained, classifier, hidden), labels, trained, received, classifier)


@pytest.mark.parametrize(
    ("name", "setting", "anchor"), [("promptfl_prox", "mu", "prompt"), ("fedamp", "decay", "anchor")]
)
def test_the_penaltys_gradient(name: str, setting: str, anchor: str, clip: FrozenCLIP, fed: Federation) -> None:
    """mu (P - P_global), where the released codes have zero."""
    prompt, other = (torch.randn(3, 24, generator=torch_stream(n, "prompt")) for n in (0, 1))
    found = []
    for mu in (0.7, 0.0):
        task = tiny.simulation(tiny.method(name, **{setting: mu}), clip, fed)
        leaf = prompt.clone().requires_grad_()
        task.spec.method.loss(step(task, {"prompt": leaf}, {anchor: other})).backward()
        assert leaf.grad is not None
        found.append(leaf.grad)
    assert (found[0] - found[1] - 0.7 * (prompt - other)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("name", "setting", "anchor"), [("promptfl_prox", "mu", "prompt"), ("fedamp", "decay", "anchor")]
)
def test_the_penaltys_gradient_of_clients_side_by_side(
    name: str, setting: str, anchor: str, clip: FrozenCLIP, fed: Federation
) -> None:
    """Each is held by what it received itself: one plain step of rate 0.1 differs by 0.1 mu (P - P_global)."""
    prompts, others = ([torch.randn(3, 24, generator=torch_stream(n, what)) for n in range(3)] for what in ("p", "q"))
    batch = torch.randn(4, 16, generator=torch_stream(0, "hidden")), torch.tensor([0, 1, 2, 3])
    after = []
    for mu in (0.7, 0.0):
        method = tiny.method(name, lr=0.1, momentum=0.0, weight_decay=0.0, **{setting: mu})
        visitors = [LocalJob({"prompt": p}, {anchor: q}, [batch]) for p, q in zip(prompts, others, strict=True)]
        after.append(train_together(method, method.tuner(clip, fed.base_names, ""), visitors, tiny.CPU))
    for held, free, prompt, other in zip(*after, prompts, others, strict=True):
        moved = free.tensors["prompt"] - held.tensors["prompt"]
        assert (moved - 0.1 * 0.7 * (prompt - other)).abs().max() < 1e-5


def test_kgcoops_pull_is_one_minus_the_mean_cosine(clip: FrozenCLIP, fed: Federation) -> None:
    task, plain = (tiny.simulation(tiny.method("kgcoop", weight=w, anchor="the {}"), clip, fed) for w in (3.0, 0.0))
    given = step(task, {"prompt": torch.randn(3, 24, generator=torch_stream(0, "prompt"))}, {})
    with torch.no_grad():
        cosines = [F.cosine_similarity(given.classifier["text"][k], clip.classifier([name], "the {}")[0], dim=0)
                   for k, name in enumerate(fed.base_names)]  # fmt: skip
        found = task.spec.method.loss(given) - plain.spec.method.loss(given)
    assert found.item() == pytest.approx(3.0 * (1 - sum(map(float, cosines)) / 4), rel=1e-5)


def test_fedpgps_contrast_by_hand(clip: FrozenCLIP, fed: Federation) -> None:
    """-log(e^(a/tau) / (e^(a/tau) + e^(b/tau))), a: general to written, b: general to personal, mean over classes."""
    task, plain = (
        tiny.simulation(tiny.method("fedpgp", mu=mu, temperature=0.3, product_rank=2), clip, fed) for mu in (1.7, 0.0)
    )
    draw = torch_stream(0, "sigma")
    own = {
        "sigma": torch.randn(3, 24, generator=draw),
        "u": torch.randn(3, 2, generator=draw),
        "v": torch.randn(2, 24, generator=draw),
    }
    given = step(task, own, {})
    prompt = tiny.method("promptfl").tuner(clip, fed.base_names, "")
    general, personal = prompt.features(own["sigma"]), prompt.features(own["sigma"] + own["u"] @ own["v"])
    written = F.normalize(clip.classifier(fed.base_names, TEMPLATE), dim=-1)
    a, b = ((general * other).sum(-1).double() / 0.3 for other in (written, personal))
    expected = 1.7 * -(a.exp() / (a.exp() + b.exp())).log().mean()
    assert near(given.classifier["text"], personal)
    assert (task.spec.method.loss(given) - plain.spec.method.loss(given)).item() == pytest.approx(
        expected.item(), rel=1e-5
    )


def test_fedpgps_contrast_teaches_prompt_and_product(clip: FrozenCLIP, fed: Federation) -> None:
    """Both of the contrast's cosines have gradients; the written texts are what they are."""
    task = tiny.simulation(tiny.method("fedpgp", mu=1.0, product_rank=2), clip, fed)
    start = {n: torch.randn(t.shape, generator=torch_stream(0, n)) for n, t in task.spec.initial.items()}
    leaves, own = ({name: tensor.clone().requires_grad_() for name, tensor in start.items()} for _ in range(2))
    given = step(task, leaves, {})
    (task.spec.method.loss(given) - F.cross_entropy(given.logits, given.labels)).backward()
    prompt = tiny.method("promptfl").tuner(clip, fed.base_names, "")
    general, personal = prompt.features(own["sigma"]), prompt.features(own["sigma"] + own["u"] @ own["v"])
    written = F.normalize(clip.classifier(fed.base_names, TEMPLATE), dim=-1)
    a, b = ((general * other).sum(-1) / 0.5 for other in (written, personal))
    (b - a).exp().log1p().mean().backward()
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        assert own[name].grad is not None
        assert own[name].grad.abs().max() > 1e-4
        assert near(leaf.grad / own[name].grad.abs().max(), own[name].grad / own[name].grad.abs().max(), 1e-3), name


@pytest.mark.parametrize("objective", ["contrastive", "classes"])
def test_fedclips_loss_by_a_loop(objective: str, clip: FrozenCLIP, fed: Federation) -> None:
    task = tiny.simulation(tiny.method("fedclip", objective=objective), clip, fed)
    own = {
        name: torch.randn(tensor.shape, generator=torch_stream(0, name)) for name, tensor in task.spec.initial.items()
    }
    given = step(task, own, {})
    hidden = torch.randn(6, 16, generator=torch_stream(0, "hidden")).double()
    first, second = (torch.nn.Linear(16, 16, dtype=torch.float64) for _ in range(2))
    for layer, name in ((first, "gate.1"), (second, "gate.2")):
        layer.load_state_dict({part: own[f"{name}.{part}"].double() for part in ("weight", "bias")})
    gated = torch.nn.Sequential(first, torch.nn.Tanh(), second, torch.nn.Softmax(dim=1))(hidden) * hidden
    text = clip.classifier(fed.base_names, "a picture of a {}").double()
    logits = torch.stack([20 * F.cosine_similarity(x, text) for x in gated])
    assert near(given.logits, logits)
    total, labels = 0.0, given.labels.tolist()
    for i, y in enumerate(labels):
        captions = [logits[i, other].item() for other in labels]
        images = [logits[j, y].item() for j in range(len(labels))]
        rows = [captions, images] if objective == "contrastive" else [logits[i].tolist()]
        right = i if objective == "contrastive" else y
        total += sum(float(torch.tensor(row).double().logsumexp(0)) - row[right] for row in rows) / len(rows)
    assert task.spec.method.loss(given).item() == pytest.approx(total / 6, rel=1e-5)


def test_cocoop_with_a_silent_network_is_promptfl(clip: FrozenCLIP, fed: Federation) -> None:
    tuner, plain = (tiny.method(name).tuner(clip, fed.base_names, "") for name in ("cocoop", "promptfl"))
    start, hidden = tuner.init(torch_stream(0, "init")), torch.randn(5, 16, generator=torch_stream(0, "hidden"))
    start |= {name: torch.zeros_like(start[name]) for name in ("meta.up.weight", "meta.up.bias")}
    assert near(tuner.logits(start, {}, hidden), plain.logits(start, plain.classifier(start, {}), hidden))


def fedotp_logits(clip: FrozenCLIP, fed: Federation, hidden: Tensor, **how: Any) -> tuple[Tensor, Tensor]:
    """Its logits, and the similarities `[B, K, P, 2]` behind them."""
    tuner = tiny.method("fedotp", **how).tuner(clip, fed.base_names, "")
    plain = tiny.method("promptfl").tuner(clip, fed.base_names, "")
    start = tuner.init(torch_stream(0, "init"))
    text = torch.stack([plain.features(start[f"prompt.{part}"]) for part in ("general", "own")])
    similarity = torch.einsum("bpe,nke->bkpn", F.normalize(hidden, dim=-1), text)
    return tuner.logits(start, tuner.classifier(start, {}), hidden), similarity


def test_fedotp_in_its_limits(clip: FrozenCLIP, fed: Federation) -> None:
    """One patch: half the mass to each prompt, whatever the similarities. Endless smoothing: every patch the same."""
    hidden = torch.randn(5, 7, 16, generator=torch_stream(0, "hidden"))
    found, similarity = fedotp_logits(clip, fed, hidden[:, :1], mass=0.6)
    assert near(found, 20 * 0.6 * similarity.mean((-1, -2)))
    found, similarity = fedotp_logits(clip, fed, hidden, mass=0.6, smoothing=1e4, iterations=20)
    assert near(found, 20 * 0.6 * similarity.mean((-1, -2)), 1e-3)
    found, similarity = fedotp_logits(clip, fed, hidden[:, :1].expand(-1, 7, -1), mass=0.6)
    assert near(found, 20 * 0.6 * similarity.mean((-1, -2)), 1e-4)


def test_fedotp_reads_all_patches_but_the_class_token(clip: FrozenCLIP, fed: Federation) -> None:
    """Its activations are finished features of the patches, from the task's own store."""
    task = tiny.simulation(tiny.method("fedotp"), clip, fed)
    hidden = task.site.activations.get(fed.clients[0].train, task.site.base.entry)
    assert hidden.shape == (11, 4, 16)


@pytest.mark.parametrize("name", ["zero_shot_prior", "tip_adapter", "gaussian"])
def test_training_free_methods_without_weight_are_zero_shot(name: str, clip: FrozenCLIP, fed: Federation) -> None:
    plain, other = (
        tiny.simulation(tiny.method(n, **how), clip, fed) for n, how in (("zero_shot", {}), (name, {"weight": 0.0}))
    )
    for client in fed.clients:
        one, two = (compute_outputs(task.site, client, {}, {}) for task in (plain, other))
        for part in ("base", "local", "novel"):
            assert near(getattr(one, part).logits, getattr(two, part).logits)


@pytest.mark.parametrize("name", ["zero_shot_prior", "zero_shot_own", "tip_adapter", "gaussian"])
def test_training_free_methods_are_zero_shot_over_novel_classes(name: str, clip: FrozenCLIP, fed: Federation) -> None:
    plain, other = (tiny.simulation(tiny.method(n), clip, fed) for n in ("zero_shot", name))
    one, two = (compute_outputs(task.site, fed.clients[2], {}, {}) for task in (plain, other))
    assert one.novel is not None
    assert two.novel is not None
    assert near(one.novel.logits, two.novel.logits)
    assert not near(one.base.logits, two.base.logits)


def test_mixing_ends_at_the_method_and_at_zero_shot(clip: FrozenCLIP, fed: Federation) -> None:
    """And in between each logit lies where the weight says; a prior's weight w is its mixture at 1 - w / weight."""
    zero, own = (tiny.simulation(tiny.method(name), clip, fed) for name in ("zero_shot", "zero_shot_prior"))
    a, b = (compute_outputs(task.site, fed.clients[1], {}, {}) for task in (own, zero))
    assert torch.equal(mix_outputs(a, b, 0.0).base.logits, a.base.logits)
    assert torch.equal(mix_outputs(a, b, 1.0).base.logits, b.base.logits)
    assert near(mix_outputs(a, b, 0.3).base.logits, 0.7 * a.base.logits + 0.3 * b.base.logits)
    other = tiny.simulation(tiny.method("zero_shot_prior", weight=4.2), clip, fed)
    assert near(
        mix_outputs(a, b, -2.0).base.logits, compute_outputs(other.site, fed.clients[1], {}, {}).base.logits, 1e-4
    )
    both = mix_outputs(a, b, 1.0)
    assert both.local is not None
    assert both.novel is not None
    assert b.local is not None
    assert torch.equal(both.local.logits, b.local.logits)


def test_ffa_loras_average_is_exact_and_fedloras_is_not(clip: FrozenCLIP, fed: Federation) -> None:
    """Of merged weights W + c B A: that of the averaged tensors against the average over clients, weighted by images."""
    for name, exact in (("ffa_lora", True), ("fedlora", False)):
        task = tiny.simulation(tiny.method(name, lr=0.05), clip, fed, rounds=2, every=100)
        state, _ = tiny.run(task)
        fixed = task.site.base.fixed  # type: ignore[attr-defined]
        gaps = []
        for block in (2, 3):
            products = {client: (own[f"vision.{block}.b"] @ (fixed | own)[f"vision.{block}.a"]).double()
                        for client, own in state.personal.items()}  # fmt: skip
            mean = sum(len(c.train) * products[c.name] for c in fed.clients) / sum(len(c.train) for c in fed.clients)
            server = fixed | state.server
            found = (server[f"vision.{block}.b"] @ server[f"vision.{block}.a"]).double()
            gaps.append(float((found - mean).abs().max() / mean.abs().max()))
        assert max(gaps) < 1e-5 if exact else min(gaps) > 1e-3


def test_fedamp_without_attraction_holds_every_client_to_itself(clip: FrozenCLIP, fed: Federation) -> None:
    task = tiny.simulation(tiny.method("fedamp", attraction=0.0), clip, fed, rounds=2, every=100)
    state, _ = tiny.run(task)
    for client in fed.clients:
        assert torch.equal(
            server.downlink(task.spec, state, client.name)["anchor"], state.personal[client.name]["prompt"]
        )


@pytest.mark.parametrize("template", ["a photo of a {}.", "a blurred drawing of the {}"])
def test_kgcoop_stays_near_the_experiments_template_where_no_anchor_is_named(clip: FrozenCLIP, template: str) -> None:
    names = ["red fox", "blue jay"]
    for settings, expected in (({}, template), ({"anchor": "the {}"}, "the {}")):
        tuner = tiny.method("kgcoop", **settings).tuner(clip, names, template)
        ids, ends = clip.tokenizer([expected.replace("{}", name) for name in names])
        text = clip.encode_text(ids, ends)
        assert (tuner.anchor - text / text.norm(dim=-1, keepdim=True)).abs().max() < 1e-5  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "name", [name for name, kind in known().items() if "class_position" in kind.Config.model_fields]
)
def test_every_prompt_stands_where_its_setting_says(name: str, clip: FrozenCLIP) -> None:
    """The same tensors before, around and behind the class name are three different texts."""
    pixels, found = torch.randn(2, 3, 16, 16, generator=torch_stream(0, "pixels")), []
    for place in ("end", "middle", "front"):
        tuner = tiny.method(name, class_position=place).tuner(clip, tiny.BASE, "a photo of a {}.")
        start = tuner.init(torch_stream(0, "init"))
        found.append(
            tuner.logits(start, tuner.classifier(start, tuner.prepare({})), clip.visual.hidden(pixels, tuner.entry))
        )
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (found[one] - found[other]).abs().max() > 1e-3
