from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fedvlm.training import metrics
from fedvlm.training.metrics import Mean

#       guesses:  0            2            1            1            0
LOGITS = torch.tensor([[3.0, 1, 0], [0, 1, 2], [0, 5, 4], [1, 2, 0], [9, 0, 8]])
LABELS = torch.tensor([0, 2, 2, 1, 2])


def test_accuracy_by_hand() -> None:
    assert metrics.accuracy(LOGITS, LABELS).value == 3 / 5
    assert metrics.accuracy(LOGITS[:1], LABELS[:1]).value == 1.0


def test_accuracy_over_own_classes_by_hand() -> None:
    """Over classes 0 and 2 the guesses become 0, 2, 2, 0, 0."""
    assert metrics.own_class_accuracy(LOGITS, LABELS, [0, 2]).value == 3 / 5
    assert metrics.own_class_accuracy(LOGITS, LABELS, [2, 0]).value == 3 / 5
    assert metrics.own_class_accuracy(LOGITS[1:], LABELS[1:], [1, 2]).value == 3 / 4
    assert metrics.own_class_accuracy(LOGITS, LABELS, [0, 1, 2]).value == metrics.accuracy(LOGITS, LABELS).value
    assert metrics.own_class_accuracy(LOGITS, LABELS, [2]).value == 3 / 5


def test_macro_f1_by_hand() -> None:
    """Class 0: TP 1, FP 1, FN 0 -> 2/3; class 1: TP 1, FP 1, FN 0 -> 2/3; class 2: TP 1, FP 0, FN 2 -> 1/2."""
    assert metrics.macro_f1(LOGITS, LABELS).value == pytest.approx((2 / 3 + 2 / 3 + 1 / 2) / 3, rel=1e-6)


def test_macro_f1_over_the_classes_present_only() -> None:
    """Guesses 0 and 2 for labels 0 and 0: class 0 has TP 1, FN 1 -> 2/3; classes 1 and 2 have no image."""
    assert metrics.macro_f1(LOGITS[:2], torch.tensor([0, 0])).value == pytest.approx(2 / 3, rel=1e-6)
    assert metrics.macro_f1(LOGITS[:1], torch.tensor([1])).value == 0.0


def test_loss_by_hand() -> None:
    expected = (
        -sum(
            math.log(math.exp(row[k]) / sum(map(math.exp, row)))
            for row, k in zip(LOGITS.tolist(), LABELS.tolist(), strict=True)
        )
        / 5
    )
    assert metrics.loss(LOGITS, LABELS).value == pytest.approx(expected, rel=1e-12)
    assert metrics.loss(torch.tensor([[1000.0, 0.0]]), torch.tensor([1])).value == pytest.approx(1000.0)


def test_the_harmonic_mean_of_the_published_row() -> None:
    """pFedMMA's averages give 84.55 (pfedmma.md 4.1); PromptFL's 83.90."""
    assert 100 * metrics.harmonic_mean([0.9717, 0.7740, 0.8149]) == pytest.approx(84.55, abs=0.005)
    assert 100 * metrics.harmonic_mean([0.8893, 0.8895, 0.7536]) == pytest.approx(83.90, abs=0.005)
    assert metrics.harmonic_mean([0.5, 1.0]) == pytest.approx(2 / 3)
    assert metrics.harmonic_mean([0.5, 0.0, 1.0]) == 0.0


@pytest.mark.parametrize(("count", "lowest"), [(1, 1), (9, 1), (10, 1), (11, 2), (20, 2), (100, 10)])
def test_the_worst_tenth(count: int, lowest: int) -> None:
    values = np.random.default_rng(count).permutation(np.arange(count) / count)
    assert metrics.worst_tenth(values.tolist()) == pytest.approx((np.arange(lowest) / count).mean())


def pooled(clients: dict[str, dict[str, float]]) -> dict[str, float]:
    """Of clients that measured such means, each on 10 images."""
    return metrics.pool_statistics({c: {n: Mean(10 * v, 10) for n, v in one.items()} for c, one in clients.items()})


def test_a_summary_is_an_unweighted_mean_with_the_harmonic_mean_of_the_means() -> None:
    clients = {"a": {"local": 1.0, "base": 0.5, "novel": 0.25}, "b": {"local": 0.5, "base": 0.5, "novel": 0.75}}
    result = pooled(clients)
    assert result["local"] == 0.75
    assert result["novel"] == 0.5
    assert result["hm"] == pytest.approx(3 / (1 / 0.75 + 1 / 0.5 + 1 / 0.5))
    assert result["worst_tenth"] == 0.5


def test_clients_that_lack_a_metric_are_left_out_of_its_mean() -> None:
    result = pooled({"a": {"base": 0.5}, "b": {"base": 1.0, "local": 0.25}})
    assert result == {"base": 0.75, "local": 0.25, "worst_tenth": 0.25}
    assert pooled({}) == {}


def test_accuracies_are_plain_numbers() -> None:
    assert all(type(f(LOGITS, LABELS).value) is float for f in (metrics.accuracy, metrics.macro_f1, metrics.loss))


def test_the_calibration_error_by_hand() -> None:
    """Confidences 0.9, 0.9 (one right), 0.6 (right), 0.55 (wrong) in ten bins: |0.9 - 0.5| 2/4, 0.4 / 4, 0.55 / 4."""
    confidence, guess, label = [0.9, 0.9, 0.6, 0.55], [0, 1, 0, 1], [0, 0, 0, 0]
    rows = [[p, 1 - p] if g == 0 else [1 - p, p] for p, g in zip(confidence, guess, strict=True)]
    found = metrics.calibration(torch.tensor(rows).double().log(), torch.tensor(label), bins=10).value
    assert found == pytest.approx(0.4 * 2 / 4 + 0.4 / 4 + 0.55 / 4)


def test_the_calibration_error_by_a_loop_over_bins() -> None:
    draw = torch.Generator().manual_seed(0)
    logits, labels = 2 * torch.randn(300, 4, generator=draw), torch.randint(0, 4, (300,), generator=draw)
    chances = logits.double().softmax(-1).numpy()
    best, right, total = chances.max(1), chances.argmax(1) == labels.numpy(), 0.0
    for k in range(15):
        inside = (best >= k / 15) & (best < (k + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(best[inside].mean() - right[inside].mean())
    assert metrics.calibration(logits, labels).value == pytest.approx(total)
    assert metrics.calibration(torch.tensor([[1e3, 0.0]]), torch.tensor([0])).value == 0.0


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_what_two_groups_tell_adds_up_to_what_both_together_tell(cut: int) -> None:
    """So that a server needs nobody's logits. F1 is a mean over classes and adds up to one over both groups' classes."""
    parts = [(LOGITS[:cut], LABELS[:cut]), (LOGITS[cut:], LABELS[cut:])]
    for metric in (metrics.accuracy, metrics.loss):
        one, other = (metric(*part) for part in parts)
        assert (one + other).value == pytest.approx(metric(LOGITS, LABELS).value)
        assert (one + other).count == 5
    one_f1, other_f1 = (metrics.macro_f1(*part) for part in parts)
    assert (one_f1 + other_f1).count == one_f1.count + other_f1.count
    first, second = (metrics.calibration(*part) for part in parts)
    whole = metrics.calibration(LOGITS, LABELS)
    assert (first + second).gaps == pytest.approx(whole.gaps, abs=1e-15)
    assert (first + second).value == pytest.approx(whole.value)
