"""Commands and Python of the documentation, run as they stand there, page by page, in an empty folder.

Settings that make them small are added (`SMALL`, `TINY`), the published CLIP is replaced by the embedded one, and data
sets by small copies in the published layout. `NOT_RUN` lists what is not run, and why; the CLI parses that all the same
(`test_docs.py`).
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_datasets
import pytest
import test_presets
from called import call
from matplotlib.figure import Figure
from test_docs import PAGES, ROOT, toml_of

import fedvlm
from fedvlm import overrides, presets

SMALL = ["seeds=0", "rounds=1", "evaluation.every=1", "method.all.epochs=1"]
DRAWN = [*SMALL, "data.shots=2", "data.val_per_class=1", "data.test_per_class=2", "data.novel_classes=4",
         "data.base_classes=8", "partition.clients=4"]  # fmt: skip
"""For drawn scenes."""
TINY = [*SMALL, *(word for word in test_presets.TINY if not word.startswith(("seeds=", "rounds=")))]
"""For published protocols, on small copies of their data."""
OF_OURS = {"make demo": "fedvlm run quickstart --overwrite"}
"""What a target of the Makefile does when everything is installed."""
NOT_RUN = {
    r"make (test|docs)": "run by CI itself",
    r"pip install": "fetches packages",
    r"tensorboard ": "a server: tests/reports/test_track.py reads what it would show",
    r"flower-|flwr |fedvlm federation init .* --carrier flower$": "Flower: make test-networks plays this federation",
    r"fedvlm federation run (federation|simulated)": "waits for sites: tests/network/test_page.py, make test-networks",
    r"fedvlm site (serve|carry) .*north": "runs until it is stopped: tests/network/test_page.py",
    r"for site in|fedvlm (federation run trial|site status --site neon)": "run by tests/network/test_page.py",
    r"fedvlm site export": "needs a federation that is over: tests/personal",
    r"fedvlm (run|partition) .*huggingface": "fetches a data set: tests/data/test_hub_source.py has small ones",
    r"fedvlm (bench|random-clip) ": "minutes and gigabytes: tests/checks/bench, tests/clip",
    r"fedvlm verify .*cuda|pytest .*test_gpu": "needs a GPU",
    r"python recipes/(calibrate|pretrain|mutate|scale)": "hours",
}
EXTRAS = {"track": ("tensorboard", "mlflow")}
"""Packages without which the commands of a page do not run."""
LONG = ("instrument", "results", "protocols", "audit", "reproduce", "speed", "compare", "add-a-method")
"""Pages with many runs."""


def commands(page: Path) -> list[str]:
    """The commands of a page; a loop stands for its first turn."""
    found = []
    for block in re.findall(r"```console\n(.*?)```", page.read_text(), re.S):
        for line in re.sub(r"\n> *", "; ", block).splitlines():
            command = line.removeprefix("$ ").split("  #")[0].strip()
            loop = re.fullmatch(r"for (\w+) in (\S+).*?; do (fedvlm .*); done", command)
            if loop and "; " not in loop[3]:
                command = loop[3].replace(f"${loop[1]}", loop[2])
            found.append(OF_OURS.get(command, command))
    return found


def reason(command: str) -> str | None:
    return next((why for pattern, why in NOT_RUN.items() if re.match(pattern, command)), None)


def folder(root: Path) -> None:
    """`FOLDER` with small copies of all data sets, and photographs of one's own."""
    many = test_presets.pictures(fake_datasets.DRAWN)
    few = {name: pictures[:6] for name, pictures in many.items()}
    for name in ("oxford_pets", "dtd", "caltech-101"):
        fake_datasets.coop(root / "FOLDER" / name, few, 4)
    test_presets.ten(root / "FOLDER" / "cifar-10-batches-bin")
    test_presets.hundred(root / "FOLDER" / "cifar-100-binary")
    test_presets.domainnet(root / "FOLDER" / "domainnet")
    test_presets.office(root / "FOLDER" / "office_caltech_10")
    test_presets.pacs(root / "FOLDER" / "pacs")
    shutil.copytree(root / "FOLDER" / "pacs", root / "FOLDER" / "pacs" / "images", ignore=lambda *_: ["images"])
    shutil.copytree(
        root / "FOLDER" / "pacs", root / "FOLDER" / "pacs" / "splits", ignore=lambda *_: ["images", "splits"]
    )
    lines = ["image,label,sender_id"]
    labelled = [(name, one) for name, each in many.items() for one in each]
    unsure = [(name, few["solid_star"][0]) for name in ("Not sure", "Skip", "Other")]
    for number, (name, picture) in enumerate([*labelled, *unsure]):
        path = root / "clothing" / "images" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
        lines.append(f"{number},{name},{number % 2}")
    (root / "clothing" / "images.csv").write_text("\n".join(lines) + "\n")
    shutil.copytree(root / "clothing", root / "FOLDER" / "clothing")
    (root / "domainnet").symlink_to(root / "FOLDER" / "domainnet")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What people have before they begin; pages get links to it."""
    root = tmp_path_factory.mktemp("made")
    folder(root)
    with contextlib.chdir(root):
        assert call("init", "photographs", "--example").returncode == 0
    return root


@pytest.fixture
def desk(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder with photographs and data sets, without the hub and without drawing figures."""

    def touch(self: Figure, where: Any, **options: Any) -> None:
        Path(where).touch() if isinstance(where, str | Path) else where.write(b"")

    monkeypatch.setattr(Figure, "savefig", touch)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("FEDVLM_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "desk"
    place.mkdir()
    for one in ("FOLDER", "clothing", "domainnet"):
        (place / one).symlink_to(made / one)
    for one in ("benchmarks", "recipes", "tests"):
        (place / one).symlink_to(ROOT / one)
    shutil.copytree(made / "photographs", place / "photographs")
    monkeypatch.chdir(place)
    return place


def split(words: list[str]) -> tuple[list[str], list[str]]:
    """Words that are settings, and the others, options with their values among them."""
    settings, others = [], []
    rest = iter(words)
    for word in rest:
        if word.startswith("--"):
            flag = word in ("--overwrite", "--resume", "--quiet")
            others += [word] if flag else [word, next(rest)]
        else:
            (settings if "=" in word else others).append(word)
    return settings, others


def small(words: list[str]) -> list[str]:
    """The command with settings that make it small, in the place of its own of the same names."""
    settings, others = split(words)
    for number, word in enumerate(others):
        if word == "--processes":
            others[number + 1] = "1"
    name = others[1]
    table = presets.settings(name)
    drawn = table.get("data", {}).get("source", "scenes") == "scenes"
    less = [*DRAWN] if drawn else [*SMALL] if name.startswith("benchmarks/photographs") else [*TINY]
    settings = ["data.path=photographs" if word == "data.path=FOLDER" else word for word in settings]
    if not drawn:
        less += of_data(name, settings) + ([] if "methods" in str(settings) else ["methods=zero_shot,pfedmma"])
    if "newcomer" in name:  # a style of ten
        less = [word for word in less if not word.startswith(("data.base", "partition."))]
    swept = {*table.get("sweep", {}), *(word.split("=")[0] for word in others[1:] if "=" in word)}
    less = [word for word in less if word.split("=")[0] not in swept]
    if "partition.clients" in swept:  # each of them needs a class
        less.remove("data.base_classes=8")
    keys = {word.split("=")[0] for word in less}
    return [*others[:2], *(word for word in settings if word.split("=")[0] not in keys), *less, *others[2:]]


def of_data(preset: str, settings: list[str]) -> list[str]:
    """Settings that a small copy of a data set needs."""
    if "cifar" in preset:
        return ["data.complete=false", "partition.clients=5", "partition.min_test=3"]
    if preset in ("few_shot", "base_to_novel", "benchmarks/photographs/caltech.toml"):
        return ["data.shots=2", "partition.clients=2"]
    if preset in ("clothes.toml", "benchmarks/photographs/clothing.toml"):
        return ["partition.min_images=4"]
    if preset in ("photographs.toml", "benchmarks/many_clients.toml") or "newcomers" in str(settings):
        return []
    return ["partition.clients_per_domain=2"]


def run(command: str) -> None:
    """Run a documented command. Exit code 1 is as good as 0 where a page says what it means."""
    program, *words = shlex.split(command)
    if program == "python":
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"$ {command}\n{done.stdout[-1500:]}{done.stderr[-3000:]}"
        return
    assert program == "fedvlm", command
    if words[0] in ("run", "compare", "sweep", "audit", "partition"):
        words = small(words)
    if words[:2] == ["site", "approve"] and "--yes" not in words:
        words.append("--yes")
    if words[:2] == ["federation", "init"]:  # one page shows it for every carrier
        shutil.rmtree(words[2], ignore_errors=True)
    done = call(*words)
    # 1: reproduce lacks weights, a site has not approved yet, an image could not be read.
    allowed = (0, 1) if words[0] in ("reproduce", "site") else (0,)
    assert done.returncode in allowed, (
        f"$ {command}\n  fedvlm {shlex.join(words)}\n{done.stdout[-1500:]}{done.stderr[-3000:]}"
    )


AGREED = """
methods = ["promptfl"]
[data]
source = "sites"
classes = ["cat", "dog"]
[partition]
kind = "domain"
[evaluation]
general = "own_domain"
"""
"""An experiment between sites, which names its classes."""


def prepare(page: Path, desk: Path) -> None:
    """What a page takes for granted."""
    for name, text in toml_of(page.name).items():
        if text:
            (desk / name).write_text(text)
    if page.stem == "predict":
        first = next(one for one in (desk / "photographs").rglob("*") if one.suffix in (".png", ".jpg"))
        for number in (1, 2):
            shutil.copy(first, desk / "photographs" / f"{number:04d}.png")
        (desk / "list.txt").write_text("photographs/0001.png\n")
    if page.stem == "federation":
        run(next(one for one in commands(page) if one.startswith("fedvlm federation init trial")))
        (desk / "trial" / "experiment.json").rename(desk / "experiment.json")
        (desk / "trial" / "keys" / "neon.key").rename(desk / "north.key")
        shutil.rmtree(desk / "photographs")
        (desk / "trial" / "example" / "neon").rename(desk / "photographs")
        shutil.rmtree(desk / "trial")
        (desk / "experiment.toml").write_text(AGREED)


FIRST: dict[str, str] = {}
"""The first of the long pages that shows a command: it is run there, and not again."""
for _page in PAGES:
    if _page.stem in LONG:
        for _command in commands(_page):
            FIRST.setdefault(_command, _page.stem)
STORIES = [
    pytest.param(page, marks=[pytest.mark.long] * (page.stem in LONG), id=page.stem)
    for page in PAGES
    if page.stem != "index" and any(reason(one) is None for one in commands(page))
]


@pytest.mark.parametrize("page", STORIES)
def test_commands_of_a_page_run(page: Path, desk: Path) -> None:
    for package in EXTRAS.get(page.stem, ()):
        pytest.importorskip(package)
    prepare(page, desk)
    for command in dict.fromkeys(commands(page)):
        if reason(command) is None and (page.stem not in LONG or FIRST[command] == page.stem):
            run(command)


def test_what_is_not_run_is_listed_and_short() -> None:
    every = [one for page in PAGES for one in commands(page)]
    for pattern in NOT_RUN:
        assert any(re.match(pattern, one) for one in every), f"{pattern} matches nothing any more"
    left = [one for one in every if reason(one)]
    assert len(left) <= 45, left
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    extras = overrides.read_toml(ROOT / "pyproject.toml")["project"]["optional-dependencies"]
    for one in left:
        if one.startswith("make "):
            assert one.split()[1] in targets
        if one.startswith("pip install"):
            assert re.findall(r"\[([\w-]+)\]", one)[0] in extras


class ParsedError(Exception):
    """A recipe's arguments are good."""


RECIPES = sorted({one for page in PAGES for one in commands(page) if one.startswith("python recipes/")})


@pytest.mark.parametrize("command", RECIPES)
def test_arguments_of_a_recipe_are_parsed(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, script, *words = shlex.split(command)
    parse = argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, *given: Any, **options: Any) -> None:
        parse(self, *given, **options)
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(os, "execve", lambda *_: None)  # one begins anew with another environment
    monkeypatch.setattr(sys, "argv", [script, *words])
    monkeypatch.syspath_prepend(ROOT / "recipes")
    with pytest.raises(ParsedError):
        runpy.run_path(str(ROOT / script), run_name="__main__")


def blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.S)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.stem in ("README", "first-run", "predict", "track")], ids=lambda p: p.stem
)
def test_python_of_a_page_runs(page: Path, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = fedvlm.run

    def less(what: str = "quickstart", **settings: Any) -> Any:
        return full(what, *DRAWN, out=desk / "python", **settings)

    monkeypatch.setattr(fedvlm, "run", less)
    prepare(page, desk)
    if page.stem == "predict":
        for command in commands(page)[:3]:
            run(command)
    for block in blocks(page):
        exec(compile(block, page.name, "exec"), {"__name__": "page"})


@pytest.mark.long
def test_python_of_add_a_method_runs() -> None:
    """Those three that are files of the example are played by `test_outside.py` as an installed package."""
    for block in blocks(ROOT / "docs" / "add-a-method.md"):
        scope: dict[str, Any] = {"__name__": "page"}
        exec(compile(block, "add-a-method.md", "exec"), scope)
        if "test_promise" in scope:
            for promise in itertools.islice(scope["PROMISES"], 2):
                scope["test_promise"](promise)


def test_every_block_of_python_is_run() -> None:
    pages = {page.stem for page in PAGES if blocks(page)}
    assert pages == {"README", "first-run", "predict", "track", "add-a-method"}
