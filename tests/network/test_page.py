"""docs/federation.md word by word, and the verbs of a site."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import settings
from typer.testing import CliRunner

from fedvlm import experiment
from fedvlm.cli import app
from fedvlm.network.site import settings as sites
from fedvlm.runs import result

PAGE = (Path(__file__).parents[2] / "docs" / "federation.md").read_text()


def script(heading: str) -> str:
    """The first block of commands under a heading, without prompts."""
    part = PAGE[PAGE.index(f"## {heading}") :]
    block = re.search(r"```console\n(.*?)```", part, re.S)
    assert block
    return "".join(line[2:] + "\n" for line in block.group(1).splitlines() if line.startswith(("$ ", "> ")))


def test_the_try_on_one_machine(tmp_path: Path) -> None:
    """As it stands there, in an empty folder; only the rounds are fewer."""
    text = script("Try it on one machine").replace("rounds=3", "rounds=1")
    assert text.count("rounds=1") == 1
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(["bash", "-e", "-c", text], cwd=tmp_path, env=env, text=True, start_new_session=True,
                               stdout=(tmp_path / "out").open("w"), stderr=subprocess.STDOUT)  # fmt: skip
    try:
        assert process.wait(300) == 0, (tmp_path / "out").read_text()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    told = (tmp_path / "out").read_text()
    assert "the personal models are at the sites" in told
    assert "neon: what has left" in told
    for method in ("pfedmma", "pfedmoap"):
        found = result.read(tmp_path / "trial" / "run" / "seed-0" / method / "result.json")
        assert found.final["after_training"].keys() >= {"local", "base", "novel"}
        for name in ("sketch", "neon", "fog"):
            (file,) = (tmp_path / name / "state").glob(f"*/{method}-*.safetensors")
            assert file.stat().st_mode & 0o077 == 0


@pytest.fixture
def agreed(tmp_path: Path) -> Path:
    file = tmp_path / "experiment.json"
    file.write_text(json.dumps(experiment.parse(settings(["promptfl"])).resolved()))
    return file


def fedvlm(*words: str, asked: str = "") -> tuple[int, str]:
    done = CliRunner().invoke(app, list(words), input=asked)
    return done.exit_code, done.output + str(done.exception or "")


def test_a_site_from_its_folder_to_its_approval(drawn: dict[str, Path], agreed: Path, tmp_path: Path) -> None:
    own, digest = tmp_path / "north", experiment.parse(settings(["promptfl"])).digest()
    code, told = fedvlm("site", "init", str(drawn["neon"]), "--out", str(own), "--name", "n7",
                        "--experiment", str(agreed))  # fmt: skip
    assert code == 0, told
    site = str(own / "site.toml")
    code, told = fedvlm("site", "check", str(agreed), "--site", site)
    assert code == 1
    assert "prompt" in told
    assert "2,048" in told
    assert f"not approved yet: {digest}" in told
    before = (own / "site.toml").read_text()
    code, told = fedvlm("site", "approve", str(agreed), "--site", site, asked="n\n")
    assert code == 1
    assert (own / "site.toml").read_text() == before
    code, told = fedvlm("site", "approve", str(agreed), "--site", site, asked="y\n")
    assert code == 0
    after = (own / "site.toml").read_text()
    assert [line for line in after.splitlines() if line not in before.splitlines()] == [
        f'experiments = ["{digest}"]                 # digests of approved experiments: fedvlm site approve EXPERIMENT'
    ]
    assert sites.read(own / "site.toml").policy.experiments == [digest]
    assert fedvlm("site", "check", str(agreed), "--site", site)[0] == 0
    code, told = fedvlm("site", "approve", str(agreed), "--site", site)
    assert code == 0
    assert f"approved: {digest}" in told
    assert (own / "site.toml").read_text() == after


def test_what_the_policy_forbids_is_said_before_anything_is_sent(
    drawn: dict[str, Path], agreed: Path, tmp_path: Path
) -> None:
    own = tmp_path / "north"
    assert fedvlm("site", "init", str(drawn["neon"]), "--out", str(own))[0] == 0
    file = own / "site.toml"
    file.write_text(file.read_text().replace('may_leave = ["*"]', 'may_leave = ["shared.*"]'))
    told = fedvlm("site", "approve", str(agreed), "--site", str(file), "--yes")[1]
    assert "not sent: prompt: policy.may_leave" in told
    assert fedvlm("site", "check", str(agreed), "--site", str(file))[0] == 1


def test_a_settings_file_without_the_line_is_not_changed(drawn: dict[str, Path], agreed: Path, tmp_path: Path) -> None:
    file = tmp_path / "site.toml"
    text = f'name = "n"\n[data]\nsource = "folder"\npath = "{drawn["neon"]}"\n'
    file.write_text(text)
    assert fedvlm("site", "approve", str(agreed), "--site", str(file), "--yes")[0] != 0
    assert file.read_text() == text


def test_a_folder_with_a_table_beside_its_images_is_asked_for_the_table(drawn: dict[str, Path], tmp_path: Path) -> None:
    photographs = tmp_path / "photographs"
    (photographs / "images").mkdir(parents=True)
    for number, image in enumerate(sorted(drawn["neon"].rglob("*.png"))[:3]):
        (photographs / "images" / f"{number}.png").write_bytes(image.read_bytes())
    (photographs / "table.csv").write_text("image,label\nimages/0.png,cat\nimages/1.png,cat\nimages/2.png,dog\n")
    code, told = fedvlm("site", "init", str(photographs), "--out", str(tmp_path / "north"))
    assert code == 1
    assert f"name the table, {photographs / 'table.csv'}" in told
    code, told = fedvlm("site", "init", str(photographs / "table.csv"), "--out", str(tmp_path / "north"))
    assert code == 0
    assert "# 3 images in 2 classes (1 to 2 in each)." in told
