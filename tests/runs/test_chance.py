"""The one guard against labels that do not belong to their images: a run says so when zero-shot is at chance."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import fedvlm
from fedvlm.data import Client, Federation, Record, Source, load_source
from fedvlm.runs import chance
from fedvlm.testing import tiny

SMALL = ("data.shots=2", "data.val_per_class=1", "data.test_per_class=6", "data.base_classes=10", "data.novel_classes=4",
         "partition.clients=3", "rounds=1", "methods=zero_shot", "seeds=0")  # fmt: skip


def permuted(source: Source) -> Source:
    """Every class is called like the next one."""
    names = (*source.classnames[1:], source.classnames[0])
    return Source(source.name, names, tuple(replace(r, name=names[r.label]) for r in source.records))


@pytest.mark.parametrize("wrong", [False, True], ids=["right labels", "permuted labels"])
def test_permuted_labels_are_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, wrong: bool
) -> None:
    if wrong:
        monkeypatch.setattr(
            "fedvlm.experiment.load_source", lambda *given, **more: permuted(load_source(*given, **more))
        )
    fedvlm.run("quickstart", *SMALL, out=tmp_path / "r", quiet=False)
    said = capsys.readouterr().out
    assert "sampled base images" in said
    assert ("zero-shot is at chance" in said.replace("\n", " ")) is wrong


def test_the_sample_has_as_many_images_of_each_class() -> None:
    """Of 330 images the first class has 300: answering with it must not look like knowledge."""
    counts = {0: 300, 1: 10, 2: 10, 3: 10}
    pixels = np.zeros((4, 4, 3), np.uint8)
    records = tuple(Record(tiny.ArrayImage(f"{label}/{i}", pixels), label, tiny.BASE[label])
                    for label, count in counts.items() for i in range(count))  # fmt: skip
    everything = tuple(range(len(records)))
    client = Client("a", everything[:1], (), "base", None, (0,), None)
    fed = Federation(Source("x", tiny.BASE, records), (0, 1, 2, 3), (), (client,), {"base": everything})
    sample = chance.balanced_sample(fed, 40)
    assert Counter(records[i].label for i in sample) == dict.fromkeys(counts, 10)
    assert len(set(sample)) == 40
    assert sample == sorted(sample)
