"""The same bytes whatever the number of processes and cores; what of the machine can change them is told."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fedvlm
from fedvlm import experiment, overrides, presets
from fedvlm.clip import load
from fedvlm.clip.load import save
from fedvlm.errors import FedvlmError
from fedvlm.runs import machine
from fedvlm.runs.folder import RESULTS_VERSION, results_version
from fedvlm.runs.result import CLOCK
from fedvlm.training import device as devices
from fedvlm.training.device import ComputeSection, Device

SMALL = ["data.shots=2", "data.val_per_class=2", "data.test_per_class=2", "data.base_classes=6", "data.novel_classes=4",
         "partition.clients=3", "rounds=2", "methods=pfedmma,pfedmoap", "seeds=0,1"]  # fmt: skip
CPU = Device(torch.device("cpu"))


def compared(folder: Path, processes: int, cores: int) -> dict[str, bytes]:
    """A comparison on a machine that says it has so many cores: the bytes of all that does not depend on the clock."""
    place = folder.parent / f"site-{cores}"
    place.mkdir(exist_ok=True)
    (place / "sitecustomize.py").write_text(f"import os\nos.cpu_count = lambda: {cores}\n")
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    path = os.pathsep.join([str(place), *filter(None, [environment.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "fedvlm", "compare", "quickstart", *SMALL, "--processes", str(processes),
               "--out", str(folder), "--quiet"]  # fmt: skip
    done = subprocess.run(command, env=environment | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {}
    for file in sorted(folder.glob("seed-*/*/*.json")) + sorted(folder.glob("seed-*/*.json")):
        table = json.loads(file.read_text())
        for key in CLOCK:
            table.pop(key, None) if isinstance(table, dict) else None
        found[file.relative_to(folder).as_posix()] = json.dumps(table).encode()
    return found | {name: (folder / name).read_bytes() for name in ("tradeoff.png",)}


@pytest.mark.long
def test_processes_and_cores_change_no_byte(tmp_path: Path) -> None:
    """The review's case: with 4 or 8 cores workers had other thread counts than the single process."""
    whole = compared(tmp_path / "1", 1, 8)
    assert len([name for name in whole if name.endswith("result.json")]) == 4
    assert compared(tmp_path / "2", 2, 4) == whole
    assert compared(tmp_path / "8", 8, 8) == whole


