"""Every number against the tables of ../shared/spec, read out of its Markdown here and not by the package."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from fedvlm.studies.published import library

Grid = dict[tuple[str, str], str]


@pytest.fixture(scope="module")
def spec(shared: Path) -> dict[str, str]:
    files = {name: shared / "spec" / f"{name}.md" for name in ("baselines", "pfedmma", "pfedmoap")}
    if not all(file.is_file() for file in files.values()):
        pytest.skip("needs ../shared/spec")
    return {name: file.read_text() for name, file in files.items()}


def rows(text: str, heading: str) -> list[list[str]]:
    """Cells of the first table after a heading, bold marks taken off."""
    lines = text[text.index(heading) :].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    table = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        table.append([cell.strip().replace("**", "") for cell in line.strip().strip("|").split("|")])
    return [table[0], *table[2:]]


def grid(text: str, heading: str, labels: int = 1) -> Grid:
    head, *body = rows(text, heading)
    return {
        (" ".join(row[:labels]), column): cell
        for row in body
        for column, cell in zip(head[labels:], row[labels:], strict=True)
    }


def ours(name: str) -> Grid:
    table = library.table(name)
    return {
        (row.title, column.title): cell
        for row in table.rows.values()
        for column, cell in zip(table.columns.values(), row.cells, strict=True)
    }


def numbers(text: str) -> list[str]:
    return re.findall(r"\d+\.\d+", text)


@pytest.mark.parametrize(
    ("name", "heading"),
    [(f"pfedmoap-{n}", f"### Table {n} ") for n in (1, 2, 3, 4, 7, 8, 9)],
)
def test_tables_of_pfedmoap(name: str, heading: str, spec: dict[str, str]) -> None:
    found = grid(spec["pfedmoap"], heading)
    assert ours(name) == found
    assert len(found) == len(library.table(name).cells)


def test_privacy(spec: dict[str, str]) -> None:
    head, *body = rows(spec["pfedmoap"], "### Table 6 ")
    found = {(f"ε={e} {m}", c): cell for e, m, *cells in body for c, cell in zip(head[2:], cells, strict=True)}
    assert ours("pfedmoap-6") == found


def test_sizes(spec: dict[str, str]) -> None:
    line = next(line for line in spec["pfedmoap"].splitlines() if line.startswith("| train / test size"))
    pairs = [pair.split("/") for pair in re.findall(r"[\d,]+/[\d,]+", line)]
    table = library.table("pfedmoap-5")
    assert [[a.replace(",", ""), b.replace(",", "")] for a, b in pairs] == [
        list(pair) for pair in zip(table.rows["train"].cells, table.rows["test"].cells, strict=True)
    ]


def test_the_first_table_agrees_with_the_other_specification(spec: dict[str, str]) -> None:
    head, *body = rows(spec["baselines"], "### 24.1 ")
    table = library.table("pfedmoap-1")
    assert [c.split("±")[0] for row in table.rows.values() for c in row.cells] == [c for row in body for c in row[1:]]
    assert [len(head) - 1, len(body)] == [len(table.columns), len(table.rows)]


def test_pfedmma_main(spec: dict[str, str]) -> None:
    assert ours("pfedmma-main") == grid(spec["pfedmma"], "## 5. Published numbers")
    text = next(line for line in spec["baselines"].splitlines() if line.startswith("| pFedMMA, 7 sets"))
    cells = [cell for row in library.table("pfedmma-main").rows.values() for cell in row.cells]
    assert numbers(text) == cells


def test_pfedmma_domains(spec: dict[str, str]) -> None:
    found = grid(spec["pfedmma"], "Feature + label shift, β = 0.5")
    assert ours("pfedmma-domains") == {key: "-" if cell == "?" else cell for key, cell in found.items()}


def slashed(text: str, start: str, heading: str) -> Iterator[list[str]]:
    """`A / B / C | 1 / 2 / 3` of the line that begins with `start`, cell by cell."""
    line = next(row for row in rows(text, heading) if row[0].startswith(start))
    yield from ([part.strip().split("+-")[0] for part in cell.split(" / ")] for cell in line)


def compare(name: str, titles: Sequence[str], columns: Sequence[Sequence[str]]) -> None:
    table = library.table(name)
    assert [row.title for row in table.rows.values()] == list(titles)
    got = [[row.cells[i] for row in table.rows.values()] for i in range(len(table.columns))]
    assert got == [list(column) for column in columns]


def test_cifar_of_others(spec: dict[str, str]) -> None:
    text, heading = spec["baselines"], "### 24.2 "
    titles, ten, hundred, _ = slashed(text, "PromptFL / FedOTP / FedTPG", heading)
    compare("others-fedmgp-cifar", titles, [ten, hundred])
    titles, _, hundred, _ = slashed(text, "PromptFL / FedOTP / FedPGP", heading)
    compare("others-dpfpl-cifar", titles, [hundred])
    titles, ten, hundred, _ = slashed(text, "ZS / CoOp / TOFA", heading)
    table = library.table("others-tofa")
    assert titles == [row.title for row in table.rows.values()]
    assert [row.cells[-2:] for row in table.rows.values()] == [list(pair) for pair in zip(ten, hundred, strict=True)]
    _, *body = slashed(text, "ZS / CoOp / PromptFL", heading)
    means = [[row.cells[i].split("±")[0] for row in library.table("pfedmoap-2").rows.values()] for i in (0, 1)]
    assert body[:2] == means


def test_tofa(spec: dict[str, str]) -> None:
    line = next(line for line in spec["baselines"].splitlines() if line.startswith("**TOFA**"))
    table = library.table("others-tofa")
    assert numbers(line)[:5] == table.rows["tofa"].cells[:5]
    assert list(re.findall(r"(\d+\.\d+)/(\d+\.\d+)", line)[0]) == table.rows["tofa"].cells[5:]


def test_domains_of_others(spec: dict[str, str]) -> None:
    text, heading = spec["baselines"], "### 24.4 "
    titles, domainnet, office, _ = slashed(text, "PromptFL / FedOTP", heading)
    compare("others-fedmgp-domains", titles, [domainnet, office])
    _, domainnet, office, _ = slashed(text, "FedPGP / pFedMoAP", heading)
    rows_ = library.table("pfedmma-domains").rows.values()
    assert [[row.cells[i] for row in rows_] for i in (0, 1)] == [domainnet, office]
    for name, column in (("pfedmoap-3", 1), ("pfedmoap-4", 2)):
        means = [row.cells[-1].split("±")[0] for row in library.table(name).rows.values()]
        assert list(slashed(text, "ZS / CoOp / PromptFL", heading))[column] == means


def test_fedmgp_per_set(spec: dict[str, str]) -> None:
    head, *body = rows(spec["baselines"], "FedMGP per set, Local/Base/Novel")
    names = ("Local", "Base", "Novel")
    found = {
        (method, f"{row[0]} {name}"): number
        for row in body
        for method, cell in zip(head[1:], row[1:], strict=True)
        for name, number in zip(names, cell.split("/"), strict=True)
    }
    assert len(found) == 126
    assert ours("others-fedmgp-sets") == found


@pytest.mark.parametrize(
    ("name", "start"), [("others-fedmgp-average", "FedMGP, 9 sets"), ("others-fedtpg", "FedTPG/FedMVP, 9 sets")]
)
def test_averages_of_others(name: str, start: str, spec: dict[str, str]) -> None:
    line = next(row for row in rows(spec["baselines"], "### 24.3 ") if row[0].startswith(start))
    entries = dict(entry.strip().split(" ", 1) for entry in line[1].split(";"))
    assert {row.title: row.cells for row in library.table(name).rows.values()} == {
        title: numbers(text) for title, text in entries.items()
    }


def test_dpfpl(spec: dict[str, str]) -> None:
    head, *body = rows(spec["baselines"], "DP-FPL, no noise")
    found = {
        (method, f"{row[0]} {kind}"): number
        for row in body
        for method, cell in zip(head[1:], row[1:], strict=True)
        for kind, number in zip(("local", "neighbour"), cell.split("/"), strict=True)
    }
    got = ours("others-dpfpl")
    assert {key: cell for key, cell in got.items() if key[0] != "DP-FPL"} == found
    line = next(line for line in spec["baselines"].splitlines() if line.startswith("- Without noise: local Caltech"))
    local, neighbour = (numbers(part) for part in line.split("neighbour"))
    assert [cell for key, cell in got.items() if key[0] == "DP-FPL"] == [
        number for pair in zip(local, neighbour, strict=True) for number in pair
    ]


def test_fedtpg_log(spec: dict[str, str]) -> None:
    line = next(line for line in spec["baselines"].splitlines() if line.startswith("- Shipped log (seed 43)"))
    log = line.split("[code]")[0]
    head, new, base = re.split(r"; (?:new|base):", log)
    table = library.table("others-fedtpg-log")
    assert numbers(head) == [row.cells[0] for row in table.rows.values()]
    assert numbers(new) == table.rows["new"].cells[1:]
    assert numbers(base) == table.rows["base"].cells[1:]
    assert re.findall(r"([A-Z]\w+) \d", new) == [column.title for column in table.columns.values()][1:]


def test_feddtl(spec: dict[str, str]) -> None:
    text, cells = spec["baselines"], {key: row.cells for key, row in library.table("others-feddtl").rows.items()}
    maple, lora, own, mma = (cells[name] for name in ("maple", "fedlora", "feddtl", "pfedmma"))
    for words in (
        f"base/novel {maple[0]}/{maple[1]} (few-shot non-IID), {maple[3]}/{maple[4]} (full data)",
        f"{'/'.join(lora[:3])} few-shot and {'/'.join(lora[3:6])} full data",
        f"Base/novel: {own[0]}/{own[1]} few-shot, {own[3]}/{own[4]} full data",
        f"novel dropping {mma[1]} -> {mma[4]} from few-shot to full data",
        f"| FedMaPLe / FedDTL (correct labels) | {maple[6]} / {own[6]} |",
    ):
        assert text.count(words) == 1, words
    assert sum(cell != "-" for row in cells.values() for cell in row) == 18
