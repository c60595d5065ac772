"""The documentation's site: pages from docstrings, links that lead somewhere, and nothing that is fetched."""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from fedvlm import methods, overrides, presets

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))

import api_pages
import site_pages

ROOT = Path(__file__).parents[2]

CODE = '''
"""What it is.

    f(1)
"""
LIMIT: int = 3
"""How many."""
HIDDEN = 1

class Box(Base):
    """A box."""

    width: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """In metres,
    at most."""
    names: list[str] = Field(default_factory=list)
    kind = "plain"

    @property
    def area(self) -> float:
        """Its area."""

    def _inner(self) -> None: ...

def f(a, b: int = 1, *words: str, key: str = 'x', **rest: Any) -> list[int]:
    """Do it."""

def g(first: Mapping[str, Sequence[int]], second: Mapping[str, Sequence[int]], *, third: bool = False) -> None:
    """Do more."""
'''


def test_what_is_shown_of_a_module() -> None:
    text = "\n\n".join(api_pages._module(api_pages.Part("example"), ast.parse(CODE)))
    assert "What it is.\n\n    f(1)\n\n" in text
    assert "### `LIMIT`\n\n```python\nLIMIT: int = 3\n```\n\nHow many.\n" in text
    assert "HIDDEN" not in text
    assert "_inner" not in text
    assert "```python\nclass Box(Base)\n```\n\nA box." in text
    assert "- `width: float = 0.5` (at least 0 and below 1): In metres, at most.\n- `names: list[str] = list()`" in text
    assert "#### `Box.area`\n\n```python\n@property\ndef area() -> float\n```\n\nIts area." in text
    assert 'def f(a, b: int = 1, *words: str, key: str = "x", **rest: Any) -> list[int]' in text
    assert "def g(\n    first: Mapping[str, Sequence[int]],\n" in text
    assert "\n    *,\n    third: bool = False,\n) -> None\n" in text


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages, in a folder of their own beside a copy of the settings."""
    place = tmp_path_factory.mktemp("site")
    site_pages.write(place / "build" / "docs")
    shutil.copy(ROOT / "zensical.toml", place)
    return place


def text_of(staged: Path, page: str) -> str:
    return (staged / "build" / "docs" / page).read_text()


def test_public_names_methods_presets_and_verbs_are_shown(staged: Path) -> None:
    assert "def load(\n    folder: str | Path,\n    *,\n" in text_of(staged, "api/python.md")
    assert "`momentum: float = 0.9` (at least 0 and below 1)" in text_of(staged, "api/method.md")
    shown = text_of(staged, "api/methods.md")
    assert all(
        f"## `{Path(sys.modules[one.__module__].__file__ or '').name}`" in shown for one in methods.known().values()
    )
    assert all(f"## `{name}`\n\n```toml\n# fedvlm " in text_of(staged, "api/presets.md") for name in presets.names())
    assert re.findall(r"^## `fedvlm (\w+)`", text_of(staged, "api/cli.md"), re.M)[:3] == ["init", "check", "copy"]
    assert "## `fedvlm site check`" in text_of(staged, "api/cli.md")


def test_links_out_of_the_folder_lead_to_pages_of_the_site(staged: Path) -> None:
    assert "](api/presets.md)" in text_of(staged, "protocols.md")
    assert "](benchmarks/README.md)" in text_of(staged, "speed.md")
    assert "](../results.md)" in text_of(staged, "benchmarks/README.md")


def test_a_link_to_nothing_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "one.md").write_text("```\n[a](not/looked/at)\n```\n[b](https://example.org) [c](two.md)\n")
    with pytest.raises(FileNotFoundError, match=r"one\.md: two\.md"):
        site_pages.relinked(tmp_path / "docs" / "one.md", tmp_path)


def test_lists_and_tables_stand_apart() -> None:
    plain = "words\n- one\n  more\n- two\n\nwords\n| a |\n|---|\n| 1 ± 2 |\n```\nwords\n- code\n```\n"
    apart = "words\n\n- one\n  more\n- two\n\nwords\n\n| a |\n|---|\n| 1\xa0±\xa02 |\n```\nwords\n- code\n```\n"
    assert site_pages.spaced(plain) == apart
    assert site_pages.spaced(apart) == apart


def test_every_page_is_in_the_navigation(staged: Path) -> None:
    nav = overrides.read_toml(ROOT / "zensical.toml")["project"]["nav"]
    inside = [page for one in nav for each in one.values() for page in ([each] if isinstance(each, str) else
              [place for entry in each for place in entry.values()])]  # fmt: skip
    pages = sorted(file.relative_to(staged / "build" / "docs").as_posix() for file in staged.rglob("*.md"))
    assert sorted(inside) == pages


class Page(HTMLParser):
    """Links, places, and what a browser loads."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.loaded: list[str] = []
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.ids.add(found.get("id", ""))
        if tag == "a":
            self.links.append(found.get("href", ""))
        self.loaded += [found[name] for name in ("src", "srcset", "poster") if name in found]
        if tag == "link":
            self.loaded.append(found.get("href", ""))


@pytest.fixture(scope="module")
def site(staged: Path) -> Path:
    if importlib.util.find_spec("zensical") is None:
        pytest.skip("needs zensical (make test installs it)")
    done = subprocess.run([sys.executable, "-m", "zensical", "build", "--strict", "--clean"], cwd=staged,
                          capture_output=True, text=True)  # fmt: skip
    told = done.stdout + done.stderr
    assert done.returncode == 0, told
    assert "No issues found" in told
    assert "arning" not in told
    return staged / "site"


def test_every_link_and_anchor_of_the_site_leads_somewhere(site: Path) -> None:
    pages = {file: Page(file) for file in site.rglob("*.html")}
    assert len(pages) >= 35
    for file, page in pages.items():
        for link in page.links if file.name != "404.html" else []:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            there = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            there = there / "index.html" if there.is_dir() else there
            assert there.is_file(), f"{file.name}: {link}"
            if parts.fragment and there in pages:
                assert unquote(parts.fragment) in pages[there].ids, f"{file.name}: {link}"


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    for file in site.rglob("*.html"):
        assert not [one for one in Page(file).loaded if urlsplit(one).netloc], file.name
    for file in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//", file.read_text()), file.name


def test_tables_and_lists_came_out_as_such(site: Path) -> None:
    """A paragraph that begins with a bar or a dash is a table or a list that was not understood."""
    for file in site.rglob("*.html"):
        for paragraph in re.findall(r"<p>(.*?)</p>", file.read_text(), re.S):
            assert not re.search(r"(^|\n)(- |\| )|```", paragraph), f"{file.name}: {paragraph[:80]}"
