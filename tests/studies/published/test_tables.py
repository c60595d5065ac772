"""The files of published tables: strict, complete, and held together."""

from __future__ import annotations

import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

import fedvlm
from fedvlm.errors import FedvlmError
from fedvlm.studies.published import library
from fedvlm.studies.published.schema import PublishedNumber

CELLS = {
    "pfedmma-domains": 8, "pfedmma-main": 24, "pfedmoap-1": 55, "pfedmoap-2": 10, "pfedmoap-3": 35, "pfedmoap-4": 25,
    "pfedmoap-5": 18, "pfedmoap-6": 45, "pfedmoap-7": 20, "pfedmoap-8": 42, "pfedmoap-9": 30, "others-dpfpl": 32,
    "others-dpfpl-cifar": 4, "others-feddtl": 18, "others-fedmgp-average": 18, "others-fedmgp-cifar": 12,
    "others-fedmgp-domains": 12, "others-fedmgp-sets": 126, "others-fedtpg": 20, "others-fedtpg-log": 21,
    "others-tofa": 11,
}  # fmt: skip
TABLE = """
title = "t"
paper = "p"
venue = "v"
place = "Table 1"
read = "paper"
source = "s"
preset = "few_shot"
[protocol]
backbone = "RN50"
clients = "1"
participation = "1"
rounds = "1"
shots = "1"
partition = "x"
metric = "x"
state = "x"
[runs]
caltech = { data = "caltech" }
[columns]
caltech = { title = "Caltech", runs = ["caltech"] }
[rows.coop]
title = "CoOp"
method = "coop"
cells = ["1.5±0.2"]
"""


def test_every_published_number_is_there() -> None:
    assert {name: len(library.table(name).cells) for name in library.names()} == CELLS


@pytest.mark.parametrize("name", list(CELLS))
def test_each_file_names_its_command(name: str) -> None:
    first = (library.FOLDER / "tables" / f"{name}.toml").read_text().splitlines()[0]
    assert first == f"# fedvlm reproduce {name}"


def test_the_page_about_them_counts_right() -> None:
    page = " ".join((Path(__file__).parents[3] / "docs" / "reproduce.md").read_text().split())
    tables = {name: library.table(name) for name in library.names()}
    void = {name: sum(table.void_for(*cell) is not None for cell in table.cells) for name, table in tables.items()}
    total = sum(len(table.cells) for table in tables.values())
    assert f"data: {total} numbers in {len(tables)} tables" in page
    assert f"{sum(void.values())} of the {total} numbers are void" in page
    never = page[page.index("## What can never") : page.index("Not void, but")]
    assert all(name in never for name, count in void.items() if count)
    needed = page[page.index("## What each table needs") : page.index("pfedmma-main averages")]
    assert all(name in needed for name in tables)


def test_every_fault_data_set_and_network_is_used() -> None:
    tables = [library.table(name) for name in library.names()]
    faults = {fault for table in tables for row, column in table.cells for fault in table.reasons_for(row, column)}
    assert faults == set(library.reasons())
    assert {run.data for table in tables for run in table.runs.values()} == set(library.catalogue().data)
    assert {table.protocol.backbone for table in tables} - {"not noted"} == set(library.catalogue().weights)


@pytest.mark.parametrize(("name", "setting"), [("pfedmoap-8", "experts"), ("pfedmoap-9", "gate_width")])
def test_a_row_of_a_sweep_does_not_lean_on_a_preset(name: str, setting: str) -> None:
    for row in library.table(name).rows.values():
        assert row.settings == {setting: int(row.title.split()[0])}


def test_every_fault_says_how_it_is_known() -> None:
    for name, text in library.reasons().items():
        assert text.endswith(("[code]", "[paper]", "[paper*]", "[note]", "[inferred]")) or "[inferred]. " in text, name


def test_numbers_are_plausible() -> None:
    for name in library.names():
        table = library.table(name)
        for row, column in table.cells:
            number = table.number(row, column)
            assert number is not None
            assert table.unit == "images" or 0 < number.mean <= 100
            assert number.std is None or 0 <= number.std < 20


def test_a_number_is_kept_as_printed() -> None:
    assert (PublishedNumber("98.40±0.04").mean, PublishedNumber("98.40±0.04").std, PublishedNumber("76.36").std) == (
        98.4,
        0.04,
        None,
    )


def written(folder: Path, text: str) -> Path:
    (folder / "table.toml").write_text(text)
    return folder / "table.toml"


def test_the_small_table_is_valid(tmp_path: Path) -> None:
    table = library.read(written(tmp_path, TABLE))
    assert table.cells == [("coop", "caltech")]


MISTAKES = [
    ('state = "x"', 'state = "x"\nstat = "y"', "unknown setting 'protocol.stat'"),
    ('place = "Table 1"\n', "", "'place' is needed"),
    ('read = "paper"', 'read = "heard"', "setting 'read'"),
    ('cells = ["1.5±0.2"]', 'cells = ["1.5±0.2", "3"]', "row 'coop' has 2 cells for 1 columns"),
    ('cells = ["1.5±0.2"]', 'cells = ["1,5"]', "no numbers"),
    ('cells = ["1.5±0.2"]', 'cells = ["1.5±0.2"]\nreasons = ["moon"]', "reasons that are not described: moon"),
    ('cells = ["1.5±0.2"]', 'cells = ["1.5±0.2"]\nvoid = "moon"', "reasons that are not described: moon"),
    ('cells = ["1.5±0.2"]', 'cells = ["1.5±0.2"]\nsettings = { lr = 1.0 }', "name it otherwise"),
    ('method = "coop"', "", "exactly one of method, count and absent"),
    ('method = "coop"', 'method = "coop"\nabsent = "x"', "exactly one of method, count and absent"),
    ('{ data = "caltech" }', '{ data = "mnist" }', "data sets that are not described: mnist"),
    ('runs = ["caltech"]', 'runs = ["dtd"]', "names runs that are not there"),
    ('runs = ["caltech"]', 'absent = "x"', "no column uses the runs"),
    (', runs = ["caltech"]', "", "needs either runs or a reason"),
    ('preset = "few_shot"\n', "", "no preset for the runs"),
    ('backbone = "RN50"\n', "", "needs a backbone"),
]


@pytest.mark.parametrize(("old", "new", "message"), MISTAKES)
def test_a_mistake_in_a_table_is_an_error(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert old in TABLE
    with pytest.raises(FedvlmError, match=message):
        library.read(written(tmp_path, TABLE.replace(old, new)))


def test_an_unknown_table() -> None:
    with pytest.raises(FedvlmError, match="did you mean 'pfedmoap-1'"):
        library.table("pfedmoap1")


def test_the_files_are_part_of_the_package() -> None:
    root = Path(__file__).parents[3]
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["fedvlm"]
    package = Path(fedvlm.__file__).parent
    for file in library.FOLDER.rglob("*.toml"):
        assert any(fnmatch(file.relative_to(package).as_posix(), pattern) for pattern in patterns), file
