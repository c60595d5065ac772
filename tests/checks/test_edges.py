"""A unit on the edge of its ReLU is told from a fault."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import formulas
import pytest
import reference_outputs
import safetensors.torch
import torch
from torch import Tensor

from fedvlm import cli
from fedvlm.checks.agreement import Group, judge
from fedvlm.checks.bench.released import ReleasedPath
from fedvlm.checks.verify import PATHS, DisturbedPath, verify
from fedvlm.clip import FrozenCLIP
from fedvlm.tuners import adapter

SETTINGS = {
    "clip": "other-clip",
    "classnames": reference_outputs.NAMES,
    "prompt": "this is {}!",
    "adapter": reference_outputs.ADAPTER,
}
PLAIN = PATHS["alone"]


def on_edge(clip: FrozenCLIP, start: formulas.Weights) -> formulas.Weights:
    """Such a bias for one vision unit that its input is zero, but for rounding, at one token of one image."""
    w, config = formulas.weights(clip), clip.config
    entering: list[Tensor] = []
    images = reference_outputs.draw(7, 3, 20, 20, name="images")
    formulas.image_stream(images, w, config, branches={2: lambda h: entering.append(h) or 0 * h})  # type: ignore[func-returns-value]
    name, (image, token, unit) = "vision.2.down", (3, 5, 4)
    value = entering[0][image, token] @ start[f"{name}.weight"][unit].double()
    bias = start[f"{name}.bias"].clone()
    bias[unit] = -value
    return start | {f"{name}.bias": bias}


@pytest.fixture(scope="module")
def edges(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two references for one input: the unit a little above zero, and a little below."""
    folders = []
    for side in (-1, 1):
        folder = tmp_path_factory.mktemp("edge")
        clip = reference_outputs.write_clip(folder / "other-clip")
        start = on_edge(clip, reference_outputs.adapter_start())
        truth = formulas.doubled(start)
        truth["vision.2.down.bias"][4] += side * 1e-6
        reference_outputs.write(folder, "adapter", SETTINGS, reference_outputs.adapter_step(clip, start, truth))
        folders.append(folder)
    return folders


@pytest.fixture(scope="module")
def federated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clients and three rounds; each test writes its own settings."""
    folder = tmp_path_factory.mktemp("federated")
    reference_outputs.write_adapter(folder, reference_outputs.write_clip(folder / "other-clip"))
    return folder


def other_side(edges: list[Path]) -> Path:
    """The reference that stands on the other side than this machine's rounding."""
    (found,) = [folder for folder in edges if not all(group.passed for group in verify(folder, draws=0))]
    return found


@pytest.mark.parametrize("way", [*PATHS.values(), ReleasedPath()], ids=[*PATHS, "released"])
def test_a_unit_on_its_edge_is_reported_and_passes(edges: list[Path], way: object) -> None:
    both = [verify(folder, way) for folder in edges]  # type: ignore[arg-type]
    assert all(group.passed for groups in both for group in groups)
    seen = [group for groups in both for group in groups if group.result != "pass"]
    assert [group.result for group in seen] == ["ILL-CONDITIONED"]
    (one,) = seen
    assert (one.name, one.draws) == ("grad/vision", 16)
    assert 0 < one.agreed < 16
    assert one.ratio > 1e-3
    assert one.best < one.difference / 100


