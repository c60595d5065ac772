"""Starting again deletes what fedvlm wrote and nothing else; what was written is believed only as it was written."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

import fedvlm
from fedvlm.errors import FedvlmError
from fedvlm.runs import owned_files

SMALL = ("data.shots=2", "data.val_per_class=1", "data.test_per_class=2", "data.base_classes=6", "data.novel_classes=4",
         "partition.clients=3", "rounds=2", "methods=zero_shot,promptfl", "seeds=0")  # fmt: skip


def play(folder: Path, *words: str, **options: bool) -> fedvlm.runs.results.Results:
    return fedvlm.run("quickstart", *SMALL, *words, out=folder, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "r"
    play(folder)
    return folder


@pytest.fixture
def there(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "r"))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_everything_that_a_comparison_writes_is_its_own(tmp_path: Path) -> None:
    from fedvlm import experiment, overrides, presets
    from fedvlm.studies.compare import compare

    chosen = experiment.parse(overrides.apply_words(presets.settings("quickstart"), SMALL))
    compare(chosen, tmp_path / "r")
    owned_files.clear(tmp_path / "r")
    assert files(tmp_path / "r").keys() == {".lock"}
    assert [p.name for p in (tmp_path / "r").iterdir()] == [".lock"]


def test_another_program_s_experiment_is_not_overwritten(tmp_path: Path) -> None:
    """The review's case: `experiment.json` of somebody else beside photographs and a thesis."""
    mine = {"experiment.json": '{"mine": true}', "photos/a.jpg": "jpeg", "thesis.tex": "text"}
    for name, text in mine.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(FedvlmError, match=r"experiment\.json was not written by fedvlm.*--out"):
        play(tmp_path, overwrite=True)
    assert {name: text.decode() for name, text in files(tmp_path).items() if name != ".lock"} == mine


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"digest": 1, "versions": null}', '{"digest": 1, "versions": {"torch": "2"}}']
)
def test_an_unreadable_experiment_is_told_once_and_nothing_is_deleted(there: Path, text: str) -> None:
    (there / "experiment.json").write_text(text)
    before = files(there)
    for options in ({"overwrite": True}, {"resume": True}):
        with pytest.raises(FedvlmError):
            play(there, **options)
    with pytest.raises(FedvlmError, match=r"experiment\.json (cannot be read|was not written by fedvlm).*--out"):
        play(there, overwrite=True)
    assert files(there) == before


def test_a_run_is_deleted_only_when_the_new_one_can_begin(there: Path, tmp_path: Path) -> None:
    before = files(there)
    for words in (("data.base_classes=2", "partition.clients=3"), ("model.name=/nowhere",), ("compute.device=cuda:9",),
                  ("method.promptfl.tokens=500", "method.promptfl.init_text=none")):  # fmt: skip
        with pytest.raises(FedvlmError):
            play(there, *words, overwrite=True)
    with pytest.raises(FedvlmError, match="nowhere"):
        fedvlm.run("quickstart", data={"source": "folder", "path": "/nowhere"}, out=there, overwrite=True)
    assert files(there) == before


def test_folders_of_others_stay_even_if_they_are_empty(there: Path) -> None:
    (there / "figures").mkdir()
    (there / "seed-0/mine").mkdir()
    owned_files.clear(there)
    assert sorted(p.name for p in there.rglob("*")) == [".lock", "figures", "mine", "seed-0"]


def test_files_of_an_older_run_become_private_when_it_goes_on(there: Path) -> None:
    private = [p for p in (there / "seed-0").rglob("*") if p.is_file() and p.name not in ("point.json", ".lock")]
    for path in private:
        path.chmod(0o644)
    play(there, resume=True)
    assert {p.stat().st_mode & 0o777 for p in private} == {0o600}


@pytest.mark.parametrize("name", ["thesis.tex", "photos/a.jpg", "seed-0/notes.txt", "seed-0/promptfl/figure.pdf",
                                  "seed-0/promptfl/checkpoint/best.safetensors", "table.xlsx", "seed-a/result.json"])  # fmt: skip
