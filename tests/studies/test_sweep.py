"""One setting at several values: what is played and what is not, what the tables say, and what is refused."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
from fake_results import point
from typer.testing import CliRunner

from fedvlm import experiment, overrides, presets
from fedvlm.cli import app
from fedvlm.errors import FedvlmError
from fedvlm.reports.comparison import Comparison, compare
from fedvlm.runs import result
from fedvlm.studies import sweep as sweeping
from fedvlm.studies.study import Options
from fedvlm.studies.sweep import Sweep, plan, sweep

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
        saved = json.loads((folder / f"data.shots={value}" / "experiment.json").read_text())["experiment"]
        assert text == str(value)
        assert saved["data"]["shots"] == value
        assert saved["partition"]["clients"] == 3
        points = {m: {s: result.read(folder / f"data.shots={value}/seed-{s}/{m}/result.json")
                      for s in (0, 1)} for m in ("zero_shot", "coop", "pfedmma")}  # fmt: skip
        again = compare("", points, "coop")
        assert [row.values for row in again.rows] == [row.values for row in one.rows]


def test_the_tables_have_a_column_for_each_value(swept: Sweep, folder: Path) -> None:
    text = (folder / "sweep.md").read_text()
    for title, metric in (("HM", "hm"), ("Local", "local"), ("Novel", "novel")):
        table = text.split(f"\n{title}\n\n")[1].split("\n\n")[0].splitlines()
        assert table[0] == "| data.shots | 1 | 2 |"
        for row, line in zip(swept.comparisons[0].rows, table[2:], strict=True):
            name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            assert name == row.method
            for cell, one in zip(cells, swept.comparisons, strict=True):
                mean = next(r for r in one.rows if r.method == name).estimate(metric)
                assert mean is not None
                assert cell.startswith(f"{100 * mean.mean:.1f} ± ")
    assert "HM less that of coop" in text
    lines = list(csv.DictReader((folder / "sweep.csv").open()))
    assert {(line["data.shots"], line["method"], line["seed"]) for line in lines} == {
        (v, m, s) for v in "12" for m in ("zero_shot", "coop", "pfedmma") for s in "01"
    }
    first = swept.comparisons[1].rows[2]
    assert [float(one["local"]) for one in lines if (one["data.shots"], one["method"]) == ("2", "pfedmma")] == (
        pytest.approx([100 * v for v in first.values["local"]], abs=1e-3)
    )
    assert r"\begin{tabular}" in (folder / "sweep.tex").read_text()
    assert (folder / "sweep.png").stat().st_size > 10_000
    assert [one["value"] for one in json.loads((folder / "sweep.json").read_text())["comparisons"]] == ["1", "2"]


def made(differences: dict[str, list[float]]) -> Comparison:
    """A comparison with a method "r" and others that are by so much better, seed by seed."""
    points = {
        m: {seed: point({"local": 0.5 + gap, "base": 0.5, "hm": 0.5 + gap}) for seed, gap in enumerate(gaps)}
        for m, gaps in {"r": [0.0] * 8, **differences}.items()
    }
    return compare("", points, "r")


def test_p_is_corrected_over_all_values_and_methods() -> None:
    """By hand: eight of one sign p = 2/256; the smallest of eight against the rest 4/256; no difference 1."""
    up, mixed, none = [0.1] * 8, [0.2] * 7 + [-0.1], [0.0] * 8
    swept = Sweep("made", "k", [1, 2], [made({"a": up, "b": none}), made({"a": mixed, "b": up})])
    expected = {("1", "a"): 4 * 2 / 256, ("2", "b"): 4 * 2 / 256, ("2", "a"): 2 * 4 / 256, ("1", "b"): 1.0}
    assert swept.corrected("hm") == pytest.approx(expected)
    tables = sweeping.sweep_tables(swept)
    assert tables["HM less that of r, in brackets p; corrected"][1] == [
        ["a", "+10.0 ± 0.0 (0.0078; 0.031)", "+16.2 ± 8.9 (0.016; 0.031)"],
        ["b", "+0.0 ± 0.0 (1; 1)", "+10.0 ± 0.0 (0.0078; 0.031)"],
    ]
    assert (
        sweeping.sweep_tables(swept, short=True)["HM less that of r, in brackets p"][1][0][1] == "+10.0 ± 0.0 (0.0078)"
    )
    assert any("0.0078, and corrected for the 4 differences of a table together (Holm) not below 0.031" in note
               for note in sweeping.reading_notes(swept))  # fmt: skip


def test_said_again_with_more_values_it_plays_only_the_new(swept: Sweep, folder: Path) -> None:
    stamps = {file: file.stat().st_mtime_ns for file in folder.rglob("result.json")}
    more = sweep(plan(presets.settings("quickstart"), SMALL, "data.shots=1,2,3"), folder, against="coop")
    assert more.values == [1, 2, 3]
    assert [one.rows for one in more.comparisons[:2]] == [one.rows for one in swept.comparisons]
    assert {file: file.stat().st_mtime_ns for file in stamps} == stamps
    assert len(list(folder.rglob("result.json"))) == 3 * len(stamps) // 2


def test_a_value_that_fails_costs_no_other_and_is_told(tmp_path: Path) -> None:
    """Four clients cannot have one class each of three."""
    words = [word for word in SMALL if "clients" not in word] + ["data.base_classes=3", "methods=zero_shot", "seeds=0"]
    out = tmp_path / "out"
    done = CliRunner().invoke(
        app, ["sweep", "quickstart", *words, "--over", "partition.clients=3,4,1", "--out", str(out)]
    )
    assert done.exit_code == 1
    for text in (done.output, (out / "sweep.md").read_text()):
        assert "partition.clients=4 failed: 3 base classes cannot be dealt" in " ".join(text.split())
    lines = list(csv.DictReader((out / "sweep.csv").open()))
    assert [line["partition.clients"] for line in lines] == ["3", "1"]
    with pytest.raises(FedvlmError, match=r"partition\.clients=4: 3 base(.|\n)*clients=5: 3 base"):
        sweep(plan(presets.settings("quickstart"), words, "partition.clients=4,5"), tmp_path / "none")


def test_a_method_that_diverges_at_one_value_has_words_there_and_numbers_elsewhere(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = CliRunner().invoke(
        app, ["sweep", "quickstart", *SMALL, "data.shots=1", "--over", "method.coop.lr=0.1,1e30", "--out", str(out)]
    )
    assert done.exit_code == 1
    text = (out / "sweep.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| coop |")]
    assert len(rows) == 7  # five metrics, two differences from zero-shot
    for row in rows[:5]:
        one, other = (cell.strip() for cell in row.strip("|").split("|")[1:])
        assert re.fullmatch(r"[\d.]+ ± [\d.]+", one)
        assert other == "diverged (2 of 2 seeds)"
    assert all(row.rstrip("| ").endswith("-") for row in rows[5:])
    assert "method.coop.lr=1e+30, coop: diverged (2 of 2 seeds); no mean over the other seeds." in text
    assert "corrected for the 3 differences of a table together" in text
    assert (out / "sweep.png").stat().st_size > 5_000


def test_a_folder_holds_one_sweep_and_overwrite_plays_again(tmp_path: Path) -> None:
    words = [*SMALL, "methods=zero_shot", "seeds=0"]
    sweep(plan(presets.settings("quickstart"), words, OVER), tmp_path)
    before = (tmp_path / "sweep.json").read_bytes()
    with pytest.raises(FedvlmError, match=r"holds a sweep of 'data\.shots'"):
        sweep(plan(presets.settings("quickstart"), words, "participation=0.5,1.0"), tmp_path)
    stamp = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("result.json")}
    sweep(plan(presets.settings("quickstart"), words, OVER), tmp_path, options=Options(overwrite=True))
    assert all(file.stat().st_mtime_ns > then for file, then in stamp.items())
    with pytest.raises(FedvlmError, match="did you mean 'zero_shot'"):
        sweep(plan(presets.settings("quickstart"), words, "data.shots=1,2,3"), tmp_path, against="zero_shit")
    assert (tmp_path / "sweep.json").read_bytes() == before


def test_values_with_and_without_novel_classes(tmp_path: Path) -> None:
    words = [*(word for word in SMALL if "novel" not in word), "methods=zero_shot", "seeds=0"]
    swept = sweep(plan(presets.settings("quickstart"), words, "data.novel_classes=0,4"), tmp_path)
    assert sweeping.sweep_tables(swept)["Novel"][1][0][1] == "-"
    assert any(note.startswith("HM is of those") for note in sweeping.reading_notes(swept))
    for panel in ("Local", "Base", "Novel", "HM"):
        assert f">{panel}</text>" in (tmp_path / "sweep.svg").read_text()
    assert "One seed: no intervals, no tests." in sweeping.reading_notes(swept)


def test_a_sweep_is_a_plain_preset_at_one_value(tmp_path: Path) -> None:
    words = ["partition.alpha=0.3", "data.shots=2", "--out", str(tmp_path / "p.png")]
    done = CliRunner().invoke(app, ["partition", "ablation_labels", *words])
    assert done.exit_code == 0, done.output
    with pytest.raises(FedvlmError, match=r"\[sweep\] over data.shots: run them with fedvlm sweep, or set it"):
        experiment.parse(overrides.apply_words(presets.settings("ablation_shots"), ["rounds=2"]))


def test_the_command_line(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text('like = "ablation_shots"\n[sweep]\nevaluation.every = [1, 2]\n')
    words = [*SMALL, "methods=zero_shot", "seeds=0", "--out", str(tmp_path / "out"), "--quiet"]
    done = CliRunner().invoke(app, ["sweep", str(own), *words])
    assert done.exit_code == 0, done.output
    assert "evaluation.every" in done.output
    assert (tmp_path / "out" / "evaluation.every=2" / "compare.md").exists()


def test_a_method_s_setting_and_names_with_slashes(tmp_path: Path) -> None:
    styles = plan(presets.settings("quickstart"), SMALL, "data.styles=sketch,fog").experiments
    assert [one.resolved()["data"]["styles"] for one in styles] == [["sketch"], ["fog"]]
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
    "one value": ({}, [], "rounds=1", "two or more values"),
    "twice": ({}, [], "rounds=1,2,1", "1 and 1 make no difference"),
    "the same": ({}, [], "participation=1,1.0", "1 and 1.0 make no difference"),
    "not theirs": ({}, ["methods=zero_shot,coop"], "method.pfedmma.rank=1,2", "no difference to zero_shot, coop"),
    "no list": ({"sweep": {"rounds": 3}}, [], "", "one setting"),
    "seeds": ({}, [], "seeds=1,2", "same for all values"),
    "methods": ({}, [], "methods=coop,pfedmma", "same for all values"),
    "besides": ({}, ["rounds=3"], "rounds=1,2", "both swept and set"),
    "inside": ({"sweep": {"rounds": [1, 2]}}, ["sweep.rounds=3"], "", "--over KEY="),
    "faults": ({}, [], "faults=stale_text,shared_optimiser", "fedvlm audit"),
    "with faults": ({}, ["faults=stale_text"], "rounds=1,2", "fedvlm audit"),
    "unknown": ({}, [], "data.shot=1,2", "did you mean 'shots'"),
    "a wrong kind": ({}, [], "data.shots=1,x", "expected an integer"),
    "of a method": ({}, [], "method.pfedmma.rnk=1,2", "did you mean 'rank'"),
    "no values": ({}, [], "rounds", "not of the form"),
    "a template": ({}, [], "evaluation.template=a {},a {x}", "'a {x}' is no template"),
    "a suffix": ({}, [], "method.maple.suffix=of {}.,of", "'of' is no template"),
    "one folder": ({}, [], "evaluation.template=a {}/,a {}-", "same folder"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    more, words, over, message = REFUSED[case]
    with pytest.raises(FedvlmError, match=message):
        plan(presets.settings("quickstart") | more, words, over)


def test_an_earlier_name_of_a_setting_is_told_in_a_sweep_too() -> None:
    with pytest.warns(FutureWarning, match=r"'partition\.late' is called 'partition\.newcomers' now"):
        plan(presets.settings("quickstart"), [*SMALL, "partition.late=1"], OVER)
