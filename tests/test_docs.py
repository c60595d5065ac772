"""Every command in the documentation parses, every setting in it exists, and the Python in it compiles."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from fedvlm import experiment, faults, methods, overrides, presets
from fedvlm.cli import app
from fedvlm.studies import sweep
from fedvlm.studies.published import library

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = [
    (page.name, line.removeprefix("$ ").split("  #")[0].strip())
    for page in PAGES
    for block in re.findall(r"```console\n(.*?)```", page.read_text(), re.S)
    for line in block.splitlines()
    if line.startswith("$ fedvlm")
]
LOOPS = [
    (page.name, command.replace(f"${name}", value))
    for page in PAGES
    for name, values, command in re.findall(r"^\$ for (\w+) in (.*?); do (fedvlm .*?); done$", page.read_text(), re.M)
    for value in values.split()
]
HEADS = [(name, line) for name in presets.names() for line in presets.about(name).splitlines()[:1]]


def toml_of(page: str) -> dict[str, str]:
    """Files that a page shows, by the name in their first comment; those that it has written are empty here."""
    text = (ROOT / "docs" / page).read_text() if (ROOT / "docs" / page).exists() else ""
    blocks = re.findall(r"```toml\n# (\S+)\n(.*?)```", text, re.S)
    return {f"{stem}.toml": "" for stem in re.findall(r"^\$ fedvlm init (\w+)", text, re.M)} | dict(blocks)


@pytest.mark.parametrize(("page", "command"), [*COMMANDS, *LOOPS, *HEADS])
def test_a_documented_command_is_valid(page: str, command: str, tmp_path: Path) -> None:
    program, verb, *words = shlex.split(command)
    assert program == "fedvlm"
    group = typer.main.get_command(app)
    with group.make_context("fedvlm", [verb, *words], resilient_parsing=False) as context:
        _, found, rest = group.resolve_command(context, [verb, *words])
    sub = found.make_context(verb, list(rest))
    if sub.params.get("what"):
        shown = toml_of(page)
        name = sub.params["what"]
        if name in shown:
            name = str(tmp_path / name)
            Path(name).write_text(shown[sub.params["what"]])
        settings, words = presets.settings(name), sub.params["words"] or []
        if verb == "sweep":
            (chosen, *_) = sweep.plan(settings, words, sub.params["over"]).experiments
        else:
            chosen = experiment.parse(overrides.apply_words(settings, words))
        methods.check(chosen.method)
        faults.check(chosen)
        for method in chosen.methods:
            faults.select_faults(methods.build(method, chosen.method), chosen)


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) >= 10
    assert {name for name, _ in HEADS} == set(presets.names())


@pytest.mark.parametrize("page", [page.name for page in PAGES])
def test_python_in_the_documentation_compiles(page: str) -> None:
    path = ROOT / page if page == "README.md" else ROOT / "docs" / page
    for block in re.findall(r"```python\n(.*?)```", path.read_text(), re.S):
        compile(block, page, "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Files exist, and headings that are linked to are there."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        there = page.parent / name if name else page
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text(), re.M)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, target


def test_published_numbers_on_their_page_are_those_of_the_tables() -> None:
    """Every accuracy on the page is in the packaged tables, which are compared with what was read."""
    page = (ROOT / "docs" / "published-numbers.md").read_text()
    files = [*(library.FOLDER / "tables").glob("*.toml"), library.FOLDER / "reasons.toml"]
    known = {number for file in files for number in re.findall(r"\d\d\.\d\d|\b\d\.\d\d", file.read_text())}
    told = re.findall(r"\b\d?\d\.\d\d\b", page)
    assert len(told) > 70
    assert [number for number in told if number not in known] == []
