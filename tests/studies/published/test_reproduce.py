"""Our numbers: means over seeds, runs and domains by hand; and whole runs on real photographs with a small CLIP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import called
import pytest
from called import Done
from fake_results import point

from fedvlm import experiment, overrides, presets
from fedvlm.experiment import Experiment
from fedvlm.runs.result import PointResult
from fedvlm.studies.published import plan, report, reproduce
from fedvlm.studies.published.plan import Job, Request
from fedvlm.studies.published.reproduce import JobResults, OurNumber
from fedvlm.studies.study import Options

QUICK = ["rounds=1", "data.shots=1", "data.test_per_class=1", "method.all.epochs=1", "views=none"]


def made_point(**metrics: Any) -> PointResult:
    """A result whose reported state is after training; the other state holds something else."""
    clients = metrics.pop("clients", {})
    final = {"after_training": metrics, "after_aggregation": dict.fromkeys(metrics, 0.0)}
    return point({}, state="after_training", final=final, clients={"after_training": clients})


def test_a_mean_over_runs_then_over_seeds() -> None:
    chosen = plan.plan("pfedmma-main", Request(offline=True))
    runs = list(chosen.table.runs)
    made = JobResults()
    for place, run in enumerate(runs):
        made.points[run, "pfedmma"] = {0: made_point(hm=0.1 * place), 1: made_point(hm=0.1 * place + 0.02)}
    found = reproduce.our_number(chosen, made, "pfedmma", "hm")
    assert isinstance(found, OurNumber)
    # 0.1 * (0 + ... + 6) / 7 = 0.3, and 0.32 with the second seed
    assert found.value.mean == pytest.approx(0.31)
    assert found.value.std == pytest.approx(0.02 / 2**0.5)
    assert found.seeds == 2
    assert reproduce.our_number(chosen, made, "pfedmma", "novel") == "the run has no accuracy 'novel'"
    assert reproduce.our_number(chosen, made, "promptfl", "hm") is None
    made.failures["dtd", "pfedmma"] = "diverged"
    assert reproduce.our_number(chosen, made, "pfedmma", "hm") == "diverged"


def test_a_domain_is_the_mean_over_its_clients() -> None:
    chosen = plan.plan("pfedmoap-4", Request(offline=True))
    domains = {"a": "dslr", "b": "dslr", "c": "amazon"}
    clients = {"a": {"local": 0.2}, "b": {"local": 0.4}, "c": {"local": 0.9}}
    key = "office", "coop"
    made = JobResults({key: {0: made_point(local=0.5, clients=clients)}}, {key: {0: domains}})
    means = {
        column: reproduce.our_number(chosen, made, "coop", column) for column in ("dslr", "amazon", "avg", "webcam")
    }
    assert [round(means[c].value.mean, 9) for c in ("dslr", "amazon", "avg")] == [0.3, 0.9, 0.5]
    assert means["webcam"] == "the run has no client of domain 'webcam' with accuracy 'local'"


def test_other_weights_give_no_difference_and_say_so_on_every_line(tmp_path: Path) -> None:
    (tmp_path / "dtd").mkdir()
    (tmp_path / "dtd" / "split_zhou_X.json").write_text("{}")
    ask = Request(tmp_path, "embedded", ["coop"], ["dtd"])
    chosen = plan.plan("pfedmoap-1", ask)
    made = JobResults({("dtd", "coop"): {0: made_point(local=0.5)}})
    found = report.build_report(chosen, made)
    assert found.lines[0].mean == 50
    assert found.lines[0].difference is None
    page = report.as_markdown(found)
    assert page.count("other weights: not comparable") == 2
    assert "embedded, sha256 " in page


def test_published_weights_give_a_difference() -> None:
    chosen = plan.plan("pfedmoap-1", Request(rows=["coop", "promptfl_prox"], columns=["dtd"], offline=True))
    made = JobResults(
        {("dtd", row): {0: made_point(local=0.5), 1: made_point(local=0.51)} for row in ("coop", "promptfl_prox")}
    )
    coop, prox = report.build_report(chosen, made).lines
    # 50.5 against 44.23
    assert coop.difference == pytest.approx(6.27)
    assert (coop.void, prox.void) == (False, True)
    assert "50.50±0.71 (2 seeds) | +6.27 |" in report.as_markdown(report.build_report(chosen, made))


def chosen(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """All jobs are a small run of drawn scenes, with the methods that their rows name."""
    usual = ["data.shots=1", "data.val_per_class=1", "data.test_per_class=1", "data.base_classes=4", "rounds=1",
             "data.novel_classes=2", "partition.clients=2", "seeds=0"]  # fmt: skip

    def experiment_of(job: Job) -> Experiment:
        return experiment.parse(
            overrides.apply_words(presets.settings("quickstart"), [*usual, f"methods={','.join(job.rows)}", *words])
        )

    monkeypatch.setattr(Job, "experiment", experiment_of)


def test_one_failing_row_does_not_take_the_others_along(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Blocks that this CLIP has not: the whole run is refused, and each row is run by itself."""
    chosen(monkeypatch, "method.pfedmma.last_block=12")
    made = JobResults()
    jobs = reproduce._run(Job("dtd", "quickstart", (), {"coop": (), "pfedmma": (), "zero_shot": ()}, ()), tmp_path, made,
                          Options())  # fmt: skip
    assert set(made.points) == {("dtd", "coop"), ("dtd", "zero_shot")}
    assert list(made.failures) == [("dtd", "pfedmma")]
    assert "block" in made.failures["dtd", "pfedmma"]
    assert [list(job.rows) for job in jobs] == [["coop"], ["pfedmma"], ["zero_shot"]]
    (folder,) = tmp_path.iterdir()
    assert "| pfedmma | failed (1 of 1 seed) |" in (folder / "table.md").read_text()
    assert "| coop | " in (folder / "table.md").read_text()


