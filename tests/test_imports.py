"""What the source tree may contain: imports point downwards, nothing is unpickled, functions stay small."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import fedvlm

ROOT = Path(fedvlm.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
ARCHITECTURE = Path(__file__).parents[1] / "docs" / "architecture.md"
FLOORS = {
    name: int(floor)
    for floor, rooms in re.findall(r"^\| (\d+) \| (`.*`) \|", ARCHITECTURE.read_text(), re.MULTILINE)
    for name in re.findall(r"`(\w+)`", rooms)
}
"""The page's table: who changes a room reads there what it is for."""
FORBIDDEN = {
    "torchvision",
    "timm",
    "open_clip",
    "pickle",
    "cPickle",
    "cloudpickle",
    "dill",
    "joblib",
    "shelve",
    "marshal",
}
TORCH_DRAWS = {"rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "rand_like", "randn_like"}
OWN_GENERATORS = ("Generator", "Philox", "default_rng")
INPLACE_DRAWS = {"normal_", "uniform_", "bernoulli_", "random_", "exponential_", "cauchy_", "log_normal_"}


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for file in FILES:
        yield file, ast.parse(file.read_text())


def room(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(file: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every absolute dotted name a file imports, wherever the statement stands, relative ones resolved."""
    package = ["fedvlm", *file.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{start}.{alias.name}") for alias in node.names)


def where(file: Path, line: int) -> str:
    return f"{file.relative_to(ROOT)}:{line}"


def test_the_tree_has_files() -> None:
    assert len(FILES) > 30


def test_every_file_is_in_a_known_room() -> None:
    assert {room(file) for file in FILES} <= set(FLOORS)


def test_imports_point_only_downwards() -> None:
    """house.md: a room imports from lower floors and from itself; rooms of one floor not from each other."""
    wrong = []
    for file, tree in trees():
        own = room(file)
        for line, name in imported(file, tree):
            parts = name.split(".")
            if parts[0] != "fedvlm":
                continue
            other = parts[1] if len(parts) > 1 and parts[1] in FLOORS else "__init__"
            small = FLOORS[own] == FLOORS[other] == 0
            if other != own and not small and FLOORS[other] >= FLOORS[own] and own not in ("__init__", "__main__"):
                wrong.append(f"{where(file, line)} imports {name}")
    assert not wrong, wrong


def test_the_smallest_modules_do_not_import_each_other_in_a_circle() -> None:
    small = {name for name, floor in FLOORS.items() if floor == 0}
    edges: dict[str, set[str]] = {}
    for file, tree in trees():
        if room(file) in small:
            names = [name.split(".") for _, name in imported(file, tree)]
            edges[room(file)] = {n[1] for n in names if n[0] == "fedvlm" and len(n) > 1 and n[1] in small}
    while edges:
        free = [name for name, needs in edges.items() if not needs & edges.keys()]
        assert free, f"a circle among {sorted(edges)}"
        for name in free:
            del edges[name]


def test_nothing_is_unpickled_and_no_heavy_library_is_needed() -> None:
    wrong = []
    for file, tree in trees():
        wrong += [where(file, line) for line, name in imported(file, tree) if name.split(".")[0] in FORBIDDEN]
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if (node.value.id, node.attr) in {
                    ("torch", "load"),
                    ("torch", "save"),
                    ("np", "load"),
                    ("numpy", "load"),
                }:
                    wrong.append(where(file, node.lineno))
            elif isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "trust_remote_code"):
                wrong.append(where(file, node.value.lineno))
    assert not wrong, wrong


def test_eval_and_exec_are_not_used() -> None:
    calls = [
        where(file, node.lineno)
        for file, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("eval", "exec", "compile")
    ]
    assert not calls, calls


def test_there_is_no_global_random_state() -> None:
    """house.md rule 3: no seeding of, and no draw from, the generators that belong to the process.

    The promises disturb them on purpose, to see that nothing depends on them.
    """
    wrong = []
    for file, tree in trees():
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if file.parent.name == "promises":
                continue
            function, given = node.func, {keyword.arg for keyword in node.keywords}
            text = ast.unparse(function)
            bad = (
                (text.startswith("torch.") and function.attr in TORCH_DRAWS and "generator" not in given)
                or (function.attr in INPLACE_DRAWS and "generator" not in given)
                or text in ("torch.manual_seed", "torch.seed", "random.seed", "torch.cuda.manual_seed")
                or (text.startswith("random.") and not text.startswith("random.Random"))
                or (text.startswith(("np.random.", "numpy.random.")) and function.attr not in OWN_GENERATORS)
                or ".init." in text
            )
            if bad:
                wrong.append(f"{where(file, node.lineno)} {text}")
    assert not wrong, wrong


def test_files_and_functions_stay_small() -> None:
    long = [f"{file.relative_to(ROOT)}" for file in FILES if len(file.read_text().splitlines()) > 400]
    for file, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > 50:
                    long.append(f"{where(file, node.lineno)} {node.name}: {lines} lines")
    assert not long, long


def definitions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """Functions, classes and methods; not what stands inside functions."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node
        if isinstance(node, ast.ClassDef):
            yield from (inner for inner in node.body if isinstance(inner, ast.FunctionDef | ast.ClassDef))


def test_everything_public_is_documented_and_annotated() -> None:
    """`setup_context` and the like of an autograd function are named by PyTorch and need no sentence."""
    free, bare = {"forward", "backward", "setup_context"}, []
    for file, tree in trees():
        if not ast.get_docstring(tree):
            bare.append(str(file))
        for node in definitions(tree):
            public = not node.name.startswith("_")
            if public and not ast.get_docstring(node) and node.name not in free:
                bare.append(f"{where(file, node.lineno)} {node.name} has no docstring")
            if isinstance(node, ast.FunctionDef) and node.returns is None:
                bare.append(f"{where(file, node.lineno)} {node.name} has no return annotation")
    assert not bare, bare


def test_there_is_no_room_for_everything() -> None:
    names = {file.stem for file in FILES} | {file.parent.name for file in FILES}
    assert not names & {"utils", "util", "helpers", "common", "misc"}


@pytest.mark.parametrize("word", ["/work/", "/tmp/", "/root/"])
def test_no_path_of_the_machine_it_was_written_on(word: str) -> None:
    assert not [file.name for file in FILES if word in file.read_text()]
