from __future__ import annotations

import pytest
import small
import torch
from torch import Tensor

from fedvlm.errors import FedvlmError
from fedvlm.federation import wire
from fedvlm.methods import known
from fedvlm.methods.base import Method


@pytest.fixture
def method() -> Method:
    return small.method("pfedmma")


def initial() -> dict[str, Tensor]:
    return {"text.5.up.bias": torch.zeros(2), "shared.5.weight": torch.zeros(3, 3), "shared.5.bias": torch.zeros(3)}


def sent() -> dict[str, Tensor]:
    return {"shared.5.weight": torch.ones(3, 3), "shared.5.bias": torch.ones(3)}


def refused(method: Method, message: dict[str, Tensor], *words: str) -> None:
    with pytest.raises(FedvlmError) as error:
        wire.check_uplink(method, initial(), message, "site-3", 7)
    for word in ("round 7", "client site-3", *words):
        assert word in str(error.value)


def test_a_declared_message_passes(method: Method) -> None:
    wire.check_uplink(method, initial(), sent(), "site-3", 7)
    wire.check_uplink(method, initial(), dict(reversed(sent().items())), "site-3", 7)


def test_a_private_tensor_is_refused(method: Method) -> None:
    refused(method, sent() | {"text.5.up.bias": torch.zeros(2)}, "text.5.up.bias")


def test_a_missing_or_unknown_tensor_is_refused(method: Method) -> None:
    refused(method, {"shared.5.bias": torch.ones(3)}, "shared.5.weight")
    refused(method, sent() | {"shared.6.bias": torch.ones(3)}, "shared.6.bias")
    refused(method, {}, "shared.5.weight", "shared.5.bias")


@pytest.mark.parametrize("shape", [(3,), (9,), (3, 4), (1, 3, 3)])
def test_another_shape_is_refused(method: Method, shape: tuple[int, ...]) -> None:
    refused(method, sent() | {"shared.5.weight": torch.ones(shape)}, "'shared.5.weight'", str(shape), "(3, 3)")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(method: Method, value: float) -> None:
    message = sent()
    message["shared.5.bias"][1] = value
    refused(method, message, "'shared.5.bias'", "not finite", "learning rate")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64])
def test_another_dtype_is_refused(method: Method, dtype: torch.dtype) -> None:
    refused(method, {name: tensor.to(dtype) for name, tensor in sent().items()}, str(dtype))


def test_a_method_that_shares_nothing_sends_nothing() -> None:
    local = small.method("local_mma")
    wire.check_uplink(local, initial(), {}, "site-3", 7)
    with pytest.raises(FedvlmError, match=r"shared\.5\.bias"):
        wire.check_uplink(local, initial(), {"shared.5.bias": torch.ones(3)}, "site-3", 7)


def test_sizes_are_bytes_by_name() -> None:
    message = {
        "a": torch.zeros(3, 5),
        "b": torch.zeros(7, dtype=torch.float16),
        "c": torch.zeros(()),
        "d": torch.zeros(0),
    }
    assert wire.sizes(message) == {"a": 60, "b": 14, "c": 4, "d": 0}


@pytest.mark.parametrize("name", list(known()))
def test_a_pattern_cannot_share_by_accident(name: str) -> None:
    """Whatever does not match is private: tensors that a tuner gains later stay at home unless everything is shared."""
    method = small.method(name)
    extra = {"new.1.weight": torch.zeros(1)}
    if "*" not in method.shared:
        assert wire.shared(method, extra) == {}
        assert wire.private(method, extra) == extra
