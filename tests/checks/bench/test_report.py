"""What `fedvlm bench` measures and prints, on a task of seconds."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from fedvlm.checks.bench import protocols, report
from fedvlm.checks.bench.protocols import BenchProtocol
from fedvlm.checks.bench.side import MeasuredSide, Sizes, Timings
from fedvlm.errors import FedvlmError

SMALL = ("data.shots=2", "data.val_per_class=1", "data.test_per_class=2", "data.base_classes=6", "data.novel_classes=4",
         "partition.clients=3", "rounds=4")  # fmt: skip


@pytest.mark.long
def test_both_sides_of_a_small_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = BenchProtocol("tiny", "pFedMoAP on six classes", "quickstart", "pfedmoap", SMALL, warm=1)
    monkeypatch.setitem(protocols.PROTOCOLS, "tiny", tiny)
    said: list[str] = []
    (row,) = report.bench(["tiny"], tmp_path, tmp_path, "embedded", Sizes(1, 4), said.append)
    assert any("naive" in line for line in said)
    assert row.difference["logits"] < 1e-4
    assert row.difference["tensors"] < 1e-4
    # A step is the difference of a longer and a shorter visit, which on a busy machine may be of either sign.
    assert all((row.naive.step_s, row.exact.step_s, row.naive.expert_s, row.kept_step_s))
    assert row.exact.counts == row.naive.counts
    assert row.exact.counts["steps per round"] == 6  # three clients, two epochs of 4 images in one batch of 16
    assert row.exact.counts["experts per round"] == 6
    assert row.exact.step_gflop > 0
    assert row.over_floor == pytest.approx(row.exact.step_s * row.exact.matmul_gflops / row.exact.step_gflop)
    table = json.loads(json.dumps(report.as_json([row])))
    assert table["rows"][0]["ratios"]["warm"] == pytest.approx(row.rounds[0] / row.rounds[1])
    assert table["rows"][0]["seconds_of_a_round"] == [row.naive.round, row.exact.round]
    assert "| tiny |" in report.as_markdown([row])


def test_a_run_is_put_together_from_its_parts() -> None:
    counts = {"rounds": 10.0, "steps per round": 20.0, "experts per round": 30.0, "prompts per round": 4.0,
              "clients": 5.0, "evaluations": 2.0}  # fmt: skip
    slow = Timings(step_s=3.0, expert_s=2.0, test_s=7.0, counts=counts)
    fast = Timings(
        step_s=0.5, expert_s=0.25, test_s=1.0, remember_s=100.0, step_gflop=40.0, matmul_gflops=100.0, counts=counts
    )
    row = report.BenchRow("p", "P", slow, fast, 2.5, {"logits": 1e-6}, {"warm": 4, "whole": None})
    assert row.rounds == (20 * 3.0 + 30 * 2.0 + 7.0, 20 * 0.5 + 4 * 0.25 + 1.0)
    assert row.seconds[1] == {"training": 10.0, "experts": 1.0, "evaluation": 1.0}
    assert row.runs == (1270.0, 220.0)
    assert row.over_floor == pytest.approx(1.25)
    assert row.ratios == pytest.approx({"warm": 127 / 12, "whole": 1270 / 220, "step": 6, "step, same allocator": 5})
    assert report.quickstart_ratio([row, row]) is None
    first = replace(row, title=f"x, {protocols.QUICKSTART}")
    second = replace(
        first,
        naive=replace(slow, round={"training": 900.0, "evaluation": 100.0}),
        exact=replace(fast, round={"training": 1.0}),
    )
    assert report.quickstart_ratio([row, first]) is None
    assert report.quickstart_ratio([first, second, row]) == pytest.approx((127 + 1000) / (12 + 1))
    assert "one after another: 86.7x" in report.as_markdown([first, second])


def test_only_some_clients_take_part(tmp_path: Path) -> None:
    """Steps and experts are those of the clients of a round, evaluations those of all."""
    cifar = protocols.PROTOCOLS["moap-cifar"]
    tiny = replace(cifar, preset="quickstart", model=None, words=(*SMALL, "partition.clients=6", "participation=0.5"))
    side = MeasuredSide("exact", protocols.protocol_experiment(tiny, tmp_path, None), Sizes(), tmp_path)
    counts = side.measure().counts
    assert counts["steps per round"] == 3 * side.run.spec.method.config.epochs  # type: ignore[attr-defined]
    assert (counts["experts per round"], counts["prompts per round"], counts["clients"]) == (3 * 3, 3, 6)


def test_results_that_differ_are_seen() -> None:
    one = {"a/logits": torch.tensor([1.0, -2.0]), "a/x": torch.tensor([4.0])}
    other = {"a/logits": torch.tensor([1.5, -2.0]), "a/x": torch.tensor([4.0])}
    assert report._largest_differences(one, other) == {"logits": 0.25, "tensors": 0.0}
    with pytest.raises(FedvlmError, match="different tensors"):
        report._largest_differences(one, {"a/x": torch.tensor([4.0])})


def test_every_protocol_is_an_experiment() -> None:
    for protocol in protocols.PROTOCOLS.values():
        made = protocols.protocol_experiment(protocol, Path("/data"), "/model")
        assert made.methods == [protocol.method]
        assert made.evaluation.every == 1
        assert asdict(protocol)["name"] == protocol.name
    with pytest.raises(FedvlmError, match="did you mean 'moap'"):
        protocols.find_protocol("moapp")
