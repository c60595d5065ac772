"""Every client trains with a fresh optimizer of torch's rules, alone or together with others."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from fedvlm.clip import FrozenCLIP
from fedvlm.data import Federation
from fedvlm.streams import torch_stream
from fedvlm.testing import tiny
from fedvlm.training.local import LocalJob, train, train_together
from fedvlm.training.optimizers import make_optimizer

OPTIMIZERS: list[dict[str, Any]] = [
    {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.1},
    {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0},
    {"optimizer": "adam", "momentum": 0.8, "second_momentum": 0.95, "weight_decay": 0.1},
    {"optimizer": "adam", "momentum": 0.0, "second_momentum": 0.5, "weight_decay": 0.0},
    {"optimizer": "adamw", "momentum": 0.9, "second_momentum": 0.98, "weight_decay": 0.3},
]


def theirs(config: dict[str, Any], groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    decay, momentum = config["weight_decay"], config["momentum"]
    if config["optimizer"] == "sgd":
        return torch.optim.SGD(groups, momentum=momentum, weight_decay=decay)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config["optimizer"]]
    return kind(groups, betas=(momentum, config["second_momentum"]), weight_decay=decay)


@pytest.fixture(scope="module")
def clip() -> FrozenCLIP:
    return tiny.clip()


@pytest.fixture(scope="module")
def fed() -> Federation:
    return tiny.federation()


@pytest.mark.parametrize("config", OPTIMIZERS, ids=lambda config: f"{config['optimizer']}-{config['momentum']}")
def test_the_steps_are_those_of_torchs_classes_bit_for_bit(config: dict[str, Any]) -> None:
    """Two rates, and a leaf that has a gradient in two of four steps only."""
    draw = torch_stream(0, "steps")
    start = {name: torch.randn(5, 3, generator=draw) for name in ("prompt", "gating.q.weight", "gating.k.weight")}
    method = tiny.method("pfedmoap", lr=0.1, gate_lr=0.03, **config)
    ours, other = ({name: leaf.clone().requires_grad_() for name, leaf in start.items()} for _ in range(2))
    made = make_optimizer(method, ours, 0.5)
    classes = theirs(config, [{"params": [other["prompt"]], "lr": 0.05},
                              {"params": [leaf for name, leaf in other.items() if name != "prompt"], "lr": 0.015}])  # fmt: skip
    for step in range(4):
        for name in start:
            gradient = torch.randn(5, 3, generator=draw) if name != "gating.k.weight" or step % 2 else None
            ours[name].grad, other[name].grad = gradient, None if gradient is None else gradient.clone()
        made.step()
        classes.step()
        assert all(torch.equal(ours[name], other[name]) for name in start), step
    assert not any(torch.equal(ours[name], start[name]) for name in start)


def test_training_does_not_import_torchs_compiler() -> None:
    """It costs every process 1.8 s: torch.optim's classes import it."""
    script = """if True:
        import sys, torch
        from fedvlm.testing import tiny
        for optimizer in ("sgd", "adam", "adamw"):
            method = tiny.method("promptfl", optimizer=optimizer, epochs=1)
            tiny.run(tiny.simulation(method, tiny.clip(), tiny.federation(), rounds=1))
        print(int("torch._dynamo" in sys.modules), end=" ")
        torch.optim.SGD([torch.zeros(1)], lr=0.1)
        print(int("torch._dynamo" in sys.modules))
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "1"], "the second shows that the first could have seen it"


@pytest.mark.parametrize("config", OPTIMIZERS[::2], ids=lambda config: config["optimizer"])
def test_every_visit_starts_with_an_optimizer_that_remembers_nothing(
    config: dict[str, Any], clip: FrozenCLIP, fed: Federation
) -> None:
    """Two visits are two fresh optimizers of torch's in a row, alone and side by side; not one that runs on."""
    method = tiny.method("promptfl", lr=0.1, **config)
    tuner = method.tuner(clip, fed.base_names, "")
    draw = torch_stream(0, "batches")
    batches = [(torch.randn(4, 16, generator=draw), torch.randint(0, 4, (4,), generator=draw)) for _ in range(6)]
    start = [torch.randn(3, 24, generator=draw) for _ in range(2)]

    def plain(prompt: Tensor, fresh: bool) -> Tensor:
        leaf = torch.nn.Parameter(prompt.clone())
        optimizer = theirs(config, [{"params": [leaf], "lr": 0.1}])
        for number, (hidden, labels) in enumerate(batches):
            if fresh and number == 3:
                optimizer = theirs(config, [{"params": [leaf], "lr": 0.1}])
            logits = 20 * torch.nn.functional.normalize(hidden, dim=-1) @ tuner.features(leaf).T
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits, labels).backward()
            optimizer.step()
        return leaf.detach()

    for prompt in start:
        once = train(method, tuner, {"prompt": prompt}, {}, batches[:3], tiny.CPU).tensors
        twice = train(method, tuner, once, {}, batches[3:], tiny.CPU).tensors
        assert (twice["prompt"] - plain(prompt, True)).abs().max() < 1e-5
        assert (twice["prompt"] - plain(prompt, False)).abs().max() > 1e-3
    now = [{"prompt": prompt} for prompt in start]
    for part in (batches[:3], batches[3:]):
        now = [
            done.tensors for done in train_together(method, tuner, [LocalJob(one, {}, part) for one in now], tiny.CPU)
        ]
    for one, prompt in zip(now, start, strict=True):
        assert (one["prompt"] - plain(prompt, True)).abs().max() < 1e-5


