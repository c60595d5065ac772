"""Our numbers: means over seeds, runs and domains by hand; and whole runs on real photographs with a small CLIP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import called
import pytest
from called import Done

from fedvlm import experiment, plain, presets
from fedvlm.errors import FedvlmError
from fedvlm.published import plan, report, reproduce
from fedvlm.published.plan import Ask, Job
from fedvlm.published.reproduce import Made, Ours

QUICK = ["rounds=1", "data.shots=1", "data.test_per_class=1", "method.all.epochs=1", "views=none"]


def point(domains: dict[str, str] | None = None, **metrics: Any) -> dict[str, Any]:
    """A result whose reported state is after training; the other state holds something else."""
    clients = metrics.pop("clients", {})
    return {
        "state": "after_training",
        "final": {"after_training": metrics, "after_aggregation": dict.fromkeys(metrics, 0.0)},
        "clients": {"after_training": clients},
        "domains": domains or {},
    }


def test_a_mean_over_runs_then_over_seeds() -> None:
    chosen = plan.plan("pfedmma-main", Ask(offline=True))
    runs = list(chosen.table.runs)
    made = Made()
    for place, run in enumerate(runs):
        made.points[run, "pfedmma"] = {0: point(hm=0.1 * place), 1: point(hm=0.1 * place + 0.02)}
    found = reproduce.ours(chosen, made, "pfedmma", "hm")
    assert isinstance(found, Ours)
    # 0.1 * (0 + ... + 6) / 7 = 0.3, and 0.32 with the second seed
    assert found.value.mean == pytest.approx(0.31)
    assert found.value.std == pytest.approx(0.02 / 2**0.5)
    assert found.seeds == 2
    assert reproduce.ours(chosen, made, "pfedmma", "novel") == "the run has no accuracy 'novel'"
    assert reproduce.ours(chosen, made, "promptfl", "hm") is None
    made.failures["dtd", "pfedmma"] = "diverged"
    assert reproduce.ours(chosen, made, "pfedmma", "hm") == "diverged"


def test_a_domain_is_the_mean_over_its_clients() -> None:
    chosen = plan.plan("pfedmoap-4", Ask(offline=True))
    domains = {"a": "dslr", "b": "dslr", "c": "amazon"}
    clients = {"a": {"local": 0.2}, "b": {"local": 0.4}, "c": {"local": 0.9}}
    made = Made({("office", "coop"): {0: point(domains, local=0.5, clients=clients)}})
    means = {column: reproduce.ours(chosen, made, "coop", column) for column in ("dslr", "amazon", "avg", "webcam")}
    assert [round(means[c].value.mean, 9) for c in ("dslr", "amazon", "avg")] == [0.3, 0.9, 0.5]
    assert means["webcam"] == "the run has no client of domain 'webcam' with accuracy 'local'"


def test_other_weights_give_no_difference_and_say_so_on_every_line(tmp_path: Path) -> None:
    (tmp_path / "dtd").mkdir()
    (tmp_path / "dtd" / "split_zhou_X.json").write_text("{}")
    ask = Ask(tmp_path, "embedded", ["coop"], ["dtd"])
    chosen = plan.plan("pfedmoap-1", ask)
    made = Made({("dtd", "coop"): {0: point(local=0.5)}})
    found = report.report(chosen, made)
    assert found.lines[0].mean == 50
    assert found.lines[0].difference is None
    page = report.as_markdown(found)
    assert page.count("other weights: not comparable") == 2
    assert "embedded, sha256 " in page


def test_published_weights_give_a_difference() -> None:
    chosen = plan.plan("pfedmoap-1", Ask(rows=["coop", "promptfl_prox"], columns=["dtd"], offline=True))
    made = Made({("dtd", row): {0: point(local=0.5), 1: point(local=0.51)} for row in ("coop", "promptfl_prox")})
    coop, prox = report.report(chosen, made).lines
    # 50.5 against 44.23
    assert coop.difference == pytest.approx(6.27)
    assert (coop.void, prox.void) == (False, True)
    assert "50.50±0.71 (2 seeds) | +6.27 |" in report.as_markdown(report.report(chosen, made))


def test_one_failing_row_does_not_take_the_others_along(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run(job: Job, out: Path, made: Made, quiet: bool) -> None:
        if "bad" in job.rows:
            raise FedvlmError("client 3 diverged")
        for row in job.rows:
            made.points[job.run, row] = {0: point(local=1.0)}

    monkeypatch.setattr(reproduce, "_run", run)
    made = Made()
    reproduce._play(Job("dtd", "few_shot", (), {"a": (), "bad": (), "b": ()}, ()), tmp_path, made, True)
    assert set(made.points) == {("dtd", "a"), ("dtd", "b")}
    assert made.failures == {("dtd", "bad"): "client 3 diverged"}
    assert [list(job.rows) for job in made.jobs] == [["a"], ["bad"], ["b"]]


def test_a_method_that_diverged_in_a_run_is_a_failure_and_the_others_have_numbers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = ["data.shots=1", "data.val_per_class=1", "data.test_per_class=1", "data.base_classes=4", "rounds=1",
             "data.novel_classes=2", "partition.clients=2", "seeds=0", "method.coop.lr=1e30"]  # fmt: skip
    chosen = experiment.parse(plain.override(presets.settings("quickstart"), [*words, "methods=zero_shot,coop"]))
    monkeypatch.setattr(Job, "experiment", lambda job: chosen)
    made = Made()
    reproduce._play(Job("dtd", "quickstart", (), {"zero_shot": (), "coop": ()}, ()), tmp_path, made, True)
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
