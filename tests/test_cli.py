"""The verbs as a user meets them: output, exit codes, and what a mistake looks like."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from called import call, process

SMALL = ["data.shots=2", "data.val_per_class=1", "data.test_per_class=2", "data.base_classes=6", "data.novel_classes=4",
         "partition.clients=3", "rounds=1", "methods=zero_shot,pfedmma"]  # fmt: skip


def test_run_prints_contract_then_progress_then_table(tmp_path: Path) -> None:
    done = call("run", "quickstart", *SMALL, "--out", str(tmp_path / "r"))
    assert done.returncode == 0, done.stderr
    places = [
        done.stdout.index(words) for words in ("what leaves a client", "seed 0 pfedmma", "Worst 10%", "run folder")
    ]
    assert places == sorted(places)


def test_names_and_paths_are_words_and_no_markup(tmp_path: Path) -> None:
    """The review's cases: brackets and dollar signs ended in a traceback when the run was over."""
    out = tmp_path / "a[" / "b]"
    words = [*SMALL, "methods=zero_shot", r"name=[red]a$_{$b"]
    for verb in ("run", "compare"):
        done = call(verb, "quickstart", *words, "--out", str(out / verb))
        assert done.returncode == 0, done.stderr
        assert r"[red]a$_{$b" in done.stdout
        assert str(out / verb) in done.stdout.replace("\n", "")
        assert (out / verb / "rounds.png").exists()


def test_a_method_that_diverges_is_told_and_the_exit_code_is_one(tmp_path: Path) -> None:
    done = call("run", "quickstart", *SMALL, "method.pfedmma.lr=1e30", "--out", str(tmp_path / "r"))
    assert done.returncode == 1, done.stderr
    assert "zero_shot" in done.stdout
    assert "lower the learning rate" in done.stdout.split("Worst 10%")[1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("verb", ["methods", "presets"])
def test_lists(verb: str) -> None:
    done = process(verb)
    assert done.returncode == 0
    assert {"methods": "pfedmoap", "presets": "fedvlm run quickstart"}[verb] in done.stdout


def test_partition_draws_a_picture(tmp_path: Path) -> None:
    done = call("partition", "quickstart", *SMALL, "--out", str(tmp_path / "p.png"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_doctor(tmp_path: Path) -> None:
    done = call("doctor", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout
    assert "embedded CLIP" in done.stdout


MISTAKES = [
    (["run", "quikstart"], "did you mean 'quickstart'?"),
    (["run", "nothing.toml"], "no such experiment file"),
    (["run", "quickstart", "roundz=3"], "unknown setting 'roundz' (did you mean 'rounds'?)"),
    (["run", "quickstart", "data.shot=3"], "unknown setting 'data.shot' (did you mean 'shots'?)"),
    (["run", "quickstart", "rounds=ten"], "setting 'rounds': expected an integer"),
    (["run", "quickstart", "rounds=0"], "greater than or equal to 1"),
    (["run", "quickstart", "rounds"], "not of the form key=value"),
    (["run", "quickstart", "methods=pfedmmma"], "did you mean 'pfedmma'?"),
    (["run", "quickstart", "method.pfedmma.rnk=3"], "unknown setting 'method.pfedmma.rnk' (did you mean 'rank'?)"),
    (["run", "quickstart", "method.pfedmma.rank=big"], "setting 'method.pfedmma.rank': expected"),
    (["run", "quickstart", "method.all.ranc=3"], "unknown setting 'method.all.ranc' (did you mean 'rank'?)"),
    (["run", "quickstart", "method.pfedmma.last_block=9", "methods=pfedmma"], "both encoders have blocks 1..6"),
    (["run", "quickstart", "model.name=/nowhere"], "no such model directory"),
    (["run", "quickstart", "compute.device=cuda:7"], "cannot be used here"),
    (["run", "quickstart", "data.styles=neonn"], "neon"),
    (["run", "quickstart", "partition.clients=21"], "20"),
    (
        ["run", "quickstart", "method.pfedmma.weight_decay=inf"],
        "setting 'method.pfedmma.weight_decay': expected a finite number",
    ),
    (["run", "quickstart", "method.pfedmma.scale=inf"], "setting 'method.pfedmma.scale': expected a finite number"),
    (["run", "quickstart", "partition.alpha=inf"], "setting 'partition.alpha': expected a finite number"),
    (["run", "quickstart", "compute.cache_gib=1e300"], "setting 'compute.cache_gib': expected less than"),
    (["run", "quickstart", "compute.threads=100000"], "setting 'compute.threads': expected less than or equal to 1024"),
    (["run", "quickstart", "method.pfedmma.rank=1000000000", "methods=pfedmma"], "pfedmma: there is not enough memory"),
    (["run", "quickstart", "name=../../x"], "setting 'name': expected a name for a folder"),
    (["run", "quickstart", "name=[/red]"], "setting 'name': expected a name for a folder"),
    (["run", "quickstart", "method.zero_shot.weight=1"], "unknown setting 'method.zero_shot.weight'"),
    (["run", "quickstart", "method.pfedmoap.gate_width=63"], "setting 'method.pfedmoap': gate_width 63 is not"),
    (["verify", "/nowhere"], "holds no reference outputs"),
    (["verify", "/nowhere", "--path", "both"], "known: alone, together, stored, released, all"),
    (["verify", "/nowhere", "--device", "gpu"], "compute.device = 'gpu' cannot be used here"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES, ids=[" ".join(words) for words, _ in MISTAKES])
def test_a_mistake_is_one_message(words: list[str], message: str, tmp_path: Path) -> None:
    done = call(*words, *(["--out", str(tmp_path / "r")] if words[0] == "run" else []))
    assert done.returncode == 2
    assert message in done.stderr


def test_an_offline_hub_id(tmp_path: Path) -> None:
    done = process("run", "quickstart", "model.name=openai/clip-vit-base-patch16", "--out", str(tmp_path / "r"),
                HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))  # fmt: skip
    assert done.returncode == 2
    assert "hf download openai/clip-vit-base-patch16" in done.stderr


def test_an_unwritable_run_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = call("run", "quickstart", *SMALL, "--out", str(tmp_path / "file" / "r"))
    assert done.returncode == 2
    assert "choose another folder" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        many = [*SMALL, "rounds=4", "methods=local_mma,pfedmma"]
        done = process("run", "quickstart", *many, "--out", str(disk / "r"))
        assert done.returncode == 2, done.stdout
        assert "the disk is full" in done.stderr
        assert "Traceback" not in done.stderr
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert call("run", "quickstart", *many, "--out", str(disk / "r"), "--resume").returncode == 0
    finally:
        subprocess.run(["umount", str(disk)], check=True)