@pytest.mark.parametrize("config", OPTIMIZERS, ids=lambda config: f"{config['optimizer']}-{config['momentum']}")
@pytest.mark.parametrize("together", [False, True])
def test_what_has_no_gradient_stays_even_under_decay(config: dict[str, Any], together: bool, clip: FrozenCLIP) -> None:
    """pFedMoAP without experts leaves its gate alone; so does a client that has experts leave one that has none."""
    method = tiny.method("pfedmoap", lr=0.05, gate_lr=0.02, **config)
    tuner = method.tuner(clip, ["red fox", "green_frog"], "")
    start = tuner.init(torch_stream(0, "init"))
    batch = torch.randn(4, 16, generator=torch_stream(0, "batch")), torch.tensor([0, 1, 1, 0])
    experts = {"experts.0000": torch.randn(3, 24, generator=torch_stream(0, "expert"))}
    jobs = [LocalJob(start, received, [batch] * 3) for received in ([{}, experts, {}] if together else [{}])]
    done = [one.tensors for one in train_together(method, tuner, jobs, tiny.CPU)]
    for name in start:
        moved = [not torch.equal(one[name], start[name]) for one in done]
        assert moved[::2] == [name == "prompt"] * len(moved[::2]), name
        assert not together or moved[1] or name.endswith("bias")


@pytest.mark.parametrize("config", OPTIMIZERS, ids=lambda config: f"{config['optimizer']}-{config['momentum']}")
def test_clients_with_different_numbers_of_batches_move_as_alone(config: dict[str, Any], clip: FrozenCLIP) -> None:
    """3, 1 and 4 batches, the last of the third one smaller: steps of three, two, two and one client."""
    method = tiny.method("pfedmoap", lr=0.05, gate_lr=0.02, **config)
    tuner, draw = method.tuner(clip, ["red fox", "green_frog"], ""), torch_stream(0, "batches")
    expert = {"experts.0000": torch.randn(3, 24, generator=draw)}
    starts = [tuner.init(draw) for _ in range(3)]

    def batch(size: int) -> tuple[Tensor, Tensor]:
        return torch.randn(size, 16, generator=draw), torch.randint(0, 2, (size,), generator=draw)

    batches = [[batch(4) for _ in range(3)], [batch(4)], [*(batch(4) for _ in range(3)), batch(2)]]
    jobs = [LocalJob(start, expert, part) for start, part in zip(starts, batches, strict=True)]
    for job, found in zip(jobs, train_together(method, tuner, jobs, tiny.CPU), strict=True):
        alone = train(method, tuner, job.tensors, job.received, job.batches, tiny.CPU)
        assert found.losses == pytest.approx(alone.losses, rel=1e-4)
        for name in (
            "prompt",
            "gating.o.weight",
        ):  # no loss depends on a bias of keys: Adam divides rounding by rounding
            assert (found.tensors[name] - alone.tensors[name]).abs().median() < 1e-6, name
            assert (found.tensors[name] - alone.tensors[name]).abs().max() < 1e-3, name
            assert not torch.equal(alone.tensors[name], job.tensors[name]), name
