"""One setting at several values: what is played and what is not, what the tables say, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedvlm import presets
from fedvlm.cli import app
from fedvlm.errors import FedvlmError
from fedvlm.results import sweep as sweeping
from fedvlm.results.comparison import compare
from fedvlm.results.statistics import holm
from fedvlm.results.sweep import Sweep, plan, sweep

SMALL = ["data.val_per_class=2", "data.test_per_class=2", "data.base_classes=6", "data.novel_classes=4",
         "partition.clients=3", "rounds=1", "methods=zero_shot,coop,pfedmma", "seeds=0,1"]  # fmt: skip
OVER = "data.shots=1,2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweep") / "s"


@pytest.fixture(scope="module")
def swept(folder: Path) -> Sweep:
    return sweep(plan(presets.settings("quickstart"), SMALL, OVER), folder, against="coop")


def test_every_value_is_a_comparison_of_its_own(swept: Sweep, folder: Path) -> None:
    for value, (text, one) in zip((1, 2), swept, strict=True):
        experiment = json.loads((folder / f"data.shots={value}" / "experiment.json").read_text())["experiment"]
        assert text == str(value)
        assert experiment["data"]["shots"] == value
        assert experiment["partition"]["clients"] == 3
        points = {m: {s: json.loads((folder / f"data.shots={value}/seed-{s}/{m}/result.json").read_text())
                      for s in (0, 1)} for m in ("zero_shot", "coop", "pfedmma")}  # fmt: skip
        again = compare("", points, "coop")
        assert [row.values for row in again.rows] == [row.values for row in one.rows]


def test_the_tables_have_a_column_for_each_value(swept: Sweep, folder: Path) -> None:
    text = (folder / "sweep.md").read_text()
    for title, metric in (("HM", "hm"), ("Local", "local"), ("Novel", "novel")):
        table = text.split(f"\n{title}\n\n")[1].split("\n\n")[0].splitlines()
        assert table[0] == "| data.shots | 1 | 2 |"
        for row, line in zip(swept.found[0].rows, table[2:], strict=True):
            name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            assert name == row.method
            for cell, one in zip(cells, swept.found, strict=True):
                mean = next(r for r in one.rows if r.method == name).estimate(metric)
                assert mean is not None
                assert cell.startswith(f"{100 * mean.mean:.1f} ± ")
    assert "HM less that of coop" in text
    lines = list(csv.DictReader((folder / "sweep.csv").open()))
    assert {(line["data.shots"], line["method"], line["seed"]) for line in lines} == {
        (v, m, s) for v in "12" for m in ("zero_shot", "coop", "pfedmma") for s in "01"
    }
    first = swept.found[1].rows[2]
    assert [float(one["local"]) for one in lines if (one["data.shots"], one["method"]) == ("2", "pfedmma")] == (
        pytest.approx([100 * v for v in first.values["local"]], abs=1e-3)
    )
    assert r"\begin{tabular}" in (folder / "sweep.tex").read_text()
    assert (folder / "sweep.png").stat().st_size > 10_000
    assert [one["value"] for one in json.loads((folder / "sweep.json").read_text())["comparisons"]] == [1, 2]


def test_p_is_corrected_over_all_values_and_methods(swept: Sweep) -> None:
    raw = {(v, row.method): row.differences["hm"].p for v, one in swept for row in one.rows if row.differences}
    assert len(raw) == 4
    assert swept.corrected("hm") == holm(raw)
    for short, title in ((True, "p corrected"), (False, "p and p corrected")):
        rows = sweeping.tabled(swept, short=short)[f"HM less that of coop, in brackets {title}"][1]
        for method, *cells in rows:
            for value, cell in zip("12", cells, strict=True):
                last = f"{swept.corrected('hm')[value, method]:.2g})"
                assert cell.endswith(f"({last}" if short else f"({raw[value, method]:.2g}; {last}")
    # Two seeds give p of 0.5 or 1, four of them a corrected one of 1.
    assert any("cannot be below 0.5. Corrected for the 4 differences" in note for note in sweeping.notes(swept))


def test_said_again_with_more_values_it_plays_only_the_new(swept: Sweep, folder: Path) -> None:
    stamps = {file: file.stat().st_mtime_ns for file in folder.rglob("result.json")}
    more = sweep(plan(presets.settings("quickstart"), SMALL, "data.shots=1,2,3"), folder, against="coop")
    assert more.values == [1, 2, 3]
    assert [one.rows for one in more.found[:2]] == [one.rows for one in swept.found]
    assert {file: file.stat().st_mtime_ns for file in stamps} == stamps
    assert len(list(folder.rglob("result.json"))) == 3 * len(stamps) // 2


def test_a_value_that_fails_costs_no_other(tmp_path: Path) -> None:
    """Four clients cannot have one class each of three."""
    words = [word for word in SMALL if "clients" not in word] + ["data.base_classes=3", "methods=zero_shot", "seeds=0"]
    with pytest.raises(FedvlmError, match=r"partition\.clients=4: .*cannot be dealt"):
        sweep(plan(presets.settings("quickstart"), words, "partition.clients=3,4,1"), tmp_path)
    lines = list(csv.DictReader((tmp_path / "sweep.csv").open()))
    assert [line["partition.clients"] for line in lines] == ["3", "1"]


def test_the_command_line(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text('like = "ablation_shots"\n[sweep]\nparticipation = [0.4, 1.0]\n')
    words = [*SMALL, "methods=zero_shot", "seeds=0", "--out", str(tmp_path / "out"), "--quiet"]
    done = CliRunner().invoke(app, ["sweep", str(own), *words])
    assert done.exit_code == 0, done.output
    assert "participation" in done.output
    assert "0.4" in done.output
    assert (tmp_path / "out" / "participation=0.4" / "compare.md").exists()


def test_a_method_s_setting_and_names_with_slashes(tmp_path: Path) -> None:
    planned = plan(presets.settings("quickstart"), SMALL, "method.pfedmma.rank=2,4")
    assert [one.method["pfedmma"]["rank"] for one in planned.experiments] == [2, 4]
    words = [*SMALL, "methods=zero_shot", "seeds=0"]
    planned = plan(presets.settings("quickstart"), words, "evaluation.template=a {}/b.,../{}")
    sweep(planned, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert sum(path.is_dir() for path in (tmp_path / "out").iterdir()) == 2


REFUSED: dict[str, tuple[dict[str, Any], list[str], str, str]] = {
    "nothing": ({}, [], "", "one setting"),
    "two": ({"sweep": {"rounds": [1, 2], "participation": [0.5, 1.0]}}, [], "", "rounds, participation"),
    "no table": ({"sweep": 3}, [], "", "one setting"),
    "one value": ({}, [], "rounds=1", "two or more different values"),
    "twice": ({}, [], "rounds=1,2,1", "two or more different values"),
    "no list": ({"sweep": {"rounds": 3}}, [], "", "two or more different values"),
    "seeds": ({}, [], "seeds=1,2", "same for all values"),
    "methods": ({}, [], "methods=coop,pfedmma", "same for all values"),
    "besides": ({}, ["rounds=3"], "rounds=1,2", "set besides"),
    "unknown": ({}, [], "data.shot=1,2", "did you mean 'shots'"),
    "a wrong kind": ({}, [], "data.shots=1,x", "expected an integer"),
    "of a method": ({}, [], "method.pfedmma.rnk=1,2", "did you mean 'rank'"),
    "no values": ({}, [], "rounds", "not of the form"),
    "one folder": ({}, [], "evaluation.template=a {}/,a {}-", "same folder"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    more, words, over, message = REFUSED[case]
    with pytest.raises(FedvlmError, match=message):
        plan(presets.settings("quickstart") | more, words, over)
