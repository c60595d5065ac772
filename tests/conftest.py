"""Fixtures of all rooms."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

pytest.register_assert_rewrite("fedvlm.testing.promises")

from fedvlm import clip  # noqa: E402
from fedvlm.testing import tiny  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """No test reads or fills the user's cache; processes that tests start inherit the setting."""
    path = tmp_path_factory.mktemp("cache")
    os.environ["FEDVLM_CACHE"] = str(path)
    return path


HERE = Path(__file__).parent
BESIDE = HERE.parents[1] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real photographs, specifications and all reference outputs that stands beside the repository."""
    if not BESIDE.is_dir():
        pytest.skip("needs ../shared (photographs and specifications)")
    return BESIDE


@pytest.fixture(scope="session")
def full() -> Path:
    """All reference outputs, with whole models and vocabularies."""
    if not (BESIDE / "golden").is_dir():
        pytest.skip("needs ../shared/golden (whole models of the reference outputs)")
    return BESIDE / "golden"


ALL = [BESIDE / "golden"] if (BESIDE / "golden").is_dir() else []


@pytest.fixture(scope="session", params=[HERE / "reference", *ALL], ids=lambda path: path.name)
def golden(request: pytest.FixtureRequest) -> Path:
    """Outputs of the published implementations: those of the repository, and where they are there all of them."""
    path: Path = request.param
    return path


@pytest.fixture(scope="session", params=["small", *(["golden"] if ALL else [])])
def makes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories of a ViT in Hugging Face's format and a ResNet in open_clip's that know every word."""
    if request.param == "golden":
        return {"vit": ALL[0] / "tiny-clip", "resnet": ALL[0] / "tiny-clip-resnet"}
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in ("vit", "resnet")}
    clip.save(tiny.clip(tiny.vit_config()), folders["vit"])
    config = tiny.resnet_config()
    usual = replace(config.text.tower, mlp=4 * config.text.tower.width)  # open_clip's format knows no other
    clip.save(tiny.clip(replace(config, text=replace(config.text, tower=usual))), folders["resnet"])
    return folders


@pytest.fixture(scope="session", params=["small", *(["golden"] if ALL else [])])
def vocabulary(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer in both kinds of files: one of a few merges, and where it is there CLIP's own."""
    if request.param == "golden":
        return ALL[0] / "tiny-clip"
    folder = tmp_path_factory.mktemp("vocabulary")
    (folder / "tokenizer.json").write_text(tiny.byte_pairs().to_str())
    (folder / "vocab.json").write_text(json.dumps(tiny.vocabulary()))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, tiny.MERGES), ""]))
    return folder


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was skipped and what it needs, in the last lines."""
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in terminalreporter.stats.get("skipped", [])
                      if isinstance(report.longrepr, tuple | list))  # fmt: skip
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"skipped {count}: {reason}")
