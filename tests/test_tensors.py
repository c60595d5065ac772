from __future__ import annotations

import hashlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from torch import Tensor

from fedvlm import tensors
from fedvlm.errors import FedvlmError


def named(**values: float | list[float]) -> dict[str, Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


def test_a_weighted_mean_by_hand() -> None:
    """(1*2 + 3*6) / 4 = 5 and (1*(-4) + 3*0) / 4 = -1."""
    mean = tensors.weighted_mean([named(x=[2.0, -4.0]), named(x=[6.0, 0.0])], [1, 3])
    assert mean["x"].tolist() == [5.0, -1.0]
    assert mean["x"].dtype == torch.float32


def test_a_weighted_mean_is_the_rounded_exact_one() -> None:
    """Against exact rational arithmetic, for values whose float32 running sum would lose digits."""
    draw = torch.Generator().manual_seed(1)
    parts = [
        {"x": torch.randn(40, generator=draw) * 10.0 ** float(torch.randint(-3, 4, (1,), generator=draw))}
        for _ in range(30)
    ]
    weights = [int(w) for w in torch.randint(1, 500, (30,), generator=draw)]
    mean = tensors.weighted_mean(parts, weights)["x"]
    for place in range(40):
        exact = sum(w * Fraction(float(part["x"][place])) for part, w in zip(parts, weights, strict=True)) / sum(
            weights
        )
        assert abs(Fraction(float(mean[place])) - exact) <= abs(exact) * Fraction(1, 2**23)


TIES = "each weight is divided by the total before the sum; sum w x first, divide once, and no element differs"


def test_the_order_of_parts_does_not_change_a_byte() -> None:
    """Nine clients of 32 images and one of 96, as the papers' splits give them: equal weights make exact ties common."""
    draw = torch.Generator().manual_seed(0)
    middle = 0.02 * torch.randn(8192, generator=draw)
    parts = [{"prompt": middle + 1e-3 * torch.randn(8192, generator=draw)} for _ in range(10)]
    weights = [32] * 9 + [96]
    there, back = tensors.weighted_mean(parts, weights), tensors.weighted_mean(parts[::-1], weights[::-1])
    assert int((there["prompt"] != back["prompt"]).sum()) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_mean_keeps_the_dtype_and_is_a_new_tensor(dtype: torch.dtype) -> None:
    part = {"x": torch.tensor([0.5, 2.0], dtype=dtype)}
    mean = tensors.weighted_mean([part], [3])
    assert mean["x"].dtype == dtype
    mean["x"].zero_()
    assert part["x"].tolist() == [0.5, 2.0]


def test_a_part_of_weight_zero_has_no_influence_not_even_by_nan() -> None:
    good, bad = named(x=[1.0, 2.0]), named(x=[float("nan"), float("inf")])
    assert tensors.weighted_mean([bad, good, bad], [0, 5, 0.0])["x"].tolist() == [1.0, 2.0]


def test_parts_must_agree() -> None:
    with pytest.raises(ValueError, match=r"names differ.*y"):
        tensors.weighted_mean([named(x=1.0), named(x=1.0, y=1.0)], [1, 1])
    with pytest.raises(ValueError, match="shapes differ"):
        tensors.weighted_mean([named(x=[1.0]), named(x=[1.0, 2.0])], [1, 1])
    with pytest.raises(ValueError, match=r"shorter|longer|argument"):
        tensors.weighted_mean([named(x=1.0)], [1, 1])
    with pytest.raises(ValueError, match="positive"):
        tensors.weighted_mean([named(x=1.0)], [0])


def test_the_mean_of_empty_dictionaries_is_empty() -> None:
    assert tensors.weighted_mean([{}, {}], [1, 2]) == {}


@pytest.mark.parametrize("weight", [float("nan"), -1.0, float("inf")])
def test_a_weight_that_is_no_number_of_images_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="weight"):
        tensors.weighted_mean([named(x=1.0), named(x=2.0)], [3.0, weight])


@pytest.mark.parametrize(
    ("name", "pattern", "matched"),
    [("shared.5.weight", "shared.*", True), ("shared", "shared.*", False), ("a.shared.x", "shared.*", False),
     ("Shared.5", "shared.*", False), ("prompt", "prompt", True), ("prompt.x", "prompt", False),
     ("text.5.up.bias", "*.up.*", True), ("x", "*", True), ("text.1.a", "text.[12].*", True)],
)  # fmt: skip
def test_patterns(name: str, pattern: str, matched: bool) -> None:
    assert tensors.matches(name, [pattern]) is matched
    assert tensors.matches(name, ["nothing", pattern]) is matched


def test_selection_keeps_order_and_takes_a_generator_of_patterns_once() -> None:
    every = named(c=1.0, a=2.0, b=3.0)
    assert list(tensors.select(every, (p for p in ("[ab]", "c")))) == ["c", "a", "b"]
    assert tensors.select(every, ()) == {}


def test_counts_bytes_and_norm() -> None:
    every = {"a": torch.full((2, 3), 2.0), "b": torch.zeros(5, dtype=torch.float16), "c": torch.tensor(5.0)}
    assert tensors.count(every) == 12
    assert tensors.nbytes(every) == 24 + 10 + 4
    assert tensors.norm(every) == pytest.approx((6 * 4 + 25) ** 0.5, rel=1e-15)
    assert tensors.norm({}) == 0
    assert tensors.norm({"x": torch.full((4,), 1e30)}) == pytest.approx(2e30, rel=1e-6)


