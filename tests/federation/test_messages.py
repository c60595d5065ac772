"""What crosses: only what is declared, counted, and as bytes that nobody can misuse."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedvlm import tensors
from fedvlm.errors import FedvlmError
from fedvlm.federation import messages
from fedvlm.federation.messages import Header, Limits, Message, from_bytes, to_bytes
from fedvlm.methods import known
from fedvlm.methods.base import Method
from fedvlm.testing import tiny


@pytest.fixture
def method() -> Method:
    return tiny.method("pfedmma")


def initial() -> dict[str, Tensor]:
    return {"text.5.up.bias": torch.zeros(2), "shared.5.weight": torch.zeros(3, 3), "shared.5.bias": torch.zeros(3)}


def sent() -> dict[str, Tensor]:
    return {"shared.5.weight": torch.ones(3, 3), "shared.5.bias": torch.ones(3)}


def refused(method: Method, message: dict[str, Tensor], *words: str) -> None:
    with pytest.raises(FedvlmError) as error:
        messages.check_uplink(messages.uplink_template(method, initial()), message, "site-3", 7)
    for word in ("round 7", "client site-3", *words):
        assert word in str(error.value)


def test_a_declared_message_passes(method: Method) -> None:
    messages.check_uplink(messages.uplink_template(method, initial()), sent(), "site-3", 7)
    messages.check_uplink(messages.uplink_template(method, initial()), dict(reversed(sent().items())), "site-3", 7)


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
    local = tiny.method("local_mma")
    messages.check_uplink(messages.uplink_template(local, initial()), {}, "site-3", 7)
    with pytest.raises(FedvlmError, match=r"shared\.5\.bias"):
        messages.check_uplink(messages.uplink_template(local, initial()), {"shared.5.bias": torch.ones(3)}, "site-3", 7)


def test_sizes_are_bytes_by_name() -> None:
    message = {
        "a": torch.zeros(3, 5),
        "b": torch.zeros(7, dtype=torch.float16),
        "c": torch.zeros(()),
        "d": torch.zeros(0),
    }
    assert messages.tensor_bytes(message) == {"a": 60, "b": 14, "c": 4, "d": 0}


@pytest.mark.parametrize("name", list(known()))
def test_a_pattern_cannot_share_by_accident(name: str) -> None:
    """Whatever does not match is private: tensors that a tuner gains later stay at home unless everything is shared."""
    method = tiny.method(name)
    extra = {"new.1.weight": torch.zeros(1)}
    if "*" not in method.shared:
        assert messages.shared_tensors(method, extra) == {}
        assert messages.private_tensors(method, extra) == extra


NAMES = st.text(
    st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp", "Zs", "Cn", "Co", "Cf")), min_size=1, max_size=30
)
DTYPES = st.sampled_from(
    [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
)
SHAPES = st.lists(st.integers(0, 4), max_size=4)


@st.composite
def named(draw: Any) -> dict[str, torch.Tensor]:
    found = {}
    for name in draw(st.lists(NAMES, max_size=5, unique=True)):
        bits = torch.randint(
            0, 2, tuple(draw(SHAPES)), generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))
        )
        found[name] = (bits * 1.7 - 0.3).to(draw(DTYPES))
    return found


HEADER = Header(kind="uplink", experiment="ab12", method="pfedmma [stale_text]", seed=3, round=7, client="Klinik “Süd”",
                images=33.0, metrics={"means": {"local": [3.0, 4]}})  # fmt: skip


@given(named())
def test_a_message_comes_back_bit_for_bit_and_in_order(tensors_: dict[str, torch.Tensor]) -> None:
    back = from_bytes(to_bytes(Message(HEADER, tensors_)))
    assert back.header == HEADER
    assert list(back.tensors) == list(tensors_)
    for name, tensor in tensors_.items():
        assert back.tensors[name].dtype == tensor.dtype
        assert back.tensors[name].shape == tensor.shape
        assert torch.equal(back.tensors[name], tensor)


WHOLE = to_bytes(Message(HEADER, {"a": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.float16)}))


@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_changes_nothing(place: int, change: int) -> None:
    """Never another exception, never more memory than the message has; a space of the table may become another."""
    broken = bytearray(WHOLE)
    broken[place] ^= change
    with contextlib.suppress(FedvlmError):
        read, whole = from_bytes(bytes(broken)), from_bytes(WHOLE)
        assert read.header == whole.header
        assert tensors.equal(read.tensors, whole.tensors)


@given(st.one_of(st.binary(max_size=200), st.integers(0, len(WHOLE)).map(lambda end: WHOLE[:end])))
def test_what_is_no_message_is_refused(data: bytes) -> None:
    if data == WHOLE:
        return
    with pytest.raises(FedvlmError):
        from_bytes(data)


def rewritten(change: Any) -> bytes:
    """The whole message with its table changed."""
    size = int.from_bytes(WHOLE[:8], "little")
    table = json.loads(WHOLE[8 : 8 + size])
    change(table)
    text = json.dumps(table).encode()
    return len(text).to_bytes(8, "little") + text + WHOLE[8 + size :]


def header(change: Any) -> bytes:
    def within(table: dict[str, Any]) -> None:
        head = json.loads(table["__metadata__"]["fedvlm"])
        change(head)
        table["__metadata__"]["fedvlm"] = json.dumps(head)

    return rewritten(within)


FORGED = {
    "a header of gigabytes": ((1 << 40).to_bytes(8, "little") + WHOLE[8:], "larger than"),
    "no header": (rewritten(lambda t: t.pop("__metadata__")), "no header"),
    "a header that is a list": (header(lambda h: h.update(header=[])), "header"),
    "another version": (header(lambda h: h["header"].update(version=3)), "version"),
    "more in the header": (header(lambda h: h["header"].update(extra=1)), "extra"),
    "a round below zero": (header(lambda h: h["header"].update(round=-1)), "round"),
    "images without number": (header(lambda h: h["header"].update(images="many")), "images"),
    "a kind with a path": (header(lambda h: h["header"].update(kind="../x")), "kind"),
    "other names": (header(lambda h: h.update(order=["a", "c"])), "other tensors"),
    "a name twice": (header(lambda h: h.update(order=["a", "a"])), "other tensors"),
    "no order": (header(lambda h: h.update(order=None)), "other tensors"),
    "a shape of terabytes": (rewritten(lambda t: t["a"].update(shape=[1 << 40, 3])), "shape"),
    "a shape below zero": (rewritten(lambda t: t["a"].update(shape=[-2, 3])), "shape"),
    "nine dimensions": (rewritten(lambda t: t["a"].update(shape=[1] * 9)), "shape"),
    "an unknown type": (rewritten(lambda t: t["a"].update(dtype="C64")), "element type"),
    "a shape that does not fit": (rewritten(lambda t: t["a"].update(shape=[3, 3])), "cannot be read"),
    "offsets that overlap": (rewritten(lambda t: t["b"].update(data_offsets=t["a"]["data_offsets"])), "cannot be read"),
    "a table that is a list": (b"\x02" + bytes(7) + b"[]" + WHOLE[10:], "not a message"),
    "deep nesting": ((40_000).to_bytes(8, "little") + b"[" * 40_000, "not a message"),
}  # fmt: skip


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_message_is_refused_in_a_sentence(case: str) -> None:
    data, told = FORGED[case]
    with pytest.raises(FedvlmError, match=told):
        from_bytes(data)


def test_limits_are_the_readers() -> None:
    big = to_bytes(Message(HEADER, {str(n): torch.zeros(10) for n in range(20)}))
    for limits, told in ((Limits(total_bytes=500), "larger"), (Limits(header_bytes=100), "larger"),
                         (Limits(tensors=19), "20 tensors"), (Limits(name=1), "name of 2 characters"),
                         (Limits(dimensions=0), "shape")):  # fmt: skip
        with pytest.raises(FedvlmError, match=told):
            from_bytes(big, limits)
    assert len(from_bytes(big, Limits(total_bytes=len(big), tensors=20, name=2, dimensions=1)).tensors) == 20
