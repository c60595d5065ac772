"""What can be made here: data under several names, weights that are or are not the published ones, jobs."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from fedvlm import experiment, methods, overrides, presets
from fedvlm.errors import FedvlmError
from fedvlm.studies.published import inventory, library, plan, report
from fedvlm.studies.published.plan import Request
from fedvlm.studies.published.reproduce import JobResults

RN50, VIT = "timm/resnet50_clip.openai", "openai/clip-vit-base-patch16"


def coop(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "split_zhou_X.json").write_text("{}")
    return root


@pytest.mark.parametrize("name", ["caltech-101", "caltech101"])
def test_a_data_set_is_found_under_either_name(name: str, tmp_path: Path) -> None:
    found = inventory.find_dataset(library.catalogue().data["caltech"], coop(tmp_path, name))
    assert (found.path, found.missing) == (tmp_path / name, None)


def test_a_folder_without_the_split_file_is_not_the_data_set(tmp_path: Path) -> None:
    (tmp_path / "caltech-101").mkdir()
    found = inventory.find_dataset(library.catalogue().data["caltech"], tmp_path)
    assert found.missing is not None
    for words in ("caltech-101", "caltech101", "split_zhou_*.json", "DATASETS.md"):
        assert words in found.missing


def test_weights_are_published_by_hub_id_or_cache_folder_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "models--openai--clip-vit-base-patch16" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    assert inventory.is_published(VIT, [VIT])
    assert inventory.is_published(str(snapshot), [VIT])
    assert not inventory.is_published(str(snapshot), [RN50])
    assert not inventory.is_published(str(snapshot.parent.parent), [VIT])
    assert not inventory.is_published("embedded", [VIT])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "openai" / "clip-vit-base-patch16").mkdir(parents=True)
    assert not inventory.is_published(VIT, [VIT]), "a local folder of that name is loaded instead"


def test_nothing_there_is_said_in_full(tmp_path: Path) -> None:
    made = plan.plan("pfedmoap-1", Request(tmp_path, offline=True))
    assert len(made.cells) == 55
    assert not made.possible
    said = "\n".join(report.missing(report.build_report(made, JobResults())))
    for words in (f"hf download {RN50}", "--model DIR", str(tmp_path / "caltech101"), "split_zhou_OxfordPets.json"):
        assert words in said
    assert said.startswith("weights")


def test_a_command_is_the_experiment_that_would_run(tmp_path: Path) -> None:
    made = plan.plan(
        "pfedmoap-1", Request(coop(tmp_path, "dtd"), "embedded", seeds=[3, 4], words=["method.all.lr=0.5"])
    )
    jobs = [job for job in made.jobs if job.ready]
    assert {job.run for job in jobs} == {"dtd"}
    assert {row for job in jobs for row in job.rows} == {row for row, column in made.possible}
    for job in jobs:
        program, verb, preset, *words = shlex.split(job.command)
        assert (program, verb, preset) == ("fedvlm", "run", "few_shot")
        typed = experiment.parse(overrides.apply_words(presets.settings(preset), words))
        assert typed.digest() == job.experiment().digest()
        assert typed.seeds == [3, 4]
    main = next(job for job in jobs if "pfedmoap_0" in job.rows)
    chosen = main.experiment()
    usual, zero = (methods.build(name, chosen.method) for name in ("pfedmoap", "pfedmoap_0"))
    assert (usual.config.local_weight, zero.config.local_weight) == (0.5, 0.0)
    assert usual.config.lr == 0.5
    alone = next(job for job in jobs if "coop" in job.rows)
    assert (alone.experiment().rounds, chosen.rounds, list(alone.rows)) == (5, 10, ["coop"])


def test_asked_words_stand_last(tmp_path: Path) -> None:
    made = plan.plan("pfedmoap-1", Request(coop(tmp_path, "dtd"), "embedded", ["coop"], ["dtd"], words=["rounds=2"]))
    assert [job.experiment().rounds for job in made.jobs] == [2]
    assert "other settings: not the published protocol (rounds=2)" in report.heading(made)


def test_settings_that_change_no_result_are_no_other_protocol() -> None:
    words = ["compute.device=cpu", "evaluation.every=2", "compute.dtype=bfloat16", "model.revision=x"]
    assert Request(words=words).changed == ["compute.dtype=bfloat16", "model.revision=x"]


def test_a_mean_over_data_sets_needs_all_of_them(tmp_path: Path) -> None:
    coop(tmp_path, "dtd", "sun397", "oxford_pets", "food101", "ucf101", "oxford_flowers")
    ask = Request(tmp_path, "embedded", ["zero_shot"])
    made = plan.plan("pfedmma-main", ask)
    assert not made.possible
    assert not any(job.ready for job in made.jobs)
    coop(tmp_path, "caltech-101")
    made = plan.plan("pfedmma-main", ask)
    assert len(made.possible) == 4
    assert all(job.ready for job in made.jobs)


def test_columns_are_named_by_themselves_or_by_their_run() -> None:
    made = plan.plan("others-fedmgp-sets", Request(rows=["promptfl"], columns=["dtd", "pets_novel"], offline=True))
    assert [column for _, column in made.cells] == ["dtd_local", "dtd_base", "dtd_novel", "pets_novel"]


def test_unknown_methods_and_presets_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "known", lambda: {})
    made = plan.plan("pfedmoap-1", Request(rows=["coop"], columns=["dtd"], offline=True))
    assert "this fedvlm has no method 'coop'" in report.missing(report.build_report(made, JobResults()))[-1]
    assert not made.jobs
    monkeypatch.setattr(presets, "names", lambda: [])
    made = plan.plan("pfedmoap-5", Request(rows=["train"], columns=["dtd"], offline=True))
    assert "this fedvlm has no preset 'few_shot'" in report.missing(report.build_report(made, JobResults()))[-1]


def test_a_setting_this_version_does_not_know_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    row = library.table("pfedmoap-9").rows["width_32"].model_copy(update={"settings": {"gate_widht": 32}})
    table = library.table("pfedmoap-9").model_copy(update={"rows": {"width_32": row}})
    monkeypatch.setattr(library, "table", lambda name: table)
    made = plan.plan("pfedmoap-9", Request(columns=["dtd"], offline=True))
    kinds = {obstacle.kind for obstacles in made.cells.values() for obstacle in obstacles}
    assert kinds == {"data", "settings"}


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (Request(rows=["cop"]), "no row 'cop' .did you mean 'coop'"),
        (Request(columns=["dtdd"]), "did you mean 'dtd'"),
        (Request(words=["roundz=3"]), "did you mean 'rounds'"),
        (Request(words=["method.pfedmoap.expert=3"]), "did you mean 'experts'"),
        (Request(words=["rounds"]), "not of the form key=value"),
        (Request(words=["data.path=x"]), "use --data"),
        (Request(words=["model.name=embedded"]), "use --model"),
        (Request(words=["methods=coop"]), "use --rows"),
    ],
)
def test_a_mistake_in_what_is_asked(ask: Request, message: str) -> None:
    with pytest.raises(FedvlmError, match=message):
        plan.plan("pfedmoap-1", ask)


def test_tables_that_name_no_run_plan_nothing() -> None:
    made = plan.plan("others-fedtpg", Request(offline=True))
    assert made.weights is None
    assert not made.jobs
    assert {obstacle.kind for obstacles in made.cells.values() for obstacle in obstacles} == {"not here"}


@pytest.mark.parametrize("name", library.names())
def test_every_table_can_be_planned(name: str, tmp_path: Path) -> None:
    """What no file here can mend is known beforehand: no crash, and nothing possible without data."""
    made = plan.plan(name, Request(tmp_path, offline=True))
    assert not made.possible
    assert len(made.cells) == len(made.table.cells)
    found = report.build_report(made, JobResults())
    assert not found.complete
    assert report.as_markdown(found).count("\n| ") == len(made.cells) + 1  # heading
