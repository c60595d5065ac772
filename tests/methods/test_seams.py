"""Rare parts of a method, each by the smallest method that needs it: it keeps every promise, and does what it is for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fedvlm import tensors
from fedvlm.clip import FrozenCLIP
from fedvlm.errors import FedvlmError
from fedvlm.federation import messages, server, simulation
from fedvlm.federation.client import local_batches
from fedvlm.methods import base
from fedvlm.methods.base import ROUND, Step, Uplink
from fedvlm.methods.fedlora import FedLoRA
from fedvlm.methods.promptfl import PromptFL
from fedvlm.runs.contract import method_terms
from fedvlm.streams import torch_stream
from fedvlm.tensors import Named
from fedvlm.testing import PROMISES, Case, Promise, tiny
from fedvlm.tuners.base import SupportSet
from fedvlm.tuners.lora import EXTRA, LoRA, LoRAShape, change
from fedvlm.tuners.template import Template


class Alternating(FedLoRA):
    """RoLoRA's: B in even, A in odd rounds. Seams: which tensors a round trains, and its number."""

    name, title, paper = "alternating", "alternating LoRA", "a test"
    constants = (ROUND,)

    def trainable(self, received: Named) -> tuple[str, ...]:
        """One factor."""
        return ("*.a",) if int(received.get(ROUND, torch.tensor(0))) % 2 else ("*.b",)


class Residual(FedLoRA):
    """FedEx-LoRA's: what separate averaging of A and B loses, as a frozen change that clients receive."""

    name, title, paper = "residual", "LoRA with a residual", "a test"
    constants = (f"{EXTRA}*",)

    def aggregate(self, server: Named, uplinks: Sequence[Uplink]) -> Named:
        """Means of A and B, and in the residual the mean of their products less the product of their means."""
        now, total = super().aggregate(server, uplinks), sum(up.weight for up in uplinks)
        for up in sorted(uplinks, key=lambda up: up.client):
            for name in (name[:-2] for name in up.tensors if name.endswith(".b")) if up.weight else ():
                product = up.tensors[f"{name}.b"].double() @ up.tensors[f"{name}.a"].double()
                old = now.get(f"{EXTRA}{name}", torch.zeros(product.shape)).double()
                now[f"{EXTRA}{name}"] = old + product * up.weight / total
        for name in (name[:-2] for name in now if name.endswith(".b")):
            lost = now[f"{EXTRA}{name}"] - now[f"{name}.b"].double() @ now[f"{name}.a"].double()
            now[f"{EXTRA}{name}"] = lost.float()
        return now

    def downlink_bytes(self, shared_bytes: int, clients: int) -> tuple[int, int]:
        """The factors at first; then `[3, D, D]` besides, of blocks 2 and 3 of encoders of widths 24 and 32."""
        return shared_bytes, shared_bytes + 4 * 3 * 2 * (24**2 + 32**2)


class Projected(PromptFL):
    """FedPuReL's: the gradient of the loss without its part against a second gradient, that of a distance to the start."""

    name, title, paper = "projected", "projected gradient", "a test"

    def loss(self, step: Step) -> Tensor:
        """Cross-entropy with another gradient than its own."""
        value = F.cross_entropy(step.logits, step.labels)
        own = step.gradient(value)
        other = step.gradient(step.logits.square().mean())
        return step.with_gradient(value, {name: project(own[name], other[name]) for name in own})


def project(gradient: Tensor, against: Tensor) -> Tensor:
    """The gradient without its component along `against` where both point apart."""
    product, size = (gradient * against).sum(), against.square().sum()
    return gradient - against * (product / size.clamp(min=1e-12)).clamp(max=0)


class MeansConfig(base.ExchangeConfig):
    weight: float = 1.0


class Means(Template):
    """Zero-shot plus cosines to class means of everybody's images."""

    def __init__(self, clip: FrozenCLIP, names: Sequence[str], template: str, weight: float) -> None:
        super().__init__(clip, names, template)
        self.weight = weight

    def init(self, generator: torch.Generator) -> Named:
        """`sums [K, E]`, `counts [K]`."""
        return {"sums": torch.zeros(self.text.shape), "counts": torch.zeros(len(self.text))}

    def classifier(self, tensors: Named, constants: Named) -> Named:
        """Text features moved towards the means of classes that have images."""
        if tensors["sums"].shape != self.text.shape:
            return {"text": self.text}  # another class list
        means = F.normalize(tensors["sums"] / tensors["counts"].clamp(min=1)[:, None], dim=-1)
        return {"text": self.text + self.weight * means * (tensors["counts"] > 0)[:, None]}


