"""Methods, metrics and data sources of another package: named by path, by entry point, or as the class itself."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import fedvlm
from fedvlm import experiment, methods, plugins
from fedvlm.errors import FedvlmError
from fedvlm.methods.base import Method
from fedvlm.methods.promptfl import PromptFL
from fedvlm.testing import conformance
from fedvlm.training.metrics import METRICS, select_metrics

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "my_method"
SMALL = ["data.shots=2", "data.val_per_class=1", "data.test_per_class=2", "data.base_classes=6", "data.novel_classes=4",
         "partition.clients=3", "rounds=2", "evaluation.every=1", "seeds=0"]  # fmt: skip


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example as pip installs it, in a folder of its own."""
    target = tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("source") / "my_method"
    # A copy: building leaves files beside the sources.
    subprocess.run(["cp", "-r", str(EXAMPLE), str(source)], check=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target",
               str(target), str(source)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def python(installed: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Python with the installed example."""
    paths = [str(installed), str(Path(fedvlm.__file__).parents[1])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "120"}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment)


def test_a_method_and_a_metric_of_an_installed_package(installed: Path, tmp_path: Path) -> None:
    """By entry point and by path, in processes of their own, against the method of ours that they repeat."""
    listed = python(installed, "-m", "fedvlm", "methods").stdout
    assert re.search(r"^my_fedprox +my_method.fedprox:FedProx ", listed, re.MULTILINE), listed
    words = ["methods=my_fedprox,my_method.fedprox:FedProx", *SMALL]
    done = python(installed, "-m", "fedvlm", "run", "quickstart", *words, "--out", str(tmp_path / "twice"))
    assert "names my_fedprox twice" in done.stderr
    words = ["methods=my_method.fedprox:FedProx,promptfl_prox", "evaluation.metrics=top2", *SMALL,
             "method.my_fedprox.lr=0.1", "method.promptfl_prox.lr=0.1", "method.my_fedprox.mu=0.1", "method.all.epochs=3"]  # fmt: skip
    out = tmp_path / "run"
    done = python(installed, "-m", "fedvlm", "compare", "quickstart", *words, "--processes", "2", "--out", str(out))
    assert done.returncode == 0, done.stderr
    mine, ours = (
        json.loads((out / f"seed-0/{name}/result.json").read_text()) for name in ("my_fedprox", "promptfl_prox")
    )
    assert mine["tensors"] == ours["tensors"]
    assert 0 < mine["final"]["after_aggregation"]["local"] <= mine["final"]["after_aggregation"]["top2"] <= 1
    table = (out / "table.md").read_text().splitlines()
    assert "| Top 2 |" in table[0]
    kept = json.loads((out / "experiment.json").read_text())["experiment"]
    assert kept["methods"] == ["my_fedprox", "promptfl_prox"]
    assert kept["method"]["my_fedprox"] == {"method": "my_method.fedprox:FedProx", "lr": 0.1, "mu": 0.1}
    again = python(installed, "-m", "fedvlm", "compare", "quickstart", *words, "--out", str(out), "--quiet")
    assert again.returncode == 0, again.stderr


def test_a_data_source_of_an_installed_package(installed: Path, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for name in ("red_fox", "blue_jay", "grey_dog", "black_cat"):
        for number in range(6):
            pixels = draw.integers(0, 256, (24, 24, 3), dtype=np.uint8)
            (tmp_path / "photos").mkdir(exist_ok=True)
            PIL.Image.fromarray(pixels).save(tmp_path / "photos" / f"{name}_{number:03}.png")
    script = f"""
import fedvlm
from my_method.prefixes import Prefixes
data = {{"source": Prefixes, "path": {str(tmp_path / "photos")!r}, "ending": ".png", "shots": 2}}
found = fedvlm.run("few_shot", data=data, methods=["zero_shot"], model={{"name": "embedded"}}, views="none", seeds=[0],
                   partition={{"clients": 2}}, out={str(tmp_path / "run")!r}, rounds=1)
print(found.rows[0].metrics["local"].mean)
"""
    done = python(installed, "-c", script)
    assert done.returncode == 0, done.stderr
    saved = json.loads((tmp_path / "run/seed-0/partition.json").read_text())
    assert sorted([*saved["base"].values(), *saved["novel"].values()]) == [
        "black cat",
        "blue jay",
        "grey dog",
        "red fox",
    ]
    kept = json.loads((tmp_path / "run/experiment.json").read_text())["experiment"]["data"]
    assert kept["source"] == "my_method.prefixes:Prefixes"
    wrong = python(
        installed, "-m", "fedvlm", "run", "few_shot", "data.source=prefixes", "data.path=x", "data.endin=.png"
    )
    assert "unknown setting 'data.endin' (did you mean 'ending'?)" in wrong.stderr


@pytest.mark.long
def test_the_example_keeps_every_promise_by_its_own_tests(installed: Path) -> None:
    done = python(installed, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLE / "tests"))
    assert done.returncode == 0, done.stdout


def test_the_page_shows_the_example() -> None:
    page = (ROOT / "docs" / "add-a-method.md").read_text()
    for file in ("fedprox.py", "top2.py", "prefixes.py"):
        assert f"```python\n{(EXAMPLE / 'my_method' / file).read_text()}```" in page, file
    assert f"```toml\n{(EXAMPLE / 'pyproject.toml').read_text()}```" in page


class Gentle(PromptFL):
    """A method of this file."""

    name = "gentle"
    title = "PromptFL"


class Leaky(PromptFL):
    """Sends what it says is private."""

    name = "leaky"
    title = "a method that sends too much"
    shared = ()

    def uplink(self, own: dict[str, object], received: dict[str, object]) -> dict[str, object]:
        """All of it."""
        return own


def test_a_class_may_stand_for_its_name(tmp_path: Path) -> None:
    words = [*SMALL, "method.gentle.lr=0.1", "method.promptfl.lr=0.1"]
    found = fedvlm.run("quickstart", *words, methods=[Gentle, "promptfl"], out=tmp_path / "r")
    assert found.points["gentle"][0].tensors == found.points["promptfl"][0].tensors
    again = fedvlm.run("quickstart", *words, methods=[Gentle, "promptfl"], out=tmp_path / "r", resume=True)
    assert again.points["gentle"][0].digest == found.points["gentle"][0].digest
    tuned = experiment.load("quickstart", (), {"methods": [Gentle], "method": {"gentle": {"lr": 0.5}}})
    assert methods.build("gentle", tuned.method).config.lr == 0.5


@pytest.mark.long
def test_a_method_that_breaks_a_promise_is_named_with_it() -> None:
    with pytest.raises(AssertionError, match=r"leaky does not keep \d+ of \d+ promises\n(.|\n)*no_private_tensor"):
        conformance(Leaky)
    assert "stopped_and_resumed_equals_uninterrupted" in conformance(Gentle)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("methods=no_such_package:Method", r"method 'no_such_package:Method' cannot be imported .*install its package"),
        ("methods=fedvlm.methods.promptfl:PromptFLL", r"has no 'PromptFLL' \(did you mean 'PromptFL'\?\)"),
        ("methods=json:JSONDecoder", "is no fedvlm.methods.base.Method"),
        ("methods=fedvlm.methods.promptfl:PromptFL", "calls itself 'promptfl', as one of ours does"),
        ("evaluation.metrics=fedvlm.training.metrics:METRICS", "is no fedvlm.training.metrics.Metric"),
        (
            "evaluation.metrics=none_such",
            "unknown metric 'none_such'; known: none from other packages; or package.module",
        ),
        ("data.source=json:JSONDecoder", "is no fedvlm.data.settings.DataSource"),
        ("data.source=foldr", r"'data.source' is one of: .*folder.*package.module:Class"),
    ],
)
def test_mistakes(words: str, message: str) -> None:
    with pytest.raises(FedvlmError, match=message):
        experiment.load("quickstart", [words])


def test_our_own_metrics_may_be_named_though_they_are_always_measured() -> None:
    named, plain = (experiment.load("quickstart", words) for words in (["evaluation.metrics=local,ece"], []))
    assert select_metrics(named.evaluation.metrics) == select_metrics(plain.evaluation.metrics)


def test_a_class_that_cannot_be_found_again_is_refused() -> None:
    class Inner(PromptFL):
        name = "inner"

    with pytest.raises(FedvlmError, match="define it at the top of a module"):
        experiment.load("quickstart", (), {"methods": [Inner]})
    assert plugins.dotted_path(Gentle) == f"{__name__}:Gentle"
    assert issubclass(methods.find(f"{__name__}:Gentle"), Method)


def test_ranks_at_a_place_are_of_one_metric_each() -> None:
    """Two metrics of equal rank would stand in the order of the table by accident."""
    for place in {place for metric in METRICS for place in metric.shown}:
        ranks = [metric.shown[place] for metric in METRICS if place in metric.shown]
        assert len(ranks) == len(set(ranks)), place
    assert not [metric.name for metric in METRICS if not re.fullmatch("[a-z_0-9]+", metric.name) or not metric.about]
