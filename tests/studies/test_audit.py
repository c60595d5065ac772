"""Faults in runs: refused where they do not belong, named everywhere; and the command that compares them."""

from __future__ import annotations

import csv
import hashlib
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from called import call
from rich.console import Console

import fedvlm
from fedvlm import experiment, faults, methods, overrides, presets
from fedvlm.errors import FedvlmError
from fedvlm.experiment import Experiment
from fedvlm.federation import simulation
from fedvlm.reports.table import as_rich
from fedvlm.reports.text import as_rich as as_rich_comparison
from fedvlm.runs.folder import Point
from fedvlm.studies.audit.plan import variants
from fedvlm.studies.audit.run import run_variants
from fedvlm.studies.compare import compare

SMALL = ["data.shots=2", "data.val_per_class=1", "data.test_per_class=2", "data.base_classes=6", "data.novel_classes=4",
         "partition.clients=3", "rounds=3", "evaluation.every=1"]  # fmt: skip


def test_no_faults_are_no_part_of_a_digest() -> None:
    plain = Experiment()
    settings = {key: value for key, value in plain.resolved().items() if key not in ("name", "faults")}
    settings["compute"] = {key: settings["compute"][key] for key in ("dtype", "kept_as")}
    del settings["partition"][
        "late"
    ]  # nor are late clients and other settings of later versions, where they are unused
    del settings["evaluation"]["metrics"]
    for later in ("novel_shapes", "homonyms", "rarer"):
        del settings["data"][later]
    assert plain.digest() == hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    assert Experiment(faults=["stale_text"]).digest() != plain.digest()
    assert Experiment(faults=["stale_text"]).digest() != Experiment(faults=["all"]).digest()


def test_every_preset_has_no_fault() -> None:
    for name in presets.names():
        assert "faults" not in presets.settings(name)


MISTAKES = [
    ("faults=stale_txt", r"unknown fault 'stale_txt' \(did you mean 'stale_text'\?\)"),
    ("faults=detached_penalty", "fault 'detached_penalty' is not one of pfedmma's released code"),
    ("faults=stale_text,leftover_experts", "faults of pfedmma: detached_labels, permuted_names, shared_optimiser"),
]