class ClassMeans(base.Method):
    """Statistics in the place of training: sums and counts of classes, once, added up by the server."""

    name, title, paper = "class_means", "class means", "a test"
    Config = MeansConfig
    gathers = True

    def tuner(self, clip: FrozenCLIP, classnames: Sequence[str], template: str) -> Means:
        """Class means beside the text features."""
        return Means(clip, classnames, template, self.config.weight)

    def statistics(self, tuner: Any, support: SupportSet) -> Named:
        """Sums of normalised features and counts, by class."""
        hidden, labels = support()
        hot = F.one_hot(labels, len(tuner.text)).float()
        return {"sums": hot.T @ F.normalize(hidden, dim=-1), "counts": hot.sum(0)}

    def aggregate(self, server: Named, uplinks: Sequence[Uplink]) -> Named:
        """Their sums."""
        present = sorted((up for up in uplinks if up.weight), key=lambda up: up.client)
        return server | {name: torch.stack([up.tensors[name].double() for up in present]).sum(0).float()
                         for name in ("sums", "counts")}  # fmt: skip


class Fitted(FedLoRA):
    """LAIR-FAIR's: the server fits B to the mean of products by gradient steps of its own."""

    name, title, paper = "fitted", "LoRA fitted at the server", "a test"
    steps = 60

    def aggregate(self, server: Named, uplinks: Sequence[Uplink]) -> Named:
        """The mean of A, and the B whose product with it comes nearest to the mean of products."""
        now = super().aggregate(server, uplinks)
        present = sorted((up for up in uplinks if up.weight), key=lambda up: up.client)
        total = sum(up.weight for up in present)
        for name in (name[:-2] for name in now if name.endswith(".b")):
            aim = torch.stack([up.tensors[f"{name}.b"].double() @ up.tensors[f"{name}.a"].double() * up.weight / total
                               for up in present]).sum(0)  # fmt: skip
            a = now[f"{name}.a"].double()
            leaf = now[f"{name}.b"].double().requires_grad_()
            optimizer = torch.optim.SGD([leaf], lr=0.3 / max(1e-6, float(torch.linalg.matrix_norm(a, 2).max()) ** 2))
            for _ in range(self.steps):
                optimizer.zero_grad()
                (0.5 * (leaf @ a - aim).square().sum()).backward()
                optimizer.step()
            now[f"{name}.b"] = leaf.detach().float()
        return now


class Separate(FedLoRA):
    """The usual means, for comparison."""

    name = "separate"


SEAMS = [Alternating, Residual, Projected, ClassMeans, Fitted]
ASKED = [(kind, promise) for kind in SEAMS for promise in PROMISES if promise.applies(kind)]


@pytest.mark.parametrize(("kind", "promise"), ASKED, ids=[f"{kind.name}: {promise}" for kind, promise in ASKED])
def test_it_keeps_every_promise(kind: type[base.Method], promise: Promise) -> None:
    promise.check(Case(kind, settings(kind)))


def settings(kind: type[base.Method]) -> dict[str, Any]:
    return {"first_block": 2, "last_block": 3, "lr": 0.01} if issubclass(kind, FedLoRA) else {}


def method(kind: type[base.Method], **more: Any) -> base.Method:
    return tiny.method(kind, **{**settings(kind), **more})


@pytest.fixture(scope="module")
def clip() -> FrozenCLIP:
    return tiny.clip()


@pytest.mark.parametrize("together", [1, 3])
def test_one_factor_moves_in_each_round_and_only_that_is_sent(clip: FrozenCLIP, together: int) -> None:
    """Under AdamW's decay, which moves a tensor whose gradient is zero."""
    run = tiny.simulation(method(Alternating), clip, tiny.federation(), rounds=4, clients_per_step=together, every=9)
    before = simulation.start(run)
    for round_, (after, record) in enumerate(simulation.run_rounds(run, before)):
        moving = ".a" if round_ % 2 else ".b"
        for name, tensor in after.server.items():
            if name != ROUND:
                assert torch.equal(tensor, before.server[name]) == (not name.endswith(moving)), name
        assert int(after.server[ROUND]) == round_ + 1
        for visit in record.visits:
            assert visit.up_bytes
            assert all(name.endswith(moving) for name in visit.up_bytes)
            assert visit.down_bytes[ROUND] == 8
        before = after


