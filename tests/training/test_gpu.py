"""On an NVIDIA GPU: the same results as on the CPU, and no step that waits. Skipped where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fedvlm.checks.verify import PATHS, verify
from fedvlm.errors import FedvlmError
from fedvlm.federation import simulation
from fedvlm.methods import known
from fedvlm.testing import tiny
from fedvlm.training import device as devices
from fedvlm.training import local
from fedvlm.training.device import ComputeSection, Device

TRAINED = [name for name, method in known().items() if method.trains]
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@pytest.fixture
def gpu() -> Iterator[Device]:
    yield devices.choose_device(ComputeSection(device="cuda"))
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("path", PATHS)
def test_the_published_reference_outputs(golden: Path, path: str, gpu: Device) -> None:
    groups = verify(golden, PATHS[path], gpu)
    assert all(group.passed for group in groups), [group for group in groups if not group.passed]


@pytest.mark.parametrize("together", [1, 3])
@pytest.mark.parametrize("name", TRAINED)
def test_a_run_is_that_of_the_cpu(name: str, together: int, gpu: Device) -> None:
    fed = tiny.federation()
    state, records = tiny.run(tiny.simulation(tiny.method(name), tiny.clip(), fed, rounds=2))
    other, twins = tiny.run(
        tiny.simulation(
            tiny.method(name), tiny.clip().to(gpu.device), fed, rounds=2, clients_per_step=together, device=gpu
        )
    )
    for one, two in zip(records, twins, strict=True):
        for a, b in zip(one.visits, two.visits, strict=True):
            assert a.losses == pytest.approx(b.losses, rel=1e-3)
    for tensor, twin in zip(state.server.values(), other.server.values(), strict=True):
        assert (tensor - twin.cpu()).abs().max() <= 1e-3 * tensor.abs().max() + 1e-6


@pytest.mark.parametrize("together", [1, 3])
@pytest.mark.parametrize("name", TRAINED)
def test_no_step_waits(name: str, together: int, gpu: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first step of a visit to its last, every synchronisation is an error."""
    task = tiny.simulation(
        tiny.method(name, epochs=3), tiny.clip().to(gpu.device), tiny.federation(), clients_per_step=together, rounds=3,
        device=gpu,
    )  # fmt: skip
    played = simulation.run_rounds(task, simulation.start(task))
    next(played)
    steps = 0

    def watched(supply: object) -> Iterator[object]:
        nonlocal steps
        for batch in supply:  # type: ignore[attr-defined]
            # Kernels are loaded in the first step of a shape, which may wait. Fetching the next batch is watched too.
            torch.cuda.set_sync_debug_mode("error" if steps > 12 else "default")
            steps += 1
            yield batch
        torch.cuda.set_sync_debug_mode("default")

    inner = local.train_together

    def train_together(method: object, tuner: object, visitors: list[local.LocalJob], *more: object) -> object:
        seen = [local.LocalJob(one.tensors, one.received, watched(one.batches)) for one in visitors]  # type: ignore[arg-type]
        return inner(method, tuner, seen, *more)  # type: ignore[arg-type]

    monkeypatch.setattr("fedvlm.federation.client.train_together", train_together)
    next(played)
    assert steps > 12


@pytest.mark.parametrize("name", TRAINED)
def test_the_same_bytes_twice(name: str, gpu: Device) -> None:
    def once() -> dict[str, str]:
        clip = tiny.clip().to(gpu.device)
        task = tiny.simulation(tiny.method(name), clip, tiny.federation(), clients_per_step=3, rounds=2, device=gpu)
        return tiny.fingerprint(tiny.run(task)[0])

    assert once() == once()


def test_a_gpu_that_is_not_there_is_named() -> None:
    with pytest.raises(FedvlmError, match="cannot be used here"):
        devices.choose_device(ComputeSection(device=f"cuda:{torch.cuda.device_count()}"))