def test_files_of_others_are_named_and_nothing_is_deleted(there: Path, name: str) -> None:
    (there / name).parent.mkdir(parents=True, exist_ok=True)
    (there / name).write_text("mine")
    before = files(there)
    with pytest.raises(FedvlmError, match=rf"did not write \({name}\): nothing was deleted"):
        play(there, overwrite=True)
    assert files(there) == before


def test_a_link_to_a_folder_is_not_followed(there: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/result.json").write_text("mine")
    (there / "seed-7").mkdir()
    (there / "seed-7/linked").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FedvlmError, match="seed-7/linked"):
        play(there, overwrite=True)
    assert (tmp_path / "elsewhere/result.json").read_text() == "mine"


def test_a_run_is_overwritten_with_what_a_killed_process_left(there: Path) -> None:
    (there / "seed-0/promptfl/.result.json.0123456789ab").write_text("half")
    (there / "seed-0/promptfl/checkpoint/.server-0002.safetensors.0123456789ab").write_text("half")
    (there / ".DS_Store").write_text("not ours, and hidden")
    play(there, overwrite=True)
    assert not list(there.rglob(".*.0123456789ab"))
    assert (there / ".DS_Store").exists()


def test_a_result_that_was_changed_is_refused(there: Path) -> None:
    file = there / "seed-0/promptfl/result.json"
    result = json.loads(file.read_text())
    result["final"]["after_aggregation"]["local"] = 0.999
    file.write_text(json.dumps(result))
    with pytest.raises(FedvlmError, match=r"promptfl/result\.json was changed after it was written.*delete"):
        play(there, resume=True)
    shutil.rmtree(there / "seed-0/promptfl")
    assert play(there, resume=True).points["promptfl"][0].final["after_aggregation"]["local"] != 0.999


def test_only_the_clock_of_a_result_is_not_covered(there: Path) -> None:
    file = there / "seed-0/promptfl/result.json"
    result = json.loads(file.read_text())
    for key in result:
        file.write_text(json.dumps(result | {key: 123456}))
        if key in ("train_s", "evaluate_s", "peak_memory_bytes"):
            assert getattr(fedvlm.runs.folder.Point(file.parent).result(), key) == 123456
        else:
            with pytest.raises(FedvlmError, match="digest"):
                fedvlm.runs.folder.Point(file.parent).result()


@pytest.mark.parametrize("left", [0, 1])
def test_a_ledger_that_lacks_lines_is_refused(there: Path, left: int) -> None:
    """The review's case: interrupted after round 1, the ledger deleted or restored from an older copy."""
    point = there / "seed-0/promptfl"
    (point / "result.json").unlink()
    lines = (point / "ledger.jsonl").read_text().splitlines(keepends=True)
    (point / "ledger.jsonl").write_text("".join(lines[:left]))
    with pytest.raises(
        FedvlmError, match=r"ledger\.jsonl has [\d,]+ bytes, but [\d,]+ were written: lines are missing"
    ):
        play(there, "methods=promptfl", resume=True)
    assert not (point / "result.json").exists()


@pytest.mark.parametrize("umask", [0o022, 0o000])
def test_what_tells_of_clients_is_readable_by_its_owner_alone(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        done = play(tmp_path / "r")
    finally:
        os.umask(before)
    modes = {p.relative_to(done.folder).as_posix(): p.stat().st_mode & 0o777
             for p in done.folder.rglob("*") if p.is_file() and p.name != ".lock"}  # fmt: skip
    private = {name for name in modes if name.startswith("seed-0/") and not name.endswith("/point.json")}
    assert any("checkpoint/clients" in name for name in private)
    assert {modes[name] for name in private} == {0o600}
    assert {modes[name] for name in modes.keys() - private} == {0o666 & ~umask}


def test_the_contract_tells_where_private_tensors_lie(whole: Path) -> None:
    text = (whole / "contract.txt").read_text()
    assert f"kept here   in {whole}/seed-*: every client's tensors" in text