def test_a_method_that_diverged_in_a_run_is_a_failure_and_the_others_have_numbers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chosen(monkeypatch, "method.coop.lr=1e30")
    made = JobResults()
    job = Job("dtd", "quickstart", (), {"zero_shot": (), "coop": ()}, ())
    assert reproduce._run(job, tmp_path, made, Options()) == [job]
    assert set(made.points) == {("dtd", "zero_shot")}
    assert "seed 0 coop: round 1, client 0: coop" in made.failures["dtd", "coop"]


def call(*words: str) -> Done:
    return called.call("reproduce", *words)


def test_the_list_of_tables(tmp_path: Path) -> None:
    done = call("--data", str(tmp_path))
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("pfedmoap-1 "))
    assert line.split()[-4:] == ["paper", "55", "5", "0"]


def test_a_dry_run_without_weights_and_data_says_what_to_get(tmp_path: Path) -> None:
    done = call("pfedmma-main", "--dry-run", "--data", str(tmp_path))
    assert done.returncode == 1
    assert "hf download openai/clip-vit-base-patch16" in done.stdout
    assert str(tmp_path / "food101") in done.stdout
    assert "# data or weights are missing" in done.stdout
    assert not list(tmp_path.glob("runs"))


def test_missing_weights_are_told_where_the_data_is_there(shared: Path, tmp_path: Path) -> None:
    done = call("pfedmoap-1", "--columns", "caltech", "--rows", "zero_shot", "--data", str(shared / "data"),
                "--out", str(tmp_path / "r"))  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "hf download timm/resnet50_clip.openai" in done.stdout
    stored = json.loads((tmp_path / "r" / "reproduce.json").read_text())
    assert stored["cells"][0]["missing"] == ["weights"]
    assert stored["cells"][0]["ours"] is None
    assert not stored["complete"]


def test_a_local_folder_is_no_published_model(shared: Path, makes: dict[str, Path]) -> None:
    name = str(makes["vit"])
    done = call("pfedmoap-1", "--dry-run", "--model", name, "--columns", "caltech", "--rows", "zero_shot,promptfl",
                "--data", str(shared / "data"))  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"other weights: not comparable ({name}, sha256 " in done.stdout
    assert "2 of 2 cells can be made here" in done.stdout


@pytest.mark.long
def test_a_whole_run_on_real_photographs(shared: Path, tmp_path: Path) -> None:
    words = ["pfedmoap-1", *QUICK, "--columns", "caltech", "--rows", "zero_shot,coop,pfedmoap_0", "--model", "embedded",
             "--seeds", "0,1", "--data", str(shared / "data"), "--out", str(tmp_path)]  # fmt: skip
    done = call(*words)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "other weights: not comparable (embedded, sha256 " in done.stdout
    stored = json.loads((tmp_path / "reproduce.json").read_text())
    assert stored["complete"]
    assert stored["weights"]["published"] is False
    for cell in stored["cells"]:
        assert cell["ours"]["seeds"] == 2
        assert cell["difference"] is None
        assert cell["caveats"] == ["other weights: not comparable", "other settings"]
    ledgers = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("ledger.jsonl")}
    assert len(ledgers) == 6
    assert call(*words).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("ledger.jsonl")} == ledgers, "trained again"


def test_images_are_counted_without_weights(shared: Path, tmp_path: Path) -> None:
    done = call("pfedmoap-5", "--columns", "caltech", "--rows", "test", "--data", str(shared / "data"),
                "--out", str(tmp_path))  # fmt: skip
    assert done.returncode == 0, done.stderr
    cell = json.loads((tmp_path / "reproduce.json").read_text())["cells"][0]
    assert (cell["ours"]["mean"], cell["difference"], cell["caveats"]) == (2465, 0, [])


@pytest.mark.parametrize(
    ("words", "message"),
    [(["pfedmoap-0"], "did you mean"), (["pfedmoap-1", "--rows", "cop"], "did you mean 'coop'"),
     (["pfedmoap-1", "--seeds", "one"], "whole numbers"), (["pfedmoap-1", "seeds=1"], "use --seeds")],
)  # fmt: skip
def test_a_mistake_is_one_message(words: list[str], message: str) -> None:
    done = call(*words, "--dry-run")
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
