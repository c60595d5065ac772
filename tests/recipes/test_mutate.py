"""The mutation runner on a package of ten lines: what it changes, what it finds out, how it goes on."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

RECIPES = Path(__file__).parents[2] / "recipes"
sys.path.insert(0, str(RECIPES))

import mutants  # noqa: E402
import mutate  # noqa: E402
from trials import Measured, Place, order  # noqa: E402

SOURCE = '''"""Words."""

LIMIT = 3


def over(a: int, b: int = 1) -> int:
    """Words."""
    if a > LIMIT:
        raise ValueError(f"{a + 1} is too much")
    return a + b
'''
TEST = """from tiny.over import over


def test_sum():
    assert over(1, 2) == 3
"""


def changes(source: str) -> set[tuple[str, str]]:
    """Before and after; every mutant is a file that can be parsed and differs."""
    found = mutants.mutants("a.py", source.encode())
    for one in found:
        changed = one.applied(source.encode()).decode()
        assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(source)), one
    assert len({one.id for one in found}) == len(found)
    return {(one.before, one.after) for one in found}


@pytest.mark.parametrize(("source", "expected"), [
    ("x = a < b", {("a < b", "(a <= b)")}),
    ("x = a is not b", {("a is not b", "(a is b)")}),
    ("x = a * b", {("a * b", "(a / b)")}),
    ("x = a | f(b)", {("a | f(b)", "a")}),
    ("x = a and b", {("a and b", "(a or b)")}),
    ("x = not a", {("not a", "a")}),
    ("x = -a", {("-a", "a")}),
    ("x = 2", {("2", "3")}),
    ("x = 0.5", {("0.5", "1.0")}),
    ("x = 0.0", {("0.0", "1.0")}),
    ("x = True", {("True", "False")}),
    ("x = min(a, b)", {("min(a, b)", "max(a, b)")}),
    ("x = a.sum(b)", {("a.sum(b)", "a.mean(b)")}),
    ("x = a.clone()", {("a.clone()", "a")}),
    ("x = sorted(a)", {("sorted(a)", "a")}),
    ("x = f(a, key=b)", {("f(a, key=b)", "f(a)")}),
    ("x = a[b:c]", {("a[b:c]", "a[:c]"), ("a[b:c]", "a[b:]")}),
    ("x = a if b else c", {("b", "(not (b))")}),
    ("x = [a for a in b if c]", {("c", "(not (c))")}),
    ("f(a)", {("f(a)", "pass")}),
    ("a.b = c", {("a.b = c", "pass")}),
    ("a += b", {("a += b", "pass")}),
    ("raise a", {("raise a", "pass")}),
    ("while a:\n    break", {("a", "(not (a))"), ("break", "continue")}),
    ("x = 'α' + a[b]", {("'α' + a[b]", "('α' - a[b])")}),
])  # fmt: skip
def test_what_is_changed(source: str, expected: set[tuple[str, str]]) -> None:
    assert changes(source) == expected


@pytest.mark.parametrize("source", [
    '"""Words: 1."""', "import a.b", "assert a < 1", "__all__ = ['a']", "x: Annotated[int, Field(ge=1)]", "x = 'words'",
    "X = tuple[A, A | None]", "def f(a: int = b) -> Annotated[int, 1]: ...", "x = f'{1 + a}'", "warn('words', a=1)",
    "@f(1)\ndef g(): ...",
])  # fmt: skip
def test_what_is_left_alone(source: str) -> None:
    assert changes(source) == set()


def test_the_words_of_an_error_are_left_alone() -> None:
    assert changes("raise ValueError(1 + a)") == {("raise ValueError(1 + a)", "pass")}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    package = tmp_path / "src" / "tiny"
    package.mkdir(parents=True)
    (tmp_path / "tests").mkdir()
    (package / "__init__.py").write_text("")
    (package / "over.py").write_text(SOURCE)
    (tmp_path / "tests" / "test_over.py").write_text(TEST)
    # As strict as ours: an option that names a marker of before ended every child.
    (tmp_path / "pyproject.toml").write_bytes((RECIPES.parent / "pyproject.toml").read_bytes())
    return Place(tmp_path, "tiny")


def run(place: Place, *more: str) -> str:
    command = [sys.executable, str(RECIPES / "mutate.py"), "--root", str(place.root), "--package", "tiny",
               "--tests", "tests", *more]  # fmt: skip
    return subprocess.run([*command, "src/tiny"], capture_output=True, text=True, check=True).stdout


def outcomes(place: Place) -> dict[tuple[str, str], str]:
    return {(row["before"], row["after"]): row["outcome"] for row in mutate.read(place).values()}


@pytest.mark.long
def test_survivors_are_found_and_a_run_goes_on_where_it_was(place: Place) -> None:
    """The test knows the sum; it knows neither the limit nor the default."""
    expected = {
        ("3", "4"): "survived", ("1", "2"): "survived", ("a > LIMIT", "(a >= LIMIT)"): "survived",
        ("a + b", "(a - b)"): "killed", ('raise ValueError(f"{a + 1} is too much")', "pass"): "survived",
    }  # fmt: skip
    said = run(place)
    assert outcomes(place) == expected
    assert "5 mutants, 5 to try" in said
    assert "5 of 5 mutants were tried." in said
    assert "| together | 5 | 1 | 0 | 4 | 20.0 % |" in said
    lines = place.results.read_text().splitlines()
    place.results.write_text("\n".join(lines[:3]) + "\n" + lines[3][:40])
    assert "5 mutants, 2 to try" in run(place)
    assert outcomes(place) == expected

    more = "\n\ndef test_default_and_limit():\n    assert over(3) == 4\n"
    (place.root / "tests" / "test_over.py").write_text(TEST + more)
    assert "5 mutants, 4 to try" in run(place, "--again")
    left = {change for change, outcome in outcomes(place).items() if outcome == "survived"}
    assert left == {("3", "4"), ('raise ValueError(f"{a + 1} is too much")', "pass")}

    assert [row["after"] for row in tomllib.loads(run(place, "--stubs"))["mutant"]] == ["4", "pass"]
    (place.root / "recipes").mkdir()
    reason = {"path": "src/tiny/over.py", "text": "LIMIT = 3", "before": "3", "after": "4", "why": "a matter of taste"}
    written = "\n".join(f"{key} = {json.dumps(value)}" for key, value in reason.items())
    (place.root / "recipes" / "equivalent.toml").write_text(f"[[mutant]]\n{written}\n")
    assert [row["after"] for row in tomllib.loads(run(place, "--stubs"))["mutant"]] == ["pass"]
    page = place.root / "page.md"
    page.write_text(
        "# Head\n\nBefore.\n\n<!-- mutants: written by recipes/mutate.py -->\nold\n<!-- end -->\n\nAfter.\n"
    )
    run(place, "--report", str(page))
    text = page.read_text()
    assert text.startswith("# Head\n\nBefore.\n")
    assert text.endswith("<!-- end -->\n\nAfter.\n")
    assert "| `over.py:3` | `3` -> `4` | a matter of taste |" in text
    assert "| over.py | 5 | 3 | 1 | 1 | 75.0 % |" in text
    assert "old" not in text


def test_a_mistake_that_never_ends_is_noticed(place: Place) -> None:
    source = "def count(a):\n    while a:\n        a -= 1\n    return a\n"
    (place.root / "src" / "tiny" / "over.py").write_text(source)
    (place.root / "tests" / "test_over.py").write_text(
        "from tiny.over import count\n\n\ndef test_c():\n    assert count(2) == 0\n"
    )
    place.root.joinpath("conftest.py").write_text("import trials\ntrials.PATIENCE_S = 0.5\n")
    run(place)
    assert outcomes(place)["a -= 1", "pass"] == "killed"
    assert any(row["by"].startswith("time-out of tests/test_over.py") for row in mutate.read(place).values())


def test_equal_seeds_give_equal_samples_with_a_share_for_every_file() -> None:
    every = [one for path, count in (("a.py", 60), ("b.py", 12), ("c.py", 1))
             for one in mutants.mutants(path, b"\n".join(b"x = %d" % n for n in range(count)))]  # fmt: skip
    first = mutate.sample(every, 20, 0)
    assert first == mutate.sample(every, 20, 0) != mutate.sample(every, 20, 1)
    assert [sum(one.path == path for one in first) for path in ("a.py", "b.py", "c.py")] == [17, 4, 1]
    assert set(first) < set(mutate.sample(every, 40, 0))
    assert set(mutate.sample(every, None, 0)) == set(every)


def test_which_tests_a_mutant_meets(tmp_path: Path) -> None:
    """Those that reach its lines, quick ones first; at import, those that reach its file and those of its mirror."""
    place, path = Place(tmp_path, "tiny"), "src/tiny/room/calc.py"
    known = {
        "tests/room/test_calc.py": Measured(
            {"tests/room/test_calc.py::slow": 9.0, "tests/room/test_calc.py::quick": 0.1}, {path: {"3": ["tests/room/test_calc.py::slow"]}}
        ),
        "tests/room/test_other.py": Measured({"tests/room/test_other.py::far": 1.0}, {}),
        "tests/test_all.py": Measured({"tests/test_all.py::a": 2.0, "tests/test_all.py::b": 1.0}, {path: {"3": ["(setup)"], "9": ["x"]}}),
    }  # fmt: skip

    def met(line: int, budget_s: float = 100.0, at_import: bool = False) -> tuple[list[str], int]:
        one = mutants.Mutant(path, 0, 1, "a", "b", line, line, line, at_import, "")
        names, left = order(place, known, one, budget_s)
        return sorted(name.split("::")[1] for name in names), left

    assert met(3) == (["a", "b", "slow"], 0)
    assert met(3, 4.0) == (["a", "b"], 1)
    assert met(5) == met(3, at_import=True) == (["a", "b", "far", "quick", "slow"], 0)


def test_what_runs_at_import() -> None:
    """Constants, class attributes, defaults and decorated names; not what stands in a function, however deep."""
    source = "A = 1\n\n\nclass B:\n    c = 2\n\n    def d(self, e=3):\n        def f():\n            return 4\n        return 5\n"
    found = {one.before: one.at_import for one in mutants.mutants("a.py", source.encode())}
    assert found == {"1": True, "2": True, "3": True, "4": False, "5": False}