def test_clones_share_no_memory_and_no_graph() -> None:
    leaf = torch.ones(2, requires_grad=True)
    copy = tensors.clone({"x": leaf * 2})
    assert not copy["x"].requires_grad
    copy["x"].zero_()
    assert leaf.tolist() == [1.0, 1.0]


def test_a_digest_by_the_documented_recipe() -> None:
    sha = hashlib.sha256()
    sha.update(b'["a", "torch.float32", [2]]' + np.array([1.0, -2.5], "<f4").tobytes())
    sha.update(b'["b", "torch.float16", []]' + np.array(0.5, "<f2").tobytes())
    both = {"b": torch.tensor(0.5, dtype=torch.float16), "a": torch.tensor([1.0, -2.5])}
    assert tensors.digest(both) == sha.hexdigest()


def test_a_digest_sees_everything_but_the_order_of_names() -> None:
    x = torch.arange(6.0)
    different = [{"x": x}, {"y": x}, {"x": x.view(2, 3)}, {"x": x.half()}, {"x": x.double()}, {"x": x + 1e-6}, {"x": x, "y": x},
                 {"x": torch.zeros(1)}, {"x": -torch.zeros(1)}, {"x": torch.zeros(1, 0)}, {}]  # fmt: skip
    assert len({tensors.digest(one) for one in different}) == len(different)
    assert tensors.digest({"a": x, "b": x + 1}) == tensors.digest({"b": x + 1, "a": x})
    assert tensors.digest({"x": x.view(2, 3).T}) == tensors.digest({"x": x.view(2, 3).T.contiguous()})


DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


def test_what_is_saved_is_loaded_again(tmp_path: Path) -> None:
    every = {str(dtype): torch.tensor([0, 1, 3]).to(dtype) for dtype in DTYPES}
    every |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4), "turned": torch.arange(6.0).view(2, 3).T}
    tensors.save(tmp_path / "x.safetensors", every)
    back = tensors.load(tmp_path / "x.safetensors")
    assert back.keys() == every.keys()
    for name, tensor in every.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)
    assert tensors.digest(back) == tensors.digest(every)


def test_another_library_reads_the_file(tmp_path: Path) -> None:
    tensors.save(tmp_path / "x.safetensors", {"a": torch.arange(6.0).view(2, 3).T})
    table = safetensors.numpy.load_file(tmp_path / "x.safetensors")
    assert table["a"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_nothing_at_all_can_be_saved(tmp_path: Path) -> None:
    tensors.save(tmp_path / "x.safetensors", {})
    assert tensors.load(tmp_path / "x.safetensors") == {}


def test_saving_takes_a_tensor_that_requires_a_gradient(tmp_path: Path) -> None:
    tensors.save(tmp_path / "x.safetensors", {"a": torch.ones(2, requires_grad=True) * 2})
    assert tensors.load(tmp_path / "x.safetensors")["a"].tolist() == [2.0, 2.0]


def test_two_names_of_one_tensor_can_be_saved(tmp_path: Path) -> None:
    """A method may well put the averaged prompt into its pool too."""
    x = torch.ones(2)
    tensors.save(tmp_path / "x.safetensors", {"prompt": x, "pool.a": x})


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    path = tmp_path / "x.safetensors"
    tensors.save(path, {"a": torch.arange(100.0), "b": torch.ones(3)})
    return path


@pytest.mark.parametrize("length", [0, 4, 8, 20, 60, 200, -1])
def test_a_cut_off_file_is_named(damaged: Path, length: int) -> None:
    damaged.write_bytes(damaged.read_bytes()[:length])
    with pytest.raises(FedvlmError, match=f"{damaged}.*safetensors"):
        tensors.load(damaged)


@pytest.mark.parametrize(
    "data", [b"\xff" * 64, b"\x02" + bytes(7) + b"[]", b"\x02" + bytes(7) + b"{]", b"PK\x03\x04" * 20]
)
def test_a_file_of_another_kind_is_named(damaged: Path, data: bytes) -> None:
    damaged.write_bytes(data)
    with pytest.raises(FedvlmError, match=str(damaged)):
        tensors.load(damaged)


def test_a_missing_file_or_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FedvlmError, match=f"no such file: {tmp_path / 'x'}"):
        tensors.load(tmp_path / "x")
    with pytest.raises(FedvlmError, match=str(tmp_path)):
        tensors.load(tmp_path)


def test_a_larger_file_than_expected_is_not_read(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = damaged.stat().st_size
    assert tensors.load(damaged, max_bytes=size)
    monkeypatch.setattr(safetensors.torch, "load_file", lambda *_: pytest.fail("read"))
    with pytest.raises(FedvlmError, match=rf"{size:,} bytes.*{size - 1:,}"):
        tensors.load(damaged, max_bytes=size - 1)


def test_loaded_tensors_lie_at_even_addresses(tmp_path: Path) -> None:
    """Products of matrices at odd addresses round differently: a resumed run would differ in its last bits."""
    tensors.save(tmp_path / "x.safetensors", {name: torch.ones(3, 5) for name in "abcdefgh"})
    assert all(tensor.data_ptr() % 64 == 0 for tensor in tensors.load(tmp_path / "x.safetensors").values())