def test_threads_are_those_the_run_was_begun_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    large, small, free = 512, 128, ComputeSection()
    assert [machine.choose_machine(free, CPU, small, processes=n).threads for n in (1, 2, 8)] == [1, 1, 1]
    assert [machine.choose_machine(free, CPU, large, processes=n).threads for n in (1, 2, 8, 20)] == [8, 4, 1, 1]
    begun = machine.choose_machine(free, CPU, large).as_json()
    again = machine.choose_machine(free, CPU, large, begun, processes=4)
    assert (again.threads, again.clients_per_step) == (8, 1)
    assert "4 processes with 8 threads each on 8 cores" in machine.crowding_warning(again, 4)
    assert (
        machine.crowding_warning(again, 1)
        == machine.crowding_warning(machine.choose_machine(free, CPU, small), 8)
        == ""
    )
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert "8 threads on 2 cores" in machine.crowding_warning(again, 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    elsewhere = machine.choose_machine(free, CPU, large, begun | {"device": "cuda:0", "together": "8", "threads": "2"})
    assert (elsewhere.threads, elsewhere.clients_per_step) == (8, 1)
    chosen = machine.choose_machine(ComputeSection(threads=3, together=2), CPU, large, begun)
    assert (chosen.threads, chosen.clients_per_step) == (3, 2)
    assert machine.choose_machine(free, CPU, large, {"threads": "100000", "together": "-1"}) == machine.choose_machine(
        free, CPU, large
    )
    assert machine.differences(begun, chosen.as_json()) == ["threads 8 then, 3 now", "together 1 then, 2 now"]


def test_what_can_change_bytes_stands_in_the_folder_and_is_told_when_it_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("quickstart", *SMALL, "methods=zero_shot", "seeds=0")
    fedvlm.run(*words, out=tmp_path / "r")
    file = tmp_path / "r/experiment.json"
    there = json.loads(file.read_text())
    assert there["machine"] == {"threads": "1", "together": str(devices.CLIENTS_PER_STEP), "device": "cpu",
                                "processor": machine.choose_machine(ComputeSection(), CPU, 128).processor}  # fmt: skip
    assert "later" not in there
    fedvlm.run(*words, "compute.clients_per_step=2", out=tmp_path / "r", resume=True, quiet=False)
    assert "together 8 then, 2 now" in capsys.readouterr().out
    later = json.loads(file.read_text())
    assert later["machine"] == there["machine"]
    assert [one["machine"]["together"] for one in later["later"]] == ["2"]
    file.write_text(json.dumps(there | {"machine": there["machine"] | {"together": "3"}}))
    done = fedvlm.run(*words, out=tmp_path / "r", resume=True, quiet=False)
    assert "began" not in capsys.readouterr().out.split("experiment")[0]
    assert json.loads(file.read_text())["machine"]["together"] == "3"  # taken over: nothing differs
    assert done.points["zero_shot"][0].digest


@pytest.fixture
def own_clip(tmp_path: Path) -> Path:
    save(load(), tmp_path / "clip")
    return tmp_path / "clip"


def changed(file: Path, **values: object) -> None:
    table = json.loads(file.read_text())
    for part in ("vision_config", "text_config"):
        table[part] |= values
    file.write_text(json.dumps(table))


def test_the_same_weights_in_another_model_are_refused(own_clip: Path, tmp_path: Path) -> None:
    """The review's case: one table with two models, because config.json is not part of the weight file."""
    words = ("quickstart", *SMALL, "seeds=0", f"model.name={own_clip}")
    before = fedvlm.run(*words, "methods=zero_shot", out=tmp_path / "r").points["zero_shot"][0]
    changed(own_clip / "config.json", hidden_act="gelu")
    with pytest.raises(FedvlmError, match="same weights in another model: its configuration"):
        fedvlm.run(*words, "methods=zero_shot,zero_shot_prior", out=tmp_path / "r", resume=True)
    assert not (tmp_path / "r/seed-0/zero_shot_prior").exists()
    fresh = fedvlm.run(*words, "methods=zero_shot", out=tmp_path / "other").points["zero_shot"][0]
    assert fresh.clients != before.clients


def test_other_weights_are_refused(own_clip: Path, tmp_path: Path) -> None:
    words = ("quickstart", *SMALL, "methods=zero_shot", "seeds=0", f"model.name={own_clip}")
    fedvlm.run(*words, out=tmp_path / "r")
    clip = load(str(own_clip))
    clip.logit_scale.data += 1
    shutil.rmtree(own_clip)
    save(clip, own_clip)
    with pytest.raises(FedvlmError, match="other weights"):
        fedvlm.run(*words, out=tmp_path / "r", resume=True)


def test_a_run_of_an_earlier_version_that_told_its_weights_alone_goes_on(own_clip: Path, tmp_path: Path) -> None:
    words = ("quickstart", *SMALL, "methods=zero_shot", "seeds=0", f"model.name={own_clip}")
    fedvlm.run(*words, out=tmp_path / "r")
    file = tmp_path / "r/experiment.json"
    older = {key: value for key, value in json.loads(file.read_text()).items() if key not in ("model", "machine")}
    file.write_text(json.dumps(older))
    assert fedvlm.run(*words, out=tmp_path / "r", resume=True).rows
    assert json.loads(file.read_text())["machine"]["threads"] == "1"  # from now on told


def test_a_point_of_other_rules_is_not_taken_for_one_of_these(tmp_path: Path) -> None:
    words = ("quickstart", *SMALL, "methods=zero_shot", "seeds=0")
    fedvlm.run(*words, out=tmp_path / "r")
    file = tmp_path / "r/seed-0/zero_shot/point.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"results": 1}))
    with pytest.raises(FedvlmError, match="results: 1 then, 2 now"):
        fedvlm.run(*words, out=tmp_path / "r", resume=True)


@pytest.mark.parametrize(("words", "number"), [
    ((), 2), (("compute.dtype=tf32",), 3), (("compute.dtype=bfloat16",), 3), (("model.name=elsewhere",), 3),
    (("partition.kind=domain",), 3), (("data.shots=3", "rounds=2", "views=2"), 2),
])  # fmt: skip
def test_only_what_gives_the_numbers_of_before_takes_points_of_before(words: tuple[str, ...], number: int) -> None:
    chosen = experiment.parse(overrides.apply_words(presets.settings("quickstart"), words))
    assert results_version(chosen) == number
    photographs = experiment.parse({"data": {"source": "folder", "path": "photos"}})
    assert results_version(photographs) == RESULTS_VERSION == 3


def test_another_partition_is_refused_at_resume(tmp_path: Path) -> None:
    words = ("quickstart", *SMALL, "methods=zero_shot,coop")
    fedvlm.run(*words, "seeds=0,1", out=tmp_path / "r")
    one, other = (tmp_path / "r" / f"seed-{seed}/partition.json" for seed in (0, 1))
    shutil.rmtree(tmp_path / "r/seed-1/coop")
    other.write_bytes(one.read_bytes())
    with pytest.raises(FedvlmError, match="partition"):
        fedvlm.run(*words, "methods=coop", "seeds=1", out=tmp_path / "r", resume=True)
    assert not (tmp_path / "r/seed-1/coop/result.json").exists()
