"""What is packed: every data file, nothing else; what a command costs before it does anything."""

from __future__ import annotations

import fnmatch
import os
import resource
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from called import call

import fedvlm

ROOT = Path(__file__).parents[1]
SOURCE = Path(fedvlm.__file__).parent
IGNORED = {".ci/run", ".gitignore"}
"""Files of the repository that the source distribution leaves out."""
pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="needs the repository")


def tracked(*folders: str) -> set[str]:
    done = subprocess.run(["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("needs git")
    return set(done.stdout.split("\n")) - {""}


def test_every_data_file_is_packed() -> None:
    """`package-data` names files by patterns: a new kind of file must not be left out in silence."""
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["fedvlm"]
    data = {file.removeprefix("src/fedvlm/") for file in tracked("src/fedvlm") if not file.endswith(".py")}
    lost = {file for file in data if not any(fnmatch.fnmatch(file, pattern) for pattern in patterns)}
    assert not lost
    assert {pattern for pattern in patterns if not fnmatch.filter(data, pattern)} == set()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel and a source distribution, built from a copy of what git knows."""
    pytest.importorskip("build", reason="needs build")
    copy, dist = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("dist")
    for name in tracked():
        target = copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(dist), str(copy)], capture_output=True, text=True
    )
    if "No matching distribution found" in done.stdout + done.stderr:
        pytest.skip("needs a package index, for setuptools")
    assert done.returncode == 0, done.stderr
    return dist


@pytest.mark.long
def test_the_wheel_holds_the_package_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        names = {name for name in packed.namelist() if ".dist-info/" not in name}
        notices = {name.rpartition("/")[2] for name in packed.namelist() if "/licenses/" in name}
        for name in names:
            assert packed.read(name) == (ROOT / "src" / name).read_bytes()
    assert names == {file.removeprefix("src/") for file in tracked("src")}
    assert notices == {"LICENSE", "NOTICE"}
    assert wheel.stat().st_size < 8e6


@pytest.mark.long
def test_the_source_distribution_is_the_repository(built: Path) -> None:
    (source,) = built.glob("*.tar.gz")
    with tarfile.open(source) as packed:
        names = {name.partition("/")[2] for name in packed.getnames() if packed.getmember(name).isfile()}
    made = {name for name in names if ".egg-info/" in name} | {"PKG-INFO", "setup.cfg"}
    assert names - made == tracked() - IGNORED
    assert source.stat().st_size < 15e6


def test_what_began_elsewhere_is_named() -> None:
    text = (ROOT / "NOTICE").read_text()
    for name in [line for line in text.splitlines() if line.startswith(("src/", "tests/"))]:
        for path in name.split(" (")[0].split(", "):
            assert (ROOT / path).exists(), path


def fastest(*words: str, times: int = 3) -> float:
    """Seconds of computing of the fastest of several processes: other work on this machine only slows them down."""
    spent = []
    for _ in range(times):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *words], check=True, capture_output=True, env=os.environ | {"COLUMNS": "120"})
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(spent)


def test_importing_the_package_is_quick_and_needs_no_torch() -> None:
    heavy = "'torch', 'numpy', 'matplotlib', 'scipy', 'transformers', 'pydantic', 'PIL'"
    check = f"import sys, fedvlm; assert not sys.modules.keys() & {{{heavy}}}"
    assert fastest("-c", check) - fastest("-c", "pass") < 0.3


def test_the_version() -> None:
    assert call("--version").stdout == f"fedvlm {metadata.version('fedvlm')}\n"


def test_help_is_quick() -> None:
    assert fastest("-m", "fedvlm", "--help") < 0.5
    assert fastest("-m", "fedvlm", "run", "--help") < 0.5