def test_the_contract_names_all_that_leaves_in_any_round(clip: FrozenCLIP) -> None:
    run = tiny.simulation(method(Alternating), clip, tiny.federation())
    terms = method_terms("alternating", run)
    assert len(terms.leaves) == len(run.spec.initial)
    assert terms.up_bytes == tensors.nbytes(run.spec.initial)
    assert terms.down_bytes == (terms.up_bytes + 8, terms.up_bytes + 8)


def test_an_uplink_of_another_round_is_refused(clip: FrozenCLIP) -> None:
    run = tiny.simulation(method(Alternating), clip, tiny.federation())
    state = simulation.start(run)
    received = server.downlink(run.spec, state, "site-0")
    wrong = messages.uplink_template(run.spec.method, run.spec.initial, received | {ROUND: torch.tensor(1)})
    with pytest.raises(FedvlmError, match=r"round 1, client site-0: the uplink's tensors differ"):
        messages.check_uplink(run.spec.expected_uplink(received), wrong, "site-0", 1)


def test_a_round_in_which_nothing_is_trained_is_an_error(clip: FrozenCLIP) -> None:
    chosen = method(Alternating)
    chosen.trainable = lambda received: ("none",)  # type: ignore[method-assign]
    with pytest.raises(FedvlmError, match="trains no tensor in this round"):
        tiny.run(tiny.simulation(chosen, clip, tiny.federation()))


def test_factors_and_residual_are_the_mean_of_products(clip: FrozenCLIP) -> None:
    """After the first round the change of a weight is exactly the mean of the clients' changes."""
    run = tiny.simulation(method(Residual), clip, tiny.federation(), rounds=1)
    state, _ = tiny.run(run)
    images = {client.name: len(client.train) for client in run.site.federation.clients}
    for name in ("text.2", "vision.3"):
        each = [state.personal[c][f"{name}.b"].double() @ state.personal[c][f"{name}.a"].double() * n / 29
                for c, n in images.items()]  # fmt: skip
        mean, lost = torch.stack(each).sum(0), state.server[f"{EXTRA}{name}"].double()
        found = state.server[f"{name}.b"].double() @ state.server[f"{name}.a"].double() + lost
        assert (found - mean).abs().max() < 1e-7
        assert lost.abs().max() > 1e-5


@pytest.mark.parametrize("clients", [0, 2])
@pytest.mark.parametrize("form", ["dense", "pair"])
def test_a_frozen_change_counts_as_a_trained_one(clip: FrozenCLIP, form: str, clients: int) -> None:
    """Half of a change trained and half received gives the logits of the whole, in both encoders."""
    names, draw = ["red fox", "cat", "dog"], torch_stream(0, "draw")
    tuner = LoRA(clip, names, LoRAShape(2, 3, 4, 1.0, "qv"), "a {}.")
    whole = {name: 0.3 * torch.randn(tensor.shape, generator=draw) for name, tensor in tuner.init(draw).items()}
    half = {n: t[..., :2, :].contiguous() if n.endswith(".a") else t[..., :2].contiguous() for n, t in whole.items()}
    rest = {n: t[..., 2:, :].contiguous() if n.endswith(".a") else t[..., 2:].contiguous() for n, t in whole.items()}
    received = {f"{EXTRA}{name}": tensor for name, tensor in rest.items()}
    if form == "dense":
        received = {f"{EXTRA}{n[:-2]}": rest[n] @ rest[f"{n[:-2]}.a"] for n in rest if n.endswith(".b")}
    hidden = clip.visual.hidden(torch.randn(5, 3, 16, 16, generator=draw), tuner.entry)

    def logits(own: Named, constants: Named) -> Tensor:
        if clients:
            own, constants = ({n: torch.stack([t] * clients) for n, t in named.items()} for named in (own, constants))
        rows = torch.stack([hidden] * clients) if clients else hidden
        return tuner.logits(own, tuner.classifier(own, constants), rows)

    found, expected = logits(half, tuner.prepare(received)), logits(whole, tuner.prepare({}))
    assert (found - expected).abs().max() < 2e-4
    assert (found - logits(half, {})).abs().max() > 1e-2


def test_a_change_adds_its_parts() -> None:
    draw, shape = torch_stream(0, "draw"), LoRAShape(projections="k", alpha=2.0, rank=4)
    h, a, b, w = (torch.randn(*size, generator=draw) for size in ((5, 6), (1, 4, 6), (1, 6, 4), (1, 6, 6)))
    found = change(h, pairs=[(a, b)], dense=w, shape=shape)
    assert (found[:, 6:12] - h @ (b[0] @ a[0] + w[0]).T).abs().max() < 1e-5  # alpha / sqrt(R) = 1
    assert not found[:, :6].any()
    assert not found[:, 12:].any()