@pytest.mark.parametrize(("word", "message"), MISTAKES)
def test_what_does_not_belong_is_refused(word: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(FedvlmError, match=message):
        fedvlm.run("quickstart", *SMALL, "methods=pfedmma", word, out=tmp_path / "run")
    assert not (tmp_path / "run" / "experiment.json").exists()


def test_settings_that_leave_nothing_to_a_fault() -> None:
    def names(which: str, **settings: Any) -> set[str]:
        made = Experiment.model_validate(settings)
        return {fault.name for fault in faults.applicable_faults(methods.build(which, made.method), made)}

    assert "leftover_experts" not in names("pfedmoap")
    assert "leftover_experts" in names("pfedmoap", participation=0.5)
    assert "missing_client" not in names("coop", partition={"clients": 5})
    assert "missing_client" in names("coop", partition={"clients": 6})
    assert "restarted_local" not in names("coop", rounds=1)
    assert "test_selection" not in names("promptfl", rounds=2, evaluation={"every": 2})
    assert "shared_optimiser" not in names("promptfl", method={"promptfl": {"momentum": 0.0}})
    assert names("zero_shot") == {"permuted_names", "detached_labels"}


def test_every_fault_is_of_methods_that_exist() -> None:
    for fault in faults.all_faults().values():
        assert set(fault.methods) <= set(methods.known())
        assert fault.title
        assert fault.code
        assert fault.where


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("wrong") / "run"
    return fedvlm.run("quickstart", *SMALL, "methods=pfedmma,local_mma", "faults=stale_text,shared_optimiser", out=out)


NAME = "pfedmma [shared_optimiser, stale_text]"


def test_the_faults_are_in_every_output(wrong: Any) -> None:
    folder = wrong.folder
    assert {row.method for row in wrong.rows} == {NAME, NAME.replace("pfedmma", "local_mma")}
    assert set(wrong.points) == {NAME, NAME.replace("pfedmma", "local_mma")}
    assert {path.name for path in (folder / "seed-0").iterdir() if path.is_dir()} == set(wrong.points)
    for file in ("table.md", "table.csv", "table.json", "contract.txt", "contract.json"):
        assert NAME in (folder / file).read_text(), file
    assert "WRONG ON PURPOSE" in (folder / "contract.txt").read_text()
    assert json.loads((folder / "experiment.json").read_text())["experiment"]["faults"] == [
        "stale_text",
        "shared_optimiser",
    ]
    point = json.loads((folder / "seed-0" / NAME / "result.json").read_text())
    assert point["faults"] == ["shared_optimiser", "stale_text"]
    with (folder / "table.csv").open() as file:
        assert next(csv.DictReader(file))["method"] == NAME


def test_the_faults_are_on_the_terminal(wrong: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Square brackets are markup to rich: unescaped the name would vanish."""
    Console(width=160).print(as_rich(wrong.rows, "title"))
    assert NAME in capsys.readouterr().out


def test_a_comparison_of_methods_with_faults_names_them(tmp_path: Path) -> None:
    words = [*SMALL, "methods=zero_shot,local_mma", "rounds=2", "faults=all"]
    chosen = experiment.parse(overrides.apply_words(presets.settings("quickstart"), words))
    found = compare(chosen, tmp_path / "run")
    assert found.against == "zero_shot [all faults]"
    for ending in ("md", "csv", "json", "tex"):
        name = "local\\_mma [all faults]" if ending == "tex" else "local_mma [all faults]"
        assert name in (tmp_path / "run" / f"compare.{ending}").read_text(), ending
    console = Console(width=160)
    with console.capture() as shown:
        console.print(*as_rich_comparison(found))
    assert "local_mma [all faults]" in shown.get()


def test_late_clients_and_visits_of_their_own(tmp_path: Path) -> None:
    """Measured on arrival, perhaps before anybody else of that round, and trained after the last round."""
    words = [*SMALL, "data.base_classes=8", "partition.clients=4", "partition.newcomers=1", "participation=0.67", "evaluation.every=9", "faults=all",
             "methods=pfedmma,pfedmoap,coop", "method.all.fine_tune=1"]  # fmt: skip
    found = fedvlm.run("quickstart", *words, out=tmp_path / "run")
    for name in ("pfedmma [all faults]", "pfedmoap [all faults]", "coop [all faults]"):
        assert set(found.points[name][0].newcomers) == {"on_arrival", "after_tuning"}
    assert {row.method for row in found.newcomers} == set(found.points)


def test_all_is_said_as_all() -> None:
    chosen = experiment.parse(overrides.apply_words(presets.settings("quickstart"), ["faults=all"]))
    made = {name: methods.build(name, chosen.method) for name in ("pfedmoap", "pfedprompt", "zero_shot")}
    assert faults.method_label("pfedmoap", made["pfedmoap"], chosen) == "pfedmoap [all faults]"
    assert (
        faults.method_label("zero_shot", made["zero_shot"], chosen.model_copy(update={"faults": ["all_but_data"]}))
        == "zero_shot"
    )
    some = faults.select_faults(made["pfedmoap"], chosen.model_copy(update={"faults": ["all_but_data"]}))
    assert not any(fault.data for fault in some)
    assert {fault.name for fault in faults.select_faults(made["pfedmoap"], chosen)} - {fault.name for fault in some} == {
        "permuted_names", "detached_labels"}  # fmt: skip


class KilledError(BaseException):
    """The process dies: nothing may see it as an error of one method."""


def test_a_killed_point_with_faults_starts_again_and_ends_the_same(
    wrong: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, lines = Point.log, []

    def dying(self: Point, record: Any) -> int:
        lines.append(record.round)
        if len(lines) == 5:
            raise KilledError
        return log(self, record)

    monkeypatch.setattr(Point, "log", dying)
    words = [*SMALL, "methods=pfedmma,local_mma", "faults=stale_text,shared_optimiser"]
    with pytest.raises(KilledError):
        fedvlm.run("quickstart", *words, out=tmp_path / "run")
    again = fedvlm.run("quickstart", *words, out=tmp_path / "run", resume=True)
    assert lines == [1, 2, 3, 1, 2, 1, 2, 3]
    for name, by_seed in again.points.items():
        assert by_seed[0].digest == wrong.points[name][0].digest


def test_test_selection_reports_the_best_round(tmp_path: Path) -> None:
    words = [*SMALL, "methods=fedmma", "rounds=4", "method.all.lr=0.3", "compute.clients_per_step=1"]
    right = fedvlm.run("quickstart", *words, out=tmp_path / "right").points["fedmma"][0]
    wrong = fedvlm.run("quickstart", *words, "faults=test_selection", out=tmp_path / "wrong").points[
        "fedmma [test_selection]"
    ][0]
    assert wrong.curve == right.curve
    curve = dict(right.curve["local"])
    best = min(round_ for round_, value in curve.items() if value == max(curve.values()))
    assert wrong.round == best
    assert all(wrong.reported[m] == dict(right.curve[m])[best] for m in ("local", "base", "novel"))
    assert right.reported["local"] == curve[4]


AUDIT = [*SMALL, "data.styles=sketch", "evaluation.general=all", "methods=pfedmma,zero_shot", "seeds=0,1"]


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An audit that was stopped in the middle of a point and repeated."""
    out, plays = tmp_path_factory.mktemp("audit") / "a", []
    with pytest.MonkeyPatch.context() as patch:
        run_rounds = simulation.run_rounds

        def counted(task: Any, state: Any) -> Iterator[Any]:
            plays.append((task.spec.method.name, task.spec.seed, task.faults))
            if len(plays) == 12:
                raise KilledError
            yield from run_rounds(task, state)

        patch.setattr(simulation, "run_rounds", counted)
        with pytest.raises(KilledError):
            call("audit", "quickstart", *AUDIT, "--out", str(out), "--quiet")
        assert call("audit", "quickstart", *AUDIT, "--out", str(out), "--quiet").returncode == 0
        (out / "plays.json").write_text(json.dumps(plays))
    return out


def test_no_finished_point_is_run_again(audited: Path) -> None:
    plays = [json.dumps(one) for one in json.loads((audited / "plays.json").read_text())]
    twice = {one for one in plays if plays.count(one) > 1}
    assert twice == {plays[11]}


EXPECTED = {
    "pfedmma": ["right", "detached_labels", "permuted_names", "shared_optimiser", "stale_text", "test_selection",
                "all_but_data", "all"],
    "zero_shot": ["right", "detached_labels", "permuted_names", "all"],
}  # fmt: skip


def test_every_method_against_its_own_faults(audited: Path) -> None:
    rows = json.loads((audited / "audit.json").read_text())["rows"]
    assert {m: [row["fault"] for row in rows if row["method"] == m] for m in EXPECTED} == EXPECTED
    whole = next(row for row in rows if (row["method"], row["fault"]) == ("pfedmma", "all"))
    assert whole["faults"] == [name for name in EXPECTED["pfedmma"] if name in faults.all_faults()]
    assert whole["label"] == "pfedmma [all faults]"


def test_differences_are_those_of_the_run_folders(audited: Path) -> None:
    """Read from the folders' result.json; Student's t with one degree of freedom is 12.706."""
    rows = json.loads((audited / "audit.json").read_text())["rows"]

    def found(fault: str, label: str, metric: str) -> list[float]:
        (folder,) = audited.glob(f"{fault}-*")
        points = [json.loads((folder / f"seed-{seed}" / label / "result.json").read_text()) for seed in (0, 1)]
        return [point["final"][point["state"]][metric] for point in points]

    for row in rows:
        for metric, cell in row["cells"].items():
            values = found(row["fault"], row["label"], metric)
            assert cell["value"]["mean"] == pytest.approx(statistics.fmean(values))
            if row["fault"] == "right":
                assert cell["difference"] is None
                continue
            gaps = [a - b for a, b in zip(values, found("right", row["method"], metric), strict=True)]
            assert cell["difference"]["mean"] == pytest.approx(statistics.fmean(gaps))
            assert cell["difference"]["half"] == pytest.approx(
                12.7062 * statistics.stdev(gaps) / 2**0.5, rel=1e-4, abs=1e-12
            )
            assert cell["p"] in (0.5, 1.0)


def test_the_right_run_of_an_audit_is_the_right_run(audited: Path, tmp_path: Path) -> None:
    right = fedvlm.run("quickstart", *AUDIT, "compute.clients_per_step=1", out=tmp_path / "run")
    (folder,) = audited.glob("right-*")
    for method in EXPECTED:
        for seed in (0, 1):
            saved = json.loads((folder / f"seed-{seed}" / method / "result.json").read_text())
            assert saved["digest"] == right.points[method][seed].digest
            assert "faults" not in saved


def test_the_tables_name_every_fault_and_its_code(audited: Path) -> None:
    markdown = (audited / "audit.md").read_text()
    for fault in EXPECTED["pfedmma"][1:-2]:
        assert f"| {fault} |" in markdown
        assert faults.all_faults()[fault].code in markdown
    tables = [block.splitlines() for block in markdown.split("\n\n") if block.startswith("| fault")]
    assert len(tables) == 2
    assert len({line.count(" | ") for table in tables for line in table if not line.startswith("|--")}) == 1
    assert "smallest possible p with 2 seeds: 0.500" in markdown
    with (audited / "audit.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows if row["fault"] == "stale_text"] == ["pfedmma [stale_text]"]


def test_an_audit_chooses_its_faults_itself() -> None:
    with pytest.raises(FedvlmError, match="an audit chooses the faults itself"):
        variants(Experiment(faults=["all"]))


@pytest.mark.long
def test_a_fault_that_fails_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    """Two domains, two clients, which the settings do not say: there is no client 5 to be dropped."""
    words = [*SMALL, "partition.kind=domain", "partition.one_domain_each=false", "data.styles=sketch,neon", "methods=coop",
             "rounds=1"]  # fmt: skip
    done = call("audit", "quickstart", *words, "--out", str(tmp_path / "a"), "--quiet")
    assert done.returncode == 1
    assert "coop [missing_client] FAILED: fault 'missing_client' needs 6 clients, here are 2" in done.stdout
    rows = json.loads((tmp_path / "a" / "audit.json").read_text())["rows"]
    assert {row["fault"] for row in rows if row["failed"]} == {"missing_client"}
    whole = next(row for row in rows if row["fault"] == "all")
    assert "missing_client" not in whole["faults"]
    assert "half_precision" in whole["faults"]


def test_what_diverges_with_a_fault_is_told_in_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run with the fault gives results of one method, and words of the other."""
    from fedvlm.errors import DivergenceError
    from fedvlm.runs import runner
    from fedvlm.studies.study import Options

    played = runner._run_point

    def unlucky(run: Any, scene: Any, name: str, point: Any) -> dict[str, Any]:
        if name == "coop [half_precision]":
            raise DivergenceError("coop: its loss is no longer finite")
        return played(run, scene, name, point)

    monkeypatch.setattr(runner, "_run_point", unlucky)
    words = [*SMALL, "methods=coop,promptfl", "rounds=1", "seeds=0"]
    chosen = experiment.parse(overrides.apply_words(presets.settings("quickstart"), words))
    planned = [each for each in variants(chosen) if each.name in ("right", "half_precision")]
    *_, last = run_variants(planned, tmp_path / "a", Options())
    failed = {(line.method, line.fault): line.failed for line in last}
    assert failed.pop(("coop", "half_precision")) == "seed 0 coop [half_precision]: coop: its loss is no longer finite"
    assert set(failed.values()) == {None}
    assert ("promptfl", "half_precision") in failed


def test_the_list_of_faults() -> None:
    done = call("audit")
    assert done.returncode == 0
    assert all(name in done.stdout for name in faults.all_faults())