def test_the_command_shows_both_figures(
    edges: list[Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr("sys.argv", ["fedvlm", "verify", str(other_side(edges))])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    text = capsys.readouterr().out
    line = next(line for line in text.splitlines() if "grad/vision" in line)
    assert "ILL-CONDITIONED" in line
    assert " of 16 draws, nearest " in line
    assert "0 groups failed, 1 ill-conditioned" in text


def wrong_scale(grads: Tensor) -> Tensor:
    return 1.001 * grads


def wrong_sign(grads: Tensor) -> Tensor:
    return -grads


@pytest.mark.parametrize("change", [wrong_scale, wrong_sign])
def test_a_wrong_gradient_fails_in_every_draw(
    edges: list[Path], change: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where a unit on its edge stands beside it, which would pass alone."""
    folder = other_side(edges)
    monkeypatch.setattr(adapter._ScaleValue, "backward", staticmethod(lambda ctx, *g: (change(g[0]), None)))  # type: ignore[operator]
    found = {group.name: group for group in verify(folder)}
    failed = {name: group for name, group in found.items() if not group.passed}
    assert failed.keys() == {"grad/text", "grad/vision", "grad/shared"}
    for group in failed.values():
        assert (group.result, group.agreed, group.draws) == ("FAIL", 0, 16)
        assert group.best > 5e-4 * group.difference / group.ratio
    monkeypatch.setattr("sys.argv", ["fedvlm", "verify", str(folder)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1
    assert "agrees in 0 of 16" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("change", [{"momentum": 0.801}, {"lr": 0.01001}, {"weight_decay": 0.0}])
def test_a_wrong_optimizer_fails_in_every_draw(federated: Path, change: dict[str, float]) -> None:
    """A thousandth of the momentum or of the rate; no decay."""
    settings = json.loads((federated / "adapter.json").read_text())
    (federated / "adapter.json").write_text(json.dumps(settings | {"federated": reference_outputs.ROUNDS | change}))
    failed = [group for group in verify(federated, draws=4) if not group.passed]
    assert "federated/final/shared" in {group.name for group in failed}
    assert {(group.result, group.agreed, group.draws) for group in failed} == {("FAIL", 0, 4)}


def test_a_fault_of_little_more_than_the_tolerance_fails_in_every_draw(edges: list[Path], tmp_path: Path) -> None:
    """The noise is worth a few hundredths of the tolerance: it hides nothing that is a fifth above it."""
    (same,) = [folder for folder in edges if folder != other_side(edges)]
    shutil.copytree(same, tmp_path / "copy")
    file = tmp_path / "copy" / "adapter.safetensors"
    table = safetensors.torch.load_file(file)
    for name, group in (
        ("logits", "logits"),
        ("grad/vision.3.up.weight", "grad/vision"),
        ("grad/text.2.down.bias", "grad/text"),
    ):
        wrong = table[name].clone()
        wrong.view(-1)[wrong.abs().argmax()] *= 1 + 1.2e-4 + 1.2e-6 / float(wrong.abs().max())
        safetensors.torch.save_file(table | {name: wrong}, file)
        seen = {one.name: one for one in verify(tmp_path / "copy") if not one.passed}
        assert seen.keys() == {group}
        assert (seen[group].result, seen[group].agreed) == ("FAIL", 0)


def test_nothing_is_computed_again_where_all_agrees(edges: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    (same,) = [folder for folder in edges if folder != other_side(edges)]
    monkeypatch.setattr(DisturbedPath, "hidden", lambda *_: pytest.fail("disturbed"))
    assert all(group.result == "pass" and group.draws == 0 for group in verify(same))


def test_noise_is_of_the_size_of_rounding_and_that_of_its_name() -> None:
    start = {"a": torch.linspace(-3, 3, 50_000), "b": torch.linspace(-3, 3, 50_000), "zero": torch.zeros(3)}
    one, same, other = (DisturbedPath(PLAIN, draw).initial(start) for draw in (0, 0, 1))
    noise = {name: (tensor.double() - start[name].double()) for name, tensor in one.items()}
    assert noise["a"].abs().max() < 6 * 3e-7
    assert noise["a"].std() == pytest.approx(3e-7, rel=0.1)
    assert torch.equal(one["a"], same["a"])
    assert not torch.equal(one["a"], other["a"])
    assert not torch.equal(noise["a"], noise["b"])
    assert torch.equal(one["zero"], start["zero"])


def group(name: str, difference: float) -> Group:
    return Group("f", name, 1, difference, difference, difference <= 1e-4)


AGREE, DIFFER = 1e-6, 1e-2


@pytest.mark.parametrize(
    ("plain", "draws", "results", "agreed"),
    [
        ([AGREE, AGREE], [], ["pass", "pass"], [0, 0]),
        ([AGREE, DIFFER], [], ["pass", "FAIL"], [0, 0]),
        ([AGREE, DIFFER], [[AGREE, AGREE], [AGREE, DIFFER]], ["pass", "ILL-CONDITIONED"], [0, 1]),
        ([DIFFER, DIFFER], [[AGREE, DIFFER], [AGREE, AGREE]], ["ILL-CONDITIONED", "ILL-CONDITIONED"], [2, 1]),
        # each in a draw of its own: no one computation gives the reference
        ([DIFFER, DIFFER], [[AGREE, DIFFER], [DIFFER, AGREE]], ["FAIL", "FAIL"], [1, 1]),
        # what agreed before must agree in the same draw too
        ([AGREE, DIFFER], [[DIFFER, AGREE], [AGREE, DIFFER]], ["pass", "FAIL"], [0, 1]),
        ([DIFFER, DIFFER], [[AGREE, DIFFER]] * 3, ["FAIL", "FAIL"], [3, 0]),
    ],
)
def test_all_must_agree_in_one_draw(
    plain: list[float], draws: list[list[float]], results: list[str], agreed: list[int]
) -> None:
    def row(values: list[float]) -> list[Group]:
        return [group(name, value) for name, value in zip("ab", values, strict=True)]

    found = judge(row(plain), [row(one) for one in draws])
    assert [one.result for one in found] == results
    assert [one.passed for one in found] == [result != "FAIL" for result in results]
    assert [one.agreed for one in found] == agreed
    assert [one.difference for one in found] == plain, "the undisturbed difference is the one that is shown"


def test_noise_leaves_a_reference_where_it_was() -> None:
    """What is differentiable moves by rounding only: no tensor of the published outputs comes near its tolerance."""
    reference = Path(__file__).parents[1] / "reference"
    for one in verify(reference, DisturbedPath(PLAIN, 0), draws=0):
        assert one.agrees
        assert one.ratio < 1e-4, one  # processors round differently: 2.2e-5 to 3.1e-5 was seen