@pytest.mark.parametrize("together", [1, 3])
def test_a_step_goes_where_two_gradients_say(clip: FrozenCLIP, together: int) -> None:
    """SGD without momentum by hand, client by client."""
    plain = {"momentum": 0.0, "weight_decay": 0.0, "epochs": 1, "batch": 4, "lr": 0.1}
    run = tiny.simulation(method(Projected, **plain), clip, tiny.federation(), rounds=1, clients_per_step=together)
    state, records = tiny.run(run)
    tuner = run.site.base
    for client, visit in zip(run.site.federation.clients, records[0].visits, strict=True):
        leaf, losses = run.spec.initial["prompt"].clone().requires_grad_(), []
        for hidden, labels in local_batches(run.spec, run.site, 0, client):
            logits = tuner.logits({"prompt": leaf}, tuner.classifier({"prompt": leaf}, {}), hidden)
            assert isinstance(logits, Tensor)
            loss = F.cross_entropy(logits, labels)
            one, two = (torch.autograd.grad(x, leaf, retain_graph=True)[0] for x in (loss, logits.square().mean()))
            inner = float((one * two).sum())
            step = one - two * min(0.0, inner) / float(two.square().sum())
            leaf = (leaf - 0.1 * step).detach().requires_grad_()
            losses.append(float(loss))
        assert (state.personal[client.name]["prompt"] - leaf).abs().max() < 1e-5
        assert visit.losses == pytest.approx(losses, rel=1e-4)


def test_statistics_are_those_of_all_images_after_one_round(clip: FrozenCLIP) -> None:
    """However many rounds are asked for, and with half of the clients in each: sums over all images of all clients."""
    fed = tiny.federation()
    run = tiny.simulation(method(ClassMeans), clip, fed, rounds=5, participation=0.5)
    state, records = tiny.run(run)
    assert [record.round for record in records] == [1]
    assert {visit.client for visit in records[0].visits} == {client.name for client in fed.clients}
    assert all(visit.losses == [] for visit in records[0].visits)
    indices = [i for client in fed.clients for i in client.train]
    hidden = F.normalize(run.site.activations.get(indices, run.site.base.entry), dim=-1)
    labels = torch.tensor(fed.labels(indices))
    expected = torch.stack([hidden[labels == k].sum(0) for k in range(4)])
    assert (state.server["sums"] - expected).abs().max() < 1e-5
    assert state.server["counts"].tolist() == [int((labels == k).sum()) for k in range(4)]
    assert records[0].means["after_aggregation"]["base"] > 0.6


def test_statistics_of_other_shapes_are_refused(clip: FrozenCLIP) -> None:
    chosen = method(ClassMeans)
    chosen.statistics = lambda tuner, support: {"sums": torch.zeros(2)}  # type: ignore[method-assign]
    with pytest.raises(FedvlmError, match=r"client site-0: class_means: its statistics are .* `init` has"):
        tiny.run(tiny.simulation(chosen, clip, tiny.federation()))


def test_a_server_that_optimises_comes_nearer_to_the_mean_of_products(clip: FrozenCLIP) -> None:
    draw = torch_stream(0, "draw")
    initial = method(Fitted).tuner(clip, ["cat", "dog"], "{}").init(draw)
    replies = [Uplink(f"site-{n}", 2.0, {name: torch.randn(t.shape, generator=draw) for name, t in initial.items()})
               for n in range(3)]  # fmt: skip

    def error(kind: type[base.Method]) -> float:
        now = method(kind).aggregate(initial, replies)
        return sum(float((now[f"{name}.b"] @ now[f"{name}.a"] - torch.stack(
            [up.tensors[f"{name}.b"] @ up.tensors[f"{name}.a"] for up in replies]).mean(0)).norm())
            for name in (n[:-2] for n in now if n.endswith(".b")))  # fmt: skip

    best = 0.0
    for name in (name[:-2] for name in initial if name.endswith(".b")):
        aim = torch.stack([up.tensors[f"{name}.b"] @ up.tensors[f"{name}.a"] for up in replies]).mean(0)
        a = torch.stack([up.tensors[f"{name}.a"] for up in replies]).mean(0)
        best += float((aim @ torch.linalg.pinv(a) @ a - aim).norm())
    assert 0.999 * best < error(Fitted) < 1.005 * best
    assert error(Fitted) < error(Separate)
    again = [tensors.digest(method(Fitted).aggregate(initial, order)) for order in (replies, replies[::-1])]
    assert again[0] == again[1]
