"""Put together the pages of the documentation's site: `make docs` runs it, then Zensical.

The files in `docs/` are read as they are on any forge, so they link to files beside `docs/` as well. Here

- every page of `docs/` is copied; Markdown files of the repository that a page links to become pages, too;
- pages on the Python interface are written from docstrings (`api_pages.py`), one on the command line from its help, one
  on all methods and one on all presets; a link to such a part of the source leads to its page.

Only what Python-Markdown reads differently from CommonMark is changed: a list or a table gets an empty line before it.
And a number is kept on one line with its interval.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import api_pages
import typer

from fedvlm import presets
from fedvlm.cli import app

ROOT = Path(__file__).parents[1]
OUT = ROOT / "build" / "docs"
SHOWN = {
    "README.md": "index.md", "src/fedvlm/presets": "api/presets.md", "src/fedvlm/methods": "api/methods.md",
    "src/fedvlm/cli": "api/cli.md", **{f"src/{file}": page for file, page in api_pages.sources().items()},
}  # fmt: skip
"""Parts of the repository, and the pages that show them."""
WIDTH = 88
"""Characters of a line of help."""
LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")
FENCE = re.compile(r"(^ {0,3}```.*?^ {0,3}```[^\n]*$)", re.M | re.S)


def write(out: Path = OUT, root: Path = ROOT) -> list[Path]:
    """Write all pages into a folder, which is emptied before. Returns their files."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(root / "docs", out, ignore=shutil.ignore_patterns("*.md"))
    pages: dict[str, str] = {}
    waiting = sorted((root / "docs").glob("*.md"))
    while waiting:
        file = waiting.pop()
        if (place := _place(file, root)) not in pages:
            text, linked = relinked(file, root)
            pages[place] = spaced(text)
            waiting += linked
    pages |= {f"api/{page.file}.md": api_pages.render(page) for page in api_pages.PAGES}
    pages |= {"api/methods.md": _methods(root), "api/presets.md": _presets(), "api/cli.md": _command_line()}
    for place, text in pages.items():
        (out / place).parent.mkdir(parents=True, exist_ok=True)
        (out / place).write_text(text, encoding="utf-8")
    return [out / place for place in sorted(pages)]


def _place(file: Path, root: Path) -> str:
    """Where a file of the repository stands in the site."""
    inside = file.relative_to(root).as_posix()
    return SHOWN.get(inside) or inside.removeprefix("docs/")


def relinked(file: Path, root: Path) -> tuple[str, list[Path]]:
    """A page whose links fit the site, and the Markdown files it links to. Raises `FileNotFoundError`."""
    linked: list[Path] = []

    def moved(found: re.Match[str]) -> str:
        before, target, anchor, after = found.groups()
        if "://" in target:
            return found[0]
        there = Path(os.path.normpath(file.parent / target))
        if not there.exists():
            raise FileNotFoundError(f"{file}: {target}")
        place = _place(there, root)
        if there.suffix == ".md" and place != "index.md":
            linked.append(there)
        start = (root / _place(file, root)).parent
        return f"{before}{os.path.relpath(root / place, start)}{anchor or ''}{after}"

    parts = FENCE.split(file.read_text(encoding="utf-8"))
    return "".join(part if place % 2 else LINK.sub(moved, part) for place, part in enumerate(parts)), linked


def spaced(text: str) -> str:
    """The text with an empty line before lists and tables, and with numbers beside their intervals."""
    parts = FENCE.split(text)
    return "".join(part if place % 2 else _spaced(part) for place, part in enumerate(parts))


def _spaced(text: str) -> str:
    lines: list[str] = []
    for line in text.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}").split("\n"):
        kind, before = _kind(line), lines[-1] if lines else ""
        # A list's lines go on below it, indented.
        if kind and before.strip() and _kind(before) != kind and not (kind == "list" and before.startswith("  ")):
            lines.append("")
        lines.append(line)
    return "\n".join(lines)


def _kind(line: str) -> str:
    return "table" if line.startswith("|") else "list" if line.startswith(("- ", "* ")) else ""


def _methods(root: Path) -> str:
    """The docstrings of all files in `methods/`."""
    files = sorted((root / "src/fedvlm/methods").glob("[a-z]*.py"))
    parts = ["# All methods", "The files of `src/fedvlm/methods`: what each method trains, and what leaves a client. "
             "`fedvlm methods NAME` prints it with every setting."]  # fmt: skip
    for file in files:
        if file.stem != "base":
            parts += [f"## `{file.stem}.py`", api_pages.module_docstring(file)]
    return spaced("\n\n".join(parts) + "\n")


def _presets() -> str:
    """The files of all presets."""
    parts = ["# All presets", "`fedvlm copy NAME` writes one of these files, to change it."]
    for name in presets.names():
        parts += [f"## `{name}`", f"```toml\n{presets.text(name)}```"]
    return "\n\n".join(parts) + "\n"


def _command_line() -> str:
    """The help of every verb."""
    group: Any = typer.main.get_command(app)
    parts = ["# Command line", f"```text\n{_help(group, 'fedvlm')}\n```"]
    for name in group.list_commands(typer.Context(group)):
        verb = group.commands[name]
        inner = getattr(verb, "commands", {})
        for each, path in [(verb, name), *((inner[one], f"{name} {one}") for one in inner)]:
            parts += [f"## `fedvlm {path}`", f"```text\n{_help(each, f'fedvlm {path}')}\n```"]
    return "\n\n".join(parts) + "\n"


def _help(command: Any, path: str) -> str:
    context = typer.Context(command, info_name=path, terminal_width=WIDTH, max_content_width=WIDTH)
    return str(command.get_help(context)).strip()


if __name__ == "__main__":
    print(f"{len(write())} pages in {OUT.relative_to(ROOT)}", file=sys.stderr)
