"""Running experiments: the folder, the table, repeatability, resuming after a kill."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fedvlm
from fedvlm.errors import FedvlmError

SMALL = ["data.shots=2", "data.val_per_class=1", "data.test_per_class=2", "data.base_classes=6", "data.novel_classes=4",
         "partition.clients=3", "rounds=2", "evaluation.every=1"]  # fmt: skip
ALL = ["zero_shot", "coop", "promptfl", "local_mma", "fedmma", "pfedmma", "pfedmoap"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> fedvlm.runs.results.Results:
    return fedvlm.run("quickstart", *SMALL, methods=ALL, seeds=[0, 1], out=tmp_path_factory.mktemp("run") / "a")


def digests(results) -> dict:
    return {(m, s): point.digest for m, by_seed in results.points.items() for s, point in by_seed.items()}


def test_every_method_is_in_the_table_with_both_states(small) -> None:
    assert {row.method for row in small.rows if row.reported} == set(ALL)
    assert {row.method for row in small.rows if not row.reported} == {"promptfl", "fedmma", "pfedmma", "pfedmoap"}
    assert {row.state for row in small.rows if row.method == "pfedmoap" and row.reported} == {"after_training"}
    for row in small.rows:
        assert {"local", "local_own", "base", "novel", "hm", "worst_tenth", "macro_f1", "loss"} <= row.metrics.keys()


def test_the_folder_holds_what_was_promised(small) -> None:
    there = {str(p.relative_to(small.folder)) for p in small.folder.rglob("*") if p.is_file()}
    wanted = {"experiment.json", "contract.txt", "table.json", "table.csv", "table.md", "rounds.png", "rounds.svg",
              "seed-0/partition.json", "seed-1/partition.png", "seed-0/pfedmma/ledger.jsonl",
              "seed-0/pfedmma/result.json", "seed-0/pfedmma/checkpoint/checkpoint.json"}  # fmt: skip
    assert wanted <= there
    stored = json.loads((small.folder / "experiment.json").read_text())
    assert stored["experiment"]["rounds"] == 2
    assert len(stored["weights"]) == 64
    assert "torch" in stored["versions"]


def test_the_ledger_counts_bytes_by_tensor_name(small) -> None:
    lines = [json.loads(line) for line in (small.folder / "seed-0/pfedmma/ledger.jsonl").read_text().splitlines()]
    visits = [line for line in lines if line["kind"] == "visit"]
    assert len(visits) == 2 * 3
    # rank 16, blocks 3..6: four bridges of 16 x 16 + 16 float32 numbers
    expected = {f"shared.{b}.{part}": size for b in range(3, 7) for part, size in (("weight", 1024), ("bias", 64))}
    assert all(visit["up_bytes"] == expected and visit["down_bytes"] == expected for visit in visits)


def test_same_seed_same_bytes_and_seeds_differ(small, tmp_path: Path) -> None:
    again = fedvlm.run("quickstart", *SMALL, methods=ALL, seeds=[1], out=tmp_path / "b")
    assert all(digests(small)[key] == value for key, value in digests(again).items())
    assert digests(small)["pfedmma", 0] != digests(small)["pfedmma", 1]
    one, two = (json.loads((small.folder / f"seed-{s}/partition.json").read_text()) for s in (0, 1))
    assert one["digest"] != two["digest"]


def test_a_finished_run_is_not_silently_replaced(small) -> None:
    with pytest.raises(FedvlmError, match="--resume"):
        fedvlm.run("quickstart", *SMALL, methods=ALL, seeds=[0, 1], out=small.folder)
    with pytest.raises(FedvlmError, match="rounds: 2 then, 3 now"):
        fedvlm.run("quickstart", *SMALL, "rounds=3", methods=ALL, seeds=[0, 1], out=small.folder, resume=True)


def test_a_run_begun_with_other_versions_goes_on_with_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ("quickstart", *SMALL, "methods=zero_shot", "seeds=0")
    fedvlm.run(*words, out=tmp_path / "r")
    file = tmp_path / "r" / "experiment.json"
    there = json.loads(file.read_text())
    file.write_text(json.dumps(there | {"versions": there["versions"] | {"torch": "0.1"}}))
    fedvlm.run(*words, out=tmp_path / "r", resume=True, quiet=False)
    assert re.search(r"other versions \(torch 0.1 then, \S+ now\)", capsys.readouterr().out.replace("\n", " "))


def test_a_resumed_finished_run_trains_nothing(small) -> None:
    before = (small.folder / "seed-0/coop/ledger.jsonl").read_bytes()
    again = fedvlm.run("quickstart", *SMALL, methods=ALL, seeds=[0, 1], out=small.folder, resume=True)
    assert digests(again) == digests(small)
    assert (small.folder / "seed-0/coop/ledger.jsonl").read_bytes() == before


def test_table_values_are_means_and_deviations_over_seeds(small) -> None:
    row = next(row for row in small.rows if row.method == "coop" and row.reported)
    values = [small.points["coop"][seed].final["after_aggregation"]["local"] for seed in (0, 1)]
    assert row.metrics["local"].mean == pytest.approx(sum(values) / 2)
    assert row.metrics["local"].std == pytest.approx(abs(values[0] - values[1]) / 2**0.5)


KILLED = [*SMALL, "rounds=4", "methods=pfedmma,pfedmoap", "participation=0.67"]


def _start(folder: Path) -> subprocess.Popen[bytes]:
    resume = ["--resume"] if (folder / "experiment.json").exists() else []
    command = [sys.executable, "-m", "fedvlm", "run", "quickstart", *KILLED, "--out", str(folder), *resume]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize("moment", range(3))
def test_kill_and_resume_ends_bit_for_bit(tmp_path: Path, moment: int, whole: dict) -> None:
    """SIGKILL after a growing number of ledger lines (in the middle of whatever comes next), then resume."""
    folder = tmp_path / "run"
    process = _start(folder)
    lines = [2, 8, 18][moment]
    while process.poll() is None and _lines(folder) < lines:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert _start(folder).wait() == 0
    assert _digests(folder) == whole


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert _start(folder).wait() == 0
    return _digests(folder)


def _lines(folder: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in folder.rglob("ledger.jsonl"))


def _digests(folder: Path) -> dict:
    found = {
        str(f.parent.relative_to(folder)): json.loads(f.read_text())["digest"] for f in folder.rglob("result.json")
    }
    assert len(found) == 2
    return found


def test_methods_of_a_family_start_from_the_same_tensors(tmp_path: Path) -> None:
    """So that two of them with the same settings are the same run, and a difference is of what they do."""
    adapter, prompt = {"lr": 0.01, "rank": 4, "scale": 0.05}, {"lr": 0.1}
    method = {
        "all": {"epochs": 1, "batch": 16, "first_block": 3, "last_block": 6},
        "fedmma": adapter,
        "shared": {"method": "pfedmma", "share": ["*"], **adapter},
        "coop": prompt,
        "kept": {"method": "promptfl", "share": [], **prompt},
    }
    names = ["fedmma", "shared", "coop", "kept"]
    done = fedvlm.run("quickstart", *SMALL, methods=names, seeds=[0], method=method, out=tmp_path / "r")
    for one, other in (("fedmma", "shared"), ("coop", "kept")):
        assert done.points[one][0].tensors == done.points[other][0].tensors
        assert done.points[one][0].final == done.points[other][0].final


def test_settings_given_in_python_lie_over_the_preset_as_words_do(tmp_path: Path) -> None:
    """The preset's `[method.all]` and `[data]` stay; what is not named is as on the command line."""
    data = {"shots": 2, "base_classes": 6, "novel_classes": 2, "val_per_class": 1, "test_per_class": 1}
    words = ["methods=pfedmma", "rounds=1", "partition.clients=3", *(f"data.{key}={n}" for key, n in data.items())]
    line = fedvlm.run("quickstart", *words, "method.pfedmma.lr=0.01", out=tmp_path / "line")
    python = fedvlm.run(
        "quickstart", methods=["pfedmma"], rounds=1, partition={"clients": 3}, data=data,
        method={"pfedmma": {"lr": 0.01}}, out=tmp_path / "python",
    )  # fmt: skip
    assert digests(line) == digests(python)
    both = [json.loads((r.folder / "experiment.json").read_text())["experiment"] for r in (line, python)]
    assert both[0] == both[1]
    assert both[1]["method"]["all"]["rank"] == 16


def test_data_of_another_source_replace_those_of_the_preset() -> None:
    with pytest.raises(FedvlmError, match="/nowhere"):
        fedvlm.run("quickstart", data={"source": "folder", "path": "/nowhere"})


def test_the_contract_is_in_the_results(small) -> None:
    assert small.contract == (small.folder / "contract.txt").read_text().rstrip("\n")
    assert "seed 0; each seed deals anew" in small.contract
